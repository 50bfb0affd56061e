"""Training on sequences too long for memory: chunks of time, each run again for its gradient."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from seqjax.arrays import Carry, Tree
from seqjax.core import scan_const, split_const

__all__ = ["default_chunk"]


def fitting_chunk(steps: int, wanted: float) -> int:
    """The divisor of `steps` nearest to `wanted`, by ratio; `wanted` itself where none is within a factor of 2."""
    wanted = min(max(wanted, 1.0), float(steps))
    near = [c for c in range(1, int(2 * wanted) + 1) if steps % c == 0 and 2 * c >= wanted]
    return min(near, key=lambda c: max(c / wanted, wanted / c), default=round(wanted))


def default_chunk(steps: int, levels: int = 1, slots: int | None = None) -> int:
    """The chunk that `checkpointed` takes if it is not told: about T^(1/(levels + 1)) / 2, or slots / 4.

    A step inside a chunk keeps several times as much as a carry between chunks does, hence the half and the quarter.
    """
    return fitting_chunk(steps, steps ** (1 / (levels + 1)) / 2 if slots is None else slots / 4)


Run = Callable[[Carry, Tree], tuple[Carry, Tree]]


def every_border(run: Run, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """A scan of `run` that keeps the carry before each turn, and runs each turn again for its gradient."""
    return scan_const(jax.checkpoint(run), carry, xs)


def nested(run: Run, carry: Carry, xs: Tree, levels: int) -> tuple[Carry, Tree]:
    """`every_border` of loops of `every_border` ..., `levels` deep, each about as long as the others."""
    if levels == 1:
        return every_border(run, carry, xs)
    turns = split_const(xs)[0][0].shape[0]
    below = fitting_chunk(turns, turns ** (1 - 1 / levels))
    return over_chunks(partial(nested, run, levels=levels - 1), carry, xs, below)


def over_chunks(
    run: Run, carry: Carry, xs: Tree, chunk: int, loop: Callable[[Run, Carry, Tree], tuple[Carry, Tree]] = every_border
) -> tuple[Carry, Tree]:
    """`run(carry, xs) -> (carry, ys)` on one chunk of time after the other, each run again for its gradient.

    Args:
      run: what is done with a chunk, or with the fewer steps that are left over.
      carry: the carry before the first step.
      xs: inputs [T, ...].
      chunk: steps of a chunk.
      loop: the loop over the chunks, which says what is kept and what is run again; inputs [T / chunk, chunk, ...].

    Raises:
      ValueError: for a chunk below 1 step or above T.
    """
    timed, merge = split_const(xs)
    steps = timed[0].shape[0]
    if not 1 <= chunk <= steps:
        raise ValueError(f"chunk must lie between 1 and the number of steps {steps}, got {chunk}")
    whole = steps - steps % chunk

    def cut(leaf):
        return leaf[:whole].reshape(whole // chunk, chunk, *leaf.shape[1:])

    carry, ys = loop(run, carry, merge([cut(leaf) for leaf in timed]))
    timed_ys, merge_ys = split_const(ys)
    timed_ys = [leaf.reshape(whole, *leaf.shape[2:]) for leaf in timed_ys]
    if whole < steps:
        carry, rest = jax.checkpoint(run)(carry, merge([leaf[whole:] for leaf in timed]))
        timed_ys = [jnp.concatenate(pair) for pair in zip(timed_ys, split_const(rest)[0], strict=True)]
    return carry, merge_ys(timed_ys)
