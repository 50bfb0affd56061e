"""Whether numbers are finite: of a training state, inside the compiled call, and of a run's results."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["finite_leaves", "not_finite"]

PyTree = Any


def finite_leaves(tree: PyTree) -> dict[str, jax.Array]:
    """bool [] for each floating leaf, by its path: whether all its elements are finite."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): jnp.isfinite(leaf).all()
        for path, leaf in leaves
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


def not_finite(tree: PyTree, path: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested dicts, lists and arrays that are not finite, each with the path to it."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from not_finite(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from not_finite(value, f"{path}[{i}]")
    elif hasattr(tree, "tolist"):
        if np.issubdtype(np.asarray(tree).dtype, np.inexact) or jnp.issubdtype(tree.dtype, jnp.inexact):
            yield from not_finite(np.asarray(tree, np.float64).tolist(), path)
    elif isinstance(tree, float) and not math.isfinite(tree):
        yield path, tree
