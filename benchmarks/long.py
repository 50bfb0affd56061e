"""Long sequences: memory and time of checkpointing, and of the time-parallel solvers, against scan.

    python -m benchmarks.long                          all sections; writes docs/long_sequences.md and its figure
    python -m benchmarks.long --sections associative   some of them; writes nothing without --output
    python -m benchmarks.long --quick                  a smoke test at tiny sizes; writes nothing

Every program computes one loss and its gradient for the params, compiled, in float32; the programs are timed in turns.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.long_solvers import accuracy, matrices
from benchmarks.timed import (
    FEATURES,
    ROUNDS,
    Page,
    Section,
    draw,
    every_step,
    last_carry,
    measure,
    note,
    program,
    race,
    with_report,
)
from experiments.harness.report import COLORS
from seqjax import cells, unroll
from seqjax.core import Cell
from seqjax.solvers.associative import associative
from seqjax.solvers.dispatch import checkpointed
from seqjax.wrappers.structure import with_loss

BYTES = 8e9  # programs that allocate more are left out
SECONDS = 30.0  # and calls that are expected to take longer


def inside(cell: Cell, method: Any, params: Any, xs: jax.Array) -> jax.Array:
    """A loss on every step as part of the cell, whose outputs are losses [T, B]."""
    loss = with_loss(cell, lambda y, target: jnp.square(y - target).mean(-1))
    targets = jnp.zeros((*xs.shape[:-1], 1), xs.dtype)
    return unroll(loss, params, None, (xs, targets), method=method)[1].mean()


def checkpointing(quick: bool) -> Section:
    """Memory and time of a step for growing T, against plain back-propagation at T = 2,000."""
    hidden, batch = (8, 2) if quick else (128, 8)
    base, lengths = (20, (64, 256)) if quick else (2_000, (1_024, 4_096, 16_384, 100_000))
    cell = cells.lstm(hidden)
    note(f"checkpointed: plain at T = {base}")
    plain = {method: program(last_carry, cell, method, base, batch) for method in ("auto", "fused", "scan")}
    took = race({**plain, "checkpointed": program(last_carry, cell, checkpointed, base, batch)})
    best = min(plain, key=lambda name: took[name])
    reference = took[best] / base
    rows: list[list[Any]] = [
        [
            "T",
            "plain, MB",
            "checkpointed, MB",
            "loss on every step inside, MB",
            "inputs, MB",
            "checkpointed, µs per step",
            f"/ plain {best} at T = {base:,}",
        ]
    ]
    memory: dict[str, list[float]] = {"plain": [], "checkpointed": [], "loss inside": []}
    for steps in sorted((base, *lengths)):
        note(f"checkpointed: T = {steps}")
        programs = {
            "plain": program(last_carry, cell, best, steps, batch),
            "checkpointed": program(last_carry, cell, checkpointed, steps, batch),
            "loss inside": program(inside, cell, checkpointed, steps, batch),
        }
        for name, p in programs.items():
            memory[name].append(p.temporary / 1e6)
        alone = {"checkpointed": programs["checkpointed"]}
        seconds = took if steps == base else race(alone, rounds=1 if steps > 20_000 else ROUNDS)
        each_step = seconds["checkpointed"] / steps
        megabytes = [f"{memory[name][-1]:.1f}" for name in memory]
        inputs = f"{steps * batch * FEATURES * 4 / 1e6:.1f}"
        rows.append([steps, *megabytes, inputs, f"{each_step * 1e6:.1f}", f"{each_step / reference:.2f}"])

    def plot(axes):
        for (name, values), color in zip(memory.items(), COLORS, strict=False):
            axes.loglog(sorted((base, *lengths)), values, "o-", label=name, color=color)
        axes.set(xlabel="steps T", ylabel="temporary memory, MB", title=f"LSTM {hidden}, batch {batch}")
        axes.legend(frameon=False)

    text = (
        f"An LSTM with {hidden} units, batch {batch}, {FEATURES} inputs. Memory is what the compiled program of loss"
        " and gradient allocates in addition to its inputs (`memory_analysis()`); the loss reads the last carry, or"
        f" every step inside the cell (`with_loss`). Plain back-propagation at T = {base:,} takes"
        f" {reference * 1e6:.1f} µs per step with the fastest of its methods, `{best}`. Chunks are run by `auto`."
    )
    return Section("Checkpointing: memory and time", text, rows, plot)


def affine(quick: bool) -> Section:
    """The associative method against scan."""
    shapes = [(1, 4), (2, 8)] if quick else [(1, 16), (1, 128), (1, 512), (8, 64), (8, 256), (32, 16), (32, 512)]
    lengths = (64, 256) if quick else (1_024, 16_384, 65_536)
    methods = {"scan": "scan", "rematerialized": "rematerialized", "associative": associative}
    rows: list[list[Any]] = [["T", "B", "H", *(f"{name}, ms" for name in methods), "associative / scan"]]
    ratios: dict[tuple[int, int], dict[int, float]] = {}
    for steps in lengths:
        for batch, hidden in shapes:
            if steps * batch * hidden > 2**25:
                rows.append([steps, batch, hidden, *([None] * len(methods)), "left out: over 2^25 outputs"])
                continue
            note(f"associative: T = {steps}, B = {batch}, H = {hidden}")
            cell = cells.min_gru(hidden)
            took = race({name: program(every_step, cell, m, steps, batch) for name, m in methods.items()})
            ratio = took["associative"] / took["scan"]
            ratios.setdefault((batch, hidden), {})[steps] = ratio
            rows.append([steps, batch, hidden, *(f"{took[name] * 1e3:.2f}" for name in methods), f"{ratio:.2f}"])

    def plot(axes):
        for ((batch, hidden), values), color in zip(ratios.items(), COLORS, strict=False):
            axes.loglog(list(values), list(values.values()), "o-", label=f"B {batch}, H {hidden}", color=color)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xlabel="steps T", ylabel="time / scan", title="minGRU, associative")
        axes.legend(frameon=False)

    text = (
        f"minGRU with {FEATURES} inputs, forward and backward, loss on every output. Below 1 the associative method is"
        " faster than scan."
    )
    return Section("Affine cells: associative against scan", text, rows, plot)


def nonlinear(quick: bool) -> Section:
    """Newton's method against scan, with the lengths from which on it is faster."""
    widths, lengths = ((1, 4), (50, 200)) if quick else ((1, 4, 8, 16, 64), (1_000, 10_000, 100_000))
    kinds = ("full", "diagonal")
    rows: list[list[Any]] = [["H", "T", "scan, ms", *(f"{k}, ms (iterations)" for k in kinds), "fastest / scan"]]
    ratios: dict[tuple[str, int], dict[int, float]] = {}
    for hidden in widths:
        cell = cells.gru(hidden)
        rate: dict[str, float] = {}  # s a step, at the length before
        for steps in lengths:
            note(f"newton: H = {hidden}, T = {steps}")
            programs = {"scan": program(every_step, cell, "scan", steps, 1, 8)}
            left_out: dict[str, str] = {}
            for kind in kinds:
                if rate.get(kind, 0) * steps > SECONDS:
                    left_out[kind] = f"left out: about {rate[kind] * steps:.0f} s"
                    continue
                p = program(with_report, cell, {"jacobian": kind}, steps, 1, 8)
                if p.temporary > BYTES:
                    left_out[kind] = f"left out: {p.temporary / 1e9:.0f} GB"
                else:
                    programs[kind] = p
            slow = any(rate.get(kind, 0) * steps > 2 for kind in programs)
            took = race(programs, rounds=1 if slow else ROUNDS)
            rate |= {kind: seconds / steps for kind, seconds in took.items()}
            texts = dict(left_out)
            for kind in kinds:
                if kind in took:
                    ratios.setdefault((kind, hidden), {})[steps] = took[kind] / took["scan"]
                    ready = draw(programs[kind])
                    (_, report), _ = ready.run(*ready.arguments)
                    how = f"{report.iterations}" if report.converged.all() else "not converged"
                    texts[kind] = f"{took[kind] * 1e3:.2f} ({how})"
            solved = [took[kind] for kind in kinds if kind in took]
            best = f"{min(solved) / took['scan']:.2f}" if solved else None
            rows.append([hidden, steps, f"{took['scan'] * 1e3:.2f}", *(texts[kind] for kind in kinds), best])

    def plot(axes):
        for (kind, hidden), values in ratios.items():
            style = "o-" if kind == "full" else "s:"
            color = COLORS[widths.index(hidden) % len(COLORS)]
            axes.loglog(list(values), list(values.values()), style, label=f"H {hidden}, {kind}", color=color)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xlabel="steps T", ylabel="time / scan", title="GRU, Newton")
        axes.legend(frameon=False, fontsize=6, ncols=2)

    text = (
        "A GRU with 8 inputs, one sequence, forward and backward, loss on every output, to the default tolerance."
        f" Left out is what would allocate over {BYTES / 1e9:.0f} GB or take over {SECONDS:.0f} s. The T from"
        " which Newton's method is faster than scan:\n\n"
        + "\n".join(f"- {line}" for line in crossings(ratios, widths, kinds))
    )
    return Section("Nonlinear cells: Newton against scan", text, rows, plot)


