"""The arithmetic of a gated cell as lists of slots: arrays [H], one number per unit, that only meet elementwise.

The functions of a cell are traced for one sequence, so every array in them has H or n H entries, which are n slots, or
is a scalar of the row. A kernel never has to cut or to join arrays then: splits, concatenations and reshapes are
resolved here, while the jaxpr is read, and elementwise operations are left for the kernel.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from seqjax.arrays import Tree
from seqjax.hints import Gated


class Unsupported(ValueError):  # noqa: N818 (the name is clear without "Error")
    """The cell contains an operation that a kernel cannot run."""


Part = Any  # a slot or a scalar of the row, as the kernel represents it, or a number
Parts = list[Part]

_INLINE = ("pjit", "jit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call")


class Slots:
    """Reads a jaxpr slot by slot; a subclass defines `elementwise`."""

    def __init__(self, units: int):
        self.units = units

    def elementwise(self, eqn: Any, ins: list[Parts]) -> Parts:
        """The results of an elementwise equation, of inputs with as many parts each.

        Raises:
          Unsupported: for any other equation.
        """
        raise NotImplementedError

    def slots(self, shape: Sequence[int]) -> int:
        """The number of slots of an array of this shape; 0 for a scalar, [] or [1]."""
        if int(np.prod(shape)) == 1:
            return 0
        if shape[-1] % self.units:
            raise Unsupported(f"an array of shape {tuple(shape)}, which is not a multiple of the {self.units} units")
        return int(np.prod(shape)) // self.units

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Parts]) -> list[Parts]:
        """The parts of the results of a jaxpr."""
        env: dict[Any, Parts] = {}

        def read(atom: Any) -> Parts:
            if isinstance(atom, jex.Literal):
                value = bool(atom.val) if np.asarray(atom.val).dtype == bool else float(atom.val)
                return [value] * max(1, self.slots(np.shape(atom.val)))
            return env[atom]

        for var, value in zip(jaxpr.constvars, consts, strict=True):
            if np.size(value) != 1:
                raise Unsupported(f"a constant array of shape {np.shape(value)}: pass it through z, in a Const")
            env[var] = [np.ravel(value)[0].item()] * max(1, self.slots(np.shape(value)))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        for eqn in jaxpr.eqns:
            results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            for var, parts in zip(eqn.outvars, results, strict=True):
                if len(parts) != max(1, self.slots(var.aval.shape)):
                    raise Unsupported(f"the primitive {eqn.primitive.name} on single units of a slot")
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: list[Parts]) -> list[Parts]:
        name, params = eqn.primitive.name, eqn.params
        if eqn.effects or not eqn.outvars:
            raise Unsupported(f"the primitive {name}, which has effects")
        shape = eqn.outvars[0].aval.shape
        n = max(1, self.slots(shape))
        if name in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims"):
            return [self._reshape(eqn, ins[0], n)]
        if name in ("copy", "copy_p", "stop_gradient", "optimization_barrier"):
            return ins
        if name == "slice":
            return [self._slice(eqn, ins[0])]
        if name in ("split", "unstack"):  # unstack and stack: JAX 0.11 and later
            return self._split(eqn, ins[0])
        if name in ("concatenate", "stack"):
            if len(shape) > 1 and params["dimension" if name == "concatenate" else "axis"] != 0:
                raise Unsupported("a concatenation within rows")
            return [[part for parts in ins for part in parts]]
        if name == "pad":
            return [self._pad(eqn, ins)]
        if name in _INLINE:
            inner = params.get("jaxpr", params.get("call_jaxpr"))
            closed = inner if hasattr(inner, "consts") else jex.ClosedJaxpr(inner, ())
            return self.run(closed.jaxpr, closed.consts, ins)
        return [self.elementwise(eqn, [p * n if len(p) == 1 else p for p in ins])]

    @staticmethod
    def _reshape(eqn: Any, parts: Parts, n: int) -> Parts:
        """Only the order of the slots matters, not the shape; a scalar may be repeated."""
        before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        if len(parts) == n:
            return parts
        if int(np.prod(before)) == 1 or (len(after) == 2 and len(parts) == 1):
            return parts * n
        raise Unsupported(f"a broadcast from {before} to {after}")

    def _slice(self, eqn: Any, parts: Parts) -> Parts:
        p, shape = eqn.params, eqn.invars[0].aval.shape
        if p["strides"] is not None and set(p["strides"]) != {1}:
            raise Unsupported("a slice with strides")
        start, stop = p["start_indices"], p["limit_indices"]
        if any(b != 0 or e != s for b, e, s in zip(start[1:], stop[1:], shape[1:], strict=True)):
            raise Unsupported("a slice of columns")
        row = int(np.prod(shape[1:]))  # entries per index of the first axis
        if (start[0] * row) % self.units or (stop[0] * row) % self.units:
            raise Unsupported("a slice within a slot")
        return parts[start[0] * row // self.units : stop[0] * row // self.units]

    def _split(self, eqn: Any, parts: Parts) -> list[Parts]:
        if eqn.params["axis"] != 0:
            raise Unsupported("a split of columns")
        out, place = [], 0
        for var in eqn.outvars:
            n = max(1, self.slots(var.aval.shape))
            out.append(parts[place : place + n])
            place += n
        if place != len(parts):
            raise Unsupported(f"the primitive {eqn.primitive.name} on single units of a slot")
        return out

    def _pad(self, eqn: Any, ins: list[Parts]) -> Parts:
        config, shape = eqn.params["padding_config"], eqn.invars[0].aval.shape
        (low, high, inside), *rest = config
        row = int(np.prod(shape[1:]))
        if inside or any(any(c) for c in rest) or low < 0 or high < 0 or (low * row) % self.units:
            raise Unsupported("a pad within a slot")
        fill = ins[1]
        return fill * (low * row // self.units) + ins[0] + fill * (high * row // self.units)


class Other(NamedTuple):
    """An input of the elementwise functions that is not a product: a mask, an inner bias, noise.

    Attributes:
      timed: whether it has a time axis.
      batched: whether it has the batch axes.
      shape: of one step and one sequence.
      dtype: of its numbers.
      perturbed: whether its gradient is needed.
    """

    timed: bool
    batched: bool
    shape: tuple[int, ...]
    dtype: Any
    perturbed: bool


class Functions(NamedTuple):
    """The elementwise functions of a gated cell, for one step of one sequence.

    Each takes, flat, the leaves of the carry, the slots of the projection, those of each product, and the others. The
    last of them is the gates, which return the leaves of the new carry; those before are the stages, which return one
    slot.

    Attributes:
      units: H.
      dtype: of the carry.
      leaves: shapes and dtypes of the leaves of the carry.
      n_slots: the number of slots of the projection and of the products together.
      avals: shapes and dtypes of the inputs.
      functions: the stages, and the gates.
      jaxprs: of each of them.
    """

    units: int
    dtype: Any
    leaves: list[Any]
    n_slots: int
    avals: list[Any]
    functions: list[Callable[..., list[Any]]]
    jaxprs: list[Any]

    def transposed(self, function: int, wanted: Sequence[int]) -> Any:
        """The jaxpr of `(*inputs, *cotangents of the results) -> gradients of the inputs with these numbers`."""
        f = self.functions[function]

        def pull(inputs, cotangents):
            def of(*chosen):
                full = list(inputs)
                for i, value in zip(wanted, chosen, strict=True):
                    full[i] = value
                return f(*full)

            return jax.vjp(of, *(inputs[i] for i in wanted))[1](cotangents)

        return jax.make_jaxpr(pull)(list(self.avals), list(jax.eval_shape(f, *self.avals)))


def trace(
    gated: Gated,
    carry: Tree,
    rebuild: Callable[[Any, list[Any]], Tree],
    dense: int | None,
    products: Sequence[int],
    others: Sequence[Other],
) -> Functions:
    """The functions of a gated cell.

    Args:
      gated: the hint.
      carry: shapes and dtypes of the carry of one sequence; the first leaf is [H].
      rebuild: `(dense, others) -> z`, of arrays for one step and one sequence.
      dense: the number of slots of the projection, or None if there is no such leaf.
      products: the number of slots of each recurrent product.
      others: the other leaves of z, in the order of `rebuild`.

    Raises:
      Unsupported: for a carry that is not made of slots.
    """
    leaves, carry_tree = jax.tree.flatten(carry)
    if len(leaves[0].shape) != 1:
        raise Unsupported(f"a carry of shape {leaves[0].shape}, expected [H]")
    units, dtype = leaves[0].shape[0], leaves[0].dtype
    if not jnp.issubdtype(dtype, jnp.floating) or any(leaf.dtype != dtype for leaf in leaves):
        raise Unsupported(f"a carry of {[str(leaf.dtype) for leaf in leaves]}, expected one floating dtype")
    if any(len(leaf.shape) != 1 or leaf.shape[0] % units for leaf in leaves):
        raise Unsupported(f"a carry of shapes {[leaf.shape for leaf in leaves]}, expected multiples of the first")

    def split(flat):
        flat = list(flat)
        take = lambda n: [flat.pop(0) for _ in range(n)]  # noqa: E731
        h = carry_tree.unflatten(take(len(leaves)))
        z0 = jnp.concatenate(take(dense)) if dense else None
        us = tuple(jnp.concatenate(take(n)) for n in products)
        return h, rebuild(z0, take(len(others))), us

    def stage(k):
        def f(*flat):
            h, z, us = split(flat)
            return [gated.stages[k](h, z, us[:k])]

        return f

    def gates(*flat):
        return jax.tree.leaves(gated.gates(*split(flat)))

    n_slots = (dense or 0) + sum(products)
    avals = [jax.ShapeDtypeStruct(leaf.shape, dtype) for leaf in leaves]
    avals += [jax.ShapeDtypeStruct((units,), dtype)] * n_slots
    avals += [jax.ShapeDtypeStruct(other.shape, other.dtype) for other in others]
    functions = [*(stage(k) for k in range(len(gated.stages))), gates]
    return Functions(units, dtype, leaves, n_slots, avals, functions, [jax.make_jaxpr(f)(*avals) for f in functions])
