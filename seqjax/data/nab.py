"""The Numenta anomaly benchmark: 58 univariate series, with the windows in which something was wrong.

    corpus = nab.load("NAB")
    for name, series in corpus.items():
        detect(series.values[: nab.probation(len(series.values))])

The windows mark where an alarm is right (Lavin & Ahmad 2015, arXiv 1510.03336); `seqjax.data.nab_score` scores alarms.
"""

import datetime
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.data import fields, files

__all__ = ["Series", "generated", "load", "probation", "read_csv", "row"]

_CSV = re.compile(r"(?:^|/)data/([^/]+/[^/]+\.csv)$")
_LIKE_CSV = re.compile(r"(?:^|/)data/.*\.csv$", re.IGNORECASE)
_LABELS = re.compile(r"(?:^|/)labels/combined_windows\.json$")
_HEADER = "timestamp,value"


class Series(NamedTuple):
    """One stream of the benchmark.

    Attributes:
      times: datetime64[s] [T], as recorded: a few repeat, and one series goes back an hour once (summer time).
      values: float64 [T], each series in its own units.
      windows: int32 [W, 2], the first and last row of each window, inclusive; ascending, not overlapping.
    """

    times: np.ndarray
    values: np.ndarray
    windows: np.ndarray


def probation(rows: int) -> int:
    """The number of rows at the start of a series that a detector may learn from, and whose alarms do not count.

    15 % of the series, at most 750.

    Args:
      rows: of the whole series, T.
    """
    return min(rows * 15 // 100, 750)


def load(path: str | os.PathLike[str]) -> dict[str, Series]:
    """All labelled series by name ("realTweets/Twitter_volume_AAPL.csv"), in order of the names.

    Series without labels are left out, with a warning that counts them.

    Args:
      path: an archive of the repository, or of its folders `data` and `labels`; or the folder that it unpacks to; or a
        folder that contains one of these (`NAB`, `nab`, `NAB*.tar.gz`, `nab*.tar.gz`).

    Raises:
      FileNotFoundError: none of these (lists what is there).
      ValueError: a damaged archive, no labels, labels that are not JSON or name rows that do not exist, a csv that is
        missing, not UTF-8 or not `timestamp,value` (names the file, and the line if there is one), or one in `data`
        that is not data/FOLDER/NAME.csv.
    """
    path = files.find(Path(path).expanduser(), ("labels", "NAB*.tar.gz", "nab*.tar.gz"), ("NAB", "nab"))
    path = path.parent if path.name == "labels" else path
    found, others, labels, top = {}, [], None, ""
    for name, content in files.members(path, lambda name: _LIKE_CSV.search(name) or _LABELS.search(name)):
        if series := _CSV.search(name):
            if series[1] in found:
                raise ValueError(f"{path}: data/{series[1]} occurs twice")
            found[series[1]] = content
        elif _LABELS.search(name):
            if labels is not None:
                raise ValueError(f"{path}: labels/combined_windows.json occurs twice")
            labels, top = content, name.removesuffix("labels/combined_windows.json")
        else:
            others.append(name)
    if labels is None:
        raise ValueError(f"{path}: no labels/combined_windows.json in it")
    if wrong := [name for name in others if name.startswith(f"{top}data/")]:
        raise ValueError(f"{path}: {wrong[0]}, expected names data/FOLDER/NAME.csv")
    windows = _windows(labels, f"{path}: labels/combined_windows.json")
    if absent := sorted(windows.keys() - found.keys()):
        raise ValueError(f"{path}: no data/{absent[0]} in it, which the labels name ({len(absent)} are missing)")
    corpus = {}
    for name in sorted(windows):
        times, values = _parse(found[name], f"{path}: data/{name}")
        corpus[name] = Series(times, values, _rows(windows[name], times, f"{path}: labels of {name}"))
    if more := sorted(found.keys() - windows.keys()):
        warnings.warn(f"{path}: {len(more)} series without labels are left out, data/{more[0]} first", stacklevel=2)
    return corpus


def read_csv(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads one file `timestamp,value`: times datetime64[s] [T] and values float64 [T].

    Raises:
      FileNotFoundError: no such file.
      ValueError: another header, a line that `row` refuses, or no rows (names file and line).
    """
    return _parse(files.read(Path(path)), str(path))


def generated(count: int = 6, rows: int = 1000, seed: int = 0) -> dict[str, Series]:
    """Noisy daily waves, most with a jump, a silence or a burst of noise; for tests and demonstrations.

    Args:
      count: number of series; every fourth has no anomaly.
      rows: of a series, 200 or more.
      seed: of all random draws.
    """
    time, length, corpus = np.arange(rows), rows // 40, {}
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        values = 10 * number + 5 * np.sin(2 * np.pi * time / 48) + rng.normal(0, 0.3, rows)
        begin = int(rng.integers(rows // 3, rows - 2 * length))
        wrong = values[begin : begin + length]
        jump, silence, noise = wrong + 12, np.full(length, 10.0 * number), wrong + rng.normal(0, 4, length)
        wrong[:] = (jump, silence, noise, wrong)[number % 4]
        windows = [] if number % 4 == 3 else [(begin - length, begin + length)]
        name = f"generated{'AB'[number % 2]}/series_{number}.csv"
        times = np.datetime64("2014-01-01T00:00:00", "s") + 1800 * time
        corpus[name] = Series(times, values, np.array(windows, np.int32).reshape(-1, 2))
    return corpus


def row(line: str, place: str) -> tuple[np.datetime64, float]:
    """Time and value of a line `timestamp,value`.

    Args:
      line: without its line end.
      place: the place for errors, such as "a.csv: line 3".

    Raises:
      ValueError: anything else, or a time with a zone or fractional seconds, which `datetime64[s]` cannot hold.
    """
    stamp, _, value = line.partition(",")
    try:
        time, number = datetime.datetime.fromisoformat(stamp), fields.number(value, place)
    except ValueError:
        raise ValueError(f"{place}: {line[:40]!r}, expected a time and a number") from None
    return _seconds(time, place), number


def _seconds(time: datetime.datetime, place: str) -> np.datetime64:
    if time.tzinfo is not None or time.microsecond:
        raise ValueError(f"{place}: {time}, expected a time without a zone, in whole seconds")
    return np.datetime64(time, "s")


def _windows(content: bytes, place: str) -> dict[str, list]:
    windows = files.parse_json(content, place)
    if not isinstance(windows, dict) or not windows:
        raise ValueError(f"{place}: expected an object of series and their windows, got {str(windows)[:40]!r}")
    return windows


def _parse(content: bytes, place: str) -> tuple[np.ndarray, np.ndarray]:
    head, *lines = fields.lines(files.decode(content, place)) or [""]
    if head != _HEADER:
        raise ValueError(f"{place}: line 1: {head[:40]!r}, expected {_HEADER!r}")
    if not lines:
        raise ValueError(f"{place}: no rows")
    times, values = zip(*(row(line, f"{place}: line {i}") for i, line in enumerate(lines, start=2)), strict=True)
    return np.array(times, "datetime64[s]"), np.array(values, np.float64)


def _rows(windows: list, times: np.ndarray, place: str) -> np.ndarray:
    """The windows as rows; for a repeated time, its first row."""
    try:
        stamps = [[_seconds(datetime.datetime.fromisoformat(time), place) for time in pair] for pair in windows]
        rows = [[np.flatnonzero(times == stamp)[0] for stamp in pair] for pair in stamps]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}, expected pairs of times") from None
    except IndexError:
        raise ValueError(f"{place}: a window begins or ends at a time of no row: {windows}") from None
    if any(len(pair) != 2 for pair in rows):
        raise ValueError(f"{place}: {windows}, expected pairs of times")
    found = np.array(rows, np.int32).reshape(-1, 2)
    if (np.diff(found.ravel()) < 0).any() or (found[1:, 0] == found[:-1, 1]).any():
        raise ValueError(f"{place}: windows that overlap or are out of order: {windows}")
    return found
