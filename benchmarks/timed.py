"""Compiled losses with their gradients, timed side by side, and the sections of a page that show it."""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import Table
from seqjax import unroll
from seqjax.core import Cell
from seqjax.newton import NewtonReport, newton_with_report

ROUNDS = 3
FEATURES = 32


class Program(NamedTuple):
    """A compiled loss and gradient, and its arguments."""

    run: Any
    arguments: tuple[Any, ...]

    @property
    def temporary(self) -> int:
        """Bytes allocated beside arguments and results."""
        return self.run.memory_analysis().temp_size_in_bytes

    def seconds(self) -> float:
        """Of one call."""
        start = time.perf_counter()
        jax.block_until_ready(self.run(*self.arguments))
        return time.perf_counter() - start


def every_step(cell: Cell, method: Any, params: Any, xs: jax.Array) -> jax.Array:
    """A loss on every step, of outputs [T, B, H]."""
    return jnp.square(unroll(cell, params, None, xs, method=method)[1]).mean()


def with_report(cell: Cell, options: dict[str, Any], params: Any, xs: jax.Array) -> tuple[jax.Array, NewtonReport]:
    """`every_step` by Newton's method with these options, and how that went."""
    carry = cell.initial_carry(params, xs.shape[1:-1])
    _, ys, report = newton_with_report(cell, params, carry, xs, **options)
    return jnp.square(ys).mean(), report


def program(loss: Callable, cell: Cell, method: Any, steps: int, batch: int, features: int = FEATURES) -> Program:
    """Compile a loss with its gradient at one shape."""
    params = cell.init(jax.random.key(0), features)
    shape = jax.ShapeDtypeStruct((steps, batch, features), jnp.float32)
    gradient = jax.value_and_grad(partial(loss, cell, method), has_aux=loss is with_report)
    return Program(jax.jit(gradient).lower(params, shape).compile(), (params, shape))


def draw(p: Program) -> Program:
    """The program with numbers in place of the shape of its inputs."""
    params, shape = p.arguments
    return p._replace(arguments=(params, jax.random.normal(jax.random.key(1), shape.shape)))


def race(programs: dict[str, Program], rounds: int = ROUNDS) -> dict[str, float]:
    """The median seconds of programs of one shape, in turns, after one call each that does not count."""
    ready = {name: draw(p) for name, p in programs.items()}
    calls = {name: max(1, min(20, int(0.05 / p.seconds()))) for name, p in ready.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, p in ready.items():
            seconds[name].append(min(p.seconds() for _ in range(calls[name])))
    return {name: float(np.median(values)) for name, values in seconds.items()}


class Section(NamedTuple):
    """A table with what it shows, and how to draw it."""

    title: str
    text: str
    table: Table
    plot: Callable[[Any], None]


def note(text: str) -> None:
    """Progress, for whoever watches."""
    print(text, file=sys.stderr, flush=True)
