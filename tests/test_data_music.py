"""Piano rolls from files, MIDI files from piano rolls, and what is said of damaged ones."""

import gzip
import hashlib
import io
import json
import re

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds

from seqjax.data import builders, midi, music

SEQUENCES = {"train": [[[60, 64, 67], []], [[21], [108, 60]]], "valid": [[[60], [60], [62]]], "test": [[[64], [65.0]]]}


def packed(sequences=SEQUENCES):
    return json.dumps(sequences).encode()


def matlab(sequences=SEQUENCES, compress=True):
    """The same as MATLAB cells."""
    cells = {}
    for part, rolls in sequences.items():
        cells[f"{part}data"] = np.empty((1, len(rolls)), object)
        for i, one in enumerate(rolls):
            cells[f"{part}data"][0, i] = one if isinstance(one, np.ndarray) else music.roll(one)
    with io.BytesIO() as file:
        scipy.io.savemat(file, cells, do_compression=compress)
        return file.getvalue()


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("jsb", "JSB_Chorales.mat", matlab()),
        ("nottingham", "music/Nottingham.mat", matlab()),
        ("piano_midi", "music/Piano_midi.mat", matlab()),
        ("musedata", "MuseData.mat", matlab()),
        ("jsb_quarter", "jsb-chorales-quarter.json", packed()),
        ("jsb_16th", "music/jsb-chorales-16th.json.gz", gzip.compress(packed(), mtime=0)),
    ],
)
def test_all_files_are_rolls_of_the_same_form(tmp_path, name, file, content):
    path = written(tmp_path / file, content)
    for where in (path, tmp_path):
        parts = music.load(where, name)
        assert list(parts) == ["train", "validation", "test"]
        assert [music.chords(roll) for roll in parts["train"]] == [[[60, 64, 67], []], [[21], [60, 108]]]
        assert music.chords(parts["test"][0]) == [[64], [65]]
        assert {roll.dtype for part in parts.values() for roll in part} == {np.dtype(np.uint8)}
        assert parts["validation"][0].shape == (3, 88)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="no data set 'bach', expected one of jsb, jsb_quarter, jsb_16th, nottingham"):
        music.load(tmp_path, "bach")
    with pytest.raises(FileNotFoundError, match=r"gone: no such file or folder, expected Nottingham.mat"):
        music.load(tmp_path / "gone", "nottingham")
    with pytest.raises(FileNotFoundError, match=r"no JSB_Chorales.mat or JSB_Chorales.mat.gz in it, found nothing"):
        music.load(tmp_path)
    written(tmp_path / "notes.txt", b"")
    with pytest.raises(FileNotFoundError, match=r"found notes.txt"):
        music.load(tmp_path)


