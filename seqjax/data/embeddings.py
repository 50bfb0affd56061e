"""Pretrained word vectors for a vocabulary."""

import os
import unicodedata
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.data import fields, files
from seqjax.data.vectorize import Vectorizer

__all__ = ["Embedding", "load"]

_LARGEST = float(np.finfo(np.float32).max)


class Embedding(NamedTuple):
    """Word vectors for the indices of a `Vectorizer`.

    Attributes:
      vectors: float32 [V, E]; 0 for the mask, the unknown token and words that are not in the file.
      known: bool [V], which words are in the file.
    """

    vectors: np.ndarray
    known: np.ndarray


def load(path: str | os.PathLike[str], vectorizer: Vectorizer) -> Embedding:
    """Read word vectors in the text format of GloVe (Pennington et al. 2014) or word2vec, compressed or not.

    A line is a word and E numbers, separated by single spaces. E is the count of numbers in the first line, or is given
    by the first line of word2vec, which has the number of words and E. A word may contain spaces (". . ." in GloVe
    840B), but no number after one. Only words in the vocabulary are kept, compared in composed Unicode (NFC). If a word
    occurs twice, its first vector is used.

    Args:
      path: the file, such as `glove.6B.100d.txt`.
      vectorizer: maps words to indices. Its rules should match the file: the words of GloVe are lower case.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line that is not a word and E numbers, a number of words that differs from the first line, or no
        word of the vocabulary (names file and line).
    """
    path = Path(path).expanduser()
    index = {word: i for i, word in enumerate(vectorizer.vocabulary, 2)}
    vectors, known = np.zeros((0, 0), np.float32), np.zeros(vectorizer.size, bool)
    number, width, words = 0, 0, None
    with files.stream(path) as lines:
        try:
            for number, line in enumerate(lines, 1):
                content = files.unmarked(line, f"{path}") if number == 1 else line
                parts = content.decode("utf-8").rstrip("\r\n").rstrip(" ").split(" ")
                if number == 1 and len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts):
                    words, width = map(int, parts)
                    continue
                count = _numbers_at_the_end(parts, width)
                width = width or count
                if count != width or not count:
                    raise ValueError(f"{count} numbers, expected {width or 'at least one'}")
                if "" in parts[:-width]:
                    raise ValueError("an empty word, or two consecutive spaces")
                vector = fields.numbers(parts[-width:], "its numbers")
                if max(map(abs, vector)) > _LARGEST:
                    raise ValueError("a number too large for float32")
                place = index.get(unicodedata.normalize("NFC", " ".join(parts[:-width])))
                if place is not None and not known[place]:
                    if not vectors.size:
                        vectors = np.zeros((vectorizer.size, width), np.float32)
                    vectors[place] = vector
                    known[place] = True
        except ValueError as error:  # damaged, another encoding, not numbers
            raise ValueError(f"{path}, line {number}: {error}; expected a word and its numbers") from error
    if words not in (None, number - 1):
        raise ValueError(f"{path}, line {number}: the end, after {number - 1} words; its first line announces {words}")
    if not known.any():
        raise ValueError(f"{path}: none of its {number} lines has a word in the vocabulary")
    return Embedding(vectors, known)


def _numbers_at_the_end(parts: Sequence[str], expected: int) -> int:
    """How many numbers follow the word, which has at least the first part; `expected` is 0 if unknown."""
    if len(parts) == expected + 1:
        return expected
    return sum(1 for _ in takewhile(_is_number, reversed(parts[1:])))


def _is_number(part: str) -> bool:
    try:
        fields.number(part, "")
    except ValueError:
        return False
    return True
