"""Continuous time: what a time of 0, a long time and two short times do; what the cells reduce to and refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from seqjax import cells, unroll
from tests.agree import close, compiled
from tests.cell_list import BARE, D, H, Model, draw

KEY = jax.random.key(0)
MAKE = {"ltc": cells.ltc, "cfc": cells.cfc}


def run(cell, params, carry, x, *elapsed):
    """The carries after steps of these lengths, all with the input x [B, D]."""
    times = jnp.stack([jnp.full(x.shape[:-1], t, x.dtype) for t in elapsed])
    xs = jnp.broadcast_to(x, (len(elapsed), *x.shape))
    return compiled(partial(unroll, cell, method="scan"))(params, carry, (xs, times))[1]


def drawn(cell):
    _, params, carry, xs = draw(Model(cell), 1)
    return params, carry, xs[0]


def test_no_time_keeps_the_carry_of_the_ltc_and_little_time_changes_it_little(x64):
    cell = cells.ltc(H)
    params, carry, x = drawn(cell)
    close(run(cell, params, carry, x, 0.0)[0], carry)
    f = jax.nn.sigmoid(x @ params["w_x"] + carry @ params["w_h"] + params["b"][None])
    rate = jnp.exp(-params["log_tau"])[None]
    slope = -(rate + f) * carry + f * params["a"][None]
    close((run(cell, params, carry, x, 1e-7)[0] - carry) / 1e-7, slope, 1e-5)


def test_one_long_step_of_the_ltc_is_two_short_ones(x64):
    """A step of 2 in two Euler steps, and two steps of 1 in one each."""
    params, carry, x = drawn(cells.ltc(H))
    close(run(cells.ltc(H, 2), params, carry, x, 2.0)[-1], run(cells.ltc(H, 1), params, carry, x, 1.0, 1.0)[-1])
    close(run(cells.ltc(H, 6), params, carry, x, 1.5)[-1], run(cells.ltc(H, 2), params, carry, x, 0.5, 0.5, 0.5)[-1])


def test_the_ltc_converges_to_the_solution_of_its_equation(x64):
    """Without w_h it is linear: h goes to f a / (1 / tau + f) as exp(-(1 / tau + f) t). Order 1."""
    params, carry, x = drawn(cells.ltc(H))
    params = params | {"w_h": 0 * params["w_h"]}
    f = jax.nn.sigmoid(x @ params["w_x"] + params["b"][None])
    rate = jnp.exp(-params["log_tau"])[None] + f
    end = f * params["a"][None] / rate
    exact = end + (carry - end) * jnp.exp(-2.0 * rate)
    coarse, fine = (np.abs(run(cells.ltc(H, n), params, carry, x, 2.0)[0] - exact).max() for n in (20, 40))
    assert fine < 0.02
    assert 1.8 < coarse / fine < 2.2


def test_after_a_long_time_the_ltc_is_between_its_targets_and_0(x64):
    cell = cells.ltc(H)
    params, carry, x = drawn(cell)
    ends = run(cell, params, 100.0 * carry, x, *[1e6] * 20)[-1]
    assert (jnp.abs(ends) <= jnp.abs(params["a"])[None]).all()
    assert jnp.isfinite(ends).all()


def test_the_cfc_goes_from_one_head_to_the_other_as_time_passes(x64):
    cell = cells.cfc(H)
    params, carry, x = drawn(cell)
    v = jnp.tanh(x @ params["w_x"] + carry @ params["w_h"] + params["b"][None])
    f, g, k = jnp.split(v @ params["w_o"] + params["b_o"][None], 3, axis=-1)
    g, k = jnp.tanh(g), jnp.tanh(k)
    close(run(cell, params, carry, x, 0.0)[0], (g + k) / 2)
    close(run(cell, params, carry, x, 1e6)[0], jnp.where(f > 0, k, g))


@pytest.mark.parametrize("name", MAKE)
def test_inputs_alone_are_steps_of_length_1_and_the_length_matters(x64, name):
    cell, params, carry, (xs, elapsed) = draw(BARE[name], 3)
    got = unroll(cell, params, carry, xs)
    close(got, unroll(cell, params, carry, (xs, jnp.ones_like(elapsed))))
    assert np.abs(got[1] - unroll(cell, params, carry, (xs, elapsed))[1]).max() > 0.01


@pytest.mark.parametrize("name", MAKE)
def test_gradients_are_those_of_numerical_differences_for_the_times_too(x64, name):
    drawn = draw(BARE[name], 3)
    f = jax.jit(partial(unroll, drawn.cell, method="scan"))
    check_grads(f, drawn[1:], order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_params_start_as_documented_and_bfloat16_is_summed_in_float32(name):
    cell = MAKE[name](100, dtype=jnp.bfloat16)
    params, xs = cell.init(KEY, D), jax.random.normal(KEY, (4, 2, D))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
    assert not params["b"].any()
    if name == "ltc":
        assert 0 <= params["log_tau"].min() < 0.2
        assert 2.8 < params["log_tau"].max() <= 3
        assert 0.7 < params["a"].std() < 1.3
    else:
        assert params["w_o"].shape == (100, 300)
        assert not params["b_o"].any()
    ys = unroll(cell, params, None, (xs, jnp.ones((4, 2))))[1]
    assert ys.dtype == jnp.float32
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    close(ys, unroll(cell, wide, None, xs)[1], 0.02)


@pytest.mark.parametrize("name", MAKE)
def test_what_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} takes a positive number of units, got 0"):
        MAKE[name](0)
    cell = MAKE[name](H)
    params, xs = cell.init(KEY, D), jnp.ones((4, 2, D))
    for elapsed, got in ((jnp.ones((4, 2), jnp.int32), r"int32\[2\]"), (jnp.ones((4, 2, 1)), r"float32\[2, 1\]")):
        message = rf"{name} takes x = \(x, elapsed\), elapsed a floating \[2\] for x \[2, 3\], got {got}"
        with pytest.raises(ValueError, match=message):
            unroll(cell, params, None, (xs, elapsed))
    with pytest.raises(ValueError, match=r"expected \[\.\.\., 3\]"):
        unroll(cell, params, None, xs[..., :2])


@pytest.mark.parametrize("unfolds", [0, 1.0])
def test_a_number_of_unfolds_that_is_none_is_refused(unfolds):
    with pytest.raises(ValueError, match=f"ltc takes a positive number of unfolds, got {unfolds!r}"):
        cells.ltc(H, unfolds)
