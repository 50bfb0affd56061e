"""State spaces with a diagonal transition: a decay for each unit, real or a rotation of the complex plane.

No array is complex: a complex carry is a `Complex`, and its step is written in its real and imaginary part. The
docstrings show one step as in `gated.py`, with complex NumPy: x [B, D], carry [B, H] or re and im.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, sigmoid
from jax.typing import DTypeLike

from seqjax.arrays import Array, Tree, carry_dtype, check_features, dense, like, matmul
from seqjax.cells.building import check_divisor, check_size
from seqjax.core import Cell
from seqjax.draws import check_entries
from seqjax.hints import Complex, affine_transition, multiply
from seqjax.identity import recorded
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, per_gate


def _wide(value: Array) -> Array:
    """A param in the dtype of the carry."""
    return value.astype(carry_dtype(value.dtype))


def _between_products(init: Callable, affine: Callable) -> Cell:
    """A cell of H complex units, with `x @ w_x` [B, 2 H] before them and a product with w_y [2 H, D] after them."""

    def initial_carry(params, batch_shape):
        zeros = jnp.zeros((*batch_shape, params["w_y"].shape[0] // 2), carry_dtype(params["w_y"].dtype))
        return Complex(zeros, zeros)

    def readout(params, carry, z):
        y = matmul(jnp.concatenate(carry, axis=-1), params["w_y"])
        return y + like(_wide(params["d"]), y) * z[1]

    return Cell(
        init=init,
        initial_carry=initial_carry,
        project=lambda params, x: (dense(x, params["w_x"]), x.astype(carry_dtype(x.dtype))),
        transition=affine_transition(affine),
        readout=readout,
        affine=affine,
    )


def _lru_affine(params: Tree, z: tuple[Array, Array]) -> tuple[Complex, Complex]:
    u, v = jnp.split(z[0], 2, axis=-1)
    decay, phase, scale = (like(jnp.exp(_wide(params[name])), u) for name in ("nu", "theta", "gamma"))
    a = jnp.exp(-decay)
    return Complex(a * jnp.cos(phase), a * jnp.sin(phase)), Complex(scale * u, scale * v)


@recorded
def lru(
    hidden: int,
    *,
    r_min: float = 0.0,
    r_max: float = 1.0,
    max_phase: float = 2 * math.pi,
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Linear recurrent unit (Orvieto et al. 2023, arXiv 2303.06349)::

        a = exp(-exp(nu) + 1j * exp(theta))
        u, v = split(x @ w_x, 2)
        h = a * (re + 1j * im) + exp(gamma) * (u + 1j * v)
        re, im = h.real, h.imag
        c_re, c_im = w_y[: len(nu)], w_y[len(nu) :]
        y = (h @ (c_re - 1j * c_im)).real + d * x

    Args:
      hidden: number of complex units H.
      r_min: the least |a| at the start; a is drawn uniformly on the ring between r_min and r_max.
      r_max: the largest |a| at the start.
      max_phase: the largest angle of a at the start, drawn uniformly from 0; smaller for long sequences.
      dtype: of the params: nu, theta and gamma [H], w_x [D, 2 H], w_y [2 H, D] (real parts before imaginary ones)
        and d [D]. gamma starts at log sqrt(1 - |a|^2), so that white noise gives a carry of the same size.

    Returns:
      A cell with the carry `Complex(re, im)`, each [B, H], affine in it, and the output y [B, D], as wide as the input.

    Raises:
      ValueError: unless 0 <= r_min < r_max <= 1 and max_phase is positive.

    Example:
      >>> cell = seqjax.cells.lru(8)
      >>> params = cell.init(jax.random.key(0), 3)
      >>> carry, ys = seqjax.unroll(cell, params, None, jnp.ones((5, 2, 3)), method="associative")
      >>> carry.re.shape, ys.shape
      ((2, 8), (5, 2, 3))
    """
    hidden = check_size("lru", hidden)
    if not 0 <= r_min < r_max <= 1 or not max_phase > 0:
        raise ValueError(f"lru needs 0 <= r_min < r_max <= 1 and max_phase > 0, got {r_min}, {r_max} and {max_phase}")

    def init(key, in_features):
        check_entries((in_features, 2 * hidden))
        k_r, k_phase, k_x, k_y, k_d = jax.random.split(key, 5)
        wide = carry_dtype(dtype)
        eps, tiny = float(jnp.finfo(wide).eps), float(jnp.finfo(wide).tiny)
        # Uniform on the ring is uniform in |a|^2; 1 - |a|^2 is bounded away from 0 and 1 for the logarithms.
        lost = jax.random.uniform(k_r, (hidden,), wide, 1 - r_max**2, 1 - r_min**2).clip(eps, 1 - eps)
        decay = -0.5 * jnp.log1p(-lost)
        phase = jax.random.uniform(k_phase, (hidden,), wide, tiny, max_phase)
        params = {
            "nu": jnp.log(decay),
            "theta": jnp.log(phase),
            "gamma": 0.5 * jnp.log(lost),
            "w_x": jax.random.normal(k_x, (in_features, 2 * hidden), wide) / (2 * in_features) ** 0.5,
            "w_y": jax.random.normal(k_y, (2 * hidden, in_features), wide) / hidden**0.5,
            "d": jax.random.normal(k_d, (in_features,), wide),
        }
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    return _between_products(init, _lru_affine)


