"""Unbiased stochastic gradients: their mean over many draws is that of back-propagation through time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Key, carry_dtype
from seqjax.core import Cell, batch_shape, inner
from seqjax.gradients.estimator import Estimator, Loss, on_mesh
from seqjax.gradients.online import forward_mode, widen
from seqjax.gradients.truncation import bptt
from seqjax.solvers.scan import length
from seqjax.unrolling import unroll


class RankOne(NamedTuple):
    """The influence of UORO: dh/dW is the mean of the outer products h w^T.

    Attributes:
      h: [B, N].
      w: [B, P].
      key: one key per sequence [B].
    """

    h: Array
    w: Array
    key: Key


def uoro(cell: Cell, loss: Loss, key: Key) -> Estimator:
    """Unbiased online recurrent optimization (Tallec & Ollivier 2017, arXiv 1702.05043).

        nu_t = random signs [N]
        h~_t = p dh_t/dh_{t-1} h~_{t-1} + q nu_t,   w~_t = w~_{t-1} / p + nu_t^T dh_t/dW / q
        dL_t/dW = (dL_t/dh_t h~_t) w~_t + (the direct part of the readout)

    The mean of h~ w~^T over the signs is the influence J of `rtrl`. p and q balance the norms of the two terms of each
    sum, which keeps the variance small. Memory B (N + P), and the time of a few steps of the network per step.

    Args:
      cell: the model, for inputs with exactly one batch axis; a `Const` among its inputs must have it too.
      loss: `(ys [B, O], targets [B, ...]) -> losses [B]`.
      key: PRNG key; the state holds the next one.
    """

    def start(params, carry, xs, sizes):
        del params, carry, xs
        h = jnp.zeros((sizes.batch, sizes.numbers), sizes.dtype)
        w = jnp.zeros((sizes.batch, sizes.params), sizes.dtype)
        return RankOne(h, w, jax.random.split(key, sizes.batch)), ()

    def advance(step, h, influence, pattern):
        del pattern
        key, sub = jax.random.split(influence.key)
        signs = jax.random.rademacher(sub, h.shape, h.dtype)
        _, moved = jax.jvp(lambda h: step.transition(step.weights, h), (h,), (influence.h,))
        h, pull = jax.vjp(lambda weights: step.transition(weights, h), step.weights)
        (immediate,) = pull(signs)
        p, q = balance(influence.w, moved), balance(immediate, signs)
        return h, RankOne(p * moved + q * signs, influence.w / p + immediate / q, key)

    def pull(step, dh, influence, pattern):
        del step, pattern
        return (dh @ influence.h) * influence.w

    return forward_mode(cell, loss, start, advance, pull)


def balance(a: Array, b: Array) -> Array:
    """The p for which `a / p` and `p b` have the same norm; some positive number where one of the norms is 0."""
    # Where both are 0 any p is right, as long as it is finite.
    small = jnp.asarray(1e-12, a.dtype)
    return jnp.sqrt((jnp.linalg.norm(a) + small) / (jnp.linalg.norm(b) + small))


class Stream(NamedTuple):
    """State of randomly truncated back-propagation: the carry, and the key of the next chunks."""

    carry: Carry
    key: Key


def artbp(cell: Cell, loss: Loss, rate: float, key: Key) -> Estimator:
    """Unbiased randomly truncated back-propagation (Tallec & Ollivier 2017, arXiv 1705.08209).

        dL/dW = sum_t dL_t/dh_t  sum_{k <= t} (prod_{k < j <= t} r_j dh_j/dh_{j-1})  dh_k/dW
        r_j = 0 with probability rate, otherwise 1 / (1 - rate)

    independently for each sequence and step, so that the mean over r is the gradient of `bptt`, chunk by chunk: the
    state is passed from one chunk to the next, the gradient is not. Rate 0 is BPTT. On average a gradient reaches
    1 / rate steps back. The memory is nevertheless that of the whole chunk, since a compiled program cannot free what a
    draw does not need: the estimator is here for the study of its variance.

    Args:
      cell: the model.
      loss: `(ys [T, B, O], targets [T, B, ...]) -> losses [T, B]`.
      rate: the probability of truncation at a step, in [0, 1).
      key: PRNG key; the state holds the next one.

    Raises:
      ValueError: for a rate outside [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"artbp truncates at a rate in [0, 1), got {rate}")
    base = inner(cell, lambda z: z[0])

    def scaled(carry, r):
        def scale(leaf):
            factor = jnp.broadcast_to(r.reshape(r.shape + (1,) * (leaf.ndim - r.ndim)), leaf.shape)
            # The second term is 0; with its derivative, that of the sum is r.
            return leaf + (factor.astype(leaf.dtype) - 1) * (leaf - jax.lax.stop_gradient(leaf))

        return jax.tree.map(scale, carry)

    truncated = base._replace(
        project=lambda params, x: (cell.project(params, x[0]), x[1]),
        transition=lambda params, carry, z: base.transition(params, scaled(carry, z[1]), z),
        gated=None,
        affine=None,
        outer=None,
    )
    plain = bptt(truncated, loss, method="scan")

    def update(params, state: Any, xs, targets):
        key, sub = jax.random.split(state.key)
        dtype = carry_dtype(jax.tree.leaves(params)[0].dtype)
        kept = jax.random.bernoulli(sub, 1 - rate, (length(xs), *batch_shape(xs, cell.space))).astype(dtype)
        value, grads, carry = plain.update(params, state.carry, (xs, kept / (1 - rate)), targets)
        return value, grads, Stream(carry, key)

    return on_mesh(cell, lambda params, carry, xs: Stream(carry, key), update)


