"""The loader of the Numenta anomaly benchmark, its score, and its builder."""

import json
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from seqjax.data import builders, nab
from seqjax.data.builders.nab import digest
from seqjax.data.nab_score import PROFILES, Marks, best_threshold, held_out, normalized, raw, scaled_sigmoid

CSV = "timestamp,value\r\n2014-01-01 00:00:00,1.5\r\n2014-01-01 00:05:00,-2\r\n2014-01-01 00:05:00,3e4\r\n"
LABELS = {"real/a.csv": [["2014-01-01 00:05:00.000000", "2014-01-01 00:05:00.000000"]], "art/b.csv": []}


def folder(path, csv=CSV, labels=None):
    """The layout of the repository with two small series."""
    for name in ("data/real/a.csv", "data/art/b.csv", "labels/combined_windows.json"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / "data/real/a.csv").write_bytes(csv.encode("latin-1"))
    (path / "data/art/b.csv").write_text("timestamp,value\n2014-01-01 00:00:00,7\n")
    labels = json.dumps(LABELS) if labels is None else labels
    (path / "labels/combined_windows.json").write_text(labels)
    return path


def archive(file, *folders):
    with tarfile.open(file, "w:gz") as packed:
        for each in folders:
            packed.add(each, "NAB-1.1")
    return file


def test_series_of_a_folder_and_of_an_archive(tmp_path):
    made = folder(tmp_path / "NAB")
    (tmp_path / "other").mkdir()
    packed = archive(tmp_path / "other" / "nab_all.tar.gz", made)
    for path in (made, tmp_path, packed, tmp_path / "other"):
        corpus = nab.load(path)
        assert list(corpus) == ["art/b.csv", "real/a.csv"]
        times, values, windows = corpus["real/a.csv"]
        assert (times.dtype, values.dtype, windows.dtype) == (np.dtype("datetime64[s]"), np.float64, np.int32)
        np.testing.assert_array_equal(values, [1.5, -2, 30_000])
        np.testing.assert_array_equal(windows, [[1, 1]])  # of a time that repeats, the first row
        assert str(times[2]) == "2014-01-01T00:05:00"
        assert corpus["art/b.csv"].windows.shape == (0, 2)
    np.testing.assert_array_equal(nab.read_csv(made / "data/real/a.csv")[1], [1.5, -2, 30_000])


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("", "data/real/a.csv: line 1: .., expected"),
        ("time,value\n", "a.csv: line 1: 'time,value', expected 'timestamp,value'"),
        ("timestamp,value\n", "a.csv: no rows"),
        (CSV + "2014-01-01 00:", "a.csv: line 5: '2014-01-01 00:', expected a time and a number"),
        (CSV + "2014-01-01 00:10:00,high", "a.csv: line 5: .* expected a time and a number"),
        (CSV + "2014-01-32 00:10:00,1", "a.csv: line 5: .* expected a time and a number"),
        *(
            (CSV + f"2014-01-01 00:10:00,{value}", "a.csv: line 5: .* expected a time and a number")
            for value in ("nan", "inf", "1e400", "1_000", "", "1,2")
        ),
        *(
            (CSV + f"2014-01-01T00:10:00{rest},1", "a.csv: line 5: .* expected a time without a zone, in whole seconds")
            for rest in ("+00:00", "Z", "-05:00", ".5", ".000001")
        ),
        (CSV + "2014-01-01 00:10:00,1\x0c2014-01-01 00:15:00,2", "a.csv: line 5: .* expected a time and a number"),
        (CSV + "\xff", "a.csv is not UTF-8: invalid start byte at offset 9"),
    ],
)
def test_a_damaged_csv_is_named_with_its_line(tmp_path, csv, message):
    with pytest.raises(ValueError, match=message):
        nab.load(folder(tmp_path, csv))


