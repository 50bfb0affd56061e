"""A training step and an inference on a GPU, in seqjax and its peers; for ten minutes of a device.

    python -m benchmarks.gpu            all rows; writes docs/benchmarks-gpu.md and benchmarks/results/gpu.json
    python -m benchmarks.gpu --quick    one tiny row of each kind, on any device; writes nothing
    python -m benchmarks.gpu --again    measures rows that are on file again

Rows are written as they are measured, and those on file are not measured again, so the same command resumes a run that
was cut short. The most important rows come first: the plain LSTM in float32 by every method and peer, the variants and
lanes of seqjax, the LSTM in bfloat16, and other cells and conditions by the fastest entries. The programs, their data
and the check against a reference are those of `benchmarks.step`.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import seqjax
from benchmarks.places import REPOSITORY, Places, places
from benchmarks.problem import DTYPES, SHAPES, Row, Shape
from benchmarks.programs import AUTO, FLAX, ON_GPU, TORCH, Disagreement, Entry, build
from experiments.harness.report import markdown_table
from seqjax.train import write_atomic

SECONDS = 0.25  # to time one program
QUICK = Shape(2, 3, 2, 4)


class Job(NamedTuple):
    """What is measured at once: entries of one row, or the variants of seqjax at one shape."""

    row: Row
    dtype: str
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        return f"{self.row}, {self.dtype}"


def jobs(shapes: Sequence[Shape]) -> Iterator[Job]:
    """All rows, the most important first."""
    few = (AUTO, FLAX, TORCH)
    for shape in shapes:
        yield Job(Row("lstm", "plain", shape), "float32", ON_GPU)
    for shape in shapes:
        yield Job(Row("lstm", "plain", shape), "bfloat16", ON_GPU)
    for cell, condition in (("gru", "plain"), ("rnn", "plain"), ("lstm", "lengths"), ("lstm", "dropout")):
        for shape in shapes:
            yield Job(Row(cell, condition, shape), "float32", few)


def median(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of one call: the median over as many as fit, and at least 3."""
    call()
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def measure(job: Job, seconds: float) -> dict[str, dict[str, float | str]]:
    """By entry: seconds of an update and of an inference, and of compilation; or the reason why there are none."""

    def one(entry):
        try:
            programs, left_out = build(job.row, [entry], DTYPES[job.dtype])
        except Disagreement as error:
            return None, str(error)
        if not programs:
            return None, left_out[entry]
        programs[entry].compile_inference()
        return programs[entry], ""

    with ThreadPoolExecutor(min(len(job.entries), os.cpu_count() or 1)) as pool:
        made = dict(zip(job.entries, pool.map(one, job.entries), strict=True))
    found: dict[str, dict[str, float | str]] = {}
    for entry, (program, reason) in made.items():
        if program is None:
            found[entry.name] = {"left out": reason}
            continue
        found[entry.name] = {
            "update": median(partial(program.run, 1), seconds),
            "inference": median(partial(program.infer, 1), seconds),
        }
        if program.compile_seconds is not None:
            found[entry.name]["compile"] = program.compile_seconds
    return found


