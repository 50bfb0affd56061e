"""How warm will it be in Jena in 24 hours? The forecasting table of Chollet's book, and what each model is worth.

From the last 120 hours of all variables, the temperature 24 hours later; statistics from the training part, 50/25/25 %
split in time, test at the params that were best on the validation part. Source: Chollet 2021, "Deep Learning with
Python", second edition, chapter 10. Models, with the units and the rates (recurrent dropout, dropout) of the book:

    naive          the last value                     dense          flattened window, Dense(16, relu)
    conv           three Conv1D(8)                    rnn, gru, lstm 16 units
    dropout_lstm   32 units, 0.25 and 0.5             stacked_gru    two of 32 units, 0.5 and 0.5
    bilstm         16 units in each direction

and, beyond the book, with 32 units: min_gru, lru, and zoneout_lstm, which is layer-normalized.

Recurrent dropout has a mask per gate, as in Keras. All models output the standardized temperature, so the loss starts
near 1, and a learning rate means the same on every record.

    python -m experiments.temperature --model=lstm --data_dir=DIR
    python launch.py --experiment=temperature --data_dir=DIR        all models

Measured: lstm has a test MAE of 2.45 ± 0.09 °C, the last value 2.62 (docs/results.md).
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment, Hparams, without_data
from experiments.harness.flags import training_flags
from experiments.harness.report import Section, curve, groups, intervals, panels, save, separate
from experiments.shared import tasks
from seqjax import cells, noise, regularizers
from seqjax.arrays import Array
from seqjax.core import Cell
from seqjax.data import jena, windows
from seqjax.models import ConvForecaster, DenseForecaster, RecurrentForecaster
from seqjax.train import Run, read_arrays, write_arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = training_flags(
    steps=8190, steps_per_call=91, evaluate_every=273, checkpoint_every=1365, batch_size=256, learning_rate=3e-3
)
DENSE = 16  # units of the dense net


class Kind(NamedTuple):
    """A recurrent model.

    Attributes:
      cell: `units -> Cell`.
      units: of a layer.
      masks: of the recurrent dropout, one per gate, as in Keras and so in the book; 0 without a recurrent product.
      recurrent_dropout: its rate.
      dropout: rate of the dropout before the last layer.
      backward: whether a second cell reads the window from its end.
      zoneout: rates of the zoneout of an LSTM, of h and of c.
    """

    cell: Callable[[int], Cell]
    units: int
    masks: int
    recurrent_dropout: float = 0.0
    dropout: float = 0.0
    backward: bool = False
    zoneout: tuple[float, float] | None = None


RECURRENT = {
    "rnn": Kind(cells.rnn, 16, 1),
    "gru": Kind(cells.gru, 16, 3),
    "lstm": Kind(cells.lstm, 16, 4),
    "dropout_lstm": Kind(cells.lstm, 32, 4, 0.25, 0.5),
    "stacked_gru": Kind(lambda units: cells.stack(cells.gru(units), cells.gru(units)), 32, 3, 0.5, 0.5),
    "bilstm": Kind(cells.lstm, 16, 4, backward=True),
    "min_gru": Kind(cells.min_gru, 32, 0),
    "lru": Kind(cells.lru, 32, 0),
    "zoneout_lstm": Kind(cells.layer_norm_lstm, 32, 4, zoneout=(0.05, 0.5)),
}
MODELS = ("naive", "dense", "conv", *RECURRENT)

flags.DEFINE_enum("model", "lstm", MODELS, "Which model.", flag_values=FLAGS)
flags.DEFINE_integer("units", 0, "Units of a layer; 0: as in the table.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer("length", 120, "Hours in a window.", lower_bound=1, flag_values=FLAGS)
for name, where in (("recurrent_dropout", "inside the recurrence"), ("dropout", "before the last layer")):
    flags.DEFINE_float(name, -1.0, f"Rate of the dropout {where}; -1: as in the table.", flag_values=FLAGS)
    flags.register_validator(name, lambda rate: rate == -1 or 0 <= rate < 1, "a rate in [0, 1), or -1", FLAGS)
    takes = [model for model, kind in RECURRENT.items() if kind.masks or name == "dropout"]
    flags.register_multi_flags_validator(
        ("model", name),
        lambda given, name=name, takes=takes: given["model"] in takes or given[name] == -1,
        f"--{name} is for the models {', '.join(takes)}",
        flag_values=FLAGS,
    )
flags.register_multi_flags_validator(
    ("model", "units"),
    lambda given: given["model"] not in ("naive", "conv") or not given["units"],
    "naive and conv have no --units",
    flag_values=FLAGS,
)

TRACED_FLAGS = ("seed", "learning_rate", "recurrent_dropout", "dropout")
synthetic_data = without_data("record")


class LastValue(nnx.Module):
    """Forecasts the last temperature of the window; it has no weights."""

    def __init__(self, column: int):
        """Takes the number of the temperature among the variables."""
        self.column = column

    def __call__(self, xs: Array) -> Array:
        """`xs [B, T, D] -> [B]`."""
        return xs[:, -1, self.column]


def network(config: SimpleNamespace, data: jena.Forecasting, hparams: Hparams, rngs: nnx.Rngs) -> nnx.Module:
    """The model of the flags: standardized windows [B, T, D] to standardized temperatures [B]."""
    features = len(data.columns)
    if config.model == "naive":
        return LastValue(data.columns.index(jena.TEMPERATURE))
    if config.model == "dense":
        return DenseForecaster(config.length, features, hidden=config.units or DENSE, rngs=rngs)
    if config.model == "conv":
        return ConvForecaster(features, rngs=rngs)
    kind = RECURRENT[config.model]
    recurrent_dropout, dropout = (
        jnp.where(hparams[name] < 0, getattr(kind, name), hparams[name]) for name in ("recurrent_dropout", "dropout")
    )
    cell, noises = kind.cell(config.units or kind.units), []
    if kind.masks:
        noises.append(partial(regularizers.recurrent_dropout, rate=recurrent_dropout, gates=kind.masks))
    if kind.zoneout:
        noises.append(partial(noise.zoneout, rate=cells.LSTMCarry._make(kind.zoneout)))
    backward = cell if kind.backward else None
    return RecurrentForecaster(cell, features, backward=backward, regularizers=noises, dropout=dropout, rngs=rngs)


def build(config: SimpleNamespace) -> Experiment:
    """Mean squared error of the standardized temperature; the best params have the lowest validation MAE."""
    climate = tasks.climate(config.data_dir)
    data = jena.forecasting(climate, history=config.length)
    column = data.columns.index(jena.TEMPERATURE)
    mean, std = (np.float32(row[column]) for row in (data.scale.mean, data.scale.std))
    init, bind = supervised.functional(lambda hparams, rngs: network(config, data, hparams, rngs))

    def errors(model, data, starts):
        """Standardized errors float32 [B] of the windows that start at these rows."""
        xs, degrees = jena.batch(data, starts)  # [T, B, D], [B]
        return model(jnp.swapaxes(xs, 0, 1)) - (degrees - mean) / std

    def all_errors(model, data, starts):
        return windows.every(starts.size, 512, lambda rows: errors(model, data, starts[rows]))

    def gradient(hparams, data, params, step, k_data, k_noise):
        starts = data.train[windows.minibatch(k_data, step, config.batch_size, data.train.size)]

        def loss(params):
            return jnp.square(errors(bind(hparams, params, k_noise), data, starts)).mean()

        return jax.value_and_grad(loss)(params)

    def evaluate(hparams, data, params):
        model = bind(hparams, params, None)
        validation = all_errors(model, data, data.validation)
        sample = windows.minibatch(jax.random.key(7), 0, min(8 * config.batch_size, data.train.size), data.train.size)
        training = all_errors(model, data, data.train[sample])
        return {
            "loss": jnp.square(validation).mean(),
            "mae": std * jnp.abs(validation).mean(),
            "training_loss": jnp.square(training).mean(),
        }

    def finish(hparams, state, run):
        """Test errors; all test forecasts in forecasts.npz, and a figure of them."""
        test = jax.jit(lambda data, params: all_errors(bind(hparams, params, None), data, data.test))
        rows = np.asarray(data.test) + data.target
        truth = np.asarray(data.temperature)[rows]
        series = {
            "time": climate.times[rows],
            "truth": truth,
            "forecast": truth + std * np.asarray(test(data, state.best.params)),
            "naive": np.asarray(jena.last_value(data, data.test)),
        }
        write_arrays(run.directory / "forecasts.npz", **series)
        save(_figure(config.model, series), run.figures / "forecasts")
        return {
            "test_mae": float(np.abs(series["forecast"] - truth).mean()),
            "naive_test_mae": float(np.abs(series["naive"] - truth).mean()),
            "record": climate.report,
        }

    batches = data.train.size // config.batch_size
    program = supervised.program(config, init, gradient, evaluate, data, "mae", batches, held_out=climate.times)
    return Experiment(program, finish)


def _by_month(time: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The months (datetime64) and the mean of the errors in each."""
    months, index = np.unique(time.astype("datetime64[M]"), return_inverse=True)
    return months, np.bincount(index, np.abs(errors)) / np.bincount(index)


