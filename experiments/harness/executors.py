"""Executors: where the runs of a sweep are trained.

Each is a generator of (member, error) in the order in which runs end, the error one line, or None for a finished
run. A run that fails ends alone. Closing the generator ends what it started, and everything can be resumed.
"""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from experiments.harness import ending, jobs, runs, workers
from experiments.harness.experiment import Definition
from experiments.harness.flags import arguments, recorded
from seqjax.train.run import Run


class Member(NamedTuple):
    """One run of a sweep."""

    name: str  # of its directory
    point: dict[str, Any]  # the swept flags
    flags: dict[str, Any]  # the flags given: fixed and swept
    config: SimpleNamespace  # all flags
    directory: Path


Outcomes = Iterator[tuple[Member, str | None]]


def debug(definition: Definition, members: Sequence[Member]) -> Outcomes:
    """Runs one after the other in this process."""
    for member in members:
        error = None
        try:
            runs.run_one(definition, member.config, member.directory)
        except Exception as exception:
            error = ending.summary(exception)
        yield member, error


def vmap(definition: Definition, members: Sequence[Member]) -> Outcomes:
    """Trains runs that differ only in traced flags as lanes of one compiled program, one group after the other."""
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(repr(recorded(definition.untraced(member.config))), []).append(member)
    for group in groups.values():
        if len(group) == 1:
            yield from debug(definition, group)
            continue
        try:
            configs, directories = [m.config for m in group], [m.directory for m in group]
            errors = runs.run_lanes(definition, configs, directories)
        except Exception as exception:
            errors = [ending.summary(exception)] * len(group)
        yield from zip(group, errors, strict=True)


def local(definition: Definition, members: Sequence[Member], *, processes: int) -> Outcomes:
    """Trains each run in a fresh process, `processes` at a time, with their output in log.txt of the run.

    The processors of the machine, and the memory of its accelerator, are divided among the processes (environment
    variables that are set already win), because each would otherwise take all of them. Large sums may be split
    differently among fewer threads, so a result may differ from `debug`'s in the last bits.
    """
    waiting = list(reversed(members))
    running: dict[workers.Worker, Member] = {}
    environment = _environment(min(processes, len(members)))
    with workers.stop_requests() as stops:
        try:
            while waiting or running:
                stops.check()
                outcomes: list[tuple[Member, str | None]] = []
                while waiting and len(running) < processes:
                    member = waiting.pop()
                    try:
                        running[_start(definition, member, environment)] = member
                    except OSError as error:
                        outcomes.append((member, f"could not be started: {ending.summary(error)}"))
                for worker in list(running):
                    if (code := worker.ended()) is not None:
                        member = running.pop(worker)
                        outcomes.append((member, _outcome(member, _ending(code, member.directory / "log.txt"))))
                yield from outcomes
                if not outcomes:
                    stops.pause(0.05)
        finally:
            workers.end(running, stops)


def slurm(
    definition: Definition,
    members: Sequence[Member],
    *,
    processes: int,
    partition: str | None = None,
    minutes: int = 60,
    cluster: str = "slurm",
) -> Outcomes:
    """Submits each run as a job of an array, at most `processes` at a time, and waits for them.

    A job that Slurm preempts, or whose node fails, is queued again and resumes from its last checkpoint. Ending this
    process cancels the jobs; where it was killed, the next one waits for those that it left behind. `cluster` is
    submitit's: "slurm", or "local" to try it without one.
    """
    import submitit

    folder = members[0].directory.parent / "slurm"
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(
        name=definition.name,
        timeout_min=minutes,
        # Of a short time most must be left to train; 90 s are submitit's own.
        slurm_signal_delay_s=min(90, 15 * minutes),
        slurm_partition=partition,
        slurm_array_parallelism=processes,
        # Also on a cluster that does not by default.
        slurm_additional_parameters={"requeue": True},
        slurm_setup=[f"export PYTHONPATH={shlex.quote(_python_path())}"],
    )
    watch = jobs.Watch(folder) if cluster == "slurm" else None
    running: dict[Any, Member] = {}
    submitted = False
    with workers.stop_requests() as stops:
        try:
            try:
                running |= _left_behind(folder, members, stops) if watch else {}
                running |= _submit(executor, definition, [m for m in members if m not in running.values()])
                submitted = True
            except (RuntimeError, OSError, jobs.NoAnswer) as error:  # RuntimeError: submitit's, with what sbatch said
                reason = error.__cause__ if isinstance(error.__cause__, TimeoutError) else error
                yield from ((member, f"could not be submitted: {' '.join(str(reason).split())}") for member in members)
                return
            while running:
                stops.check()
                if watch:
                    over = watch.look([job.job_id for job in running])
                else:
                    over = {job.job_id: "it ended, without a result" for job in running if job.done()}
                files = set(os.listdir(folder))  # refreshes a network file system, unlike a test for a file
                ended = [job for job in running if job.job_id in over or job.paths.result_pickle.name in files]
                for job in ended:
                    member = running.pop(job)
                    yield member, _outcome(member, _failure(job, over.get(job.job_id, "")))
                if not ended:
                    stops.pause(1 if watch else 0.1)
        finally:
            if watch and (running or not submitted):
                jobs.cancel(folder, [job.job_id for job in running], stops)
            elif not watch:
                for job in running:
                    job.cancel()


