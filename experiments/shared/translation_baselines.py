"""Translations without a network: the source itself, word by word, and the translation of the most similar sentence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from seqjax.data import pairs

__all__ = ["all_of", "copy", "ibm1", "nearest", "word_by_word"]


def all_of(train: pairs.Pairs, sentences: Sequence[str]) -> dict[str, list[str]]:
    """The sentences as each baseline translates them: "copy", "words", "nearest"."""
    return {"copy": copy(sentences), "words": word_by_word(train, sentences), "nearest": nearest(train, sentences)}


def copy(sentences: Sequence[str]) -> list[str]:
    """The sentences as they are."""
    return [pairs.join(pairs.tokens(sentence)) for sentence in sentences]


def ibm1(
    rows: Sequence[np.ndarray], columns: Sequence[np.ndarray], shape: tuple[int, int], iterations: int = 5
) -> sparse.csr_array:
    """Translation probabilities t(f | e) of IBM model 1, by expectation maximization (Brown et al. 1993).

        p(f_j comes from e_i) = t(f_j | e_i) / sum_i' t(f_j | e_i');   t(f | e) = expected count(e, f) / sum_f

    Args:
      rows: source sentences as ints e in range(E).
      columns: target sentences as ints f in range(F).
      shape: (E, F).
      iterations: of expectation and maximization, from the uniform distribution.

    Returns:
      t, sparse [E, F], each row sums to 1.
    """
    size = [len(e) * len(f) for e, f in zip(rows, columns, strict=True)]
    e = np.concatenate([np.tile(e, len(f)) for e, f in zip(rows, columns, strict=True)])
    f = np.concatenate([np.repeat(f, len(e)) for e, f in zip(rows, columns, strict=True)])
    place = np.concatenate([np.repeat(np.arange(len(f)), len(e)) for e, f in zip(rows, columns, strict=True)])
    starts = np.repeat(np.cumsum([0, *map(len, columns[:-1])]), size)
    places, (key, pair) = starts + place, np.unique(e.astype(np.int64) * shape[1] + f, return_inverse=True)
    of = key // shape[1]  # the source word of each pair of words that stand in a pair of sentences
    t = np.ones(len(key))
    for _ in range(iterations):
        p = t[pair]
        p /= np.bincount(places, p)[places]
        counts = np.bincount(pair, p, len(key))
        t = counts / np.bincount(of, counts, shape[0])[of]
    return sparse.csr_array((t, (of, key % shape[1])), shape)


def word_by_word(train: pairs.Pairs, sentences: Sequence[str]) -> list[str]:
    """Each word as its likeliest translation (`ibm1`), in the order of the source; an unknown one as it is."""
    english, french = (pairs.vocabulary(texts) for texts in train)
    rows, columns = (
        [known.encode(text)[:-1] for text in texts] for known, texts in zip((english, french), train, strict=True)
    )
    t = ibm1(rows, columns, (english.size, french.size))
    best = np.asarray(t.argmax(axis=1)).ravel()
    translations = {word: french.words[best[i] - 4] for i, word in enumerate(english.words, 4)}
    return [pairs.join([translations.get(word, word) for word in pairs.tokens(sentence)]) for sentence in sentences]


def nearest(train: pairs.Pairs, sentences: Sequence[str]) -> list[str]:
    """The translation of the training sentence with the most similar words (cosine of TF-IDF, the first of equals)."""
    known = pairs.vocabulary(train.source)

    def bags(texts: Sequence[str]) -> Any:
        rows = [known.encode(text)[:-1] for text in texts]
        starts = np.cumsum([0, *map(len, rows)])
        return sparse.csr_array((np.ones(starts[-1]), np.concatenate(rows), starts), (len(rows), known.size))

    seen, asked = bags(train.source), bags(sentences)
    idf = sparse.diags_array(np.log1p(len(train.source) / (1 + np.bincount(seen.indices, minlength=known.size))))
    seen, asked = seen @ idf, asked @ idf
    norms = np.sqrt(np.asarray(seen.multiply(seen).sum(axis=1))).ravel()
    found = (asked @ (sparse.diags_array(1 / norms) @ seen).T).tocsr()
    return [pairs.join(pairs.tokens(train.target[i])) for i in np.asarray(found.argmax(axis=1)).ravel()]
