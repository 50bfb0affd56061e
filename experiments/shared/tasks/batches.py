"""Batches that tasks have in common: drawn without end, or rows of a finite data set; and a target at the last step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.harness.task import Batch
from seqjax.arrays import Array, Key, Tree


def endless(draw: Callable[[Key, int], Batch], batch_size: int) -> dict[str, Any]:
    """Batches that are drawn: 1,024 sequences for validation, 4,096 for the test, the same ones in every run."""
    keys = dict(zip(("validation", "test"), jax.random.split(jax.random.key(20_181_217)), strict=True))
    return {
        "data": keys,
        "train": lambda data, key, step: draw(jax.random.fold_in(key, step), batch_size),
        "held_out": {
            part: (count, lambda data, index, part=part: draw(jax.random.fold_in(data[part], index), 512))
            for part, count in (("validation", 2), ("test", 8))
        },
        "continues": False,
    }


def last_step(xs: Array, target: Array) -> Batch:
    """A target [B] at the last step only."""
    wanted = (jnp.arange(xs.shape[0]) == xs.shape[0] - 1).astype(jnp.float32)
    return Batch(xs, jnp.broadcast_to(target, xs.shape[:2]), jnp.broadcast_to(jnp.expand_dims(wanted, 1), xs.shape[:2]))


def of_rows(count: int, size: int, take: Callable[[Tree, Array], Batch]) -> Any:
    """All `count` rows of a held-out part, in batches of `size`: an entry of `Task.held_out`.

    Args:
      count: rows of the part.
      size: of a batch; the last one is filled up with rows of weight 0.
      take: `(data, rows) -> Batch`, for positions int32 [B] in the part.
    """
    size = min(size, count)

    def batch(data, index):
        positions = index * size + jnp.arange(size, dtype=jnp.int32)
        xs, targets, weights = take(data, jnp.minimum(positions, count - 1))
        return Batch(xs, targets, jnp.where(jnp.broadcast_to(positions < count, weights.shape), weights, 0))

    return -(-count // size), batch
