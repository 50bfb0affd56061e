"""A training step and an inference on a GPU, in seqjax and its peers; for ten minutes of a device.

    python -m benchmarks.gpu            all rows; writes docs/benchmarks-gpu.md and benchmarks/results/gpu.json
    python -m benchmarks.gpu --quick    one tiny row of each kind, on any device; writes nothing
    python -m benchmarks.gpu --again    measures rows that are on file again

Compilation takes most of the time, so several processes share the rows. All of them compile; then one after the other
measures. Rows are written as they are measured, and those on file are not measured again, so the same command resumes
a run that was cut short. The programs, their data and the check against a reference are those of `benchmarks.step`.
"""

import argparse
import contextlib
import datetime
import json
import math
import multiprocessing
import os
import queue
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import seqjax
from benchmarks.places import REPOSITORY, Places, places
from benchmarks.problem import DTYPES, SHAPES, Row, Shape
from benchmarks.programs import AUTO, CUDNN, EQUINOX, FLAX, ON_GPU, TORCH, Disagreement, Entry, build
from benchmarks.timed import median
from experiments.harness.report import markdown_table
from seqjax.train import write_atomic

SECONDS = 0.2  # to time one program
LONGEST = 300  # seconds that a process waits for the others to compile
LANES = (1, 16, 64, 256)
QUICK = Shape(2, 3, 2, 4)
INFERRED = (AUTO, FLAX, CUDNN, TORCH)  # the entries whose inference is timed

Found = dict[str, Any]
Measure = Callable[[float], Found]
"""`(seconds for a program) -> what was found`."""


class Job(NamedTuple):
    """What is measured at once: entries of one row, or the variants of seqjax at one shape."""

    row: Row
    dtype: str
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        return f"{self.row}, {self.dtype}"

    def prepare(self) -> Measure:
        """Compile and check the programs, one after the other."""
        made: dict[Entry, Any] = {}
        reasons: dict[Entry, str] = {}
        for entry in self.entries:
            try:
                programs, left_out = build(self.row, [entry], DTYPES[self.dtype])
            except Disagreement as error:
                reasons[entry] = str(error)
                continue
            reasons |= left_out
            for program in programs.values():
                made[entry] = program
                if entry in INFERRED:
                    program.compile_inference()
        return partial(self._measure, made, reasons)

    def _measure(self, made: dict[Entry, Any], reasons: dict[Entry, str], seconds: float) -> Found:
        """By entry: seconds of an update, an inference and of compilation; or the reason why there are none."""
        found: Found = {entry.name: {"left out": reason} for entry, reason in reasons.items()}
        for entry, program in made.items():
            found[entry.name] = {"update": median(partial(program.run, 1), seconds)}
            if entry in INFERRED:
                found[entry.name]["inference"] = median(partial(program.infer, 1), seconds)
            if program.compile_seconds is not None:
                found[entry.name]["compile"] = program.compile_seconds
        return found


class Variants(NamedTuple):
    """Value and gradient of seqjax's LSTM by `auto`: under wrappers, in both directions, and lanes by `vmap`."""

    shape: Shape
    lanes: tuple[int, ...]

    def __str__(self) -> str:
        return f"variants ({self.shape})"

    def prepare(self) -> Measure:
        """Compile the programs."""
        cell = seqjax.cells.lstm(self.shape.hidden)
        xs = jax.random.normal(jax.random.key(0), (self.shape.steps, self.shape.batch, self.shape.features))
        batch, key = (self.shape.batch,), jax.random.key(1)
        dropped, draw_mask = seqjax.regularizers.recurrent_dropout(cell, 0.3)
        zoned, draw_zones = seqjax.noise.zoneout(cell, 0.1)
        steps = self.shape.steps
        lengths = jnp.arange(self.shape.batch, dtype=jnp.int32) % (steps // 2 + 1) + steps // 2

        def noisy(draw):
            return lambda params, xs: (xs, draw(key, cell.initial_carry(params, batch), xs))

        def plain(params, xs):
            return xs

        kinds = {
            "plain": (cell, plain, None),
            "mask": (cell, plain, seqjax.mask_from_lengths(lengths, steps)),
            "recurrent dropout": (dropped, noisy(draw_mask), None),
            "zoneout": (zoned, noisy(draw_zones), None),
            "peepholes": (seqjax.cells.peephole_lstm(self.shape.hidden), plain, None),
        }

        def gradient(cell, inputs, mask):
            def loss(params, xs):
                return jnp.mean(jnp.square(seqjax.unroll(cell, params, None, inputs(params, xs), mask=mask)[1]))

            return jax.value_and_grad(loss)

        made = {}
        for name, (one, inputs, mask) in kinds.items():
            params = one.init(jax.random.key(2), self.shape.features)
            made[name] = compiled(gradient(one, inputs, mask), params, xs)
        for count in self.lanes:
            keys = jax.random.split(jax.random.key(3), count)
            params = jax.vmap(lambda key: cell.init(key, self.shape.features))(keys)
            made[f"{count} lanes"] = compiled(jax.vmap(gradient(*kinds["plain"]), (0, None)), params, xs)
        both = tuple(cell.init(jax.random.key(seed), self.shape.features) for seed in (4, 5))

        def calls(params, xs):
            return jnp.mean(jnp.square(seqjax.bidirectional((cell, cell), params, None, xs)[1]))

        def stacked(params, xs):
            pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), *params)
            ys = jax.vmap(lambda p, x: seqjax.unroll(cell, p, None, x)[1])(pair, jnp.stack([xs, xs[::-1]]))
            return jnp.mean(jnp.square(jnp.concatenate([ys[0], ys[1, ::-1]], -1)))

        for name, loss in (("both directions, two calls", calls), ("both directions, two lanes", stacked)):
            made[name] = compiled(jax.value_and_grad(loss), both, xs)
        return lambda seconds: {name: median(call, seconds) for name, call in made.items()}


