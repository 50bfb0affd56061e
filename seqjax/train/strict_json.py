"""Standard JSON, which has no NaN and no infinity: they are written as strings and read back as numbers."""

import json
import math
from typing import Any

__all__ = ["decode", "encode"]

_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}


def encode(content: Any, indent: int | None = None) -> str:
    """Numbers, strings, lists, dicts and arrays as JSON; nan, inf and -inf as "NaN", "Infinity" and "-Infinity".

    Raises:
      TypeError: for anything else.
    """
    return json.dumps(_written(content), indent=indent, allow_nan=False)


def decode(text: str) -> Any:
    """The inverse of `encode`.

    Raises:
      ValueError: for text that is not JSON, or nested too deeply for Python.
    """
    try:
        return _read(json.loads(text))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _written(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_written(one) for one in value]
    if hasattr(value, "tolist"):
        return _written(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return _NAMES.get(value, "NaN")
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"expected a number, a string, a list, a dict or an array, got {type(value).__name__}")


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _read(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_read(one) for one in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value
