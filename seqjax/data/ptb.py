"""Penn Treebank, as words (Marcus et al. 1993), in the preprocessing of Mikolov et al. 2010.

    parts = ptb.load("simple-examples.tgz")
    vocabulary = words.Vocabulary.of(parts["train"])    # 10,000 words
    tokens = vocabulary.encode(parts["train"])          # int32 [929589]

Lower case, numbers as `N`, no punctuation, one sentence a line, 10,000 words, the others as `<unk>`.
"""

import os
from pathlib import Path, PurePosixPath

import numpy as np

from seqjax.data import files

__all__ = ["MD5", "generated", "load"]

MD5 = {
    "train": "f26c4b92c5fdc7b3f8c7cdcb991d8420",
    "validation": "aa0affc06ff7c36e977d7cd49e3839bf",
    "test": "8b80168b89c18661a38ef683c0dc3721",
}
"""Of the official texts, unpacked."""

ARCHIVE = "simple-examples.tgz"
FILES = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}


def load(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts "train" (42,068 lines), "validation" (3,370) and "test" (3,761).

    Args:
      path: `simple-examples.tgz`, or a folder with it, with the folder that it unpacks to, or with the three files
        `ptb.{train,valid,test}.txt`, packed or not, in it or in its folder `ptb`.

    Raises:
      FileNotFoundError: nothing of this kind there (says what is).
      ValueError: a damaged archive or file, a text that is not UTF-8, is empty, or is not once in the archive.
    """
    texts = {}
    for part, (file, content) in _contents(Path(path).expanduser()).items():
        texts[part] = files.decode(content, file)
        if not texts[part].strip():
            raise ValueError(f"{file} is empty")
    return texts


def generated(lines: int = 400, seed: int = 0) -> dict[str, str]:
    """The three parts in sentences of a small grammar, for tests and demonstrations.

    Verbs agree with their subject across a place, so that a longer context tells more.

    Args:
      lines: of the training part; the others have a fifth of it.
      seed: of everything drawn.
    """
    rng = np.random.default_rng(seed)

    def sentence() -> str:
        many = bool(rng.integers(2))
        who = rng.choice(["banks", "traders"] if many else ["company", "market"])
        place = rng.choice(["", "in new york", "in london on N street"])
        verb = rng.choice(["rise", "fall"]) + ("" if many else "s")
        return " ".join(f" the {who} {place} {verb} N % {rng.choice(['today', '<unk>'])}".split())

    return {
        part: "".join(f" {sentence()} \n" for _ in range(count))
        for part, count in (("train", lines), ("validation", lines // 5), ("test", lines // 5))
    }


def _contents(path: Path) -> dict[str, tuple[str, bytes]]:
    """Name and content of the file of each part."""

    def either(name: str) -> tuple[str, str]:
        return name, f"{name}.gz"

    found = files.find(path, (*either(FILES["train"]), ARCHIVE), ("ptb", "data", "simple-examples/data"))
    if files.unpacked_name(found.name)[0] == FILES["train"]:
        places = {part: files.find(found.parent, either(name)) for part, name in FILES.items()}
        return {part: (str(place), files.read(place)) for part, place in places.items()}
    inside = {}
    for name, content in files.members(found, lambda name: PurePosixPath(name).name in FILES.values()):
        if (file := PurePosixPath(name).name) in inside:
            raise ValueError(f"{inside[file][0]} and {name}: expected one {file}")
        inside[file] = f"{found}: {name}", content
    if missing := [name for name in FILES.values() if name not in inside]:
        raise ValueError(f"{found}: no {', '.join(missing)} in it")
    return {part: inside[name] for part, name in FILES.items()}
