"""The cells that are linear in their carry, and the exponential gates beside them: what the laws do not say of them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from seqjax import cells, unroll
from seqjax.cells.state_space import legs_frequencies
from seqjax.hints import Complex
from seqjax.solvers import associative as parallel
from seqjax.solvers.associative import associative
from tests.agree import check_methods, close, compiled, values_and_gradients
from tests.cell_list import BARE, D, H, Model, draw

NAMES = ["min_lstm", "qrnn", "sru", "lru", "rg_lru", "s4d", "s5", "gated_linear_attention", "delta_net"]
NAMES += ["mlstm", "slstm"]


KEY = jax.random.key(0)


def scan(cell, params, carry, xs):
    return compiled(partial(unroll, cell, method="scan"))(params, carry, xs)


def sigmoid(u):
    return 1 / (1 + np.exp(-u))


@pytest.mark.parametrize("name", ["lru", "s4d", "s5", "rg_lru", "gated_linear_attention"])
def test_a_prefix_gives_what_scan_gives(x64, monkeypatch, name):
    """In chunks, step by step and in log depth; so the gradient of a recurrence of pairs has its conjugates right."""
    drawn = draw(BARE[name])
    check_methods(drawn, {"chunks": partial(associative, chunk=3), "whole": partial(associative, chunk=7)})
    monkeypatch.setattr(parallel, "SEQUENTIAL", False)
    check_methods(drawn, {"log depth": associative})


def test_min_lstm_whose_gates_have_the_sum_1_is_min_gru(x64):
    _, params, carry, xs = draw(BARE["min_gru"])
    w, b = params["w_x"], params["b"]
    as_lstm = {"w_x": jnp.concatenate([-w[:, :H], w], 1), "b": jnp.concatenate([-b[:H], b])}
    close(scan(cells.min_lstm(H), as_lstm, carry, xs), scan(cells.min_gru(H), params, carry, xs))


def test_min_lstm_with_both_gates_shut_takes_the_mean():
    cell = cells.min_lstm(1)
    params = {"w_x": jnp.array([[0.0, 0.0, 1.0]]), "b": jnp.array([-200.0, -200.0, 0.0])}
    assert cell.step(params, jnp.array([3.0]), jnp.array([1.0]))[1] == 2


def test_f_pooling_is_fo_pooling_without_its_output_gate(x64):
    cell, params, carry, xs = draw(BARE["qrnn"])
    pooled = cells.qrnn(H, output_gate=False)
    narrow = jax.tree.map(lambda leaf: leaf[..., : 2 * H], params)
    carry_fo, ys = scan(cell, params, carry, xs)
    carry_f, hs = scan(pooled, narrow, carry, xs)
    close((carry_f, hs[-1]), (carry_fo, carry_fo))
    o = np.asarray(xs) @ np.asarray(params["w_x"][:, 2 * H :]) + np.asarray(params["b"][2 * H :])
    close(ys, sigmoid(o) * hs)


@pytest.mark.parametrize("output_gate", [True, False])
def test_a_window_of_qrnn_is_the_inputs_concatenated(x64, output_gate):
    wide, window = cells.qrnn(H, output_gate), cells.qrnn(H, output_gate, 3)
    _, params, carry, xs = draw(Model(window))
    before = jnp.concatenate([jnp.moveaxis(carry.x[:, 1:], 1, 0), xs])
    expected, ys = scan(wide, params, carry.h, jnp.concatenate([before[:-2], before[1:-1], before[2:]], axis=-1))
    close(scan(window, params, carry, xs), (cells.QRNNCarry(expected, jnp.moveaxis(xs[-3:], 0, 1)), ys))


def test_lru_starts_on_a_ring():
    cell = cells.lru(20_000, r_min=0.5, r_max=0.9, max_phase=1.0)
    params = {name: np.asarray(leaf, np.float64) for name, leaf in cell.init(jax.random.key(0), 2).items()}
    radius, phase = np.exp(-np.exp(params["nu"])), np.exp(params["theta"])
    for values, low, high in ((radius**2, 0.25, 0.81), (phase, 0, 1)):
        quartiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quartiles, np.linspace(low, high, 5), atol=0.02 * (high - low))
    np.testing.assert_allclose(np.exp(params["gamma"]) ** 2, 1 - radius**2, rtol=1e-4)
    np.testing.assert_allclose(params["w_x"].std(), 0.5, rtol=0.02)


def test_lru_on_the_whole_disk_keeps_the_size_of_noise():
    cell = cells.lru(256)
    params = cell.init(jax.random.key(0), 4)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    carry, _ = scan(cell, params, None, jax.random.normal(jax.random.key(1), (300, 16, 4)))
    # The real and the imaginary part of B x have half of the variance of x each.
    assert 0.4 < float(jnp.square(jnp.stack(carry)).mean()) < 0.6


@pytest.mark.parametrize("name", ["lru", "slstm", "mlstm"])
def test_float32_is_float64_after_many_steps(name, x64):
    """Also where the exponential gates, up to exp(300), overflow without the stabilizer."""
    cell = BARE[name].cell
    _, params, _, xs = draw(BARE[name], steps=1000)
    if name != "lru":
        gates = "w_gates" if name == "mlstm" else "w_x"
        units = params["b"].shape[0] // (2 if name == "mlstm" else 4)
        params[gates] = params[gates].at[:, :units].multiply(100.0)

    def run(dtype):
        args = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, cell.initial_carry(params, (2,)), xs))
        return compiled(partial(values_and_gradients, cell, "scan"))(*args)

    (_, wide), grads = run(jnp.float64)
    (_, narrow), narrow_grads = run(jnp.float32)
    assert jnp.isfinite(wide).all()
    assert float(jnp.abs(wide).max()) > 0.1
    # A few outputs of an mLSTM are quotients of two small numbers.
    assert np.quantile(np.abs(np.asarray(narrow, np.float64) - wide), 0.99) < 1e-4
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, narrow_grads)))


def test_rg_lru_starts_slow_and_stands_still_without_nan():
    cell = cells.rg_lru()
    params = cell.init(jax.random.key(0), 1000)
    slow = np.asarray(sigmoid(np.asarray(params["decay"], np.float64)) ** 8)
    np.testing.assert_allclose(np.quantile(slow, [0, 0.5, 1]), [0.9, 0.9495, 0.999], atol=0.01)
    params = {**cell.init(jax.random.key(0), D), "b": jnp.full((2 * D,), -200.0)}
    args = params, jnp.ones((2, D)), jnp.ones((3, 2, D))
    (_, ys), grads = compiled(partial(values_and_gradients, cell, "scan"))(*args)
    np.testing.assert_array_equal(ys, np.ones((3, 2, D)))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_the_frequencies_are_those_of_hippo_legs():
    n = np.arange(16)
    root = np.sqrt(2 * n + 1)
    legs = -np.tril(np.outer(root, root), -1) - np.diag(n + 1)
    values = np.linalg.eigvals(legs + np.outer(root, root) / 2)
    np.testing.assert_allclose(values.real, -0.5)
    np.testing.assert_allclose(legs_frequencies(8), np.sort(values.imag)[8:])


def test_s5_starts_as_hippo_n_of_all_features(x64):
    """The complex states are those of the real system X' = A X + B x, in the coordinates of its eigenvectors."""
    states, dt = 3, 0.07
    cell = cells.s5(2 * states, blocks=2, dt_min=dt, dt_max=dt, dtype=jnp.float64)
    params, xs = cell.init(jax.random.key(0), D), draw(Model(cell)).xs
    n = np.arange(2 * states)
    root = np.sqrt(2 * n + 1)
    block = -np.tril(np.outer(root, root), -1) - np.diag(n + 1) + np.outer(root, root) / 2
    matrix = np.kron(np.eye(2), block)
    back = np.kron(np.eye(2), np.linalg.eigh(-1j * (block + np.eye(2 * states) / 2))[1][:, states:])
    w_x, w_y, d = (np.asarray(params[name]) for name in ("w_x", "w_y", "d"))
    b = 2 * (back @ (w_x[:, : 2 * states] + 1j * w_x[:, 2 * states :]).T).real
    keep = expm(dt * matrix)
    write = np.linalg.solve(matrix, keep - np.eye(len(keep))) @ b
    state, c = np.zeros((2, 4 * states)), w_y[: 2 * states] - 1j * w_y[2 * states :]
    run = compiled(partial(unroll, cell, method="scan"))
    for t, x in enumerate(np.asarray(xs)):
        state = state @ keep.T + x @ write.T
        carry, ys = run(params, None, xs[: t + 1]) if t in (0, 6) else (None, None)
        if carry is not None:
            close(jnp.asarray(2 * ((np.asarray(carry.re) + 1j * np.asarray(carry.im)) @ back.T).real), state)
            # What is read from a state is read from its conjugate too, which is not computed.
            close(ys[-1], (state @ back.conj() @ c).real + d * x)


