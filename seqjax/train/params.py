"""Trained params as one file: an .npz of their arrays by path, with the structure of the tree and a digest."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.arrays import Params, Tree
from seqjax.data import files
from seqjax.data.damaged import named
from seqjax.train.atomic import write_atomic
from seqjax.train.differences import differences, listed
from seqjax.train.leaves import by_path, digest, layout, type_of

__all__ = ["read_params", "write_params"]

_ABOUT = "about"  # no path of a leaf: those begin with "[" or ".", or are empty


def write_params(path: Path, params: Params) -> None:
    """Replaces the file at `path` by `params`, as `write_atomic` does.

    Raises:
      TypeError: a leaf is not an array of numbers.
      OSError: it could not be written; the old file is as it was.
    """
    arrays = by_path(params)
    for place, leaf in arrays.items():
        if not hasattr(leaf, "dtype") or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise TypeError(f"params{place} is of type {type_of(leaf)}, expected an array of numbers")
    described = {"tree": _structure(params), "types": layout(params)}
    about = json.dumps({**described, "digest": digest(params, described)})
    with io.BytesIO() as file:
        stored: dict[str, Any] = {_ABOUT: np.array(about), **{place: _stored(leaf) for place, leaf in arrays.items()}}
        np.savez(file, **stored)
        write_atomic(path, file.getvalue())


def read_params(path: Path, like: Tree | None = None) -> Params:
    """The params in the file at `path`.

    Args:
      path: what `write_params` wrote.
      like: a tree of arrays or `jax.ShapeDtypeStruct`; the params have its structure, and must have its shapes and
        dtypes. Without it they are nested dicts, lists and tuples as they were written.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or its params are not `like`; names what differs. Or they need a `like`: they
        hold a NamedTuple or another class, or float64 while JAX has 64-bit types disabled.
    """
    arrays = files.arrays(path.read_bytes(), str(path))
    with named(path, "damaged, or not written by Run.save_params"):
        about = json.loads(str(arrays.pop(_ABOUT)))
        described = {name: about[name] for name in ("tree", "types")}
        types: dict[str, str] = described["types"]
        found = {place: _restored(arrays[place], types[place]) for place in types}
        if digest(list(found.values()), described) != about["digest"]:
            raise ValueError(f"{path} is damaged: its content does not match its digest; train again")
    if like is None:
        like = _tree(described["tree"], str(path))
    if different := differences(layout(like), types):
        raise ValueError(
            f"{path} holds params of another model: {listed(different)}; build the model with the flags of the run"
        )
    leaves = {place: jnp.asarray(array) for place, array in found.items()}
    if narrowed := [place for place, leaf in leaves.items() if type_of(leaf) != types[place]]:
        raise ValueError(
            f"{path}: {narrowed[0]} is {types[narrowed[0]]}, which JAX reads as {type_of(leaves[narrowed[0]])};"
            ' enable 64-bit types: jax.config.update("jax_enable_x64", True)'
        )
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[place] for place in by_path(like)])


def _stored(leaf: Any) -> np.ndarray:
    """The array as NumPy's own file format keeps it: bits for a dtype that is not one of NumPy's, such as bfloat16."""
    array = np.asarray(leaf)
    return array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array


def _restored(array: np.ndarray, kind: str) -> np.ndarray:
    return array.view(jnp.dtype(kind.partition("[")[0]))


def _structure(tree: Tree) -> Any:
    """The containers of a tree as JSON, with the types of the leaves."""
    if tree is None:
        return None
    if isinstance(tree, Mapping) and all(isinstance(key, str | int) for key in tree):
        return {"dict": [[key, _structure(one)] for key, one in tree.items()]}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_structure(one) for one in tree]}
    return type_of(tree) if jax.tree_util.all_leaves([tree]) else {"class": type(tree).__name__}


def _tree(structure: Any, place: str) -> Tree:
    """The containers that `_structure` describes, with a `jax.ShapeDtypeStruct` at each leaf."""
    if structure is None:
        return None
    if isinstance(structure, str):
        dtype, _, shape = structure.partition("[")
        return jax.ShapeDtypeStruct(json.loads("[" + shape), jnp.dtype(dtype))
    [(kind, content)] = structure.items()
    if kind == "class":
        raise ValueError(f"{place} holds a {content}, which a file cannot rebuild: use Run.load_params(like)")
    if kind == "dict":
        return {key: _tree(one, place) for key, one in content}
    children = [_tree(one, place) for one in content]
    return tuple(children) if kind == "tuple" else children
