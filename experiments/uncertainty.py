"""What is a recurrent dropout worth for knowing how wrong a forecast will be?

The temperature in Jena, 24 hours ahead (`experiments.temperature`), as a distribution. An LSTM(32) is trained with
recurrent dropout, one mask per sequence (Gal & Ghahramani 2016, arXiv 1512.05287), and dropout before the last layer.
Methods, of which the first three are the same trained network:

    constant     a Gaussian around the forecast, with one std for all windows
    mc_alone     a Gaussian with the mean and the std of passes with dropout
    mc_dropout   a mixture of passes with dropout, each a Gaussian with one std for all windows
    gaussian     the network outputs mean and log variance, and is trained by the likelihood
    gaussian_mc  a mixture of such Gaussians from passes with dropout (Kendall & Gal 2017, arXiv 1703.04977)

All but mc_alone fit one number to the validation part: the std, or a factor of the one that the network outputs.
Scores: CRPS (Gneiting & Raftery 2007), likelihood, coverage and width of central intervals.

    python -m experiments.uncertainty --method=mc_dropout --data_dir=DIR
    python launch.py --experiment=uncertainty --data_dir=DIR        all methods

Measured: the CRPS is 1.79 ± 0.02 °C with a constant std, 1.80 ± 0.01 with dropout, 2.03 ± 0.03 with mc_alone, whose
90 % intervals hold 49 % of the truth (docs/results.md).
"""

import sys
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from experiments.harness import command, supervised
from experiments.harness.comparison import rank_correlation
from experiments.harness.experiment import Experiment, Hparams, without_data
from experiments.harness.flags import training_flags
from experiments.harness.report import COLORS, Section, curve, groups, intervals, panels, separate, summary
from experiments.shared import tasks
from seqjax import cells, regularizers
from seqjax.arrays import Array, Key, Params
from seqjax.data import jena, windows
from seqjax.diagnostics import forecasts
from seqjax.initializers import glorot_uniform
from seqjax.models import RecurrentForecaster
from seqjax.models.products import Linear
from seqjax.nnx import Rngs
from seqjax.train import Run, read_arrays, write_arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = training_flags(
    steps=1638, steps_per_call=91, evaluate_every=273, checkpoint_every=819, batch_size=256, learning_rate=3e-3
)


class Method(NamedTuple):
    """How a forecast becomes a distribution.

    Attributes:
      gaussian: whether the network outputs a variance.
      passes: whether the distribution is made of passes with dropout.
      noise: whether the noise of the temperature is part of it, its std fitted to the validation part.
    """

    gaussian: bool = False
    passes: bool = False
    noise: bool = True


METHODS = {
    "constant": Method(),
    "mc_alone": Method(passes=True, noise=False),
    "mc_dropout": Method(passes=True),
    "gaussian": Method(gaussian=True),
    "gaussian_mc": Method(gaussian=True, passes=True),
}
# Hours between the windows that are scored, and between those that the std is fitted to: neighbours are hardly new.
SCORED, FITTED = 4, 13
PROBABILITIES = (0.05, 0.25, 0.75, 0.95)
LEVELS = np.linspace(0.05, 0.95, 19).tolist()

