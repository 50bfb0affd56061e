"""The method `persistent`: each loop of a gated cell as one kernel, by Triton on NVIDIA GPUs and Mosaic on TPUs."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Params, Tree
from seqjax.core import Cell
from seqjax.solvers.gated_loop.plan import Arrays, Plan, Wanted, resolve
from seqjax.solvers.gated_loop.slots import Unsupported
from seqjax.solvers.gated_loop.solver import Loop, gated_loop
from seqjax.solvers.persistent.arithmetic import Arithmetic

PLATFORMS = ("cuda", "tpu")


def persistent(
    cell: Cell, params: Params, carry: Carry, xs: Tree, *, interpret: str | None = None
) -> tuple[Carry, Tree]:
    """The scan of a gated cell as one kernel forward and one backward; reverse mode only.

    A program that is lowered for another platform than an NVIDIA GPU or a TPU, or for several devices over which XLA
    divides the arrays, contains a loop of JAX operations in place of the kernels. Products with float32 weights have
    the precision of `jax.default_matmul_precision`.

    Args:
      cell: a cell with the `gated` hint.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].
      interpret: "cuda" or "tpu" to run the kernels of that platform on any other, slowly, for tests.

    Raises:
      ValueError: if the cell has no `gated` hint, or more than elementwise arithmetic between its products
        (`Unsupported`).
    """
    return gated_loop((Persistent(precision(), required=True, interpret=interpret),), cell, params, carry, xs)


def precision() -> str | None:
    """That of `jax.default_matmul_precision`, here and now."""
    config: Any = jax.config
    return config.jax_default_matmul_precision


class Persistent(NamedTuple):
    """The kernels of the method."""

    precision: str | None
    required: bool = False
    interpret: str | None = None
    method: str = "persistent"
    exports: bool = False
    errors: tuple[type[Exception], ...] = (Exception,)

    @property
    def platforms(self) -> tuple[str, ...]:
        """Those that have a kernel."""
        return (*PLATFORMS, "cpu", "rocm") if self.interpret else PLATFORMS

    def check(self, plan: Plan, wanted: Wanted, arrays: Arrays) -> None:
        """Raises `Unsupported` for arithmetic that is not elementwise."""
        del arrays
        arithmetic(plan, wanted.others)

    def kept(self, loop: Loop, arrays: Arrays) -> tuple[int, ...]:
        """Nothing."""
        del loop, arrays
        return (0,)

    def forward(self, loop: Loop, platform: str, keep: bool, flat: tuple[Array, ...]) -> list[Array]:
        """All carries [T, B, .]."""
        del keep
        from seqjax.solvers.persistent import kernel  # Pallas, which most processes never need, takes a while to import

        step = arithmetic(loop.plan, loop.wanted.others)
        target = kernel.Target(self.interpret or platform, self.precision, bool(self.interpret))
        hs = kernel.forward(loop, step, target, flat)
        return [*hs, jnp.zeros_like(hs[0], shape=(0,))]

    def gradient(self, loop: Loop, platform: str, flat: tuple[Array, ...]) -> list[Array]:
        """The gradient of every array, empty where it is not wanted."""
        n = loop.tree.num_leaves + len(loop.plan.carry)
        flat = (*flat[:n], *flat[n + 1 :])  # without what is kept
        from seqjax.solvers.persistent import kernel

        step = arithmetic(loop.plan, loop.wanted.others)
        target = kernel.Target(self.interpret or platform, self.precision, bool(self.interpret))
        return kernel.gradient(loop, step, target, flat)


@lru_cache(maxsize=256)
def arithmetic(plan: Plan, wanted: tuple[bool, ...]) -> Arithmetic:
    """The arithmetic; `wanted` are the other inputs that need a gradient."""
    make = partial(Arithmetic, dense=plan.dense or 0, products=plan.products)
    try:
        return resolve(plan, wanted, make)
    except Unsupported as error:
        raise Unsupported(f'method "persistent" has no kernel for these gates: {error}; use "fused"') from error
