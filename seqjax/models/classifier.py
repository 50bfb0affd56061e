"""One logit of a text: from its bag of tokens, or from its tokens in their order.

The logit is of "yes" against "no": `sigmoid(logit)` is the probability, `logit > 0` the answer.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax import regularizers
from seqjax.arrays import Array
from seqjax.core import Cell
from seqjax.initializers import glorot_uniform
from seqjax.models.embed import Embed
from seqjax.models.products import Linear
from seqjax.nnx import Dropout
from seqjax.nnx.combine import layer
from seqjax.wrappers import with_one_hot

__all__ = ["BagClassifier", "SequenceClassifier", "pool"]


class BagClassifier(nnx.Module):
    """`Dense(1)(dropout(relu(Dense(hidden)(bag))))` of a bag of tokens (Chollet 2021, chapter 11).

    A bag [V] has a weight at each token that occurs (1, a count, TF-IDF) and 0 elsewhere. It is given by its entries,
    so that the first layer is a sum of rows of its weights and no vector of V numbers is built.
    """

    def __init__(self, size: int, *, hidden: int = 16, dropout: Array | float = 0.5, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          size: tokens of the vocabulary V.
          hidden: hidden units.
          dropout: rate, in [0, 1), may be traced.
          rngs: streams "params" and "dropout".
        """
        self.rows = Embed(size, hidden, embedding_init=glorot_uniform(), rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((hidden,)))
        self.dropout = Dropout(dropout, rngs=rngs)
        self.head = Linear(hidden, 1, kernel_init=glorot_uniform(), rngs=rngs)

    def __call__(self, tokens: Array, weights: Array) -> Array:
        """Tokens int [B, K] and their weights [B, K], 0 for padding, to logits [B]."""
        hidden = jnp.einsum("bk,bkh->bh", weights, self.rows(tokens))
        hidden = jax.nn.relu(hidden + jnp.broadcast_to(self.bias[...], hidden.shape))
        return self.head(self.dropout(hidden))[:, 0]


class SequenceClassifier(nnx.Module):
    """`Dense(1)(dropout(rnn(embedding(tokens))))`, with the last output of the recurrent network or all of them pooled.

    Attributes:
      embedding, rnn, dropout, head: the layers; the embedding is None where the tokens are one-hot vectors.
    """

    def __init__(
        self,
        cell: Cell,
        size: int,
        features: int = 256,
        *,
        tokens: int = 1,
        backward: Cell | None = None,
        vectors: Array | None = None,
        frozen: bool = False,
        pooled: bool = False,
        word_dropout: Array | float = 0.0,
        recurrent_dropout: Array | float = 0.0,
        dropout: Array | float = 0.5,
        rngs: nnx.Rngs,
    ):
        """Draw the weights.

        Args:
          cell: any cell, also a stack.
          size: tokens of the vocabulary V.
          features: width E of the embedding, which starts at U(-0.05, 0.05); 0 for none, the tokens are then one-hot
            vectors (`with_one_hot`).
          tokens: of a step. Several are one input, the sum of their vectors: a word and the pair that it ends.
          backward: a cell that reads the text from its end (`Bidirectional`), or None.
          vectors: float [V, E], pretrained word vectors that the embedding starts at.
          frozen: leave the embedding as it is.
          pooled: take the largest and the mean output of each unit over all steps, in place of the last one (Howard &
            Ruder 2018, arXiv 1801.06146, who keep that too).
          word_dropout: rate of the words of a text that are left blank in training: they become token 0, the mask
            (Iyyer et al. 2015, "Deep unordered composition rivals syntactic methods for text classification").
          recurrent_dropout: rate inside the recurrence, see `regularizers.recurrent_dropout`.
          dropout: rate of the dropout before the dense layer.
          rngs: streams "params" and "dropout".

        Raises:
          ValueError: vectors of another shape.
        """
        embedding = None
        if features:
            embedding = Embed(size, features, embedding_init=nnx.initializers.uniform(0.1), rngs=rngs)
            embedding.embedding[...] -= 0.05
        if vectors is not None:
            if embedding is None or vectors.shape != (size, features):
                raise ValueError(f"vectors have shape {vectors.shape}, expected {(size, features)}")
            embedding.embedding[...] = jnp.asarray(vectors, embedding.embedding.dtype)
        self.embedding = nnx.data(embedding)
        self.tokens = tokens
        self.frozen = frozen
        self.pooled = pooled
        if not features:
            cell = with_one_hot(cell, size, tokens=tokens)
            backward = backward and with_one_hot(backward, size, tokens=tokens)
        self.rnn = layer(
            cell if backward is None else (cell, backward),
            features,
            regularizers=[partial(regularizers.recurrent_dropout, rate=recurrent_dropout)],
            return_sequences=pooled,
            rngs=rngs,
        )
        self.words = Dropout(word_dropout, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)
        outputs = (1 + pooled) * self.rnn.out_features
        self.head = Linear(outputs, 1, kernel_init=glorot_uniform(), rngs=rngs)

    def __call__(self, tokens: Array, lengths: Array | None = None) -> Array:
        """Tokens int [B, T], or [B, T, tokens] where a step has several, to logits [B].

        Args:
          tokens: the texts.
          lengths: int [B], at least 1, so that the padding is not read; None to read all T steps.
        """
        kept = self.words(jnp.ones(tokens.shape)) > 0
        xs = jnp.where(kept, tokens, jnp.zeros_like(tokens))
        if self.embedding is not None:
            xs = self.embedding(xs)
            xs = xs if self.tokens == 1 else xs.sum(-2)
            xs = jax.lax.stop_gradient(xs) if self.frozen else xs
        ys = self.rnn(xs, seq_lengths=lengths)
        if self.pooled:
            ys = pool(ys, jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32) if lengths is None else lengths)
        return self.head(self.dropout(ys))[:, 0]


def pool(ys: Array, lengths: Array) -> Array:
    """Of ys [B, T, O] the maximum and the mean over the first `lengths` int [B] steps, side by side, [B, 2 O]."""
    steps = jnp.arange(ys.shape[1], dtype=lengths.dtype)
    real = (steps[None] < lengths[:, None])[..., None]
    largest = jnp.where(real, ys, -jnp.inf).max(1)
    mean = jnp.where(real, ys, 0).sum(1) / lengths[:, None].astype(ys.dtype)
    return jnp.concatenate([largest, mean], axis=-1)
