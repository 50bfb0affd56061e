"""An embedding table that reports a token outside of it."""

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.arrays import carry_dtype, check_indices, rows

__all__ = ["Embed", "look_up"]


class Embed(nnx.Embed):
    """`nnx.Embed` for tokens in range(V), V = num_embeddings.

    Under jit, where tokens are not known, one outside of it has an embedding of zeros.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Tokens int [...] to embeddings [..., E]; ValueError for one outside of range(V), where it is known."""
        return look_up(self.embedding[...], inputs)


def look_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of a table [V, E], as `Embed`, in `carry_dtype(table.dtype)`: so their gradients are summed.

    Raises:
      ValueError: a token outside of range(V), where it is known.
      TypeError: tokens that are no integers.
    """
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be integers, got {tokens.dtype}")
    check_indices("tokens", tokens, len(table))
    return rows(table.astype(carry_dtype(table.dtype)), tokens)
