"""From the logits of a next token to sequences of tokens: sampling, the most likely token, beam search.

Logits come from a function `step(carry, tokens int [B]) -> (carry, logits [B, V])`. Every leaf of its carry has the
leading axis B. What belongs to a sequence but does not change, such as the memory of an encoder [B, S, M], may be
closed over. For a cell, `seqjax.generate` does the same with `partial(choose, ...)`, for other outputs than tokens too.

    carry, tokens = decoding.sample(step, carry, first, 100, key, temperature=0.8, top_p=0.95)
    tokens, scores = decoding.beam(step, carry, first, 30, width=5, stop=2, length_penalty=0.6)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from seqjax.arrays import Array, Carry, Key, carry_dtype

__all__ = ["beam", "choose", "greedy", "sample"]

Step = Callable[[Carry, Array], tuple[Carry, Array]]


def choose(
    key: Key,
    logits: Array,
    *,
    temperature: float | Array = 1.0,
    top_k: int | None = None,
    top_p: float | Array | None = None,
    exclude: Sequence[int] = (),
) -> Array:
    """Draw a token from softmax(logits / temperature), of all tokens or of the likely ones.

    Computed in at least float32, relative to the highest logit, so for logits and temperatures of any size. A token of
    -inf is never drawn, unless all are (the token is then 0); those of +inf are equally likely, and alone.

    Args:
      key: PRNG key.
      logits: float [..., V], of any dtype.
      temperature: below 1 sharper, above 1 flatter; 0 takes the most likely token. May be traced.
      top_k: draw from the k most likely tokens only (Fan et al. 2018, arXiv 1805.04833).
      top_p: draw from the smallest set of the most likely tokens whose probabilities (at this temperature) sum to
        at least p, the nucleus (Holtzman et al. 2019, arXiv 1904.09751). May be traced.
      exclude: tokens that are never drawn, such as padding or the unknown word; their logits count as -inf.

    Returns:
      int32 [...].

    Raises:
      ValueError: a negative temperature, a top_k that is no whole number from 1 to V, a top_p outside of (0, 1],
        excluded tokens outside of range(V) or all of it, logits that are not floating or of no token.

    Example:
      >>> from seqjax import decoding
      >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
      >>> int(decoding.choose(jax.random.key(0), logits, temperature=0.0))
      0
      >>> draws = [int(decoding.choose(jax.random.key(i), logits, top_p=0.7)) for i in range(20)]
      >>> sorted(set(draws))
      [0, 1]
    """
    logits = _relative(_without(logits, exclude))
    size = logits.shape[-1]
    if not isinstance(temperature, jax.core.Tracer) and not temperature >= 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if top_k is not None and not (isinstance(top_k, int | np.integer) and 1 <= top_k <= size):
        raise ValueError(f"top_k must be between 1 and the {size} tokens, got {top_k}")
    if top_p is not None and not isinstance(top_p, jax.core.Tracer) and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    tiny = float(jnp.finfo(logits.dtype).tiny)  # processors may round what is below to 0
    if not isinstance(temperature, jax.core.Tracer) and temperature > 0:
        temperature = max(float(temperature), tiny)
    cold = jnp.asarray(temperature, logits.dtype)
    cold = jnp.where(cold < tiny, 0, cold)
    best = jnp.argmax(logits, -1).astype(jnp.int32)
    order = jnp.argsort(-logits, -1)  # before a high temperature makes them equal
    logits = jnp.where(jnp.isneginf(logits), logits, logits / jnp.where(cold == 0, 1, cold))
    if top_k is not None or top_p is not None:
        rank = jnp.argsort(order, -1)
        kept = rank < (size if top_k is None else top_k)
        if top_p is not None:
            least = jnp.asarray(top_p, logits.dtype)
            probability = jnp.take_along_axis(jax.nn.softmax(logits, -1), order, -1)
            before = jnp.cumsum(probability, -1) - probability
            # Sums are rounded: neither is the likeliest left out, nor any token where all are asked for.
            kept &= jnp.take_along_axis(before < least, rank, -1) | (rank == 0) | (least >= 1)
        logits = jnp.where(kept, logits, -jnp.inf)
    return jnp.where(cold == 0, best, jax.random.categorical(key, logits).astype(jnp.int32))


def _without(logits: Array, exclude: Sequence[int]) -> Array:
    """Logits [..., V] with -inf for the tokens that are excluded."""
    if not exclude:
        return logits
    size = logits.shape[-1]
    if not set(exclude) < set(range(size)):
        raise ValueError(f"exclude takes some of the tokens in range({size}), and not all, got {exclude}")
    return jnp.where(np.isin(np.arange(size), list(exclude)), -jnp.inf, logits)


def _relative(logits: Array) -> Array:
    """Logits less the highest of them, in at least float32: at most 0, so that what is made of them stays finite.

    Where some are infinite, they share the probability; -inf stays -inf.
    """
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating) or not logits.shape[-1:] or not logits.shape[-1]:
        raise ValueError(f"logits are floating [..., V], got {logits.dtype} {logits.shape}")
    logits = logits.astype(carry_dtype(logits.dtype))
    highest = logits.max(-1, keepdims=True)
    return jnp.where((logits == highest) & (logits > -jnp.inf), 0, logits - jnp.where(highest > -jnp.inf, highest, 0))


def sample(
    step: Step,
    carry: Carry,
    first: Array,
    length: int,
    key: Key,
    *,
    stop: int | None = None,
    temperature: float | Array = 1.0,
    top_k: int | None = None,
    top_p: float | Array | None = None,
    exclude: Sequence[int] = (),
) -> tuple[Carry, Array]:
    """Draw a sequence, each token from the logits of the step that reads the one before.

        carry, logits = step(carry, token);  token = choose(fold_in(key, t), logits)

    Args:
      step: see the head of this module.
      carry: before the first step.
      first: int32 [B], the tokens that the first step reads; they are not among the results.
      length: how many tokens to draw, T.
      key: PRNG key; that of step t is `jax.random.fold_in(key, t)`.
      stop: the token that ends a sequence: all that follow it are stop. None: there is no such token.
      temperature: see `choose`, as the other options.
      top_k: see `choose`.
      top_p: see `choose`.
      exclude: see `choose`.

    Returns:
      The last carry, and the tokens int32 [T, B].

    Raises:
      ValueError: as `choose`.
    """

    options: Any = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "exclude": exclude}

    def body(state, t):
        carry, token, stopped = state
        carry, logits = step(carry, token)
        drawn = choose(jax.random.fold_in(key, t), logits, **options)
        if stop is not None:
            drawn = jnp.where(stopped, jnp.int32(stop), drawn)
            stopped |= drawn == stop
        return (carry, drawn, stopped), drawn

    first = jnp.asarray(first, jnp.int32)
    state = carry, first, jnp.zeros(first.shape, bool)
    (carry, _, _), tokens = jax.lax.scan(body, state, jnp.arange(length, dtype=jnp.int32))
    return carry, tokens


def greedy(
    step: Step, carry: Carry, first: Array, length: int, *, stop: int | None = None, exclude: Sequence[int] = ()
) -> tuple[Carry, Array]:
    """The most likely token at every step; arguments and results as in `sample`."""
    return sample(step, carry, first, length, jax.random.key(0), stop=stop, temperature=0.0, exclude=exclude)


class _Beams(NamedTuple):
    """K sequences of each of B: tokens int32 [B, K, T] and scores float32 [B, K]; -inf where there is none."""

    tokens: Array
    scores: Array

    def best(self, width: int) -> "_Beams":
        scores, index = jax.lax.top_k(self.scores, width)
        return _Beams(jnp.take_along_axis(self.tokens, index[..., None], 1), scores)


def beam(
    step: Step,
    carry: Carry,
    first: Array,
    length: int,
    *,
    width: int,
    stop: int | None = None,
    length_penalty: float = 0.0,
    exclude: Sequence[int] = (),
) -> tuple[Array, Array]:
    """Likely sequences, by a search that extends only the `width` likeliest beginnings.

        score(y) = log P(y) / ((5 + |y|) / 6)^length_penalty        |y|: tokens, stop included

    Sequences that ended are kept apart from the beginnings, so a long one is never crowded out by short ones that
    ended (Graves 2012, arXiv 1211.3711; the penalty: Wu et al. 2016, arXiv 1609.08144).

    Args:
      step: see the head of this module; it is mapped over the sequences of a beam.
      carry: before the first step.
      first: int32 [B], the tokens that the first step reads; they are not among the results.
      length: longest sequence T.
      width: sequences kept K.
      stop: the token that ends a sequence; None: all have length T.
      length_penalty: 0 prefers short sequences, 1 about the mean log probability of a token.
      exclude: see `choose`; the probabilities are those among the other tokens.

    Returns:
      tokens int32 [T, B, K], stop after the end, and their scores float32 [B, K]; the best first. One that did not end
      within `length` comes after all that did. Where there are fewer than K sequences the score is -inf.

    Raises:
      ValueError: a width below 1, a length below 1.
    """
    if width < 1 or length < 1:
        raise ValueError(f"width and length must be at least 1, got {width} and {length}")
    batch = first.shape[0]
    filler = jnp.int32(0 if stop is None else stop)
    empty = jnp.full((batch, width, length), filler, jnp.int32)
    nothing = jnp.full((batch, width), -jnp.inf, jnp.float32)

    def penalty(count):
        return ((5 + count).astype(jnp.float32) / 6) ** length_penalty

    def body(state, t):
        carry, token, alive, ended = state
        carry, logits = jax.vmap(step, 1, 1)(carry, token)
        logits = _without(logits, exclude)
        # A sequence that nothing can go on has no continuation, and no NaN either.
        log_p = jnp.where(jnp.isneginf(logits), -jnp.inf, jax.nn.log_softmax(_relative(logits), -1))
        log_p = log_p.astype(jnp.float32)
        size = log_p.shape[-1]
        # Of 2K candidates at most K end, since each beginning has one way to: K are left to go on.
        total = (jnp.expand_dims(alive.scores, 2) + log_p).reshape(batch, -1)
        scores, index = jax.lax.top_k(total, min(2 * width, width * size))
        parent, drawn = index // size, (index % size).astype(jnp.int32)
        tokens = jnp.take_along_axis(alive.tokens, parent[..., None], 1).at[:, :, t].set(drawn)
        stops = (drawn == stop) if stop is not None else jnp.zeros(drawn.shape, bool)
        finished = _Beams(tokens, jnp.where(stops, scores / penalty(t + 1), -jnp.inf))
        ended = _Beams(*(jnp.concatenate(pair, 1) for pair in zip(ended, finished, strict=True))).best(width)
        scores, kept = jax.lax.top_k(jnp.where(stops, -jnp.inf, scores), width)
        parent, drawn, tokens = (_rows(tree, kept) for tree in (parent, drawn, tokens))
        carry = jax.tree.map(lambda leaf: _rows(leaf, parent), carry)
        return (carry, drawn, _Beams(tokens, scores), ended), None

    carry = jax.tree.map(lambda leaf: jnp.repeat(jnp.expand_dims(leaf, 1), width, 1), carry)
    token = jnp.repeat(jnp.asarray(first, jnp.int32)[:, None], width, 1)
    alive = _Beams(empty, nothing.at[:, 0].set(0.0))
    state = carry, token, alive, _Beams(empty, nothing)
    (_, _, alive, ended), _ = jax.lax.scan(body, state, jnp.arange(length, dtype=jnp.int32))
    cut = alive._replace(scores=alive.scores / penalty(jnp.int32(length)))
    both = _Beams(*(jnp.concatenate(pair, 1) for pair in zip(ended, cut, strict=True)))
    # Those that ended stand first, in their order; a place that none of them took is filled by one that did not.
    place = jnp.argsort(jnp.where(jnp.isneginf(both.scores), 1, 0), axis=1, stable=True)[:, :width]
    tokens, scores = _rows(both.tokens, place), _rows(both.scores, place)
    return jnp.moveaxis(tokens, 2, 0), scores


def _rows(leaf: Any, index: Array) -> Array:
    """`leaf[b, index[b, k]]` of [B, N, ...] and [B, K]."""
    return jax.vmap(lambda rows, index: rows[index])(leaf, index)
