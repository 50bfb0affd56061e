"""Which runs are compared: groups over seeds, each method at its own best learning rate, paired differences.

Runs that agree in all flags but --seed and those that are tuned are one method. Tuned are --learning_rate, whose values
are a grid, and the flags of a search. A method is judged at the point, the values of its tuned flags, whose mean
validation score is best, so that none is judged at a learning rate that suits another.
"""

import dataclasses
import itertools
import math
import types
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from experiments.harness import plots
from experiments.harness.ledger import Missing, measured
from experiments.harness.page import Mean
from experiments.harness.search import Range
from seqjax.train.run import Run

RATE = "learning_rate"
# The values of the tuned flags.
Point = tuple[float, ...]


def mean(values: Sequence[float]) -> Mean:
    """Returns the mean of runs that differ only in the seed; with its 95 % interval for three runs or more."""
    return Mean(*plots.interval(values))


def varying(runs: Sequence[Run], ignore: Sequence[str] = ("seed",)) -> list[str]:
    """Returns the flags that differ between the runs, `ignore` left out."""
    return varying_flags([run.flags for run in runs], ignore)


def varying_flags(flags: Sequence[Mapping[str, Any]], ignore: Sequence[str] = ("seed",)) -> list[str]:
    """Returns the names of flags that differ, `ignore` left out."""
    names = dict.fromkeys(name for given in flags for name in given)
    return [n for n in names if n not in ignore and len({repr(given.get(n)) for given in flags}) > 1]


def label(flags: Mapping[str, Any], by: Sequence[str]) -> str:
    """Returns the name of a group: its values of the flags `by`."""
    return ", ".join(f"{name}={flags.get(name)}" for name in by) or "all runs"


def groups(runs: Sequence[Run], by: Sequence[str] | None = None) -> dict[str, list[Run]]:
    """Returns the runs that agree in the flags `by`, under a label of them.

    By default these are all that vary but the seed, and but the learning rate where the others determine it: where each
    method is at its own best rate.
    """
    if by is None:
        by = varying(runs)
        others, rates = [name for name in by if name != RATE], {}
        for run in runs:
            rates.setdefault(label(run.flags, others), set()).add(run.flags.get(RATE))
        if all(len(found) == 1 for found in rates.values()):
            by = others
    result: dict[str, list[Run]] = {}
    for run in runs:
        result.setdefault(label(run.flags, by), []).append(run)
    return result


def paired(runs: Sequence[Run], reference: Sequence[Run], metrics: Sequence[str]) -> dict[str, list[float]]:
    """Returns for each metric the difference of a result to that of the reference run of the same seed, for each seed
    of both that has it.
    """
    others = {run.flags["seed"]: measured(run) for run in reference}
    pairs = [(measured(run), others[run.flags["seed"]]) for run in runs if run.flags["seed"] in others]
    return {
        name: [mine[name] - other[name] for mine, other in pairs if name in mine and name in other] for name in metrics
    }


def best_of(scores: Sequence[float], draws: int) -> float:
    """Returns the expected lowest of `draws` scores, drawn from the given ones with replacement.

    With v_1 <= ... <= v_n it is sum_i v_i (((n - i + 1) / n)^draws - ((n - i) / n)^draws) (Dodge et al. 2019,
    arXiv 1909.03004).
    """
    n = len(scores)
    worse = [(i / n) ** draws for i in range(n, -1, -1)]
    return math.fsum(
        score * (more - less) for score, (more, less) in zip(sorted(scores), itertools.pairwise(worse), strict=True)
    )


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float]:
    """Returns Spearman's rank correlation, and its 95 % interval; nan where there are fewer than four pairs.

    The interval is `tanh(atanh(r) +- 1.96 sqrt((1 + r^2 / 2) / (n - 3)))` (Bonett & Wright 2000).
    """
    from scipy.stats import rankdata

    n = len(xs)
    if n < 4 or len(set(xs)) == 1 or len(set(ys)) == 1:
        return math.nan, math.nan, math.nan
    r = float(np.corrcoef(rankdata(xs), rankdata(ys))[0, 1])
    if abs(r) > 1 - 1e-9:
        return r, r, r
    half = 1.959964 * math.sqrt((1 + r**2 / 2) / (n - 3))
    return r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


