"""The class of a series of numbers: a recurrent network, and what it has to beat.

All map xs [B, T, D] to logits [B, V] of V classes: `softmax(logits)` are the probabilities, `argmax` is the answer.
Lengths int [B] are the numbers of real steps of the series; without them all steps are real.
"""

import itertools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax import regularizers
from seqjax.arrays import Array
from seqjax.core import Cell
from seqjax.initializers import glorot_uniform
from seqjax.models.products import Conv, Linear
from seqjax.nnx import Dropout, Recurrent
from seqjax.nnx.combine import layer
from seqjax.unrolling import mask_from_lengths, unroll

__all__ = ["ConvClassifier", "DenseClassifier", "MomentsClassifier", "SeriesClassifier"]


class SeriesClassifier(nnx.Module):
    """`Dense(V)(dropout(y))`, with y the last output of a recurrent network, or the mean of its outputs.

    Attributes:
      encoder: the linear layer before the network, or None.
      rnn, dropout, head: the layers.
    """

    def __init__(
        self,
        cell: Cell,
        in_features: int,
        classes: int,
        *,
        backward: Cell | None = None,
        encoder: int = 0,
        mean: bool = False,
        recurrent_dropout: Array | float = 0.0,
        dropout: Array | float = 0.0,
        rngs: nnx.Rngs,
    ):
        """Draw the weights.

        Args:
          cell: any cell, also a stack.
          in_features: variables D.
          classes: classes V.
          backward: a cell that reads the series from its end (`Bidirectional`), or None.
          encoder: features of a linear layer before the network, for cells whose output is as wide as their input
            (`cells.lru`); 0 for none.
          mean: the mean of the outputs of all real steps, instead of the last one.
          recurrent_dropout: rate inside the recurrence, see `regularizers.recurrent_dropout`.
          dropout: rate of the dropout before the dense layer.
          rngs: streams "params" and "dropout".
        """
        self.encoder = _dense(in_features, encoder, rngs) if encoder else None
        self.rnn = layer(
            cell if backward is None else (cell, backward),
            encoder or in_features,
            regularizers=[partial(regularizers.recurrent_dropout, rate=recurrent_dropout)],
            return_sequences=mean,
            rngs=rngs,
        )
        self.mean = mean
        self.dropout = Dropout(dropout, rngs=rngs)
        self.head = _dense(self.rnn.out_features, classes, rngs)

    def __call__(self, xs: Array, lengths: Array | None = None) -> Array:
        """`xs [B, T, D], lengths int [B] -> logits [B, V]`."""
        xs = xs if self.encoder is None else self.encoder(xs)
        ys = self.rnn(xs, seq_lengths=lengths)
        return self.head(self.dropout(_mean(ys, lengths) if self.mean else ys))

    def prefixes(self, xs: Array) -> Array:
        """`xs [B, T, D] -> logits [B, T, V]`, at each step those of the series that ends there; without dropout.

        Raises:
          ValueError: the network reads backward, or takes the mean of its outputs.
        """
        if self.mean or not isinstance(self.rnn, Recurrent):
            raise ValueError("prefixes needs a network that reads forward and answers from its last output")
        xs = xs if self.encoder is None else self.encoder(xs)
        _, ys = unroll(self.rnn.cell, self.rnn.weights, None, jnp.swapaxes(xs, 0, 1))
        return self.head(jnp.swapaxes(ys, 0, 1))


class DenseClassifier(nnx.Module):
    """A dense net on the flattened series: relu layers, Dense(V). Without hidden layers, logistic regression."""

    def __init__(
        self,
        steps: int,
        in_features: int,
        classes: int,
        *,
        hidden: Sequence[int] = (128,),
        dropout: Array | float = 0.0,
        rngs: nnx.Rngs,
    ):
        """Draw the weights.

        Args:
          steps: steps T of a series.
          in_features: variables D.
          classes: classes V.
          hidden: units of each hidden layer.
          dropout: rate of the dropout after each hidden layer.
          rngs: streams "params" and "dropout".
        """
        self.shape = (steps, in_features)
        widths = [steps * in_features, *hidden, classes]
        self.layers = nnx.List([_dense(n, m, rngs) for n, m in itertools.pairwise(widths)])
        self.dropout = Dropout(dropout, rngs=rngs)

    def __call__(self, xs: Array, lengths: Array | None = None) -> Array:
        """`xs [B, T, D] -> logits [B, V]`; the padding is read as it is. ValueError for series of another shape."""
        del lengths
        if xs.ndim != 3 or xs.shape[1:] != self.shape:
            raise ValueError(f"series have shape {xs.shape}, expected [B, {self.shape[0]}, {self.shape[1]}]")
        *hidden, head = self.layers
        x = xs.reshape(len(xs), -1)
        for one in hidden:
            x = self.dropout(jax.nn.relu(one(x)))
        return head(x)


