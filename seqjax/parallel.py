"""Solvers that run a recurrence in parallel over time: a prefix where it is affine, Newton's method where it is not."""

import math
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.checkpointed import fitting_chunk, over_chunks
from seqjax.core import (
    Array,
    Carry,
    Cell,
    Complex,
    Gated,
    Params,
    Tree,
    is_complex,
    like,
    matmul,
    multiply,
    over_time,
    project_all,
    split_const,
)

# On a CPU, so many numbers of each array are worked on at a time: they stay in its cache.
CACHED = 2**17

Node = Any  # an array or a `Complex` of two: what one recurrence is about


def sequential() -> bool:
    """Whether a prefix is run one step after the other: a CPU has too few cores for twice the work to pay."""
    return jax.default_backend() == "cpu"


def _add(a: Node, b: Node) -> Node:
    return jax.tree.map(jnp.add, a, b)


def _at(values: Node, t: int) -> Node:
    return jax.tree.map(lambda v: v[t], values)


def _conjugate(value: Node) -> Node:
    return Complex(value.re, -value.im) if is_complex(value) else value


def _prefix(a: Node, b: Node, h: Node, reverse: bool = False) -> Node:
    """`h_t = a_t * h_{t-1} + b_t` for all t, elementwise (or t + 1 in place of t - 1); h is before the first step."""
    if sequential():

        def body(h, ab):
            h = _add(multiply(ab[0], h), ab[1])
            return h, h

        return jax.lax.scan(body, h, (a, b), reverse=reverse)[1]

    def after(f, g):
        return multiply(f[0], g[0]), _add(multiply(g[0], f[1]), g[1])

    first = -1 if reverse else 0
    start = multiply(_at(a, first), h)
    b = jax.tree.map(lambda b, h: b.at[first].add(h), b, start)
    return jax.lax.associative_scan(after, (a, b), reverse=reverse)[1]


def _matrix_prefix(a: Array, b: Array, reverse: bool = False) -> Array:
    """`h_t = a_t @ h_{t-1} + b_t` for all t from 0; a [T, ..., n, n], b [T, ..., n]."""
    product = partial(jnp.einsum, precision="highest")

    def after(f, g):
        return product("...ij,...jk->...ik", g[0], f[0]), product("...ij,...j->...i", g[0], f[1]) + g[1]

    return jax.lax.associative_scan(after, (a, b), reverse=reverse)[1]


def _before(first: Node, hs: Node) -> Node:
    """hs one step later in time: the carry that each step begins with."""
    return jax.tree.map(lambda first, hs: jnp.concatenate([first[None], hs[:-1]]), first, hs)


def _next(values: Node) -> Node:
    """values of the next step; 0 after the last."""
    return jax.tree.map(lambda v: jnp.concatenate([v[1:], jnp.zeros_like(v[:1])]), values)


@jax.custom_vjp
def linear_recurrence(a: Node, b: Node, h: Node) -> Node:
    """`h_t = a_t * h_{t-1} + b_t` for a, b [T, ...] and h [...] before the first step; returns h of all steps.

    Each of them is an array or a `Complex`.

    Its gradient (reverse mode only) is a recurrence of the same kind, backwards, and needs a and h alone:

        lambda_t = g_t + conj(a_{t+1}) lambda_{t+1};   da_t = lambda_t conj(h_{t-1});   db_t = lambda_t
    """
    return _prefix(a, b, h)


def _linear_forward(a, b, h):
    hs = _prefix(a, b, h)
    return hs, (a, h, hs)


def _linear_backward(residuals, g):
    a, h, hs = residuals
    a = _conjugate(a)
    lam = _prefix(_next(a), g, jax.tree.map(jnp.zeros_like, h), reverse=True)
    return multiply(lam, _conjugate(_before(h, hs))), lam, multiply(_at(a, 0), _at(lam, 0))


linear_recurrence.defvjp(_linear_forward, _linear_backward)


