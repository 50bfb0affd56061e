"""What does the next frame look like, and the ten after it? Digits in motion, by a convolutional LSTM.

A network sees ten frames of Moving MNIST (`shared/videos.py`) and predicts the next ten autoregressively, in training
too. Loss: cross-entropy per pixel, over all next frames (Srivastava et al. 2015, arXiv 1502.04681; Shi et al. 2015,
arXiv 1506.04214). Frames are cut into patches of --patch x --patch pixels.

    last           the last frame that was seen, ten times
    conv           three convolutions (32 channels) on the last four frames
    conv_lstm      a convolutional LSTM (32 channels)
    conv_lstm2     two, one above the other

    python -m experiments.next_frame --model=conv_lstm --data_dir=DIR
    python launch.py --experiment=next_frame --data_dir=DIR          all models

DIR holds the four files of MNIST. Without --data_dir the digits are generated. The error of "straight" is that of a
forecast that knows the digits, where they are and how they move, but no walls.

Measured: squared error of an unseen frame 8.11 ± 0.30 for conv_lstm2, 9.70 ± 0.09 for conv (docs/results.md).
"""

import io
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
from experiments.harness.report import COLORS, Section, curve, groups, intervals, panels, save, separate
from experiments.shared import videos
from seqjax import cells
from seqjax.arrays import Array
from seqjax.data import motion
from seqjax.models.video import ConvPredictor, LastFrame, RecurrentPredictor, predict
from seqjax.train import Run, State, read_arrays, write_arrays, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = training_flags(
    steps=1000, steps_per_call=50, evaluate_every=100, checkpoint_every=500, batch_size=16, learning_rate=3e-3,
    schedule="cosine", clip_norm=1.0,
)  # fmt: skip
MODELS = ("last", "conv", "conv_lstm", "conv_lstm2")

