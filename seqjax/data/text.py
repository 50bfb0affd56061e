"""Text as characters: reading, vocabulary, and contiguous streams for stateful truncated BPTT."""

import itertools
import json
import os
import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from seqjax.data import archives, files

__all__ = [
    "UNKNOWN",
    "UNKNOWN_TOKEN",
    "Vocabulary",
    "check_tokens",
    "chunk",
    "chunks",
    "lanes",
    "language_reference",
    "left_over",
    "read",
    "split",
]

Array = jax.Array

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""The character that index 0 decodes to."""
UNKNOWN_TOKEN = 0
"""The index of every character, or word, that a vocabulary lacks."""


def read(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, or of all `*.txt` files of a directory, concatenated in sorted order.

    Each may be compressed (`a.txt.gz`). A byte order mark at the beginning of a file is not part of its text.

    Raises:
      FileNotFoundError: no such path, or a directory without `*.txt` files (lists what it holds).
      ValueError: not UTF-8 (names the file, the offset of the first bad byte and its line), or empty; a directory that
        holds a file twice, compressed and not, or one with another spelling of `.txt`.
    """
    path = Path(path)
    found = _texts(path) if path.is_dir() else [path]
    if not found:
        there = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        raise FileNotFoundError(f"{path}: no *.txt file in this directory, found {there}")
    text = "".join(map(files.read_text, found))
    if not text:
        raise ValueError(f"{path}: the text is empty")
    return text


