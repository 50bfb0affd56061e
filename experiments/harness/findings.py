"""What a sweep found, in a terminal: `launch.py --best=DIR` and `launch.py --compare=DIR1,DIR2`. Nothing is written."""

import importlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness import comparison
from experiments.harness.comparison import RATE, groups, mean, validation, varying_flags
from experiments.harness.experiment import define
from experiments.harness.flags import arguments
from experiments.harness.ledger import Missing, measured
from experiments.harness.progress import snapshot
from experiments.harness.report import text_table
from experiments.harness.search import Range, written
from experiments.harness.tuning import scores
from seqjax.train.run import Run


class Found(NamedTuple):
    """What a sweep directory holds.

    Attributes:
        experiment: its name.
        directory: the path.
        given: the flags that its command gave, swept ones too; the others had their defaults.
        ranges: of the flags that were searched.
        runs: the finished runs.
        missing: the others.
    """

    experiment: str
    directory: Path
    given: set[str]
    ranges: dict[str, Range]
    runs: list[Run]
    missing: list[Missing]

    @classmethod
    def read(cls, directory: str) -> "Found":
        """Reads a sweep directory.

        Raises:
            ValueError: there is no sweep, it cannot be read, or no run of it is finished.
        """
        found = snapshot(directory)
        sweep, entries = found.sweep, found.entries
        runs = [entry.run for entry in entries.values() if entry.run and entry.status == "finished"]
        missing = [
            Missing(listed["flags"], entry.error or entry.status)
            for listed in sweep["runs"]
            if (entry := entries[listed["name"]]).status != "finished"
        ]
        if not runs:
            raise ValueError(f"{found.directory}: no run is finished; --status={shlex.quote(directory)} shows why")
        given = {*sweep["axes"], *sweep["fixed"]}
        return cls(sweep["experiment"], found.directory, given, _ranges(sweep), runs, missing)

    @property
    def tuned(self) -> list[str]:
        """The flags that are chosen for each method: the learning rate, and those that were searched."""
        return list(dict.fromkeys([RATE, *self.ranges]))

    @property
    def left_out(self) -> str:
        """How many runs have no result, in a sentence; "" if all have one."""
        total = len(self.runs) + len(self.missing)
        return f"{len(self.missing)} of {total} runs of {self.directory} have no result." if self.missing else ""


def _ranges(sweep: Mapping[str, Any]) -> dict[str, Range]:
    if "search" not in sweep:
        return {}
    try:
        flags = define(importlib.import_module(sweep["experiment"])).flags
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"a search of {sweep['experiment']}, which cannot be imported here: {error}; start it where it was launched"
        ) from None
    return written(sweep["axes"], flags)


# ---- --best


def best(directory: str) -> int:
    """Prints for each method, the runs that differ in the seed and in what is tuned alone, the run with the lowest
    validation score: its test scores, its directory, and the command that trains it again.

    Returns 0.

    Raises:
        ValueError: as `Found.read`; the runs record no validation score.
    """
    found = Found.read(directory)
    if not all("monitor" in run.result() for run in found.runs):
        raise ValueError(f"{found.directory}: its runs record no validation score, so none of them is the best")
    by = comparison.varying(found.runs, ("seed", *found.tuned))
    members = groups(found.runs, by)
    chosen = {label: min(runs, key=validation) for label, runs in members.items()}
    results = {label: measured(run) for label, run in chosen.items()}
    columns = scores(list(results.values()))
    rows: list[list[Any]] = [[*by, "of runs", *found.tuned, "seed", *columns]]
    for label, run in chosen.items():
        flags = [run.flags.get(name) for name in by]
        tuned = [run.flags.get(name) for name in (*found.tuned, "seed")]
        rows.append([*flags, len(members[label]), *tuned, *(results[label].get(name) for name in columns)])
    print(text_table(rows))
    for label, run in chosen.items():
        print(f"\n{label}\n  {run.directory}\n  {_command(found.experiment, run)}")
    if found.left_out:
        print(f"\n{found.left_out}")
    return 0


def _command(experiment: str, run: Run) -> str:
    """The command that trains a run again, in a directory of its own; with all flags, for defaults may change."""
    return shlex.join(["python", "-m", experiment, *arguments(run.flags)])


