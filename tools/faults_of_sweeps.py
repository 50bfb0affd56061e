"""Trials of sweeps on disks that fill up, only read, or are gone: `trials()` lists them, real processes do them.

    python -m tools.faults_of_sweeps [NAME...]    run those whose name holds NAME, and count

Needs root, which mounts the disks. A trial survives if every launch ends by itself with an exit code and lines that
say what is wrong, no traceback among them, and if the launch after the fault, by the same command, ends with the files
of a sweep that nothing disturbed, clocks aside.
"""

import contextlib
import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.faults_of_runs import without_clocks

ROOT = Path(__file__).parents[1]
SWEEP = "model=line;seed=0:3"
NAMES = [f"model=line,seed={seed}" for seed in range(3)]
FLAGS = ("--steps=40", "--learning_rate=0.05", "--checkpoint_every=10")


class LossError(Exception):
    """What a fault took with it, in a sentence."""


def can_mount() -> bool:
    """Whether this process may mount a disk."""
    try:
        with tempfile.TemporaryDirectory() as directory, disk(Path(directory), "64k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def disk(directory: Path, size: str) -> Iterator[Path]:
    """Mounts a disk in memory at `directory`."""
    directory.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True, capture_output=True)


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def command(workdir: Path, executor: str) -> list[str]:
    sweep = ("--experiment=toy_experiment", f"--sweep={SWEEP}", f"--executor={executor}", f"--workdir={workdir}")
    return [sys.executable, str(ROOT / "launch.py"), *sweep, *FLAGS]


def start(workdir: Path, executor: str) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "0",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(workdir, executor), cwd=ROOT, env=environment, **pipes)


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    """The exit code and the output of a launch, which must come to an end and say its troubles in its own words."""
    try:
        out, err = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise LossError("hung: it did not end within three minutes") from None
    if found := re.search(r"Traceback \(most recent call last\):\n(?:.*\n)*?(\S*(?:Error|Exception).*)", err):
        raise LossError(f"a traceback: {found[1][:300]}")
    if process.returncode not in (0, 1, 2):
        raise LossError(f"exit code {process.returncode}: {err[-300:]}")
    if process.returncode and not err.strip():
        raise LossError(f"exit code {process.returncode} without a word")
    return process.returncode, out, err


def outcome(directory: Path) -> dict:
    """What a sweep leaves, without what a clock or the machine decides."""
    with open(directory / "results.csv") as file:
        rows = without_clocks(list(csv.DictReader(file)))
    sweep = json.loads((directory / "sweep.json").read_text()) | {"commit": None}  # of a tree that is worked on
    runs = {
        name: (
            without_clocks([json.loads((directory / name / "result.json").read_text())]),
            without_clocks(list(map(json.loads, (directory / name / "metrics.jsonl").read_text().splitlines()))),
        )
        for name in NAMES
    }
    report = (directory / "report.html").read_text()
    files = sorted(path.name for path in (directory / "figures").iterdir())
    return {"rows": rows, "sweep": sweep, "runs": runs, "figures": files, "report": report.count("<section>")}


@functools.cache
def undisturbed(executor: str) -> dict:
    """The outcome of a sweep that nothing happened to."""
    with tempfile.TemporaryDirectory() as directory:
        code, _, err = end(start(Path(directory) / "sweep", executor))
        if code:
            raise LossError(f"the undisturbed sweep ended with {code}: {err[-300:]}")
        return outcome(Path(directory) / "sweep")


def check_whole(directory: Path, executor: str) -> None:
    """Launches the sweep again, and compares what it leaves with the undisturbed one."""
    code, _, err = end(start(directory, executor))
    if code or "WARNING" in err or "FAILED" in err:
        raise LossError(f"launched again it ended with {code}: {err.strip()[-300:]}")
    found, expected = outcome(directory), undisturbed(executor)
    if different := [part for part in expected if found[part] != expected[part]]:
        raise LossError(f"launched again it left other {', '.join(different)}")


def survived(trial: Callable[..., None]) -> Callable[..., str]:
    @functools.wraps(trial)
    def performed(*arguments) -> str:
        try:
            trial(*arguments)
        except LossError as lost:
            return str(lost)
        return "survived"

    return performed


@survived
def full(size: str, executor: str, freed: str, directory: Path) -> None:
    """The disk of the sweep fills up while it runs; later there is room, by a larger disk or by what was removed."""
    undisturbed(executor)
    with disk(directory / "disk", "16m" if freed == "remove" else size) as place:
        ballast = place / "ballast"
        if freed == "remove":
            ballast.write_bytes(b"\0" * (16 * 2**20 - _bytes(size)))
        code, _, err = end(start(place / "sweep", executor))
        if not code and "No space left" not in err:
            raise LossError("the disk was too large: nothing went wrong")
        if "No space left" not in err:
            raise LossError(f"nothing says that the disk is full: {err.strip()[-300:]}")
        if freed == "remove":
            ballast.unlink()
        else:
            mount("-o", "remount,size=16m", place)
        check_whole(place / "sweep", executor)


def _bytes(size: str) -> int:
    return int(size[:-1]) * 2**10


