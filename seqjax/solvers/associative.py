"""Affine recurrences in parallel over time, as a prefix scan."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Params, Tree
from seqjax.core import Cell, over_time, project_all, split_const
from seqjax.hints import Complex, is_complex, multiply
from seqjax.placement import placed_alike
from seqjax.solvers.autodiff import reverse_mode_only
from seqjax.solvers.chunks import fitting_chunk, over_chunks

__all__ = ["associative"]

# On a CPU, chunks are sized to hold about this many numbers per array, which stay in its cache.
CACHED = 2**17

Node = Any  # an array or a `Complex`: the operand of one recurrence


SEQUENTIAL: bool | None = None
"""Whether a prefix runs one step at a time; None leaves it to the platform that a program is lowered for."""


def by_platform(run: Callable[[bool], Callable[..., Tree]], *args: Tree) -> Tree:
    """`run(True)(*args)` on CPUs, and `run(False)(*args)` elsewhere; the argument tells whether to run step by step.

    A CPU has too few cores for a parallel scan, twice the work, to pay.
    """
    if SEQUENTIAL is not None:
        return run(SEQUENTIAL)(*args)
    return jax.lax.platform_dependent(*args, cpu=run(True), default=run(False))


def _add(a: Node, b: Node) -> Node:
    return jax.tree.map(jnp.add, a, b)


def _at(values: Node, t: int) -> Node:
    return jax.tree.map(lambda v: v[t], values)


def _conjugate(value: Node) -> Node:
    return Complex(value.re, -value.im) if is_complex(value) else value


def prefix(a: Node, b: Node, h: Node, *, sequential: bool, reverse: bool = False) -> Node:
    """`h_t = a_t * h_{t-1} + b_t` for all t, elementwise, h before the first step; if `reverse`, with h_{t+1}."""
    if sequential:

        def body(h, ab):
            h = _add(multiply(ab[0], h), ab[1])
            return h, h

        return jax.lax.scan(body, h, (a, b), reverse=reverse)[1]

    def compose(f, g):
        return multiply(f[0], g[0]), _add(multiply(g[0], f[1]), g[1])

    first = -1 if reverse else 0
    start = multiply(_at(a, first), h)
    b = jax.tree.map(lambda b, h: b.at[first].add(h), b, start)
    return jax.lax.associative_scan(compose, (a, b), reverse=reverse)[1]


def matrix_prefix(a: Array, b: Array, reverse: bool = False) -> Array:
    """`h_t = a_t @ h_{t-1} + b_t` for all t, from h = 0; a [T, ..., n, n], b [T, ..., n]."""
    product = partial(jnp.einsum, precision="highest")

    def compose(f, g):
        return product("...ij,...jk->...ik", g[0], f[0]), product("...ij,...j->...i", g[0], f[1]) + g[1]

    return jax.lax.associative_scan(compose, (a, b), reverse=reverse)[1]


def steps_before(first: Node, hs: Node) -> Node:
    """hs shifted by one step: the carry before each step."""
    return jax.tree.map(lambda first, hs: jnp.concatenate([first[None], hs[:-1]]), first, hs)


def steps_after(values: Node) -> Node:
    """values shifted back by one step: those of the step after each; 0 at the last."""
    return jax.tree.map(lambda v: jnp.concatenate([v[1:], jnp.zeros_like(v[:1])]), values)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_recurrence(sequential: bool, a: Node, b: Node, h: Node) -> Node:
    """`h_t = a_t * h_{t-1} + b_t` for a, b [T, ...] and h [...] before the first step; returns h of all steps.

    Each of them is an array or a `Complex`. Step by step if `sequential`, otherwise in depth log T.

    Its gradient (reverse mode only) is a recurrence of the same kind, backwards in time, and needs only a and h:

        lambda_t = g_t + conj(a_{t+1}) lambda_{t+1};   da_t = lambda_t conj(h_{t-1});   db_t = lambda_t
    """
    return prefix(a, b, h, sequential=sequential)


def _linear_forward(sequential, a, b, h):
    hs = prefix(a, b, h, sequential=sequential)
    return hs, (a, h, hs)


def _linear_backward(sequential, residuals, g):
    a, h, hs = residuals
    a = _conjugate(a)
    lam = prefix(steps_after(a), g, jax.tree.map(jnp.zeros_like, h), sequential=sequential, reverse=True)
    return multiply(lam, _conjugate(steps_before(h, hs))), lam, multiply(_at(a, 0), _at(lam, 0))


linear_recurrence.defvjp(_linear_forward, _linear_backward)


def associative(cell: Cell, params: Params, carry: Carry, xs: Tree, *, chunk: int | None = None) -> tuple[Carry, Tree]:
    """Prefix scan over the affine maps `h -> a_t h + b_t` (Blelloch 1990; Martin & Cundy 2018, arXiv 1709.04057).

        (a, b) after (a', b')  =  (a a', a b' + b)

    On an accelerator over all steps at once, in depth log T. On a CPU, where memory is the bottleneck, a and b are
    computed in parallel and the prefix in one pass, for `chunk` steps at a time, as many as the cache holds, and again
    for the gradient. Reverse mode only.

    Args:
      cell: a cell with the `affine` hint.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].
      chunk: steps at a time; by default all of them, or on a CPU as many as give arrays of about `CACHED` numbers.

    Returns:
      `(carry, ys)`, as `unroll`.

    Raises:
      ValueError: for a cell without the hint, or a chunk below 1 or above T.
    """
    if cell.affine is None:
        raise ValueError('method "associative" needs a cell with the `affine` hint; use "scan"')
    affine = cell.affine

    def run(sequential, params, carry, xs):
        zs = project_all(cell, params, xs)
        a, b = over_time(partial(affine, params), zs)
        # An a that all sequences share is not sharded like them.
        a = jax.tree.map(lambda a, b: placed_alike(a, b)[0], a, b)
        a, b, carry = reverse_mode_only("associative", (a, b, carry))
        hs = jax.tree.map(partial(linear_recurrence, sequential), a, b, carry, is_leaf=is_complex)
        return jax.tree.map(lambda h: h[-1], hs), over_time(partial(cell.readout, params), hs, zs)

    def run_all(sequential):
        def run_chunks(params, carry, xs):
            steps = split_const(xs)[0][0].shape[0]
            width = max(leaf.size for leaf in jax.tree.leaves(carry))
            fitting = fitting_chunk(steps, CACHED / max(width, 1)) if sequential else steps
            at_once = fitting if chunk is None else chunk
            each = partial(run, sequential, params)
            return each(carry, xs) if at_once == steps else over_chunks(each, carry, xs, at_once)

        return run_chunks

    return by_platform(run_all, params, carry, xs)
