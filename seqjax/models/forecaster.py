"""One number from a window of a time series: the models of Chollet, "Deep Learning with Python", chapter 10.

They map xs [B, T, D] (in the book B, 120 hours, 14 standardized variables) to forecasts [B], in the units of the
targets that they are trained on. Weights start as in Keras (Glorot uniform, zero biases).

Dropout rates may be traced scalars, see `seqjax.nnx`: a sweep builds the model inside `jax.vmap`, with its own rates,

    jax.vmap(lambda rate: RecurrentForecaster(cell, 14, dropout=rate, rngs=nnx.Rngs(0))(xs))(rates)

or merges one and sets `model.dropout.rate = rate`, `model.rnn.regularizers = [partial(recurrent_dropout, rate=rate)]`.
"""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from seqjax.arrays import Array
from seqjax.core import Cell
from seqjax.initializers import glorot_uniform
from seqjax.models.products import Conv, Linear
from seqjax.nnx import Dropout, Rngs
from seqjax.nnx.combine import layer

__all__ = ["ConvForecaster", "DenseForecaster", "RecurrentForecaster"]


def _dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> Linear:
    return Linear(inputs, outputs, kernel_init=glorot_uniform(), rngs=rngs)


def _conv(inputs: int, outputs: int, width: int, rngs: nnx.Rngs) -> Conv:
    return Conv(inputs, outputs, (width,), padding="VALID", kernel_init=glorot_uniform(), rngs=rngs)


class DenseForecaster(nnx.Module):
    """A dense net on the flattened window: `Dense(1)(relu(Dense(hidden)(flatten(xs))))`."""

    def __init__(self, steps: int, in_features: int, *, hidden: int = 16, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          steps: steps T of a window.
          in_features: variables D.
          hidden: hidden units.
          rngs: stream "params".
        """
        self.window = (steps, in_features)
        self.hidden = _dense(steps * in_features, hidden, rngs)
        self.head = _dense(hidden, 1, rngs)

    def __call__(self, xs: Array) -> Array:
        """`xs [B, T, D] -> [B]`; ValueError for windows of another shape."""
        if xs.ndim != 3 or xs.shape[1:] != self.window:
            raise ValueError(f"inputs have shape {xs.shape}, expected [B, {self.window[0]}, {self.window[1]}]")
        return self.head(jax.nn.relu(self.hidden(xs.reshape(xs.shape[0], -1))))[:, 0]


class ConvForecaster(nnx.Module):
    """A one-dimensional convolution net: relu Conv1D(8, 24), (8, 12), (8, 6), global average, Dense(1).

    The convolutions are unpadded; the first two are followed by a max pooling of 2.
    """

    shortest = 69
    """Steps from which one position is left to average over."""

    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          in_features: variables D.
          rngs: stream "params".
        """
        self.in_features = in_features
        self.conv1 = _conv(in_features, 8, 24, rngs)
        self.conv2 = _conv(8, 8, 12, rngs)
        self.conv3 = _conv(8, 8, 6, rngs)
        self.head = _dense(8, 1, rngs)

    def __call__(self, xs: Array) -> Array:
        """`xs [B, T, D] -> [B]`; ValueError for another D, or T under 69."""
        if xs.ndim != 3 or xs.shape[1] < self.shortest or xs.shape[2] != self.in_features:
            raise ValueError(f"inputs have shape {xs.shape}, expected [B, {self.shortest} or more, {self.in_features}]")
        x = nnx.max_pool(jax.nn.relu(self.conv1(xs)), (2,), (2,))  # [B, (T-23)/2, 8]
        x = nnx.max_pool(jax.nn.relu(self.conv2(x)), (2,), (2,))
        x = jax.nn.relu(self.conv3(x))
        return self.head(x.mean(axis=1))[:, 0]


class RecurrentForecaster(nnx.Module):
    """A recurrent network's last output, dropout, Dense(1).

    The book's are `cells.lstm(16)`; `cells.lstm(32)` with recurrent dropout 0.25 and dropout 0.5; a stack of two
    `cells.gru(32)` with 0.5 and 0.5; and `cells.lstm(16)` in both directions.

    Attributes:
      rnn, dropout, head: the layers.
    """

    def __init__(
        self,
        cell: Cell,
        in_features: int,
        *,
        backward: Cell | None = None,
        regularizers: Sequence[Any] = (),
        dropout: Array | float = 0.0,
        rngs: nnx.Rngs,
    ):
        """Draw the weights.

        Args:
          cell: any cell, also a stack.
          in_features: variables D.
          backward: a cell that reads the window from its end (`Bidirectional`), or None.
          regularizers: of the cell, as `nnx.Recurrent` takes them. The recurrent dropout of Keras, and so of the book,
            has a mask for each gate: `partial(recurrent_dropout, rate=0.25, gates=4)` of an LSTM, 3 of a GRU.
          dropout: rate of the dropout before the dense layer.
          rngs: streams "params" and "dropout".
        """
        both = cell if backward is None else (cell, backward)
        self.rnn = layer(both, in_features, regularizers=regularizers, return_sequences=False, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.head = _dense(self.rnn.out_features, 1, rngs)

    def __call__(self, xs: Array, *, rngs: Rngs | None = None) -> Array:
        """`xs [B, T, D] -> [B]`; dropout draws from `rngs` instead of the module's own streams, if given."""
        return self.head(self.dropout(self.rnn(xs, rngs=rngs), rngs=rngs))[:, 0]
