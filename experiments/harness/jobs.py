"""The jobs of a sweep on a cluster: what they run, and the state that Slurm reports for them.

Slurm is asked through its commands, each with a time limit: `squeue`, which every cluster has, and `sacct`, which needs
accounting, about jobs that Slurm has forgotten. A command that fails is run again, with one message.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from experiments.harness import runs
from experiments.harness.experiment import define
from experiments.harness.workers import Stops

# All in seconds.
TIMEOUT = 30.0  # of one command
SUBMISSION = 300.0  # of sbatch, which retries on its own
EVERY = 5.0  # between two looks at the queue
SETTLED = 10.0  # from the end of a job until the files that it left are all to be seen from here
IDLE = 60.0  # without a running job, until a message
ENDING = 60.0  # for cancelled jobs; Slurm kills what ignores SIGTERM after KillWait, 30 by default
STARTING = 60.0  # without an answer, before anything was submitted
PATIENCE = 3600.0  # without an answer, where jobs may run

# Every other state leads to one of these, or back to PENDING where the job is queued again.
ENDED = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "it was cancelled",
    "COMPLETED": "it ended, without a result",
    "DEADLINE": "its deadline came",
    "FAILED": "it failed",
    "NODE_FAIL": "its node failed, and this cluster does not queue such a job again",
    "OUT_OF_MEMORY": "it ran out of memory: set SBATCH_MEM_PER_NODE (as 16G) before the same command",
    "PREEMPTED": "it was preempted, and this cluster does not queue such a job again",
    "REVOKED": "another cluster of the federation took it",
    "TIMEOUT": "it reached its time limit: raise --slurm_minutes",
}


class NoAnswer(Exception):  # noqa: N818 (no Error in the name)
    """A command of Slurm is missing, failed or took too long; the message names it and the reason."""


class Job:
    """One run as submitit calls it, and again after a preemption, a time limit or the loss of its node."""

    def __call__(self, experiment: str, config: SimpleNamespace, directory: Path) -> None:
        """Trains, and has the job queued again where Slurm announces its end (SIGUSR2).

        Submitit would break off whatever runs when the signal comes. So the loop is asked to save its state first: by
        SIGINT, since Slurm sends SIGTERM itself, and of any signal the loop takes a second one for an order.
        """
        requeue: Any = signal.getsignal(signal.SIGUSR2)
        announced: list[int] = []

        def announce(number: int, _: Any) -> None:
            if not announced:
                announced.append(number)
                signal.raise_signal(signal.SIGINT)

        signal.signal(signal.SIGUSR2, announce)
        # Heard where no loop runs; submitit ignores SIGTERM, up to SIGKILL.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        try:
            # A job that is queued again may start while its predecessor is ending.
            runs.run_one(define(importlib.import_module(experiment)), config, directory, wait=60)
        except SystemExit:
            if announced:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes with being queued again
                try:
                    requeue(announced[0], None)
                except RuntimeError as error:  # submitit's: after three times
                    raise RuntimeError(f"{str(error).rstrip('.')}: raise --slurm_minutes; the state is saved") from None
            raise

    def checkpoint(self, *arguments: Any) -> Any:
        """Returns what submitit calls when the job runs again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


class State(NamedTuple):
    """Of a job: as `squeue` calls it ("PENDING"), and its reason ("Resources", "None")."""

    name: str
    reason: str


