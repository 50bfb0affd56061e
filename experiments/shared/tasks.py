"""The tasks that the experiments share: batches as pure functions of (data, key, step), time-major, and scores."""

import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.harness.task import Batch, Task
from experiments.shared import corpora
from seqjax.arrays import Array, Key
from seqjax.data import jena, synthetic, text, windows


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Cross-entropy in nats of integer targets, [..., V] and [...] to [...]."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)


def characters(corpus: str, *, length: int, batch_size: int) -> Task:
    """The next character of a text (of "pydoc", Python's own language reference, or of a file or directory).

    85 % of the text are for training, 5 % for validation, the last 10 % for the test. Stream i of a batch continues
    stream i of the batch before. Scores cover all characters of a part but its first; `left_out` counts those at the
    ends of the training streams.
    """
    everything = text.language_reference() if corpus == "pydoc" else text.read(Path(corpus))
    train, *parts = text.split(everything, (0.85, 0.05, 0.1))
    vocabulary = text.Vocabulary.of(train)
    streams = jnp.asarray(text.lanes(vocabulary.encode(train), batch_size))
    count = text.chunks(streams, length)
    held_out = {
        name: corpora.windows(vocabulary.encode(part), length, batch_size)
        for name, part in zip(("validation", "test"), parts, strict=True)
    }

    def chunk(data, key, step):
        xs, targets = text.chunk(data["train"], step % count, length)
        return Batch(xs, targets, jnp.ones(xs.shape, jnp.float32))

    def window(part, data, index):
        xs, targets, real = (leaf[index] for leaf in data[part])
        return Batch(xs, targets, real.astype(jnp.float32))

    def scores(ys, targets):
        nats = cross_entropy(ys, targets)
        return {"loss": nats, "bits_per_character": nats / np.log(2).astype(np.float32)}

    return Task(
        data={"train": streams, **held_out},
        train=chunk,
        held_out={part: (len(one.xs), partial(window, part)) for part, one in held_out.items()},
        continues=True,
        tokens=vocabulary.size,
        features=0,
        outputs=vocabulary.size,
        blank=0,
        losses=cross_entropy,
        scores=scores,
        batches=count,
        vocabulary=vocabulary,
        left_out=corpora.left_out(len(train), batch_size, length, "character"),
    )


def _endless(draw: Callable[[Key, int], Batch], batch_size: int) -> dict[str, Any]:
    """Batches that are drawn: 1,024 sequences for validation, 4,096 for the test, the same ones in every run."""
    keys = dict(zip(("validation", "test"), jax.random.split(jax.random.key(20_181_217)), strict=True))
    return {
        "data": keys,
        "train": lambda data, key, step: draw(jax.random.fold_in(key, step), batch_size),
        "held_out": {
            part: (count, lambda data, index, part=part: draw(jax.random.fold_in(data[part], index), 512))
            for part, count in (("validation", 2), ("test", 8))
        },
        "continues": False,
    }


def recall(*, lag: int, batch_size: int) -> Task:
    """Delayed recall over `lag` steps: one of eight symbols, chance 12.5 %."""
    return Task(
        **_endless(lambda key, batch: Batch(*synthetic.delayed_recall(key, batch, lag)), batch_size),
        tokens=10,
        features=0,
        outputs=8,
        blank=8,
        # Where the weight is 0 the target is the blank, which is no output.
        losses=lambda ys, targets: cross_entropy(ys, jnp.minimum(targets, 7)),
        scores=lambda ys, targets: {
            "loss": cross_entropy(ys, jnp.minimum(targets, 7)),
            "accuracy": (jnp.argmax(ys, -1) == targets).astype(jnp.float32),
        },
    )


def copy(*, lag: int, batch_size: int) -> Task:
    """Copy memory: ten symbols after `lag` steps; without memory the loss is 10 ln 8 / (lag + 20) nats."""

    def draw(key, batch):
        return Batch(*synthetic.copy_memory(key, batch, lag))

    return Task(
        **_endless(draw, batch_size),
        tokens=10,
        features=0,
        outputs=9,
        blank=8,
        losses=cross_entropy,
        scores=lambda ys, targets: {
            "loss": cross_entropy(ys, targets),
            "accuracy": (jnp.argmax(ys, -1) == targets).astype(jnp.float32),
        },
    )


