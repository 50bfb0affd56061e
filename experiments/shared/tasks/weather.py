"""The temperature at Jena, 24 hours ahead."""

import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.task import Task
from experiments.shared.tasks.batches import last_step, of_rows
from seqjax.data import jena, windows


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
        return last_step(*jena.batch(data, data.train[index]))

    def held_out(part):
        def take(data, rows):
            return last_step(*jena.batch(data, getattr(data, part)[rows]))

        return of_rows(getattr(forecasting, part).size, 512, take)

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
