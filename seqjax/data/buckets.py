"""Sequences of unequal lengths, padded in buckets of similar length to save computation.

parts = buckets.make(rows, buckets.reaching((100, 200, 400), max(map(len, rows))), least=32)
loss, grads = buckets.minibatch(key, step, 32, parts, lambda part, rows: ...)    # inside of jit
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.data import windows

__all__ = ["Bucket", "batches", "every", "make", "minibatch", "reaching"]

Array = jax.Array


class Bucket(NamedTuple):
    """Sequences of at most L steps.

    Attributes:
      rows: [N, L, ...], 0 after the end of a sequence.
      lengths: int32 [N].
      which: int32 [N], the index of each among the given sequences.
    """

    rows: Array
    lengths: Array
    which: Array


def reaching(borders: Sequence[int], longest: int) -> tuple[int, ...]:
    """The borders below `longest`, then `longest` itself, so that no sequence is too long for `make`.

    Example:
      >>> from seqjax.data import buckets
      >>> buckets.reaching((100, 200, 400), 250)
      (100, 200, 250)
    """
    return (*(border for border in borders if border < longest), longest)


def make(sequences: Sequence[np.ndarray], borders: Sequence[int], least: int = 1) -> tuple[Bucket, ...]:
    """Put each sequence, uncut, into the first bucket that it fits.

    Args:
      sequences: N arrays [steps, ...] of one dtype and with the same axes after the steps.
      borders: increasing lengths L of the buckets, the last at least the length of the longest sequence (`reaching`).
      least: buckets with fewer sequences are merged into the next longer one (the last, into the one before).

    Returns:
      The nonempty buckets, the shortest first.

    Raises:
      ValueError: no sequences, fewer than `least`, one that is longer than the last border or that differs from the
        first in dtype or shape, or borders that do not increase from at least 1.
    """
    borders = tuple(borders)
    if not borders or borders[0] < 1 or any(b <= a for a, b in itertools.pairwise(borders)):
        raise ValueError(f"borders must increase from at least 1, got {borders}")
    if len(sequences) < max(least, 1):
        raise ValueError(f"{len(sequences)} sequences are too few for a bucket of at least {max(least, 1)}")
    _check_alike(sequences)
    lengths = np.array([len(sequence) for sequence in sequences])
    if longer := int((lengths > borders[-1]).sum()):
        raise ValueError(
            f"{longer} of {len(lengths)} sequences have up to {lengths.max()} steps, more than the last border,"
            f" {borders[-1]}; expected a last border of {lengths.max()} (`reaching`), or truncate the sequences"
        )
    place = np.searchsorted(borders, lengths)
    members: list[tuple[int, np.ndarray]] = []
    waiting = np.zeros(0, np.int64)
    for bucket, border in enumerate(borders):
        waiting = np.concatenate([waiting, np.flatnonzero(place == bucket)])
        if len(waiting) >= max(least, 1):
            members.append((border, np.sort(waiting)))
            waiting = waiting[:0]
    if len(waiting):
        members[-1] = int(lengths[waiting].max()), np.sort(np.concatenate([members[-1][1], waiting]))
    return tuple(_pad(sequences, index, border) for border, index in members)


def _check_alike(sequences: Sequence[np.ndarray]) -> None:
    """Raises ValueError for a sequence that NumPy would cast or broadcast to match the first."""
    first = sequences[0]
    for i, sequence in enumerate(sequences):
        if sequence.dtype != first.dtype or sequence.shape[1:] != first.shape[1:]:
            expected = ", ".join(["steps", *map(str, first.shape[1:])])
            raise ValueError(
                f"sequence {i} is {sequence.dtype} {list(sequence.shape)}, expected {first.dtype} [{expected}] as"
                " sequence 0"
            )


def _pad(sequences: Sequence[np.ndarray], index: np.ndarray, border: int) -> Bucket:
    first = sequences[index[0]]
    rows = np.zeros((len(index), border, *first.shape[1:]), first.dtype)
    lengths = np.zeros(len(index), np.int32)
    for row, i in enumerate(index):
        lengths[row] = len(sequences[i])
        rows[row, : lengths[row]] = sequences[i]
    return Bucket(jnp.asarray(rows), jnp.asarray(lengths), jnp.asarray(index, jnp.int32))


def batches(parts: Sequence[Bucket], size: int) -> int:
    """The number of full batches of an epoch, over all buckets."""
    return sum(len(part.which) // size for part in parts)


def minibatch(
    key: Array, step: Array | int, size: int, parts: Sequence[Bucket], f: Callable[[Bucket, Array], Any]
) -> Any:
    """`f(bucket, rows int32 [size])` for the batch of update `step`; an epoch is all batches of all buckets, shuffled.

    The bucket is selected inside the compiled program, so f is compiled once for each, and its results must have one
    shape. The sequences that an epoch leaves out, up to size - 1 of each bucket, differ between epochs.

    Args:
      key: PRNG key of the whole training.
      step: int32 [], updates done so far, may be traced.
      size: sequences per batch, static.
      parts: from `make`, with `least` = size.
      f: what to do with the batch.

    Raises:
      ValueError: a bucket with less than one batch.
    """
    counts = [len(part.which) for part in parts]
    if not counts or min(counts) < size:
        raise ValueError(f"buckets of {counts} sequences, expected at least a batch of {size} in each (make's `least`)")
    ends = np.cumsum([count // size for count in counts]).astype(np.int32)
    epoch, number = jnp.divmod(jnp.asarray(step, jnp.int32), ends[-1])
    position = windows.order(key, epoch, number, int(ends[-1]))
    which = jnp.searchsorted(jnp.asarray(ends), position, side="right").astype(jnp.int32)

    def of(bucket):
        def run(position):
            first = (position - (ends[bucket] - counts[bucket] // size)) * size
            rows = first + jnp.arange(size, dtype=jnp.int32)
            return f(parts[bucket], windows.order(jax.random.fold_in(key, bucket), epoch, rows, counts[bucket]))

        return run

    return jax.lax.switch(which, [of(bucket) for bucket in range(len(parts))], position)


def every(parts: Sequence[Bucket], size: int, f: Callable[[Bucket, Array], Any]) -> tuple[Array, Any]:
    """`f(bucket, rows int32 [size])` for all sequences, bucket by bucket, batch by batch.

    Args:
      parts: from `make`.
      size: sequences per batch, static.
      f: returns a tree of arrays [size, ...].

    Returns:
      `(index int32 [N], results [N, ...])` in the order of the buckets; index maps each row to its sequence.
    """
    results = [windows.every(len(part.which), size, partial(f, part)) for part in parts]
    index = jnp.concatenate([part.which for part in parts])
    return index, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *results)
