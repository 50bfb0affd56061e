"""Executors: where the runs of a sweep are trained.

Each is a generator of (member, error) in the order in which runs end, the error one line, or None for a finished
run. A run that fails ends alone. Closing the generator ends what it started, and everything can be resumed.
"""

import contextlib
import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from experiments import base


class Member(NamedTuple):
    """One run of a sweep."""

    name: str  # of its directory
    point: dict[str, Any]  # the swept flags
    flags: dict[str, Any]  # the flags given: fixed and swept
    config: SimpleNamespace  # all flags
    directory: Path


Outcomes = Iterator[tuple[Member, str | None]]


def debug(module: ModuleType, members: Sequence[Member]) -> Outcomes:
    """Runs one after the other in this process."""
    for member in members:
        error = None
        try:
            base.run_one(module, member.config, member.directory)
        except Exception as exception:
            error = base.summary(exception)
        yield member, error


def vmap(module: ModuleType, members: Sequence[Member]) -> Outcomes:
    """Trains runs that differ only in NUMBERS as lanes of one compiled program, one group after the other."""
    groups: dict[str, list[Member]] = {}
    for member in members:
        rest = {name: v for name, v in base.recorded(member.config).items() if name not in module.NUMBERS}
        groups.setdefault(repr(rest), []).append(member)
    for group in groups.values():
        if len(group) == 1:
            yield from debug(module, group)
            continue
        try:
            configs, directories = [m.config for m in group], [m.directory for m in group]
            errors = base.run_lanes(module, configs, directories)
        except Exception as exception:
            errors = [base.summary(exception)] * len(group)
        yield from zip(group, errors, strict=True)


def local(module: ModuleType, members: Sequence[Member], *, processes: int) -> Outcomes:
    """Trains each run in a fresh process, `processes` at a time, with their output in log.txt of the run.

    The processors of the machine, and the memory of its accelerator, are divided among the processes (environment
    variables that are set already win), because each would otherwise take all of them. Large sums may be split
    differently among fewer threads, so a result may differ from `debug`'s in the last bits.
    """
    waiting = list(reversed(members))
    children: dict[subprocess.Popen, Member] = {}
    environment = _environment(min(processes, len(members)))
    with _sigterm_exits():
        try:
            while waiting or children:
                while waiting and len(children) < processes:
                    member = waiting.pop()
                    children[_start(module, member, environment)] = member
                ended = [child for child in children if child.poll() is not None]
                for child in ended:
                    member = children.pop(child)
                    yield member, _error(child.returncode, member.directory)
                if not ended:
                    time.sleep(0.05)
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait()


def slurm(
    module: ModuleType,
    members: Sequence[Member],
    *,
    processes: int,
    partition: str | None = None,
    minutes: int = 60,
    cluster: str = "slurm",
) -> Outcomes:
    """Submits each run as a job of an array, at most `processes` at a time, and waits for them.

    A job that Slurm preempts is queued again and goes on from its last checkpoint. Ending this process cancels the
    jobs. `cluster` is submitit's: "slurm", or "local" and "debug" to try it without one.
    """
    import submitit

    folder = members[0].directory.parent / "slurm"
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(
        name=base.name_of(module),
        timeout_min=minutes,
        slurm_partition=partition,
        slurm_array_parallelism=processes,
    )
    for member in members:
        (member.directory / "error.txt").unlink(missing_ok=True)
    with _sigterm_exits():
        with executor.batch():
            jobs = [
                executor.submit(_Job(), base.name_of(module), member.config, member.directory) for member in members
            ]
        running = dict(zip(jobs, members, strict=True))
        try:
            while running:
                ended = [job for job in running if job.done()]
                for job in ended:
                    exception = job.exception()
                    member = running.pop(job)
                    yield member, exception and _reason(member.directory, base.summary(exception))
                if not ended:
                    time.sleep(0.1 if cluster != "slurm" else 5)
        finally:
            for job in running:
                job.cancel()


def require_slurm() -> None:
    """Raises ValueError where submitit or Slurm is not installed."""
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("--executor=slurm needs submitit: pip install 'seqjax[slurm]'")
    if shutil.which("sbatch") is None:
        raise ValueError("--executor=slurm: there is no sbatch here; start it where Slurm accepts jobs")


class _Job:
    """One run as submitit calls it, and again after a preemption."""

    def __call__(self, experiment: str, config: SimpleNamespace, directory: Path) -> None:
        base.run_one(importlib.import_module(experiment), config, directory)

    def checkpoint(self, *arguments: Any) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


@contextlib.contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Makes SIGTERM an exception in the main thread, so that what was started is ended."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _environment(processes: int) -> dict[str, str]:
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    shares = {
        "NPROC": threads,  # what XLA's CPU client takes for the size of its thread pools
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.75 / processes:.3f}",
    }
    return {**shares, **os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _start(module: ModuleType, member: Member, environment: dict[str, str]) -> subprocess.Popen:
    member.directory.mkdir(parents=True, exist_ok=True)
    (member.directory / "error.txt").unlink(missing_ok=True)
    # All flags are named: with an axis of the study among them it is a single run.
    arguments = base.arguments({**vars(member.config), "workdir": member.directory})
    with open(member.directory / "log.txt", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", base.name_of(module), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C reaches this process only; it ends its children itself.
            start_new_session=True,
            # The lock of the sweep directory goes with them.
            close_fds=False,
        )


def _error(code: int, directory: Path) -> str | None:
    if code == 0:
        return None
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = (directory / "log.txt").read_text(errors="replace").split("\n")
    return _reason(directory, otherwise=next((line for line in reversed(lines) if line.strip()), f"exit code {code}"))


def _reason(directory: Path, otherwise: str) -> str:
    """What the run itself says about its failure, in one line."""
    path = directory / "error.txt"
    return path.read_text().split("\n", 1)[0] if path.exists() else otherwise