def associative(cell: Cell, params: Params, carry: Carry, xs: Tree, *, chunk: int | None = None) -> tuple[Carry, Tree]:
    """Parallel prefix over the affine maps `h -> a_t h + b_t` (Blelloch 1990; Martin & Cundy 2018, arXiv 1709.04057).

        (a, b) after (a', b')  =  (a a', a b' + b)

    On an accelerator all of time at once, in depth log T. A CPU computes a and b in parallel and the prefix in one
    pass, for `chunk` steps at a time, as many as its cache holds, and again for the gradient: what is slow is memory.
    Reverse mode only.

    Args:
      cell: a cell with the `affine` hint.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].
      chunk: steps at a time; by default all of them, but on a CPU so many that an array holds about `CACHED` numbers.

    Returns:
      `(carry, ys)`, as `unroll`.

    Raises:
      ValueError: for a cell without the hint, or a chunk below 1 or above T.
    """
    if cell.affine is None:
        raise ValueError('method "associative" needs a cell with the `affine` hint; use "scan"')
    affine: Any = cell.affine

    def run(carry, xs):
        zs = project_all(cell, params, xs)
        a, b = over_time(partial(affine, params), zs)
        hs = jax.tree.map(linear_recurrence, a, b, carry, is_leaf=is_complex)
        return jax.tree.map(lambda h: h[-1], hs), over_time(partial(cell.readout, params), hs, zs)

    steps = split_const(xs)[0][0].shape[0]
    if chunk is None:
        width = max(leaf.size for leaf in jax.tree.leaves(carry))
        chunk = fitting_chunk(steps, CACHED / max(width, 1)) if sequential() else steps
    return run(carry, xs) if chunk == steps else over_chunks(run, carry, xs, chunk)


class NewtonReport(NamedTuple):
    """How Newton's method went.

    Attributes:
      iterations: int [], how often all steps were corrected.
      error: [B], the last correction over the largest entry of the carries, of each sequence.
      converged: bool [B], whether that is within the tolerance. The outputs of other sequences are NaN.
    """

    iterations: Array
    error: Array
    converged: Array


class _Problem(NamedTuple):
    """What does not change over the iterations; carries are vectors [..., n] here."""

    step: Any  # (params, h_{t-1} [T, B, n], z) -> h_t, for all steps
    probed: Any  # the same values, but the diagonal of its Jacobian is the sum of p * (Jacobian @ p) over the probes p
    probes: tuple[tuple[float, ...], ...] | None  # of zeros and ones [n]; None for full Jacobians
    steps: int
    tolerance: float
    iterations: int


def _jacobians(problem: _Problem, params: Params, before: Array, zs: Tree) -> tuple[Array, Array]:
    """The carry after each step, and the Jacobian of each step [T, B, n, n] or its diagonal [T, B, n]."""
    if problem.probes is None:
        after, push = jax.linearize(lambda h: problem.step(params, h, zs), before)
        units = jnp.eye(before.shape[-1], dtype=before.dtype)
        columns = jax.vmap(lambda unit: push(like(unit, before)))(units)
        return after, jnp.moveaxis(columns, 0, -1)
    after, push = jax.linearize(lambda h: problem.probed(params, h, zs), before)

    def add(diagonal, probe):
        return diagonal + push(like(probe, before)) * like(probe, before), None

    return after, jax.lax.scan(add, jnp.zeros_like(before), jnp.asarray(problem.probes, before.dtype))[0]