def stamps(*minutes):
    return json.dumps({"real/a.csv": [[f"2014-01-01 00:{m:02}:00" for m in pair] for pair in minutes]})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ('{"art/b.csv": [], "art/b.csv": []}', "combined_windows.json: not JSON: duplicate name"),
        (
            json.dumps({"real/a.csv": [["2014-01-01 00:00:00+01:00", "2014-01-01 00:05:00"]]}),
            "labels of real/a.csv: .* expected a time without a zone",
        ),
        ("{", "combined_windows.json: not JSON: Expecting property name"),
        ("[]", "expected an object of series and their windows, got '\\[\\]'"),
        ('{"real/c.csv": []}', "no data/real/c.csv in it, which the labels name \\(1 are missing\\)"),
        ('{"real/a.csv": [3]}', "labels of real/a.csv: .* expected pairs of times"),
        ('{"real/a.csv": [["soon", "later"]]}', "labels of real/a.csv: Invalid isoformat .* expected pairs of times"),
        (stamps((0, 5, 5)), "labels of real/a.csv: .* expected pairs of times"),
        (stamps((0, 4)), "a window begins or ends at a time of no row"),
        (stamps((5, 0)), "windows that overlap or are out of order"),
        (stamps((0, 5), (5, 5)), "windows that overlap or are out of order"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        nab.load(folder(tmp_path, labels=labels))


def test_a_series_that_an_archive_holds_twice_is_refused(tmp_path):
    packed = archive(tmp_path / "NAB.tar.gz", folder(tmp_path / "one"), folder(tmp_path / "two", CSV + CSV[17:]))
    with pytest.raises(ValueError, match=r"NAB.tar.gz: .*data/.*csv occurs twice"):
        nab.load(packed)


@pytest.mark.parametrize("name", ["data/real/c.CSV", "data/c.csv", "data/real/more/c.csv", "Data/real/c.csv"])
def test_a_series_in_another_place_is_refused(name, tmp_path):
    made = folder(tmp_path / "NAB")
    (made / name).parent.mkdir(parents=True, exist_ok=True)
    (made / name).write_text("timestamp,value\n2014-01-01 00:00:00,7\n")
    if name.startswith("Data"):  # not the folder that the labels stand beside
        assert len(nab.load(made)) == 2
    else:
        with pytest.raises(ValueError, match=f"NAB: {name}, expected names data/FOLDER/NAME.csv"):
            nab.load(made)


def test_series_without_labels_are_counted(tmp_path):
    made = folder(tmp_path / "NAB")
    for name in ("c", "d"):
        (made / f"data/real/{name}.csv").write_text("timestamp,value\n2014-01-01 00:00:00,7\n")
    with pytest.warns(UserWarning, match="NAB: 2 series without labels are left out, data/real/c.csv first"):
        assert len(nab.load(made)) == 2
    (made / "old/labels").mkdir(parents=True)
    (made / "old/labels/combined_windows.json").write_text("{}")
    with pytest.raises(ValueError, match=r"NAB: labels/combined_windows.json occurs twice"):
        nab.load(made)


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or folder"):
        nab.load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no labels or NAB\*.tar.gz or nab\*.tar.gz in it, found notes"):
        nab.load(tmp_path)
    made = folder(tmp_path / "made")
    packed = archive(tmp_path / "NAB.tar.gz", made)
    packed.write_bytes(packed.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"NAB.tar.gz: damaged"):
        nab.load(tmp_path)
    (made / "labels/combined_windows.json").unlink()
    with pytest.raises(ValueError, match=r"no labels/combined_windows.json in it"):
        nab.load(archive(tmp_path / "NAB.tar.gz", made))


def test_generated_series():
    corpus = nab.generated(5, rows=400, seed=3)
    assert [len(series.windows) for series in corpus.values()] == [1, 1, 1, 0, 1]
    again, other = nab.generated(5, rows=400, seed=3), nab.generated(5, rows=400, seed=4)
    for name, series in corpus.items():
        assert series.values.shape == series.times.shape == (400,)
        np.testing.assert_array_equal(series.values, again[name].values)
        assert not np.array_equal(series.values, other[name].values)
        assert (series.windows >= nab.probation(400)).all()
        assert (series.windows < 400).all()
    jump = corpus["generatedA/series_0.csv"]
    first, last = jump.windows[0]
    assert first < np.argmax(jump.values) < last  # a jump of 12 over waves of 5


def test_probation():
    assert [nab.probation(rows) for rows in (0, 7, 100, 4032, 5000, 22_695)] == [0, 1, 15, 604, 750, 750]


def series(rows, *windows):
    times = np.datetime64("2014-01-01", "s") + np.arange(rows)
    return nab.Series(times, np.zeros(rows), np.array(windows, np.int32).reshape(-1, 2))


def alarms(rows, *where):
    scores = np.zeros(rows)
    scores[list(where)] = 1
    return scores


def test_the_sigmoid_has_the_values_of_the_paper():
    np.testing.assert_allclose(scaled_sigmoid(np.array([-1, -0.5, 0])), [0.98661, 0.84828, 0], atol=1e-5)
    np.testing.assert_allclose(scaled_sigmoid(np.array([1, 3, 4, np.inf])), [-0.98661, -1, -1, -1], atol=1e-5)


def s(y):
    return 2 / (1 + np.exp(5 * y)) - 1


@pytest.mark.parametrize(
    ("where", "points"),
    [
        ((), -2),  # both windows are missed
        ((10,), -2),  # the last probationary row of 80 is 11
        ((12,), -2 - 0.11),  # no window before it
        ((20,), 1 - 1),  # the first row of the first window: all that there is to win
        ((25,), s(-5 / 10) / s(-1) - 1),
        ((25, 21, 29), s(-9 / 10) / s(-1) - 1),  # the first alarm counts
        ((29,), s(-1 / 10) / s(-1) - 1),  # the last row still wins a little
        ((30,), 0.11 * s(1 / 9) - 2),  # one behind: nearly free
        ((39,), 0.11 * s(10 / 9) - 2),
        ((49,), 0.11 * s(20 / 9) - 2),
        ((20, 50), 2),
        ((20, 50, 60), 2 + 0.11 * s(6 / 4)),  # by the width of the second window, which is 5
        ((20, 50, 70), 2 - 0.11),  # four widths behind: far away
    ],
)
def test_points_of_the_standard_profile_by_hand(where, points):
    marks = Marks.of(alarms(80, *where), series(80, (20, 29), (50, 54)))
    assert raw(marks, PROFILES["standard"], 1.0) == pytest.approx(points, abs=1e-12)


def test_profiles_weigh_what_is_wrong():
    marks = Marks.of(alarms(80, 12), series(80, (20, 29), (50, 54)))
    points = {name: raw(marks, profile, 1.0) for name, profile in PROFILES.items()}
    assert points == {"standard": -2.11, "reward_low_fp": -2.22, "reward_low_fn": -4.11}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_null_and_perfect_detector(profile):
    corpus = [series(80, (20, 29), (50, 54)), series(60), series(40, (30, 39))]
    null = [Marks.of(np.zeros(len(one.values)), one) for one in corpus]
    perfect = [Marks.of(alarms(len(one.values), *one.windows[:, 0]), one) for one in corpus]
    assert normalized(null, profile, 1.0) == 0
    assert normalized(perfect, profile, 1.0) == pytest.approx(100)
    assert best_threshold(perfect, profile) == 1
    wrong = [Marks.of(1 - marks, one) for marks, one in zip(map(np.zeros, (80, 60, 40)), corpus, strict=True)]
    assert normalized(wrong, profile, 1.0) < 0 or profile.false_positive < 0.2
    with pytest.raises(ValueError, match="no window in the corpus"):
        normalized(null[1:2], profile, 1.0)


def test_a_threshold_for_a_group_is_learned_from_the_others():
    """One detector's scores are a hundred times as high on the second group as on the first."""
    standard = PROFILES["standard"]
    scores = 0.5 * alarms(80, *range(60, 80)) + alarms(80, 20, 50)
    groups = [[Marks.of(scale * scores, series(80, (20, 29), (50, 54)))] for scale in (1, 100)]
    every = [marks for group in groups for marks in group]
    assert normalized(every, standard, best_threshold(every, standard)) < 100
    # On the first group the threshold of the second, 100, finds nothing; on the second, that of the first, 1, all rows.
    false = sum(s(min((row - 54) / 4, 3)) for row in range(60, 80))
    assert held_out(groups, standard) == pytest.approx(100 * (-2 + 2 + 0.11 * false + 4) / 8, rel=1e-6)
    assert held_out([groups[0], groups[0]], standard) == 100
    with pytest.raises(ValueError, match="takes the threshold of a group from the others, got 1, expected 2 or more"):
        held_out(groups[:1], standard)


def test_a_window_on_probation_does_not_count():
    """But an alarm behind it is measured from it."""
    marks = Marks.of(alarms(200, 3, 40), series(200, (2, 21), (25, 34)))
    assert marks.windows == 1
    assert raw(marks, PROFILES["standard"], 1.0) == pytest.approx(-1 + 0.11 * s(6 / 9))
    assert raw(Marks.of(alarms(200, 30), series(200, (2, 21))), PROFILES["standard"], 1.0) == 0.11 * s(9 / 19)
    half = Marks.of(alarms(200, 31), series(200, (25, 34)))  # probation ends at row 30
    assert raw(half, PROFILES["standard"], 1.0) == pytest.approx(s(-4 / 10) / s(-1))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("levels", [4, 1000])
def test_the_best_threshold_is_the_best_of_all(profile, levels):
    rng = np.random.default_rng(levels)
    corpus = []
    for one in (series(80, (20, 29), (50, 54)), series(60), series(90, (5, 9), (30, 49), (60, 70))):
        scores = rng.integers(0, levels, len(one.values)) / levels
        for first, last in one.windows:
            scores[first + 1 : last] += 0.3
        corpus.append(Marks.of(scores, one))
    found = best_threshold(corpus, profile)
    every = np.unique(np.concatenate([marks.scores for marks in corpus]))
    points = [normalized(corpus, profile, threshold) for threshold in every]
    assert max(points) > 0
    assert normalized(corpus, profile, found) == pytest.approx(max(points))
    assert found == every[np.flatnonzero(np.isclose(points, max(points)))].max()


def test_no_alarm_is_best_where_all_are_wrong():
    marks = [Marks.of(alarms(80, 12, 13), series(80, (20, 29)))]
    marks[0].scores[marks[0].window >= 0] = -1
    costly = PROFILES["standard"]._replace(false_positive=5.0)
    assert best_threshold(marks, costly) == np.inf
    # A right alarm comes with the wrong ones of the same score.
    assert best_threshold([Marks.of(alarms(80, 20, 60, 61), series(80, (20, 29)))], costly) == np.inf


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"scores have shape \(79,\), expected \(80,\)"):
        Marks.of(np.zeros(79), series(80))
    with pytest.raises(ValueError, match=r"the score of row 3 is not finite"):
        Marks.of(np.array([0, 1, 2, np.nan]), series(4))