def variants(shape: Shape, lanes: Sequence[int], seconds: float) -> dict[str, float]:
    """Seconds of value and gradient of seqjax's LSTM by `auto`: under wrappers, and of lanes by `vmap`."""
    cell = seqjax.cells.lstm(shape.hidden)
    xs = jax.random.normal(jax.random.key(0), (shape.steps, shape.batch, shape.features))
    batch, key = (shape.batch,), jax.random.key(1)
    dropped, draw_mask = seqjax.regularizers.recurrent_dropout(cell, 0.3)
    zoned, draw_zones = seqjax.noise.zoneout(cell, 0.1)
    lengths = jnp.arange(shape.batch, dtype=jnp.int32) % (shape.steps // 2 + 1) + shape.steps // 2
    mask = seqjax.mask_from_lengths(lengths, shape.steps)

    def carry(cell, params):
        return cell.initial_carry(params, batch)

    def noisy(draw):
        return lambda params, xs: (xs, draw(key, carry(cell, params), xs))

    kinds = {
        "plain": (cell, lambda params, xs: xs, None),
        "mask": (cell, lambda params, xs: xs, mask),
        "recurrent dropout": (dropped, noisy(draw_mask), None),
        "zoneout": (zoned, noisy(draw_zones), None),
        "peepholes": (seqjax.cells.peephole_lstm(shape.hidden), lambda params, xs: xs, None),
    }

    def gradient(cell, inputs, mask):
        def loss(params, xs):
            return jnp.mean(jnp.square(seqjax.unroll(cell, params, None, inputs(params, xs), mask=mask)[1]))

        return jax.value_and_grad(loss)

    found = {}
    for name, (made, inputs, mask) in kinds.items():
        params = made.init(jax.random.key(2), shape.features)
        run = jax.jit(gradient(made, inputs, mask)).lower(params, xs).compile()
        found[name] = median(lambda run=run, params=params: jax.block_until_ready(run(params, xs)), seconds)
    for count in lanes:
        params = jax.vmap(lambda key: cell.init(key, shape.features))(jax.random.split(jax.random.key(3), count))
        run = jax.jit(jax.vmap(gradient(*kinds["plain"]), (0, None))).lower(params, xs).compile()
        found[f"{count} lanes"] = median(lambda run=run, params=params: jax.block_until_ready(run(params, xs)), seconds)
    both = tuple(cell.init(jax.random.key(seed), shape.features) for seed in (4, 5))

    def two(params, xs):
        return jnp.mean(jnp.square(seqjax.bidirectional((cell, cell), params, None, xs)[1]))

    def stacked(params, xs):
        pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), *params)
        ys = jax.vmap(lambda p, x: seqjax.unroll(cell, p, None, x)[1])(pair, jnp.stack([xs, xs[::-1]]))
        return jnp.mean(jnp.square(jnp.concatenate([ys[0], ys[1, ::-1]], -1)))

    for name, loss in (("both directions, two calls", two), ("both directions, two lanes", stacked)):
        run = jax.jit(jax.value_and_grad(loss)).lower(both, xs).compile()
        found[name] = median(lambda run=run: jax.block_until_ready(run(both, xs)), seconds)
    return found


def page(results: dict[str, Any], about: Sequence[Sequence[str]]) -> str:
    """The page of the results on file."""
    parts = ["# Benchmarks on a GPU", "Written by `python -m benchmarks.gpu`.", markdown_table(list(map(list, about)))]
    for what in ("update", "inference"):
        for dtype in DTYPES:
            rows = {name: found for name, found in results.items() if name.endswith(dtype)}
            names = [e.name for e in ON_GPU if any(what in found.get(e.name, {}) for found in rows.values())]
            if not names:
                continue
            table: list[list[str]] = [["cell, condition, (B, T, D, H)", *names]]
            for name, found in rows.items():
                cells = [found.get(n, {}).get(what) for n in names]
                table.append([name.rpartition(", ")[0], *("" if c is None else f"{1e3 * c:.2f}" for c in cells)])
            parts += [f"## One {what}, {dtype}, ms", markdown_table(table)]
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
    flags = parser.parse_args(arguments)
    where = places(flags.output, whole=not flags.quick)
    if jax.default_backend() != "gpu" and where == REPOSITORY:
        raise SystemExit(f"benchmarks.gpu needs a GPU, and JAX runs on {jax.default_backend()} here; or use --quick")
    file = where and where.results / "gpu.json"
    results = json.loads(file.read_text()) if file and file.exists() and not flags.again else {}
    seconds, shapes, lanes = (1e-3, [QUICK], [2]) if flags.quick else (SECONDS, SHAPES, [1, 16, 64, 256])
    queue: list[tuple[str, Callable[[], Any]]] = [
        (str(job), partial(measure, job._replace(entries=tuple(e for e in job.entries if e.installed)), seconds))
        for job in jobs(shapes)
    ]
    after = len(shapes)
    queue[after:after] = [(f"variants ({s})", partial(variants, s, lanes, seconds)) for s in shapes[:1]]
    start = time.perf_counter()
    for number, (name, run) in enumerate(queue):
        if name in results:
            continue
        print(
            f"{time.perf_counter() - start:4.0f} s  {number + 1} of {len(queue)}: {name}", file=sys.stderr, flush=True
        )
        results[name] = run()
        if where and file:
            where.results.mkdir(parents=True, exist_ok=True)
            write(results, file, where)
    print(json.dumps(results, indent=1) if not where else f"written: {where.pages / 'benchmarks-gpu.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
