"""Jena: every dialect of the file reads to the same record, damage is named by file, line and column."""

import io
import subprocess
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.data import jena

EXTRA = {"SWDR (W/m²)": 120.5, "PAR (µmol/m²/s)": 240.25, "CO2 (ppm)": 410.0}  # columns with unit signs


@pytest.fixture(scope="module")
def record():
    return jena.synthetic_climate(jax.random.key(0), 600, minutes=10)


def csv(record, dialect="official", newline="\n"):
    """The record as text: "official" and "station" have `Date Time` and quotes, "benchmark" has ISO dates."""
    form = "%Y-%m-%d %H:%M:%S" if dialect == "benchmark" else "%d.%m.%Y %H:%M:%S"
    names = ["date" if dialect == "benchmark" else "Date Time", *record.columns]
    if dialect == "benchmark":
        names = ["OT" if n == "CO2 (ppm)" else n.encode("ascii", "replace").decode() for n in names]
        names = [n.replace("?", "\N{REPLACEMENT CHARACTER}") for n in names]
    else:
        names = [f'"{n}"' for n in names]
    rows = [
        ",".join([time.astype(object).strftime(form), *(f"{v:.2f}" for v in row)])
        for time, row in zip(record.times, record.values, strict=True)
    ]
    return newline.join([",".join(names), *rows]) + newline


def with_extra(record):
    extra = np.tile(np.float32(list(EXTRA.values())), (len(record.values), 1))
    return record._replace(values=np.hstack([record.values, extra]), columns=(*record.columns, *EXTRA))


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def edit(text, line, column, field):
    """The csv with one field replaced; lines count from 1, column 0 is the date."""
    lines = text.split("\n")
    fields = lines[line - 1].split(",")
    fields[column] = field
    lines[line - 1] = ",".join(fields)
    return "\n".join(lines)


def assert_same(found, expected):
    assert found.columns == expected.columns
    assert found.values.dtype == np.float32
    assert found.times.dtype == "datetime64[s]"
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.times, expected.times)


# Dialects


def test_official_csv_zip_and_directory_read_to_the_same_record(record, tmp_path):
    text = csv(record)
    plain = write(tmp_path / "jena_climate_2009_2016.csv", text)
    assert_same(jena.load(plain), record)
    assert_same(jena.load(tmp_path), record)
    assert_same(jena.load(write(tmp_path / "unfinished.csv", text.rstrip("\n"))), record)
    plain.unlink()
    with zipfile.ZipFile(tmp_path / "jena_climate_2009_2016.csv.zip", "w") as archive:
        archive.writestr("jena_climate_2009_2016.csv", text)
        archive.writestr("__MACOSX/._jena_climate_2009_2016.csv", "resource fork")
    found = jena.load(tmp_path)
    assert_same(found, record)
    assert found.source == tmp_path / "jena_climate_2009_2016.csv.zip"
    (tmp_path / "data" / "jena").mkdir(parents=True)
    moved = found.source.rename(tmp_path / "data" / "jena" / found.source.name)
    assert jena.load(tmp_path / "data").source == moved


def test_benchmark_file_reads_with_its_own_dates_and_names(record, tmp_path):
    record = with_extra(record)
    text = csv(record, "benchmark", newline="\r\n")
    assert_same(jena.load(write(tmp_path / "weather.csv", text)), record)
    with zipfile.ZipFile(tmp_path / "jena_10min_2020.zip", "w") as archive:
        archive.mkdir("weather")
        archive.writestr("weather/weather.csv", text)
    assert_same(jena.load(tmp_path / "jena_10min_2020.zip"), record)


