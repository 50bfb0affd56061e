"""Decoding of token sequences from next-token logits: sampling, greedy decoding, beam search.

The model is a function `step(carry, tokens int [B]) -> (carry, logits [B, V])`. Every leaf of its carry has the leading
axis B. It may close over what is constant over a sequence, such as the memory of an encoder [B, S, M]. For a cell,
`seqjax.generate` does the same with `partial(choose, ...)`, also for outputs that are not tokens; both are the loop
`autoregress`.

    carry, tokens = decoding.sample(step, carry, first, 100, key, temperature=0.8, top_p=0.95)
    tokens, scores = decoding.beam(step, carry, first, 30, width=5, stop=2, length_penalty=0.6)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from seqjax.arrays import Array, Carry, Key, Tree, carry_dtype

__all__ = ["autoregress", "beam", "choose", "greedy", "sample"]

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
    """Draw a token from softmax(logits / temperature), among all tokens or only the most likely ones.

    Computed in at least float32, relative to the highest logit, so logits and temperatures may have any size. A token
    with the logit -inf is never drawn, unless all are -inf (the token is then 0); if some are +inf, one of these is
    drawn, with equal probabilities.

    Args:
      key: PRNG key.
      logits: float [..., V], of any dtype.
      temperature: below 1 sharper, above 1 flatter; 0 takes the most likely token. May be traced.
      top_k: draw only from the k most likely tokens (Fan et al. 2018, arXiv 1805.04833).
      top_p: draw from the smallest set of the most likely tokens whose probabilities (at this temperature) sum to
        at least p, the nucleus (Holtzman et al. 2019, arXiv 1904.09751). May be traced.
      exclude: tokens that are never drawn, such as padding or the unknown word; their logits count as -inf.

    Returns:
      int32 [...].

    Raises:
      ValueError: for a negative temperature, a top_k that is not an integer from 1 to V, a top_p outside (0, 1],
        excluded tokens outside range(V) or all of them, logits that are not floating, or logits without tokens.

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
    tiny = float(jnp.finfo(logits.dtype).tiny)  # processors may flush smaller numbers to 0
    if not isinstance(temperature, jax.core.Tracer) and temperature > 0:
        temperature = max(float(temperature), tiny)
    cold = jnp.asarray(temperature, logits.dtype)
    cold = jnp.where(cold < tiny, 0, cold)
    best = jnp.argmax(logits, -1).astype(jnp.int32)
    order = jnp.argsort(-logits, -1)  # before a high temperature rounds them to equal values
    logits = jnp.where(jnp.isneginf(logits), logits, logits / jnp.where(cold == 0, 1, cold))
    if top_k is not None or top_p is not None:
        rank = jnp.argsort(order, -1)
        kept = rank < (size if top_k is None else top_k)
        if top_p is not None:
            least = jnp.asarray(top_p, logits.dtype)
            probability = jnp.take_along_axis(jax.nn.softmax(logits, -1), order, -1)
            before = jnp.cumsum(probability, -1) - probability
            # Sums are rounded: never leave out the likeliest token, nor any token at top_p = 1.
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
    """Logits minus their maximum, in at least float32: at most 0, so that later arithmetic stays finite.

    If some are +inf, these become 0 and all others -inf; -inf stays -inf.
    """
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating) or not logits.shape[-1:] or not logits.shape[-1]:
        raise ValueError(f"logits are floating [..., V], got {logits.dtype} {logits.shape}")
    logits = logits.astype(carry_dtype(logits.dtype))
    highest = logits.max(-1, keepdims=True)
    return jnp.where((logits == highest) & (logits > -jnp.inf), 0, logits - jnp.where(highest > -jnp.inf, highest, 0))