def without(part):
    return {name: rolls for name, rolls in SEQUENCES.items() if name != part}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no music", "neither MATLAB nor JSON: not JSON: Expecting value"),
        (b"", "neither MATLAB nor JSON: not JSON: Expecting value"),
        (packed()[:-20], "neither MATLAB nor JSON: not JSON: "),
        (gzip.compress(packed(), mtime=0)[:-9], "damaged: EOFError"),
        (matlab()[:300], "damaged: "),
        (matlab(compress=False)[:-600], "damaged: "),
        (packed(without("valid")), r"no 'valid' in it, found \['train', 'test'\]"),
        (matlab(without("test")), "no 'testdata' in it"),
        (b"[1, 2]", r"no 'train' in it, found \[1, 2\]"),
        (b'"train"', "no 'train' in it, found train"),
        (b"7", "no 'train' in it, found 7"),
        (b"null", "no 'train' in it, found None"),
        (packed()[:-1] + b', "test": []}', "neither MATLAB nor JSON: not JSON: duplicate name: 'test'"),
        (b"[" * 100_000, "neither MATLAB nor JSON: not JSON: maximum recursion depth"),
        (packed({**SEQUENCES, "valid": []}), "'valid' has no sequences"),
        (packed({**SEQUENCES, "valid": 7}), "'valid' is '7', expected a list of sequences"),
        (packed({**SEQUENCES, "valid": None}), "'valid' is 'None', expected a list of sequences"),
        (packed({**SEQUENCES, "valid": {"0": [[60], [60]]}}), "'valid' is .*, expected a list of sequences"),
        (packed({**SEQUENCES, "valid": ["ab"]}), "'valid', sequence 0: 'ab', expected a list of chords"),
        (packed({**SEQUENCES, "valid": [{"0": [60]}]}), "'valid', sequence 0: .*, expected a list of chords"),
        (packed({**SEQUENCES, "valid": [[60, 62]]}), "'valid', sequence 0: step 0: '60', expected a list of pitches"),
        (packed({**SEQUENCES, "valid": [[[60], "C"]]}), "'valid', sequence 0: step 1: 'C', expected a list of pitches"),
        (
            packed({**SEQUENCES, "valid": [[[60], [[60]]]]}),
            r"'valid', sequence 0: step 1: pitch \[60\], expected",
        ),
        (
            packed({**SEQUENCES, "valid": [[[60], [None]]]}),
            "'valid', sequence 0: step 1: pitch None, expected an integer",
        ),
        (
            packed({**SEQUENCES, "valid": [[[60], [True]]]}),
            "'valid', sequence 0: step 1: pitch True, expected an integer",
        ),
        (
            packed({**SEQUENCES, "test": [[[60], [20]]]}),
            "'test', sequence 0: step 1: pitch 20, expected an integer",
        ),
        (packed({**SEQUENCES, "test": [[[60], ["C"]]]}), "'test', sequence 0: step 1: pitch 'C'"),
        (packed({**SEQUENCES, "test": [[[60], [60.5]]]}), "'test', sequence 0: step 1: pitch 60.5"),
        (packed({**SEQUENCES, "test": [[[60], [60]], 7]}), "'test', sequence 1: "),
        (packed({**SEQUENCES, "train": [[[60]]]}), r"'train', sequence 0: shape \(1, 88\), expected \[2 or more steps"),
        (matlab({**SEQUENCES, "valid": [np.zeros((4, 87))]}), r"'validdata', sequence 0: shape \(4, 87\), expected"),
        (matlab({**SEQUENCES, "valid": [np.full((4, 88), 0.5)]}), "'validdata', sequence 0: a value that is not 0 or"),
    ],
)
def test_what_is_damaged_is_named(tmp_path, content, message):
    file = written(tmp_path / "music.file", content)
    with pytest.raises(ValueError, match=rf"music.file: {message}"):
        music.read(file)


def test_generated_rolls_are_chords_of_c_major_under_a_melody():
    rolls = music.generated(20, seed=3)
    assert all(24 <= len(roll) <= 48 and (roll.sum(1) == 4).all() for roll in rolls)
    assert {pitch % 12 for roll in rolls for chord in music.chords(roll) for pitch in chord} == {0, 2, 4, 5, 7, 9, 11}
    again = music.generated(20, seed=3)
    assert all((a == b).all() for a, b in zip(rolls, again, strict=True))
    assert any(a.shape != b.shape for a, b in zip(rolls, music.generated(20, seed=4), strict=True))


HELD = music.roll([[60], [60, 67], [67], [], [60]])


def test_a_midi_file_byte_by_byte():
    track = (
        b"\x00\xff\x51\x03\x07\xa1\x20"  # 500,000 microseconds a step
        b"\x00\x90\x3c\x50"  # C is struck
        b"\x18\x90\x43\x50"  # and 24 ticks later G
        b"\x18\x80\x3c\x00"
        b"\x18\x80\x43\x00"
        b"\x18\x90\x3c\x50"
        b"\x18\x80\x3c\x00"
        b"\x00\xff\x2f\x00"
    )
    header = b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x00\x18MTrk\x00\x00\x00" + bytes([len(track)])
    assert midi.encode(HELD) == header + track


def test_a_long_rest_is_a_number_of_two_bytes():
    content = midi.encode(music.roll([[]] * 10 + [[60]]))
    assert b"\x81\x70\x90\x3c\x50" in content  # 240 = 1 * 128 + 112
    assert midi.encode(music.roll([[60]] + [[]] * 6))[-5:] == b"\x81\x10\xff\x2f\x00"  # the rests at the end


def test_mido_reads_what_was_written():
    mido = pytest.importorskip("mido", reason="compares with mido, which is not installed")
    roll = music.generated(1)[0]
    found = mido.MidiFile(file=io.BytesIO(midi.encode(roll, step_seconds=0.25, velocity=64)))
    assert found.length == pytest.approx(0.25 * len(roll), rel=1e-5)
    time, heard, struck = 0.0, np.zeros_like(roll), {}
    for message in found:
        time += message.time
        step = round(time / 0.25)
        if message.type == "note_on":
            assert message.velocity == 64
            assert message.note not in struck
            struck[message.note] = step
        elif message.type == "note_off":
            heard[struck.pop(message.note) : step, message.note - music.LOWEST] = 1
    assert not struck
    np.testing.assert_array_equal(heard, roll)


