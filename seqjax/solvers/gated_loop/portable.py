"""The loops of a gated cell as JAX operations, for the platforms that have no kernel."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, dense, matmul, product_gradient
from seqjax.core import scan_const
from seqjax.hints import gated_transition
from seqjax.solvers.gated_loop.plan import Arrays, Plan, Wanted


def split_others(plan: Plan, others: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The other inputs that have a time axis, and those that every step sees."""
    timed = [value for value, options in zip(others, plan.others, strict=True) if options[0][0]]
    return timed, [value for value, options in zip(others, plan.others, strict=True) if not options[0][0]]


def join_others(plan: Plan, timed: Sequence[Any], shared: Sequence[Any]) -> list[Any]:
    """The inverse of `split_others`."""
    sources = {True: iter(timed), False: iter(shared)}
    return [next(sources[options[0][0]]) for options in plan.others]


def loop(plan: Plan, arrays: Arrays, *, unroll: int = 1) -> list[Array]:
    """The carries [T, B, .] of all steps, by a scan with `unroll` steps per turn of the loop."""
    transition = gated_transition(plan.gated._replace(weights=lambda weights: weights))

    def body(carry, z):
        carry = transition(arrays.weights, carry, z)
        return carry, carry

    product = dense(*arrays.dense) if arrays.dense else None
    carry = plan.carry_tree.unflatten(arrays.carry)
    return jax.tree.leaves(scan_const(body, carry, plan.z(product, arrays.others), unroll=unroll)[1])


def gradient(
    plan: Plan, wanted: Wanted, arrays: Arrays, hs: Sequence[Array], cotangents: Sequence[Array], *, unroll: int = 1
) -> list[Array]:
    """The gradient of every array, by one backward scan that recomputes each step from the carry before it.

    An empty cotangent stands for 0. A gradient that is not wanted is empty.
    """
    d_last, d_hs = (
        [c if c.size else jnp.zeros_like(h) for c, h in zip(part, like, strict=True)]
        for part, like in (
            (cotangents[: len(hs)], [h[-1] for h in hs]),
            (cotangents[len(hs) :], hs),
        )
    )
    timed, shared = split_others(plan, arrays.others)
    want_timed, want_shared = split_others(plan, wanted.others)
    product, pull_dense = jax.vjp(dense, *arrays.dense) if arrays.dense else (None, None)

    def step(nudges, carry, product, some_timed, some_shared, *, timed):
        """The carry after a step, and the factors v of its products; the nudges are added to the products."""
        others = join_others(plan, _put(timed, want_timed, some_timed), _put(shared, want_shared, some_shared))
        z, h = plan.z(product, others), plan.carry_tree.unflatten(carry)
        us, vs = (), ()
        for stage, w, nudge in zip(plan.gated.stages, arrays.weights, nudges, strict=True):
            v = stage(h, z, us)
            us, vs = (*us, matmul(v, w) + nudge), (*vs, v)
        return jax.tree.leaves(plan.gated.gates(h, z, us)), vs

    def body(state, inputs):
        d_carry, d_shared = state
        before, product, timed, d_h = inputs
        d_carry = [a + b for a, b in zip(d_carry, d_h, strict=True)]
        nudges = [jnp.zeros_like(jax.eval_shape(matmul, before[0], w)) for w in arrays.weights]
        differentiated = (nudges, before, product, _take(timed, want_timed), _take(shared, want_shared))
        _, pull, vs = jax.vjp(partial(step, timed=timed), *differentiated, has_aux=True)
        d_us, d_carry, d_product, d_timed, d_more = pull(d_carry)
        return (d_carry, jax.tree.map(jnp.add, d_shared, d_more)), (vs, d_us, d_product, d_timed)

    before = [jnp.concatenate([first[None], h[:-1]]) for first, h in zip(arrays.carry, hs, strict=True)]
    d_shared = jax.tree.map(jnp.zeros_like, _take(shared, want_shared))
    (d_carry, d_shared), (vs, d_us, d_product, d_timed) = jax.lax.scan(
        body, (d_last, d_shared), (before, product, timed, d_hs), reverse=True, unroll=unroll
    )
    d_weights = map(product_gradient, vs, arrays.weights, d_us)
    d_dense = list(pull_dense(d_product)) if pull_dense else []
    nothing = jnp.zeros_like(hs[0], shape=(0,))
    if d_dense and not wanted.x:
        d_dense[0] = nothing
    d_others = join_others(
        plan,
        _put([nothing] * len(timed), want_timed, d_timed),
        _put([nothing] * len(shared), want_shared, d_shared),
    )
    return [*d_carry, *d_dense, *d_weights, *d_others]


def _take(values: Sequence[Any], which: Sequence[bool]) -> list[Any]:
    return [value for value, chosen in zip(values, which, strict=True) if chosen]


def _put(values: Sequence[Any], which: Sequence[bool], chosen: Sequence[Any]) -> list[Any]:
    """`values`, with `chosen` in the places where `which` is true."""
    rest = iter(chosen)
    return [next(rest) if here else value for value, here in zip(values, which, strict=True)]
