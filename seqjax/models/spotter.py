"""A network that listens: classes of each frame of sound, over whole streams, or chunk by chunk as they arrive.

Nothing is read ahead, so both give the same numbers:

    logits = spotter.logits(model, frames)                   # [T, B, M] to [T, B, K]
    carry = spotter.start(model)
    carry, logits = spotter.listen(model, carry, chunk)      # [hop] or more samples to [frames, K]
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Params
from seqjax.core import Cell
from seqjax.data import spectrogram
from seqjax.unrolling import unroll

__all__ = ["Spotter", "listen", "log_odds", "logits", "standardized", "start"]


class Spotter(NamedTuple):
    """A cell with K outputs that runs forward over standardized log-mel frames.

    Attributes:
      cell: the cell, with its head.
      params: its weights.
      mean, deviation: float32 [M], of the frames that it was trained on.
      settings: of the frames.
    """

    cell: Cell
    params: Params
    mean: Array
    deviation: Array
    settings: spectrogram.Settings


def standardized(frames: Array, mean: Array, deviation: Array) -> Array:
    """`(frames - mean) / deviation` of frames [..., M], each band by its own, [M]."""
    return (frames - jnp.broadcast_to(mean, frames.shape)) / jnp.broadcast_to(deviation, frames.shape)


def _inputs(spotter: Spotter, frames: Array) -> Array:
    return standardized(frames, spotter.mean, spotter.deviation)


def logits(spotter: Spotter, frames: Array) -> Array:
    """Log-mel frames float32 [T, B, M] of whole streams to logits [T, B, K]."""
    return unroll(spotter.cell, spotter.params, None, _inputs(spotter, frames))[1]


def start(spotter: Spotter) -> tuple[Array, Carry]:
    """The carry before the first sample: the past samples that the next frames need, and the carry of the cell."""
    return spectrogram.start(spotter.settings), spotter.cell.initial_carry(spotter.params, ())


def listen(spotter: Spotter, carry: tuple[Array, Carry], chunk: Array) -> tuple[tuple[Array, Carry], Array]:
    """The next samples of one stream, float32 [N], N a multiple of the hop, to `(carry, logits [N // hop, K])`."""
    past, state = carry
    past, frames = spectrogram.push(spotter.settings, past, chunk)

    def step(state, frame):
        return spotter.cell.step(spotter.params, state, _inputs(spotter, frame))

    state, ys = jax.lax.scan(step, state, frames)
    return (past, state), ys


def log_odds(logits: Array, which: int) -> Array:
    """Scores of one class, `log(p / (1 - p))` with p of the softmax: logits [..., K] to [...]."""
    others = jnp.concatenate([logits[..., :which], logits[..., which + 1 :]], axis=-1)
    return logits[..., which] - jax.nn.logsumexp(others, axis=-1)
