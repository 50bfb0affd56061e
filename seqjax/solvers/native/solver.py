"""The solver `native`: a gated cell's loops over time, forward and backward, as one call of compiled C++ each.

XLA runs a step as a dozen small programs that pass their results through memory. Here a step is one matrix product and
one elementwise pass, both generated for the given cell (`emit.py`), and what the next step needs is still in the cache.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from seqjax.arrays import Array, Carry, Params, Tree
from seqjax.core import Cell, open_dense, over_time
from seqjax.solvers.autodiff import reverse_mode_only
from seqjax.solvers.native import portable
from seqjax.solvers.native.arithmetic import Unsupported
from seqjax.solvers.native.build import library
from seqjax.solvers.native.call import Choice, call
from seqjax.solvers.native.plan import VL, Arrays, Plan, Wanted, make_plan, source


def native(cell: Cell, params: Params, carry: Carry, xs: Tree, *, required: bool = True) -> tuple[Carry, Tree]:
    """The scan of a gated cell, compiled as a whole for this CPU; reverse mode only, float32 or float64.

    It needs a C++ compiler, which runs for a few seconds once per cell and machine. A program that is lowered for
    another platform, by `jax.export`, or for several devices over which XLA divides the arrays, contains a loop of JAX
    operations in place of the C++.

    Args:
      cell: a cell with the `gated` hint.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].
      required: whether to raise an error if the C++ cannot be compiled; otherwise there is a warning, and the loop of
        JAX operations runs.

    Raises:
      ValueError: if the cell has no `gated` hint, or cannot be translated into C++ (`Unsupported`): a carry or weights
        narrower than float32, or more than arithmetic between the products.
      RuntimeError: if the C++ is required and cannot be compiled.
    """
    if cell.gated is None:
        raise ValueError('method "native" needs a cell with the `gated` hint; use "scan"')
    zs = over_time(partial(cell.project, params), xs)
    plan, arrays = make_plan(cell.gated, cell.gated.weights(params), carry, zs)
    arrays = reverse_mode_only("native", arrays)
    last, hs = map(plan.carry_tree.unflatten, _loop(plan, required, arrays))
    return last, over_time(partial(cell.readout, params), hs, open_dense(zs))


def supports(cell: Cell, params: Params, carry: Carry, xs: Tree) -> bool:
    """Whether a cell can be translated into C++ on these inputs; a compiler is not needed."""
    if cell.gated is None:
        return False
    gated = cell.gated

    def translate(params, carry, xs):
        zs = over_time(partial(cell.project, params), xs)
        plan, arrays = make_plan(gated, gated.weights(params), carry, zs)
        source(plan, _floating(arrays))

    try:
        jax.eval_shape(translate, params, carry, xs)
    except Unsupported:
        return False
    return True


def _floating(arrays: Arrays) -> tuple[bool, ...]:
    return tuple(jnp.issubdtype(value.dtype, jnp.floating) for value in arrays.others)


class _Function(NamedTuple):
    """What all functions of a `Choice` have in common."""

    plan: Plan
    wanted: Wanted
    tree: Any  # of `Arrays`

    def unflatten(self, flat: tuple[Array, ...]) -> tuple[Arrays, tuple[Array, ...]]:
        """The arrays, and all further inputs."""
        n = self.tree.num_leaves
        return self.tree.unflatten(flat[:n]), flat[n:]

    def ffi(self, entry: str, results: list[jax.ShapeDtypeStruct], arrays: Arrays, flat: tuple[Array, ...]):
        """Call an entry point of the compiled library."""
        name = f"seqjax_{entry}_{library(source(self.plan, self.wanted.others).code)}"
        columns = np.bool_(self.plan.columns(arrays))
        return list(jax.ffi.ffi_call(name, results, vmap_method="sequential")(*flat, columns=columns))


class _CompiledForward(NamedTuple):
    """All carries [T, B, .], and the pre-activations [T, B, .] if they are kept, otherwise [0]."""

    function: _Function
    keep: bool

    def __call__(self, *flat: Array) -> list[Array]:
        arrays, _ = self.function.unflatten(flat)
        steps, first = self.function.plan.steps(arrays), arrays.carry[0]
        results = [jax.ShapeDtypeStruct((steps, *leaf.shape), first.dtype) for leaf in arrays.carry]
        kept = (steps, *first.shape[:-1], self.row(first.shape[-1])) if self.keep else (0,)
        return self.function.ffi("forward", [*results, jax.ShapeDtypeStruct(kept, first.dtype)], arrays, flat)

    def row(self, units: int) -> int:
        """How many numbers are kept for one sequence at one step."""
        return (-(-units // VL) * source(self.function.plan, self.function.wanted.others).slots + 1) * VL


class _PortableForward(NamedTuple):
    """The same in JAX, with zeros for the pre-activations, which only the C++ reads."""

    compiled: _CompiledForward

    def __call__(self, *flat: Array) -> list[Array]:
        arrays, _ = self.compiled.function.unflatten(flat)
        hs = portable.loop(self.compiled.function.plan, arrays)
        if not self.compiled.keep:
            return [*hs, jnp.zeros_like(hs[0], shape=(0,))]
        zeros, row = jnp.zeros_like(hs[0][..., :1]), self.compiled.row(hs[0].shape[-1])
        return [*hs, jnp.broadcast_to(zeros, (*zeros.shape[:-1], row))]


class _CompiledGradient(NamedTuple):
    """The gradient of every array, empty where it is not wanted; see `portable.gradient`."""

    function: _Function

    def __call__(self, *flat: Array) -> list[Array]:
        arrays, _ = self.function.unflatten(flat)
        wanted = self.function.wanted
        nothing = jnp.zeros((0,), arrays.carry[0].dtype)
        x = arrays.dense[:1] if wanted.x else (nothing,) * len(arrays.dense[:1])
        others = [value if want else nothing for value, want in zip(arrays.others, wanted.others, strict=True)]
        like = (*arrays.carry, *x, *arrays.dense[1:], *arrays.weights, *others)
        results = [jax.ShapeDtypeStruct(leaf.shape, nothing.dtype) for leaf in like]
        return self.function.ffi("backward", results, arrays, flat)


class _PortableGradient(NamedTuple):
    """The same in JAX."""

    function: _Function

    def __call__(self, *flat: Array) -> list[Array]:
        arrays, rest = self.function.unflatten(flat)
        n = len(arrays.carry)
        hs, cotangents = rest[:n], rest[n + 1 :]
        return portable.gradient(self.function.plan, self.function.wanted, arrays, hs, cotangents)


def _forward(plan: Plan, required: bool, wanted: Wanted, keep: bool, arrays: Arrays) -> tuple[list[Array], Array]:
    """All carries [T, B, .], and the pre-activations if they are kept."""
    flat, tree = jax.tree.flatten(arrays)
    compiled = _CompiledForward(_Function(plan, wanted, tree), keep)
    source(plan, wanted.others)  # so that Unsupported is raised here, not when the program is lowered
    *hs, a = call(Choice(compiled, _PortableForward(compiled), required), *flat)
    return hs, a


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loop(plan: Plan, required: bool, arrays: Arrays) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    wanted = Wanted(False, (False,) * len(arrays.others))
    hs, _ = _forward(plan, required, wanted, False, arrays)
    return tuple(leaf[-1] for leaf in hs), tuple(hs)


def _loop_forward(plan, required, arrays):
    wanted = Wanted(
        x=any(leaf.perturbed for leaf in arrays.dense[:1]),
        others=tuple(leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.floating) for leaf in arrays.others),
    )
    arrays = jax.tree.map(lambda leaf: leaf.value, arrays, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    hs, a = _forward(plan, required, wanted, plan.columns(arrays), arrays)
    return (tuple(leaf[-1] for leaf in hs), tuple(hs)), (arrays, hs, a, wanted)


def _loop_backward(plan, required, residuals, cotangents):
    arrays, hs, a, wanted = residuals
    nothing = jnp.zeros_like(hs[0], shape=(0,))
    cotangents = [nothing if isinstance(leaf, SymbolicZero) else leaf for part in cotangents for leaf in part]
    flat, tree = jax.tree.flatten(arrays)
    function = _Function(plan, wanted, tree)
    choice = Choice(_CompiledGradient(function), _PortableGradient(function), required)
    gradients = iter(call(choice, *flat, *hs, a, *cotangents))
    projection: Any
    carry, projection, weights, others = (tuple(next(gradients) for _ in part) for part in arrays)
    if projection and not wanted.x:
        projection = (None, *projection[1:])
    kept: Any = tuple(value if want else None for value, want in zip(others, wanted.others, strict=True))
    return (Arrays(carry, projection, weights, kept),)


_loop.defvjp(_loop_forward, _loop_backward, symbolic_zeros=True)