def _log_softplus(u: Array) -> Array:
    """log(log(1 + exp(u))), which is u where exp(u) is small."""
    small = math.log(jnp.finfo(u.dtype).eps)
    return jnp.where(u < small, u, jnp.log(jax.nn.softplus(jnp.maximum(u, small))))


@recorded
def rg_lru(
    *,
    w_x: Initializer = glorot_uniform(),
    b: BiasInitializer = gate_bias(),
    c: float = 8.0,
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Real-gated linear recurrent unit (De et al. 2024, arXiv 2402.19427: Griffin)::

        r, i = split(x @ w_x + b, 2)
        a = sigmoid(decay) ** (c * sigmoid(r))
        h = a * h + (1 - a**2) ** 0.5 * (sigmoid(i) * x)
        y = h

    Args:
      w_x: initializer of the weights [D, D] of each gate (the paper's are block-diagonal).
      b: bias initializer, of the gates "recurrence" and "input".
      c: how much faster than sigmoid(decay) a unit may forget.
      dtype: of the params. decay [D] starts where sigmoid(decay)^c is uniform in [0.9, 0.999].

    Returns:
      A cell with the carry h [B, D]: it has as many units as the input has features. The products, the convolution
      and the gate around it in the paper's block are other layers.

    Raises:
      ValueError: unless c is positive.
    """
    if not c > 0:
        raise ValueError(f"rg_lru needs c > 0, got {c}")
    gates = ("recurrence", "input")

    def init(key, in_features):
        k_x, k_b, k_decay = jax.random.split(key, 3)
        slow = jnp.log(jax.random.uniform(k_decay, (in_features,), carry_dtype(dtype), 0.9, 0.999)) / c
        return {
            "w_x": per_gate(w_x, k_x, in_features, len(gates), in_features, dtype),
            "b": b(k_b, gates, in_features, dtype),
            "decay": (slow - jnp.log(-jnp.expm1(slow))).astype(dtype),
        }

    def affine(params, z):
        z, x = z
        r, i = jnp.split(z, 2, axis=-1)
        log_a = c * sigmoid(r) * like(log_sigmoid(_wide(params["decay"])), r)
        # 1 - a^2 = rate * (1 - exp(-rate)) / rate, with the root of the first factor taken of its logarithm: where
        # nothing is forgotten nothing is written, and a root of 0 has an infinite gradient.
        log_rate = math.log(2 * c) + log_sigmoid(r) + like(_log_softplus(-_wide(params["decay"])), r)
        rate = jnp.maximum(-2 * log_a, jnp.finfo(log_a.dtype).eps)
        write = jnp.exp(0.5 * log_rate) * jnp.sqrt(-jnp.expm1(-rate) / rate)
        return jnp.exp(log_a), write * (sigmoid(i) * x)

    return Cell(
        init=init,
        initial_carry=lambda params, batch: jnp.zeros((*batch, len(params["decay"])), carry_dtype(params["b"].dtype)),
        project=lambda params, x: (dense(x, params["w_x"], params["b"]), x.astype(carry_dtype(x.dtype))),
        transition=affine_transition(affine),
        readout=lambda params, h, z: h,
        affine=affine,
    )


def legs_frequencies(states: int) -> np.ndarray:
    """The positive imaginary parts [states] of the diagonal of HiPPO-LegS (Gu et al. 2022, arXiv 2206.11893).

    The matrix of `2 states` rows is, up to a part of rank 1, -1/2 plus the antisymmetric

        S[n, k] = -sqrt((2 n + 1) (2 k + 1)) / 2  for n > k

    whose eigenvalues are +-i times its singular values.
    """
    root = np.sqrt(2 * np.arange(2 * states) + 1.0)
    below = np.tril(np.outer(root, root), -1) / 2
    return np.sort(np.linalg.svd(below.T - below, compute_uv=False))[::2]


def _check_steps(cell: str, dt_min: float, dt_max: float) -> None:
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"{cell} needs 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")


def _draw_log_dt(key: Any, shape: tuple[int, ...], dtype: DTypeLike, dt_min: float, dt_max: float) -> Array:
    return jax.random.uniform(key, shape, dtype, math.log(dt_min), math.log(dt_max))


def _zero_order_hold(log_dt: Array, log_decay: Array, frequency: Array) -> tuple[Complex, Complex]:
    """exp(dt A) and (exp(dt A) - 1) / A of A = -decay + i frequency."""
    dt, decay = jnp.exp(log_dt), jnp.exp(log_decay)
    shrink, turn = -dt * decay, dt * frequency
    a = Complex(jnp.exp(shrink) * jnp.cos(turn), jnp.exp(shrink) * jnp.sin(turn))
    # a - 1 without the difference of two numbers near 1; then (a - 1) / (-decay + i frequency).
    less = jnp.expm1(shrink) * jnp.cos(turn) - 2 * jnp.sin(turn / 2) ** 2
    norm = decay**2 + frequency**2
    return a, Complex((a.im * frequency - less * decay) / norm, -(less * frequency + a.im * decay) / norm)


def _s4d_affine(params: Tree, x: Array) -> tuple[Complex, Complex]:
    log_dt, log_decay, frequency = (_wide(params[name]) for name in ("log_dt", "log_decay", "frequency"))
    a, b = _zero_order_hold(like(log_dt[:, None], frequency), log_decay, frequency)
    x = jnp.broadcast_to(x[..., None], (*x.shape, frequency.shape[-1]))
    return jax.tree.map(lambda a: like(a, x), a), jax.tree.map(lambda b: like(b, x) * x, b)


@recorded
def s4d(states: int, *, dt_min: float = 0.001, dt_max: float = 0.1, dtype: DTypeLike = jnp.float32) -> Cell:
    """Diagonal state space for each feature, S4D-LegS, zero-order hold (Gu et al. 2022, arXiv 2206.11893)::

        dt = exp(log_dt)[:, None]
        A = -exp(log_decay) + 1j * frequency
        a = exp(dt * A)
        h = a * (re + 1j * im) + (a - 1) / A * x[:, :, None]
        re, im = h.real, h.imag
        y = 2 * (c_re * re - c_im * im).sum(-1) + d * x

    The exact solution of h' = A h + x over a time dt in which x is constant. The factor 2 accounts for the conjugate of
    each state, which is not computed. Mix features by `with_head`, or by the layer after this one.

    Args:
      states: number of complex states N of each feature.
      dt_min: log dt is drawn uniformly between the logarithms of this
      dt_max: and this, one dt a feature.
      dtype: of the params: log_dt and d [D], log_decay, frequency, c_re and c_im [D, N]. A starts at
        -1/2 + i `legs_frequencies`, c at random with variance 1, d at random.

    Returns:
      A cell with the carry `Complex(re, im)`, each [B, D, N], affine in it, and the output y [B, D].

    Raises:
      ValueError: for no states, or unless 0 < dt_min <= dt_max.
    """
    states = check_size("s4d", states, "states")
    _check_steps("s4d", dt_min, dt_max)

    def init(key, in_features):
        check_entries((in_features, states))
        k_dt, k_c, k_d = jax.random.split(key, 3)
        wide, shape = carry_dtype(dtype), (in_features, states)
        c_re, c_im = jax.random.normal(k_c, (2, *shape), wide) * 0.5**0.5
        params = {
            "log_dt": _draw_log_dt(k_dt, (in_features,), wide, dt_min, dt_max),
            "log_decay": jnp.full(shape, math.log(0.5), wide),
            "frequency": jnp.broadcast_to(jnp.asarray(legs_frequencies(states), wide), shape),
            "c_re": c_re,
            "c_im": c_im,
            "d": jax.random.normal(k_d, (in_features,), wide),
        }
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def initial_carry(params, batch_shape):
        zeros = jnp.zeros((*batch_shape, *params["frequency"].shape), carry_dtype(params["frequency"].dtype))
        return Complex(zeros, zeros)

    def project(params, x):
        check_features(x, params["d"])
        return x.astype(carry_dtype(x.dtype))

    def readout(params, carry, x):
        c_re, c_im = (like(_wide(params[name]), carry.re) for name in ("c_re", "c_im"))
        return 2 * (c_re * carry.re - c_im * carry.im).sum(-1) + like(_wide(params["d"]), x) * x

    return Cell(init, initial_carry, project, affine_transition(_s4d_affine), readout, affine=_s4d_affine)


def _s5_affine(params: Tree, z: tuple[Array, Array]) -> tuple[Complex, Complex]:
    u, v = jnp.split(z[0], 2, axis=-1)
    hold = _zero_order_hold(*(_wide(params[name]) for name in ("log_dt", "log_decay", "frequency")))
    a, b = jax.tree.map(lambda leaf: like(leaf, u), hold)
    return a, multiply(b, Complex(u, v))


@recorded
def s5(
    hidden: int, blocks: int = 1, *, dt_min: float = 0.001, dt_max: float = 0.1, dtype: DTypeLike = jnp.float32
) -> Cell:
    """Diagonal state space that mixes the features, S5, zero-order hold (Smith et al. 2023, arXiv 2208.04933)::

        A = -exp(log_decay) + 1j * frequency
        a = exp(exp(log_dt) * A)
        u, v = split(x @ w_x, 2)
        h = a * (re + 1j * im) + (a - 1) / A * (u + 1j * v)
        re, im = h.real, h.imag
        c_re, c_im = w_y[: len(log_dt)], w_y[len(log_dt) :]
        y = (h @ (c_re - 1j * c_im)).real + d * x

    The exact solution of h' = A h + B x over a time dt in which x is constant; every state has its own dt. The
    conjugate of each state is not computed: w_y counts it, and is twice the paper's C. The paper's activation and gate
    are the layers after this one.

    Args:
      hidden: number of complex states H, half of the paper's P.
      blocks: A starts as this many equal blocks of HiPPO-N, each of hidden / blocks states.
      dt_min: log dt is drawn uniformly between the logarithms of this
      dt_max: and this, one dt a state.
      dtype: of the params: log_dt, log_decay and frequency [H], w_x [D, 2 H], w_y [2 H, D] (real parts before imaginary
        ones) and d [D]. A starts at -1/2 + i `legs_frequencies`, w_x and w_y at random with variances 1 / (4 H) and
        2 / H: what the authors' draws are in the coordinates of the eigenvectors of HiPPO-N, which are orthonormal.

    Returns:
      A cell with the carry `Complex(re, im)`, each [B, H], affine in it, and the output y [B, D], as wide as the input.

    Raises:
      ValueError: for no states, blocks that do not divide them, or unless 0 < dt_min <= dt_max.
    """
    hidden = check_size("s5", hidden)
    blocks = check_divisor("s5", hidden, blocks, "blocks")
    _check_steps("s5", dt_min, dt_max)

    def init(key, in_features):
        check_entries((in_features, 2 * hidden))
        k_dt, k_x, k_y, k_d = jax.random.split(key, 4)
        wide = carry_dtype(dtype)
        params = {
            "log_dt": _draw_log_dt(k_dt, (hidden,), wide, dt_min, dt_max),
            "log_decay": jnp.full((hidden,), math.log(0.5), wide),
            "frequency": jnp.tile(jnp.asarray(legs_frequencies(hidden // blocks), wide), blocks),
            "w_x": jax.random.normal(k_x, (in_features, 2 * hidden), wide) * (1 / 4 / hidden) ** 0.5,
            "w_y": jax.random.normal(k_y, (2 * hidden, in_features), wide) * (2 / hidden) ** 0.5,
            "d": jax.random.normal(k_d, (in_features,), wide),
        }
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    return _between_products(init, _s5_affine)
