"""Faults of the workers and the jobs of a sweep, each done for real, at a random moment.

python -m tools.faults_of_workers [N [WORD]]    N trials of each fault whose name has WORD in it; 1 without
"""

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests import slurm
from tools.faults_of_runs import outcome

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1)
FLAGS = ["--steps=400", "--steps_per_call=10", "--checkpoint_every=20", "--learning_rate=0.003", "--model=line"]
LIMIT = 240  # seconds, for whatever a launcher does
GONE_ON = "interrupted; the same command resumes\n"


class Launcher:
    """`launch.py` on a sweep of two runs, its output in a file beside the sweep."""

    def __init__(
        self,
        directory: Path,
        executor: str = "local",
        environment: dict[str, str] | None = None,
        flags: Sequence[str] = FLAGS,
    ):
        self.sweep = directory / "sweep"
        self._output = directory / f"launcher{time.monotonic_ns()}.txt"
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        seeds = ",".join(map(str, SEEDS))
        flags = [f"--sweep=seed={seeds}", f"--executor={executor}", f"--workdir={self.sweep}", *flags]
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell: it would be inherited
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "launch.py", "--experiment=toy_experiment", *flags],
                cwd=ROOT,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path, **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._output.read_text()

    def end(self, expected: int, *words: str, within: float = LIMIT) -> None:
        """Waits until it ends, with that code, having said these words and no traceback."""
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"hung: no end within {within:.0f} s; it said: {self.said[-500:]}") from None
        said = self.said
        assert code == expected, f"wrong: exit code {code}, not {expected}; it said: {said[-500:]}"
        assert "Traceback" not in said, f"wrong: a traceback: {said[-500:]}"
        for word in words:
            assert word in said, f"silent: {word!r} is not in what it said: {said[-500:]}"


@functools.cache
def undisturbed() -> dict[str, list]:
    with tempfile.TemporaryDirectory() as directory:
        launcher = Launcher(Path(directory))
        launcher.end(0)
        return outcome(launcher.sweep)


def same(sweep: Path) -> None:
    """Fails where the sweep is not, bit for bit, the undisturbed one."""
    found, expected = outcome(sweep), undisturbed()
    assert len(expected) == len(SEEDS), "the undisturbed sweep is not whole"
    assert found.keys() == expected.keys(), f"lost: {sorted(expected.keys() - found.keys())} did not finish"
    assert found == expected, "wrong: the results differ from those of an undisturbed sweep"


