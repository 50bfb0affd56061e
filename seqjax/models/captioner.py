"""Captions of pictures: convolutions encode them, and a recurrent decoder generates the words.

captioner = Captioner(cells.gru(128), 32, 21, 32, attend=attention.bahdanau, rngs=nnx.Rngs(0))
logits = captioner(pictures, captions)           # teacher forcing
tokens = captioner.caption(pictures, 7, start=2, stop=3)
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.arrays import Array, Carry, like
from seqjax.attention import Attending
from seqjax.core import Cell, Const
from seqjax.models.decoder import Decoder
from seqjax.models.video import Conv, patches

__all__ = ["Captioner"]


class Captioner(nnx.Module):
    """A feature map of the picture, and a decoder (Vinyals et al. 2015, arXiv 1411.4555; Xu et al. 2015, 1502.03044).

        m_p = relu(conv(relu(conv(patches))))_p + place_p        of each place p of the map

    With attention the decoder starts from the mean of all m_p and attends to them; without, it starts from all of them.

    Attributes:
      conv1, conv2: the convolutions.
      places: [H / 4, W / 4, M], learned: a convolution does not know where it is.
      decoder: generates the words.
    """

    patch = 4
    """Side of a patch."""

    def __init__(
        self,
        cell: Cell,
        size: int,
        vocabulary: int,
        features: int,
        *,
        channels: int = 64,
        attend: Callable[..., Attending] | None = None,
        rngs: nnx.Rngs,
    ):
        """Draw the weights.

        Args:
          cell: of the decoder.
          size: pixels of a side of a picture, a multiple of 4.
          vocabulary: tokens V.
          features: width of the embedding of a token.
          channels: features M of the map; its first convolution has half as many.
          attend: `attention.bahdanau`, `attention.luong`, or a `functools.partial` of one; None: no attention.
          rngs: streams "params" and "dropout".

        Raises:
          ValueError: for a size that is no multiple of the patch.
        """
        if size % self.patch:
            raise ValueError(f"Captioner cuts squares of {self.patch} pixels out of pictures, not of {size}")
        side = size // self.patch
        self.conv1 = Conv(self.patch**2, channels // 2, rngs)
        self.conv2 = Conv(channels // 2, channels, rngs)
        self.places = nnx.Param(0.1 * jax.random.normal(rngs.params(), (side, side, channels), jnp.float32))
        self.decoder = Decoder(
            cell,
            vocabulary,
            features,
            about=channels if attend else side**2 * channels,
            attend=attend and partial(attend, features=channels),
            rngs=rngs,
        )

    def encode(self, pictures: Array) -> tuple[Carry, Const | None]:
        """The first carry of the decoder, and its memory of (H / 4) (W / 4) places, for pictures [B, H, W]."""
        x = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(patches(pictures, self.patch)))))
        x = x + like(self.places[...].astype(x.dtype), x)
        values = x.reshape(x.shape[0], -1, x.shape[-1])
        memory = self.decoder.remember(values)
        return self.decoder.start(values.reshape(x.shape[0], -1) if memory is None else values.mean(1)), memory

    def __call__(self, pictures: Array, captions: Array) -> Array:
        """Logits [B, T, V] of the token after each of captions int [B, T], which begin with the start token."""
        return self.decoder(captions, *self.encode(pictures))

    def caption(self, pictures: Array, length: int, *, start: int, stop: int, width: int = 1) -> Array:
        """Tokens int32 [B, length] of captions, `stop` after the end; see `Decoder.search`."""
        return self.decoder.search(length, *self.encode(pictures), start=start, stop=stop, width=width)

    def weights(self, pictures: Array, captions: Array) -> Array:
        """The weights of attention while captions int [B, T] are read, [B, T, H / 4, W / 4].

        Raises:
          ValueError: there is no attention.
        """
        weights = self.decoder.weights(captions, *self.encode(pictures))
        return weights.reshape(*weights.shape[:2], *self.places.shape[:2])
