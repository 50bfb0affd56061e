"""One training step of an LSTM, in seqjax and in its peers: time, memory and compilation, side by side in one run.

    python -m benchmarks.step                          all shapes; writes docs/benchmarks.md and its figure
    python -m benchmarks.step --quick                  two rounds of the first shape; writes nothing
    python -m benchmarks.step --shapes 64,35,256,512   other shapes, each B,T,D,H; writes nothing without --output

A step is the forward pass of an LSTM layer (input projection included) and of a linear head on its last output, the
gradient of

    loss = mean_b (h_T[b] @ w_y + b_y - y[b])^2

and an Adam update of all weights, in float32, from a batch x [B, T, D], y [B, 1]. Nothing is timed before every program
has been held against an LSTM written out in `peers.reference`, from the same weights.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.peers import (
    AUTO,
    DECAY,
    ENTRIES,
    JAX_PEERS,
    KERAS,
    LEARNING_RATE,
    SHAPES,
    TORCH,
    UPDATES,
    Entry,
    Shape,
    Weights,
    draw,
    reference,
)
from experiments.report import COLORS, Table, cell_text, panels, save, text_table
from seqjax.train import write_atomic

TOLERANCE = 1e-4  # relative error of loss and gradient
BURST = 0.1  # s; a program that is faster is called several times in a row, as a training loop would
DOCS = Path(__file__).parents[1] / "docs"


class Disagreement(ArithmeticError):  # noqa: N818 (the name says it)
    """A program computes another loss or gradient, so there is nothing to compare."""


class Measured(NamedTuple):
    """What one entry took at one shape.

    Attributes:
      seconds: of one step, one value a round.
      compile_seconds: tracing and compilation; None where nothing is compiled.
      temporary_bytes: what XLA allocates beside arguments and results; None where XLA does not run.
    """

    seconds: list[float]
    compile_seconds: float | None
    temporary_bytes: int | None

    @property
    def median(self) -> float:
        """Of the seconds."""
        return float(np.median(self.seconds))


Results = dict[Shape, dict[Entry, Measured]]


def check(entry: Entry, program: Any, losses: np.ndarray, loss: Any, gradient: Weights) -> None:
    """Hold the first call of a program against the reference.

    Adam's first moment after one update is (1 - beta_1) times the gradient. So what is checked is the program that is
    timed, and not one like it. After many updates only the loss of the first one is comparable.

    Raises:
      Disagreement: loss or gradient are off by more than `TOLERANCE`, relative to the norm of each leaf.
    """

    def error(got, expected):
        return float(np.linalg.norm(np.subtract(got, expected)) / np.linalg.norm(expected))

    errors = {"loss": error(losses[0], loss)}
    if entry.updates == 1:
        expected = jax.tree.map(lambda g: (1 - DECAY[0]) * np.asarray(g), program.place(gradient))
        leaves = jax.tree.map(error, program.moment(), expected)
        errors |= {f"gradient{jax.tree_util.keystr(k)}": e for k, e in jax.tree_util.tree_leaves_with_path(leaves)}
    wrong = {what: e for what, e in errors.items() if not e <= TOLERANCE}
    if wrong:
        raise Disagreement(f"{entry.name} differs from the reference by more than {TOLERANCE:g} (relative): {wrong}")


def measure(shape: Shape, entries: Sequence[Entry], repeats: int) -> dict[Entry, Measured]:
    """Compile, check and time all entries at one shape.

    The entries take turns, for `repeats` rounds; those with many updates in a call take part in every fifth round.

    Raises:
      Disagreement: before anything is timed.
    """
    weights, xs, ys = draw(shape)
    loss, gradient = reference(weights, xs[0], ys[0])
    programs: dict[Entry, Any] = {}
    for entry in entries:
        programs[entry] = entry.build(shape, weights, xs, ys)
        check(entry, programs[entry], programs[entry].run(1), loss, gradient)

    def timed(entry, calls):
        start = time.perf_counter()
        programs[entry].run(calls)
        return (time.perf_counter() - start) / calls

    calls = {entry: math.ceil(BURST / timed(entry, 1)) for entry in entries if entry.updates == 1}
    seconds: dict[Entry, list[float]] = {entry: [] for entry in entries}
    for turn in range(repeats):
        for entry in entries:
            if entry.updates == 1 or turn % 5 == 0:
                time.sleep(0.02)  # a pool of threads may spin after its work, at the expense of the next entry
                seconds[entry].append(timed(entry, calls.get(entry, 1)) / entry.updates)
    return {
        entry: Measured(seconds[entry], program.compile_seconds, program.temporary_bytes)
        for entry, program in programs.items()
    }


def ratios(results: Results) -> Table:
    """The step of `AUTO` over that of each peer."""
    measured = next(iter(results.values()))
    peers = [entry for entry in (*JAX_PEERS, TORCH) if entry in measured]
    rows: list[list[Any]] = [["B, T, D, H", f"{AUTO.name}, ms", *(f"/ {e.name}" for e in peers), "/ best JAX peer"]]
    for shape, row in results.items():
        ours = row[AUTO].median
        rows.append([str(shape), ours * 1e3, *(ours / row[e].median for e in peers), ours / best_peer(row)])
    return [[f"{cell:.2f}" if isinstance(cell, float) else cell for cell in row] for row in rows]


def best_peer(row: dict[Entry, Measured]) -> float:
    """Seconds of the fastest of `JAX_PEERS`."""
    return min(row[entry].median for entry in JAX_PEERS if entry in row)


def everything(results: Results, cell: Callable[[Measured], Any]) -> Table:
    """One quantity of all entries (rows) at all shapes (columns)."""
    entries = next(iter(results.values()))
    return [
        ["", *(f"({shape})" for shape in results)],
        *([entry.name, *(cell(row[entry]) for row in results.values())] for entry in entries),
    ]


def _milliseconds(measured: Measured) -> str:
    low, high = np.quantile(measured.seconds, (0.25, 0.75)) * 1e3
    return f"{measured.median * 1e3:.1f} ({low:.1f} to {high:.1f})"


def tables(results: Results) -> dict[str, Table]:
    """All tables by their captions."""
    return {
        f"Ratio of one training step, {AUTO.name} to each peer (below 1: seqjax is faster)": ratios(results),
        "Milliseconds a step, median (and quartiles)": everything(results, _milliseconds),
        "Temporary memory of the compiled program, MB": everything(
            results, lambda m: None if m.temporary_bytes is None else round(m.temporary_bytes / 1e6, 1)
        ),
        "Seconds to trace and compile": everything(
            results, lambda m: None if m.compile_seconds is None else round(m.compile_seconds, 1)
        ),
    }


def _layer(entry: Entry) -> str:
    return entry.name.partition(",")[0]  # the same layer with one update a call and with many


def figure(results: Results) -> Figure:
    """The step of every entry over that of the best JAX peer, as bars."""
    drawing, ((axes,),) = panels(width=9.5, height=4.2)
    entries = list(next(iter(results.values())))
    layers = list(dict.fromkeys(_layer(entry) for entry in entries))
    colors = [*COLORS, "0.45", "0.7"]
    width = 0.85 / len(entries)
    for k, entry in enumerate(entries):
        heights = [row[entry].median / best_peer(row) for row in results.values()]
        places = np.arange(len(results)) + (k - (len(entries) - 1) / 2) * width
        hatch = "///" if entry.updates > 1 else None
        color = colors[layers.index(_layer(entry))]
        axes.bar(places, heights, width, label=entry.name, color=color, hatch=hatch, edgecolor="white", linewidth=0.5)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(results)), [f"B, T, D, H =\n{shape}" for shape in results])
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("time of one step / best JAX peer")
    axes.set_title("One training step of an LSTM (lower is faster)")
    drawing.legend(loc="outside right center", frameon=False)
    return drawing


def cpu_name() -> str:
    """The model of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def conditions(arguments: Sequence[str], load: float, seconds: float) -> Table:
    """When, where and with what the measurement was made."""
    packages = ("jax", "jaxlib", "flax", "keras", "torch", "optax", "numpy")
    found = [name for name in packages if importlib.util.find_spec(name)]
    return [
        ["", ""],
        ["command", f"python -m benchmarks.step {shlex.join(arguments)}".rstrip()],
        ["date", f"{datetime.date.today():%Y-%m-%d}"],
        ["device", jax.devices()[0].device_kind],
        ["processor", f"{cpu_name()}, {os.cpu_count()} cores"],
        ["load average before the run", f"{load:.1f}"],
        ["wall clock of the run", f"{seconds / 60:.1f} min"],
        ["versions", ", ".join([f"Python {platform.python_version()}", *(_version(name) for name in found)])],
    ]


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def markdown_table(table: Table) -> str:
    """A table in Markdown, the header first."""
    lines = [f"| {' | '.join(map(cell_text, row))} |" for row in table]
    return "\n".join([lines[0], f"|---{'|--:' * (len(table[0]) - 1)}|", *lines[1:]])


