"""The solver `native`: a gated cell's loop over time, forward and backward, as one call of compiled C++ each.

XLA runs a step as a dozen small programs, and what they hand to each other goes through memory. Here a step is one
matrix product and one elementwise pass, both generated for the cell at hand (`emit.py`), and what the next step needs
is still in the cache.
"""

import math
from collections.abc import Iterable
from functools import lru_cache, partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from seqjax.core import (
    Array,
    Carry,
    Cell,
    Const,
    Dense,
    Gated,
    Params,
    Tree,
    gated_transition,
    is_const,
    is_dense,
    open_dense,
    over_time,
    scan_const,
)
from seqjax.native.arithmetic import Unsupported
from seqjax.native.build import library
from seqjax.native.emit import Other, Source, generate

VL = 16  # units in a block, as in kernel.h
SMALL_WEIGHTS = 512 << 10  # bytes of weights that stay in the cache of one core


def native(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
    """The scan of a gated cell, compiled as a whole for this CPU; reverse mode only, float32 or float64.

    It needs a C++ compiler, which runs once per cell and machine, some seconds.

    Raises:
      ValueError: if the cell has no `gated` hint, or does something for which there is no C++ (`Unsupported`): a carry
        or weights narrower than float32, or more than arithmetic between the products.
      RuntimeError: if there is no compiler.
    """
    if cell.gated is None:
        raise ValueError('method "native" needs a cell with the `gated` hint; use "scan"')
    zs = over_time(partial(cell.project, params), xs)
    plan, arrays = _plan(cell.gated, cell.gated.weights(params), carry, zs)
    last, hs = map(plan.carry_tree.unflatten, _loop(plan, arrays))
    return last, over_time(partial(cell.readout, params), hs, open_dense(zs))


def supports(cell: Cell, params: Params, carry: Carry, xs: Tree) -> bool:
    """Whether there is C++ for a cell on these inputs, given a compiler."""

    def plan(params, carry, xs):
        gated: Any = cell.gated
        zs = over_time(partial(cell.project, params), xs)
        plan, arrays = _plan(gated, gated.weights(params), carry, zs)
        _source(plan, tuple(jnp.issubdtype(value.dtype, jnp.floating) for value in arrays.others))

    if cell.gated is None:
        return False
    try:
        jax.eval_shape(plan, params, carry, xs)
    except Unsupported:
        return False
    return True


class _Arrays(NamedTuple):
    """What the kernel reads: carries [B, ...], inputs [T, B, ...]; a Const may lack the batch axes."""

    carry: tuple[Array, ...]
    dense: tuple[Array, ...]  # x [T, B, D], w [D, G], b [G]; or nothing
    weights: tuple[Array, ...]
    others: tuple[Array, ...]


class _Leaf(NamedTuple):
    """A node of z: the projection (`kind` "dense"), a "const" or a "timed" leaf, of so many arrays."""

    kind: str
    tree: Any = None


class _Plan(NamedTuple):
    """All that is static in one use of the kernel."""

    gated: Gated
    carry: tuple[Any, ...]  # (shape, dtype) of each leaf, of one sequence
    carry_tree: Any
    z_tree: Any
    leaves: tuple[_Leaf, ...]
    others: tuple[
        tuple[tuple[bool, bool, tuple[int, ...], Any], ...], ...
    ]  # for each, what it may be: (timed, batched, shape, dtype)
    dense: int | None  # slots of the projection
    products: tuple[int, ...]  # and of each recurrent product

    def columns(self, arrays: _Arrays) -> bool:
        """Whether threads share out the units, rather than the sequences."""
        weights = sum(w.nbytes for w in (*arrays.weights, *arrays.dense[1:]))
        *batch, units = arrays.carry[0].shape
        return units > VL and (weights > SMALL_WEIGHTS or math.prod(batch) < 8)

    def z(self, projection: Any, others: Iterable[Any]) -> Tree:
        """The inputs of the gates, put together again."""
        values = iter(others)
        nodes = []
        for leaf in self.leaves:
            if leaf.kind == "dense":
                nodes.append(projection)
            elif leaf.kind == "timed":
                nodes.append(next(values))
            else:
                nodes.append(Const(leaf.tree.unflatten([next(values) for _ in range(leaf.tree.num_leaves)])))
        return self.z_tree.unflatten(nodes)


def _plan(gated: Gated, weights: tuple[Array, ...], carry: Carry, zs: Tree) -> tuple[_Plan, _Arrays]:
    """Take z apart, and see what each of its leaves is to one sequence at one step."""
    carries, carry_tree = jax.tree.flatten(carry)
    first = carries[0]
    units, batch, dtype = first.shape[-1], first.shape[:-1], first.dtype
    if any(w.dtype != dtype for w in weights):
        given = " and ".join(sorted({str(w.dtype) for w in weights}))
        raise Unsupported(f'method "native" needs weights of the dtype of the carry, {dtype}, got {given}')
    if any(w.shape[0] != units or w.shape[1] % units for w in weights):
        shapes = [w.shape for w in weights]
        raise Unsupported(f'method "native" needs recurrent weights [H, G * H] for {units} units H, got {shapes}')
    projection, leaves, others, options = (), [], [], []

    def add(value, timed):
        lead = 1 if timed else 0
        shapes = []
        if value.shape[lead : lead + len(batch)] == batch:
            shapes.append((timed, True, value.shape[lead + len(batch) :], value.dtype))
        # A Const that begins like the batch may be one for each sequence, or, by chance, the same for all of them.
        if not timed and batch:
            shapes.append((False, False, value.shape, value.dtype))
        if not shapes:
            raise Unsupported(f"an input {value.shape} of the gates, expected [T, *{batch}, ...]")
        others.append(value)
        options.append(tuple(shapes))

    nodes, z_tree = jax.tree.flatten(zs, is_leaf=lambda leaf: is_const(leaf) or is_dense(leaf))
    for node in nodes:
        if is_dense(node) and not projection and _fits(node, units, batch, dtype):
            projection = (node.x.astype(dtype), node.w.value, node.b.value)
            leaves.append(_Leaf("dense"))
        elif is_const(node):
            values, tree = jax.tree.flatten(node.value)
            leaves.append(_Leaf("const", tree))
            for value in values:
                add(value, timed=False)
        else:
            leaves.append(_Leaf("timed"))
            add(open_dense(node), timed=True)
    plan = _Plan(
        gated=gated,
        carry=tuple((leaf.shape[len(batch) :], leaf.dtype) for leaf in carries),
        carry_tree=carry_tree,
        z_tree=z_tree,
        leaves=tuple(leaves),
        others=tuple(options),
        dense=projection[1].shape[1] // units if projection else None,
        products=tuple(w.shape[1] // units for w in weights),
    )
    return plan, _Arrays(tuple(carries), projection, tuple(weights), tuple(others))


def _fits(node, units, batch, dtype) -> bool:
    """Whether a `Dense` of z can be done in the kernel."""
    width = node.w.value.shape[1]
    return node.w.value.dtype == dtype and node.x.ndim == 2 + len(batch) and width % units == 0


@lru_cache(maxsize=256)
def _source(plan: _Plan, wanted: tuple[bool, ...]) -> Source:
    """The code; `wanted` says which of the other inputs need a gradient."""
    carry = plan.carry_tree.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in plan.carry])
    errors = []
    for choice in product(*plan.others):
        others = [Other(*one, perturbed=perturbed) for one, perturbed in zip(choice, wanted, strict=True)]
        try:
            return generate(plan.gated, carry, plan.z, plan.dense, plan.products, others)
        except (TypeError, ValueError) as error:
            errors.append(error)
    # Others say only that a Const was not meant that way.
    reason = next((error for error in errors if isinstance(error, Unsupported)), errors[0])
    raise Unsupported(f"no C++ for these gates: {reason}") from reason


