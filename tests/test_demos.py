"""The commands that use a trained run: the same flags, the same errors, the same exit codes."""

import importlib
from pathlib import Path

import pytest

from experiments.demos import command
from experiments.harness.experiment import define, name_of
from experiments.harness.flags import recorded
from seqjax.train import Run

DEMOS = {"generate": "language", "translate": "translation", "listen": "spotting", "watch": "anomalies"}


@pytest.fixture(params=DEMOS)
def demo(request):
    return importlib.import_module(f"experiments.demos.{request.param}")


def other_flags(demo):
    """What a demo needs beside --run."""
    return ["--file=nowhere.bin"] if "file" in demo.FLAGS else []


def opened(demo, directory):
    """A run of the experiment that the demo uses."""
    experiment = importlib.import_module(f"experiments.{DEMOS[name_of(demo).rpartition('.')[2]]}")
    return Run.open(directory, recorded(define(experiment).parse({})))


def refused(capsys, demo, *flags):
    """The one line of an error; the exit code is 2."""
    assert demo.main([*flags, *other_flags(demo)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    name, line = err.split(": ", 1)
    assert name == name_of(demo)
    assert line.count("\n") == 1
    return line


def test_help_is_the_docstring_and_the_flags(demo, capsys):
    assert demo.main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(demo.__doc__)
    assert f"directory of a finished run of experiments.{DEMOS[name_of(demo).rpartition('.')[2]]}" in out
    assert err == ""


def test_misuse_is_named_in_one_line(demo, capsys, tmp_path):
    assert "flag --run=None: expected the directory of a finished run of experiments." in refused(capsys, demo)
    assert "unknown flag --rum; did you mean --run?" in refused(capsys, demo, "--rum=x")
    assert "unexpected argument 'here'; flags are given as --name=value" in refused(capsys, demo, "--run=x", "here")
    assert f"{tmp_path} holds no run" in refused(capsys, demo, f"--run={tmp_path}")


def test_a_run_of_another_experiment_is_refused(demo, capsys, tmp_path):
    Run.open(tmp_path, {"model": "gru", "seed": 0}).finish({"test_loss": 1.0})
    line = refused(capsys, demo, f"--run={tmp_path}")
    assert f"{tmp_path} holds a run of another experiment: expected one of experiments." in line


def test_a_run_that_is_not_finished_is_refused(demo, capsys, tmp_path):
    opened(demo, tmp_path)
    assert f"the run in {tmp_path} is not finished" in refused(capsys, demo, f"--run={tmp_path}")


def test_a_file_that_is_not_there_is_named(capsys, tmp_path):
    module = importlib.import_module("experiments.demos.watch")

    def read(config):
        Path(config.file).read_bytes()

    assert command.main(module, read, [f"--run={tmp_path}", f"--file={tmp_path / 'x.csv'}"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"experiments.demos.watch: {tmp_path / 'x.csv'}: No such file or directory")


@pytest.mark.parametrize("flags", [["--beam=0"], ["--beam=-1"]])
def test_translate_needs_a_beam(flags, capsys):
    module = importlib.import_module("experiments.demos.translate")
    assert module.main(["--run=x", *flags]) == 2
    assert "--beam" in capsys.readouterr().err
