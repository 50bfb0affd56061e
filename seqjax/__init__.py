"""Recurrent sequence models in JAX: cells as pure functions, and every way to obtain their gradient.

    cell = seqjax.cells.lstm(64)
    params = cell.init(jax.random.key(0), 14)
    carry, ys = seqjax.unroll(cell, params, None, xs)     # xs [T, B, 14], ys [T, B, 64]

`seqjax.nnx` holds the same cells as Flax NNX modules. It is imported on first use, so that the cells need JAX alone.
"""

import importlib

from seqjax import (
    attention,
    cells,
    decoding,
    diagnostics,
    gradients,
    importers,
    initializers,
    noise,
    normalization,
    presets,
    regularizers,
    solvers,
    wrappers,
)
from seqjax.core import Cell, Const, Dense, from_step
from seqjax.hints import Complex, Gated
from seqjax.solvers import explain
from seqjax.unrolling import bidirectional, generate, mask_from_lengths, unroll

__all__ = [
    "Cell",
    "Complex",
    "Const",
    "Dense",
    "Gated",
    "attention",
    "bidirectional",
    "cells",
    "decoding",
    "diagnostics",
    "explain",
    "from_step",
    "generate",
    "gradients",
    "importers",
    "initializers",
    "mask_from_lengths",
    "noise",
    "normalization",
    "presets",
    "regularizers",
    "solvers",
    "unroll",
    "wrappers",
]
__version__ = "0.2.0.dev0"


def __getattr__(name: str):
    if name == "nnx":
        return importlib.import_module("seqjax.nnx")
    raise AttributeError(f"module 'seqjax' has no attribute {name!r}")
