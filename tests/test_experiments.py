"""Every experiment through its command line, two steps at tiny sizes, and what its flags promise."""

import io
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from experiments import bptt_vs_tbptt, initialization, language, recurrent_dropout, temperature, vanishing
from experiments.harness import command, report, supervised
from experiments.harness.experiment import define
from experiments.harness.precision import narrowed
from experiments.harness.task import Batch, Task, evaluate
from experiments.shared import tasks
from experiments.shared.tasks import weather
from seqjax.data import jena
from seqjax.train import read_arrays
from seqjax.train.run import Run
from tests.agree import equations
from tests.quick import few

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if "\nSWEEP = " in path.read_text())
SHORT = ("--steps=2", "--steps_per_call=1", "--evaluate_every=1", "--checkpoint_every=0", "--noprogress")


pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module", autouse=True)
def small_record():
    """The generated record, at a size whose evaluation takes no time."""
    record = jena.synthetic_climate(jax.random.key(0), 900)
    with pytest.MonkeyPatch.context() as patch:
        for module in (tasks, weather):
            patch.setattr(module, "climate", lambda data_dir: record)
        yield record


def run(name, directory, *flags):
    """`python -m experiments.NAME`, in this process; returns the run directory."""
    module = import_module(f"experiments.{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, "--seed=0", *SHORT, f"--workdir={directory}", *flags])
        with pytest.raises(SystemExit) as stop:
            command.main(module)
    assert not stop.value.code
    finished = Run.read(directory)
    result = finished.result()
    assert result["steps"] == 2
    assert all(np.isfinite(value) for name, value in result.items() if name.startswith("test_"))
    assert {record["split"] for record in finished.records()} == {"train", "validation"}
    return finished


def refused(name, *flags):
    """The one line that bad flags are refused with."""
    with pytest.raises(ValueError, match="flag") as error:
        define(import_module(f"experiments.{name}")).parse(list(flags))
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


def test_a_flag_has_one_name_and_one_type_in_all_experiments():
    assert len(NAMES) == 23
    found = {name: define(import_module(f"experiments.{name}")).flags for name in NAMES}
    types: dict[str, set[str]] = {}
    for values in found.values():
        for name in values:
            types.setdefault(name, set()).add(values[name].flag_type())
    assert {name: kinds for name, kinds in types.items() if len(kinds) > 1} == {}
    for same in (
        {"units", "hidden", "hidden_size", "width"},
        {"model", "cell", "network"},
        {"embedding_size", "embedding", "features"},
        {"dropout", "rate"},
        {"learning_rate_decay", "decay"},
        {"min_count", "minimum"},
    ):
        assert len(same & types.keys()) == 1, same


def test_the_docstring_of_an_experiment_is_short_and_the_page_has_its_results():
    page = (ROOT / "docs" / "results.md").read_text()
    for name in NAMES:
        doc = import_module(f"experiments.{name}").__doc__
        assert len(doc.strip().splitlines()) <= 20, name
        assert "(docs/results.md)" in " ".join(doc.split()), name
        assert re.search(rf"experiments[./]{name}\b", page), name


@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("text", ["--length=8", "--truncation=4:8", "--sample=5"]),
        ("recall", ["--lag=7", "--truncation=4:4"]),
        ("copy", ["--lag=2"]),
        ("adding", ["--length=6", "--model=gru"]),
        ("temperature", ["--length=6", "--truncation=3:3"]),
        ("chorales", ["--truncation=16:16", "--accumulate"]),
    ],
)
def test_bptt_vs_tbptt(task, flags, tmp_path):
    if task == "text":
        (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
        flags = [*flags, f"--corpus={tmp_path / 'corpus.txt'}"]
    finished = run("bptt_vs_tbptt", tmp_path / "run", f"--task={task}", "--batch_size=2", "--units=4", *flags)
    updates = {"text": 4}.get(task, 2)
    assert finished.result()["updates"] == updates
    assert (finished.directory / "sample.txt").exists() == (task == "text")
    if task == "recall":
        assert [section.title for section in drawn(bptt_vs_tbptt, [finished])] == ["Training, recall"]
    if task == "text":  # 85 % of 1,760 characters, in two lanes of chunks of eight
        line = "7 of 1,496 training characters, at the ends of 2 streams of windows of 8"
        assert finished.result()["left_out"] == line


@pytest.mark.parametrize("remedy", few(vanishing.REMEDIES, ("batch_norm",)))
def test_vanishing(remedy, tmp_path):
    finished = run("vanishing", tmp_path / "run", f"--remedy={remedy}", "--lag=4", "--units=3", "--batch_size=2")
    norms = read_arrays(finished.directory / "gradients.npz")
    assert {name: row.shape for name, row in norms.items()} == {"first": (5,), "last": (5,)}
    assert np.isfinite(norms["last"]).all()
    found = drawn(vanishing, [finished])
    assert [row[0] for row in found[0].table] == ["", remedy]


@pytest.mark.parametrize(("remedy", "flag"), [("adam", "--optimizer=rmsprop"), ("together", "--clip_norm=0.5")])
def test_a_flag_that_a_remedy_sets_is_refused(remedy, flag):
    name = flag.split("=")[0]
    assert f"this --remedy sets {name} itself" in refused("vanishing", f"--remedy={remedy}", flag)


def test_a_gradient_vanishes_or_explodes_as_the_recurrent_matrix_scales_it():
    """By the gain per step, where the carry is still small enough for tanh to be linear."""
    for pathology, gain in vanishing.GAINS.items():
        config = define(vanishing).parse({"pathology": pathology, "lag": 8, "batch_size": 4})
        task = tasks.recall(lag=8, batch_size=4)
        model, gradients = vanishing.network(config, task)
        params = jax.tree.map(lambda leaf: leaf, model.init({}, jax.random.key(0)))
        params["cell"]["embedding"] *= 1e-9
        batch = task.train(task.data, jax.random.key(0), jnp.int32(0))
        norms = np.asarray(gradients(params, batch.xs, batch.targets))
        np.testing.assert_allclose(norms[:-1] / norms[1:], gain, rtol=1e-4)


def test_the_gradient_of_a_truncated_sequence_ends_at_half_of_the_lag():
    config = define(vanishing).parse({"remedy": "truncation", "lag": 7, "units": 3, "batch_size": 2})
    task = tasks.recall(lag=7, batch_size=2)
    model, _ = vanishing.network(config, task)
    whole, _ = vanishing.network(SimpleNamespace(**{**vars(config), "remedy": "none"}), task)
    params = model.init({}, jax.random.key(0))
    xs = task.train(task.data, jax.random.key(0), jnp.int32(0)).xs

    def of_first(model):
        """The gradient of the last output by the embedding of the symbols, which are at the first step alone."""
        grads = jax.grad(lambda params: model.outputs({}, params, xs, None)[-1].sum())(params)
        return np.abs(grads["cell"]["embedding"][:8]).max()

    assert of_first(whole) > 0
    assert of_first(model) == 0
    np.testing.assert_allclose(
        model.outputs({}, params, xs, None), whole.outputs({}, params, xs, None), rtol=1e-5, atol=1e-6
    )


def test_a_run_that_stopped_early_is_drawn_to_its_end():
    """And does not keep the others from being drawn to theirs."""

    def stopped(after):
        losses = [{"split": "validation", "step": step, "loss": float(step)} for step in range(1, after + 1)]
        return SimpleNamespace(records=lambda: losses)

    _, axes = report.panels()
    report.evaluation_lines(axes[0, 0], "two", [stopped(2), stopped(4)], "loss", 0)
    assert [line.get_xdata().tolist() for line in axes[0, 0].lines] == [[1, 2], [1, 2, 3, 4]]


def test_scores_of_a_text_are_over_all_of_its_characters(tmp_path):
    """By a table of bigrams, against NumPy on the whole part at once: nothing at the end of a lane is dropped."""
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    task = tasks.characters(str(tmp_path / "corpus.txt"), length=8, batch_size=3)
    table = np.random.default_rng(0).normal(size=(task.tokens, task.tokens)).astype(np.float32)
    everything = (tmp_path / "corpus.txt").read_text()
    borders = {"validation": (1496, 1584), "test": (1584, 1760)}
    for part, (first, stop) in borders.items():
        tokens = task.vocabulary.encode(everything[first:stop])
        logits = table[tokens[:-1]].astype(np.float64)
        nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), tokens[1:]]
        found = evaluate(task, part, task.data, (), lambda carry, xs: (carry, jnp.asarray(table)[xs]))
        np.testing.assert_allclose(found["loss"], nats.mean(), rtol=1e-6)
        np.testing.assert_allclose(found["bits_per_character"], nats.mean() / np.log(2), rtol=1e-6)


