"""The table that `method="auto"` chooses by: every method at a grid of sizes, on this device.

    python -m benchmarks.methods           measure, and write seqjax/solvers/methods.csv; about 3 minutes
    python -m benchmarks.methods --quick   two sizes; writes nothing

It times the gradient of a loss of the last output, T = 200, for an LSTM ("gated") and a minGRU ("affine"), in
float32. Lines of other devices are kept. Methods within 3 % of each other count as equally fast and keep the order of
`GATED` and `AFFINE`, so that noise does not reorder the table.
"""

import argparse
import contextlib
import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import seqjax
from seqjax.solvers import named
from seqjax.solvers.native import compiler

GATED = ("native", "rematerialized", "fused", "scan")
AFFINE = ("associative", "scan", "rematerialized")
# On an accelerator a loop with one step per turn is known to lose.
GATED_ON_ACCELERATORS = ("persistent", "fused:8", "fused:16", "scan:8", "rematerialized:8")
AFFINE_ON_ACCELERATORS = ("associative", "scan:8")
BATCHES, UNITS, STEPS = (1, 16, 128), (8, 32, 128, 512), 200
TIE = 1.03
TABLE = Path(seqjax.__file__).parent / "solvers" / "methods.csv"
FIELDS = ("platform", "recurrence", "batch", "units", "methods")


def gradient(cell: seqjax.Cell, method: str) -> Callable[[Any, jax.Array], Any]:
    """What is timed: the gradient of a loss of the last output, `(params, xs [T, B, D]) -> gradient`."""

    def loss(params, xs):
        return jnp.mean(seqjax.unroll(cell, params, None, xs, method=named(method))[1][-1] ** 2)

    return jax.grad(loss)


def measure(cell: seqjax.Cell, batch: int, units: int, methods: Sequence[str], rounds: int = 7) -> dict[str, float]:
    """Seconds of a gradient by each method that runs: the median of rounds in which the methods take turns."""
    features = min(units, 64)
    params = cell.init(jax.random.key(0), features)
    xs = jax.random.normal(jax.random.key(1), (STEPS, batch, features))

    programs: dict[str, Any] = {}
    for method in methods:
        with contextlib.suppress(ValueError):  # one that refuses this size is not ranked
            programs[method] = jax.jit(gradient(cell, method)).lower(params, xs).compile()
    seconds: dict[str, list[float]] = {method: [] for method in programs}
    for _ in range(rounds):
        for method, program in programs.items():
            # Training calls one program again and again; the first call after another one pays for that one's memory.
            jax.block_until_ready(program(params, xs))
            calls, start = 0, time.perf_counter()
            while time.perf_counter() - start < 0.03:
                jax.block_until_ready(program(params, xs))
                calls += 1
            seconds[method].append((time.perf_counter() - start) / calls)
    return {method: float(np.median(times)) for method, times in seconds.items()}


def ranked(seconds: dict[str, float]) -> list[str]:
    """The methods, the fastest first; of those within `TIE` of each other, the one listed first."""
    left, order = dict(seconds), []
    while left:
        best = min(left.values())
        first = next(method for method, s in left.items() if s <= TIE * best)
        order.append(first)
        del left[first]
    return order


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all sizes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two sizes; write nothing")
    quick = parser.parse_args(argv).quick
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform == "cpu" and compiler() is None:
        raise SystemExit("benchmarks.methods: no C++ compiler here, and the table ranks what it compiles")
    gated, affine = (GATED, AFFINE) if platform == "cpu" else (GATED_ON_ACCELERATORS, AFFINE_ON_ACCELERATORS)
    rows = []
    for recurrence, make, methods in (("gated", seqjax.cells.lstm, gated), ("affine", seqjax.cells.min_gru, affine)):
        for batch in BATCHES[:1] if quick else BATCHES:
            for units in UNITS[:1] if quick else UNITS:
                seconds = measure(make(units), batch, units, methods, rounds=1 if quick else 7)
                times = "  ".join(f"{method} {1e3 * s:.2f}" for method, s in seconds.items())
                print(f"{platform} {recurrence} B={batch} H={units}  ms: {times}", flush=True)
                rows.append((platform, recurrence, batch, units, " ".join(ranked(seconds))))
    if quick:
        return
    with TABLE.open() as file:
        rows += [tuple(row[f] for f in FIELDS) for row in csv.DictReader(file) if row["platform"] != platform]
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows(rows)
    print(f"wrote {TABLE}")


if __name__ == "__main__":
    main()
