"""How far a sweep is, seen from outside: `--status` and `--watch` beside runs of every executor, and after them."""

import functools
import json
import os
import shutil
import signal
import socket
import sys
import threading

import pytest
import toy_experiment as toy

import launch
from experiments.harness import executors, progress, sweep
from experiments.harness.experiment import define
from experiments.harness.flags import recorded
from seqjax.train import Run
from tools.faults_of_sweeps import can_mount, disk, mount

HERE = f"process {os.getpid()} on {socket.gethostname()}"


def planned(directory, text="seed=0:4", **fixed):
    return sweep.plan(define(toy), text, {"steps": 40, **fixed}, directory)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A sweep of four runs: one is finished, one failed, the others have not started."""
    directory = tmp_path_factory.mktemp("started") / "sweep"

    def two(definition, members):
        yield from executors.debug(definition, members[:1])
        yield members[1], "killed by SIGKILL"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.harness.report.write", lambda *_: None)
        sweep.run(planned(directory), two)
    return directory


@pytest.fixture
def copied(started, tmp_path):
    return shutil.copytree(started, tmp_path / "sweep")


@pytest.fixture
def training(copied):
    """The third run, open in this process."""
    member = planned(copied).members[2]
    run = Run.open(member.directory, recorded(member.config))
    yield run
    run.close()


def train(run, step, seconds, loss=0.5):
    run.log({"step": step, "epoch": 1.0, "seconds": seconds, "split": "train", "loss": loss})


def shown(capsys, directory, code=1):
    assert launch.main([f"--status={directory}"]) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


# ---- --status


def test_counts_reasons_and_the_runs_that_are_running(copied, training, capsys):
    train(training, 10, 2.0)
    training.log({"step": 10, "epoch": 1.0, "seconds": 2.0, "split": "validation", "loss": 9.0})
    train(training, 20, 4.0, loss=0.25)
    with (training.directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "epo')  # while it is being written
    lines = shown(capsys, copied)
    assert lines[:4] == [
        f"toy_experiment in {copied}",
        "4 runs: 1 finished, 1 failed, 1 running, 1 waiting",
        "no launcher is at work",
        "",
    ]
    assert lines[4].split() == ["running", "step", "of", "steps/s", "left", "loss", "process"]
    assert lines[6].split(maxsplit=6) == ["seed=2", "20", "40", "5", "0:00:04", "0.25", HERE]
    assert lines[7:] == ["", "FAILED   seed=1: killed by SIGKILL"]


def test_a_run_without_records_is_at_step_0(copied, training, capsys):
    assert shown(capsys, copied)[6].split(maxsplit=6) == ["seed=2", "0", "40", "-", "-", "-", HERE]
    train(training, 10, 0.0)
    assert shown(capsys, copied)[6].split(maxsplit=6)[:5] == ["seed=2", "10", "40", "-", "-"]


def test_a_run_whose_process_has_ended_waits_or_failed(copied, training, capsys):
    train(training, 10, 2.0)
    training.fail("ValueError: broken\n\nthe trace")
    assert "FAILED   seed=2: ValueError: broken" in shown(capsys, copied)
    training.close()
    (training.directory / "error.txt").unlink()
    assert shown(capsys, copied)[1] == "4 runs: 1 finished, 1 failed, 0 running, 2 waiting"


def test_damaged_runs_are_named(copied, training, capsys):
    (copied / "seed=0" / "result.json").write_text("{")
    with (training.directory / "metrics.jsonl").open("a") as file:
        file.write("no record\n")
    lines = shown(capsys, copied)
    assert lines[1] == "4 runs: 0 finished, 1 failed, 0 running, 1 waiting, 2 damaged"
    assert [line.partition(":")[0] for line in lines[4:]] == ["DAMAGED  seed=0", "FAILED   seed=1", "DAMAGED  seed=2"]


def test_nothing_is_written_and_the_launcher_is_named(copied, capsys):
    lock = sweep.Lock.take(copied)
    before = {path: path.stat().st_mtime_ns for path in [copied, *copied.rglob("*")]}
    assert shown(capsys, copied)[2].startswith(f"launched by {HERE} since 2")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    lock.release()


def test_a_finished_sweep(copied, capsys):
    for seed in (1, 2, 3):
        shutil.copytree(copied / "seed=0", copied / f"seed={seed}", dirs_exist_ok=True)
    assert shown(capsys, copied, code=0)[1] == "4 runs: 4 finished, 0 failed, 0 running, 0 waiting"


@pytest.mark.skipif(not can_mount(), reason="mounts a disk, which only root may")
def test_a_disk_that_only_reads(started, tmp_path, capsys):
    with disk(tmp_path / "disk", "4m") as place:
        copied = shutil.copytree(started, place / "sweep")
        mount("-o", "remount,ro", place)
        assert shown(capsys, copied)[1] == "4 runs: 1 finished, 1 failed, 0 running, 2 waiting"


@pytest.mark.parametrize("flag", ["status", "watch"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "holds no sweep: there is no such directory"),
        ("sweep/seed=0", "it holds a single run"),
        ("sweep/sweep.json", "is not a directory"),
        ("damaged", "sweep.json is damaged"),
    ],
)
def test_what_is_no_sweep(flag, name, message, copied, capsys):
    (copied.parent / "damaged").mkdir()
    (copied.parent / "damaged" / "sweep.json").write_text("{}")
    assert launch.main([f"--{flag}={copied.parent / name}"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err[:11]) == ("", 1, "launch.py: ")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--status=D", "--watch=D"], "--status shows a sweep and starts nothing: leave out --watch"),
        (["--watch=D", "--experiment=ball", "--steps=3"], "nothing: leave out --experiment --steps=3"),
        (["--status=D", "more"], "nothing: leave out more"),
        (["--status="], "--status is empty; expected the directory of a sweep"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(arguments, message, capsys):
    assert launch.main(arguments) == 2
    assert capsys.readouterr().err.endswith(f"{message}\n")


# ---- beside the executors


def test_lanes_of_one_program(tmp_path, monkeypatch):
    seen = []

    def build(config):
        seen.append(progress.snapshot(tmp_path))
        return own(config)

    own = toy.build
    monkeypatch.setattr(toy, "build", build)
    monkeypatch.setattr("experiments.harness.report.write", lambda *_: None)
    assert sweep.run(planned(tmp_path, "model=line,curve;seed=0:2", learning_rate=0.001), executors.vmap) == 0
    counts = [[entry.status for entry in one.entries.values()] for one in seen]
    assert counts == [["running", "running", "waiting", "waiting"], ["finished", "finished", "running", "running"]]
    assert seen[0].holders["model=line,seed=1"]["process"] == os.getpid()


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_runs_in_processes_of_their_own(executor, tmp_path, monkeypatch):
    options = {}
    if executor == "slurm":
        pytest.importorskip("submitit", reason="submitit is not installed: pip install 'seqjax[slurm]'")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        options["cluster"] = "local"
    monkeypatch.setattr("experiments.harness.report.write", lambda *_: None)
    plan = planned(tmp_path, "seed=0", delay=1.0)
    seen, over = [], threading.Event()

    def look():
        while not over.wait(0.05):
            if (tmp_path / "sweep.json").exists():
                seen.append(progress.snapshot(tmp_path))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        assert sweep.run(plan, functools.partial(getattr(executors, executor), processes=1, **options)) == 0
    finally:
        over.set()
        looking.join()
    running = [one for one in seen if one.training]
    assert running, "no run was seen while it ran"
    assert running[0].holders["seed=0"]["process"] != running[0].holders[""]["process"] == os.getpid()


# ---- --watch


def end_of(run):
    """Makes a copy of the finished run of it."""
    shutil.copytree(run.parent / "seed=0", run, dirs_exist_ok=True)


def test_a_table_for_every_change_until_no_run_is_left(copied, training, capsys, monkeypatch):
    def step(_):
        changes.pop(0)()

    changes = [
        lambda: train(training, 10, 2.0),
        lambda: None,
        lambda: (end_of(training.directory), end_of(copied / "seed=3")),
    ]
    monkeypatch.setattr(progress, "time", type("Clock", (), {"sleep": staticmethod(step)}))
    assert launch.main([f"--watch={copied}"]) == 1
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "runs:" in line] == [
        "4 runs: 1 finished, 1 failed, 1 running, 1 waiting",
        "4 runs: 1 finished, 1 failed, 1 running, 1 waiting",
        "4 runs: 3 finished, 1 failed, 0 running, 0 waiting",
    ]
    assert not changes
    assert "\x1b" not in out


def on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((30, 6)))
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_is_drawn_again_and_no_line_is_wider(copied, capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    end_of(copied / "seed=2")
    end_of(copied / "seed=3")
    assert launch.main([f"--watch={copied}"]) == 1
    first, drawn = capsys.readouterr().out.split("\x1b[H\x1b[J")
    assert (first, drawn.splitlines()[1:]) == (
        "",
        ["4 runs: 3 finished, 1 failed, ", "no launcher is at work", "", "FAILED   seed=1: killed by SIG"],
    )


def test_what_a_terminal_has_no_line_for_is_counted(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    progress._draw([f"line {number}" for number in range(6)])
    assert capsys.readouterr().out.splitlines()[-2:] == ["line 3", "... and 2 lines more: --status"]


def test_ctrl_c_ends_it(copied, training, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_training", lambda run: os.kill(os.getpid(), signal.SIGINT))
    assert launch.main([f"--watch={copied}"]) == 130
    assert capsys.readouterr() == ("", "interrupted; the same command resumes\n")


def test_finished_runs_are_read_once(copied):
    first = progress.snapshot(copied)
    (copied / "seed=0" / "result.json").write_text("{")
    assert progress.snapshot(copied, first).entries["seed=0"].status == "finished"
    assert progress.snapshot(copied).entries["seed=0"].status == "damaged"


def test_the_names_of_a_sweep_cannot_act_on_a_terminal(copied, capsys):
    path = copied / "sweep.json"
    listed = json.loads(path.read_text())
    listed["runs"][1]["error"] = "\x1b[2J"
    path.write_text(json.dumps(listed))
    assert shown(capsys, copied)[-1] == r"FAILED   seed=1: \x1b[2J"
