"""Solvers: the ways to run a recurrence over time. All of them agree, in values and in gradients.

Each is `(cell, params, carry, xs) -> (last carry, ys)` on xs [T, B, ...]. They differ in speed, in memory and in what
they need of the cell:

    scan, rematerialized    scan.py          any cell
    checkpointed            dispatch.py      any cell; the loops over chunks of time are in chunks.py and revolve.py
    fused                   fused.py         the hint `gated`
    native                  native/          the hint `gated`, a CPU and a C++ compiler
    associative             associative.py   the hint `affine`
    chunkwise               chunkwise.py     the hint `outer`
    newton                  newton.py        a real carry
    auto                    dispatch.py      chooses among them, by methods.csv
"""

from seqjax.solvers.dispatch import METHODS, Solver, auto, checkpointed, ranking, solve

__all__ = ["METHODS", "Solver", "auto", "checkpointed", "ranking", "solve"]
