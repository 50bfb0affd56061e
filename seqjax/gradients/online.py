"""Gradients that run forward in time, with the network: no past is stored."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from seqjax.core import Array, Carry, Cell, Tree, carry_dtype, open_dense, scan_const
from seqjax.gradients.estimator import Estimator, Loss
from seqjax.solve import length

Transition = Callable[[Array, Array], Array]


class Influence(NamedTuple):
    """State of real-time recurrent learning and its kin.

    Attributes:
      carry: the carry, leaves [B, ...].
      influence: what is kept of dh/dW [N, P] of each sequence, for N numbers in the carry and P in the params; in
        `rtrl` all of it, [B, N, P].
      pattern: what the sequences share; nothing in `rtrl`.
    """

    carry: Carry
    influence: Any
    pattern: Any = ()


class Sizes(NamedTuple):
    """What an influence is made for: B sequences, N numbers in a carry, P in the params, and the dtype of sums."""

    batch: int
    numbers: int
    params: int
    dtype: Any


def forward_mode(
    cell: Cell,
    loss: Loss,
    start: Callable[[Any, Carry, Tree, Sizes], tuple[Any, Any]],
    advance: Callable[[Transition, Array, Array, Any, Any], tuple[Array, Any]],
    pull: Callable[[Array, Any, Any], Array],
) -> Estimator:
    """An estimator that carries an influence along, sequence by sequence on flat vectors.

    Args:
      cell: the model, for inputs with exactly one batch axis.
      loss: `(ys [B, O], targets [B, ...]) -> losses [B]`.
      start: `(params, carry, xs, sizes) -> (influence, leaves [B, ...]; pattern)`.
      advance: `(transition, weights [P], h [N], influence, pattern) -> (h, influence)`, one step of one sequence;
        `transition(weights, h) -> h` is the step itself.
      pull: `(dL/dh [N], influence, pattern) -> dL/dW [P]`, the part that comes through the carry.
    """

    def init(params, carry, xs):
        weights, _ = ravel_pytree(params)
        leaves = jax.tree.leaves(carry)
        batch = leaves[0].shape[0]
        numbers = sum(leaf.size for leaf in leaves) // batch
        sizes = Sizes(batch, numbers, weights.size, carry_dtype(weights.dtype))
        return Influence(carry, *start(params, carry, xs, sizes))

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

            h, influence = advance(transition, weights, h, influence, state.pattern)
            value, (direct, dh) = jax.value_and_grad(step_loss, (0, 1))(weights, h)
            return as_carry(h), influence, value, direct + pull(dh, influence, state.pattern)

        def body(sums, inputs):
            carry, influence, total, gradient = sums
            x, target = inputs
            carry, influence, value, grads = jax.vmap(step)(carry, influence, x, target)
            return (carry, influence, total + value.mean(), gradient + grads.mean(0)), None

        sums = (state.carry, state.influence, jnp.zeros((), weights.dtype), jnp.zeros_like(weights))
        (carry, influence, total, gradient), _ = scan_const(body, sums, (xs, targets))
        return total / length(xs), as_params(gradient / length(xs)), Influence(carry, influence, state.pattern)

    return Estimator(init=init, update=update)


def rtrl(cell: Cell, loss: Loss) -> Estimator:
    """Real-time recurrent learning (Williams & Zipser 1989), exact and dense.

        J_t = dh_t/dh_{t-1} J_{t-1} + dh_t/dW,    dL_t/dW = dL_t/dh_t J_t + (the direct part of the readout)

    For fixed params the gradients of all chunks add up to that of BPTT over the whole stream: nothing is truncated.
    When the params change between chunks, J keeps the influence of the old ones. Memory B N P and time of order
    B N^2 P a step (P is of order N^2): for small networks and for checking others.

    Args:
      cell: the model, for inputs with exactly one batch axis; a `Const` among its inputs must have it too.
      loss: `(ys [B, O], targets [B, ...]) -> losses [B]`.

    Example:
      >>> cell = seqjax.cells.rnn(3)
      >>> params = cell.init(jax.random.key(0), 2)
      >>> xs, targets = jax.random.normal(jax.random.key(1), (6, 1, 2)), jnp.zeros((6, 1, 3))
      >>> def loss(ys, targets):
      ...     return jnp.square(ys - targets).sum(-1)
      >>> data = params, cell.initial_carry(params, (1,)), xs, targets
      >>> full = seqjax.gradients.stream_gradient(seqjax.gradients.bptt(cell, loss), *data)
      >>> step_by_step = seqjax.gradients.stream_gradient(seqjax.gradients.rtrl(cell, loss), *data, chunk=1)
      >>> all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.allclose(a, b, atol=1e-6)), full, step_by_step)))
      True
    """

    def start(params, carry, xs, sizes):
        del params, carry, xs
        return jnp.zeros((sizes.batch, sizes.numbers, sizes.params), sizes.dtype), ()

    def advance(transition, weights, h, influence, pattern):
        del pattern
        by_weights, by_carry = jax.jacrev(transition, (0, 1))(weights, h)
        return transition(weights, h), by_carry @ influence + by_weights

    return forward_mode(cell, loss, start, advance, lambda dh, influence, pattern: dh @ influence)
