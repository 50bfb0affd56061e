"""Runs that are shown elsewhere, read back with the readers of TensorBoard, W&B and MLflow."""

import collections
import json
import math
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import toy_experiment as toy
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from test_train_loop import PROGRAM, numbers, open_run
from test_train_resume import OPTIONS, preempt

import launch
from experiments.harness import command
from experiments.harness.experiment import define
from seqjax.train import MLflow, Run, TensorBoard, WandB, fit, fit_lanes, sinks

ROOT = Path(__file__).parents[1]
TOY = ("--experiment=toy_experiment", "--sweep=seed=0:2", "--checkpoint_every=10", "--steps=40")


@pytest.fixture
def without_report(monkeypatch):
    """Its figures take longer to draw than these sweeps to train."""
    monkeypatch.setattr("experiments.harness.report.write", lambda *given: None)


def reader(run):
    """TensorBoard's own, of all points that it finds in a run."""
    return EventAccumulator(str(run.directory / "tensorboard"), size_guidance={SCALARS: 0})


def shown(found):
    """What a reader finds: for each tag its (step, value), in the order of the file."""
    found.Reload()
    return {tag: [(point.step, point.value) for point in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def written(run):
    """The same, of metrics.jsonl and result.json."""
    points = collections.defaultdict(list)
    for record in run.records():
        for name in record.keys() - {"step", "split"}:
            if record[name] is not None:
                points[f"{record['split']}/{name}"].append((record["step"], record[name]))
    if run.finished:
        for name, value in run.result().items():
            if isinstance(value, int | float):
                points[f"result/{name}"].append((run.records()[-1]["step"], float(value)))
    return dict(points)


def assert_shows(found, run):
    expected = written(run)
    assert found.keys() == expected.keys()
    for tag, points in expected.items():
        assert found[tag] == [(step, pytest.approx(value, rel=1e-6, nan_ok=True)) for step, value in points], tag


class Memory:
    """A sink that keeps what it is told, and raises where it is told to."""

    def __init__(self, directory, flags, fails=""):
        self.told, self.fails = [(directory, flags)], fails
        self._tell("open")

    def _tell(self, event, *what):
        self.told.append((event, *what))
        if event in self.fails.split():
            raise OSError(28, "the disk\nis full")

    def log(self, record):
        self._tell("log", record)

    def finish(self, result):
        self._tell("finish", result)

    def close(self):
        self._tell("close")


# A run and its sink


def test_a_sink_is_told_everything_once_and_of_a_resume_only_what_is_left(tmp_path):
    opened = []

    def memory(directory, flags):
        opened.append(Memory(directory, flags))
        return opened[-1]

    run = open_run(tmp_path)
    records = [{"step": step, "split": "train", "seconds": 0.5, "loss": math.inf} for step in (1, 2, 3, 4)]
    run.log(records[0])
    run.mirror(memory)
    assert not opened
    run.log(records[1])
    mark = run.mark()
    run.log(records[2])
    run.rewind(mark)
    run.log(records[3])
    run.finish({"score": 1})
    result = run.result()
    run.close()
    start = ((run.directory, {"name": "run"}), ("open",))
    assert len(opened) == 2
    first, second = (tuple(sink.told) for sink in opened)
    assert first == (*start, *(("log", record) for record in records[:3]), ("close",))
    logged = (("log", record) for record in (*records[:2], records[3]))
    assert second == (*start, *logged, ("finish", result), ("close",))


def test_a_run_that_has_only_to_be_finished_is_shown_too(tmp_path):
    run, opened = open_run(tmp_path), []
    run.log({"step": 1})
    run.mirror(lambda *given: opened.append(Memory(*given)) or opened[-1])
    run.rewind(run.mark())
    assert not opened
    run.finish({"score": 1})
    assert [event for event, *_ in opened[0].told[1:]] == ["open", "log", "finish"]


@pytest.mark.parametrize("fails", ["open", "log", "log close", "finish", "close"])
def test_a_sink_that_fails_is_reported_once_and_the_run_goes_on(tmp_path, capsys, fails):
    def broken(directory, flags):
        return Memory(directory, flags, fails)

    run = open_run(tmp_path)
    run.mirror(broken)
    for step in (1, 2):
        run.log({"step": step})
    run.finish({"score": 1})
    run.close()
    said = capsys.readouterr().err
    what = "broken failed and is told no more; metrics.jsonl has everything: OSError: [Errno 28] the disk is full"
    assert said == f"WARNING: {run.directory}: {what}\n"
    assert Run.read(run.directory).result()["score"] == 1
    assert run.records() == [{"step": 1}, {"step": 2}]


def test_a_sink_does_not_hide_that_training_was_stopped(tmp_path):
    class Interrupted(Memory):
        def log(self, record):
            raise KeyboardInterrupt

    run = open_run(tmp_path)
    run.mirror(Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.log({"step": 1})


def test_only_an_open_run_can_be_mirrored(tmp_path):
    run = open_run(tmp_path)
    run.close()
    with pytest.raises(ValueError, match="is not open to be written"):
        run.mirror(Memory)


# TensorBoard


def test_tensorboard_shows_every_number_once_after_a_resume(tmp_path, monkeypatch):
    run = open_run(tmp_path)
    run.mirror(TensorBoard)
    preempt(monkeypatch, 10, lambda: fit(PROGRAM, numbers(), run, **OPTIONS))
    before = reader(run)  # as a TensorBoard that is running
    run.log({"step": 15, "epoch": 1.5, "split": "train", "seconds": 9.0, "loss": math.nan})  # by one that was killed
    assert_shows(shown(before), run)
    [file] = (run.directory / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    run.close()
    run = open_run(tmp_path)
    run.mirror(TensorBoard)
    fit(PROGRAM, numbers(), run, **OPTIONS)
    run.finish({"score": 0.5, "stopped": False, "text": "left out", "nested": {"left": "out"}})
    assert_shows(shown(reader(run)), run)
    assert_shows(shown(before), run)
    assert shown(before)["result/score"] == [(30, 0.5)]
    assert file.read_bytes() == b"", "for readers that know no start"


def test_tensorboard_shows_times_without_a_gap(tmp_path):
    run = open_run(tmp_path)
    for step in (1, 2):
        run.log({"step": step, "split": "train", "seconds": 60.0 * step})
    run.finish({})
    run.show(TensorBoard(run.directory, run.flags))
    first, second = reader(run).Reload().Scalars("train/seconds")
    assert second.wall_time - first.wall_time == pytest.approx(60)
    assert first.wall_time == pytest.approx((run.directory / "config.json").stat().st_mtime + 60)


def test_tensorboard_shows_each_lane_in_its_run(tmp_path):
    runs = [open_run(tmp_path, f"seed {seed}") for seed in (0, 1)]
    for run in runs:
        run.mirror(TensorBoard)
    fit_lanes(PROGRAM, [numbers(seed) for seed in (0, 1)], runs, **OPTIONS)
    for run in runs:
        assert_shows(shown(reader(run)), run)
    assert shown(reader(runs[0]))["train/loss"] != shown(reader(runs[1]))["train/loss"]


@pytest.mark.usefixtures("without_report")
def test_a_sweep_that_was_killed_shows_every_number_once(tmp_path):
    flags = [*TOY, "--log_to=tensorboard", f"--workdir={tmp_path}"]
    code = """
import os, signal, sys
import launch
from seqjax.train import Run

log = Run.log

def log_or_die(run, record):
    log(run, record)
    if (run.flags["seed"], record["split"], record["step"]) == (1, "validation", 20):
        os.kill(os.getpid(), signal.SIGKILL)

Run.log = log_or_die
launch.main(sys.argv[1:])
"""
    python_path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": python_path}
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    runs = [Run.read(tmp_path / f"seed={seed}") for seed in (0, 1)]
    for run in runs:  # those after the checkpoint will be logged again
        assert [step for step, _ in shown(reader(run))["validation/loss"]] == [10, 20]
    assert launch.main(flags) == 0
    for run in runs:
        assert [step for step, _ in shown(reader(run))["validation/loss"]] == [10, 20, 30, 40]
        assert_shows(shown(reader(run)), run)


@pytest.mark.usefixtures("without_report")
def test_a_sweep_outlives_a_logging_library_that_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TensorBoard, "_write", lambda *given, **fields: 1 / 0)
    assert launch.main([*TOY, "--log_to=tensorboard", f"--workdir={tmp_path}"]) == 0
    assert Run.read(tmp_path / "seed=1").result()["steps"] == 40
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for seed in (0, 1):
        assert lines[seed].startswith(f"WARNING: {tmp_path / f'seed={seed}'}: TensorBoard failed and is told no more")


# The flag


@pytest.mark.usefixtures("without_report")
def test_the_flag_is_neither_recorded_nor_swept(tmp_path, capsys):
    flags = [*TOY, "--executor=debug", f"--workdir={tmp_path}"]
    assert launch.main([*flags, "--log_to=tensorboard"]) == 0
    for seed in (0, 1):
        run = Run.read(tmp_path / f"seed={seed}")
        assert "log_to" not in run.flags
        assert_shows(shown(reader(run)), run)
    assert "log_to" not in (tmp_path / "sweep.json").read_text()
    capsys.readouterr()
    assert launch.main(flags) == 0, "the same sweep"
    assert "2 of 2 runs are finished already" in capsys.readouterr().out
    assert launch.main([TOY[0], "--sweep=log_to=tensorboard,wandb"]) == 2
    assert "--log_to does not change a result, it cannot be swept" in capsys.readouterr().err


@pytest.mark.parametrize("name", sinks.SINKS)
def test_a_missing_extra_is_refused_before_anything_starts(name, tmp_path, monkeypatch, capsys):
    package = sinks.SINKS[name].package
    monkeypatch.setattr("seqjax.extras.find_spec", lambda wanted: None if wanted == package else wanted)
    why = f"flag --log_to={name}: {sinks.SINKS[name].__name__} needs {package}: pip install 'seqjax[{name}]'\n"
    directory = tmp_path / "runs"
    assert launch.main([*TOY, f"--log_to={name}", f"--workdir={directory}"]) == 2
    assert capsys.readouterr() == ("", f"launch.py: run seed=0: {why}")
    monkeypatch.setattr(sys, "argv", ["toy", f"--log_to={name}", f"--workdir={directory}"])
    with pytest.raises(SystemExit) as stop:
        command.main(toy)
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", f"toy_experiment: {why}")
    assert not directory.exists()
    with pytest.raises(ModuleNotFoundError, match=f"needs {package}: pip install"):
        sinks.SINKS[name](tmp_path, {})


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"value should be one of <tensorboard\|wandb\|mlflow>"):
        define(toy).parse(["--log_to=csv"])


# W&B and MLflow, where they are installed


def finished(directory, sink):
    """A finished run that was resumed once; the records that the resume dropped had other steps."""
    directory.mkdir()
    run = Run.open(directory / "run", {"units": 2, "model": "lstm", "data_dir": None})
    run.mirror(sink)
    records = [
        {"step": step, "epoch": None, "split": split, "seconds": step / 2, "loss": loss}
        for step, split, loss in ((10, "train", 3.0), (10, "validation", 2.0), (20, "train", math.nan))
    ]
    run.log(records[0])
    mark = run.mark()
    run.log({**records[0], "step": 15})
    run.rewind(mark)
    run.log(records[1])
    run.log(records[2])
    run.finish({"test_loss": 0.5, "stopped_early": True, "text": "left out"})
    run.close()
    return run


def test_mlflow_shows_every_number_once_in_the_run_directory(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:9")
    run = finished(tmp_path / "a sweep, of=1", MLflow)
    client = mlflow.MlflowClient(tracking_uri=(run.directory / "mlflow").as_uri())
    [stored] = client.search_runs(["0"])
    assert (stored.info.run_name, stored.info.status) == ("run", "FINISHED")
    assert stored.data.params == {"units": "2", "model": "lstm", "data_dir": "None"}
    points = {tag: client.get_metric_history(stored.info.run_id, tag) for tag in stored.data.metrics}
    assert_shows({tag: [(point.step, point.value) for point in found] for tag, found in points.items()}, run)
    first, second = points["train/seconds"]
    assert second.timestamp - first.timestamp == 5000


def test_wandb_shows_every_number_once_in_the_run_directory(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    run = finished(tmp_path / "sweep", WandB)
    wandb.teardown()  # the process that writes for wandb; else it ends with this one
    [file] = (run.directory / "wandb").glob("offline-run-*/run-*.wandb")
    rows, config = offline(file)
    found = collections.defaultdict(list)
    for row in rows:
        for tag in row.keys() - {"_step", "_runtime", "_timestamp"}:
            found[tag].append((row["_step"], float(row[tag])))
    assert_shows(found, run)
    assert config.items() >= {"units": 2, "model": "lstm", "data_dir": None}.items()


def offline(file):
    """The rows of the history and the configuration in a file of wandb: protocol buffers in a log of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, data, rows, config = file.read_bytes(), 7, b"", [], {}
    while position < len(content):
        if (left := 32768 - position % 32768) < 7:  # no header fits into the block
            position += left
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        position += 7 + length
        data += content[position - length : position]
        if kind in (1, 4):  # whole, or the last part
            record, data = Record.FromString(data), b""
            rows += [
                {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            ]
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return [row for row in rows if row], config
