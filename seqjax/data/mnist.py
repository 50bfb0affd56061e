"""Handwritten digits of 28 x 28 pixels, MNIST (LeCun, Bottou, Bengio, Haffner 1998).

parts = mnist.load("data")
train, validation = mnist.split(parts["train"])
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.data import files

__all__ = ["FILES", "SIZE", "Digits", "generated", "load", "load_files", "split"]

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Images and labels of each part; the official files have these names and `.gz`."""

SIZE = 28
"""Pixels per side of an image."""
_FOLDERS = ("mnist", "MNIST/raw")
_UBYTE = 8  # idx: the type of the elements, third byte of the magic number

# Seven segments, as corners (x, y) of a box with y downward, and the segments of each digit.
_CORNERS = {"a": (0, 0, 1, 0), "b": (1, 0, 1, 1), "c": (1, 1, 1, 2), "d": (0, 2, 1, 2), "e": (0, 1, 0, 2)}
_CORNERS |= {"f": (0, 0, 0, 1), "g": (0, 1, 1, 1)}
_SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")


class Digits(NamedTuple):
    """Images of digits.

    Attributes:
      images: uint8 [N, 28, 28], rows from the top, 0 background and 255 ink.
      labels: int32 [N], 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


def load(path: str | os.PathLike[str]) -> dict[str, Digits]:
    """The digits: "train" (60,000 in the official files) and "test" (10,000).

    Args:
      path: the folder of the four files, each compressed (`train-images-idx3-ubyte.gz`) or not; or a folder that
        contains it as `mnist` or `MNIST/raw`.

    Raises:
      FileNotFoundError: a file is missing (names it).
      ValueError: as in `load_files`.
    """
    path = Path(path).expanduser()

    def find(name: str) -> Path:
        return files.find(path, (f"{name}.gz", name), _FOLDERS)

    found = {part: (find(images), find(labels)) for part, (images, labels) in FILES.items()}
    return {part: load_files(*pair) for part, pair in found.items()}


def load_files(images: Path, labels: Path) -> Digits:
    """One part from its two files, compressed or not.

    Raises:
      ValueError: a damaged or empty file, another format, images that are not 28 x 28, labels that are not 0 to 9 or
        not one per image (names the file, what was found and what was expected).
    """
    pixels, classes = _read(images, 3), _read(labels, 1)
    if pixels.shape[1:] != (SIZE, SIZE):
        raise ValueError(f"{images}: images of {pixels.shape[1]} x {pixels.shape[2]} pixels, expected 28 x 28")
    if len(pixels) != len(classes):
        raise ValueError(f"{labels}: {len(classes)} labels, expected {len(pixels)}, one per image of {images}")
    if not len(pixels):
        raise ValueError(f"{images}: contains no images")
    if classes.max() > 9:
        raise ValueError(f"{labels}: label {classes.max()} at {classes.argmax()}, expected 0 to 9")
    return Digits(pixels, classes.astype(np.int32))


def split(digits: Digits, held_out: int = 5000) -> tuple[Digits, Digits]:
    """Training and validation part; the validation part has the last `held_out` digits.

    The last digits are by other writers than the first ones, as is the test part.

    Raises:
      ValueError: a part would be empty.
    """
    count = len(digits.labels) - held_out
    if held_out < 1 or count < 1:
        raise ValueError(f"held_out must be in [1, {len(digits.labels) - 1}], got {held_out}")
    return Digits(*(values[:count] for values in digits)), Digits(*(values[count:] for values in digits))


def generated(count: int, seed: int = 0) -> Digits:
    """Seven-segment digits, randomly moved, stretched, slanted and thickened, for tests and demonstrations.

    Args:
      count: number of images.
      seed: of all random draws.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=count).astype(np.int32)
    images = np.stack([_drawn(label, rng) for label in labels]) if count else np.zeros((0, SIZE, SIZE), np.uint8)
    return Digits(images, labels)


def _drawn(label: int, rng: np.random.Generator) -> np.ndarray:
    """One digit, uint8 [28, 28]: ink fades with the distance from the nearest segment."""
    corners = np.array([_CORNERS[segment] for segment in _SEGMENTS[label]], np.float64).reshape(-1, 2, 2)
    centered = corners - (0.5, 1)
    slant = rng.uniform(-0.15, 0.15)
    x = (centered[..., 0] - slant * centered[..., 1]) * rng.uniform(8, 11) + 13.5 + rng.uniform(-1.5, 1.5)
    y = centered[..., 1] * rng.uniform(7.5, 9.5) + 13.5 + rng.uniform(-1.5, 1.5)
    start, end = np.stack([x, y], -1).swapaxes(0, 1)  # [segments, 2] each
    pixels = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1)[:, :, None]  # [28, 28, 1, (x, y)]
    along = end - start
    place = np.clip(((pixels - start) * along).sum(-1) / (along**2).sum(-1), 0, 1)
    distance = np.linalg.norm(pixels - start - place[..., None] * along, axis=-1).min(-1)
    return np.round(255 * np.clip(rng.uniform(1.4, 2.2) - distance, 0, 1)).astype(np.uint8)


def _read(path: Path, axes: int) -> np.ndarray:
    """The uint8 array of an idx file: two zeros, type, axes; sizes, 4 bytes each, big-endian; elements."""
    content = files.read(path)
    head = 4 + 4 * axes
    if len(content) < head or content[:4] != bytes([0, 0, _UBYTE, axes]):
        raise ValueError(f"{path}: starts with {content[:4].hex()}, expected 0000080{axes}: no idx file of {axes} axes")
    shape = [int(size) for size in np.frombuffer(content, ">u4", axes, 4)]
    if len(content) != head + math.prod(shape):
        raise ValueError(f"{path}: {len(content)} bytes, expected {head + math.prod(shape)} for {shape}")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