def page(results: Results, arguments: Sequence[str], load: float, seconds: float) -> str:
    """docs/benchmarks.md."""
    parts = [
        "# One training step of an LSTM",
        "Written by `benchmarks/step.py`; do not edit.",
        *(f"## {caption}\n\n{markdown_table(table)}" for caption, table in tables(results).items()),
        f"![Time of one step, relative to the best JAX peer]({FIGURE}.svg)",
        METHOD,
        f"## Conditions\n\n{markdown_table(conditions(arguments, load, seconds))}",
    ]
    return "\n\n".join(parts) + "\n"


FIGURE = "benchmarks"
METHOD = f"""## What was measured

- One step is forward, backward and update of an LSTM layer (input projection included) with a linear head on its last
  output and the mean square error, in float32, from batches [B, T, D]. The update is Adam's with learning rate
  {LEARNING_RATE:g}.
- All JAX entries share the code of loss and update (optax) and run as one compiled program with donated state: only the
  layer differs. PyTorch runs in eager mode with its own Adam.
- "Flax NNX" is `nnx.RNN(nnx.OptimizedLSTMCell)`, "Flax NNX LSTMCell" is `nnx.RNN(nnx.LSTMCell)`, "Keras" is
  `keras.layers.LSTM` on the JAX backend. seqjax is `seqjax.nnx.Recurrent(cells.lstm(H), D, method=...)`; `auto` is
  the default, which chooses among the others.
- The first table is about single steps. "{UPDATES} in one call" is a scan over {UPDATES} updates in one compiled
  program, each with a batch of its own, as `seqjax.train.fit` runs them; its time is divided by {UPDATES}. It is shown
  for seqjax and for Flax, so that what the loop gains is not mistaken for what the layer gains, and it enters no ratio
  of the first table.
- Before the timing, the loss and the gradient of every program were held against an LSTM written out in
  `benchmarks/peers.py`, from the same weights: relative error below {TOLERANCE:g}, else there is no table. The gradient
  is read from Adam's first moment after one update, so that it comes from the very program that is timed; of the
  programs with {UPDATES} updates the first loss is compared.
- The entries take turns, round after round, after warm-up calls that are not counted; those with {UPDATES} updates in a
  call run in every fifth round. A step faster than {BURST * 1e3:g} ms is called several times in a row for that long.
- Temporary memory is what `memory_analysis()` of the compiled program says: residuals and scratch, without weights,
  optimizer state and batch."""


