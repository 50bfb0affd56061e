"""From scores in time to events: when a detector fires, and what that is worth against the words in the stream.

A detector fires at a frame whose score reaches its threshold, unless it has fired within the last `rest` frames. A word
[start, end) is detected if it fires from its start to `late` frames after its end; to fire outside of all words is a
false alarm. (A second time at the same word is neither.)
"""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.arrays import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REST = 50
LATE = 30


class Words(NamedTuple):
    """The words to detect: the stream of each, int [W], its first frame and the first after it, int [W]."""

    stream: np.ndarray
    start: np.ndarray
    end: np.ndarray


class Curve(NamedTuple):
    """What each of Q thresholds gives.

    Attributes:
      thresholds: float32 [Q], rising.
      detected: share of the words, [Q].
      alarms: false alarms in an hour, [Q].
      delays: frames from the end of a word to its detection, [Q, W], negative before the end; nan if there is none.
    """

    thresholds: np.ndarray
    detected: np.ndarray
    alarms: np.ndarray
    delays: np.ndarray


@partial(jax.jit, static_argnames="rest")
def fires(scores: Array, threshold: Array, rest: int = REST) -> Array:
    """Where a detector fires: scores float [T, B] and a threshold [] to bool [T, B]."""

    def step(waiting, score):
        now = (score >= threshold) & (waiting == 0)
        return jnp.where(now, rest, jnp.maximum(waiting - 1, 0)), now

    return jax.lax.scan(step, jnp.zeros(scores.shape[1:], jnp.int32), scores)[1]


def measure(scores: np.ndarray, words: Words, thresholds: np.ndarray, frames_in_hour: float, late: int = LATE) -> Curve:
    """What each threshold gives.

    Args:
      scores: float32 [T, B] of B streams.
      words: in these streams.
      thresholds: float32 [Q], rising.
      frames_in_hour: frames per hour.
      late: frames after the end of a word in which it may still be detected.

    Raises:
      ValueError: no words.
    """
    if not len(words.stream):
        raise ValueError(f"no words to detect in {scores.shape[1]} streams of {scores.shape[0]} frames")
    inside = np.zeros(scores.shape, bool)
    for stream, start, end in zip(*words, strict=True):
        inside[start : end + late, stream] = True
    detected, alarms, delays = [], [], []
    of_all = jax.jit(jax.vmap(fires, (None, 0)))
    for fired in np.asarray(of_all(jnp.asarray(scores), jnp.asarray(thresholds))):
        alarms.append((fired & ~inside).sum() * frames_in_hour / fired.size)
        found = np.full(len(words.stream), np.nan)
        for i, (stream, start, end) in enumerate(zip(*words, strict=True)):
            when = np.flatnonzero(fired[start : end + late, stream])
            if len(when):
                found[i] = start + when[0] - end
        detected.append(np.isfinite(found).mean())
        delays.append(found)
    return Curve(thresholds, np.array(detected), np.array(alarms), np.stack(delays))


def choose(curve: Curve, alarms: float) -> int:
    """The number of the lowest threshold from which on there are at most `alarms` false alarms per hour.

    Raises:
      ValueError: even the highest threshold has more.
    """
    if curve.alarms[-1] > alarms:
        raise ValueError(f"{curve.alarms[-1]:g} false alarms an hour at the highest threshold, asked for {alarms:g}")
    above = np.flatnonzero(curve.alarms > alarms)
    return int(above[-1]) + 1 if len(above) else 0


def draw_tradeoff(axes: "Axes", curve: Curve, label: str, at: int | None = None, **style) -> None:
    """Draws missed words against false alarms (a DET curve on linear and logarithmic axes), and one threshold of it."""
    seen = curve.alarms > 0
    (line,) = axes.plot(curve.alarms[seen], 100 * (1 - curve.detected[seen]), label=label, linewidth=1.4, **style)
    if at is not None and seen[at]:
        axes.plot(curve.alarms[at], 100 * (1 - curve.detected[at]), "o", color=line.get_color(), markersize=5)
    axes.set(xscale="log", xlabel="false alarms an hour", ylabel="missed words, %", ylim=(0, 100))
