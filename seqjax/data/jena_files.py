"""The file formats of the Jena weather record: each read as times, values and column names, and checked."""

import datetime
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.data import files
from seqjax.data.damaged import named
from seqjax.data.fields import number

__all__ = ["FILES", "MISSING", "RANGES", "Rows", "find", "read"]

RANGES = {
    "p (mbar)": (850, 1100),
    "T (degC)": (-45, 50),
    "Tpot (K)": (225, 330),
    "Tdew (degC)": (-55, 40),
    "rh (%)": (5, 105),
    "VPmax (mbar)": (0.05, 130),
    "VPact (mbar)": (0.05, 60),
    "VPdef (mbar)": (-1, 120),
    "sh (g/kg)": (0.03, 40),
    "H2OC (mmol/mol)": (0.05, 60),
    "rho (g/m**3)": (1000, 1600),
    "wv (m/s)": (0, 75),
    "max. wv (m/s)": (0, 100),
    "wd (deg)": (0, 360),
    "rain (mm)": (0, 100),
    "raining (s)": (0, 600),
    "SWDR (W/m²)": (-20, 1800),
    "PAR (µmol/m²/s)": (-20, 3500),
    "max. PAR (µmol/m²/s)": (-20, 5000),
    "Tlog (degC)": (-45, 80),
    "CO2 (ppm)": (200, 2000),
}
"""The variables of the station and their possible values: wide enough for any weather, narrow enough to notice most
swapped columns. The first 14 are those of jena_climate_2009_2016.csv."""
COLUMNS = tuple(RANGES)[:14]
"""The columns of the official file, in its order."""
OFFICIAL_BLOB = "3dc17139ed8afe4f693b3b88cbdd6e3a69e2de0c"
"""The git blob id of jena_climate_2009_2016.csv."""

FILES = (
    "jena_climate_2009_2016.csv",
    "jena_climate_2009_2016.csv.zip",
    "mpi_roof*.csv",
    "mpi_roof*.zip",
    "jena_hourly_2009_2016.npz",
    "jena_10min_2020.zip",
    "weather.csv",
)
"""The known files; where a directory holds several, the first of these is read."""

_DATES = {"Date Time": "%d.%m.%Y %H:%M:%S", "date": "%Y-%m-%d %H:%M:%S"}  # both 19 characters wide
_ISO = {"Date Time": [6, 7, 8, 9, 2, 3, 4, 5, 0, 1, *range(10, 19)], "date": list(range(19))}
# Unit signs occur in Latin-1, in UTF-8 and as replacement characters, so names are compared by their ASCII characters.
_NAMES = {name.encode("ascii", "ignore"): name for name in RANGES} | {b"OT": "CO2 (ppm)"}
MISSING = -9990.0
"""A value of at most this is missing; the marks are -9999 and -9999.99."""
_NEVER_ABOVE = {"Tdew (degC)": "T (degC)", "VPact (mbar)": "VPmax (mbar)", "sh (g/kg)": "H2OC (mmol/mol)"}


class Rows(NamedTuple):
    """The rows of one file, in its order."""

    times: np.ndarray  # datetime64[s] [N]
    values: np.ndarray  # float64 [N, D], at most MISSING where a value is missing
    columns: tuple[str, ...]  # names as in RANGES


def blob_id(content: bytes) -> str:
    """The git blob id of this content: sha1 of "blob <size>", a zero byte and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def find(path: Path) -> list[Path]:
    """The files of the record at `path`: the file itself, or the first of FILES in the directory or its folder `jena`.

    Raises:
      FileNotFoundError: no such path, or none of FILES in it.
      ValueError: one part of the record in two files.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or directory")
    for folder in (path, path / "jena"):
        for pattern in FILES:
            if found := files.glob(folder, pattern):
                return _of_the_station(folder) if pattern.startswith("mpi_roof") else found
    there = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
    raise FileNotFoundError(f"{path}: expected one of {', '.join(FILES)}, found {there}")