def parse_shape(text: str) -> Shape:
    """`B,T,D,H`, four positive integers."""
    try:
        shape = Shape(*map(int, text.split(",")))
    except (TypeError, ValueError):
        shape = None
    if shape is None or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not B,T,D,H, four positive integers such as 64,35,256,512")
    return shape


def parse_repeats(text: str) -> int:
    """A number of rounds, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of rounds")
    return int(text)


def installed(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that can run here: PyTorch may be missing.

    Raises:
      ModuleNotFoundError: Keras is missing.
    """
    if KERAS in entries and not importlib.util.find_spec("keras"):
        raise ModuleNotFoundError("the benchmark compares with Keras, which is missing: pip install -e '.[bench]'")
    if TORCH in entries and not importlib.util.find_spec("torch"):
        print("PyTorch is not installed and is left out", file=sys.stderr)
        entries = [entry for entry in entries if entry != TORCH]
    return list(entries)


def main(arguments: Sequence[str], entries: Sequence[Entry] = ENTRIES) -> None:
    """Measure, print the tables, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description="Time a training step of an LSTM.")
    add = parser.add_argument
    add("--shapes", nargs="+", type=parse_shape, metavar="B,T,D,H", help="default: those of the page")
    add("--repeats", type=parse_repeats, metavar="N", help="rounds; default 15")
    add("--quick", action="store_true", help="two rounds of the first shape")
    add("--output", type=Path, metavar="DIR", help="where to write; default docs/ for a full run, else nowhere")
    flags = parser.parse_args(arguments)
    shapes = flags.shapes or (SHAPES[:1] if flags.quick else SHAPES)
    repeats = flags.repeats or (2 if flags.quick else 15)
    output = flags.output or (None if flags.shapes or flags.quick else DOCS)
    entries = installed(entries)
    load, start = os.getloadavg()[0], time.perf_counter()
    results: Results = {}
    for shape in shapes:
        print(f"measuring B, T, D, H = {shape}", file=sys.stderr)
        results[shape] = measure(shape, entries, repeats)
    seconds = time.perf_counter() - start
    for caption, table in tables(results).items():
        print(f"\n{caption}\n\n{text_table(table)}")
    print("\n" + "\n".join(f"{name}: {value}" for name, value in conditions(arguments, load, seconds)[1:]))
    if output:
        save(figure(results), output / FIGURE)
        write_atomic(output / f"{FIGURE}.md", page(results, arguments, load, seconds))
        print(f"\nwritten: {output / FIGURE}.md, .svg, .png")


if __name__ == "__main__":
    main(sys.argv[1:])
