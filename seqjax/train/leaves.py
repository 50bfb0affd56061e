"""The leaves of a tree by path: their types, and hashes that tell whether they are the same bytes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.arrays import Tree

__all__ = ["by_path", "digest", "fingerprints", "layout", "type_of"]


def by_path(tree: Tree) -> dict[str, Any]:
    """The leaves by their path, such as "['head']['kernel']", in the order of `jax.tree.leaves`."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def type_of(leaf: Any) -> str:
    """dtype and shape of an array, "float32[3, 4]"; the type of anything else."""
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__


def layout(tree: Tree) -> dict[str, str]:
    """`type_of` each leaf, by its path."""
    return {path: type_of(leaf) for path, leaf in by_path(tree).items()}


def fingerprints(tree: Tree) -> dict[str, str]:
    """Type and a hash of the bytes of each leaf, array or string, by its path: "int32[500] 0f3c..."."""
    return {path: f"{type_of(leaf)} {_hash(leaf).hex()[:16]}" for path, leaf in by_path(tree).items()}


def digest(tree: Tree, described: Mapping[str, Any]) -> str:
    """Hash of every byte of a tree and of its description, JSON: file formats do not notice each flipped bit."""
    found = hashlib.blake2b(json.dumps(described, sort_keys=True).encode())
    for leaf in by_path(tree).values():
        found.update(type_of(leaf).encode())
        found.update(_hash(leaf))
    return found.hexdigest()


def _hash(leaf: Any) -> bytes:
    if isinstance(leaf, str):
        return hashlib.blake2b(leaf.encode()).digest()
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return hashlib.blake2b(np.ascontiguousarray(leaf).view(np.uint8).data).digest()
