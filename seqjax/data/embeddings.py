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

_LARGEST = float(np.finfo(np.float32).max)


class Embedding(NamedTuple):
    """Word vectors for the indices of a `Vectorizer`.

    Attributes:
      vectors: float32 [V, E]; 0 for the mask, for the unknown token and for words that the file does not have.
      known: bool [V], which words it has.
    """

    vectors: np.ndarray
    known: np.ndarray


def load(path: str | os.PathLike[str], vectorizer: Vectorizer) -> Embedding:
    """Read word vectors in the text format of GloVe (Pennington et al. 2014) or word2vec, packed or not.

    A line is a word and E numbers, with single spaces between. E is what stands after the word in the first line, or
    what word2vec's first line says, the number of words and E. A word may have spaces in it (". . ." in GloVe 840B),
    but no number behind one. Only the words of the vocabulary are kept, compared in composed Unicode (NFC). Of a word
    that occurs twice the first vector counts.

    Args:
      path: the file, `glove.6B.100d.txt` say.
      vectorizer: gives the words their indices. Its rules should be those of the file: GloVe's words are lower case.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line that is not a word and E numbers, another number of words than the first line says, or no word
        of the vocabulary in it (names file and line).
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
                    raise ValueError("an empty word, or two spaces side by side")
                vector = fields.numbers(parts[-width:], "its numbers")
                if max(map(abs, vector)) > _LARGEST:
                    raise ValueError("a number that is too large for float32")
                place = index.get(unicodedata.normalize("NFC", " ".join(parts[:-width])))
                if place is not None and not known[place]:
                    if not vectors.size:
                        vectors = np.zeros((vectorizer.size, width), np.float32)
                    vectors[place] = vector
                    known[place] = True
        except ValueError as error:  # damaged, another encoding, no numbers
            raise ValueError(f"{path}, line {number}: {error}; expected a word and its numbers") from error
    if words not in (None, number - 1):
        raise ValueError(f"{path}, line {number}: the end, after {number - 1} words; its first line says {words}")
    if not known.any():
        raise ValueError(f"{path}: none of its {number} lines has a word of the vocabulary")
    return Embedding(vectors, known)


def _numbers_at_the_end(parts: Sequence[str], expected: int) -> int:
    """How many numbers there are behind a word; the first part always belongs to it, `expected` is 0 if not known."""
    if len(parts) == expected + 1:
        return expected
    return sum(1 for _ in takewhile(_is_number, reversed(parts[1:])))


def _is_number(part: str) -> bool:
    try:
        fields.number(part, "")
    except ValueError:
        return False
    return True
