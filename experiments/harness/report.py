"""The report of a sweep: tables, figures, and one HTML file that holds all of them.

An experiment adds its own sections: its `report(runs)` returns a list of `Section`, with figures made by `separate`.
Everything is read from the sweep directory, so a report can be written again at any time.
"""

import math
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.harness import comparison, ending, page, plots, search, tuning
from experiments.harness.comparison import groups, mean, varying, varying_flags
from experiments.harness.experiment import Definition
from experiments.harness.ledger import Missing, measured
from experiments.harness.page import Mean, Section, Table, cell_text
from experiments.harness.plots import COLORS, DASHES, curve, intervals, panels, run_lines, save, separate
from experiments.harness.texts import shortened
from seqjax.train.run import Run, write_atomic
from seqjax.train.strict_json import encode
from seqjax.train.sweep import read_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "COSTS",
    "DASHES",
    "SHARED",
    "Mean",
    "Missing",
    "Section",
    "Table",
    "cell_text",
    "command",
    "curve",
    "evaluation_lines",
    "groups",
    "intervals",
    "learning_curves",
    "markdown_table",
    "mean",
    "measured",
    "panels",
    "run_lines",
    "save",
    "separate",
    "summary",
    "text_table",
    "varying",
    "write",
]

# The cost of a run, as opposed to its findings.
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


def generated(runs: Sequence[Run]) -> str:
    """Returns what was generated in place of data, in all of the runs or in some; "" if nothing was."""
    found = [run.result().get("generated") for run in runs]
    names = ", ".join(dict.fromkeys(filter(None, found)))
    return names and f"Generated {names}, not real data{'' if all(found) else ' (some of the runs)'}."


def mixed_data(runs: Sequence[Run], traced_flags: Sequence[str]) -> str:
    """Returns that runs which differ only in traced flags read different data; "" where none did."""
    read: dict[str, dict[str, Any]] = {}
    for run in runs:
        if (data := run.result().get("data_hash")) is not None:
            rest = encode({name: value for name, value in run.flags.items() if name not in ("seed", *traced_flags)})
            read.setdefault(rest, {}).setdefault(data, run.directory.name)
    mixed = [" and ".join(names.values()) for names in read.values() if len(names) > 1]
    return f"Different data, though the flags are the same, were read by {'; by '.join(mixed)}." if mixed else ""


def shared_lanes(runs: Sequence[Run]) -> str:
    """Returns how many lanes share a clock, as "3 lanes together"; "" if every run has its own."""
    numbers = sorted({run.result().get("lanes", 1) for run in runs})
    return f"{' or '.join(map(str, numbers))} lanes together" if numbers[-1:] > [1] else ""


def summary(
    runs: Sequence[Run], columns: Sequence[str] | None = None, missing: Sequence[Missing] = ()
) -> list[list[Any]]:
    """Returns a table: one row for each group of `groups`, the varying flags, the number of runs, and means.

    Columns that lanes share are marked in the header, and have no interval: they were measured once. If data were
    generated, a column shows in which rows. Missing runs are counted in their rows, "2 of 3", and a column gives the
    reason: a mean over seeds that leaves out the one that diverged is not the mean of the method.

    Args:
        runs: finished runs.
        columns: names in their results; default: what they measured, wall_seconds and steps_per_second.
        missing: the other runs of the sweep.
    """
    results = {run.directory: measured(run) for run in runs}
    if columns is None:
        names = dict.fromkeys(name for result in results.values() for name in result)
        columns = [name for name in names if name not in COSTS[2:]]
    # Runs of one sweep differ in nothing but what is swept.
    others = [({**(runs[0].flags if runs else {}), **one.flags}, one.reason) for one in missing]
    by = varying_flags([run.flags for run in runs] + [flags for flags, _ in others])
    together, stand_in = shared_lanes(runs), bool(generated(runs))
    heads = [f"{name} ({together})" if together and name in SHARED else name for name in columns]
    more = [*(["data"] if stand_in else []), "runs", *(["missing"] if missing else [])]
    rows: list[list[Any]] = [[*by, *more, *heads]]
    grouped: dict[tuple[str, ...], tuple[list[Any], list[Run], list[str]]] = {}
    for flags, entry in [*((run.flags, run) for run in runs), *others]:
        values = [flags.get(name) for name in by]
        _, members, reasons = grouped.setdefault(tuple(map(repr, values)), (values, [], []))
        members.append(entry) if isinstance(entry, Run) else reasons.append(entry)
    for row, members, reasons in grouped.values():
        if stand_in:
            kinds = dict.fromkeys("generated" if run.result().get("generated") else "given" for run in members)
            row.append(", ".join(kinds))
        row.append(f"{len(members)} of {len(members) + len(reasons)}" if reasons else len(members))
        if missing:
            others = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            row.append(f"{shortened(reasons[0])}{others}" if reasons else None)
        for name in columns:
            values = [results[run.directory][name] for run in members if name in results[run.directory]]
            value = mean(values) if values else None
            row.append(Mean(value.mean, math.nan) if value and together and name in SHARED else value)
        rows.append(row)
    return rows


