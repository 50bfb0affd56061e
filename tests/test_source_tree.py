"""A source tree on the path, as on a cluster: seqjax runs without being an installed distribution."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jax

import seqjax

ROOT = Path(__file__).parents[1]


def test_the_version_is_that_of_the_distribution():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "seqjax.__version__"}


def test_a_run_of_a_tree_that_is_not_installed(tmp_path):
    tree, site = tmp_path / "tree", tmp_path / "site"
    for package in ("seqjax", "experiments"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "toy_experiment.py", tree)
    site.mkdir()
    for directory in (Path(one) for one in sys.path if Path(one).name == "site-packages"):
        for path in directory.iterdir():
            if "seqjax" not in path.name and not (site / path.name).exists():
                (site / path.name).symlink_to(path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(site)])}
    flags = ["--model=line", "--seed=0", "--steps=10", f"--workdir={tmp_path / 'run'}"]
    # Without -S the packages of the interpreter, and seqjax among them, are on the path.
    python = [sys.executable, "-S"]
    options = {"cwd": tree, "env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([*python, "-m", "toy_experiment", *flags], **options)
    assert done.returncode == 0, done.stderr
    versions = json.loads((tmp_path / "run" / "config.json").read_text())["versions"]
    assert versions["seqjax"] == seqjax.__version__
    assert versions["jax"] == jax.__version__
    found = "import importlib.metadata as m; print([d.name for d in m.distributions() if d.name == 'seqjax'])"
    assert subprocess.run([*python, "-c", found], **options).stdout.strip() == "[]", "the test hides the distribution"
