"""The Free Spoken Digit Dataset (Z. Jackson et al.): English digits, six speakers, mono, 8 kHz, 16 bit.

recordings = spoken_digits.load("recordings")
parts = spoken_digits.by_speaker(recordings, test="theo")
"""

import hashlib
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from seqjax.data import archives, files

__all__ = ["RATE", "Recordings", "by_index", "by_speaker", "digest", "generated", "load", "read_wav"]

RATE = 8000
"""Samples per second."""

_NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]{1,9})\.wav")
_PCM, _EXTENSIBLE, _UNKNOWN_SIZE = 1, 0xFFFE, 0xFFFFFFFF
_GUID = bytes.fromhex("000000001000800000aa00389b71")  # of an extensible format, after its first two bytes


class Recordings(NamedTuple):
    """Recordings in the order of (digit, speaker, index).

    Attributes:
      samples: N arrays int16 [samples], of different lengths.
      digits: int32 [N], 0 to 9.
      speakers: N names.
      indices: int32 [N], the number of each recording among those of its speaker and digit.
    """

    samples: tuple[np.ndarray, ...]
    digits: np.ndarray
    speakers: tuple[str, ...]
    indices: np.ndarray

    def take(self, which: np.ndarray) -> "Recordings":
        """The recordings at these indices, int [M]."""
        samples, speakers = (tuple(values[i] for i in which) for values in (self.samples, self.speakers))
        return Recordings(samples, self.digits[which], speakers, self.indices[which])


def load(path: str | os.PathLike[str]) -> Recordings:
    """All recordings.

    Args:
      path: the archive of a release (`free-spoken-digit-dataset-*.tar.gz`), or another one with its files; or the
        folder `recordings`; or a folder that contains one of these.

    Raises:
      FileNotFoundError: none of these (lists what is there).
      ValueError: a damaged archive, a name that is not DIGIT_SPEAKER_INDEX.wav, two recordings of one digit, speaker
        and index, a wav file as in `read_wav`, or no recordings at all (names the file).
    """
    found, names = {}, {}
    for name, content in _files(Path(path).expanduser()):
        parsed = _NAME.fullmatch(name)
        if not parsed:
            raise ValueError(f"{path}: {name}, expected names DIGIT_SPEAKER_INDEX.wav")
        key = int(parsed[1]), parsed[2], int(parsed[3])
        if key in found:
            raise ValueError(f"{path}: {names[key]} and {name}: two recordings of one digit, speaker and index")
        found[key], names[key] = read_wav(content, f"{path}: {name}"), name
    if not found:
        raise ValueError(f"{path}: no recordings DIGIT_SPEAKER_INDEX.wav in it")
    return _recordings(found)


def digest(path: str | os.PathLike[str]) -> str:
    """The sha256 of the output of `sha256sum *.wav` for the recordings, the same for every archive of the same files.

    Args:
      path: as in `load`, with its errors.
    """
    lines = sorted((name, hashlib.sha256(content).hexdigest()) for name, content in _files(Path(path).expanduser()))
    return hashlib.sha256("".join(f"{sha}  {name}\n" for name, sha in lines).encode()).hexdigest()


def read_wav(content: bytes, name: str) -> np.ndarray:
    """The samples of a wav file, int16 [samples].

    The file is a header and chunks, each a name of four letters, its size and its content, with a byte of padding
    after an odd size (Microsoft and IBM 1991, "Multimedia programming interface and data specifications"). Chunks other
    than `fmt ` and `data` are skipped. A program that writes to a pipe cannot know the sizes and writes 2^32 - 1: then
    the samples extend to the end of the file.

    Args:
      content: of the file.
      name: of the file, for errors.

    Raises:
      ValueError: damaged, truncated, empty, or not mono, 8 kHz, 16 bit, uncompressed.
    """
    chunks = _chunks(content, f"{name}: damaged or not a wav file")
    if missing := [key for key in (b"fmt ", b"data") if key not in chunks]:
        raise ValueError(f"{name}: damaged or not a wav file: no chunk {missing[0].decode()!r}, found {list(chunks)}")
    (form, _), (data, size) = chunks[b"fmt "], chunks[b"data"]
    if len(form) < 16:
        raise ValueError(f"{name}: damaged or not a wav file: a format of {len(form)} bytes, expected 16 or more")
    code, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", form[:16])
    if code == _EXTENSIBLE and form[26:40] == _GUID:
        valid, code = struct.unpack("<2xH4xH", form[16:26])
        bits = valid or bits
    if code != _PCM:
        raise ValueError(f"{name}: format {code:#x}, expected {_PCM}, uncompressed samples")
    if (channels, rate, bits) != (1, RATE, 16):
        raise ValueError(f"{name}: {channels} channels, {rate} Hz, {bits} bit, expected 1 channel, {RATE} Hz, 16 bit")
    if frame != 2:
        raise ValueError(f"{name}: damaged or not a wav file: {frame} bytes per sample, expected 2")
    if not data or len(data) != size or size % 2:
        raise ValueError(f"{name}: {len(data) // 2} samples, expected {size / 2:g} from the header: empty or truncated")
    return np.frombuffer(data, "<i2").astype(np.int16)


