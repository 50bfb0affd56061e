"""Piano rolls as Standard MIDI Files (MIDI Manufacturers Association 1996), to listen to.

A file with one track needs two events and a header, which is not worth a dependency; the tests read the files with
mido.
"""

import operator
import struct
from typing import Any

import numpy as np

__all__ = ["encode"]

_TICKS = 24  # per step
_LONGEST = (2**28 - 1) // _TICKS  # steps between two events: the file has 28 bits for their ticks


def encode(roll: np.ndarray, *, lowest: int = 21, step_seconds: float = 0.5, velocity: int = 80) -> bytes:
    """A Standard MIDI File of format 0; a key that sounds in consecutive steps is one note, struck once.

    Args:
      roll: [T, K] of 0 and 1, as in `music.load`.
      lowest: MIDI pitch of the first key.
      step_seconds: duration of a step, in seconds; a file stores whole microseconds.
      velocity: how hard notes are struck, 1 to 127.

    Returns:
      The content of a `.mid` file.

    Raises:
      ValueError: a roll that is not [T, K] of 0 and 1, a pitch or velocity that is not an integer in the range of MIDI,
        a step below a microsecond or above 16 seconds, or 11,184,810 steps without a change.

    Example:
      >>> from seqjax.data import midi
      >>> midi.encode(jnp.eye(2), lowest=60)[:4]
      b'MThd'
    """
    roll = np.asarray(roll)
    if roll.ndim != 2 or roll.dtype.kind not in "biuf" or not np.isin(roll, (0, 1)).all():
        raise ValueError(f"a roll is [T, K] of 0 and 1, got {roll.dtype} {roll.shape}")
    lowest, velocity = _whole("lowest", lowest), _whole("velocity", velocity)
    if not 0 <= lowest <= 128 - roll.shape[1] or not 1 <= velocity <= 127:
        raise ValueError(f"MIDI has the pitches 0 to 127 and velocities 1 to 127, got {lowest=}, {velocity=}")
    try:
        seconds = float(step_seconds)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 1e-6 <= seconds <= 16:
        raise ValueError(f"step_seconds must be a number from 1e-6 to 16, got {step_seconds!r}")
    silence = np.zeros((1, roll.shape[1]), np.int8)
    changes = np.diff(roll.astype(np.int8), axis=0, prepend=silence, append=silence)
    track = b"\x00\xff\x51\x03" + round(seconds * 1e6).to_bytes(3, "big")  # tempo: microseconds per step
    last = 0
    for step in np.flatnonzero(changes.any(1)).tolist():
        ends = [(0x80, key, 0) for key in np.flatnonzero(changes[step] < 0)]
        begins = [(0x90, key, velocity) for key in np.flatnonzero(changes[step] > 0)]
        for status, key, force in ends + begins:
            track += _variable(_TICKS * (step - last)) + bytes((status, lowest + int(key), force))
            last = step
    track += _variable(_TICKS * (len(roll) - last)) + b"\xff\x2f\x00"
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, _TICKS)
    return header + struct.pack(">4sI", b"MTrk", len(track)) + track


def _variable(number: int) -> bytes:
    """A variable-length quantity: seven bits per byte, highest first, with the eighth bit set in all but the last."""
    if number > _TICKS * _LONGEST:
        raise ValueError(f"{number // _TICKS} steps without a change, MIDI has at most {_LONGEST}: cut the roll")
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(number & 0x7F | 0x80)
    return bytes(reversed(digits))


def _whole(name: str, number: Any) -> int:
    try:
        if isinstance(number, bool | np.bool_):
            raise TypeError
        return operator.index(number)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {number!r}") from None