def compiled(f: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """A compiled function, and its arguments."""
    run = jax.jit(f).lower(*args).compile()
    return lambda: jax.block_until_ready(run(*args))


def jobs(shapes: Sequence[Shape], lanes: tuple[int, ...]) -> Iterator[Job | Variants]:
    """All that is measured, the most important first."""
    few = (AUTO, FLAX, TORCH)
    for shape in shapes:
        yield Job(Row("lstm", "plain", shape), "float32", ON_GPU)
    yield Variants(shapes[0], lanes)
    for shape in shapes:
        yield Job(Row("lstm", "plain", shape), "bfloat16", few)
    for cell, condition in (("gru", "plain"), ("rnn", "plain"), ("lstm", "lengths"), ("lstm", "dropout")):
        for shape in shapes:
            yield Job(Row(cell, condition, shape), "float32", few)


def installed(job: Job | Variants) -> Job | Variants:
    """A job without the entries whose packages are missing."""
    return job._replace(entries=tuple(e for e in job.entries if e.installed)) if isinstance(job, Job) else job


def work(
    names: Sequence[str],
    sizes: tuple[Sequence[Shape], tuple[int, ...]],
    seconds: float,
    others: Any,
    turn: Any,
    out: Any,
) -> None:
    """Compile the jobs of these names, wait until the other processes have theirs, and measure in turn."""
    every = {str(job): job for job in jobs(*sizes)}
    try:
        made = [(name, installed(every[name]).prepare()) for name in names]
    except BaseException:
        others.abort()
        raise
    with contextlib.suppress(threading.BrokenBarrierError):  # one has failed or takes too long
        others.wait(LONGEST)
    with turn:
        for name, measure in made:
            out.put((name, measure(seconds)))


def measured(
    names: Sequence[str], sizes: tuple[Sequence[Shape], tuple[int, ...]], processes: int, seconds: float
) -> Iterator[tuple[str, Found]]:
    """The results of the jobs of these names."""
    if processes == 1:
        every = {str(job): job for job in jobs(*sizes)}
        for name in names:
            yield name, installed(every[name]).prepare()(seconds)
        return
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # they share the memory of one device
    context = multiprocessing.get_context("spawn")
    shared = context.Barrier(processes), context.Lock(), context.Queue()
    parts = [(names[n::processes], sizes, seconds, *shared) for n in range(processes)]
    workers = [context.Process(target=work, args=part, daemon=True) for part in parts]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers) or not shared[2].empty():
        with contextlib.suppress(queue.Empty):
            yield shared[2].get(timeout=1)


PEERS = tuple(entry.name for entry in (FLAX, EQUINOX, CUDNN))


def pairs(rows: Iterable[Found], what: str) -> Iterator[tuple[float, float]]:
    """Seconds of seqjax and of the fastest JAX peer, of the rows that have both."""
    for found in rows:
        peers = [found[n][what] for n in PEERS if what in found.get(n, {})]
        if peers and what in found.get(AUTO.name, {}):
            yield found[AUTO.name][what], min(peers)


def ratios(seconds: dict[str, float]) -> list[str]:
    """What seqjax takes over what the fastest JAX peer takes, and over what PyTorch takes."""
    peers = [seconds[n] for n in PEERS if n in seconds]
    of = [min(peers, default=None), seconds.get(TORCH.name)]
    return [f"{seconds[AUTO.name] / peer:.2f}" if peer and AUTO.name in seconds else "" for peer in of]


