"""How far a sweep is, seen from outside: `launch.py --status=DIR` and `launch.py --watch=DIR`.

Everything is read from the files of the sweep and of its runs, and from their locks. So it works beside the processes
that write them, on whatever host, and where nothing can be written.
"""

import os
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness.report import text_table
from experiments.harness.texts import visible
from seqjax.train.lock import holder
from seqjax.train.run import Run
from seqjax.train.sweep import Entry, entry_of, read_sweep

# Seconds between two looks of `watch`.
EVERY = 2.0


class Training(NamedTuple):
    """How far a run is, by its records; a number is None where they do not tell.

    Attributes:
        step: updates so far.
        steps: updates in all.
        rate: updates a second, between the last two records.
        left: seconds in updates to the end, at that rate; without evaluations and compilation.
        loss: of the last record of training.
    """

    step: int
    steps: int | None
    rate: float | None
    left: float | None
    loss: float | None


class Snapshot(NamedTuple):
    """A sweep at one moment.

    Attributes:
        sweep: the content of sweep.json.
        directory: the sweep directory.
        entries: what became of each run, by name; status "running" for those that a process writes to.
        training: how far each of these is.
        holders: who holds the lock of the sweep, under "", and of each running run; None if it is free.
    """

    sweep: dict[str, Any]
    directory: Path
    entries: dict[str, Entry]
    training: dict[str, Training]
    holders: dict[str, Mapping[str, Any] | None]

    @property
    def ended(self) -> bool:
        """Whether no run is left to be trained."""
        return all(entry.status in ("finished", "failed", "damaged") for entry in self.entries.values())

    @property
    def code(self) -> int:
        """The exit code: 0 if all runs are finished, else 1."""
        return 0 if all(entry.status == "finished" for entry in self.entries.values()) else 1

    def lines(self) -> list[str]:
        """Returns counts, a table of the running runs, and those that failed with their reasons."""
        statuses = [entry.status for entry in self.entries.values()]
        kinds = ["finished", "failed", "running", "waiting", *(["damaged"] if "damaged" in statuses else [])]
        counts = ", ".join(f"{statuses.count(kind):,} {kind}" for kind in kinds)
        by = _words(self.holders[""])
        lines = [
            visible(f"{self.sweep['experiment']} in {self.directory}"),
            f"{len(statuses):,} runs: {counts}",
            f"launched by {by}" if by else "no launcher is at work",
        ]
        if self.training:
            rows: list[list[Any]] = [["running", "step", "of", "steps/s", "left", "loss", "process"]]
            for name, (step, steps, rate, left, loss) in self.training.items():
                span = None if left is None else str(timedelta(seconds=round(left)))
                rows.append([name, step, steps, rate, span, loss, _words(self.holders[name], since=False)])
            lines += ["", *text_table(rows).split("\n")]
        bad = [(name, one) for name, one in self.entries.items() if one.status in ("failed", "damaged")]
        reasons = [visible(f"{one.status.upper():9}{name}: {one.error or 'no reason is known'}") for name, one in bad]
        return [*lines, "", *reasons] if reasons else lines


def _words(found: Mapping[str, Any] | None, *, since: bool = True) -> str | None:
    if found is None:
        return None
    process, host, start = (found.get(name, "?") for name in ("process", "host", "since"))
    return visible(f"process {process} on {host}{f' since {start}' if since else ''}")


def snapshot(directory: str | Path, before: Snapshot | None = None) -> Snapshot:
    """Returns how far a sweep is; writes nothing.

    Args:
        directory: the sweep directory.
        before: an earlier one; runs that were finished then are not read again.

    Raises:
        ValueError: there is no sweep, or it cannot be read.
    """
    directory = Path(directory).expanduser().absolute()
    known = before.entries if before else {}
    entries, training, holders = {}, {}, {}
    try:
        sweep = read_sweep(directory)
        holders[""] = holder(directory)
        for listed in sweep["runs"]:
            name = listed["name"]
            if name in known and known[name].status == "finished":
                entries[name] = known[name]
                continue
            entries[name] = entry = entry_of(directory, listed)
            if entry.status == "waiting" and entry.run and (found := holder(entry.run.directory)) is not None:
                try:
                    training[name] = _training(entry.run)
                except ValueError as error:  # a damaged record
                    entries[name] = Entry("damaged", str(error))
                    continue
                entries[name], holders[name] = entry._replace(status="running"), found
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}" if error.strerror else str(error)) from error
    return Snapshot(sweep, directory, entries, training, holders)


def _training(run: Run) -> Training:
    records = [record for record in run.records() if record.get("split") == "train"]
    last = records[-1] if records else {}
    before = records[-2] if len(records) > 1 else {}
    step, steps = last.get("step", 0), run.flags.get("steps")
    seconds = last.get("seconds", 0.0) - before.get("seconds", 0.0)
    rate = (step - before.get("step", 0)) / seconds if seconds > 0 else None
    left = (steps - step) / rate if rate and steps is not None else None
    return Training(step, steps, rate, left, last.get("loss"))


def status(directory: str) -> int:
    """Prints how far a sweep is; returns 0 if all runs are finished, else 1.

    Raises:
        ValueError: as `snapshot`.
    """
    found = snapshot(directory)
    print("\n".join(found.lines()))
    return found.code


def watch(directory: str) -> int:
    """Shows how far a sweep is until no run is left to be trained; returns 0 if all are finished, else 1.

    On a terminal the table is drawn again in its place; elsewhere it is printed, with the time, whenever it changed.

    Raises:
        ValueError: as `snapshot`.
    """
    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    found, shown = None, None
    while True:
        found = snapshot(directory, found)
        lines = found.lines()
        if live:
            _draw(lines)
        elif lines != shown:
            print(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}", *lines, "", sep="\n", flush=True)
        if found.ended:
            return found.code
        shown = lines
        time.sleep(EVERY)


def _draw(lines: list[str]) -> None:
    """Replaces what the terminal shows; what does not fit is left out, with a line that says so."""
    columns, rows = shutil.get_terminal_size()
    if len(lines) >= rows:
        kept = max(0, rows - 2)
        lines = [*lines[:kept], f"... and {len(lines) - kept} lines more: --status shows all"]
    sys.stdout.write("\x1b[H\x1b[J" + "".join(f"{line[:columns]}\n" for line in lines))
    sys.stdout.flush()
