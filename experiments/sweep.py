"""Sweeps: many runs of one experiment, planned and checked before the first starts, resumable, reported at the end.

The algebra: `model=lstm,gru;seed=0:3` is the product of its axes: `;` between axes, `,` between values, and `a:b` for
the integers a, ..., b - 1 where the flag is an integer. The values of other flags may hold `:` (truncation=4:16).

A sweep directory holds one directory a run, named by its swept values, and sweep.json, results.csv, report.html.
"""

import contextlib
import csv
import hashlib
import io
import itertools
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from absl.flags import FlagValues
from tqdm import tqdm

from experiments import base, executors, report, workers
from experiments.executors import Member
from seqjax.train.run import Run, write_atomic
from seqjax.train.strict_json import decode, encode


class Plan(NamedTuple):
    """A sweep whose every run was checked."""

    module: ModuleType
    axes: dict[str, list[Any]]
    fixed: dict[str, Any]
    members: list[Member]
    directory: Path


def parse(text: str, flags: FlagValues) -> dict[str, list[Any]]:
    """Returns the axes of a sweep: for each flag its values, of the flag's type. The empty text has no axes.

    Raises:
        ValueError: no "name=values", an unknown flag, a repeated one, one that names a place and not a
            computation, no values, a repeated value, an empty range, or a value that the flag refuses.
    """
    axes: dict[str, list[Any]] = {}
    for axis in filter(str.strip, text.split(";")):
        name, equals, values = (part.strip() for part in axis.partition("="))
        if not equals:
            raise ValueError(f"sweep axis {axis.strip()!r}: expected flag=value,value,... or flag=first:end")
        if name not in flags:
            raise ValueError(f"sweep axis {axis.strip()!r}: {base.unknown_flag(name, list(flags))}")
        if name in base.UNRECORDED:
            raise ValueError(f"sweep axis {axis.strip()!r}: --{name} does not change a result, it cannot be swept")
        if name in axes:
            raise ValueError(f"sweep axis {axis.strip()!r}: --{name} has an axis already; give all its values in one")
        axes[name] = [value for item in values.split(",") for value in _values(name, item.strip(), flags)]
        repeated = [value for value in axes[name] if axes[name].count(value) > 1]
        if repeated:
            raise ValueError(f"sweep axis {axis.strip()!r}: value {repeated[0]} is repeated")
    return axes


def _values(name: str, item: str, flags: FlagValues) -> Sequence[Any]:
    flag = flags[name]
    if not item:
        raise ValueError(f"sweep axis {name}: an empty value; expected {name}=value,value,...")
    items = [item]
    bounds = re.fullmatch(r"(-?\d+):(-?\d+)", item)
    if flag.flag_type() == "int" and bounds:
        items = list(map(str, range(int(bounds[1]), int(bounds[2]))))
        if not items:
            raise ValueError(f"sweep axis {name}: the range {item} is empty; first:end leaves end out")
    try:
        return [flag.parser.parse(item) for item in items]
    except (TypeError, ValueError) as error:
        expected = flag.parser.syntactic_help
        reason = f"expected {expected}" if expected else error
        raise ValueError(f"sweep axis {name}: {item!r}: {reason}") from None


