"""Cells whose transition is one or two matrix products of the carry between elementwise gates.

Each docstring shows one step as the code of a slow loop: x [B, D], carry [B, H], weights as in the params;
`split(u, n)` cuts the last axis into n equal parts. The tests run that code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from seqjax.arrays import carry_dtype, check_features, like
from seqjax.core import Array, Cell, Const, Dense, Gated, exportable, gated_transition
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, orthogonal, per_gate


@exportable
class LSTMCarry(NamedTuple):
    """Carry of the LSTM cells: output h and cell state c, each [B, H]."""

    h: Array
    c: Array


def _check_size(name: str, hidden: int) -> None:
    if not isinstance(hidden, int) or hidden < 1:
        raise ValueError(f"{name} takes a positive number of units, got {hidden!r}")


def _initial(hidden: int, gates: tuple[str, ...], w_x, w_h, b, dtype, rows: int | None = None) -> Callable:
    """The init of a cell with weights w_x [D, G*H], w_h [rows, G*H], of H rows unless told, and b [G*H]."""

    def init(key, in_features):
        k_x, k_h, k_b = jax.random.split(key, 3)
        return {
            "w_x": per_gate(w_x, k_x, in_features, len(gates), hidden, dtype),
            "w_h": per_gate(w_h, k_h, rows or hidden, len(gates), hidden, dtype),
            "b": b(k_b, gates, hidden, dtype),
        }

    return init


def _zeros(params, batch_shape) -> Array:
    w_h = params["w_h"]
    return jnp.zeros((*batch_shape, w_h.shape[0]), carry_dtype(w_h.dtype))


def _zeros_lstm(params, batch_shape) -> LSTMCarry:
    return LSTMCarry(_zeros(params, batch_shape), _zeros(params, batch_shape))


def _project(params, x) -> Dense:
    check_features(x, params["w_x"])
    return Dense(x, Const(params["w_x"]), Const(params["b"]))


def _itself(n: Array) -> Array:
    return n


def _hint(weights: Callable, stages: tuple[Callable, ...], gates: Callable) -> Gated:
    """The hint of a cell with `gates(carry, z, us, write)`, where `write(n)` stands for the candidate n."""
    return Gated(weights, stages, lambda carry, z, us: gates(carry, z, us, _itself), gates)


def _one_product(gates: Callable) -> Gated:
    """The hint of a cell with `gates(carry, z, u, write)`, whose only matrix product u is that of its output h."""
    return _hint(
        weights=lambda params: (params["w_h"],),
        stages=(lambda carry, z, us: jax.tree.leaves(carry)[0],),
        gates=lambda carry, z, us, write: gates(carry, z, us[0], write),
    )


def _gated(init: Callable, hint: Gated, *, initial_carry: Callable = _zeros, project: Callable = _project) -> Cell:
    """A cell of nothing but its hint, whose output is the first leaf of its carry."""
    return Cell(
        init=init,
        initial_carry=initial_carry,
        project=project,
        transition=gated_transition(hint),
        readout=lambda params, carry, z: jax.tree.leaves(carry)[0],
        gated=hint,
    )


def _lstm_gates(carry: LSTMCarry, u: Array, write: Callable = _itself, show: Callable = _itself) -> LSTMCarry:
    """The LSTM's arithmetic on its pre-activations u [..., 4H]; the output sees `show(c)`."""
    i, f, g, o = jnp.split(u, 4, axis=-1)
    c = sigmoid(f) * carry.c + sigmoid(i) * write(jnp.tanh(g))
    return LSTMCarry(sigmoid(o) * jnp.tanh(show(c)), c)


def normalize(u: Array, gain: Array, epsilon: float) -> Array:
    """`gain * (u - mean) / sqrt(variance + epsilon)`, mean and variance of the last axis; u [..., G], gain [G]."""
    # The result is that of u / size and epsilon / size^2, for any size: here no square of u overflows.
    size = largest(u)
    u = u / like(size, u)
    u = u - u.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(u).mean(-1, keepdims=True) + jnp.square(epsilon**0.5 / size))
    return u * like(scale, u) * like(gain.astype(u.dtype), u)


