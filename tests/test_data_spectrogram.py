"""Log-mel frames: against their formula, SciPy and librosa, and chunk by chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from seqjax.data import spectrogram

SETTINGS = spectrogram.Settings()
RNG = np.random.default_rng(0)
SOUND = RNG.normal(0, 0.1, 1213).astype(np.float32)
BEFORE = SETTINGS.window - SETTINGS.hop


def test_frames_are_those_of_a_loop():
    """One window after the other, its Fourier sum and its triangles written out."""
    settings = SETTINGS._replace(window=24, hop=10, fft=32, bands=5, floor=1e-3)
    samples = SOUND[:45]
    found = spectrogram.log_mel(settings, jnp.asarray(samples))
    assert found.shape == (4, 5)
    assert found.dtype == jnp.float32
    low, high = 3 * 60 / 200, 15 + 27 * np.log(4) / np.log(6.4)
    mels = [low + (high - low) * i / 6 for i in range(7)]
    borders = [200 * m / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27) for m in mels]
    for t in range(4):
        frame = np.zeros(5)
        window = [samples[n] if (n := (t + 1) * 10 - 24 + k) >= 0 else 0.0 for k in range(24)]
        for f in range(17):
            total = 0j
            for n in range(24):
                total += np.sin(np.pi * n / 24) ** 2 * window[n] * np.exp(-2j * np.pi * f * n / 32)
            for m in range(5):
                a, b, c = borders[m : m + 3]
                hertz = f * 8000 / 32
                height = max(0, (hertz - a) / (b - a) if hertz < b else (c - hertz) / (c - b))
                frame[m] += abs(total) ** 2 * height * 2 / (c - a)
        np.testing.assert_allclose(found[t], np.log(frame + 1e-3), rtol=1e-4, atol=1e-5)


def test_the_power_is_that_of_scipy():
    one_band_a_bin = np.eye(SETTINGS.fft // 2 + 1, dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectrogram, "_filters", lambda settings: one_band_a_bin)
        found = np.exp(spectrogram.log_mel(SETTINGS, jnp.asarray(SOUND))) - SETTINGS.floor
    padded = np.concatenate([np.zeros(BEFORE), SOUND.astype(np.float64)])
    sizes = {"nperseg": SETTINGS.window, "noverlap": BEFORE, "nfft": SETTINGS.fft}
    _, _, transform = signal.stft(padded, window="hann", boundary=None, padded=False, **sizes)
    # SciPy divides by the sum of the window.
    expected = np.abs(transform.T * SETTINGS.window / 2) ** 2
    assert len(found) == len(expected) == len(SOUND) // SETTINGS.hop
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunks", [[80] * 15, [160, 800, 240]])
def test_chunk_by_chunk_the_frames_are_the_same(chunks):
    whole = spectrogram.log_mel(SETTINGS, jnp.asarray(SOUND))
    push = jax.jit(lambda carry, chunk: spectrogram.push(SETTINGS, carry, chunk))
    carry, frames, place = spectrogram.start(SETTINGS), [], 0
    for size in chunks:
        carry, found = push(carry, jnp.asarray(SOUND[place : place + size]))
        frames.append(found)
        place += size
    assert place // SETTINGS.hop == len(whole)
    np.testing.assert_allclose(np.concatenate(frames), whole, rtol=1e-5, atol=1e-5)


def test_batches_and_what_comes_later_change_nothing():
    both = jnp.asarray(np.stack([SOUND, SOUND[::-1]]))
    found = spectrogram.log_mel(SETTINGS, both)
    np.testing.assert_allclose(found[0], spectrogram.log_mel(SETTINGS, both[0]), rtol=1e-5, atol=1e-5)
    later = both.at[:, 800:].set(0.5)
    np.testing.assert_allclose(spectrogram.log_mel(SETTINGS, later)[:, :10], found[:, :10], rtol=1e-5, atol=1e-5)
    assert not np.allclose(spectrogram.log_mel(SETTINGS, later)[:, 10], found[:, 10])
    silence = spectrogram.log_mel(SETTINGS, jnp.zeros(160))
    np.testing.assert_allclose(silence, np.full((2, SETTINGS.bands), np.log(SETTINGS.floor)), rtol=1e-6)


def test_a_tone_is_loudest_in_its_band():
    tone = jnp.asarray(np.sin(2 * np.pi * 1000 * np.arange(800) / 8000), jnp.float32)
    for scale in ("slaney", "htk"):
        settings = SETTINGS._replace(scale=scale)
        top = np.argmax(spectrogram.mel_filters(settings), 0) * 8000 / 256  # Hz of each band's highest bin
        band = int(spectrogram.log_mel(settings, tone)[-1].argmax())
        assert abs(top[band] - 1000) < 60


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_librosa_agrees(scale):
    librosa = pytest.importorskip("librosa", reason="compares with librosa, which is not installed")
    settings = SETTINGS._replace(scale=scale)
    options = {"htk": scale == "htk", "norm": "slaney" if scale == "slaney" else None}
    theirs = librosa.filters.mel(sr=8000, n_fft=256, n_mels=32, fmin=60.0, fmax=4000.0, **options)
    np.testing.assert_allclose(spectrogram.mel_filters(settings), theirs.T, rtol=1e-4, atol=1e-7)
    # A window that is shorter than the transform, librosa puts into its middle: an equal one has no middle.
    settings = settings._replace(window=256, hop=64)
    padded = np.concatenate([np.zeros(192, np.float32), SOUND])
    power = librosa.feature.melspectrogram(
        y=padded, sr=8000, n_fft=256, hop_length=64, center=False, n_mels=32, fmin=60.0, fmax=4000.0, **options
    )
    found = spectrogram.log_mel(settings, jnp.asarray(SOUND))
    np.testing.assert_allclose(found, np.log(power.T[: len(found)] + settings.floor), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hop": 201}, "hop, window and fft must increase from 1, got 201, 200, 256"),
        ({"fft": 128}, "hop, window and fft must increase from 1, got 80, 200, 128"),
        ({"high": 4001.0}, "low and high must increase from 0 to at most 4000 Hz, got 60 and 4001"),
        ({"low": -1.0}, "low and high must increase from 0 to at most 4000 Hz, got -1 and 4000"),
        ({"scale": "bark"}, "scale must be 'slaney' or 'htk', got 'bark'"),
        ({"bands": 200}, r"band \d+ of 200 has no bin of the Fourier transform"),
    ],
)
def test_settings_that_do_not_hold_together(change, message):
    with pytest.raises(ValueError, match=message):
        spectrogram.log_mel(SETTINGS._replace(**change), jnp.zeros(400))


def test_chunks_that_are_refused():
    carry = spectrogram.start(SETTINGS)
    with pytest.raises(ValueError, match="the chunk has 100 samples, expected a multiple of the hop, 80"):
        spectrogram.push(SETTINGS, carry, jnp.zeros(100))
    with pytest.raises(TypeError, match="samples must be floats from -1 to 1, got int16"):
        spectrogram.push(SETTINGS, carry, jnp.zeros(80, jnp.int16))
