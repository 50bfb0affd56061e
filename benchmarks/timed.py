"""Compiled losses with their gradients, timed side by side, and the pages that show the results."""

import argparse
import datetime
import importlib.metadata
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.places import Places, places
from experiments.harness.report import Table, markdown_table, panels, save, text_table
from seqjax import unroll
from seqjax.core import Cell
from seqjax.solvers.newton import NewtonReport, newton_with_report
from seqjax.train import write_atomic

ROUNDS = 3
FEATURES = 32


def median(call: Callable[[], Any], seconds: float, calls: int = 3) -> float:
    """Seconds of one call, after a first one: the median over as many as fit into `seconds`, and at least `calls`."""
    call()
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < calls or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


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


def last_carry(cell: Cell, method: Any, params: Any, xs: jax.Array) -> jax.Array:
    """A loss of the carry after the last step."""
    carry, _ = unroll(cell, params, None, xs, method=method)
    return sum((jnp.square(leaf).mean() for leaf in jax.tree.leaves(carry)), jnp.zeros(()))


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
    """The median seconds of programs of one shape, called in turns, after one uncounted call each."""
    ready = {name: draw(p) for name, p in programs.items()}
    calls = {name: max(1, min(20, int(0.05 / p.seconds()))) for name, p in ready.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, p in ready.items():
            seconds[name].append(min(p.seconds() for _ in range(calls[name])))
    return {name: float(np.median(values)) for name, values in seconds.items()}


class Section(NamedTuple):
    """A table with its description, and a function that draws it."""

    title: str
    text: str
    table: Table
    plot: Callable[[Any], None]


def note(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


class Page(NamedTuple):
    """The measurements and the page of a command.

    Attributes:
      command: the module that is run.
      name: of the page and its figure.
      introduction: Markdown.
      caption: of the figure.
      sections: by name, `quick -> Section`.
      timing: how a time was measured.
    """

    command: str
    name: str
    introduction: str
    caption: str
    sections: dict[str, Callable[[bool], Section]]
    timing: str = f"median of {ROUNDS} rounds in turns; calls of over 2 s are timed once"


def conditions(page: Page, arguments: Sequence[str], load: float, seconds: float) -> list[str]:
    """When, where and with what the measurement was made."""
    after, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = "; other processes were running, so the times are rough" if min(load, after) > 2 * cores else ""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "numpy"))
    return [
        f"`python -m {page.command} {shlex.join(arguments)}`".replace(" `", "`"),
        f"{datetime.date.today():%Y-%m-%d}, Python {platform.python_version()}, {versions}",
        f"{jax.devices()[0].device_kind}, {platform.machine()}, {cores} cores",
        f"load average {load:.1f} before the run and {after:.1f} after it{busy}; the run took {seconds / 60:.1f} min",
        page.timing,
    ]


def write(where: Places, page: Page, sections: Sequence[Section], facts: Sequence[str]) -> None:
    """The page and its figure."""
    drawing, (axes,) = panels(columns=len(sections))
    for section, place in zip(sections, axes, strict=True):
        section.plot(place)
    save(drawing, where.figures / page.name, png=False)
    parts = [page.introduction, f"![{page.caption}](figures/{page.name}.svg)"]
    parts += [f"## {s.title}\n\n{s.text}\n\n{markdown_table(s.table)}" for s in sections]
    parts.append("## Conditions\n\n" + "\n".join(f"- {fact}" for fact in facts))
    write_atomic(where.pages / f"{page.name}.md", "\n\n".join(parts) + "\n")


def measure(page: Page, arguments: Sequence[str]) -> None:
    """Measure, print the tables, and write the page."""
    parser = argparse.ArgumentParser(prog=f"python -m {page.command}", description=f"{page.caption}.")
    parser.add_argument("--sections", nargs="+", choices=page.sections, help="default: all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default docs/ for a full run, else nowhere")
    flags = parser.parse_args(arguments)
    where = places(flags.output, whole=not (flags.sections or flags.quick))
    load, start = os.getloadavg()[0], time.perf_counter()
    sections = [page.sections[name](flags.quick) for name in flags.sections or page.sections]
    facts = conditions(page, arguments, load, time.perf_counter() - start)
    for section in sections:
        print(f"\n{section.title}\n\n{section.text}\n\n{text_table(section.table)}")
    print("\n" + "\n".join(facts))
    if where:
        write(where, page, sections, facts)
