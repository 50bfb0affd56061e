"""Translation of the jaxpr of an elementwise function into lines of C++.

A slot is a vector of the generated code. Nothing but slots and scalars of the row occurs in a gated cell that only does
arithmetic between its matrix products; everything else is refused (`Unsupported`).
"""

from collections.abc import Sequence
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.solvers.gated_loop.slots import Slots, Unsupported

Part = str | float | bool  # a C++ expression (a vector or a scalar of the row), or a number
Parts = list[Part]

ADDED = "added"  # a part that is only ever added to another one, which already holds the sum

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
    "erfc": "erfc_",
    "sin": "sin_",
    "cos": "cos_",
    "abs": "abs_",
    "sign": "sign_",
}
_BINARY = {"add": "+", "add_any": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_LOGIC = {"and": "&", "or": "|", "xor": "^"}
_ELEMENTWISE = {*_UNARY, *_BINARY, *_COMPARE, *_LOGIC}
_ELEMENTWISE |= {
    "neg",
    "not",
    "square",
    "one_minus_square",
    "integer_pow",
    "max",
    "min",
    "select_n",
    "convert_element_type",
}


def number(x: float) -> str:
    """A number in C++."""
    if x != x:
        return "real(NAN)"
    if x in (float("inf"), float("-inf")):
        return "real(INFINITY)" if x > 0 else "real(-INFINITY)"
    return f"real({x!r})"


def text(part: Part | None) -> str:
    """A part in C++; None stands for an input that cannot be read."""
    if part is None:
        raise Unsupported("an input of the gates that is neither one number per sequence nor a multiple of the units")
    if isinstance(part, str):
        return part
    return str(part).lower() if isinstance(part, bool) else number(part)


class Body(Slots):
    """The lines of one function, in single assignment form. Vectors are named v.., scalars of the row s.."""

    def __init__(self, units: int):
        super().__init__(units)
        self.lines: list[str] = []
        self.uses: dict[str, list[tuple[str, str]]] = {}  # of inputs: each use's operation and other operand
        self._count = count()

    def line(self, expression: str, vector: bool) -> str:
        """Assign an expression to a new name, and return the name."""
        name = f"{'v' if vector else 's'}{next(self._count)}"
        self.lines.append(f"const auto {name} = {expression};")
        return name

    @staticmethod
    def is_vector(part: Part) -> bool:
        """Whether a part has one value per unit."""
        return isinstance(part, str) and part[0] == "v"

    def _use(self, operation: str, a: Part, b: Part = "") -> None:
        for one, other in ((a, b), (b, a)):
            if isinstance(one, str):
                self.uses.setdefault(one, []).append((operation, text(other)))

    def binary(self, name: str, a: Part, b: Part) -> Part:
        """Arithmetic of two parts. x * 1 becomes x, but x + 0 and x * 0 are kept, for -0, NaN and infinity."""
        self._use(name, a, b)
        if name in ("add", "add_any") and ADDED in (a, b):
            return b if a == ADDED else a
        if name == "mul" and 1.0 in (a, b):
            return b if a == 1.0 else a
        return self.line(f"{text(a)} {_BINARY[name]} {text(b)}", self.is_vector(a) or self.is_vector(b))

    def unary(self, expression: str, a: Part) -> Part:
        """A function of one part."""
        self._use("unary", a)
        if self.is_vector(a):
            return self.line(expression.format(a), True)
        return self.line(f"({expression.format(f'splat({text(a)})')})[0]", False)

    def select(self, which: Part, off: Part, on: Part) -> Part:
        """`on` where `which` is true, and `off` elsewhere."""
        for part in (which, off, on):
            self._use("select", part)
        if text(off) == text(on):  # compared as text, since 0 and -0 are equal as numbers
            return off
        if not any(map(self.is_vector, (which, off, on))):
            return self.line(f"{text(which)} ? {text(on)} : {text(off)}", False)
        on, off = (text(p) if self.is_vector(p) else f"splat({text(p)})" for p in (on, off))
        return self.line(f"pick({text(which)}, {on}, {off})", True)

    def elementwise(self, eqn: Any, ins: list[Parts]) -> Parts:
        """The lines of an elementwise equation; numbers alone are computed here."""
        name, params = eqn.primitive.name, eqn.params
        if name in _ELEMENTWISE and not any(isinstance(part, str | None) for parts in ins for part in parts):
            return [self._constant(eqn, values) for values in zip(*ins, strict=True)]
        if name in (*_COMPARE, "max", "min", "select_n") and eqn.invars[-1].aval.dtype == bool:
            raise Unsupported(f"the primitive {name} on booleans")
        if name in _BINARY:
            return [self.binary(name, a, b) for a, b in zip(*ins, strict=True)]
        if name in _COMPARE or name in _LOGIC:
            sign = (_COMPARE | _LOGIC)[name]
            out = []
            for a, b in zip(*ins, strict=True):
                self._use(name, a, b)
                if name in _LOGIC and self.is_vector(a) != self.is_vector(b):
                    raise Unsupported("logic between a number of the row and numbers of the units")
                out.append(self.line(f"{text(a)} {sign} {text(b)}", self.is_vector(a) or self.is_vector(b)))
            return out
        if name in _UNARY:
            return [self.unary(_UNARY[name] + "({})", a) for a in ins[0]]
        if name == "neg":
            return [self.unary("-{}", a) for a in ins[0]]
        if name == "not":
            return [self.line(f"{'~' if self.is_vector(a) else '!'}{text(a)}", self.is_vector(a)) for a in ins[0]]
        if name == "one_minus_square":  # JAX 0.11 and later have this in the derivative of tanh
            return [self.binary("mul", self.binary("add", 1.0, a), self.binary("sub", 1.0, a)) for a in ins[0]]
        if name in ("square", "integer_pow"):
            return [self._power(a, params.get("y", 2)) for a in ins[0]]
        if name in ("max", "min"):
            return [self._extreme(name, a, b) for a, b in zip(*ins, strict=True)]
        if name == "select_n":
            if len(ins) != 3:
                raise Unsupported("select_n of more than two cases")
            return [self.select(*parts) for parts in zip(*ins, strict=True)]
        if name == "convert_element_type":
            return [self._convert(a, eqn) for a in ins[0]]
        raise Unsupported(f"the primitive {name}")

    @staticmethod
    def _constant(eqn: Any, values: Sequence[Part]) -> Part:
        """An operation on numbers only: JAX's own result, in the dtypes of the program."""
        given = [np.asarray(value, var.aval.dtype) for value, var in zip(values, eqn.invars, strict=True)]
        with jax.ensure_compile_time_eval():
            result = eqn.primitive.bind(*given, **eqn.params)
        return bool(result) if result.dtype == bool else float(result)

    def _power(self, a: Part, y: int) -> Part:
        if not 1 <= abs(y) <= 8:
            raise Unsupported(f"the power {y}")
        power = a
        for _ in range(abs(y) - 1):
            power = self.binary("mul", power, a)
        return power if y > 0 else self.binary("div", 1.0, power)

    def _extreme(self, name: str, a: Part, b: Part) -> Part:
        self._use(name, a, b)
        a_, b_ = (text(p) if self.is_vector(p) else f"splat({text(p)})" for p in (a, b))
        vector = self.is_vector(a) or self.is_vector(b)
        return self.line(f"{name}_({a_}, {b_}){'' if vector else '[0]'}", vector)

    def _convert(self, a: Part, eqn: Any) -> Part:
        before, after = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
        if before == after:
            return a
        if before == jnp.dtype(bool) and jnp.issubdtype(after, jnp.floating):
            return self.select(a, 0.0, 1.0)
        raise Unsupported(f"a conversion from {before} to {after}")
