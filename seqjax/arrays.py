"""Arrays of a cell: their dtypes, and the products of inputs and carry with weights."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, NamedSharding

from seqjax import indices

__all__ = [
    "carry_dtype",
    "check_features",
    "dense",
    "dense_rows",
    "like",
    "matmul",
    "operand_dtype",
    "product_gradient",
]


def like(value: Array, reference: Array) -> Array:
    """Broadcast `value`, which may lack leading axes, to the shape of `reference`."""
    return jnp.broadcast_to(value, reference.shape)


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
    rows = [indices.rows(w, one).astype(dtype) for one in tokens]
    total = sum(rows[1:], start=rows[0])
    return total + like(b.astype(dtype), total)
