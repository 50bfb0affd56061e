"""The bias of a truncation, estimated from the decay of the gradient, and the truncation that is chosen by it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gradients import cross_entropy, run_chunks, squared_error, targets_for

from seqjax import Cell, cells
from seqjax.diagnostics import Decay, decay_rate, gradient_against_lag, gradient_decay, relative_bias
from seqjax.gradients import adaptive_truncation, bptt, stream_gradient, truncated_bptt
from tests.agree import close, compiled
from tests.cell_list import BARE, MODELS, D, H, draw

T = 24


def linear() -> Cell:
    """h' = a h + x, one number."""
    return Cell(
        init=lambda key, in_features: jnp.ones(()),
        initial_carry=lambda params, batch: jnp.zeros((*batch, 1), params.dtype),
        project=lambda params, x: x,
        transition=lambda params, carry, z: jnp.broadcast_to(params, carry.shape) * carry + z,
        readout=lambda params, carry, z: carry,
    )


def product(ys, targets):
    """A loss whose derivative by the output is the target."""
    return (ys * targets)[..., 0]


def stationary(a, steps=T, batch=1):
    """Inputs that keep the carry at 1: then every lag k adds `a^k` to the gradient for a."""
    return jnp.asarray(a), jnp.ones((batch, 1)), jnp.full((steps, batch, 1), 1 - a), jnp.ones((steps, batch, 1))


@pytest.mark.parametrize("a", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("tau", [0, 3])
def test_the_bias_of_a_linear_recurrence_in_closed_form(x64, a, tau):
    params, carry, xs, targets = stationary(a)
    decay = gradient_decay(linear(), params, carry, xs, targets[-1], product)
    k = np.arange(T)
    np.testing.assert_allclose(decay.norms, a**k, rtol=1e-12)
    np.testing.assert_allclose(decay.sums, (1 - a ** (k + 1)) / (1 - a), rtol=1e-12)
    np.testing.assert_allclose(decay_rate(decay.norms, tau), a, rtol=1e-9)
    bias = np.asarray(relative_bias(decay, tau))
    np.testing.assert_allclose(bias, a ** (k + 1) / (1 - 2 * a**T), rtol=1e-8)
    # And that bounds what a truncation loses of the gradient of an endless past, a^K of it.
    whole = 1 / (1 - a)
    for steps in (1, 4, 9):
        last_alone = jnp.zeros((steps, 1, 1)).at[-1].set(steps)
        got = bptt(linear(), product).update(params, carry, xs[:steps], last_alone)[1]
        off = (whole - got) / whole
        np.testing.assert_allclose(off, a**steps, atol=1e-14)
        assert off <= bias[steps - 1] + 1e-14


def test_a_head_that_does_not_decay_is_summed_as_it_is(x64):
    norms = np.array([1.0, 3.0, 2.0, *(2 * 0.5 ** np.arange(1, 10))])
    sums = np.cumsum(norms)
    # Lags 2, 3, ... go on for ever: 4 in all.
    tails = np.array([3 + 4, 4, *(4 * 0.5 ** np.arange(1, 11))])
    bias = relative_bias(Decay(jnp.asarray(norms), jnp.asarray(sums)), 2)
    np.testing.assert_allclose(bias, tails / (8 - 2 * tails[-1]), rtol=1e-9)


@pytest.mark.parametrize(
    ("norms", "rate", "bias"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1.0, np.inf),
        ([1.0, 2.0, 4.0, 8.0], 2.0, np.inf),
        ([1.0, 0.5, 0.0, 0.0], 0.5, 1 / (1.5 - 0.125)),  # cut off: zeros are no evidence of a decay
        ([1.0, 0.0, 0.0, 0.0], 0.0, 0.0),
        ([0.0, 0.0, 0.0, 0.0], 0.0, np.inf),
    ],
)
def test_decays_at_the_edge(x64, norms, rate, bias):
    norms = jnp.asarray(norms)
    np.testing.assert_allclose(decay_rate(norms, 0), rate)
    np.testing.assert_allclose(relative_bias(Decay(norms, jnp.cumsum(norms)), 0)[0], bias)


