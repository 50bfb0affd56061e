"""Indices of tokens and of rows: refused outside of their range where they are known, and never NaN elsewhere."""

from typing import Any

import jax
import jax.core
import numpy as np
from jax.sharding import PartitionSpec

from seqjax.placement import explicit_spec

__all__ = ["check", "rows"]


def check(name: str, indices: Any, stop: int) -> None:
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