def autoregress(
    step: Callable[[Carry, Tree], tuple[Carry, Tree]],
    carry: Carry,
    x: Tree,
    length: int,
    key: Key,
    choose: Callable[[Key, Tree], Tree],
) -> tuple[Carry, Tree]:
    """Feed a step function with what is chosen from its outputs.

        carry, y = step(carry, x);  x = choose(fold_in(key, t), y)

    Args:
      step: `(carry, x) -> (carry, y)`.
      carry: before the first step.
      x: the first input.
      length: the number of inputs to choose, T.
      key: PRNG key; that of step t is `jax.random.fold_in(key, t)`, so a longer sequence begins with the shorter one.
      choose: `(key, y) -> x`, with the shapes and dtypes of the first input.

    Returns:
      The last carry, and the chosen inputs [T, ...].

    Example:
      >>> from seqjax import decoding
      >>> double = lambda carry, x: (carry + 1, 2 * x)
      >>> carry, xs = decoding.autoregress(double, 0, 1, 4, jax.random.key(0), lambda key, y: y)
      >>> int(carry), xs.tolist()
      (4, [2, 4, 8, 16])
    """

    def body(state, t):
        carry, y = step(*state)
        x = choose(jax.random.fold_in(key, t), y)
        return (carry, x), x

    (carry, _), xs = jax.lax.scan(body, (carry, x), jnp.arange(length, dtype=jnp.int32))
    return carry, xs


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
    """Sample a sequence autoregressively: each token is drawn from the logits that follow the one before it.

        carry, logits = step(carry, token);  token = choose(fold_in(key, t), logits)

    Args:
      step: the model, see the top of this module.
      carry: before the first step.
      first: int32 [B], the tokens that the first step reads; they are not part of the result.
      length: the number of tokens to draw, T.
      key: PRNG key; that of step t is `jax.random.fold_in(key, t)`.
      stop: the token that ends a sequence; all tokens after it are stop too. None: there is no such token.
      temperature: see `choose`.
      top_k: see `choose`.
      top_p: see `choose`.
      exclude: see `choose`.

    Returns:
      The last carry, and the tokens int32 [T, B].

    Raises:
      ValueError: as `choose`.
    """

    def one(carry, x):
        token, stopped = x
        carry, logits = step(carry, token)
        return carry, (logits, stopped)

    def draw(key, y):
        logits, stopped = y
        token = choose(key, logits, temperature=temperature, top_k=top_k, top_p=top_p, exclude=exclude)
        if stop is not None:
            token = jnp.where(stopped, jnp.int32(stop), token)
            stopped |= token == stop
        return token, stopped

    first = jnp.asarray(first, jnp.int32)
    carry, (tokens, _) = autoregress(one, carry, (first, jnp.zeros(first.shape, bool)), length, key, draw)
    return carry, tokens


def greedy(
    step: Step, carry: Carry, first: Array, length: int, *, stop: int | None = None, exclude: Sequence[int] = ()
) -> tuple[Carry, Array]:
    """The most likely token at every step; arguments and results as in `sample`."""
    return sample(step, carry, first, length, jax.random.key(0), stop=stop, temperature=0.0, exclude=exclude)


class _Beams(NamedTuple):
    """K sequences for each of B: tokens int32 [B, K, T] and scores float32 [B, K]; -inf where there is none."""

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
    """Beam search: likely sequences, found by extending only the `width` most likely prefixes.

        score(y) = log P(y) / ((5 + |y|) / 6)^length_penalty        |y|: tokens, stop included

    Finished sequences are kept apart from the prefixes, so long sequences are never crowded out by short finished ones
    (Graves 2012, arXiv 1211.3711; the penalty: Wu et al. 2016, arXiv 1609.08144).

    Args:
      step: the model, see the top of this module; it is mapped over the sequences of a beam.
      carry: before the first step.
      first: int32 [B], the tokens that the first step reads; they are not part of the result.
      length: the maximum length of a sequence, T.
      width: the number of sequences kept, K.
      stop: the token that ends a sequence; None: all have length T.
      length_penalty: 0 prefers short sequences, 1 about the mean log probability of a token.
      exclude: see `choose`; the probabilities are those among the other tokens.

    Returns:
      tokens int32 [T, B, K], stop after the end, and their scores float32 [B, K]; the best first. Sequences unfinished
      after `length` steps come after all finished ones. Where there are fewer than K sequences the score is -inf.

    Raises:
      ValueError: for a width below 1, or a length below 1.
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
        # A prefix with only logits of -inf has no continuation; log_softmax would make NaN of them.
        log_p = jnp.where(jnp.isneginf(logits), -jnp.inf, jax.nn.log_softmax(_relative(logits), -1))
        log_p = log_p.astype(jnp.float32)
        size = log_p.shape[-1]
        # Of the best 2K candidates at most K end, one per prefix, so K are left to be extended.
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
    # Finished sequences come first, in their order; remaining places are filled with unfinished ones.
    place = jnp.argsort(jnp.where(jnp.isneginf(both.scores), 1, 0), axis=1, stable=True)[:, :width]
    tokens, scores = _rows(both.tokens, place), _rows(both.scores, place)
    return jnp.moveaxis(tokens, 2, 0), scores


def _rows(leaf: Any, index: Array) -> Array:
    """`leaf[b, index[b, k]]` of [B, N, ...] and [B, K]."""
    return jax.vmap(lambda rows, index: rows[index])(leaf, index)
