"""Lines and numbers as text files write them: what is anything else raises, and names its place."""

import math
import re
from collections.abc import Sequence

__all__ = ["lines", "number", "numbers"]

_END = re.compile(r"\r\n|\n|\r")
_PLAIN = re.compile(r"[-+.0-9eE \t]*")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def lines(text: str) -> list[str]:
    r"""The lines of a text, which end in \n, \r\n or \r, as those of `open`; the last one need not end.

    `str.splitlines` also ends lines at form feeds, at NEL and at U+2028, which stand inside of lines in real files.

    Example:
      >>> from seqjax.data import fields
      >>> fields.lines("to be\r\nor\fnot\n")
      ['to be', 'or\x0cnot']
    """
    found = _END.split(text)
    return found if found[-1] else found[:-1]


def number(field: str, place: str) -> float:
    """The number that a field says, in ASCII digits: `12`, `-0.5`, `.5`, `1e-3`; spaces and tabs around it may stand.

    `float` also reads 1_000, digits of other scripts, nan and infinity, and reads 1e400 as infinity.

    Args:
      field: the text.
      place: what an error names first, "data.csv line 3".

    Raises:
      ValueError: anything else, or a number that float64 does not hold.
    """
    field = field.strip(" \t")
    if not _NUMBER.fullmatch(field):
        raise ValueError(f"{place}: {field[:40]!r} is no number")
    if math.isinf(value := float(field)):
        raise ValueError(f"{place}: {field[:40]} is too large for a number of 64 bits")
    return value


def numbers(fields: Sequence[str], place: str) -> list[float]:
    """`number` of each field, in less time where there are many."""
    # Of what float reads, only numbers as above are made of these characters alone.
    if _PLAIN.fullmatch("".join(fields)):
        try:
            values = list(map(float, fields))
        except ValueError:
            values = [math.inf]
        if all(map(math.isfinite, values)):
            return values
    return [number(field, place) for field in fields]
