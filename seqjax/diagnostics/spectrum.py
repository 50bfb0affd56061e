"""The Jacobians dh_t/dh_{t-1} of a recurrence, the singular values of their product, and Lyapunov exponents.

All functions treat each sequence separately: inputs have exactly one batch axis, and so does a `Const` among them.
N is the number of entries in the carry of one sequence, over all leaves.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from seqjax.arrays import Array, Carry, Key, Params, Tree
from seqjax.core import Cell, Const, is_const, project_all, scan_const
from seqjax.solvers.scan import length

# One matrix at a time, under `vmap` too, for the reason given in `initializers.orthogonal`.
_qr = jax.custom_batching.sequential_vmap(lambda a: tuple(jnp.linalg.qr(a)))
_svd = jax.custom_batching.sequential_vmap(lambda a: jnp.linalg.svd(a, compute_uv=False))


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def each_sequence(f: Callable, xs: Tree, out_axes: int) -> Callable:
    """`f(carry, xs [T, ...], ...)`, mapped over the batch axis: the second of xs and the first of all else."""
    axes = jax.tree.map(lambda leaf: Const(0) if is_const(leaf) else 1, xs, is_leaf=is_const)
    return lambda carry, xs, *rest: jax.vmap(f, (0, axes, *(0 for _ in rest)), out_axes)(carry, xs, *rest)


def _flat(cell: Cell, params: Params, carry: Carry, z: Tree) -> tuple[Array, Callable, Callable]:
    """The carry as a vector [N], the transition on such vectors, and the inverse of the flattening."""
    h, unravel = ravel_pytree(carry)
    return h, lambda h: ravel_pytree(cell.transition(params, unravel(h), z))[0], unravel


@partial(jax.jit, static_argnames="cell")
def step_jacobians(cell: Cell, params: Params, carry: Carry, xs: Tree) -> Array:
    """The Jacobian dh_t/dh_{t-1} of every step, along the trajectory that the inputs determine.

    Args:
      cell: any cell.
      params: its params.
      carry: the carry before the first step, leaves [B, ...].
      xs: inputs [T, B, ...].

    Returns:
      [T, B, N, N], rows for h_t and columns for h_{t-1}, the leaves of the carry concatenated.

    Example:
      >>> cell = seqjax.cells.rnn(2, lambda u: u)  # linear: every Jacobian is the recurrent matrix, transposed
      >>> params = cell.init(jax.random.key(0), 3)
      >>> jacobians = seqjax.diagnostics.step_jacobians(cell, params, jnp.zeros((1, 2)), jnp.ones((5, 1, 3)))
      >>> jacobians.shape, bool(jnp.allclose(jacobians[3, 0], params["w_h"].T))
      ((5, 1, 2, 2), True)
    """

    def single(carry, xs):
        def body(carry, z):
            h, transition, _ = _flat(cell, params, carry, z)
            return cell.transition(params, carry, z), jax.jacfwd(transition)(h)

        return scan_const(body, carry, project_all(cell, params, xs))[1]

    return each_sequence(single, xs, 1)(carry, xs)


@jax.jit
def singular_values(matrices: Array) -> Array:
    """Singular values [..., N] of matrices [..., N, N], in descending order.

    Of `step_jacobians`: where all are 1 the gradient keeps its norm (Saxe, McClelland & Ganguli 2014, arXiv 1312.6120).

    Example:
      >>> seqjax.diagnostics.singular_values(jnp.array([[0.0, 2.0], [1.0, 0.0]])).tolist()
      [2.0, 1.0]
    """
    values = jax.lax.map(_svd, matrices.reshape(-1, *matrices.shape[-2:]))
    return values.reshape(*matrices.shape[:-2], values.shape[-1])


@partial(jax.jit, static_argnames="sweeps")
def product_spectrum(jacobians: Array, *, sweeps: int = 8) -> Array:
    """Logarithms of the singular values of the product J_T ... J_1, the Jacobian of h_T with respect to h_0.

        J_t Q_{t-1} = Q_t R_t for all t;   then the same with R_T^T, ..., R_1^T in place of J_1, ..., J_T;   and so on

    The product itself, in which all but the largest values would be lost to rounding after a few steps, is never
    formed: the factors become diagonal, and the logarithms of their diagonals add up (Stewart 1995, "On graded QR
    decompositions of products of matrices"; Dieci & Elia 2008, "SVD algorithms to approximate spectra of dynamical
    systems"). Two values with the ratio r separate as r^(2 sweeps). Values too close to have separated stay between the
    smallest and the largest of them, and their sum is always right.

    Args:
      jacobians: [T, ..., N, N], as from `step_jacobians`.
      sweeps: the number of QR sweeps.

    Returns:
      [..., N], in descending order; of a singular product the last ones are -inf, or as low as rounding allows.

    Example:
      >>> jacobians = jnp.stack([jnp.diag(jnp.array([1e4, 1e-4]))] * 100)  # their product is beyond float32
      >>> logs = seqjax.diagnostics.product_spectrum(jacobians)
      >>> [round(x, 3) for x in (logs / 100 / jnp.log(10.0)).tolist()]
      [4.0, -4.0]
    """
    steps, *batch, n, _ = jacobians.shape

    def single(factors):
        def body(q, a):
            return _qr(_matmul(a, q))

        def sweep(_, factors):
            _, triangular = jax.lax.scan(body, jnp.eye(n, dtype=factors.dtype), factors)
            return jnp.swapaxes(triangular, 1, 2)[::-1]

        factors = jax.lax.fori_loop(0, sweeps, sweep, factors)
        return jnp.log(jnp.abs(jnp.diagonal(factors, axis1=1, axis2=2))).sum(0)

    logs = jax.vmap(single, 1)(jacobians.reshape(steps, -1, n, n))
    return jnp.sort(logs, descending=True).reshape(*batch, n)


@partial(jax.jit, static_argnames=("cell", "count", "discard"))
def lyapunov_exponents(
    key: Key, cell: Cell, params: Params, carry: Carry, xs: Tree, *, count: int | None = None, discard: int = 0
) -> Array:
    """Lyapunov exponents: the mean rates per step at which small deviations of the carry grow.

        J_t Q_{t-1} = Q_t R_t,   exponent_i = mean_t log |R_t[i, i]|

    Benettin et al. 1980; for recurrent networks Engelken, Wolf & Abbott 2020 (arXiv 2006.02427). A positive exponent
    means chaos: without input a random tanh network has one if its gain is above 1 (`initializers.critical`).

    Args:
      key: for the initial directions Q_0.
      cell: any cell.
      params: its params.
      carry: the carry before the first step, leaves [B, ...].
      xs: inputs [T, B, ...]; zeros for the autonomous system.
      count: how many of the largest exponents; by default all N. Each costs a tangent per step; no Jacobian is formed.
      discard: steps at the start that are left out, while carry and directions settle.

    Returns:
      [B, count], in descending order, natural logarithms; -inf where a direction is lost completely.

    Raises:
      ValueError: unless `0 < count <= N` and `0 <= discard < T`.

    Example:
      >>> cell = seqjax.cells.rnn(2, lambda u: u, w_h=seqjax.initializers.identity(0.5))  # h' = h / 2 + input
      >>> params, carry = cell.init(jax.random.key(0), 1), jnp.zeros((1, 2))
      >>> key, xs = jax.random.key(1), jnp.zeros((50, 1, 1))
      >>> exponents = seqjax.diagnostics.lyapunov_exponents(key, cell, params, carry, xs)
      >>> [round(x, 3) for x in exponents[0].tolist()]  # log 1/2
      [-0.693, -0.693]
    """
    if not 0 <= discard < length(xs):
        raise ValueError(f"lyapunov_exponents can discard fewer than all {length(xs)} steps, got discard = {discard}")

    def single(carry, xs, key):
        h, _ = ravel_pytree(carry)
        directions = h.size if count is None else count
        if not 0 < directions <= h.size:
            raise ValueError(f"a carry of {h.size} numbers has 1 to {h.size} exponents, got count = {count}")

        def body(state, z):
            carry, q = state
            h, transition, unravel = _flat(cell, params, carry, z)
            h, push = jax.linearize(transition, h)
            q, r = _qr(jax.vmap(push, 1, 1)(q))
            return (unravel(h), q), jnp.log(jnp.abs(jnp.diagonal(r)))

        q, _ = _qr(jax.random.normal(key, (h.size, directions), h.dtype))
        logs = scan_const(body, (carry, q), project_all(cell, params, xs))[1]
        return jnp.sort(logs[discard:].mean(0), descending=True)

    batch = jax.tree.leaves(carry)[0].shape[0]
    return each_sequence(single, xs, 0)(carry, xs, jax.random.split(key, batch))