def _of_the_station(folder: Path) -> list[Path]:
    """The files of the station, each a part of the record."""
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("mpi_roof*")):
        name, packed = files.unpacked_name(file.name)
        stem = name.removesuffix(".csv")
        if not packed and stem == name:
            continue
        if stem in found:
            raise ValueError(f"{folder}: {found[stem].name} and {file.name} are the same part of the record: keep one")
        found[stem] = file
    return list(found.values())


def read(file: Path, columns: Sequence[str] | None = None, blob: str | None = None) -> Rows:
    """One file unchanged, including marks of missing cells; see `jena.load` for the arguments and errors."""
    npz = file.suffix == ".npz"
    content = file.read_bytes() if npz else files.read(file, lambda name: name.endswith(".csv"), "csv")
    if blob is not None and blob_id(content) != blob:
        raise ValueError(f"{file}: git blob id {blob_id(content)}, expected {blob}: another file, or damaged")
    rows = _parse_npz(content, file) if npz else _parse_csv(content, file)
    columns = rows.columns if columns is None else tuple(columns)
    if absent := [name for name in columns if name not in rows.columns]:
        raise ValueError(f"{file}: line 1: no column {absent[0]!r}, found {', '.join(rows.columns)}")
    rows = Rows(rows.times, rows.values[:, [rows.columns.index(name) for name in columns]], columns)
    _check_values(rows, file, *("row", 0) if npz else ("line", 2))
    return rows


def _check_values(rows: Rows, file: Path, unit: str, first: int) -> None:
    """Refuses values that their columns cannot have; errors call row 0 `unit` `first`."""
    _, values, columns = rows
    low, high = np.array([RANGES[name] for name in columns]).T
    # Written such that NaN is wrong, and so is a value far below the marks of missing ones.
    wrong = ~((values >= low) & (values <= high) | (values >= -1e4) & (values <= MISSING))
    if wrong.any():
        row, i = np.argwhere(wrong)[0]
        raise ValueError(
            f"{file}: {unit} {row + first}, column {columns[i]!r}: {values[row, i]:g} is outside"
            f" {low[i]:g} to {high[i]:g}: columns swapped?"
        )
    for lower, upper in _NEVER_ABOVE.items():
        if lower in columns and upper in columns:
            below, roof = values[:, columns.index(lower)], values[:, columns.index(upper)]
            above = (below > roof) & (roof > MISSING)
            if above.mean() > 0.5:  # single rows may be, because of rounding
                raise ValueError(
                    f"{file}: {unit} {np.argmax(above) + first}, column {lower!r} is above {upper!r},"
                    " here and in most rows: columns swapped?"
                )


def _parse_npz(content: bytes, file: Path) -> Rows:
    arrays = files.arrays(content, str(file))
    if missing := {"X", "dates", "cols"} - set(arrays):
        raise ValueError(f"{file}: expected arrays X, dates, cols; missing {sorted(missing)}, found {sorted(arrays)}")
    values, times, columns = arrays["X"], arrays["dates"], tuple(map(str, arrays["cols"].ravel()))
    if times.dtype.kind != "M" or values.dtype.kind != "f" or values.shape != (*times.shape, len(columns)):
        raise ValueError(
            f"{file}: expected X float [N, D], dates datetime64 [N], cols [D]; got X {values.dtype} {values.shape},"
            f" dates {times.dtype} {times.shape}, {len(columns)} cols"
        )
    _check_names(columns, file)
    with named(file):
        seconds = times.astype("datetime64[s]")
        wrong = seconds != times
    if wrong.any():  # including NaT, which does not equal itself
        row = np.argmax(wrong)
        raise ValueError(f"{file}: row {row} of dates: {times[row]}, expected a time in whole seconds")
    return Rows(seconds, values.astype(np.float64), columns)


