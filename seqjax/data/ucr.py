"""Labelled series of the UCR and UEA archives (Dau et al. 2018, arXiv 1810.07758; Bagnall et al. 2018, 1811.00075).

parts = ucr.load("data", "JapaneseVowels")
train, validation = ucr.split(parts["train"])
"""

import os
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.data import fields, files, windows
from seqjax.data.damaged import named

__all__ = ["Series", "generated", "load", "normalize", "pack", "parse", "split"]

_FOLDERS = (".", "ucr", "ucr_uea", "ucr/ucr_uea")
_ARCHIVES = ("Univariate_ts.zip", "Multivariate_ts.zip", "ucr_uea_ts.tar.gz")
_SUFFIXES = (".ts", ".txt", ".tsv")
_DELIMITER = re.compile(r" *[,\t] *| +")
_MISSING = ("?", "nan")


class Series(NamedTuple):
    """Series of D variables, each with a class.

    Attributes:
      values: float32 [N, T, D], 0 after the end of a series.
      lengths: int32 [N], from 1 to T.
      labels: int32 [N], index into `classes`.
      classes: names, in numerical order if they are numbers, else alphabetical.
    """

    values: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def take(self, indices: np.ndarray) -> "Series":
        """The series at these indices, with the same T."""
        return Series(self.values[indices], self.lengths[indices], self.labels[indices], self.classes)


def load(path: str | os.PathLike[str], name: str) -> dict[str, Series]:
    """The official parts of a problem, "train" and "test", padded to one T.

    A series ends at its last value. Missing values before that, marked `?` or `NaN` in the files, are interpolated
    linearly, as Dau et al. (2018) do before comparing series. An empty cell is an error.

    Args:
      path: a folder with NAME_TRAIN and NAME_TEST (`.ts`, or `.txt` and `.tsv` with the class in the first column), or
        with NAME.zip, Univariate_ts.zip or Multivariate_ts.zip as the archive publishes them, all compressed or not; or
        one that contains such a folder as NAME, `ucr` or `ucr_uea`; or an archive.
      name: of the problem, such as "GunPoint".

    Raises:
      FileNotFoundError: no such files (lists where it looked).
      ValueError: a damaged archive, or a file that breaks the format (names the file and the line).
    """
    path = Path(path).expanduser()
    parts = {part: parse(*_read(path, f"{name}_{part.upper()}")) for part in ("train", "test")}
    with named(path):
        return dict(zip(parts, pack(list(parts.values())), strict=True))


def pack(parts: Sequence[Sequence[tuple[np.ndarray, str]]]) -> list[Series]:
    """Series of unequal lengths as arrays, with the same T and the same classes in every part.

    Args:
      parts: the series of each part: values [steps, D] and the name of the class.

    Raises:
      ValueError: series with different D.
    """
    if len(variables := {values.shape[1] for part in parts for values, _ in part}) > 1:
        raise ValueError(f"series of {' and '.join(map(str, sorted(variables)))} variables, expected the same for all")
    names = {label for part in parts for _, label in part}
    try:
        fields.numbers(list(names), "classes")
        classes = tuple(sorted(names, key=lambda name: (Decimal(name), name)))
    except (ValueError, ArithmeticError):  # not numbers, or an exponent out of range
        classes = tuple(sorted(names))
    longest = max(len(values) for part in parts for values, _ in part)
    packed = []
    for part in parts:
        values = np.zeros((len(part), longest, part[0][0].shape[1]), np.float32)
        for row, (series, _) in zip(values, part, strict=True):
            row[: len(series)] = series
        lengths = np.array([len(series) for series, _ in part], np.int32)
        packed.append(Series(values, lengths, np.array([classes.index(label) for _, label in part], np.int32), classes))
    return packed


def normalize(series: Series) -> Series:
    """Scales each variable of each series to mean 0 and standard deviation 1 over its own steps; constant ones to 0.

    Mean and deviation are those of `windows.moments`, so a variable that varies only by rounding is constant.
    """
    real = (np.arange(series.values.shape[1]) < series.lengths[:, None])[..., None]
    mean, std = (row[:, None] for row in windows.moments(series.values, 1, where=real))
    centered = np.where(real, series.values.astype(np.float64) - mean, 0)
    normal = np.divide(centered, std, out=np.zeros_like(centered), where=std > 0)
    return series._replace(values=normal.astype(np.float32))


