"""Anomalies in streams: a forecast of a coming value, and how unusual the error of that forecast is.

    detector = AnomalyDetector(with_head(cells.gru(16), 1), 3, rngs=nnx.Rngs(0))
    state, readings = detector(xs)                     # xs [B, T, 3], readings.score [B, T]
    state, reading = detector.step(state, x)           # continues row by row; x [B, 3]

A forecaster is any cell whose outputs [B, 1] are forecasts of the value `horizon` rows later. `moving_average` and
`seasonal` are such cells without weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.arrays import Array, Carry
from seqjax.core import Cell, from_step, select
from seqjax.nnx import Recurrent

__all__ = ["AnomalyDetector", "DetectorState", "Reading", "moving_average", "seasonal"]

SHORT, LONG = 5, 8000
"""Rows that the error and its distribution are averaged over."""
LEARNING = 20
"""Rows before the first score."""
RED, YELLOW, HIGHEST = 5.0, 3.0, 10.0
"""Scores, -log10 of probabilities: what is very unlikely, what its repetition gets, and the highest."""
TOLERANCE = 0.05
"""Part of the range so far that a value may leave it by."""
NOISE = 0.01
"""A standard deviation of the error that is always there, so that a flat stream is not surprised by rounding."""


class Reading(NamedTuple):
    """The forecast that was made of a row, and its score from 0 to 10; float32, [B] or [B, T]."""

    forecast: Array
    score: Array


class DetectorState(NamedTuple):
    """The state of a detector between rows; leaves [B, ...].

    Attributes:
      carry: of the forecaster.
      forecasts: float32 [B, horizon], of the next values, the nearest first.
      rows: int32, read so far.
      error: float32, average of roughly the last `SHORT` errors.
      mean, variance: float32, of all errors, or roughly of the last `LONG`.
      red: bool, whether the row before was very unlikely.
      low, high: float32, the range of the values.
    """

    carry: Carry
    forecasts: Array
    rows: Array
    error: Array
    mean: Array
    variance: Array
    red: Array
    low: Array
    high: Array


class AnomalyDetector(nnx.Module):
    """The anomaly likelihood of a forecaster's errors (Ahmad et al. 2017, Neurocomputing 262; streaming variant).

        e = abs(value - forecast)
        error += (e - error) / min(n, SHORT)                        # n rows so far, this one included
        score = -log10 Q((error - mean) / sqrt(variance + NOISE**2))    # Q: upper tail of the normal distribution
        score = YELLOW where score and the one before are above RED: only the start of an unusual stretch counts
        score = HIGHEST where the value leaves its range so far by more than 5 % of that range
        mean, variance: of e, with weight 1 / min(n, LONG)

    Where the paper keeps windows of errors, these are exponential averages, so that a state is a few numbers.

    A row that holds a NaN or an infinity is missing: the state stays as it is, and the forecast of the row before
    stands in for the one that would have been made. Its score is 0, or HIGHEST where the value is infinite, which is
    outside of any range.

    Attributes:
      forecaster: the `Recurrent`.
      horizon: as given.
    """

    def __init__(self, cell: Cell, in_features: int, *, horizon: int = 1, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          cell: its outputs are the forecasts, [B, 1].
          in_features: features D of a row; the first is the value.
          horizon: rows from a forecast to the value that it is of. The next value is easily forecast even while
            something is wrong; some rows ahead, what is wrong stays wrong for longer.
          rngs: stream "params".

        Raises:
          ValueError: a cell with more outputs, or fewer; a horizon below 1.
        """
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        self.horizon = horizon
        self.forecaster = Recurrent(cell, in_features, rngs=rngs)
        if self.forecaster.out_features != 1:
            raise ValueError(f"a forecaster has one output, the cell has {self.forecaster.out_features}")

    def forecasts(self, xs: Array) -> Array:
        """`xs [B, T, D] -> [B, T]`, at each row the forecast of the value `horizon` rows later, which is trained."""
        return self.forecaster(xs)[..., 0]

    def initial_state(self, batch: int) -> DetectorState:
        """The state before the first row of `batch` streams."""
        zeros = jnp.zeros((batch,), jnp.float32)
        carry = self.forecaster.cell.initial_carry(self.forecaster.weights, (batch,))
        rows, red = jnp.zeros((batch,), jnp.int32), jnp.zeros((batch,), bool)
        forecasts = jnp.zeros((batch, self.horizon), jnp.float32)
        return DetectorState(carry, forecasts, rows, zeros, zeros, zeros, red, zeros + jnp.inf, zeros - jnp.inf)

    def step(self, state: DetectorState, x: Array) -> tuple[DetectorState, Reading]:
        """One row of each stream: `(state, x [B, D]) -> (state, reading)`."""
        there = jnp.isfinite(x).all(1)
        infinite = jnp.isinf(x[:, 0])
        x = select(there, x, jnp.zeros_like(x))
        value, rows = x[:, 0], state.rows + 1
        e = jnp.abs(value - state.forecasts[:, 0])
        error = state.error + (e - state.error) / jnp.minimum(rows, SHORT).astype(e.dtype)
        z = (error - state.mean) / jnp.sqrt(state.variance + NOISE**2)
        surprise = jnp.where(rows > LEARNING, -jax.scipy.stats.norm.logsf(z) / jnp.log(10.0), 0.0)
        red = surprise >= RED
        score = jnp.where(red & state.red, YELLOW, jnp.minimum(surprise, HIGHEST))
        margin = TOLERANCE * (state.high - state.low)
        beyond = (value > state.high + margin) | (value < state.low - margin)
        score = jnp.where(beyond & (state.high > state.low), HIGHEST, score)

        weight = 1 / jnp.minimum(rows, LONG).astype(e.dtype)
        change = e - state.mean
        carry, forecast = self.forecaster.cell.step(self.forecaster.weights, state.carry, x)
        after = DetectorState(
            carry=carry,
            forecasts=jnp.concatenate([state.forecasts[:, 1:], forecast], axis=1),
            rows=rows,
            error=error,
            mean=state.mean + weight * change,
            variance=(1 - weight) * (state.variance + weight * jnp.square(change)),
            red=red,
            low=jnp.minimum(state.low, value),
            high=jnp.maximum(state.high, value),
        )
        repeated = state._replace(forecasts=jnp.concatenate([state.forecasts[:, 1:], state.forecasts[:, -1:]], axis=1))
        score = jnp.where(there, score, jnp.where(infinite & (state.rows > 0), HIGHEST, 0.0))
        return select(there, after, repeated), Reading(state.forecasts[:, 0], score)

    def __call__(self, xs: Array, state: DetectorState | None = None) -> tuple[DetectorState, Reading]:
        """All rows of streams, `xs [B, T, D]`: the state after the last, and the readings [B, T].

        Args:
          xs: the rows.
          state: of earlier rows; None before the first.
        """
        state = self.initial_state(xs.shape[0]) if state is None else state
        state, readings = jax.lax.scan(self.step, state, jnp.swapaxes(xs, 0, 1))
        return state, jax.tree.map(jnp.transpose, readings)


