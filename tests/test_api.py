"""The public names: one page lists them all, their docstrings say what is promised, and their examples run."""

import ast
import doctest
import inspect
import pkgutil
import re
from functools import cache
from importlib import import_module

import jax
import jax.numpy as jnp
import pytest

import seqjax

api = import_module("tools.api")
NAMES: dict[str, tuple] = {}
for module in api.modules():
    for name, value in api.public(module).items():
        if all(value is not other for _, other in NAMES.values()):  # listed again, it is the same docstring
            NAMES[f"{module.__name__}.{name}"] = module, value
OWN = {
    name: value
    for name, (_, value) in NAMES.items()
    if api.is_described(value) and value.__module__.startswith("seqjax")
}
FUNCTIONS = {name: value for name, value in OWN.items() if not inspect.isclass(value)}


def examples():
    """Docstrings with `>>>`, of public names and of the methods of classes."""
    found = {}
    for name, value in OWN.items():
        members = {f"{name}.{key}": one for key, one in vars(value).items()} if inspect.isclass(value) else {}
        for place, one in {name: value, **members}.items():
            if ">>>" in (doc := inspect.getdoc(one) or ""):
                found[place] = doc
    return found


EXAMPLES = examples()


@cache
def mentioned() -> set[str]:
    """Names in backticks or code of the pages for users, dotted ones too. (docs/design.md is about what is inside.)"""
    pages = [api.ROOT / "README.md", *(api.ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages if page.name not in ("api.md", "design.md", "mutations.md"))
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    return {name for one in code for name in re.findall(r"\w*_\w+|\w+\.\w+", one)}


@cache
def imported() -> set[tuple[str, str]]:
    """What the experiments and benchmarks import from modules of seqjax, as pairs of a module and a name."""
    files = [*api.ROOT.glob("experiments/**/*.py"), *api.ROOT.glob("benchmarks/*.py"), api.ROOT / "launch.py"]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    found = [node for node in nodes if isinstance(node, ast.ImportFrom) and str(node.module).startswith("seqjax")]
    return {(str(node.module), one.name) for node in found for one in node.names}


PACKAGES = [f"seqjax.{name}" for name in seqjax.__all__ if inspect.ismodule(getattr(seqjax, name))] + ["seqjax.nnx"]
INSIDE = [found.name for found in pkgutil.walk_packages(seqjax.__path__, "seqjax.")]


@pytest.mark.parametrize("package", PACKAGES)
def test_what_users_read_about_or_import_is_in_all(package):
    assert hasattr(import_module(package), "__all__"), f"{package} has no __all__"
    listed = {id(value) for _, value in NAMES.values()}
    read, used, missing = mentioned(), imported(), []
    short = package.rpartition(".")[2]
    for name in (one for one in INSIDE if one == package or one.startswith(package + ".")):
        for key, value in vars(import_module(name)).items():
            own = (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == name
            known = key in read or f"{short}.{key}" in read or (name, key) in used
            if own and known and not key.startswith("_") and id(value) not in listed:
                missing.append(f"{name}.{key}")
    assert not missing, f"{missing} should be in an __all__, and docs/api.md made again: python -m tools.api"


def test_every_public_name_has_one_address():
    links = re.findall(r"^- \[`(\w+).*?\]\((.*?)\)", api.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    twice = {link for link in links if links.count(link) > 1}
    assert not twice


def test_the_page_is_current():
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "run: python -m tools.api"


@pytest.mark.parametrize("name", [name for name in seqjax.__all__ if inspect.ismodule(getattr(seqjax, name))])
def test_a_module_that_the_package_exports_lists_its_public_names(name):
    assert getattr(seqjax, name).__all__, f"seqjax.{name} has no __all__, so its names are on no page"


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_begins_with_a_sentence(name):
    module, value = NAMES[name]
    paragraph = api.description(module, name.rpartition(".")[2], value).split("\n\n")[0]
    assert re.search(r"[.:]$|\.\s|\.\)$", paragraph), paragraph


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_raises_says_so(name):
    raised = [node for node in ast.walk(api.definition(FUNCTIONS[name])) if isinstance(node, ast.Raise)]
    if raised:
        assert re.search(r"Raises|[Ee]rrors", inspect.getdoc(FUNCTIONS[name])), ast.unparse(raised[0])


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    names = {"jax": jax, "jnp": jnp, "seqjax": seqjax}
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], names, name, None, None)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert not said, "".join(said)
