"""A network with a second, fast memory of its past outputs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from seqjax.arrays import Array, exportable, like
from seqjax.cells.building import check_size, gated_cell, initial_params, normalize, project_dense, zeros_carry
from seqjax.core import Cell, Const
from seqjax.hints import Gated
from seqjax.identity import recorded
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, orthogonal


@exportable
class FastWeightsCarry(NamedTuple):
    """Carry of a network with fast weights: output h [B, H] and fast weights a [B, H, H]."""

    h: Array
    a: Array


@recorded
def fast_weights(
    hidden: int,
    steps: int = 1,
    *,
    decay: float = 0.95,
    rate: float = 0.5,
    activation: Callable[[Array], Array] = jax.nn.relu,
    epsilon: float = 1e-5,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Recurrent network with fast weights (Ba et al. 2016, arXiv 1610.06258)::

        norm = lambda u: (u - u.mean(-1, keepdims=True)) / (u.var(-1, keepdims=True) + epsilon) ** 0.5
        a = decay * a + rate * h[:, :, None] * h[:, None, :]
        u = x @ w_x + h @ w_h + b
        h = activation(u)
        for _ in range(steps):
            h = activation(gain * norm(u + (a * h[:, None, :]).sum(-1)) + shift)
        y = h

    The product of a with h is attention to the past outputs, each weighted by its product with h and by `decay` per
    step since. Every sequence has its own fast weights, so a step costs and stores H^2 numbers per sequence.

    Args:
      hidden: number of units H.
      steps: how often the output settles under the fast weights, at least once.
      decay: of the fast weights, in [0, 1].
      rate: at which they are written, at least 0.
      activation: any elementwise function.
      epsilon: added to the variances.
      w_x: initializer of the input weights [D, H].
      w_h: initializer of the slow recurrent weights [H, H].
      b: bias initializer, of the one gate "candidate".
      dtype: of the params. gain [H] starts at 1 and shift [H] at 0.

    Returns:
      A cell with the carry `FastWeightsCarry(h, a)`. `native` refuses the products within a step; `fused` takes them.

    Raises:
      ValueError: for no units, no steps, or a decay or rate out of range.
    """
    hidden = check_size("fast_weights", hidden)
    steps = check_size("fast_weights", steps, "steps")
    if not 0 <= decay <= 1 or not rate >= 0:
        raise ValueError(f"fast_weights needs 0 <= decay <= 1 and rate >= 0, got {decay} and {rate}")
    initial = initial_params(hidden, ("candidate",), w_x, w_h, b, dtype)

    def init(key, in_features):
        norm = {"gain": jnp.ones((hidden,), dtype), "shift": jnp.zeros((hidden,), dtype)}
        return {**initial(key, in_features), **norm}

    def initial_carry(params, batch_shape):
        h = zeros_carry(params, batch_shape)
        return FastWeightsCarry(h, jnp.zeros((*batch_shape, hidden, hidden), h.dtype))

    def gates(carry, z, us):
        z, norm = z
        gain, shift = norm.value
        a = decay * carry.a + rate * carry.h[..., :, None] * carry.h[..., None, :]
        u = z + us[0]
        h = activation(u)
        for _ in range(steps):
            settled = normalize(u + (a * h[..., None, :]).sum(-1), gain, epsilon)
            h = activation(settled + like(shift.astype(u.dtype), u))
        return FastWeightsCarry(h, a)

    return gated_cell(
        init,
        Gated(lambda params: (params["w_h"],), (lambda carry, z, us: carry.h,), gates),
        initial_carry=initial_carry,
        project=lambda params, x: (project_dense(params, x), Const((params["gain"], params["shift"]))),
    )
