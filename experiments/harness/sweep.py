"""Sweeps: many runs of one experiment, planned and checked before the first starts, resumable, reported at the end.

The algebra: `model=lstm,gru;seed=0:3` is the product of its axes: `;` between axes, `,` between values, and `a:b` for
the integers a, ..., b - 1 where the flag is an integer. The values of other flags may hold `:` (truncation=4:16).
`a..b` and `a..b:log` are ranges, from which points are drawn: see `search`.

A sweep directory holds one directory a run, named by its swept values, and sweep.json, results.csv, report.html.
"""

import contextlib
import itertools
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl.flags import FlagValues
from tqdm import tqdm

from experiments.harness import comparison, ending, executors, ledger, report
from experiments.harness.comparison import RATE
from experiments.harness.executors import Member
from experiments.harness.experiment import Definition
from experiments.harness.flags import UNRECORDED, recorded, unknown_flag
from experiments.harness.ledger import Ledger
from experiments.harness.runs import default_directory
from experiments.harness.search import NO_SEARCH, Range, Search
from experiments.harness.search import parse as parse_range
from experiments.harness.search import points as points_of
from experiments.harness.texts import file_name, shortened, visible
from seqjax.train.lock import InUse, Lock
from seqjax.train.run import Run
from seqjax.train.strict_json import decode, encode

# A launch plans and checks this many within a quarter of a minute, and one page still holds their table.
MOST_RUNS = 10_000


class Plan(NamedTuple):
    """A sweep whose every run was checked.

    Attributes:
        definition: the experiment.
        axes: for each swept flag its values, or the one `Range` that they are drawn from.
        fixed: flags with one value for all runs.
        members: the runs.
        directory: the sweep directory.
        widened: how often its grid of learning rates was extended before (`wider`).
    """

    definition: Definition
    axes: dict[str, list[Any]]
    fixed: dict[str, Any]
    members: list[Member]
    directory: Path
    widened: int = 0
    search: Search = NO_SEARCH


def parse(text: str, flags: FlagValues) -> dict[str, list[Any]]:
    """Returns the axes of a sweep: for each flag its values, of the flag's type, or one `Range`. The empty text has no
    axes.

    Raises:
        ValueError: no "name=values", an unknown flag, a repeated one, one that does not affect
            the result, no values, a repeated value, an empty range, a value that the flag refuses, or more than
            `MOST_RUNS` runs, which is seen before any range is expanded.
    """
    items: dict[str, list[str | range | Range]] = {}
    for axis in filter(str.strip, text.split(";")):
        name, equals, values = (part.strip() for part in axis.partition("="))
        about = f"sweep axis {shortened(axis.strip())!r}"
        if not equals:
            raise ValueError(f"{about}: expected flag=value,value,... or flag=first:end")
        if name not in flags:
            raise ValueError(f"{about}: {unknown_flag(shortened(name), list(flags))}")
        if name in UNRECORDED:
            raise ValueError(f"{about}: --{name} does not change a result, it cannot be swept")
        if name in items:
            raise ValueError(f"{about}: --{name} has an axis already; give all its values in one")
        items[name] = [_range_or_value(name, item.strip(), flags) for item in values.split(",")]
        if len(items[name]) > 1 and any(isinstance(item, Range) for item in items[name]):
            raise ValueError(f"{about}: give one range a..b, or values")
    runs = math.prod(sum(map(_count, axis)) for axis in items.values())
    if runs > MOST_RUNS:
        number = f"{runs:,}" if runs < 10**15 else "more than 10^15"
        raise ValueError(f"the sweep has {number} runs, expected at most {MOST_RUNS:,}; launch parts of it")
    axes = {}
    for name, axis in items.items():
        axes[name] = [value for item in axis for value in _values(name, item, flags)]
        seen = set()
        for value in axes[name]:
            key = value if isinstance(value, Hashable) else repr(value)
            if key in seen:
                raise ValueError(f"sweep axis {name}: value {shortened(str(value))} is repeated")
            seen.add(key)
    return axes


