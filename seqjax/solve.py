"""Solvers: the ways to run a recurrence over time. All of them agree, in values and in gradients.

Each is `(cell, params, carry, xs) -> (last carry, ys)` on xs [T, B, ...]. What differs is speed, memory, and what the
cell must offer: `scan`, `rematerialized` and `checkpointed` run anything, `fused` and `native` the gated cells,
`associative` the affine ones, `chunkwise` those with a matrix carry, `newton` those with a real one.
"""

import csv
import math
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import matmul, operand_dtype, product_gradient
from seqjax.autodiff import reverse_mode_only
from seqjax.checkpointed import checkpointed
from seqjax.chunkwise import chunkwise
from seqjax.core import (
    Array,
    Carry,
    Cell,
    Gated,
    Params,
    Tree,
    batch_shape,
    features,
    gated_step,
    open_dense,
    over_time,
    project_all,
    scan_const,
    split_const,
)
from seqjax.native import compiler, native, supports
from seqjax.newton import NewtonReport, newton, newton_with_report
from seqjax.parallel import associative
from seqjax.placement import explicit_spec, reshard, vary, varying

__all__ = [
    "METHODS",
    "NewtonReport",
    "Solver",
    "associative",
    "auto",
    "checkpointed",
    "chunkwise",
    "compiler",
    "fused",
    "native",
    "newton",
    "newton_with_report",
    "ranking",
    "rematerialized",
    "scan",
    "solve",
    "supports",
]

Solver = Callable[[Cell, Params, Carry, Tree], tuple[Carry, Tree]]
"""`(cell, params, carry, xs) -> (last carry, ys)`."""


def length(xs: Tree) -> int:
    """The number of steps T of inputs whose timed leaves are [T, ...]."""
    timed, _ = split_const(xs)
    return timed[0].shape[0]


def _transition(cell: Cell, params: Params) -> Callable[[Carry, Tree], Carry]:
    """The transition for these params; the weights of a gated cell, which may be a long computation, are made once."""
    if cell.gated is None:
        return partial(cell.transition, params)
    return partial(gated_step, cell.gated, cell.gated.weights(params))