def test_station_files_are_latin_1_and_one_record(record, tmp_path):
    record = with_extra(record)
    halves = [record._replace(values=record.values[a], times=record.times[a]) for a in (slice(300), slice(300, None))]
    text = csv(halves[1], "station").replace(",", ", ", 1)  # the station is not strict about blanks in its header
    write(tmp_path / "mpi_roof_2009b.csv", text, "latin-1")
    write(tmp_path / "mpi_roof_2009a.csv", csv(halves[0], "station"), "latin-1")
    found = jena.load(tmp_path)
    assert_same(found, record)
    assert found.source == tmp_path
    assert_same(jena.load(tmp_path / "mpi_roof_2009b.csv"), halves[1])
    zips = tmp_path / "zips"
    zips.mkdir()
    for half in ("a", "b"):
        with zipfile.ZipFile(zips / f"mpi_roof_2009{half}.zip", "w") as archive:
            archive.write(tmp_path / f"mpi_roof_2009{half}.csv", f"mpi_roof_2009{half}.csv")
    assert_same(jena.load(zips), record)
    # a part in another form is a part; one in two forms is not two
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (zips / "mpi_roof_2009b.zip").rename(mixed / "mpi_roof_2009b.zip")
    write(mixed / "mpi_roof_2009a.csv", csv(halves[0], "station"), "latin-1")
    (mixed / "._mpi_roof_2009a.csv").write_bytes(b"resource fork")
    assert_same(jena.load(mixed), record)
    (zips / "mpi_roof_2009a.zip").rename(mixed / "mpi_roof_2009a.zip")
    with pytest.raises(ValueError, match=r"2009a.csv and mpi_roof_2009a.zip are the same part of the record: keep one"):
        jena.load(mixed)
    # a year before a sensor was there: the columns that all years have can be asked for
    write(tmp_path / "mpi_roof_2008b.csv", csv(jena.synthetic_climate(jax.random.key(1), 5)))
    assert jena.load(tmp_path, columns=jena.COLUMNS).columns == jena.COLUMNS
    write(tmp_path / "mpi_roof_2010a.csv", csv(record._replace(columns=("T (degC)",), values=record.values[:, 1:2])))
    with pytest.raises(ValueError, match=r"mpi_roof_2010a.csv: line 1: no column 'p \(mbar\)', found T \(degC\)"):
        jena.load(tmp_path)


def test_hourly_npz_reads_without_pickles(record, tmp_path):
    path = tmp_path / "jena_hourly_2009_2016.npz"
    np.savez(path, X=record.values.astype(float), dates=record.times.astype("datetime64[ns]"), cols=record.columns)
    assert_same(jena.load(tmp_path), record)
    np.savez(path, X=record.values.astype(float), dates=record.times)
    with pytest.raises(ValueError, match=r"missing \['cols'\], found \['X', 'dates'\]"):
        jena.load(path)
    np.savez(path, X=record.values[:5], dates=record.times, cols=record.columns)
    with pytest.raises(ValueError, match=r"got X float32 \(5, 14\), dates datetime64\[s\] \(600,\), 14 cols"):
        jena.load(path)
    np.savez(path, X=record.values[:, ::-1], dates=record.times, cols=record.columns)
    with pytest.raises(ValueError, match=r"npz: row 0, column 'p \(mbar\)': .* is outside 850 to 1100"):
        jena.load(path)
    for wrong in (np.datetime64("NaT"), record.times[7].astype("datetime64[ms]") + 1):
        times = record.times.astype("datetime64[ms]")
        times[7] = wrong
        np.savez(path, X=record.values, dates=times, cols=record.columns)
        with pytest.raises(ValueError, match=r"npz: row 7 of dates: .*, expected a time in whole seconds"):
            jena.load(path)
    np.savez(path, X=np.array([{}]), dates=record.times, cols=record.columns)
    with pytest.raises(ValueError, match=r"an array of Python objects"):
        jena.load(path)
    np.savez(path, X=record.values, dates=record.times, cols=record.columns)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"npz: damaged or not an archive: BadZipFile"):
        jena.load(path)


def test_columns_can_be_chosen_and_reordered(record, tmp_path):
    path = write(tmp_path / "a.csv", csv(record))
    found = jena.load(path, columns=["T (degC)", "p (mbar)"])
    np.testing.assert_array_equal(found.values, record.values[:, [1, 0]])
    with pytest.raises(ValueError, match=r"a.csv: line 1: no column 'CO2 \(ppm\)', found p \(mbar\), T"):
        jena.load(path, columns=["CO2 (ppm)"])


@settings(max_examples=30, deadline=None)
@given(
    temperatures=st.lists(st.integers(-4500, 5000), min_size=2, max_size=8),
    first=st.datetimes(min_value=np.datetime64("1990-01-01").astype("datetime64[s]").astype(object)),
    dialect=st.sampled_from(["official", "benchmark"]),
)
def test_any_temperatures_at_any_time_round_trip(tmp_path_factory, temperatures, first, dialect):
    values = np.float32(np.array(temperatures)[:, None] / 100)
    start = min(np.datetime64(first, "s"), np.datetime64("2999-12-31T00:00:00"))
    times = start + np.arange(len(values)) * np.timedelta64(600, "s")
    record = jena.Climate(values, times, ("T (degC)",), "", None)
    path = tmp_path_factory.mktemp("any") / "a.csv"
    assert_same(jena.load(write(path, csv(record, dialect))), record)


