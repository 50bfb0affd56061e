"""Compiles every cell by every method for an H100 and a TPU v5e, without having them, and writes docs/compiled.md.

    python -m tools.compiled             make test-compile; fails if a program costs more than tools/compiled.csv says
    python -m tools.compiled --update    writes tools/compiled.csv too

The compilers come with JAX's packages for these devices, each in a virtual environment of its own, `.venv-cuda` and
`.venv-tpu`, made here (6 GB and 1 GB). Where one cannot be installed, that target is left out with the reason.
Takes about a quarter of an hour. What must not grow is the number of kernels in the bodies of loops, and the bytes of
registers that a Pallas kernel spills. A compiler of another version may change both.
"""

import argparse
import csv
import datetime
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.harness.report import markdown_table
from seqjax.train import write_atomic

ROOT = Path(__file__).parents[1]
PAGE, EXPECTED = ROOT / "docs" / "compiled.md", ROOT / "tools" / "compiled.csv"
FIELDS = ("target", "cell", "method", "dtype", "kernels", "spilled")
PACKAGES = {"cuda": "jax[cuda12]", "tpu": "jax[tpu]"}
Record = dict[str, Any]
Costs = dict[tuple[str, ...], tuple[int, int]]


def environment(platform: str) -> Path | str:
    """The Python of a virtual environment with the compiler for a platform, made if need be; or why there is none."""
    python = ROOT / f".venv-{platform}" / "bin" / "python"
    if not (python.parent / "complete").exists():
        package = f"{PACKAGES[platform]}=={importlib.metadata.version('jax')}"
        commands = [
            [sys.executable, "-m", "venv", str(python.parents[1])],
            [str(python), "-m", "pip", "install", "-q", package, "scipy"],
        ]
        for command in commands:
            print(f"{platform}: {' '.join(command[-3:])}", flush=True)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return f"{package} cannot be installed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        (python.parent / "complete").touch()
    return python


