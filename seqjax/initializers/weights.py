"""Initial values of weight matrices."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from seqjax.arrays import Array, Key, carry_dtype
from seqjax.draws import cast_last
from seqjax.identity import by_value

Initializer = Callable[[Key, Sequence[int], DTypeLike], Array]
"""An initializer of weights: `(key, shape [rows, H], dtype) -> array`."""

_P = ParamSpec("_P")


def _casting_last(factory: Callable[_P, Initializer]) -> Callable[_P, Initializer]:
    """A factory of JAX whose initializers are drawn in at least float32 and cast last."""

    @functools.wraps(factory)
    def make(*args: _P.args, **options: _P.kwargs) -> Initializer:
        return cast_last(factory(*args, **options))

    return make


glorot_normal = _casting_last(jax.nn.initializers.glorot_normal)
glorot_uniform = _casting_last(jax.nn.initializers.glorot_uniform)
he_normal = _casting_last(jax.nn.initializers.he_normal)
he_uniform = _casting_last(jax.nn.initializers.he_uniform)
lecun_normal = _casting_last(jax.nn.initializers.lecun_normal)
lecun_uniform = _casting_last(jax.nn.initializers.lecun_uniform)
normal = _casting_last(jax.nn.initializers.normal)


def _check_square(name: str, shape: Sequence[int]) -> int:
    """The number of units H of a square shape [H, H]."""
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"{name} initializes square matrices, got the shape {tuple(shape)}")
    return shape[0]


def orthogonal(scale: float = 1.0) -> Initializer:
    """`scale` times a uniformly drawn orthogonal matrix (Saxe, McClelland & Ganguli 2014, arXiv 1312.6120).

    It draws from `jax.nn.initializers.orthogonal`. Under `vmap` the matrices are drawn one after the other: batched
    decompositions that run at the same time can deadlock on a CPU with few cores (jaxlib 0.10.2).

    Example:
      >>> w = seqjax.initializers.orthogonal()(jax.random.key(0), (4, 4))
      >>> bool(jnp.allclose(w @ w.T, jnp.eye(4), atol=1e-6))
      True
    """

    @cast_last
    def init(key, shape, dtype=jnp.float32):
        draw = jax.nn.initializers.orthogonal(scale)
        return jax.custom_batching.sequential_vmap(lambda key: draw(key, shape, dtype))(key)

    return init


def unitary(scale: float = 1.0) -> Initializer:
    """`scale` times a uniformly drawn unitary matrix of H / 2 complex units, as a real matrix [H, H]::

        w = [[re, im], [-im, re]]

    The first half of the carry holds real parts, the second half imaginary parts: `h @ w` is the complex product, and
    preserves the norm (Arjovsky, Shah & Bengio 2016, arXiv 1511.06464; the draw: Mezzadri 2007, arXiv math-ph/0609050).

    Raises ValueError, when called, for a shape that is not square, or an odd number of units.

    Example:
      >>> w = seqjax.initializers.unitary()(jax.random.key(0), (4, 4))
      >>> bool(jnp.allclose(w @ w.T, jnp.eye(4), atol=1e-6)), bool((w[:2, :2] == w[2:, 2:]).all())
      (True, True)
    """

    @cast_last
    def init(key, shape, dtype=jnp.float32):
        units, odd = divmod(_check_square("unitary", shape), 2)
        if odd:
            raise ValueError(f"unitary pairs units as real and imaginary parts, got the odd shape {tuple(shape)}")

        def draw(key):
            parts = jax.random.normal(key, (2, units, units), dtype)
            q, r = jnp.linalg.qr(jax.lax.complex(parts[0], parts[1]))
            # A decomposition is unique up to the phases of r's diagonal: without them the draw would not be uniform.
            phase = jnp.angle(jnp.diagonal(r))[None]
            q *= jax.lax.complex(jnp.cos(phase), jnp.sin(phase))
            return scale * jnp.block([[q.real, q.imag], [-q.imag, q.real]])

        return jax.custom_batching.sequential_vmap(draw)(key)  # see `orthogonal`

    return init


def identity(scale: float = 1.0) -> Initializer:
    """`scale` times the identity (Le, Jaitly & Hinton 2015, arXiv 1504.00941: the IRNN with ReLU).

    The shape must be square.

    Example:
      >>> seqjax.initializers.identity(0.5)(jax.random.key(0), (2, 2)).tolist()
      [[0.5, 0.0], [0.0, 0.5]]
    """

    def init(key, shape, dtype=jnp.float32):
        del key
        return scale * jnp.eye(_check_square("identity", shape), dtype=dtype)

    return init


def rotations(low: float = -math.pi, high: float = math.pi) -> Initializer:
    """The logarithm of rotations: blocks `[[0, s], [-s, 0]]` on the diagonal, `s ~ U(low, high)`, and 0 elsewhere.

    For `cells.exp_rnn`, whose recurrent matrix then rotates pairs of units by the angles s. The default is that of
    Henaff, Szlam & LeCun 2016 (arXiv 1602.06662), `rotations(0, pi / 2)` that of Helfrich, Willmott & Ye 2018 (arXiv
    1707.09520). The last of an odd number of units is not rotated. The shape must be square.

    Raises ValueError unless `low < high`.
    """
    if not low < high:
        raise ValueError(f"rotations draws angles between low < high, got {low} and {high}")

    @cast_last
    def init(key, shape, dtype=jnp.float32):
        hidden = _check_square("rotations", shape)
        angles = jax.random.uniform(key, (hidden // 2,), dtype, low, high)
        first = 2 * jnp.arange(hidden // 2)
        return jnp.zeros(shape, dtype).at[first, first + 1].set(angles).at[first + 1, first].set(-angles)

    return init


def uniform(scale: float = 1.0) -> Initializer:
    """`U(-s, s)` with `s = scale / sqrt(H)`, H the number of units: PyTorch's initialization of recurrent layers."""

    @cast_last
    def init(key, shape, dtype=jnp.float32):
        bound = scale / shape[-1] ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def critical(gain: float = 1.0) -> Initializer:
    """`N(0, gain^2 / rows)`: at the edge of chaos with gain 1 (Sompolinsky, Crisanti & Sommers 1988).

    A large tanh network without input decays to 0 if the gain is below 1, and is chaotic if it is above;
    `seqjax.diagnostics.lyapunov_exponents` distinguishes the two.
    """

    @cast_last
    def init(key, shape, dtype=jnp.float32):
        return gain * shape[0] ** -0.5 * jax.random.normal(key, shape, dtype)

    return init