def split(series: Series, fraction: float = 0.2, seed: int = 0) -> tuple[Series, Series]:
    """Training and validation part: `fraction` of each class is for validation, with at least one series in each part.

    Args:
      series: the training series.
      fraction: in (0, 1).
      seed: of the choice.

    Raises:
      ValueError: a fraction outside (0, 1), or a class with a single series.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(series.labels), bool)
    for label, name in enumerate(series.classes):
        members = np.flatnonzero(series.labels == label)
        if len(members) < 2:
            raise ValueError(f"class {name!r} has {len(members)} series, expected at least 2, one for each part")
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held_out[rng.permutation(members)[:count]] = True
    return series.take(np.flatnonzero(~held_out)), series.take(np.flatnonzero(held_out))


def generated(count: int, seed: int = 0) -> Series:
    """Waves of one, two or three periods, of 20 to 30 steps and 2 variables, for tests and demonstrations.

    Args:
      count: number of series, at least 1.
      seed: of all random draws.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        steps, periods = rng.integers(20, 31), i % 3 + 1
        angle = 2 * np.pi * (periods * np.arange(steps) / steps + rng.random())
        waves = np.stack([np.sin(angle), np.cos(angle)], 1) * rng.uniform(0.5, 2)
        rows.append((waves + rng.normal(0, 0.3, waves.shape), f"{periods}"))
    packed = pack([rows])[0]
    values = np.zeros((count, 30, 2), np.float32)
    values[:, : packed.values.shape[1]] = packed.values
    return packed._replace(values=values)


def parse(source: str, content: bytes) -> list[tuple[np.ndarray, str]]:
    """The series of one file: values float64 [steps, D] and the name of the class.

    Args:
      source: the name of the file; if it does not end in `.ts`, compressed or not, every line is a class and the values
        of one series.
      content: of the file.

    Raises:
      ValueError: content that breaks the format (names the source and the line).
    """
    lines = fields.lines(files.decode(content, source))
    rows = list(_ts(source, lines) if files.unpacked_name(source)[0].endswith(".ts") else _columns(source, lines))
    if not rows:
        raise ValueError(f"{source}: contains no series")
    return rows


def _columns(source: str, lines: Sequence[str]) -> Iterator[tuple[np.ndarray, str]]:
    width = None
    for number, line in enumerate(lines, 1):
        place, cells = f"{source} line {number}", _DELIMITER.split(line.strip(" "))
        if cells == [""]:
            continue
        if len(cells) != (width := width or len(cells)):
            raise ValueError(f"{place}: {len(cells)} columns, expected {width}")
        yield _filled(place, [_values(place, cells[1:])]), _class(f"{place}, class", cells[0])


def _class(place: str, cell: str) -> str:
    """The name of a numeric class: the same for 1, 1.0 and 1.0000000e+00, and never the same for two numbers."""
    value = fields.number(cell, place)
    try:
        exact = Decimal(cell.strip(" \t"))
    except ArithmeticError:
        raise ValueError(f"{place}: {cell[:40]} has an exponent out of range") from None
    if exact == 0:
        return "0"
    if not value:
        raise ValueError(f"{place}: {cell[:40]} is too small for float64")
    digits = f"{exact:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _ts(source: str, lines: Sequence[str]) -> Iterator[tuple[np.ndarray, str]]:
    header, start = _header(source, lines)

    def field(key: str, default: str) -> tuple[str, str]:
        """The value of a key in the header, and its place for errors."""
        number, value = header.get(key.lower(), (0, default))
        return value, f"{source} line {number}: {key}" if number else f"{source}: {key}"

    def truth(key: str) -> bool:
        value, place = field(key, "false")
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{place} is {value[:40]!r}, expected true or false")
        return value.lower() == "true"

    def count(key: str) -> int:
        value, place = field(key, "0")
        if not re.fullmatch("[0-9]{1,9}", value):
            raise ValueError(f"{place} is {value[:40]!r}, expected a number of steps or variables")
        return int(value)

    value, place = field("@classLabel", "false")
    kind, *classes = value.split() or [""]
    if kind.lower() != "true" or not classes:
        raise ValueError(f"{place} is {value[:40]!r}, expected true and the classes")
    if truth("@timeStamps"):
        raise ValueError(f"{field('@timeStamps', '')[1]} is true: series with time stamps are not supported")
    dimensions, length = count("@dimensions"), count("@seriesLength")
    if truth("@univariate"):
        dimensions = 1
    if not truth("@equalLength"):
        length = 0
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip():
            continue
        place, (*variables, label) = f"{source} line {number}", line.strip().split(":")
        if label not in classes:
            raise ValueError(f"{place}: class {label[:40]!r}, expected one of {', '.join(classes)[:400]}")
        dimensions = dimensions or len(variables)
        if len(variables) != dimensions or not variables:
            raise ValueError(f"{place}: {len(variables)} variables, expected {dimensions or 'at least 1'}")
        columns = [_values(place, variable.split(",")) for variable in variables]
        lengths = {len(column) for column in columns}
        if len(lengths) > 1 or (length and lengths != {length}):
            wanted = f"{length} of each" if length else "the same number of each"
            found = " and ".join(map(str, sorted(lengths)))
            raise ValueError(f"{place}: variables of {found} values, expected {wanted}")
        yield _filled(place, columns), label