# ---- --compare


def compare(directories: str) -> int:
    """Prints how the second of two sweeps, "DIR1,DIR2", differs from the first, method by method and seed by seed.

    Each method, the runs that differ in the seed and in what is tuned alone, is taken at its own best rate or point.

    Returns 0.

    Raises:
        ValueError: not two directories; as `Found.read`; sweeps of different experiments, or without a common method
            and seed; runs between which nothing decides.
    """
    names = directories.split(",")
    if len(names) != 2 or not all(names):
        raise ValueError(f"--compare={directories}: expected two directories, DIR1,DIR2")
    sweeps = [Found.read(name) for name in names]
    first, second = sweeps
    if first.experiment != second.experiment:
        raise ValueError(
            f"--compare: {first.directory} is a sweep of {first.experiment} and {second.directory} of "
            f"{second.experiment}; expected two of the same experiment"
        )
    apart = ("seed", *first.tuned, *second.tuned)
    by = list(dict.fromkeys(name for one in sweeps for name in comparison.varying(one.runs, apart)))
    methods = [_methods(one, by) for one in sweeps]
    columns = scores([measured(run) for one in methods for runs in one.values() for run in runs])
    rows: list[list[Any]] = [[*by, "pairs", *columns]]
    for label, runs in methods[1].items():
        if label in methods[0]:
            found = comparison.paired(runs, methods[0][label], columns)
            pairs = max(map(len, found.values()), default=0)
            own = [runs[0].flags.get(name) for name in by]
            rows.append([*own, pairs, *(mean(values) if values else None for values in found.values())])
    if not any(row[len(by)] for row in rows[1:]):
        raise ValueError(
            f"--compare: {first.directory} and {second.directory} have no seed of a method in common: "
            f"{_some(methods[0])} against {_some(methods[1])}"
        )
    print(f"{first.experiment}\n  first   {first.directory}\n  second  {second.directory}\n")
    if len(differing := _flags(sweeps, by)) > 1:
        print(f"{text_table(differing)}\n")
    print(
        "Second less first, paired by seed; from three pairs on with a 95 % interval: without 0 in it, they differ.\n"
    )
    print(text_table(rows))
    for one, own, other in ((first, *methods), (second, *reversed(methods))):
        if alone := [label for label in own if label not in other]:
            print("\n  ".join([f"\nonly in {one.directory}:", *alone]))
        if one.left_out:
            print(f"\n{one.left_out}")
    return 0


def _some(methods: Mapping[str, Sequence[Run]]) -> str:
    seeds = sorted({str(run.flags.get("seed")) for runs in methods.values() for run in runs})
    return f"{'; '.join(list(methods)[:3])}{'; ...' if len(methods) > 3 else ''} (seed {', '.join(seeds[:5])})"


def _methods(found: Found, by: Sequence[str]) -> dict[str, list[Run]]:
    """The runs of each method at its best point, under a label of the flags `by`."""
    tuned = comparison.methods(found.runs, found.missing, found.ranges)
    members = groups([run for method in tuned for run in method.runs] or found.runs, by)
    for label, runs in members.items():
        seeds = [run.flags.get("seed") for run in runs]
        if len({*seeds}) < len(seeds):
            raise ValueError(
                f"{found.directory}: {label} has several runs of one seed, with different --{RATE}, and no validation "
                "score to choose one by"
            )
    return members


def _flags(sweeps: Sequence[Found], by: Sequence[str]) -> list[list[Any]]:
    """A table of the flags by which the sweeps differ as wholes, those that were not given marked as defaults."""
    configs = [one.runs[0].flags for one in sweeps]
    tuned = {name for one in sweeps for name in one.tuned if name in comparison.varying(one.runs)}
    rows: list[list[Any]] = [["flag", "first", "second"]]
    for name in varying_flags(configs, ("seed", *by, *tuned)):
        cells = [
            "no such flag" if name not in own else f"{own[name]}{'' if name in one.given else ' (default)'}"
            for own, one in zip(configs, sweeps, strict=True)
        ]
        rows.append([f"--{name}", *cells])
    return rows
