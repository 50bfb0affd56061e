"""When was a digit spoken? A recurrent network that listens to a stream, frame by frame (Free Spoken Digits).

Streams are made of recordings of other digits and of the target --digit, with pauses of 0.2 to 1 s between them, and
noise 10 to 30 dB below the speech. Four speakers are for training, one for validation, one, `--held_out`, for the test.
The network (--model, Dense(11)) is unidirectional and has one output per frame of 10 ms (many to many): the digit for
200 ms after it has ended, "nothing" otherwise. Training streams are drawn inside the compiled program, with words at
0.85 to 1.15 of their speed.

A detector fires when log p / (1 - p) of its digit reaches a threshold, see `shared/detection.py`. The threshold is
the lowest one with at most --alarms false alarms per hour of validation streams; test streams then give the share of
words detected, the false alarms, and the delay after the end of the word.

    python -m experiments.spotting --model=gru --data_dir=DIR
    python launch.py --experiment=spotting --data_dir=DIR        all models
    python -m experiments.demos.listen --run=DIR --file=FILE.wav  prints what a trained network hears, as it hears it

DIR is that of `experiments.speech`. Without --data_dir the recordings are generated.

Measured: gru detects 99.5 ± 0.8 % of the sevens of an unseen speaker at 20 false alarms per hour (docs/results.md).
"""

import sys
from functools import partial
from time import perf_counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy.io import wavfile

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment, Hparams, without_data
from experiments.harness.flags import training_flags
from experiments.harness.report import COLORS, Section, groups, intervals, panels, save, separate
from experiments.harness.task import Batch, Task
from experiments.shared import detection, recordings, tasks
from seqjax import cells
from seqjax.arrays import Array, Key, Params
from seqjax.core import Cell
from seqjax.data import spectrogram, spoken_digits, streams, windows
from seqjax.data.damaged import named
from seqjax.models import spotter
from seqjax.regularizers import recurrent_dropout
from seqjax.train import Run, State, read_arrays, write_arrays
from seqjax.unrolling import unroll
from seqjax.wrappers import with_head

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = training_flags(
    steps=800, steps_per_call=100, evaluate_every=200, batch_size=16, learning_rate=1e-2, schedule="cosine"
)
MODELS = ("rnn", "lstm", "gru")
SETTINGS = spectrogram.Settings(rate=spoken_digits.RATE)
FRAMES_IN_HOUR = 3600 * SETTINGS.rate / SETTINGS.hop
MILLISECONDS = 1000 * SETTINGS.hop / SETTINGS.rate
SPEEDS = (0.85, 1.15)
# The last one is never reached: with it there are no false alarms, whatever the network is worth.
THRESHOLDS = np.append(np.linspace(-8, 16, 121), np.inf).astype(np.float32)
MINUTE = 60
# Seeds of streams that are the same for all runs.
_VALIDATION, _TEST = 2, 3

