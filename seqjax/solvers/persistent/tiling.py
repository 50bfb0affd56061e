"""The sizes of the blocks of a kernel, by platform."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import jax

from seqjax.solvers.gated_loop.plan import Arrays, Plan
from seqjax.solvers.gated_loop.slots import Unsupported

ALONE = 64
"""Up to this width one block of a GPU has all units."""
SHARED = 184 << 10
"""Bytes of weights that a block of a GPU may have: a multiprocessor has 227 KiB of shared memory."""
ACROSS = 64
"""The most blocks that wait for each other."""
PROCESSORS = 132
"""Multiprocessors of a GPU, an H100, for which a program is compiled where there is none."""
VMEM = 10 << 20
"""Bytes of the memory of a TPU core that blocks may take; it has 16 MiB."""


class Target(NamedTuple):
    """How kernels are compiled.

    Attributes:
      platform: "cuda", by Triton, or "tpu", by Mosaic.
      precision: of products, as in `jax.default_matmul_precision`.
      interpret: whether they are run as JAX operations, on any platform.
    """

    platform: str
    precision: str | None
    interpret: bool


class Tiling(NamedTuple):
    """The sizes of a block on a TPU.

    Attributes:
      rows: sequences per block; the batch is padded to a multiple.
      width: units per slot, at least H; what is added is 0.
      steps: steps per block; the time is padded to a multiple. The carry passes from block to block in memory.
    """

    rows: int
    width: int
    steps: int


class Blocks(NamedTuple):
    """The sizes of a block on a GPU, powers of 2.

    Attributes:
      given: the number of units H.
      rows: sequences per block; the batch is padded to a multiple.
      width: units per slot, at least H; what is added is 0. Divided by `units`, the number of blocks for them.
      units: units per block.
      chunk: rows of the weights per product of a block.
      warps: of 32 threads, that run a block.
    """

    given: int
    rows: int
    width: int
    units: int
    chunk: int
    warps: int

    @property
    def across(self) -> int:
        """The number of blocks that have the units of the same sequences."""
        return self.width // self.units


def up(size: int, multiple: int) -> int:
    """The least multiple that is at least `size`."""
    return -(-size // multiple) * multiple


def up_to_power(size: int) -> int:
    """The least power of 2 that is at least `size`."""
    return 1 << (size - 1).bit_length()


@lru_cache
def gpus() -> list[Any]:
    """The NVIDIA GPUs of this process."""
    try:
        return jax.local_devices(backend="cuda")
    except RuntimeError:
        return []


def processors() -> int:
    """The multiprocessors of the smallest GPU here."""
    return min((getattr(device, "core_count", PROCESSORS) for device in gpus()), default=PROCESSORS)


def for_cuda(plan: Plan, arrays: Arrays) -> Blocks:
    """At least 16 sequences and 16 columns of weights per block, which is what a tensor core takes.

    Blocks that wait for each other have to run at the same time. A GPU starts the blocks of a kernel in their order, so
    it is enough that as many as wait for each other fit on half of it; the other half is left to another such kernel.

    Raises:
      Unsupported: for weights that do not fit into the shared memory of as many blocks as can wait for each other.
    """
    *batch, units = arrays.carry[0].shape
    size = math.prod(batch)
    if units <= ALONE:
        width = max(16, up_to_power(units))
        return Blocks(units, 16, width, width, width, 4 if width <= 32 else 8)
    width = up(units, ALONE)
    if not plan.products:
        return Blocks(units, 16, width, ALONE, ALONE, 8)
    slots = [up_to_power(n) for n in plan.products]
    own = max(16, ALONE // up_to_power(sum(slots)))
    most = min(ACROSS, processors() // 2)
    weights = width * own * sum(n * w.dtype.itemsize for n, w in zip(slots, arrays.weights, strict=True))
    if weights > SHARED or width // own > most:
        raise Unsupported(
            f'method "persistent" has no room for {units} units on a GPU: their weights are {weights >> 10} KiB per '
            f"block, and {SHARED >> 10} KiB fit into each of {most}; use partial(fused, unroll=8)"
        )
    rows = 16
    while rows < 64 and up(size, rows) // rows * (width // own) > processors():
        rows *= 2
    return Blocks(units, rows, width, own, ALONE, 8)


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
    return Tiling(rows, width, int(steps))
