"""Regularizers: statistics of the noise, identities, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import Const, cells, noise, regularizers, unroll, wrappers
from seqjax.core import Cell, open_dense
from tests.agree import close, compiled
from tests.cell_list import BARE, MODELS, D, H, Model, draw, leaky

KEY = jax.random.key(0)
DROPOUTS = [
    partial(dropout, per_step=per_step)
    for dropout in (regularizers.recurrent_dropout, regularizers.input_dropout, regularizers.candidate_dropout)
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


@pytest.mark.parametrize(
    "dropout", [regularizers.recurrent_dropout, regularizers.input_dropout, regularizers.candidate_dropout]
)
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


@pytest.mark.parametrize(
    "dropout", [regularizers.recurrent_dropout, regularizers.input_dropout, regularizers.candidate_dropout]
)
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


@pytest.mark.parametrize(
    "dropout", [regularizers.recurrent_dropout, regularizers.input_dropout, regularizers.candidate_dropout]
)
@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(dropout, rate):
    with pytest.raises(ValueError, match=rf"a dropout rate lies in \[0, 1\), got {rate}"):
        dropout(cells.lstm(H), rate)


@pytest.mark.parametrize("cell", [cells.min_gru(H), leaky(), cells.stack(cells.gru(H), cells.min_gru(H))])
def test_recurrent_dropout_needs_a_recurrent_product(cell):
    with pytest.raises(ValueError, match="needs a cell with the `gated` hint: this one has no recurrent product"):
        regularizers.recurrent_dropout(cell, 0.5)


def test_input_dropout_of_a_stack_refuses_outputs_that_are_not_as_wide_as_the_carry():
    noisy, sample = regularizers.input_dropout(cells.stack(cells.lru(H + 1), cells.gru(H)), 0.5)
    params, xs = noisy.init(jax.random.key(0), D), jnp.ones((3, 2, D))
    carry = noisy.initial_carry(params, (2,))
    with pytest.raises(ValueError, match=r"(?s)a mask \(2, 5\) for inputs \(2, 3\).*wrap the layers one by one"):
        unroll(noisy, params, carry, (xs, sample(jax.random.key(1), carry, xs)))


def test_input_dropout_refuses_tokens():
    _, sample = regularizers.input_dropout(cells.gru(H), 0.5)
    with pytest.raises(TypeError, match="input_dropout masks floating features, got int32"):
        sample(KEY, jnp.zeros((2, H)), jnp.ones((5, 2), jnp.int32))


def scan(cell, params, carry, xs):
    """`unroll` as a plain scan, compiled as one program."""
    return compiled(partial(unroll, cell, method="scan"))(params, carry, xs)


def test_one_mask_a_gate_is_the_loop_with_a_mask_before_each_product(x64):
    cell, params, carry, xs = draw(MODELS["gru"])
    noisy, sample = regularizers.recurrent_dropout(cell, 0.5, gates=3)
    drawn = sample(KEY, carry, xs)
    w = jax.tree.map(np.asarray, params)
    masks = np.split(np.asarray(drawn.value), 3, -1)
    assert not np.array_equal(masks[0], masks[1])
    h = np.asarray(carry)

    def sigmoid(u):
        return 1 / (1 + np.exp(-u))

    for x in np.asarray(xs):
        x_r, x_z, x_n = np.split(x @ w["w_x"] + w["b"], 3, -1)
        h_r, h_z, h_n = ((h * m) @ u for m, u in zip(masks, np.split(w["w_h"], 3, -1), strict=True))
        z = sigmoid(x_z + h_z)
        h = z * h + (1 - z) * np.tanh(x_n + sigmoid(x_r + h_r) * (h_n + w["b_n"]))
    close(scan(noisy, params, carry, (xs, drawn))[0], jnp.asarray(h))


@pytest.mark.parametrize("method", ["scan", "fused", "native", "newton"])
@pytest.mark.parametrize("name", ["gru_reset_before", "mgu"])
def test_one_mask_a_gate_reaches_every_product(x64, name, method):
    """By hand: what each gate's columns are multiplied by has a mask of its own, of all products."""
    cell, params, carry, xs = draw(MODELS[name], steps=4)
    gates = 3 if name == "gru_reset_before" else 2
    noisy, sample = regularizers.recurrent_dropout(cell, 0.5, gates=gates)
    drawn = sample(KEY, carry, xs)
    w = jax.tree.map(np.asarray, params)
    *first, last = np.split(np.asarray(drawn.value), gates, -1)
    h = np.asarray(carry)

    def sigmoid(u):
        return 1 / (1 + np.exp(-u))

    for x in np.asarray(xs):
        *x_k, x_n = np.split(x @ w["w_x"] + w["b"], gates, -1)
        *w_k, w_n = np.split(w["w_h"], gates, -1)
        opened = [sigmoid(a + (h * m) @ u) for a, m, u in zip(x_k, first, w_k, strict=True)]
        n = np.tanh(x_n + (opened[0] * h * last) @ w_n)
        z = opened[1] if name == "gru_reset_before" else 1 - opened[0]
        h = z * h + (1 - z) * n
    close(unroll(noisy, params, carry, (xs, drawn), method=method)[0], jnp.asarray(h))


