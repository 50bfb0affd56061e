"""Which way is it moving, in each frame? A single picture does not show it; a network with a memory can tell.

A handwritten digit flies through a box and bounces off its walls (`shared/videos.py`). At every frame the network
predicts which of the eight directions of the compass is nearest to that of the motion. Directions are drawn
independently of places, so that a frame alone is worth nothing: chance is 12.5 %. --noise is the standard deviation of
Gaussian noise on each pixel, black being 0 and white 1.

    frame            a convolution on 4 x 4 patches, Dense(64), Dense(64), on a frame alone
    pair             the same, on the frame and the one before
    rnn, gru, lstm   the convolution and Dense(64) on a frame alone, 64 units, reading frame by frame

    python -m experiments.direction --model=gru --data_dir=DIR
    python launch.py --experiment=direction --data_dir=DIR          all models, three seeds

DIR holds the four files of MNIST. Without --data_dir the digits are generated.

Measured: gru has an accuracy of 84.7 ± 4.7 % in the last of 20 frames, pair 61.8 ± 4.7 % (docs/results.md).
"""

import sys
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment, Hparams, without_data
from experiments.harness.flags import training_flags
from experiments.harness.report import COLORS, Section, curve, groups, intervals, save, separate
from experiments.shared import videos
from seqjax import cells
from seqjax.arrays import Array, Key
from seqjax.data import motion
from seqjax.models.video import FrameClassifier
from seqjax.train import Run, State, read_arrays, write_arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = training_flags(
    steps=1200, steps_per_call=100, evaluate_every=200, checkpoint_every=600, batch_size=16, learning_rate=2e-3,
    schedule="cosine",
)  # fmt: skip
MODELS = ("frame", "pair", "rnn", "gru", "lstm")
CELLS = {"rnn": cells.rnn, "gru": cells.gru, "lstm": cells.lstm}

