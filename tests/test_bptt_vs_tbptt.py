"""The study of truncation: its gradients by hand, its budgets, its figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bptt_vs_tbptt as study
from experiments.harness.experiment import define
from experiments.shared import budgets, estimators, quality, reach, tasks
from seqjax.train import Run, fit
from tests.quick import few

SMALL = ("--task=recall", "--lag=7", "--units=3", "--batch_size=4", "--embedding_size=0", "--model=gru")
STEPS = ("--steps=2", "--steps_per_call=1", "--evaluate_every=1", "--noprogress")


def built(*flags):
    """The experiment, its hyperparameters and the state before the first update."""
    definition = define(study)
    config = definition.parse([*SMALL, *STEPS, "--optimizer=sgd", "--learning_rate=1", "--clip_norm=0", *flags])
    experiment = study.build(definition.untraced(config))
    hparams = definition.hparams(config)
    return config, experiment.program, hparams, experiment.program.init(hparams)


def gradient(*flags):
    """What one update by gradient descent at rate 1 takes from the params, the params, and the batch."""
    config, program, hparams, state = built(*flags)
    after, _ = jax.jit(program.update)(hparams, program.data, state)
    task = tasks.make_task(config)
    batch = task.train(task.data, jax.random.split(state.key)[0], state.step)
    cell = study.model(config, task)

    def loss(params, cuts=(), zeroed=False):
        """The loss by a loop of steps, whose carry is a constant, or 0, at the steps `cuts`."""
        carry = start = cell.initial_carry(params, (4,))
        total = 0.0
        for t, (x, target, weight) in enumerate(zip(*batch, strict=True)):
            if t in cuts:
                carry = start if zeroed else jax.lax.stop_gradient(carry)
            carry, y = cell.step(params, carry, x)
            total += (weight * task.losses(y, target)).sum()
        return total / batch.weights.sum()

    return jax.tree.map(jnp.subtract, state.params, after.params), state.params, loss


def close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("flags", "cuts", "zeroed"),
    [
        (["--truncation=full"], (), False),
        (["--truncation=4:4"], (4,), False),  # eight steps of a lag of seven
        pytest.param(["--truncation=2:2"], (2, 4, 6), False, marks=pytest.mark.slow),
        (["--truncation=2:2", "--accumulate"], (2, 4, 6), False),
        (["--truncation=4:4", "--reset_rate=1"], (4,), True),
        (["--truncation=2:4"], (4,), False),
        pytest.param(["--truncation=4:4", "--gradient=rtrl"], (), False, marks=pytest.mark.slow),
        (["--truncation=2:2", "--gradient=rtrl", "--accumulate"], (), False),
        pytest.param(["--truncation=2:8", "--gradient=adaptive"], None, False, marks=pytest.mark.slow),
        (["--truncation=2:2", "--gradient=adaptive"], None, False),
    ],
)
def test_an_update_is_the_gradient_by_a_loop(flags, cuts, zeroed):
    found, params, loss = gradient(*flags)
    if cuts is None:  # until it has seen as many steps as its longest reach
        cuts = ()
    close(found, jax.jit(jax.grad(lambda params: loss(params, cuts, zeroed)))(params))


def test_accumulated_gradients_are_of_all_targets_of_the_text(tmp_path):
    """Four chunks of a window, one update, against a loop; without the flag there are four."""
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    flags = ["--task=text", "--length=8", f"--corpus={tmp_path / 'corpus.txt'}", "--truncation=2:2"]
    found, params, loss = gradient(*flags, "--accumulate")
    close(found, jax.jit(jax.grad(lambda params: loss(params, (2, 4, 6))))(params))


@pytest.mark.parametrize("name", few(estimators.GRADIENTS, ("uoro",)))
def test_every_gradient_trains_and_resumes(name, tmp_path):
    """The state of an estimator, with its keys, is in the checkpoint: two updates are the same with a stop between."""
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    flags = ["--task=text", "--length=8", f"--corpus={tmp_path / 'corpus.txt'}", f"--gradient={name}"]
    _, program, hparams, _ = built(*flags, f"--truncation={'2:8' if name == 'adaptive' else '4:4'}")
    options = {"steps_per_call": 1, "evaluate_every": 1, "progress": False}

    def trained(directory, *steps):
        for number in steps:
            run = Run.open(tmp_path / directory, {})
            result = fit(program, hparams, run, steps=number, **options)
            run.close()
        return result.state, Run.read(tmp_path / directory).records()

    (whole, records), (resumed, again) = trained("whole", 2), trained("resumed", 1, 2)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        assert (a == b).all()
    for record in (records[-1], again[-1]):
        assert all(np.isfinite(record[metric]) for metric in study.QUALITY)
    assert (records[-1]["cell_deviation"] > 0) == (name in estimators.NOISY)
    if name == "rtrl":
        assert records[-1]["cosine"] == pytest.approx(1, abs=1e-5)
        assert records[-1]["cell_bias"] < 1e-3


def test_bias_and_deviation_of_draws():
    """Of Gaussian draws around a known mean, in two leaves; and of one draw."""
    rng = np.random.default_rng(0)
    reference = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    offset = {"a": np.array([0.0, 1.5]), "b": np.array([[2.0]])}  # of norm 2.5, over 5
    draws = {
        name: jnp.asarray(np.asarray(leaf) + offset[name] + 2 * rng.normal(size=(20_000, *leaf.shape)), jnp.float32)
        for name, leaf in reference.items()
    }
    bias, deviation = quality.bias_and_deviation(draws, reference)
    assert float(bias) == pytest.approx(0.5, abs=0.01)
    assert float(deviation) == pytest.approx(2 * 3**0.5 / 5, abs=0.01)
    few = jax.tree.map(lambda leaf: leaf[:19992].reshape(2499, 8, *leaf.shape[1:]), draws)
    squares = jax.vmap(lambda some: quality.bias_and_deviation(some, reference)[0] ** 2)(few)
    assert float(squares.mean()) == pytest.approx(0.25, abs=0.03)  # 0.31 without the correction
    bias, deviation = quality.bias_and_deviation(jax.tree.map(lambda leaf: leaf[:1], draws), reference)
    first = np.concatenate([np.ravel(draws[name][0] - reference[name]) for name in draws])
    assert float(bias) == pytest.approx(float(np.linalg.norm(first)) / 5, rel=1e-5)
    assert float(deviation) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gradient=adaptive", "--truncation=full"], "expected for example --truncation=8:32"),
        (["--gradient=adaptive", "--truncation=4:6"], "chooses among multiples of k1 up to k2"),
        (["--gradient=rtrl", "--truncation=2:4"], "expected one number of steps, as --truncation=2:2"),
        (["--task=text", "--length=10", "--truncation=4:4"], "must be a multiple of k1 = 4"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        built(*flags)


def finished(directory, flags, losses, **result):
    """A run with an evaluation of each loss, an update apart."""
    run = Run.open(directory, flags)
    for step, loss in enumerate(losses, start=1):
        run.log({"step": step, "epoch": None, "split": "validation", "seconds": 2.0 * step, "loss": loss})
    run.finish({"steps": len(losses), **result})
    return run


def test_losses_at_equal_budgets_are_interpolated(tmp_path):
    """`a` makes two updates a step and saw 10 time steps in each, `b` one of 40."""
    runs = [
        finished(tmp_path / f"a{seed}", {"kind": "a", "seed": seed}, [4 + seed, 3, 2, 1], updates=8, time_steps=40)
        for seed in range(3)
    ] + [
        finished(tmp_path / f"b{seed}", {"kind": "b", "seed": seed}, [8 + seed, 7], updates=2, time_steps=80)
        for seed in range(3)
    ]
    section = budgets.training("Training, x", runs)
    head, a, b = section.table
    assert head == ["validation loss", "time steps seen: 40", "optimizer updates: 2", "seconds of training: 4"]
    assert [str(cell) for cell in a] == ["kind=a", "1", "5.0 ± 2.5", "3"]
    assert [str(cell) for cell in b] == ["kind=b", "9.0 ± 2.5", "7", "7"]
    assert [figure.get_label() for figure in section.figures] == ["data", "updates", "seconds"]
    line = section.figures[1].axes[0].lines[0]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([2, 4, 6, 8], [5, 3, 2, 1])
    # Nothing is known before the first evaluation.
    early = finished(tmp_path / "c", {"kind": "c", "seed": 0}, [1.0], updates=1, time_steps=5)
    [_, a, _, _] = budgets.training("t", [*runs, early]).table
    assert [str(cell) for cell in a] == ["kind=a", "None", "None", "5.0 ± 2.5"]


def recalled(tmp_path, lag, truncation, accuracy, gradient="bptt"):
    flags = {
        "task": "recall",
        "lag": lag,
        "truncation": truncation,
        "gradient": gradient,
        "seed": 0,
        "learning_rate": 1.0,
    }
    k2 = lag + 1 if truncation == "full" else int(truncation.split(":")[1])
    run = Run.open(tmp_path / f"{lag}{truncation}{gradient}", flags)
    run.finish({"test_accuracy": accuracy, "reach": min(k2, lag + 1)})
    return run


def test_the_line_of_the_map_is_where_the_gradient_reaches_the_symbol(tmp_path):
    runs = [
        recalled(tmp_path, lag, truncation, float(truncation == "full" or int(truncation[0]) > lag))
        for lag in (2, 3, 8)
        for truncation in ("4:4", "full", "2:2", "3:3")
    ]
    board, by_lag = reach.by_lag(runs)
    axes = board.figures[0].axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["2:2", "3:3", "4:4", "full"]
    values = axes.images[0].get_array()
    assert values.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    [line] = axes.lines
    borders = line.get_ydata().tolist()[1:-1]
    for column, border in enumerate(borders):
        assert [value > 0.5 for value in values[:, column]] == [row > border for row in range(4)]
    assert len(by_lag.figures[0].axes[0].lines) == 4
    online = [recalled(tmp_path, lag, "4:4", lag / 10, gradient) for lag in (2, 3) for gradient in ("rtrl", "uoro")]
    board, _ = reach.by_lag(online)
    assert board.title == "Lag and estimator, task=recall, truncation=4:4"
    axes = board.figures[0].axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["uoro", "rtrl"]
    assert axes.images[0].get_array().tolist() == [[0.2, 0.3], [0.2, 0.3]]
    assert not axes.lines
    assert reach.by_lag([run for run in runs if run.flags["lag"] == 2]) == []


def test_scores_against_reach_have_a_panel_for_each_task(tmp_path):
    runs = [recalled(tmp_path, 3, truncation, 0.5) for truncation in ("2:2", "4:4")]
    [section] = reach.by_reach(runs)
    [panel] = section.figures[0].axes
    assert panel.lines[0].get_xdata().tolist() == [2, 4]
    assert (panel.get_title(), panel.get_ylabel()) == ("recall", "test accuracy")
    assert reach.by_reach(runs[:1]) == []
