"""Damaged files and archives made to do harm: single faults of each kind, and a few hundred random ones."""

import bz2
import gzip
import io
import json
import lzma
import random
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from experiments import spotting
from seqjax.data import (
    damaged,
    embeddings,
    files,
    jena,
    matlab,
    mnist,
    music,
    nab,
    pairs,
    reviews,
    spoken_digits,
    text,
    ucr,
    vectorize,
    words,
)
from seqjax.train import Run
from tests import reader_files
from tests.reader_files import WAV, Case, Reader, tar, zipped
from tools import fuzz_readers

WORDS = vectorize.fit(["the cat sat"])


def write(path, content):
    path.write_bytes(content)
    return path


@contextmanager
def within(mebibytes):
    """Fails where more memory than that is allocated."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes << 20
    finally:
        tracemalloc.stop()


def test_a_damaged_file_of_any_reader_is_refused_or_read_right():
    command = [sys.executable, fuzz_readers.__file__, "300", "--seed=7"]
    printed = subprocess.run(command, capture_output=True, text=True).stdout
    assert "300 trials of seed 7, 0 failed" in printed, printed
    rows = {
        row[0]: [*map(int, row[1:])] for row in (line.strip("| ").split(" | ") for line in printed.split("\n")[2:-2])
    }
    assert set(rows) == {reader.name for reader in reader_files.readers()} | {"all"}
    refused, right, changed, failed = rows["all"]
    assert refused > 200
    assert right > 10
    assert changed > 10
    assert not failed


def trials(case, right, folder, passed):
    for number in range(50):
        with suppress(*passed):
            fuzz_readers.trial(case, right, random.Random(number), folder / "files")


def raises(error, said):
    def read(folder):
        raise error(said.format(folder))

    return read


@pytest.mark.parametrize(
    ("read", "error", "message"),
    [
        (raises(zlib.error, "{}: Error -3"), zlib.error, "Error -3"),
        (raises(ValueError, "invalid literal"), AssertionError, "names no file"),
        (raises(ValueError, "{}: a\nb"), AssertionError, "several lines"),
        (raises(ValueError, "{}" + 2000 * "a"), AssertionError, "characters"),
        (lambda folder: text.read(folder / "a.txt").upper(), AssertionError, None),
    ],
)
def test_the_fuzz_test_notices(read, error, message, tmp_path):
    reader = Reader("text file", {"a.txt": b"to be"}, read, reader_files.whole_text)
    with pytest.raises(error, match=message):
        trials(Case(reader, "", dict, False), "TO BE", tmp_path, () if error is zlib.error else (UnicodeDecodeError,))


def test_the_fuzz_test_notices_an_archive_that_loses_members(tmp_path, monkeypatch):
    def read(folder):
        if not (folder / "a.tar").exists():
            return [file.read_bytes().decode() for file in sorted(folder.iterdir())]
        with tarfile.open(folder / "a.tar") as archive:  # ends without a word where it is cut between members
            return [archive.extractfile(member).read().decode() for member in archive]

    reader = Reader("careless", {"a.txt": b"a", "b.txt": b"b"}, read, lambda files, data: None, "a", plain=False)
    case = Case(reader, ".tar", lambda files: {"a.tar": tar(files)}, False)
    monkeypatch.setattr(fuzz_readers, "damaged", lambda content, rng: content[:1024])
    with pytest.raises(AssertionError, match="cut off"):
        fuzz_readers.trial(case, ["a", "b"], random.Random(0), tmp_path / "files")


@pytest.mark.parametrize("harm", ["import time; time.sleep(60)", "import ctypes; ctypes.string_at(0)"])
def test_the_fuzz_test_notices_what_hangs_or_crashes(harm, tmp_path, monkeypatch):
    script = tmp_path / "fuzz_readers.py"  # in the place of the worker
    script.write_text(
        f"import faulthandler; faulthandler.enable(); faulthandler.dump_traceback_later(1, exit=True)\n{harm}"
    )
    monkeypatch.setattr(fuzz_readers, "__file__", str(script))
    found = fuzz_readers.fuzz(1)
    assert len(found["failures"]) == 1
    assert found["failures"][0]["number"] == 0
    assert ("Timeout" if "sleep" in harm else "Segmentation fault") in found["failures"][0]["error"]


# Parsers


def test_damaged_word_vectors_are_named(tmp_path):
    whole = gzip.compress(b"the 1 2\ncat 3 4\n" * 100, mtime=0)
    right = embeddings.load(write(tmp_path / "g.gz", whole), WORDS)
    for at in range(len(whole)):
        path = write(tmp_path / "g.gz", whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        if at in range(4, 10):  # the time and the system of the one who packed it
            np.testing.assert_array_equal(embeddings.load(path, WORDS).vectors, right.vectors)
            continue
        with pytest.raises(ValueError, match=r"g\.gz(, line \d+)?[: ]"):
            embeddings.load(path, WORDS)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "NaN", "Infinity", "1e999", "1e39", "1_0", "٣"])
@pytest.mark.parametrize("line", ["cat {} 4", "cat 3 {}"])
def test_word_vectors_are_finite_numbers(number, line, tmp_path):
    path = write(tmp_path / "g.txt", f"the 1 2\n{line.format(number)}\n".encode())
    with pytest.raises(ValueError, match=r"g\.txt, line 2: "):
        embeddings.load(path, WORDS)


def test_damaged_samples_are_named_and_say_why():
    for at in range(len(WAV)):
        for damage in (WAV[:at], WAV[:at] + bytes([WAV[at] ^ 255]) + WAV[at + 1 :], WAV[:at] + WAV[at + 1 :]):
            try:
                samples = spoken_digits.read_wav(damage, "a.wav")
            except ValueError as error:
                said = str(error)
            else:
                assert samples.tobytes() == damage[44:] or damage[:44] != WAV[:44]
                continue
            assert said.startswith("a.wav: ")
            assert len(said) > 20


def header(shape):
    with io.BytesIO() as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        return file.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"X.npy": header((10**12, 2))},
            r"X.npy: damaged: ValueError: 0 bytes, expected \(1000000000000, 2\) of float64 from its header",
        ),
        (
            {"X.npy": header((10**9, 2)) + bytes(48)},
            r"X.npy: damaged: ValueError: 48 bytes, expected \(1000000000, 2\) of float64 from its header",
        ),
        ({"X.npy": header((-3, -2)) + bytes(48)}, "X.npy: damaged: "),
        ({"X.npy": b"no array"}, "X.npy: damaged: ValueError: the magic string is not correct"),
        ({"X.npy": b""}, "X.npy: damaged: "),
        ({"X.npy": None, "X": b"no array"}, r"missing \['X'\], found \['cols', 'dates'\]"),
        ({"cols.npy": reader_files.npy(np.array("p (mbar)"))}, "1 cols"),
    ],
)
def test_a_damaged_npz_is_named(change, message, tmp_path):
    content = zipped({name: content for name, content in {**reader_files.NPZ, **change}.items() if content is not None})
    path = write(tmp_path / "a.npz", content)
    with within(8), pytest.raises(ValueError, match=rf"a\.npz: .*{message}"):
        jena.load(path)


def test_other_files_in_an_npz_are_passed_over(tmp_path):
    path = write(tmp_path / "a.npz", zipped({"readme.txt": b"hello", **reader_files.NPZ}))
    assert jena.load(path).values.shape == (3, 2)


def test_a_matlab_file_that_says_more_than_is_there_is_named(tmp_path):
    whole = reader_files.matlab(False)
    at = whole.index(struct.pack("<2i", 1, 2))  # the sizes of the first list of sequences
    path = write(tmp_path / "JSB_Chorales.mat", whole[:at] + struct.pack("<2i", 1 << 20, 1 << 30) + whole[at + 8 :])
    with pytest.raises(ValueError, match=r"JSB_Chorales.mat: damaged: \w+: "):
        music.read(path)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_matlab_file_is_refused_or_read_right(compressed):
    whole = reader_files.matlab(compressed)
    right = matlab.lists(whole, "a.mat")
    expected = scipy.io.loadmat(io.BytesIO(whole))
    for name, cells in right.items():
        for got, wanted in zip(cells, expected[name].ravel(), strict=True):
            np.testing.assert_array_equal(got, wanted)
    for at in range(124, len(whole) if compressed else 300):  # scipy crashes at some
        for value in {0, 1, 7, 14, 255, whole[at] ^ 1} - {whole[at]}:
            damage = whole[:at] + bytes([value]) + whole[at + 1 :]
            try:
                found = matlab.lists(damage, "a.mat")
            except ValueError as error:
                assert str(error).startswith("a.mat: damaged: ")  # noqa: PT017
                continue
            assert all(array.dtype.kind in "iuf" for cells in found.values() for array in cells)
            if compressed:  # there is a checksum around it
                assert fuzz_readers.plain(found) == fuzz_readers.plain(right)


def test_a_matlab_file_of_another_kind_is_named():
    for values, message in (
        ([1j * np.eye(2)], "complex numbers"),
        (["text"], "class 4 in a list, expected an array of numbers"),
        ([np.array([[np.eye(2)]], object)], "class 1 in a list"),
    ):
        cells = np.empty((1, 1), object)
        cells[0, 0] = values[0]
        with io.BytesIO() as file:
            scipy.io.savemat(file, {"traindata": cells})
            with pytest.raises(ValueError, match=rf"a\.mat: damaged: ValueError: .*{message}"):
                matlab.lists(file.getvalue(), "a.mat")
    with pytest.raises(ValueError, match="not a MATLAB file of level 5: save it with -v7"):
        matlab.lists(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM", "a.mat")


def test_an_idx_file_that_says_more_than_is_there_is_named(tmp_path):
    for name, content in reader_files.MNIST.items():
        write(tmp_path / name, content)
    write(tmp_path / "t10k-labels-idx1-ubyte", b"\0\0\x08\1\xff\xff\xff\xff\5\7")
    with within(8), pytest.raises(ValueError, match="t10k-labels-idx1-ubyte: 10 bytes, expected 4294967303"):
        mnist.load(tmp_path)


@pytest.mark.parametrize("depth", [21, 960, 980, 990, 995, 1000, 100_000])
@pytest.mark.parametrize("before", [b"", b'{"train": ', b'{"vocabulary": ', b'{"a/b.csv": '])
def test_lists_in_lists_in_lists_are_named(depth, before, tmp_path):
    content = before + b"[" * depth + b"]" * depth + b"}" * bool(before)
    path = write(tmp_path / "a.json", content)
    archive = write(tmp_path / "NAB.zip", zipped({"labels/combined_windows.json": content}))
    for read in (vectorize.load, pairs.Vocabulary.load, music.read):
        with pytest.raises(ValueError, match=r"a\.json: "):
            read(path)
    with pytest.raises(ValueError, match=r"combined_windows\.json: "):
        nab.load(archive)
    for read in (text.Vocabulary.from_json, words.Vocabulary.from_json):
        with pytest.raises(ValueError, match="vocabulary: "):
            read(content.decode())


def test_a_vectorizer_of_other_rules_is_named(tmp_path):
    WORDS.save(tmp_path / "a.json")
    for rules in ({"ngrams": [1.0]}, {"ngrams": [True]}, {"lower": "no"}, {"stem": 5}, {"stem": []}):
        content = json.loads((tmp_path / "a.json").read_text())
        content["rules"] |= rules
        with pytest.raises(ValueError, match=r"b\.json: not a vectorizer: "):
            vectorize.load(write(tmp_path / "b.json", json.dumps(content).encode()))


@pytest.mark.parametrize("value", ["abc", "9" * 5000, "-1", "²"])
@pytest.mark.parametrize("key", ["@dimensions", "@seriesLength"])
def test_a_size_that_is_none_is_named(key, value, tmp_path):
    for part in ("TRAIN", "TEST"):
        content = f"{key} {value}\n@equalLength true\n@classLabel true a\n@data\n1,2:a\n"
        write(tmp_path / f"E_{part}.ts", content.encode())
    with pytest.raises(ValueError, match=rf"E_TRAIN\.ts line 1: {key} is '.*', expected a number of steps"):
        ucr.load(tmp_path, "E")


def test_classes_that_are_no_numbers_after_all(tmp_path):
    for part in ("TRAIN", "TEST"):
        write(tmp_path / f"E_{part}.txt", b"1e-99999999999999999999 1 2\n")
        write(
            tmp_path / f"F_{part}.ts",
            b"@classLabel true 1e-99999999999999999999 1\n@data\n1,2:1e-99999999999999999999\n",
        )
    with pytest.raises(ValueError, match=r"E_TRAIN\.txt line 1, class: 1e-99999999999999999999 has an exponent"):
        ucr.load(tmp_path, "E")
    assert ucr.load(tmp_path, "F")["train"].classes == ("1e-99999999999999999999",)


def test_parts_of_other_variables_are_named(tmp_path):
    for part, content in (("TRAIN", b"1:2"), ("TEST", b"1")):
        write(tmp_path / f"E_{part}.ts", b"@classLabel true a\n@data\n" + content + b":a\n")
    with pytest.raises(ValueError, match="series of 1 and 2 variables, expected the same for all"):
        ucr.load(tmp_path, "E")


def test_numbers_in_names_that_no_array_holds(tmp_path):
    path = write(tmp_path / "fsdd.tar", tar({"recordings/1_ada_99999999999.wav": WAV}))
    with pytest.raises(ValueError, match=r"fsdd\.tar: 1_ada_99999999999\.wav, expected names"):
        spoken_digits.load(path)
    path = write(tmp_path / "aclImdb.tar", tar({f"train/neg/{'1' * 5000}_2.txt": b"bad"}))
    with pytest.raises(ValueError, match=r"aclImdb\.tar: contains a name of 5,016 characters, expected at most 4,096"):
        reviews.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK", zipped({"a.npy": b""}), zipped({}), zipped({"model.npy": header((9,))})]
)
def test_a_scale_that_is_none_is_named(content, tmp_path):
    run = Run.open(tmp_path, {"model": "gru", "units": 2, "digit": 3})
    run.finish({"threshold": 0.0})
    write(tmp_path / "scale.npz", content)
    with pytest.raises(ValueError, match=r"scale\.npz: "):
        spotting.read(run)


# Archives


def load_of(name):
    return next(reader for reader in reader_files.readers() if reader.name == name)


@pytest.mark.parametrize("name", ["wav archive", "reviews", "ptb archive", "nab archive", "ucr archive"])
def test_a_tar_archive_that_is_cut_between_two_members_is_named(name, tmp_path):
    reader = load_of(name)
    whole = tar(reader.files)
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / f"{reader.archive}.tar"
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        ends = [member.offset for member in archive][1:]
    last = 512 * -(-len(whole.rstrip(b"\0")) // 512)
    for end in (*ends, last):
        write(path, whole[:end])
        with pytest.raises(
            ValueError, match=rf"{reader.archive}\.tar: damaged.*: ReadError: empty header at byte {end}"
        ):
            reader.read(path.parent)


def test_a_file_that_was_packed_is_not_read_as_text(tmp_path):
    for name, content in (
        ("a.txt.tar", tar({"a.txt": b"to be"})[:200]),
        ("a.txt.zip", b"\0" + zipped({"a": b"to be"}, zipfile.ZIP_STORED)[1:12]),
        ("a.txt.gz", b""),
        ("a.txt.gz", gzip.compress(b"to be")[:1]),
        ("a.txt.bz2", bz2.compress(b"to be")[:6]),
        ("a.txt.xz", b"to be"),
    ):
        with pytest.raises(
            ValueError, match=rf"{name}: damaged, or not compressed as its suffix \.\w+ suggests: if so, rename it"
        ):
            text.read(write(tmp_path / name, content))
    assert text.read(write(tmp_path / "b.txt.gz", b"to be")) == "to be"  # a browser unpacked it
    with pytest.raises(ValueError, match=r"urls_pos\.txt\.gz: damaged, or not compressed"):
        list(files.members(write(tmp_path / "a.zip", zipped({"urls_pos.txt.gz": b""})), lambda name: True))


def test_the_directory_of_a_zip_archive_says_what_the_files_say(tmp_path):
    whole = zipped({f"aclImdb/{part}/neg/{i}_2.txt": b"bad" for part in ("train", "test") for i in (1, 2)})
    path = tmp_path / "aclImdb.zip"
    assert len(reviews.load(write(path, whole))["train"].texts) == 2
    at = whole.rindex(b"aclImdb/train/neg/2_2.txt")
    for damage in (b"x", b"/"):
        content = whole[: at + 8] + damage + whole[at + 9 :]
        with pytest.raises(
            ValueError, match=r"aclImdb\.zip: .*BadZipFile: its directory lists '.*', the header of the file '"
        ):
            reviews.load(write(path, content))
    directory = whole.index(b"PK\1\2")
    nothing = whole[: directory + 16] + bytes(12) + whole[directory + 28 :]
    with pytest.raises(
        ValueError,
        match=r"aclImdb\.zip: .*the header of aclImdb/train/neg/1_2.* disagree on method, checksum or size",
    ):
        reviews.load(write(path, nothing))
    second = whole.index(b"PK\1\2", directory + 1)
    end = whole.rindex(b"PK\5\6")
    fewer = bytearray(whole[:directory] + whole[second:])
    struct.pack_into("<I", fewer, end - (second - directory) + 12, end - second)
    with pytest.raises(ValueError, match=r"aclImdb\.zip: .*its directory has 3 entries, but states 4"):
        reviews.load(write(path, bytes(fewer)))


def test_zeros_between_streams_of_xz_end_nothing(tmp_path):
    one = lzma.compress(b"one\n")
    for zeros in (4, 65536 - len(one), 65536, 200_000):
        assert files.read(write(tmp_path / "a", one + bytes(zeros) + lzma.compress(b"two\n"))) == b"one\ntwo\n"


@cache
def gigabytes(pack):
    return pack(bytes(10 << 20)) * 150


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
@pytest.mark.parametrize("read", [text.read, lambda path: embeddings.load(path, WORDS)], ids=["text", "vectors"])
def test_a_bomb_of_a_gigabyte_and_a_half_is_stopped(read, pack, tmp_path):
    path = write(tmp_path / "bomb", gigabytes(pack))
    assert path.stat().st_size < 2_000_000
    wanted = r"bomb(, line \d+: .*bomb)?: unpacks to [0-9,]+ bytes from [0-9,]+, more than 200 times as many: if you"
    with within(200), pytest.raises(ValueError, match=wanted):
        read(path)


def bombs():
    zeros = bytes(16 << 20)
    of_zip = {"deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
    for name, method in of_zip.items():
        yield pytest.param(zipped({"a.txt": zeros}, method), id=f"zip {name}")
    yield pytest.param(gzip.compress(tar({"a.txt": zeros})), id="tar.gz")
    yield pytest.param(lzma.compress(tar({"a.txt": zeros})), id="tar.xz")
    yield pytest.param(gzip.compress(tar({"other": zeros, "a.txt": b"a"})), id="passed over")
    yield pytest.param(zipped({"a.txt.gz": gzip.compress(zeros)}), id="gzip in zip")
    yield pytest.param(tar({"a.txt.bz2": bz2.compress(zeros)}), id="bzip2 in tar")
    yield pytest.param(gzip.compress(zipped({"a.txt": zeros})), id="zip in gzip")
    many = {f"{i}.txt.gz": gzip.compress(bytes(900_000)) for i in range(20)}
    yield pytest.param(tar(many), id="many in tar")


@pytest.mark.parametrize("bomb", list(bombs()))
def test_bombs_of_every_kind_are_stopped(bomb, tmp_path, monkeypatch):
    monkeypatch.setattr(damaged, "SMALL", 1 << 20)
    path = write(tmp_path / "bomb", bomb)
    with (
        within(12),
        pytest.raises(ValueError, match=r"bomb: unpacks to .* if you trust it, unpack it and pass its"),
    ):
        for _ in files.members(path, lambda name: name.endswith(".txt")):
            pass


def test_a_zip_archive_that_says_little_and_holds_much_is_stopped(tmp_path):
    whole = bytearray(zipped({"a.txt": bytes(64 << 20)}))
    for place in (whole.rindex(b"PK\1\2") + 24, 22):
        struct.pack_into("<I", whole, place, 10)  # its size, unpacked
    path = write(tmp_path / "a.zip", bytes(whole))
    with within(2), pytest.raises(ValueError, match=r"a\.zip: damaged: BadZipFile: Bad CRC-32"):
        files.read(path)


def test_bounds_of_members_and_bytes(tmp_path, monkeypatch):
    contents = {f"{i}.txt": bytes(1000) for i in range(11)}
    for pack in (tar, zipped):
        path = write(tmp_path / "a", pack(contents))
        assert len(list(files.members(path, lambda name: True))) == 11
        with monkeypatch.context() as patch:
            patch.setattr(damaged, "MEMBERS", 10)
            with pytest.raises(ValueError, match=r"a: unpacks to more than 10 members: if you trust it, unpack it"):
                list(files.members(path, lambda name: False))
        with monkeypatch.context() as patch:
            patch.setattr(damaged, "BYTES", 10_000)
            with pytest.raises(ValueError, match=r"a: unpacks to more than 10,000 bytes: if you trust it"):
                list(files.members(path, lambda name: True))


def with_pax(records, content=b"x"):
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            info = tarfile.TarInfo("a.txt")
            info.size, info.pax_headers = len(content), records
            archive.addfile(info, io.BytesIO(content))
        return file.getvalue()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", ["9" * 18, "9" * 5000, "-9", "abc"])
def test_a_tar_archive_that_says_more_than_is_there_is_stopped_at_once(size, tmp_path):
    path = write(tmp_path / "a.tar", with_pax({"size": size}))
    with within(8), pytest.raises(ValueError, match=r"a\.tar: "):
        list(files.members(path, lambda name: True))


def test_a_tar_member_with_holes_is_refused(tmp_path):
    path = write(tmp_path / "a.tar", with_pax({"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**12)}))
    with (
        within(8),
        pytest.raises(ValueError, match=r"a\.tar: (a\.txt is a sparse file|unpacks to 1,000,000,000,000 bytes)"),
    ):
        list(files.members(path, lambda name: True))
    path = write(tmp_path / "a.tar", with_pax({"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**9)}))
    with within(8), pytest.raises(ValueError, match=r"a\.tar: a\.txt is a sparse file: archive it without"):
        list(files.members(path, lambda name: True))


# The wrapper


def test_whatever_a_parser_raises_names_the_file_in_one_line():
    class StrangeError(Exception):
        pass

    for error in (
        StrangeError("two\nlines"),
        MemoryError(),
        RecursionError("deep"),
        ValueError("none"),
        OSError("not gzip"),
    ):
        with pytest.raises(ValueError, match=rf"^a: damaged: {type(error).__name__}") as found, damaged.named("a"):
            raise error
        assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match=r"^a: as it is$"), damaged.named("a"):
        raise ValueError("a: as it is")
    with pytest.raises(FileNotFoundError, match="gone"), damaged.named("a"):
        Path("gone").read_bytes()
    with pytest.raises(OSError, match=r"\[Errno 5\] Input/output error: 'a'"), damaged.named("a"):
        raise OSError(5, "Input/output error")
    with pytest.raises(ValueError, match=r"^a: damaged: OSError: "), damaged.named("a"), open(__file__, "rb") as file:
        file.seek(-1)
    with pytest.raises(KeyboardInterrupt), damaged.named("a"):
        raise KeyboardInterrupt