def test_what_training_on_a_text_leaves_over_is_said(tmp_path):
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    flags = {"corpus": str(tmp_path / "corpus.txt"), "batch_size": 2, "length": 8}
    line = "15 of 1,584 training characters, at the ends of 2 streams of windows of 8"
    assert language.build(define(language).parse(flags)).left_out == line
    assert language.build(define(language).parse({**flags, "model": "unigram"})).left_out is None


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        # For the 14 variables of the official file; the book prints the first three.
        ("dense", 26_913),
        ("conv", 3_873),
        ("lstm", 2_001),
        ("rnn", 16 * (14 + 16) + 16 + 17),
        ("gru", 3 * (16 * (14 + 16) + 16) + 16 + 17),
        ("stacked_gru", 3 * 32 * (14 + 32) + 4 * 32 + 3 * 32 * (32 + 32) + 4 * 32 + 33),
        ("bilstm", 2 * 1_984 + 33),
        ("dropout_lstm", 4 * (32 * (14 + 32) + 32) + 33),
        ("min_gru", 2 * (32 * 14 + 32) + 33),
        ("lru", 3 * 32 + 2 * 14 * 64 + 14 + 15),
        ("zoneout_lstm", 4 * (32 * (14 + 32) + 32) + 2 * 128 + 2 * 32 + 33),
        ("naive", 0),
    ],
)
def test_temperature_models(model, parameters):
    """Every model has the weights of the table and can be trained: all but the compiler's part of a run."""
    made = temperature.build(define(temperature).parse({"model": model})).program
    hparams = define(temperature).hparams(define(temperature).parse({"model": model}))
    state = jax.eval_shape(made.init, hparams)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)) == parameters
    after, _ = jax.eval_shape(made.update, hparams, made.data, state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


@pytest.mark.parametrize("model", ["naive", "dense", "conv", "bilstm"])
def test_temperature(model, tmp_path, small_record):
    finished = run("temperature", tmp_path / "run", f"--model={model}", "--batch_size=4")
    result = finished.result()
    assert result["record"] == small_record.report
    assert (finished.figures / "forecasts.png").stat().st_size > 10_000
    saved = read_arrays(finished.directory / "forecasts.npz")
    # The best of the validation part is what is tested, in degrees, on every window of the test part.
    assert len(saved["time"]) == 225 - 143
    np.testing.assert_array_equal(saved["truth"], small_record.values[-len(saved["time"]) :, 1])
    np.testing.assert_array_equal(saved["naive"], small_record.values[-len(saved["time"]) - 24 : -24, 1])
    assert result["test_mae"] == pytest.approx(np.abs(saved["forecast"] - saved["truth"]).mean(), rel=1e-5)
    assert result["validation_mae"] == min(r["mae"] for r in finished.records() if r["split"] == "validation")
    if model == "naive":
        np.testing.assert_allclose(saved["forecast"], saved["naive"], atol=1e-4)
    assert len(drawn(temperature, [finished])) == 1
    if model == "dense":
        # The weights of a Flax module come back from the checkpoint as they were.
        (tmp_path / "run" / "result.json").unlink()
        again = run("temperature", tmp_path / "run", f"--model={model}", "--batch_size=4")
        assert again.result()["test_mae"] == result["test_mae"]
        assert len(again.records()) == 4


def test_temperature_lanes(tmp_path, monkeypatch):
    """Seeds and dropout rates as lanes of one program, each equal to its single run."""
    monkeypatch.setattr(temperature, "save", lambda figure, path: None)
    arguments = ["--model=stacked_gru", "--batch_size=4", "--length=8", "--units=3", *SHORT]
    sweep = "--sweep=seed=0:2;recurrent_dropout=-1,0.2;dropout=-1,0.2,0.5"
    assert not launch.main(["--experiment=temperature", *arguments, sweep, "--executor=vmap", f"--workdir={tmp_path}"])
    lanes = {path.name: Run.read(path) for path in tmp_path.iterdir() if (path / "config.json").exists()}
    tested = {name: lane.result()["test_mae"] for name, lane in lanes.items()}
    # -1 is the rate of the table, 0.5; every other number makes a run of its own.
    for name, error in tested.items():
        if name.endswith("dropout=0.5"):
            assert error == tested[name.replace(",dropout=0.5", ",dropout=-1.0")]
    assert (len(tested), len(set(tested.values()))) == (12, 8)
    name = "seed=1,recurrent_dropout=0.2,dropout=0.2"
    single = run("temperature", tmp_path / "single", *arguments, *(f"--{flag}" for flag in name.split(",")))
    assert (lanes[name].result()["lanes"], single.result()["lanes"]) == (12, 1)
    assert single.result()["test_mae"] == pytest.approx(tested[name], rel=1e-4)
    for of_lane, alone in zip(lanes[name].records(), single.records(), strict=True):
        assert of_lane["loss"] == pytest.approx(alone["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=dense", "--dropout=0.5"], "--dropout is for the models rnn, gru, lstm, dropout_lstm"),
        (
            ["--model=lru", "--recurrent_dropout=0.5"],
            "--recurrent_dropout is for the models rnn, gru, lstm, dropout_lstm",
        ),
        (["--model=naive", "--units=4"], "naive and conv have no --units"),
        (["--recurrent_dropout=1"], "a rate in [0, 1), or -1"),
        (["--model=transformer"], "value should be one of <naive|dense|conv|rnn|"),
    ],
)
def test_temperature_refuses(flags, message):
    assert message in refused("temperature", *flags)


