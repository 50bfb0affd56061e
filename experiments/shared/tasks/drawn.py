"""Synthetic tasks: delayed recall, copy memory, adding. Every training sequence is new."""

import jax.numpy as jnp

from experiments.harness.task import Batch, Task
from experiments.shared.tasks import scores
from experiments.shared.tasks.batches import endless, last_step
from seqjax.data import synthetic


def recall(*, lag: int, batch_size: int) -> Task:
    """Delayed recall over `lag` steps: one of eight symbols, chance 12.5 %."""
    return Task(
        **endless(lambda key, batch: Batch(*synthetic.delayed_recall(key, batch, lag)), batch_size),
        tokens=10,
        features=0,
        outputs=8,
        blank=8,
        # Where the weight is 0 the target is the blank, which is no output.
        losses=lambda ys, targets: scores.cross_entropy(ys, jnp.minimum(targets, 7)),
        scores=lambda ys, targets: scores.of_classes(ys, jnp.minimum(targets, 7)),
    )


def copy(*, lag: int, batch_size: int) -> Task:
    """Copy memory: ten symbols after `lag` steps; without memory the loss is 10 ln 8 / (lag + 20) nats."""

    def draw(key, batch):
        return Batch(*synthetic.copy_memory(key, batch, lag))

    return Task(
        **endless(draw, batch_size),
        tokens=10,
        features=0,
        outputs=9,
        blank=8,
        losses=scores.cross_entropy,
        scores=scores.of_classes,
    )


def adding(*, length: int, batch_size: int) -> Task:
    """The adding problem over `length` steps; always answering 1 has a squared error of 0.167."""

    def squared_error(ys, targets):
        return jnp.square(ys[..., 0] - targets)

    return Task(
        **endless(lambda key, batch: last_step(*synthetic.adding(key, batch, length)), batch_size),
        tokens=0,
        features=2,
        outputs=1,
        blank=0.0,
        losses=squared_error,
        scores=lambda ys, targets: {"loss": squared_error(ys, targets)},
    )
