"""Compilation of generated C++, once per machine: libraries are kept in the user's cache, by the hash of their source.

A file in the cache may be truncated, or made by another user or for another system. So its name ends with the hash of
its content, and it is stored only after this process has loaded it; what does not load is recompiled. All other
failures are a RuntimeError.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from itertools import takewhile
from pathlib import Path

import jax

from seqjax.solvers.gated_loop.call import warn_once

__all__ = ["user_cache"]

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
TIMEOUT = 300.0  # seconds after which a compiler is assumed to hang; it needs about ten

_lock = threading.RLock()
_registered: set[str] = set()  # XLA registers an entry point by name, once per process
_failed: dict[tuple[str, ...], str] = {}  # errors, by source and compiler, or by compiler if it cannot be run


def compiler() -> list[str] | None:
    """The C++ compiler: the command in the environment variable CXX, or the first of c++, g++ and clang++.

    Options in CXX come after those of this library, and thus override them.
    """
    given = os.environ.get("CXX", "")
    try:
        words = shlex.split(given)
    except ValueError:  # an unterminated quotation: a command that will not be found
        words = [given]
    if words:
        return words
    found = (shutil.which(name) for name in ("c++", "g++", "clang++"))
    return next(([path] for path in found if path), None)


def _program(command: list[str]) -> int:
    """The number of leading words of CXX up to the compiler, past a launcher such as ccache or nice; options follow."""
    named = len(list(takewhile(lambda word: not word.startswith("-"), command)))
    found = [i for i, word in enumerate(command, 1) if shutil.which(word)]
    return max(named, *found, 1)


def user_cache() -> Path:
    """`seqjax` in $XDG_CACHE_HOME, or in ~/.cache if that is not set to an absolute path.

    Raises:
      RuntimeError: if there is no home directory.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / "seqjax"
    home = Path.home()
    if not home.is_absolute():
        raise RuntimeError(f"no home directory: $HOME is {str(home)!r}")
    return home / ".cache" / "seqjax"


def cache() -> Path:
    """The folder of compiled cells."""
    return user_cache() / "native"


@functools.cache
def _machine() -> str:
    """What -march=native depends on, since machines may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        return platform.processor() + platform.machine()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


@functools.cache
def _headers() -> bytes:
    return b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.h")))


def library(code: str) -> str:
    """Compile C++ and register its entry points `forward` and `backward`; returns the prefix of their names in XLA.

    Raises:
      RuntimeError: if there is no compiler, if it fails, or if its output cannot be loaded. A failure is not retried in
        this process, only in the next.
    """
    command = compiler()
    if command is None:
        raise RuntimeError("no C++ compiler: neither $CXX nor c++, g++ or clang++ in $PATH")
    with _lock:
        if (failure := _failed.get((code, *command))) is not None:
            raise RuntimeError(failure)
        try:
            made_of = (code, *command, *FLAGS, _machine(), jax.__version__)
            name = _digest(*map(os.fsencode, made_of), _headers())
            if name not in _registered:
                shared = _load(name, code, command)
                for entry in ("forward", "backward"):
                    target = jax.ffi.pycapsule(getattr(shared, f"seqjax_{entry}"))
                    jax.ffi.register_ffi_target(f"seqjax_{entry}_{name}", target, platform="cpu")
                _registered.add(name)
        except (OSError, RuntimeError) as error:
            _failed[code, *command] = str(error)
            raise RuntimeError(str(error)) from error
    return name


def _load(name: str, code: str, command: list[str]) -> ctypes.CDLL:
    return _from_cache(name) or _to_cache(name, _compile(command, code))


def _open(path: Path) -> ctypes.CDLL:
    """Load a library.

    Raises:
      OSError: if it cannot be loaded, or lacks an entry point.
    """
    shared = ctypes.CDLL(str(path))
    missing = [entry for entry in ("seqjax_forward", "seqjax_backward") if not hasattr(shared, entry)]
    if missing:
        raise OSError(f"{path} has no {' and no '.join(missing)}")
    return shared


def _own(path: Path) -> bool:
    """Whether only this user, or root, can change a file or folder: loading a library runs the code of its owner."""
    if sys.platform == "win32":
        return True
    status = path.stat()
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _private_cache() -> Path:
    """The cache, as a folder that nobody else can write to.

    Raises:
      OSError: if it cannot be created or belongs to another user.
      RuntimeError: if there is no home directory.
    """
    folder = cache()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform != "win32" and folder.stat().st_uid == os.geteuid():
        folder.chmod(0o700)
    if not _own(folder):
        warn_once(f"compiled cells are not kept: other users can write to {folder}")
        raise PermissionError(str(folder))
    return folder


def _from_cache(name: str) -> ctypes.CDLL | None:
    """A library from the cache; None if there is none that can be used."""
    try:
        folder = cache()
        paths = sorted(folder.glob(f"{name}-*.so")) if _own(folder) else []
    except (OSError, RuntimeError):
        return None
    for path in paths:
        try:
            if _own(path) and path.stem == f"{name}-{_digest(path.read_bytes())}":
                return _open(path)
        except OSError:
            continue
    return None


def _to_cache(name: str, library: bytes) -> ctypes.CDLL:
    """Load a library and store it in the cache; or only load it, if it cannot be stored.

    Raises:
      OSError: if it cannot be loaded from a temporary folder either.
    """
    file = f"{name}-{_digest(library)}.so"
    try:
        folder = _private_cache()
        with tempfile.TemporaryDirectory(dir=folder) as own:
            path = Path(own, file)
            path.write_bytes(library)
            path.chmod(0o700)
            shared = _open(path)
            os.replace(path, folder / file)  # another process may do the same at the same time; either file will do
        return shared
    except (OSError, RuntimeError):  # an unusable cache only costs time
        pass
    with tempfile.TemporaryDirectory(prefix="seqjax-") as own:
        path = Path(own, file)
        path.write_bytes(library)
        return _open(path)


def _compile(command: list[str], code: str) -> bytes:
    """Compile a source; returns the content of the library.

    Raises:
      RuntimeError: if the compiler cannot be run, fails, hangs or writes no library.
      OSError: if its files cannot be written.
    """
    if tuple(command) in _failed:
        raise RuntimeError(_failed[tuple(command)])
    name, n = shlex.join(command), _program(command)
    include = [f"-I{Path(__file__).parent}", f"-I{jax.ffi.include_dir()}"]
    with tempfile.TemporaryDirectory(prefix="seqjax-") as folder:
        source, built = Path(folder, "cell.cc"), Path(folder, "cell.so")
        source.write_text(code)
        arguments = [*command[:n], *FLAGS, *command[n:], *include, str(source), "-o", str(built)]
        try:
            status, output = _run(arguments)
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = f"gave no answer in {TIMEOUT:.0f} s" if isinstance(error, subprocess.TimeoutExpired) else error
            _failed[tuple(command)] = f"the C++ compiler {name!r} cannot be used: {reason}; set $CXX to another"
            raise RuntimeError(_failed[tuple(command)]) from error
        if status:
            end = f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"
            raise RuntimeError(f"the C++ compiler {name!r} {end}\n{output[-2000:]}".rstrip())
        if not built.is_file():
            raise RuntimeError(f"the C++ compiler {name!r} wrote no library\n{output[-2000:]}".rstrip())
        return built.read_bytes()


def _run(arguments: list[str]) -> tuple[int, str]:
    """The exit status of a program, negative for a signal, and its output. The program never outlives this call."""
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # its own process group, since the compiler starts further programs
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except BaseException:  # including KeyboardInterrupt
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output