def _header(source: str, lines: Sequence[str]) -> tuple[dict[str, tuple[int, str]], int]:
    """The fields before @data, by name in lower case: line and value; and the number of the line @data."""
    header: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines, 1):
        key, *value = line.split(maxsplit=1) or [""]
        if key.lower() == "@data":
            return header, number
        if key.lower() in header:
            raise ValueError(f"{source} line {number}: {key} is also in line {header[key.lower()][0]}")
        if key.startswith("@"):
            header[key.lower()] = number, value[0].strip() if value else ""
        elif key and not key.startswith("#"):
            raise ValueError(f"{source} line {number}: {line[:40]!r} before @data, expected @NAME VALUE or # COMMENT")
    raise ValueError(f"{source}: no line @data: not a complete .ts file")


def _values(place: str, cells: Sequence[str]) -> list[float]:
    """The numbers in cells, NaN where marked as missing."""
    missing = [cell.strip().lower() in _MISSING for cell in cells]
    numbers = fields.numbers(["0" if mark else cell for mark, cell in zip(missing, cells, strict=True)], place)
    return [np.nan if mark else value for mark, value in zip(missing, numbers, strict=True)]


def _filled(place: str, columns: Sequence[Sequence[float]]) -> np.ndarray:
    """Values [steps, D] of D columns, up to the last value present, with missing ones interpolated."""
    values = np.array(columns, np.float64).T
    there = ~np.isnan(values)
    if not there.any(0).all():
        variable = int(np.argmin(there.any(0)))
        raise ValueError(f"{place}: variable {variable} has no value")
    steps = np.flatnonzero(there.any(1))[-1] + 1
    time = np.arange(steps)
    pairs = zip(values[:steps].T, there[:steps].T, strict=True)
    filled = np.stack([np.interp(time, time[known], column[known]) for column, known in pairs], 1)
    if (np.abs(filled) > np.finfo(np.float32).max).any():
        raise ValueError(f"{place}: {np.abs(filled).max():g} is too large for float32")
    return filled


def _read(path: Path, stem: str) -> tuple[str, bytes]:
    """Name and content of the first file STEM.ts, .txt or .tsv found."""
    if path.is_file():
        candidates = [path]
    else:
        name = stem.rpartition("_")[0]
        folders = [path / inner / own for inner in _FOLDERS for own in ("", name)]
        names = (*(f"{stem}{suffix}{gz}" for suffix in _SUFFIXES for gz in ("", ".gz")), f"{name}.zip", *_ARCHIVES)
        series, archives = names[:-4], names[-4:]
        there = [(folder, name) for kind in (series, archives) for folder in folders for name in kind]
        candidates = [file for folder, name in there for file in files.glob(folder, name) if file.is_file()]
    for candidate in candidates:
        plain = Path(files.unpacked_name(candidate.name)[0])
        if plain.suffix in _SUFFIXES and plain.stem == stem:
            return str(candidate), files.read(candidate)
        found = _member(candidate, stem)
        if found is not None:
            return found
    where = path if path.is_file() else f"{path}, nor in {', '.join(_FOLDERS[1:])} or an archive there"
    raise FileNotFoundError(f"no {stem}{' or '.join(_SUFFIXES)} in {where}")


def _member(archive: Path, stem: str) -> tuple[str, bytes] | None:
    """The file with this name in an archive, or None."""
    found: dict[str, tuple[str, bytes]] = {}
    for name, content in files.members(archive, lambda name: Path(name).stem == stem and name.endswith(_SUFFIXES)):
        suffix = Path(name).suffix
        if suffix in found:
            raise ValueError(f"{found[suffix][0]} and {name}: expected one {stem}{suffix}")
        found[suffix] = f"{archive}: {name}", content
    return next((found[suffix] for suffix in _SUFFIXES if suffix in found), None)
