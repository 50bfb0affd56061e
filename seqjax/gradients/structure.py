"""Which inputs of a function influence which outputs, derived from its program rather than from its values.

A derivative that happens to be 0 at one point (an inactive ReLU, a masked step) is not a structural zero.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex

ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp complex conj convert_element_type copy
    cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le lgamma log log1p
    logistic lt max min mul ne neg nextafter not or pow real reduce_precision rem round rsqrt select_n sign sin sinh
    sqrt square sub tan tanh xor""".split()  # noqa: SIM905  one per line, they would fill a page
)
CALLS = frozenset(
    ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat", "remat2")
)


def dependence(f: Callable[..., list], *args: Any) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The sparsity of the Jacobian of f.

    Args:
      f: a function from trees of arrays to a list of arrays, with N numbers in all.
      args: its arguments; only shapes and dtypes are used.

    Returns:
      `reach(seeds bool [C, N])`: for each leaf of the arguments, bool [C, size]: true where the number may influence
      one of the outputs marked by the seed. It is conservative: true where in doubt (an unknown operation is assumed to
      mix all its operands). In a product with a constant that f closes over, the zeros of the constant count.
    """
    closed = jax.make_jaxpr(f)(*args)
    ends = np.cumsum([int(np.prod(aval.shape)) for aval in closed.out_avals])[:-1]

    def reach(seeds: np.ndarray) -> list[np.ndarray]:
        parts = np.split(seeds, ends, axis=1)
        outs = [part.reshape(len(seeds), *aval.shape) for part, aval in zip(parts, closed.out_avals, strict=True)]
        return [mark.reshape(len(seeds), -1) for mark in _backward(closed.jaxpr, closed.consts, outs)]

    return reach


def _backward(jaxpr: Any, consts: Any, outs: list[np.ndarray]) -> list[np.ndarray]:
    """Marks of the inputs of a program from marks of its outputs, each bool [C, *shape]."""
    nonzero = _nonzero(jaxpr, consts)
    marks: dict[Any, np.ndarray] = {}

    def add(var, mark):
        if not isinstance(var, jex.Literal):
            marks[var] = marks[var] | mark if var in marks else mark

    for var, mark in zip(jaxpr.outvars, outs, strict=True):
        add(var, mark)
    count = len(outs[0])
    for eqn in reversed(jaxpr.eqns):
        if any(var in marks for var in eqn.outvars):
            cots = [marks.pop(v, np.zeros((count, *v.aval.shape), bool)) for v in eqn.outvars]
            for var, mark in zip(eqn.invars, _rule(eqn, cots, nonzero), strict=True):
                add(var, mark)
    return [marks.get(v, np.zeros((count, *v.aval.shape), bool)) for v in jaxpr.invars]


def _to_shape(mark: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mark of an operand that was broadcast: reduced over the axes that have size 1 in it, or are missing."""
    if not shape:
        return np.asarray(mark.reshape(len(mark), -1).any(1))
    return np.asarray(mark.any(tuple(1 + i for i, n in enumerate(shape) if n != mark.shape[1 + i]), keepdims=True))


def _rule(eqn: Any, cots: list[np.ndarray], nonzero: dict) -> list[np.ndarray]:
    """Marks of the operands of one operation."""
    name, params, cot = eqn.primitive.name, eqn.params, cots[0]
    shapes = [var.aval.shape for var in eqn.invars]
    count, shape = len(cot), shapes[0] if shapes else ()
    if name in CALLS:
        inner = next(value for value in params.values() if hasattr(value, "eqns"))
        consts = getattr(inner, "consts", ())
        return _backward(getattr(inner, "jaxpr", inner), consts, cots)
    if name == "stop_gradient":
        return [np.zeros_like(cot)]
    if name == "mul":
        return [
            _to_shape(cot & other, own)
            for own, other in zip(shapes, reversed(_operands_nonzero(eqn, nonzero)), strict=True)
        ]
    if name in ELEMENTWISE and all(len(own) in (0, cot.ndim - 1) for own in shapes):
        return [_to_shape(cot, own) for own in shapes]
    if name in ("reshape", "squeeze", "expand_dims"):
        return [cot.reshape(count, *shape)]
    if name == "transpose":
        return [cot.transpose(0, *(1 + np.argsort(params["permutation"])))]
    if name == "broadcast_in_dim":
        kept = params["broadcast_dimensions"]
        added = tuple(1 + i for i in range(cot.ndim - 1) if i not in kept)
        return [_to_shape(np.asarray(cot.any(added)), shape)]
    if name == "concatenate":
        return np.split(cot, np.cumsum([own[params["dimension"]] for own in shapes])[:-1], 1 + params["dimension"])
    if name == "stack":
        return [np.take(cot, i, 1 + params["axis"]) for i in range(len(shapes))]
    if name == "unstack":
        return [np.stack(cots, 1 + params["axis"])]
    if name == "tile":
        apart = [n for pair in zip(params["reps"], shape, strict=True) for n in pair]
        return [np.asarray(cot.reshape(count, *apart).any(tuple(range(1, 2 * len(shape), 2))))]
    if name == "split":
        return [np.concatenate(cots, 1 + params["axis"])]
    if name == "slice":
        mark = np.zeros((count, *shape), bool)
        steps = params["strides"] or (1,) * len(shape)
        bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
        mark[(slice(None), *(slice(*bound) for bound in bounds))] = cot
        return [mark]
    if name == "gather":
        return [_gathered(cot, shape, params), np.broadcast_to(_any(cot, len(shapes[1])), (count, *shapes[1]))]
    if name.startswith("reduce_") and "axes" in params:
        return [np.broadcast_to(np.expand_dims(cot, tuple(1 + i for i in params["axes"])), (count, *shape))]
    if name == "dot_general":
        return _dot_rule(params["dimension_numbers"], _operands_nonzero(eqn, nonzero), cot)
    marks = {len(own): np.logical_or.reduce([_any(one, len(own)) for one in cots]) for own in shapes}
    return [np.broadcast_to(marks[len(own)], (count, *own)) for own in shapes]


