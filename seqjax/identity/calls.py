"""The call that made a value: noted by its factory, or else read off the closures that the factory made."""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.identity.structures import ByValue, contents, is_importable, named, structure


class Call(NamedTuple):
    """The call that made a value: `factory(*args, **options)`, or the entry `place` of the tuple that it returned."""

    factory: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]
    place: int | None = None

    def repeat(self) -> Any:
        """The value, made again."""
        made = self.factory(*self.args, **self.options)
        return made if self.place is None else made[self.place]


def as_call(call: Call) -> str:
    """A call as code, without the arguments that are equal to the defaults."""
    bound = inspect.signature(call.factory).bind(*call.args, **call.options).arguments
    text = f"{call.factory.__qualname__}({', '.join(_arguments(call.factory, bound))})"
    if call.place is None:
        return text
    fields = getattr(inspect.get_annotations(inspect.unwrap(call.factory)).get("return"), "_fields", None)
    return text + (f".{fields[call.place]}" if fields else f"[{call.place}]")


def _arguments(factory: Callable[..., Any], given: dict[str, Any], by_name: bool = False) -> Iterator[str]:
    """The arguments of a call that differ from the defaults; those without a default by position."""
    for name, parameter in inspect.signature(factory).parameters.items():
        value = given.get(name, parameter.default)
        value = value.item() if isinstance(value, np.generic) else value
        if value is parameter.default or structure(value) is structure(parameter.default):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield from map(_text, value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            yield from (f"{key}={_text(one)}" for key, one in value.items())
        else:
            is_bare = parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY
            yield _text(value) if is_bare and not by_name else f"{name}={_text(value)}"


def _text(value: Any) -> str:
    """A value without addresses, short enough to stand among the arguments of a call."""
    if isinstance(value, types.FunctionType) and not is_importable(value):
        return _closures(value)
    if isinstance(value, functools.partial):
        options = [f"{name}={_text(one)}" for name, one in value.keywords.items()]
        return f"partial({', '.join([_text(value.func), *map(_text, value.args), *options])})"
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, np.ndarray | jax.Array):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        inner = ", ".join(map(_text, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if callable(value) and not isinstance(value, tuple):
        return str(getattr(value, "__name__", type(value).__name__))
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def _factory(function: types.FunctionType) -> tuple[str, str]:
    """The module and name of the function that made a closure."""
    return function.__module__, function.__qualname__.partition(".<locals>")[0]


def _closures(first: types.FunctionType, *others: types.FunctionType) -> str:
    """The call that made closures of one factory, as far as it can be read off what they see."""
    seen: dict[str, Any] = {}
    for function in (first, *others):
        seen |= contents(function) | contents(inspect.unwrap(function))
    module, name = _factory(first)
    factory = named(module, name)
    if not callable(factory) or "<locals>" not in first.__qualname__:
        return f"{name}({', '.join(f'{key}={_text(value)}' for key, value in seen.items())})" if seen else name
    return f"{name}({', '.join(_arguments(factory, seen, by_name=True))})"


def as_made(value: Any) -> str:
    """A value without a record: the call of the factory that made its functions, or else the fields that were given."""
    own = [one for one in value if isinstance(one, types.FunctionType)]
    # What is passed to `from_step` is seen by the functions that it makes.
    own += [one for function in own for one in contents(function).values() if isinstance(one, types.FunctionType)]
    foreign = [one for one in own if not one.__module__.startswith("seqjax.") and "<locals>" in one.__qualname__]
    wrapping = [one for one in foreign if any(isinstance(seen, ByValue) for seen in contents(one).values())]
    if foreign:
        outer = _factory((wrapping or foreign)[0])
        return _closures(*(one for one in foreign if _factory(one) == outer))

    def short(one: Any) -> str:
        if isinstance(one, types.FunctionType):
            return one.__qualname__.replace(".<locals>", "")
        return f"{type(one).__name__}(...)" if isinstance(one, ByValue) else _text(one)

    defaults = value._field_defaults
    given = {name: one for name, one in zip(value._fields, value, strict=True) if one is not defaults.get(name, value)}
    return f"{type(value).__name__}({', '.join(f'{name}={short(one)}' for name, one in given.items())})"
