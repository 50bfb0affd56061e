"""Cells that are linear in their carry: `h_t = a_t * h_{t-1} + b_t`, with a and b computed from the input alone."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from seqjax.core import Cell, affine_transition, carry_dtype, dense
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, per_gate


def min_gru(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    b: BiasInitializer = gate_bias(),
    dtype: Any = jnp.float32,
) -> Cell:
    """Minimal GRU without dependence of the gates on the carry (Feng et al. 2024, arXiv 2410.01201)::

        z, n = split(x @ w_x + b, 2)
        h = (1 - sigmoid(z)) * h + sigmoid(z) * n
        y = h

    Args:
      hidden: number of units H.
      w_x: initializer of the weights [D, H] of each gate.
      b: bias initializer, of the gates "input" (z, which writes) and "candidate".
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H], affine in it: `solve.associative` unrolls it in O(log T) parallel steps.
    """
    if not isinstance(hidden, int) or hidden < 1:
        raise ValueError(f"min_gru takes a positive number of units, got {hidden!r}")
    gates = ("input", "candidate")

    def init(key, in_features):
        k_x, k_b = jax.random.split(key)
        w = per_gate(w_x, k_x, in_features, len(gates), hidden, dtype)
        return {"w_x": w, "b": b(k_b, gates, hidden, dtype)}

    def affine(params, z):
        z, n = jnp.split(z, 2, axis=-1)
        return sigmoid(-z), sigmoid(z) * n

    return Cell(
        init=init,
        initial_carry=lambda params, batch_shape: jnp.zeros((*batch_shape, hidden), carry_dtype(params["w_x"].dtype)),
        project=lambda params, x: dense(x, params["w_x"], params["b"]),
        transition=affine_transition(affine),
        readout=lambda params, h, z: h,
        affine=affine,
    )
