"""When does something go wrong in a stream? The Numenta anomaly benchmark (Lavin & Ahmad 2015, arXiv 1510.03336).

58 series of single values, 365,558 rows, 116 windows. A forecaster predicts the value 4 rows ahead, `AnomalyDetector`
scores how unusual its error is, and an alarm is a score above one threshold for all series. Only the probationary rows
(the first 15 %, 750 at most) are learned from, without labels. A row is (value, sin, cos of the time of day), the value
standardized by the probationary rows of its series. The models are forecasters:

    last_value       the last value                      moving_average   an exponential average of 100 values
    seasonal         the value after this time of day on the day before
    gru, lstm        16 units, Dense(1): one network for all series
    gru_each         a network per series, as lanes of one program; series are padded to one length and masked

    python -m experiments.anomalies --model=gru --data_dir=DIR
    python launch.py --experiment=anomalies --data_dir=DIR                   all models
    python -m experiments.demos.watch --run=DIR_OF_A_RUN FILE.csv            alarms of a stream as they come; -: stdin

DIR holds the repository of the benchmark or an archive of it. Without --data_dir the series are generated. `score_*`
take the threshold from all series with their labels, as published; `held_out_*` from the other categories of series.

Measured: gru_each scores 62.8 ± 1.2 on the standard profile, moving_average 60.8, Numenta HTM 70.1 (docs/results.md).
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment, Hparams, without_data
from experiments.harness.flags import training_flags
from experiments.harness.report import COLORS, Section, groups, intervals, mean, panels, save, separate
from seqjax import cells
from seqjax.arrays import Array, Key, Params
from seqjax.core import Cell
from seqjax.data import nab, nab_score, windows
from seqjax.models.anomaly import AnomalyDetector, Reading, moving_average, seasonal
from seqjax.train import Run, State, write_arrays, write_atomic
from seqjax.wrappers import with_head

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = training_flags(
    steps=400, steps_per_call=10, evaluate_every=10, batch_size=58, learning_rate=1e-2, schedule="cosine", clip_norm=1.0
)
MODELS = ("last_value", "moving_average", "seasonal", "gru", "lstm", "gru_each")
# Standard, reward low FP, reward low FN; from the scoreboard in the README of github.com/numenta/NAB.
PUBLISHED = {
    "Numenta HTM": (70.1, 63.1, 74.3),
    "CAD OSE": (69.9, 67.0, 73.2),
    "KNN CAD": (58.0, 43.4, 64.8),
    "Relative entropy": (54.6, 47.6, 58.8),
    "Random cut forest": (51.7, 38.4, 59.7),
    "Twitter ADVec": (47.1, 33.6, 53.5),
    "Windowed Gaussian": (39.6, 20.9, 47.4),
    "Etsy Skyline": (35.7, 27.1, 44.5),
    "Bayesian changepoint": (17.7, 3.2, 32.2),
    "EXPoSE": (16.4, 3.2, 26.9),
    "Random": (11.0, 1.2, 19.5),
}

flags.DEFINE_enum("model", "gru", MODELS, "Which forecaster.", flag_values=FLAGS)
flags.DEFINE_integer("horizon", 4, "Rows that a forecast looks ahead.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("units", 16, "Units of a recurrent network.", lower_bound=1, flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate")
synthetic_data = without_data("series")
_HELD_OUT = 0.2  # part of the probationary rows that tells which params are best
_FEATURES = 3


class Streams(NamedTuple):
    """All series, padded to one length.

    Attributes:
      xs: float32 [B, T, 3], rows of (standardized value, sin, cos of the time of day).
      lengths, probation: int32 [B], rows of the series, and those to learn from.
    """

    xs: Array
    lengths: Array
    probation: Array


@cache  # read once per process, where a sweep builds many experiments
def corpus(data_dir: str | None) -> dict[str, nab.Series]:
    """The series of the flag --data_dir."""
    if data_dir is not None:
        return nab.load(data_dir)
    print("no --data_dir: the series are generated, and their scores compare with nothing", file=sys.stderr)
    return nab.generated()


def rows(times: np.ndarray, values: np.ndarray, learned: np.ndarray) -> np.ndarray:
    """Rows float32 [T, 3]; the value standardized by the values `learned`, only centered if those are constant."""
    center, scale = windows.moments(learned)
    value = (values - center) / (scale or 1.0)
    day = times.astype("datetime64[s]").astype(np.int64) % 86_400 * (2 * np.pi / 86_400)
    return np.stack([value, np.sin(day), np.cos(day)], axis=-1).astype(np.float32)


def streams(series: Iterable[nab.Series]) -> Streams:
    """All series as one array."""
    series = list(series)
    probation = [nab.probation(len(one.values)) for one in series]
    made = [rows(one.times, one.values, one.values[:n]) for one, n in zip(series, probation, strict=True)]
    lengths = np.array([len(each) for each in made], np.int32)
    xs = np.stack([np.pad(each, ((0, max(lengths) - len(each)), (0, 0))) for each in made])
    return Streams(jnp.asarray(xs), jnp.asarray(lengths), jnp.asarray(probation, jnp.int32))


def _forecaster(config: SimpleNamespace) -> Cell:
    return {
        "last_value": lambda: moving_average(1),
        "moving_average": lambda: moving_average(100),
        "seasonal": seasonal,
        "gru": lambda: with_head(cells.gru(config.units), 1),
        "lstm": lambda: with_head(cells.lstm(config.units), 1),
        "gru_each": lambda: with_head(cells.gru(config.units), 1),
    }[config.model]()


class Detector(NamedTuple):
    """The model as functions of its weights, which have a leading axis of series where each has a network.

    Attributes:
      init: `(hparams, key) -> params`.
      forecasts: `(params, xs [B, T, 3], which [B]) -> [B, T]`, of the series with these indices.
      readings: `(params, xs [B, T, 3]) -> readings [B, T]`, of all series.
      one: `params -> AnomalyDetector`, of one network.
    """

    init: Callable[[Any, Key], Params]
    forecasts: Callable[[Params, Array, Array], Array]
    readings: Callable[[Params, Array], Reading]
    one: Callable[[Params], AnomalyDetector]


def detector(config: SimpleNamespace, count: int) -> Detector:
    """The detector of the flags for this many series."""
    cell = _forecaster(config)
    init, bind = supervised.functional(
        lambda hparams, rngs: AnomalyDetector(cell, _FEATURES, horizon=config.horizon, rngs=rngs)
    )

    def one(params: Params) -> AnomalyDetector:
        return bind({}, params, None)

    if config.model != "gru_each":
        return Detector(
            init,
            lambda params, xs, which: one(params).forecasts(xs),
            lambda params, xs: one(params)(xs)[1],
            one,
        )

    def init_each(hparams, key):
        return jax.vmap(lambda key: init(hparams, key))(jax.random.split(key, count))

    def forecasts(params, xs, which):
        params = jax.tree.map(lambda leaf: leaf[which], params)
        return jax.vmap(lambda params, xs: one(params).forecasts(xs[None])[0])(params, xs)

    def readings(params, xs):
        each = jax.vmap(lambda params, xs: one(params)(xs[None])[1])(params, xs)
        return jax.tree.map(lambda leaf: leaf[:, 0], each)

    return Detector(init_each, forecasts, readings, one)


def build(config: SimpleNamespace) -> Experiment:
    """Mean absolute error of the forecasts on 80 % of the probationary rows; the others choose the best params."""
    series = corpus(config.data_dir)
    data = streams(series.values())
    count, longest = len(data.lengths), int(data.probation.max())
    batch, horizon = min(config.batch_size, count), config.horizon
    if batch < config.batch_size:
        print(f"--batch_size={config.batch_size}: all {count} series are in every update", file=sys.stderr)
    least = int(data.probation.min())
    if (first := math.floor((1 - _HELD_OUT) * least)) <= horizon:
        raise ValueError(
            f"--horizon={horizon}: of {least} probationary rows of a series the first {first} are to learn from,"
            " expected more of them than the horizon"
        )
    model = detector(config, count)

    def error(data: Streams, params, which, part):
        """Mean over series of the mean over the rows of a part of their probation."""
        xs, last = data.xs[which, :longest], data.probation[which]
        row = jnp.arange(horizon, longest, dtype=jnp.int32)
        border = jnp.floor((1 - _HELD_OUT) * last.astype(jnp.float32)).astype(jnp.int32)[:, None]
        row, last = jnp.broadcast_to(row, (len(which), longest - horizon)), last[:, None]
        real = (row < border) if part == "train" else (row >= border) & (row < last)
        missed = jnp.abs(xs[:, horizon:, 0] - model.forecasts(params, xs, which)[:, :-horizon])
        weights = real.astype(missed.dtype)
        return (jnp.sum(weights * missed, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)).mean()

    def gradient(hparams, data, params, step, k_data, k_noise):
        which = windows.minibatch(k_data, step, batch, count)
        return jax.value_and_grad(lambda params: error(data, params, which, "train"))(params)

    def evaluate(hparams, data, params):
        return {"loss": error(data, params, jnp.arange(count, dtype=jnp.int32), "validation")}

    program = supervised.program(config, model.init, gradient, evaluate, data, batches=count // batch, held_out=series)
    return Experiment(program, partial(_finish, model, series, data))


def _finish(
    model: Detector,
    series: Mapping[str, nab.Series],
    data: Streams,
    hparams: Hparams,
    state: State,
    run: Run,
) -> dict[str, Any]:
    """Scores by profile and category; the scores of all rows, the alarms of each series, and a figure."""
    del hparams
    params = state.best.params
    detect = jax.jit(model.readings).lower(params, data.xs).compile()
    began = time.perf_counter()
    readings: Reading = jax.block_until_ready(detect(params, data.xs))
    seconds = time.perf_counter() - began
    scores = {name: np.asarray(readings.score)[i, : len(one.values)] for i, (name, one) in enumerate(series.items())}
    marks = {name: nab_score.Marks.of(scores[name], one) for name, one in series.items()}
    result = _scores(marks)
    write_arrays(run.directory / "scores.npz", **{name.replace("/", "|"): score for name, score in scores.items()})
    threshold = result["threshold_standard"]
    write_atomic(run.directory / "alarms.txt", "\n".join(_alarms(series, scores, marks, threshold)))
    save(_figure(series, data, readings, threshold), run.figures / "streams")
    return {
        **result,
        "microseconds_a_row": 1e6 * seconds / data.xs[..., 0].size,
    }


def _scores(marks: Mapping[str, nab_score.Marks]) -> dict[str, float]:
    """Scores by profile, and, on the standard profile, by category."""
    by_category: dict[str, list[nab_score.Marks]] = {}
    for name, one in marks.items():
        by_category.setdefault(name.split("/")[0], []).append(one)
    every, result = list(marks.values()), {}
    for name, profile in nab_score.PROFILES.items():
        result[f"threshold_{name}"] = nab_score.best_threshold(every, profile)
        result[f"score_{name}"] = nab_score.normalized(every, profile, result[f"threshold_{name}"])
        result[f"held_out_{name}"] = nab_score.held_out(list(by_category.values()), profile)
    threshold, profile = result["threshold_standard"], nab_score.PROFILES["standard"]
    for category, members in by_category.items():
        if any(one.windows for one in members):
            result[f"in_{category}"] = nab_score.normalized(members, profile, threshold)
    counts = [_counts(one, threshold) for one in every]
    result["windows_found"], result["false_alarms"] = (sum(column) for column in zip(*counts, strict=True))
    return result


def _counts(marks: nab_score.Marks, threshold: float) -> tuple[int, int]:
    """Windows with an alarm in them, and alarms outside of windows."""
    window = marks.window[marks.scores >= threshold]
    return len(np.unique(window[window >= 0])), int((window < 0).sum())


def _alarms(
    series: Mapping[str, nab.Series],
    scores: Mapping[str, np.ndarray],
    marks: Mapping[str, nab_score.Marks],
    threshold: float,
) -> Iterator[str]:
    """A summary of each series, and all alarms."""
    yield f"alarms are scores of {threshold:.3f} or more; + in a window, - outside of one\n"
    for name, one in series.items():
        found, false = _counts(marks[name], threshold)
        yield f"{name}: {found} of {len(one.windows)} windows, {false} false alarms"
        start = nab.probation(len(one.values))
        for row in np.flatnonzero(marks[name].scores >= threshold):
            sign, at = "-+"[int(marks[name].window[row] >= 0)], row + start
            yield f"  {sign} {one.times[at]}  {one.values[at]:g}  score {scores[name][at]:.2f}"


def _figure(series: Mapping[str, nab.Series], data: Streams, readings: Reading, threshold: float) -> "Figure":
    """The first series with a window of each category, with forecasts and alarms, and the scores beside it."""
    first = {name.split("/")[0]: i for i, name in reversed(list(enumerate(series))) if len(series[name].windows)}
    figure, axes = panels(len(first), 2, width=6, height=1.7)
    for (left, right), i in zip(axes, sorted(first.values()), strict=True):
        name, one = list(series.items())[i]
        values, forecast, score = (np.asarray(a)[i, : len(one.values)] for a in (data.xs[..., 0], *readings))
        start = nab.probation(len(values))
        alarms = start + np.flatnonzero(score[start:] >= threshold)
        left.plot(values, color="black", linewidth=0.6, label="value, standardized")
        left.plot(forecast, color=COLORS[0], linewidth=0.5, label="forecast")
        left.plot(alarms, values[alarms], "v", color=COLORS[1], markersize=4, label="alarm")
        right.plot(score, color=COLORS[0], linewidth=0.5)
        right.axhline(threshold, color="0.4", linestyle="--", linewidth=0.8)
        for axis in (left, right):
            axis.axvspan(0, start, color="0.9")
            for begin, end in one.windows:
                axis.axvspan(begin, end, color=COLORS[1], alpha=0.2, linewidth=0)
        left.set_title(name)
        right.set(
            ylim=(0, 10.5),
            title="score; grey: probation; red: windows; dashed: threshold" if i == min(first.values()) else "",
        )
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


SWEEP = f"model={','.join(MODELS)};seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """Scores beside the published ones, and by category."""
    by_label = groups(runs)
    figures, axes = separate("score", "held_out")
    for axis, kind in zip(axes, ("score", "held_out"), strict=True):
        intervals(axis, by_label, f"{kind}_standard")
        axis.set(xlabel="standard profile" + (", threshold of other categories" if kind == "held_out" else ""))
    kinds = [f"{kind}_{name}" for kind in ("score", "held_out") for name in nab_score.PROFILES]
    table: list[list[Any]] = [["detector", *kinds]]
    table += [
        [label, *(mean([run.result()[k] for run in members]) for k in kinds)] for label, members in by_label.items()
    ]
    table += [[f"{name} (published)", *scores, None, None, None] for name, scores in PUBLISHED.items()]
    names = [name for name in runs[0].result() if name.startswith("in_")]
    category: list[list[Any]] = [["detector", *(name.removeprefix("in_") for name in names)]]
    for label, members in by_label.items():
        category.append([label, *(mean([run.result()[name] for run in members]) for name in names)])
    text = "0 is no alarm at all, 100 a perfect detector. score: one threshold, chosen on all series, as published."
    own = "Standard profile; 0 and 100 are those of the category."
    return [Section("Scores", text, figures, table), Section("By category", own, (), category)]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
