"""Writes docs/api.md, all public names on one page, from their docstrings: `python -m tools.api`.

It lists the modules of `ORDER`, then every other module with an `__all__`. Signatures are taken from the source
rather than from the interpreter, so the page is the same for every version of Python and JAX. (pdoc and Sphinx
generate sites of many pages with full types; this is a single page that code hosts render as it is.)
"""

import ast
import importlib
import inspect
import pkgutil
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import seqjax

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
# In the order of reading.
ORDER = [
    "seqjax",
    *(
        "seqjax." + name
        for name in (
            "cells",
            "wrappers",
            "regularizers",
            "noise",
            "normalization",
            "initializers",
            "presets",
            "solvers",
        )
    ),
    *(
        "seqjax." + name
        for name in ("attention", "decoding", "gradients", "diagnostics", "diagnostics.figures", "nnx", "models")
    ),
    *("seqjax.data." + name for name in ("synthetic", "text", "windows", "jena", "builders")),
    *("seqjax." + name for name in ("train", "core", "hints", "arrays")),
]
INTRODUCTION = """# Public names

Written by `python -m tools.api`: the first line of every docstring, with a link to its source. `help(seqjax.unroll)`
shows the rest: equations, shapes, errors and examples. The examples assume `import jax`, `import jax.numpy as jnp` and
`import seqjax`; the tests run them.
"""


def modules() -> list[ModuleType]:
    """All modules that are listed, in the order of the page."""
    names = ["seqjax", *(found.name for found in pkgutil.walk_packages(seqjax.__path__, "seqjax."))]
    others = [name for name in sorted(names) if name not in ORDER]
    found = [importlib.import_module(name) for name in [*ORDER, *others]]
    return [module for module in found if module.__name__ in ORDER or hasattr(module, "__all__")]


def public(module: ModuleType) -> dict[str, Any]:
    """The public names of a module that are not modules: those in its `__all__`, or else everything that it defines."""
    here = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    names = getattr(module, "__all__", [name for name in here if not name.startswith("_")])
    values = {name: getattr(module, name) for name in sorted(names, key=str.lower)}
    return {name: value for name, value in values.items() if not isinstance(value, ModuleType)}


def is_described(value: Any) -> bool:
    """Whether a value has a docstring of its own: functions and classes do, aliases of types and tables do not."""
    return inspect.isclass(value) or inspect.isroutine(inspect.unwrap(value)) if hasattr(value, "__module__") else False


def definition(value: Any) -> Any:
    """The syntax tree of a function or class."""
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value)))).body[0]


def constant(module: ModuleType, name: str) -> str:
    """The string below the assignment of a name, in the module that contains the assignment."""
    outer = ast.parse(inspect.getsource(module)).body
    body = [inner for one in outer for inner in (one.body if isinstance(one, ast.With) else [one])]  # `extras.needed`
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.ImportFrom) and any(name == (one.asname or one.name) for one in statement.names):
            return constant(importlib.import_module(str(statement.module)), name)
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return inspect.cleandoc(str(after.value.value))
            return ""
    raise ValueError(f"{module.__name__} neither assigns nor imports {name}")


def description(module: ModuleType, name: str, value: Any) -> str:
    """The docstring of a public name."""
    return (inspect.getdoc(value) or "") if is_described(value) else constant(module, name)


def summary(doc: str) -> str:
    """The first line of a docstring, which may introduce an example."""
    return doc.split("\n", 1)[0].replace("::", ".")


def arguments(function: ast.FunctionDef) -> str:
    """The arguments of a function with their defaults, without types and without self."""
    spec = function.args
    for argument in [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]:
        if argument is not None:
            argument.annotation = None
    text = ast.unparse(spec)
    return text.removeprefix("self").removeprefix("cls").removeprefix(", ")


def signature(name: str, value: Any) -> str:
    """How a function is called or an object made; just the name for what is not called."""
    if not is_described(value) or (inspect.isclass(value) and issubclass(value, BaseException)):
        return name
    tree = definition(value)
    if isinstance(tree, ast.FunctionDef):
        return f"{name}({arguments(tree)})"
    for member in tree.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return f"{name}({arguments(member)})"
    fields = [
        one for one in tree.body if isinstance(one, ast.AnnAssign) and "ClassVar" not in ast.unparse(one.annotation)
    ]
    texts = [ast.unparse(f.target) + (f"={ast.unparse(f.value)}" if f.value else "") for f in fields]
    plain = [text.partition("=dataclasses.field(")[0] for text in texts]
    return f"{name}({', '.join(plain)})" if fields else name


def methods(value: Any) -> list[tuple[str, str]]:
    """Signature and summary of the public methods of a class that the class itself defines."""
    found = []
    for member in definition(value).body if inspect.isclass(value) else []:
        doc = ast.get_docstring(member) if isinstance(member, ast.FunctionDef) else None
        if doc and (not member.name.startswith("_") or member.name == "__call__"):
            is_property = any(ast.unparse(one) == "property" for one in member.decorator_list)
            call = "" if is_property else f"({arguments(member)})"
            found.append((f".{member.name}{call}", summary(doc)))
    return found


def source(module: ModuleType, value: Any) -> Path:
    """The file of a function or class, or else of the module that lists it; from the repository."""
    return Path(str(inspect.getsourcefile(inspect.unwrap(value) if is_described(value) else module))).relative_to(ROOT)


def lines(module: ModuleType, seen: set[int]) -> list[str]:
    """The part of the page for one module, without names that are listed above."""
    found = []
    for name, value in public(module).items():
        if is_described(value) and id(value) in seen:  # listed above, under the module to import it from
            continue
        seen.add(id(value))
        if is_described(value) and not value.__module__.startswith("seqjax"):
            found.append(f"- `{name}`: as `jax.nn.initializers.{name}`.")
            continue
        path = source(module, value).as_posix()
        found.append(f"- [`{signature(name, value)}`](../{path}): {summary(description(module, name, value))}")
        found += [f"  - `{name}{call}`: {text}" for call, text in methods(value)] if is_described(value) else []
    return [f"\n## {module.__name__}\n", summary(str(module.__doc__)) + "\n", *found] if found else []


def page() -> str:
    """The whole page."""
    seen: set[int] = set()
    return INTRODUCTION + "\n".join(line for module in modules() for line in lines(module, seen)) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
