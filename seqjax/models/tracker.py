"""An output at every step of a sequence, from a memory: any cell, or only the last few inputs."""

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.arrays import Array
from seqjax.core import Cell
from seqjax.initializers import glorot_uniform
from seqjax.models.products import Linear
from seqjax.nnx import Recurrent

__all__ = ["Tracker", "Window", "last"]


def last(xs: Array, count: int) -> Array:
    """The last `count` inputs at every step side by side, the newest last: [B, T, ..., D] to [B, T, ..., count * D].

    The first input stands in for those before it.

    Example:
      >>> from seqjax.models.tracker import last
      >>> last(jnp.array([[[1.0], [2.0], [3.0]]]), 2).tolist()
      [[[1.0, 1.0], [1.0, 2.0], [2.0, 3.0]]]
    """
    steps = xs.shape[1]
    padded = jnp.concatenate([xs[:, :1]] * (count - 1) + [xs], axis=1)
    return jnp.concatenate([padded[:, i : i + steps] for i in range(count)], axis=-1)


class Window(nnx.Module):
    """`relu(Dense(hidden))` of the last inputs, at every step: a network without a carry.

    Attributes:
      dense: the layer.
      out_features: its width.
    """

    def __init__(self, count: int, in_features: int, hidden: int, *, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          count: inputs that it sees, >= 1.
          in_features: features D of an input.
          hidden: width H.
          rngs: stream "params".

        Raises:
          ValueError: for a count below 1.
        """
        if count < 1:
            raise ValueError(f"Window sees the last count >= 1 inputs, got {count}")
        self.count = count
        self.dense = Linear(count * in_features, hidden, kernel_init=glorot_uniform(), rngs=rngs)
        self.out_features = hidden

    def __call__(self, xs: Array) -> Array:
        """[B, T, D] to [B, T, H]."""
        return jax.nn.relu(self.dense(last(xs, self.count)))


class Tracker(nnx.Module):
    """`Dense(outputs)(memory(xs))` at every step.

    Attributes:
      memory: a `Recurrent`, or a `Window`.
      head: the dense layer.
    """

    def __init__(self, memory: Cell | int, in_features: int, outputs: int, *, hidden: int = 64, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          memory: any cell; or the number of last inputs that a dense net sees.
          in_features: features D of the inputs.
          outputs: outputs O per step.
          hidden: width of the dense net; a cell has its own.
          rngs: stream "params".
        """
        if isinstance(memory, int):
            self.memory = Window(memory, in_features, hidden, rngs=rngs)
        else:
            self.memory = Recurrent(memory, in_features, rngs=rngs)
        self.head = Linear(self.memory.out_features, outputs, kernel_init=glorot_uniform(), rngs=rngs)

    def __call__(self, xs: Array) -> Array:
        """[B, T, D] to [B, T, O]."""
        return self.head(self.memory(xs))
