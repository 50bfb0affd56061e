"""Which runs are compared: groups over seeds, each method at its own best learning rate, paired differences.

Runs that agree in all flags but --seed and --learning_rate are one method, and its learning rates are a grid. Its rate
is the one whose mean validation score is best, so that no method is judged at a rate that suits another.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from experiments.harness import plots
from experiments.harness.ledger import Missing, measured
from experiments.harness.page import Mean
from seqjax.train.run import Run

RATE = "learning_rate"


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
    """Returns the runs that agree in the flags `by` (default: all that vary but the seed), under a label of them."""
    by = varying(runs) if by is None else by
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
    """Runs that differ in --learning_rate and --seed only.

    Attributes:
        label: its flags that differ from those of other methods.
        flags: the same, by name.
        grid: by learning rate, ascending: the finished runs.
        failed: by learning rate: how many runs have no result.
    """

    label: str
    flags: dict[str, Any]
    grid: dict[float, list[Run]]
    failed: dict[float, int]

    @cached_property
    def scores(self) -> dict[float, list[float]]:
        """By learning rate the validation score of each finished run; lower is better."""
        return {rate: [validation(run) for run in runs] for rate, runs in self.grid.items()}

    @cached_property
    def rate(self) -> float:
        """The rate with the lowest mean validation score, among those at which the fewest runs failed."""

        def order(rate: float) -> tuple[bool, int, float]:
            scores = self.scores[rate]
            return not scores, self.failed[rate], math.fsum(scores) / max(1, len(scores))

        return min(self.grid, key=order)

    @property
    def runs(self) -> list[Run]:
        """The finished runs at that rate."""
        return self.grid[self.rate]

    @property
    def edge(self) -> str | None:
        """ "lowest" or "highest", where the rate is at that end of the grid, else None: a better one may lie beyond."""
        rates = list(self.grid)
        if len(rates) < 2 or not self.runs:
            return None
        return {rates[0]: "lowest", rates[-1]: "highest"}.get(self.rate)


def validation(run: Run) -> float:
    """Returns the best value of the score that the run monitored on the validation part; lower is better."""
    result = run.result()
    return result[f"validation_{result['monitor']}"]


def methods(runs: Sequence[Run], missing: Sequence[Missing] = ()) -> list[Method]:
    """Returns the methods of a sweep over --learning_rate; none where only one rate was tried, or nothing monitored."""
    if not runs or not all("monitor" in run.result() for run in runs):
        return []
    # Runs of one sweep differ in nothing but what is swept.
    absent = [{**runs[0].flags, **one.flags} for one in missing]
    flags = [run.flags for run in runs] + absent
    if RATE not in varying_flags(flags):
        return []
    by = varying_flags(flags, ("seed", RATE))
    found: dict[str, Method] = {}

    def enter(given: Mapping[str, Any], run: Run | None) -> None:
        name = label(given, by)
        method = found.setdefault(name, Method(name, {one: given.get(one) for one in by}, {}, {}))
        method.grid.setdefault(given[RATE], []).extend([run] if run else [])
        method.failed[given[RATE]] = method.failed.get(given[RATE], 0) + (run is None)

    for run in runs:
        enter(run.flags, run)
    for given in absent:
        enter(given, None)
    return [dataclasses.replace(one, grid=dict(sorted(one.grid.items()))) for one in found.values()]


def wider(found: Sequence[Method]) -> list[float]:
    """Returns the learning rates to add to the grid: one step beyond each end at which a method has its best rate.

    A step is the ratio of the last two rates at that end.
    """
    added = set()
    for method in found:
        rates = list(method.grid)
        if method.edge == "lowest":
            added.add(_rounded(rates[0] ** 2 / rates[1]))
        elif method.edge == "highest":
            added.add(_rounded(rates[-1] ** 2 / rates[-2]))
    return sorted(added - {rate for method in found for rate in method.grid})


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
