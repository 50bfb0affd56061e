"""Spoken digits from files: what is read, how it is split, what is said of damaged ones; and the TFDS builder."""

import gzip
import io
import re
import struct
import tarfile
import wave

import numpy as np
import pytest
import tensorflow_datasets as tfds

from seqjax.data import builders, spoken_digits

SMALL = spoken_digits.generated(speakers=("ada", "ben", "cleo"), count=11, samples=40)


def wav(samples, rate=8000, channels=1, width=2):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, "<i2").tobytes())
    return buffer.getvalue()


FILES = {
    f"{digit}_{speaker}_{index}.wav": wav(samples)
    for samples, digit, speaker, index in zip(*SMALL, strict=True)
    if index < 2
}


def archive(path, files=FILES):
    with tarfile.open(path, "w:gz") as packed:
        for name, content in {**files, "README.md": b"not a recording"}.items():
            member = tarfile.TarInfo(f"free-spoken-digit-dataset-1.0.10/recordings/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def unpacked(folder, files=FILES):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def assert_same(found, expected):
    assert found.speakers == expected.speakers
    np.testing.assert_array_equal((found.digits, found.indices), (expected.digits, expected.indices))
    assert found.digits.dtype == found.indices.dtype == np.int32
    for ours, theirs in zip(found.samples, expected.samples, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.int16


@pytest.mark.parametrize("kind", ["archive", "folder of the archive", "recordings", "unpacked", "beside it"])
def test_recordings_are_read_wherever_they_lie(tmp_path, kind):
    (tmp_path / "packed").mkdir()
    file = archive(tmp_path / "packed" / "free-spoken-digit-dataset-1.0.10.tar.gz")
    release = tmp_path / "data" / "free-spoken-digit-dataset-1.0.10"
    recordings = unpacked(release / "recordings")
    path = {
        "archive": file,
        "folder of the archive": file.parent,
        "recordings": recordings,
        "unpacked": release,
        "beside it": tmp_path / "data",
    }[kind]
    assert_same(spoken_digits.load(path), SMALL.take(np.flatnonzero(SMALL.indices < 2)))
    assert spoken_digits.digest(path) == spoken_digits.digest(file)


def test_parts_have_no_speaker_in_common():
    parts = spoken_digits.by_speaker(SMALL, test="cleo")
    assert {name: set(part.speakers) for name, part in parts.items()} == {
        "train": {"ben"},
        "validation": {"ada"},
        "test": {"cleo"},
    }
    assert sum(len(part.samples) for part in parts.values()) == len(SMALL.samples)
    assert set(spoken_digits.by_speaker(SMALL, "ada", "cleo")["train"].speakers) == {"ben"}
    with pytest.raises(ValueError, match="no speaker 'dan', expected one of ada, ben, cleo"):
        spoken_digits.by_speaker(SMALL, "dan")
    with pytest.raises(ValueError, match="no speaker 'dan', expected one of ada, ben, cleo"):
        spoken_digits.by_speaker(SMALL, "ada", "dan")
    with pytest.raises(ValueError, match="test 'ada' and validation 'ada' of 3 speakers leave no third"):
        spoken_digits.by_speaker(SMALL, "ada", "ada")
    two = SMALL.take(np.flatnonzero(np.array(SMALL.speakers) != "ben"))
    with pytest.raises(ValueError, match="of 2 speakers leave no third for training"):
        spoken_digits.by_speaker(two, "ada")


def test_the_official_split_goes_by_index():
    parts = spoken_digits.by_index(SMALL)
    indices = {name: sorted(set(part.indices.tolist())) for name, part in parts.items()}
    assert indices == {"train": [10], "validation": [5, 6, 7, 8, 9], "test": [0, 1, 2, 3, 4]}
    with pytest.raises(ValueError, match="indices up to 4 leave the train part empty, expected some of at least 10"):
        spoken_digits.by_index(parts["test"])


def test_generated_recordings_are_those_of_the_seed():
    assert_same(spoken_digits.generated(1, count=2, samples=40), spoken_digits.generated(1, count=2, samples=40))
    other = spoken_digits.generated(2, count=2, samples=40)
    assert not np.array_equal(other.samples[0], spoken_digits.generated(1, count=2, samples=40).samples[0])


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone: no such file or folder, expected \*.wav or"):
        spoken_digits.load(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"no \*.wav or .* in it, found nothing"):
        spoken_digits.load(tmp_path)
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(FileNotFoundError, match=r"found notes.txt"):
        spoken_digits.load(tmp_path)
    with pytest.raises(ValueError, match=r"notes.txt: damaged or not an archive: ReadError"):
        spoken_digits.load(tmp_path / "notes.txt")
    whole = archive(tmp_path / "whole.tgz").read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.tgz: damaged"):
        spoken_digits.load(tmp_path / "cut.tgz")
    with pytest.raises(ValueError, match=r"empty.tgz: no recordings DIGIT_SPEAKER_INDEX.wav in it"):
        spoken_digits.load(archive(tmp_path / "empty.tgz", {}))


GOOD = wav([1, 2, 3])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("seven.wav", GOOD, r"seven.wav, expected names DIGIT_SPEAKER_INDEX.wav"),
        ("12_ada_0.wav", GOOD, r"12_ada_0.wav, expected names"),
        ("1_ada_0.wav", b"ID3 something", r"1_ada_0.wav: damaged or not a wav file: file does not start with RIFF id"),
        ("1_ada_0.wav", b"", r"1_ada_0.wav: damaged or not a wav file: it ends too early"),
        ("1_ada_0.wav", GOOD[:-2], r"1_ada_0.wav: 2 samples, expected 3 from the header: empty or truncated"),
        ("1_ada_0.wav", wav([]), r"1_ada_0.wav: 0 samples, expected 0 from the header: empty or truncated"),
        ("1_ada_0.wav", wav([1, 2], 16000), r"1 channels, 16000 Hz, 16 bit, expected 1 channel, 8000 Hz, 16 bit"),
        ("1_ada_0.wav", wav([1, 2], channels=2), r"2 channels, 8000 Hz"),
        ("1_ada_0.wav", wav([1, 2], width=1), r"1 channels, 8000 Hz, 8 bit"),
    ],
)
def test_a_recording_that_is_not_one(tmp_path, name, content, message):
    folder = unpacked(tmp_path / "recordings", {**FILES, name: content})
    with pytest.raises(ValueError, match=message):
        spoken_digits.load(folder)


