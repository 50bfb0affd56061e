"""Arrays of a cell: their dtypes, and the products of inputs and carry with weights."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.core
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from seqjax.placement import explicit_spec

__all__ = [
    "as_arrays",
    "carry_dtype",
    "check_features",
    "check_indices",
    "dense",
    "dense_rows",
    "exportable",
    "from_numpy",
    "like",
    "matmul",
    "operand_dtype",
    "product_gradient",
    "rows",
]

Array = jax.Array
Key = jax.Array
Params = Any
Carry = Any
Tree = Any

_Carry = TypeVar("_Carry", bound=type)


def exportable(carry: _Carry) -> _Carry:
    """Register a NamedTuple with `jax.export`, which writes the types of arguments and results into its files.

    A carry of your own needs the same: `jax.export.register_namedtuple_serialization`.
    """
    jax.export.register_namedtuple_serialization(carry, serialized_name=f"seqjax.{carry.__name__}")
    return carry


def like(value: Array, reference: Array) -> Array:
    """Broadcast `value`, which may lack leading axes, to the shape of `reference`."""
    return jnp.broadcast_to(value, reference.shape)


def from_numpy(tree: Tree) -> Tree:
    """A tree with its NumPy arrays as `jnp.asarray` takes them: 64 bits become 32, unless `jax_enable_x64` is set."""
    kinds = (np.ndarray, np.generic)
    if not any(isinstance(leaf, kinds) for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, kinds) else leaf, tree)


def as_arrays(name: str, expected: str, tree: Tree) -> Tree:
    """A tree of arrays of JAX or NumPy, those of NumPy taken by `from_numpy`.

    Raises:
      TypeError: for lists of numbers, which are trees too, and for other leaves that are not arrays.
    """
    for leaf in jax.tree.leaves(tree):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            given = f"a {type(tree).__name__}" + ("" if leaf is tree else f" that holds a {type(leaf).__name__}")
            raise TypeError(f"{name} must be {expected}, got {given}: use jnp.asarray")
    return from_numpy(tree)


def carry_dtype(dtype: Any) -> Any:
    """The dtype of a carry for weights of `dtype`: float32 for float16 and bfloat16, otherwise the same."""
    return jnp.dtype(jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype)


def operand_dtype(dtype: Any) -> Any:
    """The dtype in which a product with weights of `dtype` takes its factors: the same, but float32 for float16.

    A float32 carry beyond 65504 would be infinite in float16.
    """
    return jnp.dtype(jnp.float32 if jnp.dtype(dtype) == jnp.float16 else dtype)


def matmul(x: Array, w: Array) -> Array:
    """`x @ w` for `x [..., D]` and `w [D, G]`, accumulated and returned in `carry_dtype(w.dtype)`.

    `x` is cast to `operand_dtype(w.dtype)`: with bfloat16 weights the product takes bfloat16 and sums in float32.
    """
    dtype = operand_dtype(w.dtype)
    return jnp.matmul(x.astype(dtype), w.astype(dtype), preferred_element_type=carry_dtype(w.dtype))


def product_gradient(x: Array, w: Array, dy: Array) -> Array:
    """The gradient of `matmul(x, w)` by `w [D, G]`, from that of the product: one product over all leading axes."""
    leading = tuple(range(x.ndim - 1))
    # Where x is explicitly sharded over these axes, the sum over devices has to be asked for.
    given: Any = jax.typeof(x)
    wanted: Any = jax.typeof(w)
    explicit = AxisType.Explicit in given.sharding.mesh.axis_types
    total = jax.lax.dot_general(
        x.astype(operand_dtype(w.dtype)),
        dy.astype(operand_dtype(w.dtype)),
        ((leading, leading), ((), ())),
        preferred_element_type=carry_dtype(w.dtype),
        out_sharding=NamedSharding(given.sharding.mesh, wanted.sharding.spec) if explicit else None,
    )
    return total.astype(w.dtype)


def check_features(x: Array, w: Array, space: tuple[int, ...] = ()) -> None:
    """Check that `x [..., *space, D]` can be multiplied by `w [D, G]`.

    Raises:
      TypeError: if x is no array, not floating, or wider than float32 where the weights are narrower than it.
      ValueError: if x does not end in the axes of the space and D features.
    """
    if not hasattr(x, "dtype"):
        kind = f"a {type(x).__name__}" if x is not None else "None"
        raise TypeError(
            f"inputs are {kind}, expected one array [..., {w.shape[0]}]: x = (x, extra) is for cells that read more, "
            "such as masked(cell), ltc, or a cell with noise"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"inputs have dtype {x.dtype}, expected a floating dtype (the weights are {w.dtype})")
    if carry_dtype(x.dtype) != carry_dtype(w.dtype):
        raise TypeError(f"inputs have dtype {x.dtype} and the weights {w.dtype}: cast one of them")
    own = (*space, w.shape[0])
    if x.shape[max(x.ndim - len(own), 0) :] != own:
        raise ValueError(f"inputs have shape {x.shape}, expected [..., {', '.join(map(str, own))}] (weights {w.shape})")


def dense(x: Array, w: Array, b: Array | None = None) -> Array:
    """`x @ w + b` for `x [..., D]`, `w [D, G]`, `b [G]`; see `matmul`, and for errors `check_features`."""
    check_features(x, w)
    z = matmul(x, w)
    return z if b is None else z + like(b.astype(z.dtype), z)


def dense_rows(tokens: Sequence[Array], w: Array, b: Array) -> Array:
    """`sum(one_hot(one) for one in tokens) @ w + b` without the product: rows of `w [V, G]`, tokens int [B] each.

    The row of a token outside of range(V) is 0.
    """
    dtype = carry_dtype(w.dtype)
    taken = [rows(w.astype(dtype), one) for one in tokens]
    total = sum(taken[1:], start=taken[0])
    return total + like(b.astype(dtype), total)


def check_indices(name: str, indices: Any, stop: int) -> None:
    """Check that indices, if they are known, are in range(stop); under jit they are not known.

    Raises:
      ValueError: for an index that is not.
    """
    if isinstance(indices, jax.core.Tracer) or indices.size == 0:
        return
    known = np.asarray(indices)  # NumPy, because inside of a jitted function jnp would trace
    low, high = known.min(), known.max()
    if low < 0 or high >= stop:
        raise ValueError(f"{name} must be in range({max(stop, 0)}), got values from {low} to {high}")


def rows(table: jax.Array, indices: jax.Array) -> jax.Array:
    """`table[indices]`, with rows of zeros for indices outside of range(V): table [V, ...], indices int [...].

    JAX's own lookups read the last row for -1, and NaN for V.
    """
    spec = (*explicit_spec(indices), *explicit_spec(table)[1:])
    return table.at[indices].get(
        mode="fill",
        fill_value=0,
        wrap_negative_indices=False,
        out_sharding=PartitionSpec(*spec) if any(spec) else None,
    )