def require_slurm() -> None:
    """Raises ValueError where submitit or Slurm is not installed."""
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("--executor=slurm needs submitit: pip install 'seqjax[slurm]'")
    if shutil.which("sbatch") is None:
        raise ValueError("--executor=slurm: there is no sbatch here; start it where Slurm accepts jobs")


def _environment(processes: int) -> dict[str, str]:
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    shares = {
        "NPROC": threads,  # what XLA's CPU client takes for the size of its thread pools
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.75 / processes:.3f}",
    }
    return {**shares, **os.environ, "PYTHONPATH": _python_path()}


def _python_path() -> str:
    """Where this process finds modules: experiments/ is not installed, and a worker may start in another directory."""
    return os.pathsep.join(path for path in sys.path if path)


def _start(definition: Definition, member: Member, environment: dict[str, str]) -> workers.Worker:
    member.directory.mkdir(parents=True, exist_ok=True)
    (member.directory / "error.txt").unlink(missing_ok=True)
    flags = arguments({**vars(member.config), "workdir": member.directory})
    command = [sys.executable, "-m", definition.name, *flags]
    return workers.Worker(member.name, command, member.directory / "log.txt", environment)


def _submit(executor: Any, definition: Definition, members: Sequence[Member]) -> dict[Any, Member]:
    if not members:
        return {}
    for member in members:
        (member.directory / "error.txt").unlink(missing_ok=True)
    with jobs.time_limit(jobs.SUBMISSION), executor.batch():
        submitted = [executor.submit(jobs.Job(), definition.name, m.config, m.directory) for m in members]
    return dict(zip(submitted, members, strict=True))


def _left_behind(folder: Path, members: Sequence[Member], stops: workers.Stops) -> dict[Any, Member]:
    """The jobs of an earlier launcher that was killed, with their runs; one whose run is not known is cancelled."""
    import submitit

    found: dict[Any, Member] = {}
    for number in jobs.left_behind(folder, stops):
        job = submitit.SlurmJob(folder, number)
        try:
            directory = job.submission().args[2]
        except Exception as error:  # whatever is wrong with the file: usually it was never written
            print(f"job {number} of an earlier launcher is cancelled: {ending.summary(error)}", file=sys.stderr)
            jobs.ask("scancel", number)
            continue
        # It is none of them where its run has just finished.
        found |= [(job, member) for member in members if member.directory == directory]
    if found:
        print(f"waiting for jobs of an earlier launcher: {', '.join(job.job_id for job in found)}")
    return found


def _failure(job: Any, reason: str) -> str:
    """The error that submitit wrote for a failed job; without one, how it ended and the last line of its log."""
    if not job.paths.result_pickle.exists():
        words = _last_words(job.paths.stderr)
        if "User defined signal 2" in words:
            return f"{reason}: its time limit was announced before it could listen; raise --slurm_minutes"
        return f"{reason}; its last words: {words}" if words else reason
    try:
        # A sentence, a line of dashes, the trace, a line of dashes, where the logs are.
        return _last_line(re.split(r"\n-{20,}\n", str(job.exception()))[1])
    except Exception as error:  # whatever is wrong with the file
        return ending.summary(error)


def _ending(code: int, log: Path) -> str:
    """How a worker ended, or the last line of its log if that is more informative."""
    number = -code if code < 0 else code - 128
    if code == 0:
        return "it ended, without a result"
    if number == signal.SIGKILL:
        return "killed by SIGKILL, as by a machine that runs out of memory: try fewer --processes"
    if code < 0 or number in (signal.SIGTERM, signal.SIGINT):
        return f"killed by {signal.Signals(number).name if number in set(signal.Signals) else f'signal {number}'}"
    return _last_words(log) or f"exit code {code}"


def _outcome(member: Member, otherwise: str) -> str | None:
    """None for a run with a result, else why it has none, in one line: the error of the run, or `otherwise`."""
    with contextlib.suppress(OSError):
        os.listdir(member.directory)  # as above: over a network, files that were missing are looked for again
    try:
        run = Run.read(member.directory)
        return None if run.finished else (run.error or "").split("\n")[0] or otherwise
    except FileNotFoundError:  # it ended before it wrote anything
        return otherwise
    except (OSError, ValueError) as error:
        return ending.summary(error)


def _last_words(log: Path) -> str:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 10_000))
            return _last_line(file.read().decode(errors="replace"))
    except OSError:
        return ""


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")
