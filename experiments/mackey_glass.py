"""How far ahead does a recurrent network forecast a chaotic series, when it reads its own forecasts?

The Mackey-Glass equation (Mackey & Glass 1977, Science 197) with a delay of 17, where it is chaotic, sampled once per
unit of time:

    dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x(t)

Networks learn to forecast one step ahead. In the test they read --length true values, then --horizon of their own. The
error is the NRMSE: the root mean square error at one horizon, over the standard deviation of the series; always
forecasting the mean has 1. Each model adds a change to its input:

    last_value       a change of 0
    lru              linear in all that it read (Orvieto et al. 2023)
    rnn, gru, lstm   --units units and a linear head

    python -m experiments.mackey_glass --model=gru
    python launch.py --experiment=mackey_glass              all models, three seeds

Measured, three seeds: the NRMSE 84 steps ahead is 0.044 for gru, 1.64 for last_value (docs/results.md).
"""

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment
from experiments.harness.flags import training_flags
from experiments.harness.report import COLORS, Section, curve, groups, intervals, mean, panels, save, separate
from seqjax import cells, wrappers
from seqjax.arrays import Array, Key, Params
from seqjax.core import Cell, from_step
from seqjax.data import windows
from seqjax.train import Run, read_arrays, write_arrays
from seqjax.unrolling import generate, unroll

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLAGS = training_flags(
    steps=3000, steps_per_call=300, evaluate_every=300, checkpoint_every=1500, batch_size=64, learning_rate=3e-3,
    schedule="cosine",
)  # fmt: skip
CELLS = {"lru": cells.lru, "rnn": cells.rnn, "gru": cells.gru, "lstm": cells.lstm}
MODELS = ("last_value", *CELLS)
DELAY = 17
# Runge-Kutta steps per unit of time: ten leave an error below the rounding of float32.
SUBSTEPS = 10
# Samples until a series has forgotten its constant history and is on the attractor.
TRANSIENT = 30 * DELAY
# Samples of each of the training, the validation and the test series.
SAMPLES = 5000
# Samples between the windows that are evaluated.
STRIDE = 10
# Horizons in the table of the report; 6 and 84 are those of the literature.
HORIZONS = (1, 6, 21, 42, 84)

