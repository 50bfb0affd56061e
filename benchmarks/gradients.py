"""Ways to obtain a gradient: the cost of checkpoint schedules, the quality of estimators, the scaling of online ones.

python -m benchmarks.gradients                         all sections; writes docs/gradients.md and its figure
python -m benchmarks.gradients --sections estimators   some of them; writes nothing without --output
python -m benchmarks.gradients --quick                 a smoke test at tiny sizes; writes nothing
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timed import ROUNDS, Page, Program, Section, last_carry, measure, note, program, race
from experiments.harness.report import COLORS
from seqjax import cells, gradients, wrappers
from seqjax.core import Cell, out_features
from seqjax.gradients import Comparison, Estimator
from seqjax.solvers.chunks import default_chunk
from seqjax.solvers.dispatch import checkpointed
from seqjax.solvers.revolve import forward_runs

FLOOR = 1e-7  # a bias below it is rounding
SCHEDULES: dict[str, dict[str, int]] = {
    "sqrt(T)": {},
    "2 levels": {"levels": 2},
    "3 levels": {"levels": 3},
    **{f"{slots} slots": {"slots": slots} for slots in (64, 32, 16, 8)},
}


def forward_steps(steps: int, levels: int = 1, slots: int | None = None) -> int:
    """The number of forward steps of a schedule, for a loss and its gradient."""
    chunk = default_chunk(steps, levels, slots)
    if slots is None:
        return (levels + 1) * steps
    return chunk * forward_runs(steps // chunk, min(slots, steps // chunk)) + 2 * (steps % chunk)


def schedules(quick: bool) -> Section:
    """Memory, forward steps and time of every schedule of checkpoints."""
    hidden, batch, lengths = (8, 2, (64,)) if quick else (64, 8, (1_000, 10_000))
    cell = cells.lstm(hidden)
    rows: list[list[Any]] = [["schedule", "T", "chunk", "memory, MB", "/ plain", "forward steps / T", "ms", "/ plain"]]
    found: dict[int, dict[str, tuple[float, float]]] = {}
    for steps in lengths:
        note(f"checkpoints: T = {steps}")
        programs = {"plain": program(last_carry, cell, "auto", steps, batch)}
        for name, flags in SCHEDULES.items():
            programs[name] = program(last_carry, cell, partial(checkpointed, **flags), steps, batch)
        took = race(programs)
        for name, p in programs.items():
            flags = SCHEDULES.get(name)
            runs, chunk = (
                (1.0, None) if flags is None else (forward_steps(steps, **flags) / steps, default_chunk(steps, **flags))
            )
            memory, time = p.temporary / programs["plain"].temporary, took[name] / took["plain"]
            found.setdefault(steps, {})[name] = memory, runs
            megabytes, milliseconds = f"{p.temporary / 1e6:.3f}", f"{took[name] * 1e3:.1f}"
            rows.append([name, steps, chunk, megabytes, f"{memory:.3f}", f"{runs:.2f}", milliseconds, f"{time:.2f}"])

    def plot(axes):
        for (steps, values), color in zip(found.items(), COLORS, strict=False):
            axes.loglog(*zip(*values.values(), strict=True), "o", color=color, label=f"T = {steps:,}")
        for name, place in list(found.values())[-1].items():
            axes.annotate(name, place, xytext=(3, 3), textcoords="offset points", fontsize=6)
        axes.set(xlabel="memory / plain", ylabel="forward steps / T", title=f"Checkpoints, LSTM {hidden}")
        axes.legend(frameon=False)

    text = (
        f"`partial(checkpointed, levels=..., slots=...)` on an LSTM with {hidden} units, batch {batch}; the loss reads"
        " the last carry. Memory is what the compiled program of loss and gradient allocates in addition to its inputs"
        " (`memory_analysis()`). Forward steps follow from the schedule; the tests count them. Chunks, and plain"
        " back-propagation, are run by `auto`."
    )
    return Section("Schedules of checkpoints", text, rows, plot)


def squared_error(ys: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of a step."""
    return jnp.square(ys - targets).sum(-1)


