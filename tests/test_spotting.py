"""Spotting a digit in a stream: how streams are made, when a detector fires, and listening as the sound comes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experiments import drawn, refused, run

from experiments import spotting
from experiments.demos import listen
from experiments.shared import detection, recordings
from seqjax import cells
from seqjax.data import spectrogram, spoken_digits, streams
from seqjax.models import spotter
from seqjax.train import read_arrays
from seqjax.wrappers import with_head

RECORDINGS = spoken_digits.generated(count=2, samples=800)
BANK = streams.bank(RECORDINGS)
CLEAN = streams.Mix(3, levels=(0.0, 0.0), noise=(-300.0, -300.0))


pytestmark = pytest.mark.usefixtures("quick_programs")


def of(stream):
    return jax.tree.map(np.asarray, stream)


def test_a_stream_is_pauses_and_words():
    np.testing.assert_allclose(np.sqrt(np.mean(BANK.sound[3, : BANK.lengths[3]] ** 2)), 0.05, rtol=1e-5)
    stream = of(jax.jit(lambda key: streams.draw(key, BANK, CLEAN))(jax.random.key(0)))
    assert stream.sound.shape == (24000,)
    said = stream.digits != streams.NOTHING
    assert 1 < said.sum() < len(said)
    assert not said[np.argmin(said) :].any()
    pauses = stream.starts - np.concatenate([[0], stream.ends[:-1]])
    assert (pauses >= 0.2 * 8000 - 1).all()
    assert (pauses <= 1.0 * 8000).all()
    assert len(set(pauses.tolist())) > 3
    rest = stream.sound.copy()
    for digit, start, end in zip(stream.digits[said], stream.starts[said], stream.ends[said], strict=True):
        heard = stream.sound[start:end]
        rows = [row[: end - start] for row, n, d in zip(*BANK, strict=True) if n == end - start and d == digit]
        assert any(np.allclose(heard, row, atol=1e-6) for row in rows)
        rest[start:end] = 0
    np.testing.assert_allclose(rest, np.zeros_like(rest), atol=1e-6)
    assert stream.ends[said].max() <= 24000 < stream.ends[~said].min()


def test_streams_are_those_of_the_key():
    first, again, other = (of(streams.draw(jax.random.key(k), BANK, streams.Mix(1))) for k in (0, 0, 1))
    np.testing.assert_array_equal(first.sound, again.sound)
    assert not np.array_equal(first.sound, other.sound)


def test_levels_noise_and_speeds():
    key = jax.random.key(0)
    clean = of(streams.draw(key, BANK, CLEAN))
    start, end = int(clean.starts[0]), int(clean.ends[0])
    loud = of(streams.draw(key, BANK, CLEAN._replace(levels=(20.0, 20.0))))
    np.testing.assert_allclose(loud.sound[start:end], 10 * clean.sound[start:end], rtol=1e-4, atol=1e-6)
    noisy = of(streams.draw(key, BANK, CLEAN._replace(noise=(-20.0, -20.0))))
    np.testing.assert_allclose(noisy.sound[:start].std(), 0.005, rtol=0.05)
    fast = of(streams.draw(key, BANK, CLEAN._replace(speeds=(2.0, 2.0))))
    assert fast.starts[0] == start
    assert fast.ends[0] - start == (end - start) // 2
    np.testing.assert_allclose(
        fast.sound[start : fast.ends[0]], clean.sound[start:end][::2][: (end - start) // 2], atol=1e-6
    )
    slow = of(streams.draw(key, BANK, CLEAN._replace(speeds=(0.5, 0.5))))
    between = slow.sound[start + 1 : start + 101 : 2]
    expected = (clean.sound[start : start + 50] + clean.sound[start + 1 : start + 51]) / 2
    np.testing.assert_allclose(between, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (CLEAN._replace(seconds=0.1), "a stream of 0.1 seconds has no room for a pause of 0.2 and a word"),
        (CLEAN._replace(pauses=(1.0, 0.5)), "pauses must be an increasing range from at least 0, got 1 and 0.5"),
        (CLEAN._replace(speeds=(0.0, 1.0)), "speeds must be an increasing range"),
        (CLEAN._replace(pauses=(-1.0, 0.5)), "pauses must be an increasing range"),
        (CLEAN._replace(noise=(0.0, -1.0)), "noise must be an increasing range"),
    ],
)
def test_mixes_that_are_refused(mix, message):
    with pytest.raises(ValueError, match=message):
        streams.draw(jax.random.key(0), BANK, mix)


def test_a_digit_is_wanted_after_its_end():
    digits, starts, ends = np.array([7, 2, 5, 10]), np.array([200, 810, 1230, 1700]), np.array([505, 1200, 1290, 1900])
    stream = streams.Stream(jnp.zeros(2000), *(jnp.asarray(x, jnp.int32) for x in (digits, starts, ends)))
    classes, weights = streams.targets(stream, 20, 100, wanted=3, free=2)
    expected, counted = np.full(20, 10), np.ones(20)
    for digit, end in zip(digits, ends // 100, strict=True):
        if digit != 10:
            counted[end - 2 : end][expected[end - 2 : end] == 10] = 0
            expected[end : end + 3] = digit
    np.testing.assert_array_equal(classes, expected)
    np.testing.assert_array_equal(weights, counted)
    assert classes.tolist()[12:15] == [5, 5, 5]  # the later of two that overlap


def loop(scores, threshold, rest):
    fired, last = [], -rest - 1
    for t, score in enumerate(scores):
        now = score >= threshold and t - last > rest
        last = t if now else last
        fired.append(now)
    return fired


def test_a_detector_fires_and_then_rests():
    scores = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    found = np.asarray(detection.fires(jnp.asarray(scores), jnp.float32(0.7), 4))
    assert found.sum() > 5
    for stream in range(3):
        assert found[:, stream].tolist() == loop(scores[:, stream], 0.7, 4)


def test_what_a_threshold_is_worth():
    scores = np.full((200, 2), -9.0, np.float32)
    # (frame, stream, score): in a word of 40 to 60, late after it, too late, outside; and a second time in a word.
    for frame, stream, score in [(55, 0, 3), (85, 1, 2), (150, 0, 1), (195, 1, 4)]:
        scores[frame, stream] = score
    words = detection.Words(*np.array([[0, 40, 60], [1, 40, 60], [0, 100, 119]]).T)
    curve = detection.measure(scores, words, np.array([0.0, 1.5, 2.5, 3.5, 5.0], np.float32), frames_in_hour=4000)
    np.testing.assert_allclose(curve.detected, np.array([2, 2, 1, 0, 0]) / 3)
    np.testing.assert_allclose(curve.alarms, [20, 10, 10, 10, 0])
    np.testing.assert_array_equal(curve.delays[0], [-5, 25, np.nan])
    assert [detection.choose(curve, alarms) for alarms in (20, 19, 10, 9, 0)] == [0, 1, 1, 4, 4]
    with pytest.raises(ValueError, match="10 false alarms an hour at the highest threshold, asked for 3"):
        detection.choose(detection.Curve(*(values[:4] for values in curve)), 3)
    with pytest.raises(ValueError, match="no words to detect in 2 streams of 200 frames"):
        detection.measure(scores, detection.Words(*np.zeros((3, 0), int)), curve.thresholds, 4000)


def made_spotter():
    cell = with_head(cells.gru(4), 11)
    mean, deviation = jnp.arange(32, dtype=jnp.float32) / 8 - 9, jnp.arange(32, dtype=jnp.float32) / 32 + 1
    return spotter.Spotter(cell, cell.init(jax.random.key(0), 32), mean, deviation, spotting.SETTINGS)


@pytest.mark.parametrize("size", [80, 400])
def test_listening_gives_what_the_whole_stream_gives(size):
    made, sound = made_spotter(), streams.draw(jax.random.key(0), BANK, streams.Mix(1)).sound
    frames = spectrogram.log_mel(made.settings, sound)[:, None]
    expected = spotter.logits(made, frames)[:, 0]
    hear = jax.jit(lambda carry, chunk: spotter.listen(made, carry, chunk))
    carry, found = spotter.start(made), []
    for chunk in sound.reshape(-1, size):
        carry, logits = hear(carry, chunk)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(expected[1:] - expected[:-1]).max()) > 1e-3


def test_log_odds_are_those_of_the_softmax():
    logits = np.random.default_rng(0).normal(size=(3, 11)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(spotter.log_odds(jnp.asarray(logits), 4), np.log(p[:, 4] / (1 - p[:, 4])), rtol=1e-4)


SMALL = ("--batch_size=2", "--units=2", "--seconds=2", "--minutes=2", "--alarms=100000", "--digit=3")


def test_spotting(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(spotting, "MINUTE", 8)
    monkeypatch.setattr(spotting, "THRESHOLDS", np.array([-20, -2.3, np.inf], np.float32))
    few = spoken_digits.generated(speakers=recordings.SPEAKERS, count=1, samples=800)
    monkeypatch.setattr(recordings, "load", lambda data_dir: few)
    finished = run("spotting", tmp_path / "run", "--model=gru", *SMALL)
    result = finished.result()
    assert result["threshold"] == -20
    assert result["detected"] > 0
    assert 1 <= result["digits"] <= 10
    curve = read_arrays(finished.directory / "curve.npz")
    worth = dict(zip(curve["alarms"].tolist(), curve["detected"].tolist(), strict=True))
    allowed = [detected for alarms, detected in worth.items() if alarms <= finished.flags["alarms"]]
    assert result["detected_at_alarms"] == max(allowed, default=0)
    for name in ("tradeoff", "stream"):
        assert (finished.figures / f"{name}.png").stat().st_size > 10_000
    assert [section.title for section in drawn(spotting, [finished])] == ["Spotting"]
    # What is heard in its own wav file, frame by frame, is where the detector fires on the whole stream.
    made, digit, threshold = spotting.read(finished)
    assert (digit, threshold) == (3, -20)
    file = finished.directory / "stream.wav"
    sound = spoken_digits.read_wav(file.read_bytes(), "stream.wav")
    assert len(sound) == 8 * 8000
    frames = spectrogram.log_mel(made.settings, jnp.asarray(sound / np.float32(32768)))[:, None]
    scores = spotter.log_odds(spotter.logits(made, frames), digit)
    fired = np.flatnonzero(detection.fires(scores, jnp.float32(threshold))[:, 0])
    found = list(listen.detections(made, digit, threshold, sound))
    np.testing.assert_allclose([seconds for seconds, _ in found], (fired + 1) / 100)
    # A last piece of sound that is no whole frame is heard too.
    assert len(list(listen.detections(made, digit, threshold, sound[: (1 + detection.REST) * 80]))) == 1
    assert len(list(listen.detections(made, digit, threshold, sound[: (1 + detection.REST) * 80 + 1]))) == 2
    np.testing.assert_allclose([score for _, score in found], np.asarray(scores)[fired, 0], rtol=1e-3, atol=1e-4)
    capsys.readouterr()
    assert listen.main([f"--run={finished.directory}", f"--file={file}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found) > 10
    assert lines[0].split()[:3] == [f"{found[0][0]:.2f}", "s", "3"]


def test_spotting_refuses():
    assert "a rate in [0, 1)" in refused("spotting", "--recurrent_dropout=1")
    assert "flag --digit" in refused("spotting", "--digit=10")