flags.DEFINE_enum("model", "gru", MODELS, "Which model.", flag_values=FLAGS)
flags.DEFINE_integer("units", 64, "Units of a network; last_value has none.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("length", 100, "True values that are read.", lower_bound=2, upper_bound=2000, flag_values=FLAGS)
flags.DEFINE_integer("horizon", 84, "Values that are forecast.", lower_bound=1, upper_bound=2000, flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate")


def rate(x: Array, delayed: Array) -> Array:
    """The right side of the equation, of x(t) and x(t - DELAY)."""
    return 0.2 * delayed / (1 + delayed**10) - 0.1 * x


def solve(start: Array, length: int) -> Array:
    """The solution float32 [length, B] at t = 1, 2, ..., of the history x(t) = `start` [B] for t <= 0.

    Runge-Kutta of order 4 by the method of steps: over one delay, the equation is an ordinary one, whose delayed values
    are known. Between grid points they are those of the cubic Hermite polynomial, which keeps the order.
    """
    width = 1 / SUBSTEPS

    def advance(x, delayed):
        first, middle, last = delayed
        k1 = rate(x, first)
        k2 = rate(x + width / 2 * k1, middle)
        k3 = rate(x + width / 2 * k2, middle)
        k4 = rate(x + width * k3, last)
        x = x + width / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x, x

    def over_one_delay(past, _):
        values, slopes = past  # [DELAY * SUBSTEPS + 1, B]
        middles = (values[:-1] + values[1:]) / 2 + width / 8 * (slopes[:-1] - slopes[1:])
        _, xs = jax.lax.scan(advance, values[-1], (values[:-1], middles, values[1:]))
        xs = jnp.concatenate([values[-1:], xs])
        return (xs, rate(xs, values)), xs[SUBSTEPS::SUBSTEPS]

    history = jnp.broadcast_to(start.astype(jnp.float32), (DELAY * SUBSTEPS + 1, start.size))
    _, xs = jax.lax.scan(over_one_delay, (history, jnp.zeros_like(history)), length=-(-length // DELAY))
    return xs.reshape(-1, start.size)[:length]


def draw(key: Key, count: int, length: int) -> Array:
    """`count` series [length, count] on the attractor, each from a constant history in [0.5, 1.5)."""
    return solve(jax.random.uniform(key, (count,), minval=0.5, maxval=1.5), TRANSIENT + length)[TRANSIENT:]


def nrmse(forecasts: Array | np.ndarray, truth: Array | np.ndarray, deviation: Array | float) -> Array:
    """The normalized root mean square error [H] of forecasts [H, B] at each horizon."""
    return jnp.sqrt(jnp.square(jnp.asarray(forecasts) - truth).mean(1)) / deviation


def network(config: SimpleNamespace) -> Cell:
    """The cell that forecasts the next value, [B, 1] to [B, 1]."""
    if config.model == "last_value":
        return from_step(
            lambda key, in_features: {}, lambda params, batch_shape: (), lambda params, carry, x: (carry, x)
        )
    return wrappers.residual(wrappers.with_head(CELLS[config.model](config.units), 1))


def free_run(cell: Cell, params: Params, seen: Array, horizon: int) -> Array:
    """The forecasts [horizon, B] after the values `seen` [T, B]; all but the first read the one before."""
    carry, ys = unroll(cell, params, None, seen[..., None])
    # Nothing is drawn: the forecast is the next input.
    _, more = generate(cell, params, carry, ys[-1], horizon - 1, jax.random.key(0), lambda key, y: y)
    return jnp.concatenate([ys[-1:], more])[..., 0]


def build(config: SimpleNamespace) -> Experiment:
    """Squared error one step ahead; the best params have the lowest validation NRMSE at the horizon."""
    series = np.asarray(jax.jit(draw, static_argnums=(1, 2))(jax.random.key(1977), 3, SAMPLES))
    scale = windows.Standardizer.fit(series[:, :1])
    data = dict(zip(("training", "validation", "test"), scale.apply(series[..., None])[..., 0].T, strict=True))
    # Errors are divided by the deviation of a change, so that a learning rate means the same at any sampling.
    change = float(jnp.diff(data["training"]).std())
    # Of a window in training, the first half is read to get to know the series.
    known = config.length // 2
    cell = network(config)

    def gradient(hparams, data, params, step, k_data, k_noise):
        del hparams, k_noise
        rows = windows.minibatch(k_data, step, config.batch_size, SAMPLES - config.length)
        window = windows.gather(data["training"], rows, config.length + 1)

        def loss(params):
            ys = unroll(cell, params, None, window[:-1, :, None])[1][..., 0]
            return jnp.square((ys - window[1:])[known:] / change).mean()

        return jax.value_and_grad(loss)(params)

    def forecast(data, params, part):
        """Values that were read, forecasts and truth, [.., B] each, of every STRIDE-th window of a series."""
        rows = jnp.arange(0, SAMPLES - config.length - config.horizon + 1, STRIDE)
        window = windows.gather(data[part], rows, config.length + config.horizon)
        seen, truth = jnp.split(window, [config.length])
        return seen, free_run(cell, params, seen, config.horizon), truth

    def evaluate(hparams, data, params):
        del hparams
        _, forecasts, truth = forecast(data, params, "validation")
        errors = nrmse(forecasts, truth, data["validation"].std())
        return {"nrmse": errors[-1], "one_step_nrmse": errors[0]}

    def finish(hparams, state, run):
        """Test NRMSE at each horizon in errors.npz; a figure of forecasts."""
        del hparams
        test = jax.jit(lambda data, params: forecast(data, params, "test"))(data, state.best.params)
        seen, forecasts, truth = (np.asarray(scale.invert(part[..., None]))[..., 0] for part in test)
        errors = np.asarray(nrmse(forecasts, truth, series[:, 2].std()))
        write_arrays(run.directory / "forecasts.npz", seen=seen, forecasts=forecasts, truth=truth, nrmse=errors)
        figure, axes = panels(3, 1, width=8.5, height=2.0)
        for axis, window in zip(axes[:, 0], np.linspace(0, truth.shape[1] - 1, 3).astype(int), strict=True):
            _draw_forecasts(axis, *(values[:, window] for values in (seen, truth, forecasts)))
        axes[0, 0].legend(loc="lower left", ncols=3)
        save(figure, run.figures / "forecasts")
        return {
            "test_nrmse": float(errors[-1]),
            "test_one_step_nrmse": float(errors[0]),
        }

    def init(hparams, key):
        del hparams
        return cell.init(key, 1)

    batches = (SAMPLES - config.length) // config.batch_size
    return Experiment(supervised.program(config, init, gradient, evaluate, data, "nrmse", batches), finish)


def _draw_forecasts(axes: "Axes", seen: np.ndarray, truth: np.ndarray, forecasts: np.ndarray) -> None:
    """Forecasts [H] after values that were read [T], and the truth [H]."""
    ahead = np.arange(1, len(truth) + 1)
    axes.plot(np.arange(1 - len(seen), 1), seen, color="0.6", linewidth=1, label="read")
    axes.plot(ahead, truth, color="black", linewidth=1.2, label="truth")
    axes.plot(ahead, forecasts, color=COLORS[1], linewidth=1.2, label="forecast")
    # A forecast that leaves the attractor is cut off: it would flatten the truth.
    axes.set(xlabel="steps ahead", ylabel="x", ylim=(0, 1.6))


SWEEP = f"model={','.join(MODELS)};seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """The NRMSE of each model by horizon, and a forecast by the first run of each."""
    by_label = groups(runs)
    found = {label: [read_arrays(run.directory / "forecasts.npz") for run in by_label[label]] for label in by_label}
    figures, (last, by_horizon) = separate("horizon", "by-horizon")
    intervals(last, by_label, "test_nrmse", (0, np.inf))
    last.set(xlabel="test NRMSE at the last horizon (dashed: the mean of the series)", xlim=(0, None))
    last.axvline(1, color="0.4", linestyle="--", linewidth=1)
    horizons = [horizon for horizon in HORIZONS if all(horizon <= run.flags["horizon"] for run in runs)]
    table: list[list[Any]] = [["", *(f"{horizon} ahead" for horizon in horizons)]]
    for index, (label, members) in enumerate(found.items()):
        errors = np.stack([one["nrmse"] for one in members], axis=1)  # [H, runs]
        curve(by_horizon, label, list(range(1, len(errors) + 1)), errors.tolist(), index)
        table.append([label, *(mean(errors[horizon - 1].tolist()) for horizon in horizons)])
    by_horizon.axhline(1, color="0.4", linestyle="--", linewidth=1)
    by_horizon.set(xlabel="steps ahead", ylabel="test NRMSE", yscale="log")
    examples, axes = separate(*found, width=8.5, height=2.2)
    for axis, (label, members) in zip(axes, found.items(), strict=True):
        _draw_forecasts(axis, *(members[0][name][:, 0] for name in ("seen", "truth", "forecasts")))
        axis.set_title(label)
    text = "Root mean square error of forecasts that read forecasts, over the standard deviation of the test series."
    return [
        Section("Error by horizon", text, figures, table),
        Section("Forecasts", "The first test window, by the first run of each row of the table.", examples),
    ]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
