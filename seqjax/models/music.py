"""Which keys sound next: models of piano rolls [B, T, K] that predict the chord of a step from all steps before it.

    p(v_1 .. v_T) = prod_t p(v_t | v_<t),    p(v_t | v_<t) = prod_k p(v_t,k | context_t, v_t,<k)

A recurrent network summarizes the past in a context, from which a head computes the probabilities of the keys:
independent given the past (`Independent`), or each given the keys below it (`Nade`), which models chords.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from seqjax.arrays import Array, Carry, Key, carry_dtype
from seqjax.core import Cell
from seqjax.initializers import glorot_uniform
from seqjax.models.products import Linear
from seqjax.nnx import Dropout, Stack
from seqjax.unrolling import mask_from_lengths

__all__ = ["Chain", "Independent", "Nade", "RollModel"]


class Independent(nnx.Module):
    """Keys that are independent given the past: `logits = context @ W + b`."""

    def __init__(self, features: int, keys: int = 88, *, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          features: width C of the context.
          keys: K.
          rngs: stream "params".
        """
        self.linear = Linear(features, keys, kernel_init=glorot_uniform(), rngs=rngs)

    def logits(self, context: Array, keys: Array) -> Array:
        """Context [..., C] to logits [..., K]; the keys are ignored."""
        del keys
        return self.linear(context)

    def sample(self, context: Array, key: Key, temperature: Array | float = 1.0) -> Array:
        """Context [..., C] to a sampled chord, float32 [..., K] of 0 and 1."""
        return _drawn(key, self.linear(context), temperature)


class Chain(nnx.Module):
    """Each key as an independent Markov chain: `logit_k = table[v_k, k]`, with the chord before as v. No weights."""

    def __init__(self, table: Array):
        """Take the log-odds.

        Args:
          table: float [2, K], log-odds of sounding next of a key that is silent, and of one that sounds.
        """
        self.table = nnx.Variable(table)

    def logits(self, context: Array, keys: Array) -> Array:
        """Context [..., K] of 0 and 1 to logits [..., K]; the keys are not looked at."""
        del keys
        silent, sounding = (jnp.broadcast_to(row, context.shape) for row in self.table[...])
        return jnp.where(context > 0, sounding, silent)

    def sample(self, context: Array, key: Key, temperature: Array | float = 1.0) -> Array:
        """Context [..., K] to a drawn chord, float32 [..., K] of 0 and 1."""
        return _drawn(key, self.logits(context, context), temperature)