class MomentsClassifier(nnx.Module):
    """`Dense(V)(dropout(relu(Dense(hidden)([mean, deviation]))))` of each variable over time: no order is known."""

    def __init__(
        self, in_features: int, classes: int, *, hidden: int = 64, dropout: Array | float = 0.0, rngs: nnx.Rngs
    ):
        """Draw the weights.

        Args:
          in_features: variables D.
          classes: classes V.
          hidden: hidden units.
          dropout: rate before the last layer, in [0, 1), may be traced.
          rngs: streams "params" and "dropout".
        """
        self.hidden = _dense(2 * in_features, hidden, rngs)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.head = _dense(hidden, classes, rngs)

    def __call__(self, xs: Array, lengths: Array | None = None) -> Array:
        """`xs [B, T, D], lengths int [B], at least 1 -> logits [B, V]`."""
        lengths = jnp.full(len(xs), xs.shape[1], jnp.int32) if lengths is None else lengths
        real = jnp.broadcast_to(_real(xs, lengths), xs.shape)
        mean = xs.mean(1, where=real)
        # Not the deviation itself: its slope at 0, where a series has one step, is infinite.
        deviation = jnp.sqrt(xs.var(1, where=real) + 1e-4)
        hidden = jax.nn.relu(self.hidden(jnp.concatenate([mean, deviation], axis=-1)))
        return self.head(self.dropout(hidden))


class ConvClassifier(nnx.Module):
    """A fully convolutional network (Wang et al. 2017, arXiv 1611.06455): three convolutions, mean over time, Dense(V).

    Kernels of 8, 5 and 3 steps, each convolution followed by layer normalization of a step's features, and relu. The
    paper has 128, 256 and 128 filters and batch normalization; normalized without the batch, a series gets the same
    answer in any batch, and no step beyond its end affects it.
    """

    kernels = (8, 5, 3)

    def __init__(self, in_features: int, classes: int, *, filters: Sequence[int] = (32, 64, 32), rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          in_features: variables D.
          classes: classes V.
          filters: of each of the three convolutions.
          rngs: stream "params".
        """
        widths = [in_features, *filters]
        sizes = zip(widths[:-1], widths[1:], self.kernels, strict=True)
        self.convs = nnx.List([Conv(n, m, (k,), kernel_init=glorot_uniform(), rngs=rngs) for n, m, k in sizes])
        self.norms = nnx.List([nnx.LayerNorm(m, rngs=rngs) for m in filters])
        self.head = _dense(widths[-1], classes, rngs)

    def __call__(self, xs: Array, lengths: Array | None = None) -> Array:
        """`xs [B, T, D], lengths int [B] -> logits [B, V]`."""
        lengths = jnp.full(len(xs), xs.shape[1], jnp.int32) if lengths is None else lengths
        real = _real(xs, lengths)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            xs = jax.nn.relu(norm(conv(jnp.where(real, xs, jnp.zeros_like(xs)))))
        return self.head(_mean(jnp.where(real, xs, jnp.zeros_like(xs)), lengths))


def _dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> Linear:
    return Linear(inputs, outputs, kernel_init=glorot_uniform(), rngs=rngs)


def _real(xs: Array, lengths: Array) -> Array:
    """True where a step is real, [B, T, 1]."""
    return jnp.expand_dims(mask_from_lengths(lengths, xs.shape[1]).T, 2)


def _mean(ys: Array, lengths: Array | None) -> Array:
    """The mean [B, O] of ys [B, T, O] over the real steps; the others are 0."""
    if lengths is None:
        return ys.mean(1)
    return ys.sum(1) / jnp.expand_dims(lengths.astype(ys.dtype), 1)
