"""Reading compressed files and archives: gzip, bzip2, xz; zip and tar.

Everything is a stream that counts the bytes it yields (`damaged.Bounds`) and names the file in its errors.
"""

import bz2
import gzip
import io
import lzma
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tarfile import HeaderError, ReadError
from typing import Any, BinaryIO

from seqjax.data.damaged import Bounds, named

__all__ = ["Entries", "entries", "of_macos", "packing", "unpacked"]

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
_CUT = "Compressed file ended before the end-of-stream marker was reached"
_XZ_MEMORY = 256 << 20  # bytes; `xz -9` needs 65 MiB, a damaged header may ask for 4 GiB

Entries = Iterator[tuple[str, Callable[[], Any]]]
"""The files of an archive or a folder: each a name, and a function that opens it."""


def packing(head: bytes) -> str | None:
    """The format of a file, from its first 512 bytes: "gzip", "zip", "tar" ...; None for any format not listed here."""
    found = _KINDS.match(head)
    return list(_MAGIC)[found.lastindex - 1] if found and found.lastindex else None


def of_macos(name: str) -> bool:
    """Whether macOS adds files of this name to archives and folders."""
    return bool(_MACOS.search(name))


class _Counted(io.RawIOBase):
    """A stream that counts the bytes read from it and names the file in every error.

    Args:
      content: the stream to read.
      place: the name for errors.
      bounds: the counter.
      source: the compressed file, whose position tells how much of it was read; None if it is not known.
      step: bytes read at a time.
    """

    def __init__(self, content: Any, place: Path | str, bounds: Bounds, source: Any = None, step: int = 1 << 16):
        self._content, self._place, self._bounds, self._source, self._step = content, place, bounds, source, step

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        with named(self._place):
            content = self._content.read(min(len(buffer), self._step))
            if self._source is not None:
                self._bounds.packed = self._source.tell()
            self._bounds.unpack(len(content))
        buffer[: len(content)] = content
        return len(content)


def unpacked(raw: Any, place: Path | str, bounds: Bounds, part: bool = False) -> Any:
    """The content of `raw`, decompressed from gzip, bzip2 or xz; `raw` itself if it is none of these.

    Args:
      raw: a stream, at its beginning.
      place: the name for errors.
      bounds: of the file.
      part: whether `raw` is a member of the file instead of the file itself.

    Raises:
      ValueError: damaged, in an unsupported format, or out of bounds.
    """
    kind = packing(raw.read(16))
    raw.seek(0)
    if kind is not None and kind not in _READ:
        raise ValueError(f"{place}: {kind} is not supported: decompress the file, or compress it as zip or tar.gz")
    if kind == "gzip":
        content: Any = gzip.GzipFile(fileobj=raw)
    elif kind == "bzip2":
        content = io.BufferedReader(_Streams(raw, bz2.BZ2Decompressor))
    elif kind == "xz":
        content = io.BufferedReader(_Streams(raw, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)))
    else:
        return raw
    return io.BufferedReader(_Counted(content, place, bounds, None if part else raw), 1 << 16)


class _Streams(io.RawIOBase):
    """Concatenated bzip2 or xz streams. (`BZ2File` and `LZMAFile` silently stop at a damaged one.)"""

    def __init__(self, raw: BinaryIO, decompressor: Callable[[], Any]):
        self._raw, self._new = raw, decompressor
        self._stream, self._left, self._begun = decompressor(), b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while True:
            packed = b"" if self._begun and not self._stream.needs_input else self._left or self._raw.read(1 << 16)
            if self._stream.eof:
                packed = self._next()
                if not packed:
                    return 0
                self._stream = self._new()
            elif self._stream.needs_input and not packed:
                raise EOFError(_CUT)
            self._left, self._begun = b"", True
            if content := self._stream.decompress(packed, len(buffer)):
                buffer[: len(content)] = content
                return len(content)

    def _next(self) -> bytes:
        """The beginning of the next stream, after any zero padding of xz; empty at the end of the file."""
        rest = self._stream.unused_data
        while not (begun := rest.lstrip(b"\0")) and (rest := self._raw.read(1 << 16)):
            pass
        return begun


