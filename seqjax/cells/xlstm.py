"""The scalar cell of the xLSTM. (Its matrix cell: `matrix.mlstm`.)"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jax.typing import DTypeLike

from seqjax.arrays import Array, carry_dtype, exportable
from seqjax.cells.building import check_divisor, check_size, gated_cell, gated_hint
from seqjax.core import Cell
from seqjax.identity import recorded
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, orthogonal, per_gate


@exportable
class SLSTMCarry(NamedTuple):
    """Carry of the sLSTM: output h, cell c and normalizer n, both times exp(-m), and m; each [B, H]."""

    h: Array
    c: Array
    n: Array
    m: Array


@recorded
def slstm(
    hidden: int,
    heads: int = 1,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(forget=3.0),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """LSTM with an exponential input gate and a normalizer (Beck et al. 2024, arXiv 2405.04517)::

        from numpy import log, maximum, where
        i, f, g, o = split(x @ w_x + h @ w_h[0] + b, 4)
        m_before, m = m, where(n == 0, i, maximum(log(sigmoid(f)) + m, i))
        i, f = exp(i - m), sigmoid(f) * exp(m_before - m)
        c = f * c + i * tanh(g)
        n = f * n + i
        h = sigmoid(o) * c / n
        y = h

    The stabilizer m keeps every exponential at most 1, and changes no output. Before the first step n is 0, and m is i
    after it.

    Args:
      hidden: number of units H.
      heads: number of heads N; a head sees the h of its own H / N units only.
      w_x: initializer of the input weights [D, H] of each gate.
      w_h: initializer of the recurrent weights [H / N, H / N] of each gate and head; w_h is [N, H / N, 4 H / N].
      b: bias initializer, of the gates "input", "forget", "candidate" and "output". (The authors spread the forget bias
        over the units.)
      dtype: of the params.

    Returns:
      A cell with the carry `SLSTMCarry(h, c, n, m)`. With heads, the recurrent product is computed with a [H, 4 H] that
      holds their blocks among zeros: heads save params, not time.

    Raises:
      ValueError: unless heads divide the units.
    """
    hidden = check_size("slstm", hidden)
    heads = check_divisor("slstm", hidden, heads, "heads")
    names, size = ("input", "forget", "candidate", "output"), hidden // heads

    def init(key, in_features):
        k_x, k_h, k_b = jax.random.split(key, 3)
        return {
            "w_x": per_gate(w_x, k_x, in_features, 4, hidden, dtype),
            "w_h": jnp.stack([per_gate(w_h, k, size, 4, size, dtype) for k in jax.random.split(k_h, heads)]),
            "b": b(k_b, names, hidden, dtype),
        }

    def weights(params):
        blocks = params["w_h"].reshape(heads, size, 4, 1, size)
        own = jnp.eye(heads, dtype=blocks.dtype).reshape(heads, 1, 1, heads, 1)
        return ((blocks * own).reshape(hidden, 4 * hidden),)

    def gates(carry, z, us, write):
        i, f, g, o = jnp.split(z + us[0], 4, axis=-1)
        log_f = log_sigmoid(f)
        m = jnp.where(carry.n == 0, i, jnp.maximum(log_f + carry.m, i))
        # Above 0 only before the first step, where it multiplies the 0 of the initial carry.
        f = jnp.exp(jnp.minimum(log_f + carry.m - m, math.log(jnp.finfo(m.dtype).max) / 2))
        i = jnp.exp(i - m)
        c = f * carry.c + i * write(jnp.tanh(g))
        n = f * carry.n + i
        return SLSTMCarry(sigmoid(o) * c / n, c, n, m)

    hint = gated_hint(weights, (lambda carry, z, us: carry.h,), gates)

    def initial_carry(params, batch_shape):
        zeros = jnp.zeros((*batch_shape, hidden), carry_dtype(params["w_x"].dtype))
        return SLSTMCarry(zeros, zeros, zeros, zeros)

    return gated_cell(init, hint, initial_carry=initial_carry)