def _iterate(problem: _Problem, update: Any, start: Array) -> tuple[Array, NewtonReport]:
    """`h + update(h)` until the update is within the tolerance, for h [T, B, n]; NaN where it never is."""

    def body(state):
        k, h, _ = state
        change = update(h)
        scale = jnp.abs(h).max((0, -1))
        error = jnp.abs(change).max((0, -1)) / jnp.where(scale > 0, scale, jnp.ones_like(scale))
        # After k iterations the first k steps are right whatever the others are, so what overflowed may start anew.
        return k + 1, jnp.where(jnp.isfinite(h + change), h + change, start), error

    def unfinished(state):
        k, _, error = state
        return (k < problem.iterations) & ~(error <= problem.tolerance).all()

    error = jnp.full(start.shape[1:-1], jnp.inf, start.dtype)
    k, h, error = jax.lax.while_loop(unfinished, body, (jnp.int32(0), start, error))
    report = NewtonReport(k, error, error <= problem.tolerance)
    return jnp.where(jnp.expand_dims(report.converged, (0, -1)), h, jnp.full_like(h, jnp.nan)), report


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _newton(problem: _Problem, params: Params, first: Array, zs: Tree) -> tuple[Array, NewtonReport]:
    def update(hs):
        after, jacobians = _jacobians(problem, params, _before(first, hs), zs)
        if problem.probes is None:
            return _matrix_prefix(jacobians, after - hs)
        return _prefix(jacobians, after - hs, jnp.zeros_like(first))

    return _iterate(problem, update, jnp.broadcast_to(first, (problem.steps, *first.shape)))


def _newton_forward(problem, params, first, zs):
    result: Any = _newton(problem, params, first, zs)
    return result, (params, first, zs, result[0])


def _newton_backward(problem, residuals, cotangents):
    """The implicit function theorem: `lambda_t = g_t + J_{t+1}^T lambda_{t+1}` at the solution, then one vjp."""
    params, first, zs, hs = residuals
    g, _ = cotangents
    before = _before(first, hs)
    _, pull = jax.vjp(problem.step, params, before, zs)
    jacobians = _next(_jacobians(problem, params, before, zs)[1])
    if problem.probes is None:
        lam = _matrix_prefix(jnp.swapaxes(jacobians, -1, -2), g, reverse=True)
    else:

        def update(lam):
            residual = g + _next(pull(lam)[1]) - lam
            return _prefix(jacobians, residual, jnp.zeros_like(first), reverse=True)

        lam, _ = _iterate(problem, update, g)
    d_params, d_before, d_zs = pull(lam)
    return d_params, d_before[0], d_zs


_newton.defvjp(_newton_forward, _newton_backward)