def test_masks_for_gates_that_a_cell_has_not_are_refused():
    with pytest.raises(ValueError, match="a cell with 6 recurrent products has 6 or more gates, got gates=3"):
        regularizers.recurrent_dropout(cells.ltc(H), 0.5, gates=3)
    cell, sample = regularizers.recurrent_dropout(cells.gru_reset_before(H), 0.5, gates=4)
    params, xs = cell.init(KEY, D), jnp.ones((2, 2, D))
    with pytest.raises(ValueError, match=r"masks for 4 gates need recurrent weights \[H, 3 \* H\], got \(4, 8\)"):
        unroll(cell, params, None, (xs, sample(KEY, jnp.zeros((2, H)), xs)), method="scan")
    cell, sample = regularizers.recurrent_dropout(cells.gru(H), 0.5, gates=4)
    params, xs = cell.init(KEY, D), jnp.ones((2, 2, D))
    with pytest.raises(ValueError, match=r"masks for 4 gates need recurrent weights \[H, 4 \* H\], got \(4, 12\)"):
        unroll(cell, params, None, (xs, sample(KEY, jnp.zeros((2, H)), xs)), method="scan")


def candidate_loop(name, w, mask, h, c, x):
    """One step with the candidate masked, in NumPy: the new (h, c); cells without a c have None."""

    def sigmoid(u):
        return 1 / (1 + np.exp(-u))

    if name == "gru":
        x_r, x_z, x_n = np.split(x @ w["w_x"] + w["b"], 3, -1)
        h_r, h_z, h_n = np.split(h @ w["w_h"], 3, -1)
        z = sigmoid(x_z + h_z)
        return z * h + (1 - z) * mask * np.tanh(x_n + sigmoid(x_r + h_r) * (h_n + w["b_n"])), None
    parts = x @ w["w_x"] + h @ w["w_h"] + w["b"]
    if name == "ugrnn":
        z, n = np.split(parts, 2, -1)
        return sigmoid(z) * h + (1 - sigmoid(z)) * mask * np.tanh(n), None
    if name == "coupled_lstm":
        f, g, o = np.split(parts, 3, -1)
        i = -f
    else:
        i, f, g, o = np.split(parts, 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * mask * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("name", ["lstm", "coupled_lstm", "gru", "ugrnn"])
def test_candidate_dropout_masks_what_is_written_and_nothing_that_is_kept(x64, name, per_step):
    cell, params, carry, xs = draw(MODELS[name], steps=4)
    noisy, sample = regularizers.candidate_dropout(cell, 0.5, per_step=per_step)
    drawn = sample(KEY, carry, xs)
    mask = np.asarray(drawn) if per_step else np.broadcast_to(drawn.value, (4, *drawn.value.shape))
    assert 0 < int((mask == 0).sum()) < mask.size
    w = jax.tree.map(np.asarray, params)
    h, c = (np.asarray(leaf) for leaf in carry) if isinstance(carry, tuple) else (np.asarray(carry), None)
    for m, x in zip(mask, np.asarray(xs), strict=True):
        h, c = candidate_loop(name, w, m, h, c, x)
    expected = [jnp.asarray(leaf) for leaf in (h, c) if leaf is not None]
    for method in ("scan", "auto"):
        close(jax.tree.leaves(unroll(noisy, params, carry, (xs, drawn), method=method)[0]), expected)


WITH_CANDIDATE = [name for name, model in BARE.items() if model.cell.gated and model.cell.gated.candidate]


@pytest.mark.parametrize(
    "name", [*WITH_CANDIDATE, "masked", "everything", "gate_dropout", "layer_norm", "batch_norm_lstm"]
)
def test_every_candidate_is_a_part_of_the_gates_and_without_it_less_is_written(x64, name):
    """As it is, it gives the gates; a mask of 1 changes nothing, and one of 0 something."""
    cell, params, carry, xs = draw(MODELS[name], steps=1)
    noisy, sample = regularizers.candidate_dropout(cell, 0.0)

    @compiled
    def run(scale):
        noise = jax.tree.map(lambda m: scale * m, sample(KEY, carry, xs))
        return unroll(noisy, params, carry, (xs, noise), method="scan")[0]

    bare = compiled(partial(unroll, cell, method="scan"))(params, carry, xs)[0]
    close(run(1.0), bare, 1e-15)
    changed = [float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (run(0.0), bare)), strict=True)]
    assert max(changed) > 1e-3


