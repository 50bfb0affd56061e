"""The time from launch to the first training step: with an empty cache of compiled programs, and on a second launch.

python -m benchmarks.start            the main job; writes its section of docs/end_to_end.md; about a minute
python -m benchmarks.start --quick    one pair of launches of a tiny job; writes nothing
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.end_to_end import ROOT, Command, verdict
from experiments.harness.report import markdown_table

BUDGET = 100.0  # s, after which no pair is started
PAIRS = 5
TARGET = 0.5  # of the first launch
TINY = ("--units=4", "--length=8", "--steps_per_call=1", "--evaluate_every=0", "--truncation=full", "--sweep=seed=0:1")


def launch(cache: Path, job: Sequence[str]) -> float:
    """Seconds from the start of a process to the end of its first update.

    A record is written after a call of many updates and holds their total time; the share of all updates but one is
    subtracted. The process is then killed.
    """
    environment = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    with tempfile.TemporaryDirectory() as workdir, tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "launch.py", f"--workdir={workdir}", *job],
            cwd=ROOT,
            env={**environment, "XDG_CACHE_HOME": str(cache)},
            stdout=output,
            stderr=output,
        )
        try:
            while not (text := _first_line(Path(workdir))):
                if process.poll() is not None:
                    output.seek(0)
                    raise RuntimeError(f"launch.py ended before its first update:\n{output.read()}")
                time.sleep(0.005)
            seconds = time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
    record = json.loads(text)
    return seconds - record["seconds"] * (1 - 1 / record["step"])


def _first_line(workdir: Path) -> str:
    for path in workdir.glob("*/metrics.jsonl"):
        with contextlib.suppress(OSError):
            line, newline, _ = path.read_text().partition("\n")
            if newline:
                return line
    return ""


def imports() -> float:
    """Seconds of a process that only imports the modules of the main job."""
    start = time.perf_counter()
    code = "import launch, experiments.bptt_vs_tbptt, jax; jax.devices()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return time.perf_counter() - start


def section(first: Sequence[float], second: Sequence[float], imported: Sequence[float]) -> str:
    """The table and its explanation."""

    def row(name: str, values: Sequence[float]) -> list[str]:
        return [name, f"{statistics.median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"]

    table = [
        ["seconds", "median", "range"],
        row("first launch, empty cache", first),
        row("second launch", second),
        row("imports alone", imported),
    ]
    ratio = statistics.median(b / a for a, b in zip(first, second, strict=True))
    return "\n\n".join(
        [
            f"`python launch.py`, the main job, from the start of the process to the end of its first update; "
            f"{len(first)} pairs, each with its own cache directory. The library files are read once before "
            "the first pair.",
            markdown_table(table),
            verdict("The second launch over the first", ratio, TARGET),
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Measures, prints the section and writes it."""
    command = Command("start", "Time the first and the second launch.", arguments)
    first, second, imported = [], [], []
    imports()
    for turn in range(1 if command.quick else PAIRS):
        if turn and command.seconds > BUDGET:
            break
        with tempfile.TemporaryDirectory() as cache:
            for times in (first, second):
                times.append(launch(Path(cache), TINY if command.quick else ()))
        imported.append(imports())
    command.write("The second launch", section(first, second, imported))


if __name__ == "__main__":
    main(sys.argv[1:])
