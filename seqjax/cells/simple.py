"""Cells with few weights: one gate or none, or a recurrence that keeps the units apart.

Docstrings show one step as in `gated.py`, with the carry h [B, H].
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from seqjax.arrays import carry_dtype, like
from seqjax.cells.gated import LSTMCarry, _check_size, _gated, _hint, _initial, _one_product, _project
from seqjax.core import Array, Cell, Const
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, orthogonal, per_gate


def _check_positive(cell: str, name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{cell} takes a positive {name}, got {value}")


def ind_rnn(
    hidden: int,
    activation: Callable[[Array], Array] = jax.nn.relu,
    *,
    w_x: Initializer = glorot_uniform(),
    u: Initializer = jax.nn.initializers.uniform(1.0),
    b: BiasInitializer = gate_bias(),
    dtype: Any = jnp.float32,
) -> Cell:
    """Independently recurrent network: every unit sees its own past alone (Li et al. 2018, arXiv 1803.04831)::

        h = activation(x @ w_x + u * h + b)
        y = h

    Units meet in the next layer. A unit keeps or loses its past as u**T, so for T steps the paper draws u from
    U(0, 2**(1/T)), which is `u=jax.nn.initializers.uniform(2 ** (1 / T))`, and clips it there after each update.

    Args:
      hidden: number of units H.
      activation: any elementwise function.
      w_x: initializer of the input weights [D, H].
      u: initializer of the recurrent weights [H], called with the shape [1, H].
      b: bias initializer, of the one gate "candidate".
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H]. It is gated with no matrix product of the carry at all.
    """
    _check_size("ind_rnn", hidden)

    def init(key, in_features):
        k_x, k_u, k_b = jax.random.split(key, 3)
        return {
            "w_x": per_gate(w_x, k_x, in_features, 1, hidden, dtype),
            "u": per_gate(u, k_u, 1, 1, hidden, dtype)[0],
            "b": b(k_b, ("candidate",), hidden, dtype),
        }

    def gates(h, z, us, write):
        z, u = z
        return write(activation(z + like(u.value.astype(h.dtype), h) * h))

    hint = _hint(lambda params: (), (), gates)
    return _gated(
        init,
        hint,
        initial_carry=lambda params, batch_shape: jnp.zeros((*batch_shape, hidden), carry_dtype(params["u"].dtype)),
        project=lambda params, x: (_project(params, x), Const(params["u"])),
    )


def peephole_sru(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    b: BiasInitializer = gate_bias(),
    dtype: Any = jnp.float32,
) -> Cell:
    """Simple recurrent unit whose gates see the cell state (Lei et al. 2018, arXiv 1709.02755, last version)::

        f, n, r, s = split(x @ w_x + b, 4)
        p_f, p_r = p
        f, r = sigmoid(f + p_f * c), sigmoid(r + p_r * c)
        c = f * c + (1 - f) * n
        h = r * c + (1 - r) * s
        y = h

    Both gates see the state before the step. Units meet in the next layer, and there is no matrix product of the carry,
    but it is not linear in it either: `sru` is, which has no peepholes. The highway s is a product of x, so that its
    width may be another than H, and the paper's factor on it is left to `w_x`.

    Args:
      hidden: number of units H.
      w_x: initializer of the weights [D, H] of each gate.
      b: bias initializer, of the gates "forget", "candidate", "reset" and "highway".
      dtype: of the params. The peepholes p [2, H] start at 0.

    Returns:
      A cell with the carry `LSTMCarry(h, c)`.
    """
    _check_size("peephole_sru", hidden)
    names = ("forget", "candidate", "reset", "highway")

    def init(key, in_features):
        k_x, k_b = jax.random.split(key)
        w = per_gate(w_x, k_x, in_features, 4, hidden, dtype)
        return {"w_x": w, "b": b(k_b, names, hidden, dtype), "p": jnp.zeros((2, hidden), dtype)}

    def initial_carry(params, batch_shape):
        zeros = jnp.zeros((*batch_shape, hidden), carry_dtype(params["p"].dtype))
        return LSTMCarry(zeros, zeros)

    def gates(carry, z, us, write):
        z, p = z
        f, n, r, s = jnp.split(z, 4, axis=-1)
        p_f, p_r = (like(row.astype(f.dtype), f) for row in p.value)
        f, r = sigmoid(f + p_f * carry.c), sigmoid(r + p_r * carry.c)
        c = f * carry.c + (1 - f) * write(n)
        return LSTMCarry(r * c + (1 - r) * s, c)

    return _gated(
        init,
        _hint(lambda params: (), (), gates),
        initial_carry=initial_carry,
        project=lambda params, x: (_project(params, x), Const(params["p"])),
    )


def ugrnn(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    dtype: Any = jnp.float32,
) -> Cell:
    """Update gate network: a GRU without reset (Collins, Sohl-Dickstein & Sussillo 2016, arXiv 1611.09913)::

        z, n = split(x @ w_x + h @ w_h + b, 2)
        h = sigmoid(z) * h + (1 - sigmoid(z)) * tanh(n)
        y = h

    The gates are "update" (near 1 keeps the carry) and "candidate"; arguments and carry as in `gru`.
    """
    _check_size("ugrnn", hidden)

    def gates(h, z, u, write):
        z, n = jnp.split(z + u, 2, axis=-1)
        return sigmoid(z) * h + sigmoid(-z) * write(jnp.tanh(n))

    hint = _one_product(gates)
    return _gated(_initial(hidden, ("update", "candidate"), w_x, w_h, b, dtype), hint)


def mgu(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    dtype: Any = jnp.float32,
) -> Cell:
    """Minimal gated unit: one gate both resets and writes (Zhou et al. 2016, arXiv 1603.09420)::

        x_f, x_n = split(x @ w_x + b, 2)
        w_f, w_n = split(w_h, 2)
        f = sigmoid(x_f + h @ w_f)
        h = (1 - f) * h + f * tanh(x_n + (f * h) @ w_n)
        y = h

    The gates are "input" (f, which writes where it is near 1; the paper calls it the forget gate) and "candidate".
    Arguments and carry as in `gru`.
    """
    _check_size("mgu", hidden)

    def gate(z, us):
        return sigmoid(z[..., :hidden] + us[0])

    def gates(h, z, us, write):
        f = gate(z, us)
        return (1 - f) * h + f * write(jnp.tanh(z[..., hidden:] + us[1]))

    hint = _hint(
        weights=lambda params: (params["w_h"][:, :hidden], params["w_h"][:, hidden:]),
        stages=(lambda h, z, us: h, lambda h, z, us: gate(z, us) * h),
        gates=gates,
    )
    return _gated(_initial(hidden, ("input", "candidate"), w_x, w_h, b, dtype), hint)


def antisymmetric_rnn(
    hidden: int,
    step: float = 0.1,
    diffusion: float = 0.01,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    dtype: Any = jnp.float32,
) -> Cell:
    """Antisymmetric network: a stable differential equation, by Euler steps (Chang et al. 2019, arXiv 1902.09689)::

        h = h + step * tanh(x @ w_x + h @ (w_h - w_h.T) - diffusion * h + b)
        y = h

    The eigenvalues of w_h - w_h.T are imaginary, so the past neither fades nor explodes; `diffusion` makes up for what
    Euler steps add.

    Args:
      hidden: number of units H.
      step: length of a step, above 0.
      diffusion: strength of the decay, at least 0.
      w_x: initializer of the input weights [D, H].
      w_h: initializer of w_h [H, H], of which the antisymmetric part alone is used.
      b: bias initializer, of the one gate "candidate".
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H].

    Raises:
      ValueError: unless step is positive and diffusion at least 0.
    """
    _check_size("antisymmetric_rnn", hidden)
    _check_positive("antisymmetric_rnn", "step", step)
    if not diffusion >= 0:
        raise ValueError(f"antisymmetric_rnn takes a diffusion of at least 0, got {diffusion}")
    hint = _hint(
        weights=lambda params: (params["w_h"] - params["w_h"].T,),
        stages=(lambda h, z, us: h,),
        gates=lambda h, z, us, write: h + step * write(jnp.tanh(z + us[0] - diffusion * h)),
    )
    return _gated(_initial(hidden, ("candidate",), w_x, w_h, b, dtype), hint)


def ct_rnn(
    hidden: int,
    dt: float = 0.1,
    activation: Callable[[Array], Array] = jnp.tanh,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    log_tau: Initializer = jax.nn.initializers.uniform(3.0),
    b: BiasInitializer = gate_bias(),
    dtype: Any = jnp.float32,
) -> Cell:
    """Continuous-time network with a time constant a unit, by Euler steps (Funahashi & Nakamura 1993)::

        h = h + dt / exp(log_tau) * (activation(x @ w_x + h @ w_h + b) - h)
        y = h

    "Approximation of dynamical systems by continuous time recurrent neural networks"; tau dh/dt = -h + activation(...).
    A step of dt = tau is the simple network, and only for dt < 2 tau do the steps stay bounded.

    Args:
      hidden: number of units H.
      dt: time between two inputs, above 0.
      activation: any elementwise function.
      w_x: initializer of the input weights [D, H].
      w_h: initializer of the recurrent weights [H, H].
      log_tau: initializer of the logarithm [H] of the time constants, called with the shape [1, H]: from 1 to 20.
      b: bias initializer, of the one gate "candidate".
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H].
    """
    _check_size("ct_rnn", hidden)
    _check_positive("ct_rnn", "dt", dt)
    initial = _initial(hidden, ("candidate",), w_x, w_h, b, dtype)

    def init(key, in_features):
        key, k_tau = jax.random.split(key)
        return {**initial(key, in_features), "log_tau": per_gate(log_tau, k_tau, 1, 1, hidden, dtype)[0]}

    def project(params, x):
        rate = dt * jnp.exp(-params["log_tau"].astype(carry_dtype(params["log_tau"].dtype)))
        return _project(params, x), Const(rate)

    def gates(h, z, u, write):
        z, rate = z
        return h + like(rate.value, h) * (write(activation(z + u)) - h)

    hint = _one_product(gates)
    return _gated(init, hint, project=project)