def test_what_midi_cannot_say():
    for roll in (np.zeros(88), np.full((2, 88), 2)):
        with pytest.raises(ValueError, match=r"a roll is \[T, K\] of 0 and 1, got (float64 \(88,\)|int64 \(2, 88\))"):
            midi.encode(roll)
    for wrong in ({"lowest": 41}, {"lowest": -1}, {"velocity": 0}, {"velocity": 128}):
        with pytest.raises(ValueError, match="MIDI has the pitches 0 to 127 and velocities 1 to 127, got lowest="):
            midi.encode(HELD, **wrong)
    for name in ("lowest", "velocity"):
        for number in (80.0, 80.5, float("nan"), True, np.True_, "80", None, np.float32(80)):
            with pytest.raises(ValueError, match=f"{name} must be an integer, got {re.escape(repr(number))}"):
                midi.encode(HELD, **{name: number})
    for seconds in (0, 17, -1, 1e-7, 4.9e-7, 9e-7, 16.8, float("nan"), float("inf"), None, "fast", 1j):
        with pytest.raises(
            ValueError, match=f"step_seconds must be a number from 1e-6 to 16, got {re.escape(repr(seconds))}"
        ):
            midi.encode(HELD, step_seconds=seconds)
    for wrong in (np.full((2, 88), np.nan), np.zeros((2, 88), complex), np.full((2, 88), "0"), np.full((2, 88), 0.5)):
        with pytest.raises(ValueError, match=r"a roll is \[T, K\] of 0 and 1, got "):
            midi.encode(wrong)


def test_what_midi_can_say_at_its_ends():
    assert midi.encode(HELD, velocity=np.int64(80), lowest=np.uint8(21)) == midi.encode(HELD)
    assert midi.encode(HELD.astype(bool)) == midi.encode(HELD.astype(np.float16)) == midi.encode(HELD)
    for seconds, tempo in ((1e-6, "000001"), (16, "f42400"), (np.float32(0.5), "07a120")):
        assert midi.encode(HELD, step_seconds=seconds)[26:29].hex() == tempo
    assert midi.encode(np.zeros((0, 88)))[-11:] == bytes.fromhex("00ff510307a12000ff2f00")  # a file without notes
    silence = np.zeros((11_184_811, 1), np.uint8)
    assert midi.encode(silence[1:])[-7:].hex() == "ffffff70ff2f00"
    with pytest.raises(ValueError, match="11184811 steps without a change, MIDI has at most 11184810: cut the roll"):
        midi.encode(silence)


def test_piano_rolls_are_prepared_and_read_back_exactly(tmp_path, monkeypatch):
    def no_download(*_):
        raise AssertionError("must not download")

    content = packed()
    written(tmp_path / "manual" / "jsb-chorales-16th.json", content)
    monkeypatch.setattr(tfds.download.DownloadManager, "download", no_download)
    with pytest.raises(ValueError, match=r"16th.json: sha256 [0-9a-f]{64}, expected 8730aca7"):
        builders.piano_rolls("jsb_16th", tmp_path / "data", tmp_path / "manual")
    source = {"jsb_16th": ("", hashlib.sha256(content).hexdigest())}
    monkeypatch.setattr(builders.PianoRolls, "sources", source)
    expected = music.load(tmp_path / "manual", "jsb_16th")
    found = builders.piano_rolls("jsb_16th", tmp_path / "data", tmp_path / "manual")
    assert list(found) == list(expected)
    for part, rolls in expected.items():
        assert [roll.dtype for roll in found[part]] == [np.uint8] * len(rolls)
        for one, other in zip(found[part], rolls, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="no data set 'bach', expected one of"):
        builders.piano_rolls("bach", tmp_path / "data")


def test_piano_rolls_say_where_the_data_are_from(tmp_path):
    info = builders.PianoRolls(config="nottingham", data_dir=tmp_path, file_format="array_record").info
    assert "public domain" in info.redistribution_info.license
    assert info.citation.startswith("@")


@pytest.mark.parametrize(
    ("name", "counts", "steps"),
    [
        ("jsb", (229, 76, 77), (13_807, 4_602, 4_725)),
        ("jsb_16th", (229, 76, 77), (55_228, 18_408, 18_900)),
        ("nottingham", (694, 173, 170), (176_561, 45_513, 44_463)),
    ],
)
def test_the_real_files(data_dir, name, counts, steps):
    parts = music.load(data_dir, name)
    assert tuple(len(rolls) for rolls in parts.values()) == counts
    assert tuple(sum(map(len, rolls)) for rolls in parts.values()) == steps


def test_the_real_chorales_are_the_same_in_both_files(data_dir):
    for one, other in zip(*(music.load(data_dir, name).values() for name in ("jsb", "jsb_quarter")), strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
