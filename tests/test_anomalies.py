"""The streaming anomaly detector, and the experiment on it through its command line."""

import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from test_experiments import drawn, refused, run

from experiments import anomalies
from experiments.demos import watch
from experiments.harness.experiment import define
from seqjax import cells
from seqjax.data import nab
from seqjax.data.nab_score import PROFILES, Marks, normalized
from seqjax.models import AnomalyDetector
from seqjax.models.anomaly import moving_average, seasonal
from seqjax.train import read_arrays
from seqjax.unrolling import unroll
from seqjax.wrappers import with_head

pytestmark = pytest.mark.usefixtures("quick_programs")


CELLS = {"gru": with_head(cells.gru(3), 1), "moving_average": moving_average(3), "seasonal": seasonal(12)}


def detector(name="gru", horizon=1):
    return AnomalyDetector(CELLS[name], 3, horizon=horizon, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def xs():
    """[2, 300, 3]: a slow rise and fall with a burst inside of its range, and waves with a jump out of it."""
    values = np.random.default_rng(0).normal(0, 0.02, (2, 300))
    values[0, :200] += 5 - np.abs(np.arange(200) - 100) / 20
    values[0, 280:283] += [4, 0, 4]
    values[1] += np.sin(np.arange(300) / 5)
    values[1, 200:204] += 8.0
    day = np.broadcast_to(np.arange(300) % 12 * (2 * np.pi / 12), values.shape)
    return jnp.asarray(np.stack([values, np.sin(day), np.cos(day)], -1), jnp.float32)


def slow_scores(values, forecasts):
    """The equations of the docstring in float64, a row at a time."""
    error = mean = variance = 0.0
    low, high, before, scores = np.inf, -np.inf, False, []
    for n, (value, forecast) in enumerate(zip(values.astype(float), forecasts.astype(float), strict=True), start=1):
        e = abs(value - forecast)
        error += (e - error) / min(n, 5)
        score = -scipy.stats.norm.logsf((error - mean) / np.sqrt(variance + 0.01**2)) / np.log(10) if n > 20 else 0.0
        red = score >= 5
        score = 3.0 if red and before else min(score, 10.0)
        if low < high and not low - 0.05 * (high - low) <= value <= high + 0.05 * (high - low):
            score = 10.0
        before, low, high = red, min(low, value), max(high, value)
        variance = (1 - 1 / n) * (variance + (e - mean) ** 2 / n)
        mean += (e - mean) / n
        scores.append(score)
    return np.array(scores)


def test_scores_are_those_of_a_slow_loop(xs):
    _, readings = jax.jit(detector("moving_average"))(xs)
    values, forecasts = np.asarray(xs[..., 0]), np.asarray(readings.forecast)
    expected = np.stack([slow_scores(*one) for one in zip(values, forecasts, strict=True)])
    np.testing.assert_allclose(readings.score, expected, rtol=1e-3, atol=1e-4)
    assert 3.0 in expected[0, 280:]  # what repeats itself
    assert 10.0 in expected[1, 200:]  # out of range


@pytest.mark.parametrize(("name", "horizon"), [("gru", 1), ("gru", 3), ("seasonal", 1)])
def test_one_row_at_a_time_is_the_same_to_the_last_bit(name, horizon, xs):
    model = detector(name, horizon)
    after, readings = jax.jit(lambda xs: model(xs))(xs)
    step, state, found = jax.jit(model.step), model.initial_state(2), []
    for t in range(xs.shape[1]):
        state, reading = step(state, xs[:, t])
        found.append(reading)
    for field in ("forecast", "score"):
        np.testing.assert_array_equal(np.stack([getattr(r, field) for r in found], 1), getattr(readings, field))
    jax.tree.map(np.testing.assert_array_equal, state, after)
    # What is trained are these forecasts, by whatever method unrolls the cell.
    forecasts = jax.jit(model.forecasts)(xs)
    np.testing.assert_allclose(forecasts[:, :-horizon], readings.forecast[:, horizon:], atol=1e-5)
    np.testing.assert_array_equal(readings.forecast[:, :horizon], 0)


def test_a_stream_in_chunks_is_one_stream(xs):
    model = detector()
    read = jax.jit(lambda xs, state: model(xs, state))
    state, first = read(xs[:, :75], model.initial_state(2))
    state, second = read(xs[:, 75:], state)
    after, whole = jax.jit(lambda xs: model(xs))(xs)
    jax.tree.map(lambda a, b, c: np.testing.assert_array_equal(np.concatenate([a, b], 1), c), first, second, whole)
    jax.tree.map(np.testing.assert_array_equal, state, after)


def test_a_flat_stream_is_never_unusual():
    flat = jnp.zeros((1, 300, 3)).at[..., 2].set(1.0)
    _, readings = jax.jit(detector("moving_average"))(flat)
    assert float(readings.score.max()) < 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("name", CELLS)
def test_a_row_that_is_not_finite_leaves_no_trace(name, column, wrong, xs):
    missing, later = 150, np.arange(300) > 150
    model = detector(name)
    run = jax.jit(lambda xs: model(xs))
    holed = xs.at[0, missing, column].set(wrong)
    state, readings = run(holed)
    whole, expected = run(xs[:, np.arange(300) != missing])  # as if the row had not come
    np.testing.assert_array_equal(readings.score[0, later], expected.score[0, missing:])
    np.testing.assert_array_equal(readings.score[1], run(xs)[1].score[1])
    assert float(readings.score[0, missing]) == (10 if column == 0 and np.isinf(wrong) else 0)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), state, whole)


