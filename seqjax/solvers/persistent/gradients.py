"""The gradients of all arrays of a loop from those of the slots, which a kernel computes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, dense, matmul, product_gradient
from seqjax.solvers.gated_loop.plan import Arrays
from seqjax.solvers.gated_loop.portable import join_others, split_others
from seqjax.solvers.gated_loop.solver import Loop
from seqjax.solvers.persistent.arithmetic import Arithmetic


class Result(NamedTuple):
    """A result of a kernel: "timed" [T, B, .] or "row" [B, .], with a number of slots."""

    kind: str
    slots: int
    dtype: Any


def slotwise(arithmetic: Arithmetic) -> list[Result]:
    """What a backward kernel returns, the gradients of slots.

    Of the leaves of the carry, of z, of the products that do not share the gradients of z, of the other inputs with a
    time axis, and of those that all steps share.
    """
    dtype, width = arithmetic.traced.dtype, arithmetic.slots_of
    results = [Result("row", count, dtype) for count in arithmetic.leaves]
    results += [Result("timed", arithmetic.dense, dtype)] * bool(arithmetic.dense)
    results += [Result("timed", len(arithmetic.apart), dtype)] * bool(arithmetic.apart)
    results += [Result("timed", width(i), arithmetic.others[i].dtype) for i in arithmetic.timed]
    return results + [Result("row", width(i), dtype) for i in arithmetic.summed]


def factors_and_products(loop: Loop, arrays: Arrays, hs: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """The factors v [T, *batch, H] and the products u [T, *batch, n H] of all stages, for all steps at once."""
    plan = loop.plan
    timed, shared = split_others(plan, arrays.others)

    def step(carry, product, timed):
        z, h = plan.z(product, join_others(plan, timed, shared)), plan.carry_tree.unflatten(carry)
        vs, us = [], ()
        for stage, w in zip(plan.gated.stages, arrays.weights, strict=True):
            v = stage(h, z, us)
            vs, us = [*vs, v], (*us, matmul(v, w))
        return vs, list(us)

    before = [jnp.concatenate([leaf[None], h[:-1]]) for leaf, h in zip(arrays.carry, hs, strict=True)]
    product = dense(*arrays.dense) if arrays.dense else None
    return jax.vmap(step)(before, product, timed)


def of_arrays(
    loop: Loop, arithmetic: Arithmetic, arrays: Arrays, hs: Sequence[Array], vs: Sequence[Array], found: Sequence[Array]
) -> list[Array]:
    """The gradient of every array, empty where it is not wanted; see `portable.gradient`.

    Args:
      loop: the loop.
      arithmetic: that of a step.
      arrays: its arrays.
      hs: the carries [T, *batch, .] after each step.
      vs: the factors [T, *batch, H] of all products.
      found: the gradients of slots, as in `slotwise`.
    """
    found = list(found)
    d_carry = [found.pop(0) for _ in hs]
    d_z = jnp.split(found.pop(0), arithmetic.dense, -1) if arithmetic.dense else []
    d_apart = jnp.split(found.pop(0), len(arithmetic.apart), -1) if arithmetic.apart else []
    of_slot = dict(zip(arithmetic.apart, d_apart, strict=True))
    of_slot |= {i: d_z[same] for i, same in arithmetic.same_as_z.items() if same is not None}

    nothing = jnp.zeros_like(hs[0], shape=(0,))
    pairs = zip(arrays.others, loop.wanted.others, strict=True)
    # What no gate can read has a gradient of 0.
    d_others = [jnp.zeros_like(value) if want else nothing for value, want in pairs]
    for i in (*arithmetic.timed, *arithmetic.summed):
        d, value = found.pop(0), arrays.others[i]
        if not arithmetic.others[i].batched:
            d = d.sum(tuple(range(arrays.carry[0].ndim - 1)))
        d_others[i] = d.reshape(value.shape).astype(value.dtype)

    d_dense = list(jax.vjp(dense, *arrays.dense)[1](jnp.concatenate(d_z, -1))) if arrays.dense else []
    if d_dense and not loop.wanted.x:
        d_dense[0] = nothing
    d_us = [jnp.concatenate([of_slot[i] for i in arithmetic.of_product(k)], -1) for k in range(len(arrays.weights))]
    return [*d_carry, *d_dense, *map(product_gradient, vs, arrays.weights, d_us), *d_others]