def compile_for(platform: str, python: Path) -> list[Record]:
    """The records of all programs for a platform.

    Raises:
      RuntimeError: if the process of the compiler ends before it has compiled them all.
    """
    command = [str(python), "-m", "tools.compile_for", platform]
    start, records = time.perf_counter(), []
    with (
        tempfile.TemporaryFile("w+") as errors,  # a pipe would be full before anybody reads it
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        for line in process.stdout or ():
            record = json.loads(line)
            records.append(record)
            shown = " ".join(str(record[field]) for field in FIELDS[:4])
            print(f"{time.perf_counter() - start:5.0f} s  {shown}  {outcome(record)}", flush=True)
        process.wait()
        errors.seek(0)
        last = " ".join(errors.read().splitlines()[-3:])
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {last}")
    return records


def outcome(record: Record) -> str:
    """Seconds, or why there are none."""
    if "seconds" in record:
        return f"{record['seconds']:.1f}"
    return f"refused: {record['refused']}" if "refused" in record else f"failed: {record['failed']}"


def spilled(record: Record) -> int:
    """The bytes that the kernels of a program spill."""
    return sum(kernel[2] for kernel in record.get("registers", ()))


def costs(records: Iterable[Record]) -> Costs:
    """Kernels in loops and bytes spilled, by target, cell, method and dtype."""
    return {
        tuple(record[field] for field in FIELDS[:4]): (record["kernels"], spilled(record))
        for record in records
        if "kernels" in record
    }


def regressions(
    now: dict[tuple[str, ...], tuple[int, int]], before: dict[tuple[str, ...], tuple[int, int]]
) -> list[str]:
    """What costs more than before, or does not compile any more; of targets that were compiled now."""
    targets = {key[0] for key in now}
    found = []
    for key, old in before.items():
        if key[0] not in targets:
            continue
        name = " ".join(key)
        if key not in now:
            found.append(f"{name} does not compile any more")
            continue
        for what, new, was in zip(("kernels in loops", "bytes spilled"), now[key], old, strict=True):
            if new > was:
                found.append(f"{name}: {new} {what}, before {was}")
    return found


def expected() -> Costs:
    """The costs on file."""
    if not EXPECTED.exists():
        return {}
    with EXPECTED.open() as file:
        rows = [tuple(row[field] for field in FIELDS) for row in csv.DictReader(file)]
    return {row[:4]: (int(row[4]), int(row[5])) for row in rows}


def page(records: Sequence[Record], left_out: Sequence[str], minutes: float) -> str:
    """The page of all records."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib"))
    parts = [
        "# Compiled for devices that were not there",
        f"Written by `make test-compile` on {datetime.date.today():%Y-%m-%d}, {minutes:.0f} minutes, with {versions}. "
        "Each entry is the gradient of a loss of `seqjax.unroll`, compiled for an NVIDIA H100 or for a TPU v5e on a "
        "machine that has neither; nothing was run. Where a pair of cell and method does not compile, it has a reason.",
        *(f"Left out: {reason}." for reason in left_out),
    ]
    reasons: dict[str, str] = {}
    for target in dict.fromkeys(record["target"] for record in records):
        own = [record for record in records if record["target"] == target]
        parts += _sized(target, [record for record in own if "(" in record["cell"]])
        parts += _cells(target, [record for record in own if "(" not in record["cell"]], reasons)
    if reasons:
        parts += ["## Reasons", "\n".join(f"- {mark}: {reason}" for reason, mark in reasons.items())]
    return "\n\n".join(parts) + "\n"


def _sized(target: str, records: Sequence[Record]) -> list[str]:
    """Costs at the sizes of the benchmark."""
    if not records:
        return []
    table: list[list[Any]] = [["cell", "method", "dtype", "compiled in s", "temporary MB", "kernels in loops"]]
    table[0] += ["registers", "bytes spilled"] if target == "H100" else []
    for record in records:
        row = [record["cell"], record["method"], record["dtype"]]
        if "seconds" not in record:
            table.append([*row, outcome(record), *[""] * (len(table[0]) - 4)])
            continue
        row += [f"{record['seconds']:.1f}", f"{record['temporary'] / 1e6:.0f}", record["kernels"]]
        if target == "H100":
            names = sorted(record["registers"], reverse=True)
            row += [", ".join(str(kernel[1]) for kernel in names), ", ".join(str(kernel[2]) for kernel in names)]
        table.append(row)
    return [
        f"## {target}: LSTM and GRU, 256 sequences, 120 steps, 14 features",
        "Kernels in the bodies of loops, forward and backward, are started at every turn of a loop, which is one step, "
        "or 8 with `fused:8`. A Pallas kernel holds the whole loop; its registers per thread, and the bytes of them "
        "that it keeps in memory, are given forward, backward.",
        markdown_table(table),
    ]


def _cells(target: str, records: Sequence[Record], reasons: dict[str, str]) -> list[str]:
    """Seconds of compilation of every cell by every method."""
    columns = dict.fromkeys((record["method"], record["dtype"]) for record in records)
    heads = [method if dtype == "float32" else f"{method}, {dtype}" for method, dtype in columns]
    by_key = {(record["cell"], record["method"], record["dtype"]): record for record in records}

    def entry(record):
        if "seconds" in record:
            return f"{record['seconds']:.1f}"
        kind = "refused" if "refused" in record else "failed"
        return f"{kind} {reasons.setdefault(record[kind], f'({len(reasons) + 1})')}"

    rows = [
        [cell, *(entry(by_key[(cell, *column)]) for column in columns)] for cell in dict.fromkeys(k[0] for k in by_key)
    ]
    return [f"## {target}: every cell by every method, seconds", markdown_table([["cell", *heads], *rows])]


def main() -> None:
    """Compile, compare and write."""
    parser = argparse.ArgumentParser(prog="python -m tools.compiled", description="Compile for an H100 and a TPU v5e.")
    parser.add_argument("--update", action="store_true", help="take the costs as those to expect")
    for platform in PACKAGES:
        parser.add_argument(f"--{platform}_python", type=Path, metavar="FILE", help="of an environment that has it")
    flags = parser.parse_args()
    start, records, left_out = time.perf_counter(), [], []
    for platform in PACKAGES:
        python = getattr(flags, f"{platform}_python") or environment(platform)
        if isinstance(python, str):
            print(f"{platform} is left out: {python}", flush=True)
            left_out.append(f"{platform}: {python}")
        else:
            records += compile_for(platform, python)
    if not records:
        return
    write_atomic(PAGE, page(records, left_out, (time.perf_counter() - start) / 60))
    now = costs(records)
    if flags.update:
        kept = {key: value for key, value in expected().items() if key[0] not in {other[0] for other in now}}
        lines = [",".join(FIELDS), *(",".join(map(str, (*key, *value))) for key, value in (kept | now).items())]
        write_atomic(EXPECTED, "\n".join(lines) + "\n")
    worse = regressions(now, expected())
    sys.exit("\n".join(worse) if worse else 0)


if __name__ == "__main__":
    main()
