"""The gradient of a long loop from few stored carries: the schedule of Griewank & Walther, as one compiled loop."""

from collections.abc import Callable
from functools import lru_cache
from math import comb
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.arrays import Array, Carry, Tree
from seqjax.core import split_const
from seqjax.solvers.autodiff import gradient_in_forward_mode_only, reverse_mode_only

__all__ = ["forward_runs"]


def _repetitions(chunks: int, slots: int) -> int:
    """The least r with `chunks <= binom(slots + r, slots)`."""
    r = 0
    while comb(slots + r, slots) < chunks:
        r += 1
    return r


def forward_runs(chunks: int, slots: int) -> int:
    """The total number of forward runs of a chunk, for the value and the gradient of a loop over `chunks` chunks.

    If a loop of N chunks may store m carries, including the first, the minimum number of runs, not counting the one in
    the reversal of each chunk, is (Griewank & Walther 2000, "Algorithm 799: revolve", theorem 1)

        t(N, m) = r N - binom(m + r, r - 1),    r the least with N <= binom(m + r, m)
        t(1, m) = 0,  t(N, 1) = N (N - 1) / 2,  t(N, m) = min_k  k + t(N - k, m - 1) + t(k, m)

    and this is `t(N, m) + N + 1`: the last chunk also runs for its outputs. It is 2 N if m >= N. Apart from that one
    chunk, it is what Gruslys et al. 2016 (arXiv 1606.03401) find by dynamic programming over hidden states.
    """
    r = _repetitions(chunks, slots)
    return r * chunks - comb(slots + r, slots + 1) + chunks + 1


def _advance(chunks: int, slots: int) -> int:
    """A k that attains the minimum in t(chunks, slots): the number of chunks to advance to the next stored carry."""
    r = _repetitions(chunks, slots)
    fewer = comb(slots + r - 2, slots) if r > 1 else 0
    return max(1, fewer, chunks - comb(slots - 1 + r, slots - 1))


class Schedule(NamedTuple):
    """Which carries of a loop over N chunks are stored in m slots while the chunks are reversed, last to first.

    An additional slot m is scratch: carries that are not to be stored are written there.

    Attributes:
      stored: int32 [N], the slot that takes the carry before chunk i in the forward pass.
      source: int32 [N], the slot whose carry the reversal of chunk i starts from.
      begin: int32 [N], the chunk before which that carry stands.
      offset: int32 [N], the place in `again` where the path from there to chunk i begins.
      again: int32 [A], the slots that take the carries after each of the chunks on these paths.
    """

    stored: np.ndarray
    source: np.ndarray
    begin: np.ndarray
    offset: np.ndarray
    again: np.ndarray


@lru_cache
def schedule(chunks: int, slots: int) -> Schedule:
    """The schedule of fewest runs for a loop over `chunks` chunks with `slots` slots."""
    kept = [0]  # the chunks before which the carries in slots 0, 1, ... stand

    def advance_to(end: int) -> tuple[int, int, list[int]]:
        """The slot and the chunk from which chunk `end` is reached, and the slots written on the path."""
        begin, source = kept[-1], len(kept) - 1
        path, here = [slots] * (end - begin), begin
        while here < end and len(kept) < slots:
            here += _advance(end + 1 - here, slots + 1 - len(kept))
            if here < end:
                path[here - begin - 1] = len(kept)
                kept.append(here)
        return source, begin, path

    stored = [0, *advance_to(chunks - 1)[2]]
    last = chunks - 1
    rows, again = [(slots if last else 0, last, 0)], []  # the forward pass leaves the last carry in the scratch slot
    for end in reversed(range(last)):
        while kept[-1] > end:
            kept.pop()
        source, begin, path = advance_to(end)
        rows.append((source, begin, len(again)))
        again += path
    source, begin, offset = np.array(rows[::-1], np.int32).T
    # One more entry, so that `again` is never empty.
    return Schedule(np.array(stored, np.int32), source, begin, offset, np.array([*again, slots], np.int32))


