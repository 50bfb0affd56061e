"""Figures of what a network learned against the reach of its gradient, and against the lag of what it had to remember.

Runs have the flags `task`, `lag`, `truncation` and `gradient`, and the result "reach", in time steps.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.harness.report import Section, curve, groups, panels, separate, varying
from seqjax.train import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Tasks whose target is the symbol that was shown --lag steps before.
LAGGED = ("recall", "copy")


def _score(run: Run) -> str:
    """The result by which a run is judged."""
    return next(
        name for name in ("test_accuracy", "test_bits_per_character", "test_mae", "test_loss") if name in run.result()
    )


def by_reach(runs: Sequence[Run]) -> list[Section]:
    """One panel a task: the test score against the reach of the gradient."""
    kinds = groups(runs, by=("task",))
    if max(len({run.result()["reach"] for run in members}) for members in kinds.values()) < 2:
        return []
    figure, axes = panels(1, len(kinds))
    for panel, members in zip(axes[0], kinds.values(), strict=True):
        by = varying(members, ("seed", "learning_rate", "truncation"))
        for index, (name, lines) in enumerate(groups(members, by).items()):
            reaches = sorted({run.result()["reach"] for run in lines})
            values = [[run.result()[_score(run)] for run in lines if run.result()["reach"] == k] for k in reaches]
            curve(panel, name, reaches, values, index)
            panel.plot(reaches, [np.mean(found) for found in values], "o", markersize=4, color="0.3")
        task, lags = members[0].flags["task"], sorted({run.flags["lag"] for run in members})
        if task in LAGGED and len(lags) == 1:
            panel.axvline(lags[0], color="0.4", linestyle="--", linewidth=1)
            place = {"xy": (lags[0], 0.94), "xycoords": ("data", "axes fraction"), "ha": "right"}
            panel.annotate(f"lag of {lags[0]} steps ", color="0.4", **place)
        highest = max(run.result()[_score(run)] for run in members)
        panel.set(
            title=task, xscale="log", xlabel="time steps that the gradient reaches back",
            ylabel=_score(members[0]).replace("_", " "), ylim=(0, 1.1 * highest),
        )  # fmt: skip
        panel.set_xticks(ticks := sorted({run.result()["reach"] for run in members}), [f"{tick}" for tick in ticks])
        panel.minorticks_off()
    text = (
        "Test score against the number of steps that the gradient reaches back, after the same data. Where what has to "
        "be remembered lies further back than the gradient reaches, nothing is learned; where it does not, a longer "
        "reach is worth little."
    )
    return [Section("What a truncation costs", text, [figure])]


def by_lag(runs: Sequence[Run]) -> list[Section]:
    """Of tasks with a lag: the score against lag and reach as a map, and against the lag as curves."""
    found = [run for run in runs if run.flags["task"] in LAGGED]
    lags = sorted({run.flags["lag"] for run in found})
    if len(lags) < 2:
        return []
    sections = []
    for kind, members in groups(found, by=("task", "gradient")).items():
        names = sorted({run.flags["truncation"] for run in members}, key=_order)
        if len(names) > 1:
            text = (
                "Mean over the seeds. Above the line the gradient reaches the symbol, below it does not. A full "
                "gradient always reaches it."
            )
            board = _map(members, lags, "truncation", names)
            _draw_reach(board, lags, names)
            sections.append(Section(f"Lag and truncation, {kind}", text, [board]))
    for kind, members in groups(found, by=("task", "truncation")).items():
        names = list(dict.fromkeys(run.flags["gradient"] for run in members))[::-1]
        if len(names) > 1:
            board = _map(members, lags, "gradient", names)
            sections.append(Section(f"Lag and estimator, {kind}", "Mean over the seeds.", [board]))
    figures, [axes] = separate("lag")
    score = _score(found[0])
    for index, (name, members) in enumerate(groups(found, varying(found, ("seed", "lag", "learning_rate"))).items()):
        at = [lag for lag in lags if any(run.flags["lag"] == lag for run in members)]
        values = [[run.result()[score] for run in members if run.flags["lag"] == lag] for lag in at]
        curve(axes, name, at, values, index)
    axes.set(xlabel="lag (time steps)", ylabel=score.replace("_", " "), xscale="log", ylim=(0, None))
    axes.set_xticks(lags, [str(lag) for lag in lags])
    axes.minorticks_off()
    return [*sections, Section("Score against lag", "Mean and 95 % interval over the seeds.", figures)]


def _order(truncation: str) -> tuple[float, float]:
    """Truncations by their reach, full last."""
    k1, _, k2 = truncation.partition(":")
    return (math.inf, 0) if truncation == "full" else (int(k2), int(k1))


def _map(runs: Sequence[Run], lags: list[int], flag: str, names: list[str]) -> "Figure":
    """The mean score at each lag (columns) and value of a flag (rows, from below)."""
    figure, axes = panels(width=1.8 + 0.75 * len(lags), height=1.3 + 0.4 * len(names))
    panel, score = axes[0, 0], _score(runs[0])
    values = np.full((len(names), len(lags)), np.nan)
    for row, name in enumerate(names):
        for column, lag in enumerate(lags):
            found = [r.result()[score] for r in runs if (r.flags[flag], r.flags["lag"]) == (name, lag)]
            values[row, column] = np.mean(found) if found else np.nan
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "w" if value > 0.6 * np.nanmax(values) else "k"
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
    panel.imshow(values, cmap="Blues", origin="lower", aspect="auto", vmin=0)
    panel.grid(visible=False)
    panel.set(
        xlim=(-0.5, len(lags) - 0.5), ylim=(-0.5, len(names) - 0.5), xticks=range(len(lags)), xticklabels=lags,
        yticks=range(len(names)), yticklabels=names, xlabel="lag (time steps)", ylabel=flag,
        title=score.replace("_", " "),
    )  # fmt: skip
    return figure


def _draw_reach(figure: "Figure", lags: list[int], names: list[str]) -> None:
    """Draws a line into a map of truncations, above which the gradient reaches the symbol."""
    panel = figure.axes[0]
    # A gradient of k2 steps, the newest included, reaches a symbol that is `lag` steps before it from lag < k2 on.
    reached = [sum(_order(name)[0] <= lag for name in names) - 0.5 for lag in lags]
    panel.step(np.arange(-1, len(lags) + 1), [reached[0], *reached, reached[-1]], where="mid", color="0.1", linewidth=2)
    panel.set_ylabel("truncation k1:k2 (time steps)")
