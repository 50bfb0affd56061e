"""A trained detector of `experiments.anomalies` on a stream: alarms as its rows come.

    python -m experiments.anomalies --watch=FILE.csv --run=DIR_OF_A_RUN

The first `warmup` rows standardize the values and tell the detector what is usual, as the probationary rows of the
benchmark do; from then on every row is one call of a compiled step. The threshold is that of the run.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import anomalies
from experiments.harness.experiment import define
from seqjax.data import files, nab
from seqjax.data.damaged import named
from seqjax.models.anomaly import AnomalyDetector
from seqjax.train import Run


class Alarm(NamedTuple):
    """A row of the stream whose score reached the threshold."""

    row: int
    time: np.datetime64
    value: float
    score: float


def trained(directory: str | Path) -> tuple[AnomalyDetector, float]:
    """The detector of a finished run and its threshold (standard profile).

    Raises:
      FileNotFoundError: no finished run there.
      ValueError: a run of another experiment, or of a network for each series.
    """
    run = Run.read(directory)
    config, result = SimpleNamespace(**run.flags), run.result()
    if "threshold_standard" not in result:
        raise ValueError(f"{directory}: a run of another experiment, its result has no threshold_standard")
    if config.model == "gru_each":
        raise ValueError(
            f"{directory}: --model=gru_each has a network for each series it was trained on, and none for others"
        )
    model = anomalies.detector(config, 1)
    like = jax.eval_shape(lambda: model.init(define(anomalies).hparams(config), jax.random.key(0)))
    file = run.directory / "weights.npz"
    saved = files.arrays(file.read_bytes(), f"{file}")
    with named(file, "holds other weights than the flags of the run say"):
        leaves = [jnp.asarray(saved[str(i)]) for i in range(len(jax.tree.leaves(like)))]
    return model.one(jax.tree.unflatten(jax.tree.structure(like), leaves)), result["threshold_standard"]


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
    """The alarms of a stream of (time, value), each as soon as its row is read; none of the first `warmup` rows.

    Raises:
      ValueError: a stream that ends before.
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


def main() -> None:
    """Prints the alarms of a file, or of stdin (-), line by line; exits with 2 where something does not fit."""
    values = flags.FlagValues()
    flags.DEFINE_string("watch", None, "A csv `timestamp,value`, or - for stdin.", flag_values=values)
    flags.DEFINE_string("run", None, "Directory of a finished run.", flag_values=values)
    flags.DEFINE_integer("warmup", 300, "Rows before the first alarm.", lower_bound=20, flag_values=values)
    try:
        values(sys.argv)
        if values.run is None:
            raise ValueError("--watch needs --run, the directory of a finished run")
        detector, threshold = trained(values.run)
        with sys.stdin if values.watch == "-" else Path(values.watch).open(encoding="utf-8-sig") as lines:
            for alarm in watch(detector, threshold, parsed(lines, values.watch), values.warmup):
                print(f"{alarm.time}  {alarm.value:g}  score {alarm.score:.2f}", flush=True)
    except (ValueError, OSError, flags.Error) as error:
        print(f"experiments.anomalies: {error}", file=sys.stderr)
        sys.exit(2)
