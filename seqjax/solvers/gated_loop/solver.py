"""The loop of a gated cell, forward and backward, as one operation each, which every platform runs in its own way."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from seqjax.arrays import Array, Carry, Params, Tree
from seqjax.core import Cell, open_dense, over_time
from seqjax.solvers.autodiff import reverse_mode_only
from seqjax.solvers.gated_loop import portable
from seqjax.solvers.gated_loop.call import Choice, Kernel, call
from seqjax.solvers.gated_loop.plan import Arrays, Plan, Wanted, make_plan
from seqjax.solvers.gated_loop.slots import Unsupported

__all__ = ["Loop", "Loops", "floating", "gated_loop", "supports"]

UNROLL = 8
"""Steps per turn of a portable loop where starting a turn is what it costs: on accelerators."""


class Loop(NamedTuple):
    """One loop: what its kernels have in common.

    Attributes:
      plan: the arithmetic.
      wanted: the gradients that are needed.
      tree: the structure of `Arrays`.
    """

    plan: Plan
    wanted: Wanted
    tree: Any

    def unflatten(self, flat: tuple[Array, ...]) -> tuple[Arrays, tuple[Array, ...]]:
        """The arrays, and all further inputs."""
        n = self.tree.num_leaves
        return self.tree.unflatten(flat[:n]), flat[n:]


class Loops(Protocol):
    """The kernels of a method, hashable."""

    @property
    def method(self) -> str:
        """The name of the method."""
        ...

    @property
    def platforms(self) -> tuple[str, ...]:
        """Those that it has a kernel for."""
        ...

    @property
    def exports(self) -> bool:
        """See `Kernel`."""
        ...

    @property
    def required(self) -> bool:
        """See `Kernel`."""
        ...

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """See `Kernel`."""
        ...

    def context(self, platform: str) -> AbstractContextManager[Any]:
        """See `Kernel`."""
        ...

    def check(self, plan: Plan, wanted: Wanted, arrays: Arrays) -> None:
        """Raises `Unsupported` for a cell that the kernels cannot run."""

    def kept(self, loop: Loop, arrays: Arrays) -> tuple[int, ...]:
        """The shape of what the forward loop keeps for the backward one beside the carries; (0,) for nothing."""
        ...

    def forward(self, loop: Loop, platform: str, keep: bool, flat: tuple[Array, ...]) -> list[Array]:
        """All carries [T, B, .], and what is kept, of which there is nothing if not `keep`."""
        ...

    def gradient(self, loop: Loop, platform: str, flat: tuple[Array, ...]) -> list[Array]:
        """The gradient of every array, empty where it is not wanted, of the arrays, carries, kept, and cotangents."""
        ...


def gated_loop(kernels: tuple[Loops, ...], cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """The scan of a gated cell; reverse mode only. Where there is no kernel, it is a loop of JAX operations.

    Args:
      kernels: those that may run it.
      cell: a cell with the `gated` hint.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].

    Raises:
      ValueError: if the cell has no `gated` hint.
      Unsupported: (a ValueError) if a kernel cannot run its arithmetic.
    """
    names = " or ".join(f'"{one.method}"' for one in kernels)
    if cell.gated is None:
        raise ValueError(f'method {names} needs a cell with the `gated` hint; use "scan"')
    zs = over_time(partial(cell.project, params), xs)
    try:
        plan, arrays = make_plan(cell.gated, cell.gated.weights(params), carry, zs)
    except Unsupported as error:
        raise Unsupported(f'method {names} does not run this cell: {error}; use "scan"') from error
    arrays = reverse_mode_only(kernels[0].method, arrays)
    last, hs = map(plan.carry_tree.unflatten, _loop(plan, kernels, arrays))
    return last, over_time(partial(cell.readout, params), hs, open_dense(zs))


def supports(check: Callable[[Plan, Wanted, Arrays], None], cell: Cell, params: Params, carry: Carry, xs: Tree) -> str:
    """Why a cell does not pass the check of a method on these inputs; empty if it does."""
    if cell.gated is None:
        return "the cell has no `gated` hint"
    gated = cell.gated

    def run(params, carry, xs):
        zs = over_time(partial(cell.project, params), xs)
        plan, arrays = make_plan(gated, gated.weights(params), carry, zs)
        check(plan, Wanted(True, floating(arrays)), arrays)

    try:
        jax.eval_shape(run, params, carry, xs)
    except Unsupported as error:
        return str(error)
    return ""


def floating(arrays: Arrays) -> tuple[bool, ...]:
    """Which of the other inputs have a gradient."""
    return tuple(jnp.issubdtype(value.dtype, jnp.floating) for value in arrays.others)


class _Forward(NamedTuple):
    """All carries [T, B, .], and one array for each of the kernels: what it keeps."""

    loop: Loop
    kernels: tuple[Loops, ...]
    keep: bool
    kernel: int | None  # its number; None for the portable loop
    platform: str

    def __call__(self, *flat: Array) -> list[Array]:
        arrays, _ = self.loop.unflatten(flat)
        if self.kernel is None:
            hs, own = portable.loop(self.loop.plan, arrays, unroll=_unroll(self.platform)), None
        else:
            *hs, own = self.kernels[self.kernel].forward(self.loop, self.platform, self.keep, flat)
        kept = [
            own if own is not None and i == self.kernel else _zeros(hs[0], self._kept(one, arrays))
            for i, one in enumerate(self.kernels)
        ]
        return [*hs, *kept]

    def _kept(self, one: Loops, arrays: Arrays) -> tuple[int, ...]:
        return one.kept(self.loop, arrays) if self.keep else (0,)


class _Gradient(NamedTuple):
    """The gradient of every array, empty where it is not wanted; see `portable.gradient`."""

    loop: Loop
    kernels: tuple[Loops, ...]
    kernel: int | None
    platform: str

    def __call__(self, *flat: Array) -> list[Array]:
        arrays, rest = self.loop.unflatten(flat)
        n, plan, wanted = len(arrays.carry), self.loop.plan, self.loop.wanted
        hs, kept, cotangents = rest[:n], rest[n : n + len(self.kernels)], rest[n + len(self.kernels) :]
        if self.kernel is None:
            unroll = _unroll(self.platform)
            return portable.gradient(plan, wanted, arrays, hs, cotangents, unroll=unroll)
        flat = (*flat[: self.loop.tree.num_leaves], *hs, kept[self.kernel], *cotangents)
        return self.kernels[self.kernel].gradient(self.loop, self.platform, flat)


def _unroll(platform: str) -> int:
    return 1 if platform == "cpu" else UNROLL


def _zeros(like: Array, shape: tuple[int, ...]) -> Array:
    """Zeros of a shape, placed as `like`, which a result of the same operation is; read by nobody."""
    if shape == (0,):
        return jnp.zeros_like(like, shape=(0,))
    column = jnp.zeros_like(like[..., :1])
    return jnp.broadcast_to(column, (*column.shape[:-1], shape[-1]))


def _choice(kind: Any, kernels: tuple[Loops, ...], *args: Any) -> Choice:
    """The choice between the functions `kind(*args, index, platform)`."""
    found = [
        Kernel(
            platform,
            one.method,
            kind(*args, i, platform),
            one.exports,
            errors=one.errors,
            required=one.required,
            context=one.context,
        )
        for i, one in enumerate(kernels)
        for platform in one.platforms
    ]
    anywhere = [
        Kernel(platform, "portable", kind(*args, None, platform), divides=True) for platform in ("cuda", "rocm", "tpu")
    ]
    return Choice(kind(*args, None, "cpu"), (*found, *anywhere))


def _forward(
    plan: Plan, kernels: tuple[Loops, ...], wanted: Wanted, keep: bool, arrays: Arrays
) -> tuple[list[Array], list[Array]]:
    """All carries [T, B, .], and what is kept."""
    for one in kernels:
        one.check(plan, wanted, arrays)  # so that Unsupported is raised here, not when the program is lowered
    flat, tree = jax.tree.flatten(arrays)
    out = call(_choice(_Forward, kernels, Loop(plan, wanted, tree), kernels, keep), *flat)
    return out[: len(arrays.carry)], out[len(arrays.carry) :]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loop(plan: Plan, kernels: tuple[Loops, ...], arrays: Arrays) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    wanted = Wanted(False, (False,) * len(arrays.others))
    hs, _ = _forward(plan, kernels, wanted, False, arrays)
    return tuple(leaf[-1] for leaf in hs), tuple(hs)


def _loop_forward(plan, kernels, arrays):
    wanted = Wanted(
        x=any(leaf.perturbed for leaf in arrays.dense[:1]),
        others=tuple(leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.floating) for leaf in arrays.others),
    )
    arrays = jax.tree.map(lambda leaf: leaf.value, arrays, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    hs, kept = _forward(plan, kernels, wanted, True, arrays)
    return (tuple(leaf[-1] for leaf in hs), tuple(hs)), (arrays, hs, kept, wanted)


def _loop_backward(plan, kernels, residuals, cotangents):
    arrays, hs, kept, wanted = residuals
    nothing = jnp.zeros_like(hs[0], shape=(0,))
    cotangents = [nothing if isinstance(leaf, SymbolicZero) else leaf for part in cotangents for leaf in part]
    flat, tree = jax.tree.flatten(arrays)
    gradients = iter(
        call(_choice(_Gradient, kernels, Loop(plan, wanted, tree), kernels), *flat, *hs, *kept, *cotangents)
    )
    projection: Any
    carry, projection, weights, others = (tuple(next(gradients) for _ in part) for part in arrays)
    if projection and not wanted.x:
        projection = (None, *projection[1:])
    used: Any = tuple(value if want else None for value, want in zip(others, wanted.others, strict=True))
    return (Arrays(carry, projection, weights, used),)


_loop.defvjp(_loop_forward, _loop_backward, symbolic_zeros=True)