def sparse(k: int = 15, scale: float = 1.0) -> Initializer:
    """Every unit has exactly `k` incoming weights, `scale * N(0, 1)` (Martens 2010).

    From "Deep learning via Hessian-free optimization". Every column of the matrix has k nonzero entries. Raises
    ValueError, when called, for fewer than k rows.
    """

    @cast_last
    def init(key, shape, dtype=jnp.float32):
        if not 0 < k <= shape[0]:
            raise ValueError(f"sparse takes between 1 and all {shape[0]} rows for each unit, got k = {k}")
        k_place, k_value = jax.random.split(key)
        rank = jnp.argsort(jax.random.uniform(k_place, shape), axis=0)
        return jnp.where(rank < k, scale * jax.random.normal(k_value, shape, dtype), 0.0)

    return init


def _radius(w: Array) -> Array:
    """The spectral radius of w [H, H], `lim |w^n|^(1/n)` (Gelfand 1941), by 32 squarings.

    Not every device can compute eigenvalues of a nonsymmetric matrix; all can multiply.
    """

    def square(_, state):
        power, log_radius, weight = state
        power = jnp.matmul(power, power, precision="highest")
        norm = jnp.linalg.norm(power)
        log_radius = log_radius + weight * jnp.log(norm)
        return power / jnp.where(norm > 0, norm, 1.0), log_radius, weight / 2

    norm = jnp.linalg.norm(w)
    start = w / jnp.where(norm > 0, norm, 1.0), jnp.log(norm), jnp.full((), 0.5, w.dtype)
    return jnp.exp(jax.lax.fori_loop(0, 32, square, start)[1])


