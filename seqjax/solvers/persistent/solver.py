"""The method `persistent`: each loop of a gated cell as one kernel, by Triton on NVIDIA GPUs and Mosaic on TPUs."""

from contextlib import AbstractContextManager, nullcontext
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
from seqjax.solvers.persistent.gradients import factors_and_products, of_arrays
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
        """The context in which kernels are lowered: JAX 0.11 and later ask for the model of the GPU.

        Where there is none, it is an H100. What is lowered does not depend on the model.
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
        """Nothing."""
        del loop, arrays
        return (0,)

    def forward(self, loop: Loop, platform: str, keep: bool, flat: tuple[Array, ...]) -> list[Array]:
        """All carries [T, B, .], and nothing that is kept."""
        del keep
        arrays, _ = loop.unflatten(flat)
        step, target = arithmetic(loop.plan, loop.wanted.others), self._target(platform, arrays)
        # Pallas, which most processes never need, takes a while to import.
        if target.platform == "tpu":
            from seqjax.solvers.persistent.mosaic import forward
        else:
            from seqjax.solvers.persistent.triton import forward
        with jax.default_matmul_precision(self.precision):
            hs = forward(loop, step, target, flat)
        return [*hs, jnp.zeros_like(hs[0], shape=(0,))]

    def gradient(self, loop: Loop, platform: str, flat: tuple[Array, ...]) -> list[Array]:
        """The gradient of every array, empty where it is not wanted."""
        n, leaves = loop.tree.num_leaves, len(loop.plan.carry)
        hs, flat = flat[n : n + leaves], (*flat[: n + leaves], *flat[n + leaves + 1 :])  # without what is kept
        arrays, _ = loop.unflatten(flat)
        step, target = arithmetic(loop.plan, loop.wanted.others), self._target(platform, arrays)
        with jax.default_matmul_precision(self.precision):
            vs, us = factors_and_products(loop, arrays, hs)
            if target.platform == "tpu":
                from seqjax.solvers.persistent import mosaic

                found = mosaic.gradients(loop, step, target, flat)
            else:
                from seqjax.solvers.persistent import triton

                found = triton.gradients(loop, step, target, us, flat)
            return of_arrays(loop, step, arrays, hs, vs, found)

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
