"""The loops of a gated cell on an NVIDIA GPU, forward and backward, as one Triton kernel each.

A block takes 16 sequences, or more, through all steps. Up to 64 units it has all of them, and the carry stays in
registers. Wider cells are divided over blocks: each has some of the units, of all slots, and its part of the weights.
These blocks meet in each step, forward to exchange the factors of a product, backward to sum up their parts of the
gradient of the factor. What the next step reads is loaded before a step is computed, because a load takes longer.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from seqjax.arrays import Array, carry_dtype, operand_dtype
from seqjax.placement import shape_like
from seqjax.solvers.gated_loop.plan import Arrays
from seqjax.solvers.gated_loop.slots import Parts
from seqjax.solvers.gated_loop.solver import Loop
from seqjax.solvers.persistent.arithmetic import Arithmetic, add, filled
from seqjax.solvers.persistent.blocks import cut_slots, pad_slots, padded
from seqjax.solvers.persistent.gradients import slotwise
from seqjax.solvers.persistent.inputs import Inputs
from seqjax.solvers.persistent.tiling import Blocks, Target, for_cuda, up, up_to_power


class _Here(NamedTuple):
    """The block that a kernel runs for: sequences number i, units number j."""

    blocks: Blocks
    i: Any
    j: Any

    @property
    def rows(self) -> Any:
        """The sequences of the block."""
        return pl.ds(self.i * self.blocks.rows, self.blocks.rows)

    def columns(self, slot: int) -> Any:
        """The units of the block in a slot."""
        return pl.ds(slot * self.blocks.width + self.j * self.blocks.units, self.blocks.units)

    def slots(self, ref: Any, at: tuple[Any, ...], numbers: Sequence[int]) -> Parts:
        """Some slots of an array [..., B, n W]."""
        return [ref[(*at, self.rows, self.columns(s))] for s in numbers]

    def put(self, ref: Any, at: tuple[Any, ...], slot: int, part: Any) -> None:
        """Write a slot of an array [..., B, n W]."""
        ref[(*at, self.rows, self.columns(slot))] = part.astype(ref.dtype)

    def clean(self, part: Any) -> Any:
        """A factor of a product without what arithmetic made of the padding."""
        if self.blocks.width == self.blocks.given:
            return part
        unit = self.j * self.blocks.units + jax.lax.broadcasted_iota(jnp.int32, part.shape, 1)
        return jnp.where(unit < self.blocks.given, part, jnp.zeros_like(part))


class _Meeting(NamedTuple):
    """Where the blocks of the same sequences wait for each other, `stages` times per step.

    A step writes what it exchanges where the step before did not: of two places, one is still read.
    """

    here: _Here
    counter: Any
    stages: int

    @staticmethod
    def place(step: Any) -> Any:
        """The place of what is exchanged in a step."""
        return jax.lax.rem(step, jnp.int32(2))

    def wait(self, step: Any, stage: int) -> None:
        """Return when all blocks are here; then each sees what the others wrote before."""
        awaited = (step * self.stages + stage + 1) * self.here.blocks.across
        triton.debug_barrier()
        triton.atomic_add(self.counter, (self.here.i,), 1)
        # A plain load in place of the addition of 0 would see the counter, but not what was written before it.
        again = lambda _: triton.atomic_add(self.counter, (self.here.i,), 0)  # noqa: E731
        jax.lax.while_loop(lambda seen: seen < awaited, again, jnp.int32(0))


class _Kernel(Inputs):
    """What both kernels have in common: their inputs, and how a step reads them."""

    def __init__(self, loop: Loop, arithmetic: Arithmetic, arrays: Arrays, target: Target):
        self.blocks = blocks = for_cuda(loop.plan, arrays)
        if target.interpret:  # one block runs after the other: they cannot wait for each other
            self.blocks = blocks = blocks._replace(units=blocks.width, chunk=blocks.width)
        super().__init__(loop, arithmetic, arrays, target, blocks.width)
        self.rows = up(self.size, blocks.rows)
        self.stages = len(arithmetic.products)
        self.meets = blocks.across > 1 and self.stages > 0
        self.factor_dtypes = [operand_dtype(w.dtype) for w in arrays.weights]
        self.put_all(arrays)

    # Inputs, from arrays

    def shared(self, array: Array) -> int:
        """The number of an array that every block reads as a whole."""
        self.arrays.append(array)
        return len(self.arrays) - 1

    def timed(self, array: Array) -> int:
        """The number of [T, B, .]."""
        return self.shared(padded(array, 1, self.rows))

    def row(self, array: Array) -> int:
        """The number of [B, .]."""
        return self.shared(padded(array, 0, self.rows))

    def number(self, array: Array) -> int:
        """The number of [1, 1], as a row."""
        return self.shared(jnp.broadcast_to(array, (self.rows, 1)))

    def put_weights(self, w: Array) -> int:
        """The number of [H, n H], as [blocks, W, N]: for each block the columns of its units, slot by slot."""
        blocks, count = self.blocks, w.shape[1] // self.units
        slots = up_to_power(count)
        apart = padded(pad_slots(w, self.units, blocks.width), 0, blocks.width)
        apart = padded(apart.reshape(blocks.width, count, blocks.across, blocks.units), 1, slots)
        return self.shared(jnp.moveaxis(apart, 2, 0).reshape(blocks.across, blocks.width, slots * blocks.units))

    # A step, from references

    def carry(self, here: _Here, refs: Sequence[Any], at: tuple[Any, ...]) -> Parts:
        """The slots of the carry from its leaves."""
        pairs = zip(refs, self.arithmetic.leaves, strict=True)
        return [part for ref, n in pairs for part in here.slots(ref, at, range(n))]

    def put_carry(self, here: _Here, refs: Sequence[Any], at: tuple[Any, ...], flat: Sequence[Any]) -> None:
        """The inverse of `carry`."""
        for ref, parts in zip(refs, self.arithmetic.grouped(flat), strict=True):
            for s, part in enumerate(parts):
                here.put(ref, at, s, part)

    def load(self, here: _Here, refs: Sequence[Any], t: Any) -> list[Parts]:
        """What step t reads of z, and of the other inputs with a time axis."""
        z = [] if self.z is None else here.slots(refs[self.z], (t,), range(self.arithmetic.dense))
        return [z, *(self._other(here, refs, k, (t,)) for k in self._others(timed=True))]

    def load_shared(self, here: _Here, refs: Sequence[Any]) -> list[Parts]:
        """What all steps read."""
        return [self._other(here, refs, k, ()) for k in self._others(timed=False)]

    def _others(self, *, timed: bool) -> list[int]:
        pairs = zip(self.arithmetic.others, self.others, strict=True)
        return [k for k, (other, number) in enumerate(pairs) if number is not None and other.timed == timed]

    def _other(self, here: _Here, refs: Sequence[Any], k: int, at: tuple[Any, ...]) -> Parts:
        other, ref = self.arithmetic.others[k], refs[self.others[k]]
        width = self.arithmetic.width(other)
        if not width:
            return [ref[(*at, here.rows, slice(None))]]
        if not other.timed and not other.batched:
            return [ref[:, here.columns(s)] for s in range(width)]
        return here.slots(ref, at, range(width))

    def inputs(self, carry: list[Parts], loaded: list[Parts], shared: list[Parts], products: Parts) -> list[Parts]:
        """The inputs of a step."""
        z, *timed = loaded
        parts: list[Parts] = [[None] for _ in self.others]
        for k, part in (*zip(self._others(timed=True), timed), *zip(self._others(timed=False), shared)):  # noqa: B905
            isbool = self.arithmetic.others[k].dtype == bool
            parts[k] = [one != 0 for one in part] if isbool else part
        return [*carry, *([one] for one in z), *([one] for one in products), *parts]

    def weight(self, refs: Sequence[Any], here: _Here, stage: int) -> list[Any]:
        """The weights of a block, in parts of `chunk` rows."""
        ref, size = refs[self.weights[stage]], self.blocks.chunk
        return [ref[here.j, pl.ds(k, size), :] for k in range(0, self.blocks.width, size)]

    def split(self, joined: Any, stage: int) -> Parts:
        """The slots of a product of a block."""
        count = self.arithmetic.products[stage]
        parts = jnp.split(joined, up_to_power(count), axis=1) if count > 1 else [joined]
        return list(parts[:count])

    def exchange(self, dtype: Any) -> jax.ShapeDtypeStruct:
        """Where the blocks put their parts of a factor, for two steps."""
        return self.result((2, self.rows, self.blocks.width), dtype)

    def result(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """The type of a result."""
        return shape_like(shape, dtype, self.arrays[0])

    def timed_result(self, slots: int, dtype: Any) -> jax.ShapeDtypeStruct:
        """[T, B, n W]."""
        return self.result((self.steps, self.rows, slots * self.blocks.width), dtype)

    def row_result(self, slots: int, dtype: Any) -> jax.ShapeDtypeStruct:
        """[B, n W]."""
        return self.result((self.rows, slots * self.blocks.width), dtype)

    def run(self, kernel: Any, results: Sequence[jax.ShapeDtypeStruct], name: str) -> list[Array]:
        """The results of `kernel(here, meeting, references of inputs, of results)`."""
        blocks, n = self.blocks, len(self.arrays)
        groups = self.rows // blocks.rows
        counted = [self.result((groups,), jnp.int32)] * self.meets
        counters = [jnp.zeros_like(self.arrays[0], shape=one.shape, dtype=one.dtype) for one in counted]

        def body(*refs):
            inputs, out = refs[:n], refs[n + len(counters) :]
            here = _Here(blocks, pl.program_id(1), pl.program_id(0))
            meeting = _Meeting(here, out[-1] if counters else None, self.stages)
            with jax.default_matmul_precision(self.target.precision or "default"):
                kernel(here, meeting, inputs, out[: len(results)])

        found = pl.pallas_call(
            body,
            # The blocks that meet are started one after the other, so that they run at the same time.
            grid=(blocks.across, groups),
            out_shape=[*results, *counted],
            input_output_aliases={n: len(results)} if counters else {},
            name=f"persistent_{name}",
            interpret=self.target.interpret,
            compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=1),
        )(*self.arrays, *counters)
        return list(found[: len(results)])

    # Results, as arrays

    def cut_timed(self, array: Array) -> Array:
        """A result [T, B, n W], padded, as [T, *batch, n H]."""
        return cut_slots(array[:, : self.size], self.units, self.blocks.width).reshape(self.steps, *self.batch, -1)

    def cut_row(self, array: Array) -> Array:
        """A result [B, n W], padded, as [*batch, n H]."""
        return cut_slots(array[: self.size], self.units, self.blocks.width).reshape(*self.batch, -1)


def _dot(a: Any, b: Any, dtype: Any, *, transposed: bool = False) -> Any:
    """a @ b, or a @ b.T, of factors in a dtype."""
    sides = ((1,), (1,)) if transposed else ((1,), (0,))
    result = carry_dtype(dtype)
    return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), (sides, ((), ())), preferred_element_type=result)


def _sum(terms: Sequence[Any]) -> Any:
    """The sum, in an order that allows the additions to overlap."""
    terms = list(terms)
    while len(terms) > 1:
        terms = [functools.reduce(jnp.add, terms[k : k + 2]) for k in range(0, len(terms), 2)]
    return terms[0]


def _joined(parts: Sequence[Any]) -> Any:
    """Slots [R, U], a power of 2 of them, side by side: [R, n U]."""
    parts = list(parts)
    while len(parts) > 1:  # Triton joins two arrays along a new last axis, and nothing else
        pairs = [jnp.stack(parts[k : k + 2], -1) for k in range(0, len(parts), 2)]
        parts = [jnp.swapaxes(pair, 1, 2).reshape(pair.shape[0], -1) for pair in pairs]
    return parts[0]


def forward(loop: Loop, arithmetic: Arithmetic, target: Target, flat: tuple[Array, ...]) -> list[Array]:
    """All carries [T, *batch, .]."""
    arrays, _ = loop.unflatten(flat)
    own = _Kernel(loop, arithmetic, arrays, target)
    start = [own.put_row(leaf) for leaf in arrays.carry]
    blocks, meets = own.blocks, own.meets

    def kernel(here, meeting, refs, out):
        hs, exchanged = out[: len(arithmetic.leaves)], out[len(arithmetic.leaves) :]
        weights = [own.weight(refs, here, k) for k in range(own.stages)]
        shared = own.load_shared(here, refs)

        def step(t, state):
            flat, loaded = state
            following = own.load(here, refs, jnp.minimum(t + 1, own.steps - 1))

            def product(k, v):
                dtype, v = own.factor_dtypes[k], here.clean(v)
                if meets:
                    here.put(exchanged[k], (meeting.place(t),), 0, v)
                    meeting.wait(t, k)
                terms = []
                for n, w in enumerate(weights[k]):  # all loads before the first product would take all registers
                    part = pl.ds(n * blocks.chunk, blocks.chunk)
                    terms.append(_dot(exchanged[k][meeting.place(t), here.rows, part] if meets else v, w, dtype))
                return own.split(_sum(terms), k)

            carry = arithmetic.grouped(flat)
            inputs = arithmetic.multiply(own.inputs(carry, loaded, shared, [None] * sum(arithmetic.products)), product)
            new = [part for parts in arithmetic.forward(inputs) for part in parts]
            own.put_carry(here, hs, (t,), new)
            return new, following

        first = own.carry(here, [refs[i] for i in start], ())
        jax.lax.fori_loop(0, own.steps, step, (first, own.load(here, refs, 0)))

    results = [own.timed_result(n, own.dtype) for n in arithmetic.leaves]
    results += [own.exchange(dtype) for dtype in own.factor_dtypes] * meets
    return list(map(own.cut_timed, own.run(kernel, results, "forward")[: len(arithmetic.leaves)]))


def gradients(
    loop: Loop, arithmetic: Arithmetic, target: Target, us: Sequence[Array], flat: tuple[Array, ...]
) -> list[Array]:
    """The gradients of the slots, see `slotwise`, given the products [T, *batch, .] of all stages."""
    return _Backward(loop, arithmetic, target, us, flat).gradients()


class _Backward(_Kernel):
    """The kernel of the gradient.

    Its state is the gradient of the carry, and sums of the gradients of inputs that all steps share.
    """

    def __init__(
        self, loop: Loop, arithmetic: Arithmetic, target: Target, us: Sequence[Array], flat: tuple[Array, ...]
    ):
        arrays, rest = loop.unflatten(flat)
        super().__init__(loop, arithmetic, arrays, target)
        n = len(arrays.carry)
        hs, d_last, d_hs = rest[:n], rest[n : 2 * n], rest[2 * n :]
        self.products = [self.put_timed(u) for u in us]
        self.first = [self.put_row(leaf) for leaf in arrays.carry]
        self.after = [self.put_timed(h) for h in hs]
        self.d_last = [self.put_row(leaf) if leaf.size else None for leaf in d_last]
        self.d_hs = [self.put_timed(leaf) if leaf.size else None for leaf in d_hs]

    def gradients(self) -> list[Array]:
        """Those of the slots."""
        kinds = slotwise(self.arithmetic)
        make = {"row": self.row_result, "timed": self.timed_result}
        results = [make[kind](slots, dtype) for kind, slots, dtype in kinds]
        parts = (2, self.rows // self.blocks.rows, self.blocks.across, self.blocks.rows, self.blocks.width)
        exchanged = [self.result(parts, carry_dtype(dtype)) for dtype in self.factor_dtypes] * self.meets
        found = self.run(self._kernel, [*results, *exchanged], "backward")[: len(results)]
        cut = {"row": self.cut_row, "timed": self.cut_timed}
        return [cut[kind](x) for (kind, _, _), x in zip(kinds, found, strict=True)]

    def _kernel(self, here, meeting, refs, out):
        arithmetic, out = self.arithmetic, list(out)
        slots = sum(arithmetic.leaves)
        d_start = [out.pop(0) for _ in arithmetic.leaves]
        widths = [arithmetic.dense, len(arithmetic.apart), *map(arithmetic.slots_of, arithmetic.timed)]
        each = [(ref, slot) for n in widths if n for ref in [out.pop(0)] for slot in range(n)]
        sums = [(ref, s) for i in arithmetic.summed for ref in [out.pop(0)] for s in range(arithmetic.slots_of(i))]
        weights = [self.weight(refs, here, k) for k in range(self.stages)]
        shared, first = self.load_shared(here, refs), self.carry(here, [refs[i] for i in self.first], ())
        zero = jnp.zeros_like(first[0])

        def load(t):
            """What the gradient of step t reads: inputs, products, the carry before it, cotangents."""
            pairs = zip(self.products, arithmetic.products, strict=True)
            products = [part for number, n in pairs for part in here.slots(refs[number], (t,), range(n))]
            earlier = self.carry(here, [refs[i] for i in self.after], (jnp.maximum(t - 1, 0),))
            given = [
                [] if number is None else here.slots(refs[number], (t,), range(n))
                for number, n in zip(self.d_hs, arithmetic.leaves, strict=True)
            ]
            return self.load(here, refs, t), products, earlier, given

        def step(s, state):
            t = self.steps - 1 - s
            flat, (loaded, products, earlier, given) = state
            following = load(jnp.maximum(t - 1, 0))
            cotangents = [d for parts, n in zip(given, arithmetic.leaves, strict=True) for d in parts or [0.0] * n]
            d_carry = [add(a, b) for a, b in zip(flat[:slots], cotangents, strict=True)]
            carry = [jnp.where(t == 0, a, b) for a, b in zip(first, earlier, strict=True)]
            transposed = functools.partial(self._transposed, here, meeting, weights, out, s)
            inputs = self.inputs(self.arithmetic.grouped(carry), loaded, shared, products)
            found = arithmetic.backward(inputs, self.arithmetic.grouped(d_carry), transposed)
            of_timed = [part for i in arithmetic.timed for part in found.others[i]]
            parts = [*found.slots[: arithmetic.dense], *(found.slots[i] for i in arithmetic.apart), *of_timed]
            for (ref, slot), part in zip(each, parts, strict=True):
                here.put(ref, (t,), slot, filled(part, zero))
            more = [filled(part, zero) for i in arithmetic.summed for part in found.others[i]]
            totals = [a + b for a, b in zip(flat[slots:], more, strict=True)]
            return [*(filled(part, zero) for leaf in found.carry for part in leaf), *totals], following

        last = [
            part
            for number, n in zip(self.d_last, arithmetic.leaves, strict=True)
            for part in ([zero] * n if number is None else here.slots(refs[number], (), range(n)))
        ]
        start = ([*last, *[zero] * len(sums)], load(self.steps - 1))
        state, _ = jax.lax.fori_loop(0, self.steps, step, start)
        self.put_carry(here, d_start, (), state[:slots])
        for (ref, slot), total in zip(sums, state[slots:], strict=True):
            here.put(ref, (), slot, total)

    def _transposed(self, here, meeting, weights, out, s, k, du):
        """The gradient of a factor from those of the slots of its product."""
        blocks, dtype = self.blocks, self.factor_dtypes[k]
        du = [here.clean(one) for one in du]
        joined = _joined([*du, *[jnp.zeros_like(du[0])] * (up_to_power(len(du)) - len(du))])
        if not self.meets:
            return _dot(joined, weights[k][0], dtype, transposed=True)
        parts, place = out[k], meeting.place(s)
        for n, w in enumerate(weights[k]):
            columns = pl.ds(n * blocks.chunk, blocks.chunk)
            parts[place, here.i, here.j, :, columns] = _dot(joined, w, dtype, transposed=True)
        meeting.wait(s, self.stages - 1 - k)
        return _sum([parts[place, here.i, q, :, here.columns(0)] for q in range(blocks.across)])
