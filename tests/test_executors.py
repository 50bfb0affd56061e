"""Workers that stop, are deaf, or are left behind, with real processes; jobs with commands that play Slurm's."""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import toy_experiment as toy

from experiments.harness import executors, jobs, sweep, workers
from experiments.harness.experiment import define
from seqjax.train.run import Run
from tests import slurm as real_slurm
from tools.faults_of_workers import SLURM, Launcher, none_left, steps, trial
from tools.faults_of_workers import workers as workers_of

DEAF = "trap '' TERM; while :; do sleep 0.05; done"


@pytest.fixture
def start(tmp_path):
    """Starts a shell command as a worker; all are killed at the end."""
    started = []

    def start(command, name="seed=0"):
        started.append(workers.Worker(name, ["sh", "-c", command], tmp_path / "log.txt", dict(os.environ)))
        return started[-1]

    yield start
    for worker in started:
        if worker.ended() is None:
            worker.signal(signal.SIGKILL)
            wait_for(lambda worker=worker: worker.ended() is not None)


@pytest.fixture
def stops():
    """The stop requests that this process gets; its handlers are as before at the end."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = {number: signal.getsignal(number) for number in numbers}
    with workers.stop_requests() as stops:
        yield stops
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_for(condition, seconds=60.0):
    real_slurm.wait_for(condition, seconds, "the test")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def state(worker):
    return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0]


# ---- processes


def test_a_worker_that_heeds_sigterm_is_not_killed(start, stops, tmp_path, capsys):
    worker = start("trap 'echo saved; exit 143' TERM; echo ready; while :; do sleep 0.05; done")
    wait_for(lambda: "ready" in (tmp_path / "log.txt").read_text())
    workers.end([worker], stops)
    assert worker.ended() == 143
    assert "saved" in (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().err == ""


def test_a_stopped_worker_heeds_sigterm_too(start, stops, tmp_path):
    worker = start("trap 'echo saved; exit 143' TERM; echo ready; while :; do sleep 0.05; done")
    wait_for(lambda: "ready" in (tmp_path / "log.txt").read_text())
    worker.signal(signal.SIGSTOP)
    wait_for(lambda: state(worker) in "TD")  # D: the shell waits for a child that was stopped before it was one
    workers.end([worker], stops)
    assert worker.ended() == 143
    assert "saved" in (tmp_path / "log.txt").read_text()


def test_a_worker_that_ignores_sigterm_is_killed_and_named(start, stops, monkeypatch, capsys):
    monkeypatch.setattr(workers, "GRACE", 0.3)
    worker = start(DEAF)
    time.sleep(0.2)
    began = time.monotonic()
    workers.end([worker], stops)
    assert 0.3 < time.monotonic() - began < 5
    assert worker.ended() == -signal.SIGKILL
    assert capsys.readouterr().err == f"seed=0 (pid {worker.pid}) did not end after SIGTERM and is killed\n"


def test_a_second_request_kills_at_once_and_a_storm_is_one_request(start, stops, capsys):
    worker = start(DEAF)
    time.sleep(0.2)
    for _ in range(10):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stops == [signal.SIGTERM] * 10
    assert not stops.insisted
    later = subprocess.Popen(["sh", "-c", f"sleep 1.5; kill -INT {os.getpid()}"])
    began = time.monotonic()
    workers.end([worker], stops)
    assert 1 < time.monotonic() - began < 10
    assert worker.ended() == -signal.SIGKILL
    assert later.wait() == 0
    assert "is killed" in capsys.readouterr().err


def test_what_survives_sigkill_is_named(stops, monkeypatch, capsys):
    monkeypatch.setattr(workers, "GRACE", 0.1)
    monkeypatch.setattr(workers, "DEATH", 0.1)

    class Immortal:  # as one that waits for a disk that is gone
        name, pid = "seed=0", 12

        def signal(self, number): ...

        def ended(self): ...

    workers.end([Immortal()], stops)
    assert "seed=0 (pid 12) does not even end after SIGKILL" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["exit 0", "kill -KILL $$"])
def test_what_a_worker_started_ends_with_it(start, tmp_path, end):
    child = f"({DEAF}) & echo $! > {tmp_path / 'child'}"
    worker = start(f"{child}; sleep 0.2; {end}")
    wait_for(lambda: worker.ended() is not None)
    pid = int((tmp_path / "child").read_text())
    wait_for(lambda: not alive(pid), 5)


def test_a_stopped_worker_is_named_once_each_time(start, capsys):
    # A shell that is stopped while it starts a child waits for the child, and does not count as stopped.
    worker = start("exec sleep 60")
    line = f"seed=0 is stopped; it resumes after: kill -CONT {worker.pid}\n"
    for said in (line, line * 2):
        worker.signal(signal.SIGSTOP)
        wait_for(lambda: worker.ended() is None and worker._stopped)
        for _ in range(3):
            assert worker.ended() is None
        sys.stderr.write(capsys.readouterr().err)
        worker.signal(signal.SIGCONT)
        wait_for(lambda: state(worker) != "T")
        assert worker.ended() is None
        assert said.startswith(line)
    assert capsys.readouterr().err == line * 2


def test_signals_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with workers.stop_requests() as stops:
            os.kill(os.getpid(), signal.SIGHUP)
            stops.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_is_raised_where_it_is_asked_for(stops, number):
    os.kill(os.getpid(), number)
    with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
        stops.check()
    code = getattr(caught.value, "code", 130)
    assert code == 128 + number


# ---- local, whole


@pytest.mark.parametrize(
    ("code", "log", "said"),
    [
        (
            -signal.SIGKILL,
            "step 10",
            "killed by SIGKILL, as by a machine that runs out of memory: try fewer --processes",
        ),
        (-signal.SIGSEGV, "step 10", "killed by SIGSEGV"),
        (-40, "step 10", "killed by signal 40"),
        (128 + signal.SIGTERM, "step 10", "killed by SIGTERM"),
        (1, "step 10\nno module x\n\n", "no module x"),
        (1, "", "exit code 1"),
        (0, "bye", "it ended, without a result"),
    ],
)
def test_how_a_worker_ended(tmp_path, code, log, said):
    (tmp_path / "log.txt").write_text(log)
    assert executors._ending(code, tmp_path / "log.txt") == said


def test_a_worker_without_a_log_or_a_result_fails_alone(tmp_path, monkeypatch, capsys):
    poem = dataclasses.replace(define(toy), name="this")  # prints a poem and ends well
    plan = sweep.plan(poem, "seed=0:1", {}, tmp_path)
    assert list(executors.local(poem, plan.members, processes=1)) == [(plan.members[0], "it ended, without a result")]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    [(_, error)] = executors.local(poem, plan.members, processes=1)
    assert error.startswith("could not be started: FileNotFoundError: ")


def test_a_stopped_worker_does_not_keep_the_launcher(tmp_path):
    launcher = Launcher(tmp_path, flags=["--delay=60"])
    try:
        wait_for(lambda: len(workers_of(launcher.sweep)) == 2)
        os.kill(workers_of(launcher.sweep)["seed=0"], signal.SIGSTOP)
        wait_for(lambda: "seed=0 is stopped" in launcher.said)
        for _ in range(10):
            launcher.process.send_signal(signal.SIGTERM)
        launcher.end(143, "the same command resumes", within=60)
        none_left(launcher.sweep)
    finally:
        launcher.process.kill()
        launcher.process.wait()


# ---- Slurm


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Plays commands of Slurm: played("squeue", "echo 12") is a command whose calls are lines of asked.txt."""
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    for name in ("EVERY", "SETTLED"):
        monkeypatch.setattr(jobs, name, 0.0)

    def play(name, script):
        script = f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/asked.txt\n{script}\n'
        (commands / "new").write_text(script)
        (commands / "new").chmod(0o755)
        (commands / "new").rename(commands / name)

    for name in ("squeue", "sacct", "scancel"):
        play(name, "exit 0")
    return play


