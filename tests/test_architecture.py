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
# From the bottom up: a room imports from rooms below its own, and from itself.
LAYERS = [
    ["arrays", "draws", "indices", "placement"],
    ["core", "outer", "autodiff"],
    [
        "initializers",
        "presets",
        "cells",
        "wrappers",
        "regularizers",
        "noise",
        "checkpointed",
        "revolve",
        "parallel",
        "decoding",
        "newton",
        "chunkwise",
        "native",
        "solve",
        "importers",
    ],
    ["unroll"],
    ["attention", "gradients", "diagnostics", "normalization", "nnx"],
    ["losses"],
    ["models"],
    ["train"],
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(path.relative_to(ROOT) for folder in ("seqjax", "experiments") for path in (ROOT / folder).rglob("*.py"))
FILES += [Path("launch.py")]


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


def room(path: Path) -> str:
    """The part of seqjax that a file belongs to: `cells`, `core`, ..."""
    return path.parts[1].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("seqjax.")}


LIBRARY = [path for path in FILES if path.parts[0] == "seqjax" and path != Path("seqjax/__init__.py")]


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_a_file_of_the_library_imports_only_from_below(path):
    if room(path) == "data":
        return
    assert room(path) in LEVEL, f"{path} is in no layer: add it to LAYERS"
    above = {other for other in rooms_imported(path) if LEVEL.get(other, -1) > LEVEL[room(path)]}
    assert not above, f"{path} imports {above} from above"
    assert not packages(path) & {"experiments", "launch"}


def test_data_imports_nothing_else_of_seqjax_but_the_check_of_indices():
    for path in LIBRARY:
        if room(path) == "data":
            assert rooms_imported(path) <= {"data", "indices"}, path


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("tensorflow", ()),
        ("torch", ()),
        ("keras", ()),
        ("flax", ("seqjax/nnx/", "seqjax/models/", "seqjax/train/", "experiments/", "launch.py")),
        ("optax", ("seqjax/losses.py", "seqjax/models/", "seqjax/train/", "experiments/", "launch.py")),
        ("orbax", ("seqjax/train/checkpoint.py",)),
        ("absl", ("experiments/", "launch.py")),
        ("submitit", ("launch.py", "experiments/")),
        ("tensorflow_datasets", ("seqjax/data/",)),
    ],
)
def test_a_package_is_known_only_in_its_rooms(package, rooms):
    for path in FILES:
        if not path.as_posix().startswith(rooms or ("nowhere",)):
            assert package not in packages(path), f"{path} imports {package}"


def test_experiments_are_known_only_to_launch_and_to_each_other():
    for path in LIBRARY:
        assert not packages(path) & {"experiments", "launch"}, path


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


@pytest.mark.parametrize("name", ["seqjax", "seqjax.cells", "seqjax.gradients", "seqjax.initializers"])
def test_what_a_module_promises_is_there(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        assert hasattr(module, public), f"{name}.{public}"


def test_every_file_of_the_experiments_is_in_their_list():
    words = set(re.findall(r"\w+", importlib.import_module("experiments").__doc__))
    assert {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__"} <= words


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_can_be_read_in_one_sitting(path):
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= 450, f"{path} has {lines} lines and asks to be two files"
