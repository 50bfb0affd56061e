"""Prints the alarms of a stream of numbers as its rows arrive, by a trained detector of `experiments.anomalies`.

    python -m experiments.demos.watch --run=DIR --file=FILE.csv
    tail -f FILE.csv | python -m experiments.demos.watch --run=DIR --file=-

The first `--warmup` rows standardize the values and initialize the detector, as the probationary rows of the benchmark
do; from then on every row is one call of a compiled step. The threshold is that of the run.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import anomalies
from experiments.demos import command
from seqjax.data import nab
from seqjax.models.anomaly import AnomalyDetector

__all__ = ["Alarm", "main", "parsed", "trained", "watch"]

FLAGS = command.flags("anomalies")
command.path(FLAGS, "file", "csv file `timestamp,value`, or - for the standard input")
flags.DEFINE_integer("warmup", 300, "Rows before the first alarm.", lower_bound=20, flag_values=FLAGS)


class Alarm(NamedTuple):
    """A row of the stream whose score reached the threshold."""

    row: int
    time: np.datetime64
    value: float
    score: float


def trained(directory: str | Path) -> tuple[AnomalyDetector, float]:
    """The detector of a finished run and its threshold (standard profile).

    Raises:
      FileNotFoundError: there is no run, or it is not finished.
      ValueError: the run is of another experiment, or has a network for each series; or its params are damaged.
    """
    run, config = command.trained(directory, anomalies)
    if config.model == "gru_each":
        raise ValueError(
            f"{directory}: --model=gru_each has a network for each series it was trained on, and none for others;"
            " train with --model=gru"
        )
    model = anomalies.detector(config, 1)
    like = jax.eval_shape(lambda key: model.init({}, key), jax.random.key(0))
    return model.one(run.load_params(like)), run.result()["threshold_standard"]


def parsed(lines: Iterable[str], name: str) -> Iterator[tuple[np.datetime64, float]]:
    """Times and values of the lines `timestamp,value`; the header may be missing.

    Raises:
      ValueError: a line of another form (names the line).
    """
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.strip() == "timestamp,value":
            continue
        yield nab.row(line.strip(), f"{name}: line {number}")


def watch(
    detector: AnomalyDetector, threshold: float, stream: Iterable[tuple[np.datetime64, float]], warmup: int
) -> Iterator[Alarm]:
    """The alarms of a stream of (time, value), each as soon as its row is read; none for the first `warmup` rows.

    Raises:
      ValueError: the stream ends within the first `warmup` rows.
    """
    step = jax.jit(detector.step)
    times: list[np.datetime64] = []
    values: list[float] = []
    state, learned = detector.initial_state(1), None
    for row, (time, value) in enumerate(stream):
        if learned is None:
            times.append(time)
            values.append(value)
            if row + 1 < warmup:
                continue
            learned = np.array(values)
            first = anomalies.rows(np.array(times), learned, learned)
            for x in first:
                state, _ = step(state, jnp.asarray(x[None]))
            continue
        x = anomalies.rows(np.array([time]), np.array([value]), learned)
        state, reading = step(state, jnp.asarray(x))
        if (score := float(reading.score[0])) >= threshold:
            yield Alarm(row, time, value, score)
    if learned is None:
        raise ValueError(f"the stream ended after {len(values)} rows, before the first alarm can come ({warmup} rows)")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the alarms line by line; returns the exit code of `command.main`."""
    return command.main(sys.modules[__name__], _watch, argv)


def _watch(config: SimpleNamespace) -> None:
    detector, threshold = trained(config.run)
    stdin = config.file == "-"
    with contextlib.nullcontext(sys.stdin) if stdin else Path(config.file).open(encoding="utf-8-sig") as lines:
        for alarm in watch(detector, threshold, parsed(lines, config.file), config.warmup):
            print(f"{alarm.time}  {alarm.value:g}  score {alarm.score:.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
