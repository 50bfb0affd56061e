"""Compiling generated C++, once per machine: the library is kept in the user's cache, under the hash of its source."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

_registered: set[str] = set()  # XLA knows an entry point by name, once a process
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")


def compiler() -> list[str] | None:
    """The C++ compiler: the command in the environment variable CXX, or the first of c++, g++ and clang++.

    Options in CXX come after those of this library, and so overrule them.
    """
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = (shutil.which(name) for name in ("c++", "g++", "clang++"))
    return next(([path] for path in found if path), None)


def user_cache() -> Path:
    """`seqjax` in $XDG_CACHE_HOME, or else in ~/.cache.

    Raises:
      RuntimeError: if there is no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "seqjax")


def cache() -> Path:
    """Where compiled cells are kept."""
    return user_cache() / "native"


@functools.cache
def _machine() -> str:
    """What -march=native depends on: a home directory may be shared by many machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        return platform.processor() + platform.machine()


@functools.cache
def library(code: str) -> str:
    """Compile C++ and register its entry points `forward` and `backward`; returns the prefix of their names in XLA.

    Raises:
      RuntimeError: if there is no compiler, or it fails.
    """
    command = compiler()
    if command is None:
        raise RuntimeError("no C++ compiler: neither $CXX nor c++, g++ or clang++ in $PATH")
    here = Path(__file__).parent
    headers = "".join(path.read_text() for path in sorted(here.glob("*.h")))
    parts = (code, headers, *command, *FLAGS, _machine(), jax.__version__)
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    path = cache() / f"{name}.so"
    if not path.exists():
        path = _compile(command, code, path)
    if name in _registered:
        return name
    _registered.add(name)
    shared = ctypes.CDLL(str(path))
    for entry in ("forward", "backward"):
        target = jax.ffi.pycapsule(getattr(shared, f"seqjax_{entry}"))
        jax.ffi.register_ffi_target(f"seqjax_{entry}_{name}", target, platform="cpu")
    return name


def _compile(command: list[str], code: str, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent))
    except OSError:  # a cache that cannot be written saves no time, and that is all
        folder = Path(tempfile.mkdtemp(prefix="seqjax-"))
        path = folder / path.name
    source, built = folder / "cell.cc", folder / "cell.so"
    source.write_text(code)
    include = [f"-I{Path(__file__).parent}", f"-I{jax.ffi.include_dir()}"]
    result = subprocess.run(
        [command[0], *FLAGS, *command[1:], *include, str(source), "-o", str(built)],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed on {source}:\n{result.stderr[-2000:]}")
    os.replace(built, path)  # another process may do the same at this moment: either result is good
    source.unlink()
    if folder != path.parent:
        folder.rmdir()
    return path