def test_norms_are_means_over_the_batch_and_sums_may_cancel(x64):
    cell, params, carry, xs = draw(BARE["lstm"], 6)
    targets = jnp.ones((2, H))
    got = gradient_decay(cell, params, carry, xs, targets, squared_error).norms

    def alone(b):
        row = jax.tree.map(lambda leaf: leaf[b : b + 1], (carry, targets))
        return gradient_against_lag(
            cell, params, row[0], xs[:, b : b + 1], lambda ys: squared_error(ys[-1], row[1]).sum()
        )

    np.testing.assert_allclose(got, np.flip((alone(0) + alone(1)) / 2), rtol=1e-12)
    params, carry, xs, targets = stationary(0.5, batch=2)
    decay = gradient_decay(linear(), params, carry, xs, targets[-1].at[1].set(-1), product)
    np.testing.assert_allclose(decay.norms, 0.5 ** np.arange(T))
    np.testing.assert_allclose(decay.sums, 0, atol=1e-12)


def reaches(a, delta, k1, k2s, steps=48, **flags):
    """k2 after each update of a stream, with frozen params."""
    estimator = adaptive_truncation(linear(), product, k1, k2s, delta, 0, **flags)
    params, carry, xs, targets = stationary(a, steps)

    def body(state, chunk):
        _, _, state = estimator.update(params, state, *chunk)
        return state, state.k2

    chunks = [leaf.reshape(-1, k1, 1, 1) for leaf in (xs, targets)]
    return list(np.asarray(jax.jit(lambda: jax.lax.scan(body, estimator.init(params, carry, xs[:k1]), chunks)[1])()))


def test_the_reach_grows_as_the_decay_slows(x64):
    k2s, delta = (2, 4, 8, 16), 0.1
    found = {}
    for a in (0.05, 0.2, 0.6, 0.75, 0.95):
        bias = a ** (np.array(k2s) - 2 + 1) / (1 - 2 * a**16)
        wanted = next((k for k, b in zip(k2s, bias, strict=True) if 0 < b <= delta), 16)
        got = reaches(a, delta, 2, k2s)
        assert got == [16] * 7 + [wanted] * 17
        found[a] = wanted
    assert list(found.values()) == [2, 4, 8, 16, 16]


def test_it_measures_every_so_many_updates_and_averages(x64):
    """A decay that quickens at half of the stream is seen at the next measurement, and later in a running mean."""
    k2s, steps = (1, 4, 8), 40

    def run(**flags):
        estimator = adaptive_truncation(linear(), product, 1, k2s, 0.3, 0, **flags)
        _, carry, xs, targets = stationary(0.6, steps)
        state, seen = estimator.init(jnp.asarray(0.6), carry, xs[:1]), []
        update = compiled(estimator.update)
        for t in range(steps):
            state = update(jnp.asarray(0.6 if t < 20 else 0.1), state, xs[t : t + 1], targets[t : t + 1])[2]
            seen.append(int(state.k2))
        return seen, state.decay

    assert run()[0] == [8] * 7 + [4] * 13 + [1] * 20
    # Measured at updates 7, 14, 21, ..., counted from 0.
    assert run(every=7)[0] == [8] * 7 + [4] * 14 + [1] * 19
    seen, decay = run(average=0.9)
    assert seen[:20] == [8] * 7 + [4] * 13
    assert seen[20:30] == [4] * 10
    share = 0.9**20
    np.testing.assert_allclose(decay.norms, share * 0.6 ** np.arange(8) + (1 - share) * 0.1 ** np.arange(8))


