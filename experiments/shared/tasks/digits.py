"""MNIST as sequences: the rows of a digit, or its pixels in one random order."""

import sys
from functools import cache

import jax.numpy as jnp
import numpy as np

from experiments.harness.task import Task
from experiments.shared.tasks import scores
from experiments.shared.tasks.batches import last_step, of_rows
from seqjax.arrays import Array
from seqjax.data import mnist, windows

CLASSES = 10


@cache  # read once per process, where a sweep builds many experiments
def parts(data_dir: str | None) -> dict[str, mnist.Digits]:
    """Training digits, the last 5,000 of them for validation, and test digits; without a directory, generated ones."""
    if data_dir is None:
        print("no --data_dir: the digits are generated, and their numbers mean nothing", file=sys.stderr)
        train, validation = mnist.split(mnist.generated(1200, seed=0), 200)
        return {"train": train, "validation": validation, "test": mnist.generated(200, seed=1)}
    found = mnist.load(data_dir)
    train, validation = mnist.split(found["train"])
    return {"train": train, "validation": validation, "test": found["test"]}


def rows(data_dir: str | None, *, batch_size: int) -> Task:
    """Which digit, after its 28 rows of 28 pixels."""
    return _task(data_dir, batch_size, mnist.SIZE, lambda images: images)


def permuted(data_dir: str | None, *, batch_size: int) -> Task:
    """Which digit, after 196 pixels, means of 2 x 2, in one random order, which is the same for all digits and runs.

    A quarter of the steps of permuted MNIST (Le, Jaitly & Hinton 2015, arXiv 1504.00941): scores differ from it.
    """
    half = mnist.SIZE // 2
    order = np.random.default_rng(0).permutation(half * half)

    def read(images: Array) -> Array:
        means = images.reshape(-1, half, 2, half, 2).mean((2, 4))
        return means.reshape(-1, half * half, 1)[:, order]

    return _task(data_dir, batch_size, 1, read)


def _task(data_dir, batch_size, features, read) -> Task:
    found = parts(data_dir)

    def take(data, index, part="train"):
        images, labels = (leaf[index] for leaf in data[part])
        xs = read(images.astype(jnp.float32) / 255)  # [B, T, D]
        return last_step(jnp.swapaxes(xs, 0, 1), labels)

    def train(data, key, step):
        return take(data, windows.minibatch(key, step, batch_size, len(found["train"].labels)))

    return Task(
        data={part: (jnp.asarray(some.images), jnp.asarray(some.labels)) for part, some in found.items()},
        train=train,
        held_out={
            part: of_rows(len(found[part].labels), 500, lambda data, index, part=part: take(data, index, part))
            for part in ("validation", "test")
        },
        continues=False,
        tokens=0,
        features=features,
        outputs=CLASSES,
        blank=0.0,
        losses=scores.cross_entropy,
        scores=scores.of_classes,
        batches=len(found["train"].labels) // batch_size,
    )
