"""The large movie review data set (Maas et al. 2011, "Learning word vectors for sentiment analysis").

parts = reviews.load("aclImdb_v1.tar.gz")
train, validation = reviews.split(parts["train"])
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.data import fields, files

__all__ = ["Reviews", "generated", "load", "split"]

_REVIEW = re.compile(r"(?:^|/)(train|test)/(neg|pos)/([0-9]{1,9})_([0-9]{1,2})\.txt$")
_OTHER = re.compile(r"(?:^|/)(?:train|test)/(?:neg|pos)/.+$", re.IGNORECASE)
_FILMS = re.compile(r"(?:^|/)(train|test)/urls_(neg|pos)\.txt$")


class Reviews(NamedTuple):
    """Reviews in the order of (negative first, number).

    Attributes:
      texts: N reviews.
      labels: int32 [N], 1 positive (7 stars or more) and 0 negative (4 or fewer).
      stars: int32 [N], 1 to 10.
      films: the URL of the film of each review; "" where the archive does not give it.
    """

    texts: tuple[str, ...]
    labels: np.ndarray
    stars: np.ndarray
    films: tuple[str, ...]

    def take(self, indices: np.ndarray) -> "Reviews":
        """The reviews at these indices."""
        texts, films = (tuple(values[i] for i in indices) for values in (self.texts, self.films))
        return Reviews(texts, self.labels[indices], self.stars[indices], films)


def load(path: str | os.PathLike[str]) -> dict[str, Reviews]:
    """The labelled reviews: "train" and "test".

    Args:
      path: `aclImdb_v1.tar.gz`, or another archive with its layout, or the folder that it unpacks to; or a folder
        that contains one of these.

    Raises:
      FileNotFoundError: none of these (lists what is there).
      ValueError: a damaged archive, a file among the reviews whose name is not that of a review, a review that is not
        UTF-8, occurs twice or has stars of the other label, or a part without reviews (names the file).
    """
    path = files.find(Path(path).expanduser(), ("aclImdb*.tar.gz", "train"), ("aclImdb", "imdb"))
    path = path.parent if path.name == "train" else path
    found: dict[tuple[str, int, int], tuple[str, int]] = {}
    films: dict[tuple[str, int], list[str]] = {}
    for name, content in files.members(path, lambda name: _OTHER.search(name) or _FILMS.search(name)):
        review, urls = _REVIEW.search(name), _FILMS.search(name)
        if not review and not urls:
            raise ValueError(f"{path}: {name}: expected reviews neg/NUMBER_STARS.txt and pos/NUMBER_STARS.txt")
        text = files.decode(content, f"{path}: {name}")
        if review:
            part, label, number, stars = review.groups()
            key = part, int(label == "pos"), int(number)
            if int(stars) not in (range(7, 11) if label == "pos" else range(1, 5)):
                raise ValueError(f"{path}: {name}: {stars} stars, expected 7 to 10 in pos and 1 to 4 in neg")
            if key in found:
                raise ValueError(f"{path}: {name}: there are two reviews {part}/{label}/{int(number)}")
            found[key] = text, int(stars)
        elif urls:
            key = urls[1], int(urls[2] == "pos")
            if key in films:
                raise ValueError(f"{path}: {name} occurs twice")
            films[key] = fields.lines(text)
    parts = {}
    for part in ("train", "test"):
        keys = sorted(key for key in found if key[0] == part)
        if not keys:
            raise ValueError(f"{path}: no reviews {part}/neg/NUMBER_STARS.txt or {part}/pos/NUMBER_STARS.txt in it")
        lists = [films.get(key[:2], []) for key in keys]
        parts[part] = Reviews(
            tuple(found[key][0] for key in keys),
            np.array([key[1] for key in keys], np.int32),
            np.array([found[key][1] for key in keys], np.int32),
            tuple(names[key[2]] if key[2] < len(names) else "" for key, names in zip(keys, lists, strict=True)),
        )
    return parts


def generated(count: int, seed: int = 0) -> Reviews:
    """Short reviews from a small grammar with negations, for tests and demonstrations.

    Args:
      count: number of reviews.
      seed: of all random draws.
    """
    rng = np.random.default_rng(seed)
    words = {1: ("good", "great", "fine", "funny"), 0: ("bad", "dull", "poor", "silly")}
    texts, labels = [], []
    for _ in range(count):
        label = int(rng.integers(2))
        parts = []
        for _ in range(rng.integers(1, 9)):
            negated = rng.random() < 0.3
            word = rng.choice(words[label ^ negated])
            parts.append(f"The {rng.choice(['plot', 'acting', 'music', 'end'])} is {'not ' * negated}{word}.")
        texts.append(" ".join(parts))
        labels.append(label)
    stars = np.where(np.array(labels, np.int32) == 1, 9, 2).astype(np.int32)
    films = tuple(f"film {i // 4}" for i in range(count))
    return Reviews(tuple(texts), np.array(labels, np.int32), stars, films)


def split(reviews: Reviews, fraction: float = 0.2, seed: int = 0) -> tuple[Reviews, Reviews]:
    """Training and validation part; about `fraction` of the reviews are for validation, and no film is in both parts.

    Args:
      reviews: the training reviews.
      fraction: in (0, 1).
      seed: of the order of the films.

    Raises:
      ValueError: a fraction outside (0, 1), or one that leaves a part empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    # A review of an unknown film counts as a film of its own.
    names = [film or f"review {i}" for i, film in enumerate(reviews.films)]
    films, index = np.unique(names, return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(films))[index]
    order = np.argsort(place, kind="stable")
    border = place[order[min(round(fraction * len(order)), len(order) - 1)]]
    held_out = place < border
    if held_out.all() or not held_out.any():
        raise ValueError(f"{len(names)} reviews of {len(films)} films are too few to hold out {fraction:g} of them")
    return reviews.take(np.flatnonzero(~held_out)), reviews.take(np.flatnonzero(held_out))
