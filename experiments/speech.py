"""Which digit was spoken? Recurrent networks on log-mel frames of an unseen speaker (Free Spoken Digits).

Six speakers, 500 recordings each: four for training, one for the validation, one, `--held_out`, for the test. With
--held_out=index, the official split: all speakers are in all parts, recordings 0 to 4 of each digit for the test. The
first second of a recording is 100 frames of 32 mel bands; the mean of each band is subtracted, and the whole is scaled
to deviation 1, so that the microphone's level and colour do not matter.

    moments      mean and deviation of each band, Dense(64, relu)       no order
    conv         three Conv1D(64) of 8, 5, 3 frames, mean over time     order within 14 frames
    gru, bigru   GRU(64), the last output; in both directions           all of the order

All but conv have dropout 0.5 before Dense(10), the recurrent ones 0.25 inside the recurrence (Gal & Ghahramani 2016,
arXiv 1512.05287).

    python -m experiments.speech --model=gru --held_out=theo --data_dir=DIR
    python launch.py --experiment=speech --data_dir=DIR        all models and speakers

DIR holds free-spoken-digit-dataset-*.tar.gz, or the folder recordings. Without --data_dir the recordings are generated.

Measured: gru has a test accuracy of 0.692 ± 0.032 over all speakers, moments 0.501 ± 0.040 (docs/results.md).
"""

import sys
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment, Hparams, without_data
from experiments.harness.flags import training_flags
from experiments.harness.report import Section, groups, intervals, panels, save, separate
from experiments.shared import confusion, recordings, tasks
from seqjax import cells
from seqjax.arrays import Array, Tree
from seqjax.data import spectrogram, spoken_digits, windows
from seqjax.models import ConvClassifier, MomentsClassifier, SeriesClassifier
from seqjax.train import Run, State, read_arrays, write_arrays

if TYPE_CHECKING:
    pass

FLAGS = training_flags(
    steps=1000, steps_per_call=250, evaluate_every=250, batch_size=32, learning_rate=3e-3, schedule="cosine"
)
DIGITS = tuple("0123456789")
MODELS = ("moments", "conv", "gru", "bigru")
SETTINGS = spectrogram.Settings(rate=spoken_digits.RATE, floor=1e-4)
SECONDS = 1

