"""The method `native`: the loops of a gated cell, forward and backward, as one call of compiled C++ each.

XLA runs a step as a dozen small programs that pass their results through memory. Here a step is one matrix product and
one elementwise pass, both generated for the given cell (`emit.py`), and what the next step needs is still in the cache.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.arrays import Array, Carry, Params, Tree
from seqjax.core import Cell
from seqjax.solvers.gated_loop.plan import Arrays, Plan, Wanted, resolve
from seqjax.solvers.gated_loop.slots import Unsupported
from seqjax.solvers.gated_loop.solver import Loop, gated_loop
from seqjax.solvers.gated_loop.solver import supports as kernel_supports
from seqjax.solvers.native.build import library
from seqjax.solvers.native.emit import Source, generate

VL = 16  # units per block, as in kernel.h
SMALL_WEIGHTS = 512 << 10  # bytes of weights that fit into the cache of one core


def native(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """The scan of a gated cell, compiled as a whole for this CPU; reverse mode only, float32 or float64.

    It needs a C++ compiler, which runs for a few seconds once per cell and machine. A program that is lowered for
    another platform, by `jax.export`, or for several devices over which XLA divides the arrays, contains a loop of JAX
    operations in place of the C++.

    Args:
      cell: a cell with the `gated` hint.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].

    Raises:
      ValueError: if the cell has no `gated` hint, or cannot be translated into C++ (`Unsupported`): a carry or weights
        narrower than float32, or more than arithmetic between the products.
      RuntimeError: if the C++ cannot be compiled.
    """
    return gated_loop((Native(required=True),), cell, params, carry, xs)


def supports(cell: Cell, params: Params, carry: Carry, xs: Tree) -> bool:
    """Whether a cell can be translated into C++ on these inputs; a compiler is not needed."""
    return not kernel_supports(Native().check, cell, params, carry, xs)


class Native(NamedTuple):
    """The kernels of the method."""

    required: bool = False
    method: str = "native"
    platforms: tuple[str, ...] = ("cpu",)
    exports: bool = False
    errors: tuple[type[Exception], ...] = (RuntimeError,)

    def context(self, platform: str) -> AbstractContextManager[None]:
        """No context is needed."""
        del platform
        return nullcontext()

    def check(self, plan: Plan, wanted: Wanted, arrays: Arrays) -> None:
        """Raises `Unsupported` for a cell that cannot be translated into C++."""
        dtype = arrays.carry[0].dtype
        if any(w.dtype != dtype for w in (*arrays.weights, *arrays.dense[1:])):
            given = " and ".join(sorted({str(w.dtype) for w in (*arrays.weights, *arrays.dense[1:])}))
            raise Unsupported(f'method "native" needs weights of the dtype of the carry, {dtype}, got {given}')
        source(plan, wanted.others)

    def kept(self, loop: Loop, arrays: Arrays) -> tuple[int, ...]:
        """The pre-activations [T, B, .], where the threads divide the units among themselves."""
        if not columns(arrays):
            return (0,)
        *batch, units = arrays.carry[0].shape
        row = (-(-units // VL) * source(loop.plan, loop.wanted.others).slots + 1) * VL
        return (loop.plan.steps(arrays), *batch, row)

    def forward(self, loop: Loop, platform: str, keep: bool, flat: tuple[Array, ...]) -> list[Array]:
        """All carries [T, B, .], and the pre-activations if they are kept, otherwise [0]."""
        del platform
        arrays, _ = loop.unflatten(flat)
        steps, first = loop.plan.steps(arrays), arrays.carry[0]
        results = [jax.ShapeDtypeStruct((steps, *leaf.shape), first.dtype) for leaf in arrays.carry]
        kept = self.kept(loop, arrays) if keep else (0,)
        n = len(flat)
        timed = (*self._inputs(arrays), *range(n, n + len(results)))
        return _ffi("forward", loop, [*results, jax.ShapeDtypeStruct(kept, first.dtype)], flat, timed)

    def gradient(self, loop: Loop, platform: str, flat: tuple[Array, ...]) -> list[Array]:
        """The gradient of every array, empty where it is not wanted."""
        del platform
        arrays, _ = loop.unflatten(flat)
        nothing = jnp.zeros((0,), arrays.carry[0].dtype)
        x = arrays.dense[:1] if loop.wanted.x else (nothing,) * len(arrays.dense[:1])
        others = [value if want else nothing for value, want in zip(arrays.others, loop.wanted.others, strict=True)]
        like = (*arrays.carry, *x, *arrays.dense[1:], *arrays.weights, *others)
        results = [jax.ShapeDtypeStruct(leaf.shape, nothing.dtype) for leaf in like]
        n, carries, inputs = loop.tree.num_leaves, len(arrays.carry), self._inputs(arrays)
        cotangents = range(n + 2 * carries + 1, n + 3 * carries + 1)
        timed = (*inputs, *range(n, n + carries), *cotangents, *(len(flat) + i for i in inputs))
        return _ffi("backward", loop, results, flat, timed)

    @staticmethod
    def _inputs(arrays: Arrays) -> range:
        """The place of x [T, B, D] among the arrays."""
        return range(len(arrays.carry), len(arrays.carry) + len(arrays.dense[:1]))


def _ffi(
    entry: str, loop: Loop, results: list[jax.ShapeDtypeStruct], flat: tuple[Array, ...], timed: Sequence[int]
) -> list[Array]:
    """Call an entry point of the compiled library.

    Args:
      entry: "forward" or "backward".
      loop: the loop.
      results: the types of the results.
      flat: the arguments.
      timed: the places, among arguments and results, of arrays [T, B, ...]. Where the caller transposes these from and
        to [B, T, ...], they are transposed back here; XLA removes both, and nothing is copied.
    """
    name = f"seqjax_{entry}_{library(source(loop.plan, loop.wanted.others).code)}"
    arrays, _ = loop.unflatten(flat)
    # Where each thread runs its own sequences, steps that lie apart cost as much as the copies that they save.
    batch, batch_major = arrays.carry[0].ndim - 1, loop.plan.batch_major and columns(arrays)

    def moved(i: int, value: Array, source: int, destination: int) -> Array:
        there = batch_major and i in timed and value.ndim > batch  # else it is empty, in place of what is not wanted
        return jnp.moveaxis(value, source, destination) if there else value

    args = [moved(i, value, 0, batch) for i, value in enumerate(flat)]
    types = [
        jax.eval_shape(partial(moved, len(flat) + i, source=0, destination=batch), result)
        for i, result in enumerate(results)
    ]
    call = jax.ffi.ffi_call(name, types, vmap_method="sequential")
    out = call(*args, batch_major=np.bool_(batch_major), columns=np.bool_(columns(arrays)))
    return [moved(len(flat) + i, value, batch, 0) for i, value in enumerate(out)]


def columns(arrays: Arrays) -> bool:
    """Whether the threads divide the units among themselves, rather than the sequences."""
    weights = sum(w.nbytes for w in (*arrays.weights, *arrays.dense[1:]))
    *batch, units = arrays.carry[0].shape
    return units > VL and (weights > SMALL_WEIGHTS or math.prod(batch) < 8)


@lru_cache(maxsize=256)
def source(plan: Plan, wanted: tuple[bool, ...]) -> Source:
    """The code; `wanted` are the other inputs that need a gradient."""
    try:
        return resolve(plan, wanted, partial(generate, dense=plan.dense or 0, products=plan.products))
    except Unsupported as error:
        raise Unsupported(f'method "native" has no C++ for these gates: {error}; use "fused"') from error
