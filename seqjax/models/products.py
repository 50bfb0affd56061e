"""Dense and convolutional layers whose products take factors in the dtype of the kernel.

With a bfloat16 kernel they return float32, as cells do (`seqjax.arrays.matmul`): Flax would widen the kernel, or round
what follows. Without one they are Flax's own.
"""

from typing import Any

import jax
from flax import nnx

from seqjax.arrays import carry_dtype, dense

__all__ = ["Conv", "Linear"]


class Linear(nnx.Linear):
    """`nnx.Linear`: `x @ kernel + bias`, summed and returned in `carry_dtype(kernel.dtype)`."""

    def __call__(self, inputs: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`[..., D] -> [..., G]`; see `seqjax.arrays.dense` for errors."""
        bias: Any = self.bias
        return dense(inputs, self.kernel[...], bias[...])


class Conv(nnx.Conv):
    """`nnx.Conv`, computed in the dtype of the kernel and returned in `carry_dtype(kernel.dtype)`."""

    def __init__(self, *sizes: Any, **options: Any):
        """Draw the weights; arguments as of `nnx.Conv`."""
        super().__init__(*sizes, **options, promote_dtype=_as_kernel)

    def __call__(self, inputs: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`[B, ..., D] -> [B, ..., G]`."""
        return super().__call__(inputs).astype(carry_dtype(self.kernel.dtype))


def _as_kernel(arrays: Any, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Inputs, kernel and bias in the dtype of the kernel; the keywords are those of Flax's function in its place."""
    del dtype, inexact
    return tuple(array.astype(arrays[1].dtype) for array in arrays)