def page(results: dict[str, Any], about: Sequence[Sequence[str]]) -> str:
    """The page of the results on file."""
    order = [str(job) for job in jobs(SHAPES, LANES)]
    results = dict(sorted(results.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order)))
    parts = ["# Benchmarks on a GPU", "Written by `python -m benchmarks.gpu`.", markdown_table(list(map(list, about)))]
    for what in ("update", "inference"):
        for dtype in DTYPES:
            rows = {name: found for name, found in results.items() if name.endswith(dtype)}
            names = [e.name for e in ON_GPU if any(what in found.get(e.name, {}) for found in rows.values())]
            if not names:
                continue
            table: list[list[str]] = [["cell, condition, (B, T, D, H)", *names, "over JAX peer", "over PyTorch"]]
            for name, found in rows.items():
                seconds = {n: found[n][what] for n in names if what in found.get(n, {})}
                shown = [f"{1e3 * seconds[n]:.2f}" if n in seconds else "" for n in names]
                table.append([name.rpartition(", ")[0], *shown, *ratios(seconds)])
            parts += [f"## One {what}, {dtype}, ms", markdown_table(table)]
            over = [auto / peer for auto, peer in pairs(rows.values(), what)]
            if over:
                mean = math.exp(statistics.fmean(map(math.log, over)))
                parts.append(f"seqjax over the fastest JAX peer: geometric mean {mean:.2f}, at most {max(over):.2f}.")
    for name, found in results.items():
        if name.startswith("variants"):
            table = [["", "ms", "over plain"]]
            table += [[kind, f"{1e3 * s:.2f}", f"{s / found['plain']:.2f}"] for kind, s in found.items()]
            parts += [f"## seqjax LSTM, value and gradient, {name.partition(' ')[2]}", markdown_table(table)]
    entries = [pair for found in results.values() for pair in found.items()]
    reasons = sorted({f"- {entry}: {f['left out']}" for entry, f in entries if isinstance(f, dict) and "left out" in f})
    return "\n\n".join([*parts, *(["## Left out", "\n".join(reasons)] if reasons else [])]) + "\n"


def driver() -> str:
    """Model and driver of the GPUs, as nvidia-smi reports them."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    if not shutil.which(command[0]):
        return "unknown"
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().replace("\n", "; ")


def write(results: dict[str, Any], file: Path, where: Places) -> None:
    """The results, and the page of them."""
    about = [["", ""], ["date", f"{datetime.date.today():%Y-%m-%d}"], ["device", jax.devices()[0].device_kind]]
    about += [["driver", driver()], ["jax", jax.__version__]]
    write_atomic(file, json.dumps(results, indent=1))
    write_atomic(where.pages / "benchmarks-gpu.md", page(results, about))


def main(arguments: Sequence[str]) -> None:
    """Measure what is not on file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Time a GPU.")
    parser.add_argument("--quick", action="store_true", help="tiny rows; writes nothing without --output")
    parser.add_argument("--again", action="store_true", help="measure rows that are on file again")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write; default docs/ of a full run")
    parser.add_argument("--processes", type=int, default=1, help="that compile at the same time")
    flags = parser.parse_args(arguments)
    where = places(flags.output, whole=not flags.quick)
    if jax.default_backend() != "gpu" and where == REPOSITORY:
        raise SystemExit(f"benchmarks.gpu needs a GPU, and JAX runs on {jax.default_backend()} here; or use --quick")
    file = where and where.results / "gpu.json"
    results = json.loads(file.read_text()) if file and file.exists() and not flags.again else {}
    seconds, sizes = (1e-3, ([QUICK], (2,))) if flags.quick else (SECONDS, (SHAPES, LANES))
    todo = [str(job) for job in jobs(*sizes) if str(job) not in results]
    start = time.perf_counter()
    for number, (name, found) in enumerate(measured(todo, sizes, flags.processes, seconds)):
        print(f"{time.perf_counter() - start:4.0f} s  {number + 1} of {len(todo)}: {name}", file=sys.stderr, flush=True)
        results[name] = found
        if where and file:
            where.results.mkdir(parents=True, exist_ok=True)
            write(results, file, where)
    missing = [name for name in todo if name not in results]
    print(json.dumps(results, indent=1) if not where else f"written: {where.pages / 'benchmarks-gpu.md'}")
    if missing:
        raise SystemExit(f"not measured, since their process failed: {'; '.join(missing)}")


if __name__ == "__main__":
    main(sys.argv[1:])
