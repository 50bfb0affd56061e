"""Lines and numbers of text files; anything else raises an error that names its place."""

import math
import re
from collections.abc import Sequence

__all__ = ["lines", "number", "numbers"]

_END = re.compile(r"\r\n|\n|\r")
_PLAIN = re.compile(r"[-+.0-9eE \t]*")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def lines(text: str) -> list[str]:
    r"""The lines of a text, ended by \n, \r\n or \r, as in `open`; the last line end is optional.

    `str.splitlines` also splits at form feeds, NEL and U+2028, which occur within lines of real files.

    Example:
      >>> from seqjax.data import fields
      >>> fields.lines("to be\r\nor\fnot\n")
      ['to be', 'or\x0cnot']
    """
    found = _END.split(text)
    return found if found[-1] else found[:-1]


def number(field: str, place: str) -> float:
    """The number in a field, in ASCII digits: `12`, `-0.5`, `.5`, `1e-3`, optionally within spaces and tabs.

    `float` would also accept 1_000, digits of other scripts, nan and infinity, and reads 1e400 as infinity.

    Args:
      field: the text.
      place: the place for errors, such as "data.csv line 3".

    Raises:
      ValueError: anything else, or a number too large for float64.
    """
    field = field.strip(" \t")
    if not _NUMBER.fullmatch(field):
        raise ValueError(f"{place}: {field[:40]!r} is not a number")
    if math.isinf(value := float(field)):
        raise ValueError(f"{place}: {field[:40]} is too large for float64")
    return value


def numbers(fields: Sequence[str], place: str) -> list[float]:
    """`number` of each field, but faster for many."""
    # With these characters alone, float accepts the same numbers as above.
    if _PLAIN.fullmatch("".join(fields)):
        try:
            values = list(map(float, fields))
        except ValueError:
            values = [math.inf]
        if all(map(math.isfinite, values)):
            return values
    return [number(field, place) for field in fields]