class Particles(NamedTuple):
    """State of persistent evolution strategies.

    Attributes:
      carries: of the particles, leaves [2, M, B, ...]: those with the noise added, and those with it subtracted.
      noise: [M, P], the sum of the noise that each pair has seen.
      key: of the noise of the next chunks.
    """

    carries: Carry
    noise: Array
    key: Key


def persistent_evolution(cell: Cell, loss: Loss, key: Key, *, pairs: int = 32, sigma: float = 0.01) -> Estimator:
    """Persistent evolution strategies (Vicol, Metz & Sohl-Dickstein 2021, arXiv 2112.13835): no backward pass.

        eps_i ~ N(0, sigma^2),   xi_i = xi_i + eps_i
        dL/dW = 1 / (M sigma^2) sum_i xi_i (L(W + eps_i) - L(W - eps_i)) / 2

    Each of M antithetic pairs keeps carries of its own, under new noise in every chunk; since xi accumulates all the
    noise that a carry has seen, chunks are not truncations. The mean over the noise is the gradient of a loss smoothed
    by it: for a fixed W, the mean over all chunks tends to that of BPTT over the stream as sigma tends to 0. The
    variance grows with the number of chunks since `init` and with the number of params. Memory of 2 M carries. Params
    of 16 bits would round the noise away, so the noise is added, and the chunk run, in float32.

    Args:
      cell: the model.
      loss: `(ys [T, B, O], targets [T, B, ...]) -> losses [T, B]`.
      key: PRNG key; the state holds the next one.
      pairs: M, shared by the whole batch.
      sigma: standard deviation of the noise on the params.

    Raises:
      ValueError: unless pairs >= 1 and sigma > 0.
    """
    if pairs < 1 or sigma <= 0:
        raise ValueError(f"persistent_evolution needs pairs >= 1 and sigma > 0, got {pairs} and {sigma}")

    def init(params, carry, xs):
        del xs
        weights, _, _ = widen(params)
        carries = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (2, pairs, *leaf.shape)), carry)
        return Particles(carries, jnp.zeros((pairs, weights.size), weights.dtype), key)

    def update(params, state: Any, xs, targets):
        weights, as_tree, as_params = widen(params)
        key, sub = jax.random.split(state.key)
        noise = sigma * jax.random.normal(sub, state.noise.shape, state.noise.dtype)

        def run(sign, noise, carry):
            carry, ys = unroll(cell, as_tree(weights + sign * noise), carry, xs, method="scan")
            return carry, jnp.mean(loss(ys, targets))

        over_pairs = jax.vmap(run, (None, 0, 0))
        signs = jnp.asarray([1, -1], weights.dtype)
        carries, values = jax.vmap(over_pairs, (0, None, 0))(signs, noise, state.carries)
        seen = state.noise + noise
        gradient = (values[0] - values[1]) @ seen / (2 * pairs * sigma**2)
        return values.mean(), as_params(gradient), Particles(carries, seen, key)

    return on_mesh(cell, init, update)
