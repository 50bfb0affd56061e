"""The method `persistent`: each loop of a gated cell as one kernel, by Triton on NVIDIA GPUs and Mosaic on TPUs."""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax

from seqjax.arrays import Array, Carry, Params, Tree
from seqjax.core import Cell
from seqjax.solvers.gated_loop.plan import Arrays, Plan, Wanted, resolve
from seqjax.solvers.gated_loop.slots import Unsupported
from seqjax.solvers.gated_loop.solver import Loop, gated_loop
from seqjax.solvers.persistent.arithmetic import Arithmetic
from seqjax.solvers.persistent.gradients import of_arrays
from seqjax.solvers.persistent.tiling import Target, for_cuda, for_tpu, gpus

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

    def context(self, platform: str) -> AbstractContextManager[Any]:
        """One in which kernels can be lowered for an NVIDIA GPU without one: JAX 0.11 and later ask for its model.

        What is lowered does not depend on the model.
        """
        mesh = jax.sharding.get_abstract_mesh()
        if platform != "cuda" or jax.__version_info__ < (0, 11) or gpus() or mesh.abstract_device is not None:
            return nullcontext()
        device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
        return jax.sharding.use_abstract_mesh(mesh.update(abstract_device=device))

    def check(self, plan: Plan, wanted: Wanted, arrays: Arrays) -> None:
        """Raises `Unsupported` for arithmetic that is not elementwise."""
        del arrays
        arithmetic(plan, wanted.others)

    def check_on(self, platform: str, plan: Plan, wanted: Wanted, arrays: Arrays) -> None:
        """Raises `Unsupported` also for float64, and where there is no room on a platform."""
        self.check(plan, wanted, arrays)
        self._target(platform, arrays)
        (for_tpu if platform == "tpu" else for_cuda)(plan, arrays)

    def kept(self, loop: Loop, arrays: Arrays) -> tuple[int, ...]:
        """The products [T, B, .]."""
        *batch, units = arrays.carry[0].shape
        products = sum(loop.plan.products) * units
        return (loop.plan.steps(arrays), *batch, products) if products else (0,)

    def forward(self, loop: Loop, platform: str, keep: bool, flat: tuple[Array, ...]) -> list[Any]:
        """All carries [T, B, .], and the products if they are kept."""
        arrays, _ = loop.unflatten(flat)
        step, target = arithmetic(loop.plan, loop.wanted.others), self._target(platform, arrays)
        # Pallas, which most processes never need, takes a while to import.
        if target.platform == "tpu":
            from seqjax.solvers.persistent import mosaic

            return [*mosaic.forward(loop, step, target, flat), None]
        from seqjax.solvers.persistent import triton

        return triton.forward(loop, step, target, keep, flat)

    def gradient(self, loop: Loop, platform: str, flat: tuple[Array, ...]) -> list[Array]:
        """The gradient of every array, empty where it is not wanted."""
        n, leaves = loop.tree.num_leaves, len(loop.plan.carry)
        hs, kept, flat = flat[n : n + leaves], flat[n + leaves], (*flat[: n + leaves], *flat[n + leaves + 1 :])
        arrays, _ = loop.unflatten(flat)
        step, target = arithmetic(loop.plan, loop.wanted.others), self._target(platform, arrays)
        if target.platform == "tpu":
            from seqjax.solvers.persistent import mosaic

            return of_arrays(loop, step, arrays, hs, None, mosaic.gradients(loop, step, target, flat))
        from seqjax.solvers.persistent import triton

        found = triton.gradients(loop, step, target, kept, flat)
        return of_arrays(loop, step, arrays, hs, kept if arrays.weights else None, found)

    def _target(self, platform: str, arrays: Arrays) -> Target:
        dtype = arrays.carry[0].dtype
        if dtype.itemsize > 4 and not self.interpret:
            raise Unsupported(f'method "persistent" has no kernel for {dtype}; use "fused"')
        return Target(self.interpret or platform, self.precision, bool(self.interpret))


@lru_cache(maxsize=256)
def arithmetic(plan: Plan, wanted: tuple[bool, ...]) -> Arithmetic:
    """The arithmetic; `wanted` are the other inputs that need a gradient."""
    make = partial(Arithmetic, dense=plan.dense or 0, products=plan.products)
    try:
        return resolve(plan, wanted, make)
    except Unsupported as error:
        raise Unsupported(f'method "persistent" has no kernel for these gates: {error}; use "fused"') from error
