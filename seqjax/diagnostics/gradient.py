"""Gradients: comparison with a reference, decay with the time lag, and the contributions of each step."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from seqjax.arrays import Array, Carry, Params, Tree, carry_dtype
from seqjax.core import Cell, batch_shape, features, open_dense, project_all, scan_const, with_features
from seqjax.placement import vary, varying
from seqjax.solvers.scan import length
from seqjax.unrolling import unroll


def alignment(gradient: Params, reference: Params) -> tuple[Array, Array]:
    """Cosine and norm ratio of a gradient g and a reference r, over all params at once.

    Returns:
      `(cosine, norm ratio)`: `<g, r> / (|g| |r|)`, between -1 and 1, and `|g| / |r|`. Where g or r is 0 the cosine is
      nan; where r is 0 the ratio is inf or nan.

    Example:
      >>> cosine, ratio = seqjax.diagnostics.alignment({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([3.0, 0.0])})
      >>> round(cosine.item(), 3), round(ratio.item(), 3)
      (0.6, 1.667)
    """
    g, _ = ravel_pytree(gradient)
    r, _ = ravel_pytree(reference)
    g_norm, r_norm = jnp.linalg.norm(g), jnp.linalg.norm(r)
    return g @ r / (g_norm * r_norm), g_norm / r_norm


def _adjoints(cell: Cell, params: Params, carry: Carry, xs: Tree, loss: Callable) -> tuple[Carry, Carry, Tree]:
    """h_t, dL/dh_t (including the effect of h_t on y_t), and y_t, for all steps."""
    nudges = jax.tree.map(lambda leaf: jnp.zeros((length(xs), *leaf.shape), leaf.dtype), carry)
    carry, nudges = vary((carry, nudges), varying((params, carry, xs)))

    def nudged_loss(nudges):
        def body(carry, inputs):
            z, nudge = inputs
            carry = jax.tree.map(jnp.add, cell.transition(params, carry, z), nudge)
            return carry, (carry, cell.readout(params, carry, z))

        zs = project_all(cell, params, xs)
        hs, ys = scan_const(body, carry, (zs, nudges))[1]
        return loss(ys), (hs, ys)

    d_hs, (hs, ys) = jax.grad(nudged_loss, has_aux=True)(nudges)
    return hs, d_hs, ys


def _norms(tree: Tree, axes: int) -> Array:
    """The Euclidean norm over all leaves and all axes after the first `axes`, in at least float32."""

    def sum_of_squares(leaf):
        wide = leaf.astype(carry_dtype(leaf.dtype))
        return jnp.square(wide).sum(tuple(range(axes, leaf.ndim)))

    leaves = [sum_of_squares(leaf) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(leaves[1:], leaves[0]))


@partial(jax.jit, static_argnames=("cell", "loss"))
def gradient_against_lag(cell: Cell, params: Params, carry: Carry, xs: Tree, loss: Callable[[Tree], Array]) -> Array:
    """The norm of dL/dh_t for every step: how fast a gradient vanishes or explodes backwards in time.

    Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013 (arXiv 1211.5063).

    Args:
      cell: any cell.
      params: its params.
      carry: the carry before the first step, leaves [B, ...].
      xs: inputs [T, B, ...].
      loss: `ys [T, B, O] -> []`. If it depends only on the last output, entry t is the gradient at lag T - 1 - t.

    Returns:
      [T]: the Euclidean norm of dL/dh_t over all leaves of the carry and the batch. h_t includes the effect on y_t.

    Example:
      >>> cell = seqjax.cells.rnn(1, lambda u: u, w_h=seqjax.initializers.identity(0.5))  # h' = h / 2 + input
      >>> params, carry = cell.init(jax.random.key(0), 1), jnp.zeros((1, 1))

      >>> def loss(ys):
      ...     return ys[-1].sum()
      >>> seqjax.diagnostics.gradient_against_lag(cell, params, carry, jnp.ones((4, 1, 1)), loss).tolist()
      [0.125, 0.25, 0.5, 1.0]
    """
    return _norms(_adjoints(cell, params, carry, xs, loss)[1], 1)


class Decay(NamedTuple):
    """The decay of the gradient of the loss L of one step s with the time lag k = 0, ..., T - 1.

    Attributes:
      norms: [T], `E |dL/dh_{s-k}|`.
      sums: [T], `|E sum_{j <= k} dL/dh_{s-j}|`.
    """

    norms: Array
    sums: Array


@partial(jax.jit, static_argnames=("cell", "loss"))
def gradient_decay(
    cell: Cell, params: Params, carry: Carry, xs: Tree, target: Tree, loss: Callable[[Tree, Tree], Array]
) -> Decay:
    """The gradient of the last step's loss against the time lag, in expectation over the batch.

    Args:
      cell: any cell.
      params: its params.
      carry: the carry before the first step, leaves [B, ...].
      xs: inputs [T, B, ...].
      target: of the last step, [B, ...].
      loss: `(y [B, O], target [B, ...]) -> losses [B]`.

    Returns:
      Norms over all leaves of the carry; the expectation E is the mean over the batch. h_t includes the effect on y_t.
    """
    axes = tuple(range(1, 1 + len(batch_shape(xs))))

    def last(ys):
        return loss(jax.tree.map(lambda leaf: leaf[-1], ys), target).sum()

    d_hs = jax.tree.map(lambda leaf: jnp.flip(leaf, 0), _adjoints(cell, params, carry, xs, last)[1])
    sums = jax.tree.map(lambda leaf: jnp.cumsum(leaf.mean(axes), 0), d_hs)
    return Decay(_norms(d_hs, 1 + len(axes)).mean(axes), _norms(sums, 1))


def _check_lag(norms: Array, tau: int) -> None:
    if not 0 <= tau <= norms.shape[0] - 2:
        raise ValueError(f"the decay beyond lag tau needs 0 <= tau <= T - 2 = {norms.shape[0] - 2}, got tau = {tau}")


@partial(jax.jit, static_argnames="tau")
def decay_rate(norms: Array, tau: int) -> Array:
    """beta, the factor by which a gradient decays per step back in time: `norms[k] ~ beta^k` beyond lag tau.

    Its logarithm is the slope of a least-squares line through `log norms[k]`, k >= tau (Aicher, Foti & Fox 2019, arXiv
    1905.07473). Lags where the gradient is 0 are left out; if fewer than two remain, beta is 0.

    Args:
      norms: [T] by lag, of a `Decay`.
      tau: the lag from which the decay is geometric, in 0, ..., T - 2.

    Raises:
      ValueError: for a tau out of this range.
    """
    _check_lag(norms, tau)
    used = norms[tau:] > 0
    lags = jnp.arange(used.size, dtype=norms.dtype)
    logs = jnp.log(jnp.where(used, norms[tau:], 1))
    count = jnp.maximum(used.sum(dtype=norms.dtype), 1)

    def centred(values):
        return jnp.where(used, values - jnp.where(used, values, 0).sum() / count, 0)

    lags, logs = centred(lags), centred(logs)
    return jnp.where(count > 1, jnp.exp(lags @ logs / jnp.maximum(lags @ lags, 0.5)), 0)


@partial(jax.jit, static_argnames="tau")
def relative_bias(decay: Decay, tau: int) -> Array:
    """The relative bias of a gradient truncated after lag k, assuming that the decay continues geometrically.

        tail_k = sum_{k < j < tau} norms[j] + norms[tau] / (1 - beta) * beta^max(k + 1 - tau, 0)
        bias_k = tail_k / max_j (sums[j] - tail_j)

    tail_k is at least the sum of all norms beyond k, including those beyond T, if from tau on they decay by beta
    (`decay_rate`) or faster (Aicher, Foti & Fox 2019, arXiv 1905.07473, section 3). bias_k bounds the relative bias of
    dL/dW if, in addition, dh_t/dW is about the same at all lags; the paper assumes a bound on it. It is inf where
    beta >= 1, or where every tail is as large as its sum.

    Args:
      decay: from `gradient_decay`, over T lags.
      tau: the lag from which the decay is geometric, in 0, ..., T - 2.

    Returns:
      [T]: entry k is for a gradient of lags 0 to k, that is, truncation after k + 1 steps.

    Raises:
      ValueError: for a tau out of this range.
    """
    norms, sums = decay
    beta = decay_rate(norms, tau)
    lags = jnp.arange(norms.size, dtype=norms.dtype)
    head = jnp.where(lags < tau, norms, 0)
    beyond = jnp.where(beta < 1, norms[tau] / (1 - beta), jnp.inf)
    tail = jnp.flip(jnp.cumsum(jnp.flip(head))) - head + beyond * beta ** jnp.maximum(lags + 1 - tau, 0)
    whole = jnp.max(sums - tail)
    return jnp.where(whole > 0, tail / whole, jnp.inf)


@partial(jax.jit, static_argnames=("cell", "loss"))
def contributions(cell: Cell, params: Params, carry: Carry, xs: Tree, loss: Callable[[Tree], Array]) -> Array:
    """The contribution of each step to the gradient: the norm of dL/dW_t, W_t the params as used by step t only.

        dL/dW = sum_t dL/dW_t,   dL/dW_t = dL/dh_t dh_t/dW + (the direct part of the readout)

    The terms of the sum in Pascanu, Mikolov & Bengio 2013 (arXiv 1211.5063), section 2. Arguments as in
    `gradient_against_lag`; the memory is that of one gradient, not of T.

    Returns:
      [T]: the Euclidean norm of dL/dW_t over all params, summed over the batch before the norm is taken.

    Example:
      >>> cell = seqjax.cells.rnn(1, lambda u: u, w_h=seqjax.initializers.identity(0.5))  # h' = h / 2 + input
      >>> params = cell.init(jax.random.key(0), 1)
      >>> def loss(ys):
      ...     return ys[-1].sum()
      >>> zeros = jnp.zeros((4, 1, 1))  # so that only the bias has a gradient
      >>> seqjax.diagnostics.contributions(cell, params, jnp.zeros((1, 1)), zeros, loss).tolist()
      [0.125, 0.25, 0.5, 1.0]
    """
    hs, d_hs, ys = _adjoints(cell, params, carry, xs, loss)
    before = jax.tree.map(lambda first, h: jnp.concatenate([first[None], h[:-1]]), carry, hs)

    def body(carry, inputs):
        x, h_before, h, cotangents = inputs

        def step(params):
            z = open_dense(cell.project(params, x))
            return cell.transition(params, h_before, z), cell.readout(params, h, z)

        return carry, _norms(jax.vjp(step, params)[1](cotangents), 0)

    return scan_const(body, (), (xs, before, hs, (d_hs, jax.grad(loss)(ys))))[1]


@partial(jax.jit, static_argnames="cell")
def receptive_field(cell: Cell, params: Params, carry: Carry, xs: Tree) -> Array:
    """The norm of dy_T/dx_t for every step: from how far back inputs still influence the last output.

    The effective receptive field of Luo et al. 2016 (arXiv 1701.04128), over time.

    Args:
      cell: any cell that reads floating features, the first leaf of xs.
      params: its params.
      carry: the carry before the first step, leaves [B, ...].
      xs: inputs [T, B, ...].

    Returns:
      [T, B]: the Frobenius norm of the Jacobian [O, D] of each sequence. Entry t is that of lag T - 1 - t.

    Raises:
      TypeError: for integer inputs (tokens), which have no derivative.

    Example:
      >>> cell = seqjax.cells.rnn(1, lambda u: u, w_x=jax.nn.initializers.ones, w_h=seqjax.initializers.identity(0.5))
      >>> params = cell.init(jax.random.key(0), 1)
      >>> seqjax.diagnostics.receptive_field(cell, params, jnp.zeros((1, 1)), jnp.ones((4, 1, 1)))[:, 0].tolist()
      [0.125, 0.25, 0.5, 1.0]
    """
    x = features(xs)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"receptive_field differentiates with respect to floating inputs, got {x.dtype}")

    def last(x):
        return unroll(cell, params, carry, with_features(xs, x), method="scan")[1][-1]

    y, pull = jax.vjp(last, x)
    outputs = math.prod(y.shape[1:])

    def squares(one_hot):
        cotangent = jnp.broadcast_to(one_hot.reshape(1, *y.shape[1:]), y.shape)
        return jnp.square(_norms(pull(cotangent), 2))

    # One output at a time, so that the memory is that of one gradient.
    return jnp.sqrt(jax.lax.map(squares, jnp.eye(outputs, dtype=y.dtype)).sum(0))