def test_a_missing_row_hands_on_the_forecast_before_it(xs):
    model = detector("moving_average", horizon=3)
    run = jax.jit(lambda xs: model(xs)[1].forecast)
    forecast, whole = run(xs.at[:, 10, 0].set(jnp.nan)), run(xs)
    np.testing.assert_array_equal(forecast[:, :13], whole[:, :13])
    np.testing.assert_array_equal(forecast[:, 13], whole[:, 12])
    assert jnp.isfinite(forecast).all()


@pytest.mark.parametrize("name", CELLS)
def test_readings_are_float32_in_64_bits_too(name, xs, x64):
    model = detector(name)
    state, readings = jax.jit(lambda xs: model(xs))(xs[:, :30])
    assert {leaf.dtype for leaf in jax.tree.leaves((state, readings))} <= {jnp.dtype(d) for d in ("f4", "i4", "?")}


def test_forecasts_of_the_baselines(xs):
    values = np.asarray(xs[..., 0])
    for steps in (1, 3, 1000):
        _, found = unroll(moving_average(steps), {}, None, jnp.swapaxes(xs, 0, 1))
        mean, expected = 0.0, []
        for n, value in enumerate(values.T, start=1):
            mean = mean + (value - mean) / min(n, steps)
            expected.append(mean)
        np.testing.assert_allclose(found[..., 0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[-1, :, 0], values.mean(1), atol=1e-5)
    _, found = unroll(seasonal(12), {}, None, jnp.swapaxes(xs, 0, 1))
    np.testing.assert_array_equal(found[12:, :, 0].T, values[:, 1:-11])
    np.testing.assert_array_equal(found[:12, :, 0].T, values[:, :12])


def test_a_forecaster_has_one_output():
    with pytest.raises(ValueError, match="a forecaster has one output, the cell has 2"):
        AnomalyDetector(with_head(cells.gru(3), 2), 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        detector(horizon=0)


@pytest.fixture
def small(monkeypatch):
    """A generated corpus of five series, two lengths; 150 and 250 rows, so 22 and 37 on probation."""
    corpus = nab.generated(4, rows=250)
    corpus["generatedB/short.csv"] = nab.generated(1, rows=150)["generatedA/series_0.csv"]
    monkeypatch.setattr(anomalies, "corpus", lambda data_dir: corpus)
    return corpus


def parsed(**flags):
    small = {"units": 3, "horizon": 2, "batch_size": 2, "steps": 2, "steps_per_call": 1}
    return define(anomalies).parse({**small, **flags})


def functions(**flags):
    """Data, and jitted loss on the validation part and params after an update."""
    config = parsed(**{"evaluate_every": 1, **flags})
    program, hparams = anomalies.build(config).program, define(anomalies).hparams(config)
    evaluate = jax.jit(lambda data, state: program.evaluate(hparams, data, state)["loss"])  # pyright: ignore[reportOptionalCall]
    update = jax.jit(lambda data, state: program.update(hparams, data, state))
    return program.data, program.init(hparams), evaluate, update


def test_nothing_is_learned_from_behind_the_probation(small):
    """Nor from padding, nor from the part that tells which params are best."""
    data, state, evaluate, update = functions(model="gru", batch_size=5)
    row = jnp.arange(data.xs.shape[1])[None, :]
    border = jnp.floor(0.8 * data.probation.astype(jnp.float32)).astype(jnp.int32)

    def spoiled(since):
        return data._replace(xs=jnp.where((row >= since[:, None])[..., None], 99.0, data.xs))

    first, metrics = update(data, state)
    for since, same_update, same_loss in [
        (data.probation, True, True),
        (border, True, False),
        (border - 1, False, False),
    ]:
        after, changed = update(spoiled(since), state)
        assert bool(changed["loss"] == metrics["loss"]) == same_update
        equal = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), first.params, after.params)
        assert jax.tree.all(equal) == same_update
        assert bool(evaluate(spoiled(since), state) == evaluate(data, state)) == same_loss


