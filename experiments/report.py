"""The report of a sweep: tables, figures, and one HTML file that holds all of them.

An experiment adds its own sections: its `report(runs)` returns a list of `Section`, with figures made on `panels`.
Everything is read from the sweep directory, so a report can be written again at any time.
"""

import base64
import html
import io
import json
import math
import re
import shlex
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from cycler import cycler

from seqjax.diagnostics.figures import COLORS
from seqjax.train.metrics import mean_and_interval
from seqjax.train.run import Run, write_atomic

if TYPE_CHECKING:  # imported where something is drawn: no run waits for it before its first step
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", "--", ":", "-.")
STYLE: dict = {
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "svg.hashsalt": "seqjax",
}
# What a run cost, as opposed to what it found out.
COSTS = (
    "wall_seconds",
    "steps_per_second",
    "steps",
    "parameters",
    "lanes",
    "compile_seconds",
    "program_memory_bytes",
    "peak_memory_bytes",
)

Table = Sequence[Sequence[Any]]


class Section(NamedTuple):
    """A part of the report.

    Attributes:
        title: its heading; also the name of its figure files.
        text: plain text; an empty line separates paragraphs.
        figures: matplotlib figures; each becomes a picture in the report, and figures/TITLE.png and .svg (where there
            are several, TITLE-LABEL, by the label of the figure or its number).
        table: rows of cells, the header first; a cell is a text, a number, None or a `Mean`.
    """

    title: str
    text: str = ""
    figures: "Sequence[Figure]" = ()
    table: Table | None = None


class Mean(NamedTuple):
    """The mean of n runs and the half width of its 95 % interval (nan for one run)."""

    mean: float
    half: float

    def __str__(self) -> str:
        """The mean to the digits that the interval leaves certain."""
        if not self.half > 0 or math.isinf(self.half):
            return cell_text(self.mean)
        decimals = min(6, max(0, 1 - math.floor(math.log10(self.half))))
        return f"{self.mean:,.{decimals}f} ± {self.half:,.{decimals}f}"


def mean(values: Sequence[float]) -> Mean:
    """Returns the mean of runs that differ in nothing but the seed, with its 95 % interval."""
    return Mean(*mean_and_interval(values))


def varying(runs: Sequence[Run], ignore: Sequence[str] = ("seed",)) -> list[str]:
    """Returns the flags that differ between the runs, `ignore` left out."""
    names = dict.fromkeys(name for run in runs for name in run.flags)
    return [n for n in names if n not in ignore and len({repr(run.flags.get(n)) for run in runs}) > 1]


def groups(runs: Sequence[Run], by: Sequence[str] | None = None) -> dict[str, list[Run]]:
    """Returns the runs that agree in the flags `by` (default: all that vary but the seed), under a label of them."""
    by = varying(runs) if by is None else by
    result: dict[str, list[Run]] = {}
    for run in runs:
        result.setdefault(", ".join(f"{name}={run.flags.get(name)}" for name in by) or "all runs", []).append(run)
    return result


def measured(run: Run) -> dict[str, float]:
    """Returns the numbers in the result of a finished run."""
    return {k: v for k, v in run.result().items() if isinstance(v, int | float) and not isinstance(v, bool)}


def summary(runs: Sequence[Run], columns: Sequence[str] | None = None) -> list[list[Any]]:
    """Returns a table: one row for each group of `groups`, the varying flags, the number of runs, and means.

    Args:
        runs: finished runs.
        columns: names in their results; default: what they measured, wall_seconds and steps_per_second.
    """
    results = {run.directory: measured(run) for run in runs}
    if columns is None:
        names = dict.fromkeys(name for result in results.values() for name in result)
        columns = [name for name in names if name not in COSTS[2:]]
    by = varying(runs)
    rows: list[list[Any]] = [[*by, "runs", *columns]]
    for members in groups(runs, by).values():
        row: list[Any] = [members[0].flags.get(name) for name in by] + [len(members)]
        for name in columns:
            values = [results[run.directory][name] for run in members if name in results[run.directory]]
            row.append(mean(values) if values else None)
        rows.append(row)
    return rows


