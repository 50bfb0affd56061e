"""Truncated back-propagation that measures how far it has to reach."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Tree, carry_dtype
from seqjax.core import Cell, split_const
from seqjax.diagnostics import Decay, gradient_decay, relative_bias
from seqjax.gradients.estimator import Estimator, Loss, on_mesh
from seqjax.gradients.truncation import Window, truncated_bptt
from seqjax.placement import placed_as
from seqjax.solvers.dispatch import Solver
from seqjax.solvers.scan import length
from seqjax.unrolling import unroll


class Reach(NamedTuple):
    """State of adaptive truncation, whose longest window has K steps in K / k1 chunks.

    Attributes:
      carries: the carries before each chunk of the longest window, the oldest first, leaves [K / k1, B, ...].
      past: the timed leaves of the last K - k1 inputs, each [K - k1, B, ...].
      filled: int32 [], how many of them have been seen; the others lie before the start of the stream.
      updates: int32 [], how many have been made.
      decay: what was measured, over K lags; `diagnostics.relative_bias(state.decay, tau)` is the estimate.
      k2: int32 [], steps that the gradient of the next update reaches back.
    """

    carries: Carry
    past: list[Array]
    filled: Array
    updates: Array
    decay: Decay
    k2: Array


def adaptive_truncation(
    cell: Cell,
    loss: Loss,
    k1: int,
    k2s: Sequence[int],
    delta: float,
    tau: int,
    *,
    every: int = 1,
    average: float = 0.0,
    method: str | Solver = "auto",
) -> Estimator:
    """Truncated back-propagation whose reach is chosen by a tolerated bias (Aicher, Foti & Fox 2019, arXiv 1905.07473).

        phi_k = E |dL_s/dh_{s-k}|,   k = 0, ..., K - 1,   s the newest step, E over the batch
        beta  = the rate at which phi decays from lag tau on
        k2    = the least of k2s for which the relative bias of a gradient of lags 0 to k2 - k1 is at most delta

    and the longest, K, where none is, and until K steps have been seen. The gradient is that of `truncated_bptt(k1,
    k2)`, whose losses reach back k2 - k1 lags or more. `diagnostics.relative_bias` says how the bias is estimated, and
    under which conditions that is a bound. What an update measures is used by the next one.

    The sizes are static, and one of them is run (`lax.switch`): an update costs that of `truncated_bptt(k1, k2)`, and
    one forward pass over the chunk where k2 > k1. Each size is compiled. Memory is that of the longest. A measurement
    is a forward and a backward pass over K steps, without gradients of params. A `vmap` over the state runs all sizes.

    Args:
      cell: the model.
      loss: `(ys [..., B, O], targets [..., B, ...]) -> losses [..., B]`.
      k1: steps between updates; `update` takes chunks of exactly k1 steps.
      k2s: two or more numbers of steps to reach back, counted from the newest; growing multiples of k1.
      delta: the tolerated relative bias, above 0.
      tau: the lag where the decay begins to be geometric, in 0, ..., K - 2.
      every: updates from one measurement to the next.
      average: the share of the former ones in the running mean of what is measured, in [0, 1). For small batches.
      method: as in `unroll`.

    Raises:
      ValueError: unless all this is so; in `update`, for a chunk that is not k1 steps long.
    """
    sizes = tuple(k2s)
    if k1 < 1 or len(sizes) < 2 or any(k % k1 for k in sizes) or sorted(set(sizes)) != [*sizes] or sizes[0] < k1:
        raise ValueError(
            f"adaptive_truncation needs k1 >= 1 and k2s that are two or more growing multiples of it, got k1 = {k1} and"
            f" k2s = {k2s}"
        )
    longest = sizes[-1]
    if not delta > 0:
        raise ValueError(f"adaptive_truncation needs a relative bias delta > 0, got {delta}")
    if not 0 <= tau <= longest - 2:
        raise ValueError(f"adaptive_truncation needs a lag tau of 0 to {longest - 2}, got {tau}")
    if every < 1 or not 0 <= average < 1:
        raise ValueError(f"adaptive_truncation needs every >= 1 and average in [0, 1), got {every} and {average}")
    kept = longest - k1

    def check(xs: Tree) -> None:
        if length(xs) != k1:
            raise ValueError(f"adaptive_truncation with k1 = {k1} takes chunks of {k1} steps, got {length(xs)}")

    def init(params, carry, xs):
        del params
        check(xs)
        carries = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (longest // k1, *leaf.shape)), carry)
        past = [placed_as(jnp.zeros((kept, *leaf.shape[1:]), leaf.dtype), leaf) for leaf in split_const(xs)[0]]
        blank = jnp.zeros(longest, carry_dtype(jax.tree.leaves(carry)[0].dtype))
        return Reach(carries, past, jnp.int32(0), jnp.int32(0), Decay(blank, blank), jnp.int32(longest))

    def truncated(k2):
        """An update by `truncated_bptt`, with the carries before each chunk of the next window."""
        estimator = truncated_bptt(cell, loss, k1, k2, method=method)
        begin = (longest - k2) // k1

        def update(params, state, xs, targets):
            carry, newest = (jax.tree.map(lambda leaf, i=i: leaf[i], state.carries) for i in (begin, -1))
            window = Window(carry, [leaf[longest - k2 :] for leaf in state.past], jnp.minimum(state.filled, k2 - k1))
            value, grads, after = estimator.update(params, window, xs, targets)
            end = after.carry if k2 == k1 else unroll(cell, params, newest, xs, method=method)[0]
            carries = jax.tree.map(
                lambda old, second, last: jnp.concatenate([old[1:], last[None]]).at[begin].set(second),
                state.carries,
                after.carry,
                end,
            )
            return value, grads, carries

        return update

    def measured(params, state, xs, targets):
        """The decay, and the reach that it asks for."""
        carry = jax.tree.map(lambda leaf: leaf[0], state.carries)
        target = jax.tree.map(lambda leaf: leaf[-1], targets)
        new = gradient_decay(cell, params, carry, xs, target, loss)
        share = jnp.where(state.updates < longest // k1, 0, average)
        decay = jax.tree.map(lambda old, new: share.astype(new.dtype) * (old - new) + new, state.decay, new)
        enough = relative_bias(decay, tau)[jnp.asarray([k2 - k1 for k2 in sizes])] <= delta
        return decay, jnp.where(enough.any(), jnp.asarray(sizes, jnp.int32)[jnp.argmax(enough)], longest)

    def update(params, state: Any, xs, targets):
        check(xs)
        choice = jnp.searchsorted(jnp.asarray(sizes, jnp.int32), state.k2)
        value, grads, carries = jax.lax.switch(choice, [truncated(k2) for k2 in sizes], params, state, xs, targets)
        timed, merge = split_const(xs)
        window = [jnp.concatenate([old, new]) for old, new in zip(state.past, timed, strict=True)]
        since = state.updates - (longest // k1 - 1)  # the first update at which the longest window is full
        decay, k2 = jax.lax.cond(
            (since >= 0) & (since % every == 0),
            measured,
            lambda params, state, xs, targets: (state.decay, state.k2),
            params,
            state,
            merge(window),
            targets,
        )
        filled = jnp.minimum(state.filled + k1, kept)
        past = [leaf[k1:] for leaf in window]
        return value, grads, Reach(carries, past, filled, state.updates + 1, decay, k2)

    return on_mesh(cell, init, update)
