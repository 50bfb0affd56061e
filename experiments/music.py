"""Which keys sound next? Chorales and folk tunes as piano rolls, and music composed by the trained models.

The negative log likelihood (NLL) of a chord given all chords before, in nats per step, summed over the 88 keys. Data:
Boulanger-Lewandowski et al. 2012 (arXiv 1206.6392); settings and published values: Bai et al. 2018 (arXiv 1803.01271).
`test_nll` is the mean over all steps of all pieces but the first of each, as Bai et al. count; `test_nll_sequence` is
the mean over pieces of the mean over their steps, in which a long piece counts no more than a short one.

    marginal         how often each key sounds
    repeat           the last chord, and the probabilities that a key stays on and that one comes on
    markov           the same, two probabilities per key
    rnn, lstm, gru   one layer (--layers), dropout before the head; the keys are independent given the past, or with
                     --nade=64 each is also given those below it (RNN-NADE of the first paper)

    python -m experiments.music --model=lstm --nade=64 --data=nottingham --data_dir=DIR
    python launch.py --experiment=music --data_dir=DIR            all models

DIR holds the files of --data (`seqjax.data.music.FILES`). Without --data_dir the pieces are generated. For three test
pieces a run directory has `piece_N.mid` and `composed_N.mid`, which begins with the same --start steps.

Measured on the chorales: lstm has a test NLL of 8.43 ± 0.08, published 8.45 (docs/results.md).
"""

import sys
from collections.abc import Sequence
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
from experiments.harness.report import COLORS, Section, groups, intervals, panels, save, separate
from experiments.shared import tasks
from seqjax import cells
from seqjax.arrays import Array, Params, Tree
from seqjax.data import buckets, midi, music
from seqjax.models.music import Chain, RollModel
from seqjax.train import Run, State, write_arrays, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = training_flags(
    steps=1000,
    steps_per_call=100,
    evaluate_every=100,
    checkpoint_every=500,
    batch_size=8,
    learning_rate=3e-3,
    clip_norm=1.0,
)
# Over which axes of the counts [before, after, key] a chain has one probability.
CHAINS = {"marginal": (0,), "repeat": (2,), "markov": ()}
# With this many units in one layer, each model has about 300,000 parameters, as in the table of Bai et al.
CELLS = {"rnn": (cells.rnn, 460), "lstm": (cells.lstm, 220), "gru": (cells.gru, 260)}
# Steps of the buckets, the last of which reaches to the longest piece; and seconds per step.
BORDERS = {
    "jsb": (48, 64, 96, 160),
    "jsb_quarter": (48, 64, 96, 160),
    "jsb_16th": (192, 256, 384, 640),
    "nottingham": (200, 260, 400, 520, 800, 1800),
    "piano_midi": (256, 512, 1024, 2048, 4096, 8192),
    "musedata": (256, 512, 1024, 2048, 4096, 8192),
}
SECONDS = {
    "jsb": 0.6,
    "jsb_quarter": 0.6,
    "jsb_16th": 0.15,
    "nottingham": 0.25,
    "piano_midi": 0.25,
    "musedata": 0.25,
}
SHOWN = 3