def largest(u: Array) -> Array:
    """[..., 1]: the largest absolute value of u [..., G], or 1 where all are smaller, with a gradient of 0.

    It is for formulas whose value, and so whose gradient, does not depend on what u is divided by.
    """
    return jax.lax.stop_gradient(jnp.maximum(jnp.abs(u).max(-1, keepdims=True), 1.0))


def rnn(
    hidden: int,
    activation: Callable[[Array], Array] = jnp.tanh,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    dtype: Any = jnp.float32,
) -> Cell:
    """Simple recurrent network (Elman 1990)::

        h = activation(x @ w_x + h @ w_h + b)
        y = h

    Args:
      hidden: number of units H.
      activation: any elementwise function.
      w_x: initializer of the input weights [D, H].
      w_h: initializer of the recurrent weights [H, H].
      b: bias initializer, of the one gate "candidate".
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H]. Elman's separate output map f(W h + b) is `wrappers.with_head(rnn(H), O, f)`.
      The IRNN (Le, Jaitly & Hinton 2015, arXiv 1504.00941) is `rnn(H, jax.nn.relu, w_h=initializers.identity())`.

    Example:
      >>> irnn = seqjax.cells.rnn(2, jax.nn.relu, w_h=seqjax.initializers.identity())
      >>> irnn.init(jax.random.key(0), 3)["w_h"].tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    _check_size("rnn", hidden)
    hint = _one_product(lambda h, z, u, write: write(activation(z + u)))
    return _gated(_initial(hidden, ("candidate",), w_x, w_h, b, dtype), hint)


def lstm(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(forget=1.0),
    dtype: Any = jnp.float32,
) -> Cell:
    """Long short-term memory (Hochreiter & Schmidhuber 1997) with forget gate (Gers, Schmidhuber & Cummins 2000)::

        i, f, g, o = split(x @ w_x + h @ w_h + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        y = h

    Args:
      hidden: number of units H.
      w_x: initializer of the input weights [D, H] of each gate.
      w_h: initializer of the recurrent weights [H, H] of each gate.
      b: bias initializer, of the gates "input", "forget", "candidate" and "output".
      dtype: of the params.

    Returns:
      A cell with the carry `LSTMCarry(h, c)`.

    Example:
      >>> cell = seqjax.cells.lstm(16)
      >>> params = cell.init(jax.random.key(0), 14)
      >>> sum(w.size for w in jax.tree.leaves(params))  # 4 * (16 * (14 + 16) + 16)
      1984
      >>> jnp.split(params["b"], 4)[1].mean().item()  # the forget gates start at sigmoid(1)
      1.0
    """
    _check_size("lstm", hidden)

    hint = _one_product(lambda carry, z, u, write: _lstm_gates(carry, z + u, write))
    return _gated(
        _initial(hidden, ("input", "forget", "candidate", "output"), w_x, w_h, b, dtype),
        hint,
        initial_carry=_zeros_lstm,
    )


def peephole_lstm(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(forget=1.0),
    dtype: Any = jnp.float32,
) -> Cell:
    """LSTM whose gates see the cell state (Gers & Schmidhuber 2000, "Recurrent nets that time and count")::

        i, f, g, o = split(x @ w_x + h @ w_h + b, 4)
        p_i, p_f, p_o = p
        c_before = c
        c = sigmoid(f + p_f * c_before) * c_before + sigmoid(i + p_i * c_before) * tanh(g)
        h = sigmoid(o + p_o * c) * tanh(c)
        y = h

    Input and forget gate see the state before the step, the output gate the state after it. The peepholes p [3, H] are
    elementwise and start at 0. Arguments and carry as in `lstm`.
    """
    _check_size("peephole_lstm", hidden)
    initial = _initial(hidden, ("input", "forget", "candidate", "output"), w_x, w_h, b, dtype)

    def project(params, x):
        return _project(params, x), Const(params["p"])

    def gates(carry, z, u, write):
        z, p = z
        i, f, g, o = jnp.split(z + u, 4, axis=-1)
        p_i, p_f, p_o = (like(row.astype(u.dtype), g) for row in p.value)
        c = sigmoid(f + p_f * carry.c) * carry.c + sigmoid(i + p_i * carry.c) * write(jnp.tanh(g))
        return LSTMCarry(sigmoid(o + p_o * c) * jnp.tanh(c), c)

    hint = _one_product(gates)
    return _gated(
        lambda key, in_features: {**initial(key, in_features), "p": jnp.zeros((3, hidden), dtype)},
        hint,
        initial_carry=_zeros_lstm,
        project=project,
    )


def gru(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    b_n: BiasInitializer = gate_bias(),
    dtype: Any = jnp.float32,
) -> Cell:
    """Gated recurrent unit, reset after the product: the form of cuDNN, PyTorch and Keras::

        x_r, x_z, x_n = split(x @ w_x + b, 3)
        h_r, h_z, h_n = split(h @ w_h, 3)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        n = tanh(x_n + r * (h_n + b_n))
        h = z * h + (1 - z) * n
        y = h

    Cho et al. 2014 (arXiv 1406.1078). z near 1 keeps the carry.

    Args:
      hidden: number of units H.
      w_x: initializer of the input weights [D, H] of each gate.
      w_h: initializer of the recurrent weights [H, H] of each gate.
      b: bias initializer, of the gates "reset", "update" and "candidate".
      b_n: bias initializer, of the one gate "candidate", for the bias b_n [H] inside the reset.
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H].

    Example:
      >>> cell = seqjax.cells.gru(4)
      >>> params = cell.init(jax.random.key(0), 3)
      >>> jax.tree.map(jnp.shape, params)
      {'b': (12,), 'b_n': (4,), 'w_h': (4, 12), 'w_x': (3, 12)}
      >>> keep = params | {"b": params["b"].at[4:8].set(100.0)}  # the gate "update" open
      >>> carry, _ = seqjax.unroll(cell, keep, jnp.full((1, 4), 0.5), jnp.ones((1000, 1, 3)))
      >>> carry.tolist()
      [[0.5, 0.5, 0.5, 0.5]]
    """
    _check_size("gru", hidden)
    initial = _initial(hidden, ("reset", "update", "candidate"), w_x, w_h, b, dtype)

    def init(key, in_features):
        # The key is one that `initial` does not make: what it draws does not depend on b_n.
        return {**initial(key, in_features), "b_n": b_n(jax.random.fold_in(key, 3), ("candidate",), hidden, dtype)}

    def project(params, x):
        return _project(params, x), Const(params["b_n"])

    def gates(h, z, u, write):
        z, b_n = z
        x_r, x_z, x_n = jnp.split(z, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(u, 3, axis=-1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + r * (h_n + like(b_n.value.astype(h_n.dtype), h_n)))
        return z * h + (1 - z) * write(n)

    hint = _one_product(gates)
    return _gated(init, hint, project=project)


def gru_reset_before(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    dtype: Any = jnp.float32,
) -> Cell:
    """Gated recurrent unit as published, reset before the product (Cho et al. 2014, arXiv 1406.1078)::

        x_r, x_z, x_n = split(x @ w_x + b, 3)
        w_r, w_z, w_n = split(w_h, 3)
        r, z = sigmoid(x_r + h @ w_r), sigmoid(x_z + h @ w_z)
        n = tanh(x_n + (r * h) @ w_n)
        h = z * h + (1 - z) * n
        y = h

    Arguments and carry as in `gru`. The second product waits for the first, so a step is slower than that of `gru`.
    """
    _check_size("gru_reset_before", hidden)

    def weights(params):
        return params["w_h"][:, : 2 * hidden], params["w_h"][:, 2 * hidden :]

    def reset_carry(h, z, us):
        return sigmoid(z[..., :hidden] + us[0][..., :hidden]) * h

    def gates(h, z, us, write):
        _, x_z, x_n = jnp.split(z, 3, axis=-1)
        z = sigmoid(x_z + us[0][..., hidden:])
        return z * h + (1 - z) * write(jnp.tanh(x_n + us[1]))

    hint = _hint(weights, (lambda h, z, us: h, reset_carry), gates)
    return _gated(_initial(hidden, ("reset", "update", "candidate"), w_x, w_h, b, dtype), hint)