def spectral_radius(radius: float = 0.9, init: Initializer = critical()) -> Initializer:
    """A draw of `init`, scaled so that its largest eigenvalue has modulus `radius`.

    The reservoir of an echo state network (Jaeger 2001, "The 'echo state' approach to analysing and training recurrent
    neural networks"); a sparse one is `spectral_radius(0.9, sparse(10))`. The shape must be square. A nilpotent draw,
    whose radius is 0, is not scaled.

    Example:
      >>> import numpy as np
      >>> w = seqjax.initializers.spectral_radius(0.9)(jax.random.key(0), (8, 8))
      >>> round(float(abs(np.linalg.eigvals(w)).max()), 3)
      0.9
    """

    @cast_last
    def scaled(key, shape, dtype=jnp.float32):
        _check_square("spectral_radius", shape)
        w = init(key, shape, dtype)
        drawn = _radius(w)
        return w * jnp.where(drawn > 0, radius / jnp.where(drawn > 0, drawn, 1.0), 1.0)

    return scaled


def np_rnn() -> Initializer:
    """A symmetric positive definite matrix with largest eigenvalue 1 (Talathi & Vartak 2015, arXiv 1511.03771).

        w = (r.T r / H + 1) / largest eigenvalue,   r ~ N(0, 1)

    For ReLU networks: one direction is preserved and all others decay. The shape must be square.
    """

    @cast_last
    def init(key, shape, dtype=jnp.float32):
        hidden = _check_square("np_rnn", shape)
        r = jax.random.normal(key, shape, dtype)
        w = jnp.matmul(r.T, r, precision="highest") / hidden + jnp.eye(hidden, dtype=dtype)
        return w / _radius(w)

    return init


@by_value
class Jointly(NamedTuple):
    """A weight initializer that draws the matrices of all gates at once; see `jointly`."""

    init: Initializer

    def __call__(self, key: Key, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        """As `init`."""
        return self.init(key, shape, dtype)


def jointly(init: Initializer) -> Jointly:
    """One draw of `init` for the matrices of all gates side by side, [rows, gates * H], as in Keras.

    `jointly(orthogonal())` makes the rows orthonormal over all gates, and `jointly(glorot_uniform())` counts the units
    of all gates as outputs, so both give smaller weights than one draw per gate.

    Example:
      >>> orthogonal, jointly = seqjax.initializers.orthogonal(), seqjax.initializers.jointly
      >>> each = seqjax.cells.lstm(8, w_h=orthogonal).init(jax.random.key(0), 3)["w_h"]  # [8, 4 * 8]
      >>> side_by_side = seqjax.cells.lstm(8, w_h=jointly(orthogonal)).init(jax.random.key(0), 3)["w_h"]
      >>> [round(jnp.linalg.norm(w[0]).item(), 4) for w in (each, side_by_side)]
      [2.0, 1.0]
    """
    return Jointly(init)


def per_gate(init: Initializer, key: Key, rows: int, gates: int, hidden: int, dtype: DTypeLike) -> Array:
    """One `[rows, hidden]` block per gate, each drawn by `init` with a new key: `[rows, gates * hidden]`.

    If `init` is `jointly(...)`, one draw of the whole shape instead. Drawn in at least float32 and then cast: the
    decomposition in `orthogonal` does not exist in 16 bits.
    """
    if isinstance(init, Jointly):
        return init(key, (rows, gates * hidden), carry_dtype(dtype)).astype(dtype)
    keys = jax.random.split(key, gates)
    blocks = [init(k, (rows, hidden), carry_dtype(dtype)) for k in keys]
    return jnp.concatenate(blocks, axis=1).astype(dtype)
