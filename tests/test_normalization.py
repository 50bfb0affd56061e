"""Normalization in the recurrence against NumPy loops; statistics, masks, gradients through them, what is refused."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from seqjax import Const, cells, normalization, regularizers, unroll, unrolling, wrappers
from seqjax.core import is_const
from seqjax.normalization import (
    Moments,
    Statistics,
    batch_norm,
    batch_norm_lstm,
    layer_norm,
    sequence_batch_norm,
    spread,
)
from seqjax.solvers import native
from tests.agree import check_methods, close, compiled, methods_of
from tests.cell_list import MODELS, D, H, Model, draw, leaky, normal

KEY = jax.random.key(0)
T, B, EPSILON = 5, 6, 1e-5
# A row with holes, one that starts late, one that ends early, and one that is never real; the last step is nobody's.
MASK = np.array([[1, 1, 1, 1, 0], [1, 0, 1, 1, 0], [0, 0, 1, 1, 0], [1, 1, 0, 0, 0], [0] * 5, [1, 1, 1, 1, 0]], bool).T


def sigmoid(u):
    return 0.5 + 0.5 * np.tanh(u / 2)


def numpy_of(tree):
    return jax.tree.map(np.asarray, tree)


def layer(u, gain):
    return gain * (u - u.mean(-1, keepdims=True)) / np.sqrt(u.var(-1, keepdims=True) + EPSILON)


def batch(u, gain, real):
    """Normalized by the rows that are real; and mean and variance."""
    mean, variance = (u[real].mean(0), u[real].var(0)) if real.any() else (0 * u[0], 0 * u[0])
    return gain * (u - mean) / np.sqrt(variance + EPSILON), (mean, variance)


def loop(name, p, carry, xs, norms, mask=None):
    """LSTM, GRU or MGU in NumPy; `norms(t)` gives functions x, h (of k and u) and c. The last carry and all outputs."""
    w, ys = p["cell"], []
    carry = [np.asarray(leaf) for leaf in jax.tree.leaves(carry)]
    h, c = carry if name == "lstm" else (carry[0], None)
    for t, x in enumerate(xs):
        norm = norms(t)
        z = norm.x(x @ w["w_x"]) + w["b"]
        if name == "lstm":
            i, f, g, o = np.split(z + norm.h(0, h @ w["w_h"]), 4, -1)
            new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            new_h = sigmoid(o) * np.tanh(norm.c(new_c))
        elif name == "gru":
            x_r, x_z, x_n = np.split(z, 3, -1)
            h_r, h_z, h_n = np.split(norm.h(0, h @ w["w_h"]), 3, -1)
            keep, new_c = sigmoid(x_z + h_z), None
            new_h = keep * h + (1 - keep) * np.tanh(x_n + sigmoid(x_r + h_r) * (h_n + w["b_n"]))
        else:
            (x_f, x_n), (w_f, w_n), new_c = np.split(z, 2, -1), np.split(w["w_h"], 2, -1), None
            f = sigmoid(x_f + norm.h(0, h @ w_f))
            new_h = (1 - f) * h + f * np.tanh(x_n + norm.h(1, (f * h) @ w_n))
        real = np.ones(len(x), bool) if mask is None else mask[t]
        h = np.where(real[:, None], new_h, h)
        c = None if c is None else np.where(real[:, None], new_c, c)
        ys.append(np.where(real[:, None], h, 0))
    return [leaf for leaf in (h, c) if leaf is not None], np.stack(ys)


def agrees(got, expected):
    close([jnp.asarray(leaf) for leaf in jax.tree.leaves(got)], [jnp.asarray(e) for e in jax.tree.leaves(expected)])


@pytest.mark.parametrize("name", ["lstm", "gru", "mgu"])
def test_layer_norm_is_the_loop_with_every_product_normalized(x64, name):
    cell, params, carry, xs = draw(Model(layer_norm(getattr(cells, name)(H))), T)
    p = numpy_of(params)
    norm = SimpleNamespace(x=lambda u: layer(u, p["gain_x"]), h=lambda k, u: layer(u, p["gain_h"][k]), c=lambda c: c)
    got = compiled(partial(unroll, cell))(params, carry, xs)
    agrees(got, loop(name, p, carry, np.asarray(xs), lambda t: norm))


def test_layer_norm_is_layer_norm_lstm_but_for_the_state(x64):
    """The state of the first step agrees; and all of them where nothing of h comes back."""
    cell, params, carry, xs = draw(MODELS["layer_norm_lstm"], 3)
    wrapper = layer_norm(cells.lstm(H))
    for steps, w_h in ((1, params["w_h"]), (3, 0 * params["w_h"])):
        own = params | {"w_h": w_h}
        same = {"cell": {k: own[k] for k in ("w_x", "w_h", "b")}, "gain_x": own["a_x"], "gain_h": (own["a_h"],)}
        (expected, ys), (got, zs) = unroll(cell, own, carry, xs[:steps]), unroll(wrapper, same, carry, xs[:steps])
        close(got.c, expected.c)
        assert np.abs(ys - zs).max() > 0.01


def test_layer_norm_takes_the_scale_of_the_weights_away(x64):
    cell, params, carry, xs = draw(Model(layer_norm(cells.lstm(H), epsilon=0.0)), 3)
    w = params["cell"]
    scaled = params | {"cell": w | {"w_x": 0.2 * w["w_x"], "w_h": 3.0 * w["w_h"]}}
    close(unroll(cell, scaled, carry, xs), unroll(cell, params, carry, xs))


WITH_STATISTICS = {
    "lstm": lambda: batch_norm(cells.lstm(H)),
    "gru": lambda: batch_norm(cells.gru(H)),
    "mgu": lambda: batch_norm(cells.mgu(H)),
    "batch_norm_lstm": lambda: batch_norm_lstm(H),
    "sequence": lambda: sequence_batch_norm(cells.lstm(H)),
    "stack": lambda: batch_norm(cells.stack(cells.gru(H), cells.lstm(H + 1))),
    "sequence_stack": lambda: sequence_batch_norm(cells.stack(cells.gru(H), cells.lstm(H + 1))),
}


def drawn(name, batch=(B,), dtype=jnp.float64):
    normalized, train = WITH_STATISTICS[name]()
    return normalized, train, *draw(Model(normalized), T, batch, dtype=dtype)[1:]


def as_input(statistics, xs):
    """Statistics as a normalized cell takes them: [T, B, G], or those of whole sequences as they are."""
    whole = any(is_const(node) for node in jax.tree.leaves(statistics, is_leaf=is_const))
    return statistics if whole else spread(statistics, xs)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
@pytest.mark.parametrize("name", ["gru", "mgu", "batch_norm_lstm"])
def test_batch_norm_is_the_loop_with_the_batch_of_each_step_normalized(x64, name, mask):
    _, train, params, carry, xs = drawn(name)
    p, seen = numpy_of(params), {}

    def norms(t):
        def by(key, u, gain):
            normed, seen[t, key] = batch(u, gain, np.ones(B, bool) if mask is None else mask[t])
            return normed

        return SimpleNamespace(
            x=lambda u: by("x", u, p["gain_x"]),
            h=lambda k, u: by(k, u, p["gain_h"][k]),
            c=lambda c: by("c", c, p["gain_c"]) + p["b_c"] if "gain_c" in p else c,
        )

    expected = loop("lstm" if "lstm" in name else name, p, carry, np.asarray(xs), norms, mask)
    real = None if mask is None else jnp.asarray(mask)
    got, statistics = compiled(train)(params, carry, xs, mask=real)
    agrees(got, expected)
    last = [t if mask is None or mask[t].any() else t - 1 for t in range(T)]
    keys = [("x", statistics.x), *enumerate(statistics.h), *([("c", statistics.c)] if statistics.c else [])]
    for key, found in keys:
        assert isinstance(found, Moments)
        for i, moment in enumerate(found):
            close(moment, jnp.asarray(np.stack([seen[t, key][i] for t in last])))


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
def test_sequence_batch_norm_is_the_loop_with_the_inputs_of_all_steps_normalized(x64, mask):
    _, train, params, carry, xs = drawn("sequence")
    p = numpy_of(params)
    real = np.ones((T, B), bool) if mask is None else mask
    _, moments = batch(np.asarray(xs) @ p["cell"]["w_x"], 1, real)
    mean, variance = moments
    norm = SimpleNamespace(
        x=lambda u: p["gain_x"] * (u - mean) / np.sqrt(variance + EPSILON), h=lambda k, u: u, c=lambda c: c
    )
    got, statistics = compiled(train)(params, carry, xs, mask=None if mask is None else jnp.asarray(mask))
    agrees(got, loop("lstm", p, carry, np.asarray(xs), lambda t: norm, mask))
    close(statistics, Const(Moments(jnp.asarray(mean), jnp.asarray(variance))))
    assert set(params) == {"cell", "gain_x"}


@pytest.mark.parametrize(
    ("name", "mask"),
    [("mgu", None), ("batch_norm_lstm", MASK), ("sequence", MASK), ("stack", MASK), ("sequence_stack", None)],
)
def test_the_cell_with_the_statistics_of_the_batch_is_training_and_so_is_its_gradient_through_them(x64, name, mask):
    normalized, train, params, carry, xs = drawn(name)
    mask = None if mask is None else jnp.asarray(mask)
    weight = normal(np.random.default_rng(1), (T, B, 1), jnp.float64)

    def loss(result):
        (_, ys), _ = result
        return jnp.sum(jnp.broadcast_to(weight, ys.shape) * jnp.sin(ys)), result[0]

    def by_train(params, carry, xs):
        return loss(train(params, carry, xs, mask=mask))

    def by_cell(params, carry, xs):
        _, statistics = train(params, carry, xs, mask=mask)
        result = unroll(normalized, params, carry, (xs, as_input(statistics, xs)), mask=mask, method="scan")
        return loss((result, None))

    def constant(params, carry, xs):
        _, statistics = jax.lax.stop_gradient(train(params, carry, xs, mask=mask))
        return loss((unroll(normalized, params, carry, (xs, as_input(statistics, xs)), mask=mask, method="scan"), None))

    @compiled
    def run(*arguments):
        return [jax.value_and_grad(f, (0, 1, 2), has_aux=True)(*arguments) for f in (by_train, by_cell, constant)]

    expected, got, without = run(params, carry, xs)
    close(got, expected, 1e-10)
    close(without[0], expected[0], 1e-10)
    assert (
        max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (without, expected)), strict=True)) > 0.01
    )


@pytest.mark.parametrize("name", ["batch_norm_lstm", "sequence"])
def test_gradients_of_training_are_those_of_numerical_differences(x64, name):
    _, train, params, carry, xs = drawn(name)
    mask = jnp.asarray(np.arange(T)[:, None] < np.array([T, 3, T, T, 4, T]))

    @jax.jit
    def run(params, carry, xs):
        return train(params, carry, xs, mask=mask)

    check_grads(run, (params, carry, xs), order=1, modes=["rev"], eps=1e-6, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["batch_norm_lstm", "sequence"])
def test_every_method_trains_alike(x64, name):
    _, train, params, carry, xs = drawn(name)
    methods = normalization.BATCH_METHODS if name != "sequence" else ("scan", "fused", "checkpointed", "auto")

    @compiled
    def run(params, carry, xs):
        def loss(params, method):
            (last, ys), statistics = train(params, carry, xs, mask=jnp.asarray(MASK), method=method)
            return jnp.square(ys).sum(), (last, ys, statistics)

        return [jax.value_and_grad(loss, has_aux=True)(params, method) for method in methods]

    first, *others = run(params, carry, xs)
    for other in others:
        close(other, first)


@pytest.mark.parametrize("name", ["batch_norm_lstm", "sequence"])
def test_padding_reaches_neither_statistics_nor_outputs_nor_gradients(x64, name):
    _, train, params, carry, xs = drawn(name)
    mask = jnp.asarray(MASK)
    holes = jnp.where(mask[..., None], xs, jnp.nan)

    @compiled
    def run(params, xs):
        def loss(params):
            (last, ys), statistics = train(params, carry, xs, mask=mask)
            return jnp.square(ys).sum(), (last, ys, statistics)

        return jax.value_and_grad(loss, has_aux=True)(params)

    close(run(params, holes), run(params, xs), 0)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(run(params, holes)))


def test_a_row_that_is_never_real_is_as_if_it_were_not_there(x64):
    _, train, params, carry, xs = drawn("batch_norm_lstm")
    keep = np.array([0, 1, 2, 3, 5])
    less = jax.tree.map(lambda h: h[keep], carry)
    run = compiled(partial(train, method="scan"))
    (_, ys), statistics = run(params, carry, xs, mask=jnp.asarray(MASK))
    (_, fewer), expected = run(params, less, xs[:, keep], mask=jnp.asarray(MASK[:, keep]))
    close((ys[:, keep], statistics), (fewer, expected))


def test_statistics_beyond_the_last_step_are_its_own_and_those_before_are_cut(x64):
    statistics = Statistics(Moments(jnp.arange(6.0).reshape(3, 2), jnp.ones((3, 2))), ())
    long = spread(statistics, jnp.zeros((5, 4, D))).x.mean
    assert long.shape == (5, 4, 2)
    for t, row in enumerate([0, 1, 2, 2, 2]):
        np.testing.assert_array_equal(long[t], np.broadcast_to(statistics.x.mean[row], (4, 2)))
    close(spread(statistics, jnp.zeros((2, 4, D))).x.mean, long[:2], 0)
    assert spread(statistics, (jnp.zeros((2, 3, 4), jnp.int32), None)).x.mean.shape == (2, 3, 4, 2)


def test_a_running_average_is_plain_arithmetic_and_brings_evaluation_to_the_population(x64):
    """Many small batches of one distribution: the average of their means is that of one large batch."""
    normalized, train, params, _, _ = drawn("lstm")
    xs = jax.random.normal(KEY, (40, T, 50, D))
    every = compiled(jax.vmap(lambda xs: train(params, None, xs)[1]))(xs)
    running = jax.tree.map(lambda leaf: leaf.mean(0), every)
    (_, ys), population = compiled(train)(params, None, jnp.moveaxis(xs, 0, 1).reshape(T, -1, D))
    # The gains of `draw` are random, so the statistics of late steps are those of what small batches made of them.
    close(running.x.mean, population.x.mean, 0.05)
    close(running.x.variance, population.x.variance, 0.1)
    _, got = unroll(normalized, params, None, (xs[0], spread(running, xs[0])))
    assert float(np.abs(got - ys[:, :50]).mean()) < 0.05


def test_params_start_as_documented_and_a_stack_has_those_of_its_layers():
    start = layer_norm(cells.gru_reset_before(H)).init(KEY, D)
    assert jax.tree.map(jnp.shape, start["gain_h"]) == ((2 * H,), (H,))
    assert all((leaf == 1).all() for leaf in (start["gain_x"], *start["gain_h"]))
    close(start["cell"], cells.gru_reset_before(H).init(KEY, D), 0)
    normalized, _ = batch_norm_lstm(H, dtype=jnp.bfloat16)
    start = normalized.init(KEY, D)
    assert all((start[name] == jnp.bfloat16(0.1)).all() for name in ("gain_x", "gain_c"))
    assert (start["gain_h"][0] == jnp.bfloat16(0.1)).all()
    assert start["gain_c"].shape == (H,)
    assert not start["b_c"].any()
    normalized, _ = sequence_batch_norm(cells.stack(cells.gru(H), cells.lstm(H)))
    first, second = normalized.init(KEY, D)
    assert (first["gain_x"].shape, second["gain_x"].shape) == ((3 * H,), (4 * H,))
    assert (first["gain_x"] == 1).all()
    embedded = layer_norm(wrappers.with_embedding(cells.gru(H), 9, D))
    assert unroll(embedded, embedded.init(KEY, 0), None, jnp.ones((3, 2), jnp.int32))[1].shape == (3, 2, H)


@pytest.mark.parametrize("name", ["batch_norm_lstm", "sequence"])
def test_bfloat16_params_are_summed_in_float32(name):
    _, train, params, carry, xs = drawn(name, dtype=jnp.float32)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)

    def loss(params):
        (last, ys), statistics = train(params, carry, xs)
        return ys.sum(), (last, ys, statistics)

    (_, got), grads = compiled(jax.value_and_grad(loss, has_aux=True))(narrow)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
    assert all(leaf.dtype == jnp.bfloat16 and jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    close(got, compiled(loss)(wide)[1], 0.06)


def test_noise_and_heads_go_inside_and_the_params_are_those_without_noise(x64):
    cell = wrappers.with_head(cells.gru(H), 2)
    normalized, _ = batch_norm(cell)
    noisy, sample = regularizers.recurrent_dropout(cell, 0.5)
    _, train = batch_norm(noisy)
    params, carry, xs = draw(Model(normalized), T, (B,))[1:]
    noise = sample(KEY, carry, xs)
    noisy_normalized, _ = batch_norm(noisy)

    @compiled
    def run(params, carry, xs, mask):
        (_, ys), statistics = train(params, carry, (xs, noise), mask=mask)
        inputs = ((xs, noise), spread(statistics, xs))
        return ys, unroll(noisy_normalized, params, carry, inputs, mask=mask, method="scan")[1]

    ys, expected = run(params, carry, xs, jnp.asarray(MASK))
    close(ys, expected)
    assert ys.shape == (T, B, 2)


def test_native_takes_population_statistics_and_refuses_layer_norm(x64):
    assert native.supports(*draw(MODELS["batch_norm_lstm"], 4))
    assert not native.supports(*draw(MODELS["layer_norm"], 4))


def test_a_deep_normalized_stack_keeps_the_fused_path(x64):
    model = MODELS["layer_norm_stack"]
    assert all(part.gated for part in model.cell.layers)
    assert "fused" in methods_of(model.cell)
    check_methods(draw(model, 3), {"fused": "fused"})


def test_training_in_a_python_loop_compiles_once():
    _, train = batch_norm(cells.gru(2))
    params, xs = batch_norm(cells.gru(2))[0].init(KEY, D), jnp.ones((3, 2, D))
    train(params, None, xs)
    compiled_before = unrolling._compiled.cache_info().misses
    train(params, None, xs)
    assert unrolling._compiled.cache_info().misses == compiled_before


@pytest.mark.parametrize("wrap", [layer_norm, batch_norm])
def test_a_cell_without_recurrent_products_is_refused(wrap):
    for cell in (leaky(), cells.min_gru(H), cells.stack(cells.gru(H), cells.min_gru(H))):
        with pytest.raises(ValueError, match=f"{wrap.__name__} needs a cell with the `gated` hint"):
            wrap(cell)


def test_what_else_is_refused():
    normalized, _ = batch_norm_lstm(H)
    params, xs = normalized.init(KEY, D), jnp.ones((T, B, D))
    _, statistics = batch_norm(cells.lstm(H))[1]({k: params[k] for k in ("cell", "gain_x", "gain_h")}, None, xs)
    with pytest.raises(ValueError, match="batch_norm_lstm needs statistics of its state c, got none"):
        unroll(normalized, params, None, (xs, normalization.spread(statistics, xs)))
    for wrapped in (layer_norm(cells.layer_norm_lstm(H)), sequence_batch_norm(cells.min_gru(H))[0]):
        with pytest.raises(ValueError, match="needs a cell with one input product in z, a `Dense`; this has 0"):
            wrapped.init(KEY, D)
    with pytest.raises(ValueError, match=r"this cell does not read 3 features.*goes outside"):
        layer_norm(wrappers.masked(cells.gru(H))).init(KEY, D)
    normalized, train = batch_norm(cells.gru(H))
    params, xs = normalized.init(KEY, D), jnp.ones((T, B, D))
    for few in (xs[:, :1], xs[:, 0]):
        with pytest.raises(ValueError, match=r"statistics over two or more sequences, got inputs \(5,.* 3\)"):
            train(params, None, few)
    for method in ("native", "newton", "auto"):
        with pytest.raises(ValueError, match=f"batch_norm trains whole batches by one of .*'fused'.*, got '{method}'"):
            train(params, None, xs, method=method)
    for trains, p in (
        (train, params),
        (sequence_batch_norm(cells.gru(H))[1], {k: params[k] for k in ("cell", "gain_x")}),
    ):
        with pytest.raises(ValueError, match=r"mask must be bool \(5, 6\), \[T, B\] of the inputs, got bool \(6, 5\)"):
            trains(p, None, xs, mask=jnp.ones((B, T), bool))
        with pytest.raises(ValueError, match="unroll got an empty sequence"):
            trains(p, None, xs[:0])
