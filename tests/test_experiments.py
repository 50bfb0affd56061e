"""Every experiment through its command line, two steps at tiny sizes, and what its flags promise."""

import io
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from experiments import base, initialization, recurrent_dropout, report, supervised, tasks, temperature
from seqjax.data import jena
from seqjax.train.run import Run

ROOT = Path(__file__).parents[1]
SHORT = ("--steps=2", "--steps_per_call=1", "--evaluate_every=1", "--checkpoint_every=0", "--noprogress")


@pytest.fixture(scope="module", autouse=True)
def small_record():
    """The generated record, at a size whose evaluation takes no time."""
    patch = pytest.MonkeyPatch()
    record = jena.synthetic_climate(jax.random.key(0), 900)
    patch.setattr(tasks, "climate", lambda data_dir: record)
    yield record
    patch.undo()


def run(name, directory, *flags):
    """`python -m experiments.NAME`, in this process; returns the run directory."""
    module = import_module(f"experiments.{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *SHORT, f"--workdir={directory}", *flags])
        with pytest.raises(SystemExit) as stop:
            base.main(module)
    assert not stop.value.code
    finished = Run.read(directory)
    result = finished.result()
    assert result["steps"] == 2
    assert all(np.isfinite(value) for name, value in result.items() if name.startswith("test_"))
    assert {record["split"] for record in finished.records()} == {"train", "validation"}
    return finished


def refused(name, *flags):
    """The one line that bad flags are refused with."""
    with pytest.raises(ValueError, match="^flag") as error:
        base.parse(import_module(f"experiments.{name}"), list(flags))
    return str(error.value)


def drawn(module, runs):
    """The sections of the report, their figures drawn and their tables printed."""
    sections = module.report(runs)
    for section in sections:
        for figure in section.figures:
            figure.savefig(io.BytesIO(), format="png")
        if section.table:
            report.text_table(section.table)
    return sections


@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("text", ["--length=8", "--truncation=4:8", "--sample=5"]),
        ("recall", ["--length=7", "--truncation=4:4"]),
        ("copy", ["--length=2"]),
        ("adding", ["--length=6", "--cell=gru"]),
    ],
)
def test_bptt_vs_tbptt(task, flags, tmp_path):
    if task == "text":
        (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
        flags = [*flags, f"--corpus={tmp_path / 'corpus.txt'}"]
    finished = run("bptt_vs_tbptt", tmp_path / "run", f"--task={task}", "--batch_size=2", "--hidden=4", *flags)
    updates = {"text": 4, "recall": 2, "copy": 2, "adding": 2}[task]
    assert finished.result()["updates"] == updates
    assert (finished.directory / "sample.txt").exists() == (task == "text")


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        # For the 14 variables of the official file, the counts that the book prints.
        ("naive", 0),
        ("dense", 26_913),
        ("conv", 3_873),
        ("lstm", 2_001),
        ("rnn", 16 * (14 + 16) + 16 + 17),
        ("gru", 3 * (16 * (14 + 16) + 16) + 16 + 17),
        ("stacked_gru", 3 * 32 * (14 + 32) + 4 * 32 + 3 * 32 * (32 + 32) + 4 * 32 + 33),
        ("bilstm", 2 * 1_984 + 33),
    ],
)
def test_temperature(model, parameters, tmp_path, small_record):
    finished = run("temperature", tmp_path / "run", f"--model={model}", "--batch_size=4")
    result = finished.result()
    assert result["parameters"] == parameters
    assert result["record"] == small_record.report
    assert (finished.figures / "forecasts.png").stat().st_size > 10_000
    saved = np.load(finished.directory / "forecasts.npz")
    # The best of the validation part is what is tested, in degrees, on every window of the test part.
    assert len(saved["time"]) == 225 - 143
    np.testing.assert_array_equal(saved["truth"], small_record.values[-len(saved["time"]) :, 1])
    np.testing.assert_array_equal(saved["naive"], small_record.values[-len(saved["time"]) - 24 : -24, 1])
    assert result["test_mae"] == pytest.approx(np.abs(saved["forecast"] - saved["truth"]).mean(), rel=1e-5)
    assert result["validation_mae"] == min(r["mae"] for r in finished.records() if r["split"] == "validation")
    if model == "naive":
        np.testing.assert_allclose(saved["forecast"], saved["naive"], atol=1e-4)
    assert len(drawn(temperature, [finished])) == 1