def makers(cell: Cell, chunk: int) -> dict[str, Estimator | Callable[[jax.Array], Estimator]]:
    """Every estimator, for chunks of `chunk` steps; those with noise as functions of a key."""
    g, steps = gradients, chunk * 8
    reaches = tuple(chunk * n for n in (1, 2, 4, 8))
    found: dict[str, Any] = {
        "bptt of a chunk": g.bptt(cell, squared_error),
        f"truncated_bptt({chunk}, {4 * chunk})": g.truncated_bptt(cell, squared_error, chunk, 4 * chunk),
        f"truncated_bptt({chunk}, {steps})": g.truncated_bptt(cell, squared_error, chunk, steps),
        "adaptive_truncation, delta 0.2": g.adaptive_truncation(cell, squared_error, chunk, reaches, 0.2, 1),
        "rtrl": g.rtrl(cell, squared_error),
        "diagonal_rtrl": g.diagonal_rtrl(cell, squared_error),
        "snap, n = 1": g.snap(cell, squared_error),
        "artbp, rate 1/8": lambda key: g.artbp(cell, squared_error, 1 / 8, key),
        "uoro": lambda key: g.uoro(cell, squared_error, key),
        "persistent_evolution, 32 pairs": lambda key: g.persistent_evolution(
            cell, squared_error, key, pairs=32, sigma=0.01
        ),
    }
    if cell.gated:
        found["eprop"] = g.eprop(cell, squared_error)
    for name in ("rflo", "kf_rtrl"):
        make = getattr(gradients, name, None)
        if make is not None:
            found[name] = partial(make, cell, squared_error)
    return found


def estimators(quick: bool) -> Section:
    """Every estimator against back-propagation over the whole stream."""
    hidden, batch, chunk, draws = (2, 1, 2, 2) if quick else (16, 4, 8, 100)
    steps = 16 * chunk
    xs = jax.random.normal(jax.random.key(1), (steps, batch, 2))
    targets = jnp.stack([jnp.roll(xs[..., i], lag, 0) for i, lag in enumerate((2, 8))], -1)
    rows: list[list[Any]] = [["estimator", "cell", "cosine", "norm ratio", "bias", "variance", "ms", "kB"]]
    found: dict[tuple[str, str], Comparison] = {}
    left_out: list[str] = []
    for kind, bare in (("GRU", cells.gru(hidden)), ("minGRU", cells.min_gru(hidden))):
        cell = wrappers.with_head(bare, 2)
        params = cell.init(jax.random.key(0), 2)
        carry = cell.initial_carry(params, (batch,))
        data = params, carry, xs, targets
        ready = {}
        for name, make in makers(cell, chunk).items():
            try:
                estimator = make if isinstance(make, Estimator) else make(jax.random.key(0))
                estimator.init(params, carry, xs[:chunk])
                ready[name] = make
            except ValueError as error:
                left_out.append(f"{name} refuses the {kind}: {error}")
        note(f"estimators: {kind}, {len(ready)} of them")
        for name, one in gradients.compare(
            ready, cell, squared_error, *data, jax.random.key(2), chunk=chunk, draws=draws
        ).items():
            found[kind, name] = one
            numbers = [f"{one.cosine:.4f}", f"{one.norm_ratio:.3f}", f"{one.bias:.2g}", f"{one.variance:.2g}"]
            memory = None if one.temporary_bytes is None else f"{one.temporary_bytes / 1e3:.0f}"
            rows.append([name, kind, *numbers, f"{one.seconds * 1e3:.2f}", memory])

    def plot(axes):
        names = list(dict.fromkeys(name for _, name in found))[::-1]
        for kind, color in zip(dict.fromkeys(kind for kind, _ in found), COLORS, strict=False):
            places = [(max(one.bias, FLOOR), names.index(name)) for (k, name), one in found.items() if k == kind]
            axes.semilogx(*zip(*places, strict=True), "o", color=color, label=kind)
        axes.set_yticks(range(len(names)), names, fontsize=6)
        axes.set(xlabel=f"bias (at least {FLOOR})", title="Estimators")
        axes.legend(frameon=False)

    text = (
        f"`seqjax.gradients.compare`: a cell with {hidden} units and a head, batch {batch}, fresh weights, a stream of"
        f" {steps} steps in chunks of {chunk}; the two targets are the two inputs 2 and 8 steps earlier. The reference"
        f" is back-propagation over all {steps} steps. bias is `|mean g - r| / |r|`, variance"
        f" `mean |g - mean g|^2 / |r|^2` over {draws} draws where there is noise; without bias, bias is about"
        f" sqrt(variance / {draws}). Time and"
        " memory are those of the gradient of the whole stream, chunk after chunk. Left out:\n\n"
        + "\n".join(f"- {line}" for line in left_out)
    )
    return Section("All estimators on one small problem", text, rows, plot)


