"""A call of compiled C++ in a program that may be lowered for other platforms than this CPU.

A call holds two implementations. The compiled one runs if the program is lowered for CPUs, to run now, with whole
arrays on one device. On another platform, in `jax.export`, and where XLA splits arrays over devices, it is replaced by
the portable one, which consists only of JAX operations. That one also defines the result types and the derivatives.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from seqjax.arrays import Array
from seqjax.solvers.native.build import warn_once


class Choice(NamedTuple):
    """Two equivalent functions `(*arrays) -> list of arrays`. Both are hashable, and compare equal if they do the same.

    Attributes:
      compiled: calls C++; raises a RuntimeError if that cannot be compiled.
      portable: consists of JAX operations.
      required: whether to raise that error; otherwise a warning is given and the portable function runs.
    """

    compiled: Callable[..., list[Array]]
    portable: Callable[..., list[Array]]
    required: bool


def call(choice: Choice, *arrays: Array) -> list[Array]:
    """The results of one of the two functions of a choice."""
    return _call.bind(*arrays, choice=choice)


class _Mapped(NamedTuple):
    """A function mapped over the lanes of a `vmap`."""

    function: Callable[..., list[Array]]
    axes: tuple[int | None, ...]

    def __call__(self, *arrays: Array) -> list[Array]:
        return jax.vmap(self.function, self.axes)(*arrays)


def _abstract(*types: Any, choice: Choice) -> list[Any]:
    return jax.make_jaxpr(choice.portable)(*types).out_avals


def _runs_here(context: Any) -> bool:
    """Whether a program that is lowered for CPUs runs here and now, each device on its own arrays."""
    if context.lowering_parameters.for_export:
        return False
    axes = context.axis_context
    if isinstance(axes, mlir.ShardingContext):
        return axes.num_devices == 1
    return isinstance(axes, mlir.SPMDAxisContext) and axes.manual_axes == frozenset(axes.mesh.axis_names)


def _lower_portable(context: Any, *arrays: Any, choice: Choice) -> Any:
    return mlir.lower_fun(choice.portable, multiple_results=True)(context, *arrays)


def _lower_on_cpu(context: Any, *arrays: Any, choice: Choice) -> Any:
    if _runs_here(context.module_context):
        try:
            return mlir.lower_fun(choice.compiled, multiple_results=True)(context, *arrays)
        except RuntimeError as error:
            if choice.required:
                raise
            warn_once(error)
    return _lower_portable(context, *arrays, choice=choice)


@partial(jax.jit, static_argnames="choice")
def _run(*arrays: Array, choice: Choice) -> list[Array]:
    return _call.bind(*arrays, choice=choice)


def _execute(*arrays: Array, choice: Choice) -> list[Array]:
    with jax.disable_jit(False):
        return _run(*arrays, choice=choice)


def _map(arrays: Any, axes: Any, *, choice: Choice) -> Any:
    axes = tuple(axes)
    functions = (_Mapped(choice.compiled, axes), _Mapped(choice.portable, axes))
    results = call(Choice(*functions, choice.required), *arrays)
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


_call = Primitive("native_call")
_call.multiple_results = True
_call.def_impl(_execute)
_call.def_abstract_eval(_abstract)
mlir.register_lowering(_call, _lower_portable)
mlir.register_lowering(_call, _lower_on_cpu, platform="cpu")
batching.primitive_batchers[_call] = _map
ad.primitive_jvps[_call] = _jvp
