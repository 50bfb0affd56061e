"""Text to numbers, in four steps: standardize, tokenize, index, encode.

    vectorizer = vectorize.fit(train_texts, size=20_000)       # only the training part
    tokens = vectorizer.ints(texts, length=600)                # int32 [N, 600], 0 after the end of a text
    bags = vectorizer.tf_idf(texts)                            # sparse float32 [N, 20_000]

Gives the same numbers as `keras.layers.TextVectorization`, without TensorFlow.
"""

import json
import os
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse

from seqjax.data import files
from seqjax.data.damaged import named
from seqjax.data.text import check_tokens
from seqjax.extras import needed

__all__ = ["MASK", "UNKNOWN", "Rules", "Vectorizer", "fit", "load"]

MASK = 0
"""The index of the padding after a text."""
UNKNOWN = 1
"""The index of every token that is not in the vocabulary."""

_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")
# Not changed by compatibility decomposition: typographic quotes and dashes, ligatures, letters with a stroke.
_FOLDED = str.maketrans(
    dict(zip("‘’“”«»–—−øØłŁđĐ", '\'\'""""---oOlLdD', strict=True))  # noqa: RUF001  their look is the point
    | {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE"}
)


def _is_accent(character: str) -> bool:
    """Whether it is a mark above, below or through a letter that may be dropped.

    Marks that form another letter or vowel may not: nukta, the voicing of kana and virama (classes 6 to 9), the vowels
    and tones of Telugu, Thai, Lao and Tibetan (84 to 132).
    """
    kind = unicodedata.combining(character)
    return kind > 0 and not (6 <= kind <= 9 or 84 <= kind <= 132)


class Rules(NamedTuple):
    """How a text is converted to tokens, in this order.

    Attributes:
      fold: replace special characters by plain ones: accents are dropped, ligatures and typographic quotes expanded.
        Marks that form another letter, as in Hindi, Thai or Japanese, are kept.
      lower: convert to lower case.
      strip: drop the 32 ASCII punctuation characters.
      characters: whether tokens are characters (code points) instead of words separated by white space.
      stem: a language of the Snowball stemmer ("english", "french", ...) to reduce words to their stems. Requires
        `pip install 'seqjax[text]'`.
      ngrams: lengths of n-grams, each a token joined by spaces; (1, 2) is unigrams, then bigrams.
    """

    fold: bool = False
    lower: bool = True
    strip: bool = True
    characters: bool = False
    stem: str | None = None
    ngrams: tuple[int, ...] = (1,)

    def check(self) -> "Rules":
        """These rules, or ValueError for a language without a stemmer or an n-gram below 1."""
        if self.stem is not None:
            _stemmer(self.stem)
            if self.characters:
                raise ValueError(f"characters have no stem: stem={self.stem!r} requires characters=False")
        if not self.ngrams or min(self.ngrams) < 1 or len(set(self.ngrams)) < len(self.ngrams):
            raise ValueError(f"ngrams must be distinct lengths of at least 1, got {self.ngrams}")
        return self

    def standardize(self, text: str) -> str:
        """The text after folding, composition (NFC: é is one character however typed), lowercasing and stripping."""
        if self.fold and not text.isascii():
            decomposed = unicodedata.normalize("NFKD", text.translate(_FOLDED))
            text = "".join(c for c in decomposed if not _is_accent(c))
        text = unicodedata.normalize("NFC", text)
        if self.lower:
            text = text.lower()
        return _PUNCTUATION.sub("", text) if self.strip else text

    def tokens(self, text: str) -> list[str]:
        """The tokens of one text, in order; for n-grams, all of the first length, then all of the next."""
        text = self.standardize(text)
        words = list(text) if self.characters else text.split()
        if self.stem is not None:
            words = _stemmer(self.stem)(words)
        if self.ngrams == (1,):
            return words
        runs = (zip(*(words[i:] for i in range(n)), strict=False) for n in self.ngrams)
        return [" ".join(run) for run in chain.from_iterable(runs)]


@cache
def _stemmer(language: str) -> Callable[[list[str]], list[str]]:
    with needed("text", by=f"stem={language!r}"):
        import Stemmer
    if language not in Stemmer.algorithms():
        raise ValueError(f"stem must be one of {', '.join(sorted(Stemmer.algorithms()))}, got {language!r}")
    return Stemmer.Stemmer(language).stemWords


@dataclass(frozen=True)
class Vectorizer:
    """A vocabulary and the rules that produced it; `fit` creates one.

    Attributes:
      rules: how a text is converted to tokens.
      vocabulary: the tokens of the indices 2, 3, ..., most frequent first.
      frequencies: the number of training texts that contain each of them.
      documents: the number of training texts.
    """

    rules: Rules
    vocabulary: tuple[str, ...]
    frequencies: tuple[int, ...]
    documents: int

    @property
    def size(self) -> int:
        """Number of indices V, including the mask and the unknown one."""
        return len(self.vocabulary) + 2

    @cached_property
    def _index(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.vocabulary, 2)}

    @cached_property
    def idf(self) -> np.ndarray:
        """Inverse document frequencies, float32 [V].

            idf = log(1 + documents / (1 + frequency))

        and their mean for the unknown token, 0 for the mask.
        """
        known = np.log1p(self.documents / (1 + np.asarray(self.frequencies, np.float64)))
        return np.concatenate([[0.0, known.mean()], known]).astype(np.float32)

    def _encoded(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        for tokens in _tokenized(self.rules, texts):
            yield np.fromiter(map(self._index.get, tokens, repeat(UNKNOWN)), np.int32, len(tokens))

    def ints(self, texts: Iterable[str], length: int | None = None) -> np.ndarray:
        """Tokens as indices, int32 [N, length], 0 after the end of a text; a longer text is truncated.

        Args:
          texts: N texts.
          length: of the rows; None for the length of the longest text.

        Raises:
          ValueError: a length below 1.
          TypeError: anything but texts.
        """
        if length is not None and length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        rows = [row[:length] for row in self._encoded(texts)]
        result = np.zeros((len(rows), length or max(map(len, rows), default=0)), np.int32)
        for out, row in zip(result, rows, strict=True):
            out[: len(row)] = row
        return result

    def aligned(self, texts: Iterable[str], length: int) -> np.ndarray:
        """The n-grams that end at each word, one for each of `rules.ngrams`, int32 [N, length, K].

        0 after the end of a text, and before n words have been read; a longer text is truncated.

        Raises:
          ValueError: a length below 1.
          TypeError: anything but texts.
        """
        texts = list(_checked(texts))
        each = [replace(self, rules=self.rules._replace(ngrams=(n,))).ints(texts, length) for n in self.rules.ngrams]
        result = np.zeros((*each[0].shape, len(each)), np.int32)
        for i, (n, ints) in enumerate(zip(self.rules.ngrams, each, strict=True)):
            result[:, n - 1 :, i] = ints[:, : max(length - n + 1, 0)]
        return result

    def one_hot(self, texts: Iterable[str], length: int | None = None) -> np.ndarray:
        """`ints` as vectors, float32 [N, length, V]: one 1 at each token, none at the mask."""
        ints = self.ints(texts, length)
        return ((ints[..., None] == np.arange(self.size)) & (ints[..., None] != MASK)).astype(np.float32)

    def count(self, texts: Iterable[str]) -> sparse.csr_array:
        """How often each token occurs in each text, sparse float32 [N, V]."""
        rows = [np.zeros(0, np.int32), *self._encoded(texts)]
        columns, starts = np.concatenate(rows), np.cumsum(list(map(len, rows)))
        bags = sparse.csr_array((np.ones(len(columns), np.float32), columns, starts), (len(rows) - 1, self.size))
        bags.sum_duplicates()
        return bags

    def multi_hot(self, texts: Iterable[str]) -> sparse.csr_array:
        """Which tokens occur in each text, sparse float32 [N, V] of ones."""
        bags = self.count(texts)
        bags.data[:] = 1
        return bags

    def tf_idf(self, texts: Iterable[str]) -> sparse.csr_array:
        """`count` times `idf`, sparse float32 [N, V] (Sparck Jones 1972)."""
        bags = self.count(texts)
        bags.data *= self.idf[bags.indices]
        return bags

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The tokens of indices [L], joined by spaces (characters by nothing); "" for the mask, "[UNK]" for unknown.

        Raises:
          ValueError: an index outside range(V), or another number of axes.
          TypeError: tokens that are not integers.
        """
        indices = check_tokens(tokens, self.size)
        names = ("", "[UNK]", *self.vocabulary)
        joint = "" if self.rules.characters and self.rules.ngrams == (1,) else " "
        return joint.join(names[i] for i in indices if i != MASK)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vectorizer to a JSON file."""
        content = {"rules": self.rules._asdict(), "documents": self.documents}
        content |= {"vocabulary": self.vocabulary, "frequencies": self.frequencies}
        Path(path).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")


def load(path: str | os.PathLike[str]) -> Vectorizer:
    """Reads what `Vectorizer.save` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, or not a vectorizer (names the file and what is wrong).
    """
    with named(path, "not a vectorizer"):
        text = files.unmarked(files.read(Path(path)), f"{path}").decode("utf-8", "surrogatepass")
        content = files.parse_json(text, f"{path}")
        vocabulary, frequencies = tuple(content["vocabulary"]), tuple(content["frequencies"])
        documents, rules = content["documents"], content["rules"]
        if not all(type(count) is int and 0 <= count < 2**63 for count in (*frequencies, documents)):
            raise ValueError("frequencies and documents must be nonnegative integers")
        if len(frequencies) != len(vocabulary) or not all(isinstance(token, str) for token in vocabulary):
            raise ValueError(f"{len(vocabulary)} tokens with {len(frequencies)} frequencies")
        if len(set(vocabulary)) < len(vocabulary):
            raise ValueError("duplicate token")
        rules = Rules(**{**rules, "ngrams": tuple(rules["ngrams"])}).check()
        switches = rules.fold, rules.lower, rules.strip, rules.characters
        if not all(type(value) is bool for value in switches) or not all(type(n) is int for n in rules.ngrams):
            raise ValueError(f"{str(rules)[:200]}, expected booleans, and integers in ngrams")
        return Vectorizer(rules, vocabulary, frequencies, documents)


def _checked(texts: Iterable[str]) -> Iterator[str]:
    if isinstance(texts, str | bytes):
        raise TypeError(f"expected texts, got a single {type(texts).__name__}: put it in a list")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {i} is a {type(text).__name__}, expected a str (decode bytes first)")
        yield text


def _tokenized(rules: Rules, texts: Iterable[str]) -> Iterator[list[str]]:
    return map(rules.tokens, _checked(texts))


def fit(texts: Iterable[str], *, size: int | None = None, rules: Rules = Rules()) -> Vectorizer:
    """The vocabulary of a training set: its most frequent tokens; ties are in descending code point order.

    Args:
      texts: the training texts, possibly from a generator; only the counts are kept.
      size: the maximum number of indices V, including the mask and the unknown one; None for no limit.
      rules: how a text is converted to tokens.

    Raises:
      ValueError: a size below 3, invalid rules, no texts, or no tokens in them.
      TypeError: anything but texts.
    """
    rules.check()
    if size is not None and size < 3:
        raise ValueError(f"size must be at least 3 (the mask, the unknown token and one more), got {size}")
    counts: Counter[str] = Counter()
    frequencies: Counter[str] = Counter()
    documents = 0
    for tokens in _tokenized(rules, texts):
        counts.update(tokens)
        frequencies.update(set(tokens))
        documents += 1
    if not counts:
        raise ValueError(f"a vocabulary needs at least one token, got none in {documents} texts")
    ranked = sorted(counts, reverse=True)
    ranked.sort(key=counts.__getitem__, reverse=True)
    kept = tuple(ranked[: None if size is None else size - 2])
    return Vectorizer(rules, kept, tuple(frequencies[token] for token in kept), documents)
