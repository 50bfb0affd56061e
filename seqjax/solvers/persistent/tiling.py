"""The sizes of the blocks of a kernel, by platform."""

import math
from typing import NamedTuple

from seqjax.solvers.gated_loop.plan import Arrays, Plan
from seqjax.solvers.gated_loop.slots import Unsupported

HOISTED = 64
"""Up to this width the weights stay in the registers and the shared memory of a GPU."""
LARGEST = 128
"""The largest width on a GPU: twice that, the weights of one gate exceed the shared memory of a multiprocessor."""
VMEM = 10 << 20
"""Bytes of the memory of a TPU core that blocks may take; it has 16 MiB."""


class Tiling(NamedTuple):
    """The sizes of a block.

    Attributes:
      rows: sequences per block; the batch is padded to a multiple.
      width: units per slot, at least H; what is added is 0.
      steps: steps per block; the time is padded to a multiple. The carry passes from block to block in memory.
      hoisted: whether the weights are loaded once per block, into registers, or in each step.
    """

    rows: int
    width: int
    steps: int
    hoisted: bool


def up(size: int, multiple: int) -> int:
    """The least multiple that is at least `size`."""
    return -(-size // multiple) * multiple


def for_cuda(plan: Plan, arrays: Arrays) -> Tiling:
    """All steps in one block of 16 sequences, the least that a tensor core takes; sizes of tiles are powers of 2.

    Raises:
      Unsupported: for more than `LARGEST` units.
    """
    units = arrays.carry[0].shape[-1]
    width = max(16, 1 << (units - 1).bit_length())
    if width > LARGEST:
        raise Unsupported(
            f'method "persistent" takes at most {LARGEST} units on a GPU, got {units}: use partial(fused, unroll=8)'
        )
    return Tiling(16, width, plan.steps(arrays), width <= HOISTED)


def for_tpu(plan: Plan, arrays: Arrays) -> Tiling:
    """As many steps per block as fit into VMEM twice: one block is computed while the next is loaded.

    Raises:
      Unsupported: where the weights and one step do not fit.
    """
    *batch, units = arrays.carry[0].shape
    width = up(units, 128)
    size = arrays.carry[0].dtype.itemsize
    products = sum(plan.products)
    weights = 2 * 2 * products * width * width * max(w.dtype.itemsize for w in (*arrays.weights, arrays.carry[0]))
    others = sum(math.prod(value.shape[1 + len(batch) :]) for value in arrays.others)
    per_step = 2 * size * (2 * (plan.dense or 0) + products + 3 * len(plan.carry) + 2 * -(-others // units)) * width
    rows = 16  # of bfloat16 the least, of float32 twice
    while rows < min(math.prod(batch), 128) and weights + 8 * rows * per_step <= VMEM:
        rows *= 2
    steps = min(plan.steps(arrays), (VMEM - weights) // (rows * per_step))
    if steps < 1:
        raise Unsupported(
            f'method "persistent": the weights of {units} units do not fit into the memory of a TPU core; use "fused"'
        )
    return Tiling(rows, width, int(steps), False)
