"""One training step in seqjax and in its peers: time, memory and compilation, side by side in one run.

    python -m benchmarks.step                          all rows; writes docs/benchmarks.* and docs/roofline.md
    python -m benchmarks.step --quick                  three rounds of the first shape; writes nothing
    python -m benchmarks.step --cells lstm --shapes 64,35,256,512 --peers "Flax NNX" Keras
                                                       some rows; writes nothing without --output

A row is a cell, a condition (plain, with lengths, with recurrent dropout) and a shape. A step is the forward pass of
the layer and of a linear head on its last output, the gradient of

    loss = mean_b (h_T[b] @ w_y + b_y - y[b])^2

and an Adam update of all weights. Nothing is timed until every program has been checked against the cell written out in
`problem.py`, with the same weights. On a GPU, `benchmarks.gpu` measures the same rows.
"""

import argparse
import datetime
import importlib.metadata
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import page, roofline
from benchmarks.page import BURST, Measured, Result
from benchmarks.places import places
from benchmarks.problem import CONDITIONS, DTYPES, GATES, SHAPES, Row, Shape
from benchmarks.processor import processor
from benchmarks.programs import AUTO, ENTRIES, TORCH, Entry, build, tolerance
from experiments.harness.report import text_table

MOST = 8  # rounds
COLD = 0.1  # s; the first call of a faster program is not counted


def measure(row: Row, entries: Sequence[Entry], dtype: Any, budget: float) -> Result:
    """Compile, check and time all entries in one row.

    They take turns, for as many rounds as fit into `budget` seconds, 3 at least. One that has used up the budget
    alone drops out.

    Raises:
      Disagreement: before anything is timed.
    """
    programs, left_out = build(row, entries, dtype)

    def clock(entry, calls):
        start = time.perf_counter()
        programs[entry].run(calls)
        return (time.perf_counter() - start) / calls

    def turn(entry):
        time.sleep(0.02)  # a thread pool may spin after its work, at the expense of the next entry
        # The first call after another program finds cold caches and returned memory.
        seconds = clock(entry, 1)
        return clock(entry, math.ceil(BURST / seconds)) if seconds < COLD else seconds

    start = time.perf_counter()
    seconds = {entry: [turn(entry)] for entry in programs if entry.updates == 1}
    rounds = min(max(math.ceil(budget / (time.perf_counter() - start)), 3), MOST)
    seconds |= {entry: [turn(entry)] for entry in programs if entry.updates > 1}
    for _ in range(rounds - 1):
        for entry, taken in seconds.items():
            if sum(taken) + taken[0] < budget:
                taken.append(turn(entry))
    together = row.condition != "plain"  # compiled two at a time, so not timed
    measured = {
        entry.name: Measured(
            [s / entry.updates for s in seconds[entry]],
            None if together else program.compile_seconds,
            program.temporary_bytes,
        )
        for entry, program in programs.items()
    }
    return Result(row, measured, {entry.name: reason for entry, reason in left_out.items()})


def conditions(arguments: Sequence[str], dtype: str, load: float, seconds: float) -> list[list[Any]]:
    """When, where and with what the measurement was made."""
    packages = ("jax", "jaxlib", "flax", "keras", "dm-haiku", "equinox", "torch", "optax", "numpy")
    versions = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return [
        ["", ""],
        ["command", f"python -m benchmarks.step {shlex.join(arguments)}".rstrip()],
        ["date", f"{datetime.date.today():%Y-%m-%d}"],
        ["device", jax.devices()[0].device_kind],
        ["processor", f"{processor()}, {os.cpu_count()} cores"],
        ["dtype", dtype],
        ["load average before the run", f"{load:.1f}"],
        ["wall clock of the run", f"{seconds / 60:.1f} min"],
        ["versions", ", ".join(versions)],
    ]


def parse_shape(text: str) -> Shape:
    """`B,T,D,H`, four positive integers."""
    try:
        shape = Shape(*map(int, text.split(",")))
    except (TypeError, ValueError):
        shape = None
    if shape is None or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not B,T,D,H, four positive integers such as 64,35,256,512")
    return shape


