"""From the elementwise functions of a gated cell to C++: their jaxprs, forward and transposed, written out.

The functions are traced for one sequence, so every array in them is [H] or n H long: n *slots*, each a vector of the
generated code, or a scalar of the row. Nothing else can occur in a gated cell that only does arithmetic between its
matrix products; whatever does occur is refused (`Unsupported`).
"""

from collections.abc import Callable, Sequence
from itertools import count, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from seqjax.core import Gated, Tree


class Unsupported(ValueError):
    """The cell does something for which there is no C++."""


class Other(NamedTuple):
    """An input of the elementwise functions that is no product: a mask, an inner bias, noise.

    Attributes:
      timed: whether it has a time axis.
      batched: whether it has the batch axes.
      shape: of one step and one sequence.
      dtype: bool or the dtype of the carry.
      perturbed: whether its gradient is asked for.
    """

    timed: bool
    batched: bool
    shape: tuple[int, ...]
    dtype: Any
    perturbed: bool


Part = str | float | bool  # a C++ expression (a vector or a scalar of the row), or a number
Parts = list[Part]

_UNARY = {
    "exp": "exp_",
    "log": "log_",
    "log1p": "log1p_",
    "expm1": "expm1_",
    "tanh": "tanh_",
    "logistic": "logistic_",
    "sqrt": "sqrt_",
    "rsqrt": "rsqrt_",
    "erf": "erf_",
    "sin": "sin_",
    "cos": "cos_",
    "abs": "abs_",
    "sign": "sign_",
}
_BINARY = {"add": "+", "add_any": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_LOGIC = {"and": "&", "or": "|", "xor": "^"}
_INLINE = ("pjit", "jit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call")


def _number(x: float) -> str:
    if x != x:
        return "real(NAN)"
    if x in (float("inf"), float("-inf")):
        return "real(INFINITY)" if x > 0 else "real(-INFINITY)"
    return f"real({x!r})"


def _text(part: Part) -> str:
    if isinstance(part, str):
        return part
    return str(part).lower() if isinstance(part, bool) else _number(part)


class _Body:
    """The lines of one function: single assignments. A vector is called v.., a scalar of the row s.."""

    def __init__(self, units: int):
        self.units = units
        self.lines: list[str] = []
        self.uses: dict[str, list[tuple[str, str]]] = {}  # of inputs: the lines' operation and their other operand
        self._count = count()

    def line(self, expression: str, vector: bool, kind: str = "auto") -> str:
        name = f"{'v' if vector else 's'}{next(self._count)}"
        self.lines.append(f"const {kind} {name} = {expression};")
        return name

    def slots(self, shape: Sequence[int]) -> int:
        """How many slots an array of this shape has; 0 for a scalar."""
        if not shape:
            return 0
        if shape[-1] % self.units:
            raise Unsupported(f"an array of shape {tuple(shape)} is no multiple of the {self.units} units")
        return int(np.prod(shape)) // self.units

    @staticmethod
    def is_vector(part: Part) -> bool:
        return isinstance(part, str) and part[0] == "v"

    def _use(self, operation: str, a: Part, b: Part = "") -> None:
        for one, other in ((a, b), (b, a)):
            if isinstance(one, str):
                self.uses.setdefault(one, []).append((operation, _text(other)))

    def binary(self, name: str, a: Part, b: Part) -> Part:
        """Arithmetic of two parts; zeros vanish, so that what is not asked for costs nothing."""
        self._use(name, a, b)
        zero_a, zero_b = (not isinstance(p, str) and p == 0 for p in (a, b))
        if name in ("add", "add_any"):
            if zero_a or zero_b:
                return b if zero_a else a
        elif name == "sub" and zero_b:
            return a
        elif name == "mul":
            if zero_a or zero_b:
                return 0.0
            if a == 1 or b == 1:
                return b if a == 1 else a
        return self.line(f"{_text(a)} {_BINARY[name]} {_text(b)}", self.is_vector(a) or self.is_vector(b))

    def unary(self, expression: str, a: Part) -> Part:
        self._use("unary", a)
        if self.is_vector(a):
            return self.line(expression.format(a), True)
        return self.line(f"({expression.format(f'splat({_text(a)})')})[0]", False)

    def select(self, which: Part, off: Part, on: Part) -> Part:
        for part in (which, off, on):
            self._use("select", part)
        if off == on:
            return off
        if not any(map(self.is_vector, (which, off, on))):
            return self.line(f"{_text(which)} ? {_text(on)} : {_text(off)}", False)
        on, off = (_text(p) if self.is_vector(p) else f"splat({_text(p)})" for p in (on, off))
        return self.line(f"pick({_text(which)}, {on}, {off})", True)

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Parts]) -> list[Parts]:
        """Write out a jaxpr; returns the parts of its results."""
        env: dict[Any, Parts] = {}

        def read(atom) -> Parts:
            if isinstance(atom, jex.Literal):
                return [bool(atom.val) if atom.aval.dtype == bool else float(atom.val)] * max(
                    1, self.slots(atom.aval.shape)
                )
            return env[atom]

        for var, value in zip(jaxpr.constvars, consts, strict=True):
            if np.size(value) != 1:
                raise Unsupported(f"a constant array of shape {np.shape(value)}: give it to z, in a Const")
            env[var] = [np.ravel(value)[0].item()] * max(1, self.slots(np.shape(value)))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        for eqn in jaxpr.eqns:
            results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: list[Parts]) -> list[Parts]:
        name, params = eqn.primitive.name, eqn.params
        shape = eqn.outvars[0].aval.shape
        n = max(1, self.slots(shape))
        wide = [p * n if len(p) == 1 else p for p in ins]
        if name in _BINARY:
            return [[self.binary(name, a, b) for a, b in zip(*wide, strict=True)]]
        if name in _COMPARE or name in _LOGIC:
            sign = (_COMPARE | _LOGIC)[name]
            out = []
            for a, b in zip(*wide, strict=True):
                self._use(name, a, b)
                out.append(self.line(f"{_text(a)} {sign} {_text(b)}", self.is_vector(a) or self.is_vector(b)))
            return [out]
        if name in _UNARY:
            return [[self.unary(_UNARY[name] + "({})", a) for a in wide[0]]]
        if name == "neg":
            return [[-a if isinstance(a, float) else self.unary("-{}", a) for a in wide[0]]]
        if name == "not":
            return [[self.line(f"{'~' if self.is_vector(a) else '!'}{_text(a)}", self.is_vector(a)) for a in wide[0]]]
        if name in ("square", "integer_pow"):
            return [[self._power(a, params.get("y", 2)) for a in wide[0]]]
        if name in ("max", "min"):
            return [[self._extreme(name, a, b) for a, b in zip(*wide, strict=True)]]
        if name == "select_n":
            if len(ins) != 3:
                raise Unsupported("select_n among more than two")
            return [[self.select(*parts) for parts in zip(*wide, strict=True)]]
        if name in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims"):
            return [self._reshape(eqn, ins[0], n)]
        if name in ("copy", "copy_p", "stop_gradient", "optimization_barrier", "reduce_precision"):
            return [ins[0]]
        if name == "convert_element_type":
            return [[self._convert(a, eqn) for a in ins[0]]]
        if name == "slice":
            return [self._slice(eqn, ins[0])]
        if name == "split":
            return self._split(eqn, ins[0])
        if name == "concatenate":
            if len(shape) > 1 and params["dimension"] != 0:
                raise Unsupported("concatenation within rows")
            return [[part for parts in ins for part in parts]]
        if name == "pad":
            return [self._pad(eqn, ins)]
        if name in _INLINE:
            inner = params.get("jaxpr", params.get("call_jaxpr"))
            closed = inner if hasattr(inner, "consts") else jex.ClosedJaxpr(inner, ())
            return self.run(closed.jaxpr, closed.consts, ins)
        raise Unsupported(f"the primitive {name}")

    def _power(self, a: Part, y: int) -> Part:
        if not 1 <= abs(y) <= 8:
            raise Unsupported(f"the power {y}")
        power = a
        for _ in range(abs(y) - 1):
            power = self.binary("mul", power, a)
        return power if y > 0 else self.binary("div", 1.0, power)

    def _extreme(self, name: str, a: Part, b: Part) -> Part:
        self._use(name, a, b)
        a_, b_ = (_text(p) if self.is_vector(p) else f"splat({_text(p)})" for p in (a, b))
        vector = self.is_vector(a) or self.is_vector(b)
        return self.line(f"{name}_({a_}, {b_}){'' if vector else '[0]'}", vector)

    def _convert(self, a: Part, eqn: Any) -> Part:
        before, after = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
        if before == after or (isinstance(a, float) and jnp.issubdtype(after, jnp.floating)):
            return a
        if before == bool and jnp.issubdtype(after, jnp.floating):
            return self.select(a, 0.0, 1.0)
        raise Unsupported(f"a conversion from {before} to {after}")

    def _reshape(self, eqn: Any, parts: Parts, n: int) -> Parts:
        """Shapes do not matter, only the order of the slots; and a scalar may be repeated."""
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
        row = int(np.prod(shape[1:]))  # of one index of the first axis
        if (start[0] * row) % self.units or (stop[0] * row) % self.units:
            raise Unsupported("a slice within a slot")
        return parts[start[0] * row // self.units : stop[0] * row // self.units]

    def _split(self, eqn: Any, parts: Parts) -> list[Parts]:
        if eqn.params["axis"] != 0:
            raise Unsupported("a split of columns")
        out, place = [], 0
        for var in eqn.outvars:
            n = self.slots(var.aval.shape)
            out.append(parts[place : place + n])
            place += n
        return out

    def _pad(self, eqn: Any, ins: list[Parts]) -> Parts:
        config, shape = eqn.params["padding_config"], eqn.invars[0].aval.shape
        (low, high, inside), *rest = config
        row = int(np.prod(shape[1:]))
        if inside or any(any(c) for c in rest) or low < 0 or high < 0 or (low * row) % self.units:
            raise Unsupported("a pad within a slot")
        fill = ins[1]
        return fill * (low * row // self.units) + ins[0] + fill * (high * row // self.units)


class Source(NamedTuple):
    """The generated code, and what a caller of it must know.

    Attributes:
      code: C++.
      slots: the number of slots of `a`.
    """

    code: str
    slots: int


class Traced(NamedTuple):
    """A function of (carry, z, products) for one sequence, flattened: leaves in, leaves out."""

    f: Callable[..., list[Any]]
    avals: list[jax.ShapeDtypeStruct]


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
      dense: the slots of the projection, or None if there is no such leaf.
      products: the slots of each recurrent product.
      others: the other leaves of z, in the order that `rebuild` takes.

    Raises:
      Unsupported: for arithmetic that cannot be written out.
    """
    leaves, carry_tree = jax.tree.flatten(carry)
    if len(leaves[0].shape) != 1:
        raise Unsupported(f"a carry of shape {leaves[0].shape}, expected [H]")
    units, dtype = leaves[0].shape[0], leaves[0].dtype
    if dtype not in (jnp.float32, jnp.float64) or any(leaf.dtype != dtype for leaf in leaves):
        raise Unsupported(f"a carry of {[str(leaf.dtype) for leaf in leaves]}, expected all float32 or all float64")
    if any(len(leaf.shape) != 1 or leaf.shape[0] % units for leaf in leaves):
        raise Unsupported(f"a carry of shapes {[leaf.shape for leaf in leaves]}, expected multiples of the first")
    for other in others:
        if other.dtype not in (jnp.dtype(bool), dtype) or (other.dtype == bool and other.shape):
            raise Unsupported(f"an input {other.dtype}{list(other.shape)} of the gates")
        if other.timed and not other.batched:
            raise Unsupported("an input with a time axis and without a batch axis")
        if other.perturbed and not other.shape:
            raise Unsupported("the gradient of an input that is one number a sequence")
    stages = len(gated.stages)

    # The functions of flat inputs: the carry, the slots of the projection, those of each product, the others.
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
    names = _input_names(leaves, n_slots, others, units)

    place, identity = _places(jaxprs, names, dense or 0, products, units, len(leaves))
    slots = max(place) + 1
    merged_zero = {  # a product that is added to the projection: the sum comes in the place of the projection
        i for i in range(dense or 0, n_slots) if place[i] in place[: dense or 0]
    }
    writer = _Writer(leaves, others, units, slots, place, merged_zero, dense or 0)
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
    lists = [place[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
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
        out.append(f"template <class N> inline void {name}(int k, const Problem& p, long t, long row, long block, N n,")
        out.append(f"                                      {more}) {{")
        suffix = name.removeprefix("stage")
        out += [f"  if (k == {k}) return stage_{k}{suffix}({given});" for k in range(stages)]
        out.append("}")
    return out


def _input_names(leaves, n_slots: int, others: Sequence[Other], units: int) -> list[Parts]:
    """Names of the parts of every flat input."""
    names: list[Parts] = [[f"vh{c}_{s}" for s in range(leaf.shape[0] // units)] for c, leaf in enumerate(leaves)]
    names += [[f"va{i}"] for i in range(n_slots)]
    for i, other in enumerate(others):
        n = int(np.prod(other.shape)) // units if other.shape else 0
        names.append([f"vo{i}_{s}" for s in range(n)] if n else [f"so{i}"])
    return names


def _places(jaxprs, names, dense: int, products, units: int, carries: int) -> tuple[list[int], list[bool]]:
    """Where each slot of the projection and of the products lies in `a`; and which stages hand the carry on as it is.

    A slot of a product that is only ever added to one slot of the projection shares its place: the matrix product then
    adds to it in memory, and one array is kept instead of two.
    """
    n_slots = dense + sum(products)
    slot_names = [names[carries + i][0] for i in range(n_slots)]
    partners: dict[str, set[tuple[str, str]]] = {name: set() for name in slot_names}
    identity = []
    for jaxpr in jaxprs:
        body = _Body(units)
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


class _Writer:
    """Writes functions around the bodies: loads before, stores after."""

    def __init__(self, leaves, others, units, slots, place, merged_zero, dense):
        self.leaves, self.others, self.units = leaves, others, units
        self.slots, self.place, self.merged_zero, self.dense = slots, place, merged_zero, dense
        self.names = _input_names(leaves, len(place), others, units)
        # The gradients of inputs that all rows and steps share are summed up in a place of their own.
        self.shared = [
            (i, s)
            for i, other in enumerate(others)
            if other.perturbed and not other.batched
            for s in range(len(self.names[len(leaves) + len(place) + i]))
        ]

    def shared_table(self) -> list[str]:
        rows = ", ".join(f"{{{i}, {s}}}" for i, s in self.shared) or "{0, 0}"
        return [
            f"constexpr int SHARED = {len(self.shared)};",
            f"struct Place {{ int other; long slot; }};\nconst Place SHARED_PLACE[] = {{{rows}}};",
        ]

    def _inputs(self) -> list[Parts]:
        inputs = list(self.names)
        for i in self.merged_zero:
            inputs[len(self.leaves) + i] = [0.0]
        return inputs

    def _loads(self) -> list[str]:
        out = []
        for c, parts in enumerate(self.names[: len(self.leaves)]):
            for s, name in enumerate(parts):
                out.append(
                    f"const vec {name} = load(p.before({c}, t) + (row * {len(parts)} + {s}) * p.H + block * VL, n);"
                )
        for i, place in enumerate(self.place):
            if i not in self.merged_zero:
                name = self.names[len(self.leaves) + i][0]
                out.append(f"const vec {name} = load(a + (block * SLOTS + {place}) * VL);")
        for i, other in enumerate(self.others):
            parts = self.names[len(self.leaves) + len(self.place) + i]
            for s, name in enumerate(parts):
                if other.shape:
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
        """`name(p, t, row, block, n, a[, v])`: results to `v`, or to the carry after step t."""
        body = _Body(self.units)
        results = body.run(jaxpr.jaxpr, jaxpr.consts, self._inputs())
        head = f"template <class N> inline void {name}(const Problem& p, long t, long row, long block, N n, const real* a"
        stores = []
        for c, parts in enumerate(results):
            if out is None and len(parts) != len(self.names[c]):
                raise Unsupported("a carry that changes its shape")
            for s, part in enumerate(parts):
                value = part if body.is_vector(part) else f"splat({_text(part)})"
                if out:
                    stores.append(f"store({out}, {value});")
                else:
                    row = f"((t * p.B + row) * {len(parts)} + {s}) * p.H + block * VL"
                    stores.append(f"store(p.carry[{c}] + {row}, {value}, n);")
        return [f"{head}{f', real* {out}' if out else ''}) {{", *self._indent(self._loads() + body.lines + stores), "}"]

    def transposed(self, name: str, f, avals, given: str | None, adds: bool) -> list[str]:
        """The transpose: from the gradient of the results (in `d`, or in `dv`) to those of the inputs."""
        leaves, first_other = len(self.leaves), len(self.leaves) + len(self.place)
        wanted = [i for i in range(first_other) if i - leaves not in self.merged_zero]
        wanted += [first_other + i for i, o in enumerate(self.others) if o.perturbed]

        def pull(inputs, cotangents):
            def of(*chosen):
                full = list(inputs)
                for i, value in zip(wanted, chosen, strict=True):
                    full[i] = value
                return f(*full)

            return jax.vjp(of, *(inputs[i] for i in wanted))[1](cotangents)

        results = jax.eval_shape(f, *avals)
        jaxpr = jax.make_jaxpr(pull)(list(avals), list(results))
        body = _Body(self.units)
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
        # An output of the elementwise functions in the padding is never read, but an infinite one must not be summed.
        gradients = body.run(jaxpr.jaxpr, jaxpr.consts, [*self._inputs(), *cotangents])
        stores = []
        for i, parts in zip(wanted, gradients, strict=True):
            for s, part in enumerate(parts):
                value = part if body.is_vector(part) else f"splat({_text(part)})"
                plain = not adds
                if i < leaves:
                    to = f"d[{i}] + (i * {len(parts)} + {s}) * p.ldv + block * VL"
                elif i < first_other:
                    to = f"da + (block * SLOTS + {self.place[i - leaves]}) * VL"
                elif (i - first_other, s) in self.shared:
                    to = f"shared + ({self.shared.index((i - first_other, s))} * p.blocks + block) * VL"
                    plain = False
                else:
                    other = i - first_other
                    to = f"p.d_other[{other}] + {self._offset(self.others[other], len(parts), s)}"
                    stores.append(f"store({to}, load({to}, n) + {value}, n);")
                    continue
                if plain:
                    stores.append(f"store({to}, {value});")
                elif part != 0.0:
                    stores.append(f"store({to}, load({to}) + {value});")
        head = (
            f"template <class N> inline void {name}_transposed(const Problem& p, long t, long row, long block, N n, "
            f"const real* a, real* da, real* const* d, long i, real* shared{f', const real* {given}' if given else ''}) {{"
        )
        return [head, *self._indent(loads + body.lines + stores), "}"]

    @staticmethod
    def _indent(lines: list[str]) -> list[str]:
        return ["  " + line for line in lines]


def ambiguous_shapes(shapes: Sequence[Sequence[tuple[int, ...]]]) -> Any:
    """All ways to choose one of the candidate shapes of each input."""
    return product(*shapes)