def _any(mark: np.ndarray, axes: int) -> np.ndarray:
    """Whether anything is marked: [C, 1, ..., 1] of a mark [C, ...], with `axes` axes of size 1."""
    return mark.reshape(len(mark), -1).any(1).reshape(len(mark), *(1,) * axes)


def _gathered(cot: np.ndarray, shape: tuple[int, ...], params: Any) -> np.ndarray:
    """The mark of the operand of a gather: axes that are taken whole keep theirs, any place of the others counts."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    apart = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    taken = dict(zip((axis for axis in range(len(shape)) if axis not in apart), numbers.offset_dims, strict=True))
    whole = {axis: out for axis, out in taken.items() if sizes[axis] == shape[axis]}
    others = tuple(1 + out for out in range(cot.ndim - 1) if out not in whole.values())
    kept = cot.any(others)  # the axes of the slice are in the order of those of the operand
    return np.broadcast_to(
        kept.reshape(len(cot), *(n if axis in whole else 1 for axis, n in enumerate(shape))), (len(cot), *shape)
    )


def _dot_rule(numbers: Any, factors: list[np.ndarray], cot: np.ndarray) -> list[np.ndarray]:
    """Operands of a matrix product, whose output axes are (batch, free of the left, free of the right)."""
    contracting, batch = numbers
    orders = [
        (*b, *(i for i in range(one.ndim) if i not in b and i not in c), *c)
        for one, b, c in zip(factors, batch, contracting, strict=True)
    ]
    sorted_shapes = [tuple(one.shape[i] for i in order) for one, order in zip(factors, orders, strict=True)]
    b, k = len(batch[0]), len(contracting[0])
    cells = int(np.prod(sorted_shapes[0][:b])), int(np.prod(sorted_shapes[0][len(orders[0]) - k :]))
    flat = [
        one.transpose(order).reshape(cells[0], -1, cells[1]).astype(np.float32)
        for one, order in zip(factors, orders, strict=True)
    ]  # [batch, free, contracted] of the left and of the right
    out = cot.reshape(len(cot), cells[0], flat[0].shape[1], flat[1].shape[1]).astype(np.float32)
    found = out @ flat[1], out.swapaxes(2, 3) @ flat[0]
    return [
        (mark > 0).reshape(len(cot), *shape).transpose(0, *(1 + np.argsort(order)))
        for mark, shape, order in zip(found, sorted_shapes, orders, strict=True)
    ]


def _nonzero(jaxpr: Any, consts: Any) -> dict[Any, np.ndarray]:
    """For values of a program that depend on its constants: where they may be nonzero, for any inputs."""
    found = {v: np.asarray(c) != 0 for v, c in zip(jaxpr.constvars, consts, strict=True) if not isinstance(c, Tracer)}
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if not any(_is_known(var, found) for var in eqn.invars):
            continue
        masks = _operands_nonzero(eqn, found)
        if name == "mul":
            found[eqn.outvars[0]] = masks[0] & masks[1]
        elif name in ("convert_element_type", "neg", "copy"):
            found[eqn.outvars[0]] = masks[0]
        elif name in ("broadcast_in_dim", "reshape", "transpose", "slice", "squeeze"):
            with jax.ensure_compile_time_eval():
                found[eqn.outvars[0]] = np.asarray(eqn.primitive.bind(masks[0], **eqn.params))
    return found


def _operands_nonzero(eqn: Any, nonzero: dict) -> list[np.ndarray]:
    """Where the operands of an operation may be nonzero."""
    return [nonzero[var] if _is_known(var, nonzero) else np.ones(var.aval.shape, bool) for var in eqn.invars]


def _is_known(var: Any, nonzero: dict) -> bool:
    return not isinstance(var, jex.Literal) and var in nonzero
