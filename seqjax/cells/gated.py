"""Cells whose transition is one or two matrix products of the carry between elementwise gates.

Each docstring shows one step as the code of a slow loop: x [B, D], carry [B, H], weights as in the params;
`split(u, n)` cuts the last axis into n equal parts. The tests run that code.
"""

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from seqjax.arrays import like
from seqjax.cells.building import (
    LSTMCarry,
    check_size,
    gated_cell,
    gated_hint,
    initial_params,
    lstm_gates,
    one_product,
    project_dense,
    zeros_lstm,
)
from seqjax.core import Cell, Const
from seqjax.identity import recorded
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, orthogonal


@recorded
def lstm(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(forget=1.0),
    dtype: DTypeLike = jnp.float32,
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
    hidden = check_size("lstm", hidden)

    hint = one_product(lambda carry, z, u, write: lstm_gates(carry, z + u, write))
    return gated_cell(
        initial_params(hidden, ("input", "forget", "candidate", "output"), w_x, w_h, b, dtype),
        hint,
        initial_carry=zeros_lstm,
    )


@recorded
def peephole_lstm(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(forget=1.0),
    dtype: DTypeLike = jnp.float32,
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
    hidden = check_size("peephole_lstm", hidden)
    initial = initial_params(hidden, ("input", "forget", "candidate", "output"), w_x, w_h, b, dtype)

    def project(params, x):
        return project_dense(params, x), Const(params["p"])

    def gates(carry, z, u, write):
        z, p = z
        i, f, g, o = jnp.split(z + u, 4, axis=-1)
        p_i, p_f, p_o = (like(row.astype(u.dtype), g) for row in p.value)
        c = sigmoid(f + p_f * carry.c) * carry.c + sigmoid(i + p_i * carry.c) * write(jnp.tanh(g))
        return LSTMCarry(sigmoid(o + p_o * c) * jnp.tanh(c), c)

    hint = one_product(gates)
    return gated_cell(
        lambda key, in_features: {**initial(key, in_features), "p": jnp.zeros((3, hidden), dtype)},
        hint,
        initial_carry=zeros_lstm,
        project=project,
    )


@recorded
def gru(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    b_n: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
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
    hidden = check_size("gru", hidden)
    initial = initial_params(hidden, ("reset", "update", "candidate"), w_x, w_h, b, dtype)

    def init(key, in_features):
        # The key is one that `initial` does not make: what it draws does not depend on b_n.
        return {**initial(key, in_features), "b_n": b_n(jax.random.fold_in(key, 3), ("candidate",), hidden, dtype)}

    def project(params, x):
        return project_dense(params, x), Const(params["b_n"])

    def gates(h, z, u, write):
        z, b_n = z
        x_r, x_z, x_n = jnp.split(z, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(u, 3, axis=-1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + r * (h_n + like(b_n.value.astype(h_n.dtype), h_n)))
        return z * h + (1 - z) * write(n)

    hint = one_product(gates)
    return gated_cell(init, hint, project=project)


@recorded
def gru_reset_before(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
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
    hidden = check_size("gru_reset_before", hidden)

    def weights(params):
        return params["w_h"][:, : 2 * hidden], params["w_h"][:, 2 * hidden :]

    def reset_carry(h, z, us):
        return sigmoid(z[..., :hidden] + us[0][..., :hidden]) * h

    def gates(h, z, us, write):
        _, x_z, x_n = jnp.split(z, 3, axis=-1)
        z = sigmoid(x_z + us[0][..., hidden:])
        return z * h + (1 - z) * write(jnp.tanh(x_n + us[1]))

    hint = gated_hint(weights, (lambda h, z, us: h, reset_carry), gates)
    return gated_cell(initial_params(hidden, ("reset", "update", "candidate"), w_x, w_h, b, dtype), hint)
