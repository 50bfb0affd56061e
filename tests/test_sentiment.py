"""Text classifiers, and the sentiment experiment through its command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_experiments import drawn, refused, run

from experiments import sentiment
from experiments.harness.experiment import define
from seqjax import cells, unroll
from seqjax.data import reviews, vectorize
from seqjax.models import BagClassifier, SequenceClassifier
from seqjax.models.classifier import pool
from tests.agree import relaxed
from tests.quick import few

TOKENS = jnp.array([[2, 4, 0], [3, 0, 0]], jnp.int32)


pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(autouse=True)
def no_reviews_of_another_test():
    sentiment._reviews.cache_clear()


def test_a_bag_classifier_is_a_dense_net_on_the_whole_bag():
    model = BagClassifier(6, hidden=4, rngs=nnx.Rngs(0))
    model.bias[...] = jnp.arange(4, dtype=jnp.float32) / 8
    model.eval()
    weights = jnp.array([[2.0, 0.5, 0.0], [1.0, 0.0, 0.0]])
    bags = np.zeros((2, 6), np.float32)
    bags[0, 2], bags[0, 4], bags[1, 3] = 2, 0.5, 1
    table, head = np.asarray(model.rows.embedding[...]), model.head
    hidden = np.maximum(bags @ table + np.asarray(model.bias[...]), 0)
    expected = hidden @ np.asarray(head.kernel[...])[:, 0] + np.asarray(head.bias[...])
    np.testing.assert_allclose(model(TOKENS, weights), expected, rtol=1e-5)
    model.train()
    assert not np.allclose(model(TOKENS, weights), expected)


@pytest.mark.parametrize(
    ("features", "backward", "pooled"),
    [(5, None, False), (5, cells.gru(3), True), (0, cells.gru(3), False)],
    ids=["one direction", "pooled", "one-hot"],
)
def test_a_sequence_classifier_does_not_read_padding(features, backward, pooled):
    model = SequenceClassifier(cells.lstm(4), 6, features, backward=backward, pooled=pooled, rngs=nnx.Rngs(0))
    model.eval()
    lengths = jnp.array([2, 1], jnp.int32)
    logits = model(TOKENS, lengths)
    assert logits.shape == (2,)
    np.testing.assert_allclose(logits, model(TOKENS.at[1, 1:].set(5), lengths), rtol=1e-6)
    np.testing.assert_allclose(logits[1], model(TOKENS[1:, :1])[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(model(TOKENS), logits)


def test_without_features_the_tokens_are_one_hot_vectors():
    model = SequenceClassifier(cells.lstm(4), 6, 0, rngs=nnx.Rngs(0))
    model.eval()
    assert model.embedding is None
    vectors = jax.nn.one_hot(TOKENS.T, 6)
    _, ys = unroll(cells.lstm(4), model.rnn.weights, None, vectors)
    np.testing.assert_allclose(model(TOKENS), model.head(ys[-1])[:, 0], rtol=1e-5)
    with pytest.raises(ValueError, match=r"vectors have shape \(6, 2\), expected \(6, 0\)"):
        SequenceClassifier(cells.lstm(4), 6, 0, vectors=jnp.zeros((6, 2)), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("features", [0, 5])
def test_several_tokens_of_a_step_are_one_input(features):
    model = SequenceClassifier(cells.lstm(4), 6, features, tokens=2, rngs=nnx.Rngs(0))
    model.eval()
    pairs = jnp.array([[[2, 3], [4, 1], [0, 0]], [[3, 3], [0, 5], [1, 1]]], jnp.int32)
    table = jnp.eye(6) if model.embedding is None else model.embedding.embedding[...]
    xs = jnp.swapaxes(table[pairs].sum(2), 0, 1)
    _, ys = unroll(cells.lstm(4), model.rnn.weights, None, xs)
    np.testing.assert_allclose(model(pairs), model.head(ys[-1])[:, 0], rtol=1e-4)
    lengths = jnp.array([2, 1], jnp.int32)
    np.testing.assert_array_equal(model(pairs.at[1, 1:].set(2), lengths), model(pairs, lengths))


def test_pooling_takes_the_largest_and_the_mean_of_the_real_steps():
    ys = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32) - 3  # a padding of 0 would be the largest
    lengths = jnp.array([2, 5], jnp.int32)
    expected = [[*row[:n].max(0), *row[:n].mean(0)] for row, n in zip(ys, (2, 5), strict=True)]
    np.testing.assert_allclose(pool(jnp.asarray(ys), lengths), expected, rtol=1e-6)
    grads = jax.grad(lambda ys: pool(ys, lengths).sum())(jnp.asarray(ys))
    assert np.isfinite(grads).all()
    assert not grads[0, 2:].any()


def test_word_dropout_blanks_words_in_training_alone():
    model = SequenceClassifier(cells.rnn(3), 50, 4, word_dropout=0.5, dropout=0.0, rngs=nnx.Rngs(0))
    texts = jnp.full((200, 1), 7, jnp.int32)
    logits = model(texts)
    model.eval()
    said, blank = model(texts[:1])[0], model(jnp.zeros((1, 1), jnp.int32))[0]
    blanked, kept = np.isclose(logits, blank, atol=1e-6), np.isclose(logits, said, atol=1e-6)
    assert (blanked ^ kept).all()
    assert 70 < blanked.sum() < 130
    assert not np.isclose(said, blank, atol=1e-3)


def test_pretrained_vectors_are_where_the_embedding_starts():
    vectors = jnp.arange(12, dtype=jnp.float32).reshape(6, 2) / 8
    for frozen in (True, False):
        model = SequenceClassifier(cells.rnn(3), 6, 2, vectors=vectors, frozen=frozen, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(model.embedding.embedding[...], vectors)
        grads = nnx.grad(lambda model: model(TOKENS).sum())(model)
        assert bool(grads["embedding"]["embedding"][...].any()) != frozen
        assert grads["head"]["kernel"][...].any()
    with pytest.raises(ValueError, match=r"vectors have shape \(6, 2\), expected \(7, 2\)"):
        SequenceClassifier(cells.rnn(3), 7, 2, vectors=vectors, rngs=nnx.Rngs(0))


def test_a_learned_embedding_starts_around_zero():
    table = SequenceClassifier(cells.rnn(3), 200, 50, rngs=nnx.Rngs(0)).embedding.embedding[...]
    assert float(jnp.abs(table.mean())) < 1e-3
    assert 0.049 < float(jnp.abs(table).max()) <= 0.05


SMALL = ("--batch_size=8", "--units=2", "--embedding_size=3", "--length=12", "--tokens=12")


QUICK = ("tf_idf", "masked", "sru_pairs")


@pytest.mark.parametrize("model", few(sentiment.MODELS, QUICK))
def test_sentiment(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sentiment, "BAG_BORDERS", (4,))
    monkeypatch.setattr(sentiment, "BORDERS", (6,) if model == "masked" else ())
    small = {"train": reviews.generated(90), "test": reviews.generated(40, seed=1)}
    monkeypatch.setattr(sentiment.reviews, "generated", lambda count, seed=0: small["test" if seed else "train"])
    finished = run("sentiment", tmp_path / "run", f"--model={model}", *SMALL)
    saved = vectorize.load(finished.directory / "vectorizer.json")
    assert saved.size == 12
    assert saved.rules.ngrams == ((1, 2) if model in ("bigram", "tf_idf", "sru_pairs") else (1,))
    assert (finished.figures / "answers.png").stat().st_size > 10_000
    worst = (finished.directory / "most_wrong.txt").read_text()
    assert worst.count(" stars, predicted 0.") == 20
    result, logits = finished.result(), np.load(finished.directory / "test_logits.npy")
    assert result["test_accuracy"] == np.mean((logits > 0) == (small["test"].labels == 1))
    assert result["validation_loss"] == min(r["loss"] for r in finished.records() if r["split"] == "validation")
    assert [section.title for section in drawn(sentiment, [finished])] == ["Reviews"]
    train, validation = reviews.split(small["train"])
    parts = {"train": train, "validation": validation, "test": small["test"]}
    cut = [
        f"{sum(len(text.split()) > 12 for text in part.texts)} of {len(part.texts)} {name} reviews"
        for name, part in parts.items()
    ]
    expected = None if model in sentiment.BAGS else f"what {' and '.join(cut)} say after 12 words"
    assert result.get("left_out") == expected


def test_the_last_words_of_a_review_can_be_read_in_place_of_the_first():
    texts = ["a b c d e", "c d", "- b, c -- d!", ""]
    vectorizer = vectorize.fit(texts, rules=vectorize.Rules(ngrams=(1, 2)))
    for length in (1, 3, 9):
        tokens, longer = sentiment._read(vectorizer, texts, length, last=True)
        assert (tokens.shape, tokens.dtype) == ((4, length, 2), np.int32)
        whole = vectorizer.aligned(texts, 9)
        for row, every, count in zip(tokens, whole, (5, 2, 3, 0), strict=True):
            read = min(count, length)
            np.testing.assert_array_equal(row[:read], every[count - read : count])
            assert not row[read:].any()
        assert longer == sum(count > length for count in (5, 2, 3, 0))
        np.testing.assert_array_equal(sentiment._read(vectorizer, texts, length, last=False)[0], whole[:, :length])


def test_a_model_reads_the_words_that_are_kept():
    built = {kept: define(sentiment).parse({"kept": kept, "length": 5, "tokens": 30}) for kept in ("first", "last")}
    corpus = sentiment._corpus(built["first"])
    (first, cut), (last, same) = (sentiment._part(config, corpus, "validation") for config in built.values())
    assert 0 < cut == same
    assert not np.array_equal(first.tokens[0].rows, last.tokens[0].rows)


def test_a_bag_that_is_larger_than_all_borders_is_whole(monkeypatch):
    monkeypatch.setattr(sentiment, "BAG_BORDERS", (2, 3))
    config = define(sentiment).parse({"model": "tf_idf"})
    corpus = sentiment._corpus(config)
    part, _ = sentiment._part(config, corpus, "validation")
    expected = corpus.vectorizer.tf_idf(corpus.parts["validation"].texts).toarray()
    found = np.zeros_like(expected)
    for bucket, weights in zip(part.tokens, part.weights, strict=True):
        for row, tokens, values in zip(bucket.which, np.asarray(bucket.rows), np.asarray(weights), strict=True):
            np.add.at(found[int(row)], tokens, values)
    np.testing.assert_array_equal(found, expected)


def learned(model, **flags):
    """Validation accuracy after some updates on generated reviews."""
    config = define(sentiment).parse({"model": model, "batch_size": 32, **flags})
    program, hparams = sentiment.build(config).program, define(sentiment).hparams(config)

    @jax.jit
    def train(state):
        return jax.lax.fori_loop(0, config.steps, lambda _, s: program.update(hparams, program.data, s)[0], state)

    return float(program.evaluate(hparams, program.data, train(program.init(hparams)))["accuracy"])


def test_pairs_of_words_know_negations_that_words_do_not():
    unigram, bigram = (learned(model, steps=300, learning_rate=1e-2) for model in ("unigram", "bigram"))
    assert bigram > 0.9
    assert unigram < bigram - 0.1


@pytest.mark.slow
def test_keras_learns_as_much_from_the_same_bags(data_dir, keras):
    """One epoch of the book's network and optimizer; the docstring of the experiment has all ten."""
    flags = {"data_dir": str(data_dir / "imdb"), "optimizer": "rmsprop", "steps": 625}
    ours = learned("unigram", **flags)
    parts = sentiment._reviews(flags["data_dir"])
    vectorizer = vectorize.fit(parts["train"].texts, size=20_000)
    (train, labels), (held_out, truth) = (
        (vectorizer.multi_hot(parts[name].texts), np.asarray(parts[name].labels, np.float32))
        for name in ("train", "validation")
    )
    keras.utils.set_random_seed(0)
    layers = keras.layers
    dense = [layers.Dense(16, activation="relu"), layers.Dropout(0.5), layers.Dense(1, activation="sigmoid")]
    with relaxed():
        model = keras.Sequential([keras.Input((20_000,)), *dense])
        model.compile("rmsprop", "binary_crossentropy")
        for rows in np.random.default_rng(0).permutation(len(labels))[: 625 * 32].reshape(625, 32):
            model.train_on_batch(train[rows].toarray(), labels[rows])
        said = np.concatenate([model.predict_on_batch(held_out[i : i + 500].toarray()) for i in range(0, 4998, 500)])
    theirs = np.mean((said[:, 0] > 0.5) == (truth == 1))
    assert min(ours, theirs) > 0.86
    assert abs(ours - theirs) < 0.015


def test_sentiment_refuses(tmp_path):
    assert "a rate in [0, 1)" in refused("sentiment", "--dropout=1")
    assert "value should be one of <first|last>" in refused("sentiment", "--kept=middle")
    assert "value should be one of <unigram|bigram|" in refused("sentiment", "--model=trigram")
    config = define(sentiment).parse({"model": "glove", "data_dir": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=r"no aclImdb\*.tar.gz"):
        sentiment.build(config)