def entries(raw: Any, path: Path | str, bounds: Bounds) -> Entries:
    """The files of an archive, itself compressed or not, except those that macOS adds.

    Each file of a tar archive must be opened before the iterator advances.

    Args:
      raw: the archive, at its beginning.
      path: the name for errors.
      bounds: of the archive.

    Raises:
      ValueError: not an archive, a damaged one, or one that is out of bounds.
    """
    with named(path, "damaged or not an archive"):
        zipped = packing(unpacked(raw, path, Bounds(path)).read(4)) == "zip"
        raw.seek(0)
        content = unpacked(raw, path, bounds)
        yield from (_zipped if zipped else _tarred)(content, path, bounds)


def _zipped(raw: Any, path: Path | str, bounds: Bounds) -> Entries:
    raw = raw if raw.seekable() else io.BytesIO(raw.read())
    archive = zipfile.ZipFile(raw)
    _check_directory(raw, archive.infolist())
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        bounds.member(name, info.file_size)

        def content(info: zipfile.ZipInfo = info) -> Any:
            if info.flag_bits & 0x41:
                raise ValueError(f"{path}: {info.filename} is encrypted: extract it with its password")
            try:
                opened = archive.open(info)
            except NotImplementedError:
                method = "Deflate64" if info.compress_type == 9 else f"method {info.compress_type} of zip"
                raise ValueError(
                    f"{path}: {info.filename} uses {method}, which is not supported: extract it, or compress it again"
                ) from None
            bounds.packed += info.compress_size
            bounds.expect(info.file_size)
            # bzip2 and lzma decompress each block that is read in full, however large the result.
            step = 1 << 16 if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else 1 << 12
            return io.BufferedReader(_Counted(opened, path, bounds, step=step), step)

        if not info.is_dir() and not name.endswith("/") and not of_macos(name):
            yield name, content


def _check_directory(raw: Any, infos: list[zipfile.ZipInfo]) -> None:
    """Refuses a directory that disagrees with the headers of the files; it has no checksum of its own.

    (`zipfile` only compares the names of files that are opened, and damage may turn a wanted name into another.)
    """
    size = raw.seek(0, io.SEEK_END)
    raw.seek(-min(size, 22 + 0xFFFF), io.SEEK_END)
    end = raw.read()
    (count,) = struct.unpack_from("<H", end, end.rindex(b"PK\5\6") + 10)
    if count not in (len(infos) & 0xFFFF, 0xFFFF):
        raise zipfile.BadZipFile(f"its directory has {len(infos)} entries, but states {count}")
    for info in infos:
        raw.seek(info.header_offset)
        mark, flags, method, *sizes, length = struct.unpack("<4s2xHH4xIIIH2x", raw.read(30))
        name = raw.read(length).decode("utf-8" if flags & 0x800 else "cp437")
        if mark != b"PK\3\4" or name != info.orig_filename:
            raise zipfile.BadZipFile(f"its directory lists {info.orig_filename!r}, the header of the file {name!r}")
        listed = info.CRC, info.compress_size, info.file_size
        same = all(size in (known, 0xFFFFFFFF) for size, known in zip(sizes, listed, strict=True))
        if method != info.compress_type or not (same or flags & 8):  # 8: not known yet when the header was written
            raise zipfile.BadZipFile(f"its directory and the header of {name} disagree on method, checksum or size")
        if info.compress_size > size - info.header_offset:
            raise zipfile.BadZipFile(f"{info.filename} extends beyond the end of the archive")


class _Member(tarfile.TarInfo):
    """A member that raises for a damaged or missing header. (By default the archive silently ends there.)"""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the block of zeros that ends an archive
                raise
            raise ReadError(f"{error} at byte {tarfile.offset}") from None


def _tarred(raw: Any, path: Path | str, bounds: Bounds) -> Entries:
    raw = raw if isinstance(raw.raw, _Counted) else io.BufferedReader(_Counted(raw, path, bounds, raw), 1 << 16)
    with tarfile.open(fileobj=raw, mode="r|", tarinfo=_Member) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            bounds.member(name, member.size)

            def content(member: tarfile.TarInfo = member) -> Any:
                if not member.isfile():
                    raise ValueError(f"{path}: {member.name} is a link or a device: archive the file itself")
                if member.issparse():
                    raise ValueError(f"{path}: {member.name} is a sparse file: archive it without --sparse")
                return archive.extractfile(member)

            if not member.isdir() and not of_macos(name):
                yield name, content
        # Read to the end, where the checksum of the compressed file is.
        rest: Any = archive.fileobj
        while block := rest.read(1 << 20):
            if block.strip(b"\0"):
                raise ReadError("data after its end: concatenated archives?")