@jax.tree_util.register_static
class _Wanted(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    others: tuple[bool, ...]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _forward(plan: _Plan, wanted: _Wanted, keep: bool, arrays: _Arrays) -> tuple[tuple[Array, ...], Array]:
    """All carries [T, B, .], and the pre-activations if they are kept."""
    return _call_forward(plan, wanted, keep, arrays)


def _call_forward(plan, wanted, keep, arrays):
    source = _source(plan, wanted.others)
    steps = next(leaf.shape[0] for leaf in (*arrays.dense[:1], *_timed(plan, arrays)))
    first = arrays.carry[0]
    row = (-(-first.shape[-1] // VL) * source.slots + 1) * VL
    shapes = [(steps, *leaf.shape) for leaf in arrays.carry]
    shapes.append((steps, *first.shape[:-1], row) if keep else (0,))
    call = jax.ffi.ffi_call(
        f"seqjax_forward_{library(source.code)}",
        [jax.ShapeDtypeStruct(shape, first.dtype) for shape in shapes],
        vmap_method="sequential",
    )
    result: Any = call(*jax.tree.leaves(arrays), columns=np.bool_(plan.columns(arrays)))
    *hs, a = result
    return tuple(hs), a


def _forward_forward(plan, wanted, keep, arrays):
    hs, a = _call_forward(plan, wanted, keep, arrays)
    return (hs, a), (arrays, hs, a)


def _forward_backward(plan, wanted, keep, residuals, cotangents):
    # Only second derivatives come here: `_loop` has its own gradient, of which this call is a part.
    del wanted, keep
    arrays, hs, a = residuals
    every = _Wanted(True, tuple(jnp.issubdtype(value.dtype, jnp.floating) for value in arrays.others))
    nothing = (jnp.zeros((0,), hs[0].dtype),) * len(hs)
    return (_pull_back(plan, every, arrays, hs, a, (*nothing, *cotangents[0])),)


_forward.defvjp(_forward_forward, _forward_backward)


def _timed(plan: _Plan, arrays: _Arrays) -> list[Array]:
    return [value for value, options in zip(arrays.others, plan.others, strict=True) if options[0][0]]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(plan: _Plan, arrays: _Arrays):
    wanted = _Wanted(False, (False,) * len(arrays.others))
    result: Any = _forward(plan, wanted, False, arrays)
    hs, _ = result
    return tuple(leaf[-1] for leaf in hs), hs


def _loop_forward(plan, arrays):
    wanted = _Wanted(
        x=any(leaf.perturbed for leaf in arrays.dense[:1]),
        others=tuple(leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.floating) for leaf in arrays.others),
    )
    arrays = jax.tree.map(lambda leaf: leaf.value, arrays, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    result: Any = _forward(plan, wanted, plan.columns(arrays), arrays)
    hs, a = result
    return (tuple(leaf[-1] for leaf in hs), hs), (arrays, hs, a, wanted)


def _loop_backward(plan, residuals, cotangents):
    arrays, hs, a, wanted = residuals
    cotangents = tuple(
        jnp.zeros((0,), hs[0].dtype) if isinstance(leaf, SymbolicZero) else leaf for part in cotangents for leaf in part
    )
    return (_pull_back(plan, wanted, arrays, hs, a, cotangents),)


_loop.defvjp(_loop_forward, _loop_backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pull_back(plan: _Plan, wanted: _Wanted, arrays: _Arrays, hs, a: Array, cotangents: tuple[Array, ...]) -> _Arrays:
    """The gradient; a cotangent of no elements stands for zero, and so does a gradient that is None."""
    dtype = hs[0].dtype
    nothing = jnp.zeros((0,), dtype)
    x = arrays.dense[:1] if wanted.x else (nothing,) * len(arrays.dense[:1])
    others = [value if want else nothing for value, want in zip(arrays.others, wanted.others, strict=True)]
    call = jax.ffi.ffi_call(
        f"seqjax_backward_{library(_source(plan, wanted.others).code)}",
        [
            jax.ShapeDtypeStruct(leaf.shape, dtype)
            for leaf in (*arrays.carry, *x, *arrays.dense[1:], *arrays.weights, *others)
        ],
        vmap_method="sequential",
    )
    inputs = (*jax.tree.leaves(arrays), *hs, a, *cotangents)
    gradients: Any = iter(call(*inputs, columns=np.bool_(plan.columns(arrays))))
    projection: Any
    carry, projection, weights, others = (tuple(next(gradients) for _ in part) for part in arrays)
    if projection and not wanted.x:
        projection = (None, *projection[1:])
    kept: Any = (value if want else None for value, want in zip(others, wanted.others, strict=True))
    return _Arrays(carry, projection, weights, tuple(kept))


def _pull_back_forward(plan, wanted, arrays, hs, a, cotangents):
    return _pull_back(plan, wanted, arrays, hs, a, cotangents), (arrays, hs, a, cotangents)


def _pull_back_backward(plan, wanted, residuals, second):
    """Second derivatives, by JAX: those of the pullback of the same loop as a scan."""
    arrays, hs, a, cotangents = residuals

    def scan(arrays):
        x = Dense(arrays.dense[0], *map(Const, arrays.dense[1:])) if arrays.dense else None
        transition = gated_transition(plan.gated._replace(weights=lambda weights: weights))

        def body(carry, z):
            carry = transition(arrays.weights, carry, z)
            return carry, carry

        carry = plan.carry_tree.unflatten(arrays.carry)
        last, hs = scan_const(body, carry, open_dense(plan.z(x, arrays.others)))
        return (*jax.tree.leaves(last), *jax.tree.leaves(hs))

    def pull(arrays, cotangents):
        results, backward = jax.vjp(scan, arrays)
        full = [c if c.size else jnp.zeros_like(r) for c, r in zip(cotangents, results, strict=True)]
        (gradient,) = backward(tuple(full))
        x = gradient.dense[:1] if wanted.x else (None,) * len(gradient.dense[:1])
        others = tuple(g if want else None for g, want in zip(gradient.others, wanted.others, strict=True))
        return gradient._replace(dense=(*x, *gradient.dense[1:]), others=others)

    _, backward = jax.vjp(pull, arrays, cotangents)
    d_arrays, d_cotangents = backward(second)
    return d_arrays, jax.tree.map(jnp.zeros_like, hs), jnp.zeros_like(a), d_cotangents


_pull_back.defvjp(_pull_back_forward, _pull_back_backward)
