"""A task: batches as pure functions of (data, key, step), and the scores of a model over its held-out parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Key, Tree


class Batch(NamedTuple):
    """Sequences with their targets.

    Attributes:
      xs: inputs float32 [T, B, D] or tokens int32 [T, B].
      targets: [T, B].
      weights: float32 [T, B], 0 where there is no target.
    """

    xs: Array
    targets: Array
    weights: Array


class Task(NamedTuple):
    """A task for a cell with `outputs` outputs per step.

    Attributes:
      data: device arrays that the functions below get back.
      train: `(data, key, step) -> Batch`, the minibatch of one training step.
      held_out: for "validation" and "test", the number of batches and `(data, index) -> Batch`.
      continues: whether a batch continues the sequences of the one before (the carry is kept).
      tokens: size of the vocabulary; 0 for floating inputs.
      features: number D of floating inputs.
      outputs: outputs per step.
      blank: the input for padding.
      losses: `(ys [T, B, O], targets [T, B]) -> [T, B]`.
      scores: `(ys, targets) -> dict of [T, B]`: what is averaged, by weight, over held-out data.
      batches: training batches per epoch; None for endless tasks.
      vocabulary: of a text.
      left_out: what training does not read in an epoch, in one line; None if it reads all.
    """

    data: Tree
    train: Callable[[Tree, Key, Array], Batch]
    held_out: dict[str, tuple[int, Callable[[Tree, Array], Batch]]]
    continues: bool
    tokens: int
    features: int
    outputs: int
    blank: int | float
    losses: Callable[[Array, Array], Array]
    scores: Callable[[Array, Array], dict[str, Array]]
    batches: int | None = None
    vocabulary: Any = None
    left_out: str | None = None


def evaluate(
    task: Task,
    part: str,
    data: Tree,
    carry: Carry,
    forward: Callable[[Carry, Array], tuple[Carry, Array]],
) -> dict[str, Array]:
    """The task's scores over all of a held-out part, averaged by weight.

    Args:
      task: the task.
      part: "validation" or "test".
      data: `task.data`, or the traced argument in its place.
      carry: the carry at the start of every sequence.
      forward: `(carry, xs) -> (carry, ys)`.
    """
    count, batch = task.held_out[part]

    def add(carry, index):
        xs, targets, weights = batch(data, index)
        last, ys = forward(carry, xs)
        scores = {name: jnp.sum(weights * value) for name, value in task.scores(ys, targets).items()}
        return last if task.continues else carry, (scores, jnp.sum(weights))

    _, (sums, weights) = jax.lax.scan(add, carry, jnp.arange(count, dtype=jnp.int32))
    return {name: value.sum() / weights.sum() for name, value in sums.items()}
