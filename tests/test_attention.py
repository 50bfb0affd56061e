"""Attention against loops in NumPy, on every kind of score and in both places; what is masked is not there."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax import attention, cells
from tests.agree import at, close

T, B, S, D, M, H = 4, 2, 3, 2, 5, 3
unroll = partial(seqjax.unroll, method="scan")  # nothing to be compiled by a C++ compiler
SCORES = {"additive": attention.additive(4), "multiplicative": attention.multiplicative()}
PLACES = {"luong": attention.luong, "bahdanau": attention.bahdanau}
MASK = jnp.array([[True, True, False], [True, True, True]])


pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(params=[(place, score) for place in PLACES for score in SCORES], ids="-".join)
def case(request):
    """The attending cell, params, inputs, values of the memory, and NumPy's score of a query for a value."""
    place, score = request.param
    attending = PLACES[place](cells.gru(H), M, SCORES[score])
    keys = jax.random.split(jax.random.key(0), 3)
    params = attending.cell.init(keys[0], D)
    xs, values = jax.random.normal(keys[1], (T, B, D)), jax.random.normal(keys[2], (B, S, M))
    p = jax.tree.map(np.asarray, params["score"])

    def oracle(query, value):
        if score == "additive":
            return np.tanh(query @ p["w_q"] + value @ p["w_m"]) @ p["v"][:, 0]
        return query @ p["w_m"].T @ value

    return place, attending, params, xs, values, oracle


def test_attention_is_the_loop_over_sequences_steps_and_places(case):
    place, attending, params, xs, values, oracle = case
    memory = attending.remember(params, values, MASK)
    _, ys = unroll(attending.cell, params, None, (xs, memory))
    _, weights = unroll(attending.alignment, params, None, (xs, memory))
    assert ys.shape == (T, B, H)
    assert weights.shape == (T, B, S)

    def context(query, b):
        e = np.exp([oracle(query, np.asarray(values[b, s])) for s in range(S) if MASK[b, s]])
        return sum(w * np.asarray(values[b, s]) for s, w in enumerate(e / e.sum())), e / e.sum()

    gru, p = jax.jit(cells.gru(H).step), params["cell"]
    for b in range(B):
        h = np.zeros(H, np.float32)
        for t in range(T):
            if place == "bahdanau":
                c, w = context(h, b)
                h = np.asarray(gru(p, jnp.asarray(h), jnp.concatenate([xs[t, b], jnp.asarray(c, jnp.float32)]))[0])
            else:
                h = np.asarray(gru(p, jnp.asarray(h), xs[t, b])[0])
                c, w = context(h, b)
            np.testing.assert_allclose(ys[t, b], np.tanh(np.concatenate([c, h]) @ params["w_c"]), atol=1e-5)
            np.testing.assert_allclose(weights[t, b, : len(w)], w, atol=1e-5)


def test_steps_one_by_one_are_the_unrolled_ones_from_any_start(case):
    _, attending, params, xs, values, _ = case
    memory = attending.remember(params, values, MASK)
    carry = start = attending.start(jnp.full((B, H), 0.3))
    ys = []
    for t in range(T):
        carry, y = attending.cell.step(params, carry, at((xs, memory), t))
        ys.append(y)
    last, unrolled = unroll(attending.cell, params, start, (xs, memory))
    close(last, carry, 1e-6)
    close(unrolled, jnp.stack(ys), 1e-6)
    assert not np.allclose(unrolled, unroll(attending.cell, params, None, (xs, memory))[1], atol=1e-3)


def test_the_padding_of_a_memory_has_no_weight_and_no_gradient(case):
    _, attending, params, xs, values, _ = case

    def loss(params, values):
        memory = attending.remember(params, values, MASK)
        return jnp.square(unroll(attending.cell, params, None, (xs, memory))[1]).sum()

    value_and_grad = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, grads = value_and_grad(params, values)
    nothing = values.at[0, 2].set(jnp.nan)
    close(value_and_grad(params, nothing), (value, grads), 0)
    assert not grads[1][0, 2].any()
    assert (jnp.abs(grads[1]).sum(-1) > 0).tolist() == MASK.tolist()
    weights = unroll(attending.alignment, params, None, (xs, attending.remember(params, nothing, MASK)))[1]
    assert not weights[:, 0, 2].any()
    np.testing.assert_allclose(weights.sum(-1), np.ones((T, B)), rtol=1e-6)


