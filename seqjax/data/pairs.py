"""Pairs of sentences in two languages (Tatoeba project, as manythings.org/anki publishes them).

found = pairs.load("fra-eng.zip")                              # English, French
parts = pairs.split(found, validation=1000, test=2000)
french = pairs.vocabulary(parts["train"].target, minimum=3)
rows = [french.encode(text) for text in parts["train"].target]
"""

import json
import operator
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.data import files
from seqjax.data.text import check_tokens

__all__ = [
    "PADDING",
    "START",
    "STOP",
    "UNKNOWN",
    "Pairs",
    "Vocabulary",
    "generated",
    "join",
    "load",
    "normalize",
    "parse",
    "read",
    "split",
    "tokens",
    "vocabulary",
]

PADDING = 0
"""Fills the rest of a row after a sentence."""
UNKNOWN = 1
"""Any token that is not in the vocabulary."""
START = 2
"""The input of a decoder before the first token."""
STOP = 3
"""The output of a decoder after the last token."""

_PLAIN = str.maketrans({"‘": "'", "’": "'", "‐": "-", "–": "-", "\xad": None, "\u200b": None})  # noqa: RUF001


def _marks(codes: range) -> str:
    return "".join(c for c in map(chr, codes) if unicodedata.category(c)[0] == "M")


# Characters that belong to the one before: combining marks and joiners, which `\w` does not match. (`re` compiles a set
# within the first 65,536 characters to a table, and any other to a list.)
_BEYOND = f"(?=[\U00010000-\U0010ffff])[{_marks(range(0x10000, 0x1F000))}{_marks(range(0xE0100, 0xE01F0))}]"
_MARK = f"(?:[{_marks(range(0x300, 0x10000))}\u200c\u200d]|{_BEYOND})"
# A number; a word with the hyphen before it and the apostrophe after it (l' arbre, a -t -il); any other sign.
_TOKEN = re.compile(rf"\d+(?:[.,:]\d+)*(?!{_MARK})|-?(?:[^\W\d_]{_MARK}*)+'?|\S{_MARK}*")


class Pairs(NamedTuple):
    """N sentences and their translations; a sentence occurs once per translation.

    Attributes:
      source: N sentences.
      target: N sentences.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]

    def take(self, indices: Iterable[int]) -> "Pairs":
        """The pairs at these indices."""
        chosen = [(self.source[i], self.target[i]) for i in indices]
        return Pairs(tuple(a for a, _ in chosen), tuple(b for _, b in chosen))

    def references(self) -> dict[str, tuple[str, ...]]:
        """All translations of each source sentence, keyed by the sentence."""
        found: dict[str, list[str]] = {}
        for source, target in zip(*self, strict=True):
            found.setdefault(source, []).append(target)
        return {source: tuple(targets) for source, targets in found.items()}


def normalize(text: str) -> str:
    """The text in composed Unicode (NFC), with plain apostrophes and hyphens, and single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_PLAIN).split())


def tokens(text: str) -> list[str]:
    """The words, numbers and punctuation signs of a text, in lower case.

    A word ends after an apostrophe and before a hyphen, so that French clitics are words:
    "Qu'a-t-il dit ?" is qu' a -t -il dit ?. Combining marks and joiners belong to the character before them. In scripts
    without spaces between words, the text between two signs is one word.
    """
    return _TOKEN.findall(normalize(text).lower())


def join(words: Sequence[str]) -> str:
    """A text from tokens: what `tokens` split is joined again, and there is no space before . , and )."""
    text = " ".join(words).replace("' ", "'")
    return re.sub(r" (-(?=\w)|[.,)…])", r"\1", text)


def load(path: str | os.PathLike[str]) -> Pairs:
    """All pairs of a file of manythings.org: "source TAB target", in newer files with a third column for attribution.

    Args:
      path: `fra-eng.zip` (or that of another language), or the `.txt` in it, compressed or not; or a folder that
        contains one of these.

    Returns:
      The pairs in the order of the file, normalized (see `normalize`), without duplicates.

    Raises:
      FileNotFoundError: none of these (lists what is there).
      ValueError: a damaged archive, a line without two columns, text that is not UTF-8, no pairs (names file and line).
    """
    path = _find(path)
    return parse(read(path), str(path))


def read(path: str | os.PathLike[str]) -> bytes:
    """The content of the one text file with pairs; `path` and errors as in `load`."""
    return files.read(_find(path), lambda name: name.endswith(".txt") and "_about" not in name, ".txt with pairs")


def parse(content: bytes, place: str = "content") -> Pairs:
    """The pairs of a file's content; `place` names it in errors, which are those of `load`."""
    lines = files.decode(content, place).split("\n")
    found: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines, start=1):
        columns = line.rstrip("\r").split("\t")
        if columns == [""]:
            continue
        if len(columns) not in (2, 3) or not all(column.strip() for column in columns[:2]):
            raise ValueError(f"{place}, line {number}: expected source TAB target (TAB attribution), got {line[:60]!r}")
        found[normalize(columns[0]), normalize(columns[1])] = None
    if not found:
        raise ValueError(f"{place}: contains no pairs")
    return Pairs(*(tuple(side) for side in zip(*found, strict=True)))