flags.DEFINE_enum("model", "gru", MODELS, "Which model.", flag_values=FLAGS)
flags.DEFINE_string("held_out", "theo", "Speaker of the test part; index: the official split.", flag_values=FLAGS)
flags.DEFINE_integer("units", 64, "Units of a layer.", lower_bound=1, flag_values=FLAGS)
for name, rate in (("recurrent_dropout", 0.25), ("dropout", 0.5)):
    flags.DEFINE_float(name, rate, "Rate, in [0, 1).", flag_values=FLAGS)
    flags.register_validator(name, lambda rate: 0 <= rate < 1, "a rate in [0, 1)", flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate", "recurrent_dropout", "dropout")
synthetic_data = without_data("recordings")


class Words(NamedTuple):
    """Recordings as frames [N, T, M], standardized and 0 behind the end; lengths int32 [N] and digits int32 [N]."""

    frames: Array
    lengths: Array
    digits: Array


def words(every: spoken_digits.Recordings, held_out: str) -> dict[str, Words]:
    """The parts "train", "validation" and "test"."""
    split = spoken_digits.by_index(every) if held_out == "index" else spoken_digits.by_speaker(every, held_out)
    return {name: _words(part) for name, part in split.items()}


def _words(part: spoken_digits.Recordings) -> Words:
    longest = SECONDS * SETTINGS.rate
    lengths = np.array([min(len(samples), longest) for samples in part.samples])
    sound = np.zeros((len(lengths), longest), np.float32)
    for row, samples, length in zip(sound, part.samples, lengths, strict=True):
        row[:length] = samples[:length] / max(samples[:length].std() * 10, 1)
    frames, counts = _frames(jnp.asarray(sound)), np.maximum(lengths // SETTINGS.hop, 1).astype(np.int32)
    return Words(jnp.asarray(_standardized(np.asarray(frames), counts)), jnp.asarray(counts), jnp.asarray(part.digits))


_frames = jax.jit(lambda sound: spectrogram.log_mel(SETTINGS, sound))


def _standardized(frames: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Frames [N, T, M]: each band to mean 0 over the real ones, all bands together to deviation 1; 0 behind the end."""
    real = (np.arange(frames.shape[1]) < lengths[:, None])[..., None]
    mean, std = windows.moments(frames, 1, where=real)
    deviation = np.sqrt(np.square(std).mean(1))
    scale = np.where(deviation > 0, deviation, 1)[:, None, None]
    return np.where(real, (frames - mean[:, None]) / scale, 0).astype(np.float32)


def network(config: SimpleNamespace, hparams: Hparams, rngs: nnx.Rngs) -> nnx.Module:
    """The model of the flags: frames [N, T, M] and lengths [N] to logits [N, 10]."""
    sizes, dropout = (SETTINGS.bands, 10), hparams["dropout"]
    if config.model == "moments":
        return MomentsClassifier(*sizes, hidden=config.units, dropout=dropout, rngs=rngs)
    if config.model == "conv":
        return ConvClassifier(*sizes, filters=3 * (config.units,), rngs=rngs)
    cell = cells.gru(config.units)
    return SeriesClassifier(
        cell,
        *sizes,
        backward=cell if config.model == "bigru" else None,
        recurrent_dropout=hparams["recurrent_dropout"],
        dropout=dropout,
        rngs=rngs,
    )


def build(config: SimpleNamespace) -> Experiment:
    """Cross-entropy of the digits; the best params have the lowest validation loss."""
    every = recordings.load(config.data_dir)
    parts = words(every, config.held_out)
    init, bind = supervised.functional(lambda hparams, rngs: network(config, hparams, rngs))
    count = len(parts["train"].digits)

    def gradient(hparams, data: Tree, params, step, k_data, k_noise):
        part: Words = data["train"]
        rows = windows.minibatch(k_data, step, config.batch_size, count)

        def loss(params):
            logits = bind(hparams, params, k_noise)(part.frames[rows], part.lengths[rows])
            return tasks.cross_entropy(logits, part.digits[rows]).mean()

        return jax.value_and_grad(loss)(params)

    def evaluate(hparams, data: Tree, params):
        part: Words = data["validation"]
        logits = bind(hparams, params, None)(part.frames, part.lengths)
        losses = tasks.cross_entropy(logits, part.digits)
        return {"loss": losses.mean(), "accuracy": (logits.argmax(-1) == part.digits).astype(jnp.float32).mean()}

    data, test = {name: parts[name] for name in ("train", "validation")}, parts["test"]
    batches = count // config.batch_size
    program = supervised.program(config, init, gradient, evaluate, data, batches=batches, held_out=test)
    longer = sum(len(samples) > SECONDS * SETTINGS.rate for samples in every.samples)
    left_out = f"what {longer:,} of {len(every.samples):,} recordings say after {SECONDS} s" if longer else None
    return Experiment(program, partial(_finish, config, bind, test), left_out)


def _finish(
    config: SimpleNamespace, bind: supervised.Bind, part: Words, hparams: Hparams, state: State, run: Run
) -> dict[str, Any]:
    """Test accuracy, of all recordings and of each spoken digit; logits in answers.npz, and a figure of confusions."""
    run_network = jax.jit(lambda params, part: bind(hparams, params, None)(part.frames, part.lengths))
    logits, digits = np.asarray(run_network(state.best.params, part)), np.asarray(part.digits)
    write_arrays(run.directory / "answers.npz", logits=logits, digits=digits)
    table = confusion.count(digits, logits.argmax(1), 10)
    figure, axes = panels(width=4.2, height=3.6)
    confusion.draw(axes[0, 0], table, DIGITS, percent=True)
    axes[0, 0].set_title(f"{config.model}, {config.held_out} held out, accuracy {np.trace(table) / table.sum():.3f}")
    save(figure, run.figures / "confusion")
    return {
        "test_accuracy": float(np.trace(table) / table.sum()),
        **{f"accuracy_{i}": float(row[i] / row.sum()) for i, row in enumerate(table) if row.any()},
    }


SWEEP = f"model={','.join(MODELS)};held_out={','.join(recordings.SPEAKERS)};seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """Accuracy of each model, by held-out speaker, and the confusions of each model over all runs."""
    by_model = {label.removeprefix("model="): members for label, members in groups(runs, ["model"]).items()}
    by_speaker = groups(runs, ["held_out"])
    figures, (table, speakers) = separate("accuracy", "by-speaker")
    intervals(table, by_model, "test_accuracy", (0, 1))
    table.set(xlabel="test accuracy")
    rows: list[list[Any]] = [["held out", *by_model]]
    for label, members in by_speaker.items():
        name = label.removeprefix("held_out=")
        found = {
            model: [run.result()["test_accuracy"] for run in members if run.flags["model"] == model]
            for model in by_model
        }
        rows.append([name, *(float(np.mean(values)) if values else None for values in found.values())])
    width = 0.8 / len(by_model)
    for i, model in enumerate(by_model):
        heights = [np.nan if row[1 + i] is None else row[1 + i] for row in rows[1:]]
        speakers.bar(np.arange(len(heights)) + (i - (len(by_model) - 1) / 2) * width, heights, width, label=model)
    speakers.set(xticks=range(len(rows) - 1), ylabel="test accuracy", ylim=(0, 1))
    speakers.set_xticklabels([row[0] for row in rows[1:]], rotation=30)
    matrices, matrix_axes = separate(*(f"confusion-{model}" for model in by_model), width=3.6, height=3.4)
    for panel, (model, members) in zip(matrix_axes, by_model.items(), strict=True):
        answers = [read_arrays(run.directory / "answers.npz") for run in members]
        counts = [confusion.count(a["digits"], a["logits"].argmax(1), 10) for a in answers]
        confusion.draw(panel, np.sum(counts, 0), DIGITS, percent=True)
        panel.set_title(model)
    text = (
        "Accuracy on the recordings of the speaker who is held out, at the params of the lowest validation loss. "
        "The intervals are over all runs of a model, speakers and seeds; the table has means over the seeds."
    )
    return [Section("Words", text, [*figures, *matrices], rows)]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
