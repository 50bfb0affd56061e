"""Placement: the part of an array's type that describes where it lives on a mesh.

Under `jax.shard_map` the type of an array names the mesh axes over which it varies; on a mesh with explicit axes it
holds the sharding. A loop needs a carry of one type, but a carry of zeros varies over no axis and is replicated.
"""

from typing import Any

import jax
from jax.sharding import PartitionSpec

Array = jax.Array
Tree = Any


def _type(leaf: Array) -> Any:
    """The type of an array, for which `jax.typeof` is annotated with a class that lacks its attributes."""
    return jax.typeof(leaf)


def varying(tree: Tree) -> frozenset[str]:
    """The mesh axes of `jax.shard_map` over which any leaf of a tree varies."""
    return frozenset().union(*(_type(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(tree)))


def vary(tree: Tree, axes: frozenset[str]) -> Tree:
    """The tree with leaves that vary over the mesh axes `axes`; gradients are summed over the axes that are new."""

    def one(leaf):
        missing = tuple(sorted(axes - varying(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(one, tree)


def shape_like(shape: tuple[int, ...], dtype: Any, reference: Array) -> jax.ShapeDtypeStruct:
    """The type of an array that varies over the mesh axes over which `reference` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=_type(reference).manual_axis_type)


def explicit_spec(leaf: Array) -> tuple[Any, ...]:
    """The explicit mesh axes over which each axis of an array is sharded; None for an axis that is not."""
    aval = _type(leaf)
    return (*aval.sharding.spec, *(None,) * (aval.ndim - len(aval.sharding.spec)))


def reshard(leaf: Array, spec: tuple[Any, ...]) -> Array:
    """`leaf` explicitly sharded by `spec`."""
    return leaf if explicit_spec(leaf) == spec else jax.sharding.reshard(leaf, PartitionSpec(*spec))


def placed_as(value: Array, reference: Array) -> Array:
    """`value` with the placement of `reference`, an array of the same shape."""
    return vary(reshard(value, explicit_spec(reference)), varying(reference))


def placed_alike(*values: Array) -> list[Array]:
    """Arrays of the same shape with the same placement: an axis is sharded if it is in any of them."""
    spec = tuple(next(filter(None, axes), None) for axes in zip(*map(explicit_spec, values), strict=True))
    return vary([reshard(value, spec) for value in values], varying(values))
