"""The algebra of sweeps, their plans and directories, and the executors, on a toy experiment."""

import contextlib
import copy
import csv
import functools
import json
import os
import re
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_experiment as toy
from absl import flags as absl_flags
from hypothesis import given, settings
from hypothesis import strategies as st

import launch
from experiments.harness import executors, ledger, plots, report, runs, sweep
from experiments.harness.experiment import define
from experiments.harness.flags import training_flags
from experiments.harness.optimizer import make_optimizer
from seqjax.train.run import Run
from tools.faults_of_sweeps import can_mount, disk, mount

# ---- the algebra


def test_ranges_are_half_open_and_only_for_integers():
    axes = sweep.parse(" seed = 0:3,7 ; truncation=4:16,full;learning_rate=1e-3,.5", toy.FLAGS)
    assert axes == {"seed": [0, 1, 2, 7], "truncation": ["4:16", "full"], "learning_rate": [0.001, 0.5]}


def test_expand_is_the_product_with_the_last_axis_fastest():
    points = sweep.expand(sweep.parse("model=line,curve;seed=0:2", toy.FLAGS))
    assert points == [
        {"model": "line", "seed": 0},
        {"model": "line", "seed": 1},
        {"model": "curve", "seed": 0},
        {"model": "curve", "seed": 1},
    ]
    assert sweep.expand(sweep.parse("", toy.FLAGS)) == [{}]


@settings(max_examples=60, deadline=None)
@given(
    truncations=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters=",;", exclude_categories=["Z", "C"]), min_size=1),
        min_size=1,
        max_size=4,
        unique=True,
    ),
    rates=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=3, unique=True),
    first=st.integers(0, 99),
    seeds=st.integers(1, 4),
)
def test_expansion_counts_and_names(truncations, rates, first, seeds):
    text = ";".join(
        [
            f"truncation={','.join(truncations)}",
            f"learning_rate={','.join(map(repr, rates))}",
            f"seed={first}:{first + seeds}",
        ]
    )
    points = sweep.expand(sweep.parse(text, toy.FLAGS))
    assert len(points) == len(truncations) * len(rates) * seeds
    assert {point["truncation"] for point in points} == set(truncations)
    assert {point["learning_rate"] for point in points} == set(rates)
    names = [sweep.run_name(point) for point in points]
    assert len(set(names)) == len(names)
    assert all(len(name) < 140 and "/" not in name for name in names)