def workers(sweep: Path) -> dict[str, int]:
    """The living processes of the runs, by the name of their run."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for argument in (process / "cmdline").read_bytes().decode(errors="replace").split("\0"):
                if argument.startswith(f"--workdir={sweep}/"):
                    found[argument.rpartition("/")[2]] = int(process.name)
    return found


def none_left(sweep: Path) -> None:
    assert not workers(sweep), f"wrong: workers are left: {workers(sweep)}"


def steps(run: Path) -> int:
    """The step of its newest checkpoint."""
    with contextlib.suppress(OSError):
        return max((int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()), default=0)
    return 0


def some_worker(launcher: Launcher) -> tuple[str, int]:
    """A worker that is starting, compiling or training, with the name of its run."""
    name = f"seed={random.choice(SEEDS)}"
    slurm.wait_for(lambda: name in workers(launcher.sweep), 120, "a worker")
    pid = workers(launcher.sweep)[name]
    at = random.choice([0, 20, 100, 200, 300])
    slurm.wait_for(lambda: steps(launcher.sweep / name) >= at, 120, f"step {at}")
    time.sleep(random.uniform(0, 0.5 if at else 3))
    return name, pid


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # its end was as good a moment
        os.kill(pid, number)


def worker_stopped_then_sigterm(directory: Path) -> None:
    launcher = Launcher(directory)
    _, pid = some_worker(launcher)
    send(pid, signal.SIGSTOP)
    launcher.process.send_signal(signal.SIGTERM)
    launcher.end(143, GONE_ON, within=60)
    none_left(launcher.sweep)
    Launcher(directory).end(0)


def worker_killed(directory: Path) -> None:
    launcher = Launcher(directory)
    name, pid = some_worker(launcher)
    send(pid, signal.SIGKILL)
    launcher.process.wait(LIMIT)
    if launcher.process.returncode:  # else it had its result
        launcher.end(1, f"FAILED   {name}: killed by SIGKILL")
    none_left(launcher.sweep)
    Launcher(directory).end(0)


def launcher_killed_and_relaunched(directory: Path) -> None:
    launcher = Launcher(directory)
    some_worker(launcher)
    launcher.process.kill()
    launcher.process.wait()
    left = workers(launcher.sweep)
    for pid in left.values():
        os.kill(pid, signal.SIGSTOP)  # so that they are still there when they are asked for
    if left:
        Launcher(directory).end(2, f"or end it: kill -KILL {' '.join(map(str, sorted(left.values())))}")
    for pid in left.values():
        os.kill(pid, random.choice([signal.SIGKILL, signal.SIGCONT]))
    slurm.wait_for(lambda: not workers(launcher.sweep), LIMIT, "the workers that were left")
    Launcher(directory).end(0)


def storm(number: int, code: int, directory: Path) -> None:
    launcher = Launcher(directory)
    some_worker(launcher)
    for _ in range(10):
        send(launcher.process.pid, number)
        time.sleep(random.uniform(0, 0.3))
    launcher.end(code, GONE_ON, within=60)
    none_left(launcher.sweep)
    Launcher(directory).end(0)


def worker_stopped_then_a_storm(directory: Path) -> None:
    launcher = Launcher(directory)
    _, pid = some_worker(launcher)
    send(pid, signal.SIGSTOP)
    for _ in range(10):
        send(launcher.process.pid, random.choice([signal.SIGTERM, signal.SIGINT]))
        time.sleep(random.uniform(0, 0.3))
    launcher.process.wait(60)
    launcher.end(launcher.process.returncode, GONE_ON)
    none_left(launcher.sweep)
    Launcher(directory).end(0)


@contextlib.contextmanager
def on_slurm(directory: Path) -> Iterator[tuple[slurm.Slurm, Launcher, str]]:
    """A launcher on a real Slurm, whose first or second run is at a random step, with that run's job."""
    with slurm.running() as cluster:
        launcher = Launcher(directory, "slurm", cluster.environment)
        try:
            index, at = random.randrange(len(SEEDS)), random.choice([20, 100, 200])
            run = launcher.sweep / f"seed={SEEDS[index]}"
            slurm.wait_for(lambda: steps(run) >= at or launcher.process.poll() is not None, LIMIT, f"step {at}")
            array = cluster.command("squeue", "--noheader", "--array", "--format=%F").split()
            assert array, f"lost: there is no job: {launcher.said[-500:]}"
            yield cluster, launcher, f"{array[0]}_{index}"
        finally:
            launcher.process.kill()
            launcher.process.wait()


def again(directory: Path, cluster: slurm.Slurm) -> None:
    Launcher(directory, "slurm", cluster.environment).end(0)


def slurm_cancels_one_job(directory: Path) -> None:
    with on_slurm(directory) as (cluster, launcher, job):
        cluster.command("scancel", job)
        launcher.end(1, f"job {job} of Slurm: it was cancelled")
        again(directory, cluster)


def slurm_cancels_the_array(directory: Path) -> None:
    with on_slurm(directory) as (cluster, launcher, job):
        cluster.command("scancel", job.partition("_")[0])
        launcher.end(1, f"job {job} of Slurm: it was cancelled")
        again(directory, cluster)


def slurm_requeues(directory: Path) -> None:
    with on_slurm(directory) as (cluster, launcher, job):
        cluster.command("scontrol", "requeue", job)
        launcher.end(0)


def slurm_announces_the_end_of_a_job(directory: Path) -> None:
    with on_slurm(directory) as (cluster, launcher, job):
        cluster.command("scancel", "--signal=USR2", job)
        launcher.end(0)
        log = (launcher.sweep / "slurm" / f"{job}_0_log.err").read_text()
        assert "Requeued job" in log, f"wrong: it did not queue itself again: {log[-500:]}"


