"""The interface of every way to obtain a recurrent network's gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from seqjax.arrays import Array, Carry, Params, Tree
from seqjax.core import Cell
from seqjax.placement import explicit_spec, vary, varying
from seqjax.solvers.dispatch import place

Loss = Callable[[Tree, Tree], Array]
"""`(ys [..., B, O], targets [..., B, ...]) -> losses [..., B]`, one number for each step of each sequence."""


class Estimator(NamedTuple):
    """A gradient of a stream, chunk by chunk of time.

        state = init(params, carry, xs)
        loss, grads, state = update(params, state, xs, targets)      for each chunk

    Attributes:
      init: `(params, carry, xs) -> state`. `xs` is a chunk as `update` will get it; only its shapes are used.
      update: `(params, state, xs [K, B, ...], targets [K, B, ...]) -> (loss, grads, state)`, where loss is the mean of
        the losses of the K steps and of the batch, and grads, a tree like params, estimates its gradient.

    The cell of an estimator is the whole model: encoder in its projection, head in its readout. Its loss is
    `(ys [..., B, O], targets [..., B, ...]) -> losses [..., B]`, one number for each step of each sequence; a step that
    does not count has the loss 0. Under `jax.shard_map` over the batch, loss and gradient are those of the shard, and
    `jax.lax.pmean` of both those of the whole batch; a key that is the same in all shards draws the same noise in all.
    The state carries on from chunk to chunk, and so do the params, which the caller
    changes in between as an optimizer says.
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

    All that they take is made to vary over the axes of `jax.shard_map` over which any of it does: the gradient of
    params that do not vary would be summed over the shards.

    Args:
      cell: the model.
      init: see `Estimator`.
      update: see `Estimator`.
      explicit: whether inputs may be sharded over explicit axes.

    Raises:
      ValueError: when called, for inputs that are, where `explicit` is false.
    """

    def alike(*trees):
        for leaf in jax.tree.leaves(trees):
            if not explicit and any(explicit_spec(leaf)):
                raise ValueError(
                    f"this estimator does not run on explicit axes of a mesh, got {jax.typeof(leaf)}: make the mesh "
                    "with axis_types=(jax.sharding.AxisType.Auto,), or call it in jax.shard_map"
                )
        return vary(trees, varying(trees))

    def init_alike(params, carry, xs):
        params, carry, xs = alike(params, carry, xs)
        params, carry, xs = place(params, carry, xs, cell.space)
        return vary(init(params, carry, xs), varying(xs))

    return Estimator(init=init_alike, update=lambda *given: update(*alike(*given)))