def test_a_memory_of_nothing_is_a_context_of_zeros(case):
    _, attending, params, _, values, _ = case
    memory = attending.remember(params, values, jnp.zeros((B, S), bool)).value
    score = SCORES["additive" if "v" in params["score"] else "multiplicative"]
    context, weights = attention.attend(score, params["score"], jnp.ones((B, H)), memory)
    assert not context.any()
    assert not weights.any()


@pytest.mark.parametrize("place", list(PLACES))
def test_padding_of_the_output_and_stacks(place):
    deep = PLACES[place](cells.stack(cells.lstm(4), cells.gru(H)), M)
    params = deep.cell.init(jax.random.key(3), D)
    xs, memory = jnp.ones((T, B, D)), deep.remember(params, jnp.ones((B, S, M)), MASK)
    carry, ys = unroll(deep.cell, params, None, (xs, memory), mask=seqjax.mask_from_lengths(jnp.array([2, 4]), T))
    middle, _ = unroll(deep.cell, params, None, (xs[:2], memory))
    assert ys.shape == (T, B, H)
    assert not ys[2:, 0].any()
    close(jax.tree.map(lambda leaf: leaf[0], carry), jax.tree.map(lambda leaf: leaf[0], middle), 1e-6)


def test_the_cell_keeps_its_fast_path_where_the_readout_looks():
    attending = attention.luong(cells.gru(H), M)
    params = attending.cell.init(jax.random.key(0), D)
    xs, memory = jnp.ones((T, B, D)), attending.remember(params, jnp.ones((B, S, M)))
    assert attending.cell.gated is not None

    def loss(params, method):
        return unroll(attending.cell, params, None, (xs, memory), method=method)[1].sum()

    close(jax.grad(loss)(params, "fused"), jax.grad(loss)(params, "scan"), 1e-6)


def test_keras_attends_likewise(keras):
    k_q, k_v = jax.random.split(jax.random.key(1))
    query, values = jax.random.normal(k_q, (B, 4)), jax.random.normal(k_v, (B, S, 4))
    params = {"w_q": jnp.eye(4), "w_m": jnp.eye(4), "v": jnp.ones((4, 1))}
    for name, layer in (("multiplicative", keras.layers.Attention()), ("additive", keras.layers.AdditiveAttention())):
        if name == "additive":
            layer.build([(B, 1, 4), (B, S, 4)])
            layer.set_weights([np.ones(4)])
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            theirs, weights = layer(
                [query[:, None], values], mask=[None, MASK], return_attention_scores=True, training=False
            )
        score = SCORES[name]
        ours = attention.attend(score, params, query, attention.Memory(values, score.keys(params, values), MASK))
        np.testing.assert_allclose(ours[0], theirs[:, 0], atol=1e-5)
        np.testing.assert_allclose(ours[1], weights[:, 0], atol=1e-5)


def test_attention_refuses():
    attending = attention.bahdanau(cells.gru(H), M)
    params = attending.cell.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match=r"the memory has shape \(2, 3, 4\), expected \[B, S, 5\]"):
        attending.remember(params, jnp.ones((B, S, 4)))
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 3\), \[B, S\] of the memory, got float32 \(2, 3\)"):
        attending.remember(params, jnp.ones((B, S, M)), jnp.ones((B, S)))
    with pytest.raises(ValueError, match="appends the context to features, got a cell that reads tokens"):
        attending.cell.init(jax.random.key(0), 0)
    with pytest.raises(ValueError, match="additive takes a positive number of units, got 0"):
        attention.additive(0)
