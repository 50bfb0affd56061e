"""Labelled series from the archive's files: what is read, how it is split, and what is said of damaged files."""

import gzip
import hashlib
import io
import tarfile
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import tensorflow_datasets as tfds

from seqjax.data import builders, ucr

TS = """# A comment
@problemName Vowels
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@classLabel true b a
@data
1,2,3:10,20,30:a
4,?,6,?:40,50,?,?:b
7:70:a
"""
COLUMNS = "  1.0000000e+00   1.5 2.5   NaN\n -1.0000000e+00 3.0 4.0 5.0\n\n"


def folder_of(folder, files):
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


VOWELS = {"Vowels_TRAIN.ts": TS, "Vowels_TEST.ts": TS.replace("1,2,3:10,20,30:a\n", "8,9,8,9,8:1,1,1,1,1:b\n")}


def check_vowels(parts):
    train, test = parts["train"], parts["test"]
    assert train.classes == test.classes == ("a", "b")
    assert train.values.shape == (3, 5, 2)  # as long as the longest of the test
    assert train.lengths.tolist() == [3, 3, 1]
    assert train.labels.tolist() == [0, 1, 0]
    assert test.labels.tolist() == [1, 1, 0]
    np.testing.assert_array_equal(train.values[0, :, 1], [10, 20, 30, 0, 0])
    np.testing.assert_array_equal(train.values[1], [[4, 40], [5, 50], [6, 50], [0, 0], [0, 0]])
    assert [values.dtype for values in train[:3]] == [np.float32, np.int32, np.int32]


@pytest.mark.parametrize("inner", ["", "Vowels", "ucr/ucr_uea/Vowels"])
def test_ts_files_are_read_from_a_folder(tmp_path, inner):
    folder_of(tmp_path / inner, VOWELS)
    check_vowels(ucr.load(tmp_path, "Vowels"))


def test_ts_files_are_read_from_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "Vowels.zip", "w") as packed:
        packed.writestr("Vowels.txt", "About the vowels.")
        packed.writestr("Vowels_TRAIN.txt", "the same, in another format")
        for name, text in VOWELS.items():
            packed.writestr(name, text)
    (tmp_path / "ucr").mkdir()
    with tarfile.open(tmp_path / "ucr" / "ucr_uea_ts.tar.gz", "w:gz") as packed:
        for name, text in VOWELS.items():
            member = tarfile.TarInfo(f"ucr_uea/Vowels/{name}")
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text.encode()))
    for path in (tmp_path, tmp_path / "Vowels.zip", tmp_path / "ucr", tmp_path / "ucr" / "ucr_uea_ts.tar.gz"):
        check_vowels(ucr.load(path, "Vowels"))


def test_columns_are_read_with_the_class_first(tmp_path):
    folder_of(tmp_path, {"ECG_TRAIN.txt": COLUMNS, "ECG_TEST.tsv": COLUMNS.replace("   ", "\t")})
    for part in ucr.load(tmp_path, "ECG").values():
        assert part.classes == ("-1", "1")
        assert part.labels.tolist() == [1, 0]
        assert part.lengths.tolist() == [2, 3]
        np.testing.assert_array_equal(part.values[..., 0], [[1.5, 2.5, 0], [3, 4, 5]])


@pytest.mark.parametrize("row", ["1,5,,7", "1,,5,7", "1,5,7,", ",5,6,7", "1\t5\t\t7", "1 , 5 , , 7"])
def test_an_empty_cell_is_an_error_and_never_closed_up(row):
    with pytest.raises(ValueError, match=r"^ECG_TRAIN.txt line 2(, class)?: '' is not a number"):
        ucr.parse("ECG_TRAIN.txt", f"1,5,6,7\n{row}\n".encode())


