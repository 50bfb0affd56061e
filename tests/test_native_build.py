"""Between the source of the C++ and the loaded library anything may go wrong: real compilers, processes and files."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seqjax.solvers.gated_loop import call
from seqjax.solvers.native import build, compiler
from tests.quick import few

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

ROOT = Path(__file__).parents[1]
# All that XLA asks of a library when it is registered; compiled in a moment.
CODE = """
#include "xla/ffi/api/c_api.h"
extern "C" XLA_FFI_Error* seqjax_forward(XLA_FFI_CallFrame* frame) {
  for (auto* e = frame->extension_start; e; e = e->next)
    if (e->type == XLA_FFI_Extension_Metadata) {
      auto& version = reinterpret_cast<XLA_FFI_Metadata_Extension*>(e)->metadata->api_version;
      version.major_version = XLA_FFI_API_MAJOR;
      version.minor_version = XLA_FFI_API_MINOR;
    }
  return nullptr;
}
extern "C" XLA_FFI_Error* seqjax_backward(XLA_FFI_CallFrame* frame) { return seqjax_forward(frame); }
"""
SOURCE = f"{CODE}// for this test alone"
USER = 65534  # who is nobody


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, and a process in which nothing has failed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_failed", {})
    monkeypatch.setattr(call, "_warned", set())
    return tmp_path / "seqjax" / "native"


@pytest.fixture
def load(request):
    """The library of a source of this test, as a process loads it that comes first, or next."""
    return lambda: build._load("name", f"{CODE}// {request.node.name}", compiler() or [])


def script(path, *lines):
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return shlex.quote(str(path))


def process(code, **environment):
    """Start Python; a variable that is None is taken away."""
    inherited = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={name: str(value) for name, value in inherited.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip(), err


LOAD = f"""
from seqjax.solvers.native import build
build.library({SOURCE!r})
"""
# The same cell by both methods that compile it, and twice by the one that can do without.
RUN = """
import warnings
import jax
import jax.numpy as jnp
from seqjax import cells, unroll
from seqjax.solvers.native import build
build.TIMEOUT = 1.0
def run(method, steps):
    return unroll(cell, params, None, jnp.ones((steps, 2, 4)), method=method)[1]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for cell in (cells.lstm(5), cells.gru(5)):
        params = cell.init(jax.random.key(0), 4)
        assert run("auto", 3).shape == (3, 2, 5)
for warning in caught:
    print(warning.category.__name__, warning.message)
try:
    run("native", 3)
except RuntimeError as error:
    print("RuntimeError", error)
