"""Text as words, one sentence per line: their vocabulary. The streams in `text` hold words as well as characters."""

import json
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from seqjax.data import files
from seqjax.data.fields import lines
from seqjax.data.text import check_tokens

__all__ = ["END", "UNKNOWN", "Vocabulary", "split"]

UNKNOWN = "<unk>"
"""The word of index 0."""
END = "<eos>"
"""The word that ends every line."""


class Vocabulary(NamedTuple):
    """The words of a text: index i + 1 is words[i], index 0 is `<unk>` and any other word.

    A text is split into lines, and lines at white space; every line ends in `<eos>`, which is a word like any other.
    Words are in composed Unicode (NFC), so that é is the same word however it was typed.

    Example:
      >>> from seqjax.data import words
      >>> vocabulary = words.Vocabulary.of("to be or\\nnot to be")
      >>> vocabulary.words
      ('<eos>', 'be', 'not', 'or', 'to')
      >>> vocabulary.encode("to see").tolist(), vocabulary.decode([5, 2, 1, 0])
      ([5, 0, 1], 'to be\\n<unk>')
    """

    words: tuple[str, ...]  # distinct, in code point order, without `<unk>`

    @classmethod
    def of(cls, train: str) -> "Vocabulary":
        """The distinct words of the training part (never of the whole text)."""
        words = set(split(train)) - {UNKNOWN}
        if not words - {END}:
            raise ValueError("a vocabulary needs a training text with words, got none")
        return cls(tuple(sorted(words)))

    @property
    def size(self) -> int:
        """Number of indices, including the unknown one."""
        return len(self.words) + 1

    def encode(self, text: str) -> np.ndarray:
        """Converts a text of N words, including the ends of lines, to int32 [N], 0 for unknown words."""
        index = {word: i for i, word in enumerate(self.words, start=1)}
        return np.array([index.get(word, 0) for word in split(text)], np.int32)

    def decode(self, tokens: "Sequence[int] | np.ndarray | jax.Array") -> str:
        """Converts integers [N] to words between spaces, with line breaks for `<eos>`. Raises as `check_tokens`."""
        indices = check_tokens(tokens, self.size)
        found = [UNKNOWN, *("\n" if word == END else word for word in self.words)]
        return " ".join(found[i] for i in indices).replace(" \n", "\n").replace("\n ", "\n")

    def to_json(self) -> str:
        """The vocabulary as JSON, for the artifacts of a run."""
        return json.dumps({"words": self.words})

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Reads what `to_json` wrote. Raises ValueError for anything else."""
        found = files.parse_json(text, "vocabulary")
        words = found.get("words") if isinstance(found, dict) else None
        if (
            not isinstance(words, list)
            or not words
            or not all(isinstance(word, str) for word in words)
            or words != sorted(set(words))
        ):
            raise ValueError(f'expected {{"words": distinct words in code point order}}, got {text[:80]}')
        return cls(tuple(words))


def split(text: str) -> list[str]:
    r"""The words of a text, `<eos>` after every line; lines end, as in a file, at \n, \r\n or \r."""
    composed = unicodedata.normalize("NFC", text)
    return [word for line in lines(composed) for word in (*line.split(), END)]
