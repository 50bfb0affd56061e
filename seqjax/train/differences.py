"""How two descriptions of a run differ, in words."""

from collections.abc import Mapping
from typing import Any

from seqjax.train.strict_json import encode

MISSING = "(no such name)"


def differences(given: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One entry for each name whose values differ as JSON: "name: given 1, found 2"."""
    return [
        f"{name}: given {given.get(name, MISSING)!r}, found {found.get(name, MISSING)!r}"
        for name in sorted(given.keys() | found.keys())
        if encode(given.get(name, MISSING)) != encode(found.get(name, MISSING))
    ]
