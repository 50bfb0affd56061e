"""Networks that read videos frame by frame: how things move, and the next frame.

A frame is float [H, W] in [0, 1]. Predictors run step by step, `(carry, frame) -> (carry, logits of the next frame)`,
so that `predict` can feed them given frames or their own predictions.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.arrays import Array, Carry
from seqjax.cells.convolution import convolve
from seqjax.core import Cell
from seqjax.initializers import glorot_uniform
from seqjax.models.products import Linear
from seqjax.models.tracker import Tracker, last
from seqjax.nnx import Recurrent

__all__ = [
    "Conv",
    "ConvPredictor",
    "FrameClassifier",
    "LastFrame",
    "Predictor",
    "RecurrentPredictor",
    "from_patches",
    "patches",
    "predict",
]


# Most pixels are black: from logits of 0, a network spends hundreds of updates on learning that.
_BLACK = -3.0


class Conv(nnx.Module):
    """`convolve(x, kernel) + bias`, fast in a loop: [..., H, W, inputs] to [..., H, W, outputs].

    Attributes:
      kernel: [3, 3, inputs, outputs].
      bias: [outputs].
    """

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, bias: float = 0.0):
        """Draw the kernel; `bias` is the first value of all biases."""
        self.kernel = nnx.Param(
            glorot_uniform()(rngs.params(), (9 * inputs, outputs), jnp.float32).reshape(3, 3, inputs, outputs)
        )
        self.bias = nnx.Param(jnp.full(outputs, bias))

    def __call__(self, x: Array) -> Array:
        """The convolution, of the size of x, which is padded with 0."""
        y = convolve(x, self.kernel[...])
        return y + jnp.broadcast_to(self.bias[...], y.shape)


def patches(frames: Array, side: int) -> Array:
    """Frames [..., H, W] as squares of pixels, [..., H / side, W / side, side²] (Shi et al. 2015, arXiv 1506.04214).

    Raises:
      ValueError: for frames whose sides are not multiples of `side`.
    """
    *lead, rows, columns = frames.shape
    if rows % side or columns % side:
        raise ValueError(f"frames of {rows} x {columns} pixels cannot be cut into squares of {side} x {side}")
    x = frames.reshape(*lead, rows // side, side, columns // side, side)
    return jnp.swapaxes(x, -2, -3).reshape(*lead, rows // side, columns // side, side**2)


def from_patches(squares: Array, side: int) -> Array:
    """The frames of `patches`, [..., h, w, side²] to [..., h * side, w * side]."""
    *lead, rows, columns, _ = squares.shape
    x = jnp.swapaxes(squares.reshape(*lead, rows, columns, side, side), -2, -3)
    return x.reshape(*lead, rows * side, columns * side)


class FrameClassifier(nnx.Module):
    """A class at every frame: a convolution on its patches, a dense layer, and a `Tracker` on their outputs.

    Attributes:
      conv, dense: the layers of a frame, each followed by a relu.
      tracker: of their outputs.
    """

    patch = 4
    """Side of a patch."""

    def __init__(
        self, memory: Cell | int, size: int, classes: int, *, frames: int = 1, features: int = 64, rngs: nnx.Rngs
    ):
        """Draw the weights.

        Args:
          memory: any cell; or the number of last outputs of the dense layer that a dense net sees.
          size: pixels of a side of a frame, a multiple of 4.
          classes: number of classes.
          frames: last frames that the convolution sees, as channels.
          features: outputs of the dense layer.
          rngs: stream "params".

        Raises:
          ValueError: for a size that is no multiple of the patch.
        """
        if size % self.patch:
            raise ValueError(f"FrameClassifier cuts squares of {self.patch} pixels out of frames, not of {size}")
        self.frames = frames
        self.conv = Conv(frames * self.patch**2, 16, rngs)
        self.dense = Linear(16 * (size // self.patch) ** 2, features, kernel_init=glorot_uniform(), rngs=rngs)
        self.tracker = Tracker(memory, features, classes, hidden=features, rngs=rngs)

    def __call__(self, frames: Array) -> Array:
        """Frames [B, T, H, W] to logits [B, T, classes]."""
        x = jax.nn.relu(self.conv(last(patches(frames, self.patch), self.frames)))
        x = jax.nn.relu(self.dense(x.reshape(*frames.shape[:2], -1)))
        return self.tracker(x)


class Predictor(Protocol):
    """What `predict` runs."""

    def initial_carry(self, shape: tuple[int, int, int]) -> Carry:
        """The carry before the first of frames of the shape [B, H, W]."""
        ...

    def step(self, carry: Carry, frame: Array) -> tuple[Carry, Array]:
        """A frame [B, H, W] to the logits of the next one, [B, H, W]."""
        ...


class LastFrame(nnx.Module):
    """Predicts that the next frame equals this one."""

    def initial_carry(self, shape: tuple[int, int, int]) -> Carry:
        """An empty carry."""
        del shape
        return ()

    def step(self, carry: Carry, frame: Array) -> tuple[Carry, Array]:
        """The logits of the frame's pixels, between those of 0.001 and 0.999."""
        return carry, jax.scipy.special.logit(jnp.clip(frame, 1e-3, 1 - 1e-3))


