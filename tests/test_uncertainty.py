"""Forecasts as distributions: scores against numerical integration and statistics, and the experiment's methods."""

from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from test_experiments import SHORT, drawn, refused, run

import launch
from experiments import uncertainty
from experiments.harness.experiment import define
from experiments.harness.precision import narrowed
from experiments.shared import tasks
from seqjax.data import jena
from seqjax.diagnostics import (
    coverage,
    ensemble_crps,
    gaussian_crps,
    mixture_cdf,
    mixture_crps,
    mixture_log_density,
    mixture_quantile,
)
from seqjax.train import read_arrays
from seqjax.train.run import Run

pytestmark = pytest.mark.usefixtures("quick_programs")
SMALL = ("--length=8", "--units=3", "--batch_size=4", "--samples=3")
RNG = np.random.default_rng(0)
MEANS, STDS = RNG.normal(0, 2, (3, 5)), RNG.uniform(0.3, 2, (3, 5))
TRUTH = np.array([-4.0, -0.5, 0.0, 1.0, 6.0])


@pytest.fixture(scope="module", autouse=True)
def small_record():
    record = jena.synthetic_climate(jax.random.key(0), 700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "climate", lambda data_dir: record)
        yield record


def integrated(cdf, y):
    """The definition of the CRPS, by the midpoint rule."""
    width = 2e-3
    x = np.arange(-20, 20, width) + width / 2
    return np.sum(np.square(cdf(x) - (x >= y))) * width


def test_the_crps_of_a_gaussian_and_of_a_mixture_is_its_integral(x64):
    for i, y in enumerate(TRUTH):
        expected = integrated(stats.norm(MEANS[0, i], STDS[0, i]).cdf, y)
        found = gaussian_crps(*map(jnp.asarray, (MEANS[0, i], STDS[0, i], y)))
        np.testing.assert_allclose(found, expected, rtol=1e-3)
        expected = integrated(lambda x, i=i: stats.norm.cdf(x[:, None], MEANS[:, i], STDS[:, i]).mean(1), y)
        found = mixture_crps(jnp.asarray(MEANS), jnp.asarray(STDS), jnp.asarray(TRUTH))[i]
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_mixture_of_equal_components_is_a_gaussian(x64):
    one = [jnp.asarray(part[:1]) for part in (MEANS, STDS)]
    many = [jnp.tile(part, (4, 1)) for part in one]
    y = jnp.asarray(TRUTH)
    np.testing.assert_allclose(mixture_crps(*many, y), gaussian_crps(one[0][0], one[1][0], y), rtol=1e-12)
    np.testing.assert_allclose(mixture_log_density(*many, y), stats.norm.logpdf(TRUTH, MEANS[0], STDS[0]), rtol=1e-12)
    np.testing.assert_allclose(mixture_quantile(*many, 0.3), stats.norm.ppf(0.3, MEANS[0], STDS[0]), rtol=1e-12)


def test_the_crps_of_samples_is_the_integral_of_their_steps(x64):
    samples, y = jnp.asarray(MEANS), jnp.asarray(TRUTH)
    found = ensemble_crps(samples, y, fair=False)
    expected = [integrated(lambda x, i=i: (MEANS[:, i] <= x[:, None]).mean(1), TRUTH[i]) for i in range(5)]
    np.testing.assert_allclose(found, expected, atol=3e-3)
    np.testing.assert_allclose(ensemble_crps(samples[:1], y, fair=False), np.abs(MEANS[0] - TRUTH))
    pairs = np.abs(MEANS[:, None] - MEANS).sum((0, 1))
    np.testing.assert_allclose(ensemble_crps(samples, y), np.abs(MEANS - TRUTH).mean(0) - pairs / (2 * 3 * 2))


def test_the_fair_crps_is_right_on_average_however_few_samples(x64):
    """Over all draws of two or three samples from three values."""
    values, y = jnp.array([0.0, 1.0, 4.0]), 0.5
    exact = ensemble_crps(values, jnp.float64(y), fair=False)
    for count in (2, 3):
        draws = jnp.array(list(product(values.tolist(), repeat=count))).T
        truth = jnp.full(draws.shape[1], y)
        np.testing.assert_allclose(ensemble_crps(draws, truth).mean(), exact, rtol=1e-12)
        assert ensemble_crps(draws, truth, fair=False).mean() > exact + 0.1


def test_density_distribution_and_quantiles_of_a_mixture_agree(x64):
    means, stds, y = map(jnp.asarray, (MEANS, STDS, TRUTH))
    density = jax.grad(lambda y: mixture_cdf(means, stds, y).sum())(y)
    np.testing.assert_allclose(jnp.exp(mixture_log_density(means, stds, y)), density, rtol=1e-9)
    for probability in (0.01, 0.5, 0.95):
        at = mixture_quantile(means, stds, probability)
        np.testing.assert_allclose(mixture_cdf(means, stds, at), probability, rtol=1e-9)


