"""Imports run one way, heavy packages stay in their rooms, and every public name says what it is."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom up: a file imports from parts of the tree that stand before its own, and from its own.
LAYERS = [
    "seqjax.identity",
    "seqjax.extras",
    "seqjax.placement",
    "seqjax.arrays",
    "seqjax.draws",
    "seqjax.hints",
    "seqjax.core",
    "seqjax.initializers",
    "seqjax.presets",
    "seqjax.cells",
    "seqjax.wrappers",
    "seqjax.regularizers",
    "seqjax.noise",
    "seqjax.decoding",
    "seqjax.importers",
    "seqjax.solvers",
    "seqjax.unrolling",
    "seqjax.attention",
    "seqjax.normalization",
    "seqjax.diagnostics",
    "seqjax.gradients",
    "seqjax.nnx",
    "seqjax",
    "seqjax.data",
    "seqjax.models",
    "seqjax.train",
    "experiments.harness",
    "experiments",
    "experiments.shared",
    "experiments.*",
    "experiments.demos",
    "launch",
]
FILES = sorted(path.relative_to(ROOT) for folder in ("seqjax", "experiments") for path in (ROOT / folder).rglob("*.py"))
FILES += [Path("launch.py")]


def dotted(path: Path) -> str:
    """The name that a file is imported by."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


BY_NAME = {dotted(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """All modules that a file names in an import, inside functions too; `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def graph() -> dict[str, set[str]]:
    """For every file of seqjax and the experiments, by dotted name, those that it imports by name."""
    return {name: (imported(path) & BY_NAME.keys()) - {name} for name, path in BY_NAME.items()}


def layer(name: str) -> int:
    """The place of a module in LAYERS: that of the part of the tree that it belongs to."""
    part = name
    while part not in LAYERS:
        part = part.rpartition(".")[0]
    if part == "experiments" != name:
        part = "experiments.*"
    return LAYERS.index(part)


LIBRARY = [path for path in FILES if path.parts[0] == "seqjax" and path != Path("seqjax/__init__.py")]
GRAPH = graph()


def used(name: str) -> set[str]:
    """What a module imports; a package is what is imported from it where that is no module of its own."""
    return {one for one in GRAPH[name] if not any(other.startswith(one + ".") for other in GRAPH[name])}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_file_imports_only_from_below(name):
    above = {other for other in used(name) if layer(other) > layer(name)}
    assert not above, f"{name} imports {above} from above: see LAYERS"


def test_no_file_imports_itself_by_way_of_others():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in used(name):
                visit(other, (*path, name))
            done.add(name)

    for name in GRAPH:
        visit(name, ())


def test_experiments_do_not_import_each_other():
    single = {name for name in GRAPH if layer(name) == LAYERS.index("experiments.*")}
    assert {name: used(name) & single for name in single if used(name) & single} == {}


def test_data_imports_nothing_else_of_seqjax_but_the_arrays_and_extras():
    allowed = ("seqjax.data", "seqjax.arrays", "seqjax.extras")
    for name in GRAPH:
        if name.startswith("seqjax.data"):
            assert all(other.startswith(allowed) for other in used(name)), name


def test_no_name_is_both_a_module_and_something_else():
    for name, path in BY_NAME.items():
        if path.name == "__init__.py":
            module = importlib.import_module(name)
            for child in (other for other in BY_NAME if other.rpartition(".")[0] == name):
                importlib.import_module(child)
                found = getattr(module, child.rpartition(".")[2])
                assert inspect.ismodule(found), f"{child} is a module and {found!r}"


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("tensorflow", ()),
        ("torch", ()),
        ("keras", ()),
        ("flax", ("seqjax/nnx/", "seqjax/models/", "seqjax/train/", "experiments/", "launch.py")),
        ("optax", ("seqjax/models/", "seqjax/train/", "experiments/", "launch.py")),
        ("orbax", ("seqjax/train/checkpoint.py",)),
        ("absl", ("experiments/", "launch.py")),
        ("submitit", ("launch.py", "experiments/")),
        ("tensorflow_datasets", ("seqjax/data/",)),
        ("tensorboardX", ("seqjax/train/sinks.py",)),
        ("wandb", ("seqjax/train/sinks.py",)),
        ("mlflow", ("seqjax/train/sinks.py",)),
    ],
)
def test_a_package_is_known_only_in_its_rooms(package, rooms):
    for path in FILES:
        if not path.as_posix().startswith(rooms or ("nowhere",)):
            assert package not in packages(path), f"{path} imports {package}"


def test_importing_seqjax_needs_jax_alone():
    heavy = ["flax", "optax", "orbax", "tensorflow_datasets", "tensorflow", "matplotlib", "absl.flags", "tqdm"]
    code = f"import sys, seqjax; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_flax_modules_are_found_on_first_use_and_other_names_are_not():
    seqjax = importlib.import_module("seqjax")
    assert seqjax.nnx is importlib.import_module("seqjax.nnx")
    with pytest.raises(AttributeError, match="module 'seqjax' has no attribute 'nothing'"):
        seqjax.nothing  # noqa: B018


MODULES = sorted(".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in [*LIBRARY])


@pytest.mark.parametrize("name", ["seqjax", *MODULES])
def test_every_public_name_has_a_docstring(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    for public in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
        value = getattr(module, public)
        if not (inspect.isfunction(value) or inspect.isclass(value)) or not value.__module__.startswith("seqjax"):
            continue
        assert value.__doc__, f"{name}.{public} has no docstring"
        if issubclass(type(value), type) and issubclass(value, tuple):
            assert not value.__doc__.startswith(f"{value.__name__}("), f"{name}.{public} has only a generated docstring"


DECLARED = ("seqjax.train", "seqjax.models", "experiments.demos")


@pytest.mark.parametrize("name", [name for name in BY_NAME if name.startswith(tuple(f"{one}." for one in DECLARED))])
def test_a_module_declares_its_public_names(name):
    module = importlib.import_module(name)
    assert all(hasattr(module, public) for public in module.__all__)


@pytest.mark.parametrize("name", ["seqjax", "seqjax.cells", "seqjax.gradients", "seqjax.initializers"])
def test_what_a_module_promises_is_there(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        assert hasattr(module, public), f"{name}.{public}"


def test_every_experiment_and_command_is_in_the_list_of_the_package():
    words = set(re.findall(r"\w+", importlib.import_module("experiments").__doc__))
    files = [*(ROOT / "experiments").glob("*.py"), *(ROOT / "experiments" / "demos").glob("*.py")]
    assert {path.stem for path in files} - {"__init__"} <= words


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_can_be_read_in_one_sitting(path):
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= 450, f"{path} has {lines} lines and asks to be two files"
