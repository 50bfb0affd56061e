"""The choice of a method for a cell: by what the cell admits, by platform, and by measurement (`methods.csv`)."""

import csv
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import jax

from seqjax.arrays import Carry, Params, Tree, as_arrays
from seqjax.core import Cell, batch_shape
from seqjax.solvers import native, persistent
from seqjax.solvers.gated_loop.solver import supports
from seqjax.solvers.persistent.solver import PLATFORMS as KERNELS
from seqjax.solvers.scan import scan

__all__ = ["Explanation", "explain", "ranking"]

PLATFORMS = ("cpu", "cuda", "tpu")


class _Timed(NamedTuple):
    """A row of `methods.csv`: the methods for one platform and size, the fastest first."""

    batch: int
    units: int
    methods: tuple[str, ...]


@lru_cache
def _measured() -> dict[tuple[str, str], list[_Timed]]:
    """The measurements of `python -m benchmarks.methods`, by platform and kind of recurrence."""
    table: dict[tuple[str, str], list[_Timed]] = {}
    with (Path(__file__).parent / "methods.csv").open() as file:
        for row in csv.DictReader(file):
            line = _Timed(int(row["batch"]), int(row["units"]), tuple(row["methods"].split()))
            table.setdefault((row["platform"], row["recurrence"]), []).append(line)
    return table


def ranking(platform: str, recurrence: str, batch: int, units: int) -> tuple[str, ...]:
    """The methods for a "gated" or "affine" cell, the fastest first, at the nearest measured size.

    "fused:8" is `fused` with 8 steps per turn of its loop.
    """
    lines = _measured().get((platform, recurrence))
    if not lines:
        if recurrence == "affine":
            return ("associative",)
        # A guess: no TPU was measured.
        return ("persistent", "fused:8") if units <= 128 else ("fused:8",)

    def distance(line):
        return abs(math.log(line.units / units)) + 0.5 * abs(math.log(line.batch / max(batch, 1)))

    return min(lines, key=distance).methods


def refusal(method: str, platform: str, cell: Cell, params: Params, carry: Carry, xs: Tree) -> str:
    """Why a method cannot run a cell on a platform; empty if it can."""
    hints = {"fused": "gated", "native": "gated", "persistent": "gated", "associative": "affine", "chunkwise": "outer"}
    name = method.partition(":")[0]
    if name in hints and getattr(cell, hints[name]) is None:
        return f"the cell has no `{hints[name]}` hint"
    if name == "native":
        if platform != "cpu":
            return "runs on CPUs only"
        if native.compiler() is None:
            return "there is no C++ compiler"
        return supports(native.Native().check, cell, params, carry, xs)
    if name == "persistent" and platform not in KERNELS:
        return "runs on NVIDIA GPUs and TPUs only"
    kernels = persistent.Persistent(None)
    if name == "persistent":
        return supports(partial(kernels.check_on, platform), cell, params, carry, xs)
    if method != name and cell.gated is not None:
        # Steps that are more than elementwise take minutes to compile when a turn of the loop has several.
        return supports(kernels.check, cell, params, carry, xs)
    return ""


def _ranked(platform: str, cell: Cell, carry: Carry) -> tuple[str, ...]:
    if cell.outer is not None:
        return ("chunkwise",)
    if cell.gated is None and cell.affine is None:
        return ("scan",)
    *batch, units = jax.tree.leaves(carry)[0].shape
    if cell.gated is not None:
        return (*ranking(platform, "gated", math.prod(batch), units), "fused", "scan")
    return (*ranking(platform, "affine", math.prod(batch), units), "scan")


def choose(platform: str, cell: Cell, params: Params, carry: Carry, xs: Tree) -> str:
    """The first method of the ranking that can run a cell on a platform."""
    names = _ranked(platform, cell, carry)
    return next(name for name in names if not refusal(name, platform, cell, params, carry, xs))


class Explanation(NamedTuple):
    """The method that `auto` runs for a cell on a platform, and why it does not run the others."""

    cell: Cell
    platform: str
    method: str
    others: dict[str, str]

    def __str__(self) -> str:
        others = "".join(f"\n    {name:15} {reason}" for name, reason in self.others.items())
        return f"{self.cell} on {self.platform}: {self.method}{others}"


def explain(
    cell: Cell, params: Params, xs: Tree, carry: Carry = None, *, platforms: Sequence[str] = PLATFORMS
) -> list[Explanation]:
    """Which method `unroll` runs by default on each platform, for each layer of a cell, and why not the others.

    Args:
      cell: the cell.
      params: its params; like all arrays here, `jax.ShapeDtypeStruct` serve as well.
      xs: inputs [T, B, D].
      carry: the carry before the first step; by default that of the cell.
      platforms: those that are asked about, as JAX names them.

    Returns:
      One explanation for each layer and platform; `print(*explain(...), sep="\\n")` shows them.

    Example:
      >>> cell = seqjax.cells.gru(256)
      >>> params = cell.init(jax.random.key(0), 3)
      >>> for one in seqjax.explain(cell, params, jnp.ones((100, 32, 3)), platforms=["cuda", "tpu"]):
      ...   print(one.platform, one.method, "|", one.others["native"])
      cuda persistent | runs on CPUs only
      tpu fused:8 | runs on CPUs only
    """
    params, xs, carry = (jax.tree.map(_typed, tree) for tree in (params, as_arrays("xs", "arrays", xs), carry))
    if carry is None:
        carry = jax.eval_shape(lambda params: cell.initial_carry(params, batch_shape(xs, cell.space)), params)
    if cell.layers:
        found = []
        for layer, p, c in zip(cell.layers, params, carry, strict=True):
            found += explain(layer, p, xs, c, platforms=platforms)
            xs = jax.eval_shape(lambda p, c, xs, layer=layer: scan(layer, p, c, xs)[1], p, c, xs)
        return found
    return [_explained(platform, cell, params, carry, xs) for platform in platforms]


def _typed(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _explained(platform: str, cell: Cell, params: Params, carry: Carry, xs: Tree) -> Explanation:
    method = choose(platform, cell, params, carry, xs)
    names = _ranked(platform, cell, carry)
    others = {}
    for name in ("scan", "rematerialized", "fused", "native", "persistent", "associative", "chunkwise"):
        if name == method.partition(":")[0]:
            continue
        reason = refusal(name, platform, cell, params, carry, xs)
        ranks = [i for i, ranked in enumerate(names) if ranked.partition(":")[0] == name]
        if not reason and ranks:
            reason = f"is expected to be slower than {method} at this size"
        others[name] = reason or f"is not known to be faster than {method}"
    others["checkpointed"] = "saves memory, not time: by name only"
    others["newton"] = "for few units and many steps: by name only"
    return Explanation(cell, platform, method, others)