def _last_step(xs: Array, target: Array) -> Batch:
    """A target [B] at the last step only."""
    wanted = (jnp.arange(xs.shape[0]) == xs.shape[0] - 1).astype(jnp.float32)
    return Batch(xs, jnp.broadcast_to(target, xs.shape[:2]), jnp.broadcast_to(jnp.expand_dims(wanted, 1), xs.shape[:2]))


def adding(*, length: int, batch_size: int) -> Task:
    """The adding problem over `length` steps; always answering 1 has a squared error of 0.167."""

    def squared_error(ys, targets):
        return jnp.square(ys[..., 0] - targets)

    return Task(
        **_endless(lambda key, batch: _last_step(*synthetic.adding(key, batch, length)), batch_size),
        tokens=0,
        features=2,
        outputs=1,
        blank=0.0,
        losses=squared_error,
        scores=lambda ys, targets: {"loss": squared_error(ys, targets)},
    )


@cache  # read once per process, where a sweep builds many experiments
def climate(data_dir: str | None) -> jena.Climate:
    """The record of the temperature task: that of `data_dir`, or, without one, a small generated one."""
    if data_dir is None:
        print("no --data_dir: the record is generated, and its numbers mean nothing for Jena", file=sys.stderr)
        record = jena.synthetic_climate(jax.random.key(0), 8_000)
    else:
        record = jena.load(data_dir)
    print(record.report, file=sys.stderr)
    return record


def temperature(data_dir: str | None, *, length: int, batch_size: int) -> Task:
    """The temperature at Jena 24 hours after `length` hourly rows; scored in degrees."""
    forecasting = jena.forecasting(climate(data_dir), history=length)
    column = forecasting.columns.index(jena.TEMPERATURE)
    mean, std = (np.float32(row[column]) for row in (forecasting.scale.mean, forecasting.scale.std))

    def train(data, key, step):
        index = windows.minibatch(key, step, batch_size, data.train.size)
        return _last_step(*jena.batch(data, data.train[index]))

    def held_out(part):
        starts = getattr(forecasting, part)
        size = min(512, starts.size)

        def batch(data, index):
            positions = index * size + jnp.arange(size, dtype=jnp.int32)
            rows = getattr(data, part)[jnp.minimum(positions, starts.size - 1)]
            xs, targets, weights = _last_step(*jena.batch(data, rows))
            # The last batch is filled up with windows that do not count.
            return Batch(xs, targets, jnp.where(jnp.broadcast_to(positions < starts.size, weights.shape), weights, 0))

        return -(-starts.size // size), batch

    def error(ys, targets):
        return ys[..., 0] - (targets - mean) / std

    return Task(
        data=forecasting,
        train=train,
        held_out={part: held_out(part) for part in ("validation", "test")},
        continues=False,
        tokens=0,
        features=len(forecasting.columns),
        outputs=1,
        blank=0.0,
        losses=lambda ys, targets: jnp.square(error(ys, targets)),
        scores=lambda ys, targets: {
            "loss": jnp.square(error(ys, targets)),
            "mae": std * jnp.abs(error(ys, targets)),
        },
        batches=forecasting.train.size // batch_size,
    )


def define(values: flags.FlagValues, task: str, length: int, kinds: Sequence[str] = ("temperature", "adding")) -> None:
    """Adds the flags --task, of these kinds, and --length with these defaults."""
    flags.DEFINE_enum("task", task, list(kinds), "What is learned.", flag_values=values)
    flags.DEFINE_integer(
        "length", length, "Time steps of a sequence; of copy, the lag.", lower_bound=2, flag_values=values
    )


def make_task(config: SimpleNamespace) -> Task:
    """The task of the flags."""
    if config.task == "adding":
        return adding(length=config.length, batch_size=config.batch_size)
    if config.task == "copy":
        return copy(lag=config.length, batch_size=config.batch_size)
    return temperature(config.data_dir, length=config.length, batch_size=config.batch_size)
