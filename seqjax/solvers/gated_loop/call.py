"""An operation with one implementation in JAX and others for single platforms: the program that is lowered chooses.

A call holds a portable function and kernels. A kernel runs if the program is lowered for its platform and the kernel
fits in there; everywhere else the portable function does, which consists of JAX operations only. That one also defines
the result types and the derivatives.
"""

import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from seqjax.arrays import Array

__all__ = ["Choice", "Kernel", "call", "warn_once"]

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

Function = Callable[..., list[Array]]

_lock = threading.Lock()
_warned: set[str] = set()  # the kinds of warnings already given


class Kernel(NamedTuple):
    """A function for one platform, hashable, and equal to another if it does the same.

    Attributes:
      platform: the name by which JAX lowers programs for it.
      method: the method that it belongs to, for messages.
      function: `(*arrays) -> list of arrays`.
      exports: whether it runs in a program that `jax.export` writes.
      divides: whether XLA can divide it over devices, as it can divide all operations of JAX.
      errors: what the lowering of the function raises where the kernel cannot be compiled.
      required: whether such an error is raised; otherwise a warning is given and the portable function runs.
      context: `platform -> context manager` in which the function is lowered.
    """

    platform: str
    method: str
    function: Function
    exports: bool = True
    divides: bool = False
    errors: tuple[type[Exception], ...] = (RuntimeError,)
    required: bool = False
    context: Callable[[str], AbstractContextManager[Any]] = nullcontext

    def fits(self, context: Any) -> bool:
        """Whether it can be part of the program that is lowered."""
        if context.lowering_parameters.for_export and not self.exports:
            return False
        axes = context.axis_context
        if self.divides:
            return True
        if isinstance(axes, mlir.ShardingContext):
            return axes.num_devices == 1
        return isinstance(axes, mlir.SPMDAxisContext) and axes.manual_axes == frozenset(axes.mesh.axis_names)


class Choice(NamedTuple):
    """Equivalent functions `(*arrays) -> list of arrays`.

    Attributes:
      portable: consists of JAX operations; hashable, as the functions of kernels are.
      kernels: for single platforms, the preferred ones first.
    """

    portable: Function
    kernels: tuple[Kernel, ...]


def call(choice: Choice, *arrays: Array) -> list[Array]:
    """The results of one of the functions of a choice."""
    return _call.bind(*arrays, choice=choice)


def warn_once(message: str) -> None:
    """Warn, once per process for each kind of message, which is what comes before the colon."""
    kind = message.partition(":")[0]
    with _lock:
        if kind not in _warned:
            _warned.add(kind)
            warnings.warn(message, RuntimeWarning, stacklevel=4)


class _Mapped(NamedTuple):
    """A function mapped over the lanes of a `vmap`."""

    function: Function
    axes: tuple[int | None, ...]

    def __call__(self, *arrays: Array) -> list[Array]:
        return jax.vmap(self.function, self.axes)(*arrays)


def _abstract(*types: Any, choice: Choice) -> list[Any]:
    return jax.make_jaxpr(choice.portable)(*types).out_avals


def _lower(context: Any, *arrays: Any, choice: Choice, platform: str | None = None) -> Any:
    for kernel in choice.kernels:
        if kernel.platform == platform and kernel.fits(context.module_context):
            try:
                with kernel.context(kernel.platform):
                    return mlir.lower_fun(kernel.function, multiple_results=True)(context, *arrays)
            except kernel.errors as error:
                if kernel.required:
                    raise
                warn_once(f'method "{kernel.method}" is left out: {error}')
    return mlir.lower_fun(choice.portable, multiple_results=True)(context, *arrays)


@partial(jax.jit, static_argnames="choice")
def _run(*arrays: Array, choice: Choice) -> list[Array]:
    return _call.bind(*arrays, choice=choice)


def _execute(*arrays: Array, choice: Choice) -> list[Array]:
    with jax.disable_jit(False):
        return _run(*arrays, choice=choice)


def _map(arrays: Any, axes: Any, *, choice: Choice) -> Any:
    axes = tuple(axes)
    kernels = tuple(kernel._replace(function=_Mapped(kernel.function, axes)) for kernel in choice.kernels)
    results = call(Choice(_Mapped(choice.portable, axes), kernels), *arrays)
    return results, [0] * len(results)


def _jvp(primals: Any, tangents: Any, *, choice: Choice) -> Any:
    # Only an outer derivative gets here: this call is part of the solver's custom gradient.
    moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def portable(*differentiated):
        arrays = list(primals)
        for i, value in zip(moving, differentiated, strict=True):
            arrays[i] = value
        return choice.portable(*arrays)

    _, out = jax.jvp(portable, [primals[i] for i in moving], [tangents[i] for i in moving])
    return call(choice, *primals), out


_call = Primitive("by_platform")
_call.multiple_results = True
_call.def_impl(_execute)
_call.def_abstract_eval(_abstract)
mlir.register_lowering(_call, _lower)
for _platform in PLATFORMS:
    mlir.register_lowering(_call, partial(_lower, platform=_platform), platform=_platform)
batching.primitive_batchers[_call] = _map
ad.primitive_jvps[_call] = _jvp