flags.DEFINE_enum("model", "conv_lstm", MODELS, "Which model.", flag_values=FLAGS)
flags.DEFINE_integer("units", 32, "Channels of a layer.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("patch", 4, "Pixels of a side of a patch.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("given", 10, "Frames that the model sees.", lower_bound=2, flag_values=FLAGS)
videos.define(FLAGS, digits=1)
flags.register_multi_flags_validator(
    ("given", "length"), lambda f: f["given"] < f["length"], "--given must be less than --length", flag_values=FLAGS
)
flags.register_multi_flags_validator(
    ("size", "patch"), lambda f: f["size"] % f["patch"] == 0, "--patch must divide --size", flag_values=FLAGS
)

TRACED_FLAGS = ("seed", "learning_rate")
synthetic_data = without_data("digits")


def model(config: SimpleNamespace) -> supervised.Model:
    """The logits of the next frames [B, T, H, W] from the frames [B, T, H, W] of which the first ones are seen."""

    def make(hparams, rngs):
        if config.model == "last":
            return LastFrame()
        if config.model == "conv":
            return ConvPredictor(4, config.patch, hidden=config.units, rngs=rngs)
        layer = cells.conv_lstm(config.units, (config.size // config.patch,) * 2)
        cell = layer if config.model == "conv_lstm" else cells.stack(layer, layer)
        return RecurrentPredictor(cell, config.patch, rngs=rngs)

    init, network = supervised.functional(make)

    def outputs(hparams, params, frames, key):
        return predict(network(hparams, params, key), frames, config.given)

    return supervised.Model(init, outputs)


def _losses(logits: Array, frames: Array) -> Array:
    """Cross-entropy of a pixel of frames 1 to T - 1, [B, T - 1]."""
    return optax.losses.sigmoid_binary_cross_entropy(logits[:, :-1], frames[:, 1:]).mean((2, 3))


def build(config: SimpleNamespace) -> Experiment:
    """Cross-entropy of all next frames; the best params have the lowest on the unseen validation frames."""
    predictor, digits = model(config), videos.images(config)

    def gradient(hparams, data, params, step, k_data, k_noise):
        frames = videos.draw(config, data["train"], jax.random.fold_in(k_data, step), config.batch_size).frames

        def loss(params):
            return _losses(predictor.outputs(hparams, params, frames, k_noise), frames).mean()

        return jax.value_and_grad(loss)(params)

    def evaluate(hparams, data, params):
        frames = videos.draw(config, data["validation"], videos.held_out("validation"), videos.HELD_OUT // 4).frames
        losses = _losses(predictor.outputs(hparams, params, frames, None), frames)
        return {"loss": losses[:, config.given - 1 :].mean(), "loss_seen": losses[:, : config.given - 1].mean()}

    program = supervised.program(config, predictor.init, gradient, evaluate, digits)
    return Experiment(program, partial(_finish, config, predictor, digits["test"]))


def straight(config: SimpleNamespace, drawn: videos.Videos) -> Array:
    """The frames [B, T, H, W] had the digits flown straight on from the last seen one, out of the picture even."""
    last = config.given - 1
    ahead = jnp.maximum(jnp.arange(config.length, dtype=jnp.float32) - last, 0)

    def frame(positions, time):
        positions = jnp.where(time > 0, drawn.path.positions[last] + time * drawn.path.velocities[last], positions)
        return motion.place(drawn.images, positions, config.size).max(1)

    return jnp.swapaxes(jax.vmap(frame)(drawn.path.positions, ahead), 0, 1)


def _finish(
    config: SimpleNamespace, predictor: supervised.Model, digits: Array, hparams: Hparams, state: State, run: Run
) -> dict[str, Any]:
    """Test errors of the unseen frames; errors.npz, three videos as strips, and all of six as an animation."""

    @jax.jit
    def test(params, digits):
        def part(key):
            drawn = videos.draw(config, digits, key, 64)
            logits = predictor.outputs(hparams, params, drawn.frames, None)
            predicted = jax.nn.sigmoid(logits[:, :-1])
            errors = [
                jnp.square(x - drawn.frames[:, 1:]).sum((2, 3)) for x in (predicted, straight(config, drawn)[:, 1:])
            ]
            return _losses(logits, drawn.frames), *errors, drawn.frames[:6], predicted[:6]

        return jax.lax.map(part, jax.random.split(videos.held_out("test"), videos.HELD_OUT // 64))

    losses, errors, oracle, frames, predicted = map(np.asarray, test(state.best.params, digits))
    losses, errors, oracle = (x.reshape(-1, x.shape[-1]).mean(0) for x in (losses, errors, oracle))
    write_arrays(
        run.directory / "errors.npz",
        losses=losses,
        errors=errors,
        straight=oracle,
        frames=frames[0],
        predicted=predicted[0],
    )
    save(_strips(frames[0], predicted[0], config.given), run.figures / "strips")
    write_atomic(run.figures / "videos.gif", _animation(frames[0], predicted[0], config.given))
    unseen = slice(config.given - 1, None)
    return {
        "test_loss": float(losses[unseen].mean()),
        "test_error": float(errors[unseen].mean()),
        "test_error_next": float(errors[: config.given - 1].mean()),
        "test_error_first": float(errors[config.given - 1]),
        "test_error_last": float(errors[-1]),
        "straight_error": float(oracle[unseen].mean()),
    }


def _strips(frames: np.ndarray, predicted: np.ndarray, given: int) -> "Figure":
    """Three videos: the true frames above the predicted ones; the forecasts of seen frames are framed in grey."""
    shown = range(max(1, given - 4), frames.shape[1])
    figure, axes = panels(6, len(shown), width=0.75, height=0.78)
    for row, panels_ in enumerate(axes):
        for t, panel in zip(shown, panels_, strict=True):
            panel.imshow((predicted[row // 2, t - 1], frames[row // 2, t])[row % 2 == 0], cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            panel.grid(False)
            for spine in panel.spines.values():
                spine.set(visible=True, color="0.6" if t < given else COLORS[row % 2], linewidth=1.5)
            if row == 0:
                panel.set_title(f"{t + 1}", fontsize=8)
        axes[row, 0].set_ylabel(("true", "predicted")[row % 2], fontsize=8)
    return figure


def _animation(frames: np.ndarray, predicted: np.ndarray, given: int) -> bytes:
    """Videos side by side as a GIF: the true frames above the predicted ones; a white line where frames are unseen."""
    from PIL import Image

    pictures = []
    for t in range(1, frames.shape[1]):
        rows = [np.pad(np.concatenate(list(row), axis=1), 2) for row in (frames[:, t], predicted[:, t - 1])]
        line = np.full((2, rows[0].shape[1]), float(t >= given))
        pixels = np.round(255 * np.concatenate([rows[0], line, rows[1]])).astype(np.uint8)
        pictures.append(Image.fromarray(pixels.repeat(3, 0).repeat(3, 1)))
    with io.BytesIO() as file:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=150, loop=0)
        return file.getvalue()


SWEEP = f"model={','.join(MODELS)};seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """The error of each model against how far ahead a frame is, beside that of straight flight."""
    figures, (table, ahead) = separate("error", "ahead")
    by_label = groups(runs)
    intervals(table, by_label, "test_error", (0, np.inf))
    given = runs[0].flags["given"]
    for index, (label, members) in enumerate(by_label.items()):
        found = np.stack([read_arrays(run.directory / "errors.npz")["errors"] for run in members], axis=1)
        curve(ahead, label, list(range(2, len(found) + 2)), found.tolist(), index)
    oracle = read_arrays(runs[0].directory / "errors.npz")["straight"]
    frames = np.arange(given + 1, len(oracle) + 2)
    ahead.plot(frames, oracle[given - 1 :], color="0.5", linestyle=":", label="straight, through the walls")
    ahead.axvline(given + 0.5, color="0.6", linestyle="--", linewidth=1)
    table.set(xlabel="squared error of an unseen frame")
    ahead.set(
        xlabel="frame (those after the dashed line are unseen)", ylabel="squared error of a frame", ylim=(0, None)
    )
    text = "Squared errors are summed over the pixels of a frame, black being 0 and white 1."
    return [Section("Next frames", text, figures)]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
