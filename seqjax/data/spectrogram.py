"""Log-mel frames of sound, all at once or chunk by chunk in real time, with the same result.

settings = spectrogram.Settings(rate=8000)
frames = spectrogram.log_mel(settings, samples)             # [..., N] to [..., N // hop, bands]
carry = spectrogram.start(settings)
carry, frames = spectrogram.push(settings, carry, chunk)    # one frame per hop of the chunk
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Settings", "log_mel", "mel_filters", "push", "start"]

Array = jax.Array


class Settings(NamedTuple):
    """How sound is converted to frames; the defaults are for 8 kHz: windows of 25 ms, one frame every 10 ms.

    Attributes:
      rate: samples per second.
      window: samples per window, weighted by a periodic Hann window.
      hop: samples between frames, at most the window.
      fft: samples of the Fourier transform, at least the window; padded with zeros.
      bands: number of mel bands M.
      low, high: Hz, the start of the lowest band and the end of the highest; None for high is rate / 2.
      scale: "slaney", linear below 1 kHz and logarithmic above (Slaney 1998, Auditory Toolbox), bands of area 1; or
        "htk", 2595 log10(1 + f / 700), bands of height 1 (Young et al. 2006, The HTK Book).
      floor: power added before the logarithm.
    """

    rate: int = 8000
    window: int = 200
    hop: int = 80
    fft: int = 256
    bands: int = 32
    low: float = 60.0
    high: float | None = None
    scale: str = "slaney"
    floor: float = 1e-6


def mel_filters(settings: Settings) -> np.ndarray:
    """Triangles on the mel scale, float32 [fft // 2 + 1, M]; each starts and ends at the peaks of its neighbours.

    Raises:
      ValueError: hop, window and fft that do not increase from 1, low and high that do not increase from 0 to at most
        rate / 2, an unknown scale, or a band without a bin of the Fourier transform.
    """
    rate, window, hop, fft, bands, low, high, scale, _ = settings
    high = rate / 2 if high is None else high
    if not 1 <= hop <= window <= fft:
        raise ValueError(f"hop, window and fft must increase from 1, got {hop}, {window}, {fft}")
    if not 0 <= low < high <= rate / 2:
        raise ValueError(f"low and high must increase from 0 to at most {rate / 2:g} Hz, got {low:g} and {high:g}")
    if scale not in ("slaney", "htk"):
        raise ValueError(f"scale must be 'slaney' or 'htk', got {scale!r}")
    to_mel, to_hertz = (_slaney, _slaney_hertz) if scale == "slaney" else (_htk, _htk_hertz)
    first, last = to_mel(np.array([low, high]))
    borders = to_hertz(np.linspace(first, last, bands + 2))
    bins = np.arange(fft // 2 + 1) * rate / fft
    widths = np.diff(borders)
    rising = (bins[:, None] - borders[:-2]) / widths[:-1]
    falling = (borders[2:] - bins[:, None]) / widths[1:]
    triangles = np.minimum(rising, falling).clip(0)
    if not (triangles > 0).any(0).all():
        empty = int(np.argmin((triangles > 0).any(0)))
        raise ValueError(f"band {empty} of {bands} has no bin of the Fourier transform: fewer bands or a longer fft")
    if scale == "slaney":
        triangles = triangles * 2 / (borders[2:] - borders[:-2])
    return triangles.astype(np.float32)


def log_mel(settings: Settings, samples: Array) -> Array:
    """Frames of sound; frame t is the window that ends with sample (t + 1) * hop - 1, with no look-ahead.

        power[f] = |sum_n hann[n] x[n] exp(-2 pi i f n / fft)|^2,    frame = log(floor + power @ mel_filters)

    The sound before the first sample is silence. The last N % hop samples, less than a frame, are ignored.

    Args:
      settings: the settings.
      samples: float32 [..., N], -1 to 1.

    Returns:
      float32 [..., N // hop, M].

    Raises:
      ValueError: invalid settings, as in `mel_filters`.
      TypeError: samples that are not floats.
    """
    return push(
        settings, start(settings, samples.shape[:-1]), samples[..., : samples.shape[-1] // settings.hop * settings.hop]
    )[1]


def start(settings: Settings, batch_shape: tuple[int, ...] = ()) -> Array:
    """The carry before the first chunk, silence: float32 [..., window - hop]; ValueError as in `mel_filters`."""
    _filters(settings)
    return jnp.zeros((*batch_shape, settings.window - settings.hop), jnp.float32)


def push(settings: Settings, carry: Array, chunk: Array) -> tuple[Array, Array]:
    """The frames that end within the next chunk.

    Args:
      settings: the settings.
      carry: float32 [..., window - hop], the samples before the chunk.
      chunk: float32 [..., N], N a multiple of the hop.

    Returns:
      `(carry, frames [..., N // hop, M])`.

    Raises:
      ValueError: another N, or invalid settings, as in `mel_filters`.
      TypeError: a chunk that is not float.
    """
    filters = _filters(settings)
    count, rest = divmod(chunk.shape[-1], settings.hop)
    if rest:
        raise ValueError(f"the chunk has {chunk.shape[-1]} samples, expected a multiple of the hop, {settings.hop}")
    if not jnp.issubdtype(chunk.dtype, jnp.floating):
        raise TypeError(f"samples must be floats from -1 to 1, got {chunk.dtype}")
    sound = jnp.concatenate([carry, chunk.astype(jnp.float32)], axis=-1)
    rows = settings.hop * np.arange(count)[:, None] + np.arange(settings.window)
    windows = sound[..., rows] * np.broadcast_to(_hann(settings.window), (*chunk.shape[:-1], count, settings.window))
    spectrum = jnp.fft.rfft(windows, settings.fft)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return sound[..., count * settings.hop :], jnp.log(power @ filters + jnp.float32(settings.floor))


_filters = cache(mel_filters)


def _hann(count: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(count) / count)).astype(np.float32)


def _slaney(hertz: np.ndarray) -> np.ndarray:
    return np.where(hertz < 1000, 3 * hertz / 200, 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4))


def _slaney_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(np.log(6.4) * (mel - 15) / 27))


def _htk(hertz: np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + hertz / 700)


def _htk_hertz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)
