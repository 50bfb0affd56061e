"""The files of a data set: where they are and what they hold. Every error names the file."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)


def find(path: Path, patterns: Sequence[str], folders: Sequence[str] = ()) -> Path:
    """Where a data set is: the path itself if it is a file, else what matches in it or in one of its folders.

    Args:
      path: a file, or a folder.
      patterns: what to look for in a folder (`aclImdb*.tar.gz`), the best first.
      folders: those inside `path` that are looked into after it.

    Raises:
      FileNotFoundError: no such path, or nothing that matches (says what is there).
    """
    wanted = " or ".join(patterns)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder, expected {wanted}")
    for folder in (path, *(path / name for name in folders)):
        for pattern in patterns:
            if found := sorted(folder.glob(pattern)):
                return found[0]
    names = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
    raise FileNotFoundError(f"{path}: no {wanted} in it, found {names}")


def read(file: Path) -> bytes:
    """What a file holds, unpacked if it is a gzip file. (A download need not keep the ending .gz.)

    Raises:
      ValueError: a damaged gzip file.
    """
    content = file.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except _DAMAGED as error:
        raise ValueError(f"{file}: damaged: {type(error).__name__}: {error}") from error


def members(path: Path, wanted: Callable[[str], object]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files in a folder, a tar archive or a zip archive; names have `/` between their parts.

    Args:
      path: a folder, in which names are relative to it and sorted, or an archive, in the order of which they come.
      wanted: which names; only those are read.

    Raises:
      ValueError: a damaged archive, or none at all.
    """
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            if wanted(name := file.relative_to(path).as_posix()):
                yield name, file.read_bytes()
        return
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if not name.endswith("/") and wanted(name):
                        yield name, archive.read(name)
            return
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and wanted(member.name):
                    content = archive.extractfile(member)
                    yield member.name, b"" if content is None else content.read()
    except _DAMAGED as error:
        raise ValueError(f"{path}: damaged or no archive: {type(error).__name__}: {error}") from error


def decode(content: bytes, place: str) -> str:
    """UTF-8 as text.

    Args:
      content: bytes.
      place: what the error names.

    Raises:
      ValueError: not UTF-8 (names the place and the offset).
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8: {error.reason} at offset {error.start}") from None
