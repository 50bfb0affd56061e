"""Tokens, lengths and rows outside of their range: refused where they are known, and zeros where they are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seqjax import cells
from seqjax.arrays import rows
from seqjax.models import BagClassifier, Decoder, KneserNey, LanguageModel, SequenceClassifier, Translator, nearest

V = 5

pytestmark = pytest.mark.usefixtures("quick_programs")


def _decoder():
    return Decoder(cells.rnn(3), V, 2, about=3, rngs=nnx.Rngs(0))


def _translator():
    return Translator(cells.gru(2), V, V, 2, rngs=nnx.Rngs(0))


# The model, and its logits of tokens int [2, 2].
READERS = {
    "language": (lambda: LanguageModel([cells.rnn(3)], V, 2, rngs=nnx.Rngs(0)), lambda model, x: model(x)[2]),
    "decoder": (_decoder, lambda model, x: model(x, model.start(jnp.ones((2, 3))))),
    "step": (_decoder, lambda model, x: model.step(model.start(jnp.ones((2, 3))), x[0])[1]),
    "translator": (_translator, lambda model, x: model(x, jnp.array([2, 2]), jnp.zeros((2, 2), jnp.int32))),
    "bag": (lambda: BagClassifier(V, dropout=0.0, rngs=nnx.Rngs(0)), lambda model, x: model(x, jnp.ones(x.shape))),
    "sequence": (
        lambda: SequenceClassifier(cells.rnn(3), V, 2, dropout=0.0, rngs=nnx.Rngs(0)),
        lambda model, x: model(x),
    ),
    "one_hot": (
        lambda: SequenceClassifier(cells.rnn(3), V, 0, dropout=0.0, rngs=nnx.Rngs(0)),
        lambda model, x: model(x),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "translator")) for name in READERS]
)
def test_models_refuse_known_tokens_that_are_none_and_say_no_nan_to_others(name):
    make, read = READERS[name]
    model = nnx.jit(make)()
    for wrong in (-1, V):
        with pytest.raises(ValueError, match=rf"tokens must be in range\({V}\), got values from"):
            read(model, jnp.array([[0, wrong], [1, 2]]))
    run = nnx.jit(nnx.value_and_grad(lambda model, tokens: jnp.square(read(model, tokens)).sum()))
    found = run(model, jnp.array([[0, -1], [V, 2]]))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))
    assert found[0] != run(model, jnp.array([[0, V - 1], [0, 2]]))[0]  # not the rows of other tokens
    with pytest.raises((TypeError, ValueError), match="integer"):
        read(model, jnp.zeros((2, 2)))


def test_rows_are_those_of_the_table_or_zeros():
    table = jnp.arange(1.0, 7.0).reshape(3, 2)
    found = jax.jit(rows)(table, jnp.array([[2, -1], [3, 0]]))
    np.testing.assert_array_equal(found, [[[5, 6], [0, 0]], [[0, 0], [1, 2]]])


@pytest.mark.parametrize("words", [{"start": -1, "stop": 2}, {"start": 0, "stop": V}])
def test_a_search_refuses_words_that_are_none(words):
    model = _decoder()
    with pytest.raises(ValueError, match=rf"start and stop must be in range\({V}\)"):
        model.search(3, model.start(jnp.ones((2, 3))), **words)


def test_counted_n_grams_refuse_tokens_that_are_none():
    model = KneserNey.fit(np.array([0, 1, 2] * 5), size=V, order=2)
    for wrong in (-1, V):
        for read in (model.nats, lambda tokens: KneserNey.fit(tokens, size=V, order=1)):
            with pytest.raises(ValueError, match=rf"tokens must be in range\({V}\), got {wrong}"):
                read(np.array([0, 1, wrong]))
    with pytest.raises(TypeError, match="tokens must be integers, got float64"):
        model.nats(np.array([0.5, 1]))


@pytest.mark.parametrize("wrong", [0, 4, -1])
def test_neighbours_refuse_lengths_that_no_series_has(wrong):
    series, lengths = jnp.ones((2, 3, 1)), jnp.array([3, wrong])
    for options in ({"x_lengths": lengths}, {"y_lengths": lengths}):
        with pytest.raises(ValueError, match=r"[xy]_lengths - 1 must be in range\(3\)"):
            nearest.dtw(series, series, **options)
        found = jax.jit(lambda options: nearest.dtw(series, series, **options))(options)
        assert not jnp.isnan(found).any()
