"""The same command twice at once, from the command line."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
FLAGS = ["--model=line", "--steps=60", "--delay=2", "--checkpoint_every=10"]
SINGLE = ["-m", "toy_experiment", *FLAGS]
SWEEP = ["launch.py", "--experiment=toy_experiment", "--sweep=seed=0:2", *FLAGS]


@pytest.fixture
def start():
    """Starts a command in a directory; what still runs at the end of the test is killed."""
    processes = []

    def start(arguments, directory):
        process = subprocess.Popen(
            [sys.executable, *arguments, f"--workdir={directory}"],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def end(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def steps(directory):
    return [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


TWICE = [step for step in range(10, 61, 10) for _ in range(2)]  # a record of the training and one of the evaluation


@pytest.mark.parametrize(
    "arguments", [pytest.param(SINGLE, id="single"), pytest.param(SWEEP, id="sweep", marks=pytest.mark.slow)]
)
def test_of_two_at_once_one_works_and_the_other_says_who(arguments, tmp_path, start):
    processes = [start(arguments, tmp_path / "run") for _ in range(2)]
    results = sorted(map(end, processes))
    assert [code for code, *_ in results] == [0, 2], results
    [winner] = [process for process in processes if process.returncode == 0]
    refused = results[1][2]
    where, who = tmp_path / "run", winner.pid
    expected = rf"{where} is in use by process {who} on \S+ since 20\S+; wait until it ends, or end it: kill {who}$"
    assert re.search(expected, refused, re.M)
    runs = [tmp_path / "run"] if arguments is SINGLE else sorted((tmp_path / "run").glob("seed=*"))
    assert [steps(run) for run in runs] == [TWICE] * len(runs)
    before = {path: path.read_bytes() for run in runs for path in run.rglob("*") if path.is_file()}
    assert end(start(arguments, tmp_path / "run"))[0] == 0
    assert before == {path: path.read_bytes() for run in runs for path in run.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_single_run_on_the_directory_of_a_running_sweep_is_refused(tmp_path, start):
    sweep = start([*SWEEP, "--delay=15"], tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("seed=*/config.json"))) == 2)
    for directory in (tmp_path, tmp_path / "seed=1"):
        code, _, err = end(start([*SINGLE, "--seed=1", "--delay=15"], directory))
        assert (code, f"is in use by process {sweep.pid}" in err) == (2, True), err
    assert end(sweep)[0] == 0
    assert [steps(run) for run in sorted(tmp_path.glob("seed=*"))] == [TWICE] * 2


@pytest.mark.slow
def test_a_sweep_leaves_alone_a_run_that_is_trained_by_hand(tmp_path, start):
    single = start([*SINGLE, "--seed=1", "--delay=10"], tmp_path / "seed=1")
    wait_for((tmp_path / "seed=1" / "config.json").exists)
    code, _, err = end(start([*SWEEP, "--delay=10"], tmp_path))
    assert code == 1, err
    assert f"InUse: {tmp_path / 'seed=1'} is in use by process {single.pid}" in err
    assert end(single)[0] == 0
    assert [steps(run) for run in sorted(tmp_path.glob("seed=*"))] == [TWICE] * 2
    assert not (tmp_path / "seed=1" / "error.txt").exists()


@pytest.mark.slow
def test_a_killed_lane_loses_nothing_that_was_finished(tmp_path, start):
    """Killed after the result of the first lane: the second one has taken all its steps, and takes none again."""
    sweep = start([*SWEEP, "--fault=pause"], tmp_path)
    wait_for((tmp_path / "seed=0" / "result.json").exists)
    sweep.kill()
    end(sweep)
    records = (tmp_path / "seed=1" / "metrics.jsonl").read_bytes()
    assert not (tmp_path / "seed=1" / "result.json").exists()
    code, out, err = end(start([*SWEEP, "--fault=pause"], tmp_path))
    assert code == 0, err
    assert "1 of 2 runs are finished already" in out
    assert (tmp_path / "seed=1" / "metrics.jsonl").read_bytes() == records, "with its clock: no step was taken again"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["figures", "seed=0", "seed=1"]
