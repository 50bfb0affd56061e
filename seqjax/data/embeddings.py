"""Pretrained word vectors for a vocabulary."""

import gzip
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.data.vectorize import Vectorizer


class Embedding(NamedTuple):
    """Word vectors for the indices of a `Vectorizer`.

    Attributes:
      vectors: float32 [V, E]; 0 for the mask, for the unknown token and for words that the file does not have.
      known: bool [V], which words it has.
    """

    vectors: np.ndarray
    known: np.ndarray


def load(path: str | os.PathLike[str], vectorizer: Vectorizer) -> Embedding:
    """Read word vectors in the text format of GloVe (Pennington et al. 2014) or word2vec, plain or gzipped.

    A line is a word and E numbers, with single spaces between; word2vec's first line, the number of words and E, is
    skipped. Only the words of the vocabulary are kept. Of a word that occurs twice the first vector counts.

    Args:
      path: the file, `glove.6B.100d.txt` say.
      vectorizer: gives the words their indices. Its rules should be those of the file: GloVe's words are lower case.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line that is not a word and E numbers, or no word of the vocabulary in it (names file and line).
    """
    path = Path(path).expanduser()
    index = {word: i for i, word in enumerate(vectorizer.vocabulary, 2)}
    vectors, known = np.zeros((0, 0), np.float32), np.zeros(vectorizer.size, bool)
    number, opened = 0, gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):
                word, *numbers = line.rstrip("\n").rstrip(" ").split(" ")
                if number == 1 and len(numbers) == 1 and word.isdigit():
                    continue
                if not vectors.size:
                    vectors = np.zeros((vectorizer.size, len(numbers)), np.float32)
                if len(numbers) != vectors.shape[1] or not numbers:
                    raise ValueError(f"{len(numbers)} numbers, expected {vectors.shape[1] or 'at least one'}")
                if word in index and not known[index[word]]:
                    vectors[index[word]] = np.array(numbers, np.float32)
                    known[index[word]] = True
        except (ValueError, EOFError, OSError) as error:  # damaged gzip, another encoding, no numbers
            raise ValueError(f"{path}, line {number}: {error}; expected a word and its numbers") from error
    if not known.any():
        raise ValueError(f"{path}: none of its {number} lines has a word of the vocabulary")
    return Embedding(vectors, known)