def listed(folder, *lines):
    return "cat <<END\n" + "".join(f"{line}|{folder}/script.sh\n" for line in lines) + "END"


def test_states_of_jobs(played, tmp_path):
    watch = jobs.Watch(tmp_path)
    going = "PENDING RUNNING SUSPENDED COMPLETING CONFIGURING REQUEUED REQUEUE_HOLD SPECIAL_EXIT"
    for state in going.split():
        played("squeue", listed(tmp_path, f"12_0|{state}|None"))
        assert watch.look(["12_0"]) == {}, state
    for state, word in (
        ("CANCELLED", "job 12_0 of Slurm: it was cancelled"),
        ("TIMEOUT", "raise --slurm_minutes"),
        ("OUT_OF_MEMORY", "set SBATCH_MEM_PER_NODE"),
        ("NODE_FAIL", "its node failed"),
        ("PREEMPTED", "it was preempted"),
        ("BOOT_FAIL", "did not start"),
        ("FAILED", "it failed"),
        ("COMPLETED", "without a result"),
    ):
        played("squeue", listed(tmp_path, f"12_0|{state}|None", "12_1|RUNNING|None"))
        over = watch.look(["12_0", "12_1"])
        assert list(over) == ["12_0"], state
        assert word in over["12_0"], state


def test_jobs_of_another_sweep_are_not_ours(played, tmp_path):
    played("squeue", listed("/elsewhere/slurm", "12_0|RUNNING|None"))
    assert jobs.queue(tmp_path) == {}


