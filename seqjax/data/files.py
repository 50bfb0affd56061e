"""The files of a data set: where they are and what they hold, packed or not. Every error names the file.

A file may be packed by gzip, bzip2 or xz, or lie in a zip or tar archive, itself packed or not; what it is, its first
bytes say, for a download need not keep its ending. Files that macOS adds (`__MACOSX/`, `._x`, `.DS_Store`) are no data,
and are passed over everywhere.
"""

import bz2
import codecs
import contextlib
import gzip
import io
import json
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tarfile import HeaderError, ReadError
from typing import Any, BinaryIO

_OTHER_MARKS = (  # that of UTF-32 begins with that of UTF-16
    ("UTF-32", codecs.BOM_UTF32_LE),
    ("UTF-32", codecs.BOM_UTF32_BE),
    ("UTF-16", codecs.BOM_UTF16_LE),
    ("UTF-16", codecs.BOM_UTF16_BE),
)
_MAGIC = {
    "gzip": rb"\x1f\x8b",
    "bzip2": rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)",
    "xz": rb"\xfd7zXZ\x00",
    "zip": rb"PK(?:\x03\x04|\x05\x06|\x07\x08)",
    "tar": rb"(?s:.{257})ustar",
    "Zstandard": rb"\x28\xb5\x2f\xfd",
    "LZ4": rb"\x04\x22\x4d\x18",
    "lzma": rb"\x5d\x00\x00",
    "compress": rb"\x1f\x9d",
    "7z": rb"7z\xbc\xaf\x27\x1c",
    "RAR": rb"Rar!\x1a\x07",
}
_READ = ("gzip", "bzip2", "xz", "zip", "tar")
_KINDS = re.compile(b"|".join(b"(%b)" % magic for magic in _MAGIC.values()))
_MACOS = re.compile(r"(?:^|/)(?:__MACOSX/|\._|\.DS_Store$)")
_COMPRESSED = (".gz", ".bz2", ".xz")
_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar", ".zip", *_COMPRESSED)
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error)
_CUT = "Compressed file ended before the end-of-stream marker was reached"


def find(path: Path, patterns: Sequence[str], folders: Sequence[str] = ()) -> Path:
    """Where a data set is: the path itself if it is a file, else what matches in it or in one of its folders.

    Args:
      path: a file, or a folder.
      patterns: what to look for in a folder, as in `glob` (`aclImdb*.tar.gz`), the best first.
      folders: those inside `path` that are looked into after it.

    Raises:
      FileNotFoundError: no such path, or nothing that matches (says what is there).
      ValueError: several that match the same pattern.
    """
    found = find_all(path, patterns, folders)
    if len(found) > 1:
        raise ValueError(f"{path}: expected one data set, found {', '.join(map(str, found[:10]))}: say which")
    return found[0]


def find_all(path: Path, patterns: Sequence[str], folders: Sequence[str] = ()) -> list[Path]:
    """All that matches the first pattern that matches anything; arguments and FileNotFoundError as in `find`."""
    wanted = " or ".join(patterns)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder, expected {wanted}")
    for folder in (path, *(path / name for name in folders)):
        for pattern in patterns:
            if found := glob(folder, pattern):
                return found
    names = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
    raise FileNotFoundError(f"{path}: no {wanted} in it, found {names}")


def glob(folder: Path, pattern: str) -> list[Path]:
    """What matches in a folder, sorted.

    A pattern with the ending of a packed file stands for every way to pack one: with `*.csv.gz`, or `x.zip`, any of
    .gz, .bz2, .xz, .zip, .tar, .tar.gz ... is found, those of the pattern first.
    """
    stem, suffix = unpacked_name(pattern)
    for ending in dict.fromkeys((suffix, *_SUFFIXES)) if suffix else ("",):
        if found := sorted(file for file in folder.glob(stem + ending) if not of_macos(file.name)):
            return found
    return []


def unpacked_name(name: str) -> tuple[str, str]:
    """A name without the ending of a packed file, and that ending: ("a.csv", ".gz")."""
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix), suffix


def _any(_name: str) -> bool:
    return True


def read(file: Path, wanted: Callable[[str], object] = _any, what: str = "file") -> bytes:
    """What a file holds, unpacked: of an archive, the content of the one file in it.

    Args:
      file: packed or not.
      wanted: which names in an archive; the others are passed over.
      what: what it should be, for the error.

    Raises:
      ValueError: a file that is damaged, encrypted or packed in a way that is not read, or an archive in which not one
        name is wanted.
    """
    with stream(file, wanted, what) as content:
        return content.read()