@pytest.mark.parametrize("row", ["1,5,6,7", "  1   5 6  7 ", "1\t5\t6\t7", "1, 5 ,6\t 7"])
def test_cells_are_between_commas_tabs_or_spaces(row):
    [(values, label)] = ucr.parse("ECG_TRAIN.txt", row.encode())
    assert (values[:, 0].tolist(), label) == ([5, 6, 7], "1")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("inf", "'inf' is not a number"),
        ("-Infinity", "'-Infinity' is not a number"),
        ("1e400", "1e400 is too large"),
        ("1e39", r"1e\+39 is too large for float32"),
        ("1_000", "'1_000' is not a number"),
        ("\u0661\u0662", "is not a number"),
    ],
)
def test_only_what_is_marked_as_missing_is_missing(value, message):
    for name in ("NaN", "nan", "?"):
        [(values, _)] = ucr.parse("a.txt", f"1,5,{name},7".encode())
        assert values[:, 0].tolist() == [5, 6, 7]
    with pytest.raises(ValueError, match=rf"^a.txt line 1: .*{message}"):
        ucr.parse("a.txt", f"1,5,{value},7".encode())


NAMES = [
    "1000001",
    "1000002",
    "1e6",
    "1.0",
    "1.00e0",
    "-0",
    "0.25",
    "9007199254740993",
    "9007199254740992",
    "123456.75",
]


def test_classes_are_one_only_where_their_numbers_are_equal():
    rows = ucr.parse("a.txt", "".join(f"{name},5\n" for name in NAMES).encode())
    expected = ["1000001", "1000002", "1000000", "1", "1", "0", "0.25", *NAMES[-3:]]
    assert [label for _, label in rows] == expected
    assert ucr.pack([rows])[0].classes == tuple(sorted(set(expected), key=Fraction))
    for name in ("1e-400", "nan", "?", "one", "1_0"):
        with pytest.raises(ValueError, match=r"^a.txt line 1, class: "):
            ucr.parse("a.txt", f"{name},5".encode())


def test_two_files_of_one_name_in_an_archive_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "Vowels.zip", "w") as packed:
        for name in ("a/Vowels_TRAIN.ts", "b/Vowels_TRAIN.ts", "Vowels_TEST.ts"):
            packed.writestr(name, TS)
    with pytest.raises(ValueError, match=r"Vowels.zip: a/Vowels_TRAIN.ts and b/Vowels_TRAIN.ts: expected one"):
        ucr.load(tmp_path, "Vowels")


def test_classes_that_are_numbers_are_in_their_order():
    series = ucr.pack([[(np.zeros((1, 1)), name) for name in ("10", "9", "-1")]])[0]
    assert series.classes == ("-1", "9", "10")
    assert series.labels.tolist() == [2, 1, 0]


