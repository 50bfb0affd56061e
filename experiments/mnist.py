"""A digit, read row by row or pixel by pixel: how far back does a recurrent network see? (MNIST as a sequence.)

    --order=rows       28 steps of 28 pixels
    --order=pixels     784 steps of one pixel, row after row
    --order=permuted   the same in one random order, which is the same for all digits and runs

The last 5,000 training digits choose the best params; the answer is read from the last output. A result has the largest
Lyapunov exponent of a single layer, before and after training. Sources: Le et al. 2015 (arXiv 1504.00941), for task and
IRNN; Tallec & Ollivier 2018 (arXiv 1804.11188), for the biases.

    logistic, dense    logistic regression, and Dense(128, relu), on the picture
    rnn, lstm, gru     one layer; chrono_lstm: forget biases for dependencies as long as the sequence
    irnn               relu, the recurrent weights start as the identity, input weights small
    min_gru, lru       two layers, see `experiments.series`; linear in their carry

    python -m experiments.mnist --order=rows --model=lstm --data_dir=DIR
    python launch.py --experiment=mnist --data_dir=DIR        every model, row by row

DIR holds the four files of MNIST, or a folder mnist with them. Without --data_dir the digits are generated. Measured
row by row: lstm has a test accuracy of 98.28 ± 0.42 % after three epochs (docs/results.md).
"""

import sys
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment, Hparams, without_data
from experiments.harness.flags import training_flags
from experiments.harness.report import Section, curve, groups, intervals, panels, save, separate
from experiments.shared import confusion, layers, tasks
from experiments.shared.tasks import digits
from seqjax import cells, presets
from seqjax.arrays import Array, Params, Tree
from seqjax.core import Cell
from seqjax.data import mnist, windows
from seqjax.diagnostics import lyapunov_exponents
from seqjax.models import DenseClassifier, SeriesClassifier
from seqjax.train import Run, State, read_arrays, write_arrays

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHAPES = {"rows": (28, 28), "pixels": (784, 1), "permuted": (784, 1)}
ONE_LAYER = ("rnn", "irnn", "lstm", "chrono_lstm", "gru")
RECURRENT = (*ONE_LAYER, "min_gru", "lru")
CLASSES = tuple("0123456789")
_BATCH = 500  # of an evaluation
# Test digits of which the Lyapunov exponent is measured.
SAMPLE = 100

