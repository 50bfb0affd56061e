"""The files of a data set: where they are and what they hold. Every error names the file."""

import codecs
import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_GZIP = b"\x1f\x8b"
_OTHER_MARKS = (  # that of UTF-32 begins with that of UTF-16
    ("UTF-32", codecs.BOM_UTF32_LE),
    ("UTF-32", codecs.BOM_UTF32_BE),
    ("UTF-16", codecs.BOM_UTF16_LE),
    ("UTF-16", codecs.BOM_UTF16_BE),
)
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
    if not content.startswith(_GZIP):
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
        with path.open("rb") as raw:
            gzipped = raw.read(2) == _GZIP
            raw.seek(0)
            source: Any = gzip.GzipFile(fileobj=raw) if gzipped else raw
            with tarfile.open(fileobj=source, mode="r|" if gzipped else "r|*") as archive:
                for member in archive:
                    if member.isfile() and wanted(member.name):
                        content = archive.extractfile(member)
                        yield member.name, b"" if content is None else content.read()
            # An archive that is cut off between two members is noticed only by what compressed it.
            while source.read(1 << 20):
                pass
    except _DAMAGED as error:
        raise ValueError(f"{path}: damaged or no archive: {type(error).__name__}: {error}") from error


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, plain or packed (`read`), without the byte order mark that some programs begin it with.

    Raises:
      ValueError: a damaged file, or one that is not UTF-8 (names the file and the line).
    """
    return decode(read(file), str(file))


def decode(content: bytes, place: str) -> str:
    """UTF-8 as text, without a byte order mark at its beginning.

    Args:
      content: bytes.
      place: what the error names.

    Raises:
      ValueError: not UTF-8 (names the place, the offset and the line), or the mark of another encoding.
    """
    plain = unmarked(content, place)
    try:
        return plain.decode("utf-8")
    except UnicodeDecodeError as error:
        offset, line = error.start + len(content) - len(plain), plain.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{place} is not UTF-8: {error.reason} at offset {offset}, line {line}") from None


def unmarked(content: bytes, place: str) -> bytes:
    """The content without the byte order mark of UTF-8.

    Raises:
      ValueError: the mark of UTF-16 or UTF-32 (names the place).
    """
    for encoding, mark in _OTHER_MARKS:
        if content.startswith(mark):
            raise ValueError(f"{place} is not UTF-8: it begins with the mark of {encoding}, save it as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)
