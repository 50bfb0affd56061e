"""Sequence to sequence: an encoder reads a sentence in both directions, a decoder generates another one.

translator = Translator(cells.gru(256), 6000, 8000, 128, attend=attention.bahdanau, rngs=nnx.Rngs(0))
logits = translator(source, lengths, target)               # teacher forcing
tokens, scores = translator.translate(source, lengths, 20, start=2, stop=3, width=5)
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.arrays import Array, Carry
from seqjax.attention import Attending
from seqjax.core import Cell, Const
from seqjax.models.decoder import Decoder
from seqjax.models.embed import Embed
from seqjax.nnx import Bidirectional, Dropout
from seqjax.unrolling import mask_from_lengths

__all__ = ["Translator"]


class Translator(nnx.Module):
    """Encoder and decoder (Sutskever et al. 2014, arXiv 1409.3215; Cho et al. 2014, arXiv 1406.1078).

    The decoder starts at `tanh(Dense)` of what the encoder knows at both ends of the sentence, and with attention it
    also sees all states of the encoder.

    Attributes:
      embedding, dropout, encoder, decoder: the layers.
    """

    def __init__(
        self,
        cell: Cell,
        source_size: int,
        target_size: int,
        features: int,
        *,
        attend: Callable[..., Attending] | None = None,
        dropout: Array | float = 0.0,
        rngs: nnx.Rngs,
    ):
        """Draw the weights.

        Args:
          cell: of the decoder and of both directions of the encoder, whose carry is vectors.
          source_size: tokens of the language that is read.
          target_size: tokens V of the target language.
          features: width E of both embeddings.
          attend: `attention.bahdanau`, `attention.luong`, or a `functools.partial` of one; None: no attention.
          dropout: rate before each layer, in [0, 1), may be traced.
          rngs: streams "params" and "dropout".
        """
        self.embedding = Embed(source_size, features, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.encoder = Bidirectional(cell, cell, features, rngs=rngs)
        width = self.encoder.out_features
        params = self.encoder.forward.weights
        about = 2 * sum(leaf.size for leaf in jax.tree.leaves(cell.initial_carry(params, ())))
        self.decoder = Decoder(
            cell,
            target_size,
            features,
            about=about,
            attend=attend and partial(attend, features=width),
            dropout=dropout,
            rngs=rngs,
        )

    def encode(self, source: Array, lengths: Array) -> tuple[Carry, Const | None]:
        """What the decoder starts with, and its memory, of source int [B, S] with lengths int [B]."""
        carry, ys = self.encoder(self.dropout(self.embedding(source)), seq_lengths=lengths, return_carry=True)
        summary = jnp.concatenate(jax.tree.leaves(carry), axis=-1)
        mask = mask_from_lengths(lengths, source.shape[1]).T
        return self.decoder.start(summary), self.decoder.remember(ys, mask)

    def __call__(self, source: Array, lengths: Array, target: Array) -> Array:
        """Logits [B, T, V] of the token after each of target int [B, T], which begins with the start token."""
        return self.decoder(target, *self.encode(source, lengths))

    def translate(
        self,
        source: Array,
        lengths: Array,
        length: int,
        *,
        start: int,
        stop: int,
        width: int = 1,
        length_penalty: float = 0.0,
    ) -> Array:
        """Tokens int32 [B, length] of the likeliest translations that a search finds, `stop` after the end.

        Args:
          source: int [B, S].
          lengths: int [B].
          length: longest translation.
          start: the token that every sentence begins with.
          stop: the token that it ends with.
          width: of the beam; 1 takes the likeliest token at every step (`decoding.greedy`).
          length_penalty: see `decoding.beam`.
        """
        carry, memory = self.encode(source, lengths)
        return self.decoder.search(
            length, carry, memory, start=start, stop=stop, width=width, length_penalty=length_penalty
        )