flags.DEFINE_enum("model", "gru", MODELS, "Which model.", flag_values=FLAGS)
flags.DEFINE_integer("units", 64, "Units of the network.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float("noise", 0.2, "Standard deviation of the noise on a pixel.", 0, flag_values=FLAGS)
videos.define(FLAGS, digits=1)
flags.register_validator("digits", lambda count: count == 1, "the direction is that of one digit", flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate", "noise")
synthetic_data = without_data("digits")


def draw(config: SimpleNamespace, hparams: Hparams, digits: Array, key: Key, count: int):
    """`count` videos: noisy frames [B, T, H, W], directions int32 [B, T], velocities [B, T, 2]."""
    k_video, k_noise = jax.random.split(key)
    frames, _, path = videos.draw(config, digits, k_video, count)
    velocities = jnp.swapaxes(path.velocities[:, :, 0], 0, 1)
    frames = frames + hparams["noise"] * jax.random.normal(k_noise, frames.shape)
    return frames, motion.directions(velocities), velocities


def model(config: SimpleNamespace) -> supervised.Model:
    """Logits [B, T, 8] of frames [B, T, H, W]."""

    def make(hparams, rngs):
        memory = CELLS[config.model](config.units) if config.model in CELLS else 1
        frames = 2 if config.model == "pair" else 1
        return FrameClassifier(memory, config.size, 8, frames=frames, features=config.units, rngs=rngs)

    init, network = supervised.functional(make)
    return supervised.Model(init, lambda hparams, params, frames, key: network(hparams, params, key)(frames))


def build(config: SimpleNamespace) -> Experiment:
    """Cross-entropy of the direction at every frame; the best params have the lowest on validation videos."""
    classifier, digits = model(config), videos.images(config)
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels

    def gradient(hparams, data, params, step, k_data, k_noise):
        drawn = draw(config, hparams, data["train"], jax.random.fold_in(k_data, step), config.batch_size)
        frames, labels, _ = drawn

        def loss(params):
            return cross_entropy(classifier.outputs(hparams, params, frames, k_noise), labels).mean()

        return jax.value_and_grad(loss)(params)

    def evaluate(hparams, data, params):
        key = videos.held_out("validation")
        frames, labels, _ = draw(config, hparams, data["validation"], key, videos.HELD_OUT)
        logits = classifier.outputs(hparams, params, frames, None)
        right = jnp.argmax(logits, -1) == labels
        return {"loss": cross_entropy(logits, labels).mean(), "accuracy": right.astype(jnp.float32).mean()}

    program = supervised.program(config, classifier.init, gradient, evaluate, digits)
    return Experiment(program, partial(_finish, config, classifier, digits["test"]))


def _finish(
    config: SimpleNamespace, classifier: supervised.Model, digits: Array, hparams: Hparams, state: State, run: Run
) -> dict[str, Any]:
    """Test accuracy, all and by frame; answers.npz, and a figure."""

    @jax.jit
    def test(params, digits):
        frames, labels, velocities = draw(config, hparams, digits, videos.held_out("test"), videos.HELD_OUT)
        logits = classifier.outputs(hparams, params, frames, None)
        return frames[:3], labels, velocities, jnp.argmax(logits, -1)

    frames, labels, velocities, predicted = map(np.asarray, test(state.best.params, digits))
    right, flight = predicted == labels, _since_wall(velocities)
    write_arrays(run.directory / "answers.npz", predicted=predicted, labels=labels, flight=flight)
    save(_figure(frames, labels, predicted, flight), run.figures / "directions")
    counts = np.bincount(labels.ravel(), minlength=8)
    return {
        "test_accuracy": float(right.mean()),
        "test_accuracy_last": float(right[:, -1].mean()),
        "test_accuracy_wall": float(right[flight == 0].mean()),
        "majority": float(counts.max() / counts.sum()),
    }


def _since_wall(velocities: np.ndarray) -> np.ndarray:
    """Frames since the direction last changed, [B, T]; -1 before the first change."""
    changed = (np.diff(np.sign(velocities), axis=1) != 0).any(-1)
    times = np.arange(velocities.shape[1])
    last = np.maximum.accumulate(np.where(np.pad(changed, ((0, 0), (1, 0))), times, -1), axis=1)
    return np.where(last < 0, -1, times - last)


def _shares(right: np.ndarray, flight: np.ndarray) -> tuple[list[int], list[float]]:
    """Frames since a wall, up to 7, and the accuracy then."""
    frames = [n for n in range(8) if (flight == n).any()]
    return frames, [float(right[flight == n].mean()) for n in frames]


def _figure(frames: np.ndarray, labels: np.ndarray, predicted: np.ndarray, flight: np.ndarray) -> "Figure":
    """A video with its predictions; accuracy by the frames seen and since a wall; a confusion matrix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    strips, below = np.asarray(figure.subfigures(2, 1, height_ratios=(1.25, 1)))
    shown = np.arange(0, frames.shape[1], 2)
    for row, panels_ in enumerate(strips.subplots(len(frames), len(shown))):
        for t, panel in zip(shown, panels_, strict=True):
            panel.imshow(frames[row, t], cmap="gray", vmin=0, vmax=1)
            _arrow(panel, labels[row, t], "white", 4.0)
            _arrow(panel, predicted[row, t], COLORS[2] if predicted[row, t] == labels[row, t] else COLORS[1], 2.0)
            panel.axis("off")
            if row == 0:
                panel.set_title(f"frame {t + 1}", fontsize=8)
    strips.suptitle("white: the direction of motion; green: a right prediction; orange: a wrong one", fontsize=9)
    seen, wall, confusion = below.subplots(1, 3)
    right = predicted == labels
    seen.plot(np.arange(1, right.shape[1] + 1), right.mean(0))
    wall.plot(*_shares(right, flight), "o-")
    for panel, label in ((seen, "frames seen"), (wall, "frames since it turned at a wall, up to 7")):
        panel.axhline(1 / 8, color="0.6", linestyle="--", linewidth=1)
        panel.set(xlabel=label, ylabel="accuracy", ylim=(0, 1))
    counts = np.zeros((8, 8))
    np.add.at(counts, (labels.ravel(), predicted.ravel()), 1)
    confusion.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    confusion.set_xticks(range(8), motion.COMPASS, rotation=60, ha="right", fontsize=7)
    confusion.set_yticks(range(8), motion.COMPASS, fontsize=7)
    confusion.set(xlabel="predicted", ylabel="true")
    return figure


def _arrow(panel: Any, direction: int, color: str, width: float) -> None:
    low, high = panel.get_ylim()
    middle, reach = (low + high) / 2, abs(low - high) / 3
    angle = direction * np.pi / 4
    tip = (middle + reach * np.cos(angle), middle - reach * np.sin(angle))
    style = {"arrowstyle": "-|>", "color": color, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    panel.annotate("", tip, (middle, middle), arrowprops=style)


SWEEP = f"model={','.join(MODELS)};seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """The test accuracy of each model, by the frames that it has seen, and by those since a wall."""
    figures, axes = separate("accuracy", "frames", "since-wall")
    by_label = groups(runs)
    intervals(axes[0], by_label, "test_accuracy", (0, 1))
    axes[0].set(xlabel="test accuracy (chance: 0.125)")
    for index, (label, members) in enumerate(by_label.items()):
        found = [read_arrays(run.directory / "answers.npz") for run in members]
        right = [one["predicted"] == one["labels"] for one in found]
        by_time = np.stack([values.mean(0) for values in right], axis=1)
        curve(axes[1], label, list(range(1, len(by_time) + 1)), by_time.tolist(), index)
        since = [_shares(values, one["flight"]) for values, one in zip(right, found, strict=True)]
        curve(axes[2], label, since[0][0], np.array([shares for _, shares in since]).T.tolist(), index)
    axes[1].set(xlabel="frames seen", ylabel="test accuracy", ylim=(0, 1))
    axes[2].set(xlabel="frames since it turned at a wall, up to 7", ylabel="test accuracy", ylim=(0, 1))
    text = "Share of the frames of the test videos whose direction, one of eight, is predicted correctly."
    return [Section("Directions", text, figures)]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