def revolve(run: Callable[[Carry, Tree], tuple[Carry, Tree]], carry: Carry, xs: Tree, slots: int) -> tuple[Carry, Tree]:
    """A scan of `run(carry, x) -> (carry, y)` whose gradient stores no more than `slots` carries.

    The number of runs is the minimum (`forward_runs`). It is one compiled loop for any schedule, since the schedule is
    a table of integers: the forward pass stores the carries of its first sweep; then, for each chunk from the last to
    the first, the loop advances from the nearest stored carry before it to the chunk, stores further carries in slots
    that are free again, and reverses the chunk. Memory of `slots + 1` carries and of what one chunk needs, in addition
    to xs and ys. Reverse mode only; second derivatives are forward over reverse (`jax.hessian`).

    Args:
      run: one iteration of the loop; a `Const` in x is seen by every iteration.
      carry: the carry before the first iteration.
      xs: inputs [N, ...].
      slots: the maximum number of stored carries, including the first; at most N are used.

    Returns:
      `(carry, ys [N, ...])`.

    Raises:
      ValueError: unless slots >= 1; for a `Const` in y.
    """
    if slots < 1:
        raise ValueError(f"slots must be at least 1, got {slots}")
    timed, merge = split_const(xs)
    first = [leaf[0] for leaf in timed]
    outputs = jax.eval_shape(run, carry, merge(first))[1]
    if len(split_const(outputs)[0]) < len(jax.tree.leaves(outputs)):
        raise ValueError(f"revolve stacks all outputs, got a Const among {outputs}")
    pure, shared = jax.closure_convert(lambda carry, timed: run(carry, merge(timed)), carry, first)
    shared, carry, timed = reverse_mode_only("checkpointed", (shared, carry, timed))
    return _loop(pure, min(slots, timed[0].shape[0]), shared, carry, timed)


def _value(run: Callable, slots: int, shared: list[Array], carry: Carry, timed: list[Array]) -> tuple[Carry, Tree]:
    return _loop_forward(run, slots, shared, carry, timed)[0]


def _loop_forward(run, slots, shared, carry, timed):
    def body(state, row):
        carry, kept = state
        slot, x = row
        kept = _put(kept, slot, carry)
        carry, y = run(carry, x, *shared)
        return (carry, kept), y

    blank = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (slots + 1, *leaf.shape)), carry)
    stored = jnp.asarray(schedule(timed[0].shape[0], slots).stored)
    (carry, kept), ys = jax.lax.scan(body, (carry, blank), (stored, timed))
    return (carry, ys), (shared, kept, timed)


def _loop_backward(run, slots, residuals, cotangents):
    shared, kept, timed = residuals
    count = timed[0].shape[0]
    _, *rows, again = map(jnp.asarray, schedule(count, slots))
    floats, _ = _split_floats(timed)
    d_carry, d_ys = (_split_floats(tree)[0] for tree in cotangents)

    def reverse(state, row):
        d_carry, d_shared, kept = state
        end, (source, begin, offset), x, d_y = row

        def advance(i, state):
            carry, kept = run(state[0], _at(timed, i), *shared)[0], state[1]
            return carry, _put(kept, again[offset + i - begin], carry)

        carry, kept = jax.lax.fori_loop(begin, end, advance, (_at(kept, source), kept))
        h, merge_h = _split_floats(carry)
        merge_x = _split_floats(_at(timed, end))[1]

        def outputs(h, x, shared):
            carry, y = run(merge_h(h), merge_x(x), *shared)
            return _split_floats(carry)[0], _split_floats(y)[0]

        d_carry, d_x, d_more = jax.vjp(outputs, h, x, shared)[1]((d_carry, d_y))
        return (d_carry, [a + b for a, b in zip(d_shared, d_more, strict=True)], kept), d_x

    state = d_carry, [jnp.zeros_like(leaf) for leaf in shared], kept
    inputs = jnp.arange(count, dtype=jnp.int32), rows, floats, d_ys
    (d_carry, d_shared, _), d_xs = jax.lax.scan(reverse, state, inputs, reverse=True)
    d_shared, d_carry, d_xs = gradient_in_forward_mode_only("checkpointed", (d_shared, d_carry, d_xs))
    return d_shared, _only_floats(_at(kept, 0), d_carry), _only_floats(timed, d_xs)


_loop = jax.custom_vjp(_value, nondiff_argnums=(0, 1))
_loop.defvjp(_loop_forward, _loop_backward)


def _at(tree: Tree, i: Array | int) -> Tree:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _put(tree: Tree, i: Array, values: Tree) -> Tree:
    return jax.tree.map(lambda leaf, value: leaf.at[i].set(value), tree, values)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _split_floats(tree: Tree) -> tuple[list[Array], Callable[[list[Array]], Tree]]:
    """The differentiable leaves of a tree, and a function that puts such leaves back among the others."""
    leaves, treedef = jax.tree.flatten(tree)

    def merge(values):
        values = iter(values)
        return treedef.unflatten([next(values) if _is_float(leaf) else leaf for leaf in leaves])

    return [leaf for leaf in leaves if _is_float(leaf)], merge


def _only_floats(tree: Tree, values: list[Array]) -> Tree:
    """`values` in the places of the differentiable leaves, and None, which stands for 0, in the others."""
    leaves, treedef = jax.tree.flatten(tree)
    rest = iter(values)
    return treedef.unflatten([next(rest) if _is_float(leaf) else None for leaf in leaves])
