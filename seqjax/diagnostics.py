"""What a gradient looks like: how it compares with another, how it decays with the time lag."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from seqjax.core import Array, Carry, Cell, Params, Tree, project_all, scan_const
from seqjax.solve import length


def alignment(gradient: Params, reference: Params) -> tuple[Array, Array]:
    """How a gradient compares with a reference, over all params at once.

    Returns:
      `(cosine, norm ratio)`: `<g, r> / (|g| |r|)`, between -1 and 1, and `|g| / |r|`. Where one of the two is 0 the
      cosine is nan; where the reference is 0 the ratio is inf or nan.
    """
    g, _ = ravel_pytree(gradient)
    r, _ = ravel_pytree(reference)
    g_norm, r_norm = jnp.linalg.norm(g), jnp.linalg.norm(r)
    return g @ r / (g_norm * r_norm), g_norm / r_norm


def gradient_against_lag(cell: Cell, params: Params, carry: Carry, xs: Tree, loss: Callable[[Tree], Array]) -> Array:
    """The norm of dL/dh_t for every step: how fast a gradient vanishes or explodes on its way back in time.

    Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013 (arXiv 1211.5063).

    Args:
      cell: any cell.
      params: its params.
      carry: the carry before the first step, leaves [B, ...].
      xs: inputs [T, B, ...].
      loss: `ys [T, B, O] -> []`. With a loss of the last output alone, entry t is the gradient at lag T - 1 - t.

    Returns:
      [T]: the Euclidean norm of dL/dh_t over all leaves of the carry and the batch. h_t includes the effect on y_t.
    """
    nudges = jax.tree.map(lambda leaf: jnp.zeros((length(xs), *leaf.shape), leaf.dtype), carry)

    def nudged_loss(nudges):
        def body(carry, inputs):
            z, nudge = inputs
            carry = jax.tree.map(jnp.add, cell.transition(params, carry, z), nudge)
            return carry, cell.readout(params, carry, z)

        zs = project_all(cell, params, xs)
        return loss(scan_const(body, carry, (zs, nudges))[1])

    grads = jax.grad(nudged_loss)(nudges)
    squares = [jnp.square(leaf).reshape(leaf.shape[0], -1).sum(1) for leaf in jax.tree.leaves(grads)]
    return jnp.sqrt(sum(squares[1:], squares[0]))
