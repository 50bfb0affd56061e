"""Pickles of functions, closures too: their code and what they see, where they cannot be imported by name."""

import importlib
import importlib.util
import io
import marshal
import pickle
import sys
import types
from typing import Any

from seqjax.identity.calls import Call
from seqjax.identity.structures import ByValue, contents, is_importable


def _repeat(*call: Any) -> Any:
    return Call(*call).repeat()


class _Pickler(pickle.Pickler):
    """Pickles functions by their code and what they see, where they cannot be imported by name."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ByValue):
            call = vars(obj).get("_call")
            return (_repeat, tuple(call)) if call else (type(obj), tuple(obj))
        if isinstance(obj, types.ModuleType):
            return importlib.import_module, (obj.__name__,)
        if isinstance(obj, type) or not callable(obj):
            return NotImplemented
        if is_importable(obj):
            return obj.__qualname__
        if not isinstance(obj, types.FunctionType):
            return NotImplemented
        # Its own name may be that of another function, which it wraps.
        home, name = obj.__globals__["__name__"], obj.__code__.co_qualname
        names = {"__module__": obj.__module__, "__name__": obj.__name__, "__qualname__": obj.__qualname__}
        state = contents(obj), obj.__defaults__, obj.__kwdefaults__, vars(obj) | names
        made = home, name, importlib.util.MAGIC_NUMBER, marshal.dumps(obj.__code__)
        return _function, made, state, None, None, _complete


def _function(module: str, name: str, magic: bytes, code: bytes) -> types.FunctionType:
    """A function of pickled code, which sees nothing yet: it may see itself."""
    if magic != importlib.util.MAGIC_NUMBER:
        raise pickle.UnpicklingError(
            f"{name} was pickled by another version of Python than {sys.version.split()[0]}: pickle it with this "
            "one, or keep the params alone and make the cell by its factory"
        )
    read: types.CodeType = marshal.loads(code)
    cells = tuple(types.CellType() for _ in read.co_freevars)
    return types.FunctionType(read, vars(importlib.import_module(module)), read.co_name, None, cells)


def _complete(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    contents, function.__defaults__, function.__kwdefaults__, attributes = state
    for name, value in attributes.items():
        setattr(function, name, value)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name in contents:
            cell.cell_contents = contents[name]


def dump(value: ByValue) -> bytes:
    """A pickle of a value; PicklingError for what its functions see that cannot be pickled."""
    file = io.BytesIO()
    try:
        _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception as error:
        raise pickle.PicklingError(
            f"cannot pickle {value!r}: {error}; all that its functions see must be picklable or importable by name"
        ) from error
    return file.getvalue()


def load(data: bytes) -> Any:
    """The value of a pickle; UnpicklingError for one with functions that another version of Python wrote."""
    return pickle.loads(data)
