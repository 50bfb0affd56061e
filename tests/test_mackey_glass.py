"""Mackey-Glass: the series against solutions in closed form, the error against NumPy, and free-running forecasts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from test_experiments import drawn, refused, run

from experiments import mackey_glass
from experiments.harness.experiment import define
from seqjax.train import read_arrays

pytestmark = pytest.mark.usefixtures("quick_programs")


def first_delay(start, t):
    """x(t) for 0 <= t <= 17: the delayed value is constant, so the equation is linear."""
    level = 2 * start / (1 + start**10)
    return level + (start - level) * np.exp(-0.1 * t)


def second_delay(start, t):
    """x(t) for 17 <= t <= 34, by variation of constants: the delayed value is `first_delay`."""

    def driven(s):
        delayed = first_delay(start, s - 17)
        return 0.2 * delayed / (1 + delayed**10) * np.exp(-0.1 * (t - s))

    return first_delay(start, 17) * np.exp(-0.1 * (t - 17)) + quad(driven, 17, t, epsabs=1e-12)[0]


def test_the_series_solves_the_equation():
    starts = np.array([0.5, 0.9, 1.2])
    xs = mackey_glass.solve(jnp.asarray(starts), 34)
    assert xs.shape == (34, 3)
    for column, start in enumerate(starts):
        exact = [first_delay(start, t) if t <= 17 else second_delay(start, t) for t in range(1, 35)]
        np.testing.assert_allclose(xs[:, column], exact, rtol=2e-6)


def test_the_equation_rests_at_its_fixed_points():
    np.testing.assert_allclose(mackey_glass.solve(jnp.array([0.0, 1.0]), 100), np.tile([0.0, 1.0], (100, 1)), atol=1e-5)


def test_series_are_on_the_attractor_and_differ():
    """Mean and deviation of x for a delay of 17, from an independent Euler integration in float64."""
    width, delay = 0.01, 1700
    x = np.full(400_000, 1.2)
    for n in range(delay, len(x) - 1):
        x[n + 1] = x[n] + width * (0.2 * x[n - delay] / (1 + x[n - delay] ** 10) - 0.1 * x[n])
    expected = x[100_000:]
    xs = np.asarray(mackey_glass.draw(jax.random.key(0), 3, 3000))
    assert xs.shape == (3000, 3)
    np.testing.assert_allclose(xs.mean(0), expected.mean(), atol=0.01)
    np.testing.assert_allclose(xs.std(0), expected.std(), atol=0.01)
    np.testing.assert_array_equal(xs, mackey_glass.draw(jax.random.key(0), 3, 3000))
    assert np.abs(np.diff(xs, axis=1)).mean(0).min() > 0.1


def test_nrmse_is_that_of_numpy_and_1_for_the_mean():
    truth = np.random.default_rng(0).normal(3.0, 2.0, (4, 50)).astype(np.float32)
    forecasts = truth + np.arange(1, 5, dtype=np.float32)[:, None]  # wrong by 1, 2, 3, 4
    np.testing.assert_allclose(mackey_glass.nrmse(forecasts, truth, 2.0), [0.5, 1, 1.5, 2], rtol=1e-6)
    of_the_mean = mackey_glass.nrmse(np.broadcast_to(truth.mean(1, keepdims=True), truth.shape), truth, truth[0].std())
    np.testing.assert_allclose(of_the_mean[0], 1, rtol=1e-5)


@pytest.mark.parametrize("model", ["last_value", "rnn"])
def test_a_free_run_reads_its_own_forecasts(model):
    """It equals one-step forecasts from the values read and all forecasts before, each from the start of the window."""
    cell = mackey_glass.network(define(mackey_glass).parse({"model": model, "units": 3}))
    params = cell.init(jax.random.key(0), 1)
    seen = jax.random.normal(jax.random.key(1), (5, 2))
    found = mackey_glass.free_run(cell, params, seen, 4)
    xs = seen
    for _ in range(4):
        carry = cell.initial_carry(params, (2,))
        for x in xs:
            carry, y = cell.step(params, carry, x[:, None])
        xs = jnp.concatenate([xs, y.T])
    np.testing.assert_allclose(found, xs[5:], rtol=1e-5, atol=1e-6)
    if model == "last_value":
        np.testing.assert_array_equal(found, jnp.broadcast_to(seen[-1], (4, 2)))


@pytest.mark.parametrize("model", ["last_value", "gru"])
def test_mackey_glass(model, tmp_path, monkeypatch):
    monkeypatch.setattr(mackey_glass, "SAMPLES", 300)
    small = (f"--model={model}", "--units=3", "--batch_size=4", "--length=8", "--horizon=7")
    finished = run("mackey_glass", tmp_path / "run", *small)
    result, saved = finished.result(), read_arrays(finished.directory / "forecasts.npz")
    # Windows of the test series, the third of the three, each with what follows it.
    test = np.asarray(mackey_glass.draw(jax.random.key(1977), 3, 300))[:, 2]
    rows = np.arange(0, 286, 10)
    np.testing.assert_allclose(saved["seen"], test[rows + np.arange(8)[:, None]], atol=1e-5)
    np.testing.assert_allclose(saved["truth"], test[rows + np.arange(8, 15)[:, None]], atol=1e-5)
    errors = np.sqrt(np.mean((saved["forecasts"] - saved["truth"]) ** 2, axis=1)) / np.std(test)
    assert result["test_nrmse"] == pytest.approx(errors[-1], rel=1e-4)
    assert result["test_one_step_nrmse"] == pytest.approx(errors[0], rel=1e-4)
    if model == "last_value":
        np.testing.assert_allclose(saved["forecasts"], np.broadcast_to(saved["seen"][-1:], (7, 29)), atol=1e-6)
    sections = drawn(mackey_glass, [finished])
    assert [section.title for section in sections] == ["Error by horizon", "Forecasts"]
    header, row = sections[0].table
    assert header == ["", "1 ahead", "6 ahead"]  # the horizons of the table that the run has
    assert [cell.mean for cell in row[1:]] == pytest.approx([errors[0], errors[5]], rel=1e-4)


@pytest.mark.parametrize(
    ("model", "parameters"), [("lru", 3 * 8 + 2 * 8 + 2 * 8 + 1 + 2), ("lstm", 4 * 8 * (1 + 8) + 4 * 8 + 9)]
)
def test_the_other_models_can_be_trained(model, parameters, monkeypatch):
    """All but the compiler's part of a run."""
    monkeypatch.setattr(mackey_glass, "SAMPLES", 300)
    config = define(mackey_glass).parse({"model": model, "units": 8, "length": 8})
    program, hparams = mackey_glass.build(config).program, define(mackey_glass).hparams(config)
    state = jax.eval_shape(program.init, hparams)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)) == parameters
    after, _ = jax.eval_shape(program.update, hparams, program.data, state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert program.monitor in jax.eval_shape(program.evaluate, hparams, program.data, state)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=naive", "value should be one of <last_value|lru|rnn|gru|lstm>"),
        ("--length=1", "--length=1"),
        ("--horizon=0", "--horizon=0"),
    ],
)
def test_mackey_glass_refuses(flag, message):
    assert message in refused("mackey_glass", flag)
