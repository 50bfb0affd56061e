"""MATLAB level 5 files, limited to lists (cells) of numeric arrays (MathWorks, "MAT-File Format").

`scipy.io.loadmat` reads more, but crashes the process for some damaged files.
"""

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from seqjax.data import damaged

__all__ = ["lists"]

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _CLASSES = 1, range(6, 16)  # of matrices: a list of others, numbers of ten types
_COMPLEX = 0x800


def lists(content: bytes, place: str) -> dict[str, list[np.ndarray]]:
    """The lists of arrays in a file, by name; other variables are skipped.

    Raises:
      ValueError: a damaged file, one of another level, a list with more than one axis or anything but arrays of real
        numbers, or compression beyond the bounds of `damaged` (names the place).
    """
    found = {}
    bounds = damaged.Bounds(place, len(content))
    with damaged.named(place):
        order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
        if order is None or struct.unpack_from(f"{order}H", content, 124)[0] != 0x0100:
            raise ValueError("not a MATLAB file of level 5: save it with -v7")
        for kind, element in _elements(content[128:], order):
            if kind == _COMPRESSED:
                inside = list(_elements(_unpacked(element, bounds), order))
                if len(inside) != 1:
                    raise ValueError(f"{len(inside)} variables compressed into one")
                kind, element = inside[0]
            if kind != _MATRIX:
                raise ValueError(f"an element of type {kind}, expected a variable")
            name, number, shape, parts = _matrix(element, order)
            if name in found:
                raise ValueError(f"two variables {name[:40]!r}")
            if number == _CELL:
                if len(parts) != math.prod(shape) or len(parts) != max(shape):
                    raise ValueError(f"{len(parts)} values of {name[:40]!r}, expected {shape} from its header")
                found[name] = [_array(*part, order) for part in parts]
    return found


def _unpacked(element: bytes, bounds: damaged.Bounds) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(element, max(damaged.SMALL, damaged.RATIO * len(element)) + 1)
    bounds.unpack(len(content))
    if not stream.eof:
        raise ValueError("a variable is cut off")
    return content


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of consecutive elements; a short one has both in its first 8 bytes."""
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        begin, end = at + 8, at + 8 + size
        if kind >> 16:
            kind, begin, end = kind & 0xFFFF, at + 4, at + 4 + (kind >> 16)
        if end > (len(content) if begin == at + 8 else at + 8):
            raise ValueError("an element extends beyond the end")
        yield kind, content[begin:end]
        at = end if kind == _COMPRESSED else end + (at - end) % 8


def _matrix(element: bytes, order: str) -> tuple[str, int, tuple[int, ...], list[tuple[int, bytes]]]:
    """Name, class and shape of a matrix, and the remaining elements."""
    if not element:  # how an empty one is written
        return "", _CLASSES[0], (0, 0), [(9, b"")]
    (flags_kind, flags), (shape_kind, shape), (name_kind, name), *rest = _elements(element, order)
    if (flags_kind, shape_kind, name_kind, len(flags)) != (6, 5, 1, 8):
        raise ValueError("a matrix does not begin with its flags, its shape and its name")
    (number,) = struct.unpack_from(f"{order}I", flags)
    if number & _COMPLEX:
        raise ValueError("complex numbers, expected real ones")
    sizes = tuple(np.frombuffer(shape, f"{order}i4").tolist())
    if len(sizes) < 2 or min(sizes) < 0:
        raise ValueError(f"a matrix of shape {sizes[:4]}")
    return name.decode("ascii"), number & 0xFF, sizes, rest


def _array(kind: int, element: bytes, order: str) -> np.ndarray:
    if kind != _MATRIX:
        raise ValueError(f"an element of type {kind} in a list, expected a matrix")
    _, number, shape, parts = _matrix(element, order)
    if number not in _CLASSES or len(parts) != 1 or parts[0][0] not in _NUMBERS:
        raise ValueError(f"a value of class {number} in a list, expected an array of numbers")
    values = np.frombuffer(parts[0][1], order + _NUMBERS[parts[0][0]])
    if len(values) != math.prod(shape):
        raise ValueError(f"{len(values)} numbers, expected {shape} from the header")
    return values.reshape(shape, order="F")