@contextlib.contextmanager
def stream(file: Path, wanted: Callable[[str], object] = _any, what: str = "file") -> Iterator[BinaryIO]:
    """The content of `read`, to be read bit by bit: that of a zip archive need not fit into memory."""
    with _named(file), file.open("rb") as raw:
        kind = packing(_unpacked(raw, str(file)).read(512))
        raw.seek(0)
        content: Any = _unpacked(raw, str(file))
        if kind not in ("zip", "tar"):
            yield content
            return
        names, found = [], {}
        for name, opened in (_zipped if kind == "zip" else _tarred)(content, file):
            names.append(name)
            if wanted(name) or wanted(unpacked_name(name)[0]):
                # A tar archive is read once, from its beginning to its end.
                found[name] = opened if kind == "zip" else partial(io.BytesIO, opened().read())
        if len(found) != 1 or names.count(next(iter(found))) > 1:
            raise ValueError(f"{file}: expected one {what} in it, found {list(found) or names}")
        for name, opened in found.items():
            with opened() as inner:
                yield io.BytesIO(unpack(inner.read(), f"{file}: {name}")) if name.endswith(_COMPRESSED) else inner


def members(path: Path, wanted: Callable[[str], object]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files in a folder or an archive; names have `/` between their parts.

    A file that is packed itself (`a.txt.gz`) is unpacked, and has the name without that ending.

    Args:
      path: a folder, in which names are relative to it and sorted, or an archive, in the order of which they come.
      wanted: which names, without such an ending; only those are read.

    Raises:
      ValueError: a damaged archive, or none at all; of what is wanted, a file that is encrypted, or packed in a way
        that is not read, that stands there twice, or that is no file (a link to nothing, a link in an archive).
    """
    names: dict[str, str] = {}
    with _named(path, "damaged or no archive"):
        for name, content in _in_folder(path) if path.is_dir() else _in_archive(path):
            plain = unpacked_name(name)[0] if name.endswith(_COMPRESSED) else name
            if wanted(plain):
                if plain in names:
                    raise ValueError(f"{path}: {plain} stands there twice, as {names[plain]} and as {name}")
                names[plain] = name
                with content() as inner:
                    yield plain, unpack(inner.read(), f"{path}: {name}")


def unpack(content: bytes, place: str) -> bytes:
    """Bytes as they were before gzip, bzip2 or xz packed them, if one did.

    Raises:
      ValueError: damaged, or packed in a way that is not read (names the place).
    """
    if packing(content[:16]) in (None, "zip"):
        return content
    with _named(place):
        return _unpacked(io.BytesIO(content), place).read()


def packing(head: bytes) -> str | None:
    """What packed a file, by its first 512 bytes: "gzip", "zip", "tar" ...; None: nothing that is known here."""
    found = _KINDS.match(head)
    return list(_MAGIC)[found.lastindex - 1] if found and found.lastindex else None


@contextlib.contextmanager
def _named(path: Path | str, what: str = "damaged") -> Iterator[None]:
    """Whatever a damaged file raises as a ValueError that names it."""
    try:
        yield
    except _DAMAGED as error:
        raise ValueError(f"{path}: {what}: {type(error).__name__}: {error}") from error
    except OSError as error:
        if error.errno is not None:  # of the file system, which names the file
            raise
        raise ValueError(f"{path}: {what}: {type(error).__name__}: {error}") from error


def _unpacked(raw: Any, place: str) -> Any:
    """A stream of what `raw` holds, behind gzip, bzip2 or xz."""
    kind = packing(raw.read(16))
    raw.seek(0)
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if kind in ("bzip2", "xz"):
        return io.BufferedReader(_Streams(raw, bz2.BZ2Decompressor if kind == "bzip2" else lzma.LZMADecompressor))
    if kind is not None and kind not in _READ:
        raise ValueError(f"{place}: a file packed by {kind}, which is not read: unpack it, or pack it as zip or tar.gz")
    return raw


class _Streams(io.RawIOBase):
    """Streams of bzip2 or xz, one after another. (`BZ2File` and `LZMAFile` end without a word at a damaged one.)"""

    def __init__(self, raw: BinaryIO, decompressor: Callable[[], Any]):
        self._raw, self._new = raw, decompressor
        self._stream, self._left, self._begun = decompressor(), b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while True:
            packed = b"" if self._begun and not self._stream.needs_input else self._left or self._raw.read(1 << 16)
            if self._stream.eof:
                packed = (self._stream.unused_data or self._raw.read(1 << 16)).lstrip(b"\0")  # xz pads
                if not packed:
                    return 0
                self._stream = self._new()
            elif self._stream.needs_input and not packed:
                raise EOFError(_CUT)
            self._left, self._begun = b"", True
            if content := self._stream.decompress(packed, len(buffer)):
                buffer[: len(content)] = content
                return len(content)


Entries = Iterator[tuple[str, Callable[[], Any]]]


def _in_folder(folder: Path) -> Entries:
    for file in _inside(folder, ()):
        name = file.relative_to(folder).as_posix()

        def content(file: Path = file) -> Any:
            if not file.is_file():
                raise ValueError(f"{file}: a link to nothing, or no file")
            return file.open("rb")

        if not of_macos(name):
            yield name, content


def _inside(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All that is in a folder, sorted, behind links to folders, too."""
    real = folder.resolve()
    if real in above:
        raise ValueError(f"{folder}: a link to a folder that it lies in")
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from _inside(entry, (*above, real))
        else:
            yield entry


def _in_archive(path: Path) -> Entries:
    with path.open("rb") as raw:
        zipped = packing(_unpacked(raw, str(path)).read(4)) == "zip"
        raw.seek(0)
        yield from (_zipped if zipped else _tarred)(_unpacked(raw, str(path)), path)


def _zipped(raw: Any, path: Path) -> Entries:
    try:
        archive = zipfile.ZipFile(
            raw if isinstance(raw, io.BufferedReader) and raw.seekable() else io.BytesIO(raw.read())
        )
    except (ValueError, OverflowError, NotImplementedError) as error:
        raise zipfile.BadZipFile(str(error)) from error
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")

        def content(info: zipfile.ZipInfo = info) -> Any:
            if info.flag_bits & 0x41:
                raise ValueError(f"{path}: {info.filename} is encrypted: unpack it with its password")
            try:
                return archive.open(info)
            except NotImplementedError:
                method = "Deflate64" if info.compress_type == 9 else f"method {info.compress_type} of zip"
                raise ValueError(
                    f"{path}: {info.filename} is packed by {method}, which is not read: unpack it, or pack it anew"
                ) from None

        if not info.is_dir() and not name.endswith("/") and not of_macos(name):
            yield name, content


class _Member(tarfile.TarInfo):
    """A member whose header is damaged or missing raises. (Else the archive ends there without a word.)"""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the block of zeros that ends an archive
                raise
            raise ReadError(f"{error} at byte {tarfile.offset}") from None


def _tarred(raw: Any, path: Path) -> Entries:
    with tarfile.open(fileobj=raw, mode="r|", tarinfo=_Member) as archive:
        for member in archive:
            name = member.name.removeprefix("./")

            def content(member: tarfile.TarInfo = member) -> Any:
                if not member.isfile():
                    raise ValueError(f"{path}: {member.name} is no file but a link or a device: pack the file itself")
                return archive.extractfile(member)

            if not member.isdir() and not of_macos(name):
                yield name, content
        # Also what compressed an archive says at its end whether it is whole.
        rest: Any = archive.fileobj
        while block := rest.read(1 << 20):
            if block.strip(b"\0"):
                raise ReadError("more behind its end: one archive after another?")


def of_macos(name: str) -> bool:
    """Whether macOS added a file of this name to an archive or a folder."""
    return bool(_MACOS.search(name))


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, plain or packed (`read`), without the byte order mark that some programs begin it with.

    Raises:
      ValueError: a damaged file, or one that is not UTF-8 (names the file and the line).
    """
    return decode(read(file), str(file))


def decode(content: bytes, place: str) -> str:
    """UTF-8 as text, without a byte order mark at its beginning.

    Raises:
      ValueError: not UTF-8 (names the place, the offset and the line), the mark of another encoding, or a packed file.
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
      ValueError: the mark of UTF-16 or UTF-32, or a packed file (names the place).
    """
    if kind := packing(content[:512]):
        raise ValueError(f"{place} is not UTF-8 but packed by {kind}, where text was expected: unpack it")
    for encoding, mark in _OTHER_MARKS:
        if content.startswith(mark):
            raise ValueError(f"{place} is not UTF-8: it begins with the mark of {encoding}, save it as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)


def parse_json(content: bytes, place: str) -> Any:
    """What a JSON file says, strictly: no name twice in an object, and no NaN or Infinity.

    Raises:
      ValueError: no JSON, or not UTF-8 (names the place).
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"a name stands there twice: {next(n for n in names if names.count(n) > 1)!r}")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(decode(content, place), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: no JSON: {error}") from None
