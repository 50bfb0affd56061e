"""Estimators with noise: no bias, by the mean of many draws; influence balancing; and the comparison of them all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from test_gradients import full_gradient, run_chunks, squared_error, targets_for

from seqjax import Cell, cells, unroll
from seqjax.gradients import (
    artbp,
    bptt,
    compare,
    persistent_evolution,
    rtrl,
    snap,
    stream_gradient,
    truncated_bptt,
    uoro,
)
from tests.agree import close, compiled
from tests.cell_list import MODELS, H, Model, draw

DRAWS = 10_000
TINY = Model(cells.rnn(2), 1)

NOISY = {
    "uoro": lambda cell, key: (uoro(cell, squared_error, key), 2),
    "artbp": lambda cell, key: (artbp(cell, squared_error, 0.3, key), 4),
    "persistent_evolution": lambda cell, key: (
        persistent_evolution(cell, squared_error, key, pairs=8, sigma=1e-3),
        2,
    ),
}


@pytest.mark.parametrize("name", NOISY)
def test_the_mean_of_many_draws_is_the_full_gradient_and_no_truncation_is(x64, name):
    drawn = draw(TINY, 4)
    targets = targets_for(drawn)

    @jax.jit
    @jax.vmap
    def gradients(key):
        estimator, chunk = NOISY[name](drawn.cell, key)
        return ravel_pytree(stream_gradient(estimator, *drawn[1:], targets, chunk))[0]

    found = np.asarray(gradients(jax.random.split(jax.random.key(0), DRAWS)))
    error = found.std(0, ddof=1) / np.sqrt(DRAWS)

    def off(reference):
        """The largest distance of the mean, in standard errors."""
        return np.abs((found.mean(0) - ravel_pytree(reference)[0]) / error).max()

    full = full_gradient(drawn, targets)[1]
    assert off(full) < 3
    for k in (1, 2):
        assert off(stream_gradient(truncated_bptt(drawn.cell, squared_error, k, k), *drawn[1:], targets, k)) > 6
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(ravel_pytree(full)[0])


@pytest.mark.parametrize("name", ["masked", "from_step"])
def test_artbp_at_rate_0_is_bptt(x64, name):
    drawn = draw(MODELS[name], 4)
    targets = targets_for(drawn)
    ((found,), state) = run_chunks(artbp(drawn.cell, squared_error, 0.0, jax.random.key(0)), drawn, targets, 4)
    close(found, full_gradient(drawn, targets))
    close(state.carry, unroll(*drawn)[0])


@pytest.mark.parametrize("name", NOISY)
def test_chunks_with_carried_state_see_the_stream(x64, name):
    """The loss and the carry are those of the bare cell, whatever the gradient does."""
    drawn = draw(MODELS["stack"], 4)
    targets = targets_for(drawn)
    if name == "persistent_evolution":
        estimator = persistent_evolution(drawn.cell, squared_error, jax.random.key(0), pairs=1, sigma=1e-9)
    else:
        estimator, _ = NOISY[name](drawn.cell, jax.random.key(0))
    found, state = run_chunks(estimator, drawn, targets, 2)
    close((found[0][0] + found[1][0]) / 2, full_gradient(drawn, targets)[0], 1e-6)
    if name == "persistent_evolution":
        assert state.noise.std() > 1e-9  # of two chunks: the square root of 2, in the mean
        close(jax.tree.map(lambda leaf: leaf[0, 0], state.carries), unroll(*drawn)[0], 1e-6)
    else:
        close(state.carry, unroll(*drawn)[0])


def test_sequences_have_signs_of_their_own():
    drawn = draw(MODELS["gru"], 2, batch=(1,), dtype=jnp.float32)
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], -2), (drawn.carry, drawn.xs))
    estimator = uoro(drawn.cell, squared_error, jax.random.key(0))
    state = estimator.init(drawn.params, *twice)
    _, _, state = compiled(estimator.update)(drawn.params, state, twice[1], jnp.ones((2, 2, H)))
    assert not np.allclose(state.influence.h[0], state.influence.h[1])


def test_rates_and_particles_that_make_no_sense_are_refused():
    key = jax.random.key(0)
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"a rate in \[0, 1\), got {rate}"):
            artbp(cells.rnn(H), squared_error, rate, key)
    for pairs, sigma in ((0, 0.1), (1, 0.0)):
        with pytest.raises(ValueError, match=f"got {pairs} and {sigma}"):
            persistent_evolution(cells.rnn(H), squared_error, key, pairs=pairs, sigma=sigma)


def balancing(positive: int = 10, units: int = 23) -> Cell:
    """Influence balancing (Tallec & Ollivier 2017): near units push one way, the far ones together the other way."""
    mix = 0.5 * jnp.eye(units) + 0.5 * jnp.eye(units, k=-1)  # h @ mix: unit i hears itself and unit i + 1
    signs = jnp.where(jnp.arange(units) < positive, 1.0, -1.0)
    return Cell(
        init=lambda key, in_features: {"theta": jnp.full((), 0.5)},
        initial_carry=lambda params, batch: jnp.zeros((*batch, units)),
        project=lambda params, x: x,
        transition=lambda params, h, z: h @ mix + jnp.broadcast_to(params["theta"] * signs, h.shape),
        readout=lambda params, h, z: h[..., :1],
    )


def balance(make, rate, chunk=1, iterations=3000):
    """theta after training; it should be -1/6, where the first unit rests at 1."""
    cell = balancing()
    xs, targets = jnp.zeros((chunk, 1, 1)), jnp.ones((chunk, 1, 1))
    params = cell.init(jax.random.key(0), 1)
    estimator = make(cell, lambda ys, targets: 0.5 * squared_error(ys, targets))

    def body(state, _):
        params, state = state
        _, grads, state = estimator.update(params, state, xs, targets)
        return (jax.tree.map(lambda w, g: w - rate * g, params, grads), state), None

    start = params, estimator.init(params, cell.initial_carry(params, (1,)), xs)
    (params, _), _ = jax.lax.scan(body, start, None, length=iterations)
    return params["theta"]


def test_influence_balancing():
    """The published outcome: a short truncation goes the wrong way; RTRL and UORO converge."""
    start, wanted = 0.5, -1 / 6

    @jax.jit
    def run():
        keys = jax.random.split(jax.random.key(0), 8)
        return {
            "1": balance(lambda cell, loss: truncated_bptt(cell, loss, 1, 1, method="scan"), 1e-4),
            "10": balance(lambda cell, loss: truncated_bptt(cell, loss, 10, 10, method="scan"), 1e-4, chunk=10),
            "100": balance(lambda cell, loss: truncated_bptt(cell, loss, 1, 100, method="scan"), 1e-4, iterations=1000),
            "rtrl": balance(rtrl, 1e-4),
            "uoro": jax.vmap(lambda key: balance(lambda cell, loss: uoro(cell, loss, key), 1e-5))(keys),
            "uoro, longer": jax.vmap(
                lambda key: balance(lambda cell, loss: uoro(cell, loss, key), 1e-5, iterations=20_000)
            )(keys),
        }

    found = jax.tree.map(np.asarray, run())
    assert found["1"] > 2 * start
    assert not abs(found["10"]) < 100
    assert abs(found["100"] - wanted) < 0.1
    assert abs(found["rtrl"] - wanted) < 1e-3
    assert (found["uoro"] < start - 0.1).all()
    assert (abs(found["uoro, longer"] - wanted) < 0.1).all()


def test_compare(x64):
    drawn = draw(TINY, 4)
    cell, targets = drawn.cell, targets_for(drawn)
    rate = 0.25
    estimators = {
        "bptt": bptt(cell, squared_error),
        "rtrl": rtrl(cell, squared_error),
        "snap": snap(cell, squared_error, 2),
        "truncated": truncated_bptt(cell, squared_error, 2, 2),
        "artbp": lambda key: artbp(cell, squared_error, rate, key),
        "uoro": lambda key: uoro(cell, squared_error, key),
    }
    whole = compare(
        estimators | {"truncated": bptt(cell, squared_error)},
        cell,
        squared_error,
        *drawn[1:],
        targets,
        jax.random.key(0),
        draws=20,
    )
    parts = compare(
        {"truncated": estimators["truncated"]}, cell, squared_error, *drawn[1:], targets, jax.random.key(0), chunk=2
    )
    for name in ("bptt", "rtrl", "snap"):
        np.testing.assert_allclose(whole[name][:4], (1, 1, 0, 0), atol=1e-9)
    for name in ("artbp", "uoro"):
        # Over n draws without bias, bias^2 is variance / n in the mean.
        assert whole[name].variance > 0
        assert 0 < whole[name].bias < 4 * (whole[name].variance / 20) ** 0.5
        assert whole[name].cosine < 1
    expected = ravel_pytree(full_gradient(drawn, targets)[1])[0]
    got = ravel_pytree(stream_gradient(estimators["truncated"], *drawn[1:], targets, 2))[0]
    norm = np.linalg.norm
    want = (
        got @ expected / norm(got) / norm(expected),
        norm(got) / norm(expected),
        norm(got - expected) / norm(expected),
        0,
    )
    np.testing.assert_allclose(parts["truncated"][:4], want, rtol=1e-9)
    assert all(one.seconds > 0 and one.temporary_bytes >= 0 for one in whole.values())


def test_compare_says_what_it_cannot_do():
    drawn = draw(TINY, 4, dtype=jnp.float32)
    some = {"bptt": bptt(drawn.cell, squared_error)}
    data = drawn.cell, squared_error, *drawn[1:], jnp.ones((4, 2, 2)), jax.random.key(0)
    with pytest.raises(ValueError, match="must divide the 4 steps of the stream, got chunks of 3"):
        compare(some, *data, chunk=3)
    with pytest.raises(ValueError, match="compare needs draws >= 1, got 0"):
        compare(some, *data, draws=0)
