"""The elementwise functions of a gated cell on the slots of a block: arrays [R, H] of R sequences."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.arrays import Array
from seqjax.solvers.gated_loop.slots import Functions, Other, Part, Parts, Slots, Unsupported

_ELEMENTWISE = {
    *("exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "sqrt", "rsqrt", "cbrt", "erf", "erfc", "erf_inv"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "atan2"),
    *("abs", "sign", "neg", "floor", "ceil", "round", "is_finite", "square", "one_minus_square", "integer_pow", "pow"),
    *("rem", "log2"),
    *("add", "add_any", "sub", "mul", "div", "max", "min", "clamp", "nextafter"),
    *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor", "not", "select_n", "convert_element_type"),
}


class _Block(Slots):
    """Runs a jaxpr on slots [R, H]. A scalar of the row is [R, 1]; what all rows share is [1, H] or [1, 1]."""

    def elementwise(self, eqn: Any, ins: list[Parts]) -> Parts:
        """The results of the equation's own primitive, slot by slot."""
        if eqn.primitive.name not in _ELEMENTWISE:
            raise Unsupported(f"the primitive {eqn.primitive.name}")
        return [self._bind(eqn, values) for values in zip(*ins, strict=True)]

    @staticmethod
    def _bind(eqn: Any, values: Sequence[Part]) -> Part:
        if any(value is None for value in values):
            raise Unsupported(
                "an input of the gates that is neither one number per sequence nor a multiple of the units"
            )
        dtypes = [var.aval.dtype for var in eqn.invars]
        shape = np.broadcast_shapes(*(np.shape(value) for value in values))
        if not shape:
            with jax.ensure_compile_time_eval():
                return eqn.primitive.bind(*map(np.asarray, values, dtypes), **eqn.params).item()
        wide = [jnp.broadcast_to(jnp.asarray(value, dtype), shape) for value, dtype in zip(values, dtypes, strict=True)]
        return eqn.primitive.bind(*wide, **eqn.params)


def filled(part: Part, like: Array) -> Array:
    """A part as a whole slot."""
    return jnp.broadcast_to(jnp.asarray(part, like.dtype), like.shape)


def add(a: Part, b: Part) -> Part:
    """a + b; the same object where the other is the number 0, so that equal gradients are known as such."""
    if isinstance(a, float) and a == 0:
        return b
    if isinstance(b, float) and b == 0:
        return a
    shape = np.broadcast_shapes(np.shape(a), np.shape(b))
    return jnp.broadcast_to(a, shape) + jnp.broadcast_to(b, shape)


class Gradients(NamedTuple):
    """Of one step: of the slots of the carry before it, of all slots of z and of the products, and of the others.

    An input that is not perturbed has no parts.
    """

    carry: list[Parts]
    slots: Parts
    others: list[Parts]