def lost_node(power: bool, directory: Path) -> None:
    with on_slurm(directory) as (cluster, launcher, _):
        cluster.kill("slurmd")
        if power:
            cluster.kill_jobs()
        slurm.wait_for(lambda: "down" in cluster.command("sinfo", "--noheader", "--format=%T"), 60, "the loss")
        cluster.start("slurmd")
        launcher.end(0)


def slurm_controller_restarts(directory: Path) -> None:
    with on_slurm(directory) as (cluster, launcher, _):
        cluster.kill("slurmctld")
        time.sleep(random.uniform(0, 30))
        cluster.start("slurmctld")
        launcher.end(0)


def slurm_launcher_killed_and_relaunched(directory: Path) -> None:
    with on_slurm(directory) as (cluster, launcher, _):
        launcher.process.kill()
        launcher.process.wait()
        again(directory, cluster)


def slurm_launcher_gets_a_storm(directory: Path) -> None:
    with on_slurm(directory) as (cluster, launcher, _):
        for _ in range(10):
            launcher.process.send_signal(signal.SIGTERM)
            time.sleep(random.uniform(0, 0.05))
        launcher.end(143, GONE_ON)
        left = cluster.command("squeue", "--noheader")
        assert not left, f"wrong: jobs are left: {left}"
        again(directory, cluster)


LOCAL: dict[str, Callable[[Path], None]] = {
    "a worker is stopped, then the launcher gets SIGTERM": worker_stopped_then_sigterm,
    "a worker is stopped, then the launcher gets ten signals": worker_stopped_then_a_storm,
    "a worker is killed": worker_killed,
    "the launcher is killed, and launched again": launcher_killed_and_relaunched,
    "the launcher gets SIGTERM ten times": functools.partial(storm, signal.SIGTERM, 143),
    "the launcher gets SIGINT ten times": functools.partial(storm, signal.SIGINT, 130),
}
SLURM: dict[str, Callable[[Path], None]] = {
    "Slurm cancels one job": slurm_cancels_one_job,
    "Slurm cancels the array": slurm_cancels_the_array,
    "Slurm queues a job again": slurm_requeues,
    "Slurm announces the end of a job": slurm_announces_the_end_of_a_job,
    "Slurm loses a node, with its jobs": functools.partial(lost_node, True),
    "Slurm loses sight of a node, whose jobs live on": functools.partial(lost_node, False),
    "Slurm's controller is killed and started again": slurm_controller_restarts,
    "Slurm: the launcher is killed, and launched again": slurm_launcher_killed_and_relaunched,
    "Slurm: the launcher gets SIGTERM ten times": slurm_launcher_gets_a_storm,
}


def trial(fault: Callable[[Path], None], directory: Path) -> str:
    """Performs a fault once in an empty directory; returns "survived", or what was lost, wrong, silent or hung."""
    if fault in SLURM.values() and (reason := slurm.missing()):
        return f"not run: {reason}"
    try:
        fault(directory)
        none_left(directory / "sweep")
        same(directory / "sweep")
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        for pid in workers(directory / "sweep").values():
            send(pid, signal.SIGKILL)
    return "survived"


def trials() -> list[tuple[str, Callable[[Path], str]]]:
    """The name of each fault, and what performs one trial of it in an empty directory, see `trial`."""
    return [(name, functools.partial(trial, fault)) for name, fault in (LOCAL | SLURM).items()]


def main() -> int:
    count, word = int((sys.argv[1:] or ["1"])[0]), "".join(sys.argv[2:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a Slurm is not left behind
    bad = 0
    for name, perform in trials():
        for _ in range(count if word in name else 0):
            with tempfile.TemporaryDirectory() as directory:
                start = time.monotonic()
                verdict = perform(Path(directory))
                bad += verdict != "survived"
                print(f"{time.monotonic() - start:4.0f} s  {name}: {verdict}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