def test_networks_of_their_own_do_not_know_each_other(small):
    model = anomalies.detector(parsed(model="gru_each"), 5)
    data = anomalies.streams(small.values())
    params = model.init({}, jax.random.key(0))
    which = jnp.array([3, 1], jnp.int32)
    together = jax.jit(model.readings)(params, data.xs)
    alone = jax.jit(lambda params, xs: model.one(params)(xs)[1])
    for i in which.tolist():
        own = alone(jax.tree.map(lambda leaf, i=i: leaf[i], params), data.xs[i : i + 1])
        np.testing.assert_allclose(together.score[i], own.score[0], atol=1e-4)
        np.testing.assert_allclose(together.forecast[i], own.forecast[0], atol=1e-5)

    def forecasts(params):
        found = model.forecasts(params, data.xs[which], which)
        return found.sum(), found

    grads, found = jax.jit(jax.grad(forecasts, has_aux=True))(params)
    np.testing.assert_allclose(found[:, :-2], together.forecast[which, 2:], atol=1e-5)
    for leaf in jax.tree.leaves(grads):
        assert (jnp.abs(leaf).reshape(5, -1).max(1) > 0).tolist() == [False, True, False, True, False]


def test_rows_know_the_time_of_day_and_no_scale():
    times = np.datetime64("2014-03-01T00:00:00", "s") + 3600 * np.array([0, 6, 12, 30])
    found = anomalies.rows(times, np.array([5.0, 7.0, 9.0, 7.0]), np.array([5.0, 9.0]))
    np.testing.assert_allclose(found, [[-1, 0, 1], [0, 1, 0], [1, 0, -1], [0, 1, 0]], atol=1e-6)
    flat = anomalies.rows(times, np.full(4, 3.0), np.full(2, 3.0))
    np.testing.assert_array_equal(flat[:, 0], 0)


@pytest.mark.parametrize("model", ["last_value", pytest.param("seasonal", marks=pytest.mark.slow), "gru", "gru_each"])
def test_anomalies(model, small, tmp_path):
    finished = run("anomalies", tmp_path / "run", f"--model={model}", "--units=3", "--batch_size=2", "--horizon=2")
    result = finished.result()
    scores = read_arrays(finished.directory / "scores.npz")
    assert {name: len(scores[name.replace("/", "|")]) for name in small} == {
        name: len(one.values) for name, one in small.items()
    }
    listed = (finished.directory / "alarms.txt").read_text()
    assert listed.count("\n  - ") == result["false_alarms"]
    assert (
        sum(int(line.split(": ")[1][0]) for line in listed.splitlines() if "windows," in line)
        == result["windows_found"]
    )
    assert result["held_out_standard"] <= result["score_standard"] <= 100
    assert result["score_reward_low_fp"] <= result["score_standard"]
    if model == "last_value":
        assert result["score_standard"] > 20  # the jumps
    assert (finished.figures / "streams.png").stat().st_size > 10_000
    assert [section.title for section in drawn(anomalies, [finished])] == ["Scores", "By category"]
    if model == "gru":
        watched(finished, small, tmp_path)
    if model == "gru_each":
        with pytest.raises(ValueError, match="gru_each has a network for each series it was trained on"):
            watch.trained(finished.directory)


