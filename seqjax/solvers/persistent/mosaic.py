"""The loops of a gated cell on a TPU, forward and backward, as one Mosaic kernel each.

A block takes some sequences through some steps; the carry passes to the block of the next steps in memory. The backward
kernel runs each step again from the carry before it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from seqjax.arrays import Array, matmul
from seqjax.placement import shape_like
from seqjax.solvers.gated_loop.plan import Arrays
from seqjax.solvers.gated_loop.slots import Parts
from seqjax.solvers.gated_loop.solver import Loop
from seqjax.solvers.persistent.arithmetic import Arithmetic, add, filled
from seqjax.solvers.persistent.blocks import Grid, cut_slots, pad_slots
from seqjax.solvers.persistent.gradients import Result, slotwise
from seqjax.solvers.persistent.inputs import Inputs
from seqjax.solvers.persistent.tiling import Target, for_tpu


class _Kernel(Inputs):
    """What both kernels have in common: their inputs, their blocks, and how a step reads them."""

    def __init__(self, loop: Loop, arithmetic: Arithmetic, arrays: Arrays, target: Target, reverse: bool):
        self.tiling = for_tpu(loop.plan, arrays)
        super().__init__(loop, arithmetic, arrays, target, self.tiling.width)
        self.grid = Grid(self.tiling, self.size, self.steps, reverse)
        self.specs: list[pl.BlockSpec] = []
        self.put_all(arrays)

    # Inputs, from arrays

    def put(self, placed: tuple[Array, pl.BlockSpec]) -> int:
        """The number of a new input."""
        self.arrays.append(placed[0])
        self.specs.append(placed[1])
        return len(self.arrays) - 1

    def timed(self, array: Array) -> int:
        """The number of [T, B, .]."""
        return self.put(self.grid.timed(array))

    def row(self, array: Array) -> int:
        """The number of [B, .]."""
        return self.put(self.grid.row(array))

    def shared(self, array: Array) -> int:
        """The number of an array that every block reads as a whole."""
        return self.put(self.grid.whole(array))

    number = shared

    def put_weights(self, w: Array, *, transposed: bool = False) -> int:
        """The number of [H, G H], as [G, W, W]."""
        apart = jnp.moveaxis(w.reshape(self.units, -1, self.units), 1, 0)
        more = self.tiling.width - self.units
        apart = jnp.pad(apart, [(0, 0), (0, more), (0, more)]) if more else apart
        return self.shared(jnp.swapaxes(apart, 1, 2) if transposed else apart)

    # A step, from references

    def columns(self, slot: int) -> slice:
        """The columns of a slot in a block."""
        return slice(slot * self.tiling.width, (slot + 1) * self.tiling.width)

    def load(self, refs: Sequence[Any], at: tuple[Any, ...]) -> list[Any]:
        """The slots of the carry from its leaves."""
        pairs = zip(refs, self.arithmetic.leaves, strict=True)
        return [ref[(*at, slice(None), self.columns(s))] for ref, n in pairs for s in range(n)]

    def store(self, refs: Sequence[Any], at: tuple[Any, ...], flat: Sequence[Any]) -> None:
        """The inverse of `load`."""
        for ref, parts in zip(refs, self.arithmetic.grouped(flat), strict=True):
            for s, part in enumerate(parts):
                ref[(*at, slice(None), self.columns(s))] = part

    def clean(self, slot: Any) -> Any:
        """A factor of a product without what arithmetic made of the padding."""
        if self.tiling.width == self.units:
            return slot
        inside = jax.lax.broadcasted_iota(jnp.int32, slot.shape, 1) < self.units
        return jnp.where(inside, slot, jnp.zeros_like(slot))

    def multiplied(self, inputs: list[Parts], weights: list[Any]) -> list[Parts]:
        """The inputs with the products in their places; weights are references [slots, W, W]."""
        counts = self.arithmetic.products
        return self.arithmetic.multiply(
            inputs, lambda k, v: [matmul(self.clean(v), weights[k][g]) for g in range(counts[k])]
        )

    def inputs(self, refs: Sequence[Any], t: Any, carry: list[Parts]) -> list[Parts]:
        """The inputs of step t of a block, without the products."""
        arithmetic = self.arithmetic
        z = [] if self.z is None else [[refs[self.z][t, :, self.columns(s)]] for s in range(arithmetic.dense)]
        found = [*carry, *z, *[[None]] * sum(arithmetic.products)]
        for other, number in zip(arithmetic.others, self.others, strict=True):
            if number is None:
                found.append([None])
                continue
            width = arithmetic.width(other)
            columns = [self.columns(s) for s in range(width)] if width else [slice(None)]
            at = (t,) if other.timed else ()
            parts = [refs[number][(*at, slice(None), c)] for c in columns]
            found.append([part != 0 for part in parts] if other.dtype == bool else parts)
        return found

    def over_steps(self, body: Any, state: Sequence[Any], scratch: Sequence[Any]) -> Sequence[Any]:
        """`body(t, state)` over the steps of a block; the state passes from block to block through `scratch`."""
        if scratch:

            @pl.when(pl.program_id(1) == 0)
            def _():
                for ref, value in zip(scratch, state, strict=True):
                    ref[...] = value

            state = [ref[...] for ref in scratch]
        first = self.grid.chunk(pl.program_id(1)) * self.tiling.steps

        def step(i, state):
            t = self.tiling.steps - 1 - i if self.grid.reverse else i
            new = body(t, state)
            if self.steps % self.tiling.steps == 0:
                return new
            return [jnp.where(first + t < self.steps, a, b) for a, b in zip(new, state, strict=True)]

        state = jax.lax.fori_loop(0, self.tiling.steps, step, list(state))
        if scratch:
            for ref, value in zip(scratch, state, strict=True):
                ref[...] = value
        return state

    def run(self, kernel: Callable[..., None], results: Sequence[Result], state: int) -> list[Array]:
        """The results of `kernel(references of inputs, of results, of scratch)` with `state` slots of state."""
        chunked = self.grid.shape[1] > 1
        scratch = [tpu.VMEM((self.tiling.rows, self.tiling.width), self.dtype)] * state if chunked else []
        pairs = [(result, result.slots * self.tiling.width) for result in results]
        sizes = [getattr(self.grid, f"{result.kind}_shape")(width) for result, width in pairs]
        n, m = len(self.arrays), len(results)

        def body(*refs):
            with jax.default_matmul_precision(self.target.precision or "default"):
                kernel(refs[:n], refs[n : n + m], refs[n + m :])

        found = pl.pallas_call(
            body,
            grid=self.grid.shape,
            in_specs=self.specs,
            out_specs=[getattr(self.grid, f"{result.kind}_spec")(width) for result, width in pairs],
            out_shape=[shape_like(s, result.dtype, self.arrays[0]) for s, result in zip(sizes, results, strict=True)],
            scratch_shapes=scratch,
            name=f"persistent_{'backward' if self.grid.reverse else 'forward'}",
            interpret=self.target.interpret,
            compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        )(*self.arrays)
        return list(found)

    # Results, as arrays

    def cut_timed(self, array: Array) -> Array:
        """A result [T, B, n W], padded, as [T, *batch, n H]."""
        cut = cut_slots(array[: self.steps, : self.size], self.units, self.tiling.width)
        return cut.reshape(self.steps, *self.batch, -1)

    def cut_row(self, array: Array) -> Array:
        """A result [B, n W], padded, as [*batch, n H]."""
        return cut_slots(array[: self.size], self.units, self.tiling.width).reshape(*self.batch, -1)


def forward(loop: Loop, arithmetic: Arithmetic, target: Target, flat: tuple[Array, ...]) -> list[Array]:
    """All carries [T, *batch, .]."""
    arrays, _ = loop.unflatten(flat)
    own = _Kernel(loop, arithmetic, arrays, target, reverse=False)
    start = [own.put_row(leaf) for leaf in arrays.carry]

    def kernel(refs, out, scratch):
        weights = [refs[number] for number in own.weights]

        def body(t, carry):
            inputs = own.multiplied(own.inputs(refs, t, arithmetic.grouped(carry)), weights)
            new = [part for parts in arithmetic.forward(inputs) for part in parts]
            own.store(out, (t,), new)
            return new

        own.over_steps(body, own.load([refs[i] for i in start], ()), scratch)

    results = [Result("timed", n, own.dtype) for n in arithmetic.leaves]
    return [own.cut_timed(h) for h in own.run(kernel, results, sum(arithmetic.leaves))]


def gradients(loop: Loop, arithmetic: Arithmetic, target: Target, flat: tuple[Array, ...]) -> list[Array]:
    """The gradients of the slots; see `slotwise`."""
    return _Backward(loop, arithmetic, target, flat).gradients()


class _Backward(_Kernel):
    """The kernel of the gradient.

    Its state is the gradient of the carry, and sums of the gradients of inputs that all steps share.
    """

    def __init__(self, loop: Loop, arithmetic: Arithmetic, target: Target, flat: tuple[Array, ...]):
        arrays, rest = loop.unflatten(flat)
        super().__init__(loop, arithmetic, arrays, target, reverse=True)
        n = len(arrays.carry)
        hs, d_last, d_hs = rest[:n], rest[n : 2 * n], rest[2 * n :]
        self.transposed = [self.put_weights(w, transposed=True) for w in arrays.weights]
        # The carry before the first step of each block, and that after each step.
        ends = [h[self.tiling.steps - 1 : self.steps - 1 : self.tiling.steps] for h in hs]
        firsts = [jnp.concatenate([leaf[None], end]) for leaf, end in zip(arrays.carry, ends, strict=True)]
        self.first = [self.put(self.grid.chunks(self._flat_slots(leaf))) for leaf in firsts]
        self.after = [self.put_timed(h) for h in hs]
        self.d_last = [self.put_row(leaf) if leaf.size else None for leaf in d_last]
        self.d_hs = [self.put_timed(leaf) if leaf.size else None for leaf in d_hs]

    def _flat_slots(self, leaf: Array) -> Array:
        return pad_slots(leaf.reshape(len(leaf), self.size, -1), self.units, self.tiling.width)

    def gradients(self) -> list[Array]:
        """Those of the slots."""
        results = slotwise(self.arithmetic)
        state = sum(self.arithmetic.leaves) + sum(map(self.arithmetic.slots_of, self.arithmetic.summed))
        found = self.run(self._kernel, results, state)
        return [(self.cut_row if r.kind == "row" else self.cut_timed)(x) for r, x in zip(results, found, strict=True)]

    def _kernel(self, refs, out, scratch):
        arithmetic, slots = self.arithmetic, sum(self.arithmetic.leaves)
        weights, transposed = ([refs[n] for n in numbers] for numbers in (self.weights, self.transposed))
        d_start, steps, sums = self._references(list(out))
        first = self.load([refs[i] for i in self.first], (0,))
        zero = jnp.zeros_like(first[0])

        def transposed_product(k, du):
            terms = [matmul(self.clean(one), transposed[k][g]) for g, one in enumerate(du)]
            return sum(terms[1:], start=terms[0])

        def body(t, state):
            d_carry = [add(a, b) for a, b in zip(state[:slots], self._given(self.d_hs, refs, (t,)), strict=True)]
            earlier = self.load([refs[i] for i in self.after], (jnp.maximum(t - 1, 0),))
            carry = [jnp.where(t == 0, a, b) for a, b in zip(first, earlier, strict=True)]
            inputs = self.multiplied(self.inputs(refs, t, self.arithmetic.grouped(carry)), weights)
            found = arithmetic.backward(inputs, self.arithmetic.grouped(d_carry), transposed_product)
            of_products = [found.slots[i] for i in arithmetic.apart]
            of_timed = [part for i in arithmetic.timed for part in found.others[i]]
            parts = [*found.slots[: arithmetic.dense], *of_products, *of_timed]
            for (ref, slot), part in zip(steps, parts, strict=True):
                ref[t, :, self.columns(slot)] = filled(part, zero).astype(ref.dtype)
            more = [filled(part, zero) for i in arithmetic.summed for part in found.others[i]]
            totals = [a + b for a, b in zip(state[slots:], more, strict=True)]
            return [*(filled(part, zero) for leaf in found.carry for part in leaf), *totals]

        start = [filled(part, zero) for part in self._given(self.d_last, refs, ())]
        state = self.over_steps(body, [*start, *[zero] * len(sums)], scratch)
        self.store(d_start, (), state[:slots])
        for (ref, slot), total in zip(sums, state[slots:], strict=True):
            ref[:, self.columns(slot)] = total

    def _references(self, out: list[Any]) -> tuple[list[Any], list[tuple[Any, int]], list[tuple[Any, int]]]:
        """The results: those of the first carry, and slots (reference, number) of those of each step, and of sums."""
        arithmetic = self.arithmetic
        d_start = [out.pop(0) for _ in arithmetic.leaves]
        widths = [arithmetic.dense, len(arithmetic.apart), *map(arithmetic.slots_of, arithmetic.timed)]
        steps = [(ref, slot) for n in widths if n for ref in [out.pop(0)] for slot in range(n)]
        sums = [
            (ref, slot) for i in arithmetic.summed for ref in [out.pop(0)] for slot in range(arithmetic.slots_of(i))
        ]
        return d_start, steps, sums

    def _given(self, numbers: Sequence[int | None], refs: Sequence[Any], at: tuple[Any, ...]) -> list[Any]:
        """The slots of cotangents of the carry; the number 0 for those that are not given."""
        found = []
        for number, count in zip(numbers, self.arithmetic.leaves, strict=True):
            for s in range(count):
                found.append(0.0 if number is None else refs[number][(*at, slice(None), self.columns(s))])
        return found
