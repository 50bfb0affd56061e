"""Presets draw from the distribution that the layer they are named after draws from, as installed."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seqjax import cells, initializers, presets
from tests.agree import compiled

D, H = 40, 30
SIZES = {"rnn": 1, "lstm": 4, "gru": 3}
FLAX = {"rnn": nnx.SimpleCell, "lstm": nnx.LSTMCell, "gru": nnx.GRUCell, "packed lstm": nnx.OptimizedLSTMCell}
FORGET = slice(H, 2 * H)
INSIDE = np.arange(3 * H) >= 2 * H  # the candidate's part of a GRU's biases


def ours(name, preset, seed=0):
    cell = getattr(cells, name)(H, **preset)
    params = compiled(lambda key: cell.init(key, D))(jax.random.key(seed))
    return {name: np.asarray(leaf) for name, leaf in params.items()}


def keras_layer(name):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="compares with Keras, which is not installed")
    keras.utils.set_random_seed(1)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        layer = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[name](H)
        layer.build((None, None, D))
    w_x, w_h, b = (np.asarray(weight.value) for weight in layer.weights)
    if name == "gru":
        return {"w_x": w_x, "w_h": w_h, "b": b[0] + np.where(INSIDE, 0, b[1]), "b_n": b[1][INSIDE]}
    return {"w_x": w_x, "w_h": w_h, "b": b}


def torch_layer(name):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    torch.manual_seed(1)
    layer = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[name](D, H)
    w_x, w_h, b_x, b_h = (
        getattr(layer, f"{part}_l0").detach().numpy() for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    weights = {"w_x": w_x.T, "w_h": w_h.T}
    if name == "gru":
        return {**weights, "b": b_x + np.where(INSIDE, 0, b_h), "b_n": b_h[INSIDE]}
    return {**weights, "b": b_x + b_h}


def flax_layer(name):
    layer = FLAX[name](D, H, rngs=nnx.Rngs(1))
    if name == "lstm":
        parts = {"w_x": (layer.ii, layer.if_, layer.ig, layer.io), "w_h": (layer.hi, layer.hf, layer.hg, layer.ho)}
    else:
        parts = {"w_x": (layer.dense_i,), "w_h": (layer.dense_h,)}
    weights = {name: np.concatenate([part.kernel[...] for part in found], 1) for name, found in parts.items()}
    biases = [part.bias[...] for found in parts.values() for part in found if part.bias is not None]
    return {**weights, "b": np.concatenate(biases)}


def same_distribution(one, other):
    """Two samples by their Kolmogorov-Smirnov distance; 1.95 is passed by one pair in a thousand."""
    one, other = np.sort(one, None), np.sort(other, None)
    every = np.concatenate([one, other])
    below = [np.searchsorted(sample, every, side="right") / sample.size for sample in (one, other)]
    assert np.abs(below[0] - below[1]).max() < 1.95 * np.sqrt(1 / one.size + 1 / other.size)


def agree(one, other):
    assert {name: one[name].shape for name in other} == {name: leaf.shape for name, leaf in other.items()}
    for name in ("w_x", "w_h"):
        same_distribution(one[name], other[name])
        # A bound, such as that of a uniform draw, is seen in the extremes long before it is in the distance.
        assert np.abs(one[name]).max() == pytest.approx(np.abs(other[name]).max(), rel=0.3)
    for name in sorted({"b", "b_n"} & set(other)):
        if other[name].std() == 0 or set(np.unique(other[name])) <= {0, 1}:
            np.testing.assert_array_equal(one[name], other[name])
        else:
            same_distribution(one[name], other[name])


def overlaps(w):
    """The products of all rows, [H, H]: the identity for rows that are orthonormal over all gates."""
    return w @ w.T


@pytest.mark.parametrize("name", SIZES)
def test_keras(name):
    theirs, found = keras_layer(name), ours(name, presets.keras())
    agree(found, theirs)
    for w in (theirs["w_h"], found["w_h"]):
        np.testing.assert_allclose(overlaps(w), np.eye(H), atol=1e-5)
    limit = np.sqrt(6 / (D + SIZES[name] * H))
    for w in (theirs["w_x"], found["w_x"]):
        assert 0.98 * limit < np.abs(w).max() <= limit * (1 + 1e-6)
    if name == "lstm":
        assert (found["b"][FORGET] == 1).all()
        assert found["b"].sum() == H


@pytest.mark.parametrize("name", FLAX)
def test_flax(name):
    kind = name.removeprefix("packed ")
    theirs, found = flax_layer(name), ours(kind, presets.flax(packed=name in ("gru", "packed lstm")))
    agree(found, theirs)
    for w in (theirs["w_h"], found["w_h"]):
        if name == "lstm":
            for gate in np.split(w, 4, axis=1):
                np.testing.assert_allclose(overlaps(gate), np.eye(H), atol=1e-5)
        else:
            np.testing.assert_allclose(overlaps(w), np.eye(H), atol=1e-5)


@pytest.mark.parametrize("name", SIZES)
def test_pytorch(name):
    theirs, found = torch_layer(name), ours(name, presets.pytorch(gru=name == "gru"))
    agree(found, theirs)
    if name == "gru":
        for b_n in (found["b_n"], theirs["b_n"]):
            assert 0.8 * H**-0.5 < np.abs(b_n).max() <= H**-0.5
    for gate, (b, other) in enumerate(
        zip(np.split(found["b"], SIZES[name]), np.split(theirs["b"], SIZES[name]), strict=True)
    ):
        # A sum of two draws goes beyond the bound of one.
        beyond = name != "gru" or gate < 2
        assert (np.abs(b).max() > H**-0.5) == (np.abs(other).max() > H**-0.5) == beyond


def test_irnn_keeps_its_state_and_starts_as_published():
    params = ours("rnn", presets.irnn())
    np.testing.assert_array_equal(params["w_h"], np.eye(H))
    assert not params["b"].any()
    assert params["w_x"].std() == pytest.approx(1e-3, rel=0.1)
    cell = cells.rnn(4, **presets.irnn(0.5))
    h, _ = cell.step(cell.init(jax.random.key(0), 2), jnp.array([[1.0, 2.0, 0.0, -1.0]]), jnp.zeros((1, 2)))
    np.testing.assert_allclose(h, [[0.5, 1, 0, 0]])


def test_chrono_sets_the_biases_and_leaves_the_weights():
    key = jax.random.key(0)
    chrono, bare = (cells.lstm(5, **preset).init(key, 3) for preset in (presets.chrono(50.0), {}))
    np.testing.assert_array_equal(chrono["w_h"], bare["w_h"])
    by_hand = cells.lstm(5, b=initializers.chrono(50.0)).init(key, 3)
    np.testing.assert_array_equal(chrono["b"], by_hand["b"])
    with pytest.raises(ValueError, match="chrono needs t_max > 2 steps, got 1"):
        presets.chrono(1)


@pytest.mark.parametrize("preset", [presets.keras(), presets.flax(), presets.pytorch(), presets.chrono(9.0)])
@pytest.mark.parametrize("make", [cells.peephole_lstm, cells.gru_reset_before])
def test_presets_are_for_any_cell_with_their_arguments_and_any_width(make, preset):
    cell = make(4, dtype=jnp.bfloat16, **preset)
    narrow, usual = (jax.eval_shape(lambda c=c: c.init(jax.random.key(0), 3)) for c in (cell, make(4)))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(narrow))
    assert jax.tree.map(jnp.shape, narrow) == jax.tree.map(jnp.shape, usual)


def test_the_second_bias_of_a_gru_changes_no_other_draw():
    key = jax.random.key(0)
    with_it, without = (cells.gru(5, **preset).init(key, 3) for preset in (presets.pytorch(gru=True), {}))
    assert not without["b_n"].any()
    again = cells.gru(5, b=initializers.uniform_bias(), b_n=initializers.uniform_bias()).init(key, 3)
    np.testing.assert_array_equal(again["b_n"], with_it["b_n"])
    for name in ("w_x", "w_h"):
        np.testing.assert_array_equal(again[name], without[name])
    # Not the same numbers in both biases either.
    assert not np.isin(again["b_n"], again["b"]).any()
