"""How arrays are padded and cut into the blocks of a kernel: sequences, steps, and slots."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl

from seqjax.arrays import Array
from seqjax.solvers.persistent.tiling import Tiling, up


def pad_slots(array: Array, units: int, width: int) -> Array:
    """[..., n H] as [..., n W], each slot padded with 0."""
    if width == units:
        return array
    *lead, size = array.shape
    apart = array.reshape(*lead, size // units, units)
    return padded(apart, len(lead) + 1, width).reshape(*lead, size // units * width)


def cut_slots(array: Array, units: int, width: int) -> Array:
    """The inverse of `pad_slots`."""
    if width == units:
        return array
    *lead, size = array.shape
    apart = array.reshape(*lead, size // width, width)
    return apart[..., :units].reshape(*lead, size // width * units)


def padded(array: Array, axis: int, size: int) -> Array:
    """An axis padded with 0 to a size."""
    if array.shape[axis] == size:
        return array
    widths = [(0, size - n if i == axis else 0) for i, n in enumerate(array.shape)]
    return jnp.pad(array, widths)


class Grid(NamedTuple):
    """Blocks of sequences by blocks of steps.

    Attributes:
      tiling: the sizes of a block.
      batch: the number of sequences B.
      steps: the number of steps T.
      reverse: whether the blocks of steps are run from the last to the first.
    """

    tiling: Tiling
    batch: int
    steps: int
    reverse: bool

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of blocks."""
        return -(-self.batch // self.tiling.rows), -(-self.steps // self.tiling.steps)

    def chunk(self, c: Any) -> Any:
        """The number of the block of steps that is run after c others."""
        return self.shape[1] - 1 - c if self.reverse else c

    def timed(self, array: Array) -> tuple[Array, pl.BlockSpec]:
        """[T, B, W], padded, and its blocks."""
        array = padded(padded(array, 1, up(self.batch, self.tiling.rows)), 0, up(self.steps, self.tiling.steps))
        return array, self.timed_spec(array.shape[2])

    def timed_spec(self, width: int) -> pl.BlockSpec:
        """The blocks of [T, B, W]."""
        return pl.BlockSpec((self.tiling.steps, self.tiling.rows, width), lambda i, c: (self.chunk(c), i, 0))

    def timed_shape(self, width: int) -> tuple[int, ...]:
        """The shape of a result [T, B, W], padded."""
        return up(self.steps, self.tiling.steps), up(self.batch, self.tiling.rows), width

    def row(self, array: Array) -> tuple[Array, pl.BlockSpec]:
        """[B, W], padded, and its blocks."""
        return padded(array, 0, up(self.batch, self.tiling.rows)), self.row_spec(array.shape[1])

    def row_spec(self, width: int) -> pl.BlockSpec:
        """The blocks of [B, W]."""
        return pl.BlockSpec((self.tiling.rows, width), lambda i, c: (i, 0))

    def row_shape(self, width: int) -> tuple[int, ...]:
        """The shape of a result [B, W], padded."""
        return up(self.batch, self.tiling.rows), width

    def chunks(self, array: Array) -> tuple[Array, pl.BlockSpec]:
        """[N, B, W], one for each block of steps, and its blocks."""
        array = padded(array, 1, up(self.batch, self.tiling.rows))
        return array, pl.BlockSpec((1, self.tiling.rows, array.shape[2]), lambda i, c: (self.chunk(c), i, 0))

    def whole(self, array: Array) -> tuple[Array, pl.BlockSpec]:
        """An array that every block reads as a whole."""
        return array, pl.BlockSpec(array.shape, lambda i, c: (0,) * array.ndim)