flags.DEFINE_enum("data", "jsb", list(BORDERS), "Which music.", flag_values=FLAGS)
flags.DEFINE_enum("model", "lstm", [*CHAINS, *CELLS], "Which model.", flag_values=FLAGS)
flags.DEFINE_integer("layers", 1, "Recurrent layers.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("units", 0, "Units of a layer; 0: for 300,000 parameters.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer("nade", 0, "Hidden units of the NADE head; 0: independent keys.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer("start", 16, "Steps of a piece that a composition continues.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("composed", 64, "Steps that are composed.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float("temperature", 1.0, "Divides the logits of a composition.", flag_values=FLAGS)
flags.register_validator("temperature", lambda value: value > 0, "must be positive", flag_values=FLAGS)
flags.DEFINE_float("dropout", 0.2, "Rate, in [0, 1).", flag_values=FLAGS)
flags.register_validator("dropout", lambda rate: 0 <= rate < 1, "a rate in [0, 1)", flag_values=FLAGS)
flags.register_multi_flags_validator(
    ("model", "nade"),
    lambda given: given["model"] in CELLS or not given["nade"],
    f"--nade is for the recurrent models ({', '.join(CELLS)})",
    flag_values=FLAGS,
)

TRACED_FLAGS = ("seed", "learning_rate", "dropout")
synthetic_data = without_data("pieces")


def log_odds(rolls: Sequence[np.ndarray], pooled: tuple[int, ...]) -> np.ndarray:
    """Log-odds float32 [2, K] that a key sounds after it was silent, and after it sounded; from counts and a half.

    Args:
      rolls: uint8 [T, K] each.
      pooled: axes of the counts [before, after, key] that are summed over.
    """
    before, after = (np.concatenate([roll[part] for roll in rolls]) for part in (np.s_[:-1], np.s_[1:]))
    counts = np.array([[((before == b) & (after == a)).sum(0) for a in (0, 1)] for b in (0, 1)])
    smoothed = counts.sum(pooled, keepdims=True) + 0.5
    odds = np.log(smoothed[:, 1]) - np.log(smoothed[:, 0])
    return np.broadcast_to(odds, (2, music.KEYS)).astype(np.float32)


def network(config: SimpleNamespace, train: Sequence[np.ndarray], hparams: Hparams, rngs: nnx.Rngs) -> RollModel:
    """The model of the flags; a chain has the frequencies of the training pieces."""
    if config.model in CHAINS:
        table = log_odds(train, CHAINS[config.model])
        return RollModel(None, Chain(jnp.asarray(table)), rngs=rngs)
    make, units = CELLS[config.model]
    cell = make(config.units or units)
    return RollModel.recurrent(cell, layers=config.layers, nade=config.nade, dropout=hparams["dropout"], rngs=rngs)


def _scores(model: RollModel, part: tuple[buckets.Bucket, ...]) -> dict[str, Array]:
    """The NLL per step: over all steps together, and as a mean over pieces."""

    def of_rows(bucket, rows):
        lengths = bucket.lengths[rows]
        return model.nll(bucket.rows[rows], lengths).sum(1), (lengths - 1).astype(jnp.float32)

    _, (sums, steps) = buckets.every(part, 16, of_rows)
    return {"nll": sums.sum() / steps.sum(), "nll_sequence": (sums / steps).mean()}


def _bucketed(config: SimpleNamespace, pieces: Sequence[np.ndarray], least: int = 1) -> tuple[buckets.Bucket, ...]:
    return buckets.make(pieces, buckets.reaching(BORDERS[config.data], max(map(len, pieces))), least)


def build(config: SimpleNamespace) -> Experiment:
    """The mean NLL of the steps of a batch; the best params have the lowest validation NLL."""
    parts = tasks.pieces(config.data_dir, config.data)
    if config.start >= (shortest := min(map(len, parts["test"]))):
        raise ValueError(f"--start={config.start}: a test piece has {shortest} steps, expected fewer for the start")
    least = {"train": config.batch_size, "validation": 1}
    data = {part: _bucketed(config, parts[part], count) for part, count in least.items()}
    init, bind = supervised.functional(lambda hparams, rngs: network(config, parts["train"], hparams, rngs))

    def gradient(hparams, data: Tree, params, step, k_data, k_noise):
        def of_batch(bucket, rows):
            lengths = bucket.lengths[rows]

            def loss(params):
                nll = bind(hparams, params, k_noise).nll(bucket.rows[rows], lengths)
                return nll.sum() / (lengths - 1).sum().astype(nll.dtype)

            return jax.value_and_grad(loss)(params)

        return buckets.minibatch(k_data, step, config.batch_size, data["train"], of_batch)

    def evaluate(hparams, data: Tree, params):
        return _scores(bind(hparams, params, None), data["validation"])

    batches, test = buckets.batches(data["train"], config.batch_size), np.concatenate(parts["test"])
    program = supervised.program(config, init, gradient, evaluate, data, "nll", batches, held_out=test)
    return Experiment(program, partial(_finish, config, bind, parts))


def _finish(
    config: SimpleNamespace, bind: supervised.Bind, parts: music.Parts, hparams: Hparams, state: State, run: Run
) -> dict[str, Any]:
    """Test NLL; compositions that continue the test pieces, as MIDI, arrays and a figure, and statistics of them."""
    pieces = parts["test"]
    part, start = _bucketed(config, pieces), config.start
    starts = jnp.asarray(np.stack([piece[:start] for piece in pieces]))

    @jax.jit
    def tested(params: Params, part: Tree, starts: Array, shown: Array) -> tuple[dict[str, Array], Array, Array]:
        model = bind(hparams, params, None)
        key = jax.random.fold_in(jax.random.key(hparams["seed"]), 1)
        composed = model.compose(starts, config.composed, key, config.temperature)
        return _scores(model, part), composed, jax.nn.sigmoid(model.logits(shown))

    shown = buckets.make(pieces[:SHOWN], (max(map(len, pieces[:SHOWN])),))[0].rows
    scores, found, predicted = jax.device_get(tested(state.best.params, part, starts, shown))
    composed = [np.concatenate([piece[:start], new.astype(np.uint8)]) for piece, new in zip(pieces, found, strict=True)]
    for i, (piece, made) in enumerate(zip(pieces[:SHOWN], composed, strict=False)):
        for name, roll in (("piece", piece), ("composed", made)):
            content = midi.encode(roll, lowest=music.LOWEST, step_seconds=SECONDS[config.data])
            write_atomic(run.directory / f"{name}_{i}.mid", content)
        save(_figure(piece, made, predicted[i, : len(piece) - 1], start), run.figures / f"rolls_{i}")
    write_arrays(run.directory / "composed.npz", composed=np.stack(composed), start=start)
    return {
        **{f"test_{name}": float(value) for name, value in scores.items()},
        **{
            f"{whose}_{name}": value
            for whose, rolls in (("piece", pieces), ("composed", composed))
            for name, value in _likeness(rolls, parts["train"], start).items()
        },
    }


def _likeness(pieces: Sequence[np.ndarray], train: Sequence[np.ndarray], start: int) -> dict[str, float]:
    """Statistics of the steps after the start.

    Keys that sound at a step; the share of them that sounded at the step before; of notes whose pitch class (C, C
    sharp, ..., B) occurs in the start of their piece; of chords that occur in the training part.
    """
    known = {chord.tobytes() for piece in train for chord in piece}
    pitch_class = np.arange(music.KEYS) % 12
    begun, after = (
        np.stack([np.bincount(pitch_class, piece[part].sum(0), minlength=12) for piece in pieces])
        for part in (np.s_[:start], np.s_[start:])
    )
    last, chords = (
        np.concatenate([piece[part] for piece in pieces]) for part in (np.s_[start - 1 : -1], np.s_[start:])
    )
    sounding = max(int(chords.sum()), 1)
    return {
        "keys": float(chords.sum(1).mean()),
        "held": float((last & chords).sum() / sounding),
        "in_key": float(after[begun > 0].sum() / sounding),
        "known": float(np.mean([chord.tobytes() in known for chord in chords])),
    }


def _figure(piece: np.ndarray, composed: np.ndarray, predicted: np.ndarray, start: int) -> "Figure":
    """A piece, what was composed from its start, and the predicted probability of each key of the piece.

    Before a key come all earlier steps, and with a NADE head the keys below it.
    """
    figure, axes = panels(3, 1, width=9.0, height=2.4)
    sounds = np.flatnonzero(piece.any(0) | composed.any(0)) + music.LOWEST
    rows = [
        ("The piece", piece),
        (f"Composed from its first {start} steps on", composed),
        ("Probability of each key, given all before it", np.concatenate([np.zeros_like(predicted[:1]), predicted])),
    ]
    for axis, (title, roll) in zip(axes[:, 0], rows, strict=True):
        extent = (-0.5, len(roll) - 0.5, music.LOWEST - 0.5, music.LOWEST + music.KEYS - 0.5)
        axis.imshow(roll.T, aspect="auto", origin="lower", cmap="Greys", vmin=0, vmax=1, extent=extent)
        axis.axvline(start - 0.5, color="0.5", linestyle="--", linewidth=1)
        axis.set(
            title=title,
            ylabel="MIDI pitch",
            xlim=(-0.5, len(composed) - 0.5),
            ylim=(sounds.min() - 2, sounds.max() + 2),
        )
        axis.set_yticks([c for c in range(24, 108, 12) if sounds.min() - 2 <= c <= sounds.max() + 2])
    axes[-1, 0].set(xlabel="step (dashed: where the composition begins; ticks at every C)")
    return figure


SWEEP = f"model={','.join([*CHAINS, *CELLS])};seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """The test NLL of each model, and statistics of its compositions beside those of the pieces."""
    figures, (nll, composed) = separate("nll", "compositions")
    by_label = groups(runs)
    intervals(nll, by_label, "test_nll", (0, np.inf))
    nll.set(xlabel="test NLL, nats per step")
    likeness = ("held", "in_key", "known")
    for i, (label, members) in enumerate(by_label.items()):
        values = [np.mean([run.result()[f"composed_{name}"] for run in members]) for name in likeness]
        composed.plot(likeness, values, "o", color=COLORS[i % len(COLORS)], label=label, markersize=5)
    truth = [np.mean([run.result()[f"piece_{name}"] for run in runs]) for name in likeness]
    composed.plot(likeness, truth, "k_", label="the pieces", markersize=20)
    composed.set(ylabel="share, of what is composed", ylim=(0, 1), xlim=(-0.5, 2.5))
    text = (
        "NLL at the params of the lowest validation NLL.\n\nheld: keys that sounded at the step before. in_key: notes"
        " whose pitch class the start of the piece has. known: chords that the training part has."
    )
    return [Section("Music", text, figures)]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
