"""Which digit was said: the classifiers, and the experiment through its command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_experiments import drawn, refused, run

from experiments import speech
from experiments.harness.experiment import define
from experiments.shared import confusion, recordings
from seqjax.data import spoken_digits
from seqjax.models import MomentsClassifier
from seqjax.train import read_arrays

RNG = np.random.default_rng(0)
FRAMES = RNG.normal(size=(2, 7, 3)).astype(np.float32)
LENGTHS = np.array([7, 4], np.int32)


pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(autouse=True)
def few_recordings(monkeypatch):
    few = spoken_digits.generated(speakers=recordings.SPEAKERS, count=1, samples=400)
    monkeypatch.setattr(recordings, "load", lambda data_dir: few)
    return few


def moments(rngs):
    return MomentsClassifier(3, 4, hidden=5, dropout=0.5, rngs=rngs)


def value(param):
    return np.asarray(param[...])


def test_what_is_behind_the_end_is_not_read():
    model = moments(nnx.Rngs(0))
    model.eval()
    logits = model(jnp.asarray(FRAMES), jnp.asarray(LENGTHS))
    assert logits.shape == (2, 4)
    alone = model(jnp.asarray(FRAMES[1:, :4]), jnp.asarray(LENGTHS[1:]))
    np.testing.assert_allclose(logits[1:], alone, rtol=1e-5, atol=1e-6)
    other = jnp.asarray(FRAMES).at[1, 4:].set(9.0)
    np.testing.assert_allclose(model(other, jnp.asarray(LENGTHS)), logits, rtol=1e-5, atol=1e-6)
    earlier = jnp.asarray(FRAMES).at[1, 3].set(9.0)
    assert not np.allclose(model(earlier, jnp.asarray(LENGTHS))[1], logits[1])
    model.train()
    assert not np.allclose(model(jnp.asarray(FRAMES), jnp.asarray(LENGTHS)), logits)


def test_the_moments_are_those_of_numpy():
    model = moments(nnx.Rngs(0))
    model.eval()
    real = [FRAMES[0], FRAMES[1, :4]]
    features = np.stack([np.concatenate([x.mean(0), np.sqrt(x.var(0) + 1e-4)]) for x in real])
    hidden = np.maximum(features @ value(model.hidden.kernel) + value(model.hidden.bias), 0)
    expected = hidden @ value(model.head.kernel) + value(model.head.bias)
    np.testing.assert_allclose(model(jnp.asarray(FRAMES), jnp.asarray(LENGTHS)), expected, rtol=1e-4, atol=1e-5)


def test_words_are_standardized_and_end_where_the_recording_ends(few_recordings):
    part = speech.words(recordings.load(None), "theo")["test"]
    expected = [len(samples) // 80 for samples in few_recordings.samples[4::6]]  # theo is the fifth of six
    np.testing.assert_array_equal(part.lengths, expected)
    np.testing.assert_array_equal(part.digits, np.arange(10))
    assert part.frames.shape == (10, 100, 32)
    for frames, length in zip(np.asarray(part.frames), expected, strict=True):
        np.testing.assert_allclose(frames[:length].mean(0), np.zeros(32), atol=1e-4)
        np.testing.assert_allclose(frames[:length].std(), 1, rtol=1e-2)
        assert not frames[length:].any()


def test_a_recording_is_heard_for_a_second_and_it_is_said_how_many_are_longer(few_recordings, monkeypatch):
    config = define(speech).parse({})
    assert speech.build(config).left_out is None
    first, *others = few_recordings.samples
    longer = few_recordings._replace(samples=(np.resize(first, 8001), np.resize(first, 8000), *others[1:]))
    monkeypatch.setattr(recordings, "load", lambda data_dir: longer)
    assert speech.build(config).left_out == "what 1 of 60 recordings say after 1 s"


def test_a_digit_that_nobody_says_has_no_accuracy(few_recordings, tmp_path, monkeypatch):
    """A result that is not a number would end the run after all of its training."""
    monkeypatch.setattr(speech, "save", lambda figure, path: None)
    kept = np.flatnonzero(few_recordings.digits != 3)
    monkeypatch.setattr(recordings, "load", lambda data_dir: few_recordings.take(kept))
    result = run("speech", tmp_path / "run", "--model=moments", "--units=2", "--batch_size=4").result()
    assert {name for name in result if name.startswith("accuracy_")} == {f"accuracy_{i}" for i in range(10) if i != 3}


def test_loudness_and_the_colour_of_the_microphone_do_not_matter(few_recordings, monkeypatch):
    quiet = few_recordings._replace(samples=tuple((x // 4).astype(np.int16) for x in few_recordings.samples))
    loud = speech.words(recordings.load(None), "theo")["test"].frames
    monkeypatch.setattr(recordings, "load", lambda data_dir: quiet)
    assert float(jnp.abs(speech.words(recordings.load(None), "theo")["test"].frames - loud).mean()) < 0.02


def test_confusions_are_counted():
    table = confusion.count(np.array([0, 0, 9, 3]), np.array([0, 1, 9, 8]), 10)
    assert table.sum() == 4
    assert table[0, 0] == table[0, 1] == table[9, 9] == table[3, 8] == 1


def test_the_models_have_the_weights_of_the_table():
    found = {}
    for model in speech.MODELS:
        config = define(speech).parse({"model": model})
        params = jax.eval_shape(speech.build(config).program.init, define(speech).hparams(config)).params
        found[model] = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    gru = 3 * 64 * (32 + 64) + 3 * 64 + 64
    assert found == {
        "moments": 64 * 64 + 64 + 650,
        "conv": (8 * 32 + 5 * 64 + 3 * 64) * 64 + 3 * 64 + 3 * 2 * 64 + 650,
        "gru": gru + 650,
        "bigru": 2 * gru + 64 * 10 + 650,
    }


@pytest.mark.parametrize("model", ["moments", "gru"])
def test_speech(model, tmp_path):
    finished = run("speech", tmp_path / "run", f"--model={model}", "--units=2", "--batch_size=4", "--held_out=lucas")
    result = finished.result()
    assert (finished.figures / "confusion.png").stat().st_size > 10_000
    answers = read_arrays(finished.directory / "answers.npz")
    assert result["test_accuracy"] == (answers["logits"].argmax(1) == answers["digits"]).mean()
    assert np.isclose(result["test_accuracy"], np.mean([result[f"accuracy_{digit}"] for digit in range(10)]))
    assert result["validation_loss"] == min(r["loss"] for r in finished.records() if r["split"] == "validation")
    (section,) = drawn(speech, [finished])
    assert section.table == [["held out", model], ["lucas", result["test_accuracy"]]]


def test_speech_refuses():
    assert "a rate in [0, 1)" in refused("speech", "--dropout=1")
    assert "value should be one of <moments|conv|gru|bigru>" in refused("speech", "--model=dense")
    with pytest.raises(ValueError, match="no speaker 'anna', expected one of george, jackson"):
        speech.build(define(speech).parse({"held_out": "anna"}))
    with pytest.raises(ValueError, match="leave the train part empty"):
        speech.build(define(speech).parse({"held_out": "index"}))


def test_generated_recordings_are_announced(capsys, monkeypatch):
    monkeypatch.undo()
    recordings.load.cache_clear()
    assert set(recordings.load(None).speakers) == set(recordings.SPEAKERS)
    assert "no --data_dir: the recordings are generated" in capsys.readouterr().err