def moving_average(steps: int) -> Cell:
    """A forecaster: the exponential average of the values, `mean += (value - mean) / min(n, steps)`.

    With 1 step it is the last value.

    Args:
      steps: about how many values are averaged.
    """

    def step(params, carry, x):
        del params
        rows, mean = carry
        mean = mean + (x[..., :1] - mean) / jnp.minimum(rows + 1, steps)
        return (rows + 1, mean), mean

    def initial_carry(params, batch_shape):
        del params
        return jnp.zeros((*batch_shape, 1), jnp.float32), jnp.zeros((*batch_shape, 1), jnp.float32)

    return from_step(lambda key, in_features: {}, initial_carry, step)


def seasonal(slots: int = 288) -> Cell:
    """A forecaster: what followed this time of day the day before; the last value on the first day.

    It reads rows (value, sin, cos) of the time of day, as an angle.

    Args:
      slots: parts of the day that are told apart; of several rows in one, the last is kept.
    """

    def step(params, carry, x):
        del params
        memory, before = carry
        angle = jnp.arctan2(x[..., 1], x[..., 2]) / (2 * jnp.pi)
        slot = (jnp.round(angle * slots).astype(jnp.int32) % slots)[..., None]
        value = x[..., :1]
        memory = jnp.where(jax.nn.one_hot(before[..., 0], slots, dtype=bool), value, memory)
        forecast = jnp.take_along_axis(memory, slot, axis=-1)
        return (memory, slot), jnp.where(jnp.isnan(forecast), value, forecast)

    def initial_carry(params, batch_shape):
        del params
        return jnp.full((*batch_shape, slots), jnp.nan, jnp.float32), jnp.full((*batch_shape, 1), -1, jnp.int32)

    return from_step(lambda key, in_features: {}, initial_carry, step)
