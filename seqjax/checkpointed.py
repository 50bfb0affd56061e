"""Training on sequences too long for memory: chunks of time, each run again for its gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.cells.stack import stack
from seqjax.core import Array, Carry, Cell, Params, Tree, inner, scan_const, split_const
from seqjax.revolve import revolve


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


def checkpointed(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Tree,
    *,
    chunk: int | None = None,
    levels: int | None = None,
    slots: int | None = None,
    method: Any = "auto",
) -> tuple[Carry, Tree]:
    """A scan over chunks of `chunk` steps, each run again for its gradient (Chen et al. 2016, arXiv 1604.06174).

        for each chunk:  carry, ys = solve(method, cell, params, carry, xs of the chunk)

    With C = T / chunk, what is kept for the gradient beside what one chunk needs, and how often a step is run forward:

        (default)    all C carries between chunks              2
        levels = n   about n C^(1/n) of them, in nested loops  n + 1
        slots = m    m of them, and one at work                (t(C, m) + C + 1) / C, see `revolve.forward_runs`

    So memory is of order sqrt(T) by default, of T^(1/(n+1)) with n levels, of log T with log T levels or slots. A
    schedule of `slots` has the fewest runs of all that keep m carries (Griewank & Walther 2000; Gruslys et al. 2016,
    arXiv 1606.03401); it is reverse mode only. Inputs, and outputs that are used, are [T, B, ...] whatever the
    method: a loss on every step belongs inside (`with_loss`), so that losses [T, B] come out instead of outputs
    [T, B, H].

    Args:
      cell: any cell; a stack is run as a whole in each chunk, so that nothing between its layers is kept.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].
      chunk: steps in a chunk, by default `default_chunk`. Steps that are left over are a chunk of their own, kept
        beside the others; the inputs are then copied once.
      levels: loops around a chunk, one inside the other; 1 is the default.
      slots: carries kept, the first included.
      method: how a chunk is run, as in `unroll`.

    Returns:
      `(carry, ys)`, as `unroll`.

    Raises:
      ValueError: for a chunk below 1 or above T; for levels or slots below 1, or for both.
    """
    from seqjax.solve import solve  # which has this method in its list

    if levels is not None and slots is not None:
        raise ValueError(f"checkpointed takes levels or slots, got levels = {levels} and slots = {slots}")
    if levels is not None and levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    depth = 1 if levels is None else levels
    if chunk is None:
        chunk = default_chunk(split_const(xs)[0][0].shape[0], depth, slots)
    loop = partial(nested, levels=depth) if slots is None else partial(revolve, slots=slots)
    return over_chunks(partial(solve, method, cell, params), carry, xs, chunk, loop)


def with_loss(cell: Cell, loss: Callable[[Any, Any], Array]) -> Cell:
    """Put the loss of a step into its readout: `x = (x, target)`, `y_t = loss(cell(x)_t, target_t)`.

    With `loss: (y [B, O], target [B, ...]) -> [B]`, `unroll` returns losses [T, B], and `checkpointed` keeps no output.
    Around it, `masked` makes the losses of padding 0.
    """

    def wide(layer: Cell, last: Callable[[Any, Any], Any]) -> Cell:
        narrow = inner(layer, lambda z: z[0])
        return narrow._replace(
            project=lambda params, x: (layer.project(params, x[0]), x[1]),
            readout=lambda params, carry, z: last(narrow.readout(params, carry, z), z[1]),
        )

    if not cell.layers:
        return wide(cell, loss)
    below = (wide(layer, lambda y, target: (y, target)) for layer in cell.layers[:-1])
    return stack(*below, wide(cell.layers[-1], loss))._replace(init=cell.init)