class Arithmetic:
    """One step of a gated cell, forward and backward, on slots.

    Inputs of a step are lists of parts: one list for each leaf of the carry, each slot of z and of the products, each
    of the others. A product is a function `(stage, slot) -> list of slots`.

    Attributes:
      same_as_z: for each slot of a product, that of z which has the same gradient, or None.
    """

    same_as_z: dict[int, int | None]

    def __init__(self, traced: Functions, others: Sequence[Other], dense: int, products: Sequence[int]):
        self.traced, self.others, self.dense, self.products = traced, others, dense, tuple(products)
        self.leaves = [leaf.shape[0] // traced.units for leaf in traced.leaves]  # slots of each leaf of the carry
        self._block = _Block(traced.units)
        first = len(self.leaves) + traced.n_slots
        self.perturbed = [i for i, other in enumerate(others) if other.perturbed and self.width(other) is not None]
        self._wanted = [*range(first), *(first + i for i in self.perturbed)]
        self._transposed = [traced.transposed(k, self._wanted) for k in range(len(traced.functions))]
        self._check()

    def width(self, other: Other) -> int | None:
        """The number of slots of another input, 0 for a scalar of the row; None if a kernel cannot read it."""
        size = int(np.prod(other.shape))
        if other.timed and not other.batched:
            return None
        if size == 1:
            return 0
        return size // self.traced.units if other.shape and other.shape[-1] % self.traced.units == 0 else None

    def slots_of(self, number: int) -> int:
        """The number of slots of another input."""
        return self.width(self.others[number]) or 0

    @property
    def apart(self) -> list[int]:
        """The slots of products that have gradients of their own."""
        return [i for i, same in self.same_as_z.items() if same is None]

    @property
    def timed(self) -> list[int]:
        """The other inputs with a gradient for each step."""
        return [i for i in self.perturbed if self.slots_of(i) and self.others[i].timed]

    @property
    def summed(self) -> list[int]:
        """The other inputs whose gradients are summed over the steps."""
        return [i for i in self.perturbed if self.slots_of(i) and not self.others[i].timed]

    def grouped(self, flat: Sequence[Part]) -> list[Parts]:
        """The slots of the carry, one after the other, by its leaves."""
        rest = list(flat)
        return [[rest.pop(0) for _ in range(n)] for n in self.leaves]

    def of_product(self, stage: int) -> range:
        """The numbers of the slots of a product, among those of z and the products."""
        start = self.dense + sum(self.products[:stage])
        return range(start, start + self.products[stage])

    def _run(self, jaxpr: Any, inputs: Sequence[Parts]) -> list[Parts]:
        return self._block.run(jaxpr.jaxpr, jaxpr.consts, inputs)

    def multiply(self, inputs: list[Parts], product: Any) -> list[Parts]:
        """The inputs with the products of all stages in their places."""
        inputs = list(inputs)
        for k in range(len(self.products)):
            [[v]] = self._run(self.traced.jaxprs[k], inputs)
            for i, u in zip(self.of_product(k), product(k, filled(v, inputs[0][0])), strict=True):
                inputs[len(self.leaves) + i] = [u]
        return inputs

    def forward(self, inputs: list[Parts]) -> list[Parts]:
        """The slots of the new carry, from inputs that hold the products."""
        results = self._run(self.traced.jaxprs[-1], inputs)
        if [len(parts) for parts in results] != self.leaves:
            raise Unsupported("a carry that changes shape")
        return [[filled(part, inputs[0][0]) for part in parts] for parts in results]

    def backward(self, inputs: list[Parts], d_carry: list[Parts], transposed_product: Any) -> Gradients:
        """The gradients of the inputs, which hold the products, from those of the new carry.

        `transposed_product` is a function `(stage, gradients of the slots of its product) -> gradient of its factor`.
        """
        total = self._run(self._transposed[-1], [*inputs, *d_carry])
        leaves = len(self.leaves)
        for k in reversed(range(len(self.products))):
            du = [filled(total[leaves + i][0], inputs[0][0]) for i in self.of_product(k)]
            more = self._run(self._transposed[k], [*inputs, [transposed_product(k, du)]])
            total = [list(map(add, a, b)) for a, b in zip(total, more, strict=True)]
        slots = [parts[0] for parts in total[leaves : leaves + self.traced.n_slots]]
        others: list[Parts] = [[] for _ in self.others]
        for i, parts in zip(self.perturbed, total[leaves + self.traced.n_slots :], strict=True):
            others[i] = parts
        return Gradients(total[:leaves], slots, others)

    def _check(self) -> None:
        """Runs a step on types alone, and finds the products that share the gradient of a slot of z."""
        units, dtype = self.traced.units, self.traced.dtype
        slot, scalar = jax.ShapeDtypeStruct((2, units), dtype), jax.ShapeDtypeStruct((2, 1), dtype)
        inputs = [[slot] * n for n in self.leaves] + [[slot]] * self.traced.n_slots
        for other in self.others:
            width = self.width(other)
            part = jax.ShapeDtypeStruct((scalar if width == 0 else slot).shape, other.dtype)
            inputs.append([None] if width is None else [part] * max(1, width))

        def step(inputs, d_carry):
            inputs = self.multiply(inputs, lambda k, v: [v] * self.products[k])
            new = self.forward(inputs)
            found = self.backward(inputs, d_carry, lambda k, du: du[0])
            for i, parts in enumerate(found.others):
                if self.width(self.others[i]) == 0 and any(np.shape(part) != () for part in parts):
                    raise Unsupported("the gradient of an input that is one number per sequence")
            z = {id(part): i for i, part in enumerate(found.slots[: self.dense]) if not isinstance(part, float)}
            place = [z.get(id(part)) for part in found.slots[self.dense :]]
            self.same_as_z = dict(enumerate(place, self.dense))
            return new

        jax.eval_shape(step, inputs, [[slot] * n for n in self.leaves])