def _texts(folder: Path) -> list[Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        name, _ = files.unpacked_name(file.name)
        if file.is_dir() or archives.of_macos(file.name) or not name.lower().endswith(".txt"):
            continue
        if not name.endswith(".txt"):
            raise ValueError(f"{file}: expected names *.txt, rename it")
        if name in found:
            raise ValueError(f"{folder}: {found[name].name} and {file.name} are the same text: keep one")
        found[name] = file
    return list(found.values())


def language_reference() -> str:
    """The reference manual of the running Python: `pydoc_data.topics`, topics sorted.

    About half a million characters, available on every machine. The text differs between versions of Python.
    """
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


class Vocabulary(NamedTuple):
    """The characters of a text: index i + 1 is characters[i], index 0 is any other character.

    A character is a code point, and a text is not normalized: a letter and a combining mark after it are two.

    Example:
      >>> from seqjax.data import text
      >>> vocabulary = text.Vocabulary.of("to be")
      >>> vocabulary.characters, vocabulary.encode("bet!").tolist()
      (' beot', [2, 3, 5, 0])
      >>> vocabulary.decode([2, 3])
      'be'
    """

    characters: str  # distinct, in code point order

    @classmethod
    def of(cls, train: str) -> "Vocabulary":
        """The distinct characters of the training part (never of the whole text)."""
        if not train:
            raise ValueError("a vocabulary needs a training text, got an empty one")
        return cls("".join(sorted(set(train))))

    @property
    def size(self) -> int:
        """Number of indices, including the unknown one."""
        return len(self.characters) + 1

    def encode(self, text: str) -> np.ndarray:
        """Converts a text of N characters to int32 [N], 0 for unknown characters."""
        known, codes = _code_points(self.characters), _code_points(text)
        index = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        return np.where(known[index] == codes, index + 1, 0).astype(np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray | Array) -> str:
        """Converts integers [N] to N characters, U+FFFD for index 0. Raises as `check_tokens`."""
        indices = check_tokens(tokens, self.size)
        alphabet = UNKNOWN + self.characters
        return "".join(alphabet[i] for i in indices)

    def to_json(self) -> str:
        """The vocabulary as JSON, for the artifacts of a run."""
        return json.dumps({"characters": self.characters})

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Reads what `to_json` wrote. Raises ValueError for anything else."""
        found = files.parse_json(text, "vocabulary")
        characters = found.get("characters") if isinstance(found, dict) else None
        if not isinstance(characters, str) or list(characters) != sorted(set(characters)) or not characters:
            raise ValueError(f'expected {{"characters": distinct characters in code point order}}, got {text[:80]}')
        return cls(characters)


def check_tokens(tokens: Sequence[int] | np.ndarray | Array, size: int) -> np.ndarray:
    """Tokens of a vocabulary as int64 [N].

    Raises:
      ValueError: another shape, or an index outside range(size).
      TypeError: tokens that are not integers.
    """
    found = np.asarray(tokens)
    if found.ndim != 1:
        raise ValueError(f"tokens must have shape [N], got {found.shape}")
    if found.size and found.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers, got {found.dtype}")
    wrong = found[(found < 0) | (found >= size)]
    if wrong.size:
        raise ValueError(f"tokens must be in range({size}), got {wrong[0]}")
    return found.astype(np.int64)


def split(text: str, fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> tuple[str, ...]:
    """Contiguous parts of the text, in order, of len(text) * fraction characters each, rounded.

    Raises:
      ValueError: fractions that are not positive, do not sum to 1, or leave a part empty.

    Example:
      >>> from seqjax.data import text
      >>> text.split("abcdefghij", (0.5, 0.3, 0.2))
      ('abcde', 'fgh', 'ij')
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be positive and sum to 1, got {tuple(fractions)}")
    borders = [0, *(round(float(f) * len(text)) for f in np.cumsum(fractions[:-1])), len(text)]
    parts = tuple(text[a:b] for a, b in itertools.pairwise(borders))
    if not all(parts):
        raise ValueError(f"{len(text)} characters are too few for the fractions {tuple(fractions)}: a part is empty")
    return parts


def lanes(tokens: np.ndarray, batch: int) -> np.ndarray:
    """Contiguous streams: column b is the b-th of `batch` equal segments of the tokens; the tail is dropped.

    Chunk i + 1 of a lane continues chunk i of the same lane, so a carry passed on reads one continuous text
    (Zaremba et al. 2014, arXiv 1409.2329).

    Args:
      tokens: integers [M].
      batch: lanes B, 1 <= B <= M.

    Returns:
      int32 [N, B], time-major, N = M // B.

    Raises:
      ValueError: for tokens that are not integers [M] or do not fit int32, or lanes below 1 or above M.

    Example:
      >>> import numpy as np
      >>> from seqjax.data import text
      >>> text.lanes(np.arange(7), 2).T.tolist()
      [[0, 1, 2], [3, 4, 5]]
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens must be integers of shape [M], got {tokens.dtype} {tokens.shape}")
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < 2**31:
        raise ValueError(f"tokens must be in range(2**31), got {tokens.min()} to {tokens.max()}")
    if not 1 <= batch <= len(tokens):
        raise ValueError(f"batch must be between 1 and the {len(tokens)} tokens, got {batch}")
    rows = len(tokens) // batch
    return tokens[: rows * batch].reshape(batch, rows).T.astype(np.int32)


def chunks(streams: np.ndarray | Array, length: int) -> int:
    """The number of chunks of `length` inputs, each followed by a target, in the streams [N, B]: (N - 1) // length.

    Raises:
      ValueError: less than one.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    rows, batch = streams.shape
    if rows <= length:
        raise ValueError(
            f"a chunk of length {length} needs {length + 1} tokens in each lane, got {rows} in each of {batch} lanes:"
            " use a longer text, fewer lanes or a shorter chunk"
        )
    return (rows - 1) // length


def left_over(count: int, batch: int, length: int) -> int:
    """How many of `count` tokens are never a target in an epoch of `chunks`: the tails of the text and of each lane.

    The first token of the text, which has no token before it, is not counted; the first ones of the other lanes are.

    Example:
      >>> from seqjax.data import text
      >>> text.left_over(11, batch=2, length=3)  # targets: 1 2 3 and 6 7 8
      4
    """
    return count - 1 - batch * length * max((count // batch - 1) // length, 0)


def chunk(streams: Array, index: Array | int, length: int) -> tuple[Array, Array]:
    """Chunk `index` of the streams: inputs streams[i*T : i*T + T], targets the next token of each.

    Args:
      streams: int32 [N, B] from `lanes`.
      index: int32 [], 0 <= index < chunks(streams, length); checked unless traced.
      length: steps T of a chunk, static.

    Returns:
      inputs int32 [T, B], targets int32 [T, B].

    Raises:
      ValueError: for an index out of range, or streams with less than one chunk.

    Example:
      >>> import numpy as np
      >>> from seqjax.data import text
      >>> streams = text.lanes(np.arange(7), 1)
      >>> inputs, targets = text.chunk(streams, 1, length=3)
      >>> inputs[:, 0].tolist(), targets[:, 0].tolist()
      ([3, 4, 5], [4, 5, 6])
    """
    count = chunks(streams, length)
    if not isinstance(index, jax.core.Tracer) and not 0 <= int(index) < count:
        raise ValueError(f"index must be in range({count}), got {int(index)}")
    window = jax.lax.dynamic_slice_in_dim(jnp.asarray(streams), index * length, length + 1)
    return window[:-1], window[1:]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