def test_s5_starts_as_documented():
    cell = cells.s5(150, blocks=3, dt_min=0.01, dt_max=0.1)
    params = {name: np.asarray(leaf) for name, leaf in compiled(lambda key: cell.init(key, 60))(KEY).items()}
    assert params["w_x"].std() == pytest.approx((1 / 2 / 300) ** 0.5, rel=0.03)
    assert params["w_y"].std() == pytest.approx((2 / 150) ** 0.5, rel=0.03)
    np.testing.assert_allclose(np.exp(params["log_decay"]), 0.5, rtol=1e-6)
    np.testing.assert_allclose(params["frequency"], np.tile(legs_frequencies(50), 3), rtol=1e-6)
    quartiles = np.quantile(params["log_dt"] / np.log(10), [0, 0.5, 1])
    np.testing.assert_allclose(quartiles, [-2, -1.5, -1], atol=0.1)


@pytest.mark.parametrize("name", ["s4d", "s5"])
def test_zero_order_hold_is_exact_for_inputs_that_stand_still(x64, name):
    """So one step of dt is four of dt / 4; and nothing is lost in float32 where dt is small."""
    cell, params, carry, xs = draw(BARE[name], steps=1)
    short = {**params, "log_dt": params["log_dt"] - np.log(4)}
    xs = jnp.broadcast_to(xs, (4, *xs.shape[1:]))
    close(scan(cell, short, carry, xs)[0], scan(cell, params, carry, xs[:1])[0])
    affine: Any = cell.affine
    short["log_dt"] = params["log_dt"] - 12
    z = cell.project(short, xs[0])
    _, wide = affine(short, z)
    _, narrow = affine(*jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (short, z)))
    np.testing.assert_allclose(narrow.re, wide.re, rtol=1e-5)
    np.testing.assert_allclose(np.hypot(*narrow), np.hypot(*wide), rtol=1e-5)