def test_two_masks_on_the_candidate_are_their_product(x64):
    cell, params, carry, xs = draw(MODELS["lstm"], steps=3)
    one, sample = regularizers.candidate_dropout(cell, 0.3)
    two, _ = regularizers.candidate_dropout(one, 0.3)
    first, second = (sample(jax.random.key(seed), carry, xs) for seed in (1, 2))
    product = Const(first.value * second.value)
    close(scan(two, params, carry, ((xs, first), second)), scan(one, params, carry, (xs, product)), 1e-15)


@pytest.mark.parametrize("cell", [cells.min_gru(H), leaky(), cells.stack(cells.gru(H), cells.min_gru(H)), cells.cfc(H)])
def test_candidate_dropout_needs_a_candidate(cell):
    with pytest.raises(ValueError, match="needs a cell with a `gated` hint that names its candidate"):
        regularizers.candidate_dropout(cell, 0.5)


MORE = [regularizers.output_dropout, regularizers.stochastic_depth, noise.zoneout, noise.carry_noise]


@pytest.mark.parametrize("regularize", MORE)
def test_nothing_at_rate_0_and_a_rate_may_be_a_lane(x64, regularize):
    cell, params, carry, xs = draw(Model(cells.stack(cells.lstm(H), cells.min_gru(H)), H), steps=3)

    @compiled
    @jax.vmap
    def run(rate):
        noisy, sample = regularize(cell, rate)
        return unroll(noisy, params, carry, (xs, sample(KEY, carry, xs)), method="scan")

    lanes = run(jnp.array([0.0, 0.7]))
    bare = scan(cell, params, carry, xs)
    close(jax.tree.map(lambda leaf: leaf[0], lanes), bare, 1e-15)
    assert np.abs(lanes[1][1] - bare[1]).max() > 0.01


def test_zoneout_keeps_units_at_its_rates_and_its_mean_is_the_evaluation(x64):
    cell, params, carry, xs = draw(MODELS["lstm"], steps=1)
    rates, draws = cells.LSTMCarry(0.2, 0.7), 4000
    noisy, sample = noise.zoneout(cell, rates)

    @compiled
    @jax.vmap
    def run(key):
        return unroll(noisy, params, carry, (xs, sample(key, carry, xs)), method="scan")[0]

    found = run(jax.random.split(KEY, draws))
    after = scan(cell, params, carry, xs)[0]
    mean = scan(noise.zoneout_mean(cell, rates), params, carry, xs)[0]
    trees = [jax.tree.map(np.asarray, tree) for tree in (found, carry, after, mean)]
    for got, old, new, expected, rate in zip(*trees, rates, strict=True):
        kept = got == old
        close(got, np.where(kept, old, new))
        standard_error = np.sqrt(rate * (1 - rate) / draws)
        assert np.abs(kept.mean(0) - rate).max() < 4 * standard_error
        assert np.all(np.abs(got.mean(0) - expected) < 4 * standard_error * np.abs(new - old))
        close(expected, rate * old + (1 - rate) * new)


@pytest.mark.parametrize("regularize", [noise.zoneout, noise.carry_noise])
def test_noise_on_the_carry_is_new_at_every_step_and_in_every_leaf_and_layer(regularize):
    cell = cells.stack(cells.lstm(20), cells.lstm(20))
    xs = jnp.zeros((9, 30, 20))
    _, sample = regularize(cell, 0.5)
    drawn = sample(KEY, zeros_of(cell, (30,), 20), xs)
    leaves = np.stack(jax.tree.leaves(drawn))
    assert leaves.shape == (4, 9, 30, 20)
    for axis in range(3):
        a, b = np.moveaxis(leaves, axis, 0)[:2]
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)
    assert not np.array_equal(leaves[0], sample(jax.random.key(1), zeros_of(cell, (30,), 20), xs)[0].h)