def scaling(quick: bool) -> Section:
    """Diagonal RTRL for growing widths."""
    widths, batch, steps, features = ((4,), 1, 4, 2) if quick else ((64, 256, 1_024), 1, 32, 32)
    rows: list[list[Any]] = [
        ["cell", "width", "params", "ms per step", "ns per param and step", "difference from bptt"]
    ]
    found: dict[str, list[tuple[int, float]]] = {}
    for make in (cells.min_gru, cells.ind_rnn, cells.lru):
        for width in widths:
            note(f"diagonal RTRL: {make.__name__}, {width}")
            cell = make(width)
            params = cell.init(jax.random.key(0), features)
            carry = cell.initial_carry(params, (batch,))
            xs = jax.random.normal(jax.random.key(1), (steps, batch, features))
            targets = jax.random.normal(jax.random.key(2), (steps, batch, out_features(cell, params, features)))
            online, full = (one(cell, squared_error) for one in (gradients.diagonal_rtrl, gradients.bptt))
            arguments = params, online.init(params, carry, xs), xs, targets
            p = Program(jax.jit(online.update).lower(*arguments).compile(), arguments)
            seconds = min(p.seconds() for _ in range(1 + ROUNDS))
            got, wanted = p.run(*arguments)[1], jax.jit(full.update)(params, carry, xs, targets)[1]
            pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
            off = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)
            count = sum(leaf.size for leaf in jax.tree.leaves(params))
            each = seconds / steps
            found.setdefault(make.__name__, []).append((count, each))
            nanoseconds = f"{each / count / batch * 1e9:.2f}"
            rows.append([make.__name__, width, count, f"{each * 1e3:.3f}", nanoseconds, f"{off:.1e}"])

    def plot(axes):
        for (name, values), color in zip(found.items(), COLORS, strict=False):
            counts, seconds = zip(*values, strict=True)
            axes.loglog(counts, [s * 1e3 for s in seconds], "o-", color=color, label=name)
        axes.set(xlabel="params", ylabel="ms per step", title="Diagonal RTRL")
        axes.legend(frameon=False)

    text = (
        f"`diagonal_rtrl` of elementwise recurrences with {features} inputs, batch {batch}, {steps} steps, a loss on"
        " every output. The difference is the largest deviation of the gradient of these steps from that of `bptt`,"
        " relative to the largest entry of each leaf of the params, in float32. Time is the minimum of 4 calls."
    )
    return Section("Diagonal RTRL is linear in the params", text, rows, plot)


INTRODUCTION = """# Gradients

Written by `benchmarks/gradients.py`; do not edit.

**Exact, in less memory.** `unroll(..., method=partial(checkpointed, ...))` recomputes chunks of steps for the
gradient. By default it keeps all carries between chunks (memory of order sqrt(T), every step run twice); `levels=n`
nests such loops (T^(1/(n+1)), n + 1 times); `slots=m` keeps m carries and runs the fewest steps that this allows, by
the schedule of Griewank & Walther (2000).

**Estimated, chunk by chunk.** `seqjax.gradients` provides estimators behind one interface; `gradients.compare`
compares any of them with back-propagation through time at fixed params. `adaptive_truncation` chooses the truncation
length from a tolerated bias.

**Online, without storing the past.** `diagonal_rtrl` is exact for elementwise recurrences, at a cost linear in the
number of params."""

GRADIENTS = Page(
    command="benchmarks.gradients",
    name="gradients",
    introduction=INTRODUCTION,
    caption="Checkpoints, estimators, and diagonal RTRL",
    sections={"checkpoints": schedules, "estimators": estimators, "diagonal": scaling},
)


if __name__ == "__main__":
    measure(GRADIENTS, sys.argv[1:])