def _chunks(content: bytes, place: str) -> dict[bytes, tuple[bytes, int]]:
    """The content of each chunk, and the size in its header; only the last chunk may be shorter."""
    if content[:4] in (b"RIFX", b"RF64", b"BW64"):
        raise ValueError(f"{place}: {content[:4].decode()} is not supported, expected RIFF")
    if kind := archives.packing(content[:512]):
        raise ValueError(f"{place}: it is {kind}, decompress it")
    if len(content) >= 4 and content[:4] != b"RIFF":
        raise ValueError(f"{place}: file does not start with RIFF id")
    if len(content) < 12:
        raise ValueError(f"{place}: it ends too early")
    if content[8:12] != b"WAVE":
        raise ValueError(f"{place}: RIFF of {content[8:12]!r}, expected WAVE")
    whole = struct.unpack_from("<I", content, 4)[0]
    streamed = whole in (0, _UNKNOWN_SIZE)
    end = len(content) if streamed else min(8 + whole, len(content))
    chunks: dict[bytes, tuple[bytes, int]] = {}
    at = 12
    while at + 8 <= end:
        key, size = struct.unpack_from("<4sI", content, at)
        if key in (b"fmt ", b"data") and key in chunks:
            raise ValueError(f"{place}: two chunks {key.decode()!r}")
        if key == b"data" and size == _UNKNOWN_SIZE:
            size = end - at - 8
        chunks[key] = content[at + 8 : min(at + 8 + size, end)], size
        at += 8 + size + size % 2
    if at > end + 1 and len(chunks) and list(chunks)[-1] != b"data":
        raise ValueError(f"{place}: it ends too early, in its chunk {list(chunks)[-1]!r}")
    return chunks


def by_speaker(recordings: Recordings, test: str, validation: str | None = None) -> dict[str, Recordings]:
    """Parts "train", "validation" and "test" with disjoint speakers.

    Args:
      recordings: of at least three speakers.
      test: the speaker of the test part.
      validation: the speaker of the validation part; default: the one after `test` in alphabetical order, cyclically.

    Raises:
      ValueError: an unknown speaker, one for both parts, or fewer than three in all.
    """
    names = sorted(set(recordings.speakers))
    if test in names and validation is None:
        validation = names[(names.index(test) + 1) % len(names)]
    for name in (test, validation):
        if name not in names:
            raise ValueError(f"no speaker {name!r}, expected one of {', '.join(names)}")
    if test == validation or len(names) < 3:
        raise ValueError(
            f"test {test!r} and validation {validation!r} of {len(names)} speakers leave no third for training"
        )
    part = {test: "test", validation: "validation"}
    place = np.array([part.get(name, "train") for name in recordings.speakers])
    return {name: recordings.take(np.flatnonzero(place == name)) for name in ("train", "validation", "test")}


def by_index(recordings: Recordings) -> dict[str, Recordings]:
    """The official split: indices 0 to 4 are "test"; of the others, 5 to 9 are "validation", the rest "train".

    Every speaker is in every part.

    Raises:
      ValueError: an empty part.
    """
    indices = recordings.indices
    places = {"train": indices >= 10, "validation": (indices >= 5) & (indices < 10), "test": indices < 5}
    if empty := [name for name, place in places.items() if not place.any()]:
        raise ValueError(f"indices up to {indices.max()} leave the {empty[0]} part empty, expected some of at least 10")
    return {name: recordings.take(np.flatnonzero(place)) for name, place in places.items()}


def generated(
    seed: int = 0, speakers: tuple[str, ...] = ("ada", "ben", "cleo"), count: int = 12, samples: int = 1600
) -> Recordings:
    """Recordings in which two tones in a row represent a digit, higher for some speakers than others; for tests.

    Args:
      seed: of all random draws.
      speakers: their names.
      count: number of recordings per digit and speaker.
      samples: mean length of a recording.
    """
    rng = np.random.default_rng(seed)
    tones = 300 * 1.35 ** np.arange(5)  # Hz; digits are pairs of different ones
    pairs = [(tones[i], tones[(i + 1 + j) % 5]) for i in range(5) for j in range(2)]
    found = {}
    for digit, pair in enumerate(pairs):
        for voice, speaker in enumerate(speakers):
            for index in range(count):
                length = int(samples * rng.uniform(0.7, 1.3))
                time = np.arange(length) / RATE
                frequency = np.where(time < time[-1] / 2, *pair) * (1 + 0.04 * voice) * rng.normal(1, 0.01)
                wave = np.sin(2 * np.pi * np.cumsum(frequency) / RATE) * np.hanning(length)
                loud = 32767 * rng.uniform(0.1, 0.8)
                found[digit, speaker, index] = (
                    (loud * wave + rng.normal(0, 30, length)).clip(-32768, 32767).astype(np.int16)
                )
    return _recordings(found)


def _recordings(found: dict[tuple[int, str, int], np.ndarray]) -> Recordings:
    digits, speakers, indices = zip(*sorted(found), strict=True)
    samples = tuple(found[key] for key in sorted(found))
    return Recordings(samples, np.array(digits, np.int32), speakers, np.array(indices, np.int32))


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names, without folders, and contents of all wav files."""
    folders = "*.wav", "recordings/*.wav"
    archives = "free-spoken-digit-dataset*.tar.gz", "fsdd*.tar.gz"
    found = files.find_all(path, (*folders, *archives, "free-spoken-digit-dataset*/recordings/*.wav"), ("fsdd",))
    places = sorted({file.parent if file.suffix == ".wav" and path.is_dir() else file for file in found})
    if len(places) > 1:
        raise ValueError(f"{path}: expected one data set, found {', '.join(map(str, places))}: pass one of them")
    for name, content in files.members(places[0], lambda name: name.lower().endswith(".wav")):
        yield PurePosixPath(name).name, content
