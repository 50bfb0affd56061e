"""Run the compiled loop under the address and the undefined-behaviour sanitizer: `make sanitize`.

The C++ of every cell in the tests is compiled with both; the first report of either ends the process, and this one with
it. Python itself is not instrumented, and leaks are not counted: memory that outlives a call here does so on purpose.

    python -m tools.sanitize [pytest arguments]   default: tests of the compiled loop, and of all cells by all methods
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ["tests/test_native.py", "tests/test_native_special_values.py", "tests/test_empty.py", "tests/test_solve.py"]
# At -O0 a cell compiles in a quarter of the time, and nothing is optimized away before it is checked.
FLAGS = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def runtime(compiler: str) -> str:
    """The libraries that must be loaded before Python's own."""
    paths = []
    for name in ("libasan.so", "libubsan.so"):
        command = [compiler, f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(path).is_absolute():
            raise SystemExit(f"{compiler} has no {name}: the sanitizers of g++ are needed")
        paths.append(path)
    return " ".join(paths)


def main(arguments: list[str]) -> int:
    """Run pytest on C++ with sanitizers; returns its exit status."""
    compiler = "g++"
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            "CXX": shlex.join(["env", "-u", "LD_PRELOAD", compiler, *FLAGS]),
            "LD_PRELOAD": runtime(compiler),
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "XDG_CACHE_HOME": cache,
        }
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-m", "not slow", "-n", "0", "--capture=sys", *(arguments or TESTS)],
            cwd=ROOT,
            env={**os.environ, **environment},
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
