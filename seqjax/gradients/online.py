"""Gradients computed forward in time, along with the network: no history is stored."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from seqjax.arrays import Array, Carry, Params, Tree, carry_dtype
from seqjax.core import Cell, open_dense, scan_const, split_const
from seqjax.gradients.estimator import Estimator, Loss, on_mesh
from seqjax.placement import vary, varying
from seqjax.solvers.scan import length


class Influence(NamedTuple):
    """State of real-time recurrent learning and its variants.

    Attributes:
      carry: the carry, leaves [B, ...].
      influence: what is kept of dh/dW [N, P] of each sequence, for N numbers in the carry and P in the params; in
        `rtrl` all of it, [B, N, P].
      pattern: what all sequences share; nothing in `rtrl`.
    """

    carry: Carry
    influence: Tree
    pattern: Tree = ()


class Sizes(NamedTuple):
    """The sizes of an influence: B sequences, N numbers in a carry, P in the params; and the dtype of sums."""

    batch: int
    numbers: int
    params: int
    dtype: Any


class Step(NamedTuple):
    """One step of one sequence, on flattened vectors.

    Attributes:
      weights: [P], the params, in the dtype of sums.
      x: the input.
      as_params: `weights -> params`, in the dtype of the params.
      as_carry: `h [N] -> carry`.
      transition: `(weights, h) -> h`.
    """

    weights: Array
    x: Tree
    as_params: Callable[[Array], Params]
    as_carry: Callable[[Array], Carry]
    transition: Callable[[Array, Array], Array]


def forward_mode(
    cell: Cell,
    loss: Loss,
    start: Callable[[Any, Carry, Tree, Sizes], tuple[Any, Any]],
    advance: Callable[[Step, Array, Any, Any], tuple[Array, Any]],
    pull: Callable[[Step, Array, Any, Any], Array],
    signal: Callable[[Params, Array, Any], Array] = lambda direct, dh, pattern: dh,
) -> Estimator:
    """An estimator that propagates an influence forward in time, on flattened vectors, mapped over the sequences.

    Args:
      cell: the model, for inputs with exactly one batch axis.
      loss: `(ys [B, O], targets [B, ...]) -> losses [B]`.
      start: `(params, carry, xs, sizes) -> (influence, pattern)`; the leaves of the influence are [B, ...].
      advance: `(step, h [N], influence, pattern) -> (h, influence)`.
      pull: `(step, dL/dh [N], influence, pattern) -> dL/dW [P]`, the part of the gradient through the carry.
      signal: `(direct, dL/dh [N], pattern) -> [N]`, the learning signal in place of dL/dh; `direct` is the direct part
        of dL/dW, a tree like params.
    """

    def init(params, carry, xs):
        weights, _ = ravel_pytree(params)
        leaves = jax.tree.leaves(carry)
        batch = leaves[0].shape[0]
        numbers = sum(math.prod(leaf.shape[1:]) for leaf in leaves)
        sizes = Sizes(batch, numbers, weights.size, carry_dtype(weights.dtype))
        return Influence(carry, *start(params, carry, xs, sizes))

    def update(params, state: Any, xs, targets):
        weights, as_tree, as_params = widen(params)

        def step(carry, influence, x, target):
            h, as_carry = ravel_pytree(carry)

            def transition(weights, h):
                params = as_params(weights)
                z = open_dense(cell.project(params, x))
                return ravel_pytree(cell.transition(params, as_carry(h), z))[0]

            def step_loss(weights, h):
                params = as_params(weights)
                z = open_dense(cell.project(params, x))
                return loss(cell.readout(params, as_carry(h), z), target)

            flat = Step(weights, x, as_params, as_carry, transition)
            h, influence = advance(flat, h, influence, state.pattern)
            value, (direct, dh) = jax.value_and_grad(step_loss, (0, 1))(weights, h)
            dh = signal(as_tree(direct), dh, state.pattern)
            return as_carry(h), influence, value, direct + pull(flat, dh, influence, state.pattern)

        def body(sums, inputs):
            carry, influence, total, gradient = sums
            x, target = inputs
            carry, influence, value, grads = jax.vmap(step)(carry, influence, x, target)
            return (carry, influence, total + value.mean(), gradient + grads.mean(0)), None

        zeros = vary((jnp.zeros((), weights.dtype), jnp.zeros_like(weights)), varying(weights))
        sums = (state.carry, state.influence, *zeros)
        (carry, influence, total, gradient), _ = scan_const(body, sums, (xs, targets))
        return total / length(xs), as_params(gradient / length(xs)), Influence(carry, influence, state.pattern)

    return on_mesh(cell, init, update, explicit=False)


def one_step(carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """The shapes of the carry and of the input, for one step of one sequence."""
    timed, merge = split_const(xs)

    def first(tree):
        return jax.tree.map(lambda leaf: leaf[0], tree)

    return jax.eval_shape(lambda: (first(carry), first(merge([leaf[0] for leaf in timed]))))


def widen(params: Params) -> tuple[Array, Callable[[Array], Params], Callable[[Array], Params]]:
    """The params as a vector in the dtype of sums, and its inverses: trees in that dtype, and in the params' own."""
    narrow, as_params = ravel_pytree(params)
    wide, as_tree = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(carry_dtype(leaf.dtype)), params))
    return wide, as_tree, lambda weights: as_params(weights.astype(narrow.dtype))


def rtrl(cell: Cell, loss: Loss) -> Estimator:
    """Real-time recurrent learning (Williams & Zipser 1989), exact and dense.

        J_t = dh_t/dh_{t-1} J_{t-1} + dh_t/dW,    dL_t/dW = dL_t/dh_t J_t + (the direct part of the readout)

    For fixed params the gradients of all chunks add up to that of BPTT over the whole stream: nothing is truncated.
    When the params change between chunks, J keeps the influence of the old ones. Memory B N P and time of order
    B N^2 P per step (P is of order N^2): for small networks, and for checking other estimators.

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

    def advance(step, h, influence, pattern):
        del pattern
        by_weights, by_carry = jax.jacrev(step.transition, (0, 1))(step.weights, h)
        return step.transition(step.weights, h), by_carry @ influence + by_weights

    return forward_mode(cell, loss, start, advance, lambda step, dh, influence, pattern: dh @ influence)
