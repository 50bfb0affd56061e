"""Regularizers, resets, residuals, heads: statistics of the noise, identities, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agree import close, compiled
from cell_list import MODELS, TOKENS, D, H, Model, draw, leaky

from seqjax import Const, cells, unroll, wrappers
from seqjax.core import Cell, open_dense

KEY = jax.random.key(0)
DROPOUTS = [
    partial(dropout, per_step=per_step)
    for dropout in (wrappers.recurrent_dropout, wrappers.input_dropout)
    for per_step in (False, True)
]


def zeros_of(cell: Cell, batch, in_features=D):
    return cell.initial_carry(cell.init(KEY, in_features), batch)


@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize(
    "cell", [cells.peephole_lstm(H), cells.gru_reset_before(H), wrappers.with_head(cells.stack(*[cells.gru(H)] * 2), 2)]
)
def test_rate_0_is_the_bare_cell(x64, cell, dropout):
    cell, params, carry, xs = draw(Model(cell))
    noisy, sample = dropout(cell, 0.0)
    noise = sample(KEY, carry, xs)
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(noise))
    run = partial(unroll, method="scan")
    close(run(noisy, params, carry, (xs, noise)), run(cell, params, carry, xs), 0)


def masks(dropout, rate, batch=500, key=KEY, steps=1, hidden=20):
    """The noise that a dropout draws for many sequences, [B, N] or [T, B, N]."""
    cell = cells.lstm(hidden)
    _, sample = dropout(cell, rate)
    xs = jnp.zeros((steps, batch, hidden))
    noise = sample(key, zeros_of(cell, (batch,)), xs)
    return noise.value if isinstance(noise, Const) else noise


@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_the_rate_is_the_share_of_zeros_and_the_mean_is_one(dropout, rate):
    mask = np.asarray(masks(dropout, rate))
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=1e-6)
    standard_error = np.sqrt(rate * (1 - rate) / mask.size)
    assert abs((mask == 0).mean() - rate) < 4 * standard_error
    assert abs(mask.mean() - 1) < 4 * standard_error / (1 - rate)
    # Units and sequences are dropped by themselves: the share of zeros varies between rows as a binomial does.
    rows = (mask.reshape(-1, 20) == 0).mean(1)
    assert 0.8 < rows.var() / (rate * (1 - rate) / 20) < 1.2


@pytest.mark.parametrize("dropout", DROPOUTS)
def test_noise_differs_between_sequences_and_keys_and_repeats_for_a_key(dropout):
    one, same, other = (masks(dropout, 0.5, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    for a, b in [(one, other), (one[..., 0, :], one[..., 1, :]), (one[..., :-1, :], one[..., 1:, :])]:
        assert np.any(a != b)
    assert abs(float((one == other).mean()) - 0.5) < 4 * 0.5 / np.sqrt(one.size)


@pytest.mark.parametrize("dropout", [wrappers.recurrent_dropout, wrappers.input_dropout])
def test_a_mask_lasts_the_sequence_unless_it_is_drawn_per_step(dropout):
    lasting = dropout(cells.lstm(20), 0.5)[1](KEY, zeros_of(cells.lstm(20), (3,), 20), jnp.zeros((9, 3, 20)))
    assert isinstance(lasting, Const)
    assert lasting.value.shape == (3, 20)
    steps = masks(partial(dropout, per_step=True), 0.5, batch=50, steps=40)
    assert steps.shape == (40, 50, 20)
    agreement = float((steps[1:] == steps[:-1]).mean())
    assert abs(agreement - 0.5) < 4 * 0.5 / np.sqrt(steps[1:].size)


def test_a_dropped_input_never_reaches_the_sequence_and_a_kept_one_always_does(x64):
    cell, params, carry, xs = draw(MODELS["gru"], steps=5)
    noisy, sample = wrappers.input_dropout(cell, 0.5)
    noise = sample(KEY, carry, xs)
    grad = jax.grad(lambda xs: unroll(noisy, params, carry, (xs, noise))[1].sum())(xs)
    np.testing.assert_array_equal(grad != 0, np.broadcast_to(noise.value != 0, grad.shape))


def test_recurrent_dropout_masks_the_product_and_not_the_carry_that_is_kept(x64):
    """By hand: the loop of the GRU with the mask before its product, and the carry itself unmasked."""
    cell, params, carry, xs = draw(MODELS["gru"])
    noisy, sample = wrappers.recurrent_dropout(cell, 0.5)
    noise = sample(KEY, carry, xs)
    assert 0 < int((noise.value == 0).sum()) < noise.value.size
    w = jax.tree.map(np.asarray, params)
    mask, h = np.asarray(noise.value), np.asarray(carry)

    def sigmoid(u):
        return 1 / (1 + np.exp(-u))

    for x in np.asarray(xs):
        x_r, x_z, x_n = np.split(x @ w["w_x"] + w["b"], 3, -1)
        h_r, h_z, h_n = np.split((h * mask) @ w["w_h"], 3, -1)
        z = sigmoid(x_z + h_z)
        h = z * h + (1 - z) * np.tanh(x_n + sigmoid(x_r + h_r) * (h_n + w["b_n"]))
    close(unroll(noisy, params, carry, (xs, noise))[0], jnp.asarray(h))


@pytest.mark.parametrize("name", ["lstm", "gru", "gru_reset_before"])
def test_what_enters_the_first_product_is_right_in_expectation(name):
    """The mean of many draws of what a masked step multiplies is what evaluation multiplies."""
    cell, params, carry, xs = draw(MODELS[name], batch=(1,), dtype=jnp.float32)
    noisy, sample = wrappers.recurrent_dropout(cell, 0.3)
    draws = 4000

    @jax.jit
    @jax.vmap
    def entering(key):
        z = open_dense(noisy.project(params, (xs[0], Const(sample(key, carry, xs).value))))
        return noisy.gated.stages[0](carry, z, ())

    found = np.asarray(entering(jax.random.split(KEY, draws)))
    expected = np.asarray(cell.gated.stages[0](carry, open_dense(cell.project(params, xs[0])), ()))
    standard_error = np.abs(expected) * np.sqrt(0.3 / 0.7 / draws)
    assert np.all(np.abs(found.mean(0) - expected) < 4.5 * standard_error)
    assert np.all(found.std(0) > 0)


@pytest.mark.parametrize("dropout", [wrappers.recurrent_dropout, wrappers.input_dropout])
def test_layers_of_a_stack_have_masks_of_their_own(dropout):
    cell = cells.stack(*[cells.gru(20)] * 3)
    _, sample = dropout(cell, 0.5)
    noise = [leaf.value for leaf in sample(KEY, zeros_of(cell, (50,), 20), jnp.zeros((2, 50, 20)))]
    assert len(noise) == 3
    for i in range(3):
        assert abs(float((noise[i] == noise[i - 1]).mean()) - 0.5) < 4 * 0.5 / np.sqrt(1000)


def test_dropout_in_one_layer_of_a_stack_reaches_that_layer(x64):
    """A stack under dropout is its noisy layers one after the other."""
    cell, params, carry, xs = draw(MODELS["dropout_stack"])
    (x, into), recurrent = xs
    last, ys = [], x
    for i, layer in enumerate([cells.gru(H), cells.lstm(H + 1)]):
        one = wrappers.recurrent_dropout(wrappers.input_dropout(layer, 0.4)[0], 0.4)[0]
        end, ys = unroll(one, params[i], carry[i], ((ys, into[i]), recurrent[i]))
        last.append(end)
    close(unroll(cell, params, carry, xs), (tuple(last), ys))


@pytest.mark.parametrize("dropout", [wrappers.recurrent_dropout, wrappers.input_dropout])
@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(dropout, rate):
    with pytest.raises(ValueError, match=rf"a dropout rate lies in \[0, 1\), got {rate}"):
        dropout(cells.lstm(H), rate)


@pytest.mark.parametrize("cell", [cells.min_gru(H), leaky(), cells.stack(cells.gru(H), cells.min_gru(H))])
def test_recurrent_dropout_needs_a_recurrent_product(cell):
    with pytest.raises(ValueError, match="needs a cell with the `gated` hint: this one has no recurrent product"):
        wrappers.recurrent_dropout(cell, 0.5)


def test_input_dropout_refuses_tokens():
    _, sample = wrappers.input_dropout(cells.gru(H), 0.5)
    with pytest.raises(TypeError, match="input_dropout masks floating features, got int32"):
        sample(KEY, jnp.zeros((2, H)), jnp.ones((5, 2), jnp.int32))


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


@pytest.mark.parametrize("cell", [cells.gru(D), cells.stack(cells.gru(D), cells.lstm(D))])
def test_the_noisy_cell_and_the_bare_one_share_their_params(cell):
    expected = cell.init(KEY, D)
    for wrapped in (
        wrappers.masked(cell),
        wrappers.reset(cell),
        wrappers.residual(cell),
        wrappers.input_dropout(cell, 0.5)[0],
        wrappers.recurrent_dropout(cell, 0.5)[0],
    ):
        close(wrapped.init(KEY, D), expected, 0)


def test_reset_of_reversed_documents_has_its_border_at_their_last_step(x64):
    cell, params, _, xs = draw(MODELS["gru"])
    border = jnp.zeros((7, 2), bool).at[2].set(True)
    _, ys = unroll(wrappers.reset(cell), params, None, (xs, border), reverse=True)
    close(ys[:3], unroll(cell, params, None, xs[:3], reverse=True)[1])
    close(ys[3:], unroll(cell, params, None, xs[3:], reverse=True)[1])