# Cleaning


def test_rows_are_sorted_and_repetitions_dropped_and_gaps_told(record, tmp_path):
    lines = csv(record).rstrip("\n").split("\n")
    del lines[201:251]  # 50 rows of 10 minutes: the gap is 510 minutes
    repeated = edit(lines[10] + "\n", 1, 2, "-1.00").rstrip("\n")
    shuffled = [lines[0], lines[1], *lines[300:], *lines[2:300], lines[10], repeated]
    found = jena.load(write(tmp_path / "a.csv", "\n".join(shuffled)))
    kept = np.r_[0:200, 250:600]
    assert_same(found, record._replace(values=record.values[kept], times=record.times[kept]))
    assert found.report == (
        "jena (a.csv): 550 rows x 14 columns, 2009-01-01 00:10 to 2009-01-05 04:00, every 10 min;"
        " 2 repeated, 2 unsorted, 0 missing cells, 1 gap (longest 8.5 h)"
    )


def test_missing_cells_become_no_wind_or_the_last_value(record, tmp_path):
    text = csv(record)
    marks = [(2, 2, "-9999.00"), (3, 2, "-9999.99"), (50, 2, "-9999"), (51, 2, "-9999"), (60, 12, "-9999.00")]
    for mark in marks:
        text = edit(text, *mark)
    found = jena.load(write(tmp_path / "a.csv", text))
    expected = record.values.copy()
    expected[[0, 1], 1] = record.values[2, 1]  # nothing before: the first value there is
    expected[[48, 49], 1] = record.values[47, 1]
    expected[58, 11] = 0
    np.testing.assert_array_equal(found.values, expected)
    assert "5 missing cells (1 of wind set to 0, 4 to the last value), 0 gaps" in found.report
    lines = text.split("\n")[:3]
    with pytest.raises(ValueError, match=r"a.csv: column 'T \(degC\)' has no values"):
        jena.load(write(tmp_path / "a.csv", "\n".join(lines)))


# Damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: edit(t, 5, 2, "warm"), r"a.csv: line 5, column 'T \(degC\)': 'warm' is not a number"),
        (lambda t: edit(t, 7, 14, ""), r"line 7, column 'wd \(deg\)': '' is not a number"),
        (lambda t: edit(t, 7, 1, "1_000"), r"a.csv: line 7, column 'p \(mbar\)': '1_000' is not a number"),
        (lambda t: edit(t, 9, 1, "nan"), r"line 9, column 'p \(mbar\)': nan is outside 850 to 1100"),
        (lambda t: edit(t, 9, 1, "-inf"), r"line 9, column 'p \(mbar\)': -inf is outside 850 to 1100"),
        (lambda t: edit(t, 9, 1, "-1e400"), r"line 9, column 'p \(mbar\)': -inf is outside 850 to 1100"),
        (lambda t: edit(t, 9, 1, "-99990"), r"line 9, column 'p \(mbar\)': -99990 is outside 850 to 1100"),
        (lambda t: edit(t, 9, 1, "\u0661"), r"line 9, column 'p \(mbar\)': '.*' is not a number"),
        (lambda t: "\n" + t, r"line 1: the first column is '', expected one of"),
        (
            lambda t: edit(t, 4, 0, "32.01.2009 00:30:00"),
            r"line 4, column 'Date Time': '32.01.2009 00:30:00' is not a date",
        ),
        (
            lambda t: edit(t, 4, 0, "2009-01-01 00:30:00"),
            r"line 4, column 'Date Time': '2009-01-01 00:30:00' is not a date",
        ),
        (
            lambda t: edit(t, 4, 0, "1.1.2009 00:30:00"),
            r"line 4, column 'Date Time': '1.1.2009 00:30:00' is not a date",
        ),
        (lambda t: t[: t.index("\n", 20_000) - 40], r"line \d+, column '.*': \d+ fields, .* 15: a truncated file\?"),
        (lambda t: t[: t.index("\n", 20_000) + 5], r"line \d+, column 'Date Time': 1 fields, .* a truncated file\?"),
        (lambda t: edit(t, 4, 3, "1,2"), r"line 4, column 'wd \(deg\)': 16 fields, the header has 15$"),
        (lambda t: t.replace("\n", "\n\n", 5), r"line 2, column 'Date Time': 1 fields, the header has 15$"),
        (lambda t: t.split("\n")[0], r"a.csv: line 2: no rows; the file ends after 195 bytes"),
        (lambda t: "", r"a.csv: line 2: no rows; the file ends after 0 bytes"),
        (lambda t: t.split("\n", 1)[1], r"line 1: the first column is '01.01.2009 00:10:00', expected one of \['Date"),
        (
            lambda t: t.replace("Tpot (K)", "Tpot (F)"),
            r"line 1: unknown column 'Tpot \(F\)', expected some of p \(mbar\)",
        ),
        (lambda t: t.replace("Tpot (K)", "T (degC)"), r"line 1: column 'T \(degC\)' occurs twice"),
        (
            lambda t: t.replace("T (degC)", "x").replace("p (mbar)", "T (degC)").replace('"x"', '"p (mbar)"'),
            r"line 2, column 'T \(degC\)': \d+.* is outside -45 to 50: columns swapped\?",
        ),
        (
            lambda t: t.replace("T (degC)", "x").replace("Tdew (degC)", "T (degC)").replace('"x"', '"Tdew (degC)"'),
            r"line \d+, column 'Tdew \(degC\)' is above 'T \(degC\)', here and in most rows: columns swapped\?",
        ),
    ],
)
def test_damage_is_named_by_file_line_and_column(record, tmp_path, damage, message):
    with pytest.raises(ValueError, match=message):
        jena.load(write(tmp_path / "a.csv", damage(csv(record))))


