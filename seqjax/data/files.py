"""The files of a data set: where they are and what they hold, packed or not. Every error names the file.

A file may be packed by gzip, bzip2 or xz, or lie in a zip or tar archive, itself packed or not; what it is, its first
bytes say, for a download need not keep its ending. Files that macOS adds (`__MACOSX/`, `._x`, `.DS_Store`) are no data,
and are passed over everywhere.
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

_OTHER_MARKS = (  # that of UTF-32 begins with that of UTF-16
    ("UTF-32", codecs.BOM_UTF32_LE),
    ("UTF-32", codecs.BOM_UTF32_BE),
    ("UTF-16", codecs.BOM_UTF16_LE),
    ("UTF-16", codecs.BOM_UTF16_BE),
)
_DEEPEST = 20
_COMPRESSED = (".gz", ".bz2", ".xz")
_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar", ".zip", *_COMPRESSED)


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
        if found := sorted(file for file in folder.glob(stem + ending) if not archives.of_macos(file.name)):
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
    """The content of `read`, to be read bit by bit: it need not fit into memory."""
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
    """The one file that is wanted in an archive, opened."""
    names, found = [], []
    for name, opened in entries:
        names.append(name)
        if wanted(name) or wanted(unpacked_name(name)[0]):
            # A tar archive is read once, from its beginning to its end.
            found.append((name, opened if kind == "zip" else partial(io.BytesIO, opened().read())))
    if len(found) != 1:
        raise ValueError(f"{file}: expected one {what} in it, found {[name for name, _ in found][:10] or names[:10]}")
    name, opened = found[0]
    return io.BytesIO(unpack(opened().read(), f"{file}: {name}", bounds)) if name.endswith(_COMPRESSED) else opened()


def members(path: Path, wanted: Callable[[str], object]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files in a folder or an archive; names have `/` between their parts.

    A file that is packed itself (`a.txt.gz`) is unpacked, and has the name without that ending.

    Args:
      path: a folder, in which names are relative to it and sorted, or an archive, in the order of which they come.
      wanted: which names, without such an ending; only those are read.

    Raises:
      ValueError: a damaged archive, or none at all, or one beyond the bounds of `damaged`; of what is wanted, a file
        that is encrypted, or packed in a way that is not read, that stands there twice, or that is no file (a link to
        nothing, a link in an archive).
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
                raise ValueError(f"{path}: {plain} stands there twice, as {names[plain]} and as {name}")
            names[plain] = name
            with named(path), opened() as inner:
                content = inner.read()
            yield plain, unpack(content, f"{path}: {name}", bounds)


def unpack(content: bytes, place: str, bounds: Bounds | None = None) -> bytes:
    """Bytes as they were before gzip, bzip2 or xz packed them, if one did.

    Args:
      content: of a file.
      place: what errors name.
      bounds: of the archive that it came from; default: it came from none.

    Raises:
      ValueError: damaged, packed in a way that is not read, or beyond the bounds (names the place).
    """
    with named(place):
        _check_ending(content[:512], place)
        bounds = bounds or Bounds(place, len(content))
        return archives.unpacked(io.BytesIO(content), place, bounds, part=True).read()


def _check_ending(head: bytes, name: str) -> None:
    """Refuses what should be packed by its name and is not: damaged, it may still look like some text.

    What a browser unpacked keeps the ending .gz; the first byte of gzip alone is text as well.
    """
    suffix = unpacked_name(name)[1]
    if suffix and archives.packing(head) is None and (suffix != ".gz" or head in (b"", b"\x1f")):
        raise ValueError(f"{name}: damaged, or not packed as its ending {suffix} says: then rename it")


def _in_folder(folder: Path) -> archives.Entries:
    for file in _inside(folder, ()):
        name = file.relative_to(folder).as_posix()

        def content(file: Path = file) -> Any:
            if not file.is_file():
                raise ValueError(f"{file}: a link to nothing, or no file")
            return file.open("rb")

        if not archives.of_macos(name):
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
    if kind := archives.packing(content[:512]):
        raise ValueError(f"{place} is not UTF-8 but packed by {kind}, where text was expected: unpack it")
    for encoding, mark in _OTHER_MARKS:
        if content.startswith(mark):
            raise ValueError(f"{place} is not UTF-8: it begins with the mark of {encoding}, save it as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)


def parse_json(content: bytes | str, place: str) -> Any:
    """What a JSON file says, strictly: no name twice in an object, no NaN or Infinity, 20 lists in one another at most.

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
        text = content if isinstance(content, str) else decode(content, place)
        found = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: no JSON: {error}") from None
    level = [found]
    for _ in range(_DEEPEST):
        inner = (
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        )
        level = [value for values in inner for value in values]
    if level:
        raise ValueError(f"{place}: more than {_DEEPEST} lists or objects in one another")
    return found


def arrays(content: bytes, place: str) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by their names; what else is in it is passed over.

    A header that says more than is there is refused before anything is allocated, as `numpy.load` does not.

    Raises:
      ValueError: no npz, a damaged one, or one of Python objects (names the place and the array).
    """
    found = {}
    bounds = Bounds(place)
    with named(place, "damaged or no npz"), io.BytesIO(content) as raw:
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
            raise ValueError(f"an array of Python objects, {dtype}, which are not read")
        if len(content) - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(content) - begin} bytes, its header says {shape} of {dtype}")
        return np.frombuffer(content, dtype, offset=begin).reshape(shape, order="F" if fortran else "C").copy()
