"""Newton's method on all steps of a recurrence simultaneously."""

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.arrays import Array, Carry, Params, Tree, like, matmul
from seqjax.core import Cell, over_time, project_all, split_const
from seqjax.hints import Gated
from seqjax.placement import placed_as
from seqjax.solvers.associative import by_platform, matrix_prefix, prefix, steps_after, steps_before
from seqjax.solvers.autodiff import reverse_mode_only

__all__ = ["NewtonReport", "newton", "newton_with_report"]


class NewtonReport(NamedTuple):
    """The convergence of Newton's method.

    Attributes:
      iterations: int [], the number of iterations.
      error: [B], the last correction of each sequence, relative to the largest entry of its carries.
      converged: bool [B], whether that is within the tolerance. The outputs of other sequences are NaN.
    """

    iterations: Array
    error: Array
    converged: Array


Step = Callable[[Params, Array, Tree], Array]


class _Problem(NamedTuple):
    """What is constant over the iterations; carries are vectors [..., n] here."""

    step: Step  # (params, h_{t-1} [T, B, n], z) -> h_t, for all steps
    probed: Step  # the same values, but the diagonal of its Jacobian is the sum of p * (Jacobian @ p) over the probes p
    probes: tuple[tuple[float, ...], ...] | None  # zeros and ones [n]; None for full Jacobians
    steps: int
    damping: float
    tolerance: float
    iterations: int


def _jacobians(problem: _Problem, params: Params, before: Array, zs: Tree) -> tuple[Array, Array]:
    """The carry after each step, and the Jacobian of each step [T, B, n, n] or its diagonal [T, B, n]."""
    if problem.probes is None:
        after, push = jax.linearize(lambda h: problem.step(params, h, zs), before)
        units = jnp.eye(before.shape[-1], dtype=before.dtype)
        columns = jax.vmap(lambda unit: push(placed_as(like(unit, before), before)))(units)
        return after, jnp.moveaxis(columns, 0, -1)
    after, push = jax.linearize(lambda h: problem.probed(params, h, zs), before)

    def add(diagonal, probe):
        return diagonal + push(placed_as(like(probe, before), before)) * like(probe, before), None

    return after, jax.lax.scan(add, jnp.zeros_like(before), jnp.asarray(problem.probes, before.dtype))[0]


def _iterate(problem: _Problem, update: Callable[[Array], Array], start: Array) -> tuple[Array, NewtonReport]:
    """Repeat `h + update(h)` until the update is within the tolerance, for h [T, B, n]; NaN where it never is."""

    def body(state):
        k, h, _ = state
        change = update(h)
        scale = jnp.abs(h).max((0, -1))
        error = jnp.abs(change).max((0, -1)) / jnp.where(scale > 0, scale, jnp.ones_like(scale))
        # On a CPU the maximum of numbers of which one is NaN may be any of the others.
        error = jnp.where(jnp.isfinite(h + change).all((0, -1)), error, jnp.full_like(error, jnp.inf))
        # After k iterations the first k steps are right whatever the others are, so those that overflowed may restart.
        return k + 1, jnp.where(jnp.isfinite(h + change), h + change, start), error

    def unfinished(state):
        k, _, error = state
        return (k < problem.iterations) & ~(error <= problem.tolerance).all()

    error = jnp.full_like(start[0, ..., 0], jnp.inf)
    k, h, error = jax.lax.while_loop(unfinished, body, (jnp.int32(0), start, error))
    report = NewtonReport(k, error, error <= problem.tolerance)
    return jnp.where(jnp.expand_dims(report.converged, (0, -1)), h, jnp.full_like(h, jnp.nan)), report


def _prefix(a: Array, b: Array, h: Array, reverse: bool = False) -> Array:
    return by_platform(lambda sequential: partial(prefix, sequential=sequential, reverse=reverse), a, b, h)


def _solution(problem: _Problem, params: Params, first: Array, zs: Tree) -> tuple[Array, NewtonReport]:
    def update(hs):
        after, jacobians = _jacobians(problem, params, steps_before(first, hs), zs)
        jacobians = (1 - problem.damping) * jacobians
        if problem.probes is None:
            return matrix_prefix(jacobians, after - hs)
        return _prefix(jacobians, after - hs, jnp.zeros_like(first))

    return _iterate(problem, update, jnp.broadcast_to(first, (problem.steps, *first.shape)))


def _newton_forward(problem, params, first, zs):
    params, first, zs = reverse_mode_only("newton", (params, first, zs))  # for an outer derivative
    hs, report = _newton(problem, params, first, zs)
    return (hs, report), (params, first, zs, hs)


def _newton_backward(problem, residuals, cotangents):
    """The implicit function theorem: `lambda_t = g_t + J_{t+1}^T lambda_{t+1}` at the solution, then one vjp."""
    params, first, zs, hs = residuals
    g, _ = cotangents
    before = steps_before(first, hs)
    _, pull = jax.vjp(problem.step, params, before, zs)
    jacobians = steps_after(_jacobians(problem, params, before, zs)[1])
    if problem.probes is None:
        lam = matrix_prefix(jnp.swapaxes(jacobians, -1, -2), g, reverse=True)
    else:
        jacobians = (1 - problem.damping) * jacobians

        def update(lam):
            residual = g + steps_after(pull(lam)[1]) - lam
            return _prefix(jacobians, residual, jnp.zeros_like(first), reverse=True)

        lam, _ = _iterate(problem, update, g)
    d_params, d_before, d_zs = pull(lam)
    return d_params, d_before[0], d_zs


_newton = jax.custom_vjp(_solution, nondiff_argnums=(0,))
_newton.defvjp(_newton_forward, _newton_backward)


