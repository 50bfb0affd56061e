"""What a value is made of, closures too: two of them are equal if they have the same code and see equal values."""

import dataclasses
import functools
import hashlib
import sys
import threading
import types
import weakref
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


class Structure:
    """What a value is made of. There is one for each value, so structures are compared by `is`."""

    __slots__ = ("__weakref__", "parts")

    def __init__(self, parts: tuple[Any, ...]):
        self.parts = parts


_KNOWN: weakref.WeakValueDictionary[tuple[Any, ...], Structure] = weakref.WeakValueDictionary()
_LOCK = threading.RLock()


def _shared(parts: tuple[Any, ...]) -> Structure:
    """The one structure of these parts. Parts that are structures hash in constant time, however much they hold."""
    with _LOCK:
        found = _KNOWN.get(parts)
        if found is None:
            found = _KNOWN[parts] = Structure(parts)
        return found


class _Itself:
    """A part that equals nothing but itself."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other: object):
        return isinstance(other, _Itself) and self.value is other.value


def named(module: str | None, qualname: str) -> Any:
    """What a module holds under a name, or None."""
    found: Any = sys.modules.get(module or "")
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def is_importable(value: Any) -> bool:
    """Whether a function or another object can be imported by its own name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return isinstance(name, str) and named(module, name) is value


def contents(function: types.FunctionType) -> dict[str, Any]:
    """The values that a closure sees, by name, less those that are not assigned yet."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The global names, and the attributes, that code and the functions in it use."""
    inner = (name for one in code.co_consts if isinstance(one, types.CodeType) for name in _names(one))
    return tuple(sorted({*code.co_names, *inner}))


class ByValue(tuple):
    """A tuple that equals another of its type with an equal structure, which it keeps, since it never changes."""

    def __hash__(self):
        return hash(structure(self))

    def __eq__(self, other: object):
        return self is other or (type(other) is type(self) and structure(self) is structure(other))

    def __ne__(self, other: object):
        return not self == other

    def __copy__(self):
        return self

    def __deepcopy__(self, memo: dict[int, Any]):
        return self


def _array_parts(value: Any) -> tuple[Any, ...]:
    """The parts of an array: its type, dtype, shape and bytes; of one of JAX, also how it is placed and promoted."""
    if isinstance(value, jax.Array):
        if not value.is_fully_addressable or value.is_deleted():
            return (_Itself(value),)
        kind: tuple[Any, ...] = (jax.Array, value.dtype, value.shape, value.aval.weak_type, value.sharding)
        with jax.ensure_compile_time_eval():
            typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
            known = np.asarray(jax.random.key_data(value) if typed else value)
    else:
        kind, known = (type(value), value.dtype, value.shape), np.asarray(value)
    if known.dtype.hasobject:
        return (_Itself(value),)
    return (*kind, hashlib.sha256(known.tobytes()).digest())


class _Reader:
    """Reads the structure of one value, which may refer to itself."""

    def __init__(self):
        self.open: dict[int, int] = {}  # the depth of what is being read, by id
        self.done: dict[int, tuple[Structure, Any]] = {}  # with the value, so that no id is used twice
        self.lowest = 0  # the least depth that what is being read refers to

    def read(self, value: Any) -> Structure:
        if isinstance(value, ByValue) and (kept := vars(value).get("_structure")):
            return kept
        key, depth = id(value), len(self.open)
        if key in self.done:
            return self.done[key][0]
        if key in self.open:
            self.lowest = min(self.lowest, self.open[key])
            return _shared(("above", depth - self.open[key]))
        above, self.lowest = self.lowest, depth
        self.open[key] = depth
        try:
            found = _shared(self.parts(value))
        finally:
            del self.open[key]
        if self.lowest >= depth:  # otherwise it means something else elsewhere
            self.done[key] = found, value
            if isinstance(value, ByValue):
                vars(value)["_structure"] = found
        self.lowest = min(above, self.lowest)
        return found

    def parts(self, value: Any) -> tuple[Any, ...]:
        kind = type(value)
        if isinstance(value, types.FunctionType):
            return self.function(value)
        if isinstance(value, types.MethodType):
            return kind, self.read(value.__func__), self.read(value.__self__)
        if isinstance(value, functools.partial):
            return kind, self.read(value.func), *map(self.read, value.args), self.read(value.keywords)
        if isinstance(value, dict):
            return kind, *((self.read(key), self.read(one)) for key, one in value.items())
        if isinstance(value, tuple | list):
            return kind, *map(self.read, value)
        if isinstance(value, set | frozenset):
            return kind, frozenset(map(self.read, value))
        if isinstance(value, jax.core.Tracer):
            return (_Itself(value),)
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            return _array_parts(value)
        if isinstance(value, float | complex):
            return kind, repr(value)  # 0.0 equals -0.0, and NaN does not equal itself
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and cast(Any, kind).__dataclass_params__.eq:
            return kind, *(self.read(getattr(value, field.name)) for field in dataclasses.fields(value))
        try:
            hash(value)
        except TypeError:
            return (_Itself(value),)
        return kind, value

    def function(self, function: types.FunctionType) -> tuple[Any, ...]:
        if is_importable(function):
            return (_Itself(function),)
        seen = tuple((name, self.read(value)) for name, value in contents(function).items())
        # A global that was assigned another value makes another function: jit would not trace an equal one again.
        names = [name for name in _names(function.__code__) if name in function.__globals__]
        used = tuple((name, self.read_global(function.__globals__[name])) for name in names)
        own = (function.__defaults__, function.__kwdefaults__, vars(function) or None)
        home = function.__globals__.get("__name__")
        return types.FunctionType, function.__code__, home, seen, used, *map(self.read, own)

    def read_global(self, value: Any) -> Structure:
        # A table that a module fills is that table, whatever it holds now.
        return _shared((_Itself(value),)) if isinstance(value, list | dict | set) else self.read(value)


def structure(value: Any) -> Structure:
    """The structure of a value; two values are equal if and only if theirs are the same object.

    Functions that can be imported by name equal themselves alone. Others are equal where they have the same code and
    module, and equal defaults, closure contents and globals. Tuples, lists, dicts, sets, partials, bound methods and
    dataclasses are compared by their type and contents, arrays by dtype, shape and bytes, and everything else by its
    own `==`, or, if it cannot be hashed, by identity. Values may refer to themselves.
    """
    return _Reader().read(value)
