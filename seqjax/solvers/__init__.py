"""Solvers: the methods that run a recurrence over time. All of them agree, in values and in gradients.

Each is `(cell, params, carry, xs) -> (last carry, ys)` on xs [T, B, ...]. They differ in speed, in memory and in what
they require of the cell:

    scan, rematerialized    scan.py          any cell
    checkpointed            dispatch.py      any cell; its loops over chunks of time are in chunks.py and revolve.py
    fused                   fused.py         the hint `gated`
    native                  native/          the hint `gated`, a CPU and a C++ compiler
    persistent              persistent/      the hint `gated`, an NVIDIA GPU or a TPU
    associative             associative.py   the hint `affine`
    chunkwise               chunkwise.py     the hint `outer`
    newton                  newton.py        a real carry
    auto                    dispatch.py      chooses one of the others on each platform, see choice.py

`native` and `persistent` are kernels of one loop, gated_loop/, which runs without them on any platform.
"""

from seqjax.solvers.choice import Explanation, explain, ranking
from seqjax.solvers.dispatch import METHODS, Solver, auto, checkpointed, named, solve
from seqjax.solvers.newton import NewtonReport, newton_with_report

__all__ = [
    "METHODS",
    "Explanation",
    "NewtonReport",
    "Solver",
    "auto",
    "checkpointed",
    "explain",
    "named",
    "newton_with_report",
    "ranking",
    "solve",
]
