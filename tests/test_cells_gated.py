"""What the variants of the LSTM and the simple cells reduce to, how they start, and what they refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import cells, unroll
from seqjax.arrays import dense
from seqjax.initializers import chrono, zeros
from seqjax.solvers import native
from seqjax.solvers.native import compiler
from tests.agree import check_methods, close, compiled
from tests.cell_list import BARE, MODELS, D, H, Model, draw, masked, recurrent_dropout

KEY = jax.random.key(0)
LSTMS = ["coupled_lstm", "projected_lstm", "layer_norm_lstm", "multiplicative_lstm"]
SIMPLE = ["ind_rnn", "peephole_sru", "fast_weights", "exp_rnn", "ugrnn", "mgu", "janet", "antisymmetric_rnn", "ct_rnn"]
NOT_ELEMENTWISE = {"projected_lstm", "layer_norm_lstm", "fast_weights"}
MAKE = {name: getattr(cells, name) for name in LSTMS + SIMPLE} | {
    "projected_lstm": lambda hidden, **options: cells.projected_lstm(hidden, 3, **options)
}


def parts(w, n):
    return jnp.split(w, n, axis=-1)


def blocks(params, change):
    """`params` with `change` made to the list of the gates' blocks of w_x, w_h and b."""
    n = params["b"].shape[0] // H
    return {k: jnp.concatenate(change(parts(params[k], n)), axis=-1) for k in ("w_x", "w_h", "b")}


def opened(params, bias):
    """The first of two gates held at `bias`, whatever it reads."""
    held = blocks(params, lambda gates: [0 * gates[0], gates[1]])
    return held | {"b": held["b"] + jnp.repeat(jnp.asarray([bias, 0.0]), H)}


def coupled_is_an_lstm_with_the_input_gate_against_the_forget_gate(params):
    return params, cells.lstm(H), blocks(params, lambda gates: [-gates[0], *gates])


def projected_by_the_identity_is_an_lstm(params):
    params = params | {"w_p": jnp.eye(H)}
    return params, cells.lstm(H), params


def layer_norm_takes_the_scale_of_the_weights_away(params):
    scaled = params | {"w_x": 0.2 * params["w_x"], "w_h": 3.0 * params["w_h"]}
    return params, cells.layer_norm_lstm(H, epsilon=0.0), scaled


def multiplicative_with_a_factor_of_one_is_an_lstm(params):
    params = params | {"w_mx": jnp.zeros((D, H)).at[0].set(1.0), "w_mh": jnp.eye(H)}
    return params, cells.lstm(H), params


def ind_rnn_is_an_rnn_with_a_diagonal_matrix(params):
    return params, cells.rnn(H, jax.nn.relu), params | {"w_h": jnp.diag(params["u"])}


def ugrnn_that_never_keeps_is_an_rnn(params):
    return opened(params, -1e3), cells.rnn(H), blocks(params, lambda gates: [gates[1]])


def mgu_that_always_writes_is_an_rnn(params):
    return opened(params, 1e3), cells.rnn(H), blocks(params, lambda gates: [gates[1]])


def janet_with_a_beta_of_zero_is_a_ugrnn(params):
    return params, cells.ugrnn(H), params


def antisymmetric_does_not_see_a_symmetric_part(params):
    symmetric = params["w_h"] @ params["w_h"].T
    return params, cells.antisymmetric_rnn(H), params | {"w_h": params["w_h"] + symmetric}


def ct_rnn_with_steps_of_the_time_constant_is_an_rnn(params):
    return params | {"log_tau": jnp.full((H,), np.log(0.1))}, cells.rnn(H), params


