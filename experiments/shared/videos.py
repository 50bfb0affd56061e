"""Videos of handwritten digits that move in a box: what `direction` and `next_frame` train and test on.

Moving MNIST (Srivastava et al. 2015, arXiv 1502.04681), drawn from a key inside the compiled program. Its frames of
64 x 64 pixels with digits of 28 are --size=64; at 32, the default, the digits are halved too, and so is the speed in
pixels: 20 frames, of which a digit crosses the room in 10 to 20.
"""

import sys
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from seqjax.arrays import Array, Key
from seqjax.data import mnist, motion

SIZES = (16, 32, 64)
# Videos for validation and for the test.
HELD_OUT = 512


def define(values: flags.FlagValues, digits: int) -> None:
    """Adds the flags --size, --length and --digits."""
    flags.DEFINE_integer("size", 32, "Pixels of a side of a frame: 16, 32 or 64.", flag_values=values)
    flags.register_validator("size", lambda size: size in SIZES, f"one of {SIZES}", flag_values=values)
    flags.DEFINE_integer("length", 20, "Frames of a video.", lower_bound=4, flag_values=values)
    flags.DEFINE_integer("digits", digits, "Digits in a video.", lower_bound=1, flag_values=values)


@cache  # read once per process, where a sweep builds many experiments
def _images(data_dir: str | None) -> dict[str, np.ndarray]:
    """The digits of each part, uint8 [N, 28, 28]."""
    if data_dir is None:
        print("no --data_dir: the digits are generated, not handwritten", file=sys.stderr)
        parts = {"train": mnist.generated(1500, seed=0), "test": mnist.generated(500, seed=1)}
    else:
        parts = mnist.load(data_dir)
    train, validation = mnist.split(parts["train"], len(parts["train"].labels) // 12)
    return {"train": train.images, "validation": validation.images, "test": parts["test"].images}


def images(config: SimpleNamespace) -> dict[str, Array]:
    """The digits of each part at the size that they have in the frames, uint8 [N, S, S]."""
    times = 64 // config.size
    side = mnist.SIZE // times

    def small(given):
        means = given.reshape(-1, side, times, side, times).mean((2, 4))
        return jnp.asarray(np.round(means).astype(np.uint8))

    return {part: small(given) for part, given in _images(config.data_dir).items()}


class Videos(NamedTuple):
    """Videos, and what they were made from.

    Attributes:
      frames: float32 [B, T, H, W] in [0, 1].
      images: of their digits, float32 [B, N, S, S].
      path: of these, [T, B, N, 2], in units of the room that a digit has to move in.
    """

    frames: Array
    images: Array
    path: motion.Path


def draw(config: SimpleNamespace, digits: Array, key: Key, count: int) -> Videos:
    """`count` videos of digits uint8 [N, S, S]."""
    k_digits, k_motion = jax.random.split(key)
    chosen = digits[jax.random.randint(k_digits, (count, config.digits), 0, len(digits), jnp.int32)]
    chosen = chosen.astype(jnp.float32) / 255
    frames, path = motion.moving(k_motion, chosen, config.length, config.size)
    return Videos(jnp.swapaxes(frames, 0, 1), chosen, path)


def held_out(part: str) -> Key:
    """The key of the videos of a part, "validation" or "test", the same in every run."""
    return jax.random.fold_in(jax.random.key(20_150_216), ("validation", "test").index(part))
