"""Which remedy helps against vanishing gradients, and which against exploding ones?

A simple RNN (tanh, SGD, no clipping) has to recall a symbol that it saw --lag steps ago (Bengio, Simard & Frasconi
1994). Its recurrent matrix starts as an orthogonal one times 0.5, so that gradients vanish, or times 3, so that they
explode. Each remedy changes one thing: ReLU, identity initialization, or both (Le, Jaitly & Hinton 2015, arXiv
1504.00941); clipping (Pascanu, Mikolov & Bengio 2013, arXiv 1211.5063); layer normalization (arXiv 1607.06450), or
batch normalization (arXiv 1603.09025) by the statistics of the batch at hand, in the evaluation too; Adam or RMSprop;
an LSTM whose recurrent matrices start alike; truncation to half of the lag. "together" is a layer-normalized LSTM with
Adam and clipping.

    python -m experiments.vanishing --pathology=exploding --remedy=clipping
    python launch.py --experiment=vanishing --widen=1        all remedies against both

Measured, accuracy without a remedy: 0.13 where gradients vanish, which identity initialization or normalization raises
to 1.00, and 0.95 where they explode, to which clipping adds nothing (docs/results.md).
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.harness import command, supervised
from experiments.harness.comparison import paired
from experiments.harness.experiment import Experiment
from experiments.harness.flags import training_flags
from experiments.harness.report import Mean, Section, groups, intervals, mean, panels, run_lines, separate
from experiments.harness.task import Task
from experiments.shared import tasks
from seqjax import cells, initializers
from seqjax.arrays import Array, Params
from seqjax.core import batch_shape
from seqjax.diagnostics import gradient_against_lag
from seqjax.normalization import batch_norm, layer_norm
from seqjax.train import Run, read_arrays, write_arrays
from seqjax.unrolling import unroll
from seqjax.wrappers import with_embedding, with_head

FLAGS = training_flags(
    steps=1000, steps_per_call=100, evaluate_every=100, batch_size=32, learning_rate=0.1, optimizer="sgd"
)
GAINS = {"vanishing": 0.5, "exploding": 3.0}
EMBEDDING = 16
SCORE = "test_accuracy"


class Remedy(NamedTuple):
    """What a remedy changes.

    Attributes:
      activation: of the simple RNN.
      identity: whether the recurrent matrix starts as the identity, whatever the pathology.
      gated: whether the cell is an LSTM.
      normalization: "layer", "batch", or "" for none.
      optimizer, clip_norm: as the flags of these names, which it replaces.
      truncated: whether the gradient reaches half of the lag back.
    """

    activation: Callable[[Array], Array] = jnp.tanh
    identity: bool = False
    gated: bool = False
    normalization: str = ""
    optimizer: str = ""
    clip_norm: float = 0.0
    truncated: bool = False


REMEDIES = {
    "none": Remedy(),
    "relu": Remedy(activation=jax.nn.relu),
    "identity": Remedy(identity=True),
    "relu_identity": Remedy(activation=jax.nn.relu, identity=True),
    "clipping": Remedy(clip_norm=1.0),
    "layer_norm": Remedy(normalization="layer"),
    "batch_norm": Remedy(normalization="batch"),
    "adam": Remedy(optimizer="adam"),
    "rmsprop": Remedy(optimizer="rmsprop"),
    "lstm": Remedy(gated=True),
    "truncation": Remedy(truncated=True),
    "together": Remedy(gated=True, normalization="layer", optimizer="adam", clip_norm=1.0),
}

flags.DEFINE_enum("pathology", "vanishing", list(GAINS), "What is wrong at the start.", flag_values=FLAGS)
flags.DEFINE_enum("remedy", "none", list(REMEDIES), "What is done about it.", flag_values=FLAGS)
flags.DEFINE_integer("lag", 20, "Time steps from symbol to query.", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_integer("units", 32, "Units.", lower_bound=1, flag_values=FLAGS)

for name, default in (("optimizer", "sgd"), ("clip_norm", 0.0)):
    flags.register_multi_flags_validator(
        ("remedy", name),
        lambda given, name=name, default=default: (
            not getattr(REMEDIES[given["remedy"]], name) or given[name] == default
        ),
        f"this --remedy sets --{name} itself: leave it at {default}",
        flag_values=FLAGS,
    )

TRACED_FLAGS = ("seed", "learning_rate")


class Network(NamedTuple):
    """A model, and the gradient of the last step's loss at each carry, [T, B, ...] to [T]."""

    model: supervised.Model
    gradients: Callable[[Params, Array, Array], Array]