def _range_or_value(name: str, item: str, flags: FlagValues) -> str | range | Range:
    if not item:
        raise ValueError(f"sweep axis {name}: an empty value; expected {name}=value,value,...")
    if found := parse_range(name, item, flags):
        return found
    bounds = re.fullmatch(r"(-?\d{1,1000}):(-?\d{1,1000})", item)
    if flags[name].flag_type() != "int" or not bounds:
        return item
    if not (values := range(int(bounds[1]), int(bounds[2]))):
        raise ValueError(f"sweep axis {name}: the range {shortened(item)} is empty; first:end leaves end out")
    return values


def _count(item: str | range | Range) -> int:
    return item.stop - item.start if isinstance(item, range) else 1  # len() of a range ends at 2^63


def _values(name: str, item: str | range | Range, flags: FlagValues) -> list[Any]:
    if isinstance(item, Range):
        return [item]
    parser = flags[name].parser
    given = shortened(f"{item.start}:{item.stop}" if isinstance(item, range) else item)
    try:
        return [parser.parse(text) for text in (map(str, item) if isinstance(item, range) else [item])]
    except (TypeError, ValueError) as error:
        expected = parser.syntactic_help
        reason = f"expected {expected}" if expected else shortened(str(error), 200)
        raise ValueError(f"sweep axis {name}: {given!r}: {reason}") from None


def expand(axes: Mapping[str, Sequence[Any]], search: Search = NO_SEARCH) -> list[dict[str, Any]]:
    """Returns one dict of flag to value for each run: the product of the axes, the last axis fastest, where the ranges
    are one axis, of their points.

    Raises:
        ValueError: as `points_of`.
    """
    ranges = ranged(axes)
    drawn = points_of(list(ranges.values()), search.points, search.sampler) if ranges else []
    lists: list[list[dict[str, Any]]] = []
    for name, values in axes.items():
        if name not in ranges:
            lists.append([{name: value} for value in values])
        elif name == next(iter(ranges)):
            lists.append([dict(zip(ranges, point, strict=True)) for point in drawn])
    found = ({name: value for part in parts for name, value in part.items()} for parts in itertools.product(*lists))
    return [{name: point[name] for name in axes} for point in found]


def ranged(axes: Mapping[str, Sequence[Any]]) -> dict[str, Range]:
    """Returns the axes that are ranges."""
    return {name: values[0] for name, values in axes.items() if values and isinstance(values[0], Range)}


def run_name(point: Mapping[str, Any]) -> str:
    """Returns a readable directory name of a point: "model=lstm,seed=0". Different points have different names."""
    return file_name(",".join(f"{name}={value}" for name, value in point.items()) or "run")


def place(directory: str | Path) -> Path:
    """Returns the absolute path that --workdir names, "~" expanded; it need not exist.

    Raises:
        ValueError: it is empty, no directory, a link that leads nowhere, or nothing that could be one.
    """
    if not str(directory):
        raise ValueError("--workdir is empty; expected a directory")
    about, path = f"--workdir={shortened(str(directory))}", Path(os.path.expanduser(directory)).absolute()
    try:
        if path.is_symlink() and not path.exists():
            raise ValueError(f"{about} is a symbolic link that leads nowhere; expected a directory")
        if path.exists() and not path.is_dir():
            raise ValueError(f"{about} is not a directory; choose another")
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ValueError(f"{about}: {error.strerror}; expected a directory, or a name for one") from None
    return path