def cell_text(cell: Any) -> str:
    """Returns a cell of a table as text: four significant digits, thousands separated."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if 1e4 <= abs(cell) < 1e15 else f"{cell:.4g}"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return str(cell)


def markdown_table(table: Table) -> str:
    """A table in Markdown, the header first."""
    lines = [f"| {' | '.join(map(cell_text, row))} |" for row in table]
    return "\n".join([lines[0], f"|---{'|--:' * (len(table[0]) - 1)}|", *lines[1:]])


def text_table(table: Table) -> str:
    """Returns a table as aligned lines of text."""
    texts = [[cell_text(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in texts]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])


def panels(rows: int = 1, columns: int = 1, *, width: float = 4.4, height: float = 3.1) -> "tuple[Figure, np.ndarray]":
    """Returns a figure in the style of the reports and its axes, [rows, columns]; sizes in inches a panel."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def intervals(axes: "Axes", by_label: Mapping[str, Sequence[Run]], metric: str) -> None:
    """Draws the mean and the 95 % interval of a result of each group of runs, a row for each, the first at the top."""
    for i, members in enumerate(by_label.values()):
        value, color = mean([run.result()[metric] for run in members]), COLORS[i % len(COLORS)]
        axes.errorbar(value.mean, i, xerr=np.nan_to_num(value.half), color=color, fmt="o", markersize=4, capsize=3)
    axes.set(yticks=range(len(by_label)), yticklabels=list(by_label))
    axes.invert_yaxis()


def curve(axes: "Axes", label: str, x: Sequence[float], ys: Sequence[Sequence[float]], index: int = 0) -> None:
    """Draws the mean of several runs with its 95 % interval as a band.

    Args:
        axes: where to draw.
        label: for the legend.
        x: [N].
        ys: for each of the N places, the values of the runs that got there.
        index: chooses colour and dashes.
    """
    means = [mean(values) for values in ys]
    color, dashes = COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)]
    center = np.array([m.mean for m in means])
    half = np.array([m.half for m in means])
    marker = "o" if len(means) == 1 else None
    axes.plot(x, center, color=color, linestyle=dashes, linewidth=1.6, marker=marker, markersize=4, label=label)
    axes.fill_between(x, center - half, center + half, color=color, alpha=0.15, linewidth=0)


def learning_curves(runs: Sequence[Run], metric: str) -> "Figure":
    """Returns a figure of one metric: training and validation (rows) against steps and wall clock (columns)."""
    labelled = groups(runs)
    records = {run.directory: [r for r in run.records() if metric in r] for run in runs}
    splits = list(dict.fromkeys(record["split"] for rows in records.values() for record in rows))
    figure, axes = panels(len(splits), 2)
    figure.set_label(metric)
    for row, split in zip(axes, splits, strict=True):
        for index, (label, members) in enumerate(labelled.items()):
            found: dict[int, list[tuple[float, float]]] = {}
            for run in members:
                for record in records[run.directory]:
                    if record["split"] == split:
                        found.setdefault(record["step"], []).append((record["seconds"], record[metric]))
            steps = sorted(found)
            values = [[value for _, value in found[step]] for step in steps]
            seconds = [math.fsum(second for second, _ in found[step]) / len(found[step]) for step in steps]
            if steps:
                curve(row[0], label, steps, values, index)
                curve(row[1], label, seconds, values, index)
        row[0].set(xlabel="steps", ylabel=f"{split} {metric}")
        row[1].set(xlabel="seconds in updates", xlim=(0, None))
        means = np.concatenate([line.get_ydata() for line in row[0].lines])
        if means.min() > 0 and means.max() > 30 * means.min():
            for panel in row:
                # A band may reach below zero.
                panel.set(yscale="log", ylim=(means.min() / 1.5, None))
    if len(labelled) > 1:
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    return figure


def write(module: ModuleType, directory: str | Path) -> str | None:
    """Writes report.html and figures/ of a sweep directory, with what is there.

    Returns the error, in one line, of the experiment's own `report`, which is then left out; else None.
    """
    directory = Path(directory)
    sweep = json.loads((directory / "sweep.json").read_text())
    runs = [Run.read(directory / run["name"]) for run in sweep["runs"] if run["status"] == "done"]
    sections, problem = _generic_sections(runs), None
    if runs:
        try:
            sections[1:1] = module.report(runs)
        except Exception as error:
            # The runs cost hours, and their tables do not depend on the experiment's own section.
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
            sections.append(Section("Error in the experiment's report", problem))
    sections += _failures(sweep) + _configuration(sweep, runs, directory)
    head = (module.__doc__ or "").strip().split("\n", 1)[0]
    body = "\n".join(_section_html(section, directory / "figures") for section in sections)
    write_atomic(directory / "report.html", _page(sweep["experiment"], head, body))
    return problem


