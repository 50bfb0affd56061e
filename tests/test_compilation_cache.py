"""Compiled programs are kept between launches, where the user wants it and where they can be kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seqjax.train.run import Run

ROOT = Path(__file__).parents[1]


def launch(workdir, *flags, **environment):
    """Train the toy experiment in a process of its own, whose cache is not switched off."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, "-m", "toy_experiment", "--seed=0", "--steps=10", f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": path, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def kept(directory):
    """The compiled programs in a cache, with the time of their last change."""
    return {path.name: path.stat().st_mtime_ns for path in directory.rglob("*-cache")}


def test_a_second_launch_compiles_nothing_and_computes_the_same_bits(tmp_path):
    cache = tmp_path / "cache"
    assert launch(tmp_path / "first", XDG_CACHE_HOME=cache).stderr == ""
    programs = kept(cache / "seqjax" / "jax")
    assert any(name.startswith("jit_updates") for name in programs)
    assert launch(tmp_path / "second", XDG_CACHE_HOME=cache).stderr == ""
    assert kept(cache) == programs
    first, second = (Run.read(tmp_path / name) for name in ("first", "second"))
    assert [r["loss"] for r in first.records()] == [r["loss"] for r in second.records()]
    assert first.result()["program_memory_bytes"] == second.result()["program_memory_bytes"]
    assert first.flags == second.flags
    assert "compilation_cache" not in first.flags


def test_without_a_cache_directory_of_its_own_it_is_below_the_home(tmp_path):
    launch(tmp_path / "run", HOME=tmp_path, XDG_CACHE_HOME="")
    assert kept(tmp_path / ".cache" / "seqjax" / "jax")


@pytest.mark.parametrize(
    ("flag", "environment"),
    [("--nocompilation_cache", {}), ("--compilation_cache", {"JAX_ENABLE_COMPILATION_CACHE": 0})],
)
def test_it_can_be_switched_off(tmp_path, flag, environment):
    launch(tmp_path / "run", flag, XDG_CACHE_HOME=tmp_path / "cache", **environment)
    assert not (tmp_path / "cache").exists()


def test_the_users_own_directory_is_respected(tmp_path):
    launch(tmp_path / "run", XDG_CACHE_HOME=tmp_path / "cache", JAX_COMPILATION_CACHE_DIR=tmp_path / "own")
    assert not (tmp_path / "cache").exists()


def test_a_directory_that_cannot_be_made_is_said_and_training_goes_on(tmp_path):
    (tmp_path / "cache").write_text("a file")
    done = launch(tmp_path / "run", XDG_CACHE_HOME=tmp_path / "cache")
    [line] = done.stderr.splitlines()
    assert line.startswith("WARNING: compiled programs are not kept (--nocompilation_cache): ")
    assert str(tmp_path / "cache") in line
    assert Run.read(tmp_path / "run").finished


def test_a_program_that_was_half_written_is_compiled_again(tmp_path):
    launch(tmp_path / "first", XDG_CACHE_HOME=tmp_path)
    for path in tmp_path.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:50])
    done = launch(tmp_path / "second", XDG_CACHE_HOME=tmp_path)
    assert "Error reading persistent compilation cache entry" in done.stderr
    first, second = (Run.read(tmp_path / name) for name in ("first", "second"))
    assert [r["loss"] for r in first.records()] == [r["loss"] for r in second.records()]
