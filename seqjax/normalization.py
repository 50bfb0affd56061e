"""Normalization in the recurrence, around any gated cell.

Params are `{"cell": ..., "gain_x": [G], "gain_h": ([G_1], ...)}`: a gain for the input product and one for each
recurrent product; the bias is that of the cell.

Batch statistics are an input, as noise is: `Cell -> (Cell, train)`. The cell takes `x = (x, statistics)`, treats every
sequence by itself, and goes wherever a cell goes. `train` unrolls it on the statistics of its own batch, with the exact
gradient through them, and hands them out. Nothing hides a running average:

    normalized, train = batch_norm(cells.lstm(64))
    params = normalized.init(key, D)
    (carry, ys), statistics = train(params, None, xs, mask=mask)
    running = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, running, statistics)
    carry, ys = unroll(normalized, params, None, (xs, spread(running, xs)), mask=mask)

A cell that takes an `x = (x, extra)` of its own (noise, resets) can be wrapped too; its params then come from `init` of
the wrapped bare cell, which are the same.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Tree, dense, like, matmul
from seqjax.cells.building import gated_hint, lstm_gates, normalize
from seqjax.cells.gated import lstm
from seqjax.cells.layers import stack
from seqjax.core import Cell, Const, Dense, batch_shape, features, inner, is_dense, one_input, out_features, over_time
from seqjax.hints import Gated, around, gated_transition
from seqjax.identity import recorded
from seqjax.solvers.dispatch import place
from seqjax.unrolling import checked_inputs, unroll
from seqjax.wrappers import masked
from seqjax.wrappers.masking import over_layers
from seqjax.wrappers.structure import inside

__all__ = [
    "Moments",
    "Statistics",
    "Train",
    "batch_norm",
    "batch_norm_lstm",
    "layer_norm",
    "sequence_batch_norm",
    "spread",
]

Train = Callable[..., tuple[tuple[Carry, Tree], Tree]]
"""`(params, carry, xs, **options) -> ((carry, ys), statistics)`, `unroll` on the statistics of its own batch."""


class Moments(NamedTuple):
    """Mean and (biased) variance of each column of a product: [..., G]."""

    mean: Array
    variance: Array


class Statistics(NamedTuple):
    """The moments of a step: of the input product, of each recurrent product, and of the state c where it has some."""

    x: Moments
    h: tuple[Moments, ...]
    c: Moments | None = None


def _moments(u: Array, real: Array | None) -> Moments:
    """Over all axes of u [..., G] but the last, where `real` [...] is true."""
    axes = tuple(range(u.ndim - 1))
    if real is None:
        mean = u.mean(axes)
        return Moments(mean, jnp.square(u - like(mean, u)).mean(axes))
    weight = real.astype(u.dtype) / jnp.maximum(real.sum(), 1).astype(u.dtype)
    weight = like(jnp.expand_dims(weight, -1), u)
    mean = (weight * u).sum(axes)
    return Moments(mean, (weight * jnp.square(u - like(mean, u))).sum(axes))


def _scale(variance: Array, gain: Array, epsilon: float) -> Array:
    return like(gain.astype(variance.dtype), variance) * jax.lax.rsqrt(variance + epsilon)


def _standardize(u: Array, moments: Moments, gain: Array, epsilon: float) -> Array:
    return (u - like(moments.mean, u)) * like(_scale(moments.variance, gain, epsilon), u)


def _over_dense(z: Tree, change: Callable[[Dense], Any]) -> Tree:
    """`z` with its one `Dense` changed."""
    leaves, tree = jax.tree.flatten(z, is_leaf=is_dense)
    found = sum(map(is_dense, leaves))
    if found != 1:
        raise ValueError(f"normalization needs a cell with one input product in z, a `Dense`; this has {found}")
    return tree.unflatten([change(leaf) if is_dense(leaf) else leaf for leaf in leaves])


def _shifted(u: Array, bias: Array) -> Array:
    return u + like(bias.astype(u.dtype), u)


def _check_gated(name: str, cell: Cell) -> None:
    if cell.gated is None:
        raise ValueError(f"{name} needs a cell with the `gated` hint, which says what its recurrent products are")


def _with_hint(cell: Cell, gated: Gated, project: Callable) -> Cell:
    return cell._replace(project=project, transition=gated_transition(gated), gated=gated)


def _with_gains(cell: Cell, gain: float, recurrent: bool = True, state: bool = False) -> Cell:
    """`cell` with its params under "cell", beside gains that start at `gain`; nothing is normalized yet."""
    if cell.layers:
        return stack(*(_with_gains(layer, gain, recurrent, state) for layer in cell.layers))

    def init(key, in_features):
        p = cell.init(key, in_features)
        out_features(cell, p, in_features)  # a cell that takes more than x is told so
        widths = []
        x = one_input(p, in_features, cell.space)
        _over_dense(jax.eval_shape(cell.project, p, x), lambda product: widths.append(product.w.value.shape[1]))

        def gains(width):
            return jnp.full((width,), gain, jax.tree.leaves(p)[0].dtype)

        params = {"cell": p, "gain_x": gains(widths[0])}
        if recurrent:
            gated: Any = cell.gated
            params["gain_h"] = tuple(gains(w.shape[1]) for w in jax.eval_shape(gated.weights, p))
        if state:
            units = jax.tree.leaves(jax.eval_shape(lambda p: cell.initial_carry(p, ()), p))[-1].shape[0]
            params |= {"gain_c": gains(units), "b_c": 0 * gains(units)}
        return params

    return inside(cell)._replace(init=init)


@recorded
def layer_norm(cell: Cell, *, epsilon: float = 1e-5) -> Cell:
    """Layer normalization of every product of a gated cell (Ba, Kiros & Hinton 2016, arXiv 1607.06450).

        norm(u) = gain * (u - mean(u)) / sqrt(variance(u) + epsilon)
        x @ w_x + b  becomes  norm(x @ w_x) + b,   and  u_k = v_k @ w_k  becomes  norm(u_k)

    Mean and variance are those of one product of one sequence at one step, over the columns of all gates at once, as
    the paper has it for the LSTM; in a cell of several products (`gru_reset_before`: [2H] and [H]) each is normalized
    by itself. The gains start at 1. What is inside of the gates is left alone: a `b_n`, a peephole, the state c.
    `cells.layer_norm_lstm` normalizes c too before its tanh, as the paper does; but for that it is
    `layer_norm(cells.lstm(H))`.

    Args:
      cell: a gated cell, or a stack of such, whose layers are wrapped one by one.
      epsilon: what is added to the variances.

    Returns:
      A cell with the carry of the one inside; gated, and not elementwise, so `native` refuses it.

    Raises:
      ValueError: for a cell without the `gated` hint, or whose input enters otherwise than by one product.
    """
    if cell.layers:
        return stack(*(layer_norm(layer, epsilon=epsilon) for layer in cell.layers))
    _check_gated("layer_norm", cell)
    base = inner(_with_gains(cell, 1.0), lambda z: z[0])
    gated: Any = base.gated

    def project(params, x):
        def norm(product):
            u = dense(product.x, product.w.value)
            return _shifted(normalize(u, params["gain_x"], epsilon), product.b.value)

        return _over_dense(cell.project(params["cell"], x), norm), Const(params["gain_h"])

    def products(carry, z, us):
        # A stage sees fewer products than there are gains.
        return carry, z, tuple(normalize(u, gain, epsilon) for u, gain in zip(us, z[1].value, strict=False))

    return _with_hint(base, around(gated, products), project)


def _standardized(cell: Cell, epsilon: float, moments: Callable, state: Callable | None) -> Cell:
    """`cell`, which has its gains, on `x = (x, extra)`; moments(extra, pick, u) are those of a product u.

    `pick(statistics)` says which they are. The z of the result is `(z, extra, gains, moments of the input product)`.
    """
    base = inner(cell, lambda z: z[0])
    gated: Any = base.gated
    norm = partial(_standardize, epsilon=epsilon)

    def project(params, x):
        x, extra = x
        found = []

        def normed(product):
            u = dense(product.x, product.w.value)
            found.append(moments(extra, lambda statistics: statistics.x, u))
            return _shifted(norm(u, found[0], params["gain_x"]), product.b.value)

        z = _over_dense(cell.project(params, x), normed)
        return z, extra, Const({name: params[name] for name in params if name not in ("cell", "gain_x")}), found[0]

    def products(carry, z, us):
        _, extra, gains, _ = z
        own = [moments(extra, lambda statistics, k=k: statistics.h[k], u) for k, u in enumerate(us)]
        return carry, z, tuple(map(norm, us, own, gains.value["gain_h"]))

    if state is not None:

        def gates(carry, z, us, write):
            def show(c):
                own = moments(z[1], lambda statistics: statistics.c, c)
                return _shifted(norm(c, own, z[2].value["gain_c"]), z[2].value["b_c"])

            return state(carry, z[0], us, write, show)

        gated = gated_hint(gated.weights, gated.stages, gates)
    return _with_hint(base, around(gated, products), project)


METHODS = ("scan", "rematerialized", "checkpointed", "fused")  # those that step all sequences of a batch together


def _batch_norm(cell: Cell, epsilon: float, state: Callable | None = None) -> tuple[Cell, Train]:
    """`batch_norm`; with `state(carry, z, us, write, show)`, the gates whose output sees `show(c)`, of c too."""
    _check_gated("batch_norm", cell)
    gained = _with_gains(cell, 0.1, state=state is not None)
    normalized = _standardized(gained, epsilon, lambda statistics, pick, u: pick(statistics), state)
    batched = _standardized(gained, epsilon, lambda real, pick, u: _moments(u, real), state)

    def train(params, carry, xs, *, mask=None, method="fused"):
        xs, mask = checked_inputs(cell, xs, mask)
        batch = batch_shape(xs, cell.space)
        if math.prod(batch) < 2:
            raise ValueError(f"batch_norm takes statistics over two or more sequences, got inputs {features(xs).shape}")
        if method not in METHODS:
            raise ValueError(f"batch_norm trains whole batches by one of {METHODS}, got {method!r}")
        if carry is None:
            carry = gained.initial_carry(params, batch)
        params, carry, xs = place(params, carry, xs, cell.space)
        run, inputs = (batched, (xs, None)) if mask is None else (masked(batched), ((xs, mask), mask))
        recorded = run._replace(readout=lambda params, carry, z: (carry, z, run.readout(params, carry, z)))
        last, (after, zs, ys) = unroll(recorded, params, carry, inputs, method=method)
        zs = zs if mask is None else zs[0]
        before = jax.tree.map(lambda h, hs: jnp.concatenate([jnp.expand_dims(h, 0), hs[:-1]]), carry, after)
        statistics = over_time(partial(observe, params), before, after, zs)
        return (last, ys), statistics if mask is None else _hold(statistics, mask)

    def observe(params, before, after, z):
        """The statistics of one step, from the carries around it: if nobody asks for them, nothing is computed."""
        _, real, _, x = z
        gated: Any = batched.gated
        us = ()
        for stage, w in zip(gated.stages, gated.weights(params), strict=True):
            us = (*us, matmul(stage(before, z, us), w))
        c = None if state is None else _moments(jax.tree.leaves(after)[-1], real)
        return Statistics(x, tuple(_moments(u, real) for u in us), c)

    return normalized._replace(init=gained.init), train


def _hold(statistics: Statistics, mask: Array) -> Statistics:
    """Statistics [T, G] where a step without any real sequence has those of the step before."""
    steps = jnp.arange(mask.shape[0])
    last = jax.lax.cummax(jnp.where(mask.any(tuple(range(1, mask.ndim))), steps, jnp.zeros_like(steps)))
    return jax.tree.map(lambda leaf: leaf[last], statistics)


def _each_layer(cell: Cell, gained: Cell, parts: list[tuple[Cell, Train]]) -> tuple[Cell, Train]:
    """A stack of normalized layers, trained one after the other."""

    def train(params, carry, xs, **options):
        carries, statistics = [], []
        for i, (_, layer) in enumerate(parts):
            (last, xs), found = layer(params[i], None if carry is None else carry[i], xs, **options)
            carries.append(last)
            statistics.append(found)
        return (tuple(carries), xs), tuple(statistics)

    normalized = over_layers(cell, tuple(part for part, _ in parts), lambda statistics, i: statistics[i])
    return normalized._replace(init=gained.init), train


@recorded
def batch_norm(cell: Cell, *, epsilon: float = 1e-5) -> tuple[Cell, Train]:
    """Recurrent batch normalization, with statistics for each step (Cooijmans et al. 2017, arXiv 1603.09025).

        bn(u) = gain * (u - mean) / sqrt(variance + epsilon)
        x @ w_x + b  becomes  bn(x @ w_x) + b,   and  u_k = v_k @ w_k  becomes  bn(u_k)

    Mean and variance of a column are over the sequences of a batch at one step; each step has its own, since the first
    steps differ from the later ones. The gains start at 0.1, as the paper finds necessary. The paper's LSTM also
    normalizes its state: `batch_norm_lstm`.

    `train(params, carry, xs, *, mask=None, method="fused") -> ((carry, ys), statistics)` is `unroll` on the statistics
    of the batch at hand (over the steps that the mask calls real), differentiable through them. What it hands out is
    `Statistics` [T, G] (for a stack a tuple, one a layer). Where a step has no real sequence they are those of the step
    before; those of late steps that few sequences reach are noisy (of one sequence alone, the variance is 0). It runs
    forward in time, by "scan", "rematerialized", "checkpointed" or "fused", the methods that run a batch together.
    Under `jax.shard_map` the statistics are those of the shard.

    The cell takes `x = (x, statistics)`, [T, B, G] as made by `spread`, and every method; with the statistics from
    `train` it gives what `train` gave.

    Args:
      cell: a gated cell, or a stack of such.
      epsilon: what is added to the variances.

    Returns:
      The cell and `train`.

    Raises:
      ValueError: for a cell without the `gated` hint, or whose input enters otherwise than by one product; from
        `train`, for fewer than two sequences, a method that takes sequences apart, or a mask of another shape.
    """
    if cell.layers:
        parts = [batch_norm(layer, epsilon=epsilon) for layer in cell.layers]
        return _each_layer(cell, _with_gains(cell, 0.1), parts)
    return _batch_norm(cell, epsilon)


@recorded
def batch_norm_lstm(hidden: int, *, epsilon: float = 1e-5, **options: Any) -> tuple[Cell, Train]:
    """The batch-normalized LSTM (Cooijmans et al. 2017, arXiv 1603.09025): `batch_norm(lstm(H))` that also has

        h = sigmoid(o) * tanh(bn(c) + b_c)

    with a `gain_c` [H] that starts at 0.1 and a shift `b_c` [H] at 0. The c that is carried on is not normalized.
    `options` are those of `cells.lstm`; result and errors as in `batch_norm`.
    """

    def state(carry, z, us, write, show):
        return lstm_gates(carry, z + us[0], write, show)

    return _batch_norm(lstm(hidden, **options), epsilon, state)


def spread(statistics: Tree, xs: Tree) -> Tree:
    """Statistics [S, G] of steps as inputs beside xs [T, B, D]: [T, B, G].

    Beyond step S those of the last step are repeated, as the paper does for sequences longer than any in training.
    """
    steps, batch = features(xs).shape[0], batch_shape(xs)

    def along(leaf):
        leaf = leaf[jnp.minimum(jnp.arange(steps), leaf.shape[0] - 1)]
        return jnp.broadcast_to(leaf.reshape(steps, *(1,) * len(batch), -1), (steps, *batch, leaf.shape[-1]))

    return jax.tree.map(along, statistics)


@recorded
def sequence_batch_norm(cell: Cell, *, epsilon: float = 1e-5) -> tuple[Cell, Train]:
    """Sequence-wise batch normalization of the input product alone (Laurent et al. 2016, arXiv 1510.01378).

        x @ w_x + b  becomes  gain_x * (x @ w_x - mean) / sqrt(variance + epsilon) + b

    Mean and variance of a column are over all sequences and all steps of a batch, so they are known before the loop,
    which is not slowed down: they go into w_x and b. The recurrent products are left alone, and there is no `gain_h`.
    The gain starts at 1.

    `train(params, carry, xs, *, mask=None, method="auto") -> ((carry, ys), statistics)` is `unroll` on the statistics
    of the batch at hand (over the steps that the mask calls real), with the exact gradient through them. The cell takes
    `x = (x, statistics)`, a `Const` of `Moments` [G] just as `train` hands them out (for a stack a tuple, one a layer).

    Args:
      cell: a cell whose input enters by one product that is left to the solver (a `Dense`), as that of most gated
        cells is, or a stack of such.
      epsilon: what is added to the variances.

    Returns:
      The cell, with the hints of the one inside, and `train`.

    Raises:
      ValueError: for a cell whose input enters otherwise; from `train`, for what `unroll` refuses.
    """
    gained = _with_gains(cell, 1.0, recurrent=False)
    if cell.layers:
        return _each_layer(cell, gained, [sequence_batch_norm(layer, epsilon=epsilon) for layer in cell.layers])

    def project(params, x):
        x, statistics = x
        moments: Moments = statistics.value

        def fold(product):
            w, b = product.w.value, product.b.value
            scale = _scale(moments.variance, params["gain_x"], epsilon)
            shift = b.astype(scale.dtype) - moments.mean * scale
            return Dense(product.x, Const(w * like(scale.astype(w.dtype), w)), Const(shift))

        return _over_dense(gained.project(params, x), fold)

    normalized = inner(gained, lambda z: z)._replace(project=project)

    def train(params, carry, xs, *, mask=None, method="auto"):
        xs, mask = checked_inputs(cell, xs, mask)
        read, inputs = (gained, xs) if mask is None else (masked(gained), (xs, mask))
        z = over_time(partial(read.project, params), inputs)
        found = []
        _over_dense(z, lambda product: found.append(_moments(dense(product.x, product.w.value), mask)))
        statistics = Const(found[0])
        return unroll(normalized, params, carry, (xs, statistics), mask=mask, method=method), statistics

    return normalized, train
