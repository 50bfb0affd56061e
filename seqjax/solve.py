"""Solvers: the ways to run a recurrence over time. All of them agree, in values and in gradients.

Each is `(cell, params, carry, xs) -> (last carry, ys)` on xs [T, B, ...]. What differs is speed, memory, and what the
cell must offer: `scan`, `rematerialized` and `checkpointed` run anything, `fused` the gated cells, `associative` the
affine ones.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.core import (
    Array,
    Carry,
    Cell,
    Gated,
    Params,
    Tree,
    carry_dtype,
    matmul,
    open_dense,
    over_time,
    scan_const,
    split_const,
)

# Up to so many units, running a step again costs a CPU less than keeping what its gradient needs (docs/design.md).
NARROW = 64

Solver = Callable[[Cell, Params, Carry, Tree], tuple[Carry, Tree]]


def length(xs: Tree) -> int:
    """The number of steps T of inputs whose timed leaves are [T, ...]."""
    timed, _ = split_const(xs)
    return timed[0].shape[0]


def scan(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """`lax.scan` over the steps; the memory of its gradient grows as T.

    A cell with a hint is projected and read out for all steps at once, before and after the loop. One without runs
    whole inside the loop: nothing is known to be gained by taking it apart.
    """
    if cell.gated is None and cell.affine is None:
        return scan_const(partial(cell.step, params), carry, xs)

    def body(carry, z):
        carry = cell.transition(params, carry, z)
        return carry, carry

    zs = open_dense(over_time(partial(cell.project, params), xs))
    carry, hs = scan_const(body, carry, zs)
    return carry, over_time(partial(cell.readout, params), hs, zs)


def rematerialized(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """A scan that keeps the carries alone: its gradient runs every step again, projection included.

    Where the matrix products are small, the time of a step goes into writing and reading what its gradient needs, and
    this is the fastest method on a CPU. Memory grows as T, by one carry a step.
    """
    if cell.gated is None and cell.affine is None:
        return scan_const(jax.checkpoint(partial(cell.step, params)), carry, xs)

    @jax.checkpoint
    def body(carry, x):
        carry = cell.transition(params, carry, open_dense(cell.project(params, x)))
        return carry, carry

    def readout(carry, x):
        return cell.readout(params, carry, open_dense(cell.project(params, x)))

    carry, hs = scan_const(body, carry, xs)
    return carry, over_time(readout, hs, xs)


def checkpointed(cell: Cell, params: Params, carry: Carry, xs: Tree, *, chunk: int | None = None) -> tuple[Carry, Tree]:
    """A scan over chunks of `chunk` steps, each run again for its gradient (Chen et al. 2016, arXiv 1604.06174).

    Without `chunk`, sqrt(T): memory of order sqrt(T) for one more forward pass.
    """
    steps = length(xs)
    chunk = round(steps**0.5) if chunk is None else chunk
    if not 1 <= chunk <= steps:
        raise ValueError(f"chunk must lie between 1 and the number of steps {steps}, got {chunk}")
    whole = steps - steps % chunk
    timed, merge = split_const(xs)

    @jax.checkpoint
    def run_chunk(carry, xs):
        return scan(cell, params, carry, xs)

    def cut(leaf):
        return leaf[:whole].reshape(whole // chunk, chunk, *leaf.shape[1:])

    carry, ys = scan_const(run_chunk, carry, merge([cut(leaf) for leaf in timed]))
    timed_ys, merge_ys = split_const(ys)
    timed_ys = [leaf.reshape(whole, *leaf.shape[2:]) for leaf in timed_ys]
    if whole < steps:
        carry, rest = run_chunk(carry, merge([leaf[whole:] for leaf in timed]))
        timed_ys = [jnp.concatenate(pair) for pair in zip(timed_ys, split_const(rest)[0], strict=True)]
    return carry, merge_ys(timed_ys)


def fused(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """The scan of a gated cell, with a gradient of its own: reverse mode only.

    The backward loop carries no weight gradient. It leaves behind du_k for all steps, and then

        dW_k = sum_t v_k,t^T du_k,t

    is one matrix product over [T * B].
    """
    if cell.gated is None:
        raise ValueError('method "fused" needs a cell with the `gated` hint; use "scan"')
    zs = open_dense(over_time(partial(cell.project, params), xs))
    result: Any = _fused(cell.gated, cell.gated.weights(params), carry, zs)
    carry, hs = result
    return carry, over_time(partial(cell.readout, params), hs, zs)


def _gated_loop(gated: Gated, weights: tuple[Array, ...], nudges: tuple[Array, ...] | None, carry: Carry, zs: Tree):
    """The forward loop; `nudges` are added to the products u_k, so that their gradient is du_k."""

    def body(carry, inputs):
        z, nudge = inputs
        us, vs = (), ()
        for k, (stage, w) in enumerate(zip(gated.stages, weights, strict=True)):
            v = stage(carry, z, us)
            u = matmul(v, w)
            us = (*us, u if nudge is None else u + nudge[k])
            vs = (*vs, v.astype(w.dtype))
        carry = gated.gates(carry, z, us)
        return carry, (carry, vs)

    return scan_const(body, carry, (zs, nudges))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(gated: Gated, weights: tuple[Array, ...], carry: Carry, zs: Tree) -> tuple[Carry, Tree]:
    carry, (hs, _) = _gated_loop(gated, weights, None, carry, zs)
    return carry, hs


def _fused_forward(gated, weights, carry, zs):
    steps = length(zs)
    batch = jax.tree.leaves(carry)[0].shape[:-1]
    nudges = tuple(jnp.zeros((steps, *batch, w.shape[1]), carry_dtype(w.dtype)) for w in weights)

    def run(nudges, carry, zs):
        carry, (hs, vs) = _gated_loop(gated, weights, nudges, carry, zs)
        return (carry, hs), vs

    result, backward, vs = jax.vjp(run, nudges, carry, zs, has_aux=True)
    return result, (backward, weights, vs)


def _fused_backward(gated, residuals, cotangents):
    del gated
    backward, weights, vs = residuals
    nudges, carry, zs = backward(cotangents)

    def weight_gradient(v, du, w):
        v, du = v.reshape(-1, v.shape[-1]), du.reshape(-1, du.shape[-1])
        product = jnp.matmul(v.T, du.astype(w.dtype), preferred_element_type=carry_dtype(w.dtype))
        return product.astype(w.dtype)

    return tuple(map(weight_gradient, vs, nudges, weights)), carry, zs


_fused.defvjp(_fused_forward, _fused_backward)


def associative(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """Parallel prefix over the affine maps `h -> a_t h + b_t` (Blelloch 1990; Martin & Cundy 2018, arXiv 1709.04057).

        (a, b) after (a', b')  =  (a a', a b' + b)

    Depth log T instead of T.
    """
    if cell.affine is None:
        raise ValueError('method "associative" needs a cell with the `affine` hint; use "scan"')
    zs = open_dense(over_time(partial(cell.project, params), xs))
    a, b = over_time(partial(cell.affine, params), zs)
    b = jax.tree.map(lambda a, b, h: b.at[0].add(a[0] * h), a, b, carry)

    def after(first, second):
        (a1, b1), (a2, b2) = first, second
        return (
            jax.tree.map(jnp.multiply, a1, a2),
            jax.tree.map(lambda b1, a2, b2: a2 * b1 + b2, b1, a2, b2),
        )

    _, hs = jax.lax.associative_scan(after, (a, b))
    last = jax.tree.map(lambda h: h[-1], hs)
    return last, over_time(partial(cell.readout, params), hs, zs)


def auto(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """The method that is expected to be fastest for this cell on this device.

    Gated cells: fused, but rematerialized on a CPU up to `NARROW` units. Affine: associative, but a scan on a CPU.
    """
    cpu = jax.default_backend() == "cpu"
    if cell.gated is not None:
        narrow = max(w.shape[0] for w in cell.gated.weights(params)) <= NARROW
        return (rematerialized if cpu and narrow else fused)(cell, params, carry, xs)
    if cell.affine is not None:
        return (scan if cpu else associative)(cell, params, carry, xs)
    return scan(cell, params, carry, xs)


METHODS = {
    "auto": auto,
    "scan": scan,
    "rematerialized": rematerialized,
    "checkpointed": checkpointed,
    "fused": fused,
    "associative": associative,
}


def solve(method: Any, cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """Run a cell by a method: a name in `METHODS` or a solver. The layers of a stack are run one after the other."""
    if cell.layers:
        carries = []
        for layer, p, c in zip(cell.layers, params, carry, strict=True):
            c, xs = solve(method, layer, p, c, xs)
            carries.append(c)
        return tuple(carries), xs
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}, expected one of {sorted(METHODS)} or a solver")
        method = METHODS[method]
    return method(cell, params, carry, xs)
