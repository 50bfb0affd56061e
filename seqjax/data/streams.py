"""Streams of sound, drawn on the device: words with pauses between them, in noise.

bank = streams.bank(recordings)
stream = streams.draw(key, bank, streams.Mix(seconds=6))     # inside of jit; jax.vmap over keys makes a batch
targets, weights = streams.targets(stream, frames=600, hop=80)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.data import spoken_digits

__all__ = ["NOTHING", "Bank", "Mix", "Stream", "bank", "draw", "targets"]

Array = jax.Array

NOTHING = 10
"""The class of a frame at which no digit has just ended."""

_LOUDNESS = 0.05  # root mean square of a word at 0 dB


class Bank(NamedTuple):
    """Recordings of equal loudness, float32 [N, L], 0 after the end; their lengths int32 [N] and digits int32 [N]."""

    sound: Array
    lengths: Array
    digits: Array


class Mix(NamedTuple):
    """The ingredients of a stream; each pair is the range of a uniform distribution.

    Attributes:
      seconds: length of the stream.
      pauses: length of a pause in seconds.
      levels: level of a word in dB, relative to the common loudness of the recordings.
      noise: level of the noise in dB, relative to the same.
      speeds: speed of a word, 1 as recorded; changes pitch, formants and tempo together (Ko et al. 2015, "Audio
        augmentation for speech recognition").
    """

    seconds: float
    pauses: tuple[float, float] = (0.2, 1.0)
    levels: tuple[float, float] = (-6.0, 6.0)
    noise: tuple[float, float] = (-30.0, -10.0)
    speeds: tuple[float, float] = (1.0, 1.0)


class Stream(NamedTuple):
    """Sound and the digits spoken in it.

    Attributes:
      sound: float32 [N].
      digits: int32 [K], `NOTHING` in unused slots.
      starts, ends: int32 [K], the first sample of a word and the first after it.
    """

    sound: Array
    digits: Array
    starts: Array
    ends: Array


def bank(recordings: spoken_digits.Recordings) -> Bank:
    """The recordings, scaled to the same root mean square."""
    lengths = np.array([len(samples) for samples in recordings.samples], np.int32)
    sound = np.zeros((len(lengths), lengths.max()), np.float32)
    for row, samples in zip(sound, recordings.samples, strict=True):
        level = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
        row[: len(samples)] = samples * (_LOUDNESS / max(level, 1.0))
    return Bank(jnp.asarray(sound), jnp.asarray(lengths), jnp.asarray(recordings.digits))


def draw(key: Array, bank: Bank, mix: Mix, rate: int = spoken_digits.RATE) -> Stream:
    """A stream: pause, word, pause, word, ..., each word drawn from the bank, with noise throughout.

    A word that would not end within the stream is left out, as are all after it. The noise is Gaussian, between white
    and low-pass: `e[n] + a e[n - 1]`, with a drawn from 0 to 1 for each stream.

    Args:
      key: PRNG key of the stream.
      bank: the words.
      mix: the ingredients.
      rate: samples per second.

    Returns:
      N = seconds * rate samples, and K slots for words, as many as fit with the shortest pauses.

    Raises:
      ValueError: a stream too short for a word, or a decreasing range.
    """
    count = round(mix.seconds * rate)
    for name, least in (("pauses", 0.0), ("levels", -np.inf), ("noise", -np.inf), ("speeds", 0.1)):
        low, high = getattr(mix, name)
        if not least <= low <= high:
            raise ValueError(f"{name} must be an increasing range from at least {least:g}, got {low:g} and {high:g}")
    places = int(mix.seconds / (mix.pauses[0] + 0.1))
    if places < 1:
        raise ValueError(f"a stream of {mix.seconds} seconds has no room for a pause of {mix.pauses[0]} and a word")
    k_which, k_pause, k_level, k_speed, k_noise, k_color, k_loud = jax.random.split(key, 7)
    which = jax.random.randint(k_which, (places,), 0, len(bank.lengths), jnp.int32)
    speeds = _uniform(k_speed, (places,), mix.speeds)
    lengths = (bank.lengths[which].astype(jnp.float32) / speeds).astype(jnp.int32)
    pauses = (rate * _uniform(k_pause, (places,), mix.pauses)).astype(jnp.int32)
    ends = jnp.cumsum(pauses + lengths)
    starts = ends - lengths
    fits = ends <= count
    gains = _amplitude(_uniform(k_level, (places,), mix.levels))
    words = _words(bank, which, starts, jnp.where(fits, lengths, 0), speeds, gains, count)
    white = jax.random.normal(k_noise, (count + 1,), jnp.float32)
    low = jax.random.uniform(k_color, (), jnp.float32)
    color = (white[1:] + low * white[:-1]) / jnp.sqrt(1 + low**2)
    loud = _LOUDNESS * _amplitude(_uniform(k_loud, (), mix.noise))
    digits = jnp.where(fits, bank.digits[which], NOTHING)
    return Stream(words + loud * color, digits, starts, ends)


def _words(bank: Bank, which: Array, starts: Array, lengths: Array, speeds: Array, gains: Array, count: int) -> Array:
    """The recordings `which` [K] at their positions in silence, interpolated where the speed is not 1: [count]."""
    # For each sample, the word that it is in or after.
    word = jnp.cumsum(jnp.zeros(count, jnp.int32).at[starts].add(1, mode="drop")) - 1
    table = jnp.stack([starts, lengths, which * bank.sound.shape[1]], axis=1)
    start, length, row = jnp.moveaxis(table[jnp.maximum(word, 0)], 1, 0)
    speed, gain = jnp.moveaxis(jnp.stack([speeds, gains], axis=1)[jnp.maximum(word, 0)], 1, 0)
    place = jnp.arange(count, dtype=jnp.int32) - start
    inside = (place >= 0) & (place < length)
    exact = place.astype(jnp.float32) * speed
    before = jnp.clip(exact.astype(jnp.int32), 0, bank.sound.shape[1] - 2)
    part, flat = exact - before.astype(jnp.float32), bank.sound.reshape(-1)
    between = (1 - part) * flat[row + before] + part * flat[row + before + 1]
    return jnp.where(inside, gain * between, 0)


def targets(stream: Stream, frames: int, hop: int, wanted: int = 20, free: int = 10) -> tuple[Array, Array]:
    """The target of each frame: the digit for `wanted` frames after its end, `NOTHING` otherwise.

    Args:
      stream: from `draw`.
      frames: number of frames T.
      hop: samples per frame.
      wanted: number of frames after its end whose target is the digit.
      free: number of frames before the end that do not count, so that a word may be recognized before it is over.

    Returns:
      Classes int32 [T], and weights float32 [T], 0 where a frame does not count.
    """
    time = jnp.arange(frames, dtype=jnp.int32)[:, None]
    last = (stream.ends // hop)[None]
    is_word = (stream.digits != NOTHING)[None]
    after = is_word & (time >= last) & (time < last + wanted)
    before = is_word & (time >= last - free) & (time < last)
    # Words do not overlap, but the target frames of one may reach past a short one after it: the later word counts.
    number = jnp.where(after, jnp.arange(1, len(stream.digits) + 1, dtype=jnp.int32)[None], 0).max(1)
    classes = jnp.where(number > 0, stream.digits[jnp.maximum(number - 1, 0)], NOTHING)
    return classes, 1 - (before.any(1) & (number == 0)).astype(jnp.float32)


def _uniform(key: Array, shape: tuple[int, ...], between: tuple[float, float]) -> Array:
    return jax.random.uniform(key, shape, jnp.float32, *between)


def _amplitude(decibels: Array) -> Array:
    return 10 ** (decibels / 20)