def _with_diagonal_weights(gated: Gated, params: Params, carry: Carry, z: Tree) -> Carry:
    """The transition, in whose derivative each of the square blocks of a weight [H, G * H] counts as diagonal."""
    us = ()
    for stage, w in zip(gated.stages, gated.weights(params), strict=True):
        v = stage(carry, z, us)
        u = jax.lax.stop_gradient(matmul(v, w))
        diagonals = jnp.diagonal(w.reshape(w.shape[0], -1, w.shape[0]), axis1=0, axis2=2).reshape(-1)
        wide = jnp.tile(v, w.shape[1] // w.shape[0])
        us = (*us, u + (wide - jax.lax.stop_gradient(wide)) * like(diagonals.astype(u.dtype), u))
    return gated.gates(carry, z, us)


def newton_with_report(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Tree,
    *,
    jacobian: str = "full",
    tolerance: float | None = None,
    iterations: int = 100,
) -> tuple[Carry, Tree, NewtonReport]:
    """`newton`, and how it went.

    Args:
      cell: as in `newton`, and so are params, carry and xs.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].
      jacobian: "full", or "diagonal". (A cell without the `gated` and `affine` hints needs n products for a diagonal.)
      tolerance: of the last correction, over the largest entry of the sequence's carries; by default eps^(3/4), which
        is 6e-6 in float32 and 2e-12 in float64, and a tenth of it with diagonals.
      iterations: at most so many.

    Returns:
      `(carry, ys, report)`.

    Raises:
      TypeError: for a carry that is not of one real floating dtype.
      ValueError: for another `jacobian`, or a tolerance or number of iterations that is not positive.
    """
    leaves, treedef = jax.tree.flatten(carry)
    dtypes = {str(leaf.dtype) for leaf in leaves}
    if len(dtypes) > 1 or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise TypeError(f'method "newton" needs a carry of one real floating dtype, got {sorted(dtypes)}')
    if jacobian not in ("full", "diagonal"):
        raise ValueError(f'jacobian must be "full" or "diagonal", got {jacobian!r}')
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    # Corrections by full Jacobians end squared; those by diagonals shrink by a factor, so more is still to come.
    default = float(jnp.finfo(leaves[0].dtype).eps) ** 0.75 * (1.0 if jacobian == "full" else 0.1)
    limit = default if tolerance is None else tolerance
    if limit <= 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    # Without batch axes, the shape of a leaf is that of its features.
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(lambda p: cell.initial_carry(p, ()), params))]
    sizes = [math.prod(shape) for shape in shapes]

    def pack(tree):
        parts = zip(jax.tree.leaves(tree), shapes, strict=True)
        return jnp.concatenate([h.reshape(*h.shape[: h.ndim - len(shape)], -1) for h, shape in parts], -1)

    def unpack(h):
        parts = zip(jnp.split(h, list(accumulate(sizes))[:-1], axis=-1), shapes, strict=True)
        return treedef.unflatten([part.reshape(*h.shape[:-1], *shape) for part, shape in parts])

    def step(transition, params, before, zs):
        return pack(over_time(partial(transition, params), unpack(before), zs))

    probes, probed = None, cell.transition
    if jacobian == "diagonal":
        # Between elementwise gates, diagonal weights keep units apart: one probe sees all units of a leaf. (With two
        # stages, as in gru_reset_before, that is only near the diagonal. The speed depends on it, not the solution.)
        probed = partial(_with_diagonal_weights, cell.gated) if cell.gated else cell.transition
        groups = [k if cell.gated or cell.affine else i for i, k in enumerate(np.repeat(range(len(sizes)), sizes))]
        probes = tuple(tuple(float(group == k) for group in groups) for k in sorted(set(groups)))
    steps = split_const(xs)[0][0].shape[0]
    problem = _Problem(partial(step, cell.transition), partial(step, probed), probes, steps, limit, iterations)
    zs = project_all(cell, params, xs)
    result: Any = _newton(problem, params, pack(carry), zs)
    hs, report = unpack(result[0]), result[1]
    return jax.tree.map(lambda h: h[-1], hs), over_time(partial(cell.readout, params), hs, zs), report


def newton(cell: Cell, params: Params, carry: Carry, xs: Tree, **options: Any) -> tuple[Carry, Tree]:
    """Newton's method on all steps at once (DEER; Lim et al. 2024, arXiv 2309.12252).

        h_t <- h_t + d_t,   d_t = J_t d_{t-1} + (f(h_{t-1}, z_t) - h_t),   J_t = df / dh at h_{t-1}

    starts from the carry everywhere and solves each linear recurrence by a parallel prefix, until the largest d is
    within the tolerance. Work and memory grow as n^3 and n^2 with n numbers in the carry of a sequence; with diagonals
    (quasi-DEER; Gonzalez et al. 2024, arXiv 2407.19115) as those of the cell, for more iterations. The gradient is
    exact, by the implicit function theorem: with full Jacobians one more recurrence, backwards; with diagonals again
    iterated.

    There is no silent wrong answer: where a sequence has not converged, all its outputs, and all gradients, are NaN.
    `newton_with_report` tells more. Reverse mode only.

    Args:
      cell: any cell whose carry is of one real floating dtype and whose sequences do not see each other.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].
      **options: `jacobian`, `tolerance` and `iterations`, as in `newton_with_report`.

    Returns:
      `(carry, ys)`, as `unroll`.

    Raises:
      TypeError, ValueError: as `newton_with_report`.
    """
    return newton_with_report(cell, params, carry, xs, **options)[:2]