def test_recurrent_dropout(tmp_path):
    finished = run("recurrent_dropout", tmp_path, "--task=adding", "--length=6", "--where=per_step", "--units=4")
    assert finished.result()["last_gap"] == pytest.approx(
        finished.records()[-1]["loss"] - finished.records()[-1]["training_loss"]
    )


@pytest.mark.parametrize("task", few(("temperature", "chorales", "words"), ("chorales",)))
def test_the_report_on_dropout_compares_each_place_at_its_best_rate(task, tmp_path):
    flags = [f"--task={task}", "--units=3", "--batch_size=2", *(["--length=6"] if task != "chorales" else [])]
    settings = [("none", 0.2), *[("recurrent", rate) for rate in (0.2, 0.6)]]
    finished = [
        run("recurrent_dropout", tmp_path / f"{where}{rate}", f"--where={where}", f"--dropout={rate}", *flags)
        for where, rate in settings
    ]
    gains, gap, masks = drawn(recurrent_dropout, finished)
    best = min(finished[1:], key=lambda run: run.result()["validation_loss"]).flags["dropout"]
    assert [row[:3] for row in gains.table] == [["where", "rate", "runs"], ["none", None, 1], ["recurrent", best, 1]]
    assert gains.table[0][4:6] == ["less none", "less recurrent"]
    none, found = (row[3:] for row in gains.table[1:])
    for own, change, itself, reference in zip(found[::3], found[1::3], found[2::3], none[::3], strict=True):
        assert change.mean == pytest.approx(own.mean - reference.mean)
        assert itself is None
    assert none[1::3] == [None] * (len(none) // 3)
    assert [len(gap.table), masks.title] == [3, "Masks"]


def test_recurrent_dropout_on_the_climate_record(tmp_path):
    finished = run("recurrent_dropout", tmp_path, "--length=8", "--where=both", "--model=gru", "--units=4")
    assert "test_mae" in finished.result()


def test_words_are_embedded_outside_of_the_cell():
    """So that dropout of the input drops features of an embedding, and a mask keeps the others of a whole sequence."""
    run, bare = outputs_of(task="words", where="input", length=5)
    noisy = np.asarray(run(jax.random.key(0)))
    assert noisy.shape == bare.shape
    assert not np.allclose(noisy, bare)


def outputs_of(**flags):
    """Outputs of a training batch of the dropout study, for a key of the noise, and without noise for None."""
    config = define(recurrent_dropout).parse({"task": "adding", "length": 12, "units": 8, **flags})
    task = tasks.make_task(config)
    model = recurrent_dropout.model(config, task)
    params = model.init({}, jax.random.key(0))
    xs = task.train(task.data, jax.random.key(1), jnp.int32(0)).xs
    run = jax.jit(lambda key: model.outputs({"dropout": 0.5}, params, xs, key))
    return run, model.outputs({"dropout": 0.5}, params, xs, None)


def test_where_says_what_is_dropped():
    results = {}
    for where in recurrent_dropout.WHERE:
        outputs, bare = outputs_of(where=where)
        first, again, other = (np.asarray(outputs(jax.random.key(seed))) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert np.array_equal(first, bare) == (where == "none")
        assert np.array_equal(first, other) == (where == "none")
        # The first step has no carry to drop.
        late = ("none", "recurrent", "per_gate", "weights", "per_step")
        assert np.allclose(first[0], bare[0], atol=1e-6) == (where in late)
        results[where] = first
    assert len({value.tobytes() for value in results.values()}) == len(results)


def test_zoneout_is_evaluated_by_its_mean_and_everything_else_bare():
    for where, place in recurrent_dropout.WHERE.items():
        _, bare = outputs_of(where=where)
        _, none = outputs_of(where="none")
        assert np.allclose(bare, none) == (where != "zoneout"), where
        assert (place.evaluation is not None) == (where == "zoneout")


def test_a_simple_rnn_has_no_mask_per_gate():
    for where in ("per_gate", "candidate"):
        assert "a simple RNN has no gates" in refused("recurrent_dropout", "--model=rnn", f"--where={where}")


@pytest.mark.parametrize(
    ("cell", "forget_bias", "recurrent", "task"),
    [("lstm", "chrono", "identity", "adding"), ("rnn", "0", "uniform", "temperature")],
)
def test_initialization(cell, forget_bias, recurrent, task, tmp_path):
    finished = run(
        "initialization",
        tmp_path,
        f"--task={task}",
        "--length=6",
        "--units=4",
        f"--model={cell}",
        f"--forget_bias={forget_bias}",
        f"--recurrent={recurrent}",
    )
    norms = np.load(finished.directory / "gradients.npy")
    assert norms.shape == (6,)
    assert (norms > 0).all()
    assert 10 ** finished.result()["first_gradient_log10"] == pytest.approx(norms[-1] / norms[0], rel=1e-4)
    assert [section.title for section in drawn(initialization, [finished])] == [
        f"Gradient and learning, {task}",
        f"Prediction, {task}",
    ]


def test_what_is_known_before_training_predicts_or_does_not(tmp_path):
    """The gain of a sequence and its Lyapunov exponent follow the spectral radius; the page correlates them."""
    flags = ["--task=copy", "--lag=2", "--model=rnn", "--units=6", "--batch_size=4"]
    names = ("radius_0.5", "radius_1.5")
    finished = [run("initialization", tmp_path / name, f"--recurrent={name}", *flags) for name in names]
    for signal in ("first_lyapunov", "first_gain_log10"):
        values = [one.result()[signal] for one in finished]
        assert values == sorted(values)
        assert values[0] < 0
    [_, prediction] = drawn(initialization, finished)
    assert [row[:2] for row in prediction.table] == [
        ["before the first update", "groups"],
        *([title, 2] for title in initialization.SIGNALS.values()),
    ]


def initial(**flags):
    config = define(initialization).parse({"task": "adding", "length": 50, "units": 4, **flags})
    cell = initialization.model(config, tasks.make_task(config))
    return cell.init(jax.random.key(0), 2)["cell"]


def test_initialization_of_weights_and_biases():
    identity = initial(model="rnn", recurrent="identity")["w_h"]
    np.testing.assert_array_equal(identity, np.eye(4))
    orthogonal = initial(model="rnn", recurrent="orthogonal")["w_h"]
    np.testing.assert_allclose(orthogonal @ orthogonal.T, np.eye(4), atol=1e-6)
    bound = initial(model="rnn", recurrent="uniform")["w_h"]
    assert 0.25 < jnp.abs(bound).max() <= 0.5
    assert not jnp.array_equal(initial(model="rnn", recurrent="glorot")["w_h"], bound)
    for cell, kept in (("lstm", slice(4, 8)), ("gru", slice(4, 8))):
        for value in (0, 1):
            bias = initial(model=cell, forget_bias=str(value))["b"]
            assert bias.sum() == 4 * value
            assert (bias[kept] == value).all()
        chrono = initial(model=cell, forget_bias="chrono")["b"][kept]
        assert (chrono > 0).all()
        assert (chrono < np.log(49)).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=rnn", "--forget_bias=1"], "--model=rnn takes --forget_bias=0 only"),
        (["--forget_bias=chrono", "--length=2"], "chrono is for a --length of more than 2 steps"),
        (["--recurrent=dense"], "value should be one of <orthogonal|identity|half_identity|glorot|he|"),
    ],
)
def test_initialization_refuses(flags, message):
    assert message in refused("initialization", *flags)


