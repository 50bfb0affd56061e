"""The differences of two descriptions of a run, in words."""

from collections.abc import Mapping
from typing import Any

from seqjax.train.strict_json import encode

__all__ = ["differences", "listed"]

MISSING = "(no such name)"
MOST = 5  # differences named in one message


def listed(entries: list[str]) -> str:
    """The first entries in one line, and the number of the others."""
    more = len(entries) - MOST
    return "; ".join(entries[:MOST]) + (f"; and {more} more" if more > 0 else "")


def differences(given: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One entry for each name whose values differ as JSON: "name: given 1, found 2"."""
    return [
        f"{name}: given {given.get(name, MISSING)!r}, found {found.get(name, MISSING)!r}"
        for name in sorted(given.keys() | found.keys())
        if encode(given.get(name, MISSING)) != encode(found.get(name, MISSING))
    ]