def _gain(series: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The months, and the error of the forecasts in each less that of the last value."""
    (months, errors), (_, naive) = (
        _by_month(series["time"], series[name] - series["truth"]) for name in ("forecast", "naive")
    )
    return months, errors - naive


def _figure(name: str, series: Mapping[str, np.ndarray]) -> "Figure":
    """Three weeks of forecasts, the mean absolute error of each month, and all errors."""
    time, truth = series["time"], series["truth"]
    figure, axes = panels(3, 1, width=8.5, height=2.5)
    stretch, monthly, histogram = axes[:, 0]
    begin = time[len(time) // 2]
    shown = (time >= begin) & (time < begin + np.timedelta64(21, "D"))
    stretch.plot(time[shown], truth[shown], color="black", linewidth=1.2, label="truth")
    bins = np.arange(-12, 12.5, 0.5).tolist()
    for label, forecast, color in (("naive", series["naive"], "0.6"), (name, series["forecast"], None)):
        errors = forecast - truth
        caption = f"{label}, MAE {np.abs(errors).mean():.2f}"
        stretch.plot(time[shown], forecast[shown], linewidth=1, color=color, label=label)
        monthly.plot(*_by_month(time, errors), marker="o", markersize=3, color=color, label=caption)
        histogram.hist(errors.clip(-12, 12), bins, density=True, histtype="step", color=color, label=caption)
    stretch.set(ylabel="°C", title="Forecast 24 hours before, and what came")
    monthly.set(ylabel="MAE, °C", ylim=(0, None), title="Error of each month of the test part")
    histogram.set(xlabel="forecast - truth, °C (the outermost bins hold all beyond)", ylabel="density")
    for axis in axes[:, 0]:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


SWEEP = f"model={','.join(MODELS)};learning_rate=1e-3,3e-3,1e-2;seed=0:5"


def report(runs: list[Run]) -> list[Section]:
    """The test error of each model beside the naive one, and by month."""
    figures, (table, monthly) = separate("error", "by-month")
    by_label = {label.removeprefix("model="): members for label, members in groups(runs).items()}
    intervals(table, by_label, "test_mae", (0, np.inf))
    for index, (label, members) in enumerate(by_label.items()):
        by_month = [_gain(read_arrays(run.directory / "forecasts.npz")) for run in members]
        months, gains = by_month[0][0], np.stack([gain for _, gain in by_month], axis=1)
        curve(monthly, label, months.tolist(), gains.tolist(), index)
    naive = runs[0].result()["naive_test_mae"]
    table.axvline(naive, color="0.4", linestyle="--", linewidth=1)
    table.set(xlabel="test MAE, °C (dashed: the last value)")
    monthly.axhline(0, color="0.4", linestyle="--", linewidth=1)
    monthly.set(ylabel="monthly test MAE less the last value's, °C")
    monthly.tick_params(axis="x", rotation=30)
    text = f"{runs[0].result()['record']}\n\nThe last value as the forecast has a test MAE of {naive:.2f} °C."
    return [Section("Forecasts", text, figures)]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
