"""Regularizers: statistics of the noise, identities, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agree import close
from cell_list import MODELS, D, H, Model, draw, leaky

from seqjax import Const, cells, regularizers, unroll, wrappers
from seqjax.core import Cell, open_dense

KEY = jax.random.key(0)
DROPOUTS = [
    partial(dropout, per_step=per_step)
    for dropout in (regularizers.recurrent_dropout, regularizers.input_dropout)
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


@pytest.mark.parametrize("dropout", [regularizers.recurrent_dropout, regularizers.input_dropout])
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
    noisy, sample = regularizers.input_dropout(cell, 0.5)
    noise = sample(KEY, carry, xs)
    grad = jax.grad(lambda xs: unroll(noisy, params, carry, (xs, noise))[1].sum())(xs)
    np.testing.assert_array_equal(grad != 0, np.broadcast_to(noise.value != 0, grad.shape))


def test_recurrent_dropout_masks_the_product_and_not_the_carry_that_is_kept(x64):
    """By hand: the loop of the GRU with the mask before its product, and the carry itself unmasked."""
    cell, params, carry, xs = draw(MODELS["gru"])
    noisy, sample = regularizers.recurrent_dropout(cell, 0.5)
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
    noisy, sample = regularizers.recurrent_dropout(cell, 0.3)
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


@pytest.mark.parametrize("dropout", [regularizers.recurrent_dropout, regularizers.input_dropout])
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
        one = regularizers.recurrent_dropout(regularizers.input_dropout(layer, 0.4)[0], 0.4)[0]
        end, ys = unroll(one, params[i], carry[i], ((ys, into[i]), recurrent[i]))
        last.append(end)
    close(unroll(cell, params, carry, xs), (tuple(last), ys))


@pytest.mark.parametrize("dropout", [regularizers.recurrent_dropout, regularizers.input_dropout])
@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(dropout, rate):
    with pytest.raises(ValueError, match=rf"a dropout rate lies in \[0, 1\), got {rate}"):
        dropout(cells.lstm(H), rate)


@pytest.mark.parametrize("cell", [cells.min_gru(H), leaky(), cells.stack(cells.gru(H), cells.min_gru(H))])
def test_recurrent_dropout_needs_a_recurrent_product(cell):
    with pytest.raises(ValueError, match="needs a cell with the `gated` hint: this one has no recurrent product"):
        regularizers.recurrent_dropout(cell, 0.5)


def test_input_dropout_refuses_tokens():
    _, sample = regularizers.input_dropout(cells.gru(H), 0.5)
    with pytest.raises(TypeError, match="input_dropout masks floating features, got int32"):
        sample(KEY, jnp.zeros((2, H)), jnp.ones((5, 2), jnp.int32))
