"""Truncated back-propagation that measures how far back it has to reach."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Params, Tree, carry_dtype
from seqjax.core import Cell, split_const
from seqjax.diagnostics import Decay, gradient_decay, relative_bias
from seqjax.gradients.estimator import Estimator, Loss, on_mesh
from seqjax.gradients.truncation import Window, check_chunk, truncated_bptt
from seqjax.placement import placed_as
from seqjax.solvers.dispatch import Solver
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
    """Truncated back-propagation, its reach chosen for a tolerated bias (Aicher, Foti & Fox 2019, arXiv 1905.07473).

        phi_k = E |dL_s/dh_{s-k}|,   k = 0, ..., K - 1,   s the newest step, E over the batch
        beta  = the rate at which phi decays from lag tau on
        k2    = the least of k2s for which the relative bias of a gradient of lags 0 to k2 - k1 is at most delta

    or the longest, K, where none satisfies this, and until K steps have been seen. The gradient is that of
    `truncated_bptt(k1, k2)`, whose losses reach back k2 - k1 lags or more. `diagnostics.relative_bias` documents the
    estimate of the bias, and the conditions under which it is a bound. What an update measures is used by the next one.

    The values of k2 are static, each is compiled, and `lax.switch` runs one of them: an update costs as much as one of
    `truncated_bptt(k1, k2)`, plus a forward pass over the chunk where k2 > k1. Memory is that of the longest. A
    measurement is a forward and a backward pass over K steps, without gradients of params. Under a `vmap` over the
    state, all of them run.

    Args:
      cell: the model.
      loss: `(ys [..., B, O], targets [..., B, ...]) -> losses [..., B]`.
      k1: steps between updates; `update` takes chunks of exactly k1 steps.
      k2s: two or more numbers of steps to reach back, counted from the newest; increasing multiples of k1.
      delta: the tolerated relative bias, above 0.
      tau: the lag where the decay begins to be geometric, in 0, ..., K - 2.
      every: updates from one measurement to the next.
      average: the weight of earlier measurements in their running mean, in [0, 1). For small batches.
      method: as in `unroll`.

    Raises:
      ValueError: for arguments outside these ranges; in `init` and `update`, for a chunk that is not k1 steps long.
    """
    sizes = tuple(k2s)
    if k1 < 1 or len(sizes) < 2 or any(k % k1 for k in sizes) or sorted(set(sizes)) != [*sizes] or sizes[0] < k1:
        raise ValueError(
            f"adaptive_truncation needs k1 >= 1 and k2s that are two or more increasing multiples of it, got k1 = {k1}"
            f" and k2s = {k2s}"
        )
    longest = sizes[-1]
    if not delta > 0:
        raise ValueError(f"adaptive_truncation needs a relative bias delta > 0, got {delta}")
    if not 0 <= tau <= longest - 2:
        raise ValueError(f"adaptive_truncation needs a lag tau of 0 to {longest - 2}, got {tau}")
    if every < 1 or not 0 <= average < 1:
        raise ValueError(f"adaptive_truncation needs every >= 1 and average in [0, 1), got {every} and {average}")
    adaptive = _Adaptive(cell, loss, k1, sizes, delta, tau, every, average, method)
    return on_mesh(cell, adaptive.init, adaptive.update)


class _Adaptive(NamedTuple):
    """The arguments of `adaptive_truncation`; `init` and `update` are those of its estimator."""

    cell: Cell
    loss: Loss
    k1: int
    k2s: tuple[int, ...]
    delta: float
    tau: int
    every: int
    average: float
    method: str | Solver

    @property
    def longest(self) -> int:
        """K, the steps of the longest window."""
        return self.k2s[-1]

    def init(self, params: Params, carry: Carry, xs: Tree) -> Reach:
        """The state before the first chunk."""
        del params
        check_chunk("adaptive_truncation", self.k1, xs)
        kept, chunks = self.longest - self.k1, self.longest // self.k1
        carries = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (chunks, *leaf.shape)), carry)
        past = [placed_as(jnp.zeros((kept, *leaf.shape[1:]), leaf.dtype), leaf) for leaf in split_const(xs)[0]]
        blank = jnp.zeros(self.longest, carry_dtype(jax.tree.leaves(carry)[0].dtype))
        return Reach(carries, past, jnp.int32(0), jnp.int32(0), Decay(blank, blank), jnp.int32(self.longest))

    def update(self, params: Params, state: Reach, xs: Tree, targets: Tree) -> tuple[Array, Params, Reach]:
        """One update by truncation to `state.k2` steps, and a measurement if one is due."""
        check_chunk("adaptive_truncation", self.k1, xs)
        branches = [partial(self._truncated, k2) for k2 in self.k2s]
        choice = jnp.searchsorted(jnp.asarray(self.k2s, jnp.int32), state.k2)
        value, grads, carries = jax.lax.switch(choice, branches, params, state, xs, targets)

        timed, merge = split_const(xs)
        window = [jnp.concatenate([old, new]) for old, new in zip(state.past, timed, strict=True)]
        since_full = state.updates - (self.longest // self.k1 - 1)  # updates since the longest window was first full
        due = (since_full >= 0) & (since_full % self.every == 0)
        decay, k2 = jax.lax.cond(due, self._measured, self._unmeasured, params, state, merge(window), targets)

        filled = jnp.minimum(state.filled + self.k1, self.longest - self.k1)
        past = [leaf[self.k1 :] for leaf in window]
        return value, grads, Reach(carries, past, filled, state.updates + 1, decay, k2)

    def _truncated(self, k2: int, params: Params, state: Reach, xs: Tree, targets: Tree) -> tuple[Array, Params, Carry]:
        """Loss and gradient of `truncated_bptt(k1, k2)`, and the carries before each chunk of the next window."""
        estimator = truncated_bptt(self.cell, self.loss, self.k1, k2, method=self.method)
        first = (self.longest - k2) // self.k1  # the chunk at which this window begins
        carry, newest = (jax.tree.map(lambda leaf, i=i: leaf[i], state.carries) for i in (first, -1))
        past = [leaf[self.longest - k2 :] for leaf in state.past]
        window = Window(carry, past, jnp.minimum(state.filled, k2 - self.k1))
        value, grads, after = estimator.update(params, window, xs, targets)
        last = after.carry if k2 == self.k1 else unroll(self.cell, params, newest, xs, method=self.method)[0]

        def shift(old, second, last):
            # The window has run its chunks with the present params: the carry before its second one is newer.
            return jnp.concatenate([old[1:], last[None]]).at[first].set(second)

        return value, grads, jax.tree.map(shift, state.carries, after.carry, last)

    def _measured(self, params: Params, state: Reach, xs: Tree, targets: Tree) -> tuple[Decay, Array]:
        """The decay over the longest window xs, and the k2 that it calls for."""
        carry = jax.tree.map(lambda leaf: leaf[0], state.carries)
        target = jax.tree.map(lambda leaf: leaf[-1], targets)
        new = gradient_decay(self.cell, params, carry, xs, target, self.loss)
        weight = jnp.where(state.updates < self.longest // self.k1, 0, self.average)
        decay = jax.tree.map(lambda old, new: weight.astype(new.dtype) * (old - new) + new, state.decay, new)
        lags = jnp.asarray([k2 - self.k1 for k2 in self.k2s])
        enough = relative_bias(decay, self.tau)[lags] <= self.delta
        return decay, jnp.where(enough.any(), jnp.asarray(self.k2s, jnp.int32)[jnp.argmax(enough)], self.longest)

    def _unmeasured(self, params: Params, state: Reach, xs: Tree, targets: Tree) -> tuple[Decay, Array]:
        """What is known from earlier updates."""
        del params, xs, targets
        return state.decay, state.k2
