"""The weather record of the Max Planck Institute for Biogeochemistry in Jena, and forecasting its temperature.

`load` reads every form in which the record circulates and reports in one line what it found and changed.
`forecasting` turns it into the task of Chollet, "Deep Learning with Python": the temperature 24 hours ahead.
"""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.data import windows
from seqjax.data.jena_files import COLUMNS, MISSING, OFFICIAL_BLOB, Rows, blob_id, find, read

Array = jax.Array

__all__ = [
    "COLUMNS",
    "OFFICIAL_BLOB",
    "TEMPERATURE",
    "Climate",
    "Forecasting",
    "batch",
    "blob_id",
    "forecasting",
    "last_value",
    "load",
    "synthetic_climate",
]

TEMPERATURE = "T (degC)"
"""The column that is forecast."""

_WIND = ("wv (m/s)", "max. wv (m/s)")


class Climate(NamedTuple):
    """A cleaned record, rows in time order."""

    values: np.ndarray  # float32 [N, D], in the units of the column names
    times: np.ndarray  # datetime64[s] [N], strictly increasing
    columns: tuple[str, ...]
    report: str  # one line: what was read, and what cleaning changed
    source: Path | None  # None: generated

    @property
    def step(self) -> np.timedelta64:
        """The most frequent time between rows; a longer one is a gap."""
        return _most_frequent(np.diff(self.times))


def load(path: str | os.PathLike[str], *, columns: Sequence[str] | None = None, blob: str | None = None) -> Climate:
    """The record in a file or directory, cleaned; the report line lists what cleaning changed.

    Files: `jena_climate_2009_2016.csv` and its zip; the station's own `mpi_roof*.csv` or zips (Latin-1); the 2020 file
    of the forecasting benchmarks (Autoformer and later; its `OT` is CO2), plain or zipped; the hourly npz (X, dates,
    cols). A directory, and then its folder `jena`, is searched for `jena_files.FILES` in that order; several files of
    the station form one record.

    Cleaning: rows are sorted by time; of rows with the same time, the first is kept; cells marked -9999 become 0 in
    the two wind speeds (as in the literature), and elsewhere the last value before them (at the very start, the next
    one). Nothing is interpolated, so no row depends on a later one. Gaps in time are reported and kept.

    Args:
      path: file or directory.
      columns: names to keep, in this order; default: all of the (first) file.
      blob: git blob id that the single file must have (of the csv inside a zip); OFFICIAL_BLOB for the official csv;
        default: not checked.

    Raises:
      FileNotFoundError: no such path, or no known file in the directory (lists what it holds).
      ValueError: a file that breaks the format, naming file, line and column: truncated, text in place of a number, a
        wrong date, unknown or swapped columns (a value that the column cannot have), a wrong blob id.
    """
    path = Path(path)
    files = find(path)
    if blob is not None and len(files) > 1:
        raise ValueError(f"{path}: a blob id identifies one file, found {len(files)}")
    parts: list[Rows] = []
    for file in files:
        parts.append(read(file, columns, blob))
        columns = parts[0].columns
    times, values = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return _clean(times, values, parts[0].columns, files[0] if len(files) == 1 else path)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forecasting:
    """Windows of a record, and the temperature some hours after each.

    A pytree whose integers are static, so that shapes are known when it is passed to a jitted function.
    """

    series: Array  # float32 [N, D], standardized by the training rows
    temperature: Array  # float32 [N], degrees Celsius
    train: Array  # int32 [M], first rows of the training windows
    validation: Array  # int32 [M']
    test: Array  # int32 [M'']
    scale: windows.Standardizer  # of the columns
    history: int = dataclasses.field(metadata={"static": True})  # rows of a window
    stride: int = dataclasses.field(metadata={"static": True})  # rows of the series between rows of a window
    target: int = dataclasses.field(metadata={"static": True})  # rows from the first of a window to its target
    columns: tuple[str, ...] = dataclasses.field(metadata={"static": True})


