"""The sections of a report that compare methods: each at its own best learning rate, and seed by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.harness import comparison
from experiments.harness.comparison import Method, mean
from experiments.harness.ledger import measured
from experiments.harness.page import Section
from experiments.harness.plots import COLORS, FEWEST_RUNS, curve, interval_rows, separate
from seqjax.train.run import Run

# A best-of-N curve of more draws is flat.
MOST_DRAWS = 20


def sections(methods: Sequence[Method]) -> list[Section]:
    """Returns the results of each method at its best learning rate, and how much they depend on the rate."""
    if not methods:
        return []
    return [_at_best(methods), _sensitivity(methods)]


def scores(results: Sequence[Mapping[str, float]]) -> list[str]:
    """Returns the names of the measurements by which methods are compared: test scores, then validation scores."""
    names = dict.fromkeys(name for result in results for name in result)
    return [name for kind in ("test_", "validation_") for name in names if name.startswith(kind)]


def _at_best(methods: Sequence[Method]) -> Section:
    results = [[measured(run) for run in method.runs] for method in methods]
    columns, tuned = scores([result for found in results for result in found]), methods[0].tuned
    searched = bool(methods[0].ranges)
    what = "points" if searched else "rates"
    rows: list[list[Any]] = [[*methods[0].flags, *tuned, "runs", f"failed, all {what}", *columns]]
    for method, found in zip(methods, results, strict=True):
        values = [[result[name] for result in found if name in result] for name in columns]
        failed, tried = sum(method.failed.values()), sum(map(len, method.grid.values()))
        best = zip(tuned, method.point, strict=True) if method.runs else ((name, None) for name in tuned)
        point = [_with_end(value, method.edges.get(name)) for name, value in best]
        row = [*method.flags.values(), *point, len(method.runs), f"{failed} of {failed + tried}"]
        rows.append([*row, *(mean(one) if one else None for one in values)])
    tried = sorted({point for method in methods for point in method.grid})
    spent = sum(_seconds(run) for method in methods for members in method.grid.values() for run in members)
    if searched:
        ranges = ", ".join(f"{name} in {one}" for name, one in methods[0].ranges.items())
        choice = f"Each method is shown at the one of {len(tried)} points ({ranges})"
    else:
        choice = f"The learning rate of each method is the one of {', '.join(f'{rate:g}' for (rate,) in tried)}"
    text = (
        f"{choice} with the lowest mean validation score over the seeds; the figures and tables of the experiment, "
        f"below, show the runs at that {'point' if searched else 'rate'} alone. All runs together took "
        f"{spent / 60:.1f} minutes of training."
    )
    where = "within a tenth of an end of the range" if searched else "at an end of the grid"
    cure = "widen the range" if searched else "--widen=1 extends the grid"
    for name in tuned:
        if edges := sum(name in method.edges for method in methods):
            value = name if searched else "rate"
            of = f"{edges} of {len(methods)} methods"
            text += f"\n\nThe best {value} of {of} is {where}; a better one may lie beyond: {cure}."
    return Section("At the best point" if searched else "At the best learning rate", text, table=rows)


def _with_end(value: float | None, end: str | None) -> str | None:
    return None if value is None else f"{value:g}{f' ({end})' if end else ''}"


def _seconds(run: Run) -> float:
    """The share of a run in the training time of its lanes."""
    result = run.result()
    return result.get("wall_seconds", 0.0) / result.get("lanes", 1)


def _sensitivity(methods: Sequence[Method]) -> Section:
    tuned, searched = methods[0].tuned, bool(methods[0].ranges)
    figures, (*by_value, by_draws) = separate(*(["rate"] if tuned == (comparison.RATE,) else tuned), "best-of")
    score = next(run.result()["monitor"] for method in methods for run in method.runs)
    for index, method in enumerate(methods):
        grid = {point: found for point, found in method.scores.items() if found}
        if not grid:
            continue
        for place, axis in enumerate(by_value):
            values = [point[place] for point in grid]
            if searched:
                means = [math.fsum(found) / len(found) for found in grid.values()]
                axis.plot(values, means, "osD^"[index // len(COLORS) % 4], color=COLORS[index % len(COLORS)],
                          markersize=4, label=method.label)  # fmt: skip
            else:
                curve(axis, method.label, values, list(grid.values()), index)
        everything = [value for found in grid.values() for value in found]
        draws = list(range(1, min(MOST_DRAWS, len(everything)) + 1))
        curve(by_draws, method.label, draws, [[comparison.best_of(everything, count)] for count in draws], index)
    for name, axis in zip(tuned, by_value, strict=True):
        log = methods[0].ranges[name].log if name in methods[0].ranges else name == comparison.RATE
        axis.set(xlabel=name.replace("_", " "), ylabel=f"best validation {score}", xscale="log" if log else "linear")
    by_draws.set(xlabel="runs tried", ylabel=f"expected best validation {score}")
    first = "at each point, a mean over the seeds, against each searched flag" if searched else "at each learning rate"
    text = (
        f"First: the best validation score {first}. Last: the best to be expected of so many runs, at "
        f"{'points' if searched else 'rates'} and seeds drawn from those of the sweep (Dodge et al. 2019, arXiv "
        "1909.03004); runs without a result are left out."
    )
    return Section("Search" if searched else "Learning-rate sensitivity", text, figures)


def differences(runs: Sequence[Run], tuned: Sequence[str] = (comparison.RATE,)) -> list[Section]:
    """Returns for each flag that varies how runs differ from those that have its first value, seed by seed.

    All other flags but the `tuned` ones agree, so each row shows what this flag does in otherwise equal conditions. A
    flag whose rows share fewer than `FEWEST_RUNS` seeds has no section.
    """
    by, columns = comparison.varying(runs, ("seed", *tuned)), scores([measured(run) for run in runs])
    found = comparison.groups(runs, by)
    sections = []
    for name in by:
        first, rows = runs[0].flags[name], {}
        for label, members in found.items():
            reference = found.get(comparison.label({**members[0].flags, name: first}, by), [])
            if members[0].flags[name] != first:
                rows[label] = comparison.paired(members, reference, columns)
        if max((len(values) for row in rows.values() for values in row.values()), default=0) >= FEWEST_RUNS:
            sections.append(_differences(name, first, columns, rows))
    return sections


def _differences(name: str, first: Any, columns: Sequence[str], rows: Mapping[str, dict[str, list[float]]]) -> Section:
    shown = [column for column in columns if any(row[column] for row in rows.values())]  # tasks may have their own
    figures, [axes] = separate("paired")
    interval_rows(axes, {label: row[shown[0]] for label, row in rows.items() if row[shown[0]]})
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_xlabel(f"{shown[0]}, difference to {name}={first}")
    table: list[list[Any]] = [["", "pairs", *shown]]
    for label, row in rows.items():
        table.append([label, max(map(len, row.values())), *(mean(row[one]) if row[one] else None for one in shown)])
    text = (
        f"Each run less the run with {name}={first} and the same seed, all else equal but the learning rate; mean and "
        "95 % interval over the seeds. What the seed does to both cancels. Where the interval does not contain 0, "
        f"{name} makes a difference."
    )
    return Section(f"Differences by {name}", text, figures, table)