flags.DEFINE_enum("method", "mc_dropout", list(METHODS), "How uncertain a forecast is.", flag_values=FLAGS)
flags.DEFINE_integer("samples", 20, "Passes with dropout, for the methods with passes.", 2, flag_values=FLAGS)
flags.DEFINE_integer("units", 32, "Units.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("length", 120, "Hours in a window.", lower_bound=1, flag_values=FLAGS)
for name, rate, where in (("recurrent_dropout", 0.25, "inside the recurrence"), ("dropout", 0.5, "before the head")):
    flags.DEFINE_float(name, rate, f"Rate of the dropout {where}.", flag_values=FLAGS)
    flags.register_validator(name, lambda rate: 0 <= rate < 1, "a rate in [0, 1)", flag_values=FLAGS)
flags.register_multi_flags_validator(
    ("method", "recurrent_dropout", "dropout"),
    lambda given: given["method"] != "mc_alone" or given["recurrent_dropout"] or given["dropout"],
    "--method=mc_alone without dropout is certain of all forecasts: give --recurrent_dropout or --dropout a rate",
    flag_values=FLAGS,
)

TRACED_FLAGS = ("seed", "learning_rate", "dropout", "recurrent_dropout")
synthetic_data = without_data("record")


class GaussianForecaster(RecurrentForecaster):
    """A `RecurrentForecaster` with a second output, the logarithm of the variance."""

    def __init__(self, *arguments: Any, rngs: nnx.Rngs, **options: Any):
        """Draw the weights; arguments as of `RecurrentForecaster`."""
        super().__init__(*arguments, rngs=rngs, **options)
        self.head = Linear(self.rnn.out_features, 2, kernel_init=glorot_uniform(), rngs=rngs)

    def __call__(self, xs: Array, *, rngs: Rngs | None = None) -> Array:
        """`xs [B, T, D] -> [2, B]`, mean and log variance."""
        return self.head(self.dropout(self.rnn(xs, rngs=rngs), rngs=rngs)).T


def network(config: SimpleNamespace, features: int, hparams: Hparams, rngs: nnx.Rngs) -> RecurrentForecaster:
    """The model of the flags: standardized windows to standardized temperatures."""
    make = GaussianForecaster if METHODS[config.method].gaussian else RecurrentForecaster
    noise = partial(regularizers.recurrent_dropout, rate=hparams["recurrent_dropout"], gates=4)
    return make(cells.lstm(config.units), features, regularizers=[noise], dropout=hparams["dropout"], rngs=rngs)


@jax.jit
def fitted_scale(means: Array, stds: Array, truth: Array) -> Array:
    """The factor of the stds by which a Gaussian mixture [S, N] is most likely to give the truth [N].

    By expectation maximization, with w the posterior probability of component i: `scale^2 = mean_n sum_i w z^2`, z the
    error in stds. Of one component it is the root mean square of z.
    """
    squares = jnp.square((jnp.expand_dims(truth, 0) - means) / stds)

    def update(_, variance):
        weights = jax.nn.softmax(-squares / (2 * variance) - jnp.log(stds), axis=0)
        return (weights * squares).sum(0).mean()

    return jnp.sqrt(jax.lax.fori_loop(0, 200, update, squares.mean()))


@jax.jit
def scored(means: Array, stds: Array, truth: Array) -> dict[str, Array]:
    """Of a Gaussian mixture [S, N] in degrees: mean, std, interval ends [4, N], and the scores of each window [N]."""
    return {
        "mean": means.mean(0),
        "std": jnp.sqrt(jnp.square(stds).mean(0) + means.var(0)),
        "quantiles": jnp.stack([forecasts.mixture_quantile(means, stds, probability) for probability in PROBABILITIES]),
        "crps": forecasts.mixture_crps(means, stds, truth),
        "pit": forecasts.mixture_cdf(means, stds, truth),
        "nll": -forecasts.mixture_log_density(means, stds, truth),
    }


def build(config: SimpleNamespace) -> Experiment:
    """Gaussian likelihood of the standardized temperature; the best params have the lowest validation CRPS.

    That CRPS is of the forecast without dropout, in all methods, with the std or its factor fitted to the same windows.
    """
    method = METHODS[config.method]
    climate = tasks.climate(config.data_dir)
    data = jena.forecasting(climate, history=config.length)
    column = data.columns.index(jena.TEMPERATURE)
    center, unit = (np.float32(row[column]) for row in (data.scale.mean, data.scale.std))
    init, bind = supervised.functional(lambda hparams, rngs: network(config, len(data.columns), hparams, rngs))

    def outputs(hparams, params, key, data, starts):
        """Mean and std, standardized, and degrees; each float32 [B]. The std is 1 where the network has none."""
        xs, degrees = jena.batch(data, starts)  # [T, B, D], [B]
        found = bind(hparams, params, key)(jnp.swapaxes(xs, 0, 1))
        mean, log_variance = found if method.gaussian else (found, jnp.zeros_like(found))
        return mean, jnp.exp(log_variance / 2), degrees

    def losses(mean, std, degrees):
        """`-log N(y; mean, std)` without its constant; half of the squared error where the std is 1."""
        return jnp.square(((degrees - center) / unit - mean) / std) / 2 + jnp.log(std)

    @partial(jax.jit, static_argnames="samples")
    def passes(hparams: Hparams, data: Any, params: Params, starts: Array, key: Key | None, samples: int):
        """Means and stds [S, N] and truth [N] in degrees, each of the S passes with its own masks; none without key."""
        count = starts.size

        def batch(rows):
            noise = None if key is None else jax.random.fold_in(key, rows[0])
            return outputs(hparams, params, noise, data, starts[rows % count])

        mean, std, degrees = windows.every(samples * count, 512, batch)
        return (center + unit * mean).reshape(samples, count), (unit * std).reshape(samples, count), degrees[:count]

    def gradient(hparams, data, params, step, k_data, k_noise):
        starts = data.train[windows.minibatch(k_data, step, config.batch_size, data.train.size)]

        def loss(params):
            return losses(*outputs(hparams, params, k_noise, data, starts)).mean()

        return jax.value_and_grad(loss)(params)

    def evaluate(hparams, data, params):
        def of(starts):
            return windows.every(starts.size, 512, lambda rows: outputs(hparams, params, None, data, starts[rows]))

        mean, std, degrees = of(data.validation[::SCORED])
        means, stds = center + unit * mean, unit * std
        scale = fitted_scale(jnp.expand_dims(means, 0), jnp.expand_dims(stds, 0), degrees)
        sample = windows.minibatch(jax.random.key(7), 0, min(8 * config.batch_size, data.train.size), data.train.size)
        return {
            "loss": losses(mean, std, degrees).mean(),
            "crps": forecasts.gaussian_crps(means, scale * stds, degrees).mean(),
            "mae": jnp.abs(means - degrees).mean(),
            "training_loss": losses(*of(data.train[sample])).mean(),
        }

    def finish(hparams, state, run):
        """Scores of the test part; all of its forecasts in forecasts.npz."""
        k_validation, k_test = jax.random.split(jax.random.fold_in(jax.random.key(17), hparams["seed"]))
        samples = config.samples if method.passes else 1

        def predicted(starts, key):
            key = key if method.passes else None
            return passes(hparams, data, state.best.params, starts, key, samples)

        starts = data.test[::SCORED]
        means, stds, truth = predicted(starts, k_test)
        more = {}
        if method.noise:
            scale = fitted_scale(*predicted(data.validation[::FITTED], k_validation))
            if method.gaussian:
                raw = scored(means, stds, truth)
                more = {
                    "scale": float(scale),
                    "test_unscaled_crps": float(raw["crps"].mean()),
                    "test_unscaled_coverage_90": float(forecasts.coverage(raw["pit"], 0.9)),
                }
            stds = scale * stds
            more["noise_std"] = float(stds.mean())
        else:
            more["test_ensemble_crps"] = float(forecasts.ensemble_crps(means, truth).mean())
            means, stds = (jnp.expand_dims(part, 0) for part in (means.mean(0), means.std(0, ddof=1)))
        series = jax.tree.map(np.asarray, {**scored(means, stds, truth), "truth": truth})
        write_arrays(run.directory / "forecasts.npz", time=climate.times[np.asarray(starts) + data.target], **series)
        correlation = _spread_correlation(series)[0]
        inside = forecasts.coverage(jnp.asarray(series["pit"]), jnp.array([0.5, 0.9]))
        return {
            "test_crps": float(series["crps"].mean()),
            "test_mae": float(np.abs(series["mean"] - series["truth"]).mean()),
            "test_nll": float(series["nll"].mean()),
            "test_coverage_50": float(inside[0]),
            "test_coverage_90": float(inside[1]),
            "test_width_90": float((series["quantiles"][3] - series["quantiles"][0]).mean()),
            **({} if np.isnan(correlation) else {"test_spread_correlation": correlation}),
            **more,
            "record": climate.report,
        }

    batches = data.train.size // config.batch_size
    program = supervised.program(config, init, gradient, evaluate, data, "crps", batches, held_out=climate.times)
    return Experiment(program, finish)


def _varies(std: np.ndarray) -> bool:
    """Whether the predicted std differs between windows, rounding errors aside."""
    return bool(np.ptp(std) > 1e-4 * std.mean())


def _spread_correlation(series: Mapping[str, np.ndarray], every: int = 1) -> tuple[float, float, float]:
    """Spearman's correlation of predicted std and absolute error, and its interval; nan where the std never varies."""
    std = series["std"] if _varies(series["std"]) else np.ones_like(series["std"])
    errors = np.abs(series["mean"] - series["truth"])
    return rank_correlation(std[::every].tolist(), errors[::every].tolist())


def _by_spread(series: Mapping[str, np.ndarray]) -> tuple[list[float], list[float]]:
    """The mean predicted std and the mean CRPS of each tenth of the windows by predicted std; of all if it is one."""
    parts = np.array_split(np.argsort(series["std"]), 10 if _varies(series["std"]) else 1)
    return [float(series["std"][part].mean()) for part in parts], [float(series["crps"][part].mean()) for part in parts]


def _stretch(by_label: Mapping[str, Mapping[str, np.ndarray]]) -> "Figure":
    """Three weeks of forecasts with their central intervals, a panel per method."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    figure, axes = panels(len(by_label), 1, width=8.5, height=1.7)
    for index, ((label, series), axis) in enumerate(zip(by_label.items(), axes[:, 0], strict=True)):
        if index:
            axis.sharey(axes[0, 0])
        time = series["time"]
        begin = time[len(time) // 2]
        shown = (time >= begin) & (time < begin + np.timedelta64(21, "D"))
        low, lower, upper, high = series["quantiles"][:, shown]
        color = COLORS[index % len(COLORS)]
        for ends, alpha in (((low, high), 0.25), ((lower, upper), 0.45)):
            axis.fill_between(time[shown], *ends, color=color, alpha=alpha, linewidth=0)
        axis.plot(time[shown], series["truth"][shown], color="black", linewidth=1)
        axis.set(title=label, ylabel="°C", xlim=(time[shown][0], time[shown][-1]))
        axis.xaxis.set_major_formatter(ConciseDateFormatter(AutoDateLocator()))
        axis.tick_params(axis="x", labelbottom=axis is axes[-1, 0])
    figure.set_label("stretch")
    return figure


SWEEP = f"method={','.join(METHODS)};learning_rate=3e-3,1e-2;seed=0:5"


def report(runs: list[Run]) -> list[Section]:
    """Scores, calibration, whether a wide interval means a large error, and what the intervals look like."""
    by_label = {label.removeprefix("method="): members for label, members in groups(runs).items()}
    found = {
        label: [read_arrays(run.directory / "forecasts.npz") for run in members] for label, members in by_label.items()
    }
    figures, (scores, reliability, histogram, spread) = separate("crps", "reliability", "pit", "spread")
    intervals(scores, by_label, "test_crps", (0, np.inf))
    scores.set_xlabel("test CRPS, °C")
    widest = 0.0
    for index, (label, members) in enumerate(found.items()):
        shares = [np.asarray(forecasts.coverage(jnp.asarray(one["pit"]), jnp.array(LEVELS))) for one in members]
        curve(reliability, label, LEVELS, np.stack(shares, axis=1).tolist(), index)
        bins = [np.histogram(one["pit"], 10, (0, 1))[0] / one["pit"].size * 10 for one in members]
        histogram.stairs(
            np.mean(bins, axis=0), np.linspace(0, 1, 11), baseline=None, color=COLORS[index % len(COLORS)], label=label
        )
        stds, crps = np.swapaxes([_by_spread(one) for one in members], 0, 1)  # [2, runs, bins]
        curve(spread, label, stds.mean(0).tolist(), crps.T.tolist(), index)
        widest = max(widest, stds.max())
    reliability.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1)
    reliability.set(xlabel="level of the central interval", ylabel="share of test windows inside")
    histogram.axhline(1, color="0.4", linestyle="--", linewidth=1)
    histogram.set(xlabel="PIT value", ylabel="density (dashed: calibrated)", xlim=(0, 1), ylim=(0, None))
    spread.plot([0, widest], [0, widest / np.sqrt(np.pi)], color="0.4", linestyle="--", linewidth=1)
    spread.set(xlabel="predicted std, °C (dashed: calibrated)", ylabel="test CRPS, °C", xlim=(0, None), ylim=(0, None))
    names = dict.fromkeys(name for run in runs for name in run.result() if name.startswith("test_"))
    text = (
        f"{runs[0].result()['record']}\n\nThe CRPS of a forecast that is a number is its absolute error. Ensemble: of "
        "the passes as they are, instead of a Gaussian. Unscaled: with the std as the network outputs it. Spread "
        "correlation: Spearman's, of the predicted std and the absolute error."
    )
    # A window every 28 hours: at all hours of the day, and hardly dependent, as the interval assumes.
    thinned = {label: _spread_correlation(members[0], 28 // SCORED) for label, members in found.items()}
    within = [f"{label} {r:.2f} ({low:.2f} to {high:.2f})" for label, (r, low, high) in thinned.items() if r == r]
    if within:
        text += f" In the first run of each, over a window every 28 hours, with its 95 % interval: {'; '.join(within)}."
    stretch = _stretch({label: members[0] for label, members in found.items()})
    return [
        Section("Predictive distributions", text, figures, summary(runs, [*names, "noise_std", "scale"])),
        Section("Three weeks", "Black: the temperature. Bands: the central 50 and 90 %.", [stretch]),
    ]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