@pytest.mark.parametrize(("delta", "wanted"), [(1e-300, [8, 8, 8, 8]), (0.7, [4, 4, 2, 2]), (1e9, [2, 2, 2, 2])])
def test_the_gradient_is_that_of_truncation_at_the_chosen_reach(x64, delta, wanted):
    """Chunk by chunk, at what the update before chose; at the longest for a bias of almost nothing."""
    k1, k2s, steps = 2, (2, 4, 8), 16
    drawn = draw(BARE["gru"], steps)
    targets = targets_for(drawn)
    expected = {k2: run_chunks(truncated_bptt(drawn.cell, squared_error, k1, k2), drawn, targets, k1)[0] for k2 in k2s}
    estimator = adaptive_truncation(drawn.cell, squared_error, k1, k2s, delta, 1)
    state, used = estimator.init(drawn.params, drawn.carry, drawn.xs[:k1]), []
    update = compiled(estimator.update)
    for t in range(0, steps, k1):
        used.append(int(state.k2))
        value, grads, state = update(drawn.params, state, drawn.xs[t : t + k1], targets[t : t + k1])
        close((value, grads), expected[used[-1]][t // k1])
    assert used == [8] * 4 + wanted


@pytest.mark.parametrize("delta", [1e-300, 1e9])
def test_params_that_change_meet_the_carries_of_truncated_bptt(x64, delta):
    """While the reach stays the longest, and where it has become the shortest."""
    k2s, steps = (1, 4), 10
    cell, first, carry, xs = drawn = draw(BARE["gru"], steps)
    targets = targets_for(drawn)
    estimators: dict = {k2: truncated_bptt(cell, squared_error, 1, k2) for k2 in k2s}
    estimators["adaptive"] = adaptive_truncation(cell, squared_error, 1, k2s, delta, 0)
    states = {name: one.init(first, carry, xs[:1]) for name, one in estimators.items()}
    updates = {name: compiled(one.update) for name, one in estimators.items()}
    for t in range(steps):
        params = jax.tree.map(lambda leaf, t=t: (1 + 0.1 * t) * leaf, first)
        k2, found = int(states["adaptive"].k2), {}
        assert k2 == (4 if delta < 1 or t < 4 else 1)
        for name, update in updates.items():
            value, grads, states[name] = update(params, states[name], xs[t : t + 1], targets[t : t + 1])
            found[name] = value, grads
        close(found["adaptive"], found[k2])


@pytest.mark.parametrize("name", ["language_model", "recurrent_dropout"])
def test_tokens_and_noise_that_lasts(x64, name):
    cell, params, carry, xs = draw(MODELS[name], 6)
    loss = cross_entropy if name == "language_model" else squared_error
    targets = jnp.roll(xs, -1, 0) if name == "language_model" else targets_for((cell, params, carry, xs))
    estimator = adaptive_truncation(cell, loss, 2, (2, 6), 1e-300, 1)

    @compiled
    def gradients(params):
        full = bptt(cell, loss).update(params, carry, xs, targets)[1]
        return stream_gradient(estimator, params, carry, xs, targets, 2), full

    close(*gradients(params))


@pytest.mark.parametrize(
    ("k1", "k2s", "flags", "message"),
    [
        (0, (2, 4), {}, "k1 >= 1 and k2s that are two or more increasing multiples of it, got k1 = 0 and k2s = (2, 4)"),
        (2, (2,), {}, "increasing multiples of it, got k1 = 2 and k2s = (2,)"),
        (2, (2, 5), {}, "increasing multiples of it, got k1 = 2 and k2s = (2, 5)"),
        (2, (4, 2), {}, "increasing multiples of it, got k1 = 2 and k2s = (4, 2)"),
        (2, (0, 2), {}, "increasing multiples of it, got k1 = 2 and k2s = (0, 2)"),
        (2, (2, 4), {"delta": 0.0}, "a relative bias delta > 0, got 0.0"),
        (2, (2, 4), {"tau": 3}, "a lag tau of 0 to 2, got 3"),
        (2, (2, 4), {"tau": -1}, "a lag tau of 0 to 2, got -1"),
        (2, (2, 4), {"every": 0}, "every >= 1 and average in [0, 1), got 0 and 0.0"),
        (2, (2, 4), {"average": 1.0}, "every >= 1 and average in [0, 1), got 1 and 1.0"),
    ],
)
def test_reaches_that_make_no_sense_are_refused(k1, k2s, flags, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        adaptive_truncation(cells.gru(H), squared_error, k1, k2s, **{"delta": 0.1, "tau": 0, **flags})


def test_what_else_is_refused():
    cell = cells.gru(H)
    estimator = adaptive_truncation(cell, squared_error, 2, (2, 4), 0.1, 0)
    params = cell.init(jax.random.key(0), D)
    xs, targets = jnp.ones((3, 1, D)), jnp.ones((3, 1, H))
    with pytest.raises(ValueError, match="with k1 = 2 takes chunks of 2 steps, got 3"):
        estimator.init(params, cell.initial_carry(params, (1,)), xs)
    state = estimator.init(params, cell.initial_carry(params, (1,)), xs[:2])
    with pytest.raises(ValueError, match="with k1 = 2 takes chunks of 2 steps, got 3"):
        estimator.update(params, state, xs, targets)
    with pytest.raises(ValueError, match="needs 0 <= tau <= T - 2 = 2, got tau = 3"):
        decay_rate(jnp.ones(4), 3)
    with pytest.raises(ValueError, match="needs 0 <= tau <= T - 2 = 2, got tau = -1"):
        relative_bias(Decay(jnp.ones(4), jnp.ones(4)), -1)