def test_damaged_zips_are_named(record, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", csv(record))
    content = packed.getvalue()
    path = tmp_path / "a.zip"
    for damaged in (content[:5000], content[:2000] + b"\0\0\0\0" + content[2004:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a.zip: damaged( or not an archive)?: "):
            jena.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(ValueError, match=r"a.zip: expected one csv in it, found \['readme.txt'\]"):
        jena.load(path)


def test_blob_id_is_git_s_and_is_checked(record, tmp_path):
    path = write(tmp_path / "a.csv", csv(record))
    blob = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()
    assert jena.blob_id(path.read_bytes()) == blob
    assert_same(jena.load(path, blob=blob), record)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "a.csv")
    assert_same(jena.load(tmp_path / "a.zip", blob=blob), record)
    with pytest.raises(ValueError, match=rf"a.csv: git blob id {blob}, expected {jena.OFFICIAL_BLOB}"):
        jena.load(path, blob=jena.OFFICIAL_BLOB)
    for name in ("mpi_roof_a.csv", "mpi_roof_b.csv"):
        write(tmp_path / name, csv(record))
    with pytest.raises(ValueError, match="a blob id identifies one file, found 2"):
        jena.load(tmp_path, blob=blob)


def test_paths_without_a_record_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: no such file or directory"):
        jena.load(tmp_path / "gone")
    write(tmp_path / "input.txt", "x")
    with pytest.raises(FileNotFoundError, match=r"expected one of jena_climate_2009_2016.csv, .*, found input.txt"):
        jena.load(tmp_path)


# The task


@pytest.fixture(scope="module")
def task(record):
    return jena.forecasting(record, history=4, horizon=3)


def test_windows_are_hourly_and_targets_follow_by_the_horizon(record, task):
    assert (task.stride, task.target) == (6, 6 * (3 + 3))
    starts = jnp.array([0, 77])
    xs, y = jax.jit(jena.batch)(task, starts)  # the task as an argument: its integers stay static
    assert xs.shape == (4, 2, 14)
    assert xs.dtype == y.dtype == jnp.float32
    train = record.values[:300].astype(np.float64)
    standardized = (record.values - train.mean(0)) / train.std(0)
    for b, start in enumerate([0, 77]):
        np.testing.assert_allclose(xs[:, b], standardized[start : start + 24 : 6], rtol=1e-3, atol=1e-4)
        assert y[b] == record.values[start + 18 + 18, 1]  # three hours after the last row
    np.testing.assert_array_equal(jena.last_value(task, starts), record.values[[18, 77 + 18], 1])


def test_parts_are_half_and_quarters_in_time_and_no_window_leaves_its_part(task):
    for starts, first, stop in [(task.train, 0, 300), (task.validation, 300, 450), (task.test, 450, 600)]:
        np.testing.assert_array_equal(starts, np.arange(first, stop - task.target))
        assert starts.dtype == jnp.int32


def test_statistics_know_only_the_training_part(record, task):
    later = record.values.copy()
    later[300:] += 5
    other = jena.forecasting(record._replace(values=later), history=4, horizon=3)
    np.testing.assert_array_equal(other.scale.mean, task.scale.mean)
    np.testing.assert_array_equal(other.series[:300], task.series[:300])
    assert not np.allclose(other.series[300:], task.series[300:])


def test_windows_that_span_a_gap_can_be_left_out(record):
    times = record.times + np.where(np.arange(600) >= 100, np.timedelta64(600, "s"), np.timedelta64(0, "s"))
    with_gap = record._replace(times=times)
    kept = jena.forecasting(with_gap, history=4, horizon=3)
    left_out = jena.forecasting(with_gap, history=4, horizon=3, skip_gaps=True)
    spans = set(range(100 - kept.target, 100))  # first row before the gap, target behind it
    assert set(kept.train.tolist()) - set(left_out.train.tolist()) == spans
    np.testing.assert_array_equal(kept.test, left_out.test)


def test_tasks_that_cannot_be_are_refused(record):
    with pytest.raises(ValueError, match=r"no train window: this part has 300 rows, a window and its target need 859"):
        jena.forecasting(record)
    with pytest.raises(ValueError, match="history must be at least 1 row, got 0"):
        jena.forecasting(record, history=0)
    with pytest.raises(ValueError, match="horizon = 0 h is not a whole number of rows, which are 10 min apart"):
        jena.forecasting(record, horizon=0)
    slow = record._replace(times=record.times[0] + 9 * (record.times - record.times[0]))
    with pytest.raises(ValueError, match="hours = 1 h is not a whole number of rows, which are 90 min apart"):
        jena.forecasting(slow)
    with pytest.raises(ValueError, match=r"no column 'T \(degC\)', only p"):
        jena.forecasting(record._replace(values=record.values[:, :1], columns=record.columns[:1]))


def test_synthetic_record_is_a_function_of_its_key_and_looks_like_weather():
    hourly = jena.synthetic_climate(jax.random.key(3), 17_520)
    assert hourly.columns == jena.COLUMNS
    assert hourly.report.startswith("jena (generated): 17520 rows x 14 columns, 2009-01-01 00:10 to 2010-12-31 23:10")
    assert_same(jena.synthetic_climate(jax.random.key(3), 17_520), hourly)
    assert not np.array_equal(jena.synthetic_climate(jax.random.key(4), 17_520).values, hourly.values)
    with jax.enable_x64(True):
        assert_same(jena.synthetic_climate(jax.random.key(3), 17_520), hourly)
    temperature = hourly.values[:, 1]
    assert temperature[4000:5000].mean() > temperature[:1000].mean() + 8  # summer
    by_hour = temperature[: 720 * 24].reshape(-1, 24).mean(0)
    assert by_hour.max() - by_hour.min() > 3  # day and night
    np.testing.assert_allclose(hourly.values[:, 5] - hourly.values[:, 6], hourly.values[:, 7], atol=0.011)
    with pytest.raises(ValueError, match="at least 2 rows, 1 minute apart, got 1 rows and 60 minutes"):
        jena.synthetic_climate(jax.random.key(3), 1)


# Real data


def test_naive_forecast_of_the_real_record_is_the_published_one(data_dir):
    path = data_dir / "jena" / "jena_hourly_2009_2016.npz"
    if not path.exists():
        pytest.skip(f"no {path}")
    record = jena.load(path)
    assert record.report == (
        "jena (jena_hourly_2009_2016.npz): 70038 rows x 6 columns, 2009-01-01 00:10 to 2016-12-31 23:50, every 60 min;"
        " 0 repeated, 0 unsorted, 0 missing cells, 5 gaps (longest 75.2 h)"
    )
    task = jena.forecasting(record)
    for starts, published in [(task.validation, 2.44), (task.test, 2.62)]:
        target = task.temperature[starts + task.target]
        assert abs(float(jnp.abs(jena.last_value(task, starts) - target).mean()) - published) < 0.01


def test_the_real_2020_file_reads_with_its_marks_and_repetition(data_dir):
    path = data_dir / "jena" / "jena_10min_2020.zip"
    if not path.exists():
        pytest.skip(f"no {path}")
    record = jena.load(path)
    assert record.columns[:14] == jena.COLUMNS
    assert record.values.shape == (52_695, 21)
    assert "1 repeated, 0 unsorted, 81 missing cells (1 of wind set to 0, 80 to the last value)" in record.report