def test_attention_that_forgets_nothing_is_linear_attention(x64):
    cell, params, _, xs = draw(BARE["gated_linear_attention"])
    params["b_a"] = jnp.full_like(params["b_a"], 1000.0)
    q, k, v = (np.asarray(xs @ params[name]).reshape(7, 2, 2, -1) for name in ("w_q", "w_k", "w_v"))
    scores = np.einsum("tbnk,sbnk->bnts", q, k) * np.tril(np.ones((7, 7)))
    close(scan(cell, params, None, xs)[1], jnp.asarray(np.einsum("bnts,sbnv->tbnv", scores, v).reshape(7, 2, 4)))


def test_delta_net_reads_what_was_last_written_under_a_key(x64):
    cell, params, carry, xs = draw(BARE["delta_net"])
    xs = jnp.abs(xs)
    params |= {"w_q": params["w_k"], "w_rate": jnp.full_like(params["w_rate"], 1000.0)}
    close(scan(cell, params, carry, xs)[1], xs @ params["w_v"], 1e-3)


def test_mlstm_is_its_equation_without_stabilizer(x64):
    cell, params, _, xs = draw(BARE["mlstm"])
    ys, c, n = [], np.zeros((2, 2, 3, 2)), np.zeros((2, 2, 3))
    p = {name: np.asarray(leaf) for name, leaf in params.items()}
    for x in np.asarray(xs):
        q, k, v = ((x @ p["w_" + name] + p["b_" + name]).reshape(2, 2, -1) for name in "qkv")
        i, f = np.split(x @ p["w_gates"] + p["b"], 2, -1)
        i, f, k = np.exp(i)[..., None], sigmoid(f)[..., None], k / 3**0.5
        c = f[..., None] * c + (i * k)[..., None] * v[..., None, :]
        n = f * n + i * k
        scale = np.maximum(np.abs((q * n).sum(-1)), 1)
        y = np.einsum("bnk,bnkv->bnv", q, c) / scale[..., None]
        ys.append(sigmoid(x @ p["w_o"] + p["b_o"]) * y.reshape(2, 4))
    close(scan(cell, params, None, xs)[1], jnp.asarray(np.stack(ys)))


