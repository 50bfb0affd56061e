"""Digits as sequences, and their experiment through its command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experiments import drawn, refused, run

from experiments import mnist
from experiments.harness import supervised
from experiments.harness.experiment import define
from experiments.shared import tasks
from seqjax import cells
from seqjax.data import mnist as digits
from seqjax.train import read_arrays

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    train, validation = digits.split(digits.generated(300), 50)
    small = {"train": train, "validation": validation, "test": digits.generated(50, seed=1)}
    with pytest.MonkeyPatch.context() as patch:
        load = tasks.digits.parts
        patch.setattr(mnist, "_BATCH", 20)
        patch.setattr(tasks.digits, "parts", lambda data_dir: small if data_dir is None else load(data_dir))
        yield


def test_a_digit_is_read_in_its_order():
    pixels = jnp.arange(2 * 784, dtype=jnp.int32).reshape(2, 784) % 251
    rows, one, permuted = (np.asarray(mnist.sequences(pixels.astype(jnp.uint8), order)) for order in mnist.SHAPES)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows[1, 3, 4], (784 + 3 * 28 + 4) % 251 / 255, rtol=1e-6)
    np.testing.assert_array_equal(one, rows.reshape(2, 784, 1))
    assert permuted.shape == (2, 784, 1)
    assert (permuted != one).mean() > 0.9
    np.testing.assert_array_equal(np.sort(permuted, axis=1), np.sort(one, axis=1))
    # One permutation for all digits: the same places hold the same pixels.
    same = mnist.sequences(jnp.repeat(pixels[:1], 2, 0).astype(jnp.uint8), "permuted")
    np.testing.assert_array_equal(same[0], same[1])


def test_the_irnn_starts_as_a_sum_and_chrono_remembers_the_whole_sequence():
    made = [mnist.cell(model, 500, 784) for model in ("irnn", "chrono_lstm")]
    irnn, lstm = jax.jit(lambda key: [cell.init(key, 1) for cell in made])(jax.random.key(0))
    np.testing.assert_array_equal(irnn["w_h"], np.eye(500))
    assert 0 < np.abs(irnn["w_x"]).max() < 0.01
    b = np.asarray(lstm["b"]).reshape(4, 500)
    assert 6 < b[1].max() <= np.log(783)
    np.testing.assert_array_equal(b[0], -b[1])


@pytest.mark.parametrize("model", ["lstm", "gru", "min_gru", "lru", "logistic"])
def test_every_model_says_a_logit_a_digit(model):
    config = define(mnist).parse({"model": model, "units": 4, "order": "permuted"})
    init, module = mnist.network(config)

    def logits(key, pixels):
        return module({}, init({}, key), None)(mnist.sequences(pixels, config.order))

    shape = jax.eval_shape(logits, jax.random.key(0), jax.ShapeDtypeStruct((2, 784), jnp.uint8))
    assert (shape.shape, shape.dtype) == ((2, 10), jnp.float32)


@pytest.mark.parametrize(("order", "model"), [("rows", "dense"), ("pixels", "irnn")])
def test_mnist(order, model, tmp_path):
    finished = run("mnist", tmp_path / "run", f"--order={order}", f"--model={model}", "--units=3", "--batch_size=10")
    answers, result = read_arrays(finished.directory / "answers.npz"), finished.result()
    assert result["test_accuracy"] == pytest.approx((answers["answers"] == answers["labels"]).mean())
    assert ("lyapunov" in result) == ("first_lyapunov" in result) == (model != "dense")
    if model == "dense":
        assert not answers["accuracy_after"].size
    else:
        assert answers["answers"].shape == (50,)
        assert len(answers["accuracy_after"]) == mnist.SHAPES[order][0]
        assert answers["accuracy_after"][-1] == pytest.approx(result["test_accuracy"])
    assert (finished.figures / "answers.png").stat().st_size > 10_000
    assert [section.title for section in drawn(mnist, [finished])] == ["Digits"]


def test_the_lyapunov_exponents_are_those_of_the_cell_before_and_after_training(monkeypatch):
    """Of a linear recurrence: the logarithm of the largest eigenvalue of its matrix."""
    monkeypatch.setattr(mnist, "cell", lambda model, units, steps: cells.rnn(units, lambda u: u))
    config = define(mnist).parse({"model": "rnn", "units": 3, "order": "pixels"})
    hparams = define(mnist).hparams(config)
    init, _ = mnist.network(config)
    first, _ = supervised.first_params(init, hparams)
    trained = jax.tree.map(jnp.copy, first)
    trained["rnn"]["cell_params"]["w_h"] = jnp.diag(jnp.array([0.9, 0.5, 0.2]))
    pixels = jnp.zeros((2, 784), jnp.uint8)
    found = mnist._exponents(config, hparams, trained, pixels)
    w_h = first["rnn"]["cell_params"]["w_h"]
    largest = np.log(np.abs(np.linalg.eigvals(np.asarray(w_h))).max())
    assert found["first_lyapunov"] == pytest.approx(largest, abs=5e-3)
    assert found["lyapunov"] == pytest.approx(np.log(0.9), abs=5e-3)


def test_every_digit_is_measured_whatever_the_batch():
    """Fifty digits in batches of twenty, against one digit at a time."""
    config = define(mnist).parse({"model": "logistic"})
    program, hparams = mnist.build(config).program, define(mnist).hparams(config)
    state = program.init(hparams)
    assert program.evaluate is not None
    found = program.evaluate(hparams, program.data, state)
    model = mnist.network(config)[1](hparams, state.params, None)
    losses, right = [], []
    for image, label in zip(*tasks.digits.parts(None)["validation"], strict=True):
        logits = np.asarray(model(image.astype(np.float32)[None] / 255)[0], np.float64)
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
        right.append(logits.argmax() == label)
    assert len(losses) == 50
    np.testing.assert_allclose(found["loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], np.mean(right), rtol=1e-6)


def test_mnist_refuses(tmp_path):
    assert "value should be one of <rows|pixels|permuted>" in refused("mnist", "--order=columns")
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte\.gz or"):
        mnist.build(define(mnist).parse({"data_dir": str(tmp_path)}))
