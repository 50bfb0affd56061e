"""The sections of a report that compare methods: each at its own best learning rate, and seed by seed."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.harness import comparison
from experiments.harness.comparison import Method, mean
from experiments.harness.ledger import measured
from experiments.harness.page import Section
from experiments.harness.plots import FEWEST_RUNS, curve, interval_rows, separate
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
    columns = scores([result for found in results for result in found])
    rows: list[list[Any]] = [[*methods[0].flags, comparison.RATE, "runs", "failed, all rates", *columns]]
    for method, found in zip(methods, results, strict=True):
        values = [[result[name] for result in found if name in result] for name in columns]
        failed, tried = sum(method.failed.values()), sum(map(len, method.grid.values()))
        edge = f" ({method.edge})" if method.edge else ""
        rate = f"{method.rate:g}{edge}" if method.runs else None
        row = [*method.flags.values(), rate, len(method.runs), f"{failed} of {failed + tried}"]
        rows.append([*row, *(mean(one) if one else None for one in values)])
    rates = sorted({rate for method in methods for rate in method.grid})
    spent = sum(_seconds(run) for method in methods for members in method.grid.values() for run in members)
    text = (
        f"The learning rate of each method is the one of {', '.join(f'{rate:g}' for rate in rates)} with the lowest "
        "mean validation score over the seeds; the figures and tables of the experiment, below, show the runs at that "
        f"rate alone. All runs together took {spent / 60:.1f} minutes of training."
    )
    edges = [method for method in methods if method.edge]
    if edges:
        text += (
            f"\n\nThe best rate of {len(edges)} of {len(methods)} methods is at an end of the grid; a better one may "
            "lie beyond: --widen=1 extends the grid."
        )
    return Section("At the best learning rate", text, table=rows)


def _seconds(run: Run) -> float:
    """The share of a run in the training time of its lanes."""
    result = run.result()
    return result.get("wall_seconds", 0.0) / result.get("lanes", 1)


def _sensitivity(methods: Sequence[Method]) -> Section:
    figures, (by_rate, by_draws) = separate("rate", "best-of")
    score = next(run.result()["monitor"] for method in methods for run in method.runs)
    for index, method in enumerate(methods):
        grid = {rate: found for rate, found in method.scores.items() if found}
        if not grid:
            continue
        curve(by_rate, method.label, list(grid), list(grid.values()), index)
        everything = [value for found in grid.values() for value in found]
        draws = list(range(1, min(MOST_DRAWS, len(everything)) + 1))
        curve(by_draws, method.label, draws, [[comparison.best_of(everything, count)] for count in draws], index)
    by_rate.set(xlabel="learning rate", ylabel=f"best validation {score}", xscale="log")
    by_draws.set(xlabel="runs tried", ylabel=f"expected best validation {score}")
    text = (
        "First: the best validation score at each learning rate. Second: the best to be expected of so many runs, at "
        "rates and seeds drawn from those of the sweep (Dodge et al. 2019, arXiv 1909.03004); runs without a result "
        "are left out."
    )
    return Section("Learning-rate sensitivity", text, figures)


def differences(runs: Sequence[Run]) -> list[Section]:
    """Returns for each flag that varies how runs differ from those that have its first value, seed by seed.

    All other flags but the learning rate agree, so each row shows what this flag does in otherwise equal conditions. A
    flag whose rows share fewer than `FEWEST_RUNS` seeds has no section.
    """
    by, columns = comparison.varying(runs, ("seed", comparison.RATE)), scores([measured(run) for run in runs])
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