"""


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("no/such/c++", "'{}' cannot be used: [Errno 2] No such file or directory"),
        ('"c++', "cannot be used: [Errno 2] No such file or directory"),
        ("file", "'{}' cannot be used: [Errno 13] Permission denied"),
        ("folder", "'{}' cannot be used: [Errno 13] Permission denied"),
        ("text", "'{}' cannot be used: [Errno 8] Exec format error"),
        ("hangs", "'{}' cannot be used: gave no answer in 1 s"),
        ("fails", "'{}' failed with status 3\nno header"),
        ("killed", "'{}' was killed by signal 9"),
        ("nothing", "'{}' wrote no library"),
        ("garbage", "invalid ELF header"),
        ("empty", "file too short"),
        ("other", "has no seqjax_forward and no seqjax_backward"),
        ("binary", "'{}' failed with status 1\n\ufffd\ufffd"),
        ("reads", "'{}' wrote no library"),
        ("--version", "'{}'"),
    ],
)
def test_a_compiler_that_is_none_is_a_runtime_error_at_once_and_every_time(
    folder, tmp_path, monkeypatch, said, message
):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("c++")
    (tmp_path / "text").chmod(0o755)
    output = "for last; do :; done"  # the last argument, after -o
    script(tmp_path / "hangs", "sleep 60 & wait")
    script(tmp_path / "fails", "echo no header >&2", "exit 3")
    script(tmp_path / "killed", "kill -9 $$")
    script(tmp_path / "nothing")
    script(tmp_path / "garbage", output, "yes > /dev/null & kill $!", 'seq 100000 > "$last"')
    script(tmp_path / "empty", output, ': > "$last"')
    script(tmp_path / "other", output, f'echo "int x;" | {shlex.quote(real())} -x c++ -shared -fPIC - -o "$last"')
    script(tmp_path / "binary", r"printf '\377\376' >&2", "exit 1")
    script(tmp_path / "reads", "cat")
    given = str(tmp_path / said) if said.isalpha() or "/" in said else said
    monkeypatch.setenv("CXX", given)
    monkeypatch.setattr(build, "TIMEOUT", 1.0)
    for _ in range(2):
        with pytest.raises(RuntimeError) as error:
            build.library(SOURCE)
        assert message.format(given) in str(error.value)
        monkeypatch.setattr(build, "_run", None)  # it is not tried again
    assert not folder.exists() or not list(folder.iterdir())


def real():
    return str(next(path for path in map(shutil.which, ("c++", "g++", "clang++")) if path))


def test_a_compiler_that_hangs_leaves_no_process(folder, tmp_path, monkeypatch):
    child = tmp_path / "child"
    monkeypatch.setenv("CXX", script(tmp_path / "hangs", f"sleep 60 & echo $! > {shlex.quote(str(child))}", "wait"))
    monkeypatch.setattr(build, "TIMEOUT", 0.5)
    with pytest.raises(RuntimeError, match="gave no answer"):
        build.library(SOURCE)
    end = time.monotonic() + 10
    while Path("/proc", child.read_text().strip()).exists() and time.monotonic() < end:
        state = Path("/proc", child.read_text().strip(), "stat").read_text().split()[2]
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path("/proc", child.read_text().strip()).exists()


def test_a_compiler_that_cannot_be_run_is_not_tried_for_other_sources(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/c++")
    with pytest.raises(RuntimeError):
        build.library(SOURCE)
    monkeypatch.setattr(build, "_run", None)
    with pytest.raises(RuntimeError, match="cannot be used"):
        build.library(f"{SOURCE}, and another")
    monkeypatch.undo()
    build.library(SOURCE)


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ("{c} -O0", "{c} FLAGS -O0"),
        ("{launch} {c}", "{launch} {c} FLAGS"),
        ("{launch} {c} -O0 -I /tmp", "{launch} {c} FLAGS -O0 -I /tmp"),
        ("env X=1 {c} -O0", "env X=1 {c} FLAGS -O0"),
        ("nice -n 1 {c} -O0", "nice -n 1 {c} FLAGS -O0"),
        ("'{spaces}' -O0", "{spaces} FLAGS -O0"),
        (" ", "{c} FLAGS"),
        ("", "{c} FLAGS"),
    ],
)
def test_flags_stand_between_the_compiler_and_its_options(folder, tmp_path, monkeypatch, load, given, arguments):
    names = {"c": real(), "launch": script(tmp_path / "launch", 'exec "$@"'), "spaces": str(tmp_path / "c c")}
    script(tmp_path / "c c", f'exec {names["c"]} "$@"')
    monkeypatch.setenv("CXX", given.format(**names))
    run, seen = build._run, []
    monkeypatch.setattr(build, "_run", lambda words: seen.append(words) or run(words))
    load()
    words = arguments.split()
    place = words.index("FLAGS")
    expected = [word.format(**names) for word in words]
    expected[place : place + 1] = build.FLAGS
    assert seen[0][: len(expected)] == expected


def only(folder):
    [path] = folder.iterdir()
    return path


def test_a_library_is_compiled_once(folder, monkeypatch, load):
    load()
    path = only(folder)
    monkeypatch.setattr(build, "_compile", None)
    load()
    assert only(folder) == path


DAMAGE = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut at a page": lambda path: os.truncate(path, 4096),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "text": lambda path: path.write_text("a library"),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a broken link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "no cache": lambda path: shutil.rmtree(path.parents[1]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_library_is_compiled_again(folder, monkeypatch, load, damage):
    load()
    path = only(folder)
    data = path.read_bytes()
    path.unlink()  # this process has loaded it: what is changed in place would end it
    path.write_bytes(data)
    DAMAGE[damage](path)
    load()
    if damage != "a folder":
        assert only(folder).read_bytes() == data
        monkeypatch.setattr(build, "_compile", None)
    load()


def test_a_library_of_another_machine_is_compiled_again(folder, load, monkeypatch):
    """Its name fits its bytes, but the system does not load it."""
    load()
    path = only(folder)
    data = bytearray(path.read_bytes())
    data[18] ^= 0xFF  # e_machine
    path.unlink()
    other = folder / f"name-{build._digest(bytes(data))}.so"
    other.write_bytes(data)
    load()
    assert path.is_file()
    monkeypatch.setattr(build, "_compile", None)
    load()


def test_the_processor_is_part_of_the_name(folder, monkeypatch):
    names = set()
    for machine in ("one", "another"):
        monkeypatch.setattr(build, "_machine", lambda machine=machine: machine)
        names.add(build.library(f"{SOURCE}, on two machines"))
    assert len(names) == len(list(folder.iterdir())) == 2


def test_no_process_dies_of_a_library_that_was_cut_off(folder):
    """To touch what is missing of a mapped file is a SIGBUS."""
    finish(process(LOAD))
    for path in folder.iterdir():
        os.truncate(path, path.stat().st_size // 2)
    finish(process(LOAD))


def test_processes_that_compile_at_once_leave_one_good_library(folder):
    for one in [process(LOAD) for _ in range(3)]:
        finish(one)
    paths = list(folder.iterdir())
    assert paths
    assert all(path.suffix == ".so" for path in paths)


def test_after_a_process_that_was_killed_the_next_one_compiles(folder, tmp_path):
    started = tmp_path / "started"
    slow = script(tmp_path / "slow", f"touch {shlex.quote(str(started))}", f'exec {real()} "$@"')
    wait = script(tmp_path / "wait", f"touch {shlex.quote(str(started))}", "exec sleep 30")
    killed = process(LOAD, CXX=wait)
    while not started.exists():
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not folder.exists() or not list(folder.rglob("*.so"))
    finish(process(LOAD, CXX=slow))
    assert only(folder).suffix == ".so"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to act as another user")
def test_a_library_of_another_user_is_not_loaded(folder, load):
    load()
    path = only(folder)
    os.chown(path, USER, USER)
    load()
    assert path.stat().st_uid == 0


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to act as another user")
def test_a_cache_that_belongs_to_another_user_is_not_used(folder, load):
    load()
    path = only(folder)
    os.chown(path.parent, USER, USER)
    before = path.stat()
    with pytest.warns(RuntimeWarning, match=f"compiled cells are not kept: other users can write to {path.parent}"):
        load()
    assert path.stat() == before


def test_what_others_could_write_to_is_made_private_and_compiled_again(folder, load):
    load()
    path = only(folder)
    path.chmod(0o777)
    path.parent.chmod(0o777)
    before = path.stat().st_ino
    load()
    assert [only(folder).stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777] == [0o700, 0o700]
    assert path.stat().st_ino != before


def mounted(options, place, code=LOAD, **environment):
    """Run a process for which `place` is a file system of its own; returns what is left there."""
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    place.mkdir(parents=True)
    command = (
        f"mount -t tmpfs -o {options} none {shlex.quote(str(place))} && "
        f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} && find {shlex.quote(str(place))} -type f"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
@pytest.mark.parametrize("options", ["noexec", "ro", "size=4k"])
def test_a_cache_that_keeps_or_runs_nothing_is_done_without(folder, options):
    """No library may be kept where none can be run, and no part of one where there is no room for it."""
    assert mounted(options, folder) == ""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
def test_a_home_that_cannot_be_written_is_done_without(folder, tmp_path):
    assert mounted("ro", tmp_path / "home", HOME=str(tmp_path / "home"), XDG_CACHE_HOME="") == ""


@pytest.mark.parametrize("home", ["relative", "~"])
def test_a_home_that_is_no_absolute_path_is_none(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home)
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        with pytest.raises(RuntimeError):
            build.user_cache()
    monkeypatch.setattr(build, "_failed", {})
    build._load("name", CODE, compiler() or [])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to act as another user")
def test_a_user_without_a_home_is_served():
    become = f"import os, jax\nfrom seqjax.solvers.native import build\nos.setuid({USER - 1})\n"
    home = "try:\n    print(build.cache())\nexcept RuntimeError:\n    print('no home')\n"
    out, _ = finish(process(f"{become}{home}{LOAD}", HOME=None, XDG_CACHE_HOME=None))
    assert out == "no home"


def test_without_headers_the_error_is_that_of_the_compiler(folder, monkeypatch):
    with pytest.raises(RuntimeError, match=r"failed with status 1\n.*no/such\.h"):
        build.library('#include "no/such.h"')


def test_without_a_compiler_the_error_says_where_it_was_sought(folder):
    out, _ = finish(process(RUN, CXX=None, PATH="/nowhere"))  # auto has nothing to warn of
    assert out == "RuntimeError no C++ compiler: neither $CXX nor c++, g++ or clang++ in $PATH"


@pytest.mark.parametrize("given", few(["/no/such/c++", "hangs", "fails"], ("hangs", "fails")))
def test_auto_warns_once_and_does_without(folder, tmp_path, given):
    script(tmp_path / "hangs", "exec sleep 60")
    script(tmp_path / "fails", "exit 3")
    command = given if given.startswith("/") else str(tmp_path / given)
    out, _ = finish(process(RUN, CXX=command))
    warned, raised = out.splitlines()
    assert warned.startswith(f"RuntimeWarning method \"native\" is left out: the C++ compiler '{command}'")
    assert raised.startswith(f"RuntimeError the C++ compiler '{command}'")
    assert not folder.exists()
