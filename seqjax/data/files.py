"""Finding and reading the files of a data set, compressed or not. Every error names the file.

A file may be compressed by gzip, bzip2 or xz, or be in a zip or tar archive, itself compressed or not. The format is
recognized by the first bytes, since a download need not keep its suffix. Files that macOS adds (`__MACOSX/`, `._x`,
`.DS_Store`) are not data, and are skipped everywhere.
"""

import codecs
import contextlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from seqjax.data import archives
from seqjax.data.damaged import Bounds, named

__all__ = [
    "arrays",
    "decode",
    "find",
    "find_all",
    "glob",
    "members",
    "parse_json",
    "read",
    "read_text",
    "stream",
    "unmarked",
    "unpack",
    "unpacked_name",
]

_OTHER_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    ("UTF-32", codecs.BOM_UTF32_LE),
    ("UTF-32", codecs.BOM_UTF32_BE),
    ("UTF-16", codecs.BOM_UTF16_LE),
    ("UTF-16", codecs.BOM_UTF16_BE),
)
_DEEPEST = 20
_COMPRESSED = (".gz", ".bz2", ".xz")
_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar", ".zip", *_COMPRESSED)


def find(path: Path, patterns: Sequence[str], folders: Sequence[str] = ()) -> Path:
    """The path of a data set: `path` itself if it is a file, else the match in it or in one of its folders.

    Args:
      path: a file, or a folder.
      patterns: what to look for in a folder, as in `glob` (`aclImdb*.tar.gz`), the best first.
      folders: folders inside `path`, searched after it.

    Raises:
      FileNotFoundError: no such path, or no match (lists what is there).
      ValueError: several matches of the same pattern.
    """
    found = find_all(path, patterns, folders)
    if len(found) > 1:
        raise ValueError(f"{path}: expected one data set, found {', '.join(map(str, found[:10]))}: pass one of them")
    return found[0]


def find_all(path: Path, patterns: Sequence[str], folders: Sequence[str] = ()) -> list[Path]:
    """All matches of the first pattern that has any; arguments as in `find`.

    Raises:
      FileNotFoundError: as in `find`.
    """
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
    """The matches in a folder, sorted.

    A pattern with the suffix of a compressed file stands for all such suffixes: `*.csv.gz` or `x.zip` also finds .gz,
    .bz2, .xz, .zip, .tar, .tar.gz ..., but the suffix of the pattern first.
    """
    stem, suffix = unpacked_name(pattern)
    for ending in dict.fromkeys((suffix, *_SUFFIXES)) if suffix else ("",):
        if found := sorted(file for file in folder.glob(stem + ending) if not archives.of_macos(file.name)):
            return found
    return []


def unpacked_name(name: str) -> tuple[str, str]:
    """A name without the suffix of a compressed file, and that suffix: ("a.csv", ".gz")."""
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix), suffix


def _any(_name: str) -> bool:
    return True


def read(file: Path, wanted: Callable[[str], object] = _any, what: str = "file") -> bytes:
    """The content of a file, decompressed; for an archive, the content of the single file in it.

    Args:
      file: compressed or not.
      wanted: which names in an archive to consider; the others are skipped.
      what: what it should be, for the error.

    Raises:
      ValueError: a file that is damaged, encrypted or in an unsupported format, or an archive without exactly one
        wanted name.
    """
    with stream(file, wanted, what) as content:
        return content.read()


@contextlib.contextmanager
def stream(file: Path, wanted: Callable[[str], object] = _any, what: str = "file") -> Iterator[BinaryIO]:
    """The content of `read` as a stream: it need not fit into memory."""
    with file.open("rb") as raw:
        bounds = Bounds(file)
        with named(file):
            _check_ending(raw.read(512), str(file))
            raw.seek(0)
            kind = archives.packing(archives.unpacked(raw, file, Bounds(file)).read(512))
            raw.seek(0)
            if kind not in ("zip", "tar"):
                content = archives.unpacked(raw, file, bounds)
            else:
                content = _single(archives.entries(raw, file, bounds), kind, file, wanted, what, bounds)
        with content:
            yield content


def _single(
    entries: archives.Entries, kind: str, file: Path, wanted: Callable[[str], object], what: str, bounds: Bounds
) -> Any:
    """The single wanted file of an archive, opened."""
    names, found = [], []
    for name, opened in entries:
        names.append(name)
        if wanted(name) or wanted(unpacked_name(name)[0]):
            # A tar archive can only be read once, in order.
            found.append((name, opened if kind == "zip" else partial(io.BytesIO, opened().read())))
    if len(found) != 1:
        raise ValueError(f"{file}: expected one {what} in it, found {[name for name, _ in found][:10] or names[:10]}")
    name, opened = found[0]
    return io.BytesIO(unpack(opened().read(), f"{file}: {name}", bounds)) if name.endswith(_COMPRESSED) else opened()