def test_a_job_that_is_queued_again_has_not_ended(played, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "SETTLED", 0.3)
    watch = jobs.Watch(tmp_path)
    for state in ("NODE_FAIL", "PENDING", "NODE_FAIL"):
        played("squeue", listed(tmp_path, f"12_0|{state}|None"))
        assert watch.look(["12_0"]) == {}
        time.sleep(0.2)
    time.sleep(0.2)
    assert "its node failed" in watch.look(["12_0"])["12_0"]


def test_a_job_that_slurm_forgot(played, tmp_path):
    watch = jobs.Watch(tmp_path)
    played("sacct", "echo '12_0|CANCELLED by 1000'; echo '12_1|RUNNING'")
    left = "job 12_1 of Slurm: it has left the queue, without a result"  # which happens: sacct never heard of its end
    assert watch.look(["12_0", "12_1"]) == {"12_0": "job 12_0 of Slurm: it was cancelled", "12_1": left}
    played("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert watch.look(["12"]) == {"12": "job 12 of Slurm: it has left the queue, without a result"}


def test_an_outage_is_said_once_and_survived(played, tmp_path, capsys):
    watch = jobs.Watch(tmp_path)
    played("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    for _ in range(3):
        assert watch.look(["12"]) == {}
    played("squeue", listed(tmp_path, "12|RUNNING|None"))
    for _ in range(3):
        assert watch.look(["12"]) == {}
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("Slurm does not answer (squeue: slurm_load_jobs error: Unable to contact slurm controller)")
    assert second == "Slurm answers again"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sleep 60", "squeue took more than 0 s"),
        (None, "squeue: No such file or directory"),
        ("exit 3", "squeue: exit code 3"),
    ],
)
def test_an_outage_without_end_ends(played, tmp_path, monkeypatch, script, reason):
    monkeypatch.setattr(jobs, "TIMEOUT", 0.2)
    monkeypatch.setattr(jobs, "PATIENCE", 0.1)
    watch = jobs.Watch(tmp_path)
    if script:
        played("squeue", script)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    time.sleep(0.1)
    over = watch.look(["12_0"])["12_0"]
    assert over == f"Slurm has not answered for 0 minutes ({reason}); job 12_0 may still run: scancel 12_0"


def test_what_keeps_jobs_from_running_is_said(played, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "IDLE", 0.2)
    watch = jobs.Watch(tmp_path)
    played("squeue", listed(tmp_path, "12_0|PENDING|PartitionDown", "12_1|PENDING|PartitionDown"))
    watch.look(["12_0", "12_1"])
    assert capsys.readouterr().err == ""
    time.sleep(0.2)
    for _ in range(3):
        watch.look(["12_0", "12_1"])
    said = "no job runs, 2 wait: PENDING (PartitionDown); squeue --me shows why\n"
    assert capsys.readouterr().err == said