def test_normalize_is_of_each_series_over_its_own_steps():
    values = np.array([[[1, 5], [2, 5], [3, 5], [0, 0]], [[0.1, 0], [0.1, 1], [0.1, 0], [0.1, 1]]], np.float32)
    series = ucr.Series(values, np.array([3, 4], np.int32), np.zeros(2, np.int32), ("0",))
    found = ucr.normalize(series).values
    wide = np.sqrt(1.5)
    np.testing.assert_allclose(found[0], [[-wide, 0], [0, 0], [wide, 0], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(found[1], [[0, -1], [0, 1], [0, -1], [0, 1]], atol=1e-6)
    assert found.dtype == np.float32


def test_normalize_is_right_at_any_magnitude_and_never_divides_by_rounding():
    series = ucr.Series(
        np.array([[[1e8], [1e8 + 1], [1e8 + 2]]]), np.array([3], np.int32), np.zeros(1, np.int32), ("0",)
    )
    wide = np.sqrt(1.5)
    np.testing.assert_allclose(ucr.normalize(series).values[0, :, 0], [-wide, 0, wide], rtol=1e-6, atol=1e-6)
    for one in (np.float32(0.1), np.float64(0.3)):
        values = np.array([one, np.nextafter(one, type(one)(1)), one], one.dtype)[None, :, None]
        assert not ucr.normalize(series._replace(values=values)).values.any()


def test_a_split_holds_out_a_part_of_every_class():
    labels = np.array([0] * 10 + [1] * 5 + [2] * 2, np.int32)
    values = np.arange(17, dtype=np.float32).reshape(17, 1, 1)
    series = ucr.Series(values, np.ones(17, np.int32), labels, ("a", "b", "c"))
    train, validation = ucr.split(series, 0.2, seed=1)
    assert np.bincount(validation.labels).tolist() == [2, 1, 1]
    assert sorted([*train.values.ravel(), *validation.values.ravel()]) == list(range(17))
    np.testing.assert_array_equal(labels[validation.values.ravel().astype(int)], validation.labels)
    np.testing.assert_array_equal(ucr.split(series, 0.2, seed=1)[1].values, validation.values)
    assert any((ucr.split(series, 0.2, seed=s)[1].values != validation.values).any() for s in range(2, 5))
    assert np.bincount(ucr.split(series, 0.99)[0].labels).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="fraction must be between 0 and 1, got 1"):
        ucr.split(series, 1)
    with pytest.raises(ValueError, match="class 'c' has 1 series, expected at least 2"):
        ucr.split(series.take(np.arange(16)))


DAMAGED = {
    "no @data": (TS.split("@data")[0], "TRAIN.ts: no line @data"),
    "no classes": (TS.replace("true b a", "false"), "TRAIN.ts line 8: @classLabel is 'false', expected true"),
    "no names": (
        TS.replace("true b a", "true"),
        "TRAIN.ts line 8: @classLabel is 'true', expected true and the classes",
    ),
    "no value": (TS.replace(" true b a", ""), "TRAIN.ts line 8: @classLabel is '', expected true"),
    "no count": (TS.replace("@dimensions 2", "@dimensions"), "TRAIN.ts line 6: @dimensions is '', expected a number"),
    "half": (TS.replace("@dimensions 2", "@dimensions 2.0"), "line 6: @dimensions is '2.0', expected a number"),
    "digits": (TS.replace("@dimensions 2", "@dimensions \u0662"), "line 6: @dimensions is '\u0662', expected a number"),
    "neither": (TS.replace("@equalLength false", "@equalLength"), "line 7: @equalLength is '', expected true or false"),
    "twice": (TS.replace("@missing true", "@univariate true"), "line 5: @univariate is also in line 4"),
    "junk": (TS.replace("@missing true", "missing true"), "line 4: 'missing true' before @data, expected @NAME VALUE"),
    "times": (TS.replace("@timeStamps false", "@timeStamps true"), "TRAIN.ts line 3: @timeStamps is true"),
    "no series": (TS.split("1,2,3")[0], "TRAIN.ts: contains no series"),
    "class": (TS.replace("30:a", "30:c"), "TRAIN.ts line 10: class 'c', expected one of b, a"),
    "variables": (TS.replace("7:70:a", "7:a"), "line 12: 1 variables, expected 2"),
    "lengths": (
        TS.replace("7:70:a", "7,8:70:a"),
        "line 12: variables of 1 and 2 values, expected the same number of each",
    ),
    "unequal": (
        TS.replace("@equalLength false", "@equalLength true\n@seriesLength 3"),
        "line 12: variables of 4 values, expected 3 of each",
    ),
    "number": (TS.replace("7:70", "7:7o"), "line 12: '7o' is not a number"),
    "empty": (TS.replace("7:70", "7:,70"), "line 12: '' is not a number"),
    "infinite": (TS.replace("7:70", "7:inf"), "line 12: 'inf' is not a number"),
    "huge": (TS.replace("7:70", "7:1e400"), "line 12: 1e400 is too large"),
    "large": (TS.replace("7:70", "7:1e39"), r"line 12: 1e\+39 is too large for float32"),
    "grouped": (TS.replace("7:70", "7:7_0"), "line 12: '7_0' is not a number"),
    "all missing": (TS.replace("7:70", "7:?"), "line 12: variable 1 has no value"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_ts_file_is_named(name, tmp_path):
    text, message = DAMAGED[name]
    folder_of(tmp_path, {**VOWELS, "Vowels_TRAIN.ts": text})
    with pytest.raises(ValueError, match=message):
        ucr.load(tmp_path, "Vowels")


def test_other_damaged_files_are_named(tmp_path):
    for text, message in (
        (COLUMNS.replace("5.0", ""), "ECG_TRAIN.txt line 2: 3 columns, expected 4"),
        (COLUMNS.replace("5.0", "five"), "ECG_TRAIN.txt line 2: 'five' is not a number"),
        (COLUMNS.replace("-1.0000000e+00", "NaN"), "line 2, class: 'NaN' is not a number"),
    ):
        folder_of(tmp_path, {"ECG_TRAIN.txt": text, "ECG_TEST.txt": COLUMNS})
        with pytest.raises(ValueError, match=message):
            ucr.load(tmp_path, "ECG")
    (tmp_path / "ECG_TRAIN.txt").write_bytes(b"1 2 \xff")
    with pytest.raises(ValueError, match=r"ECG_TRAIN.txt is not UTF-8: invalid start byte at offset 4"):
        ucr.load(tmp_path, "ECG")
    (tmp_path / "Vowels.zip").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"Vowels.zip: damaged or not an archive: ReadError"):
        ucr.load(tmp_path, "Vowels")
    (tmp_path / "Vowels.zip").unlink()
    whole = gzip.compress(np.random.default_rng(0).bytes(10_000))
    (tmp_path / "ucr_uea_ts.tar.gz").write_bytes(whole[:5000])
    with pytest.raises(ValueError, match=r"ucr_uea_ts.tar.gz: damaged"):
        ucr.load(tmp_path, "Vowels")
    (tmp_path / "ucr_uea_ts.tar.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"no Vowels_TRAIN.ts or .txt or .tsv in .*, nor in ucr"):
        ucr.load(tmp_path, "Vowels")


def test_generated_series_are_waves_of_unequal_lengths():
    series = ucr.generated(30, seed=1)
    assert series.values.shape == (30, 30, 2)
    assert series.classes == ("1", "2", "3")
    assert len(set(series.lengths)) > 5
    np.testing.assert_array_equal(series.values, ucr.generated(30, seed=1).values)
    assert not (series.values == ucr.generated(30, seed=2).values).all()
    for values, length, label in zip(*series[:3], strict=True):
        assert not values[length:].any()
        spectrum = np.abs(np.fft.rfft(values[:length, 0]))
        assert spectrum.argmax() == label + 1


def test_the_builder_reads_back_what_the_loader_reads(tmp_path, monkeypatch):
    folder_of(tmp_path / "manual", {name.replace("Vowels", "JapaneseVowels"): text for name, text in VOWELS.items()})
    monkeypatch.setattr(tfds.download.DownloadManager, "download", lambda *_: pytest.fail("must not download"))
    with pytest.raises(ValueError, match=r"JapaneseVowels_TRAIN.ts: sha256 [0-9a-f]{64}, expected 68a430ea"):
        builders.ucr_series("JapaneseVowels", tmp_path / "data", tmp_path / "manual")
    sums = tuple(hashlib.sha256(text.encode()).hexdigest() for text in VOWELS.values())
    monkeypatch.setitem(builders.Ucr.sha256, "JapaneseVowels", sums)
    check_vowels(builders.ucr_series("JapaneseVowels", tmp_path / "data", tmp_path / "manual"))
    info = builders.Ucr(config="GunPoint", data_dir=tmp_path, file_format="array_record").info
    assert "research" in info.redistribution_info.license
    assert info.citation.startswith("@article{dau2019ucr")


SIZES = {
    "ArrowHead": (36, 175, 251, 1, 3),
    "BasicMotions": (40, 40, 100, 6, 4),
    "ECG200": (100, 100, 96, 1, 2),
    "GunPoint": (50, 150, 150, 1, 2),
    "ItalyPowerDemand": (67, 1029, 24, 1, 2),
    "JapaneseVowels": (270, 370, 29, 12, 9),
    "OSULeaf": (200, 242, 427, 1, 6),
}


def test_the_official_problems(data_dir):
    if not (data_dir / "ucr").is_dir():
        pytest.skip(f"no series at {data_dir}/ucr")
    for name, (train, test, steps, variables, classes) in SIZES.items():
        parts = ucr.load(data_dir, name)
        assert parts["train"].values.shape == (train, steps, variables)
        assert parts["test"].values.shape == (test, steps, variables)
        assert set(parts["test"].labels) == set(range(classes))
    ecg = ucr.load(data_dir, "ECG200")["train"]
    assert np.bincount(ecg.labels).tolist() == [31, 69]
    np.testing.assert_allclose(ucr.normalize(ecg).values, ecg.values, atol=0.03)  # by the sample's deviation there
    assert ucr.load(data_dir, "JapaneseVowels")["train"].lengths.min() == 7