FLAGS = training_flags(
    steps=2750,
    steps_per_call=50,
    evaluate_every=550,
    checkpoint_every=550,
    batch_size=100,
    learning_rate=2e-3,
    clip_norm=1.0,
    schedule="cosine",
)
flags.DEFINE_enum("order", "rows", list(SHAPES), "How a digit is read.", flag_values=FLAGS)
flags.DEFINE_enum("model", "lstm", ["logistic", "dense", *RECURRENT], "Which model.", flag_values=FLAGS)
flags.DEFINE_integer("units", 128, "Units of a recurrent layer.", lower_bound=1, flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate")
synthetic_data = without_data("digits")


def _on_device(part: mnist.Digits) -> tuple[Array, Array]:
    """Pixels uint8 [N, 784] and labels int32 [N]."""
    return jnp.asarray(part.images.reshape(len(part.labels), -1)), jnp.asarray(part.labels)


def sequences(pixels: Array, order: str) -> Array:
    """Pixels uint8 [B, 784] as float32 [B, T, D] from 0 to 1, in the order of the flag."""
    if order == "permuted":
        pixels = pixels[:, np.random.default_rng(0).permutation(784)]
    return (pixels.astype(jnp.float32) / 255).reshape(len(pixels), *SHAPES[order])


def cell(model: str, units: int, steps: int) -> Cell:
    """The cell of the flags."""
    if model == "irnn":
        return cells.rnn(units, **presets.irnn())
    if model == "chrono_lstm":
        return cells.lstm(units, **presets.chrono(steps))
    return layers.CELLS[model](units)


def network(config: SimpleNamespace) -> tuple[supervised.Init, supervised.Bind]:
    """`init(hparams, key) -> params` and `bind(hparams, params, key) -> module`: [B, T, D] to logits [B, 10]."""
    steps, features = SHAPES[config.order]

    def make(hparams, rngs: nnx.Rngs) -> nnx.Module:
        del hparams
        if config.model not in RECURRENT:
            return DenseClassifier(steps, features, 10, hidden=(128,) if config.model == "dense" else (), rngs=rngs)
        encoder = config.units if config.model in layers.AS_WIDE else 0
        return SeriesClassifier(
            cell(config.model, config.units, steps),
            features,
            len(CLASSES),
            encoder=encoder,
            rngs=rngs,
        )

    return supervised.functional(make)


def build(config: SimpleNamespace) -> Experiment:
    """Cross-entropy of the digits; the best params have the lowest validation loss."""
    parts = digits.parts(config.data_dir)
    data, test = {name: _on_device(parts[name]) for name in ("train", "validation")}, _on_device(parts["test"])
    init, bind = network(config)
    count = len(data["train"][1])

    def gradient(hparams, data: Tree, params, step, k_data, k_noise):
        pixels, labels = (leaf[windows.minibatch(k_data, step, config.batch_size, count)] for leaf in data["train"])

        def loss(params):
            logits = bind(hparams, params, k_noise)(sequences(pixels, config.order))
            return tasks.cross_entropy(logits, labels).mean()

        return jax.value_and_grad(loss)(params)

    def evaluate(hparams, data: Tree, params):
        def scores(rows):
            pixels, labels = (leaf[rows] for leaf in data["validation"])
            logits = bind(hparams, params, None)(sequences(pixels, config.order))
            right = (logits.argmax(1) == labels).astype(jnp.float32)
            return {"loss": tasks.cross_entropy(logits, labels), "accuracy": right}

        return jax.tree.map(jnp.mean, windows.every(len(data["validation"][1]), _BATCH, scores))

    batches = count // config.batch_size
    program = supervised.program(config, init, gradient, evaluate, data, batches=batches, held_out=test)
    return Experiment(program, partial(_finish, config, test))


def _exponents(config: SimpleNamespace, hparams: Hparams, params: Params, pixels: Array) -> dict[str, float]:
    """The largest Lyapunov exponent of the cell before and after training, in nats per step, mean over the digits."""
    init, bind = network(config)
    first, key = supervised.first_params(init, hparams)

    @jax.jit
    def largest(params, pixels):
        rnn = bind(hparams, params, None).rnn
        xs = jnp.swapaxes(sequences(pixels, config.order), 0, 1)
        carry = rnn.cell.initial_carry(rnn.weights, (len(pixels),))
        exponents = lyapunov_exponents(key, rnn.cell, rnn.weights, carry, xs, count=1)
        # -inf where all relu units fall silent; results are finite.
        return jnp.maximum(exponents, jnp.log(jnp.finfo(exponents.dtype).tiny)).mean()

    return {"first_lyapunov": float(largest(first, pixels)), "lyapunov": float(largest(params, pixels))}


def _finish(
    config: SimpleNamespace, test: tuple[Array, Array], hparams: Hparams, state: State, run: Run
) -> dict[str, Any]:
    """Test accuracy and Lyapunov exponents; all answers and the accuracy after each step in answers.npz; a figure."""
    _, bind = network(config)

    @jax.jit
    def answers(params, test):
        def of_batch(rows):
            pixels, labels = (leaf[rows] for leaf in test)
            model = bind(hparams, params, None)
            xs = sequences(pixels, config.order)
            if config.model not in RECURRENT:
                return model(xs).argmax(1), jnp.zeros((len(rows), 0), bool)
            found = model.prefixes(xs).argmax(2)  # [B, T]
            return found[:, -1], found == labels[:, None]

        last, right = windows.every(len(test[1]), _BATCH, of_batch)
        return last, right.astype(jnp.float32).mean(0)

    labels = np.asarray(test[1])
    found, after = (np.asarray(leaf) for leaf in answers(state.best.params, test))
    write_arrays(run.directory / "answers.npz", labels=labels, answers=found, accuracy_after=after)
    counts = confusion.count(labels, found, len(CLASSES))
    figure, axes = panels(1, 3, width=3.6)
    confusion.draw(axes[0, 0], counts, CLASSES)
    axes[0, 1].plot(np.arange(1, len(after) + 1), after)
    axes[0, 1].set(xlabel="steps that were read", ylabel="test accuracy", ylim=(0, 1))
    wrong = np.flatnonzero(found != labels)[:36]
    _draw_wrong(axes[0, 2], test[0][wrong], found[wrong])
    save(figure, run.figures / "answers")
    one_layer = config.model in ONE_LAYER
    return {
        "test_accuracy": float((found == labels).mean()),
        **(_exponents(config, hparams, state.best.params, test[0][:SAMPLE]) if one_layer else {}),
    }


def _draw_wrong(axes: "Axes", pixels: Array, answers: np.ndarray) -> None:
    """The first digits that were answered wrongly, six a row, with the answers."""
    sheet = np.zeros((6 * 28, 6 * 28), np.uint8)
    for i, (image, answer) in enumerate(zip(np.asarray(pixels).reshape(-1, 28, 28), answers, strict=True)):
        row, column = 28 * (i // 6), 28 * (i % 6)
        sheet[row : row + 28, column : column + 28] = image
        axes.text(column + 1, row + 1, str(answer), color="red", fontsize=7, va="top")
    axes.imshow(sheet, cmap="gray_r")
    axes.set(xticks=[], yticks=[], xlabel="the first wrong answers (red)")


SWEEP = f"model=logistic,dense,{','.join(RECURRENT)};seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """The test accuracy of each model, and after each step that it read."""
    figures, (table, steps) = separate("accuracy", "steps")
    by_label = groups(runs)
    intervals(table, by_label, "test_accuracy", (0, 1))
    table.set(xlabel="test accuracy")
    for index, (label, members) in enumerate(by_label.items()):
        after = np.stack([read_arrays(run.directory / "answers.npz")["accuracy_after"] for run in members], axis=1)
        if len(after):
            curve(steps, label, (np.arange(1, len(after) + 1) / len(after)).tolist(), after.tolist(), index)
    steps.set(xlabel="share of the steps that were read", ylabel="test accuracy", ylim=(0, 1))
    text = "Accuracy on the test digits, at the params of the lowest validation loss."
    return [Section("Digits", text, figures if steps.lines else figures[:1])]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
