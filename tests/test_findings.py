"""What `--best` and `--compare` say of real sweeps."""

import contextlib
import copy
import io
import json
import shlex
import shutil
import sys

import pytest
import toy_experiment as toy

import launch
from experiments.harness import command, executors, sweep
from experiments.harness.experiment import define
from experiments.harness.search import NO_SEARCH, Search
from seqjax.train import Run

build = toy.build


def with_test_score(config):
    """The toy experiment with a test score: one more than the validation score."""
    experiment = build(config)

    def finish(hparams, state, run):
        return {"test_loss": float(state.best.value) + 1.0, **experiment.finish(hparams, state, run)}

    return experiment._replace(finish=finish)


def swept(directory, text, search=NO_SEARCH, **fixed):
    flags = {"steps": 10, "learning_rate": 0.002, **fixed}
    axes = {axis.partition("=")[0] for axis in text.split(";")}
    given = {name: value for name, value in flags.items() if name not in axes}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr("experiments.harness.report.write", lambda *_: None)
        patch.setattr(toy, "build", with_test_score)
        assert sweep.run(sweep.plan(define(toy), text, given, directory, search=search), executors.vmap) == 0
    return directory


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Two methods at two learning rates, of which one is better for both."""
    return swept(tmp_path_factory.mktemp("grid") / "sweep", "model=line,curve;learning_rate=0.001,0.002;seed=0:3")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One of the methods, at the better rate, with one seed more and another batch size."""
    return swept(tmp_path_factory.mktemp("plain") / "sweep", "model=line;seed=1:4", batch_size=8)


def shown(capsys, argument, code=0):
    assert launch.main([argument]) == code
    out, err = capsys.readouterr()
    assert (err == "") == (code == 0)
    return out if code == 0 else err


def test_the_best_run_of_each_method(grid, capsys):
    out = shown(capsys, f"--best={grid}")
    lines = out.splitlines()
    assert lines[0].split() == ["model", "of", "runs", "learning_rate", "seed", "test_loss", "validation_loss"]
    for line, model in zip(lines[2:4], ("line", "curve"), strict=True):
        runs = [Run.read(path) for path in grid.glob(f"model={model},*")]
        best = min(runs, key=lambda run: run.result()["validation_loss"])
        assert line.split()[:4] == [model, "6", "0.002", str(best.flags["seed"])]
        score = best.result()["validation_loss"]
        assert line.split()[4:] == [f"{score + 1:.4g}", f"{score:.4g}"]
        assert f"\nmodel={model}\n  {best.directory}\n  python -m toy_experiment --seed={best.flags['seed']} " in out


def test_its_command_trains_the_same_run(grid, capsys, tmp_path, monkeypatch):
    line = next(line for line in shown(capsys, f"--best={grid}").splitlines() if line.startswith("  python -m"))
    python, *arguments = shlex.split(line)
    assert [python, *arguments[:2]] == ["python", "-m", "toy_experiment"]
    monkeypatch.setattr(sys, "argv", arguments[1:])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        command.main(toy)
    assert stop.value.code == 0
    run = Run.read(capsys.readouterr().out.splitlines()[-1])
    [twin] = [path for path in grid.glob("model=line,*") if Run.read(path).flags == run.flags]
    assert run.result()["validation_loss"] == pytest.approx(Run.read(twin).result()["validation_loss"], rel=1e-5)


def test_the_best_of_all_and_runs_that_are_missing(plain, capsys, tmp_path):
    copied = shutil.copytree(plain, tmp_path / "sweep")
    (copied / "model=line,seed=1" / "result.json").unlink()
    out = shown(capsys, f"--best={copied}")
    assert out.count("python -m") == 1
    assert "\nall runs\n" in out
    assert out.endswith(f"\n1 of 3 runs of {copied} have no result.\n")