def plan(
    definition: Definition,
    text: str | None,
    fixed: Mapping[str, Any],
    directory: str | Path | None,
    *,
    widen: bool = False,
    search: Search = NO_SEARCH,
) -> Plan:
    """Returns the checked plan of a sweep; writes nothing.

    Args:
        definition: the experiment.
        text: the sweep; None for the one that the experiment proposes, without the axes that are fixed.
        fixed: flags with one value for all runs.
        directory: the sweep directory; None for runs/NAME/<hash of the sweep>.
        widen: whether learning rates by which an earlier launch extended the grid belong to it.
        search: of the ranges of the sweep.

    Raises:
        ValueError: `parse`'s; a flag both fixed and swept; a run's flags that the experiment refuses; a directory
            that holds another sweep, or a run of this one with other flags; `widen` without a grid; ranges without
            a number of points, or the other way around.
    """
    fixed = {name: value for name, value in fixed.items() if name != "workdir"}
    axes = parse(definition.sweep if text is None else text, definition.flags)
    if text is None:
        axes = {name: values for name, values in axes.items() if name not in fixed}
    for name in axes:
        if name in fixed:
            given = ",".join(map(str, axes[name]))
            raise ValueError(f"--{name} is both fixed ({fixed[name]}) and swept ({given}); give one of them")
    ranges = ranged(axes)
    if bool(ranges) != bool(search.points):
        have, need = ("ranges", "--points=N points of them") if ranges else ("no range a..b", "one, or no --points")
        raise ValueError(f"the sweep has {have}: expected {need}")
    runs = search.points * math.prod(len(values) for name, values in axes.items() if name not in ranges)
    if runs > MOST_RUNS:
        raise ValueError(f"the sweep has {runs:,} runs, expected at most {MOST_RUNS:,}; take fewer --points")
    named = {name: value for name, value in fixed.items() if name not in UNRECORDED}
    default = default_directory(definition.name, "sweep", _texts(axes), named)
    directory = place(default if directory is None else directory)
    if not widen:
        return _checked(Plan(definition, axes, fixed, [], directory, search=search))
    if RATE in ranges:
        raise ValueError(f"--widen extends a grid of learning rates, and {RATE} is searched; give a wider range")
    given = axes.get(RATE, [])
    if len(given) < 2:
        raise ValueError(
            f"--widen extends a grid of learning rates, and this sweep has {len(given) or 'none'}; expected at least "
            f"two, as --sweep='{RATE}=1e-3,1e-2'"
        )
    found = (ledger.read(directory) or {"axes": {}})["axes"].get(RATE, [])
    rates = sorted({*given, *found})
    beyond = max(sum(rate < min(given) for rate in rates), sum(rate > max(given) for rate in rates))
    return _checked(Plan(definition, {**axes, RATE: rates}, fixed, [], directory, beyond, search))


def wider(plan: Plan) -> Plan | None:
    """Returns the plan with one learning rate more at each end of the grid where a method has its best; None if no
    method has.
    """
    found = Ledger(_header(plan), plan.members, plan.directory)
    rates = comparison.wider(comparison.methods(found.runs(), found.missing(), ranged(plan.axes)))
    if not rates:
        return None
    axes = {**plan.axes, RATE: sorted([*plan.axes[RATE], *rates])}
    return _checked(plan._replace(axes=axes, widened=plan.widened + 1))


def _checked(plan: Plan) -> Plan:
    """The plan with its members."""
    definition, axes, fixed, directory = plan.definition, plan.axes, plan.fixed, plan.directory
    members = []
    for point in expand(axes, plan.search):
        flags, name = {**fixed, **point}, run_name(point)
        try:
            config = definition.parse(flags)
        except ValueError as error:
            raise ValueError(f"run {name}: {error}") from None
        members.append(Member(name, point, flags, config, directory / name))
    result = plan._replace(members=members)
    _check_directory(result)
    return result


def _check_directory(plan: Plan) -> None:
    found, given = ledger.read(plan.directory), decode(encode(_header(plan)))
    if found is not None:
        _check_same_sweep(plan.directory, found, given)
    for member in plan.members:
        _check_flags(member)


