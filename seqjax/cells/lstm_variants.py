"""Variants of the LSTM: coupled gates, a projected output, layer normalization, a multiplicative carry.

Docstrings show one step as in `gated.py`, with the carry h and c.
"""

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from seqjax.arrays import check_features, dense, like, matmul
from seqjax.cells.building import (
    LSTMCarry,
    check_size,
    gated_cell,
    gated_hint,
    initial_params,
    lstm_gates,
    normalize,
    one_product,
    project_dense,
    zeros_carry,
    zeros_lstm,
)
from seqjax.core import Cell, Const, Dense
from seqjax.identity import recorded
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, orthogonal, per_gate

_GATES = ("input", "forget", "candidate", "output")


@recorded
def coupled_lstm(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(forget=1.0),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """LSTM that writes what it forgets, CIFG (Greff et al. 2015, arXiv 1503.04069)::

        f, g, o = split(x @ w_x + h @ w_h + b, 3)
        c = sigmoid(f) * c + (1 - sigmoid(f)) * tanh(g)
        h = sigmoid(o) * tanh(c)
        y = h

    A quarter fewer weights than `lstm`, and |c| stays below 1. The gates are "forget", "candidate" and "output";
    arguments and carry as in `lstm`.
    """
    hidden = check_size("coupled_lstm", hidden)

    def gates(carry, z, u, write):
        f, g, o = jnp.split(z + u, 3, axis=-1)
        c = sigmoid(f) * carry.c + sigmoid(-f) * write(jnp.tanh(g))
        return LSTMCarry(sigmoid(o) * jnp.tanh(c), c)

    hint = one_product(gates)
    return gated_cell(
        initial_params(hidden, ("forget", "candidate", "output"), w_x, w_h, b, dtype), hint, initial_carry=zeros_lstm
    )


@recorded
def projected_lstm(
    hidden: int,
    projection: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    w_p: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(forget=1.0),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """LSTM with a recurrent projection, LSTMP (Sak, Senior & Beaufays 2014, arXiv 1402.1128)::

        i, f, g, o = split(x @ w_x + h @ w_h + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = (sigmoid(o) * tanh(c)) @ w_p
        y = h

    A large memory c with a small output h: w_h has P rows instead of H. Without the peepholes of the paper, as with
    PyTorch's `proj_size`. `native` refuses the product within the gates; `fused` takes it.

    Args:
      hidden: number of units H.
      projection: number of outputs P.
      w_x: initializer of the input weights [D, H] of each gate.
      w_h: initializer of the recurrent weights [P, H] of each gate.
      w_p: initializer of the projection [H, P].
      b: bias initializer, of the gates "input", "forget", "candidate" and "output".
      dtype: of the params.

    Returns:
      A cell with the carry `LSTMCarry(h, c)`, h [B, P] and c [B, H].
    """
    hidden = check_size("projected_lstm", hidden)
    projection = check_size("projected_lstm", projection)
    initial = initial_params(hidden, _GATES, w_x, w_h, b, dtype, rows=projection)

    def init(key, in_features):
        key, k_p = jax.random.split(key)
        return {**initial(key, in_features), "w_p": per_gate(w_p, k_p, hidden, 1, projection, dtype)}

    def initial_carry(params, batch_shape):
        h = zeros_carry(params, batch_shape)
        return LSTMCarry(h, jnp.zeros((*batch_shape, hidden), h.dtype))

    def gates(carry, z, u, write):
        z, w_p = z
        wide, c = lstm_gates(carry, z + u, write)
        return LSTMCarry(matmul(wide, w_p.value), c)

    hint = one_product(gates)
    return gated_cell(
        init,
        hint,
        initial_carry=initial_carry,
        project=lambda params, x: (project_dense(params, x), Const(params["w_p"])),
    )


@recorded
def layer_norm_lstm(
    hidden: int,
    *,
    epsilon: float = 1e-5,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(forget=1.0),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """LSTM with layer normalization (Ba, Kiros & Hinton 2016, arXiv 1607.06450)::

        norm = lambda u: (u - u.mean(-1, keepdims=True)) / (u.var(-1, keepdims=True) + epsilon) ** 0.5
        i, f, g, o = split(a_x * norm(x @ w_x) + a_h * norm(h @ w_h) + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(a_c * norm(c) + b_c)
        y = h

    Each product is normalized over its 4H numbers, as in the paper, not gate by gate. The gains a_x [4H], a_h [4H] and
    a_c [H] start at 1, the shift b_c [H] at 0; the paper's shifts of the two products are the bias b. The scale of w_x
    and w_h is of no effect, but for `epsilon`, which is added to the variances.

    The gates are not elementwise, so `native` refuses this cell and `fused` takes it. Further arguments and carry as in
    `lstm`.
    """
    hidden = check_size("layer_norm_lstm", hidden)
    initial = initial_params(hidden, _GATES, w_x, w_h, b, dtype)

    def init(key, in_features):
        gains = {"a_x": 4 * hidden, "a_h": 4 * hidden, "a_c": hidden}
        ones = {name: jnp.ones((size,), dtype) for name, size in gains.items()}
        return {**initial(key, in_features), **ones, "b_c": jnp.zeros((hidden,), dtype)}

    def project(params, x):
        z = normalize(dense(x, params["w_x"]), params["a_x"], epsilon)
        z = z + like(params["b"].astype(z.dtype), z)
        return z, Const((params["a_h"], params["a_c"], params["b_c"]))

    def gates(carry, z, u, write):
        z, const = z
        a_h, a_c, b_c = const.value

        def show(c):
            return normalize(c, a_c, epsilon) + like(b_c.astype(c.dtype), c)

        return lstm_gates(carry, z + normalize(u, a_h, epsilon), write, show)

    hint = one_product(gates)
    return gated_cell(init, hint, initial_carry=zeros_lstm, project=project)


@recorded
def multiplicative_lstm(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(forget=1.0),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Multiplicative LSTM, mLSTM, whose recurrent weights depend on the input (Krause et al. 2016, arXiv 1609.07959)::

        m = (x @ w_mx) * (h @ w_mh)
        i, f, g, o = split(x @ w_x + m @ w_h + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        y = h

    `w_x` also draws w_mx [D, H] and `w_h` also draws w_mh [H, H]; further arguments and carry as in `lstm`. The second
    product waits for the first. (`mlstm` is the cell of that name in the xLSTM.)
    """
    hidden = check_size("multiplicative_lstm", hidden)
    initial = initial_params(hidden, _GATES, w_x, w_h, b, dtype)

    def init(key, in_features):
        key, k_x, k_h = jax.random.split(key, 3)
        return {
            **initial(key, in_features),
            "w_mx": per_gate(w_x, k_x, in_features, 1, hidden, dtype),
            "w_mh": per_gate(w_h, k_h, hidden, 1, hidden, dtype),
        }

    def project(params, x):
        # One product for both: a solver does one `Dense` itself.
        w = jnp.concatenate([params["w_mx"], params["w_x"]], axis=1)
        check_features(x, w)
        return Dense(x, Const(w), Const(jnp.pad(params["b"], (hidden, 0))))

    hint = gated_hint(
        weights=lambda params: (params["w_mh"], params["w_h"]),
        stages=(lambda carry, z, us: carry.h, lambda carry, z, us: z[..., :hidden] * us[0]),
        gates=lambda carry, z, us, write: lstm_gates(carry, z[..., hidden:] + us[1], write),
    )
    return gated_cell(init, hint, initial_carry=zeros_lstm, project=project)