def ask(*command: str) -> str:
    """Returns what a command of Slurm prints.

    Raises:
        NoAnswer: see there.
    """
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} took more than {TIMEOUT:.0f} s") from None
    except OSError as error:
        raise NoAnswer(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").split("\n")
        message = next(filter(None, map(str.strip, lines)), f"exit code {done.returncode}")
        raise NoAnswer(message if message.startswith(command[0]) else f"{command[0]}: {message}")
    return done.stdout.decode(errors="replace")


def queue(folder: Path) -> dict[str, State]:
    """Returns the jobs whose script is in `folder`, by number ("12", "12_0"): those that wait or run, or ended lately.

    Raises:
        NoAnswer: `ask`'s.
    """
    jobs = {}
    answer = ask("squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%r|%o")
    for line in filter(None, answer.split("\n")):
        job, state, reason, script = line.split("|", 3)
        if Path(script).parent == folder:
            jobs[job] = State(state, reason)
    return jobs


def unfinished(folder: Path) -> dict[str, State]:
    """Returns the jobs of `queue` that have not ended."""
    return {job: state for job, state in queue(folder).items() if state.name not in ENDED}


class Watch:
    """Looks at the queue every few seconds, and reports once what keeps jobs from running."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._next = self._answered = self._busy = time.monotonic()
        self._ended: dict[str, float] = {}  # when a job was first seen to have ended
        self._problem = self._waiting = ""

    def look(self, jobs: Sequence[str]) -> dict[str, str]:
        """Returns those of the jobs that have ended, each with how it did, in one line."""
        now = time.monotonic()
        if now < self._next:
            return {}
        self._next = now + EVERY
        try:
            found = queue(self._folder)
        except NoAnswer as problem:
            if not self._problem:
                print(f"Slurm does not answer ({problem}); it is asked again every {EVERY:.0f} s", file=sys.stderr)
            self._problem = str(problem)
            if now < self._answered + PATIENCE:
                return {}
            given_up = f"Slurm has not answered for {PATIENCE / 60:.0f} minutes ({problem})"
            return {job: f"{given_up}; job {job} may still run: scancel {job}" for job in jobs}
        if self._problem:
            print("Slurm answers again", file=sys.stderr)
        self._answered, self._problem = now, ""
        self._say_what_waits([found[job] for job in jobs if job in found], now)
        over = []
        for job in jobs:
            if job in found and found[job].name not in ENDED:
                self._ended.pop(job, None)
            elif now >= self._ended.setdefault(job, now) + SETTLED:
                over.append(job)
        states = {job: found[job].name for job in over if job in found}
        states |= _forgotten([job for job in over if job not in found])
        how = {job: ENDED.get(states.get(job, ""), "it has left the queue, without a result") for job in over}
        return {job: f"job {job} of Slurm: {how[job]}" for job in over}

    def _say_what_waits(self, states: Sequence[State], now: float) -> None:
        waiting = [state for state in states if state.name not in ENDED]
        if any(state.name in ("RUNNING", "COMPLETING") for state in waiting):
            self._busy = now
        kinds = ", ".join(sorted({f"{state.name} ({state.reason})" for state in waiting}))
        if waiting and now >= self._busy + IDLE and kinds != self._waiting:
            self._waiting = kinds
            print(f"no job runs, {len(waiting)} wait: {kinds}; squeue --me shows why", file=sys.stderr)


def _forgotten(jobs: Sequence[str]) -> dict[str, str]:
    """The states of jobs that are in the queue no longer, where there is accounting."""
    if not jobs:
        return {}
    try:
        answer = ask(
            "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", "-j", ",".join(jobs)
        )
    except NoAnswer:  # usually: there is no such job
        return {}
    rows = (line.split("|", 1) for line in answer.split("\n") if "|" in line)
    return {job: state.split()[0] for job, state in rows if state}  # "CANCELLED by 1000"


def cancel(folder: Path, known: Iterable[str], stops: Stops) -> None:
    """Cancels all jobs of `folder`, and returns when they have ended; names those that may not have.

    It takes at most ENDING seconds and a command, less where this process is asked to stop a second time. `known` are
    the jobs to name where Slurm does not answer.
    """
    start, left, problem = time.monotonic(), list(known), ""
    while True:
        try:
            left = list(unfinished(folder))
            if not left:
                return
            ask("scancel", *left)
            problem = ""
        except NoAnswer as error:
            problem = f" ({error})"
        if stops.insisted or time.monotonic() > start + ENDING:
            print(f"jobs of Slurm may still run{problem}: scancel {' '.join(left)}", file=sys.stderr)
            return
        time.sleep(0.5)


def left_behind(folder: Path, stops: Stops) -> dict[str, State]:
    """Returns the jobs of an earlier launcher that still wait or run, once none is about to end.

    Raises:
        NoAnswer: Slurm did not answer for STARTING seconds.
    """
    start, problem = time.monotonic(), ""
    while True:
        stops.check()
        late = time.monotonic() > start + STARTING
        try:
            found = unfinished(folder)
            if late or not any(state.name == "COMPLETING" for state in found.values()):
                return found
        except NoAnswer as error:
            if late:
                raise
            if not problem:
                print(f"Slurm does not answer ({error}); retrying for {STARTING:.0f} s more", file=sys.stderr)
            problem = str(error)
        stops.pause(1)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block, which must be in the main thread, after `seconds`."""

    def expire(*_: Any) -> None:
        raise TimeoutError(f"no end within {seconds:.0f} s")

    start = time.monotonic()
    handler = signal.signal(signal.SIGALRM, expire)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # somebody else's
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 0.001))
