"""Gated cells: a scan whose weight gradients are one matrix product each, after the backward loop."""

from functools import partial

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Params, Tree, matmul, operand_dtype, product_gradient
from seqjax.core import Cell, over_time, project_all, scan_const
from seqjax.hints import Gated
from seqjax.solvers.autodiff import reverse_mode_only

__all__ = ["fused"]


def fused(cell: Cell, params: Params, carry: Carry, xs: Tree, *, unroll: int = 1) -> tuple[Carry, Tree]:
    """The scan of a gated cell, with a custom gradient: reverse mode only.

    The backward loop accumulates no weight gradient. It returns du_k of all steps, and then

        dW_k = sum_t v_k,t^T du_k,t

    is one matrix product over [T * B]. `unroll` is the number of steps per turn of the loop, as in `scan`.

    Raises:
      ValueError: for a cell without the `gated` hint.
    """
    if cell.gated is None:
        raise ValueError('method "fused" needs a cell with the `gated` hint; use "scan"')
    zs = project_all(cell, params, xs)
    inputs = reverse_mode_only("fused", (cell.gated.weights(params), carry, zs))
    carry, hs = _fused(cell.gated, unroll, *inputs)
    return carry, over_time(partial(cell.readout, params), hs, zs)


def _products(gated: Gated, weights: tuple[Array, ...], nudges: tuple[Array, ...] | None, carry: Carry, z: Tree):
    """The products u_k of a step and their factors v_k; `nudges`, zeros added to u_k, have the gradient du_k."""
    us, vs = (), ()
    for k, (stage, w) in enumerate(zip(gated.stages, weights, strict=True)):
        v = stage(carry, z, us)
        u = matmul(v, w)
        us = (*us, u if nudges is None else u + nudges[k])
        vs = (*vs, v.astype(operand_dtype(w.dtype)))
    return us, vs


def _gated_loop(
    gated: Gated,
    unroll: int,
    weights: tuple[Array, ...],
    nudges: tuple[Array, ...] | None,
    carry: Carry,
    zs: Tree,
):
    def body(carry, inputs):
        z, nudge = inputs
        us, vs = _products(gated, weights, nudge, carry, z)
        carry = gated.gates(carry, z, us)
        return carry, (carry, vs)

    return scan_const(body, carry, (zs, nudges), unroll=unroll)


def _gated_scan(gated: Gated, unroll: int, weights: tuple[Array, ...], carry: Carry, zs: Tree) -> tuple[Carry, Tree]:
    carry, (hs, _) = _gated_loop(gated, unroll, weights, None, carry, zs)
    return carry, hs


def _fused_forward(gated, unroll, weights, carry, zs):
    of_step = jax.eval_shape(partial(over_time, lambda z: _products(gated, weights, None, carry, z)[0]), zs)
    nudges = jax.tree.map(jnp.zeros_like, of_step)

    def run(nudges, carry, zs):
        carry, (hs, vs) = _gated_loop(gated, unroll, weights, nudges, carry, zs)
        return (carry, hs), vs

    result, backward, vs = jax.vjp(run, nudges, carry, zs, has_aux=True)
    return result, (backward, weights, vs)


def _fused_backward(gated, unroll, residuals, cotangents):
    del gated, unroll
    backward, weights, vs = residuals
    nudges, carry, zs = backward(cotangents)

    return tuple(map(product_gradient, vs, weights, nudges)), carry, zs


_fused = jax.custom_vjp(_gated_scan, nondiff_argnums=(0, 1))
_fused.defvjp(_fused_forward, _fused_backward)
