"""Networks that read videos, and the two experiments on digits in motion through their command lines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from test_experiments import drawn, refused, run

from experiments import direction, next_frame
from experiments.harness.experiment import define
from experiments.shared import videos
from seqjax import cells
from seqjax.cells.convolution import convolve
from seqjax.data import mnist, motion
from seqjax.models.video import (
    ConvPredictor,
    FrameClassifier,
    LastFrame,
    RecurrentPredictor,
    from_patches,
    patches,
    predict,
)
from seqjax.train import read_arrays

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    digits = mnist.generated(60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(videos, "_images", lambda data_dir: dict.fromkeys(("train", "validation", "test"), digits.images))
        patch.setattr(videos, "HELD_OUT", 64)
        yield


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (2, 5), (1, 4)])
def test_the_product_of_shifts_is_a_convolution(kernel):
    n = len(kernel)
    x = jax.random.normal(jax.random.key(0), (2, *(6, 7)[:n], 3))
    w = jax.random.normal(jax.random.key(1), (*kernel, 3, 4))
    image, filters = (0, n + 1, *range(1, n + 1)), (n + 1, n, *range(n))
    axes = jax.lax.ConvDimensionNumbers(image, filters, image)
    expected = jax.lax.conv_general_dilated(x, w, (1,) * n, "SAME", dimension_numbers=axes)
    np.testing.assert_allclose(convolve(x, w), expected, atol=1e-5)


def test_patches_are_squares_of_pixels_and_go_back_together():
    frames = jnp.arange(24, dtype=jnp.float32).reshape(1, 4, 6)
    squares = patches(frames, 2)
    assert squares.shape == (1, 2, 3, 4)
    assert squares[0, 1, 2].tolist() == [16, 17, 22, 23]
    np.testing.assert_array_equal(from_patches(squares, 2), frames)
    with pytest.raises(ValueError, match="4 x 6 pixels cannot be cut into squares of 4 x 4"):
        patches(frames, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: LastFrame(),
        lambda rngs: ConvPredictor(2, 4, hidden=3, rngs=rngs),
        lambda rngs: RecurrentPredictor(cells.conv_lstm(3, (2, 2)), 4, rngs=rngs),
    ],
)
def test_unseen_frames_are_not_looked_at_and_the_own_ones_are_read(make):
    model = make(nnx.Rngs(0))
    frames = jax.random.uniform(jax.random.key(0), (2, 5, 8, 8))
    three = jax.jit(lambda frames: predict(model, frames, 3))
    said = three(frames)
    assert said.shape == frames.shape
    np.testing.assert_array_equal(three(frames.at[:, 3:].set(0)), said)
    # All frames given, of which the later ones are those that it said: the same.
    own = jnp.concatenate([frames[:, :3], jax.nn.sigmoid(said[:, 2:-1])], axis=1)
    np.testing.assert_allclose(jax.jit(lambda x: predict(model, x, 5))(own), said, atol=1e-5)
    if isinstance(model, LastFrame):
        np.testing.assert_allclose(jax.nn.sigmoid(said[:, 2:]), np.repeat(frames[:, 2:3], 3, 1).clip(1e-3, 0.999), 1e-4)


def test_predict_refuses_more_than_there_is():
    with pytest.raises(ValueError, match=r"given must be in \[1, 5\], the number of frames, got 6"):
        predict(LastFrame(), jnp.zeros((1, 5, 4, 4)), 6)


def test_what_a_classifier_sees():
    frames = jax.random.uniform(jax.random.key(0), (1, 5, 8, 8))
    other = frames.at[0, 2].set(0)
    for memory, count, changed in (
        (1, 1, [0, 0, 1, 0, 0]),
        (1, 2, [0, 0, 1, 1, 0]),
        (cells.gru(3), 1, [0, 0, 1, 1, 1]),
    ):
        model = FrameClassifier(memory, 8, 8, frames=count, features=6, rngs=nnx.Rngs(0))
        classify = jax.jit(model.__call__)
        differ = (classify(frames) != classify(other)).any(-1)
        assert differ.shape == (1, 5)
        assert differ[0].tolist() == [bool(x) for x in changed]
    with pytest.raises(ValueError, match="cuts squares of 4 pixels out of frames, not of 6"):
        FrameClassifier(1, 6, 8, rngs=nnx.Rngs(0))


def test_frames_since_a_wall():
    velocities = np.array([[[1, 1], [1, 1], [-1, 1], [-1, 1], [-1, -1], [-1, -1]]])
    assert direction._since_wall(velocities).tolist() == [[-1, -1, 0, 1, 0, 1]]


def test_straight_flight_is_right_until_a_wall():
    config = define(next_frame).parse({"size": 16, "length": 8, "given": 4})
    digits = videos.images(config)["test"]
    assert digits.shape == (60, 7, 7)
    made = jax.jit(lambda key: videos.draw(config, digits, key, 30))(jax.random.key(0))
    oracle = np.asarray(jax.jit(lambda made: next_frame.straight(config, made))(made))
    inside = made.path.positions[3] + 4 * made.path.velocities[3]
    inside = np.asarray((inside == inside.clip(0, 1)).all((-1, -2)))
    assert 5 < inside.sum() < 30
    np.testing.assert_allclose(oracle[inside], np.asarray(made.frames)[inside], atol=1e-4)
    np.testing.assert_allclose(oracle[:, :4], made.frames[:, :4], atol=1e-4)
    assert (np.abs(oracle - np.asarray(made.frames)).max((1, 2, 3)) > 1e-3)[~inside].all()


SMALL = ("--batch_size=2", "--units=3", "--size=16", "--length=6")


@pytest.mark.parametrize(
    ("module", "model"), [(m, model) for m in (direction, next_frame) for model in m.MODELS], ids=lambda x: str(x)[-20:]
)
def test_every_model_can_be_trained(module, model):
    """All but the compiler's part of a run."""
    config = define(module).parse(["--given=3"] * (module is next_frame) + [f"--model={model}", *SMALL])
    made, hparams = module.build(config).program, define(module).hparams(config)
    state = jax.eval_shape(made.init, hparams)
    after, _ = jax.eval_shape(made.update, hparams, made.data, state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    weights = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    assert (
        weights
        == {
            "last": 0,
            "conv": (9 * 4 * 16 * 3 + 3) + (9 * 3 * 3 + 3) + (9 * 3 * 16 + 16),
            "conv_lstm": 9 * (16 + 3) * 12 + 12 + 3 * 16 + 16,
            "conv_lstm2": 9 * (16 + 3) * 12 + 12 + 9 * 6 * 12 + 12 + 3 * 16 + 16,
            "frame": (9 * 16 * 16 + 16) + (256 * 3 + 3) + 12 + 32,
            "pair": (9 * 32 * 16 + 16) + (256 * 3 + 3) + 12 + 32,
            "rnn": (9 * 16 * 16 + 16) + (256 * 3 + 3) + 3 * 7 + 32,
            "gru": (9 * 16 * 16 + 16) + (256 * 3 + 3) + 3 * (3 * 7) + 3 + 32,
            "lstm": (9 * 16 * 16 + 16) + (256 * 3 + 3) + 4 * 3 * 7 + 32,
        }[model]
    )


def test_direction(tmp_path):
    finished = run("direction", tmp_path / "run", "--model=pair", *SMALL)
    saved, result = read_arrays(finished.directory / "answers.npz"), finished.result()
    right = saved["predicted"] == saved["labels"]
    assert right.shape == (64, 6)
    assert result["test_accuracy"] == pytest.approx(right.mean())
    assert result["test_accuracy_wall"] == pytest.approx(right[saved["flight"] == 0].mean())
    assert 1 / 8 <= result["majority"] < 0.3
    assert (finished.figures / "directions.png").stat().st_size > 10_000
    assert [section.title for section in drawn(direction, [finished])] == ["Directions"]


@pytest.mark.parametrize("model", ["last", "conv_lstm"])
def test_next_frame(model, tmp_path, monkeypatch):
    if model == "last":  # drawn once
        monkeypatch.setattr(next_frame, "save", lambda figure, path: None)
        monkeypatch.setattr(next_frame, "_strips", lambda *arguments: None)
    finished = run("next_frame", tmp_path / "run", f"--model={model}", "--given=3", *SMALL)
    saved, result = read_arrays(finished.directory / "errors.npz"), finished.result()
    assert saved["errors"].shape == saved["straight"].shape == (5,)
    assert result["test_error"] == pytest.approx(saved["errors"][2:].mean(), rel=1e-5)
    assert saved["straight"][:2].max() < 1e-3
    if model == "last":
        expected = np.square(saved["frames"][:, 0] - saved["predicted"][:, 0])
        assert expected.max() < 1e-4  # the next frame is said to be this one
        return
    assert (finished.figures / "strips.png").stat().st_size > 5_000
    with Image.open(finished.figures / "videos.gif") as animation:
        assert animation.n_frames == 5
    assert [section.title for section in drawn(next_frame, [finished])] == ["Next frames"]


def test_videos_refuse():
    assert "the direction is that of one digit" in refused("direction", "--digits=2")
    assert "one of (16, 32, 64)" in refused("next_frame", "--size=30")
    assert "flag --given=1" in refused("next_frame", "--given=1")  # it would have no forecast of a frame that is seen
    assert "--given must be less than --length" in refused("next_frame", "--given=20")
    assert "--patch must divide --size" in refused("next_frame", "--patch=3")


def test_real_digits(data_dir):
    """The images are those of the loader, at half their size."""
    parts = mnist.load(data_dir)
    small = parts["test"].images[:5].reshape(5, 14, 2, 14, 2).mean((2, 4))
    config = define(next_frame).parse({"data_dir": str(data_dir)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(videos, "_images", lambda data_dir: {"test": parts["test"].images[:5]})
        found = np.asarray(videos.images(config)["test"])
    np.testing.assert_allclose(found, small, atol=0.5)
    assert motion.place(jnp.asarray(found[0], jnp.float32), jnp.zeros(2), 32).shape == (32, 32)