@survived
def read_only(before: str, executor: str, directory: Path) -> None:
    """The disk of the sweep only reads before it is launched: for the first time, or as it is finished."""
    undisturbed(executor)
    with disk(directory / "disk", "16m") as place:
        sweep = place / "sweep"
        if before == "finished" and end(start(sweep, executor))[0]:
            raise LossError("it failed on a sound disk")
        content = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
        mount("-o", "remount,ro", place)
        code, out, err = end(start(sweep, executor))
        if before == "finished" and (code or "final_loss" not in out or "can be written" not in err):
            raise LossError(f"a finished sweep cannot be looked at: exit code {code}, {err.strip()[-300:]}")
        if before != "finished" and (code != 1 or "Read-only file system" not in err):
            raise LossError(f"nothing says that the disk is read-only: exit code {code}, {err.strip()[-300:]}")
        if content != {path: path.stat().st_mtime_ns for path in place.rglob("*")}:
            raise LossError("a disk that only reads was written to")
        mount("-o", "remount,rw", place)
        check_whole(sweep, executor)


@survived
def locked(moment: str, executor: str, directory: Path) -> None:
    """From a moment on, while the sweep runs, its directories and files cannot be changed, by root either."""
    undisturbed(executor)
    sweep = directory / "sweep"
    process = start(sweep, executor)
    try:
        _wait_for(sweep / moment, process)
        subprocess.run(["chattr", "-R", "-f", "+i", sweep], check=False, capture_output=True)
        code, _, err = end(process)
    finally:
        subprocess.run(["chattr", "-R", "-f", "-i", sweep], check=False, capture_output=True)
    if not code:
        raise LossError(f"exit code 0, though nothing could be written: {err.strip()[-300:]}")
    if "not permitted" not in err:
        raise LossError(f"nothing says that nothing can be written: {err.strip()[-300:]}")
    check_whole(sweep, executor)


@survived
def removed(moment: str, executor: str, directory: Path) -> None:
    """The directory of the sweep is removed while it runs."""
    undisturbed(executor)
    sweep = directory / "sweep"
    process = start(sweep, executor)
    _wait_for(sweep / moment, process)
    for _ in range(50):  # what is written meanwhile is removed too
        shutil.rmtree(sweep, ignore_errors=True)
        time.sleep(0.002)
    code, _, err = end(process)
    # What only starts later makes its own directory again; the others must say what they miss.
    if not code and not err.strip():
        missing = [name for name in NAMES if not (sweep / name / "result.json").exists()]
        if missing:
            raise LossError(f"exit code 0 without a word, but {', '.join(missing)} left no result")
    check_whole(sweep, executor)


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise LossError(f"the sweep ended before it wrote {path.name}: {end(process)[2].strip()[-300:]}")
        time.sleep(0.001)


def trials() -> list[tuple[str, Callable[[Path], str]]]:
    """Each fault by name, with what performs it once in an empty directory and says "survived", or what was lost."""
    sizes = ["4k", "8k", "16k", "24k", "32k", "48k", "64k", "96k", "128k", "160k", "192k", "224k", "256k", "288k"]
    found: list[tuple[str, Callable[[Path], str]]] = []
    for i, size in enumerate(sizes):
        executor, freed = ("debug", "vmap", "local")[i % 3], ("enlarge", "remove")[i % 2]
        found.append((f"full disk, {size}, {executor}, {freed}", functools.partial(full, size, executor, freed)))
    for i, size in enumerate(["12k", "40k", "80k", "112k", "144k", "176k"]):
        executor, freed = ("local", "debug", "vmap")[i % 3], ("remove", "enlarge")[i % 2]
        found.append((f"full disk, {size}, {executor}, {freed}", functools.partial(full, size, executor, freed)))
    for executor in ("debug", "vmap", "local"):
        by_name = {
            "read-only disk, first launch": functools.partial(read_only, "first launch", executor),
            "read-only disk, finished sweep": functools.partial(read_only, "finished", executor),
            "directory locked at its start": functools.partial(locked, "sweep.json", executor),
            "directory locked at the first run": functools.partial(locked, f"{NAMES[0]}/config.json", executor),
            "directory removed at its start": functools.partial(removed, "sweep.json", executor),
            "directory removed at the first run": functools.partial(removed, f"{NAMES[0]}/config.json", executor),
            "directory removed at the last run": functools.partial(removed, f"{NAMES[2]}/config.json", executor),
        }
        if executor == "vmap":  # all runs at once: the last is the first
            del by_name["directory removed at the last run"]
        found += [(f"{name}, {executor}", trial) for name, trial in by_name.items()]
    return found


def main(wanted: list[str]) -> int:
    counts: Counter[bool] = Counter()
    for name, trial in trials():
        if wanted and not any(part in name for part in wanted):
            continue
        with tempfile.TemporaryDirectory() as directory:
            said = trial(Path(directory))
        counts[said == "survived"] += 1
        print(f"{name}: {said}", flush=True)
    print(f"{counts[True]} of {counts.total()} survived")
    return int(counts[False] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
