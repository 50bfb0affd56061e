"""Batch-major against time-major layers, with a loss on all outputs, here and in Flax.

    python -m benchmarks.layout            writes docs/layout.md and its figure
    python -m benchmarks.layout --quick    a smoke test at tiny sizes; writes nothing

Every program computes a loss of the outputs [B, T, H] or [T, B, H] of one LSTM layer, and its gradient for the params
and the inputs, compiled, in float32.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import seqjax.nnx
from benchmarks.problem import SHAPES, Shape
from benchmarks.timed import Page, Program, Section, measure, note
from experiments.harness.report import COLORS
from seqjax import cells

CALLS = 5
ROUNDS = 8  # in turns each program follows each other one equally often
LAYERS = ("batch-major", "time-major", "Flax batch-major", "Flax time-major")


def _layer(name: str, shape: Shape) -> nnx.Module:
    time_major, rngs = name.endswith("time-major"), nnx.Rngs(0)
    if name.startswith("Flax"):
        cell = nnx.OptimizedLSTMCell(shape.features, shape.hidden, rngs=rngs)
        return nnx.RNN(cell, time_major=time_major)
    return seqjax.nnx.Recurrent(cells.lstm(shape.hidden), shape.features, time_major=time_major, rngs=rngs)


def program(name: str, shape: Shape) -> Program:
    """Compile a layer with a linear head on every output, the mean square of its error, and the gradient."""
    graph, params, rest = nnx.split(_layer(name, shape), nnx.Param, ...)
    axes = (shape.steps, shape.batch) if name.endswith("time-major") else (shape.batch, shape.steps)
    key = jax.random.key(1)
    xs, targets = jax.random.normal(key, (*axes, shape.features)), jax.random.normal(key, (*axes, 4))
    head = jax.random.normal(key, (shape.hidden, 4)) / shape.hidden**0.5

    zeros = jnp.zeros((shape.batch, shape.hidden))  # else Flax draws from the random stream of the layer

    def loss(params: Any, head: Any, xs: Any) -> jax.Array:
        layer: Any = nnx.merge(graph, params, rest)
        ys = layer(xs, initial_carry=(zeros, zeros)) if isinstance(layer, nnx.RNN) else layer(xs)
        return jnp.square(ys @ head - targets).mean()

    arguments = (params, head, xs)
    return Program(jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*arguments).compile(), arguments)


def orders_of(names: list[str]) -> list[list[str]]:
    """Orders, as many as names, an even number, in which each name follows each other one once (Williams 1949)."""
    count = len(names)
    first = [(k + 1) // 2 if k % 2 else -(k // 2) % count for k in range(count)]
    return [[names[(place + shift) % count] for place in first] for shift in range(count)]


def times(programs: dict[str, Program]) -> tuple[dict[str, float], dict[str, float]]:
    """Median milliseconds of programs called several times in a row, and of single calls in turns."""
    alone: dict[str, list[float]] = {name: [] for name in programs}
    turns: dict[str, list[float]] = {name: [] for name in programs}
    for p in programs.values():
        p.seconds()
    orders = orders_of(list(programs))
    for number in range(ROUNDS):
        for name, p in programs.items():
            p.seconds()
            alone[name].append(float(np.median([p.seconds() for _ in range(CALLS)])))
        for name in orders[number % len(orders)]:
            turns[name].append(programs[name].seconds())
    return tuple({name: 1e3 * float(np.median(s)) for name, s in taken.items()} for taken in (alone, turns))  # pyright: ignore[reportReturnType]


def layout(quick: bool) -> Section:
    """The times at several shapes."""
    rows: list[list[Any]] = [["B, T, D, H", "calls", *(f"{name}, ms" for name in LAYERS), "batch- / time-major"]]
    ratios: dict[str, list[float]] = {"in a row": [], "in turns": []}
    shapes = (Shape(3, 5, 2, 4),) if quick else (*SHAPES[1:4], SHAPES[5])
    for shape in shapes:
        note(f"layout: {shape}")
        taken = times({name: program(name, shape) for name in LAYERS})
        for calls, ms in zip(ratios, taken, strict=True):
            ratio = ms["batch-major"] / ms["time-major"]
            ratios[calls].append(ratio)
            rows.append([str(shape), calls, *(ms[name] for name in LAYERS), ratio])

    def plot(axes: Any) -> None:
        places = np.arange(len(shapes))
        for i, (calls, values) in enumerate(ratios.items()):
            axes.bar(places + 0.4 * i, values, 0.4, label=f"calls {calls}", color=COLORS[i])
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xticks=places + 0.2, ylabel="batch-major / time-major", xlabel="B, T, D, H")
        axes.set_xticklabels(list(map(str, shapes)), fontsize=7)
        axes.legend()

    text = (
        "Forward and backward of a layer with a linear head on all outputs. A call in turns finds its memory returned "
        "to the system by the other programs, as in an application that does more than one thing."
    )
    return Section("Layout", text, rows, plot)


LAYOUT = Page(
    command="benchmarks.layout",
    name="layout",
    introduction="# Batch-major layers\n\nA layer of `seqjax.nnx` takes [B, T, D] by default, as in Flax. Written by "
    "`python -m benchmarks.layout`.",
    caption="Time of batch-major layers relative to time-major ones",
    sections={"layout": layout},
    timing=f"median of {ROUNDS} rounds; in a row, the median of {CALLS} calls per round",
)


if __name__ == "__main__":
    measure(LAYOUT, sys.argv[1:])