def test_coverage_counts_what_is_inside_the_central_intervals():
    pit = jnp.array([[0.02, 0.3, 0.5], [0.74, 0.76, 0.97]])
    assert coverage(pit, jnp.array([0.1, 0.5, 0.9, 1.0])).tolist() == pytest.approx([1 / 6, 3 / 6, 4 / 6, 1])
    assert coverage(pit, 0.5).shape == ()


def test_the_pit_of_a_calibrated_gaussian_is_uniform():
    n = 20_000
    mean, std = jax.random.normal(jax.random.key(0), (n,)), jnp.exp(jax.random.normal(jax.random.key(1), (n,)))
    truth = mean + std * jax.random.normal(jax.random.key(2), (n,))

    def pit(factor):
        return mixture_cdf(*(jnp.expand_dims(part, 0) for part in (mean, factor * std)), truth)

    assert stats.kstest(pit(1.0), "uniform").pvalue > 0.01
    levels = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(coverage(pit(1.0), jnp.asarray(levels, jnp.float32)), levels, atol=4 * 0.5 / n**0.5)
    assert stats.kstest(pit(0.8), "uniform").pvalue < 1e-6
    assert (coverage(pit(0.8), jnp.asarray(levels, jnp.float32)) < levels).all()
    # In stds: the expected CRPS is lowest where the std is right.
    scores = [float((gaussian_crps(mean, factor * std, truth) / std).mean()) for factor in (0.8, 1.0, 1.25)]
    assert scores[1] == pytest.approx(np.pi**-0.5, abs=0.01)
    assert scores[1] < min(scores[0], scores[2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ensemble_crps(jnp.ones((3, 2)), jnp.ones(3)), r"samples have shape \(3, 2\), expected \[S, 3\]"),
        (lambda: ensemble_crps(jnp.ones((1, 2)), jnp.ones(2)), "the fair CRPS needs two samples, got 1"),
        (lambda: ensemble_crps(jnp.ones((0, 2)), jnp.ones(2), fair=False), "the CRPS needs a sample, got 0"),
        (lambda: gaussian_crps(jnp.ones(2), jnp.ones(1), jnp.ones(2)), r"stds have shape \(1,\), expected \[2\]"),
        (lambda: mixture_crps(jnp.ones((2, 3)), jnp.ones((1, 3)), jnp.ones(3)), r"got shapes \(2, 3\) and \(1, 3\)"),
        (lambda: mixture_cdf(jnp.ones(3), jnp.ones(3), jnp.ones(3)), r"means have shape \(3,\), expected \[S, 3\]"),
        (lambda: mixture_quantile(jnp.ones(()), jnp.ones(()), 0.5), r"means have shape \(\), expected \[S, \.\.\.\]"),
    ],
)
def test_scores_refuse_arrays_of_other_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_fitted_scale_is_the_most_likely_one():
    means, stds, y = (jnp.asarray(part, jnp.float32) for part in (MEANS, STDS, TRUTH))
    scale = float(uncertainty.fitted_scale(means, stds, y))
    factors = np.linspace(0.2, 5, 2001)
    likelihoods = [np.log(stats.norm.pdf(TRUTH, MEANS, factor * STDS).mean(0)).sum() for factor in factors]
    assert scale == pytest.approx(factors[np.argmax(likelihoods)], abs=0.005)
    root_mean_square = np.sqrt(np.mean(((TRUTH - MEANS[0]) / STDS[0]) ** 2))
    assert float(uncertainty.fitted_scale(means[:1], stds[:1], y)) == pytest.approx(root_mean_square, rel=1e-5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of each method."""
    directory = tmp_path_factory.mktemp("methods")
    return {name: run("uncertainty", directory / name, f"--method={name}", *SMALL) for name in uncertainty.METHODS}


def test_scores_are_those_of_the_saved_forecasts(finished, small_record):
    for name, one in finished.items():
        result, saved = one.result(), read_arrays(one.directory / "forecasts.npz")
        rows = np.arange(525 + 7 + 24, 700)[:: uncertainty.SCORED]
        np.testing.assert_array_equal(saved["time"], small_record.times[rows])
        np.testing.assert_array_equal(saved["truth"], small_record.values[rows, 1])
        low, lower, upper, high = saved["quantiles"]
        inside = [(saved["truth"] > a) & (saved["truth"] < b) for a, b in ((lower, upper), (low, high))]
        assert [result["test_coverage_50"], result["test_coverage_90"]] == pytest.approx([x.mean() for x in inside])
        assert result["test_width_90"] == pytest.approx((high - low).mean(), rel=1e-4)
        assert result["test_mae"] == pytest.approx(np.abs(saved["mean"] - saved["truth"]).mean(), rel=1e-4)
        assert result["validation_crps"] == min(r["crps"] for r in one.records() if r["split"] == "validation")
        if not uncertainty.METHODS[name].passes or name == "mc_alone":  # a single Gaussian
            np.testing.assert_allclose(high - low, 2 * stats.norm.ppf(0.95) * saved["std"], rtol=1e-3)
            crps = gaussian_crps(*(jnp.asarray(saved[part]) for part in ("mean", "std", "truth")))
            assert result["test_crps"] == pytest.approx(float(crps.mean()), rel=1e-4)
        assert ("test_spread_correlation" in result) == (name != "constant")


def test_three_methods_are_one_network(finished):
    scores = {name: one.result()["validation_crps"] for name, one in finished.items()}
    assert scores["constant"] == scores["mc_alone"] == scores["mc_dropout"]
    assert scores["gaussian"] == scores["gaussian_mc"] != scores["constant"]
    std = {name: read_arrays(one.directory / "forecasts.npz")["std"] for name, one in finished.items()}
    assert std["mc_alone"].mean() < std["mc_dropout"].mean()
    # The noise of all windows is the same.
    noise = finished["mc_dropout"].result()["noise_std"]
    assert (std["mc_dropout"] > noise).all()


def test_the_report_is_drawn(finished):
    sections = drawn(uncertainty, list(finished.values()))
    assert [section.title for section in sections] == ["Predictive distributions", "Three weeks"]
    assert [row[0] for row in sections[0].table] == ["method", *finished]
    drawn(uncertainty, [finished["constant"]])


def test_passes_without_dropout_differ_in_nothing(tmp_path):
    """The distribution is then that of `constant`: the noise of the temperature alone."""
    none = ("--dropout=0", "--recurrent_dropout=0")
    result = run("uncertainty", tmp_path / "run", "--method=mc_dropout", *SMALL, *none).result()
    saved = read_arrays(tmp_path / "run" / "forecasts.npz")
    np.testing.assert_allclose(saved["std"], result["noise_std"], rtol=1e-5)
    crps = gaussian_crps(*(jnp.asarray(saved[part]) for part in ("mean", "std", "truth")))
    np.testing.assert_allclose(saved["crps"], crps, atol=1e-3)
    assert "test_spread_correlation" not in result


def test_the_best_params_are_tested(finished, tmp_path):
    config = define(uncertainty).parse({"method": "constant", "length": 8, "units": 3})
    experiment, hparams = uncertainty.build(config), define(uncertainty).hparams(config)
    state = experiment.program.init(hparams)
    state = state._replace(params=jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state.params))
    assert np.isfinite(experiment.finish(hparams, state, SimpleNamespace(directory=tmp_path))["test_crps"])


@pytest.mark.parametrize("method", ["constant", "gaussian"])
def test_mixed_precision_keeps_params_and_scores_in_float32(method):
    config = define(uncertainty).parse({"method": method, "length": 8, "units": 3, "dtype": "bfloat16"})
    program, hparams = narrowed(config, uncertainty.build(config)).program, define(uncertainty).hparams(config)
    state = jax.eval_shape(program.init, hparams)
    after, metrics = jax.eval_shape(program.update, hparams, program.data, state)
    scores = jax.eval_shape(program.evaluate, hparams, program.data, state)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((after.params, metrics, scores))} == {"float32"}


@pytest.mark.slow
def test_rates_of_dropout_are_lanes(finished, tmp_path):
    arguments = ["--method=mc_dropout", *SMALL, *SHORT]
    sweep = "--sweep=dropout=0.1,0.5;recurrent_dropout=0.0,0.25;seed=0"
    assert not launch.main(["--experiment=uncertainty", *arguments, sweep, f"--workdir={tmp_path}"])
    lanes = {path.name: Run.read(path).result() for path in tmp_path.iterdir() if (path / "config.json").exists()}
    assert len({lane["test_crps"] for lane in lanes.values()}) == 4
    lane, single = lanes["dropout=0.5,recurrent_dropout=0.25,seed=0"], finished["mc_dropout"].result()
    assert (lane["lanes"], single["lanes"]) == (4, 1)
    assert lane["test_crps"] == pytest.approx(single["test_crps"], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method=mc_alone", "--dropout=0", "--recurrent_dropout=0"], "--method=mc_alone without dropout is certain"),
        (["--dropout=1"], "a rate in [0, 1)"),
        (["--recurrent_dropout=-0.1"], "a rate in [0, 1)"),
        (["--samples=1"], "--samples=1"),
        (["--method=deep_ensemble"], "value should be one of <constant|mc_alone|mc_dropout|"),
    ],
)
def test_uncertainty_refuses(flags, message):
    assert message in refused("uncertainty", *flags)
