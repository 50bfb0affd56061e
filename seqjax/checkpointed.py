"""Training on sequences too long for memory: chunks of time, each run again for its gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.cells.stack import stack
from seqjax.core import Array, Carry, Cell, Params, Tree, inner, scan_const, split_const


def fitting_chunk(steps: int, wanted: float) -> int:
    """The divisor of `steps` nearest to `wanted`, by ratio; `wanted` itself where none is within a factor of 2."""
    wanted = min(max(wanted, 1.0), float(steps))
    near = [c for c in range(1, int(2 * wanted) + 1) if steps % c == 0 and 2 * c >= wanted]
    return min(near, key=lambda c: max(c / wanted, wanted / c), default=round(wanted))


def over_chunks(
    run: Callable[[Carry, Tree], tuple[Carry, Tree]], carry: Carry, xs: Tree, chunk: int
) -> tuple[Carry, Tree]:
    """`run(carry, xs) -> (carry, ys)` on one chunk of time after the other, each run again for its gradient.

    Raises:
      ValueError: for a chunk below 1 step or above T.
    """
    timed, merge = split_const(xs)
    steps = timed[0].shape[0]
    if not 1 <= chunk <= steps:
        raise ValueError(f"chunk must lie between 1 and the number of steps {steps}, got {chunk}")
    whole = steps - steps % chunk
    run = jax.checkpoint(run)

    def cut(leaf):
        return leaf[:whole].reshape(whole // chunk, chunk, *leaf.shape[1:])

    carry, ys = scan_const(run, carry, merge([cut(leaf) for leaf in timed]))
    timed_ys, merge_ys = split_const(ys)
    timed_ys = [leaf.reshape(whole, *leaf.shape[2:]) for leaf in timed_ys]
    if whole < steps:
        carry, rest = run(carry, merge([leaf[whole:] for leaf in timed]))
        timed_ys = [jnp.concatenate(pair) for pair in zip(timed_ys, split_const(rest)[0], strict=True)]
    return carry, merge_ys(timed_ys)


def checkpointed(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Tree,
    *,
    chunk: int | None = None,
    method: Any = "auto",
) -> tuple[Carry, Tree]:
    """A scan over chunks of `chunk` steps, each run again for its gradient (Chen et al. 2016, arXiv 1604.06174).

        for each chunk:  carry, ys = solve(method, cell, params, carry, xs of the chunk)

    What is kept is the carry at every border and what one chunk needs: memory of order T / chunk + chunk, so sqrt(T)
    by default, for one more forward pass. Inputs, and outputs that are used, are [T, B, ...] whatever the method: a
    loss on every step belongs inside (`with_loss`), so that losses [T, B] come out instead of outputs [T, B, H].

    Args:
      cell: any cell; a stack is run as a whole in each chunk, so that nothing between its layers is kept.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].
      chunk: steps in a chunk; by default about sqrt(T) / 2. One that does not divide T costs a copy of the inputs.
      method: how a chunk is run, as in `unroll`.

    Returns:
      `(carry, ys)`, as `unroll`.

    Raises:
      ValueError: for a chunk below 1 or above T.
    """
    from seqjax.solve import solve  # which has this method in its list

    steps = split_const(xs)[0][0].shape[0]
    # A step inside a chunk keeps several times as much as a border does, hence the half.
    chunk = fitting_chunk(steps, steps**0.5 / 2) if chunk is None else chunk
    return over_chunks(partial(solve, method, cell, params), carry, xs, chunk)


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