def network(config: SimpleNamespace, task: Task) -> Network:
    """The cell of the pathology under the remedy."""
    remedy = REMEDIES[config.remedy]
    w_h = initializers.identity() if remedy.identity else initializers.orthogonal(GAINS[config.pathology])
    cell = cells.lstm(config.units, w_h=w_h) if remedy.gated else cells.rnn(config.units, remedy.activation, w_h=w_h)
    cell = with_embedding(cell, task.tokens, EMBEDDING)
    if remedy.normalization == "layer":
        cell = layer_norm(cell)
    cell = with_head(cell, task.outputs)
    run, inputs = partial(unroll, cell), lambda params, xs: xs
    if remedy.normalization == "batch":
        cell, train = batch_norm(cell)

        def run(params, carry, xs):
            return train(params, carry, xs)[0]

        def inputs(params, xs):
            return xs, train(params, None, xs)[1]

    reach = math.ceil(config.lag / 2) if remedy.truncated else config.lag + 1

    def outputs(hparams, params, xs, key):
        del hparams, key
        carry, ys = None, []
        for start in range(0, len(xs), reach):
            carry, chunk = run(params, jax.lax.stop_gradient(carry), xs[start : start + reach])
            ys.append(chunk)
        return jnp.concatenate(ys)

    def gradients(params, xs, targets):
        carry = cell.initial_carry(params, batch_shape(xs))
        return gradient_against_lag(
            cell, params, carry, inputs(params, xs), lambda ys: task.losses(ys[-1], targets[-1]).mean()
        )

    return Network(supervised.Model(lambda hparams, key: cell.init(key, 0), outputs), gradients)


def build(config: SimpleNamespace) -> Experiment:
    """Training on whole sequences; the remedy may replace the optimizer and the clipping of the flags."""
    remedy = REMEDIES[config.remedy]
    config = SimpleNamespace(
        **{
            **vars(config),
            "optimizer": remedy.optimizer or config.optimizer,
            "clip_norm": remedy.clip_norm or config.clip_norm,
        }
    )
    task = tasks.recall(lag=config.lag, batch_size=config.batch_size)
    model, gradients = network(config, task)

    def finish(hparams, state, run):
        """Test scores of the best params; the gradient by lag before the first update and after the last."""
        first, _ = supervised.first_params(model.init, hparams)
        batch = task.train(task.data, jax.random.key(7), jnp.int32(0))
        by_step = jax.jit(gradients)
        norms = {
            name: np.asarray(by_step(params, batch.xs, batch.targets))[::-1]
            for name, params in (("first", first), ("last", state.params))
        }
        write_arrays(run.directory / "gradients.npz", **norms)
        return {
            **supervised.test_scores(task, model, hparams, state.best.params),
            # A gradient may be 0 in float32.
            **{f"{name}_gradient_log10": float(np.log10(max(row[-1] / row[0], 1e-38))) for name, row in norms.items()},
        }

    return Experiment(supervised.task_program(config, task, model), finish)


SWEEP = f"pathology={','.join(GAINS)};remedy={','.join(REMEDIES)};learning_rate=1e-3,1e-2,1e-1,1;seed=0:5"


def report(runs: list[Run]) -> list[Section]:
    """The matrix of remedies and pathologies, and the gradient against the lag before and after training."""
    by_pathology = {
        members[0].flags["pathology"]: {
            found[0].flags["remedy"]: found for found in groups(members, ("remedy",)).values()
        }
        for members in groups(runs, ("pathology",)).values()
    }
    names = [name for name in REMEDIES if any(name in found for found in by_pathology.values())]
    head = [part for name in by_pathology for part in (f"{name}: accuracy", "difference", "gradient before", "after")]
    table: list[list[Any]] = [["", *head]]
    for name in names:
        row: list[Any] = [name]
        for found in by_pathology.values():
            members = found.get(name, [])
            gains = [] if name == "none" else paired(members, found.get("none", []), [SCORE])[SCORE]
            row += [_mean(members, SCORE), mean(gains) if gains else None]
            row += [_mean(members, f"{when}_gradient_log10") for when in ("first", "last")]
        table.append(row)
    figures, axes = separate(*(f"{name}-{when}" for name in by_pathology for when in ("first", "last")))
    drawn = [(name, found, when) for name, found in by_pathology.items() for when in ("first", "last")]
    for axis, (name, found, when) in zip(axes, drawn, strict=True):
        for index, (label, members) in enumerate(found.items()):
            norms = [read_arrays(run.directory / "gradients.npz")[when] for run in members]
            lags = [list(range(len(row))) for row in norms]
            run_lines(axis, label, lags, [np.maximum(row / row[0], 1e-38).tolist() for row in norms], index)
        axis.set(
            title=f"{name}, {'before' if when == 'first' else 'after'} training",
            xlabel="time lag", ylabel="|dL/dh|, lag 0 = 1", yscale="log", ylim=(1e-12, 1e12),
        )  # fmt: skip
    board, columns = panels(1, len(by_pathology), width=4.6, height=0.6 + 0.28 * len(names))
    for axis, (name, found) in zip(columns[0], by_pathology.items(), strict=True):
        intervals(axis, {remedy: found.get(remedy, []) for remedy in names}, SCORE, (0, 1))
        axis.axvline(0.125, color="0.4", linestyle="--", linewidth=1)
        axis.set(title=f"{name} gradients", xlabel="test accuracy (dashed: chance)", xlim=(0, 1))
    board.set_label("accuracy")
    text = (
        "Test accuracy of recall (chance: 0.125), and its difference to no remedy, seed by seed. The gradients are "
        "log10 of |dL/dh| at the longest lag over that at lag 0, before training and after it."
    )
    return [Section("Remedies", text, [board, *figures], table)]


def _mean(runs: list[Run], name: str) -> Mean | None:
    """The mean of a result; None without runs, as where all of them ended in NaN."""
    return mean([run.result()[name] for run in runs]) if runs else None


if __name__ == "__main__":
    command.main(sys.modules[__name__])