def crossings(
    ratios: dict[tuple[str, int], dict[int, float]], widths: Sequence[int], kinds: Sequence[str]
) -> list[str]:
    """A line for each width: the shortest measured T from which on each kind is faster than scan."""
    lines = []
    for hidden in widths:
        found = []
        for kind in kinds:
            values = ratios.get((kind, hidden), {})
            faster = [steps for steps in values if all(r < 1 for longer, r in values.items() if longer >= steps)]
            longest = f"up to T = {max(values):,}" if values else "(not measured)"
            found.append(f"{kind} from T = {min(faster):,}" if faster else f"{kind} does not cross {longest}")
        lines.append(f"width {hidden}: {'; '.join(found)} on this device")
    return lines


INTRODUCTION = """# Long sequences

Written by `benchmarks/long.py`; do not edit.

**Memory.** `unroll(..., method="checkpointed")` keeps the carry at the borders of chunks of about sqrt(T) / 2 steps
and recomputes each chunk for its gradient: memory of order sqrt(T) in addition to inputs and outputs. The outputs are
still [T, B, H] if the loss reads them, so either the loss reads the last carry, or it goes inside the cell:

```python
from seqjax import unroll
from seqjax.wrappers.structure import with_loss

cell = with_loss(cell, lambda y, target: jnp.square(y - target).mean(-1))  # reads (x, target), its output is [B]
losses = unroll(cell, params, None, (xs, targets), method="checkpointed")[1]  # [T, B]
```

It works best if T has a divisor near sqrt(T) / 2; otherwise the inputs are copied once.

**Time, affine cells.** `method="associative"` is a parallel prefix in depth log T on an accelerator. On a CPU it
computes the coefficients of as many steps at once as fit into the cache, and runs the recurrence over them in one pass.

**Time, matrix carries.** `method="chunkwise"`, the default for `gated_linear_attention`, `mlstm` and `delta_net`, runs
chunks of steps as matrix products and keeps one matrix per chunk.

**Time, any cell.** `method="newton"` solves for all steps at once by Newton's method (DEER), with full
Jacobians or their diagonals (`partial(seqjax.solvers.newton.newton, jacobian="diagonal")`), to float accuracy. It does
many times the work of scan in a few long operations, so it is for narrow cells, long sequences and devices with many
cores. `damping=0.1` is for cells whose Jacobians are large on the way to the solution. Sequences that do not converge
are returned as NaN; `seqjax.solvers.newton.newton_with_report` returns iterations and errors."""


LONG = Page(
    command="benchmarks.long",
    name="long_sequences",
    introduction=INTRODUCTION,
    caption="Memory of checkpointing, and times relative to scan",
    sections={
        "checkpointed": checkpointing,
        "associative": affine,
        "newton": nonlinear,
        "accuracy": accuracy,
        "chunkwise": matrices,
    },
)


if __name__ == "__main__":
    measure(LONG, sys.argv[1:])