def watched(finished, small, tmp_path):
    """A series of the corpus as a stream has the scores and alarms that it has in the corpus."""
    name, warmup = "generatedA/series_0.csv", nab.probation(250)
    one = small[name]
    detector, threshold = watch.trained(finished.directory)
    assert threshold == finished.result()["threshold_standard"]
    saved = read_arrays(finished.directory / "scores.npz")
    expected = saved[name.replace("/", "|")]
    level = float(np.sort(expected[warmup:])[-6:-4].mean())
    alarms = list(watch.watch(detector, level, zip(one.times, one.values, strict=True), warmup))
    assert [alarm.row for alarm in alarms] == (warmup + np.flatnonzero(expected[warmup:] >= level)).tolist()
    np.testing.assert_allclose([alarm.score for alarm in alarms], expected[[alarm.row for alarm in alarms]], rtol=1e-4)
    lines = [f"{time},{value}" for time, value in zip(one.times.astype(str), one.values, strict=True)]
    file = tmp_path / "stream.csv"
    file.write_text("\n".join(["timestamp,value", *lines]))
    flags = [f"--run={finished.directory}", f"--warmup={warmup}"]
    said = printed("--file=-", *flags, stdin="\n".join(lines))
    assert said == printed(f"--file={file}", *flags)
    rows = [alarm.row for alarm in watch.watch(detector, threshold, zip(one.times, one.values, strict=True), warmup)]
    assert [line.split()[0] for line in said.splitlines()] == one.times[rows].astype(str).tolist()
    file.write_text("\n".join([*lines, "2014-01-01 00:00:00,high"]))
    assert "stream.csv: line 251: '2014-01-01 00:00:00,high', expected a time and a number" in printed(
        f"--file={file}", f"--run={finished.directory}", code=2
    )


def printed(*arguments, stdin="", code=0):
    """What `python -m experiments.demos.watch` prints; on stderr where it fails."""
    with pytest.MonkeyPatch.context() as patch:
        out, err = io.StringIO(), io.StringIO()
        for name, value in (("stdin", io.StringIO(stdin)), ("stdout", out), ("stderr", err)):
            patch.setattr(sys, name, value)
        assert watch.main(arguments) == code
    return err.getvalue() if code else out.getvalue()


def test_streams_and_flags_that_are_refused():
    assert "value should be one of <last_value|moving_average|" in refused("anomalies", "--model=arima")
    with pytest.raises(ValueError, match=r"stream: line 2: .* expected a time and a number"):
        list(watch.parsed(["2014-01-01 00:00:00,1", "2014-01-01 00:05:00,inf"], "stream"))
    with pytest.raises(ValueError, match=r"the stream ended after 1 rows, before the first alarm can come \(20 rows\)"):
        list(watch.watch(detector("moving_average"), 1.0, watch.parsed(["2014-01-01 00:00:00,1"], "stream"), 20))


def test_a_horizon_beyond_the_rows_to_learn_from_is_refused(small, capsys):
    """The shortest series has 22 probationary rows, the first 17 to learn from; its error must not be that of none."""
    with pytest.raises(ValueError, match="--horizon=17: of 22 probationary rows of a series the first 17"):
        anomalies.build(parsed(horizon=17))
    anomalies.build(parsed(horizon=16, batch_size=9))
    assert "--batch_size=9: all 5 series are in every update" in capsys.readouterr().err


def test_without_data_the_series_are_generated(capsys):
    anomalies.corpus.cache_clear()
    assert list(anomalies.corpus(None)) == list(nab.generated())
    assert "no --data_dir: the series are generated" in capsys.readouterr().err


def test_real_alarms_of_values_out_of_range_alone(data_dir):
    """What the docstring of the experiment says of the rule for the range, without any forecast."""
    if not (data_dir / "nab").is_dir():
        pytest.skip(f"no benchmark at {data_dir / 'nab'}")
    marks = []
    for one in nab.load(data_dir).values():
        high, low = np.maximum.accumulate(one.values)[:-1], np.minimum.accumulate(one.values)[:-1]
        margin, value = 0.05 * (high - low), one.values[1:]
        beyond = ((value > high + margin) | (value < low - margin)) & (high > low)
        marks.append(Marks.of(np.append(0, beyond), one))
    assert normalized(marks, PROFILES["standard"], 1.0) == pytest.approx(50.83, abs=0.01)


def test_the_real_benchmark_with_a_moving_average(data_dir, tmp_path):
    """The score that the docstring of the experiment reports."""
    if not (data_dir / "nab").is_dir():
        pytest.skip(f"no benchmark at {data_dir / 'nab'}")
    finished = run("anomalies", tmp_path, "--model=moving_average", f"--data_dir={data_dir}")
    assert finished.result()["score_standard"] == pytest.approx(60.8, abs=0.1)