class ConvPredictor(nnx.Module):
    """Three convolutions on the patches of the last frames, without any other memory of the past.

    Attributes:
      conv1, conv2, conv3: the layers, with a relu between them.
    """

    def __init__(self, frames: int, patch: int, *, hidden: int = 32, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          frames: last frames that it sees; before the first there is black.
          patch: side of a patch.
          hidden: channels.
          rngs: stream "params".
        """
        self.frames, self.patch = frames, patch
        self.conv1 = Conv(frames * patch**2, hidden, rngs)
        self.conv2 = Conv(hidden, hidden, rngs)
        self.conv3 = Conv(hidden, patch**2, rngs, _BLACK)

    def initial_carry(self, shape: tuple[int, int, int]) -> Carry:
        """Black frames."""
        return jnp.zeros((self.frames, *shape))

    def step(self, carry: Carry, frame: Array) -> tuple[Carry, Array]:
        """As `Predictor.step`; the carry is the last frames."""
        carry = jnp.concatenate([carry[1:], frame[None]])
        x = jnp.concatenate(list(patches(carry, self.patch)), axis=-1)
        x = self.conv3(jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x)))))
        return carry, from_patches(x, self.patch)


class RecurrentPredictor(nnx.Module):
    """A recurrent network on the patches of a frame, and a dense layer at each of its places.

    Attributes:
      rnn: the `Recurrent`.
      head: the dense layer.
    """

    def __init__(self, cell: Cell, patch: int, *, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          cell: of images of the space (H / patch, W / patch), such as `cells.conv_lstm`, also a stack.
          patch: side of a patch.
          rngs: stream "params".
        """
        self.patch = patch
        self.rnn = Recurrent(cell, patch**2, rngs=rngs)
        black = nnx.initializers.constant(_BLACK)
        self.head = Linear(self.rnn.out_features, patch**2, kernel_init=glorot_uniform(), bias_init=black, rngs=rngs)

    def initial_carry(self, shape: tuple[int, int, int]) -> Carry:
        """The initial carry of the cell."""
        return self.rnn.cell.initial_carry(self.rnn.weights, shape[:1])

    def step(self, carry: Carry, frame: Array) -> tuple[Carry, Array]:
        """As `Predictor.step`."""
        x = patches(frame, self.patch)[:, None]
        carry, ys = self.rnn(x, initial_carry=carry, return_carry=True)
        return carry, from_patches(self.head(ys[:, 0]), self.patch)


def predict(model: Any, frames: Array, given: int) -> Array:
    """The logits of the next frame at every frame; from frame `given` on, the model reads its own predictions instead.

    Args:
      model: a `Predictor`.
      frames: float [B, T, H, W]; those from `given` on are not looked at.
      given: frames that the model sees, static, in [1, T].

    Returns:
      float [B, T, H, W]: at t the logits of frame t + 1.

    Raises:
      ValueError: for a `given` outside [1, T].
    """
    steps = frames.shape[1]
    if not 1 <= given <= steps:
        raise ValueError(f"given must be in [1, {steps}], the number of frames, got {given}")

    def step(state, x):
        carry, guess = state
        frame, known = x
        carry, logits = model.step(carry, jnp.where(known, frame, guess))
        return (carry, jax.nn.sigmoid(logits)), logits

    start = (model.initial_carry(frames[:, 0].shape), jnp.zeros_like(frames[:, 0]))
    known = jnp.arange(steps) < given
    _, logits = jax.lax.scan(step, start, (jnp.swapaxes(frames, 0, 1), known))
    return jnp.swapaxes(logits, 0, 1)