def test_slstm_is_its_equation_without_stabilizer(x64):
    cell, params, _, xs = draw(BARE["slstm"])
    h, c, n, ys = *np.zeros((3, 2, H)), []
    for x in np.asarray(xs):
        u = x @ np.asarray(params["w_x"]) + h @ np.asarray(params["w_h"][0]) + np.asarray(params["b"])
        i, f, g, o = np.split(u, 4, -1)
        c = sigmoid(f) * c + np.exp(i) * np.tanh(g)
        n = sigmoid(f) * n + np.exp(i)
        h = sigmoid(o) * c / n
        ys.append(h)
    close(scan(cell, params, None, xs)[1], jnp.asarray(np.stack(ys)))


def test_slstm_that_first_writes_next_to_nothing_has_no_nan():
    cell = cells.slstm(1)
    params = {**cell.init(jax.random.key(0), 1), "b": jnp.array([-300.0, 0.0, 1.0, 0.0])}
    run = compiled(partial(values_and_gradients, cell, "scan"))
    (_, ys), grads = run(params, cell.initial_carry(params, ()), jnp.zeros((3, 1)))
    np.testing.assert_allclose(ys[0], 0.5 * np.tanh(1.0), rtol=1e-6)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((ys, grads)))


def test_heads_of_slstm_are_cells_side_by_side(x64):
    cell, params, carry, xs = draw(Model(cells.slstm(H, heads=2)))
    assert params["w_h"].shape == (2, 2, 8)
    _, ys = scan(cell, params, carry, xs)
    for k in range(2):
        own = slice(2 * k, 2 * k + 2)

        def units(leaf, own=own):
            return jnp.concatenate([gate[..., own] for gate in jnp.split(leaf, 4, -1)], -1)

        one = {"w_x": units(params["w_x"]), "w_h": params["w_h"][k : k + 1], "b": units(params["b"])}
        close(scan(cells.slstm(2), one, jax.tree.map(lambda h, own=own: h[..., own], carry), xs)[1], ys[..., own])


def test_sixteen_bit_params_have_float32_carries_and_gradients_of_their_dtype():
    made = [cells.min_lstm(H, dtype=jnp.bfloat16), cells.qrnn(H, dtype=jnp.bfloat16), cells.sru(H, dtype=jnp.bfloat16)]
    made += [cells.s5(H, dtype=jnp.bfloat16), cells.lru(H, dtype=jnp.bfloat16)]
    made += [cells.rg_lru(dtype=jnp.bfloat16), cells.s4d(2, dtype=jnp.bfloat16)]
    made += [make(2, 3, 2, dtype=jnp.bfloat16) for make in (cells.gated_linear_attention, cells.delta_net, cells.mlstm)]
    made += [cells.slstm(H, dtype=jnp.bfloat16)]

    def run(key, xs, cell):
        params = cell.init(key, D)
        return params, values_and_gradients(cell, "scan", params, cell.initial_carry(params, (2,)), xs)

    def dtypes(tree):
        return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}

    for cell in made:
        params, (out, grads) = jax.eval_shape(partial(run, cell=cell), jax.random.key(0), jnp.ones((2, 2, D)))
        assert dtypes(params) == dtypes(grads[0]) == {"bfloat16"}
        assert dtypes(out) == {"float32"}


