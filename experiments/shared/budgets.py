"""Training at equal budgets: the validation loss against the data seen, the updates made, and the time spent.

Runs have the results "updates" and "time_steps", of all their training.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.harness.report import Section, curve, groups, mean, separate
from seqjax.train import Run

# Of an evaluation, with the names of the axes.
BUDGETS = {"data": "time steps seen", "updates": "optimizer updates", "seconds": "seconds of training"}


def training(title: str, runs: Sequence[Run], others: Sequence[str] = (), text: str = "") -> Section:
    """Returns the validation loss against each budget, with a table of it at equal budgets.

    Args:
        title: of the section.
        runs: of one task.
        others: metrics of the evaluations to draw against the data.
        text: about them.
    """
    found = {name: [_evaluations(run) for run in members] for name, members in groups(runs).items()}
    figures, axes = separate(*BUDGETS, *others)
    drawn = [*((x, "loss") for x in BUDGETS), *(("data", y) for y in others)]
    for axis, (x, y) in zip(axes, drawn, strict=True):
        for index, (name, members) in enumerate(found.items()):
            steps = sorted(set().union(*members))  # one that stopped early has fewer than another
            at = [float(np.mean([rows[step][x] for rows in members if step in rows])) for step in steps]
            values = [[rows[step][y] if step in rows else math.nan for rows in members] for step in steps]
            curve(axis, name, at, values, index)
        axis.set(xlabel=BUDGETS[x], ylabel="validation loss" if y == "loss" else y.replace("_", " "))
    about = (
        "Validation loss against the data seen, the optimizer updates made and the time spent. The table has it at the "
        "largest budget that all of them reached, by linear interpolation; seconds of lanes are those of all lanes "
        f"together.\n\n{text}"
    )
    return Section(title, about, figures, _at_equal_budgets(found))


def _evaluations(run: Run) -> dict[int, dict[str, float]]:
    """The evaluations of a run by step, with the data, updates and seconds up to there."""
    result = run.result()
    per_step = {name: result[what] / result["steps"] for name, what in (("data", "time_steps"), ("updates", "updates"))}
    return {
        record["step"]: {**record, **{name: record["step"] * each for name, each in per_step.items()}}
        for record in run.records()
        if record["split"] == "validation"
    }


def _at_equal_budgets(found: dict[str, list[dict[int, dict[str, float]]]]) -> list[list[Any]]:
    """A table: the validation loss of each group at the largest data, updates and seconds that all groups reached."""
    budgets = {
        x: min(max(row[x] for row in rows.values()) for members in found.values() for rows in members) for x in BUDGETS
    }

    def at(rows: dict[int, dict[str, float]], x: str) -> float:
        xs, ys = zip(*((row[x], row["loss"]) for row in rows.values()), strict=True)
        return float(np.interp(budgets[x], xs, ys, left=math.nan))

    table: list[list[Any]] = [
        [
            "validation loss",
            *(f"{BUDGETS[x]}: {budget:,.4g}" for x, budget in budgets.items()),
        ]
    ]
    for name, members in found.items():
        values = [[at(rows, x) for rows in members] for x in budgets]
        table.append([name, *(None if any(map(math.isnan, row)) else mean(row) for row in values)])
    return table
