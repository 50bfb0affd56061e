"""The ledger of a sweep: what became of each of its runs, kept as sweep.json and results.csv of its directory."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.harness.texts import visible
from seqjax.train.run import Run, write_atomic
from seqjax.train.strict_json import encode
from seqjax.train.sweep import Entry, look, read_sweep

if TYPE_CHECKING:
    from experiments.harness.executors import Member


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
        return [member for member in self._members if self.entries[member.name].status == "waiting"]

    def runs(self) -> list[Run]:
        """Returns the finished runs."""
        return [entry.run for entry in self.entries.values() if entry.run and entry.status == "finished"]

    def missing(self) -> list[Missing]:
        """Returns the runs without a result."""
        found = [(member, self.entries[member.name]) for member in self._members]
        return [Missing(m.point, entry.error or entry.status) for m, entry in found if entry.status != "finished"]

    def settle(self, member: "Member", error: str | None) -> None:
        """Enters how a run ended: with an error, or with what its directory holds."""
        entry = look(member.directory)
        if entry.status == "waiting":
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
            status, error, run, result = self.entries[member.name]
            numbers: dict[str, Any] = _numbers(result)
            if "generated" in result:
                numbers["generated"] = result["generated"]
            runs.append({"name": member.name, "flags": member.point, "status": status, "error": error})
            rows.append({"run": member.name, "status": status, "reason": error, **member.point, **numbers})
            config = run.config if run and status == "finished" else config
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
    return _numbers(run.result())


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def read(directory: Path) -> dict[str, Any] | None:
    """Returns the content of sweep.json; None if there is no such file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return read_sweep(directory)
    except FileNotFoundError:
        return None
