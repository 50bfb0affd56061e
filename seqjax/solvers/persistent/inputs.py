"""The inputs of a kernel, as far as they are the same on every platform."""

import math
from typing import Any

import jax.numpy as jnp

from seqjax.arrays import Array, dense
from seqjax.solvers.gated_loop.plan import Arrays
from seqjax.solvers.gated_loop.slots import Other
from seqjax.solvers.gated_loop.solver import Loop
from seqjax.solvers.persistent.arithmetic import Arithmetic
from seqjax.solvers.persistent.blocks import pad_slots
from seqjax.solvers.persistent.tiling import Target


class Inputs:
    """Arrays with slots padded to a width W, known by their number: a kernel gets a list of references.

    A subclass defines how flat arrays are placed: `timed` [T, B, .], `row` [B, .], `shared` [1, .] and the single
    `number` [1, 1] that all sequences read, and the weights.

    Attributes:
      arithmetic: that of a step.
      target: how the kernel is compiled.
      units: H.
      dtype: of the carry.
      batch: the batch axes; `size` is their product B.
      steps: T.
      arrays: the inputs, by number.
      z: the number of the projection, or None.
      others: the numbers of the other inputs; None for one that no kernel can read.
      weights: the numbers of the weights.
    """

    def __init__(self, loop: Loop, arithmetic: Arithmetic, arrays: Arrays, target: Target, width: int):
        self.arithmetic, self.target, self.width = arithmetic, target, width
        self.units, self.dtype = arithmetic.traced.units, arithmetic.traced.dtype
        self.batch = arrays.carry[0].shape[:-1]
        self.size = math.prod(self.batch)
        self.steps = loop.plan.steps(arrays)
        self.arrays: list[Array] = []

    def put_all(self, arrays: Arrays) -> None:
        """Number what every kernel of a loop reads."""
        self.z = self.put_timed(dense(*arrays.dense)) if arrays.dense else None
        pairs = zip(self.arithmetic.others, arrays.others, strict=True)
        self.others: list[Any] = [self._put_other(*pair) for pair in pairs]
        self.weights = [self.put_weights(w) for w in arrays.weights]

    def put_timed(self, array: Array) -> int:
        """The number of [T, *batch, n H]."""
        return self.timed(pad_slots(array.reshape(self.steps, self.size, -1), self.units, self.width))

    def put_row(self, array: Array) -> int:
        """The number of [*batch, n H]."""
        return self.row(pad_slots(array.reshape(self.size, -1), self.units, self.width))

    def _put_other(self, other: Other, array: Array) -> int | None:
        slots = self.arithmetic.width(other)
        if slots is None:
            return None
        if array.dtype == bool:
            array = array.astype(jnp.int32)
        if slots and other.timed:
            return self.put_timed(array)
        if slots and other.batched:
            return self.put_row(array)
        if slots:
            return self.shared(pad_slots(array.reshape(1, -1), self.units, self.width))
        if other.timed:
            return self.timed(array.reshape(self.steps, self.size, 1))
        return self.row(array.reshape(self.size, 1)) if other.batched else self.number(array.reshape(1, 1))

    def timed(self, array: Array) -> int:
        """The number of [T, B, .]."""
        raise NotImplementedError

    def row(self, array: Array) -> int:
        """The number of [B, .]."""
        raise NotImplementedError

    def shared(self, array: Array) -> int:
        """The number of [1, .], which all sequences read."""
        raise NotImplementedError

    def number(self, array: Array) -> int:
        """The number of [1, 1], which all sequences read."""
        raise NotImplementedError

    def put_weights(self, w: Array) -> int:
        """The number of [H, n H]."""
        raise NotImplementedError
