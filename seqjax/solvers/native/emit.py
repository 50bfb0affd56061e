"""The C++ of a gated cell: its elementwise functions and their transposes, with loads and stores."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.arrays import Tree
from seqjax.hints import Gated
from seqjax.solvers.native.arithmetic import ADDED, Body, Parts, Unsupported, text


class Other(NamedTuple):
    """An input of the elementwise functions that is not a product: a mask, an inner bias, noise.

    Attributes:
      timed: whether it has a time axis.
      batched: whether it has the batch axes.
      shape: of one step and one sequence.
      dtype: bool or the dtype of the carry.
      perturbed: whether its gradient is needed.
    """

    timed: bool
    batched: bool
    shape: tuple[int, ...]
    dtype: Any
    perturbed: bool

    def usable(self, units: int, dtype: Any) -> bool:
        """Whether the generated code can read it. What it cannot read is allowed as long as no gate uses it."""
        size = int(np.prod(self.shape))
        if self.timed and not self.batched:
            return False
        return (
            self.dtype == bool
            if size == 1 and self.dtype != dtype
            else self.dtype == dtype and (size == 1 or self.shape[-1] % units == 0)
        )


class Source(NamedTuple):
    """The generated code, and what its caller must know.

    Attributes:
      code: C++.
      slots: the number of slots of `a`.
    """

    code: str
    slots: int


def generate(
    gated: Gated,
    carry: Tree,
    rebuild: Callable[[Any, list[Any]], Tree],
    dense: int | None,
    products: Sequence[int],
    others: Sequence[Other],
) -> Source:
    """Write the C++ of a gated cell.

    Args:
      gated: the hint.
      carry: shapes and dtypes of the carry of one sequence; the first leaf is [H].
      rebuild: `(dense, others) -> z`, of arrays for one step and one sequence.
      dense: the number of slots of the projection, or None if there is no such leaf.
      products: the number of slots of each recurrent product.
      others: the other leaves of z, in the order of `rebuild`.

    Raises:
      Unsupported: for arithmetic that cannot be translated.
    """
    leaves, carry_tree = jax.tree.flatten(carry)
    if len(leaves[0].shape) != 1:
        raise Unsupported(f"a carry of shape {leaves[0].shape}, expected [H]")
    units, dtype = leaves[0].shape[0], leaves[0].dtype
    if dtype not in (jnp.float32, jnp.float64) or any(leaf.dtype != dtype for leaf in leaves):
        raise Unsupported(f"a carry of {[str(leaf.dtype) for leaf in leaves]}, expected all float32 or all float64")
    if any(len(leaf.shape) != 1 or leaf.shape[0] % units for leaf in leaves):
        raise Unsupported(f"a carry of shapes {[leaf.shape for leaf in leaves]}, expected multiples of the first")
    stages = len(gated.stages)

    # Functions take flat inputs: the carry, the slots of the projection, those of each product, the others.
    def split(flat):
        flat = list(flat)
        take = lambda n: [flat.pop(0) for _ in range(n)]  # noqa: E731
        h = carry_tree.unflatten(take(len(leaves)))
        z0 = jnp.concatenate(take(dense)) if dense else None
        us = tuple(jnp.concatenate(take(n)) for n in products)
        return h, rebuild(z0, take(len(others))), us

    slot = jax.ShapeDtypeStruct((units,), dtype)
    n_slots = (dense or 0) + sum(products)
    avals = [jax.ShapeDtypeStruct(leaf.shape, dtype) for leaf in leaves]
    avals += [slot] * n_slots
    avals += [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in others]

    def stage(k):
        def f(*flat):
            h, z, us = split(flat)
            return [gated.stages[k](h, z, us[:k])]

        return f

    def gates(*flat):
        return jax.tree.leaves(gated.gates(*split(flat)))

    functions = [*(stage(k) for k in range(stages)), gates]
    jaxprs = [jax.make_jaxpr(f)(*avals) for f in functions]
    names = _input_names(leaves, n_slots, others, units, dtype)

    place, identity = _places(jaxprs, names, dense or 0, products, units, len(leaves))
    slots = max(place, default=0) + 1
    merged = {  # slots of products that are added to the projection: the sum is in the place of the projection
        i for i in range(dense or 0, n_slots) if place[i] in place[: dense or 0]
    }
    writer = _Writer(leaves, others, units, place, merged)
    code = [
        f"typedef {'float' if dtype == jnp.float32 else 'double'} real;",
        "#include <vector>",
        f"constexpr int SLOTS = {slots}, CARRIES = {len(leaves)}, STAGES = {stages}, OTHERS = {len(others)};",
        f"constexpr bool DENSE = {'true' if dense else 'false'};",
        f"constexpr int CARRY_WIDTH[] = {{{', '.join(str(leaf.shape[0] // units) for leaf in leaves)}}};",
        f"constexpr int CARRY_SLOTS = {sum(leaf.shape[0] // units for leaf in leaves)};",
        f"constexpr bool IDENTITY[] = {{{', '.join(str(i).lower() for i in identity)}}};",
        f"const std::vector<int> DENSE_SLOTS = {{{', '.join(str(p) for p in place[: dense or 0])}}};",
    ]
    starts = np.cumsum([dense or 0, *products])
    lists = [place[a:b] for a, b in pairwise(starts)]
    rows = ", ".join("{" + ", ".join(map(str, p)) + "}" for p in lists)
    code.append(f"const std::vector<int> WEIGHT_SLOTS[] = {{{rows}}};")
    code += writer.shared_table()
    code.append('#include "kernel.h"\nnamespace {')
    for k in range(stages):
        code += writer.forward(f"stage_{k}", jaxprs[k], out="v")
        code += writer.transposed(f"stage_{k}", functions[k], avals, given="dv", adds=True)
    code += writer.forward("gates", jaxprs[stages], out=None)
    code += writer.transposed("gates", gates, avals, given=None, adds=False)
    code += _dispatch(stages)
    code.append('}  // namespace\n#include "recurrence.h"\n')
    return Source("\n".join(code), slots)


def _dispatch(stages: int) -> list[str]:
    """`stage(k, ...)` and `stage_transposed(k, ...)`."""
    out = []
    for name, more, given in (
        ("stage", "const real* a, real* v", "p, t, row, block, n, a, v"),
        (
            "stage_transposed",
            "const real* a, real* da, real* const* d, long i, real* shared, const real* dv",
            "p, t, row, block, n, a, da, d, i, shared, dv",
        ),
    ):
        out.append(f"{_HEAD.format(name).replace('(const', '(int k, const')}, {more}) {{")
        suffix = name.removeprefix("stage")
        out += [f"  if (k == {k}) return stage_{k}{suffix}({given});" for k in range(stages)]
        out.append("}")
    return out


def _input_names(leaves, n_slots: int, others: Sequence[Other], units: int, dtype: Any) -> list[Any]:
    """Names of the parts of every flat input; None for an input that the code cannot read."""
    names: list[Any] = [[f"vh{c}_{s}" for s in range(leaf.shape[0] // units)] for c, leaf in enumerate(leaves)]
    names += [[f"va{i}"] for i in range(n_slots)]
    for i, other in enumerate(others):
        if not other.usable(units, dtype):
            names.append([None])
        elif int(np.prod(other.shape)) == 1 and (units > 1 or not other.shape):
            names.append([f"so{i}"])
        else:
            names.append([f"vo{i}_{s}" for s in range(int(np.prod(other.shape)) // units)])
    return names


def _places(jaxprs, names, dense: int, products, units: int, carries: int) -> tuple[list[int], list[bool]]:
    """The place of each slot of the projection and of the products in `a`; and which stages return the carry unchanged.

    A slot of a product that is only ever added to one slot of the projection shares its place: the matrix product then
    adds to it in memory, and one array is kept instead of two.
    """
    n_slots = dense + sum(products)
    slot_names = [names[carries + i][0] for i in range(n_slots)]
    partners: dict[str, set[tuple[str, str]]] = {name: set() for name in slot_names}
    identity = []
    for jaxpr in jaxprs:
        body = Body(units)
        results = body.run(jaxpr.jaxpr, jaxpr.consts, names)
        identity.append(results[0] == names[0])
        for name in slot_names:
            partners[name].update(body.uses.get(name, ()))
            if any(name in parts for parts in results):
                partners[name].add(("result", ""))
    place = list(range(dense))
    extra = dense
    taken: set[int] = set()
    for name in slot_names[dense:]:
        twin = next(
            (
                i
                for i, other in enumerate(slot_names[:dense])
                if i not in taken and partners[name] == {("add", other)} and partners[other] == {("add", name)}
            ),
            None,
        )
        if twin is None:
            place.append(extra)
            extra += 1
        else:
            place.append(twin)
            taken.add(twin)
    return place, identity[:-1]


_HEAD = "template <class N> inline void {}(const Problem& p, long t, long row, long block, N n"


class _Writer:
    """Writes the functions around the bodies: loads before, stores after."""

    def __init__(self, leaves, others, units, place, merged):
        self.leaves, self.others, self.units = leaves, others, units
        self.place, self.merged = place, merged
        self.names = _input_names(leaves, len(place), others, units, leaves[0].dtype)
        # Gradients of inputs that all rows and steps share are accumulated in a separate place.
        self.shared = [
            (i, s)
            for i, other in enumerate(others)
            if other.perturbed and not other.batched
            for s, name in enumerate(self.names[len(leaves) + len(place) + i])
            if name is not None
        ]

    def shared_table(self) -> list[str]:
        rows = ", ".join(f"{{{i}, {s}}}" for i, s in self.shared) or "{0, 0}"
        return [
            f"constexpr int SHARED = {len(self.shared)};",
            f"struct Place {{ int other; long slot; }};\nconst Place SHARED_PLACE[] = {{{rows}}};",
        ]

    def _inputs(self) -> list[Parts]:
        inputs = list(self.names)
        for i in self.merged:
            inputs[len(self.leaves) + i] = [ADDED]
        return inputs

    def _loads(self) -> list[str]:
        out = []
        for c, parts in enumerate(self.names[: len(self.leaves)]):
            for s, name in enumerate(parts):
                out.append(
                    f"const vec {name} = load(p.before({c}, t) + (row * {len(parts)} + {s}) * p.H + block * VL, n);"
                )
        for i, place in enumerate(self.place):
            if i not in self.merged:
                name = self.names[len(self.leaves) + i][0]
                out.append(f"const vec {name} = load(a + (block * SLOTS + {place}) * VL);")
        for i, other in enumerate(self.others):
            parts = self.names[len(self.leaves) + len(self.place) + i]
            for s, name in enumerate(parts):
                if name is None:
                    continue
                if name[0] == "v":
                    pointer = f"static_cast<const real*>(p.other[{i}]) + {self._offset(other, len(parts), s)}"
                    out.append(f"const vec {name} = load({pointer}, n);")
                else:
                    kind = "bool" if other.dtype == bool else "real"
                    index = "t * p.B + row" if other.timed else "row" if other.batched else "0"
                    out.append(f"const {kind} {name} = static_cast<const {kind}*>(p.other[{i}])[{index}];")
        return out

    @staticmethod
    def _offset(other: Other, n: int, s: int) -> str:
        row = "t * p.B + row" if other.timed else "row" if other.batched else "0"
        return f"(({row}) * {n} + {s}) * p.H + block * VL"

    def forward(self, name: str, jaxpr, out: str | None) -> list[str]:
        """`name(p, t, row, block, n, a[, v])`: stores the results in `v`, or in the carry after step t."""
        body = Body(self.units)
        results = body.run(jaxpr.jaxpr, jaxpr.consts, self._inputs())
        head = f"{_HEAD.format(name)}, const real* a"
        stores = []
        for c, parts in enumerate(results):
            if out is None and len(parts) != len(self.names[c]):
                raise Unsupported("a carry that changes shape")
            for s, part in enumerate(parts):
                value = part if body.is_vector(part) else f"splat({text(part)})"
                if out:
                    stores.append(f"store({out}, {value});")
                else:
                    row = f"((t * p.B + row) * {len(parts)} + {s}) * p.H + block * VL"
                    stores.append(f"store(p.carry[{c}] + {row}, {value}, n);")
        return [f"{head}{f', real* {out}' if out else ''}) {{", *self._indent(self._loads() + body.lines + stores), "}"]

    def transposed(self, name: str, f, avals, given: str | None, adds: bool) -> list[str]:
        """The transpose: computes the gradients of the inputs from that of the results (in `d`, or in `dv`)."""
        leaves, first_other = len(self.leaves), len(self.leaves) + len(self.place)
        wanted = [i for i in range(first_other) if i - leaves not in self.merged]
        wanted += [i for i, o in enumerate(self.others, first_other) if o.perturbed and self.names[i] != [None]]

        def pull(inputs, cotangents):
            def of(*chosen):
                full = list(inputs)
                for i, value in zip(wanted, chosen, strict=True):
                    full[i] = value
                return f(*full)

            return jax.vjp(of, *(inputs[i] for i in wanted))[1](cotangents)

        results = jax.eval_shape(f, *avals)
        jaxpr = jax.make_jaxpr(pull)(list(avals), list(results))
        body = Body(self.units)
        cotangents: list[Parts] = []
        loads = self._loads()
        for c, result in enumerate(results):
            parts: Parts = []
            for s in range(max(1, body.slots(result.shape))):
                parts.append(f"vd{c}_{s}")
                if given:
                    loads.append(f"const vec vd{c}_{s} = load({given});")
                    continue
                n = len(self.names[c])
                loads.append(f"vec vd{c}_{s} = load(d[{c}] + (i * {n} + {s}) * p.ldv + block * VL);")
                row = f"((t * p.B + row) * {n} + {s}) * p.H + block * VL"
                loads.append(f"if (p.d_carry[{c}]) vd{c}_{s} += load(p.d_carry[{c}] + {row}, n);")
            cotangents.append(parts)
        gradients = body.run(jaxpr.jaxpr, jaxpr.consts, [*self._inputs(), *cotangents])
        stores = []
        for i, parts in zip(wanted, gradients, strict=True):
            for s, part in enumerate(parts):
                if part != 0.0 and self.names[i][0][0] == "s":
                    raise Unsupported("the gradient of an input that is one number per sequence")
                value = part if body.is_vector(part) else f"splat({text(part)})"
                plain = not adds
                if i < leaves:
                    to = f"d[{i}] + (i * {len(parts)} + {s}) * p.ldv + block * VL"
                elif i < first_other:
                    to = f"da + (block * SLOTS + {self.place[i - leaves]}) * VL"
                elif (i - first_other, s) in self.shared:
                    to = f"shared + ({self.shared.index((i - first_other, s))} * p.blocks + block) * VL"
                    plain = False
                elif part != 0.0:
                    other = i - first_other
                    to = f"p.d_other[{other}] + {self._offset(self.others[other], len(parts), s)}"
                    stores.append(f"store({to}, load({to}, n) + {value}, n);")
                    continue
                else:
                    continue
                if plain:
                    stores.append(f"store({to}, {value});")
                elif part != 0.0:
                    stores.append(f"store({to}, load({to}) + {value});")
        head = (
            f"{_HEAD.format(f'{name}_transposed')}, const real* a, real* da, real* const* d, long i, real* shared"
            f"{f', const real* {given}' if given else ''}) {{"
        )
        return [head, *self._indent(loads + body.lines + stores), "}"]

    @staticmethod
    def _indent(lines: list[str]) -> list[str]:
        return ["  " + line for line in lines]
