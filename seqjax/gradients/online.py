"""Gradients that run forward in time, with the network: no past is stored."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from seqjax.core import Array, Carry, Cell, carry_dtype, open_dense, scan_const
from seqjax.gradients.estimator import Estimator, Loss
from seqjax.solve import length


class Influence(NamedTuple):
    """State of real-time recurrent learning.

    Attributes:
      carry: the carry, leaves [B, ...].
      influence: dh/dW of each sequence, [B, N, P] for N numbers in the carry and P in the params.
    """

    carry: Carry
    influence: Array


def rtrl(cell: Cell, loss: Loss) -> Estimator:
    """Real-time recurrent learning (Williams & Zipser 1989), exact and dense.

        J_t = dh_t/dh_{t-1} J_{t-1} + dh_t/dW,    dL_t/dW = dL_t/dh_t J_t + (the direct part of the readout)

    For fixed params the gradients of all chunks add up to that of BPTT over the whole stream: nothing is truncated.
    When the params change between chunks, J keeps the influence of the old ones. Memory B N P and time of order
    B N^2 P a step (P is of order N^2): for small networks and for checking others.

    Args:
      cell: the model, for inputs with exactly one batch axis; a `Const` among its inputs must have it too.
      loss: `(ys [B, O], targets [B, ...]) -> losses [B]`.
    """

    def init(params, carry, xs):
        del xs
        weights, _ = ravel_pytree(params)
        batch = jax.tree.leaves(carry)[0].shape[0]
        numbers = sum(leaf.size for leaf in jax.tree.leaves(carry)) // batch
        return Influence(carry, jnp.zeros((batch, numbers, weights.size), carry_dtype(weights.dtype)))

    def update(params, state: Any, xs, targets):
        narrow, unravel = ravel_pytree(params)
        weights = narrow.astype(carry_dtype(narrow.dtype))

        def as_params(weights):
            return unravel(weights.astype(narrow.dtype))

        def step(carry, influence, x, target):
            """One step of one sequence."""
            h, as_carry = ravel_pytree(carry)

            def transition(weights, h):
                params = as_params(weights)
                z = open_dense(cell.project(params, x))
                return ravel_pytree(cell.transition(params, as_carry(h), z))[0]

            def step_loss(weights, h):
                params = as_params(weights)
                z = open_dense(cell.project(params, x))
                return loss(cell.readout(params, as_carry(h), z), target)

            by_weights, by_carry = jax.jacrev(transition, (0, 1))(weights, h)
            h = transition(weights, h)
            influence = by_carry @ influence + by_weights
            value, (direct, dh) = jax.value_and_grad(step_loss, (0, 1))(weights, h)
            return as_carry(h), influence, value, direct + dh @ influence

        def body(state, inputs):
            (carry, influence), total, gradient = state
            x, target = inputs
            carry, influence, value, grads = jax.vmap(step)(carry, influence, x, target)
            return (Influence(carry, influence), total + value.mean(), gradient + grads.mean(0)), None

        start = (state, jnp.zeros((), weights.dtype), jnp.zeros_like(weights))
        (state, total, gradient), _ = scan_const(body, start, (xs, targets))
        return total / length(xs), as_params(gradient / length(xs)), state

    return Estimator(init=init, update=update)
