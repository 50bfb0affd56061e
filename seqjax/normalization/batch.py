"""Batch normalization of the products of a gated cell, by statistics for each step."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Params, Tree, dense, matmul
from seqjax.cells.building import gated_hint, lstm_gates
from seqjax.cells.gated import lstm
from seqjax.core import Cell, Const, batch_shape, features, inner, over_time
from seqjax.hints import Gated, around
from seqjax.identity import recorded
from seqjax.normalization.building import (
    Moments,
    Train,
    add_bias,
    each_layer,
    input_product,
    moments_of,
    replace_product,
    require_gated,
    standardize,
    with_gains,
    with_hint,
)
from seqjax.solvers.associative import steps_before
from seqjax.solvers.dispatch import place
from seqjax.unrolling import checked_inputs, unroll
from seqjax.wrappers import masked

BATCH_METHODS = ("scan", "rematerialized", "checkpointed", "fused")
"""The methods that step all sequences of a batch together, which statistics over the batch need."""


class Statistics(NamedTuple):
    """The moments of a step: of the input product, of each recurrent product, and of the state c if it is normalized.

    Attributes:
      x: [..., G].
      h: [..., G_k] each.
      c: [..., H]; None but for `batch_norm_lstm`.
    """

    x: Moments
    h: tuple[Moments, ...]
    c: Moments | None = None


class _GivenMoments(NamedTuple):
    """Where a batch-normalized cell takes its moments from: the statistics that it is given."""

    statistics: Statistics

    def of_x(self, u: Array) -> Moments:
        del u
        return self.statistics.x

    def of_h(self, k: int, u: Array) -> Moments:
        del u
        return self.statistics.h[k]

    def of_c(self, c: Array) -> Moments:
        if self.statistics.c is None:
            raise ValueError("batch_norm_lstm needs statistics of its state c, got none: use those of its own `train`")
        return self.statistics.c


class _BatchMoments(NamedTuple):
    """Where it takes them from in training: the sequences of the batch that are `real` [B] at this step."""

    real: Array | None

    def of_x(self, u: Array) -> Moments:
        return moments_of(u, self.real)

    def of_h(self, k: int, u: Array) -> Moments:
        del k
        return moments_of(u, self.real)

    def of_c(self, c: Array) -> Moments:
        return moments_of(c, self.real)


class _NormalizedInput(NamedTuple):
    """The z of a batch-normalized cell.

    Attributes:
      z: that of the cell inside, its input product normalized.
      source: where the moments of the products of the carry come from.
      gains: the params of their normalization, all but "cell" and "gain_x", in a `Const`.
      moments: those of the input product.
    """

    z: Tree
    source: _GivenMoments | _BatchMoments
    gains: Const
    moments: Moments


def _batch_normalized(
    gained: Cell, epsilon: float, source: type[_GivenMoments] | type[_BatchMoments], lstm_state: bool
) -> Cell:
    """A cell on `x = (x, extra)`, whose moments come from `source(extra)`.

    Args:
      gained: the cell, with gains (`with_gains`).
      epsilon: added to the variances.
      source: where the moments come from.
      lstm_state: whether the cell is an LSTM whose state c is normalized too, where the output sees it.
    """
    base = inner(gained, lambda z: z.z)
    gated = require_gated("batch_norm", base)

    def project(params, x):
        x, extra = x
        z = gained.project(params, x)
        product = input_product(z)
        u = dense(product.x, product.w.value)
        moments = source(extra).of_x(u)
        u = add_bias(standardize(u, moments, params["gain_x"], epsilon), product.b.value)
        gains = {name: params[name] for name in params if name not in ("cell", "gain_x")}
        return _NormalizedInput(replace_product(z, u), source(extra), Const(gains), moments)

    def normalize_products(carry, z, us):
        moments = [z.source.of_h(k, u) for k, u in enumerate(us)]
        gains = z.gains.value["gain_h"][: len(us)]  # a stage sees fewer products than there are gains
        return carry, z, tuple(map(partial(standardize, epsilon=epsilon), us, moments, gains))

    gated = _with_normalized_state(gated, epsilon) if lstm_state else gated
    return with_hint(base, around(gated, normalize_products), project)


def _with_normalized_state(gated: Gated, epsilon: float) -> Gated:
    """The hint of an LSTM on a `_NormalizedInput`, whose output sees its normalized state."""

    def gates(carry, z, us, write):
        def show(c):
            gains = z.gains.value
            return add_bias(standardize(c, z.source.of_c(c), gains["gain_c"], epsilon), gains["b_c"])

        return lstm_gates(carry, z.z + us[0], write, show)

    return gated_hint(gated.weights, gated.stages, gates)


def _recording(cell: Cell) -> Cell:
    """`cell` with the output (carry, z, y)."""
    return cell._replace(readout=lambda params, carry, z: (carry, z, cell.readout(params, carry, z)))


def _observe(gated: Gated, params: Params, before: Carry, after: Carry, z: _NormalizedInput) -> Statistics:
    """The statistics of one step, from the carries before and after it; dead code where they are not used."""
    us = ()
    for stage, w in zip(gated.stages, gated.weights(params), strict=True):
        us = (*us, matmul(stage(before, z, us), w))
    c = z.source.of_c(jax.tree.leaves(after)[-1]) if "gain_c" in z.gains.value else None
    return Statistics(z.moments, tuple(z.source.of_h(k, u) for k, u in enumerate(us)), c)


def _hold(statistics: Statistics, mask: Array) -> Statistics:
    """Statistics [T, G] where a step without any real sequence takes those of the step before."""
    steps = jnp.arange(mask.shape[0])
    last = jax.lax.cummax(jnp.where(mask.any(tuple(range(1, mask.ndim))), steps, jnp.zeros_like(steps)))
    return jax.tree.map(lambda leaf: leaf[last], statistics)


def _batch_norm(cell: Cell, epsilon: float, lstm_state: bool = False) -> tuple[Cell, Train]:
    """`batch_norm` of one layer; with `lstm_state`, of an LSTM whose state is normalized too."""
    gained = with_gains(cell, 0.1, state=lstm_state)
    normalized = _batch_normalized(gained, epsilon, _GivenMoments, lstm_state)
    batched = _batch_normalized(gained, epsilon, _BatchMoments, lstm_state)
    products = require_gated("batch_norm", batched)
    recorded, recorded_masked = _recording(batched), _recording(masked(batched))

    def train(params, carry, xs, *, mask=None, method="fused"):
        xs, mask = checked_inputs(cell, xs, mask)
        batch = batch_shape(xs, cell.space)
        if math.prod(batch) < 2:
            raise ValueError(f"batch_norm takes statistics over two or more sequences, got inputs {features(xs).shape}")
        if method not in BATCH_METHODS:
            raise ValueError(f"batch_norm trains whole batches by one of {BATCH_METHODS}, got {method!r}")
        if carry is None:
            carry = gained.initial_carry(params, batch)
        params, carry, xs = place(params, carry, xs, cell.space)
        if mask is None:
            last, (after, zs, ys) = unroll(recorded, params, carry, (xs, None), method=method)
        else:
            last, (after, (zs, _), ys) = unroll(recorded_masked, params, carry, ((xs, mask), mask), method=method)
        statistics = over_time(partial(_observe, products, params), steps_before(carry, after), after, zs)
        return (last, ys), statistics if mask is None else _hold(statistics, mask)

    return normalized._replace(init=gained.init), train


@recorded
def batch_norm(cell: Cell, *, epsilon: float = 1e-5) -> tuple[Cell, Train]:
    """Recurrent batch normalization, with statistics for each step (Cooijmans et al. 2017, arXiv 1603.09025).

        bn(u) = gain * (u - mean) / sqrt(variance + epsilon)
        x @ w_x + b  becomes  bn(x @ w_x) + b,   and  u_k = v_k @ w_k  becomes  bn(u_k)

    Mean and variance of a column are over the sequences of a batch at one step; each step has its own, since the first
    steps differ from the later ones. The gains start at 0.1, which the paper finds necessary. The paper's LSTM also
    normalizes its state: `batch_norm_lstm`.

    `train(params, carry, xs, *, mask=None, method="fused") -> ((carry, ys), statistics)` is `unroll` on the statistics
    of the batch at hand (over the steps where the mask is true), differentiable through them. It returns `Statistics`
    [T, G] (for a stack a tuple, one per layer). A step without any real sequence takes those of the step before; those
    of late steps that few sequences reach are noisy (of a single sequence, the variance is 0). It runs forward in time,
    by "scan", "rematerialized", "checkpointed" or "fused", the methods that step all sequences of a batch together.
    Under `jax.shard_map` the statistics are those of the shard.

    The cell takes `x = (x, statistics)`, [T, B, G] as made by `spread`, and runs by every method; with the statistics
    from `train` its outputs are those of `train`.

    Args:
      cell: a gated cell, or a stack of gated cells.
      epsilon: added to the variances.

    Returns:
      The cell and `train`.

    Raises:
      ValueError: for a cell without the `gated` hint, or whose input does not enter by exactly one product; from
        `train`, for fewer than two sequences, a method that takes sequences one by one, or a mask of another shape.
    """
    if cell.layers:
        parts = [batch_norm(layer, epsilon=epsilon) for layer in cell.layers]
        return each_layer(cell, with_gains(cell, 0.1), parts)
    return _batch_norm(cell, epsilon)


@recorded
def batch_norm_lstm(hidden: int, *, epsilon: float = 1e-5, **options: Any) -> tuple[Cell, Train]:
    """The batch-normalized LSTM (Cooijmans et al. 2017, arXiv 1603.09025): `batch_norm(lstm(H))` that also has

        h = sigmoid(o) * tanh(bn(c) + b_c)

    with a `gain_c` [H] that starts at 0.1 and a shift `b_c` [H] at 0. The c in the carry is not normalized.
    `options` are those of `cells.lstm`; result and errors as in `batch_norm`.
    """
    return _batch_norm(lstm(hidden, **options), epsilon, lstm_state=True)


def spread(statistics: Tree, xs: Tree) -> Tree:
    """Statistics [S, G] of S steps as inputs for xs [T, B, D]: [T, B, G].

    Beyond step S those of the last step are repeated, as the paper does for sequences longer than any in training.
    """
    steps, batch = features(xs).shape[0], batch_shape(xs)

    def spread_leaf(leaf):
        leaf = leaf[jnp.minimum(jnp.arange(steps), leaf.shape[0] - 1)]
        return jnp.broadcast_to(leaf.reshape(steps, *(1,) * len(batch), -1), (steps, *batch, leaf.shape[-1]))

    return jax.tree.map(spread_leaf, statistics)
