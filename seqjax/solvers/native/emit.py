"""The C++ of a gated cell: its elementwise functions and their transposes, with loads and stores."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from seqjax.solvers.gated_loop.slots import Functions, Other, Unsupported
from seqjax.solvers.native.arithmetic import ADDED, Body, Parts, text


def usable(other: Other, units: int, dtype: Any) -> bool:
    """Whether the generated code can read an input. What it cannot read is allowed as long as no gate uses it."""
    size = int(np.prod(other.shape))
    if other.timed and not other.batched:
        return False
    return (
        other.dtype == bool
        if size == 1 and other.dtype != dtype
        else other.dtype == dtype and (size == 1 or other.shape[-1] % units == 0)
    )


class Source(NamedTuple):
    """The generated code, and what its caller must know.

    Attributes:
      code: C++.
      slots: the number of slots of `a`.
    """

    code: str
    slots: int


def generate(traced: Functions, others: Sequence[Other], dense: int, products: Sequence[int]) -> Source:
    """Write the C++ of a gated cell.

    Args:
      traced: the functions of the cell.
      others: those of their inputs that are neither carry nor product.
      dense: the number of slots of the projection; 0 if there is no such leaf.
      products: the number of slots of each recurrent product.

    Raises:
      Unsupported: for arithmetic that cannot be translated.
    """
    leaves, units, dtype, n_slots = traced.leaves, traced.units, traced.dtype, traced.n_slots
    if dtype not in (jnp.float32, jnp.float64):
        raise Unsupported(f"a carry of {dtype}, expected float32 or float64")
    stages, jaxprs = len(traced.functions) - 1, traced.jaxprs
    names = _input_names(leaves, n_slots, others, units, dtype)

    place, identity = _places(jaxprs, names, dense, products, units, len(leaves))
    slots = max(place, default=0) + 1
    merged = {  # slots of products that are added to the projection: the sum is in the place of the projection
        i for i in range(dense, n_slots) if place[i] in place[:dense]
    }
    writer = _Writer(traced, others, place, merged)
    code = [
        f"typedef {'float' if dtype == jnp.float32 else 'double'} real;",
        "#include <vector>",
        f"constexpr int SLOTS = {slots}, CARRIES = {len(leaves)}, STAGES = {stages}, OTHERS = {len(others)};",
        f"constexpr bool DENSE = {'true' if dense else 'false'};",
        f"constexpr int CARRY_WIDTH[] = {{{', '.join(str(leaf.shape[0] // units) for leaf in leaves)}}};",
        f"constexpr int CARRY_SLOTS = {sum(leaf.shape[0] // units for leaf in leaves)};",
        f"constexpr bool IDENTITY[] = {{{', '.join(str(i).lower() for i in identity)}}};",
        f"const std::vector<int> DENSE_SLOTS = {{{', '.join(str(p) for p in place[:dense])}}};",
    ]
    starts = np.cumsum([dense, *products])
    lists = [place[a:b] for a, b in pairwise(starts)]
    rows = ", ".join("{" + ", ".join(map(str, p)) + "}" for p in lists)
    code.append(f"const std::vector<int> WEIGHT_SLOTS[] = {{{rows}}};")
    code += writer.shared_table()
    code.append('#include "kernel.h"\nnamespace {')
    for k in range(stages):
        code += writer.forward(f"stage_{k}", jaxprs[k], out="v")
        code += writer.transposed(f"stage_{k}", k, given="dv", adds=True)
    code += writer.forward("gates", jaxprs[stages], out=None)
    code += writer.transposed("gates", stages, given=None, adds=False)
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
        if not usable(other, units, dtype):
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

    def __init__(self, traced: Functions, others, place, merged):
        self.traced, self.leaves, self.others, self.units = traced, traced.leaves, others, traced.units
        self.place, self.merged = place, merged
        self.names = _input_names(self.leaves, len(place), others, self.units, traced.dtype)
        # Gradients of inputs that all rows and steps share are accumulated in a separate place.
        self.shared = [
            (i, s)
            for i, other in enumerate(others)
            if other.perturbed and not other.batched
            for s, name in enumerate(self.names[len(self.leaves) + len(place) + i])
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
                out.append(f"const vec {name} = load(p.before({c}, t, row) + {s} * p.H + block * VL, n);")
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
                    row = f"(p.place(t, row) * {len(parts)} + {s}) * p.H + block * VL"
                    stores.append(f"store(p.carry[{c}] + {row}, {value}, n);")
        return [f"{head}{f', real* {out}' if out else ''}) {{", *self._indent(self._loads() + body.lines + stores), "}"]

    def transposed(self, name: str, function: int, given: str | None, adds: bool) -> list[str]:
        """The transpose: computes the gradients of the inputs from that of the results (in `d`, or in `dv`)."""
        leaves, first_other = len(self.leaves), len(self.leaves) + len(self.place)
        wanted = [i for i in range(first_other) if i - leaves not in self.merged]
        wanted += [i for i, o in enumerate(self.others, first_other) if o.perturbed and self.names[i] != [None]]

        jaxpr = self.traced.transposed(function, wanted)
        body = Body(self.units)
        cotangents: list[Parts] = []
        loads = self._loads()
        for c, result in enumerate(self.traced.jaxprs[function].out_avals):
            parts: Parts = []
            for s in range(max(1, body.slots(result.shape))):
                parts.append(f"vd{c}_{s}")
                if given:
                    loads.append(f"const vec vd{c}_{s} = load({given});")
                    continue
                n = len(self.names[c])
                loads.append(f"vec vd{c}_{s} = load(d[{c}] + (i * {n} + {s}) * p.ldv + block * VL);")
                row = f"(p.place(t, row) * {n} + {s}) * p.H + block * VL"
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
