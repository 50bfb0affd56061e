"""Sections of `benchmarks.long`: what Newton's method converges to, and matrix carries in chunks."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timed import FEATURES, Section, draw, every_step, note, program, race, with_report
from experiments.harness.report import COLORS
from seqjax import cells, unroll
from seqjax.initializers import orthogonal
from seqjax.solvers.chunkwise import chunkwise
from seqjax.solvers.newton import newton_with_report

KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "diagonal": {"jacobian": "diagonal"},
    "full, damping 0.1": {"damping": 0.1},
    "diagonal, damping 0.1": {"jacobian": "diagonal", "damping": 0.1},
}


def accuracy(quick: bool) -> Section:
    """Newton's method: how far from scan, after how many iterations, in what time."""
    steps, hidden, features = (50, 4, 8) if quick else (1_000, 32, 8)
    chosen = {
        f"GRU, {hidden} units": cells.gru(hidden),
        "simple RNN, 8 units, recurrent gain 1.8": cells.rnn(8, w_h=orthogonal(1.8)),
    }
    rows: list[list[Any]] = [["cell", "Jacobians", "iterations", "max difference from scan", "ms", "scan, ms"]]
    bars: dict[str, int] = {}
    for title, cell in chosen.items():
        note(f"accuracy: {title}")
        every = {name: {**options, "iterations": steps + 1} for name, options in KINDS.items()}
        programs = {name: program(with_report, cell, options, steps, 1, features) for name, options in every.items()}
        took = race({"scan": program(every_step, cell, "scan", steps, 1, features), **programs})
        params, xs = draw(programs["full"]).arguments
        ys = unroll(cell, params, None, xs, method="scan")[1]
        carry = cell.initial_carry(params, (1,))
        for name, options in every.items():
            run = jax.jit(partial(newton_with_report, cell, **options))
            _, found, report = run(params, carry, xs)
            difference = float(jnp.abs(found - ys).max())
            milliseconds = (f"{took[key] * 1e3:.2f}" for key in (name, "scan"))
            rows.append([title, name, int(report.iterations), f"{difference:.1e}", *milliseconds])
            bars[f"{title.split(',')[0]}: {name}"] = int(report.iterations)

    def plot(axes):
        axes.barh(list(bars), list(bars.values()), color=COLORS[0])
        axes.set(xlabel=f"iterations, T = {steps:,}", title="Newton, damped or not", xscale="log")
        axes.tick_params(axis="y", labelsize=6)

    text = (
        f"T = {steps:,}, one sequence of {features} inputs, float32, the default tolerance, at most {steps + 1:,}"
        " iterations; the difference is that of the outputs, whose magnitude is at most 1. Time is forward and"
        " backward, loss on every output. The solution of this RNN just barely forgets, while products of Jacobians"
        " on the way there overflow."
    )
    return Section("Newton's method: agreement with scan, iterations, damping", text, rows, plot)


def matrices(quick: bool) -> Section:
    """Matrix carries: chunks of steps as matrix products, against one step after the other."""
    heads, width, lengths, batch = (1, 4, (32,), 1) if quick else (4, 16, (1_024, 4_096), 4)
    made = {"GLA": cells.gated_linear_attention, "mLSTM": cells.mlstm, "DeltaNet": cells.delta_net}
    rows: list[list[Any]] = [
        ["cell", "T", "scan, ms", "rematerialized, ms", "associative, ms", "chunks of 16, ms", "64, ms", "best / scan"]
    ]
    ratios: dict[str, dict[int, float]] = {}
    for name, make in made.items():
        cell = make(heads, width, width)
        for steps in lengths:
            note(f"chunkwise: {name}, T = {steps}")
            methods: dict[str, Any] = {"scan": "scan", "rematerialized": "rematerialized"}
            methods |= {"associative": "associative"} if cell.affine else {}
            methods |= {f"chunks of {c}": partial(chunkwise, chunk=c) for c in (16, 64)}
            took = race({m: program(every_step, cell, method, steps, batch) for m, method in methods.items()})
            shown = ("scan", "rematerialized", "associative", "chunks of 16", "chunks of 64")
            ratio = min(took["chunks of 16"], took["chunks of 64"]) / took["scan"]
            ratios.setdefault(name, {})[steps] = ratio
            texts = [f"{took[m] * 1e3:.1f}" if m in took else None for m in shown]
            rows.append([name, steps, *texts, f"{ratio:.2f}"])

    def plot(axes):
        for (name, values), color in zip(ratios.items(), COLORS, strict=False):
            axes.loglog(list(values), list(values.values()), "o-", label=name, color=color)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xlabel="steps T", ylabel="time / scan", title="Matrix carries, chunkwise")
        axes.legend(frameon=False)

    text = (
        f"{heads} heads of {width} keys and {width} values, batch {batch}, {FEATURES} inputs, forward and backward,"
        " loss on every output. Only GLA is elementwise affine, which the associative method needs."
    )
    return Section("Matrix carries: chunkwise against scan", text, rows, plot)