flags.DEFINE_enum("model", "gru", MODELS, "Which recurrent cell.", flag_values=FLAGS)
flags.DEFINE_integer("units", 64, "Its units.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("digit", 7, "The digit to detect.", lower_bound=0, upper_bound=9, flag_values=FLAGS)
flags.DEFINE_string("held_out", "theo", "Speaker of the test streams.", flag_values=FLAGS)
flags.DEFINE_integer("seconds", 4, "Length of a training stream.", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_integer("minutes", 60, "Of validation and of test streams.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float("alarms", 20.0, "Allowed false alarms per hour.", lower_bound=0.0, flag_values=FLAGS)
flags.DEFINE_float("recurrent_dropout", 0.1, "Rate, in [0, 1).", flag_values=FLAGS)
flags.register_validator("recurrent_dropout", lambda rate: 0 <= rate < 1, "a rate in [0, 1)", flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate", "recurrent_dropout")
synthetic_data = without_data("recordings")


class Data(NamedTuple):
    """The words of each part, and mean and deviation of the training frames, float32 [M]."""

    banks: dict[str, streams.Bank]
    mean: Array
    deviation: Array


class Heard(NamedTuple):
    """Streams of a minute: frames [T, B, M], logits [T, B, K], and the words, each leaf [B, ...], without sound."""

    frames: np.ndarray
    logits: np.ndarray
    spoken: streams.Stream


def _data(config: SimpleNamespace) -> Data:
    parts = spoken_digits.by_speaker(recordings.load(config.data_dir), config.held_out)
    banks = {name: streams.bank(part) for name, part in parts.items()}

    @jax.jit
    def frames(bank):
        return spectrogram.log_mel(SETTINGS, _draw(jax.random.key(0), bank, _training(config), 32).sound)

    scale = windows.Standardizer.fit(np.asarray(frames(banks["train"])).reshape(-1, SETTINGS.bands))
    return Data(banks, *(jnp.asarray(row, jnp.float32) for row in scale))


def _training(config: SimpleNamespace) -> streams.Mix:
    return streams.Mix(config.seconds, speeds=SPEEDS)


def _draw(key: Key, bank: streams.Bank, mix: streams.Mix, count: int) -> streams.Stream:
    return jax.vmap(lambda key: streams.draw(key, bank, mix))(jax.random.split(key, count))


def _task(config: SimpleNamespace, data: Data) -> Task:
    """Streams as sequences of standardized frames, with the class of each frame."""

    def batch(data: Data, part: str, key, mix):
        drawn = _draw(key, data.banks[part], mix, config.batch_size)
        frames = jnp.moveaxis(spectrogram.log_mel(SETTINGS, drawn.sound), 1, 0)
        wanted = jax.vmap(lambda one: streams.targets(one, len(frames), SETTINGS.hop), out_axes=1)(drawn)
        return Batch(spotter.standardized(frames, data.mean, data.deviation), *wanted)

    def scores(ys, classes):
        right = (ys.argmax(-1) == classes).astype(jnp.float32)
        return {"loss": tasks.cross_entropy(ys, classes), "accuracy": right}

    def train(data, key, step):
        return batch(data, "train", jax.random.fold_in(key, step), _training(config))

    def validation(data, index):
        return batch(data, "validation", jax.random.fold_in(jax.random.key(1), index), streams.Mix(config.seconds))

    return Task(
        data=data,
        train=train,
        held_out={"validation": (8, validation)},
        continues=False,
        tokens=0,
        features=SETTINGS.bands,
        outputs=streams.NOTHING + 1,
        blank=0.0,
        losses=tasks.cross_entropy,
        scores=scores,
    )


def _cell(model: str, units: int) -> Cell:
    return with_head(getattr(cells, model)(units), streams.NOTHING + 1)


def _model(config: SimpleNamespace) -> supervised.Model:
    """The cell with its head; in training with recurrent dropout."""
    cell = _cell(config.model, config.units)

    def outputs(hparams, params, xs, key):
        if key is None:
            return unroll(cell, params, None, xs)[1]
        noisy, sample = recurrent_dropout(cell, hparams["recurrent_dropout"])
        carry = cell.initial_carry(params, xs.shape[1:2])
        return unroll(noisy, params, carry, (xs, sample(key, carry, xs)))[1]

    return supervised.Model(lambda hparams, key: cell.init(key, SETTINGS.bands), outputs)


def build(config: SimpleNamespace) -> Experiment:
    """Cross-entropy of the class of each frame; the best params have the lowest validation loss."""
    data = _data(config)
    program = supervised.task_program(config, _task(config, data), _model(config))
    return Experiment(program, partial(_finish, config, data))


def _spotter(model: str, units: int, params: Params, mean: Any, deviation: Any) -> spotter.Spotter:
    return spotter.Spotter(_cell(model, units), params, mean, deviation, SETTINGS)


def read(run: Run) -> tuple[spotter.Spotter, int, float]:
    """The network of a finished run, its digit and its threshold.

    Raises:
      FileNotFoundError: the run is not finished.
      ValueError: a file of the run is damaged.
    """
    model, units, digit = (run.flags[name] for name in ("model", "units", "digit"))
    threshold = float(run.result()["threshold"])
    file = run.directory / "scale.npz"
    with named(file, "holds no mean and deviation"):
        scale = read_arrays(file)
        mean, deviation = (jnp.asarray(scale[name]) for name in ("mean", "deviation"))
    like = jax.eval_shape(lambda key: _cell(model, units).init(key, SETTINGS.bands), jax.random.key(0))
    return _spotter(model, units, run.load_params(like), mean, deviation), digit, threshold


def _keys(seed: int, minutes: int) -> Key:
    return jax.random.split(jax.random.key(seed), minutes)


def hear(made: spotter.Spotter, bank: streams.Bank, seed: int, minutes: int) -> Heard:
    """Streams of a minute each, with the network's logits."""

    @jax.jit
    def run(params, bank, keys):
        def one(key):  # one after the other: the windows of all of them would take gigabytes
            drawn = streams.draw(key, bank, streams.Mix(MINUTE))
            return spectrogram.log_mel(SETTINGS, drawn.sound), drawn._replace(sound=jnp.zeros(()))

        frames, spoken = jax.lax.map(one, keys)
        frames = jnp.moveaxis(frames, 1, 0)
        return frames, spotter.logits(made._replace(params=params), frames), spoken

    return Heard(*jax.tree.map(np.asarray, run(made.params, bank, _keys(seed, minutes))))


def _of_digit(heard: Heard, digit: int) -> tuple[np.ndarray, detection.Words]:
    """The scores of a digit [T, B], and where it was spoken, in frames."""
    stream, place = np.nonzero(heard.spoken.digits == digit)
    times = (np.asarray(times)[stream, place] // SETTINGS.hop for times in (heard.spoken.starts, heard.spoken.ends))
    return np.asarray(spotter.log_odds(jnp.asarray(heard.logits), digit)), detection.Words(stream, *times)


def _curves(heard: Heard, wanted: int) -> dict[int, detection.Curve]:
    """What each threshold gives, for the target digit and for all others that were spoken."""
    digits = sorted({wanted, *heard.spoken.digits.ravel().tolist()} - {streams.NOTHING})
    return {digit: detection.measure(*_of_digit(heard, digit), THRESHOLDS, FRAMES_IN_HOUR) for digit in digits}


def _microseconds(made: spotter.Spotter, sound: np.ndarray) -> float:
    """Time from a chunk of one hop to its scores, the median over the chunks of a sound."""
    listen = jax.jit(lambda carry, chunk: spotter.listen(made, carry, chunk))
    carry, times = spotter.start(made), []
    for chunk in sound[: len(sound) // SETTINGS.hop * SETTINGS.hop].reshape(-1, SETTINGS.hop):
        begin = perf_counter()
        carry, found = listen(carry, chunk)
        found.block_until_ready()
        times.append(perf_counter() - begin)
    return 1e6 * float(np.median(times))


def _finish(config: SimpleNamespace, data: Data, hparams: Hparams, state: State, run: Run) -> dict[str, Any]:
    """Detection on test streams at the threshold of the validation streams; a stream as wav, and figures.

    "any digit" is the mean over the "digits" that are spoken in both: in a few minutes some may not be.
    """
    del hparams
    made = _spotter(config.model, config.units, state.best.params, data.mean, data.deviation)
    validation = hear(made, data.banks["validation"], _VALIDATION, config.minutes)
    test = hear(made, data.banks["test"], _TEST, config.minutes)
    chosen_on, curves = _curves(validation, config.digit), _curves(test, config.digit)
    places = {digit: detection.choose(chosen_on[digit], config.alarms) for digit in chosen_on if digit in curves}
    place, curve = places[config.digit], curves[config.digit]
    threshold = float(THRESHOLDS[place])
    write_arrays(run.directory / "scale.npz", mean=made.mean, deviation=made.deviation)
    first = streams.draw(_keys(_TEST, config.minutes)[0], data.banks["test"], streams.Mix(MINUTE))
    sound = np.asarray(first.sound)
    wavfile.write(run.directory / "stream.wav", SETTINGS.rate, (sound * 32767).clip(-32768, 32767).astype(np.int16))
    save(_tradeoff(config.digit, curves, places), run.figures / "tradeoff")
    save(_picture(test, config.digit, threshold), run.figures / "stream")
    write_arrays(run.directory / "curve.npz", **curve._asdict(), place=place)
    found = curve.delays[place][np.isfinite(curve.delays[place])]
    delay = {f"delay_{q}_ms": float(np.percentile(found, q) * MILLISECONDS) if len(found) else None for q in (50, 90)}
    return {
        "detected": float(curve.detected[place]),
        "false_alarms_an_hour": float(curve.alarms[place]),
        # At a threshold that the test streams chose: the value of the scores for any speaker.
        "detected_at_alarms": float(curve.detected[curve.alarms <= config.alarms].max(initial=0.0)),
        **delay,
        "words": len(curve.delays[place]),
        "threshold": threshold,
        "validation_detected": float(chosen_on[config.digit].detected[place]),
        "digits": len(places),
        "detected_any_digit": float(np.mean([curves[d].detected[places[d]] for d in places])),
        "false_alarms_any_digit": float(np.mean([curves[d].alarms[places[d]] for d in places])),
        "microseconds_a_frame": _microseconds(made, sound[: 5 * SETTINGS.rate]),
    }


def _tradeoff(digit: int, curves: dict[int, detection.Curve], places: dict[int, int]) -> "Figure":
    """Missed words against false alarms: the target digit, and the others."""
    figure, axes = panels(width=5)
    for number, other in enumerate(places.keys() - {digit}):
        label = "" if number else "other digits"
        detection.draw_tradeoff(axes[0, 0], curves[other], label, places[other], color="0.75")
    detection.draw_tradeoff(axes[0, 0], curves[digit], f"digit {digit}", places[digit])
    axes[0, 0].set_title("Dots: thresholds of the validation streams")
    axes[0, 0].legend()
    return figure


def _picture(heard: Heard, digit: int, threshold: float, seconds: int = 20) -> "Figure":
    """The stream with the digit in it most often near its beginning: its frames, what was spoken, and the score."""
    count = int(min(seconds * SETTINGS.rate // SETTINGS.hop, len(heard.frames)))
    spoken = (heard.spoken.digits == digit) & (heard.spoken.ends // SETTINGS.hop < count)
    stream = int(spoken.sum(1).argmax())
    score = np.asarray(spotter.log_odds(jnp.asarray(heard.logits[:count, stream]), digit))
    fired = np.flatnonzero(detection.fires(jnp.asarray(score[:, None]), jnp.float32(threshold))[:, 0])
    figure, axes = panels(2, 1, width=9, height=2.2)
    sound, line = axes[:, 0]
    ends = count * SETTINGS.hop / SETTINGS.rate
    image = heard.frames[:count, stream].T
    sound.imshow(image, aspect="auto", origin="lower", extent=(0, ends, 0, SETTINGS.bands), cmap="magma")
    sound.set(ylabel="mel band")
    sound.grid(visible=False)
    words = zip(
        *(values[stream] for values in (heard.spoken.digits, heard.spoken.starts, heard.spoken.ends)), strict=True
    )
    for what, first, after in words:
        if what != streams.NOTHING and after / SETTINGS.rate < ends:
            begin, end = first / SETTINGS.rate, after / SETTINGS.rate
            sound.text((begin + end) / 2, SETTINGS.bands + 1, str(what), ha="center", fontsize=8)
            line.axvspan(begin, end, color="tab:green" if what == digit else "0.8", alpha=0.4, linewidth=0)
    line.plot(np.arange(count) * SETTINGS.hop / SETTINGS.rate, score, linewidth=0.9)
    line.plot(fired * SETTINGS.hop / SETTINGS.rate, score[fired], "rv", markersize=6)
    line.axhline(threshold, color="0.3", linestyle="--", linewidth=0.8)
    line.set(xlim=(0, ends), xlabel="seconds", ylabel=f"log odds of {digit}")
    line.set_title(f"Green: {digit} is spoken; triangles: the detector fires")
    return figure


SWEEP = f"model={','.join(MODELS)};seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """Detection at the allowed rate of false alarms, and the whole trade-off of each run."""
    figures, (table, tradeoff) = separate("detected", "trade-off")
    by_label = groups(runs)
    intervals(table, by_label, "detected", (0, 1))
    table.set(xlabel="share of the words that are detected")
    for index, (label, members) in enumerate(by_label.items()):
        for number, run in enumerate(members):
            file = read_arrays(run.directory / "curve.npz")
            place, curve = int(file["place"]), detection.Curve(*(file[name] for name in detection.Curve._fields))
            detection.draw_tradeoff(tradeoff, curve, "" if number else label, place, color=COLORS[index % len(COLORS)])
    text = (
        f"At the threshold that gives at most {runs[0].flags['alarms']:g} false alarms per hour on validation streams "
        "(dots). A line is a run."
    )
    return [Section("Spotting", text, figures)]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
