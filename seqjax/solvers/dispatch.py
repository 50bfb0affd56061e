"""The methods by name, `solve`, and `auto`, which takes on each platform the method that is expected to be fastest."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from seqjax.arrays import Carry, Params, Tree
from seqjax.core import Cell, batch_shape, features, split_const
from seqjax.placement import explicit_spec, reshard, vary, varying
from seqjax.solvers.associative import associative
from seqjax.solvers.choice import choose
from seqjax.solvers.chunks import default_chunk, nested, over_chunks
from seqjax.solvers.chunkwise import chunkwise
from seqjax.solvers.fused import fused
from seqjax.solvers.gated_loop.solver import gated_loop
from seqjax.solvers.native import Native, native
from seqjax.solvers.newton import newton
from seqjax.solvers.persistent import Persistent, persistent, precision
from seqjax.solvers.revolve import revolve
from seqjax.solvers.scan import rematerialized, scan

__all__ = [
    "METHODS",
    "Solver",
    "auto",
    "checkpointed",
    "named",
    "solve",
]

Solver = Callable[[Cell, Params, Carry, Tree], tuple[Carry, Tree]]
"""`(cell, params, carry, xs) -> (last carry, ys)`."""


def auto(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """Run the method that is expected to be fastest for this cell, on the platform that the program is lowered for.

    `explain` returns which one that is and why the others are not.
    """
    timed, _ = split_const(xs)
    if not all(isinstance(size, int) for size in timed[0].shape):
        return scan(cell, params, carry, xs)  # the only method for symbolic sizes of jax.export
    cpu, cuda, tpu = (choose(platform, cell, params, carry, xs) for platform in ("cpu", "cuda", "tpu"))
    if cpu == cuda == tpu:
        return named(cpu)(cell, params, carry, xs)
    if cpu == "native" and cuda == tpu == "persistent":
        # One loop with kernels for all of them is traced once.
        kernels = (Native(), Persistent(precision()))
        return gated_loop(kernels, cell, params, carry, xs)
    runs = {name: _on(name, cell) for name in (cpu, cuda, tpu)}
    return jax.lax.platform_dependent(params, carry, xs, cpu=runs[cpu], cuda=runs[cuda], default=runs[tpu])


def _on(name: str, cell: Cell) -> Callable[[Params, Carry, Tree], tuple[Carry, Tree]]:
    """The method of this name, as one of those between which the platform chooses."""
    kernels: Any = {"native": Native(), "persistent": Persistent(precision())}.get(name)
    return partial(gated_loop, (kernels,), cell) if kernels else partial(named(name), cell)


def named(name: str) -> Solver:
    """The method of a name in `ranking`: "fused:8" is `fused` with 8 steps per turn of its loop."""
    method, _, unroll = name.partition(":")
    run: Any = METHODS[method]
    return partial(run, unroll=int(unroll)) if unroll else run


def checkpointed(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Tree,
    *,
    chunk: int | None = None,
    levels: int | None = None,
    slots: int | None = None,
    method: str | Solver = "auto",
) -> tuple[Carry, Tree]:
    """A scan over chunks of `chunk` steps, each recomputed for its gradient (Chen et al. 2016, arXiv 1604.06174).

        for each chunk:  carry, ys = solve(method, cell, params, carry, xs of the chunk)

    With C = T / chunk, what is kept for the gradient in addition to what one chunk needs, and how often a step runs
    forward:

        (default)    all C carries between chunks              2
        levels = n   about n C^(1/n) of them, in nested loops  n + 1
        slots = m    m of them, and one for scratch            (t(C, m) + C + 1) / C, see `revolve.forward_runs`

    So memory is of order sqrt(T) by default, of T^(1/(n+1)) with n levels, of log T with log T levels or slots. The
    schedule of `slots` has the fewest runs of all that keep m carries (Griewank & Walther 2000; Gruslys et al. 2016,
    arXiv 1606.03401); it is reverse mode only. Inputs, and outputs that are used, are [T, B, ...] with any method: a
    loss at every step belongs inside (`wrappers.structure.with_loss`), so that the result is losses [T, B] instead of
    outputs [T, B, H].

    Args:
      cell: any cell; a stack runs as a whole in each chunk, so that nothing between its layers is kept.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].
      chunk: steps per chunk, by default `default_chunk`. If it does not divide T, the remaining steps are one more
        chunk, and the inputs are copied once.
      levels: the number of nested loops around a chunk; by default 1.
      slots: the number of carries kept, including the first.
      method: the method that runs a chunk, as in `unroll`.

    Returns:
      `(carry, ys)`, as `unroll`.

    Raises:
      ValueError: for a chunk below 1 or above T; for levels or slots below 1, or for both.
    """
    if levels is not None and slots is not None:
        raise ValueError(f"checkpointed takes levels or slots, got levels = {levels} and slots = {slots}")
    if levels is not None and levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    depth = 1 if levels is None else levels
    if chunk is None:
        chunk = default_chunk(split_const(xs)[0][0].shape[0], depth, slots)
    loop = partial(nested, levels=depth) if slots is None else partial(revolve, slots=slots)
    return over_chunks(partial(solve, method, cell, params), carry, xs, chunk, loop)


METHODS: dict[str, Solver] = {
    "auto": auto,
    "scan": scan,
    "rematerialized": rematerialized,
    "checkpointed": checkpointed,
    "fused": fused,
    "native": native,
    "persistent": persistent,
    "associative": associative,
    "chunkwise": chunkwise,
    "newton": newton,
}
"""The solvers by name, for `unroll(..., method=name)`."""

NEED_SIZES = (
    checkpointed,
    native,
    persistent,
    associative,
    chunkwise,
    newton,
)  # they plan for known numbers of steps and sequences


def place(params: Params, carry: Carry, xs: Tree, space: tuple[int, ...] = ()) -> tuple[Params, Carry, Tree]:
    """Params, carry [B, ...] and inputs [T, B, ...] with the same placement, as a loop needs them.

    All of them vary over the same axes, and the batch axes of the carry are sharded like those of the inputs.

    Raises:
      ValueError: for inputs whose time axis is explicitly sharded.
    """
    for leaf in split_const(xs)[0]:
        if explicit_spec(leaf)[0] is not None:
            raise ValueError(
                f"the inputs are {jax.typeof(leaf)}, sharded over time: a recurrence runs all steps on one device; "
                "shard the batch axes, or jax.sharding.reshard the inputs"
            )
    axes = varying((params, carry, xs))
    params, carry, xs = (vary(tree, axes) for tree in (params, carry, xs))
    batch = explicit_spec(features(xs))[1 : 1 + len(batch_shape(xs, space))]
    if any(batch):
        carry = jax.tree.map(lambda leaf: reshard(leaf, (*batch, *explicit_spec(leaf)[len(batch) :])), carry)
    return params, carry, xs


def solve(method: str | Solver, cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """Run a cell by a method: a name in `METHODS` or a solver.

    The layers of a stack run one after the other, each over all steps; with `checkpointed`, chunk by chunk.

    Raises:
      ValueError: for an unknown name, inputs whose time axis is explicitly sharded, or symbolic sizes where the method
        needs numbers.
      TypeError: for a method that is neither a name nor a solver.
    """
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"unknown method {method!r}, expected one of {sorted(METHODS)} or a solver")
    run = METHODS[method] if isinstance(method, str) else method
    if not callable(run):
        raise TypeError(f"method must be one of {sorted(METHODS)} or a solver, got {method!r}")
    solver = getattr(run, "func", run)
    sizes = [size for leaf in split_const(xs)[0] for size in leaf.shape]
    if solver in NEED_SIZES and not all(isinstance(size, int) for size in sizes):
        raise ValueError(
            f'method "{solver.__name__}" needs sizes that are numbers, got inputs of shape {features(xs).shape}: with '
            'symbolic shapes, as jax.export has them, use method="scan"'
        )
    params, carry, xs = place(params, carry, xs, cell.space)
    if cell.layers and solver is not checkpointed:
        carries = []
        for layer, p, c in zip(cell.layers, params, carry, strict=True):
            c, xs = solve(run, layer, p, c, xs)
            carries.append(c)
        return tuple(carries), xs
    return run(cell, params, carry, xs)