def _parse_csv(content: bytes, file: Path) -> Rows:
    head, *lines = files.unmarked(content, str(file)).replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    if not lines:
        raise ValueError(f"{file}: line 2: no rows; the file ends after {len(content)} bytes")
    date, *names = [field.strip(b' "') for field in head.split(b",")]
    if date.decode("latin-1") not in _DATES:
        raise ValueError(
            f"{file}: line 1: the first column is {date.decode('latin-1')[:40]!r}, expected one of {list(_DATES)}"
        )
    ascii_names = [bytes(c for c in name if c < 128) for name in names]
    columns = tuple(_NAMES.get(a, name.decode("latin-1")) for a, name in zip(ascii_names, names, strict=True))
    _check_names(columns, file)
    try:
        if any(line.count(b",") != len(columns) or line[19:20] != b"," for line in lines):
            raise ValueError(f"rows are not a date of 19 characters and {len(columns)} numbers")
        times = _parse_dates(lines, date.decode())
        text = io.BytesIO(b"\n".join(lines))
        values = np.loadtxt(text, delimiter=",", usecols=range(1, len(columns) + 1), comments=None, ndmin=2)
    except ValueError as error:
        raise ValueError(_first_wrong(lines, date.decode(), columns, file) or f"{file}: {error}") from None
    return Rows(times, values, columns)


def _parse_dates(lines: list[bytes], date: str) -> np.ndarray:
    """datetime64[s] [N] of the first 19 characters of each line, all at once.

    Not by casting strings in NumPy, which crashes the process when one of more than 500 strings is not a date.
    """
    characters = np.frombuffer(b"".join(line[:19] for line in lines), np.uint8).reshape(len(lines), 19)
    iso = characters[:, _ISO[date]].astype(np.int64)
    thousands, year, month, day, hour, minute, second = (
        10 * (iso[:, i] - ord("0")) + iso[:, i + 1] - ord("0") for i in (0, 2, 5, 8, 11, 14, 17)
    )
    months = (12 * (100 * thousands + year - 1970) + month - 1).astype("datetime64[M]")
    hours = 24 * (day - 1) + hour
    times: np.ndarray = months.astype("datetime64[s]") + (3600 * hours + 60 * minute + second)
    # a valid date prints as it was written
    printed = np.datetime_as_string(times).astype("S19").view(np.uint8).reshape(len(lines), 19)
    printed[:, [4, 7]] = ord("." if date == "Date Time" else "-")
    printed[:, 10] = ord(" ")
    if (printed != iso).any():
        raise ValueError("a field that is not a date")
    return times


def _first_wrong(lines: list[bytes], date: str, columns: tuple[str, ...], file: Path) -> str | None:
    """Where parsing a csv first fails; slow, and only needed for the message."""
    for row, line in enumerate(lines, start=2):
        first, *cells = line.decode("latin-1").split(",")
        place = f"{file}: line {row}"
        if len(cells) != len(columns):
            name = (date, *columns)[min(len(cells), len(columns))]
            cut = ": a truncated file?" if row == len(lines) + 1 else ""
            return f"{place}, column {name!r}: {len(cells) + 1} fields, the header has {len(columns) + 1}{cut}"
        try:
            datetime.datetime.strptime(first.ljust(19), _DATES[date])
        except ValueError:
            return f"{place}, column {date!r}: {first[:40]!r} is not a date of the form {_DATES[date]}"
        for name, field in zip(columns, cells, strict=True):
            try:
                number(field, f"{place}, column {name!r}")
            except ValueError as error:
                return str(error)
    return None


def _check_names(columns: tuple[str, ...], file: Path) -> None:
    for i, name in enumerate(columns):
        if name not in RANGES:
            raise ValueError(f"{file}: line 1: unknown column {name[:40]!r}, expected some of {', '.join(RANGES)}")
        if name in columns[:i]:
            raise ValueError(f"{file}: line 1: column {name!r} occurs twice")
