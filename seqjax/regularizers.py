"""Regularizers: `Cell -> (Cell, sample)`, each of them mapping the hints of the cell that it wraps.

`sample(key, carry, xs)` draws the noise of one batch of sequences outside the loop, and the noisy cell takes
`x = (x, noise)`. Noise that lasts a sequence is a `Const`. The params are those of the bare cell, which is the cell for
evaluation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from seqjax.core import (
    Array,
    Carry,
    Cell,
    Const,
    Key,
    Tree,
    features,
    gated_transition,
    inner,
    like,
    open_const,
    with_features,
)
from seqjax.wrappers import over_layers

Sample = Callable[[Key, Carry, Tree], Tree]


def check_rate(rate: Any) -> Any:
    """Check a dropout rate; a traced one (a lane of a sweep) is taken on trust."""
    if not isinstance(rate, Tracer) and not 0.0 <= rate < 1.0:
        raise ValueError(f"a dropout rate lies in [0, 1), got {rate}")
    return rate


def dropout_mask(key: Key, rate: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Inverted dropout: 0 with probability `rate`, otherwise 1 / (1 - rate)."""
    keep = 1.0 - jnp.asarray(rate, dtype)
    return jax.random.bernoulli(key, keep, shape).astype(dtype) / jnp.broadcast_to(keep, shape)


def recurrent_dropout(cell: Cell, rate: Any, *, per_step: bool = False) -> tuple[Cell, Sample]:
    """Dropout of the carry's output where it enters the recurrent product (Gal & Ghahramani 2016, arXiv 1512.05287).

        v_k = stage_k(h, z) * m,   m ~ Bernoulli(1 - rate) / (1 - rate), [B, H]

    One mask a sequence, the same at every step. It needs the `gated` hint, which says what is multiplied by the
    recurrent matrix; the carry that the gates keep is not masked.

    Args:
      cell: a gated cell or a stack of gated cells.
      rate: probability of dropping a unit, in [0, 1).
      per_step: draw a new mask at every step. This is the mistake that the paper warns of, for studies of it.

    Returns:
      The noisy cell, which takes `x = (x, noise)`, and `sample(key, carry, xs) -> noise`.
    """
    rate = check_rate(rate)
    if cell.layers:
        parts = [recurrent_dropout(layer, rate, per_step=per_step) for layer in cell.layers]

        def sample_layers(key, carry, xs):
            keys = jax.random.split(key, len(parts))
            return tuple(s(k, c, xs) for (_, s), k, c in zip(parts, keys, carry, strict=True))

        return over_layers(cell, tuple(c for c, _ in parts), lambda noise, i: noise[i]), sample_layers
    base = inner(cell, lambda z: z[0])
    if base.gated is None:
        raise ValueError("recurrent_dropout needs a cell with the `gated` hint: this one has no recurrent product")

    def drop(stage):
        def noisy(carry, z, us):
            v = stage(carry, z, us)
            return v * like(open_const(z[1]).astype(v.dtype), v)

        return noisy

    noisy = base.gated._replace(stages=tuple(drop(stage) for stage in base.gated.stages))

    def sample(key, carry, xs):
        h = jax.tree.leaves(carry)[0]
        if per_step:
            return dropout_mask(key, rate, (features(xs).shape[0], *h.shape), h.dtype)
        return Const(dropout_mask(key, rate, h.shape, h.dtype))

    wrapped = base._replace(
        project=lambda params, x: (cell.project(params, x[0]), x[1]),
        transition=gated_transition(noisy),
        gated=noisy,
    )
    return wrapped, sample


def input_dropout(cell: Cell, rate: Any, *, per_step: bool = False) -> tuple[Cell, Sample]:
    """Dropout of the input features, one mask a sequence (Gal & Ghahramani 2016, arXiv 1512.05287).

        x_t * m,   m ~ Bernoulli(1 - rate) / (1 - rate), [B, D]

    Around a stack the input of every layer is masked, each by a mask of its own (for the inner layers, of the width of
    the carry below). Arguments and result as in `recurrent_dropout`.
    """
    rate = check_rate(rate)
    if cell.layers:
        layers = cell.layers
        parts = [input_dropout(layer, rate, per_step=per_step) for layer in layers]

        def sample_layers(key, carry, xs):
            keys = jax.random.split(key, len(parts))
            length = features(xs).shape[0]
            below = [features(xs)] + [jax.tree.leaves(c)[0] for c in carry[:-1]]
            # The masks take only the shape of the inputs: a view of the carry with a time axis is enough.
            inputs = [below[0]] + [jnp.broadcast_to(h, (length, *h.shape)) for h in below[1:]]
            return tuple(s(k, c, i) for (_, s), k, c, i in zip(parts, keys, carry, inputs, strict=True))

        return over_layers(cell, tuple(c for c, _ in parts), lambda noise, i: noise[i]), sample_layers
    base = inner(cell, lambda z: z)

    def project(params, x):
        x, noise = x
        value = features(x)
        return cell.project(params, with_features(x, value * like(open_const(noise).astype(value.dtype), value)))

    def sample(key, carry, xs):
        x = features(xs)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"input_dropout masks floating features, got {x.dtype}")
        return (
            dropout_mask(key, rate, x.shape, x.dtype)
            if per_step
            else Const(dropout_mask(key, rate, x.shape[1:], x.dtype))
        )

    return base._replace(project=project), sample