def parse_duration(text: str) -> float:
    """A positive number."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return seconds


def installed(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that can run here: PyTorch may be missing.

    Raises:
      ModuleNotFoundError: another peer is missing.
    """
    missing = [entry for entry in entries if not entry.installed]
    if names := [entry.name for entry in missing if entry != TORCH]:
        raise ModuleNotFoundError(
            f"{', '.join(names)} cannot be imported: pip install -e '.[bench]', or choose others by --peers"
        )
    if missing:
        print("PyTorch is not installed and is left out", file=sys.stderr)
    return [entry for entry in entries if entry not in missing]


def main(arguments: Sequence[str], entries: Sequence[Entry] = ENTRIES) -> None:
    """Measure, print the tables, and write the pages."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description="Time a training step.")
    add = parser.add_argument
    add("--shapes", nargs="+", type=parse_shape, metavar="B,T,D,H", help="default: those of the page")
    add("--cells", nargs="+", choices=GATES, help="default: all")
    add("--conditions", nargs="+", choices=CONDITIONS, help="default: all")
    add(
        "--peers", nargs="+", choices=[e.name for e in entries], metavar="NAME", help="beside seqjax auto; default: all"
    )
    add("--dtype", choices=DTYPES, default="float32", help="of weights and inputs")
    add("--seconds", type=parse_duration, default=2.0, metavar="S", help="to time one row; default 2")
    add("--minutes", type=parse_duration, default=16.0, metavar="M", help="after which no row is begun; default 16")
    add("--quick", action="store_true", help="three rounds of the first shape")
    add("--output", type=Path, metavar="DIR", help="where to write; default docs/ for a full run, else nowhere")
    flags = parser.parse_args(arguments)
    some = flags.shapes or flags.cells or flags.conditions or flags.peers or flags.quick
    where = places(flags.output, whole=not some)
    if where and jax.default_backend() != "cpu":
        raise SystemExit(f"benchmarks.step measures a CPU, and JAX runs on {jax.default_backend()}: see benchmarks.gpu")
    budget = 1e-3 if flags.quick else flags.seconds
    dtype = DTYPES[flags.dtype]
    chosen = installed([e for e in entries if not flags.peers or e.name in (AUTO.name, *flags.peers)])
    rows = [
        Row(cell, condition, shape)
        for condition in flags.conditions or CONDITIONS
        for cell in flags.cells or GATES
        for shape in flags.shapes or (SHAPES[:1] if flags.quick else SHAPES)
    ]
    load, start = os.getloadavg()[0], time.perf_counter()
    machine = roofline.measure_machine({row.shape for row in rows}, dtype) if where else None
    results, late = [], []
    for k, row in enumerate(rows):
        if time.perf_counter() - start > 60 * flags.minutes:
            late.append(str(row))
            continue
        print(f"{time.perf_counter() - start:4.0f} s  {k + 1} of {len(rows)}: {row}", file=sys.stderr, flush=True)
        results.append(measure(row, [entry for entry in chosen if entry.runs(row)], dtype, budget))
    profile = roofline.profile(results, dtype) if where else {}
    seconds = time.perf_counter() - start
    about = conditions(arguments, flags.dtype, load, seconds)
    if late:
        about.append([f"not begun after {flags.minutes:g} min", "; ".join(late)])
    for caption, table in page.tables(results).items():
        print(f"\n{caption}\n\n{text_table(table)}")
    print("\n" + "\n".join(f"{name}: {value}" for name, value in about[1:]))
    if where and machine:
        suffix = "" if flags.dtype == "float32" else f"-{flags.dtype}"
        page.write(results, about, where, f"benchmarks{suffix}", tolerance(dtype))
        roofline.write(results, machine, profile, about, where.pages / f"roofline{suffix}.md")
        print(f"\nwritten: {where.pages}/benchmarks{suffix}.md and roofline{suffix}.md, with figure and results")


if __name__ == "__main__":
    main(sys.argv[1:])