# Wav files


def chunk(key, content, size=None):
    size = len(content) if size is None else size
    return key + struct.pack("<I", size) + content + b"\0" * (len(content) % 2)


def riff(*chunks, size=None):
    content = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content) if size is None else size) + content


def form(code=1, channels=1, rate=8000, bits=16, more=b""):
    frame = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", code, channels, rate, rate * frame, frame, bits) + more)


def extensible(bits=16, valid=16, code=1, guid="000000001000800000aa00389b71"):
    return form(0xFFFE, bits=bits, more=struct.pack("<HHIH", 22, valid, 4, code) + bytes.fromhex(guid))


DATA = np.array([1, -2, 300], "<i2").tobytes()
UNKNOWN = 0xFFFFFFFF


@pytest.mark.parametrize(
    "content",
    [
        riff(form(), chunk(b"data", DATA)),
        riff(form(), chunk(b"LIST", b"odd"), chunk(b"data", DATA), chunk(b"id3 ", b"x")),
        riff(chunk(b"JUNK", bytes(28)), form(), chunk(b"fact", bytes(4)), chunk(b"data", DATA)),
        riff(form(more=b"\0\0"), chunk(b"data", DATA)),
        riff(extensible(), chunk(b"data", DATA)),
        riff(extensible(valid=0), chunk(b"data", DATA)),
        riff(chunk(b"data", DATA), form()),
        riff(form(), chunk(b"data", DATA, UNKNOWN), size=UNKNOWN),
        riff(form(), chunk(b"data", DATA, UNKNOWN), size=0),
        riff(form(), chunk(b"data", DATA)) + b"TAG behind the end, of an id3 program",
        riff(form(), chunk(b"data", DATA), chunk(b"id3 ", b"x"))[:-1],  # without the padding at the end
    ],
)
def test_wav_files_of_every_writer(content):
    samples = spoken_digits.read_wav(content, "a.wav")
    assert samples.tolist() == [1, -2, 300]
    assert samples.dtype == np.int16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (riff(form(bits=8), chunk(b"data", DATA)), "1 channels, 8000 Hz, 8 bit, expected 1 channel, 8000 Hz, 16 bit"),
        (riff(form(bits=24), chunk(b"data", DATA)), "1 channels, 8000 Hz, 24 bit"),
        (riff(form(3, bits=32), chunk(b"data", DATA)), "format 0x3, expected 1, uncompressed samples"),
        (riff(form(7, bits=8), chunk(b"data", DATA)), "format 0x7, expected 1"),
        (riff(extensible(code=3), chunk(b"data", DATA)), "format 0x3, expected 1"),
        (riff(extensible(guid="00" * 14), chunk(b"data", DATA)), "format 0xfffe, expected 1"),
        (riff(extensible(valid=12), chunk(b"data", DATA)), "1 channels, 8000 Hz, 12 bit"),
        (riff(form(), chunk(b"data", DATA, 0)), "0 samples, expected 0 from the header: empty or truncated"),
        (
            riff(form(), chunk(b"data", b"", UNKNOWN), size=UNKNOWN),
            "0 samples, expected 0 from the header: empty or truncated",
        ),
        (riff(form(), chunk(b"data", DATA + b"\1")), "3 samples, expected 3.5 from the header: empty or truncated"),
        (
            riff(form(), chunk(b"data", DATA + b"\1", UNKNOWN), size=UNKNOWN)[:-1],
            "expected 3.5 from the header: empty or truncated",
        ),
        (riff(form(), chunk(b"data", DATA, 600)), "3 samples, expected 300 from the header: empty or truncated"),
        (riff(form(), chunk(b"data", DATA), size=36), "0 samples, expected 3 from the header: empty or truncated"),
        (riff(form()), "no chunk 'data', found"),
        (riff(chunk(b"data", DATA)), "no chunk 'fmt ', found"),
        (riff(form(), chunk(b"data", DATA), chunk(b"data", DATA)), "two chunks 'data'"),
        (riff(form(), form(), chunk(b"data", DATA)), "two chunks 'fmt '"),
        (riff(chunk(b"fmt ", bytes(14)), chunk(b"data", DATA)), "a format of 14 bytes, expected 16 or more"),
        (riff(form(), chunk(b"LIST", b"abc", 4000), chunk(b"data", DATA)), "it ends too early, in its chunk b'LIST'"),
        (riff(form(), chunk(b"data", DATA), chunk(b"LIST", bytes(40)))[:-9], "it ends too early, in its chunk b'LIST'"),
        (b"RIFX" + riff(form(), chunk(b"data", DATA))[4:], "RIFX is not supported, expected RIFF"),
        (b"RF64" + riff(form(), chunk(b"data", DATA))[4:], "RF64 is not supported, expected RIFF"),
        (riff(form(), chunk(b"data", DATA)).replace(b"WAVE", b"AVI "), "RIFF of b'AVI ', expected WAVE"),
        (gzip.compress(riff(form(), chunk(b"data", DATA)), mtime=0), "it is gzip, decompress it"),
        (b"RIFF\4\0", "it ends too early"),
    ],
)
def test_wav_files_that_are_not_read_are_named(content, message):
    with pytest.raises(ValueError, match=rf"^a.wav: .*{re.escape(message)}"):
        spoken_digits.read_wav(content, "a.wav")


