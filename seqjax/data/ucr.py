"""Labelled series of the UCR and UEA archives (Dau et al. 2018, arXiv 1810.07758; Bagnall et al. 2018, 1811.00075).

parts = ucr.load("data", "JapaneseVowels")
train, validation = ucr.split(parts["train"])
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.data import files

__all__ = ["Series", "generated", "load", "normalize", "pack", "parse", "split"]

_FOLDERS = (".", "ucr", "ucr_uea", "ucr/ucr_uea")
_ARCHIVES = ("Univariate_ts.zip", "Multivariate_ts.zip", "ucr_uea_ts.tar.gz")
_SUFFIXES = (".ts", ".txt", ".tsv")


class Series(NamedTuple):
    """Series of D variables, each with a class.

    Attributes:
      values: float32 [N, T, D], 0 after the end of a series.
      lengths: int32 [N], from 1 to T.
      labels: int32 [N], index into `classes`.
      classes: names, numbers in their order, others alphabetical.
    """

    values: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def take(self, indices: np.ndarray) -> "Series":
        """The series of these indices; T stays."""
        return Series(self.values[indices], self.lengths[indices], self.labels[indices], self.classes)


def load(path: str | os.PathLike[str], name: str) -> dict[str, Series]:
    """The official parts of a problem, "train" and "test", padded to one T.

    A series ends at its last value. Values that are missing before it are interpolated linearly, as Dau et al. (2018)
    do before they compare series.

    Args:
      path: a folder with NAME_TRAIN and NAME_TEST (`.ts`, or `.txt` and `.tsv` with the class in the first column), or
        with NAME.zip, Univariate_ts.zip or Multivariate_ts.zip as the archive publishes them; or one that holds such a
        folder as NAME, `ucr` or `ucr_uea`; or an archive (zip, tar.gz).
      name: of the problem, "GunPoint".

    Raises:
      FileNotFoundError: no such files (says where it looked).
      ValueError: a damaged archive, or a file that breaks the format (names the file and the line).
    """
    path = Path(path).expanduser()
    parts = {part: parse(*_read(path, f"{name}_{part.upper()}")) for part in ("train", "test")}
    return dict(zip(parts, pack(list(parts.values())), strict=True))


def pack(parts: Sequence[Sequence[tuple[np.ndarray, str]]]) -> list[Series]:
    """Series of unequal lengths as arrays, with the same T and the same classes in every part.

    Args:
      parts: for each part its series: values [steps, D] and the name of the class.
    """
    names = {label for part in parts for _, label in part}
    try:
        classes = tuple(sorted(names, key=float))
    except ValueError:
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
    """Each variable of each series to mean 0 and standard deviation 1 over its own steps; constant ones to 0."""
    real = np.arange(series.values.shape[1]) < series.lengths[:, None]
    real, count = real[..., None], series.lengths[:, None, None]
    values = series.values.astype(np.float64)
    centered = np.where(real, values - values.sum(1, keepdims=True) / count, 0)
    std = np.sqrt(np.square(centered).sum(1, keepdims=True) / count)
    scale = np.abs(values).max(1, keepdims=True)
    # A constant variable has a deviation of rounding alone.
    normal = np.divide(centered, std, out=np.zeros_like(centered), where=std > 1e-7 * scale)
    return series._replace(values=normal.astype(np.float32))


def split(series: Series, fraction: float = 0.2, seed: int = 0) -> tuple[Series, Series]:
    """Training and validation part: of each class `fraction` in the second, and at least one series in each part.

    Args:
      series: the training series.
      fraction: in (0, 1).
      seed: of the choice.

    Raises:
      ValueError: a fraction outside of (0, 1), or a class with a single series.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
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
      seed: of everything drawn.
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
      source: the name of the file; it ends in `.ts`, or else every line is a class and the values of one series.
      content: of the file.

    Raises:
      ValueError: what breaks the format (names the source and the line).
    """
    lines = files.decode(content, source).splitlines()
    rows = list(_ts(source, lines) if source.endswith(".ts") else _columns(source, lines))
    if not rows:
        raise ValueError(f"{source}: no series in it")
    return rows


def _columns(source: str, lines: Sequence[str]) -> Iterator[tuple[np.ndarray, str]]:
    width = None
    for number, line in enumerate(lines, 1):
        fields = line.replace(",", " ").split()
        if not fields:
            continue
        if len(fields) != (width := width or len(fields)):
            raise ValueError(f"{source} line {number}: {len(fields)} columns, expected {width}")
        label, *values = _numbers(source, number, fields)
        if not np.isfinite(label):
            raise ValueError(f"{source} line {number}: class {fields[0]!r}, expected a number")
        yield _filled(source, number, np.array([values]).T), f"{label:g}"


def _ts(source: str, lines: Sequence[str]) -> Iterator[tuple[np.ndarray, str]]:
    header, start = _header(source, lines)
    kind, *classes = header.get("classlabel", "false").split()
    if kind.lower() != "true":
        raise ValueError(f"{source}: @classLabel is {kind}, expected true and the classes")
    if header.get("timestamps", "false").lower() == "true":
        raise ValueError(f"{source}: @timeStamps is true; series with a time for each value are not read")
    dimensions = 1 if header.get("univariate", "false").lower() == "true" else int(header.get("dimensions", 0))
    length = int(header.get("serieslength", 0)) if header.get("equallength", "false").lower() == "true" else 0
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip():
            continue
        *variables, label = line.strip().split(":")
        if label not in classes:
            raise ValueError(f"{source} line {number}: class {label!r}, expected one of {', '.join(classes)}")
        dimensions = dimensions or len(variables)
        if len(variables) != dimensions:
            raise ValueError(f"{source} line {number}: {len(variables)} variables, expected {dimensions}")
        columns = [_numbers(source, number, variable.split(",")) for variable in variables]
        lengths = {len(column) for column in columns}
        if len(lengths) > 1 or (length and lengths != {length}):
            wanted = f"{length} of each" if length else "as many of each"
            found = " and ".join(map(str, sorted(lengths)))
            raise ValueError(f"{source} line {number}: variables of {found} values, expected {wanted}")
        yield _filled(source, number, np.array(columns).T), label


def _header(source: str, lines: Sequence[str]) -> tuple[dict[str, str], int]:
    """The fields before @data, their names in lower case, and the number of the line after it."""
    header = {}
    for number, line in enumerate(lines):
        if line.lower().startswith("@data"):
            return header, number + 1
        if line.startswith("@"):
            key, _, value = line[1:].strip().partition(" ")
            header[key.lower()] = value.strip()
    raise ValueError(f"{source}: no line @data, so it is no complete .ts file")


def _numbers(source: str, number: int, fields: Sequence[str]) -> list[float]:
    try:
        return [np.nan if field.strip() == "?" else float(field) for field in fields]
    except ValueError as error:
        raise ValueError(f"{source} line {number}: {error}") from None


def _filled(source: str, number: int, values: np.ndarray) -> np.ndarray:
    """Values [steps, D] up to the last that is there, with those that are missing interpolated."""
    there = np.isfinite(values)
    if not there.any(0).all():
        variable = int(np.argmin(there.any(0)))
        raise ValueError(f"{source} line {number}: variable {variable} has no value")
    steps = np.flatnonzero(there.any(1))[-1] + 1
    place = np.arange(steps)
    columns = zip(values[:steps].T, there[:steps].T, strict=True)
    return np.stack([np.interp(place, place[known], column[known]) for column, known in columns], 1)


def _read(path: Path, stem: str) -> tuple[str, bytes]:
    """Name and content of the first file STEM.ts, .txt or .tsv that is found."""
    if path.is_file():
        candidates = [path]
    else:
        name = stem.rpartition("_")[0]
        folders = [path / inner / own for inner in _FOLDERS for own in ("", name)]
        series = [folder / f"{stem}{suffix}" for folder in folders for suffix in _SUFFIXES]
        archives = [folder / archive for folder in folders for archive in (f"{name}.zip", *_ARCHIVES)]
        candidates = [file for file in (*series, *archives) if file.is_file()]
    for candidate in candidates:
        if candidate.suffix in _SUFFIXES and candidate.stem == stem:
            return str(candidate), candidate.read_bytes()
        found = _member(candidate, stem)
        if found is not None:
            return found
    where = path if path.is_file() else f"{path}, nor in {', '.join(_FOLDERS[1:])} or an archive there"
    raise FileNotFoundError(f"no {stem}{' or '.join(_SUFFIXES)} in {where}")


def _member(archive: Path, stem: str) -> tuple[str, bytes] | None:
    """The file of an archive with this name."""
    found = {}
    for name, content in files.members(archive, lambda name: Path(name).stem == stem and name.endswith(_SUFFIXES)):
        found[Path(name).suffix] = f"{archive}: {name}", content
    return next((found[suffix] for suffix in _SUFFIXES if suffix in found), None)
