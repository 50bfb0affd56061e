"""What is installed: the wheel, what it requires, and the error where an extra is missing."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Parts of the library that need an extra, and the package that is missed first where only the requirements are there.
PARTS = {
    "seqjax.data.builders": ("data", "tensorflow_datasets"),
    "seqjax.models": ("flax", "flax"),
    "seqjax.nnx": ("flax", "flax"),
    "seqjax.train": ("train", "tqdm"),
}
# Where a distribution is not imported by its own name with an underscore.
IMPORTED_AS = {
    "absl-py": "absl",
    "dm-haiku": "haiku",
    "mlflow-skinny": "mlflow",
    "orbax-checkpoint": "orbax",
    "pystemmer": "Stemmer",
    "pyyaml": "yaml",
    "tensorboardx": "tensorboardX",
}
NOT_IMPORTED = {
    "array-record": "tensorflow_datasets reads and writes with it",
    "flatbuffers": "jax.export writes with it",
    "importlib-resources": "tensorflow_datasets imports it and does not require it",
    "pyright": "a command of make lint",
    "pytest-timeout": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "a command of make lint",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this source tree, built from a copy, for setuptools writes beside what it builds."""
    pytest.importorskip("setuptools", minversion="77")
    tree, dist = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "runs")
    shutil.copytree(ROOT, tree, ignore=ignored, dirs_exist_ok=True)
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, dist], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = dist.iterdir()
    return path


def interpreter(directory):
    """A new virtual environment without pip: its interpreter and the folder of its packages."""
    venv.create(directory, symlinks=True)
    [packages] = directory.glob("lib/python*/site-packages")
    return directory / "bin" / "python", packages


def python(executable, *arguments, cwd):
    outside = ("PYTHONPATH", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in outside} | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def required(requirements):
    """The distributions that pip would install for these requirements, without extras, as they are installed here."""
    found, open_ = {}, [Requirement(one) for one in requirements]
    while open_:
        one = open_.pop()
        name = canonicalize_name(one.name)
        if name not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
            found[name] = importlib.metadata.distribution(one.name)
            open_ += map(Requirement, found[name].requires or [])
    return found


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """An interpreter that sees the unpacked wheel and what it requires, and nothing else."""
    executable, packages = interpreter(tmp_path_factory.mktemp("bare"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    [metadata] = packages.glob("seqjax-*.dist-info")
    for distribution in required(importlib.metadata.Distribution.at(metadata).requires or []).values():
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    return executable


def test_the_wheel_holds_seqjax_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    files = (path for path in (ROOT / "seqjax").rglob("*") if path.is_file() and path.suffix not in (".pyc", ".pyo"))
    assert names == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"seqjax/py.typed", "seqjax/solvers/methods.csv", "seqjax/solvers/native/kernel.h"} <= names


def test_a_cell_runs_where_jax_alone_is_installed(bare, tmp_path):
    code = """
import importlib.util
import jax, jax.numpy as jnp, seqjax
assert not any(map(importlib.util.find_spec, ["flax", "optax", "orbax", "absl", "matplotlib", "tqdm", "pytest"]))
cell, xs = seqjax.cells.lstm(3), jnp.ones((4, 1, 2))
loss = lambda params: jnp.square(seqjax.unroll(cell, params, None, xs, method="scan")[1]).sum()
gradient = jax.jit(jax.grad(loss))(cell.init(jax.random.key(0), 2))
assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
print(seqjax.__file__)
"""
    done = python(bare, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(bare.parents[1])


def error(part):
    """What the import of a part of the library raises where only the requirements are installed; None if nothing."""
    for needs, (extra, package) in PARTS.items():
        if f"{part}.".startswith(f"{needs}."):
            return f"ModuleNotFoundError: {needs} needs {package}: pip install 'seqjax[{extra}]'"
    return None


def test_every_module_is_imported_there_or_names_its_extra(bare, tmp_path):
    paths = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "seqjax").rglob("*.py"))]
    modules = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    expected = {f"import {module}": error(module) for module in modules} | {
        "seqjax.nnx": error("seqjax.nnx"),
        "seqjax.diagnostics.figures.saturation({})": (
            "ModuleNotFoundError: seqjax.diagnostics.figures needs matplotlib: pip install 'seqjax[figures]'"
        ),
        "seqjax.data.vectorize.Rules(stem='english').tokens('cats')": (
            "ModuleNotFoundError: stem='english' needs Stemmer: pip install 'seqjax[text]'"
        ),
    }
    code = """
import json, sys
raised = {}
for statement in sys.argv[1:]:
    before = set(sys.modules)
    try:
        raised[statement] = exec(statement)
    except Exception as error:
        raised[statement] = f"{type(error).__name__}: {error}"
        # What a package imported before it failed would be found there by the next statement. Those of others stay:
        # a module in C may crash when it is loaded twice.
        for name in set(sys.modules) - before:
            if name.startswith("seqjax"):
                del sys.modules[name]
print(json.dumps(raised))
"""
    done = python(bare, "-c", code, *expected, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("command", [["launch.py"], ["-m", "experiments.demos.watch"]], ids=" ".join)
def test_commands_name_their_extra(bare, command):
    done = python(bare, *command, "--help", cwd=ROOT)
    message = "ModuleNotFoundError: experiments needs flax: pip install 'seqjax[experiments]'"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, message)


def requirements():
    """All that pyproject.toml names, by canonical name; extras of seqjax itself are not packages."""
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    names = {canonicalize_name(Requirement(one).name) for group in lists for one in group}
    return sorted(names - {"seqjax"})


def imported():
    """The packages that some file imports, also by `pytest.importorskip`."""
    names = re.compile(r"""^ *(?:from|import) (\w+)|importorskip\(["'](\w+)""", re.MULTILINE)
    folders = ("seqjax", "experiments", "benchmarks", "tools", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {name for path in files for pair in names.findall(path.read_text()) for name in pair}


def test_nothing_is_required_that_nothing_imports():
    used = imported()
    unused = {name for name in requirements() if IMPORTED_AS.get(name, name.replace("-", "_")) not in used}
    assert unused == NOT_IMPORTED.keys()


def test_what_is_required_is_constrained():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    assert set(requirements()) - pinned == {"setuptools"}  # each release of Python brings its own


def test_an_own_file_that_is_missing_is_not_taken_for_an_extra():
    from seqjax.extras import needed

    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'seqjax.nothing'$"), needed("flax", by="x"):
        import seqjax.nothing  # noqa: F401  # pyright: ignore[reportMissingImports]
    message = re.escape("x needs nothing: pip install 'seqjax[e]'")
    with pytest.raises(ModuleNotFoundError, match=message), needed("e", "x", "sys", "nothing"):
        pass


@pytest.mark.slow
def test_pip_installs_the_wheel_and_all_that_it_requires(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "new"], check=True)
    executable = tmp_path / "new" / "bin" / "python"
    subprocess.run([executable, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel], check=True)
    done = python(executable, "-c", "import seqjax; print(seqjax.__version__)", cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == (importlib.metadata.version("seqjax"), "")
    assert "experiments" not in {path.name for path in (tmp_path / "new").glob("lib/python*/site-packages/*")}
    subprocess.run([executable, "-m", "pip", "check"], check=True)