def markdown_table(table: Table) -> str:
    """A table in Markdown, the header first."""
    lines = [f"| {' | '.join(cell_text(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in table]
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


def evaluation_lines(axes: "Axes", label: str, members: Sequence[Run], metric: str, index: int) -> None:
    """Draws a metric of the evaluations of each run of a group against updates; see `run_lines`."""
    records = [[record for record in run.records() if record["split"] == "validation"] for run in members]
    steps = [[record["step"] for record in rows] for rows in records]
    run_lines(axes, label, steps, [[record[metric] for record in rows] for rows in records], index)


def write(definition: Definition, directory: str | Path) -> str | None:
    """Writes report.html and figures/ of a sweep directory, with what is there.

    Returns what could not be made, in one line, or None; the page leaves it out and mentions it.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no sweep.json.
        ValueError: sweep.json or the files of a run are damaged.
        OSError: the files cannot be written.
    """
    directory = Path(directory)
    sweep = read_sweep(directory)
    runs = [Run.read(directory / run["name"]) for run in sweep["runs"] if run["status"] == "finished"]
    others = [run for run in sweep["runs"] if run["status"] != "finished"]
    missing = [Missing(run["flags"], run["error"] or run["status"]) for run in others]
    methods = comparison.methods(runs, missing, search.written(sweep["axes"], definition.flags))
    compared = [run for method in methods for run in method.runs] or runs
    results, *more = _generic_sections(runs, missing, compared)
    own, problems = [], []
    if runs:
        try:
            own = definition.report(compared)
        except Exception as error:
            # The runs cost hours, and their tables do not depend on the experiment's own section.
            problems.append(_reported(error))
            more.append(Section("Error in the experiment's report", problems[-1]))
    sections = [
        *tuning.sections(methods),
        results,
        *tuning.differences(compared, methods[0].tuned if methods else (comparison.RATE,)),
        *own,
        *more,
    ]
    notices = [generated(runs), mixed_data(runs, definition.traced_flags)]
    if notices[1]:
        print(f"WARNING  {notices[1]}", file=sys.stderr)
    if missing:
        share = f"{len(missing)} of {len(sweep['runs'])} runs"
        notices.append(f"{share} have no result and are not in it: the tables of runs at the end give the reasons.")
    notice = " ".join(filter(None, notices))
    # Everything up to here rests on the data of the runs.
    sections = [section._replace(caption=section.caption or notice) for section in sections]
    sections += _failures(sweep) + _configuration(sweep, runs, directory)
    head, body = definition.doc.strip().split("\n", 1)[0], []
    for section in sections:
        try:
            body.append(page.section(section, directory / "figures"))
        except OSError:
            raise
        except Exception as error:
            problems.append(f"section {section.title!r}: {_reported(error)}")
            text = f"{section.text}\n\nIts figures could not be drawn: {problems[-1]}"
            body.append(page.section(section._replace(text=text, figures=()), directory / "figures"))
    write_atomic(directory / "report.html", page.page(sweep["experiment"], head, notice, "\n".join(body)))
    return "; ".join(problems) or None


def _reported(error: Exception) -> str:
    """An error of an experiment's own code, with its traceback on stderr; in one line."""
    traceback.print_exception(error)
    return f"{type(error).__name__}: {ending.sentence(error)}"


def _generic_sections(
    runs: Sequence[Run], missing: Sequence[Missing] = (), compared: Sequence[Run] | None = None
) -> list[Section]:
    """Tables of all runs, and the learning curves of those that are compared (default: all)."""
    if not runs:
        return [Section("Results", "No run is finished.", table=summary(runs, missing=missing) if missing else None)]
    together = shared_lanes(runs)
    own = f"Times and memory are of {together}, measured once: they have no interval." if together else ""
    numbers = (
        "Mean over the runs of a row; from three runs on ± half the width of its 95 % interval (Student's t), where "
        f"the runs differ. {own}"
    )
    heads = ("step", "epoch", "split", "seconds")
    metrics = dict.fromkeys(name for run in runs for record in run.records() for name in record if name not in heads)
    curves = [figure for metric in metrics for figure in learning_curves(compared or runs, metric)]
    bands = (
        "From three runs on the mean and, where it is in view, the band of its 95 % interval; else a line is a run. "
        "Seconds are time in updates, without compilation."
    )
    left_out = dict.fromkeys(line for run in runs if (line := run.result().get("left_out")))
    if left_out:
        numbers += f"\n\nLeft out: {'; '.join(left_out)}."
    sections = [Section("Results", numbers, table=summary(runs, missing=missing))]
    if curves:
        sections.append(Section("Learning curves", bands, curves))
    columns = [name for name in COSTS[2:] if all(name in measured(run) for run in runs)]
    return [*sections, Section("Cost", own, table=summary(runs, columns))]


def _failures(sweep: Mapping[str, Any]) -> list[Section]:
    tables = []
    again = "The same command runs them again."
    texts = {"failed": again, "waiting": again, "damaged": "Their files cannot be read, and are left as they are."}
    for status, text in texts.items():
        rows = [[run["name"], run["error"]] for run in sweep["runs"] if run["status"] == status]
        if rows:
            tables.append(Section(f"Runs {status}", text, table=[["run", "error"], *rows]))
    return tables


def command(sweep: Mapping[str, Any], directory: Path) -> str:
    """Returns the command that reproduces a sweep, from the content of its sweep.json."""
    axes = ";".join(f"{name}={','.join(map(str, values))}" for name, values in sweep["axes"].items())
    experiment = sweep["experiment"].removeprefix("experiments.")
    searched = sweep.get("search", {})
    flags = {"experiment": experiment, "sweep": axes, **searched, "workdir": directory, **sweep["fixed"]}
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
