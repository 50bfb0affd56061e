"""A language model: the logits of the next token, from the tokens so far."""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx

from seqjax import draws, regularizers
from seqjax.arrays import Array, Carry, dense
from seqjax.core import Cell
from seqjax.initializers import glorot_uniform
from seqjax.models.embed import Embed, look_up
from seqjax.nnx import Recurrent
from seqjax.nnx.noise import Noisy

__all__ = ["LanguageModel"]


class LanguageModel(Noisy):
    """Embedding, recurrent layers, softmax head, with the regularizers of AWD-LSTM.

        ys = layers(embedding[tokens]);   logits = ys @ w + b,   w = embedding.T where tied

    Merity, Keskar & Socher 2017, arXiv 1708.02182: word types dropped from the embedding, weights from the recurrent
    matrices, and features between all layers, under one mask per sequence (Gal & Ghahramani 2016, arXiv 1512.05287).
    Tied weights: Inan et al. 2016, arXiv 1611.01462; Press & Wolf 2016, arXiv 1608.05859.

    Attributes:
      embedding: the table [V, E].
      layers: a `Recurrent` each.
      kernel: w [O, V], None if tied.
      bias: b [V].
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        size: int,
        features: int,
        *,
        tied: bool = False,
        embedding_dropout: Array | float = 0.0,
        input_dropout: Array | float = 0.0,
        hidden_dropout: Array | float = 0.0,
        output_dropout: Array | float = 0.0,
        weight_drop: Array | float = 0.0,
        rngs: nnx.Rngs,
    ):
        """Draw the weights. A rate lies in [0, 1); the number 0 omits its dropout, a traced 0 draws masks of ones.

        Args:
          cells: one per layer, each any cell.
          size: tokens of the vocabulary V.
          features: width E of the embedding.
          tied: the head has the weights of the embedding; the last layer has E outputs then.
          embedding_dropout: rate at which words are dropped, at all their places in a batch; the head keeps them.
          input_dropout: rate of what the first layer reads.
          hidden_dropout: rate of what further layers read.
          output_dropout: rate of what the head reads.
          weight_drop: rate of the entries of recurrent matrices.
          rngs: streams "params" and "dropout".

        Raises:
          ValueError: for no cells, tied weights of other than E outputs, a rate outside [0, 1), or `weight_drop` of a
            cell that has no matrix `w_h`.
        """
        super().__init__(rngs)
        if not cells:
            raise ValueError("a language model needs at least one cell")
        self.embedding_dropout = draws.check_rate(embedding_dropout)
        self.embedding = Embed(size, features, embedding_init=nnx.initializers.uniform(0.2), rngs=rngs)
        self.embedding.embedding[...] -= 0.1
        self.layers = nnx.List([])
        width = features
        for i, cell in enumerate(cells):
            dropped = [partial(regularizers.input_dropout, rate=hidden_dropout if i else input_dropout)]
            if i == len(cells) - 1:
                dropped.append(partial(regularizers.output_dropout, rate=output_dropout))
            layer = Recurrent(
                cell,
                width,
                regularizers=dropped,
                weight_regularizers=[partial(regularizers.weight_drop, rate=weight_drop)],
                return_carry=True,
                time_major=True,
                rngs=rngs,
            )
            width = layer.out_features
            self.layers.append(layer)
        if tied and width != features:
            raise ValueError(f"tied weights need a last layer of {features} outputs, as the embedding has, got {width}")
        self.kernel = None if tied else nnx.Param(glorot_uniform()(rngs.params(), (width, size), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((size,)))

    def initial_carry(self, batch: int) -> Carry:
        """The carry before the first token of `batch` texts: a tuple with one entry per layer."""
        return tuple(layer.cell.initial_carry(layer.weights, (batch,)) for layer in self.layers)

    def __call__(self, tokens: Array, carry: Carry | None = None) -> tuple[Carry, Array, Array]:
        """Read tokens int [T, B], continuing from a carry (None: from the start).

        Returns:
          The carry, the outputs ys [T, B, O] that the head read, and the logits [T, B, V] of the token after each.
        """
        table = self.embedding.embedding[...]
        read = table
        if self._active(self.embedding_dropout):
            named = {"embedding": table}
            read = regularizers.embedding_dropout(self._key(None), named, self.embedding_dropout)["embedding"]
        ys = look_up(read, tokens)
        before = (None,) * len(self.layers) if carry is None else carry
        after = []
        for layer, start in zip(self.layers, before, strict=True):
            end, ys = layer(ys, initial_carry=start)
            after.append(end)
        w = table.T if self.kernel is None else self.kernel[...]
        return tuple(after), ys, dense(ys, w, self.bias[...])