def test_names_are_readable_and_never_the_same():
    assert sweep.run_name({"model": "lstm", "truncation": "4:16", "seed": 0}) == "model=lstm,truncation=4:16,seed=0"
    assert sweep.run_name({}) == "run"
    slash, space = sweep.run_name({"truncation": "a/b"}), sweep.run_name({"truncation": "a b"})
    assert slash.startswith("truncation=a_b,")
    assert slash != space
    long = [sweep.run_name({"truncation": "x" * 300 + end}) for end in "ab"]
    assert long[0] != long[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle=line", "unknown flag --modle; did you mean --model?"),
        ("xyz=1", "unknown flag --xyz; --help lists the flags"),
        ("model", "sweep axis 'model': expected flag=value"),
        ("seed=", "sweep axis seed: an empty value"),
        ("seed=0,,1", "sweep axis seed: an empty value"),
        ("seed=3:3", "the range 3:3 is empty; first:end leaves end out"),
        ("seed=0:3,1", "value 1 is repeated"),
        ("learning_rate=0.1,0.10", "value 0.1 is repeated"),
        ("seed=1;model=line;seed=2", "--seed has an axis already"),
        ("seed=x", "'x': expected an integer in the range [0, 2147483647]"),
        ("seed=-1:2", "expected an integer in the range [0, 2147483647]"),
        ("model=lines", "'lines': value should be one of <line|curve>"),
        ("workdir=a,b", "--workdir does not change a result"),
        ("progress=true,false", "--progress does not change a result"),
    ],
)
def test_bad_axes_are_refused(text, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared in full below
        sweep.parse(text, toy.FLAGS)
    assert message in str(error.value)


# ---- flags


@pytest.mark.parametrize(
    ("given_flags", "message"),
    [
        ({"steps": 0}, "--steps=0: 0 is not a positive integer"),
        ({"steps": "many"}, "--steps=many"),
        ({"learning_rate": 0.0}, "--learning_rate=0.0: must be positive"),
        ({"delay": "nan"}, "--delay=nan: expected a finite number"),
        ({"step": 3}, "unknown flag --step; did you mean --steps"),
        ({"optimizer": "adm"}, "optax has no optimizer 'adm'; expected one of adabelief"),
        ({"optimizer": "lbfgs"}, "cannot train with it"),
        ({"evaluate_every": 15}, "--evaluate_every must be a multiple of --steps_per_call"),
        ({"checkpoint_every": 15}, "--checkpoint_every must be a multiple of --steps_per_call"),
        ({"warmup_steps": 20}, "--warmup_steps must be less than --steps"),
        ({"patience": 2, "evaluate_every": 0}, "it needs --evaluate_every"),
    ],
)
def test_bad_flags_are_refused(given_flags, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared in full below
        define(toy).parse(given_flags)
    assert message in str(error.value)


def test_parse_takes_arguments_or_a_dict_and_leaves_the_flags_alone():
    from_arguments = define(toy).parse(["--steps=30", "--noprogress", "--learning_rate", "0.5"])
    assert from_arguments == define(toy).parse({"steps": 30, "progress": False, "learning_rate": 0.5})
    assert (from_arguments.steps, from_arguments.progress, from_arguments.model) == (30, False, "line")
    assert define(toy).parse([]).steps == 20
    with pytest.raises(ValueError, match="unexpected argument 'more'"):
        define(toy).parse(["more"])


def test_defaults_that_only_hold_together():
    values = training_flags(evaluate_every=7, steps_per_call=7)
    assert values["evaluate_every"].default == 7
    with pytest.raises(absl_flags.UnrecognizedFlagError):
        training_flags(speed=1)


def test_hparams_have_fixed_types():
    hparams = define(toy).hparams(define(toy).parse({"seed": 3}))
    assert {name: value.dtype for name, value in hparams.items()} == {
        "seed": jnp.int32,
        "learning_rate": jnp.float32,
    }


def test_build_cannot_read_traced_flags_from_the_config(monkeypatch, tmp_path):
    monkeypatch.setattr(toy, "build", lambda config: config.learning_rate)
    with pytest.raises(AttributeError, match="learning_rate"):
        runs.run_one(define(toy), define(toy).parse({}), tmp_path / "run")
    error = (tmp_path / "run" / "error.txt").read_text()
    assert error.startswith("AttributeError: ")
    assert "Traceback" in error


def test_lanes_are_built_once_and_each_finishes_with_its_own_hparams(monkeypatch, tmp_path):
    built, finished = [], []

    def build(config):
        experiment = own(config)
        built.append(experiment)

        def finish(hparams, state, run):
            finished.append((int(hparams["seed"]), float(hparams["learning_rate"]), run.config["seed"]))
            return experiment.finish(hparams, state, run)

        return experiment._replace(finish=finish)

    own = toy.build
    monkeypatch.setattr(toy, "build", build)
    plan = sweep.plan(define(toy), "seed=3,1;learning_rate=0.125,0.25", {"steps": 10}, tmp_path)
    assert all(error is None for _, error in executors.vmap(plan.definition, plan.members))
    assert finished == [(3, 0.125, 3), (3, 0.25, 3), (1, 0.125, 1), (1, 0.25, 1)]
    assert len(built) == 1


# ---- the optimizer


def updates_of(given_flags, steps):
    """The steps that plain gradient descent takes on the gradient 1: minus the learning rate."""
    config = define(toy).parse({"steps": 8, "learning_rate": 0.5, **given_flags})

    @jax.jit
    def run(learning_rate):
        optimizer = make_optimizer(config, learning_rate)
        state, taken = optimizer.init(jnp.zeros(1)), []
        for _ in range(steps):
            update, state = optimizer.update(jnp.ones(1), state, jnp.zeros(1))
            taken.append(-update[0])
        return jnp.stack(taken)

    return np.asarray(run(jnp.float32(0.5)))


def test_schedules():
    steps = np.arange(8)
    np.testing.assert_allclose(updates_of({}, 8), np.full(8, 0.5))
    np.testing.assert_allclose(updates_of({"schedule": "linear"}, 8), 0.5 * (1 - steps / 8), rtol=1e-6)
    cosine = 0.25 * (1 + np.cos(np.pi * steps / 8))
    np.testing.assert_allclose(updates_of({"schedule": "cosine"}, 8), cosine, rtol=1e-5)
    warm = np.array([0, 0.125, 0.25, 0.375, 0.5, 0.375, 0.25, 0.125])
    np.testing.assert_allclose(updates_of({"schedule": "linear", "warmup_steps": 4}, 8), warm, rtol=1e-6)


def test_clipping():
    config = define(toy).parse({"clip_norm": 2.0, "learning_rate": 1.0})
    optimizer = make_optimizer(config, 1.0)
    params = jnp.zeros(2)
    updates, _ = optimizer.update(jnp.array([30.0, 40.0]), optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-1.2, -1.6], rtol=1e-6)
    updates, _ = optimizer.update(jnp.array([0.3, 0.4]), optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.3, -0.4], rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adamw", "lion", "adagrad"])
def test_optimizers_are_those_of_optax(name):
    config = define(toy).parse({"optimizer": name})
    params, grads = {"w": jnp.ones((2, 3))}, {"w": jnp.full((2, 3), 0.1)}
    ours, theirs = make_optimizer(config, jnp.float32(0.1)), getattr(optax, name)(0.1)
    got, _ = ours.update(grads, ours.init(params), params)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = theirs.update(grads, theirs.init(params), params)
    np.testing.assert_allclose(got["w"], expected["w"], rtol=1e-6)


# ---- plans and directories


def test_the_proposed_sweep_loses_the_axes_that_are_fixed(tmp_path):
    plan = sweep.plan(define(toy), None, {"seed": 5}, tmp_path)
    assert [member.point for member in plan.members] == [{"model": "line"}, {"model": "curve"}]
    assert {member.config.seed for member in plan.members} == {5}
    only = sweep.plan(define(toy), None, {"seed": 5, "model": "line"}, tmp_path)
    assert [member.name for member in only.members] == ["run"]


def test_fixed_and_swept_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--seed is both fixed \(5\) and swept \(0,1\)"):
        sweep.plan(define(toy), "seed=0:2", {"seed": 5}, tmp_path)


def test_every_run_is_checked_before_anything_is_written(tmp_path):
    directory = tmp_path / "sweep"
    with pytest.raises(ValueError, match=r"run steps_per_call=3: .*evaluate_every must be a multiple"):
        sweep.plan(define(toy), "steps_per_call=5,3", {}, directory)
    assert not directory.exists()
    # What is wrong with the default of the other flag may be right with the swept one.
    assert len(sweep.plan(define(toy), "steps_per_call=5,3", {"evaluate_every": 15}, directory).members) == 2


def results(directory: Path) -> dict[str, dict[str, str]]:
    with open(directory / "results.csv") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def statuses(directory: Path) -> dict[str, str]:
    return {run["name"]: run["status"] for run in json.loads((directory / "sweep.json").read_text())["runs"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep of two runs, one after the other in this process."""
    directory = tmp_path_factory.mktemp("finished")
    assert sweep.run(sweep.plan(define(toy), "seed=0:2", {"steps": 10}, directory)) == 0
    return directory


def test_a_sweep_leaves_its_files(finished):
    content = json.loads((finished / "sweep.json").read_text())
    assert content["experiment"] == "toy_experiment"
    assert content["axes"] == {"seed": [0, 1]}
    assert content["fixed"] == {"steps": 10}
    assert content["versions"]["jax"] == jax.__version__
    rows = results(finished)
    assert list(rows) == ["seed=0", "seed=1"]
    for seed, row in enumerate(rows.values()):
        result = Run.read(finished / f"seed={seed}").result()
        assert (row["seed"], row["status"]) == (str(seed), "finished")
        assert float(row["final_loss"]) == result["final_loss"]
        assert result["parameters"] == 3
        assert "sample" not in row
    assert (finished / "report.html").exists()


def test_values_may_be_added_and_finished_runs_stay(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("seed=[01]/*.json*")}
    assert sweep.run(sweep.plan(define(toy), "seed=0:3", {"steps": 10}, finished)) == 0
    out = capsys.readouterr().out
    assert "2 of 3 runs are finished already" in out
    assert "[1/1] seed=2 finished" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert set(statuses(finished).values()) == {"finished"}
    with pytest.raises(ValueError, match="holds a sweep with seed=2, which this one leaves out"):
        sweep.plan(define(toy), "seed=0:2", {"steps": 10}, finished)


def test_another_sweep_is_refused(finished):
    with pytest.raises(ValueError, match=r"another sweep: its fixed is {'steps': 10}, not {'steps': 20}"):
        sweep.plan(define(toy), "seed=0:3", {"steps": 20}, finished)
    with pytest.raises(ValueError, match="it sweeps over seed, not model, seed"):
        sweep.plan(define(toy), "model=line;seed=0:3", {"steps": 10}, finished)


def test_a_default_that_changed_since_is_refused(finished, monkeypatch):
    monkeypatch.setattr(toy, "FLAGS", copy.deepcopy(toy.FLAGS))
    toy.FLAGS.set_default("batch_size", 33)
    with pytest.raises(ValueError, match="batch_size: given 33, found 32"):
        sweep.plan(define(toy), "seed=0:3", {"steps": 10}, finished)


# ---- damaged files, disks that are full or only read


def again(directory: Path, seeds: str = "0:2") -> int:
    """Launches the finished sweep, or what became of it, once more."""
    flags = ["--steps=10", f"--sweep=seed={seeds}", f"--workdir={directory}", "--executor=debug"]
    return launch.main(["--experiment=toy_experiment", *flags])


@pytest.fixture
def undrawn(monkeypatch):
    """Figures that are neither drawn nor written: most of the time of a report."""
    monkeypatch.setattr(plots, "save", lambda *_: b"<svg/>")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished sweep that nobody adds to."""
    directory = tmp_path_factory.mktemp("whole") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", lambda *_: b"<svg/>")
        assert sweep.run(sweep.plan(define(toy), "seed=0:2", {"steps": 10}, directory)) == 0
    return directory


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "sweep")


def test_every_cut_of_a_sweeps_file_is_named(copied):
    path = copied / "sweep.json"
    content = path.read_bytes()
    for length in range(len(content) - 1):  # the last byte is a newline
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"sweep\.json is damaged: expected an object with .*; remove it, and"):
            ledger.read(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"axes": []},
        {"axes": {"seed": 0}},
        {"fixed": None},
        {"experiment": 3},
        {"runs": None},
        {"runs": [1]},
        {"runs": [{"name": "seed=0"}]},
        {"runs": [{"name": "seed=0", "flags": {}, "status": "excellent", "error": None}]},
        {"runs": [{"name": "seed=0", "flags": {}, "status": "finished", "error": 4}]},
        b"",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        bytes(range(256)),
        "directory",
        "fifo",
    ],
    ids=lambda change: str(change)[:40],
)
def test_what_is_no_sweeps_file_is_named_and_removing_it_helps(change, copied, capsys):
    path = copied / "sweep.json"
    content = path.read_bytes()
    path.unlink()
    if change == "directory":
        path.mkdir()
    elif change == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(change if isinstance(change, bytes) else json.dumps(json.loads(content) | change).encode())
    assert again(copied) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"launch.py: {path} is damaged: ")
    with pytest.raises(ValueError, match="is damaged"):
        report.write(define(toy), copied)
    if change == "directory":
        path.rmdir()
    else:
        path.unlink()
    plan = sweep.plan(define(toy), "seed=0:2", {"steps": 10}, copied)
    found = ledger.Ledger(sweep._header(plan), plan.members, copied)
    found.write()
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["result.json", "config.json", "metrics.jsonl"])
@pytest.mark.parametrize("kept", ["nothing", "half", "first line", "other"])
def test_one_damaged_member_is_named_and_the_others_are_shown(name, kept, copied, capsys, monkeypatch):
    monkeypatch.setattr(report, "write", lambda *_: None)  # the next test
    path = copied / "seed=0" / name
    content = path.read_bytes()
    damaged = {
        "nothing": b"",
        "half": content[: len(content) // 2],
        "first line": content[: content.index(b"\n") + 1],
        "other": b"[]\n",
    }[kept]
    path.write_bytes(damaged)
    if name == "metrics.jsonl":  # of one call: a call that is missing altogether
        assert content.count(b"\n") == 2
        path.write_bytes(damaged if kept != "first line" else content.replace(b'"step": 10', b'"step": 9'))
    before = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    assert again(copied) == 1
    out, err = capsys.readouterr()
    assert "1 of 2 runs are finished already" in out
    [line] = err.splitlines()
    assert line.startswith("DAMAGED  seed=0: ")
    assert str(path) in line
    assert line.endswith(f"; remove {path.parent}, and the same command trains it again")
    assert {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()} == before
    expected = str(Run.read(copied / "seed=1").result()["final_loss"])
    assert [row["final_loss"] for row in results(copied).values()] == ["", expected]
    assert statuses(copied) == {"seed=0": "damaged", "seed=1": "finished"}


def test_a_damaged_member_is_in_the_report_and_the_cure_helps(copied, undrawn):
    (copied / "seed=0" / "result.json").write_text('{"final_loss": 0.')
    assert again(copied) == 1
    page = (copied / "report.html").read_text()
    assert "Runs damaged" in page
    assert "1 of 2 runs have no result and are not in it" in page
    shutil.rmtree(copied / "seed=0")
    assert again(copied) == 0
    assert "Runs damaged" not in (copied / "report.html").read_text()


def test_planning_changes_nothing(copied):
    (copied / "sweep.json").unlink()
    error = copied / "seed=0" / "error.txt"
    error.write_text("why it failed\n")
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    sweep.plan(define(toy), "seed=0:2", {"steps": 10}, copied)
    with pytest.raises(ValueError, match="seed=0 holds a run with other flags: steps: given 20, found 10"):
        sweep.plan(define(toy), "seed=0:2", {"steps": 20}, copied)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_a_report_that_fails_does_not_fail_the_sweep_and_is_written_by_the_next_launch(
    copied, undrawn, capsys, monkeypatch
):
    page = copied / "report.html"
    page.unlink()
    page.mkdir()
    assert again(copied) == 0
    out, err = capsys.readouterr()
    assert "final_loss" in out
    warning = "WARNING  the report is not whole, the next launch writes it again"
    assert err == f"{warning}: {page}: Is a directory; move it away; the same command resumes\n"
    page.rmdir()

    def broken(*_, **__):
        raise ZeroDivisionError("by zero")

    with monkeypatch.context() as patch:
        patch.setattr(report, "summary", broken)
        patch.setattr(sweep, "_close", lambda plan, found, problem: print(problem) or 0)
        assert again(copied) == 0
    assert "ZeroDivisionError: by zero" in capsys.readouterr().out
    assert not page.exists()
    assert again(copied) == 0
    assert page.is_file()


def test_a_directory_in_place_of_the_results_is_seen_before_any_run_starts(copied, capsys):
    shutil.rmtree(copied / "seed=0")
    (copied / "results.csv").unlink()
    (copied / "results.csv").mkdir()
    assert again(copied) == 1
    assert capsys.readouterr().err.startswith(f"launch.py: {copied / 'results.csv'}: Is a directory; move it away")
    assert not (copied / "seed=0").exists()


@pytest.fixture
def small_disk(tmp_path):
    if not can_mount():
        pytest.skip("mounts a disk, which only root may")
    with disk(tmp_path / "disk", "4m") as place:
        yield place


def test_a_finished_sweep_is_looked_at_on_a_disk_that_only_reads(whole, small_disk, capsys):
    copied = shutil.copytree(whole, small_disk / "sweep")
    mount("-o", "remount,ro", small_disk)
    assert again(copied) == 0
    out, err = capsys.readouterr()
    assert "final_loss" in out
    warning = "WARNING  the report is not whole, the next launch writes it again"
    assert err == f"{warning}: nothing can be written to {copied}\n"
    assert again(copied, "0:3") == 1
    line = f"launch.py: {copied}/.lock: Read-only file system; choose another directory with --workdir\n"
    assert capsys.readouterr().err == line


def test_a_finished_sweep_is_looked_at_on_a_full_disk(whole, small_disk, capsys):
    copied = shutil.copytree(whole, small_disk / "sweep")
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(b"\0" * 4096):
            pass
    assert again(copied) == 0
    out, err = capsys.readouterr()
    assert "final_loss" in out
    assert err.startswith("WARNING  the report is not whole, the next launch writes it again: ")
    assert "No space left on device; make room" in err
    assert err.count("\n") == 1
    assert (copied / "report.html").read_bytes() == (whole / "report.html").read_bytes()


# ---- executors


@pytest.fixture(scope="module")
def fixed():
    return {"steps": 20, "steps_per_call": 10}


def test_a_failed_run_takes_no_other_down_and_runs_again(tmp_path, capsys, fixed):
    plan = sweep.plan(define(toy), "fault=program,none,finish", fixed, tmp_path)
    assert sweep.run(plan) == 1
    assert statuses(tmp_path) == {"fault=program": "failed", "fault=none": "finished", "fault=finish": "failed"}
    err = capsys.readouterr().err
    assert "FAILED   fault=program: ValueError: the program is\n" in err
    assert "FAILED   fault=finish: FileNotFoundError: nothing to finish with" in err
    assert "the program is" in (tmp_path / "report.html").read_text()
    started = []
    sweep.run(plan, functools.partial(spy, started))
    assert started == ["fault=program", "fault=finish"]


def spy(started, module, members):
    started += [member.name for member in members]
    yield from executors.debug(module, members)


def test_vmap_equals_single_runs(tmp_path, fixed):
    text = "learning_rate=0.05,0.1;seed=0:2"
    for name, executor in (("one", executors.debug), ("lanes", executors.vmap)):
        assert sweep.run(sweep.plan(define(toy), text, fixed, tmp_path / name), executor) == 0
    singles, lanes = results(tmp_path / "one"), results(tmp_path / "lanes")
    assert list(singles) == list(lanes)
    for name, row in singles.items():
        np.testing.assert_allclose(float(lanes[name]["final_loss"]), float(row["final_loss"]), rtol=1e-5)
        assert (row["lanes"], lanes[name]["lanes"]) == ("1", "4")
        records = [Run.read(tmp_path / kind / name).records() for kind in ("one", "lanes")]
        assert [record["step"] for record in records[0]] == [record["step"] for record in records[1]]


def test_vmap_lane_that_diverges_fails_alone(tmp_path, fixed):
    plan = sweep.plan(define(toy), "learning_rate=0.001,1000", {**fixed, "model": "curve"}, tmp_path)
    assert sweep.run(plan, executors.vmap) == 1
    assert list(statuses(tmp_path).values()) == ["finished", "failed"]
    [_, failed] = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert "loss is" in failed["error"]
    assert "at step" in (plan.members[1].directory / "error.txt").read_text()


@pytest.mark.parametrize("executor", [executors.debug, executors.vmap])
def test_a_run_that_diverges_is_nowhere_silently_absent(executor, tmp_path, fixed, undrawn, capsys):
    # Seed 2 starts farther away than gradient descent on a fourth power can bear.
    plan = sweep.plan(define(toy), "model=line,curve;seed=1:3", {**fixed, "learning_rate": 0.03}, tmp_path)
    assert sweep.run(plan, executor) == 1
    out, err = capsys.readouterr()
    failed = {name for name, status in statuses(tmp_path).items() if status == "failed"}
    assert failed == {"model=curve,seed=2"}
    for name, row in results(tmp_path).items():
        assert (row["status"] == "failed") == (row["final_loss"] == "") == (name in failed)
        assert (re.fullmatch(r".*loss is (inf|nan) at step \d+", row["reason"]) is not None) == (name in failed)
    page = (tmp_path / "report.html").read_text()
    for text in (out, re.sub(r"<[^>]+>", " ", page)):
        assert re.search(r"curve\s+1 of 2\s.*loss is (inf|nan) at step \d+", text)
    assert "1 of 4 runs have no result and are not in it" in page
    assert "FAILED   model=curve,seed=2: " in err


def test_a_run_without_a_result_is_a_failed_run(tmp_path, fixed, capsys):
    def careless(module, members):
        yield members[0], None

    assert sweep.run(sweep.plan(define(toy), "seed=0:2", fixed, tmp_path), careless) == 1
    assert statuses(tmp_path) == {"seed=0": "failed", "seed=1": "waiting"}
    err = capsys.readouterr().err
    assert "FAILED   seed=0: it ended without a result" in err
    assert "FAILED   seed=1: waiting" in err


def test_vmap_reports_an_error_of_the_whole_program(tmp_path, fixed):
    plan = sweep.plan(define(toy), "seed=0:2", {**fixed, "fault": "program"}, tmp_path)
    assert sweep.run(plan, executors.vmap) == 1
    assert set(statuses(tmp_path).values()) == {"failed"}


def test_local_processes(tmp_path, capsys, fixed):
    plan = sweep.plan(define(toy), "fault=none,kill,program", fixed, tmp_path)
    assert sweep.run(plan, functools.partial(executors.local, processes=3)) == 1
    assert statuses(tmp_path) == {"fault=none": "finished", "fault=kill": "failed", "fault=program": "failed"}
    err = capsys.readouterr().err
    assert "FAILED   fault=kill: killed by SIGKILL" in err
    assert "FAILED   fault=program: ValueError: the program is" in err
    assert "final_loss" in (tmp_path / "fault=none" / "log.txt").read_text()
    assert "ValueError: the program is" in (tmp_path / "fault=program" / "log.txt").read_text()
    assert "Traceback" in (tmp_path / "fault=program" / "error.txt").read_text()


def test_processors_are_shared_and_the_environment_wins(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    environment = executors._environment(3)
    assert (environment["NPROC"], environment["OMP_NUM_THREADS"]) == ("2", "5")
    assert environment["PYTHONPATH"].split(os.pathsep) == [path for path in sys.path if path]


def test_submitit(tmp_path, monkeypatch, fixed):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'seqjax[slurm]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    plan = sweep.plan(define(toy), "fault=none,program", fixed, tmp_path)
    executor = functools.partial(executors.slurm, processes=2, minutes=1, cluster="local")
    assert sweep.run(plan, executor) == 1
    [done, failed] = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert (done["status"], failed["status"]) == ("finished", "failed")
    assert "the program is" in failed["error"]


def test_slurm_names_what_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"needs submitit: pip install 'seqjax\[slurm\]'"):
        executors.require_slurm()
    monkeypatch.undo()
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'seqjax[slurm]'")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="there is no sbatch here"):
        executors.require_slurm()