@dataclasses.dataclass(frozen=True)
class Method:
    """Runs that differ in tuned flags and --seed only.

    Attributes:
        label: its flags that differ from those of other methods.
        flags: the same, by name.
        tuned: the names of the tuned flags.
        grid: by point, a value for each tuned flag, ascending: the finished runs.
        failed: by point: how many runs have no result.
        ranges: of a search, by tuned flag.
    """

    label: str
    flags: dict[str, Any]
    tuned: tuple[str, ...]
    grid: dict[Point, list[Run]]
    failed: dict[Point, int]
    ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)

    @cached_property
    def scores(self) -> dict[Point, list[float]]:
        """By point the validation score of each finished run; lower is better."""
        return {point: [validation(run) for run in runs] for point, runs in self.grid.items()}

    @cached_property
    def point(self) -> Point:
        """The point with the lowest mean validation score, among those at which the fewest runs failed."""

        def order(point: Point) -> tuple[bool, int, float]:
            scores = self.scores[point]
            return not scores, self.failed[point], math.fsum(scores) / max(1, len(scores))

        return min(self.grid, key=order)

    @property
    def runs(self) -> list[Run]:
        """The finished runs at that point."""
        return self.grid[self.point]

    @property
    def edges(self) -> dict[str, str]:
        """By tuned flag "lowest" or "highest", where the point is at that end of its grid or range: a better value may
        lie beyond.
        """
        if not self.runs:
            return {}
        found = {}
        for index, (name, value) in enumerate(zip(self.tuned, self.point, strict=True)):
            if name in self.ranges:
                found[name] = self.ranges[name].near_end(value)
            elif len(values := sorted({point[index] for point in self.grid})) > 1:
                found[name] = {values[0]: "lowest", values[-1]: "highest"}.get(value)
        return {name: end for name, end in found.items() if end}


def validation(run: Run) -> float:
    """Returns the best value of the score that the run monitored on the validation part; lower is better."""
    result = run.result()
    return result[f"validation_{result['monitor']}"]


def methods(
    runs: Sequence[Run], missing: Sequence[Missing] = (), ranges: Mapping[str, Range] = types.MappingProxyType({})
) -> list[Method]:
    """Returns the methods of a sweep; none where no flag was tuned, or nothing monitored.

    Args:
        runs: the finished runs.
        missing: the others.
        ranges: of the flags that were searched.
    """
    if not runs or not all("monitor" in run.result() for run in runs):
        return []
    # Runs of one sweep differ in nothing but what is swept.
    absent = [{**runs[0].flags, **one.flags} for one in missing]
    flags = [run.flags for run in runs] + absent
    tuned = (*ranges, *({RATE} & {*varying_flags(flags)} - {*ranges}))
    if not tuned:
        return []
    by = varying_flags(flags, ("seed", *tuned))
    found: dict[str, Method] = {}

    def enter(given: Mapping[str, Any], run: Run | None) -> None:
        name = label(given, by)
        point = tuple(given[one] for one in tuned)
        method = found.setdefault(name, Method(name, {one: given.get(one) for one in by}, tuned, {}, {}, ranges))
        method.grid.setdefault(point, []).extend([run] if run else [])
        method.failed[point] = method.failed.get(point, 0) + (run is None)

    for run in runs:
        enter(run.flags, run)
    for given in absent:
        enter(given, None)
    return [dataclasses.replace(one, grid=dict(sorted(one.grid.items()))) for one in found.values()]


def wider(found: Sequence[Method]) -> list[float]:
    """Returns the learning rates to add to the grid: one step beyond each end at which a method has its best rate.

    A step is the ratio of the last two rates at that end.
    """
    added, tried = set(), set()
    for method in found:
        index = method.tuned.index(RATE)
        rates = sorted({point[index] for point in method.grid})
        tried.update(rates)
        end = method.edges.get(RATE)
        if end == "lowest":
            added.add(_rounded(rates[0] ** 2 / rates[1]))
        elif end == "highest":
            added.add(_rounded(rates[-1] ** 2 / rates[-2]))
    return sorted(added - tried)


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
