"""Masks, resets, residuals, heads: identities, and what is refused."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import cells, regularizers, unroll, wrappers
from tests.agree import close, compiled
from tests.cell_list import MODELS, TOKENS, D, H, draw

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "min_gru", "from_step", "stack", "head"])
def test_reset_runs_the_documents_one_by_one_and_no_gradient_crosses_a_border(x64, name):
    cell, params, carry, xs = draw(MODELS[name], steps=6)
    start = jax.tree.map(jnp.zeros_like, carry)
    borders = jnp.zeros((6, 2), bool).at[2].set(True).at[4, 1].set(True)
    fresh = wrappers.reset(cell)

    @compiled
    def run(carry, xs):
        def last_output(carry, xs):
            _, ys = unroll(fresh, params, carry, (xs, borders))
            return ys[-1].sum(), ys

        (_, ys), grads = jax.value_and_grad(last_output, (0, 1), has_aux=True)(carry, xs)
        return ys, grads

    ys, (by_carry, by_inputs) = run(carry, xs)
    first = unroll(cell, params, carry, xs[:2])[1]
    second = unroll(cell, params, start, xs[2:])[1]
    third = unroll(cell, params, start, xs[4:])[1]
    close(ys[:2], first)
    close(ys[2:, 0], second[:, 0])
    close(ys[2:4, 1], second[:2, 1])
    close(ys[4:, 1], third[:, 1])
    assert not any(leaf.any() for leaf in jax.tree.leaves(by_carry))
    assert not by_inputs[:2].any()
    assert not by_inputs[:4, 1].any()
    assert by_inputs[4:, 1].any()
    assert by_inputs[2:4, 0].any()


def test_reset_goes_to_the_initial_carry_of_the_cell_and_learns_it(x64):
    """A learned initial carry: reset must take it from the params, with its gradient."""
    plain, params, _, xs = draw(MODELS["gru"])
    cell = plain._replace(
        initial_carry=lambda params, batch: jnp.broadcast_to(params["start"], (*batch, H)),
    )
    params = {**params, "start": jnp.linspace(-1.0, 1.0, H)}
    border = jnp.zeros((7, 2), bool).at[3].set(True)
    for method in ["scan", "fused"]:

        def late(params, method=method):
            return unroll(wrappers.reset(cell), params, None, (xs, border), method=method)[1][3:].sum()

        value, grads = jax.value_and_grad(late)(params)
        expected = jax.value_and_grad(lambda params: unroll(cell, params, None, xs[3:])[1].sum())(params)
        close(value, expected[0])
        assert grads["start"].any()
        close(grads, expected[1])


def test_residual_adds_the_input(x64):
    cell, params, carry, xs = draw(MODELS["residual"])
    last, ys = unroll(cell, params, carry, xs)
    expected, zs = unroll(cells.gru(H), params, carry, xs)
    close((last, ys), (expected, zs + xs))


def test_residual_refuses_another_width():
    cell = wrappers.residual(cells.gru(H))
    with pytest.raises(ValueError, match=r"residual adds the input \(2, 3\) to the output \(2, 4\): they must agree"):
        unroll(cell, cell.init(KEY, D), None, jnp.ones((5, 2, D)))


def test_head_and_embedding_are_a_table_and_a_matrix(x64):
    cell, params, carry, xs = draw(MODELS["language_model"])
    table = params[0]["embedding"]
    head = jax.tree.map(np.asarray, params[-1])
    bare = (params[0]["cell"], *params[1:-1], params[-1]["cell"])
    last, ys = unroll(MODELS["stack"].cell, bare, carry, table[xs])
    close(unroll(cell, params, carry, xs), (last, jnp.asarray(np.asarray(ys) @ head["w_y"] + head["b_y"])))


def test_head_applies_its_activation(x64):
    cell, params, carry, xs = draw(MODELS["head"])
    _, ys = unroll(cells.lstm(H), params["cell"], carry, xs)
    expected = np.tanh(np.asarray(ys) @ np.asarray(params["w_y"]) + np.asarray(params["b_y"]))
    close(unroll(cell, params, carry, xs)[1], jnp.asarray(expected))


@pytest.mark.parametrize("cell", [cells.gru(H), cells.stack(cells.gru(H), cells.lstm(H))])
def test_head_and_embedding_come_in_any_order_and_start_as_documented(cell):
    for model in (
        wrappers.with_head(wrappers.with_embedding(cell, 2000, 16, scale=2.0), 5),
        wrappers.with_embedding(wrappers.with_head(cell, 5), 2000, 16, scale=2.0),
    ):
        params = model.init(KEY, 0)
        (table,) = [leaf for leaf in jax.tree.leaves(params) if leaf.shape == (2000, 16)]
        assert abs(float(table.std()) - 2.0 / 4) < 0.01
        assert unroll(model, params, None, jnp.ones((3, 2), jnp.int32))[1].shape == (3, 2, 5)


def test_embedding_refuses_features():
    cell = wrappers.with_embedding(cells.gru(H), TOKENS, D)
    with pytest.raises(TypeError, match="with_embedding reads integer tokens, got float32"):
        unroll(cell, cell.init(KEY, 0), None, jnp.ones((5, 2, D)))
    with pytest.raises(ValueError, match="in_features = 0, got 3"):
        cell.init(KEY, D)


def _embedded(cell):
    return wrappers.with_embedding(cell, TOKENS, D)


def _one_hot(cell):
    return wrappers.with_one_hot(cell, TOKENS)


@pytest.mark.parametrize("cell", [cells.gru(H), cells.stack(cells.min_gru(H), cells.lstm(H))])
@pytest.mark.parametrize("wrap", [_embedded, _one_hot])
def test_a_token_that_is_none_is_refused_where_it_is_known(wrap, cell):
    cell = wrap(cell)
    params, run = cell.init(KEY, 0), partial(unroll, cell, method="scan")
    for wrong in (-1, TOKENS):
        tokens = jnp.array([[0, 4], [1, wrong], [2, 2]])
        for read in (
            lambda tokens: run(params, None, tokens),
            lambda tokens: jax.grad(lambda params: run(params, None, tokens)[1].sum())(params),
            lambda tokens: cell.step(params, cell.initial_carry(params, (2,)), tokens[1]),
        ):
            with pytest.raises(ValueError, match=rf"tokens must be in range\({TOKENS}\), got values from"):
                read(tokens)
    for outer in (
        wrappers.reset,
        lambda cell: wrappers.with_head(cell, 2),
        lambda cell: regularizers.input_dropout(cell, 0.5)[0],
    ):
        assert outer(cell).vocabulary == TOKENS
    # What a mask skips may be anything.
    mask = jnp.array([[True, True], [True, False], [True, True]])
    _, ys = run(params, None, tokens, mask=mask)
    np.testing.assert_array_equal(ys, run(params, None, tokens.at[1, 1].set(0), mask=mask)[1])
    np.testing.assert_array_equal(ys, unroll(wrappers.masked(cell), params, None, (tokens, mask), method="scan")[1])


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint32])
@pytest.mark.parametrize("wrap", [_embedded, _one_hot])
def test_a_token_that_is_not_known_is_a_vector_of_zeros_where_it_is_none(wrap, dtype):
    cell = wrap(cells.gru(H))
    params = cell.init(KEY, 0)
    wrong = [-1, -5, TOKENS, 127] if jnp.issubdtype(dtype, jnp.signedinteger) else [TOKENS, 127, 2**32 - 1, 2**31]
    tokens = jnp.array([wrong, [0, 1, 2, 3]], dtype)

    def loss(cell, params, xs):
        ys = unroll(cell, params, None, xs, method="scan")[1]
        return jnp.square(ys).sum(), ys

    @jax.jit
    def run(params, tokens):
        xs = params["embedding"][tokens] if "embedding" in params else jax.nn.one_hot(tokens, TOKENS)
        expected = loss(cells.gru(H), params.get("cell", params), xs.at[0].set(0))[1]
        return jax.value_and_grad(partial(loss, cell), has_aux=True)(params, tokens), expected

    ((_, found), grads), expected = run(params, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


ONE_HOT = {
    "stack": cells.stack(cells.projected_lstm(H, 2), cells.gru(H)),
    "no Dense": cells.min_gru(H),
    "an inner wrapper that reads the features": wrappers.residual(cells.gru(TOKENS)),
}


@pytest.mark.parametrize("cell", ONE_HOT.values(), ids=ONE_HOT)
def test_one_hot_tokens_are_real_one_hot_vectors(x64, cell):
    wrapped = wrappers.with_one_hot(cell, TOKENS)
    params = wrapped.init(KEY, 0)
    close(params, cell.init(KEY, TOKENS))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) + 0.1, params)
    tokens = jnp.array([[0, 4], [1, -1], [4, 5], [3, 3]], jnp.int32)  # -1 and 5 are no tokens
    vectors = jax.nn.one_hot(tokens, TOKENS, dtype=jnp.float64)

    def loss(cell, xs):
        def squares(params):
            return jnp.square(unroll(cell, params, None, xs, method="scan")[1]).sum()

        return jax.value_and_grad(squares)(params)

    found, expected = compiled(lambda tokens: (loss(wrapped, tokens), loss(cell, vectors)))(tokens)
    close(found, expected)


@pytest.mark.parametrize("cell", ONE_HOT.values(), ids=ONE_HOT)
def test_several_tokens_of_a_step_are_the_sum_of_their_vectors(x64, cell):
    several = wrappers.with_one_hot(cell, TOKENS, tokens=2)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) + 0.1, several.init(KEY, 0))
    tokens = jnp.array([[[0, 3], [4, 4]], [[1, 0], [-1, 2]], [[4, 5], [3, 1]]], jnp.int32)
    vectors = jax.nn.one_hot(tokens, TOKENS, dtype=jnp.float64).sum(2)
    mask = jnp.array([[True, True], [True, False], [True, True]])

    def run(cell, xs):
        return unroll(wrappers.masked(cell), params, None, (xs, mask))

    found, expected = compiled(lambda: (run(several, tokens), run(cell, vectors)))()
    close(found, expected)
    with pytest.raises(ValueError, match=r"inputs have shape \(3, 2, 3\)"):
        unroll(several, params, None, jnp.zeros((3, 2, 3), jnp.int32))
    with pytest.raises(ValueError, match="with_one_hot takes a positive number of tokens per step, got 0"):
        wrappers.with_one_hot(cell, TOKENS, tokens=0)


def test_one_hot_vectors_of_a_gated_cell_are_never_made():
    size, steps = 50_000, 20
    cell = wrappers.with_one_hot(cells.lstm(H), size)
    params, tokens = jax.eval_shape(lambda: cell.init(KEY, 0)), jax.ShapeDtypeStruct((steps, 8), jnp.int32)
    run = jax.jit(lambda params, tokens: unroll(cell, params, None, tokens, method="scan")[1])
    needed: Any = run.lower(params, tokens).compile().memory_analysis()
    assert needed.temp_size_in_bytes < size * steps  # the vectors are 32 times that


def test_one_hot_keeps_the_bias_of_bfloat16_weights():
    cell = wrappers.with_one_hot(cells.lstm(H, dtype=jnp.bfloat16), TOKENS)
    params = cell.init(KEY, 0)
    params["b"] += 1
    z = cell.project(params, jnp.array([2], jnp.int32))
    assert z.dtype == jnp.float32
    np.testing.assert_array_equal(z[0], params["w_x"][2].astype(jnp.float32) + params["b"].astype(jnp.float32))


def test_one_hot_refuses_features():
    cell = wrappers.with_one_hot(cells.gru(H), TOKENS)
    with pytest.raises(TypeError, match="with_one_hot reads integer tokens, got float32"):
        unroll(cell, cell.init(KEY, 0), None, jnp.ones((5, 2, D)))
    for wrapped in (cell, wrappers.with_one_hot(cells.stack(cells.gru(H), cells.gru(H)), TOKENS)):
        with pytest.raises(ValueError, match="with_one_hot reads tokens, so init takes in_features = 0, got 3"):
            wrapped.init(KEY, D)


@pytest.mark.parametrize("cell", [cells.gru(D), cells.stack(cells.gru(D), cells.lstm(D))])
def test_the_noisy_cell_and_the_bare_one_share_their_params(cell):
    expected = cell.init(KEY, D)
    for wrapped in (
        wrappers.masked(cell),
        wrappers.reset(cell),
        wrappers.residual(cell),
        regularizers.input_dropout(cell, 0.5)[0],
        regularizers.recurrent_dropout(cell, 0.5)[0],
    ):
        close(wrapped.init(KEY, D), expected, 0)


def test_reset_of_reversed_documents_has_its_border_at_their_last_step(x64):
    cell, params, _, xs = draw(MODELS["gru"])
    border = jnp.zeros((7, 2), bool).at[2].set(True)
    _, ys = unroll(wrappers.reset(cell), params, None, (xs, border), reverse=True)
    close(ys[:3], unroll(cell, params, None, xs[:3], reverse=True)[1])
    close(ys[3:], unroll(cell, params, None, xs[3:], reverse=True)[1])


def test_highway_is_a_gate_between_output_and_input_and_opens_with_its_bias(x64):
    cell, params, carry, xs = draw(MODELS["highway"], steps=3)
    ys = compiled(partial(unroll, cells.min_gru(H), method="scan"))(params["cell"], carry, xs)[1]
    w = jax.tree.map(np.asarray, params)
    t = 1 / (1 + np.exp(-(np.asarray(xs) @ w["w_t"] + w["b_t"])))
    run = compiled(partial(unroll, cell, method="scan"))
    close(run(params, carry, xs)[1], t * np.asarray(ys) + (1 - t) * np.asarray(xs))
    shut = {**params, "w_t": jnp.zeros((H, H)), "b_t": jnp.full((H,), -50.0)}
    close(run(shut, carry, xs)[1], xs)
    close(run(shut, carry, xs)[0], run(params, carry, xs)[0])
    close(run({**shut, "b_t": jnp.full((H,), 50.0)}, carry, xs)[1], ys)


def test_highway_starts_near_a_copy_and_refuses_another_width_and_tokens():
    start = wrappers.highway(cells.gru(H), bias=-3.0).init(KEY, H)
    assert (start["b_t"] == -3).all()
    cell = wrappers.highway(cells.gru(H))
    with pytest.raises(ValueError, match=r"highway mixes the input \(2, 3\) into the output \(2, 4\): they must agree"):
        unroll(cell, cell.init(KEY, D), None, jnp.ones((5, 2, D)), method="scan")
    with pytest.raises(ValueError, match="highway mixes features into the output, and this cell reads tokens"):
        wrappers.highway(wrappers.with_embedding(cells.gru(H), TOKENS, H)).init(KEY, 0)


@pytest.mark.parametrize("name", ["lstm", "stack"])
def test_a_learned_carry_starts_at_the_cell_s_own_and_has_the_gradient_of_the_carry(x64, name):
    bare, params, carry, xs = draw(MODELS[name], steps=3)
    cell = wrappers.learned_carry(bare)
    start = jax.tree.map(lambda h: h[0], carry)
    own = bare.initial_carry(params, (2,))
    if name == "stack":
        learned = tuple({"cell": p, "start": s} for p, s in zip(params, start, strict=True))
        fresh = tuple(p["start"] for p in cell.init(KEY, D))
    else:
        learned, fresh = {"cell": params, "start": start}, cell.init(KEY, D)["start"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(fresh))
    assert jax.tree.structure(cell.initial_carry(learned, (2,))) == jax.tree.structure(own)

    @compiled
    def both(learned, start):
        def loss(learned):
            return jnp.square(unroll(cell, learned, None, xs, method="scan")[1]).sum()

        def expected(start):
            carry = jax.tree.map(lambda h: jnp.broadcast_to(h, (2, *h.shape)), start)
            return jnp.square(unroll(bare, params, carry, xs, method="scan")[1]).sum()

        return jax.value_and_grad(loss)(learned), jax.value_and_grad(expected)(start)

    (value, grads), (expected, by_start) = both(learned, start)
    close(value, expected)
    found = tuple(g["start"] for g in grads) if name == "stack" else grads["start"]
    close(found, by_start)
    assert all(leaf.all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
def test_wrappers_go_around_a_stack_that_reads_tokens(layers, count):
    """They take its layers apart; what `with_one_hot` adds must be in the lowest of them."""
    run = partial(unroll, method="scan")
    read = partial(wrappers.with_one_hot, size=TOKENS, tokens=count)
    tokens = jax.random.randint(KEY, (5, 2) if count == 1 else (5, 2, count), 0, TOKENS)
    vectors = jax.nn.one_hot(tokens, TOKENS)
    vectors = vectors if count == 1 else vectors.sum(2)
    cell = cells.stack(*[cells.gru(H)] * layers)
    for outer in (lambda cell: wrappers.with_head(cell, 3), wrappers.learned_carry):
        around = outer(read(cell))
        params = around.init(KEY, 0)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, outer(cell).init(KEY, TOKENS))
        found, expected = run(around, params, None, tokens)[1], run(outer(cell), params, None, vectors)[1]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    mask = jnp.ones((5, 2), bool)
    masked, params = wrappers.masked(read(cell)), cell.init(KEY, TOKENS)
    np.testing.assert_allclose(
        run(masked, params, None, (tokens, mask))[1], run(cell, params, None, vectors)[1], rtol=1e-5, atol=1e-6
    )


def test_layers_of_other_spaces_are_refused_below_tokens_too():
    with pytest.raises(ValueError, match="stack needs cells of one space"):
        cells.stack(wrappers.with_one_hot(cells.gru(H), TOKENS, tokens=2), cells.conv_lstm(2, (4,)))