def test_carry_noise_has_its_scale_and_is_added_to_the_new_carry(x64):
    cell, params, carry, xs = draw(MODELS["lstm"], steps=1)
    noisy, sample = noise.carry_noise(cell, 0.3)
    drawn = sample(KEY, carry, xs)
    after = scan(cell, params, carry, xs)[0]
    expected = jax.tree.map(lambda h, e: h + e[0], after, drawn)
    close(scan(noisy, params, carry, (xs, drawn))[0], expected)
    many = sample(KEY, jnp.zeros((100, 100)), jnp.zeros((1, 100, D)))
    assert abs(float(many.std()) - 0.3) < 5 * 0.3 / np.sqrt(2 * many.size)
    with pytest.raises(ValueError, match="the scale of noise is at least 0, got -1"):
        noise.carry_noise(cell, -1)


def test_what_zoneout_refuses():
    with pytest.raises(ValueError, match="zoneout needs a cell with a hint"):
        noise.zoneout(leaky(), 0.5)
    with pytest.raises(ValueError, match=r"a dropout rate lies in \[0, 1\), got 1.0"):
        noise.zoneout_mean(cells.lstm(H), cells.LSTMCarry(0.5, 1.0))
    _, sample = noise.zoneout(cells.gru(H), cells.LSTMCarry(0.5, 0.5))
    with pytest.raises(ValueError, match="zoneout takes one rate or one for each leaf of"):
        sample(KEY, jnp.zeros((2, H)), jnp.zeros((3, 2, D)))


def test_output_dropout_masks_the_last_output_for_the_whole_sequence_and_goes_inside_a_head(x64):
    cell, params, carry, xs = draw(Model(cells.stack(cells.gru(H), cells.gru(H))), steps=3)
    noisy, sample = regularizers.output_dropout(cell, 0.5)
    drawn = sample(KEY, carry, xs)
    last, ys = scan(cell, params, carry, xs)
    masked = ys * jnp.broadcast_to(drawn.value, ys.shape)
    close(scan(noisy, params, carry, (xs, drawn)), (last, masked))
    assert 0 < int((drawn.value == 0).sum()) < drawn.value.size
    p = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), wrappers.with_head(cell, 2).init(KEY, D))
    p = (params[0], {**p[1], "cell": params[1]})
    headed = scan(wrappers.with_head(noisy, 2), p, carry, (xs, drawn))[1]
    close(headed, jnp.matmul(masked, p[1]["w_y"]))
    wide, _ = regularizers.output_dropout(wrappers.with_head(cell, 2), 0.5)
    with pytest.raises(ValueError, match=r"masks outputs \(2, 4\) as wide as the carry, got \(2, 2\)"):
        unroll(wide, p, carry, (xs, drawn), method="scan")


def test_stochastic_depth_skips_a_layer_for_a_whole_sequence_at_rates_that_grow_linearly(x64):
    layer = wrappers.residual(cells.gru(H))
    cell, params, carry, xs = draw(Model(cells.stack(layer, layer), H), batch=(2000,), steps=3)
    noisy, sample = regularizers.stochastic_depth(cell, 0.8)
    drawn = sample(KEY, carry, xs)
    for leaf, rate in zip(drawn, (0.4, 0.8), strict=True):
        assert abs(float((leaf.value == 0).mean()) - rate) < 4 * np.sqrt(rate * (1 - rate) / 2000)
    ys = scan(noisy, params, carry, (xs, drawn))[1]
    first, second = (np.asarray(leaf.value[:, 0] == 0) for leaf in drawn)
    both = first & second
    np.testing.assert_array_equal(ys[:, both], xs[:, both])
    assert np.all(ys[:, ~second] != xs[:, ~second])
    with pytest.raises(ValueError, match=r"outputs of the shape of the inputs, \(2, 3\), got \(2, 4\)"):
        unroll(*bare_inputs(regularizers.stochastic_depth(cells.gru(H), 0.5)))


@pytest.mark.parametrize("make", [lambda: cells.delta_net(2, 3, 2), lambda: cells.s4d(2)])
@pytest.mark.parametrize("batch", [(), (5, 2)])
def test_stochastic_depth_of_layers_whose_carry_is_no_vector(x64, make, batch):
    layer = wrappers.residual(make())
    cell, params, carry, xs = draw(Model(cells.stack(layer, layer), 4), batch=batch, steps=2)
    noisy, sample = regularizers.stochastic_depth(cell, 0.5)
    drawn = sample(KEY, carry, xs)
    assert [leaf.value.shape for leaf in drawn] == [(*batch, 1)] * 2
    skipped = jax.tree.map(jnp.zeros_like, drawn)
    np.testing.assert_array_equal(scan(noisy, params, carry, (xs, skipped))[1], xs)