REDUCTIONS = {
    "coupled_lstm": coupled_is_an_lstm_with_the_input_gate_against_the_forget_gate,
    "projected_lstm": projected_by_the_identity_is_an_lstm,
    "layer_norm_lstm": layer_norm_takes_the_scale_of_the_weights_away,
    "multiplicative_lstm": multiplicative_with_a_factor_of_one_is_an_lstm,
    "ind_rnn": ind_rnn_is_an_rnn_with_a_diagonal_matrix,
    "ugrnn": ugrnn_that_never_keeps_is_an_rnn,
    "mgu": mgu_that_always_writes_is_an_rnn,
    "janet": janet_with_a_beta_of_zero_is_a_ugrnn,
    "antisymmetric_rnn": antisymmetric_does_not_see_a_symmetric_part,
    "ct_rnn": ct_rnn_with_steps_of_the_time_constant_is_an_rnn,
}
SPECIAL = {
    "projected_lstm": cells.projected_lstm(H, H),
    "layer_norm_lstm": cells.layer_norm_lstm(H, epsilon=0.0),
    "janet": cells.janet(H, beta=0.0),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_cell_reduces_to_a_simpler_one(x64, name):
    cell, params, carry, xs = draw(Model(SPECIAL.get(name, BARE[name].cell)))
    params, other, simpler = REDUCTIONS[name](params)
    xs = xs.at[..., 0].set(1.0)
    got, expected = (
        compiled(partial(unroll, c, method="scan"))(p, carry, xs) for c, p in ((cell, params), (other, simpler))
    )
    close(got, expected)


def test_sru_without_peepholes_has_the_state_of_the_first_version(x64):
    _, params, carry, xs = draw(BARE["peephole_sru"])
    params = params | {"p": jnp.zeros((2, H))}
    _, hs = compiled(partial(unroll, cells.peephole_sru(H), method="scan"))(params, carry, xs)
    step, c = compiled(cells.sru(H).step), carry.c
    for x, h in zip(xs, hs, strict=True):
        _, _, r, s = parts(dense(x, params["w_x"], params["b"]), 4)
        c, _ = step({name: params[name] for name in ("w_x", "b")}, c, x)
        close(h, jax.nn.sigmoid(r) * c + jax.nn.sigmoid(-r) * s)


def test_fast_weights_attend_to_the_past_outputs(x64):
    """Equation 4 of the paper: no matrix is written, and past outputs are weighted by their products with this one."""
    decay, rate = 0.9, 0.4
    cell = cells.fast_weights(H, decay=decay, rate=rate, activation=jnp.tanh)
    params = draw(Model(cell)).params
    xs = draw(Model(cell)).xs[:, 0]
    _, ys = compiled(partial(unroll, cell))(params, None, xs)
    past, p = [np.zeros(H)], jax.tree.map(np.asarray, params)
    for x, y in zip(np.asarray(xs), ys, strict=True):
        u = x @ p["w_x"] + past[-1] @ p["w_h"] + p["b"]
        h = np.tanh(u)
        u = u + rate * sum(decay**lag * (one @ h) * one for lag, one in enumerate(reversed(past)))
        h = np.tanh(p["gain"] * (u - u.mean()) / np.sqrt(u.var() + 1e-5) + p["shift"])
        close(y, jnp.asarray(h))
        past.append(h)


@pytest.mark.parametrize("name", [*LSTMS, "ugrnn", "mgu", "janet"])
def test_chrono_starts_a_cell_that_keeps_its_carry(name):
    cell = MAKE[name](H, b=chrono(1e12))
    carry = draw(Model(cell), dtype=jnp.float32).carry
    after, _ = compiled(cell.step)(cell.init(KEY, D), carry, jnp.zeros((2, D)))
    close(jax.tree.leaves(after)[-1], jax.tree.leaves(carry)[-1], 1e-4)


@pytest.mark.parametrize("name", [*LSTMS, *SIMPLE])
def test_gates_start_as_documented(name):
    params = MAKE[name](H).init(KEY, D)
    gates = parts(params["b"], params["b"].shape[0] // H)
    forget = {"coupled_lstm": 0, "janet": 0}.get(name, 1 if name in LSTMS else None)
    for i, gate in enumerate(gates):
        assert (gate == (1.0 if i == forget else 0.0)).all()


def test_what_is_no_gate_starts_as_documented():
    params = cells.layer_norm_lstm(H).init(KEY, D)
    assert all((params[gain] == 1).all() for gain in ("a_x", "a_h", "a_c"))
    assert not params["b_c"].any()
    params = cells.fast_weights(H).init(KEY, D)
    assert (params["gain"] == 1).all()
    assert not params["shift"].any()
    assert not cells.peephole_sru(H).init(KEY, D)["p"].any()
    params = cells.projected_lstm(H, 3).init(KEY, D)
    assert (params["w_h"].shape, params["w_p"].shape) == ((3, 4 * H), (H, 3))
    np.testing.assert_allclose(params["w_p"].T @ params["w_p"], np.eye(3), atol=1e-6)
    params = cells.multiplicative_lstm(H).init(KEY, D)
    for own, shared in (("w_mx", "w_x"), ("w_mh", "w_h")):
        assert not any(np.allclose(params[own], block) for block in parts(params[shared], 4))
    for draws, bound in (
        (cells.ind_rnn(1000).init(KEY, D)["u"], 1.0),
        (cells.ct_rnn(1000, w_h=zeros).init(KEY, D)["log_tau"], 3.0),
    ):
        assert 0 <= draws.min() < 0.01 * bound
        assert 0.99 * bound < draws.max() < bound


@pytest.mark.parametrize("name", [*LSTMS, *SIMPLE])
def test_bfloat16_params_are_summed_in_float32(name):
    cell = MAKE[name](H, dtype=jnp.bfloat16)
    params, xs = cell.init(KEY, D), jax.random.normal(KEY, (5, 2, D))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))

    def loss(params):
        carry, ys = unroll(cell, params, None, xs, method="fused")
        return ys.sum(), (carry, ys)

    @compiled
    def run(params):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        return jax.grad(loss, has_aux=True)(params), loss(wide)[1]

    (grads, got), expected = run(params)
    assert all(leaf.dtype == jnp.bfloat16 and jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
    close(got, expected, 0.02)


@pytest.mark.parametrize("name", [*(name for name, model in BARE.items() if model.cell.gated), "everything"])
def test_native_takes_every_cell_whose_gates_are_elementwise(x64, name):
    """The laws let `auto` stand in for `native` where it refuses a cell: here is where it may."""
    assert native.supports(*draw(MODELS[name], steps=4)) == (name not in NOT_ELEMENTWISE)


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("cell", [cells.projected_lstm(H, 2), cells.projected_lstm(H, 3), cells.layer_norm_lstm(H)])
def test_native_refuses_gates_that_are_not_elementwise_and_auto_does_without(x64, cell):
    drawn = draw(Model(cell))
    with pytest.raises(ValueError, match=r"no C\+\+ for these gates|recurrent weights .* for 3 units H"):
        unroll(*drawn, method="native")
    close(unroll(*drawn), unroll(*drawn, method="scan"))


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("cell", [cells.ind_rnn(20), cells.multiplicative_lstm(20)])
def test_threads_may_share_the_units_of_no_product_and_of_two(x64, cell):
    """`native` cuts few sequences of many units the other way."""
    check_methods(draw(Model(cell), steps=3), {"native": "native"})


def test_a_masked_noisy_stack_of_them_keeps_the_fused_path(x64):
    model = masked(recurrent_dropout(Model(cells.stack(cells.layer_norm_lstm(H), cells.projected_lstm(H, 3)))))
    assert all(layer.gated for layer in model.cell.layers)
    check_methods(draw(model, steps=4), {"fused": "fused"})


@pytest.mark.parametrize("name", [*LSTMS, *SIMPLE])
def test_a_number_of_units_that_is_none_and_features_that_do_not_fit_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} takes a positive number of units, got 2.0"):
        MAKE[name](2.0)
    cell = MAKE[name](H)
    with pytest.raises(ValueError, match=rf"inputs have shape .*{D + 1}\), expected \[\.\.\., {D}\]"):
        unroll(cell, cell.init(KEY, D), None, jnp.ones((4, 2, D + 1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cells.projected_lstm(H, 0), "projected_lstm takes a positive number of units, got 0"),
        (lambda: cells.janet(H, -0.5), "janet takes a finite beta of at least 0, got -0.5"),
        (lambda: cells.janet(H, float("inf")), "janet takes a finite beta of at least 0, got inf"),
        (lambda: cells.janet(H, float("nan")), "janet takes a finite beta of at least 0, got nan"),
        (lambda: cells.antisymmetric_rnn(H, step=0.0), "antisymmetric_rnn takes a positive step, got 0.0"),
        (lambda: cells.antisymmetric_rnn(H, diffusion=-0.1), "takes a diffusion of at least 0, got -0.1"),
        (lambda: cells.ct_rnn(H, dt=-1.0), "ct_rnn takes a positive dt, got -1.0"),
        (lambda: cells.fast_weights(H, 0), "fast_weights takes a positive number of steps, got 0"),
        (lambda: cells.fast_weights(H, decay=1.1), "needs 0 <= decay <= 1 and rate >= 0, got 1.1 and 0.5"),
        (lambda: cells.fast_weights(H, rate=-0.5), "needs 0 <= decay <= 1 and rate >= 0, got 0.95 and -0.5"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