def test_cancelling_waits_and_names_what_may_run(played, tmp_path, stops, monkeypatch, capsys):
    played("squeue", f"test -e {tmp_path}/gone || " + listed(tmp_path, "12_0|RUNNING|None", "12_1|CANCELLED|None"))
    played("scancel", f"test $1 = 12_0 && touch {tmp_path}/gone")
    jobs.cancel(tmp_path, ["12_0", "12_1"], stops)
    assert (tmp_path / "gone").exists()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(jobs, "ENDING", 0.1)
    played("squeue", "exit 1")
    jobs.cancel(tmp_path, ["12_0"], stops)
    assert capsys.readouterr().err == "jobs of Slurm may still run (squeue: exit code 1): scancel 12_0\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sleep 60", "no end within 1 s"),
        ("echo 'sbatch: error: first' >&2; echo 'sbatch: error: no such partition' >&2; exit 1", "no such partition"),
        ("echo nonsense", "nonsense"),
    ],
)
def test_a_submission_that_fails_is_reported_and_leaves_no_job(played, tmp_path, monkeypatch, script, reason):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'seqjax[slurm]'")
    monkeypatch.setattr(jobs, "SUBMISSION", 1.0)
    played("srun", "exit 0")
    played("sbatch", script)
    folder = tmp_path / "sweep" / "slurm"
    # It was accepted all the same: the answer came too late, or in a language that submitit does not know.
    accepted = f"grep -q ^sbatch {tmp_path}/asked.txt && ! test -e {tmp_path}/gone"
    played("squeue", f"if {accepted}; then {listed(folder, '12_0|RUNNING|None')}\nfi")
    played("scancel", f"test $1 = 12_0 && touch {tmp_path}/gone")
    plan = sweep.plan(define(toy), "seed=0:2", {}, tmp_path / "sweep")
    outcomes = list(executors.slurm(define(toy), plan.members, processes=2))
    assert [member.name for member, _ in outcomes] == ["seed=0", "seed=1"]
    for _, error in outcomes:
        assert error
        assert error.startswith("could not be submitted: ")
        assert reason in error
    assert (tmp_path / "gone").exists()


def test_a_job_finds_modules_where_its_launcher_does(played, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'seqjax[slurm]'")
    played("srun", "exit 0")
    played("sbatch", f'cat "$@" > {tmp_path}/submitted.sh; exit 1')
    plan = sweep.plan(define(toy), "seed=0", {}, tmp_path / "sweep")
    list(executors.slurm(define(toy), plan.members, processes=1))
    lines = (tmp_path / "submitted.sh").read_text().splitlines()
    [exported] = [shlex.split(line)[1] for line in lines if line.startswith("export PYTHONPATH=")]
    assert exported == "PYTHONPATH=" + os.pathsep.join(path for path in sys.path if path)


def test_a_run_whose_job_is_announced_to_end_saves_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'seqjax[slurm]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    # No checkpoint but the last, or that of a run which is asked to stop.
    flags = {"steps": 15_000, "evaluate_every": 0, "learning_rate": 1e-5}
    plan = sweep.plan(define(toy), "seed=0", flags, tmp_path)
    [member] = plan.members
    outcomes = executors.slurm(define(toy), plan.members, processes=1, minutes=1, cluster="local")

    def announce():
        metrics = member.directory / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0)
        [pid] = tasks(tmp_path / "slurm")
        os.kill(pid, signal.SIGUSR2)
        wait_for(lambda: steps(member.directory) > 0)
        return steps(member.directory)

    with ThreadPoolExecutor() as pool:
        saved = pool.submit(announce)
        assert list(outcomes) == [(member, None)]
    assert 0 < saved.result() < 15_000
    [log] = (tmp_path / "slurm").glob("*_log.err")
    assert "Requeued job" in log.read_text()
    recorded = [record["step"] for record in Run.read(member.directory).records() if record["split"] == "train"]
    assert recorded == list(range(10, 15_001, 10))


def tasks(folder):
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"submitit.core._submit\0{folder}\0" in (process / "cmdline").read_bytes().decode():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("fault", SLURM)
def test_a_real_slurm(fault, tmp_path):
    if reason := real_slurm.missing():
        pytest.skip(reason)
    assert trial(SLURM[fault], tmp_path) == "survived"
