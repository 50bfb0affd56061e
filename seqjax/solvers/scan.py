"""A recurrence as `lax.scan`: any cell, one step at a time."""

from collections.abc import Callable
from functools import partial

import jax

from seqjax.arrays import Carry, Params, Tree
from seqjax.core import Cell, open_dense, over_time, project_all, scan_const, split_const
from seqjax.hints import gated_step

__all__ = ["rematerialized", "scan"]


def length(xs: Tree) -> int:
    """The number of steps T of inputs whose timed leaves are [T, ...]."""
    timed, _ = split_const(xs)
    return timed[0].shape[0]


def _transition(cell: Cell, params: Params) -> Callable[[Carry, Tree], Carry]:
    """The transition for these params; the weights of a gated cell, which may be expensive, are computed only once."""
    if cell.gated is None:
        return partial(cell.transition, params)
    return partial(gated_step, cell.gated, cell.gated.weights(params))


def scan(cell: Cell, params: Params, carry: Carry, xs: Tree, *, unroll: int = 1) -> tuple[Carry, Tree]:
    """`lax.scan` over the steps; the memory of its gradient grows as T.

    A cell with the hint `gated` or `affine` is projected and read out for all steps at once, before and after the loop.
    Any other cell runs entirely inside the loop: splitting it has no known benefit.

    With `unroll` steps per turn of the loop, an accelerator starts fewer turns, and the program takes longer to
    compile; it computes the same.
    """
    if cell.gated is None and cell.affine is None:
        return scan_const(partial(cell.step, params), carry, xs, unroll=unroll)

    transition = _transition(cell, params)

    def body(carry, z):
        carry = transition(carry, z)
        return carry, carry

    zs = project_all(cell, params, xs)
    carry, hs = scan_const(body, carry, zs, unroll=unroll)
    return carry, over_time(partial(cell.readout, params), hs, zs)


def rematerialized(cell: Cell, params: Params, carry: Carry, xs: Tree, *, unroll: int = 1) -> tuple[Carry, Tree]:
    """A scan that keeps only the carries: its gradient recomputes every step, projection included.

    Where the matrix products are small, the time of a step is spent on writing and reading what its gradient needs, and
    this is the fastest method on a CPU that needs no compiler. Memory grows as T, by one carry per step. `unroll` as in
    `scan`.
    """
    if cell.gated is None and cell.affine is None:
        return scan_const(jax.checkpoint(partial(cell.step, params)), carry, xs, unroll=unroll)

    transition = _transition(cell, params)

    @jax.checkpoint
    def body(carry, x):
        carry = transition(carry, open_dense(cell.project(params, x)))
        return carry, carry

    def readout(carry, x):
        return cell.readout(params, carry, open_dense(cell.project(params, x)))

    carry, hs = scan_const(body, carry, xs, unroll=unroll)
    return carry, over_time(readout, hs, xs)
