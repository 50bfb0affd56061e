"""Which word was said: classifiers of log-mel frames, recurrent and not.

All map frames [B, T, M] and the number of real ones, int [B], to logits [B, K]; what is behind the end is not read.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.core import Array, Cell
from seqjax.initializers import glorot_uniform
from seqjax.nnx import Dropout
from seqjax.nnx.combine import layer

__all__ = ["ConvWordClassifier", "MomentsWordClassifier", "RecurrentWordClassifier"]


def _real(frames: Array, lengths: Array) -> Array:
    """True where a frame is real, [B, T, 1]."""
    return (jnp.arange(frames.shape[1], dtype=lengths.dtype)[None] < lengths[:, None])[..., None]


def _dense(features: int, out: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(features, out, kernel_init=glorot_uniform(), rngs=rngs)


class MomentsWordClassifier(nnx.Module):
    """`Dense(K)(dropout(relu(Dense(hidden)([mean, deviation]))))` of each band over time: no order is known."""

    def __init__(self, bands: int, classes: int, *, hidden: int = 64, dropout: Any = 0.0, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          bands: mel bands M.
          classes: words K.
          hidden: hidden units.
          dropout: rate before the last layer, in [0, 1), may be traced.
          rngs: streams "params" and "dropout".
        """
        self.hidden = _dense(2 * bands, hidden, rngs)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.head = _dense(hidden, classes, rngs)

    def __call__(self, frames: Array, lengths: Array) -> Array:
        """Frames [B, T, M], lengths int [B], at least 1, to logits [B, K]."""
        real = jnp.broadcast_to(_real(frames, lengths), frames.shape)
        mean = frames.mean(1, where=real)
        # Not the deviation itself: its slope at 0, where a word has one frame, is infinite.
        deviation = jnp.sqrt(frames.var(1, where=real) + 1e-4)
        hidden = jax.nn.relu(self.hidden(jnp.concatenate([mean, deviation], axis=-1)))
        return self.head(self.dropout(hidden))


class ConvWordClassifier(nnx.Module):
    """Three `relu(Conv1D(width, 5))` along time, the maximum of each over the frames, dropout, `Dense(K)`."""

    def __init__(self, bands: int, classes: int, *, width: int = 64, dropout: Any = 0.0, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          bands: mel bands M.
          classes: words K.
          width: channels of each convolution.
          dropout: rate before the last layer, in [0, 1), may be traced.
          rngs: streams "params" and "dropout".
        """
        options: Any = {"kernel_init": glorot_uniform(), "rngs": rngs}
        self.convs = nnx.List([nnx.Conv(f, width, (5,), **options) for f in (bands, width, width)])
        self.dropout = Dropout(dropout, rngs=rngs)
        self.head = _dense(width, classes, rngs)

    def __call__(self, frames: Array, lengths: Array) -> Array:
        """Frames [B, T, M], lengths int [B], at least 1, to logits [B, K]."""
        real, x = _real(frames, lengths), frames
        for conv in self.convs:
            x = jax.nn.relu(conv(jnp.where(real, x, jnp.zeros_like(x))))
        # A relu is never negative.
        return self.head(self.dropout(jnp.where(real, x, jnp.zeros_like(x)).max(1)))


class RecurrentWordClassifier(nnx.Module):
    """`Dense(K)(dropout(rnn(frames)))`, with the last output of the recurrent network.

    Attributes:
      rnn, dropout, head: the layers.
    """

    def __init__(
        self,
        cell: Cell,
        bands: int,
        classes: int,
        *,
        backward: Cell | None = None,
        recurrent_dropout: Any = 0.0,
        dropout: Any = 0.0,
        rngs: nnx.Rngs,
    ):
        """Draw the weights.

        Args:
          cell: any cell, also a stack.
          bands: mel bands M.
          classes: words K.
          backward: a cell that reads the word from its end (`Bidirectional`), or None.
          recurrent_dropout: rate inside the recurrence, see `Recurrent`.
          dropout: rate before the last layer, in [0, 1), may be traced.
          rngs: streams "params" and "dropout".
        """
        options: Any = {"recurrent_dropout": recurrent_dropout, "return_sequences": False, "rngs": rngs}
        self.rnn = layer(cell if backward is None else (cell, backward), bands, **options)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.head = _dense(self.rnn.out_features, classes, rngs)

    def __call__(self, frames: Array, lengths: Array) -> Array:
        """Frames [B, T, M], lengths int [B] to logits [B, K]."""
        return self.head(self.dropout(self.rnn(frames, seq_lengths=lengths)))
