"""The report of a sweep: tables, figures, and one HTML file that holds all of them.

An experiment adds its own sections: its `report(runs)` returns a list of `Section`, with figures made by `separate`.
Everything is read from the sweep directory, so a report can be written again at any time.
"""

import json
import math
import shlex
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from experiments import page, plots
from experiments.page import Mean, Section, Table, cell_text
from experiments.plots import COLORS, DASHES, curve, intervals, panels, save, separate
from seqjax.train.run import Run, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "COSTS",
    "DASHES",
    "SHARED",
    "Mean",
    "Section",
    "Table",
    "cell_text",
    "command",
    "curve",
    "groups",
    "intervals",
    "learning_curves",
    "markdown_table",
    "mean",
    "measured",
    "panels",
    "save",
    "separate",
    "summary",
    "text_table",
    "varying",
    "write",
]

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
# Of these, what lanes have in common: they are one program, with one clock and one memory.
SHARED = ("wall_seconds", "steps_per_second", "compile_seconds", "program_memory_bytes", "peak_memory_bytes")


def mean(values: Sequence[float]) -> Mean:
    """Returns the mean of runs that differ in nothing but the seed; from three runs on with its 95 % interval."""
    return Mean(*plots.interval(values))


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


def generated(runs: Sequence[Run]) -> str:
    """Returns what was generated in place of data, in all of the runs or in some; "" where nothing was."""
    found = [run.result().get("generated") for run in runs]
    names = ", ".join(dict.fromkeys(filter(None, found)))
    return names and f"Generated {names}, not real data{'' if all(found) else ' (some of the runs)'}."


def shared_lanes(runs: Sequence[Run]) -> str:
    """Returns how many lanes share a clock, as "3 lanes together"; "" where every run has its own."""
    numbers = sorted({run.result().get("lanes", 1) for run in runs})
    return f"{' or '.join(map(str, numbers))} lanes together" if numbers[-1:] > [1] else ""


def summary(runs: Sequence[Run], columns: Sequence[str] | None = None) -> list[list[Any]]:
    """Returns a table: one row for each group of `groups`, the varying flags, the number of runs, and means.

    The head of what lanes share says so, and such a number has no interval: it was measured once. Where data were
    generated, a column says in which rows.

    Args:
        runs: finished runs.
        columns: names in their results; default: what they measured, wall_seconds and steps_per_second.
    """
    results = {run.directory: measured(run) for run in runs}
    if columns is None:
        names = dict.fromkeys(name for result in results.values() for name in result)
        columns = [name for name in names if name not in COSTS[2:]]
    by, together, stand_in = varying(runs), shared_lanes(runs), bool(generated(runs))
    heads = [f"{name} ({together})" if together and name in SHARED else name for name in columns]
    rows: list[list[Any]] = [[*by, *(["data"] if stand_in else []), "runs", *heads]]
    for members in groups(runs, by).values():
        row: list[Any] = [members[0].flags.get(name) for name in by]
        if stand_in:
            kinds = dict.fromkeys("generated" if run.result().get("generated") else "given" for run in members)
            row.append(", ".join(kinds))
        row.append(len(members))
        for name in columns:
            values = [results[run.directory][name] for run in members if name in results[run.directory]]
            value = mean(values) if values else None
            row.append(Mean(value.mean, math.nan) if value and together and name in SHARED else value)
        rows.append(row)
    return rows


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


def learning_curves(runs: Sequence[Run], metric: str) -> "list[Figure]":
    """Returns the panels of one metric: training and validation, against steps and against the wall clock."""
    labelled = groups(runs)
    records = {run.directory: [r for r in run.records() if metric in r] for run in runs}
    splits = dict.fromkeys(record["split"] for rows in records.values() for record in rows)
    together = shared_lanes(runs)
    clock = f"seconds in updates ({together})" if together else "seconds in updates"
    drawn = []
    for split in splits:
        figures, (by_step, by_time) = separate(f"{metric}-{split}-steps", f"{metric}-{split}-seconds")
        for index, (label, members) in enumerate(labelled.items()):
            found = [{r["step"]: r for r in records[run.directory] if r["split"] == split} for run in members]
            steps = sorted(set().union(*found))
            values = [[rows[step][metric] if step in rows else math.nan for rows in found] for step in steps]
            times = [[rows[step]["seconds"] for rows in found if step in rows] for step in steps]
            if steps:
                curve(by_step, label, steps, values, index)
                curve(by_time, label, [math.fsum(row) / len(row) for row in times], values, index)
        by_step.set(xlabel="steps", ylabel=f"{split} {metric}")
        by_time.set(xlabel=clock, ylabel=f"{split} {metric}", xlim=(0, None))
        plots.scale([by_step, by_time])
        drawn += figures
    return drawn


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
    notice = generated(runs)
    # Everything up to here rests on the data of the runs.
    sections = [section._replace(caption=section.caption or notice) for section in sections]
    sections += _failures(sweep) + _configuration(sweep, runs, directory)
    head = (module.__doc__ or "").strip().split("\n", 1)[0]
    body = "\n".join(page.section(section, directory / "figures") for section in sections)
    write_atomic(directory / "report.html", page.page(sweep["experiment"], head, notice, body))
    return problem


def _generic_sections(runs: Sequence[Run]) -> list[Section]:
    if not runs:
        return [Section("Results", "No run is finished.")]
    together = shared_lanes(runs)
    own = f"Times and memory are of {together}, measured once: they have no interval." if together else ""
    numbers = (
        "Mean over the runs of a row; from three runs on ± half the width of its 95 % interval (Student's t), where "
        f"the runs differ. {own}"
    )
    heads = ("step", "epoch", "split", "seconds")
    metrics = dict.fromkeys(name for run in runs for record in run.records() for name in record if name not in heads)
    curves = [figure for metric in metrics for figure in learning_curves(runs, metric)]
    bands = (
        "From three runs on the mean and, where it is in view, the band of its 95 % interval; else a line is a run. "
        "Seconds are time in updates, without compilation."
    )
    left_out = dict.fromkeys(line for run in runs if (line := run.result().get("left_out")))
    if left_out:
        numbers += f"\n\nLeft out: {'; '.join(left_out)}."
    sections = [Section("Results", numbers, table=summary(runs))]
    if curves:
        sections.append(Section("Learning curves", bands, curves))
    columns = [name for name in COSTS[2:] if all(name in measured(run) for run in runs)]
    return [*sections, Section("Cost", own, table=summary(runs, columns))]


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
        Section("Configuration", table=rows, listings={"Command": command(sweep, directory)}),
        Section("Versions", table=made),
    ]
