"""Polyphonic music as piano rolls (Boulanger-Lewandowski et al. 2012, arXiv 1206.6392).

parts = music.load("DIR", "jsb")    # {"train": 229 rolls, "validation": 76, "test": 77}

    jsb           382 chorales by J. S. Bach in quarter notes; transposed to one key, and higher than they are sung
    jsb_quarter   the same rolls from another file
    jsb_16th      the same chorales in their own keys, in sixteenth notes
    nottingham    1,037 folk tunes with chords
    piano_midi    classical piano pieces, the archive of Piano-midi.de
    musedata      orchestral and piano pieces, the library of MuseData

A roll marks the keys of a piano that sound at each step. It does not tell whether a note is struck again or held.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqjax.data import files, matlab

__all__ = ["FILES", "KEYS", "LOWEST", "Parts", "chords", "generated", "load", "read", "roll"]

KEYS = 88
"""Keys of a piano, K."""

LOWEST = 21
"""The MIDI pitch of the first key, the A of 27.5 Hz."""

FILES = {
    "jsb": "JSB_Chorales.mat",
    "jsb_quarter": "jsb-chorales-quarter.json",
    "jsb_16th": "jsb-chorales-16th.json",
    "nottingham": "Nottingham.mat",
    "piano_midi": "Piano_midi.mat",
    "musedata": "MuseData.mat",
}
"""The data sets and their files."""

Parts = dict[str, tuple[np.ndarray, ...]]
"""Rolls uint8 [T, K] of 0 and 1, T at least 2, by part: "train", "validation", "test"."""

_PITCHES = range(LOWEST, LOWEST + KEYS)
_PARTS = {"train": "train", "validation": "valid", "test": "test"}  # how the files name them


def load(path: str | os.PathLike[str], name: str = "jsb") -> Parts:
    """The rolls of a data set.

    Args:
      path: its file, compressed or not, or a folder that contains it, directly or in its folder `music`.
      name: one of `FILES`.

    Raises:
      FileNotFoundError: no such file (lists what is there).
      ValueError: an unknown name, or a file as in `read`.
    """
    if name not in FILES:
        raise ValueError(f"no data set {name!r}, expected one of {', '.join(FILES)}")
    return read(files.find(Path(path).expanduser(), (FILES[name], f"{FILES[name]}.gz"), ("music",)))


def read(file: str | os.PathLike[str]) -> Parts:
    """The rolls of a file, whose first bytes identify the format.

    A MATLAB file has the cells `traindata`, `validdata` and `testdata` of arrays [T, K]; a JSON file has the lists
    "train", "valid" and "test" of sequences, where a sequence is a list of chords, and a chord a list of MIDI pitches.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged or truncated file, a missing or empty part, a sequence of fewer than 2 steps or of another
        number of keys, a value that is not 0 or 1, a pitch outside a piano (names file and sequence).
    """
    file = Path(file)
    content = files.read(file)
    suffix, to_roll, found = "", roll, None
    if not content.startswith(b"MATLAB"):
        found = files.parse_json(content, f"{file}: neither MATLAB nor JSON")
    else:
        suffix, to_roll = "data", np.asarray
        found = matlab.lists(content, str(file))
    parts = {}
    for part, name in _PARTS.items():
        key = name + suffix
        if not isinstance(found, dict) or key not in found:
            there = list(found)[:5] if isinstance(found, dict | list) else found
            raise ValueError(f"{file}: no {key!r} in it, found {str(there)[:80]}")
        if not isinstance(found[key], list | np.ndarray):
            raise ValueError(f"{file}: {key!r} is {str(found[key])[:40]!r}, expected a list of sequences")
        if not len(found[key]):
            raise ValueError(f"{file}: {key!r} has no sequences")
        try:
            parts[part] = tuple(_checked(i, to_roll, sequence) for i, sequence in enumerate(found[key]))
        except ValueError as error:
            raise ValueError(f"{file}: {key!r}, {error}") from None
    return parts


def _checked(number: int, to_roll: Any, sequence: Any) -> np.ndarray:
    """One sequence as a roll."""
    try:
        made = to_roll(sequence)
        if made.ndim != 2 or made.shape[1] != KEYS or len(made) < 2:
            raise ValueError(f"shape {made.shape}, expected [2 or more steps, {KEYS} keys]")
        if not np.isin(made, (0, 1)).all():
            raise ValueError("a value that is not 0 or 1")
    except (TypeError, ValueError) as error:
        raise ValueError(f"sequence {number}: {error}") from None
    return made.astype(np.uint8)


def roll(sequence: Sequence[Sequence[float]]) -> np.ndarray:
    """Converts chords, T lists of MIDI pitches, to a roll uint8 [T, K].

    Raises:
      ValueError: a pitch below `LOWEST`, or beyond the last key.

    Example:
      >>> from seqjax.data import music
      >>> music.roll([[60, 64, 67], []]).sum(1).tolist()
      [3, 0]
    """
    if isinstance(sequence, str | dict):
        raise ValueError(f"{str(sequence)[:40]!r}, expected a list of chords")
    made = np.zeros((len(sequence), KEYS), np.uint8)
    for step, chord in enumerate(sequence):
        if isinstance(chord, str | dict) or not isinstance(chord, Iterable):
            raise ValueError(f"step {step}: {str(chord)[:40]!r}, expected a list of pitches")
        for pitch in chord:
            if isinstance(pitch, list | dict) or pitch not in _PITCHES:
                raise ValueError(f"step {step}: pitch {pitch!r}, expected an integer from {LOWEST} to 108")
            made[step, int(pitch) - LOWEST] = 1  # some files have 67.0
    return made


def chords(rolled: np.ndarray) -> list[list[int]]:
    """The MIDI pitches of each step of a roll [T, K], ascending: the inverse of `roll`.

    Example:
      >>> from seqjax.data import music
      >>> music.chords(music.roll([[67, 60], []]))
      [[60, 67], []]
    """
    return [(np.flatnonzero(keys) + LOWEST).tolist() for keys in rolled]


def generated(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Rolls from a small grammar, for tests and demonstrations: four chords of C major under a melody of their notes.

    Args:
      count: number of rolls, of 24 to 48 steps.
      seed: of all random draws.
    """
    rng = np.random.default_rng(seed)
    triads = {0: (48, 52, 55), 1: (48, 53, 57), 2: (50, 55, 59), 3: (48, 52, 57)}  # C, F, G, a minor
    follows = {0: (1, 2, 3), 1: (0, 2), 2: (0, 3), 3: (1, 2)}
    rolls = []
    for _ in range(count):
        length, chord, sequence = int(rng.integers(24, 49)), 0, []
        while len(sequence) < length:
            for _ in range(int(rng.choice((2, 4)))):
                sequence.append([*triads[chord], int(rng.choice(triads[chord])) + 24])
            chord = int(rng.choice(follows[chord]))
        rolls.append(roll(sequence[:length]))
    return tuple(rolls)
