"""Values of `by_value` types, and the factories that make them."""

import functools
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import numpy as np

from seqjax.identity.calls import Call, as_call, as_made
from seqjax.identity.pickling import dump, load
from seqjax.identity.structures import ByValue

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T", bound=type)


class _Printed(ByValue):
    """What a NamedTuple gets from `by_value`."""

    @reprlib.recursive_repr("...")
    def __repr__(self):
        call: Call | None = vars(self).get("_call")
        return as_call(call) if call else as_made(self)

    def __reduce__(self):
        return load, (dump(self),)


def by_value(cls: _T) -> _T:
    """Compare, hash, print and pickle the instances of a NamedTuple by their structure, see `structure`.

    `_replace` and all that a tuple does stay. A pickle holds the call, where that was `recorded`, or else the code of
    the functions and what they see, for the version of Python that wrote it.
    """
    own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return cast(_T, type(cls.__name__, (_Printed, cls), own))


@by_value
class Value(NamedTuple):
    """Any value, compared by its structure: a solver made by `partial`, as the key of a cache."""

    value: Any


def recorded(factory: Callable[_P, _R]) -> Callable[_P, _R]:
    """Note the call on the `by_value` tuple that a factory returns, or on those in the tuple that it returns.

    Numbers of NumPy among the arguments become numbers of Python.
    """

    @functools.wraps(factory)
    def make(*args: _P.args, **options: _P.kwargs) -> _R:
        args, options = cast(Any, (tuple(map(_plain, args)), {name: _plain(value) for name, value in options.items()}))
        made: Any = factory(*args, **options)
        call = Call(make, args, options)
        if isinstance(made, ByValue):
            return _noted(made, call)
        parts = [_noted(one, call._replace(place=i)) if isinstance(one, ByValue) else one for i, one in enumerate(made)]
        return type(made)._make(parts) if hasattr(made, "_make") else type(made)(parts)

    return make


def _plain(value: Any) -> Any:
    """A number as Python has it: one of NumPy has a dtype, which would promote that of the cell."""
    return value.item() if isinstance(value, np.generic) else value


def _noted(value: Any, call: Call) -> Any:
    """A copy, since a wrapper may return the cell that it was given."""
    copy = type(value)._make(value)
    vars(copy).update({**vars(value), "_call": call})
    return copy
