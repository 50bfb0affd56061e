"""The network with an orthogonal matrix: it is orthogonal, and stays so."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.test_util import check_grads

from seqjax import cells, initializers, unroll
from seqjax.cells.orthogonal import _exponential
from tests.agree import close, compiled, equations
from tests.cell_list import BARE, D, H, draw

KEY = jax.random.key(0)


def matrix(cell, params):
    (w,) = cell.gated.weights(params)
    return np.asarray(w, np.float64)


def skew(hidden, scale, seed=0):
    a = np.triu(scale * np.random.default_rng(seed).normal(size=(hidden, hidden)), 1)
    return a - a.T


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 40.0])
def test_the_exponential_is_that_of_scipy_and_orthogonal(x64, scale):
    a = skew(20, scale)
    for dtype, eps in ((jnp.float32, 6e-8), (jnp.float64, 1.1e-16)):
        w = np.asarray(compiled(_exponential)(jnp.asarray(a, dtype)), np.float64)
        expected = scipy.linalg.expm(np.asarray(a.astype(dtype), np.float64))
        np.testing.assert_allclose(w, expected, rtol=0, atol=10 * eps * max(np.abs(a).sum(0).max(), 1))
        np.testing.assert_allclose(w.T @ w, np.eye(20), rtol=0, atol=20 * eps)


def test_the_exponential_of_a_matrix_beyond_all_bounds_is_no_number():
    assert jnp.isnan(compiled(_exponential)(jnp.asarray(skew(3, 1e6), jnp.float32))).all()


def test_its_matrix_is_orthogonal_after_training():
    hidden = 24
    cell = cells.exp_rnn(hidden)
    params = start = cell.init(KEY, D)
    xs = jax.random.normal(jax.random.key(1), (10, 8, D))
    targets = jnp.roll(xs, 3, 0)
    optimizer = optax.adam(0.05)

    @jax.jit
    def update(_, state):
        params, moments = state

        def loss(params):
            ys = unroll(cell, params, None, xs, method="fused")[1]
            return jnp.square(ys[3:, :, :D] - targets[3:]).mean()

        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            changes, moments = optimizer.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, changes), moments

    params, _ = jax.lax.fori_loop(0, 50, update, (params, optimizer.init(params)))
    assert np.abs(matrix(cell, params) - matrix(cell, start)).max() > 0.2
    for w in (matrix(cell, start), matrix(cell, params)):
        np.testing.assert_allclose(w.T @ w, np.eye(hidden), rtol=0, atol=1e-6)
        assert np.linalg.det(w) == pytest.approx(1, rel=1e-5)


def test_without_inputs_and_thresholds_it_keeps_the_norm_of_its_carry():
    hidden = 16
    cell = cells.exp_rnn(hidden)
    params = cell.init(KEY, D) | {"w_h": jnp.asarray(skew(hidden, 1.0), jnp.float32)}
    start = jax.random.normal(KEY, (3, hidden))
    _, hs = compiled(partial(unroll, cell))(params, start, jnp.zeros((1000, 3, D)))
    np.testing.assert_allclose(np.linalg.norm(hs, axis=-1) / np.linalg.norm(start, axis=-1), 1, rtol=1e-4)
    assert np.abs(hs[-1] - start).max() > 0.5


def test_it_starts_as_rotations_of_pairs_of_units():
    cell = cells.exp_rnn(5, w_h=initializers.rotations(0.1, 0.2))
    params = cell.init(KEY, D)
    w, angles = matrix(cell, params), np.asarray(params["w_h"])
    for i in (0, 2):
        turn = np.exp(1j * angles[i, i + 1])
        np.testing.assert_allclose(
            w[i : i + 2, i : i + 2], [[turn.real, turn.imag], [-turn.imag, turn.real]], atol=1e-6
        )
    assert w[4, 4] == pytest.approx(1)
    assert not params["b"].any()


def test_modrelu_is_silent_below_its_threshold():
    cell = cells.exp_rnn(3)
    params = {"w_x": jnp.eye(3), "w_h": jnp.zeros((3, 3)), "b": jnp.full((3,), -1.0)}
    h, _ = cell.step(params, jnp.zeros(3), jnp.array([0.5, 1.5, -3.0]))
    np.testing.assert_allclose(h, [0, 0.5, -2])


@pytest.mark.parametrize("method", ["scan", "fused"])
def test_gradients_are_those_of_numerical_differences(x64, method):
    cell, params, carry, xs = draw(BARE["exp_rnn"], steps=4)
    params = params | {"w_h": 3 * params["w_h"]}

    @jax.jit
    def run(params, carry, xs):
        return unroll(cell, params, carry, xs, method=method)

    check_grads(run, (params, carry, xs), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_no_loop_over_time_makes_the_matrix_anew():
    """The exponential is one loop of its own, of 16 rounds: it stands beside the loop over 7 steps, not within."""
    cell, params, carry, xs = draw(BARE["exp_rnn"], dtype=jnp.float32)

    def loops(program):
        return [e for e in equations(program) if e.primitive.name == "scan"]

    for method in ("scan", "rematerialized", "fused"):

        def loss(params, method=method):
            return unroll(cell, params, carry, xs, method=method)[1].sum()

        for run in (loss, jax.grad(loss)):
            found = loops(jax.make_jaxpr(run)(params).jaxpr)
            assert any(e.params["length"] == 16 for e in found)
            over_time = [e for e in found if e.params["length"] == len(xs)]
            assert over_time
            assert not any(loops(e.params["jaxpr"].jaxpr) for e in over_time), method


def test_lanes_of_a_stack_have_a_matrix_each():
    cell = cells.stack(cells.exp_rnn(H), cells.exp_rnn(3))

    def run(key):
        return unroll(cell, cell.init(key, D), None, jnp.ones((4, 2, D)), method="scan")

    keys = jax.random.split(KEY, 3)
    close(jax.tree.map(lambda leaf: leaf[1], compiled(jax.vmap(run))(keys)), compiled(run)(keys[1]), 1e-6)


def test_a_narrow_matrix_is_multiplied_in_float32():
    cell = cells.exp_rnn(8, dtype=jnp.bfloat16)
    params = cell.init(KEY, D)
    (w,) = cell.gated.weights(params)
    assert w.dtype == jnp.float32
    np.testing.assert_allclose(w.T @ w, np.eye(8), atol=1e-6)
