"""Classifiers of series, and their experiment through its command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_experiments import drawn, refused, run

from experiments import series
from experiments.harness.experiment import define
from experiments.shared import confusion
from seqjax import cells
from seqjax.data import ucr
from seqjax.models import ConvClassifier, DenseClassifier, SeriesClassifier
from seqjax.train import read_arrays

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture
def xs():
    return jax.random.normal(jax.random.key(0), (2, 6, 3))


def array(leaf):
    return np.asarray(leaf[...], np.float64)


def linear(layer, x):
    return x @ array(layer.kernel) + array(layer.bias)


def test_a_series_classifier_reads_the_last_output_or_their_mean(xs):
    lengths = jnp.array([6, 4], jnp.int32)
    model = SeriesClassifier(cells.min_gru(4), 3, 5, encoder=2, mean=True, rngs=nnx.Rngs(0))
    ys = np.asarray(model.rnn(model.encoder(xs)))
    means = np.stack([ys[0].mean(0), ys[1, :4].mean(0)])
    np.testing.assert_allclose(model(xs, lengths), linear(model.head, means), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model(xs), linear(model.head, ys.mean(1)), rtol=1e-4, atol=1e-6)
    model.mean, model.rnn.return_sequences = False, False
    last = np.stack([ys[0, 5], ys[1, 3]])
    np.testing.assert_allclose(model(xs, lengths), linear(model.head, last), rtol=1e-4, atol=1e-6)


def test_prefixes_are_answered_as_series_that_end_there(xs):
    model = SeriesClassifier(cells.min_gru(2), 3, 5, encoder=2, dropout=0.5, rngs=nnx.Rngs(0))
    model.eval()
    found = jax.jit(lambda xs: model.prefixes(xs))(xs)  # changes nothing in the model, which stays outside of jit
    for step in (0, 3, 5):
        np.testing.assert_allclose(found[:, step], model(xs[:, : step + 1]), rtol=1e-4, atol=1e-6)
    for options in ({"mean": True}, {"backward": cells.min_gru(2)}):
        with pytest.raises(ValueError, match="prefixes needs a network that reads forward and answers from its last"):
            SeriesClassifier(cells.min_gru(2), 2, 5, **options, rngs=nnx.Rngs(0)).prefixes(xs)


@pytest.mark.parametrize("name", ["both directions", "conv"])
def test_the_padding_is_not_read(name, xs):
    rngs = nnx.Rngs(0)
    model = {
        "both directions": lambda: SeriesClassifier(cells.rnn(3), 3, 4, backward=cells.rnn(3), rngs=rngs),
        "conv": lambda: ConvClassifier(3, 4, filters=(2, 3, 2), rngs=rngs),
    }[name]()
    lengths = jnp.array([3, 6], jnp.int32)
    logits = model(xs, lengths)
    assert logits.shape == (2, 4)
    np.testing.assert_allclose(logits, model(xs.at[0, 3:].set(9), lengths), rtol=1e-5)
    np.testing.assert_allclose(logits[0], model(xs[:1, :3])[0], rtol=1e-4, atol=1e-6)
    assert not np.allclose(logits[0], model(xs)[0])


def test_a_dense_classifier_is_relu_layers_on_the_flattened_series(xs):
    model = DenseClassifier(6, 3, 4, hidden=(5,), dropout=0.5, rngs=nnx.Rngs(0))
    model.eval()
    hidden, head = model.layers
    expected = linear(head, np.maximum(linear(hidden, np.asarray(xs).reshape(2, 18)), 0))
    np.testing.assert_allclose(model(xs), expected, rtol=1e-4, atol=1e-6)
    model.train()
    assert not np.allclose(model(xs), expected)
    with pytest.raises(ValueError, match=r"series have shape \(2, 5, 3\), expected \[B, 6, 3\]"):
        model(xs[:, :5])


def test_a_conv_classifier_is_three_convolutions_and_a_mean(xs):
    model = ConvClassifier(3, 4, filters=(2, 3, 2), rngs=nnx.Rngs(0))
    ys = np.asarray(xs[0], np.float64)
    for conv, norm in zip(model.convs, model.norms, strict=True):
        norm.scale[...] = norm.scale[...] * 1.5
        kernel = array(conv.kernel)
        width = len(kernel)
        padded = np.pad(ys, (((width - 1) // 2, width // 2), (0, 0)))
        ys = np.stack([np.einsum("kd,kdo->o", padded[t : t + width], kernel) for t in range(6)]) + array(conv.bias)
        ys = (ys - ys.mean(1, keepdims=True)) / np.sqrt(ys.var(1, keepdims=True) + 1e-6) * 1.5
        ys = np.maximum(ys, 0)
    np.testing.assert_allclose(model(xs)[0], linear(model.head, ys.mean(0)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", series.MODELS)
def test_every_model_says_a_logit_a_class(model):
    config = define(series).parse({"model": model, "units": 4})
    parts = series._parts(None, config.data, config.normalize)
    found, data = series.network(config, parts["train"]), series.examples(config, parts)
    hparams = define(series).hparams(config)

    def logits(key, data):
        params, known = found.init(hparams, key), data["train"]
        return found.logits(hparams, params, known, data["test"].values, data["test"].lengths, None)

    shape = jax.eval_shape(logits, jax.random.key(0), data)
    assert (shape.shape, shape.dtype) == ((90, 3), jnp.float32)


def test_networks_get_standard_variables_and_the_nearest_neighbour_the_series_themselves():
    for model, standard in (("lstm", True), ("dtw", False)):
        config = define(series).parse({"model": model})
        parts = series._parts(None, config.data, False)
        raw, train = parts["train"], series.examples(config, parts)["train"]
        real = np.arange(30) < raw.lengths[:, None]
        assert not np.asarray(train.values)[~real].any()
        assert np.allclose(np.asarray(train.values)[real].std(0), 1, atol=1e-4) == standard
        assert np.array_equal(train.values, raw.values) != standard
    config = define(series).parse({"model": "dtw", "normalize": True})
    normal = series.examples(config, series._parts(None, config.data, True))["train"]
    np.testing.assert_allclose(np.asarray(normal.values)[0, : normal.lengths[0]].std(0), 1, rtol=1e-4)


@pytest.mark.parametrize("model", ["dtw", "bilstm"])
def test_series(model, tmp_path, monkeypatch):
    monkeypatch.setattr(series, "SHARES", (0.5, 1.0))
    finished = run(
        "series", tmp_path / "run", f"--model={model}", "--units=3", "--batch_size=8", "--dropout=0.1", "--read=last"
    )
    result = finished.result()
    answers = read_arrays(finished.directory / "answers.npz")
    right = answers["logits"].argmax(1) == answers["labels"]
    assert result["test_accuracy"] == pytest.approx(right.mean())
    of_class = [right[answers["labels"] == label].mean() for label in range(3)]
    assert result["test_balanced_accuracy"] == pytest.approx(np.mean(of_class))
    assert (finished.figures / "answers.png").stat().st_size > 10_000
    if model == "dtw":
        assert result["parameters"] == 0
        assert result["test_accuracy"] > 0.9
    (section,) = drawn(series, [finished])
    assert section.table[0] == ["model", "JapaneseVowels"]
    assert section.table[-1] == ["dtw, published", 0.949]


def test_a_recurrent_network_learns_the_waves():
    config = define(series).parse({"model": "gru", "units": 8, "steps": 80, "learning_rate": 1e-2})
    program, hparams = series.build(config).program, define(series).hparams(config)

    @jax.jit
    def train(state, data):
        state = jax.lax.fori_loop(0, config.steps, lambda _, s: program.update(hparams, data, s)[0], state)
        return program.evaluate(hparams, data, state)

    assert train(program.init(hparams), program.data)["accuracy"] > 0.6


def test_confusion_counts_classes_by_answers():
    found = confusion.count(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 0]), 3)
    assert found.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_a_class_that_does_not_occur_has_no_part_in_the_balanced_accuracy():
    counts = confusion.count(np.array([0, 0, 0, 2]), np.array([0, 1, 2, 2]), 3)
    assert confusion.balanced_accuracy(counts) == pytest.approx((1 / 3 + 1) / 2)


def test_series_refuses(tmp_path):
    config = define(series).parse({"batch_size": 73})
    program, hparams = series.build(config).program, define(series).hparams(config)
    with pytest.raises(ValueError, match=r"batch must be in \[1, count = 72\], got 73"):
        jax.eval_shape(program.update, hparams, program.data, program.init(hparams))
    assert "a rate in [0, 1)" in refused("series", "--dropout=1")
    assert "value should be one of <ECG200|" in refused("series", "--data=Coffee")
    with pytest.raises(FileNotFoundError, match="no JapaneseVowels_TRAIN"):
        series.build(define(series).parse({"data_dir": str(tmp_path)}))


def test_series_are_generated_without_data(capsys):
    series._parts.cache_clear()
    parts = series._parts(None, "GunPoint", False)
    assert "the series are generated" in capsys.readouterr().err
    assert isinstance(parts["test"], ucr.Series)
    assert not np.array_equal(parts["official"].values, parts["test"].values)
