"""Synthetic long-range tasks: pure functions of a key, with sizes known at compile time."""

import jax
import jax.numpy as jnp

__all__ = [
    "adding",
    "copy_memory",
    "delayed_recall",
]

Array = jax.Array


def adding(key: Array, batch: int, length: int) -> tuple[Array, Array]:
    """The adding problem: the sum of the two marked values of a sequence.

    Values are uniform on [0, 1); one marker is in the first half, one in the second, uniformly. Always answering 1 has
    a mean squared error of 1/6.

    Source: Hochreiter & Schmidhuber 1997; in this form Le, Jaitly & Hinton 2015 (arXiv 1504.00941).

    Args:
      key: PRNG key.
      batch: number of sequences B.
      length: number of steps T >= 2.

    Returns:
      xs float32 [T, B, 2] (value, marker 0 or 1) and target float32 [B].

    Example:
      >>> from seqjax.data import synthetic
      >>> xs, target = synthetic.adding(jax.random.key(0), batch=2, length=10)
      >>> xs.shape, xs[..., 1].sum(0).tolist(), bool(jnp.allclose((xs[..., 0] * xs[..., 1]).sum(0), target))
      ((10, 2, 2), [2.0, 2.0], True)
    """
    _at_least(2, length=length)
    _at_least(1, batch=batch)
    value_key, first_key, second_key = jax.random.split(key, 3)
    values = jax.random.uniform(value_key, (length, batch), jnp.float32)
    first = jax.random.randint(first_key, (batch,), 0, length // 2, jnp.int32)
    second = jax.random.randint(second_key, (batch,), length // 2, length, jnp.int32)
    steps = jnp.arange(length, dtype=jnp.int32)[:, None]
    markers = ((steps == first[None]) | (steps == second[None])).astype(jnp.float32)  # [T, B]
    return jnp.stack([values, markers], axis=-1), jnp.sum(values * markers, axis=0)


def copy_memory(key: Array, batch: int, lag: int, symbols: int = 8, count: int = 10) -> tuple[Array, Array, Array]:
    """Copy memory: `count` symbols are shown, and each is the target `lag` + `count` steps later.

    Steps: count symbols, lag - 1 blanks, one query, count blanks. Targets: lag + count blanks, then the symbols.
    Tokens 0 to symbols - 1 are the symbols, `symbols` is the blank, `symbols + 1` the query: symbols + 2 in all.
    Without memory the best mean cross-entropy is count * ln(symbols) / (lag + 2 * count) nats.

    Source: Hochreiter & Schmidhuber 1997; in this form Arjovsky, Shah & Bengio 2016 (arXiv 1511.06464).

    Args:
      key: PRNG key.
      batch: number of sequences B.
      lag: steps from the last symbol to the query, >= 1.
      symbols: number of different symbols, >= 2.
      count: number of symbols to remember, >= 1.

    Returns:
      tokens int32 [T, B], targets int32 [T, B], weights float32 [T, B] (all 1: blanks count too), T = lag + 2 * count.

    Example:
      >>> from seqjax.data import synthetic
      >>> tokens, targets, _ = synthetic.copy_memory(jax.random.key(0), batch=1, lag=3, symbols=2, count=2)
      >>> tokens[2:, 0].tolist(), targets[:-2, 0].tolist()  # 2 is the blank, 3 the query
      ([2, 2, 3, 2, 2], [2, 2, 2, 2, 2])
      >>> bool((targets[-2:] == tokens[:2]).all())
      True
    """
    _at_least(1, lag=lag, count=count, batch=batch)
    _at_least(2, symbols=symbols)
    shown = jax.random.randint(key, (count, batch), 0, symbols, jnp.int32)
    blank, query = symbols, symbols + 1
    tokens = jnp.concatenate(
        [
            shown,
            jnp.full((lag - 1, batch), blank, jnp.int32),
            jnp.full((1, batch), query, jnp.int32),
            jnp.full((count, batch), blank, jnp.int32),
        ]
    )
    targets = jnp.concatenate([jnp.full((lag + count, batch), blank, jnp.int32), shown])
    return tokens, targets, jnp.ones(tokens.shape, jnp.float32)


def delayed_recall(
    key: Array, batch: int, lag: int, symbols: int = 8, distractors: int = 0
) -> tuple[Array, Array, Array]:
    """Delayed recall: one symbol is shown at t = 0 and must be recalled at a query at t = lag.

    Tokens 0 to symbols - 1 are the symbols, `symbols` is the blank, `symbols + 1` the query, the rest are distractors:
    symbols + 2 + distractors in all. Between symbol and query are blanks, or, with distractors > 0, uniformly drawn
    distractors. Without memory (or with gradients truncated before the lag) the accuracy is 1/symbols.

    Source: the latching problem of Bengio, Simard & Frasconi 1994, with symbols.

    Args:
      key: PRNG key.
      batch: number of sequences B.
      lag: steps from the symbol to the query, >= 1.
      symbols: number of different symbols, >= 2.
      distractors: number of different distractors, >= 0.

    Returns:
      tokens int32 [T, B], targets int32 [T, B], weights float32 [T, B] (1 at the last step, else 0), T = lag + 1.
      Targets of weight 0 are the blank.

    Example:
      >>> from seqjax.data import synthetic
      >>> tokens, targets, weights = synthetic.delayed_recall(jax.random.key(0), batch=1, lag=4, symbols=2)
      >>> tokens[1:, 0].tolist(), weights[:, 0].tolist(), bool(targets[-1] == tokens[0])  # 2 is the blank, 3 the query
      ([2, 2, 2, 3], [0.0, 0.0, 0.0, 0.0, 1.0], True)
    """
    _at_least(1, lag=lag, batch=batch)
    _at_least(2, symbols=symbols)
    _at_least(0, distractors=distractors)
    blank, query = symbols, symbols + 1
    symbol_key, filler_key = jax.random.split(key)
    shown = jax.random.randint(symbol_key, (1, batch), 0, symbols, jnp.int32)
    # the half-open range [blank, blank + 1) contains only the blank
    low, high = (query + 1, query + 1 + distractors) if distractors else (blank, blank + 1)
    filler = jax.random.randint(filler_key, (lag - 1, batch), low, high, jnp.int32)
    tokens = jnp.concatenate([shown, filler, jnp.full((1, batch), query, jnp.int32)])
    targets = jnp.concatenate([jnp.full((lag, batch), blank, jnp.int32), shown])
    weights = jnp.concatenate([jnp.zeros((lag, batch), jnp.float32), jnp.ones((1, batch), jnp.float32)])
    return tokens, targets, weights


def _at_least(least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}")
