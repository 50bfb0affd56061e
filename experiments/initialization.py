"""How should a recurrent network start, and does what is known before the first update predict what it learns?

Recurrent weights: orthogonal (Saxe, McClelland & Ganguli 2014, arXiv 1312.6120), identity (Le, Jaitly & Hinton 2015,
arXiv 1504.00941) or half of it, Glorot or He normal, uniform in 1 / sqrt(units) (PyTorch's), critical (Sompolinsky,
Crisanti & Sommers 1988), np_rnn (Talathi & Vartak 2015, arXiv 1511.03771), sparse (Martens 2010), or of a given
spectral radius. The bias of the forget gate of an LSTM, or of the update gate of a GRU: 0, 1 (Jozefowicz, Zaremba &
Sutskever 2015), 2, chrono up to the length of a sequence (Tallec & Ollivier 2018, arXiv 1804.11188) or
uniform_gate (Gu et al. 2020, arXiv 1910.09890). Before the first update: gradient by lag, Lyapunov exponent, gain of
the whole sequence.

Tasks: "adding" (two values up to --length steps back), "copy" (after --lag steps), "rows" and "permuted" (digits of
MNIST), and "temperature" (Jena, 24 hours ahead).

    python -m experiments.initialization --recurrent=identity --forget_bias=chrono
    python launch.py --experiment=initialization

Measured on adding over 100 steps, identity: test squared error 0.096 and 0.156 (two seeds) with bias 0, 0.0005 with
chrono (docs/results.md).
"""

import io
import math
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.harness import command, supervised
from experiments.harness.comparison import rank_correlation
from experiments.harness.experiment import Experiment
from experiments.harness.flags import training_flags
from experiments.harness.plots import named_points
from experiments.harness.report import (
    COLORS,
    Section,
    evaluation_lines,
    groups,
    intervals,
    run_lines,
    separate,
    summary,
)
from experiments.harness.task import Task
from experiments.shared import tasks
from seqjax import cells, initializers
from seqjax.core import Cell, batch_shape
from seqjax.diagnostics import gradient_against_lag, lyapunov_exponents, product_spectrum, step_jacobians
from seqjax.train import Run, write_atomic
from seqjax.wrappers import with_head, with_one_hot

FLAGS = training_flags(
    steps=2000, steps_per_call=100, evaluate_every=100, batch_size=64, learning_rate=3e-3, clip_norm=1.0
)
RECURRENT = {
    "orthogonal": initializers.orthogonal(),
    "identity": initializers.identity(),
    "half_identity": initializers.identity(0.5),
    "glorot": initializers.glorot_uniform(),
    "he": initializers.he_normal(),
    "uniform": initializers.uniform(),
    "critical": initializers.critical(),
    "np_rnn": initializers.np_rnn(),
    "sparse": initializers.sparse(),
    **{f"radius_{radius:g}": initializers.spectral_radius(radius) for radius in (0.5, 0.9, 1.2, 1.5)},
}
BIASES = ["0", "1", "2", "chrono", "uniform_gate"]
# Sequences of which the dynamics before training are measured.
SAMPLE = 4
KEEPS = {"lstm": "forget", "gru": "update"}