def bare_inputs(regularized):
    cell, sample = regularized
    xs = jnp.ones((2, 2, D), jnp.float32)
    return cell, cell.init(KEY, D), None, (xs, sample(KEY, jnp.zeros((2, H), jnp.float32), xs))


@pytest.mark.parametrize(
    ("drop", "shape", "names"),
    [
        (regularizers.weight_drop, lambda w: w.shape, {"w_h"}),
        (regularizers.embedding_dropout, lambda w: (w.shape[0], 1), {"embedding"}),
    ],
)
def test_weights_are_dropped_by_name_with_masks_of_their_own(drop, shape, names):
    cell = wrappers.with_embedding(cells.stack(cells.lstm(30), cells.lstm(30)), 3000, 30)
    params = cell.init(KEY, 0)
    dropped = drop(KEY, params, 0.25)
    found = []
    for (path, old), new in zip(jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(dropped), strict=True):
        if path[-1].key not in names:
            np.testing.assert_array_equal(old, new)
            continue
        mask = np.asarray(new / old)
        np.testing.assert_allclose(np.unique(mask.round(4)), [0, 1.3333], atol=1e-4)
        assert np.all(np.isclose(mask, np.broadcast_to(mask[:, : shape(mask)[1]], mask.shape)))
        zeros = (mask == 0)[:, : shape(mask)[1]]
        assert abs(zeros.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / zeros.size)
        found.append(zeros)
    assert len(found) == (2 if names == {"w_h"} else 1)
    assert len(found) == 1 or not np.array_equal(found[0], found[1])
    assert any(
        np.any(a != b)
        for a, b in zip(*map(jax.tree.leaves, (dropped, drop(jax.random.key(1), params, 0.25))), strict=True)
    )
    close(drop(KEY, params, 0.0), params, 0)
    with pytest.raises(ValueError, match="no leaf of the params is named"):
        drop(KEY, {"w": jnp.ones((2, 2))}, 0.5)


def test_the_gradient_of_dropped_weights_is_that_of_the_kept_ones(x64):
    cell, params, carry, xs = draw(MODELS["gru"], steps=3)
    mask = regularizers.weight_drop(KEY, jax.tree.map(jnp.ones_like, params), 0.5)["w_h"]

    def loss(params):
        return unroll(cell, params, carry, xs, method="scan")[1].sum()

    got = compiled(jax.grad(lambda params: loss(regularizers.weight_drop(KEY, params, 0.5))))(params)
    dropped = params | {"w_h": params["w_h"] * mask}
    assert 0 < int((mask == 0).sum()) < mask.size
    expected = compiled(jax.grad(loss))(dropped)
    close(got, expected | {"w_h": expected["w_h"] * mask})


def test_penalties_are_means_over_the_steps_that_count(x64):
    ys = np.random.default_rng(0).normal(size=(5, 2, 3))
    mask = np.arange(5)[:, None] < np.array([5, 4])
    mask[1, 1] = False
    real = [ys[:, 0], ys[[0, 2, 3], 1]]
    every, part = jnp.asarray(ys), jnp.asarray(mask)
    close(regularizers.activation_penalty(every), jnp.mean(every**2))
    close(regularizers.activation_penalty(every, part), jnp.mean(jnp.asarray(np.concatenate(real)) ** 2))
    steps = [np.diff(ys[:, 0], axis=0), ys[3:4, 1] - ys[2:3, 1]]
    close(regularizers.temporal_activation_penalty(every), jnp.asarray(np.mean(np.diff(ys, axis=0) ** 2)))
    close(regularizers.temporal_activation_penalty(every, part), jnp.asarray(np.mean(np.concatenate(steps) ** 2)))
    with pytest.raises(ValueError, match=r"compares two steps, got outputs \(1, 2, 3\)"):
        regularizers.temporal_activation_penalty(every[:1])


@pytest.mark.parametrize("regularize", [regularizers.input_dropout, noise.carry_noise])
def test_a_rate_may_be_an_array_that_is_known_inside_of_a_compiled_function(regularize):
    @jax.jit
    def run(params, xs):
        cell, sample = regularize(cells.gru(H), jnp.float32(0.5))
        carry = cell.initial_carry(params, (2,))
        return unroll(cell, params, carry, (xs, sample(jax.random.key(0), carry, xs)), method="scan")[1]

    assert run(cells.gru(H).init(jax.random.key(0), D), jnp.ones((3, 2, D))).shape == (3, 2, H)
    with pytest.raises(ValueError, match="got -1"):
        regularize(cells.gru(H), jnp.float32(-1.0))