def _with_diagonal_weights(gated: Gated, params: Params, carry: Carry, z: Tree) -> Carry:
    """The transition, with a derivative that takes each square block of a weight [H, G * H] to be diagonal."""
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
    damping: float = 0.0,
    tolerance: float | None = None,
    iterations: int = 100,
) -> tuple[Carry, Tree, NewtonReport]:
    """`newton`, with a report on its convergence.

    Args:
      cell: any cell that `newton` takes.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].
      jacobian: "full", or "diagonal". (A cell without the `gated` and `affine` hints needs n products for a diagonal.)
      damping: of the Jacobians, in [0, 1).
      tolerance: of the last correction, relative to the largest entry of the sequence's carries; by default eps^(3/4),
        which is 6e-6 in float32 and 2e-12 in float64, and a tenth of that with diagonals.
      iterations: the maximum number of iterations.

    Returns:
      `(carry, ys, report)`.

    Raises:
      TypeError: for a carry that is not of one real floating dtype.
      ValueError: for another `jacobian`, a damping outside [0, 1), or a tolerance or number of iterations that is not
        positive.
    """
    leaves, treedef = jax.tree.flatten(carry)
    dtypes = {str(leaf.dtype) for leaf in leaves}
    if len(dtypes) > 1 or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise TypeError(f'method "newton" needs a carry of one real floating dtype, got {sorted(dtypes)}')
    if jacobian not in ("full", "diagonal"):
        raise ValueError(f'jacobian must be "full" or "diagonal", got {jacobian!r}')
    if not 0 <= damping < 1:
        raise ValueError(f"damping must lie in [0, 1), got {damping}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    # With full Jacobians convergence is quadratic at the end; with diagonals it is linear, so the remaining error is
    # larger than the last correction. With damping it is linear too, but where damping is needed rounding errors are
    # amplified, and a tenth may be out of reach.
    default = float(jnp.finfo(leaves[0].dtype).eps) ** 0.75 * (1.0 if jacobian == "full" else 0.1)
    limit = default if tolerance is None else tolerance
    if limit <= 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    # Without batch axes, the shape of a leaf is that of its features.
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(lambda p: cell.initial_carry(p, ()), params))]
    sizes = [math.prod(shape) for shape in shapes]

    def pack(tree):
        parts = zip(jax.tree.leaves(tree), shapes, sizes, strict=True)
        return jnp.concatenate([h.reshape(*h.shape[: h.ndim - len(shape)], size) for h, shape, size in parts], -1)

    def unpack(h):
        parts = zip(jnp.split(h, list(accumulate(sizes))[:-1], axis=-1), shapes, strict=True)
        return treedef.unflatten([part.reshape(*h.shape[:-1], *shape) for part, shape in parts])

    def step(transition, params, before, zs):
        return pack(over_time(partial(transition, params), unpack(before), zs))

    probes, probed = None, cell.transition
    if jacobian == "diagonal":
        # With elementwise gates and diagonal weights units do not interact: one probe covers all units of a leaf. (With
        # two stages, as in gru_reset_before, the result is only close to the diagonal, which affects speed, not the
        # solution.)
        probed = partial(_with_diagonal_weights, cell.gated) if cell.gated else cell.transition
        groups = [k if cell.gated or cell.affine else i for i, k in enumerate(np.repeat(range(len(sizes)), sizes))]
        probes = tuple(tuple(float(group == k) for group in groups) for k in sorted(set(groups)))
    steps = split_const(xs)[0][0].shape[0]
    plain, probed = partial(step, cell.transition), partial(step, probed)
    problem = _Problem(plain, probed, probes, steps, damping, limit, iterations)
    zs = project_all(cell, params, xs)
    packed, report = _newton(problem, *reverse_mode_only("newton", (params, pack(carry), zs)))
    hs = unpack(packed)
    return jax.tree.map(lambda h: h[-1], hs), over_time(partial(cell.readout, params), hs, zs), report


def newton(cell: Cell, params: Params, carry: Carry, xs: Tree, **options: Any) -> tuple[Carry, Tree]:
    """Newton's method on all steps at once (DEER; Lim et al. 2024, arXiv 2309.12252).

        h_t <- h_t + d_t,   d_t = J_t d_{t-1} + (f(h_{t-1}, z_t) - h_t),   J_t = df / dh at h_{t-1}

    It starts from the initial carry at every step and solves each linear recurrence by a parallel prefix scan, until
    the largest d is within the tolerance. Work and memory grow as n^3 and n^2 with the n numbers in the carry of a
    sequence; with diagonals (quasi-DEER; Gonzalez et al. 2024, arXiv 2407.19115) they grow as those of the cell, at the
    price of more iterations. The gradient is exact, by the implicit function theorem: with full Jacobians one more
    recurrence, backwards in time; with diagonals another iteration.

    Before convergence, products of J may overflow or make the iteration erratic, even if the solution itself is stable.
    With `damping` k, (1 - k) J replaces J. That is the damping of the Levenberg-Marquardt method in the form of the
    same paper's appendix (scale-ELK): a single number in place of the gain of the Kalman filter that solves it. For any
    k, the first n steps are right after n iterations. Damping costs iterations where it is not needed, and does not
    help with a chaotic recurrence.

    There is no silent wrong answer: if a sequence has not converged, all its outputs, and all gradients, are NaN.
    `newton_with_report` also returns the number of iterations and the errors. Reverse mode only.

    Args:
      cell: any cell whose carry has a single real floating dtype and whose sequences are independent.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].
      **options: `jacobian`, `damping`, `tolerance` and `iterations`, as in `newton_with_report`.

    Returns:
      `(carry, ys)`, as `unroll`.

    Raises:
      TypeError, ValueError: as `newton_with_report`.
    """
    return newton_with_report(cell, params, carry, xs, **options)[:2]