class Nade(nnx.Module):
    """Each key given the past and the keys below it (Larochelle & Murray 2011; RNN-NADE: arXiv 1206.6392).

    a_k = context @ W_a + c + sum_{j<k} v_j W_j
    logit_k = context @ W_b + b_k + sigmoid(a_k) . V_k
    """

    def __init__(self, features: int, keys: int = 88, *, hidden: int = 64, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          features: width C of the context.
          keys: K.
          hidden: width H of a_k.
          rngs: stream "params".
        """
        self.bias = Linear(features, keys, kernel_init=glorot_uniform(), rngs=rngs)
        self.first = Linear(features, hidden, kernel_init=glorot_uniform(), rngs=rngs)
        self.read = nnx.Param(glorot_uniform()(rngs.params(), (keys, hidden), jnp.float32))
        self.write = nnx.Param(glorot_uniform()(rngs.params(), (keys, hidden), jnp.float32))

    def _weights(self) -> tuple[Array, Array]:
        """V [K, H] and W [K, H], in the dtype of the sums that they are added up in."""
        read, write = self.read[...], self.write[...]
        return read.astype(carry_dtype(read.dtype)), write.astype(carry_dtype(write.dtype))

    def logits(self, context: Array, keys: Array) -> Array:
        """Context [..., C] and the chord [..., K] to logits [..., K]; logit k depends only on the keys below k."""
        read, write = self._weights()
        written = jnp.einsum("...k,kh->...kh", keys, write)
        before = jnp.cumsum(written, -2) - written
        hidden = jax.nn.sigmoid(jnp.expand_dims(self.first(context), -2) + before)
        return self.bias(context) + jnp.einsum("...kh,kh->...k", hidden, read)

    def sample(self, context: Array, key: Key, temperature: Array | float = 1.0) -> Array:
        """Context [..., C] to a chord sampled from the lowest key up, float32 [..., K] of 0 and 1."""

        def one(a, per_key):
            bias, read, write, key = per_key
            drawn = _drawn(key, bias + jax.nn.sigmoid(a) @ read, temperature)
            return a + jnp.expand_dims(drawn, -1) * jnp.broadcast_to(write, a.shape), drawn

        bias = jnp.moveaxis(self.bias(context), -1, 0)
        per_key = bias, *self._weights(), jax.random.split(key, len(bias))
        _, drawn = jax.lax.scan(one, self.first(context), per_key)
        return jnp.moveaxis(drawn, 0, -1)


def _drawn(key: Key, logits: Array, temperature: Any) -> Array:
    odds = logits.astype(carry_dtype(logits.dtype)) / temperature
    return jax.random.bernoulli(key, jax.nn.sigmoid(odds)).astype(logits.dtype)


Head = Independent | Chain | Nade


class RollModel(nnx.Module):
    """Layers of a cell over the chords so far, dropout, and a head that predicts the next chord.

    Attributes:
      rnn, dropout, head: the layers; without `rnn` the context is the last chord.
    """

    def __init__(self, rnn: Stack | None, head: Head, *, dropout: Array | float = 0.0, rngs: nnx.Rngs):
        """Put the parts together.

        Args:
          rnn: reads [B, T, K].
          head: reads the outputs of `rnn`.
          dropout: rate of the dropout between them, in [0, 1), may be traced.
          rngs: stream "dropout".
        """
        self.rnn, self.head = rnn, head
        self.dropout = Dropout(dropout, rngs=rngs)

    @classmethod
    def recurrent(
        cls,
        cell: Cell,
        *,
        layers: int = 2,
        keys: int = 88,
        nade: int = 0,
        dropout: Array | float = 0.0,
        rngs: nnx.Rngs,
    ) -> "RollModel":
        """Draw the weights of a recurrent model.

        Args:
          cell: of every layer.
          layers: how many.
          keys: K.
          nade: width H of a `Nade` head; 0 for an `Independent` one.
          dropout: rate of the dropout between layers and before the head, in [0, 1), may be traced.
          rngs: streams "params" and "dropout".
        """
        rnn = Stack([cell] * layers, keys, dropout=dropout, rngs=rngs)
        head = (
            Nade(rnn.out_features, keys, hidden=nade, rngs=rngs)
            if nade
            else Independent(rnn.out_features, keys, rngs=rngs)
        )
        return cls(rnn, head, dropout=dropout, rngs=rngs)

    def contexts(self, rolls: Array, carry: Carry | None = None, lengths: Array | None = None) -> tuple[Carry, Array]:
        """Rolls float [B, T, K] to the carry after them, and contexts [B, T, C] for the chord after each step."""
        if self.rnn is None:
            return (), rolls
        carry, ys = self.rnn(rolls, initial_carry=carry, seq_lengths=lengths, return_carry=True)
        return carry, self.dropout(ys)

    def logits(self, rolls: Array, lengths: Array | None = None) -> Array:
        """Rolls [B, T, K] of 0 and 1 to logits float32 [B, T-1, K] of their steps 1 to T-1.

        Args:
          rolls: of any dtype.
          lengths: int [B], the steps of each roll; None for T.
        """
        rolls = rolls.astype(jnp.float32)
        lengths = None if lengths is None else jnp.maximum(lengths - 1, 0)
        return self.head.logits(self.contexts(rolls[:, :-1], lengths=lengths)[1], rolls[:, 1:])

    def nll(self, rolls: Array, lengths: Array) -> Array:
        """Negative log likelihood in nats float32 [B, T-1] of steps 1 to T-1, summed over keys; 0 at the padding.

        The first chord has no past and is not counted, as in Bai et al. 2018 (arXiv 1803.01271).
        """
        losses = optax.losses.sigmoid_binary_cross_entropy(
            self.logits(rolls, lengths), rolls[:, 1:].astype(jnp.float32)
        )
        real = mask_from_lengths(jnp.maximum(lengths - 1, 0), rolls.shape[1] - 1).T
        return jnp.where(real, losses.sum(-1), 0.0)

    def compose(self, start: Array, steps: int, key: Key, temperature: Array | float = 1.0) -> Array:
        """Continue B pieces from their first chords.

        Args:
          start: [B, T, K] of 0 and 1.
          steps: S, how many chords are drawn.
          key: PRNG key.
          temperature: by which logits are divided; below 1 likely keys become more likely, and fewer others sound.

        Returns:
          float32 [B, S, K] of 0 and 1, what follows the start.
        """

        def one(state, key):
            carry, context = state
            chord = self.head.sample(context, key, temperature)
            carry, contexts = self.contexts(jnp.expand_dims(chord, 1), carry)
            return (carry, contexts[:, 0]), chord

        carry, contexts = self.contexts(start.astype(jnp.float32))
        _, drawn = jax.lax.scan(one, (carry, contexts[:, -1]), jax.random.split(key, steps))
        return jnp.swapaxes(drawn, 0, 1)