def test_noise_is_new_at_every_step():
    """Of a model whose outputs are its noise, the loss of a step is a function of the step and of nothing else."""
    zeros = jnp.zeros((3, 2))
    task = Task(
        data=(),
        train=lambda data, key, step: Batch(zeros, zeros, zeros + 1),
        held_out={},
        continues=False,
        tokens=0,
        features=1,
        outputs=1,
        blank=0.0,
        losses=lambda ys, targets: ys[..., 0],
        scores=lambda ys, targets: {},
    )

    def outputs(hparams, params, xs, key):
        return jax.random.normal(key, (*xs.shape, 1)) + params["w"]

    model = supervised.Model(lambda hparams, key: {"w": jnp.zeros((1, 1, 1))}, outputs)
    config = SimpleNamespace(
        optimizer="sgd", schedule="constant", warmup_steps=0, steps=9, clip_norm=0.0, dtype="float32"
    )
    program = supervised.task_program(config, task, model)
    hparams = {"seed": jnp.int32(0), "learning_rate": jnp.float32(0.0)}
    first = program.init(hparams)
    second, at_first = program.update(hparams, (), first)
    _, at_second = program.update(hparams, (), second)
    assert at_first["loss"] != at_second["loss"]
    assert program.update(hparams, (), first)[1]["loss"] == at_first["loss"]