def scan(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """`lax.scan` over the steps; the memory of its gradient grows as T.

    A cell with a hint is projected and read out for all steps at once, before and after the loop. One without runs
    whole inside the loop: nothing is known to be gained by taking it apart.
    """
    if cell.gated is None and cell.affine is None:
        return scan_const(partial(cell.step, params), carry, xs)

    transition = _transition(cell, params)

    def body(carry, z):
        carry = transition(carry, z)
        return carry, carry

    zs = project_all(cell, params, xs)
    carry, hs = scan_const(body, carry, zs)
    return carry, over_time(partial(cell.readout, params), hs, zs)


def rematerialized(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """A scan that keeps the carries alone: its gradient runs every step again, projection included.

    Where the matrix products are small, the time of a step goes into writing and reading what its gradient needs, and
    this is the fastest method on a CPU. Memory grows as T, by one carry a step.
    """
    if cell.gated is None and cell.affine is None:
        return scan_const(jax.checkpoint(partial(cell.step, params)), carry, xs)

    transition = _transition(cell, params)

    @jax.checkpoint
    def body(carry, x):
        carry = transition(carry, open_dense(cell.project(params, x)))
        return carry, carry

    def readout(carry, x):
        return cell.readout(params, carry, open_dense(cell.project(params, x)))

    carry, hs = scan_const(body, carry, xs)
    return carry, over_time(readout, hs, xs)


def fused(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """The scan of a gated cell, with a gradient of its own: reverse mode only.

    The backward loop carries no weight gradient. It leaves behind du_k for all steps, and then

        dW_k = sum_t v_k,t^T du_k,t

    is one matrix product over [T * B].

    Raises:
      ValueError: for a cell without the `gated` hint.
    """
    if cell.gated is None:
        raise ValueError('method "fused" needs a cell with the `gated` hint; use "scan"')
    zs = project_all(cell, params, xs)
    inputs = reverse_mode_only("fused", (cell.gated.weights(params), carry, zs))
    result: Any = _fused(cell.gated, *inputs)
    carry, hs = result
    return carry, over_time(partial(cell.readout, params), hs, zs)


def _products(gated: Gated, weights: tuple[Array, ...], nudges: tuple[Array, ...] | None, carry: Carry, z: Tree):
    """The products u_k of a step, to which `nudges` are added so that their gradient is du_k, and their factors v_k."""
    us, vs = (), ()
    for k, (stage, w) in enumerate(zip(gated.stages, weights, strict=True)):
        v = stage(carry, z, us)
        u = matmul(v, w)
        us = (*us, u if nudges is None else u + nudges[k])
        vs = (*vs, v.astype(operand_dtype(w.dtype)))
    return us, vs


def _gated_loop(gated: Gated, weights: tuple[Array, ...], nudges: tuple[Array, ...] | None, carry: Carry, zs: Tree):
    def body(carry, inputs):
        z, nudge = inputs
        us, vs = _products(gated, weights, nudge, carry, z)
        carry = gated.gates(carry, z, us)
        return carry, (carry, vs)

    return scan_const(body, carry, (zs, nudges))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(gated: Gated, weights: tuple[Array, ...], carry: Carry, zs: Tree) -> tuple[Carry, Tree]:
    carry, (hs, _) = _gated_loop(gated, weights, None, carry, zs)
    return carry, hs


def _fused_forward(gated, weights, carry, zs):
    of_step = jax.eval_shape(partial(over_time, lambda z: _products(gated, weights, None, carry, z)[0]), zs)
    nudges = jax.tree.map(jnp.zeros_like, of_step)

    def run(nudges, carry, zs):
        carry, (hs, vs) = _gated_loop(gated, weights, nudges, carry, zs)
        return (carry, hs), vs

    result, backward, vs = jax.vjp(run, nudges, carry, zs, has_aux=True)
    return result, (backward, weights, vs)


def _fused_backward(gated, residuals, cotangents):
    del gated
    backward, weights, vs = residuals
    nudges, carry, zs = backward(cotangents)

    return tuple(map(product_gradient, vs, weights, nudges)), carry, zs


_fused.defvjp(_fused_forward, _fused_backward)


class _Timed(NamedTuple):
    """A line of `methods.csv`: the methods for one device and size, the fastest first."""

    batch: int
    units: int
    methods: tuple[str, ...]


@lru_cache
def _measured() -> dict[tuple[str, str], list[_Timed]]:
    """What `python -m benchmarks.methods` measured, by device and kind of recurrence."""
    table: dict[tuple[str, str], list[_Timed]] = {}
    with (Path(__file__).parent / "methods.csv").open() as file:
        for row in csv.DictReader(file):
            line = _Timed(int(row["batch"]), int(row["units"]), tuple(row["methods"].split()))
            table.setdefault((row["device"], row["recurrence"]), []).append(line)
    return table


UNMEASURED = {"gated": ("fused",), "affine": ("associative",)}


def ranking(device: str, recurrence: str, batch: int, units: int) -> tuple[str, ...]:
    """The methods for a "gated" or "affine" cell, the fastest first: those of the nearest size that was measured."""
    lines = _measured().get((device, recurrence))
    if not lines:
        return UNMEASURED[recurrence]

    def distance(line):
        return abs(math.log(line.units / units)) + 0.5 * abs(math.log(line.batch / max(batch, 1)))

    return min(lines, key=distance).methods


def auto(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """The method that is expected to be fastest for this cell on this device.

    It is the first of the `ranking` for the cell's hint, batch and units that can run it here: `native` needs a C++
    compiler and arithmetic that it knows. A matrix carry is run `chunkwise`, and a cell without hints is scanned.
    """
    timed, _ = split_const(xs)
    if not all(isinstance(size, int) for size in timed[0].shape):
        return scan(cell, params, carry, xs)  # the one method for sizes that are symbols of jax.export
    if cell.outer is not None:
        return chunkwise(cell, params, carry, xs)
    if cell.gated is None and cell.affine is None:
        return scan(cell, params, carry, xs)
    recurrence = "gated" if cell.gated is not None else "affine"
    *batch, units = jax.tree.leaves(carry)[0].shape
    for name in ranking(jax.default_backend(), recurrence, math.prod(batch), units):
        if name != "native":
            return METHODS[name](cell, params, carry, xs)
        if compiler() is not None and supports(cell, params, carry, xs):
            return native(cell, params, carry, xs, required=False)
    return scan(cell, params, carry, xs)


METHODS: dict[str, Solver] = {
    "auto": auto,
    "scan": scan,
    "rematerialized": rematerialized,
    "checkpointed": checkpointed,
    "fused": fused,
    "native": native,
    "associative": associative,
    "chunkwise": chunkwise,
    "newton": newton,
}
"""The solvers by name, for `unroll(..., method=name)`."""

NEED_SIZES = (checkpointed, native, associative, chunkwise, newton)  # which plan for a number of steps and sequences


def place(params: Params, carry: Carry, xs: Tree, space: tuple[int, ...] = ()) -> tuple[Params, Carry, Tree]:
    """Params, carry [B, ...] and inputs [T, B, ...] of one placement, so that a loop can take them.

    All of them vary over the same axes, and the batch axes of the carry are sharded as those of the inputs are.

    Raises:
      ValueError: for inputs whose time axis is explicitly sharded.
    """
    for leaf in split_const(xs)[0]:
        if explicit_spec(leaf)[0] is not None:
            raise ValueError(
                f"the inputs are {jax.typeof(leaf)}, sharded over time: a recurrence takes all steps on one device; "
                "shard the batch axes, or jax.sharding.reshard the inputs"
            )
    axes = varying((params, carry, xs))
    params, carry, xs = (vary(tree, axes) for tree in (params, carry, xs))
    batch = explicit_spec(features(xs))[1 : 1 + len(batch_shape(xs, space))]
    if any(batch):
        carry = jax.tree.map(lambda leaf: reshard(leaf, (*batch, *explicit_spec(leaf)[len(batch) :])), carry)
    return params, carry, xs


def solve(method: Any, cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """Run a cell by a method: a name in `METHODS` or a solver.

    The layers of a stack are run one after the other, over all of time; `checkpointed` does so chunk by chunk.

    Raises:
      ValueError: for a name that is no method's, or inputs whose time axis is explicitly sharded.
      TypeError: for what is neither a name nor a solver.
    """
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"unknown method {method!r}, expected one of {sorted(METHODS)} or a solver")
    run: Any = METHODS[method] if isinstance(method, str) else method
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
    result: Any = run(cell, params, carry, xs)
    return result
