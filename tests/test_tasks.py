"""The tasks of the studies: what a batch holds, and that held-out parts are scored once and whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness.task import evaluate
from experiments.shared import tasks
from experiments.shared.tasks import digits, texts
from seqjax.data import mnist, music, ptb


def first_batch(task):
    return task.train(task.data, jax.random.key(0), jnp.int32(0))


@pytest.mark.parametrize("name", [name for name in tasks.TASKS if name != "text"])
def test_a_batch_has_the_shapes_that_its_task_promises(name):
    class Config:
        task, batch_size, length, lag, data_dir = name, 3, 8, 5, None

    task = tasks.make_task(Config)
    xs, targets, weights = first_batch(task)
    assert xs.shape[:2] == targets.shape[:2] == weights.shape == (tasks.steps(task), 3)
    assert xs.shape[2:] == ((task.features,) if task.features else ())
    assert bool(task.tokens) == (xs.dtype == jnp.int32) == (task.features == 0)
    ys = jnp.zeros((*weights.shape, task.outputs))
    assert task.losses(ys, targets).shape == weights.shape
    assert {score.shape for score in task.scores(ys, targets).values()} == {weights.shape}
    assert weights.sum() > 0


def test_chorales_are_scored_over_all_their_steps_but_the_first():
    """By a constant output, against NumPy on the pieces themselves: padding does not count."""
    task = tasks.chorales(None, batch_size=4)
    odds = np.linspace(-2, 1, music.KEYS, dtype=np.float32)
    found = evaluate(
        task, "test", task.data, (), lambda carry, xs: (carry, jnp.broadcast_to(odds, (*xs.shape[:2], music.KEYS)))
    )
    rolls = np.concatenate([piece[1:] for piece in tasks.pieces(None)["test"]]).astype(np.float64)
    probability = 1 / (1 + np.exp(-odds.astype(np.float64)))
    nll = -(rolls * np.log(probability) + (1 - rolls) * np.log(1 - probability)).sum(1)
    np.testing.assert_allclose(found["loss"], nll.mean(), rtol=1e-5)


def test_a_chorale_is_read_up_to_its_end():
    task = tasks.chorales(None, batch_size=4)
    xs, targets, weights = first_batch(task)
    np.testing.assert_array_equal(xs[1:], targets[:-1])
    lengths = weights.sum(0).astype(int)
    assert set(lengths.tolist()) <= {len(piece) - 1 for piece in tasks.pieces(None)["train"]}
    for sequence, length in enumerate(lengths):
        assert (weights[:length, sequence] == 1).all()
        assert not xs[length + 1 :, sequence].any()


def test_more_chorales_than_there_are_cannot_be_a_batch():
    with pytest.raises(ValueError, match="--batch_size=65: expected at most the 64 training chorales"):
        tasks.chorales(None, batch_size=65)


def test_the_words_are_those_of_the_first_lines(monkeypatch):
    monkeypatch.setattr(texts, "LINES", 20)
    texts._treebank.cache_clear()
    task = tasks.words(None, length=5, batch_size=2)
    texts._treebank.cache_clear()
    parts = ptb.generated()
    lines = parts["train"].splitlines(keepends=True)[:20]
    tokens = task.vocabulary.encode("".join(lines))
    streams = np.asarray(task.data["train"])
    np.testing.assert_array_equal(streams.T.ravel(), tokens[: streams.size])
    assert task.data["test"].real.sum() == len(task.vocabulary.encode(parts["test"])) - 1


def test_rows_and_permuted_pixels_are_of_the_same_digits():
    images = digits.parts(None)["train"]
    rows, permuted = tasks.rows(None, batch_size=5), tasks.permuted(None, batch_size=5)
    (xs, labels, weights), (pixels, *_) = jax.device_get((first_batch(rows), first_batch(permuted)))
    assert xs.shape == (28, 5, 28)
    assert pixels.shape == (196, 5, 1)
    assert (weights == (np.arange(28) == 27)[:, None]).all()
    found = [np.flatnonzero(np.isclose(images.images / 255, xs[:, i], atol=1e-6).all((1, 2)))[0] for i in range(5)]
    np.testing.assert_array_equal(images.labels[found], labels[-1])
    means = images.images[found].reshape(5, 14, 2, 14, 2).mean((2, 4)).reshape(5, 196) / 255
    np.testing.assert_allclose(np.sort(pixels[:, :, 0].T), np.sort(means), atol=1e-6)
    # One order for all digits.
    order = [np.flatnonzero(np.isclose(means, values[:, None]).all(0)) for values in pixels[:20, :, 0]]
    assert all(len(places) for places in order)


def test_every_digit_is_scored_once():
    task, labels = tasks.rows(None, batch_size=5), digits.parts(None)["test"].labels
    assert len(labels) % 500
    ys = jax.nn.one_hot(3, 10)
    found = evaluate(task, "test", task.data, (), lambda carry, xs: (carry, jnp.broadcast_to(ys, (*xs.shape[:2], 10))))
    assert float(found["accuracy"]) == pytest.approx((labels == 3).mean())


def test_what_is_generated_without_data():
    assert tasks.synthetic_data({"task": "rows", "data_dir": None}) == "digits"
    assert tasks.synthetic_data({"task": "rows", "data_dir": "there"}) is None
    assert tasks.synthetic_data({"task": "adding", "data_dir": None}) is None
    assert tasks.DATA.keys() <= tasks.TASKS.keys()
    assert tasks.steps(tasks.rows(None, batch_size=2)) == mnist.SIZE