def _check_same_sweep(directory: Path, found: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for what in ("experiment", "fixed"):
        if found[what] != given[what]:
            there, here = (shortened(str(header[what]), 300) for header in (found, given))
            raise ValueError(f"{directory} holds another sweep: its {what} is {there}, not {here}")
    if found["axes"].keys() != given["axes"].keys():
        names = ", ".join(found["axes"]), ", ".join(given["axes"])
        raise ValueError(f"{directory} holds another sweep: it sweeps over {names[0]}, not {names[1]}")
    for name, values in found["axes"].items():
        kept = set(map(encode, given["axes"][name]))
        if missing := [str(value) for value in values if encode(value) not in kept]:
            raise ValueError(
                f"{directory} holds a sweep with {name}={shortened(','.join(missing))}, which this one leaves "
                "out; values may be added to a sweep, not dropped"
            )
    there, here = (header.get("search", {"points": 0, "sampler": None}) for header in (found, given))
    if there["sampler"] != here["sampler"] or there["points"] > here["points"]:
        raise ValueError(
            f"{directory} holds a search of {there['points']} points by --sampler={there['sampler']}, not of "
            f"{here['points']} by {here['sampler']}; points may be added to a search, not dropped"
        )


def _check_flags(member: Member) -> None:
    """Refuses a run with other flags: a default in the code may have changed since. Nothing is touched."""
    try:
        run = Run.read(member.directory)
    except (OSError, ValueError, RecursionError):  # it does not exist, or the ledger will call it damaged
        return
    run.check_flags(recorded(member.config))


def _header(plan: Plan) -> dict[str, Any]:
    fixed = {name: value for name, value in plan.fixed.items() if name not in UNRECORDED}
    searched = {"search": plan.search._asdict()} if ranged(plan.axes) else {}
    return {"experiment": plan.definition.name, "axes": _texts(plan.axes), "fixed": fixed, **searched}


def _texts(axes: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """The axes with their ranges as texts, as sweep.json has them."""
    return {**axes, **{name: [str(one)] for name, one in ranged(axes).items()}}


def run(plan: Plan, executor: Callable[..., executors.Outcomes] = executors.debug) -> int:
    """Trains the runs that are not finished, writes results.csv and report.html, and prints the results.

    Returns the exit code: 0; 1 where a run has no result, or sweep.json or results.csv could not be written; 2 where
    others work in the directory. A report that fails is reported on stderr, and written again by the next launch.
    """
    if plan.directory.is_dir() and not os.access(plan.directory, os.W_OK):
        found = Ledger(_header(plan), plan.members, plan.directory)
        if not found.waiting():
            return _close(plan, found, f"nothing can be written to {plan.directory}")
    plan.directory.mkdir(parents=True, exist_ok=True)
    try:
        # Inherited by the processes of the runs: a launcher that was killed may leave them behind.
        lock = Lock.take(plan.directory, inherited=True)
    except InUse as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return _run(plan, executor)
    finally:
        lock.release()


def _run(plan: Plan, executor: Callable[..., executors.Outcomes]) -> int:
    found = Ledger(_header(plan), plan.members, plan.directory)
    if runs := found.runs():
        print(f"{len(runs)} of {len(plan.members)} runs are finished already")
    found.write()
    if waiting := found.waiting():
        _train(plan, waiting, executor, found)
    unsaved = _problem_of(found.write)
    code = _close(plan, found, unsaved or _problem_of(lambda: report.write(plan.definition, plan.directory)))
    return 1 if unsaved else code


def _problem_of(write: Callable[[], str | None]) -> str | None:
    """Writes; returns what went wrong, in one line. The runs took hours and do not depend on their report."""
    try:
        return write()
    except (OSError, ValueError) as error:
        return ending.sentence(error)
    except Exception as error:
        traceback.print_exc()
        return ending.summary(error)


def _close(plan: Plan, found: Ledger, problem: str | None) -> int:
    """Prints the results, and what went wrong with the report; returns the exit code."""
    print("\n" + report.text_table(report.summary(found.runs(), missing=found.missing())))
    print(f"\nreport   {plan.directory / 'report.html'}\nfigures  {plan.directory / 'figures'}")
    for name, (status, error, *_) in found.entries.items():
        if error or status != "finished":
            kind = "DAMAGED" if status == "damaged" else "FAILED"
            print(f"{kind:9}{name}: {visible(error or status)}", file=sys.stderr)
    if problem:
        print(f"WARNING  the report is not whole, the next launch writes it again: {visible(problem)}", file=sys.stderr)
    return 1 if any(error or status != "finished" for status, error, *_ in found.entries.values()) else 0


def _train(plan: Plan, waiting: Sequence[Member], executor: Callable, found: Ledger) -> None:
    start, total, due = time.monotonic(), len(waiting), 0.0
    outcomes = executor(plan.definition, waiting)
    with contextlib.closing(outcomes), tqdm(total=total, unit="run", disable=None) as bar:
        for done, (member, error) in enumerate(outcomes, start=1):
            found.settle(member, error)
            left = (time.monotonic() - start) / done * (total - done)
            error = found.entries[member.name].error
            outcome = f"failed: {visible(error)}" if error else "finished"
            remaining = f" (about {left:.0f} s left)" if done < total else ""
            bar.update()
            bar.write(f"[{done}/{total}] {member.name} {outcome}{remaining}", file=sys.stdout)
            # A write covers all runs: with thousands, not after each of them. A failed one is tried again at the end.
            if (began := time.monotonic()) >= due:
                with contextlib.suppress(OSError):
                    found.write()
                due = time.monotonic() + 20 * (time.monotonic() - began)
