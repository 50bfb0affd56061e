"""The captioner, what is scored, and the experiment through its command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.signal import correlate
from test_experiments import drawn, refused, run

from experiments import captions
from experiments.harness.experiment import define
from seqjax import attention, cells
from seqjax.data import scenes
from seqjax.models import Captioner

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module", autouse=True)
def few_scenes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions, "HELD_OUT", 16)
        patch.setattr(captions, "_BATCH", 8)
        patch.setattr(captions, "SHOWN", 2)
        yield


def seen(model, pictures):
    """The feature map [B, h, w, M] in NumPy and SciPy."""
    x = np.array([[np.hsplit(row, row.shape[1] // 4) for row in np.vsplit(p, len(p) // 4)] for p in pictures])
    x = x.reshape(*x.shape[:3], 16)
    for conv in (model.conv1, model.conv2):
        kernel = np.asarray(conv.kernel[...])
        outputs = [
            sum(correlate(x[..., i], kernel[None, ..., i, o], mode="same") for i in range(x.shape[-1]))
            for o in range(kernel.shape[-1])
        ]
        x = np.maximum(np.stack(outputs, -1) + np.asarray(conv.bias[...]), 0)
    return x + np.asarray(model.places[...])


def test_a_captioner():
    """The feature map is that of SciPy; the first word said is the likeliest one; the weights of places sum to one."""
    pictures = jax.random.uniform(jax.random.key(0), (2, 8, 8))
    given = jnp.array([[2, 4, 5], [2, 6, 3]], jnp.int32)
    model = Captioner(cells.gru(3), 8, 7, 2, channels=4, attend=attention.bahdanau, rngs=nnx.Rngs(0))

    @jax.jit
    def outputs(pictures):
        _, memory = model.encode(pictures)
        assert memory is not None
        said = model.caption(pictures, 2, start=2, stop=3)
        return memory.value.values, model(pictures, given), said, model.weights(pictures, given)

    values, logits, said, weights = jax.tree.map(np.asarray, outputs(pictures))
    np.testing.assert_allclose(values.reshape(2, 2, 2, 4), seen(model, np.asarray(pictures)), atol=1e-5)
    assert logits.shape == (2, 3, 7)
    np.testing.assert_array_equal(said[:, 0], logits[:, 0].argmax(-1))
    assert weights.shape == (2, 3, 2, 2)
    np.testing.assert_allclose(weights.sum((2, 3)), 1, rtol=1e-5)
    assert np.ptp(weights, (2, 3)).min() > 0


def test_a_captioner_has_one_type_with_64_bit_types_too(x64):
    model = Captioner(cells.gru(3), 8, 7, 2, channels=4, rngs=nnx.Rngs(0))
    assert model.places[...].dtype == jnp.float32


def test_a_captioner_without_attention_sees_every_place():
    model = Captioner(cells.gru(3), 8, 7, 2, channels=4, rngs=nnx.Rngs(0))
    pictures = jax.random.uniform(jax.random.key(0), (1, 8, 8))
    carry, memory = jax.jit(model.encode)(pictures)
    assert memory is None
    flat = seen(model, np.asarray(pictures)).reshape(1, -1)
    # The bias starts at 0.
    expected = np.tanh(flat @ np.asarray(model.decoder.bridge.kernel[...]))
    np.testing.assert_allclose(jax.tree.leaves(carry)[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="a decoder without attention has no weights to show"):
        model.weights(pictures, jnp.zeros((1, 2), jnp.int32))
    with pytest.raises(ValueError, match="cuts squares of 4 pixels out of pictures, not of 10"):
        Captioner(cells.gru(3), 10, 7, 2, rngs=nnx.Rngs(0))


def said(sentence):
    """The tokens of a sentence as a search gives them."""
    words = scenes.VOCABULARY.encode(sentence).tolist()
    return words + words[-1:] * (7 - len(words))


def test_scores_are_shares_of_captions():
    kinds = np.array([[3, 1, 8], [3, 1, 8], [3, 1, 8], [4, scenes.ALONE, 0]], np.int32)
    assert kinds[0].tolist() in scenes.kinds()["held_out"].tolist()
    texts = ("a three right of an eight", "a three above an eight", "a three right of a eight", "a four")
    found = captions.Answers(
        kinds, np.array([said(text) for text in texts]), np.array([7, 5, 6, 3.0]), np.array([7, 7, 7, 3.0]), None, None
    )
    expected = {"token_accuracy": 21 / 24, "exact": 0.5, "digits": 0.75, "relation": 0.5, "from_training": 0.5}
    assert captions.scores(found) == pytest.approx(expected)


def test_a_blind_model_sees_nothing_and_others_see_the_test_scenes():
    digits = captions._digits(None)["test"]

    @jax.jit
    def drawn_for(digits):
        configs = (define(captions).parse({"model": model}) for model in ("attention", "blind"))
        return [captions.scenes_of(config, digits, "test", "held_out") for config in configs]

    found, blind = drawn_for(digits)
    np.testing.assert_array_equal(found.captions, blind.captions)
    assert found.pictures.shape == blind.pictures.shape == (2, 8, 32, 32)
    assert not blind.pictures.any()
    assert (found.pictures > 0.5).any((2, 3)).all()
    held_out = {tuple(kind) for kind in scenes.kinds()["held_out"].tolist()}
    assert {tuple(kind) for kind in found.kinds.reshape(-1, 3).tolist()} <= held_out


SMALL = ("--batch_size=2", "--units=4", "--channels=2")


# Without attention it is the program of "blind".
@pytest.mark.parametrize("model", ["attention", pytest.param("blind", marks=pytest.mark.slow), "frequent"])
def test_captions(model, tmp_path):
    finished = run("captions", tmp_path / "run", f"--model={model}", f"--beam={1 + (model == 'blind')}", *SMALL)
    result = finished.result()
    for part in ("seen", "held_out"):
        lines = (finished.directory / f"{part}.txt").read_text().splitlines()
        right = [line[:30].strip() == line[31:] for line in lines[1:]]
        assert len(right) == 16
        assert result[f"test_exact_{part}"] == pytest.approx(np.mean(right))
        assert (finished.figures / f"{part}.png").stat().st_size > 4_000
        if model == "frequent":
            assert {line[31:] for line in lines[1:]} == {"a zero"}
    assert [section.title for section in drawn(captions, [finished])] == ["Captions"]


def test_captions_refuses(tmp_path):
    assert "value should be one of <attention|no_attention|blind|frequent>" in refused("captions", "--model=luong")
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte\.gz or"):
        captions.build(define(captions).parse({"data_dir": str(tmp_path)}))