def test_sweeps_that_have_no_best_run(plain, capsys, tmp_path):
    copied = shutil.copytree(plain, tmp_path / "sweep")
    for path in copied.glob("model=*/result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in result.items() if name != "monitor"}))
    assert "its runs record no validation score" in shown(capsys, f"--best={copied}", code=2)
    for path in copied.glob("model=*/result.json"):
        path.unlink()
    assert f"no run is finished; --status={copied} shows why" in shown(capsys, f"--best={copied}", code=2)
    assert "holds no sweep" in shown(capsys, f"--best={tmp_path}", code=2)


def test_two_sweeps_method_by_method_and_seed_by_seed(grid, plain, capsys):
    out = shown(capsys, f"--compare={grid},{plain}")
    heads, rows = out.split("Second less first")
    assert f"first   {grid}\n  second  {plain}\n" in heads
    assert [line.split() for line in heads.splitlines()[4:]] == [
        ["flag", "first", "second"],
        ["─" * len(heads.splitlines()[5])],
        ["--batch_size", "32", "(default)", "8"],
        [],
    ]
    # The toy does not read its batch size, so at the best rate the same seeds have the same scores.
    _, table, alone = rows.split("\n\n")
    names, _, row = (line.split() for line in table.splitlines())
    assert names == ["model", "pairs", "test_loss", "validation_loss"]
    assert row[:2] == ["line", "2"]
    assert [abs(float(value)) < 1e-5 for value in row[2:]] == [True, True]
    assert alone == f"only in {grid}:\n  model=curve\n"


def test_the_differences_of_three_pairs_have_an_interval(grid, capsys, tmp_path):
    copied = shutil.copytree(grid, tmp_path / "sweep")
    for number, seed in enumerate((0, 1, 2), start=1):
        path = copied / f"model=line,learning_rate=0.002,seed={seed}" / "result.json"
        result = json.loads(path.read_text())
        path.write_text(json.dumps({**result, "test_loss": result["test_loss"] + number}))
    out = shown(capsys, f"--compare={grid},{copied}")
    assert "batch_size" not in out
    row = next(line for line in out.splitlines() if line.split()[:1] == ["line"])
    # t(0.975, 2) / sqrt(3) = 2.484
    assert row.split()[1:] == ["3", "2.0", "±", "2.5", "0"]


def test_a_searched_flag_is_tuned_too(plain, tmp_path, capsys):
    text = "warmup_steps=1..5;learning_rate=0.0005..0.002:log;seed=1:3"
    other = swept(tmp_path / "sweep", text, Search(2), model="line")
    [heads, _, row, *_] = shown(capsys, f"--best={other}").splitlines()
    assert heads.split()[:5] == ["of", "runs", "learning_rate", "warmup_steps", "seed"]
    assert row.split()[0] == "4"
    out = shown(capsys, f"--compare={plain},{other}")
    assert [line.split()[0] for line in out.splitlines() if line.strip().startswith("--")] == ["--batch_size"]
    assert next(line for line in out.splitlines() if line.strip().startswith("pairs")).split()[1] == "test_loss"
    assert out.splitlines()[-1].split()[0] == "2"
    path = other / "sweep.json"
    path.write_text(path.read_text().replace("toy_experiment", "nothing_like_it"))
    message = "a search of nothing_like_it, which cannot be imported here: No module named 'nothing_like_it'"
    assert message in shown(capsys, f"--best={other}", code=2)


def test_a_default_that_changed_is_named(plain, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(toy, "FLAGS", copy.deepcopy(toy.FLAGS))
    toy.FLAGS.set_default("clip_norm", 5.0)
    other = swept(tmp_path / "sweep", "model=line;seed=1:3", batch_size=8)
    out = shown(capsys, f"--compare={plain},{other}")
    assert next(line.split() for line in out.splitlines() if "clip_norm" in line) == [
        "--clip_norm", "0.0", "(default)", "5.0", "(default)"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experiment": "another"}, " of another; expected two of the same experiment"),
        ({"seed": 100}, "have no seed of a method in common: "),
        ({"monitor": None}, "has several runs of one seed, with different --learning_rate, and no validation score"),
    ],
)
def test_sweeps_that_cannot_be_compared(change, message, grid, tmp_path, capsys):
    copied = shutil.copytree(grid, tmp_path / "sweep")
    if "experiment" in change:
        path = copied / "sweep.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for path in copied.glob("model=*"):
        name = "config.json" if "seed" in change else "result.json"
        content = json.loads((path / name).read_text())
        if "seed" in change:
            content["flags"]["seed"] += 100
        elif "monitor" in change:
            del content["monitor"]
        (path / name).write_text(json.dumps(content))
    assert message in shown(capsys, f"--compare={grid},{copied}", code=2)


@pytest.mark.parametrize("value", ["one", "one,two,three", "one,", ","])
def test_two_directories_are_compared(value, capsys):
    assert f"--compare={value}: expected two directories, DIR1,DIR2" in shown(capsys, f"--compare={value}", code=2)
