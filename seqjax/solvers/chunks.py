"""Training on sequences too long for memory: chunks of time, each of which is recomputed for its gradient."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from seqjax.arrays import Carry, Tree
from seqjax.core import scan_const, split_const

__all__ = ["default_chunk"]


def fitting_chunk(steps: int, wanted: float) -> int:
    """The divisor of `steps` nearest to `wanted`, by ratio; `wanted` itself if none is within a factor of 2."""
    wanted = min(max(wanted, 1.0), float(steps))
    near = [c for c in range(1, int(2 * wanted) + 1) if steps % c == 0 and 2 * c >= wanted]
    return min(near, key=lambda c: max(c / wanted, wanted / c), default=round(wanted))


def default_chunk(steps: int, levels: int = 1, slots: int | None = None) -> int:
    """The default chunk of `checkpointed`: about T^(1/(levels + 1)) / 2, or slots / 4.

    A step inside a chunk keeps several times as much as a carry between chunks, hence the half and the quarter.
    """
    return fitting_chunk(steps, steps ** (1 / (levels + 1)) / 2 if slots is None else slots / 4)


Run = Callable[[Carry, Tree], tuple[Carry, Tree]]


def recomputing_scan(run: Run, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """A scan of `run` that keeps the carry before each iteration, and recomputes each iteration for its gradient."""
    return scan_const(jax.checkpoint(run), carry, xs)


def nested(run: Run, carry: Carry, xs: Tree, levels: int) -> tuple[Carry, Tree]:
    """`recomputing_scan` of loops of `recomputing_scan` ..., `levels` deep, all of about the same length."""
    if levels == 1:
        return recomputing_scan(run, carry, xs)
    iterations = split_const(xs)[0][0].shape[0]
    chunk = fitting_chunk(iterations, iterations ** (1 - 1 / levels))
    return over_chunks(partial(nested, run, levels=levels - 1), carry, xs, chunk)


def over_chunks(
    run: Run,
    carry: Carry,
    xs: Tree,
    chunk: int,
    loop: Callable[[Run, Carry, Tree], tuple[Carry, Tree]] = recomputing_scan,
) -> tuple[Carry, Tree]:
    """`run(carry, xs) -> (carry, ys)` on one chunk of time after another, each recomputed for its gradient.

    Args:
      run: runs one chunk, or the remaining steps if the chunks do not divide T.
      carry: the carry before the first step.
      xs: inputs [T, ...].
      chunk: steps per chunk.
      loop: the loop over the chunks, with inputs [T / chunk, chunk, ...]; it decides what is kept and what is
        recomputed.

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
