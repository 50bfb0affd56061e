"""The interface of all estimators of a recurrent network's gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from seqjax.arrays import Array, Carry, Params, Tree
from seqjax.core import Cell
from seqjax.placement import explicit_spec, vary, varying
from seqjax.solvers.dispatch import place

Loss = Callable[[Tree, Tree], Array]
"""`(ys [..., B, O], targets [..., B, ...]) -> losses [..., B]`, one loss per step and sequence."""


class Estimator(NamedTuple):
    """A gradient of a stream, one chunk of time after another.

        state = init(params, carry, xs)
        loss, grads, state = update(params, state, xs, targets)      for each chunk

    Attributes:
      init: `(params, carry, xs) -> state`. `xs` is a chunk like those that `update` takes; only its shapes are used.
      update: `(params, state, xs [K, B, ...], targets [K, B, ...]) -> (loss, grads, state)`, where loss is the mean of
        the losses of the K steps and of the batch, and grads, a tree like params, estimates its gradient.

    The cell of an estimator is the whole model: encoder in its projection, head in its readout. Its loss is
    `(ys [..., B, O], targets [..., B, ...]) -> losses [..., B]`, one loss per step and sequence; a step that does not
    count has the loss 0. The state is passed from chunk to chunk, and so are the params, which the caller may update in
    between, by an optimizer.

    Under `jax.shard_map` over the batch, loss and gradient are those of the shard, and `jax.lax.pmean` of both are
    those of the whole batch. A key that is the same on all shards draws the same noise on all of them.
    """

    init: Callable[[Params, Carry, Tree], Any]
    update: Callable[[Params, Any, Tree, Tree], tuple[Array, Params, Any]]


def on_mesh(
    cell: Cell,
    init: Callable[[Params, Carry, Tree], Any],
    update: Callable[[Params, Any, Tree, Tree], tuple[Array, Params, Any]],
    *,
    explicit: bool = True,
) -> Estimator:
    """The estimator of `init` and `update`, which may be written for one device.

    Their arguments are made to vary over the same axes of `jax.shard_map`, those over which any of them varies: the
    gradient of params that do not vary would be summed over the shards.

    Args:
      cell: the model.
      init: see `Estimator`.
      update: see `Estimator`.
      explicit: whether inputs may be sharded over explicit axes of a mesh.

    Raises:
      ValueError: from `init` and `update`, for such inputs where `explicit` is false.
    """

    def vary_alike(*trees):
        for leaf in jax.tree.leaves(trees):
            if not explicit and any(explicit_spec(leaf)):
                raise ValueError(
                    f"this estimator does not run on explicit axes of a mesh, got {jax.typeof(leaf)}: make the mesh "
                    "with axis_types=(jax.sharding.AxisType.Auto,), or call it in jax.shard_map"
                )
        return vary(trees, varying(trees))

    def init_on_mesh(params, carry, xs):
        params, carry, xs = vary_alike(params, carry, xs)
        params, carry, xs = place(params, carry, xs, cell.space)
        return vary(init(params, carry, xs), varying(xs))

    return Estimator(init=init_on_mesh, update=lambda *given: update(*vary_alike(*given)))