def forecasting(
    climate: Climate, *, history: int = 120, horizon: int = 24, hours: int = 1, skip_gaps: bool = False
) -> Forecasting:
    """The task: from `history` rows of all variables, the temperature `horizon` hours after the last of them.

    The record is split in time, 50/25/25 %, and no window or target leaves its part.

    Args:
      climate: a record with a column "T (degC)".
      history: rows of a window.
      horizon: hours from the last row of a window to its target.
      hours: hours between the rows of a window.
      skip_gaps: drop windows that span a gap of the record; by default they are kept, as in the literature, and time
        jumps within them.

    Raises:
      ValueError: no temperature column, `hours` or `horizon` not a whole number of rows, or a part without windows.
    """
    if TEMPERATURE not in climate.columns:
        raise ValueError(f"the record has no column {TEMPERATURE!r}, only {', '.join(climate.columns)}")
    if history < 1:
        raise ValueError(f"history must be at least 1 row, got {history}")
    stride = _rows("hours", hours, climate.step)
    target = stride * (history - 1) + _rows("horizon", horizon, climate.step)
    count = len(climate.values)
    borders = (0, count // 2, count // 2 + count // 4, count)
    jumps = np.concatenate([[0], np.cumsum(np.diff(climate.times) != climate.step)])
    parts = {}
    for name, (first, stop) in zip(("train", "validation", "test"), itertools.pairwise(borders), strict=True):
        starts = np.arange(first, stop - target, dtype=np.int32)
        if skip_gaps:
            starts = starts[jumps[starts + target] == jumps[starts]]
        if not len(starts):
            raise ValueError(
                f"no {name} window: this part has {stop - first} rows, a window and its target need {target + 1}"
                + (", without a gap" if skip_gaps else "")
            )
        parts[name] = jnp.asarray(starts)
    scale = windows.Standardizer.fit(climate.values[: borders[1]], climate.columns)
    return Forecasting(
        series=scale.apply(climate.values),
        temperature=jnp.asarray(climate.values[:, climate.columns.index(TEMPERATURE)]),
        scale=scale,
        history=history,
        stride=stride,
        target=target,
        columns=climate.columns,
        **parts,
    )


def batch(task: Forecasting, starts: Array) -> tuple[Array, Array]:
    """Windows that start at the rows `starts`, int32 [B], and their targets; jittable with the task as an argument.

    Returns:
      xs float32 [T, B, D], standardized, T = task.history; y float32 [B], degrees Celsius.
    """
    xs = windows.gather(task.series, starts, task.history, task.stride)
    return xs, windows.gather(task.temperature, starts + task.target, 1)[0]


def last_value(task: Forecasting, starts: Array) -> Array:
    """The naive forecast for the windows that start at `starts` [B]: their last temperature, float32 [B], degrees."""
    return windows.gather(task.temperature, starts + task.stride * (task.history - 1), 1)[0]


def synthetic_climate(key: Array, rows: int, minutes: int = 60) -> Climate:
    """A generated record with the 14 official columns: seasons, days, and weather as a first-order autoregression.

    The moist-air columns follow from temperature, pressure and relative humidity as at the station (Magnus formula),
    all rounded to hundredths as in the files. Not real data; for tests and demonstrations.

    Args:
      key: PRNG key.
      rows: number of rows N >= 2.
      minutes: time between rows.

    Raises:
      ValueError: for fewer than 2 rows, or less than a minute.
    """
    if rows < 2 or minutes < 1:
        raise ValueError(f"a record needs at least 2 rows, 1 minute apart, got {rows} rows and {minutes} minutes")
    hours = jnp.array([60, 72, 10, 6, 30], jnp.float32)  # memory of temperature, pressure, humidity, speed, direction
    decay = jnp.exp(-minutes / 60 / hours)

    def weather(state: Array, draw: Array) -> tuple[Array, Array]:
        state = decay * state + jnp.sqrt(1 - decay**2) * draw
        return state, state

    first_key, key = jax.random.split(key)
    draws = jax.random.normal(key, (rows, len(hours)), jnp.float32)
    _, noise = jax.lax.scan(weather, jax.random.normal(first_key, (len(hours),), jnp.float32), draws)
    warm, high, wet, windy, turn = np.asarray(noise, np.float64).T  # each of variance 1
    elapsed = np.arange(rows) * minutes / 60  # hours
    summer = -np.cos(2 * np.pi * (elapsed / 8766 - 0.05))
    noon = -np.cos(2 * np.pi * (elapsed / 24 - 0.1))

    T = 9.5 + 9 * summer + (2.5 + 2 * summer) * noon + 4 * warm
    p = 989 + 8 * high
    rh = np.clip(75 - 8 * summer - (7 + 5 * summer) * noon + 11 * wet, 15, 100)
    saturated = 6.1078 * np.exp(17.08085 * T / (234.175 + T))
    vapour = rh / 100 * saturated
    log_vapour = np.log(vapour / 6.1078)
    sh = 622 * vapour / (p - 0.378 * vapour)
    wv = 1.8 * np.exp(0.6 * windy)
    values = np.stack(
        [
            p,
            T,
            (T + 273.15) * (1000 / p) ** 0.286,
            234.175 * log_vapour / (17.08085 - log_vapour),
            rh,
            saturated,
            vapour,
            saturated - vapour,
            sh,
            1000 * vapour / p,
            1e5 * p / (287.058 * (T + 273.15) * (1 + 6.08e-4 * sh)),
            wv,
            1.7 * wv,
            (200 + 90 * turn) % 360,
        ],
        axis=1,
    )
    times = np.datetime64("2009-01-01T00:10:00", "s") + np.arange(rows) * np.timedelta64(60 * minutes, "s")
    return _clean(times, values.round(2), COLUMNS, None)


def _rows(name: str, hours: int, step: np.timedelta64) -> int:
    rows = hours * 3600 / step.astype(int)
    if rows < 1 or rows != int(rows):
        raise ValueError(
            f"{name} = {hours} h is not a whole number of rows, which are {step.astype(int) / 60:g} min apart"
        )
    return int(rows)


def _clean(times: np.ndarray, values: np.ndarray, columns: tuple[str, ...], source: Path | None) -> Climate:
    """The record sorted, without repetitions and missing cells; see `load`."""
    unsorted = np.sum(np.diff(times) < np.timedelta64(0, "s"))
    by_time = np.argsort(times, kind="stable")
    times, values = times[by_time], values[by_time]
    new = np.concatenate([[True], times[1:] != times[:-1]])
    times, values = times[new], values[new]
    if len(times) < 2:
        raise ValueError(f"{source}: a record needs at least 2 rows at different times, got {len(times)}")

    missing = values <= MISSING
    for i, name in enumerate(columns):
        if name in _WIND:
            values[missing[:, i], i] = 0
        elif missing[:, i].all():
            raise ValueError(f"{source}: column {name!r} has no values, only marks of missing ones")
        else:
            known = np.where(missing[:, i], -1, np.arange(len(values)))
            last_known = np.maximum(np.maximum.accumulate(known), np.argmin(missing[:, i]))
            values[:, i] = values[last_known, i]

    steps = np.diff(times)
    gaps = steps[steps > _most_frequent(steps)]
    minutes = _most_frequent(steps).astype(int) / 60
    span = " to ".join(str(t.astype("datetime64[m]")).replace("T", " ") for t in (times[0], times[-1]))
    longest = f" (longest {gaps.max().astype(int) / 3600:.1f} h)" if len(gaps) else ""
    wind = int(missing[:, [name in _WIND for name in columns]].sum())
    fills = f" ({wind} of wind set to 0, {missing.sum() - wind} to the last value)" if missing.any() else ""
    report = (
        f"jena ({source.name if source else 'generated'}): {values.shape[0]} rows x {values.shape[1]} columns, {span},"
        f" every {minutes:g} min; {np.sum(~new)} repeated, {unsorted} unsorted,"
        f" {missing.sum()} missing cells{fills}, {len(gaps)} gap{'s' * (len(gaps) != 1)}{longest}"
    )
    return Climate(values.astype(np.float32), times, columns, report, source)


def _most_frequent(steps: np.ndarray) -> np.timedelta64:
    lengths, counts = np.unique(steps, return_counts=True)
    return lengths[np.argmax(counts)]