def generated(count: int, seed: int = 0) -> Pairs:
    """Pairs from a small invented grammar, for tests and demonstrations: adjectives change places, clitics elide.

    Args:
      count: number of pairs.
      seed: of all random draws.
    """
    rng = np.random.default_rng(seed)
    who = (("I", "je"), ("you", "tu"), ("we", "nous"), ("they", "elles"))
    verbs = (("see", "vois"), ("want", "veux"), ("hear", "entends"), ("love", "aime"))
    adjectives = (("red", "rouge"), ("old", "ancien"), ("small", "petit"), ("good", "bon"), ("", ""))
    nouns = (("cat", "chat"), ("house", "maison"), ("tree", "arbre"), ("friend", "ami"))
    source, target = [], []
    for _ in range(count):
        person, verb, adjective, noun = (words[rng.integers(len(words))] for words in (who, verbs, adjectives, nouns))
        subject = "j'" if person[1] == "je" and verb[1][0] in "ae" else person[1] + " "
        article = "l'" if noun[1][0] in "a" else "le "
        source.append(normalize(f"{person[0]} {verb[0]} the {adjective[0]} {noun[0]}."))
        target.append(normalize(f"{subject}{verb[1]} {article}{noun[1]} {adjective[1]}").capitalize() + ".")
    return Pairs(tuple(source), tuple(target))


def split(pairs: Pairs, validation: int, test: int, seed: int = 0) -> dict[str, Pairs]:
    """Parts "train", "validation" and "test"; no source sentence, compared by its `tokens`, is in two of them.

    Args:
      pairs: from `load`.
      validation: number of source sentences in the validation part, with all their translations.
      test: the same for the test part.
      seed: of the order.

    Raises:
      ValueError: too few source sentences.
    """
    keys = [" ".join(tokens(source)) for source in pairs.source]
    names, index = np.unique(keys, return_inverse=True)
    if min(validation, test) < 1 or validation + test >= len(names):
        raise ValueError(
            f"{len(names)} source sentences cannot be split into {validation} for validation, {test} for testing"
            " and the rest for training: each part needs at least one"
        )
    place = np.random.default_rng(seed).permutation(len(names))[index]
    part = np.digitize(place, [test, test + validation])  # 0 test, 1 validation, 2 train
    return {name: pairs.take(np.flatnonzero(part == i)) for i, name in ((2, "train"), (1, "validation"), (0, "test"))}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one language; `vocabulary` makes one.

    Attributes:
      words: the tokens of the indices 4, 5, ..., the most frequent first.
    """

    words: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of indices V, including the four special ones."""
        return len(self.words) + 4

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words, 4)}

    def encode(self, text: str) -> np.ndarray:
        """The indices of the tokens of a text, then STOP: int32 [n + 1]."""
        return np.array([*(self._index.get(token, UNKNOWN) for token in tokens(text)), STOP], np.int32)

    def decode(self, indices: Iterable[int]) -> list[str]:
        """The tokens of indices up to the first STOP; "[UNK]" for UNKNOWN, none for START and PADDING.

        Raises as `text.check_tokens`, for an index outside range(size).
        """
        words = []
        for index in check_tokens(list(map(operator.index, indices)), self.size):
            if index == STOP:
                break
            if index not in (PADDING, START):
                words.append("[UNK]" if index == UNKNOWN else self.words[index - 4])
        return words

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the words to a JSON file."""
        Path(path).write_text(json.dumps(self.words, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads what `save` wrote. Raises ValueError for any other content."""
        words = files.parse_json(files.read(Path(path)), f"{path}")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{path} is not a vocabulary: expected a list of words")
        if not words or len(set(words)) < len(words):
            raise ValueError(f"{path} is not a vocabulary: it has no words, or one of them twice")
        return cls(tuple(words))


def vocabulary(texts: Iterable[str], minimum: int = 1) -> Vocabulary:
    """The tokens that occur at least `minimum` times in the training texts, the most frequent first.

    Raises:
      ValueError: no token is frequent enough.
    """
    counts = Counter(token for text in texts for token in tokens(text))
    words = sorted((token for token, count in counts.items() if count >= minimum), key=lambda t: (-counts[t], t))
    if not words:
        raise ValueError(f"none of {len(counts)} tokens occurs {minimum} times in the texts")
    return Vocabulary(tuple(words))


def _find(path: str | os.PathLike[str]) -> Path:
    return files.find(Path(path).expanduser(), ("*-eng.zip", "fra.txt", "fra.txt.gz"), ("nmt", "fra-eng"))
