"""One logit of a text: from its bag of tokens, or from its tokens in their order.

The logit is of "yes" against "no": `sigmoid(logit)` is the probability, `logit > 0` the answer.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.core import Array, Cell
from seqjax.initializers import glorot_uniform
from seqjax.nnx import Dropout
from seqjax.nnx.combine import layer


class BagClassifier(nnx.Module):
    """`Dense(1)(dropout(relu(Dense(hidden)(bag))))` of a bag of tokens (Chollet 2021, chapter 11).

    A bag [V] has a weight at each token that occurs (1, a count, TF-IDF) and 0 elsewhere. It is given by its entries,
    so that the first layer is a sum of rows of its weights and no vector of V numbers is made.
    """

    def __init__(self, size: int, *, hidden: int = 16, dropout: Any = 0.5, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          size: tokens of the vocabulary V.
          hidden: hidden units.
          dropout: rate, in [0, 1), may be traced.
          rngs: streams "params" and "dropout".
        """
        self.rows = nnx.Embed(size, hidden, embedding_init=glorot_uniform(), rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((hidden,)))
        self.dropout = Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(hidden, 1, kernel_init=glorot_uniform(), rngs=rngs)

    def __call__(self, tokens: Array, weights: Array) -> Array:
        """Tokens int [B, K] and their weights [B, K], 0 for padding, to logits [B]."""
        hidden = jnp.einsum("bk,bkh->bh", weights, self.rows(tokens))
        hidden = jax.nn.relu(hidden + jnp.broadcast_to(self.bias[...], hidden.shape))
        return self.head(self.dropout(hidden))[:, 0]


class SequenceClassifier(nnx.Module):
    """`Dense(1)(dropout(rnn(embedding(tokens))))`, with the last output of the recurrent network.

    Attributes:
      embedding, rnn, dropout, head: the layers.
    """

    def __init__(
        self,
        cell: Cell,
        size: int,
        features: int = 256,
        *,
        backward: Cell | None = None,
        vectors: Array | None = None,
        frozen: bool = False,
        recurrent_dropout: Any = 0.0,
        dropout: Any = 0.5,
        rngs: nnx.Rngs,
    ):
        """Draw the weights.

        Args:
          cell: any cell, also a stack.
          size: tokens of the vocabulary V.
          features: width E of the embedding.
          backward: a cell that reads the text from its end (`Bidirectional`), or None.
          vectors: float [V, E], pretrained word vectors that the embedding starts at.
          frozen: leave the embedding as it is.
          recurrent_dropout: rate inside the recurrence, see `Recurrent`.
          dropout: rate of the dropout before the dense layer.
          rngs: streams "params" and "dropout".

        Raises:
          ValueError: vectors of another shape.
        """
        self.embedding = nnx.Embed(size, features, embedding_init=nnx.initializers.uniform(0.1), rngs=rngs)
        if vectors is not None:
            if vectors.shape != (size, features):
                raise ValueError(f"vectors have shape {vectors.shape}, expected {(size, features)}")
            self.embedding.embedding[...] = jnp.asarray(vectors, self.embedding.embedding.dtype)
        self.frozen = frozen
        options: Any = {"recurrent_dropout": recurrent_dropout, "return_sequences": False, "rngs": rngs}
        self.rnn = layer(cell if backward is None else (cell, backward), features, **options)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(self.rnn.out_features, 1, kernel_init=glorot_uniform(), rngs=rngs)

    def __call__(self, tokens: Array, lengths: Array | None = None) -> Array:
        """Tokens int [B, T] to logits [B].

        Args:
          tokens: the texts.
          lengths: int [B], so that the padding is not read; None to read all T steps.
        """
        xs = self.embedding(tokens)
        xs = jax.lax.stop_gradient(xs) if self.frozen else xs
        return self.head(self.dropout(self.rnn(xs, seq_lengths=lengths)))[:, 0]