def expand(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns the product of the axes, the last axis fastest: one dict of flag to value for each run."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def run_name(point: Mapping[str, Any]) -> str:
    """Returns a readable directory name of a point: "model=lstm,seed=0". Different points have different names."""
    exact = ",".join(f"{name}={value}" for name, value in point.items()) or "run"
    # ":" is kept (truncation=4:16); what a shell or a file system may trip over is not.
    name = re.sub(r"[^A-Za-z0-9_.,:=+-]", "_", exact)[:120]
    if name == exact:
        return name
    return f"{name},{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def plan(module: ModuleType, text: str | None, fixed: Mapping[str, Any], directory: str | Path | None) -> Plan:
    """Returns the checked plan of a sweep; writes nothing.

    Args:
        module: the experiment.
        text: the sweep; None for the experiment's STUDY without the axes that are fixed.
        fixed: flags with one value for all runs.
        directory: the sweep directory; None for runs/NAME/<hash of the sweep>.

    Raises:
        ValueError: `parse`'s; a flag both fixed and swept; a run's flags that the experiment refuses; a directory
            that holds another sweep, or a run of this one with other flags.
    """
    fixed = {name: value for name, value in fixed.items() if name != "workdir"}
    axes = parse(module.STUDY if text is None else text, module.FLAGS)
    if text is None:
        axes = {name: values for name, values in axes.items() if name not in fixed}
    for name in axes:
        if name in fixed:
            given = ",".join(map(str, axes[name]))
            raise ValueError(f"--{name} is both fixed ({fixed[name]}) and swept ({given}); give one of them")
    recorded = {name: value for name, value in fixed.items() if name not in base.UNRECORDED}
    directory = Path(directory or base.default_directory(module, "sweep", axes, recorded)).absolute()
    members = []
    for point in expand(axes):
        flags, name = {**fixed, **point}, run_name(point)
        try:
            config = base.parse(module, flags)
        except ValueError as error:
            raise ValueError(f"run {name}: {error}") from None
        members.append(Member(name, point, flags, config, directory / name))
    result = Plan(module, axes, fixed, members, directory)
    _check_directory(result)
    return result


def _check_directory(plan: Plan) -> None:
    path = plan.directory / "sweep.json"
    if not path.exists():
        return
    found, given = decode(path.read_text()), decode(encode(_header(plan)))
    for what in ("experiment", "fixed"):
        if found[what] != given[what]:
            raise ValueError(f"{plan.directory} holds another sweep: its {what} is {found[what]}, not {given[what]}")
    if found["axes"].keys() != given["axes"].keys():
        names = ", ".join(found["axes"]), ", ".join(given["axes"])
        raise ValueError(f"{plan.directory} holds another sweep: it sweeps over {names[0]}, not {names[1]}")
    for name, values in found["axes"].items():
        missing = [str(value) for value in values if value not in given["axes"][name]]
        if missing:
            raise ValueError(
                f"{plan.directory} holds a sweep with {name}={','.join(missing)}, which this one leaves out;"
                " values may be added to a sweep, not dropped"
            )
    for member in plan.members:
        if (member.directory / "config.json").exists():
            # Refuses a run with other flags: a default in the code may have changed since.
            Run.open(member.directory, base.recorded(member.config))


def _header(plan: Plan) -> dict[str, Any]:
    fixed = {name: value for name, value in plan.fixed.items() if name not in base.UNRECORDED}
    return {"experiment": base.name_of(plan.module), "axes": plan.axes, "fixed": fixed}


def run(plan: Plan, executor: Callable[..., executors.Outcomes] = executors.debug) -> int:
    """Trains the runs that are not finished, writes results.csv and report.html, and prints what came out.

    Returns the exit code: 0; 1 where a run or the report failed; 2 where others work in the directory.
    """
    plan.directory.mkdir(parents=True, exist_ok=True)
    try:
        with workers.claim(plan.directory):
            return _run(plan, executor)
    except workers.InUse as error:
        print(error, file=sys.stderr)
        return 2


def _run(plan: Plan, executor: Callable[..., executors.Outcomes]) -> int:
    waiting = [member for member in plan.members if not _finished(member)]
    if len(waiting) < len(plan.members):
        print(f"{len(plan.members) - len(waiting)} of {len(plan.members)} runs are finished already")
    errors: dict[str, str] = {}
    _record(plan, errors)
    if waiting:
        _train(plan, waiting, executor, errors)
    problem = report.write(plan.module, plan.directory)
    runs = [Run.read(member.directory) for member in plan.members if _finished(member)]
    if runs:
        print("\n" + report.text_table(report.summary(runs)))
    print(f"\nreport   {plan.directory / 'report.html'}\nfigures  {plan.directory / 'figures'}")
    for name, error in errors.items():
        print(f"FAILED   {name}: {error}", file=sys.stderr)
    if problem:
        print(f"FAILED   report: {problem}", file=sys.stderr)
    return 1 if errors or problem else 0


def _train(plan: Plan, waiting: Sequence[Member], executor: Callable, errors: dict[str, str]) -> None:
    start, total = time.monotonic(), len(waiting)
    outcomes = executor(plan.module, waiting)
    try:
        with contextlib.closing(outcomes), tqdm(total=total, unit="run", disable=None) as bar:
            for done, (member, error) in enumerate(outcomes, start=1):
                if error:
                    errors[member.name] = error
                _record(plan, errors)
                left = (time.monotonic() - start) / done * (total - done)
                outcome = f"failed: {error}" if error else "done"
                remaining = f" (about {left:.0f} s left)" if done < total else ""
                bar.update()
                bar.write(f"[{done}/{total}] {member.name} {outcome}{remaining}", file=sys.stdout)
    except (KeyboardInterrupt, SystemExit) as stop:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(stop.code if isinstance(stop, SystemExit) else 130)


def _finished(member: Member) -> bool:
    return (member.directory / "config.json").exists() and Run.read(member.directory).finished


def _record(plan: Plan, errors: Mapping[str, str]) -> None:
    """Writes sweep.json and results.csv."""
    runs, rows = [], []
    config: dict[str, Any] = {}
    for member in plan.members:
        status = "done" if _finished(member) else "failed" if member.name in errors else "pending"
        runs.append({"name": member.name, "flags": member.point, "status": status, "error": errors.get(member.name)})
        result: dict[str, Any] = {}
        if status == "done":
            finished = Run.read(member.directory)
            result, config = report.measured(finished), finished.config
            origin = finished.result().get("generated")
            result |= {"generated": origin} if origin else {}
        rows.append({"run": member.name, "status": status, **member.point, **result})
    content = {**_header(plan), "versions": config.get("versions"), "commit": config.get("commit"), "runs": runs}
    write_atomic(plan.directory / "sweep.json", encode(content, indent=2) + "\n")
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(itertools.chain(*rows))), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(plan.directory / "results.csv", table.getvalue())