def test_a_fresh_process_says_that_the_record_is_generated(tmp_path):
    flags = ["--model=naive", "--steps=1", "--steps_per_call=1", "--evaluate_every=0", "--checkpoint_every=0"]
    command = [sys.executable, "-m", "experiments.temperature", *flags, "--batch_size=4", f"--workdir={tmp_path}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert process.returncode == 0, process.stderr
    assert "no --data_dir: the record is generated" in process.stderr
    assert "jena (generated): 8000 rows x 14 columns" in process.stdout
    assert json.loads((tmp_path / "result.json").read_text())["test_mae"] > 0


# Mixed precision


def traced(name, *flags):
    """The state of a new run of an experiment, that after an update, and the program of the update."""
    experiment = define(import_module(f"experiments.{name}"))
    config = experiment.parse(list(flags))
    built = narrowed(config, experiment.build(experiment.untraced(config)))
    hparams = jax.tree.map(jnp.asarray, dict(experiment.hparams(config)))
    state = jax.eval_shape(built.program.init, hparams)
    update = jax.make_jaxpr(built.program.update, return_shape=True)
    program, (after, metrics) = update(hparams, built.program.data, state)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(metrics)} == {"float32"}
    return state, after, program.jaxpr


def products(program):
    """The dtypes of the factors of all products of a program."""
    return {str(e.invars[0].aval.dtype) for e in equations(program) if e.primitive.name == "dot_general"}


