"""A decoder: the next token, from the tokens before it and an encoded source (a sentence, a picture).

decoder = Decoder(cells.gru(256), 8000, 128, about=512, attend=partial(attention.luong, features=512), rngs=rngs)
carry = decoder.start(summary)                   # summary [B, 512]
memory = decoder.remember(values, mask)          # values [B, S, 512]
logits = decoder(tokens, carry, memory)          # tokens int [B, T], logits [B, T, 8000]
carry, logits = decoder.step(carry, token, memory)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqjax import decoding
from seqjax.arrays import Array, Carry, Key, check_indices
from seqjax.attention import Attending
from seqjax.core import Cell, Const
from seqjax.models.embed import Embed
from seqjax.models.products import Linear
from seqjax.nnx import Dropout, RNNCell
from seqjax.unrolling import unroll

__all__ = ["Decoder"]


class Decoder(nnx.Module):
    """`head(dropout(rnn(dropout(embedding(token)))))`, where the cell may attend to a memory.

    Attributes:
      embedding, bridge, rnn, dropout, head: the layers; the bridge makes the first carry from a summary, `tanh(Dense)`.
      inside: the cell.
      attending: that cell with attention, or None.
    """

    def __init__(
        self,
        cell: Cell,
        size: int,
        features: int,
        *,
        about: int,
        attend: Callable[[Cell], Attending] | None = None,
        dropout: Array | float = 0.0,
        rngs: nnx.Rngs,
    ):
        """Draw the weights.

        Args:
          cell: any cell, also a stack.
          size: tokens of the vocabulary V.
          features: width E of the embedding.
          about: features K of a summary.
          attend: `Cell -> Attending`, such as `partial(attention.bahdanau, features=512)`; None for a decoder that
            knows the summary alone.
          dropout: rate before the cell and before the head, in [0, 1), may be traced.
          rngs: streams "params" and "dropout".
        """
        self.attending = nnx.static(attend and attend(cell))
        self.embedding = Embed(size, features, rngs=rngs)
        self.rnn = RNNCell(cell if self.attending is None else self.attending.cell, features, rngs=rngs)
        self.inside = nnx.static(cell)
        leaves = jax.tree.leaves(self._first())
        self.bridge = Linear(about, sum(leaf.size for leaf in leaves), rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)
        width = self.rnn.out_features if self.attending is None else self.rnn.weights["w_c"].shape[-1]
        self.head = Linear(width, size, rngs=rngs)

    def _first(self) -> Carry:
        """The initial carry of the cell inside, of one sequence."""
        params = self.rnn.weights if self.attending is None else self.rnn.weights["cell"]
        return self.inside.initial_carry(params, ())

    def start(self, summary: Array) -> Carry:
        """The carry before the first token, of summaries [B, K]."""
        flat, (leaves, treedef) = jnp.tanh(self.bridge(summary)), jax.tree.flatten(self._first())
        borders = [sum(leaf.size for leaf in leaves[:i]) for i in range(1, len(leaves))]
        parts = jnp.split(flat, borders, axis=-1)
        carry = treedef.unflatten(
            [part.reshape(*part.shape[:-1], *leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        )
        return carry if self.attending is None else self.attending.start(carry)

    def remember(self, values: Array, mask: Array | None = None) -> Const | None:
        """The memory of values [B, S, M] that are real where mask bool [B, S] is true; None without attention."""
        return self.attending and self.attending.remember(self.rnn.weights, values, mask)

    def _inputs(self, tokens: Array, memory: Const | None) -> Any:
        """What the cell reads: embedded tokens, and the memory beside them."""
        xs = self.dropout(self.embedding(tokens))
        return xs if self.attending is None else (xs, memory)

    def __call__(self, tokens: Array, carry: Carry, memory: Const | None = None) -> Array:
        """Logits [B, T, V] of the token after each of tokens int [B, T] (teacher forcing)."""
        _, ys = unroll(self.rnn.cell, self.rnn.weights, carry, self._inputs(tokens.T, memory))
        return jnp.swapaxes(self.head(self.dropout(ys)), 0, 1)

    def step(self, carry: Carry, tokens: Array, memory: Const | None = None) -> tuple[Carry, Array]:
        """One step: `(carry, tokens int [B]) -> (carry, logits [B, V])`."""
        carry, y = self.rnn(carry, self._inputs(tokens, memory))
        return carry, self.head(self.dropout(y))

    def search(
        self,
        length: int,
        carry: Carry,
        memory: Const | None = None,
        *,
        start: int,
        stop: int,
        width: int = 1,
        length_penalty: float = 0.0,
    ) -> Array:
        """Tokens int32 [B, length] of the likeliest texts that the search finds, `stop` after the end.

        Args:
          length: longest text.
          carry: before the first token.
          memory: of `remember`.
          start: the token that every text begins with.
          stop: the token that it ends with.
          width: of the beam; 1 takes the likeliest token at every step (`decoding.greedy`).
          length_penalty: see `decoding.beam`.

        Raises:
          ValueError: start or stop outside of range(V).
        """
        check_indices("start and stop", np.array([start, stop]), self.embedding.num_embeddings)
        first = jnp.full(jax.tree.leaves(carry)[0].shape[:1], start, jnp.int32)
        step = partial(self.step, memory=memory)
        if width == 1:
            return decoding.greedy(step, carry, first, length, stop=stop)[1].T
        tokens, _ = decoding.beam(step, carry, first, length, width=width, stop=stop, length_penalty=length_penalty)
        return tokens[:, :, 0].T

    def weights(self, tokens: Array, carry: Carry, memory: Const | None) -> Array:
        """The weights of attention [B, T, S] as tokens int [B, T] are read.

        Raises:
          ValueError: the decoder has no attention.
        """
        if self.attending is None:
            raise ValueError("a decoder without attention has no weights to show")
        _, weights = unroll(self.attending.alignment, self.rnn.weights, carry, self._inputs(tokens.T, memory))
        return jnp.swapaxes(weights, 0, 1)

    def sampled(self, key: Key, rate: Array | float, tokens: Array, carry: Carry, memory: Const | None = None) -> Array:
        """Tokens int [B, T], each but the first replaced with probability `rate` by one that the decoder generates.

        Scheduled sampling (Bengio et al. 2015, arXiv 1506.03099): read these in place of the given ones. The token of
        each step is sampled from the softmax, given the tokens that were read before it. No gradient passes through a
        sampled token, so the gradient of `self(self.sampled(...), carry, memory)` is that of the paper's single loop,
        and keeps its fast path. A rate of 0 costs nothing.

        Args:
          key: PRNG key.
          rate: in [0, 1], may be traced.
          tokens: the given ones.
          carry: before the first token.
          memory: of `remember`.
        """
        model = nnx.view(self, deterministic=True)

        def draw():
            k_coin, k_token = jax.random.split(key)
            coins = jax.random.bernoulli(k_coin, jnp.asarray(rate, jnp.float32), tokens.T.shape)

            def body(state, inputs):
                carry, sampled = state
                given, coin, key = inputs
                read = jnp.where(coin, sampled, given)
                carry, logits = model.step(carry, read, memory)
                return (carry, decoding.choose(key, logits).astype(tokens.dtype)), read

            keys = jax.random.split(k_token, tokens.shape[1])
            coins = coins.at[0].set(False)
            _, read = jax.lax.scan(body, (carry, tokens[:, 0]), (tokens.T, coins, keys))
            return read.T

        return jax.lax.cond(jnp.asarray(rate) > 0, draw, lambda: tokens)
