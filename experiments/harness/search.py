"""Ranges of a sweep: `learning_rate=1e-4..1e-1:log;dropout=0..0.6` with --points points of all ranges together.

    a..b        uniform between a and b, the ends included; integers where the flag is an integer
    a..b:log    uniform in the logarithm, for positive ends

The first N points are the same for any larger N, so that a search can be continued.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl.flags import FlagValues

from experiments.harness.texts import shortened

# How the points are drawn. halton: evenly, Halton's sequence with a random shift; random: independently.
SAMPLERS = ("halton", "random")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


class Search(NamedTuple):
    """How the ranges of a sweep are searched.

    Attributes:
        points: that are drawn of all ranges together; 0 without ranges.
        sampler: one of SAMPLERS.
    """

    points: int = 0
    sampler: str = SAMPLERS[0]


NO_SEARCH = Search()


class Range(NamedTuple):
    """Values that a flag may have in a search.

    Attributes:
        low, high: the ends, both included.
        log: whether values are uniform in their logarithm.
        integer: whether values are integers.
    """

    low: float
    high: float
    log: bool
    integer: bool

    def __str__(self) -> str:
        """The text that `parse` takes."""
        ends = (str(int(end) if self.integer else end) for end in (self.low, self.high))
        return "..".join(ends) + (":log" if self.log else "")

    def at(self, quantile: float) -> float | int:
        """The value at a quantile in [0, 1), rounded to four significant digits, or to an integer."""
        # An integer has an equal share of the range: from half below it to half above.
        low, high = (self.low - 0.5, self.high + 0.5) if self.integer else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + quantile * (math.log(high) - math.log(low)))
        else:
            value = low + quantile * (high - low)
        if self.integer:
            return min(max(round(value), int(self.low)), int(self.high))
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def near_end(self, value: float) -> str | None:
        """ "lowest" or "highest" where the value is within a tenth of that end of the range, else None."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        share = (value - low) / (high - low)
        return "lowest" if share < 0.1 else "highest" if share > 0.9 else None


def parse(name: str, text: str, flags: FlagValues) -> Range | None:
    """Returns the range that a text stands for; None for a text that is none.

    Raises:
        ValueError: a flag that is no number, ends in the wrong order, of which one is infinite, no integer or refused
            by the flag, or that are not positive on a logarithmic scale.
    """
    found = re.fullmatch(rf"({_NUMBER})\.\.({_NUMBER})(:log)?", text)
    if not found:
        return None
    about = f"sweep axis {name}: the range {shortened(text)}"
    kind = flags[name].flag_type()
    if kind not in ("int", "float"):
        raise ValueError(f"{about} is of numbers, and --{name} is a {kind}; list its values")
    number: Any = flags[name].parser.parse
    try:
        low, high = (number(end) for end in found.groups()[:2])
    except ValueError as error:
        raise ValueError(f"{about}: {shortened(str(error), 200)}") from None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{about}: expected finite ends")
    if low >= high:
        raise ValueError(f"{about}: expected its lower end first")
    if found[3] and low <= 0:
        raise ValueError(f"{about}: a logarithmic scale needs positive ends")
    return Range(low, high, bool(found[3]), kind == "int")


def written(axes: Mapping[str, Sequence[Any]], flags: FlagValues) -> dict[str, Range]:
    """Returns the ranges among the axes of a sweep.json."""
    texts = {name: values[0] for name, values in axes.items() if len(values) == 1 and isinstance(values[0], str)}
    found = {name: parse(name, text, flags) for name, text in texts.items() if name in flags}
    return {name: one for name, one in found.items() if one}


def points(ranges: Sequence[Range], count: int, sampler: str) -> list[tuple[Any, ...]]:
    """Returns `count` different points of the ranges together, the same for every call.

    Args:
        ranges: one for each coordinate.
        count: number of points.
        sampler: one of SAMPLERS.

    Raises:
        ValueError: the ranges, of integers, have fewer points than this.
    """
    if all(one.integer for one in ranges):
        there = math.prod(int(one.high - one.low) + 1 for one in ranges)
        if there < count:
            raise ValueError(f"--points={count}: the ranges {', '.join(map(str, ranges))} have {there} points")
    found: dict[tuple[Any, ...], None] = {}
    drawn = count
    while len(found) < count:
        quantiles = _quantiles(len(ranges), drawn, sampler)
        found = dict.fromkeys(tuple(one.at(q) for one, q in zip(ranges, row, strict=True)) for row in quantiles)
        drawn *= 2
    return list(found)[:count]


def _quantiles(dimensions: int, count: int, sampler: str) -> np.ndarray:
    """Points of the unit cube, [count, dimensions]; the first ones are the same for any count."""
    rng = np.random.default_rng(0)
    if sampler == "random":
        return rng.random((count, dimensions))
    from scipy.stats import qmc

    return (qmc.Halton(dimensions, scramble=False).random(count) + rng.random(dimensions)) % 1