def _generic_sections(runs: Sequence[Run]) -> list[Section]:
    if not runs:
        return [Section("Results", "No run is finished.")]
    numbers = "Mean ± half width of the 95 % interval (Student's t) over the runs of a row."
    heads = ("step", "epoch", "split", "seconds")
    metrics = dict.fromkeys(name for run in runs for record in run.records() for name in record if name not in heads)
    curves = [learning_curves(runs, metric) for metric in metrics]
    bands = "Mean over the runs of a line, and its 95 % interval. Seconds are time in updates, without compilation."
    cost = "Times and memory of lanes are those of all the lanes of a program together."
    sections = [Section("Results", numbers, table=summary(runs))]
    if curves:
        sections.append(Section("Learning curves", bands, curves))
    columns = [name for name in COSTS[2:] if all(name in measured(run) for run in runs)]
    return [*sections, Section("Cost", cost, table=summary(runs, columns))]


def _failures(sweep: Mapping[str, Any]) -> list[Section]:
    tables = []
    for status in ("failed", "pending"):
        rows = [[run["name"], run["error"]] for run in sweep["runs"] if run["status"] == status]
        if rows:
            text = "The same command runs them again."
            tables.append(Section(f"Runs {status}", text, table=[["run", "error"], *rows]))
    return tables


def command(sweep: Mapping[str, Any], directory: Path) -> str:
    """Returns the command that reproduces a sweep, from the content of its sweep.json."""
    axes = ";".join(f"{name}={','.join(map(str, values))}" for name, values in sweep["axes"].items())
    experiment = sweep["experiment"].removeprefix("experiments.")
    flags = {"experiment": experiment, "sweep": axes, "workdir": directory, **sweep["fixed"]}
    return " ".join(["python launch.py", *(f"--{name}={shlex.quote(str(value))}" for name, value in flags.items())])


def _configuration(sweep: Mapping[str, Any], runs: Sequence[Run], directory: Path) -> list[Section]:
    rows: list[list[Any]] = [["flag", "value"]]
    rows += [[name, ", ".join(map(str, values))] for name, values in sweep["axes"].items()]
    if runs:
        common = {name: value for name, value in runs[0].flags.items() if name not in sweep["axes"]}
        rows += [[name, value if value is None else str(value)] for name, value in common.items()]
    made = [["", "of the runs"]]
    configs = [
        {**run.config["versions"], "commit": run.config["commit"], "device": run.config["device"]} for run in runs
    ]
    for name in dict.fromkeys(name for config in configs for name in config):
        made.append([name, ", ".join(dict.fromkeys(str(config.get(name)) for config in configs))])
    return [
        Section("Configuration", command(sweep, directory), table=rows),
        Section("Versions", table=made),
    ]


def save(figure: "Figure", path: Path) -> bytes:
    """Writes a figure as `path`.png and `path`.svg and returns the SVG."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    images = {}
    with matplotlib.rc_context(STYLE):
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
            images[kind] = buffer.getvalue()
            write_atomic(path.with_name(f"{path.name}.{kind}"), images[kind])
    return images["svg"]


def _section_html(section: Section, figures: Path) -> str:
    parts = [f"<section><h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph]
    slug = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
    for number, figure in enumerate(section.figures, start=1):
        name = slug if len(section.figures) == 1 else f"{slug}-{figure.get_label() or number}"
        # As an image of its own: the ids inside two SVGs of one page would clash.
        data = base64.b64encode(save(figure, figures / name)).decode()
        alt = html.escape(f"{section.title} {number}")
        parts.append(f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{data}"></figure>')
    if section.table:
        head, *rows = [[html.escape(cell_text(cell)) for cell in row] for row in section.table]
        lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
        header = "".join(f"<th>{cell}</th>" for cell in head)
        parts.append(f'<div class="table"><table><tr>{header}</tr>{"".join(lines)}</table></div>')
    return "\n".join([*parts, "</section>"])


def _page(title: str, head: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p class="head">{html.escape(head)}</p>
{body}
</body>
</html>
"""


_CSS = """
:root { color-scheme: light dark; --text: #1c1c1c; --quiet: #666; --line: #ddd; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e4e4; --quiet: #a0a0a0; --line: #3a3a3a; --page: #17181a; } }
body { max-width: 62rem; margin: 3rem auto; padding: 0 1.25rem; background: var(--page); color: var(--text);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
p { max-width: 46rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.head { color: var(--quiet); margin-top: 0; }
figure { margin: 1rem 0; padding: .75rem; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
img { display: block; max-width: 100%; height: auto; margin: auto; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; }
"""