def members(path: Path, wanted: Callable[[str], object]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files in a folder or an archive; names have `/` between their parts.

    A file that is itself compressed (`a.txt.gz`) is decompressed, and named without that suffix.

    Args:
      path: a folder (names are relative to it, and sorted) or an archive (names are in its order).
      wanted: which names, without that suffix, to read.

    Raises:
      ValueError: not an archive, a damaged one, or one beyond the bounds of `damaged`; among the wanted files, one that
        is encrypted, in an unsupported format, present twice, or not a file (a broken link, a link in an archive).
    """
    if path.is_dir():
        yield from _wanted(path, wanted, _in_folder(path), None)
        return
    with path.open("rb") as raw:
        bounds = Bounds(path)
        yield from _wanted(path, wanted, archives.entries(raw, path, bounds), bounds)


def _wanted(path: Path, wanted: Callable[[str], object], entries: archives.Entries, bounds: Bounds | None) -> Any:
    names: dict[str, str] = {}
    for name, opened in entries:
        plain = unpacked_name(name)[0] if name.endswith(_COMPRESSED) else name
        if wanted(plain):
            if plain in names:
                raise ValueError(f"{path}: {plain} occurs twice, as {names[plain]} and as {name}")
            names[plain] = name
            with named(path), opened() as inner:
                content = inner.read()
            yield plain, unpack(content, f"{path}: {name}", bounds)


def unpack(content: bytes, place: str, bounds: Bounds | None = None) -> bytes:
    """Bytes, decompressed if they are gzip, bzip2 or xz.

    Args:
      content: of a file.
      place: the name for errors.
      bounds: of the archive that the file is from; None if it is not from one.

    Raises:
      ValueError: damaged, in an unsupported format, or beyond the bounds (names the place).
    """
    with named(place):
        _check_ending(content[:512], place)
        bounds = bounds or Bounds(place, len(content))
        return archives.unpacked(io.BytesIO(content), place, bounds, part=True).read()


def _check_ending(head: bytes, name: str) -> None:
    """Refuses a file that is named as compressed and is not: if damaged, it could pass as text.

    Exempt is .gz, since browsers decompress such files without renaming them; a first byte of gzip alone is damage.
    """
    suffix = unpacked_name(name)[1]
    if suffix and archives.packing(head) is None and (suffix != ".gz" or head in (b"", b"\x1f")):
        raise ValueError(f"{name}: damaged, or not compressed as its suffix {suffix} suggests: if so, rename it")


def _in_folder(folder: Path) -> archives.Entries:
    for file in _inside(folder, ()):
        name = file.relative_to(folder).as_posix()

        def content(file: Path = file) -> Any:
            if not file.is_file():
                raise ValueError(f"{file}: a broken link, or not a file")
            return file.open("rb")

        if not archives.of_macos(name):
            yield name, content


def _inside(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All files in a folder, sorted, following links to folders."""
    real = folder.resolve()
    if real in above:
        raise ValueError(f"{folder}: a link to a folder that contains it")
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from _inside(entry, (*above, real))
        else:
            yield entry


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, compressed or not (`read`), without a leading byte order mark.

    Raises:
      ValueError: a damaged file, or one that is not UTF-8 (names the file and the line).
    """
    return decode(read(file), str(file))


def decode(content: bytes, place: str) -> str:
    """UTF-8 as text, without a leading byte order mark.

    Raises:
      ValueError: not UTF-8 (names the place, the offset and the line), the byte order mark of another encoding, or a
        compressed file.
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
      ValueError: the byte order mark of UTF-16 or UTF-32, or a compressed file (names the place).
    """
    if kind := archives.packing(content[:512]):
        raise ValueError(f"{place} is not UTF-8 but {kind}, expected text: decompress it")
    for encoding, mark in _OTHER_MARKS:
        if content.startswith(mark):
            raise ValueError(f"{place} is not UTF-8 but {encoding}, by its byte order mark: save it as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)


def parse_json(content: bytes | str, place: str) -> Any:
    """The content of a JSON file, strictly: no duplicate names, no NaN or Infinity, at most 20 levels of nesting.

    Raises:
      ValueError: not JSON, or not UTF-8 (names the place).
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"duplicate name: {next(n for n in names if names.count(n) > 1)!r}")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        text = content if isinstance(content, str) else decode(content, place)
        found = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {error}") from None
    level = [found]
    for _ in range(_DEEPEST):
        inner = (
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        )
        level = [value for values in inner for value in values]
    if level:
        raise ValueError(f"{place}: more than {_DEEPEST} nested lists or objects")
    return found


def arrays(content: bytes, place: str) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name; anything else in it is skipped.

    Unlike in `numpy.load`, a header that claims more data than there is raises before anything is allocated.

    Raises:
      ValueError: not npz, a damaged one, or one of Python objects (names the place and the array).
    """
    found = {}
    bounds = Bounds(place)
    with named(place, "damaged or not npz"), io.BytesIO(content) as raw:
        for name, opened in archives.entries(raw, place, bounds):
            if name.endswith(".npy"):
                found[name.removesuffix(".npy")] = _array(opened().read(), f"{place}: {name}")
    return found


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _array(content: bytes, place: str) -> np.ndarray:
    with named(place), io.BytesIO(content) as raw:
        version = np.lib.format.read_magic(raw)
        if version not in _HEADERS:
            raise ValueError(f"npy of version {version}, expected one of {list(_HEADERS)}")
        shape, fortran, dtype = _HEADERS[version](raw)
        begin = raw.tell()
        if dtype.hasobject:
            raise ValueError(f"an array of Python objects, {dtype}, which is not supported")
        if len(content) - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(content) - begin} bytes, expected {shape} of {dtype} from its header")
        return np.frombuffer(content, dtype, offset=begin).reshape(shape, order="F" if fortran else "C").copy()