def test_temperature_rates(tmp_path):
    """Evaluation has no noise; a rate of -1 is that of the table, and every other is obeyed."""
    losses = {}
    for name, flags in {
        "own": ["--model=stacked_gru"],
        "same": ["--model=stacked_gru", "--recurrent_dropout=0.5", "--dropout=0.5"],
        "recurrent": ["--model=stacked_gru", "--recurrent_dropout=0.2"],
        "dense": ["--model=stacked_gru", "--dropout=0.2"],
    }.items():
        finished = run("temperature", tmp_path / name, "--batch_size=4", "--length=8", "--units=3", *flags)
        losses[name] = [record["loss"] for record in finished.records() if record["split"] == "train"]
    assert losses["own"] == losses["same"]
    assert losses["own"][0] not in (losses["recurrent"][0], losses["dense"][0])
    assert losses["recurrent"][0] != losses["dense"][0]


def test_temperature_lanes_equal_single_runs(tmp_path):
    """One compiled program over seeds, learning rates and dropout rates is what its runs are one by one."""
    arguments = ["--experiment=temperature", "--model=lstm", "--batch_size=4", "--length=8", "--units=3", *SHORT]
    sweep = "--sweep=seed=0:2;recurrent_dropout=-1,0.5;learning_rate=0.001,0.01"
    for executor in ("vmap", "debug"):
        assert not launch.main([*arguments, sweep, f"--executor={executor}", f"--workdir={tmp_path / executor}"])
    directories = [path for path in sorted((tmp_path / "vmap").iterdir()) if (path / "config.json").exists()]
    assert len(directories) == 8
    finals = set()
    for lane in directories:
        one, other = Run.read(lane), Run.read(tmp_path / "debug" / lane.name)
        assert (one.result()["lanes"], other.result()["lanes"]) == (8, 1)
        for name in ("test_mae", "validation_mae"):
            assert one.result()[name] == pytest.approx(other.result()[name], rel=1e-4)
        for first, second in zip(one.records(), other.records(), strict=True):
            assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
        finals.add(round(one.result()["test_mae"], 6))
    assert len(finals) == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=dense", "--dropout=0.5"], "--dropout is for the recurrent models (rnn, lstm, gru"),
        (["--model=naive", "--units=4"], "naive and conv have no --units"),
        (["--recurrent_dropout=1"], "a rate in [0, 1), or -1"),
        (["--model=transformer"], "value should be one of <naive|dense|conv|rnn|"),
    ],
)
def test_temperature_refuses(flags, message):
    assert message in refused("temperature", *flags)


@pytest.mark.parametrize("where", list(recurrent_dropout.WHERE))
def test_recurrent_dropout(where, tmp_path):
    finished = run("recurrent_dropout", tmp_path, "--task=adding", "--length=6", f"--where={where}", "--hidden=4")
    assert finished.result()["last_gap"] == pytest.approx(
        finished.records()[-1]["loss"] - finished.records()[-1]["training_loss"]
    )
    assert [section.title for section in drawn(recurrent_dropout, [finished])] == ["The gap", "Masks"]


def test_recurrent_dropout_on_the_climate_record(tmp_path):
    finished = run("recurrent_dropout", tmp_path, "--length=8", "--where=both", "--cell=gru", "--hidden=4")
    assert "test_mae" in finished.result()


def outputs_of(**flags):
    """Outputs of a training batch of the dropout study, for a key of the noise, and without noise for None."""
    config = base.parse(recurrent_dropout, {"task": "adding", "length": 12, "hidden": 8, **flags})
    task = supervised.task_of(config)
    model = recurrent_dropout.model(config, task)
    params = model.init({}, jax.random.key(0))
    xs = task.train(task.data, jax.random.key(1), jnp.int32(0)).xs
    # The last leaf of the inputs is the marker: with the inputs held still only the masks vary.
    run = jax.jit(lambda key: model.outputs({"rate": 0.5}, params, xs, key))
    return run, model.outputs({"rate": 0.5}, params, xs, None)


