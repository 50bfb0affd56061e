"""The ledger of a sweep: what became of each of its runs, kept as sweep.json and results.csv of its directory."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.harness import ending
from experiments.harness.texts import visible
from seqjax.train.run import Run, write_atomic
from seqjax.train.strict_json import decode, encode

if TYPE_CHECKING:
    from experiments.harness.executors import Member


class Entry(NamedTuple):
    """What became of a run.

    Attributes:
        status: "done"; "pending", it has not ended; "failed"; "damaged", its files cannot be read and are left alone.
        error: why it is not done, in one line, where that is known.
        run: if it is done.
        numbers: its measurements, for the table.
    """

    status: str
    error: str | None = None
    run: Run | None = None
    numbers: Mapping[str, Any] = {}


STATUSES = ("done", "pending", "failed", "damaged")


class Missing(NamedTuple):
    """A run without a result: its swept flags, and why."""

    flags: Mapping[str, Any]
    reason: str


class Ledger:
    """The entries of the members of a sweep, by name."""

    def __init__(self, header: Mapping[str, Any], members: "Sequence[Member]", directory: Path):
        """Reads what the run directories hold; writes nothing.

        Args:
            header: the description of the sweep in sweep.json.
            members: its runs.
            directory: the sweep directory.
        """
        self._header, self._members, self._directory = header, members, directory
        self.entries = {member.name: look(member.directory) for member in members}

    def waiting(self) -> "list[Member]":
        """Returns the runs that are to be trained."""
        return [member for member in self._members if self.entries[member.name].status == "pending"]

    def runs(self) -> list[Run]:
        """Returns the finished runs."""
        return [entry.run for entry in self.entries.values() if entry.run]

    def missing(self) -> list[Missing]:
        """Returns the runs without a result."""
        found = [(member, self.entries[member.name]) for member in self._members]
        return [Missing(m.point, entry.error or entry.status) for m, entry in found if not entry.run]

    def settle(self, member: "Member", error: str | None) -> None:
        """Enters how a run ended: with an error, or with what its directory holds."""
        entry = look(member.directory)
        if entry.status == "pending":
            entry = Entry("failed", error or "it ended without a result")
        self.entries[member.name] = entry._replace(error=error or entry.error)

    def write(self) -> None:
        """Writes sweep.json and results.csv, if their content changed.

        Raises:
            OSError: they cannot be written.
        """
        runs, rows = [], []
        config: dict[str, Any] = {}
        for member in self._members:
            status, error, run, numbers = self.entries[member.name]
            runs.append({"name": member.name, "flags": member.point, "status": status, "error": error})
            rows.append({"run": member.name, "status": status, "reason": error, **member.point, **numbers})
            config = run.config if run else config
        made = {"versions": config.get("versions"), "commit": config.get("commit")}
        self._replace("sweep.json", encode({**self._header, **made, "runs": runs}, indent=2) + "\n")
        table = io.StringIO()
        writer = csv.DictWriter(table, list(dict.fromkeys(itertools.chain(*rows))), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: visible(v) if isinstance(v, str) else v for name, v in row.items()} for row in rows)
        self._replace("results.csv", table.getvalue())

    def _replace(self, name: str, content: str) -> None:
        # A finished sweep is launched again to be looked at, on a full disk or one that only reads as well.
        path = self._directory / name
        if not path.is_file() or path.read_bytes() != content.encode():
            write_atomic(path, content)


def measured(run: Run) -> dict[str, float]:
    """Returns the numbers in the result of a finished run."""
    return {k: v for k, v in run.result().items() if isinstance(v, int | float) and not isinstance(v, bool)}


def read(directory: Path) -> dict[str, Any] | None:
    """Returns the content of sweep.json; None if there is no such file.

    Raises:
        ValueError: it is damaged.
    """
    path = directory / "sweep.json"
    if not path.exists():
        return None
    try:
        content = decode(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    except (ValueError, RecursionError):
        content = None
    if not _is_of_a_sweep(content):
        raise ValueError(
            f"{path} is damaged: expected an object with experiment, axes, fixed and runs; remove it, and the same "
            "command writes it again (finished runs are kept)"
        )
    return content


def _is_of_a_sweep(content: Any) -> bool:
    def has(value: Any, **types: type | tuple[type, ...]) -> bool:
        return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in types.items())

    return (
        has(content, experiment=str, axes=dict, fixed=dict, runs=list)
        and all(isinstance(values, list) for values in content["axes"].values())
        and all(has(run, name=str, flags=dict, status=str, error=(str, type(None))) for run in content["runs"])
        and all(run["status"] in STATUSES for run in content["runs"])
    )


def look(directory: Path) -> Entry:
    """Returns what a run directory holds: a run that is done, pending (also if it does not exist) or damaged."""
    try:
        run = Run.read(directory)
        if not run.finished:
            return Entry("pending")
        numbers = measured(run)
        origin = run.result().get("generated")
        _check_whole(run)
    except FileNotFoundError:
        return Entry("pending")
    except OSError as error:
        return Entry("damaged", ending.sentence(error))
    except (ValueError, RecursionError) as error:
        return Entry("damaged", f"{ending.sentence(error)}; remove {directory}, and the same command trains it again")
    return Entry("done", None, run, {**numbers, "generated": origin} if origin else numbers)


def _check_whole(run: Run) -> None:
    absent = [name for name in ("versions", "commit", "device") if name not in run.config]
    if absent:
        raise ValueError(f"{run.directory / 'config.json'}: expected {', '.join(absent)}, found {sorted(run.config)}")
    run.records()