def test_every_cut_of_a_wav_file_is_noticed():
    whole = riff(form(), chunk(b"LIST", b"odd"), chunk(b"data", DATA))
    for end in range(len(whole)):
        with pytest.raises(ValueError, match=r"^a.wav: "):
            spoken_digits.read_wav(whole[:end], "a.wav")


def test_recordings_that_look_like_others_are_refused(tmp_path):
    for number, (name, message) in enumerate(
        (
            ("1_ada_00.wav", "1_ada_0.wav and 1_ada_00.wav: two recordings of one digit, speaker and index"),
            ("more/1_ada_0.wav", "1_ada_0.wav and 1_ada_0.wav: two recordings"),
            ("1_ada_5.WAV", "1_ada_5.WAV, expected names DIGIT_SPEAKER_INDEX.wav"),
            ("٣_ada_5.wav", "٣_ada_5.wav, expected names DIGIT_SPEAKER_INDEX.wav"),
        )
    ):
        folder = unpacked(tmp_path / f"{number}", FILES)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(GOOD)
        with pytest.raises(ValueError, match=message):
            spoken_digits.load(folder)
    for name in ("free-spoken-digit-dataset-1.0.9", "free-spoken-digit-dataset-1.0.10"):
        unpacked(tmp_path / "two" / name / "recordings")
    with pytest.raises(ValueError, match=r"two: expected one data set, found .*1.0.10/recordings, .*pass one of them"):
        spoken_digits.load(tmp_path / "two")


# The builder


def no_download(*_):
    raise AssertionError("must not download")


def test_the_builder_prepares_what_the_loader_reads(tmp_path, monkeypatch):
    manual = tmp_path / "manual"
    manual.mkdir()
    file = archive(manual / "free-spoken-digit-dataset-1.0.10.tar.gz")
    with pytest.raises(ValueError, match=r"1.0.10.tar.gz: recordings [0-9a-f]{64}, expected 1801eae0"):
        builders.free_spoken_digits(tmp_path / "data", manual)
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    monkeypatch.setattr(builders.FreeSpokenDigits, "digest", spoken_digits.digest(file))
    monkeypatch.setattr(tfds.download.DownloadManager, "download", no_download)
    expected = spoken_digits.load(file)
    assert_same(builders.free_spoken_digits(tmp_path / "data", manual), expected)
    file.unlink()
    assert_same(builders.free_spoken_digits(tmp_path / "data"), expected)
    info = builders.FreeSpokenDigits(data_dir=tmp_path / "data", file_format="array_record").info
    assert info.redistribution_info.license == "CC BY-SA 4.0"
    assert info.citation.startswith("@misc{jackson2016free")


def test_the_real_recordings(data_dir):
    recordings = spoken_digits.load(data_dir)
    assert len(recordings.samples) == 3000
    assert sorted(set(recordings.speakers)) == ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    np.testing.assert_array_equal(np.bincount(recordings.digits), np.full(10, 300))
    np.testing.assert_array_equal(np.bincount(recordings.indices), np.full(50, 60))
    lengths = [len(samples) for samples in recordings.samples]
    assert (min(lengths), max(lengths)) == (1148, 18262)
    assert spoken_digits.digest(data_dir) == builders.FreeSpokenDigits.digest
