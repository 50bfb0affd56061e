"""Scenes of one or two handwritten digits with captions: "a three", "a three left of an eight".

digits = scenes.by_label(mnist.load("data")["train"])
kinds = scenes.kinds()                                             # "seen" in training, and "held_out"
pictures, captions, drawn = scenes.draw(key, digits, kinds["seen"], 64)

A kind of scene is (first, relation, second): two digits, and an index into `RELATIONS` or `ALONE`. The smaller digit is
named first, and of two equal ones the left or upper one, so that each picture has one caption.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.data import mnist, motion
from seqjax.data.pairs import PADDING, START, Vocabulary

__all__ = ["ALONE", "CAPTIONS", "RELATIONS", "VOCABULARY", "ByLabel", "Scenes", "by_label", "draw", "kinds", "sentence"]

Array = jax.Array

RELATIONS = ("left of", "right of", "above", "below")
"""The position of the first digit relative to the second."""

ALONE = len(RELATIONS)
"""The relation of a single digit; the second digit of its kind is 0, and is ignored."""

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

VOCABULARY = Vocabulary(("a", "an", *_NAMES, "left", "right", "of", "above", "below"))
"""The words, after PADDING 0, UNKNOWN 1, START 2 and STOP 3 of `pairs`."""

# From the second digit to the first, (x, y) with y downward.
_STEPS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)], np.int32)


class ByLabel(NamedTuple):
    """Images of digits, grouped by label.

    Attributes:
      images: uint8 [N, S, S].
      borders: int32 [11]; the images of label l are borders[l] to borders[l + 1].
    """

    images: Array
    borders: Array


class Scenes(NamedTuple):
    """Pictures and captions.

    Attributes:
      pictures: float32 [B, size, size], 0 background and 1 ink.
      captions: int32 [B, 8], see `CAPTIONS`.
      kinds: int32 [B, 3].
    """

    pictures: Array
    captions: Array
    kinds: Array


def by_label(digits: mnist.Digits, side: int = 14) -> ByLabel:
    """Digits in order of their labels, downsampled to `side` x `side` pixels by averaging blocks of pixels.

    Raises:
      ValueError: a side that does not divide 28, or a label without an image.
    """
    if side < 1 or mnist.SIZE % side:
        raise ValueError(f"side must divide {mnist.SIZE}, got {side}")
    counts = np.bincount(digits.labels, minlength=10)
    if not counts.all():
        raise ValueError(f"no image of the digits {np.flatnonzero(counts == 0).tolist()}: every digit needs one")
    times = mnist.SIZE // side
    means = digits.images[np.argsort(digits.labels, kind="stable")].reshape(-1, side, times, side, times).mean((2, 4))
    borders = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return ByLabel(jnp.asarray(np.round(means).astype(np.uint8)), jnp.asarray(borders))


def kinds() -> dict[str, np.ndarray]:
    """All 210 kinds of scenes, int32 [K, 3]: "seen", for training, and "held_out", one pair of digits in five.

    A kind with (first + 2 second + relation) % 5 = 0 is held out. Each pair of different digits is seen in at least
    three relations, so a held-out scene combines two known digits with a relation known from other pairs.
    """
    alone = [(digit, ALONE, 0) for digit in range(10)]
    equal = [(digit, RELATIONS.index(relation), digit) for digit in range(10) for relation in ("left of", "above")]
    pairs = [(a, relation, b) for a in range(10) for b in range(a + 1, 10) for relation in range(ALONE)]
    two = np.array(equal + pairs, np.int32)
    held_out = (two @ np.array([1, 1, 2], np.int32)) % 5 == 0
    return {"seen": np.concatenate([np.array(alone, np.int32), two[~held_out]]), "held_out": two[held_out]}


def sentence(first: int, relation: int, second: int) -> str:
    """The caption of a kind of scene.

    Example:
      >>> from seqjax.data import scenes
      >>> scenes.sentence(3, scenes.RELATIONS.index("left of"), 8)
      'a three left of an eight'
    """
    one, other = (f"{'an' if digit == 8 else 'a'} {_NAMES[digit]}" for digit in (first, second))
    return one if relation == ALONE else f"{one} {RELATIONS[relation]} {other}"


def _captions() -> np.ndarray:
    table = np.full((10, len(RELATIONS) + 1, 10, 8), PADDING, np.int32)
    for kind in np.ndindex(*table.shape[:3]):
        words = VOCABULARY.encode(sentence(*kind))
        table[kind][0], table[kind][1 : len(words) + 1] = START, words
    return table


CAPTIONS = _captions()
"""The caption of each (first, relation, second), int32 [10, 5, 10, 8]: START, words, STOP, PADDING."""


def draw(key: Array, digits: ByLabel, kinds: Array, count: int, size: int = 32) -> Scenes:
    """Scenes of kinds, images and positions that are drawn uniformly.

    The distance between two digits is from three quarters of the side of a digit to all of the available room in the
    direction of the relation, and less than half a side across. Where images overlap, the brighter pixel is shown.

    Args:
      key: PRNG key.
      digits: images of S x S pixels.
      kinds: int32 [K, 3], see `kinds`.
      count: number of scenes B.
      size: pixels per side of a picture, at least 7 / 4 S.

    Raises:
      ValueError: pictures too small for two digits.
    """
    side = digits.images.shape[-1]
    room, near = size - side, -(-3 * side // 4)
    if room < near:
        raise ValueError(f"pictures of {size} pixels have no room for two digits of {side}, expected {side + near}")
    k_kind, k_image, k_along, k_across, k_place = jax.random.split(key, 5)
    chosen = jnp.asarray(kinds)[jax.random.randint(k_kind, (count,), 0, len(kinds), jnp.int32)]
    labels, relations = chosen[:, ::2], chosen[:, 1]
    index = jax.random.randint(k_image, (count, 2), digits.borders[labels], digits.borders[labels + 1], jnp.int32)
    along = jax.random.randint(k_along, (count, 1), near, room + 1, jnp.int32)
    across = jax.random.randint(k_across, (count, 1), -(side // 2) + 1, side // 2, jnp.int32)
    step = jnp.asarray(_STEPS)[relations]
    # From the second digit to the first, in pixels; the pair may be anywhere that it fits.
    apart = along * step + across * jnp.abs(step[:, ::-1])
    corner = jax.random.randint(k_place, (count, 2), 0, room - jnp.abs(apart) + 1, jnp.int32)
    places = jnp.stack([corner + jnp.maximum(apart, 0), corner + jnp.maximum(-apart, 0)], 1)  # [B, 2, (x, y)]
    positions = places.astype(jnp.float32) / room
    positions = jnp.stack([positions[..., 0], 1 - positions[..., 1]], -1)
    there = jnp.stack([jnp.ones_like(relations), (relations != ALONE).astype(jnp.int32)], 1).astype(jnp.float32)
    images = digits.images[index].astype(jnp.float32) / 255 * there[..., None, None]
    captions = jnp.asarray(CAPTIONS)[labels[:, 0], relations, labels[:, 1]]
    return Scenes(motion.place(images, positions, size).max(1), captions, chosen)
