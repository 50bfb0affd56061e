"""Penn Treebank, as words (Marcus et al. 1993), in the preprocessing of Mikolov et al. 2010.

    parts = ptb.load("simple-examples.tgz")
    vocabulary = words.Vocabulary.of(parts["train"])    # 10,000 words
    tokens = vocabulary.encode(parts["train"])          # int32 [929589]

Lower case, numbers as `N`, no punctuation, one sentence per line, 10,000 words, all others as `<unk>`.
"""

import os
from pathlib import Path, PurePosixPath

import numpy as np

from seqjax.data import files

__all__ = ["FILES", "MD5", "generated", "load"]

MD5 = {
    "train": "f26c4b92c5fdc7b3f8c7cdcb991d8420",
    "validation": "aa0affc06ff7c36e977d7cd49e3839bf",
    "test": "8b80168b89c18661a38ef683c0dc3721",
}
"""Checksums of the official texts, uncompressed."""

FILES = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}
"""The file of each part."""

_ARCHIVE = "simple-examples.tgz"


def load(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts "train" (42,068 lines), "validation" (3,370) and "test" (3,761).

    Args:
      path: `simple-examples.tgz`, or a folder that contains it, the folder that it unpacks to, or the three files
        `ptb.{train,valid,test}.txt`, compressed or not, directly or in its folder `ptb`.

    Raises:
      FileNotFoundError: none of these (lists what is there).
      ValueError: a damaged archive or file, a text that is not UTF-8 or is empty, or an archive that does not
        contain each text exactly once.
    """
    texts = {}
    for part, (file, content) in _contents(Path(path).expanduser()).items():
        texts[part] = files.decode(content, file)
        if not texts[part].strip():
            raise ValueError(f"{file} is empty")
    return texts


def generated(lines: int = 400, seed: int = 0) -> dict[str, str]:
    """The three parts, in sentences from a small grammar, for tests and demonstrations.

    Verbs agree with their subject across a place name, so a longer context helps.

    Args:
      lines: number of lines of the training part; the others have a fifth of it.
      seed: of all random draws.
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

    found = files.find(path, (*either(FILES["train"]), _ARCHIVE), ("ptb", "data", "simple-examples/data"))
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
