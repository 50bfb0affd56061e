"""Killed, doubled and damaged runs, for `faults.py`: each function does one trial in an empty directory.

It returns "survived", or a sentence that begins with what went wrong: lost, wrong, silent or hung.
"""

import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Of a result and of records: what a clock or the machine decides; "records" is a hash of records with their clocks.
CLOCKS = ("seconds", "wall_seconds", "steps_per_second", "compile_seconds", "peak_memory_bytes", "records")
FLAGS = ["--model=line", "--steps=200", "--checkpoint_every=10"]
SWEEP = ["launch.py", "--experiment=toy_experiment", "--sweep=seed=0:3", *FLAGS]
COMMANDS = {
    "single run": ["-m", "toy_experiment", *FLAGS, "--seed=1"],
    "sweep by debug": [*SWEEP, "--executor=debug"],
    "sweep by vmap": [*SWEEP, "--executor=vmap"],
    "sweep by local": [*SWEEP, "--executor=local"],
}
LIMIT = 120.0  # seconds until a process is taken to hang


def start(arguments: list[str], directory: Path, **environment: str) -> subprocess.Popen:
    """A command of the project on a directory, in a session of its own."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, *arguments, f"--workdir={directory}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen) -> tuple[int | None, str]:
    """Its exit code, None where it hangs, and what it wrote."""
    try:
        said, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        return None, said
    return process.returncode, said


def without_clocks(entries: list[dict]) -> list[dict]:
    """Results or records as they must come out again."""
    return [{name: value for name, value in entry.items() if name not in CLOCKS} for entry in entries]


def outcome(directory: Path) -> dict[str, list]:
    """The result and the records of each run below a directory."""
    found = {}
    for file in sorted(directory.rglob("result.json")):
        records = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
        found[file.parent.name] = without_clocks([json.loads(file.read_text()), *records])
    return found


@functools.cache
def undisturbed(command: str) -> dict[str, list]:
    """What a command ends with where nothing happens to it."""
    with tempfile.TemporaryDirectory() as folder:
        code, said = end(start(COMMANDS[command], Path(folder) / "run"))
        if code != 0:
            raise RuntimeError(f"{command} failed by itself: {said}")
        return outcome(Path(folder) / "run")


def compared(command: str, directory: Path, code: int | None, said: str) -> str:
    """What became of a command that was disturbed and then run to its end."""
    if code is None:
        return "hung: the rerun did not end"
    if code != 0:
        return f"lost: the rerun ended with {code}: {said.strip().splitlines()[-1:]}"
    found, expected = outcome(directory), undisturbed(command)
    # A run of its own may differ from a lane in the last bits, and is a run of another name.
    if found.keys() != expected.keys():
        return f"lost: runs {sorted(found)} of {sorted(expected)}"
    for name, entries in found.items():
        for given, wanted in zip(entries, expected[name], strict=False):
            if given != wanted:
                differing = {key: (given.get(key), wanted.get(key)) for key in given.keys() | wanted.keys()}
                return f"wrong: {name} has other {', '.join(k for k, (a, b) in differing.items() if a != b)}"
    return "survived" if found == expected else "wrong: there are more or fewer records"


KILLS = 5


def killed(command: str, directory: Path) -> str:
    """Killed five times at any moment from its start on, workers left alone, then run to its end."""
    for _ in range(KILLS):
        process = start(COMMANDS[command], directory / "run", SEQJAX_TRIAL=str(directory))
        time.sleep(random.uniform(0.5, 8))
        process.kill()
        process.communicate()
        if left := left_behind(directory):
            return f"hung: the workers {left} did not end"
    return compared(command, directory / "run", *end(start(COMMANDS[command], directory / "run")))


def left_behind(directory: Path) -> list[int]:
    """The workers of a trial whose launcher was killed, which end by themselves: those that did not."""
    until = time.monotonic() + LIMIT
    while workers := [int(path.name) for path in Path("/proc").glob("[0-9]*") if _of_trial(path, directory)]:
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return workers


def _of_trial(process: Path, directory: Path) -> bool:
    try:
        return f"SEQJAX_TRIAL={directory}\0".encode() in (process / "environ").read_bytes()
    except OSError:  # it has ended
        return False


def doubled(command: str, directory: Path) -> str:
    """Started twice at the same moment: one does it, the other says who does."""
    processes = [start(COMMANDS[command], directory / "run") for _ in range(2)]
    ends = [end(process) for process in processes]
    codes = sorted(code if code is not None else 99 for code, _ in ends)
    if 99 in codes:
        return "hung: one of the two did not end"
    if codes == [0, 2]:
        winner, loser = sorted(zip(ends, processes, strict=True), key=lambda one: one[0][0] or 0)
        if f"is in use by process {winner[1].pid}" not in loser[0][1]:
            return f"silent: the second did not name the first: {loser[0][1]}"
    elif codes != [0, 0]:  # both: the second came when the first had finished
        return f"lost: exit codes {codes}"
    return compared(command, directory / "run", *end(start(COMMANDS[command], directory / "run")))


# In one process, since a damaged file is the same to a new one.


@functools.cache
def _stopped() -> Path:
    """A run that was stopped half way, with three checkpoints."""
    directory = Path(tempfile.mkdtemp()) / "run"
    process = start([*COMMANDS["single run"], "--delay=0"], directory)
    until = time.monotonic() + LIMIT
    while len(list((directory / "checkpoints").glob("[0-9]*0"))) < 3 or not (directory / "checkpoints" / "60").exists():
        if time.monotonic() > until:
            raise RuntimeError("the run did not get there")
        time.sleep(0.01)
    process.terminate()
    end(process)
    return directory


def _damage(path: Path) -> None:
    """One of the ways in which a file goes bad."""
    content = path.read_bytes()
    at = random.randrange(max(len(content), 1))
    kind = random.choice(["cut", "flip", "insert", "zeros", "empty", "missing"])
    if kind == "missing":
        path.unlink()
        return
    path.write_bytes(
        {
            "cut": content[:at],
            "flip": content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]
            if content
            else b"x",
            "insert": content[:at] + random.randbytes(random.randint(1, 64)) + content[at:],
            "zeros": content[:at] + bytes(len(content) - at),
            "empty": b"",
        }[kind]
    )


def damaged_checkpoint(directory: Path) -> str:
    """Some files of one, two or all three checkpoints go bad: an older one is taken, or nothing, but by name."""
    run = shutil.copytree(_stopped(), directory / "run")
    steps = sorted((run / "checkpoints").iterdir(), key=lambda path: int(path.name), reverse=True)
    for step in steps[: random.choice([1, 1, 1, 2, 3])]:
        files = [path for path in step.rglob("*") if path.is_file()]
        for path in random.sample(files, random.randint(1, len(files))):
            _damage(path)
    code, said = end(start(COMMANDS["single run"], run))
    if code == 1 and f"no checkpoint in {run / 'checkpoints'} can be read" in said:
        shutil.rmtree(run / "checkpoints")  # as the message advises
        code, said = end(start(COMMANDS["single run"], run))
    return compared("single run", run, code, said)


def damaged_records(directory: Path) -> str:
    """metrics.jsonl goes bad: what training goes on from is noticed, whatever comes after is dropped."""
    run = shutil.copytree(_stopped(), directory / "run")
    _damage(run / "metrics.jsonl")
    code, said = end(start(COMMANDS["single run"], run))
    if code == 1 and f"{run / 'metrics.jsonl'}" in said:
        shutil.copy(_stopped() / "metrics.jsonl", run)
        code, said = end(start(COMMANDS["single run"], run))
    return compared("single run", run, code, said)


NATIVE = """
import jax, jax.numpy as jnp, numpy as np, sys
import seqjax
from seqjax import cells
cell = cells.lstm(4)
params = cell.init(jax.random.key(0), 3)
xs = jnp.ones((5, 2, 3))
loss = lambda params: (seqjax.unroll(cell, params, None, xs, method="native")[1] ** 2).sum()
grads = jax.jit(jax.grad(loss))(params)
print(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(grads)).hex())
"""


@functools.cache
def _cache() -> tuple[Path, str]:
    """A cache that holds the compiled loop, and what it computes."""
    folder = Path(tempfile.mkdtemp())
    code, said = _run_native(folder)
    if code != 0:
        raise RuntimeError(said)
    return folder, said


def _run_native(cache: Path) -> tuple[int | None, str]:
    compiler = os.environ.get("CXX", f"{shutil.which('c++') or 'c++'} -O1")
    process = subprocess.Popen(
        [sys.executable, "-c", NATIVE],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache), "CXX": compiler},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return end(process)


def damaged_cache(directory: Path) -> str:
    """The library of a compiled loop goes bad: it is compiled again."""
    folder, expected = _cache()
    cache = shutil.copytree(folder, directory / "cache")
    for path in cache.rglob("*.so"):
        _damage(path)
    code, said = _run_native(cache)
    if code is None:
        return "hung: it did not end"
    return "survived" if (code, said) == (0, expected) else f"lost: {code}: {said[-300:]}"


def trials() -> list[tuple[str, Callable[[Path], str]]]:
    """Each fault by name, with what does it once in an empty directory, as often as it is to be done."""
    kills = [(f"{KILLS} SIGKILLs: {name}", functools.partial(killed, name)) for name in COMMANDS]
    doubles = [(f"started twice at once: {name}", functools.partial(doubled, name)) for name in COMMANDS]
    damages = [
        *[("damaged checkpoints", damaged_checkpoint)] * 79,
        *[("damaged records", damaged_records)] * 40,
        *[("damaged libraries in the cache", damaged_cache)] * 20,
    ]
    return [*kills * 6, *doubles * 6, *damages]
