"""The next chord of the chorales of J. S. Bach, as piano rolls."""

import sys
from functools import cache

import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness.task import Batch, Task
from experiments.shared.tasks.batches import of_rows
from seqjax.data import music, windows


@cache  # read once per process, where a sweep builds many experiments
def pieces(data_dir: str | None, name: str = "jsb") -> music.Parts:
    """The pieces of a data set of `music.FILES`; without a directory, generated ones."""
    if data_dir is not None:
        return music.load(data_dir, name)
    print("no --data_dir: the pieces are generated, and their numbers mean nothing for music", file=sys.stderr)
    counts = {"train": 64, "validation": 24, "test": 24}
    return {part: music.generated(count, seed) for seed, (part, count) in enumerate(counts.items())}


def chorales(data_dir: str | None, *, batch_size: int) -> Task:
    """The next chord, in whole chorales: nats per step, summed over the 88 keys, over all steps but the first of each.

    Sequences are padded to the longest of their part. Targets are rolls [T, B, K].
    """
    parts = pieces(data_dir)
    if batch_size > len(parts["train"]):
        raise ValueError(f"--batch_size={batch_size}: expected at most the {len(parts['train'])} training chorales")

    def take(data, rows, part="train"):
        rolls, lengths = (leaf[rows] for leaf in data[part])
        rolls = jnp.swapaxes(rolls, 0, 1).astype(jnp.float32)  # [T + 1, B, K]
        steps = jnp.arange(1, len(rolls), dtype=jnp.int32)
        weights = jnp.expand_dims(steps, 1) < jnp.expand_dims(lengths, 0)
        return Batch(rolls[:-1], rolls[1:], weights.astype(jnp.float32))

    def train(data, key, step):
        return take(data, windows.minibatch(key, step, batch_size, len(parts["train"])))

    def nll(ys, targets):
        return optax.losses.sigmoid_binary_cross_entropy(ys, targets).sum(-1)

    return Task(
        data={part: _padded(rolls) for part, rolls in parts.items()},
        train=train,
        held_out={
            part: of_rows(len(parts[part]), 32, lambda data, rows, part=part: take(data, rows, part))
            for part in ("validation", "test")
        },
        continues=False,
        tokens=0,
        features=music.KEYS,
        outputs=music.KEYS,
        blank=0.0,
        losses=nll,
        scores=lambda ys, targets: {"loss": nll(ys, targets)},
        batches=len(parts["train"]) // batch_size,
    )


def _padded(rolls: tuple[np.ndarray, ...]) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Rolls uint8 [N, T, K], zero after the end, and their lengths int32 [N]."""
    longest = max(map(len, rolls))
    padded = np.stack([np.pad(roll, ((0, longest - len(roll)), (0, 0))) for roll in rolls])
    return jnp.asarray(padded), jnp.asarray([len(roll) for roll in rolls], jnp.int32)
