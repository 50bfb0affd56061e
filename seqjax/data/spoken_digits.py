"""The Free Spoken Digit Dataset (Z. Jackson et al.): English digits, six speakers, mono, 8 kHz, 16 bit.

recordings = spoken_digits.load("recordings")
parts = spoken_digits.by_speaker(recordings, test="theo")
"""

import hashlib
import io
import os
import re
import wave
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from seqjax.data import files

__all__ = ["RATE", "Recordings", "by_index", "by_speaker", "digest", "generated", "load", "read_wav"]

RATE = 8000
"""Samples in a second."""

_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")


class Recordings(NamedTuple):
    """Recordings in the order of (digit, speaker, index).

    Attributes:
      samples: N arrays int16 [samples], of different lengths.
      digits: int32 [N], 0 to 9.
      speakers: N names.
      indices: int32 [N], the number of the recording among those of its speaker and digit.
    """

    samples: tuple[np.ndarray, ...]
    digits: np.ndarray
    speakers: tuple[str, ...]
    indices: np.ndarray

    def take(self, which: np.ndarray) -> "Recordings":
        """The recordings at these places, int [M]."""
        samples, speakers = (tuple(values[i] for i in which) for values in (self.samples, self.speakers))
        return Recordings(samples, self.digits[which], speakers, self.indices[which])


def load(path: str | os.PathLike[str]) -> Recordings:
    """All recordings.

    Args:
      path: the archive of a release (`free-spoken-digit-dataset-*.tar.gz`), or another one with its files; or the
        folder `recordings`; or a folder that holds one of these.

    Raises:
      FileNotFoundError: nothing of this kind there (says what is).
      ValueError: a damaged archive, a name that is not DIGIT_SPEAKER_INDEX.wav, a wav file that is damaged, cut off,
        empty or not mono, 8 kHz, 16 bit, or no recordings at all (names the file).
    """
    found = {}
    for name, content in _files(Path(path).expanduser()):
        parsed = _NAME.fullmatch(name)
        if not parsed:
            raise ValueError(f"{path}: {name}, expected names DIGIT_SPEAKER_INDEX.wav")
        digit, speaker, index = int(parsed[1]), parsed[2], int(parsed[3])
        found[digit, speaker, index] = read_wav(content, f"{path}: {name}")
    if not found:
        raise ValueError(f"{path}: no recordings DIGIT_SPEAKER_INDEX.wav in it")
    return _recordings(found)


def digest(path: str | os.PathLike[str]) -> str:
    """The sha256 of what `sha256sum *.wav` prints among the recordings: the same for every archive of the same files.

    Args:
      path: as in `load`, with its errors.
    """
    lines = sorted((name, hashlib.sha256(content).hexdigest()) for name, content in _files(Path(path).expanduser()))
    return hashlib.sha256("".join(f"{sha}  {name}\n" for name, sha in lines).encode()).hexdigest()


def read_wav(content: bytes, name: str) -> np.ndarray:
    """The samples of a wav file, int16 [samples].

    Args:
      content: of the file.
      name: of the file, for the errors.

    Raises:
      ValueError: it is damaged, cut off, empty or not mono, 8 kHz, 16 bit.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            form = file.getnchannels(), file.getframerate(), 8 * file.getsampwidth()
            count, data = file.getnframes(), file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{name}: damaged or no wav file: {str(error) or 'it ends too early'}") from error
    if form != (1, RATE, 16):
        raise ValueError(
            f"{name}: {form[0]} channels of {form[1]} Hz and {form[2]} bit, expected 1 of {RATE} Hz, 16 bit"
        )
    if not count or len(data) != 2 * count:
        raise ValueError(f"{name}: {len(data) // 2} samples, its header says {count}: empty or cut off")
    return np.frombuffer(data, "<i2").astype(np.int16)


def by_speaker(recordings: Recordings, test: str, validation: str | None = None) -> dict[str, Recordings]:
    """Parts "train", "validation" and "test" without a common speaker.

    Args:
      recordings: of three speakers or more.
      test: the speaker of the test part.
      validation: that of the validation part; default: the next after `test` in the alphabet, and around.

    Raises:
      ValueError: a speaker that is not there, one for both parts, or fewer than three in all.
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
    """The official split: indices 0 to 4 for "test"; of the others 5 to 9 for "validation", the rest for "train".

    All speakers are in all parts.

    Raises:
      ValueError: an empty part.
    """
    indices = recordings.indices
    places = {"train": indices >= 10, "validation": (indices >= 5) & (indices < 10), "test": indices < 5}
    if empty := [name for name, place in places.items() if not place.any()]:
        raise ValueError(f"indices up to {indices.max()} leave the {empty[0]} part empty, expected some from 10 on")
    return {name: recordings.take(np.flatnonzero(place)) for name, place in places.items()}


def generated(
    seed: int = 0, speakers: tuple[str, ...] = ("ada", "ben", "cleo"), count: int = 12, samples: int = 1600
) -> Recordings:
    """Two tones after each other stand for a digit, higher for some speakers than for others; for tests.

    Args:
      seed: of everything drawn.
      speakers: their names.
      count: recordings of each digit and speaker.
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
    """Names, without their folders, and contents of all wav files."""
    folders = "*.wav", "recordings/*.wav"
    archives = "free-spoken-digit-dataset*.tar.gz", "fsdd*.tar.gz"
    found = files.find(path, (*folders, *archives, "free-spoken-digit-dataset*/recordings/*.wav"), ("fsdd",))
    place = found.parent if found.suffix == ".wav" else found
    for name, content in files.members(place, lambda name: name.endswith(".wav")):
        yield PurePosixPath(name).name, content