@pytest.mark.parametrize("name", NAMES)
def test_products_take_16_bits_and_everything_else_stays_float32(name):
    before, after, program = traced(name, "--dtype=bfloat16")
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, before)
    assert not any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(after))
    assert "bfloat16" in products(program)
    assert "bf16" not in str(traced(name)[2]), "without the flag nothing is cast"


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("temperature", ["--model=lstm", "--units=3", "--length=4", "--batch_size=4"]),
        ("bptt_vs_tbptt", ["--task=adding", "--length=6", "--truncation=3:6", "--model=min_gru", "--units=3"]),
    ],
)
def test_mixed_precision_trains_params_of_32_bits(name, flags, tmp_path):
    finished = run(name, tmp_path / "run", *flags, "--dtype=bfloat16")
    assert finished.flags["dtype"] == "bfloat16"
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(finished.params())} == {"float32"}
    assert refused(name, "--dtype=float16").endswith("should be one of <float32|bfloat16>")


@pytest.mark.slow
def test_lanes_of_mixed_precision_equal_single_runs(tmp_path):
    flags = ["--model=gru", "--units=3", "--length=4", "--batch_size=4", "--dtype=bfloat16"]
    single = run("temperature", tmp_path / "single", *flags)
    where = f"--workdir={tmp_path / 'sweep'}"
    assert not launch.main(["--experiment=temperature", *SHORT, *flags, "--sweep=seed=0:2", "--executor=vmap", where])
    lane = Run.read(tmp_path / "sweep" / "seed=0")
    for a, b in zip(jax.tree.leaves(lane.params()), jax.tree.leaves(single.params()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4)
