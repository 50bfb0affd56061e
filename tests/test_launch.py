"""The command lines, as people type them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_experiment as toy

import launch
from experiments.harness import command as experiment_command
from seqjax.train.run import Run

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
ENVIRONMENT.pop("NPROC", None)


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def command(*arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_a_sweep_from_the_command_line_and_again(tmp_path):
    arguments = (
        "launch.py",
        "--experiment=toy_experiment",
        "--sweep=model=line;seed=0:2",
        "--executor=local",
        f"--workdir={tmp_path}",
        "--steps",
        "10",
    )
    code, out, err = command(*arguments)
    assert code == 0, err
    assert "[2/2] model=line,seed=" in out
    assert "final_loss" in out
    assert f"report   {tmp_path / 'report.html'}" in out
    assert "\r" not in out + err, "a progress bar was drawn though this is no terminal"
    assert Run.read(tmp_path / "model=line,seed=1").flags["steps"] == 10
    assert "workdir" not in Run.read(tmp_path / "model=line,seed=1").flags
    code, out, err = command(*arguments)
    assert code == 0, err
    assert "2 of 2 runs are finished already" in out


def test_sigterm_ends_the_children_and_leaves_the_sweep_resumable(tmp_path):
    process = start(
        "launch.py",
        "--experiment=toy_experiment",
        "--sweep=seed=0:3",
        "--executor=local",
        "--delay=60",
        f"--workdir={tmp_path}",
    )
    try:
        wait_for(lambda: len(list(tmp_path.glob("seed=*/config.json"))) == 2)
        assert len(processes_naming(tmp_path)) == 3
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143
    assert err == "interrupted; the same command resumes\n"
    assert not processes_naming(tmp_path)
    runs = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["waiting"] * 3


def test_runs_left_behind_by_a_killed_launcher_are_not_started_twice(tmp_path, capsys):
    arguments = ["--experiment=toy_experiment", "--sweep=seed=0:2", "--delay=60", f"--workdir={tmp_path}"]
    process = start("launch.py", "--executor=local", *arguments)
    try:
        wait_for(lambda: len(list(tmp_path.glob("seed=*/config.json"))) == 2)
        process.kill()
        process.communicate()
        assert launch.main(arguments) == 2
        pids = sorted(processes_naming(tmp_path))
        assert len(pids) == 2
        assert capsys.readouterr().err == (
            f"{tmp_path} is in use by what process {process.pid} started and left behind;"
            f" wait until it ends, or end it: kill {pids[0]} {pids[1]}\n"
        )
    finally:
        process.kill()
        for left in processes_naming(tmp_path):
            os.kill(left, signal.SIGKILL)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def processes_naming(path):
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(path).encode() in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def test_one_run_from_the_command_line(tmp_path):
    code, out, err = command("-m", "toy_experiment", f"--workdir={tmp_path / 'run'}", "--seed=3")
    assert code == 0, err
    assert "final_loss" in out
    assert out.rstrip().endswith(str(tmp_path / "run"))
    assert Run.read(tmp_path / "run").config["seed"] == 3


@pytest.mark.parametrize("flags", [[], ["--learning_rate=0.01"], ["--model=line"], ["--seed=1"]], ids=str)
def test_the_command_of_an_experiment_is_one_run_whatever_the_flags(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toy", "--steps=10", *flags, f"--workdir={tmp_path}"])
    with pytest.raises(SystemExit) as stop:
        experiment_command.main(toy)
    assert stop.value.code == 0
    assert Run.read(tmp_path).result()["steps"] == 10
    assert not list(tmp_path.glob("**/sweep.json"))
    assert "report.html" not in capsys.readouterr().out


def test_the_sweep_that_an_experiment_proposes(tmp_path, capsys):
    flags = ["--steps=10", "--learning_rate=0.01", f"--workdir={tmp_path}"]
    assert launch.main(["--experiment=toy_experiment", *flags]) == 0
    names = [f"model={model},seed={seed}" for model in ("curve", "line") for seed in (0, 1)]
    assert sorted(path.name for path in tmp_path.glob("model=*")) == names
    assert "report.html" in capsys.readouterr().out


def test_default_directories(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toy", "--steps=10", "--seed=0"])
    with pytest.raises(SystemExit):
        experiment_command.main(toy)
    [run] = Path("runs", "toy_experiment").iterdir()
    assert capsys.readouterr().out.rstrip().endswith(str(run))
    monkeypatch.setattr(sys, "argv", ["toy", "--steps=10", "--seed=0", "--noprogress"])
    with pytest.raises(SystemExit):
        experiment_command.main(toy)
    assert list(Path("runs", "toy_experiment").iterdir()) == [run]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment=nothing"], "no experiment 'nothing'; expected one of "),
        (["--experiment="], "no experiment ''"),
        (["--experiment=json"], "no experiment 'json'"),
        (["--experiment=toy_experiment", "--executer=local"], "unknown flag --executer; did you mean --executor"),
        (["--experiment=toy_experiment", "--stepps=5"], "unknown flag --stepps; did you mean --steps"),
        (["--experiment=toy_experiment", "--steps=0"], "flag --steps=0: 0 is not a positive integer"),
        (["--experiment=toy_experiment", "--sweep=modle=line"], "did you mean --model?"),
        (["--experiment=toy_experiment", "--executor=remote"], "value should be one of <debug|local|vmap|slurm>"),
        (["--experiment=toy_experiment", "--processes=0"], "0 is not a positive integer"),
        (["--experiment=toy_experiment", "more"], "unexpected argument 'more'"),
        (["--experiment=toy_experiment", "--patience=2", "--evaluate_every=10", "--steps_per_call=10"], "take debug"),
        (["--experiment=toy_experiment", "--seed=1", "--sweep=seed=0:2"], "both fixed (1) and swept (0,1)"),
    ],
)
def test_bad_command_lines_end_with_one_line(arguments, message, tmp_path, capsys):
    assert launch.main([*arguments, f"--workdir={tmp_path / 'sweep'}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("launch.py: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_bad_flags_of_a_single_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toy", "--stepps=3"])
    with pytest.raises(SystemExit) as stop:
        experiment_command.main(toy)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "toy_experiment: unknown flag --stepps; did you mean --steps?\n"


def test_a_single_run_that_fails_ends_with_one_line_and_a_traceback_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toy", "--model=curve", f"--workdir={tmp_path}"])
    with pytest.raises(SystemExit) as stop:
        experiment_command.main(toy)
    assert stop.value.code == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("toy_experiment: NonFiniteLoss: loss is inf at step ")
    assert second == f"the traceback is in {tmp_path / 'error.txt'}"
    assert "Traceback" in (tmp_path / "error.txt").read_text()


def test_help(monkeypatch, capsys):
    assert launch.main(["--help", "--experiment=toy_experiment"]) == 0
    out = capsys.readouterr().out
    assert "seed=0:3 is 0, 1, 2" in out
    assert "--processes" in out
    assert "Shape of the bowl." in out
    monkeypatch.setattr(sys, "argv", ["toy", "--help"])
    with pytest.raises(SystemExit) as stop:
        experiment_command.main(toy)
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("How fast does gradient descent")
    assert "The sweep it proposes is 'model=line,curve;seed=0:2'" in out
    assert "--learning_rate" in out
    assert launch.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "The sweep that bptt_vs_tbptt proposes is 'task=text,recall;" in out
    assert "Shape of the bowl." not in out


def test_without_flags_the_main_job_is_planned():
    assert launch.FLAGS["experiment"].default == "bptt_vs_tbptt"
    assert launch.FLAGS["sweep"].default is None
    assert launch.FLAGS["executor"].default == "vmap"
