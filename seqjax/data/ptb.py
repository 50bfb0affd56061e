"""Penn Treebank, as words (Marcus et al. 1993), in the preprocessing of Mikolov et al. 2010.

    parts = ptb.load("simple-examples.tgz")
    vocabulary = words.Vocabulary.of(parts["train"])    # 10,000 words
    tokens = vocabulary.encode(parts["train"])          # int32 [929589]

Lower case, numbers as `N`, no punctuation, one sentence a line, 10,000 words, the others as `<unk>`.
"""

import gzip
import os
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

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
        `ptb.{train,valid,test}.txt`, plain or as `.txt.gz`, in it or in its folder `ptb`.

    Raises:
      FileNotFoundError: nothing of this kind there (says what is).
      ValueError: a damaged archive or file, a text that is not UTF-8, is empty, or is missing in the archive.
    """
    path = Path(path).expanduser()
    if path.is_file():
        contents = _unpack(path)
    elif path.is_dir():
        contents = _read(path)
    else:
        raise FileNotFoundError(f"{path}: no such file or folder, expected {ARCHIVE} or a folder with {FILES['train']}")
    texts = {}
    for part, (file, content) in contents.items():
        try:
            texts[part] = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8: {error.reason} at offset {error.start}") from None
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


def _read(folder: Path) -> dict[str, tuple[str, bytes]]:
    """The names and contents of the three files of a folder, or of the archive in it."""
    for place in (folder, folder / "ptb", folder / "data", folder / "simple-examples" / "data"):
        files = {part: _either(place / name) for part, name in FILES.items()}
        found = {part: file for part, file in files.items() if file is not None}
        if found and len(found) < len(files):
            missing = ", ".join(FILES[part] for part in FILES if part not in found)
            raise FileNotFoundError(f"{place}: {missing} (or .gz) is missing beside {next(iter(found.values())).name}")
        if found:
            return {part: (str(file), _content(file)) for part, file in found.items()}
        if (place / ARCHIVE).is_file():
            return _unpack(place / ARCHIVE)
    names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
    raise FileNotFoundError(f"{folder}: no {FILES['train']} (or .gz) and no {ARCHIVE} in it, found {names}")


def _either(file: Path) -> Path | None:
    return next((f for f in (file, file.with_name(f"{file.name}.gz")) if f.is_file()), None)


def _content(file: Path) -> bytes:
    if file.suffix != ".gz":
        return file.read_bytes()
    try:
        return gzip.decompress(file.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file}: damaged or no gzip file: {type(error).__name__}: {error}") from error


def _unpack(archive: Path) -> dict[str, tuple[str, bytes]]:
    parts = {name: part for part, name in FILES.items()}
    found: dict[str, tuple[str, bytes]] = {}
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                part = parts.get(PurePosixPath(member.name).name)
                content = tar.extractfile(member) if part else None
                if part and content:
                    found[part] = f"{archive}: {member.name}", content.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{archive}: damaged or no tar archive: {type(error).__name__}: {error}") from error
    if missing := [FILES[part] for part in FILES if part not in found]:
        raise ValueError(f"{archive}: no {', '.join(missing)} in it")
    return {part: found[part] for part in FILES}