def test_the_benchmark_is_prepared_and_read_back_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.download.DownloadManager, "download", None)
    (tmp_path / "manual").mkdir()
    file = archive(tmp_path / "manual" / "NAB.tar.gz", folder(tmp_path / "made"))
    with pytest.raises(ValueError, match=r"NAB.tar.gz: sha256 [0-9a-f]{64} of its series, expected f5dbeed4"):
        builders.numenta_anomaly_benchmark(tmp_path / "data", tmp_path / "manual")
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    monkeypatch.setattr(builders.NumentaAnomalyBenchmark, "sha256", digest(nab.load(file)))
    expected = nab.load(file)
    found = builders.numenta_anomaly_benchmark(tmp_path / "data", tmp_path / "manual")
    assert list(found) == list(expected)
    for name, one in found.items():
        for values, wanted in zip(one, expected[name], strict=True):
            np.testing.assert_array_equal(values, wanted)
            assert values.dtype == wanted.dtype
    file.unlink()
    assert digest(builders.numenta_anomaly_benchmark(tmp_path / "data")) == digest(expected)
    info = builders.NumentaAnomalyBenchmark(data_dir=tmp_path, file_format="array_record").info
    assert "MIT" in info.redistribution_info.license
    assert info.citation.startswith("@")


@pytest.fixture(scope="module")
def real(data_dir):
    if not (data_dir / "nab").is_dir():
        pytest.skip(f"no benchmark at {data_dir / 'nab'}")
    return nab.load(data_dir)


def test_the_real_benchmark(real):
    assert len(real) == 58
    assert sum(len(one.values) for one in real.values()) == 365_558
    assert sum(len(one.windows) for one in real.values()) == 116
    assert digest(real) == builders.NumentaAnomalyBenchmark.sha256
    assert all((one.windows[:, 0] >= nab.probation(len(one.values))).all() for one in real.values())


@pytest.mark.parametrize(
    ("name", "points"),
    [
        # From the published results of the windowed Gaussian (results/windowedGaussian of the repository): series where
        # the rows with an alarm follow from the counts that stand there, true positives and false ones.
        ("artificialNoAnomaly/art_flatline.csv", 0.0),
        ("realKnownCause/nyc_taxi.csv", -5.0),
        ("realKnownCause/machine_temperature_system_failure.csv", -4.0),
    ],
)
def test_published_points_of_series_without_an_alarm(real, name, points):
    assert raw(Marks.of(np.zeros(len(real[name].values)), real[name]), PROFILES["standard"], 1.0) == points