tasks.define(FLAGS, "adding", ("adding", "copy", "rows", "permuted", "temperature"), length=100, lag=100)
flags.DEFINE_enum("model", "lstm", ["rnn", "lstm", "gru"], "Which recurrent cell.", flag_values=FLAGS)
flags.DEFINE_integer("units", 32, "Units.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_enum("recurrent", "orthogonal", list(RECURRENT), "Recurrent weights of each gate.", flag_values=FLAGS)
flags.DEFINE_enum("forget_bias", "0", BIASES, "Bias of the gate that keeps the carry.", flag_values=FLAGS)
flags.register_multi_flags_validator(
    ("model", "forget_bias"),
    lambda given: given["model"] in KEEPS or given["forget_bias"] == "0",
    "a simple RNN has no gate that keeps the carry: --model=rnn takes --forget_bias=0 only",
    flag_values=FLAGS,
)
flags.register_multi_flags_validator(
    ("task", "length", "forget_bias"),
    lambda given: (
        given["forget_bias"] != "chrono" or given["task"] not in ("adding", "temperature") or given["length"] > 2
    ),
    "chrono is for a --length of more than 2 steps",
    flag_values=FLAGS,
)

TRACED_FLAGS = ("seed", "learning_rate")
synthetic_data = tasks.synthetic_data


def model(config: SimpleNamespace, task: Task) -> Cell:
    """The cell, initialized by the flags, with a head."""
    weights: dict[str, Any] = {"w_h": RECURRENT[config.recurrent]}
    if config.forget_bias == "chrono":
        weights["b"] = initializers.chrono(tasks.steps(task))
    elif config.forget_bias == "uniform_gate":
        weights["b"] = initializers.uniform_gate()
    elif config.model in KEEPS:
        weights["b"] = initializers.gate_bias(**{KEEPS[config.model]: float(config.forget_bias)})
    cell = getattr(cells, config.model)(config.units, **weights)
    return with_head(with_one_hot(cell, task.tokens) if task.tokens else cell, task.outputs)


def build(config: SimpleNamespace) -> Experiment:
    """Full BPTT of the cell as it was initialized."""
    task = tasks.make_task(config)
    cell = model(config, task)
    trained = supervised.cell_model(cell, task.features)

    @jax.jit
    def gradient_by_lag(data, params):
        batch = task.train(data, jax.random.key(7), jnp.int32(0))

        def loss(ys):
            return supervised.weighted_mean(task.losses(ys, batch.targets), batch.weights)

        carry = cell.initial_carry(params, batch_shape(batch.xs))
        return gradient_against_lag(cell, params, carry, batch.xs, loss)[::-1]

    @jax.jit
    def dynamics(key, data, params):
        """The largest Lyapunov exponent, and log10 of the largest singular value of dh_T/dh_0; means of sequences."""
        xs = task.train(data, jax.random.key(7), jnp.int32(0)).xs[:, :SAMPLE]
        carry = cell.initial_carry(params, batch_shape(xs, cell.space))
        exponents = lyapunov_exponents(key, cell, params, carry, xs, count=1)
        gains = product_spectrum(step_jacobians(cell, params, carry, xs)).max(-1)
        return exponents.mean(), jnp.maximum(gains.mean() / np.log(10).astype(np.float32), -38)

    def finish(hparams, state, run):
        """Test scores of the best params; the gradient against the lag before the first update in gradients.npy."""
        initial_params, key = supervised.first_params(trained.init, hparams)
        norms = np.asarray(gradient_by_lag(task.data, initial_params))
        exponent, gain = map(float, dynamics(key, task.data, initial_params))
        with io.BytesIO() as file:
            np.save(file, norms)
            write_atomic(run.directory / "gradients.npy", file.getvalue())
        return {
            **supervised.test_scores(task, trained, hparams, state.best.params),
            # A gradient may be 0 in float32.
            "first_gradient_log10": math.log10(max(norms[-1] / norms[0], 1e-38)),
            "first_lyapunov": exponent,
            "first_gain_log10": gain,
        }

    return Experiment(supervised.task_program(config, task, trained), finish)


SIGNALS = {
    "first_gradient_log10": "gradient at the longest lag, log10",
    "first_lyapunov": "Lyapunov exponent, 1 / step",
    "first_gain_log10": "gain of the sequence, log10",
}
SWEEP = "recurrent=orthogonal,identity,glorot,uniform;forget_bias=0,1,chrono;learning_rate=1e-3,3e-3,1e-2;seed=0:5"


def report(runs: list[Run]) -> list[Section]:
    """For each task: the gradient before training beside the learning after it, and whether one predicts the other."""
    sections = []
    for kind, members in groups(runs, ("task",)).items():
        task = kind.removeprefix("task=")
        by_label = groups(members)
        sections += [_learning(task, by_label), _prediction(task, by_label)]
    return sections


def _learning(task: str, by_label: dict[str, list[Run]]) -> Section:
    """The gradient against the lag before training, beside the validation loss along it."""
    figures, (scores, at_start, learning) = separate("score", "gradient", "learning")
    score = _score(by_label)
    for label, members in by_label.items():
        # A colour for each bias, dashes for each matrix.
        bias, matrix = (members[0].flags[name] for name in ("forget_bias", "recurrent"))
        index = BIASES.index(bias) + len(COLORS) * list(RECURRENT).index(matrix)
        norms = np.array([np.load(run.directory / "gradients.npy") for run in members])
        lags = [range(norms.shape[1])] * len(norms)
        run_lines(at_start, label, lags, (norms / norms[:, :1]).tolist(), index)
        evaluation_lines(learning, label, members, "loss", index)
    intervals(scores, by_label, score, (0, np.inf))
    scores.set_xlabel(score.replace("_", " "))
    # Below this a gradient is lost among the others; a line that falls to 1e-30 would hide the rest.
    at_start.set(xlabel="time lag", ylabel="|dL/dh| before training, lag 0 = 1", yscale="log")
    at_start.set_ylim(bottom=max(1e-8, at_start.get_ylim()[0]))
    learning.set(xlabel="updates", ylabel="validation loss", yscale="log")
    text = (
        "First: the test score. Second: a carry from long ago can only be learned from where its gradient is left; "
        "first_gradient_log10 in the table is the exponent at the longest lag. Third: what training makes of it. A "
        "line is a run."
    )
    runs = [run for members in by_label.values() for run in members]
    columns = [name for name in runs[0].result() if name.startswith(("test_", "validation_", "first_"))]
    return Section(f"Gradient and learning, {task}", text, figures, summary(runs, columns))


def _score(by_label: dict[str, list[Run]]) -> str:
    """The test score by which a task is judged."""
    return next(name for name in next(iter(by_label.values()))[0].result() if name.startswith("test_"))


def _prediction(task: str, by_label: dict[str, list[Run]]) -> Section:
    """What is known before the first update, against the test score of each group."""

    def means(name):
        return [float(np.mean([run.result()[name] for run in members])) for members in by_label.values()]

    score = _score(by_label)
    figures, axes = separate(*SIGNALS)
    table: list[list[Any]] = [["before the first update", "groups", "rank correlation", "95 % interval"]]
    names = [label.replace("recurrent=", "").replace("forget_bias=", "bias ") for label in by_label]
    for axis, (name, title) in zip(axes, SIGNALS.items(), strict=True):
        xs, ys = means(name), means(score)
        log = "loss" in score and min(ys) > 0
        axis.set(xlabel=title, ylabel=score.replace("_", " "), yscale="log" if log else "linear")
        named_points(axis, names, xs, ys)
        r, low, high = rank_correlation(xs, ys)
        table.append([title, len(xs), r, None if math.isnan(r) else f"{low:.2f} to {high:.2f}"])
    text = (
        f"Each point is a group: the mean over its seeds of what is known before the first update, against {score}. "
        "Spearman's rank correlation over the groups, with the interval of Bonett & Wright (2000)."
    )
    return Section(f"Prediction, {task}", text, figures, table)


if __name__ == "__main__":
    command.main(sys.modules[__name__])
