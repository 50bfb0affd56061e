"""The gradient of a long loop with few carries kept: the schedule of Griewank & Walther, as one compiled loop."""

from collections.abc import Callable
from functools import lru_cache, partial
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
    """r, the least with `chunks <= binom(slots + r, slots)`."""
    r = 0
    while comb(slots + r, slots) < chunks:
        r += 1
    return r


def forward_runs(chunks: int, slots: int) -> int:
    """How often a chunk is run forward in all, for the value and the gradient of a loop over `chunks` chunks.

    Where a loop of N chunks may keep m carries, the first of them included, the fewest runs before the chunks that are
    reversed, each of which is run once more, are (Griewank & Walther 2000, "Algorithm 799: revolve", theorem 1)

        t(N, m) = r N - binom(m + r, r - 1),    r the least with N <= binom(m + r, m)
        t(1, m) = 0,  t(N, 1) = N (N - 1) / 2,  t(N, m) = min_k  k + t(N - k, m - 1) + t(k, m)

    and this is `t(N, m) + N + 1`: the last chunk is run for its outputs too. 2 N with m >= N. It is what Gruslys et al.
    2016 (arXiv 1606.03401) find by dynamic programming over hidden states, but for that one chunk.
    """
    r = _repetitions(chunks, slots)
    return r * chunks - comb(slots + r, slots + 1) + chunks + 1


def _advance(chunks: int, slots: int) -> int:
    """A k at which the minimum of t(chunks, slots) is reached: how far to go before the next carry is kept."""
    r = _repetitions(chunks, slots)
    fewer = comb(slots + r - 2, slots) if r > 1 else 0
    return max(1, fewer, chunks - comb(slots - 1 + r, slots - 1))


class Schedule(NamedTuple):
    """Which carries of a loop over N chunks are kept in m slots, while the chunks are reversed, the last one first.

    A slot m is the working one: it is written where a carry is kept in none of the others.

    Attributes:
      stored: int32 [N], in the forward pass: the slot that takes the carry before chunk i.
      source: int32 [N]: the slot from which chunk i is reached when it is reversed,
      begin: int32 [N]: the chunk before which the carry in this slot stands,
      offset: int32 [N]: and where in `again` the way from there to chunk i begins.
      again: int32 [A]: the slot that takes the carry before each chunk on this way.
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

    def go(end: int) -> tuple[int, int, list[int]]:
        """Slot and chunk from which chunk `end` is reached, and what is kept on the way."""
        begin, source = kept[-1], len(kept) - 1
        way, here = [slots] * (end - begin), begin
        while here < end and len(kept) < slots:
            here += _advance(end + 1 - here, slots + 1 - len(kept))
            if here < end:
                way[here - begin - 1] = len(kept)
                kept.append(here)
        return source, begin, way

    stored = [0, *go(chunks - 1)[2]]
    last = chunks - 1
    rows, again = [(slots if last else 0, last, 0)], []  # the forward pass leaves the last carry in the working slot
    for end in reversed(range(last)):
        while kept[-1] > end:
            kept.pop()
        source, begin, way = go(end)
        rows.append((source, begin, len(again)))
        again += way
    source, begin, offset = np.array(rows[::-1], np.int32).T
    # One entry more, so that there is one to look at.
    return Schedule(np.array(stored, np.int32), source, begin, offset, np.array([*again, slots], np.int32))


def revolve(run: Callable[[Carry, Tree], tuple[Carry, Tree]], carry: Carry, xs: Tree, slots: int) -> tuple[Carry, Tree]:
    """A scan of `run(carry, x) -> (carry, y)` whose gradient keeps `slots` carries and no more.

    The runs are the fewest possible (`forward_runs`). It is one compiled loop, whatever the schedule, which is a table
    of integers: the forward pass keeps the carries of its first sweep; then, for each chunk from the last to the
    first, the nearest carry before it is taken, the loop goes on from there to the chunk, keeps other carries in slots
    that have become free, and the chunk is reversed. Memory of `slots + 1` carries and of what one chunk needs,
    beside xs and ys. Reverse mode only; second derivatives are forward over reverse (`jax.hessian`).

    Args:
      run: one turn of the loop; a `Const` in x is seen by every turn.
      carry: the carry before the first turn.
      xs: inputs [N, ...].
      slots: carries kept at once, the first included; more than N are not needed.

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
    result: Any = _loop(pure, min(slots, timed[0].shape[0]), shared, carry, timed)
    return result


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loop(run: Callable, slots: int, shared: list[Array], carry: Carry, timed: list[Array]) -> tuple[Carry, Tree]:
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


_loop.defvjp(_loop_forward, _loop_backward)


def _at(tree: Tree, i: Array | int) -> Tree:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _put(tree: Tree, i: Array, values: Tree) -> Tree:
    return jax.tree.map(lambda leaf, value: leaf.at[i].set(value), tree, values)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _split_floats(tree: Tree) -> tuple[list[Array], Callable[[list[Array]], Tree]]:
    """The leaves of a tree that have a derivative, and a function that puts such leaves back among the others."""
    leaves, treedef = jax.tree.flatten(tree)

    def merge(values):
        values = iter(values)
        return treedef.unflatten([next(values) if _is_float(leaf) else leaf for leaf in leaves])

    return [leaf for leaf in leaves if _is_float(leaf)], merge


def _only_floats(tree: Tree, values: list[Array]) -> Tree:
    """`values` in the places of the leaves that have a derivative, and None, which stands for 0, in the others."""
    leaves, treedef = jax.tree.flatten(tree)
    rest = iter(values)
    return treedef.unflatten([next(rest) if _is_float(leaf) else None for leaf in leaves])