def test_initial_values_are_finite_in_sixteen_bits():
    for cell in (
        cells.lru(256, dtype=jnp.bfloat16),
        cells.rg_lru(dtype=jnp.bfloat16),
        cells.s4d(8, dtype=jnp.bfloat16),
        cells.s5(8, dtype=jnp.bfloat16),
    ):
        assert all(
            jnp.isfinite(leaf).all()
            for leaf in jax.tree.leaves(compiled(cell.init, static_argnums=1)(jax.random.key(0), 64))
        )


def test_biases_start_as_documented():
    key = jax.random.key(0)
    np.testing.assert_array_equal(cells.mlstm(2, 3, 2).init(key, D)["b"], [0, 0, 3, 3])
    np.testing.assert_array_equal(cells.slstm(1).init(key, D)["b"], [0, 3, 0, 0])
    for cell in (cells.min_lstm(H), cells.qrnn(H), cells.sru(H), cells.rg_lru()):
        assert not cell.init(key, D)["b"].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cells.min_lstm(0), "min_lstm takes a positive number of units, got 0"),
        (lambda: cells.qrnn(0), "qrnn takes a positive number of units, got 0"),
        (lambda: cells.qrnn(2, window=0), "qrnn takes a positive number of steps in its window, got 0"),
        (lambda: cells.sru(-1), "sru takes a positive number of units, got -1"),
        (lambda: cells.lru(2, r_min=0.9, r_max=0.5), "lru needs 0 <= r_min < r_max <= 1 and max_phase > 0, got 0.9"),
        (lambda: cells.lru(2, max_phase=0.0), "max_phase > 0, got"),
        (lambda: cells.rg_lru(c=0.0), "rg_lru needs c > 0, got 0.0"),
        (lambda: cells.s4d(0), "s4d takes a positive number of states, got 0"),
        (lambda: cells.s5(0), "s5 takes a positive number of units, got 0"),
        (lambda: cells.s5(4, blocks=3), "s5 takes a number of blocks that divides its 4 units, got 3"),
        (lambda: cells.s5(2, dt_max=0.0), "s5 needs 0 < dt_min <= dt_max, got 0.001 and 0.0"),
        (lambda: cells.s4d(2, dt_min=0.2), "s4d needs 0 < dt_min <= dt_max, got 0.2 and 0.1"),
        (lambda: cells.delta_net(2, 0, 1), "delta_net takes positive sizes, got .*'keys': 0"),
        (lambda: cells.mlstm(2, 1, 1.5), "mlstm takes positive sizes, got .*'values': 1.5"),
        (lambda: cells.gated_linear_attention(1, 1, 0), "gated_linear_attention takes positive sizes"),
        (lambda: cells.gated_linear_attention(1, 1, 1, temperature=0.0), "positive temperature, got 0.0"),
        (lambda: cells.slstm(4, heads=3), "a number of heads that divides its 4 units, got 3"),
    ],
)
def test_what_makes_no_cell_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_inputs_of_another_width_are_refused():
    for cell in [*(BARE[name].cell for name in NAMES), cells.qrnn(H, window=2)]:
        params = draw(Model(cell), dtype=jnp.float32).params
        with pytest.raises(ValueError, match=rf"inputs have shape .*, expected \[..., {D}\]"):
            unroll(cell, params, None, jnp.ones((3, 2, D + 1)))


def test_a_complex_carry_is_a_named_pair():
    carry = cells.lru(H).initial_carry(cells.lru(H).init(jax.random.key(0), D), (2,))
    assert isinstance(carry, Complex)
    assert carry.re.shape == carry.im.shape == (2, H)