def test_where_says_what_is_dropped():
    results = {}
    for where in recurrent_dropout.WHERE:
        outputs, bare = outputs_of(where=where)
        first, again, other = (np.asarray(outputs(jax.random.key(seed))) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert np.array_equal(first, bare) == (where == "none")
        assert np.array_equal(first, other) == (where == "none")
        # The first step has no carry to drop.
        assert np.allclose(first[0], bare[0], atol=1e-6) == (where in ("none", "recurrent", "per_step"))
        results[where] = first
    assert len({value.tobytes() for value in results.values()}) == len(results)


@pytest.mark.parametrize(
    ("cell", "forget_bias", "recurrent"),
    [("lstm", "chrono", "identity"), ("gru", "1", "glorot"), ("rnn", "0", "uniform"), ("lstm", "0", "orthogonal")],
)
def test_initialization(cell, forget_bias, recurrent, tmp_path):
    finished = run(
        "initialization",
        tmp_path,
        "--length=6",
        "--hidden=4",
        f"--cell={cell}",
        f"--forget_bias={forget_bias}",
        f"--recurrent={recurrent}",
    )
    norms = np.load(finished.directory / "gradients.npy")
    assert norms.shape == (6,)
    assert (norms > 0).all()
    assert finished.result()["first_gradient_ratio"] == pytest.approx(norms[-1] / norms[0], rel=1e-5)
    assert len(drawn(initialization, [finished])) == 1


def initial(**flags):
    config = base.parse(initialization, {"task": "adding", "length": 50, "hidden": 4, **flags})
    cell = initialization.model(config, supervised.task_of(config))
    return cell.init(jax.random.key(0), 2)["cell"]


def test_initialization_of_weights_and_biases():
    identity = initial(cell="rnn", recurrent="identity")["w_h"]
    np.testing.assert_array_equal(identity, np.eye(4))
    orthogonal = initial(cell="rnn", recurrent="orthogonal")["w_h"]
    np.testing.assert_allclose(orthogonal @ orthogonal.T, np.eye(4), atol=1e-6)
    bound = initial(cell="rnn", recurrent="uniform")["w_h"]
    assert 0.25 < jnp.abs(bound).max() <= 0.5
    assert not jnp.array_equal(initial(cell="rnn", recurrent="glorot")["w_h"], bound)
    for cell, kept in (("lstm", slice(4, 8)), ("gru", slice(4, 8))):
        for value in (0, 1):
            bias = initial(cell=cell, forget_bias=str(value))["b"]
            assert bias.sum() == 4 * value
            assert (bias[kept] == value).all()
        chrono = initial(cell=cell, forget_bias="chrono")["b"][kept]
        assert (chrono > 0).all()
        assert (chrono < np.log(49)).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cell=rnn", "--forget_bias=1"], "--cell=rnn takes --forget_bias=0 only"),
        (["--forget_bias=chrono", "--length=2"], "chrono is for a --length of more than 2 steps"),
        (["--recurrent=sparse"], "value should be one of <orthogonal|identity|glorot|uniform>"),
    ],
)
def test_initialization_refuses(flags, message):
    assert message in refused("initialization", *flags)


def test_a_fresh_process_says_that_the_record_is_generated(tmp_path):
    flags = ["--model=naive", "--steps=1", "--steps_per_call=1", "--evaluate_every=0", "--checkpoint_every=0"]
    command = [sys.executable, "-m", "experiments.temperature", *flags, "--batch_size=4", f"--workdir={tmp_path}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert process.returncode == 0, process.stderr
    assert "no --data_dir: the record is generated" in process.stderr
    assert "jena (generated): 8000 rows x 14 columns" in process.stdout
    assert json.loads((tmp_path / "result.json").read_text())["test_mae"] > 0
