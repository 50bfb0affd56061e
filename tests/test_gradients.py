"""Truncation reaches as far as it says and no further; RTRL is BPTT."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import log_softmax

from seqjax import cells, unroll
from seqjax.gradients import bptt, rtrl, truncated_bptt
from tests.agree import close, compiled
from tests.cell_list import BARE, MODELS, D, H, draw
from tests.quick import few

T = 6


def squared_error(ys, targets):
    return jnp.sum(jnp.square(ys - targets), -1)


def whole_squared_error(cell):
    """Also over the space of images."""
    return lambda ys, targets: squared_error(ys, targets).sum(tuple(range(-len(cell.space), 0)))


def cross_entropy(ys, targets):
    return -jnp.take_along_axis(log_softmax(ys), jnp.expand_dims(targets, -1), -1)[..., 0]


def targets_for(drawn):
    """Targets of the shape of the outputs."""
    cell, params, carry, xs = drawn
    shape = jax.eval_shape(lambda params, carry, xs: unroll(cell, params, carry, xs)[1], params, carry, xs).shape
    return jnp.asarray(np.random.default_rng(7).normal(size=shape))


def full_gradient(drawn, targets):
    """By definition: the mean loss of one unrolled sequence."""
    cell, params, carry, xs = drawn

    def objective(params):
        return whole_squared_error(cell)(unroll(cell, params, carry, xs, method="scan")[1], targets).mean()

    return compiled(jax.value_and_grad(objective))(params)


def run_chunks(estimator, drawn, targets, size):
    """Loss and gradient of each chunk, with frozen params, and the last state."""
    _, params, carry, xs = drawn
    update, found = compiled(estimator.update), []

    def part(tree, t):
        return jax.tree.map(lambda leaf: leaf[t : t + size], tree)

    state = estimator.init(params, carry, part(xs, 0))
    for t in range(0, len(targets), size):
        loss, grads, state = update(params, state, part(xs, t), targets[t : t + size])
        found.append((loss, grads))
    return found, state


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) / len(leaves), *trees)


@pytest.mark.parametrize("name", ["peephole_lstm", "stack"])
def test_truncated_at_the_full_length_is_bptt_and_that_is_the_gradient(x64, name):
    drawn = draw(MODELS[name], T)
    targets = targets_for(drawn)
    expected = full_gradient(drawn, targets)
    last = unroll(*drawn)[0]
    ((found,), state) = run_chunks(bptt(drawn.cell, squared_error), drawn, targets, T)
    close(found, expected)
    close(state, last)
    ((found,), state) = run_chunks(truncated_bptt(drawn.cell, squared_error, T, T), drawn, targets, T)
    close(found, expected)
    close(state.carry, last)


@cache
def gradient_of_window(steps, counted):
    """Compiled gradient of the mean loss of the last `counted` of `steps` steps, from a constant carry."""
    cell = BARE["gru"].cell

    def objective(params, carry, xs, targets):
        ys = []
        for x in xs:
            carry, y = cell.step(params, carry, x)
            ys.append(y)
        return squared_error(jnp.stack(ys)[-counted:], targets).mean()

    return compiled(jax.value_and_grad(objective))


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 3), (2, 3), (2, 5), (3, 3), (3, 4), (2, 6), (1, 6)])
def test_truncated_bptt_reaches_k2_steps_back_and_no_further(x64, k1, k2):
    """Against the gradient made by hand, at every chunk: the early ones have less past than k2 - k1."""
    cell, params, _, xs = drawn = draw(BARE["gru"], T)
    targets = targets_for(drawn)
    carries = [drawn.carry]
    for x in xs:
        carries.append(cell.step(params, carries[-1], x)[0])
    found, state = run_chunks(truncated_bptt(cell, squared_error, k1, k2), drawn, targets, k1)
    for i, got in enumerate(found):
        end = (i + 1) * k1
        begin = max(0, end - k2)
        reference = gradient_of_window(end - begin, k1)
        close(got, reference(params, carries[begin], xs[begin:end], targets[end - k1 : end]))
        if 0 < begin < end - k1:
            # One step more or less is another gradient: the comparison above can tell.
            wider = gradient_of_window(end - begin + 1, k1)(
                params, carries[begin - 1], xs[begin - 1 : end], targets[end - k1 : end]
            )
            assert not np.allclose(got[1]["w_h"], wider[1]["w_h"], rtol=1e-3, atol=0)
    close(state.carry, carries[max(0, T + k1 - k2) if k2 > k1 else T])


@pytest.mark.parametrize("name", ["lstm", "stack", "conv_lstm"])
def test_chunks_that_reach_all_the_way_back_average_to_the_full_gradient(x64, name):
    drawn = draw(MODELS[name], T)
    targets = targets_for(drawn)
    found, _ = run_chunks(truncated_bptt(drawn.cell, whole_squared_error(drawn.cell), 2, T), drawn, targets, 2)
    close(mean(found), full_gradient(drawn, targets))


def test_the_window_is_run_with_the_present_params_from_a_carry_of_the_past_ones(x64):
    cell, first, carry, xs = drawn = draw(BARE["gru"], 3)
    targets = targets_for(drawn)
    params = [jax.tree.map(lambda leaf, s=s: s * leaf, first) for s in (1.0, 0.8, 1.3)]
    estimator = truncated_bptt(cell, squared_error, 1, 2)
    state = estimator.init(first, carry, xs[:1])
    for t in range(3):
        loss, grads, state = estimator.update(params[t], state, xs[t : t + 1], targets[t : t + 1])
    before = cell.step(params[1], carry, xs[0])[0]
    close((loss, grads), gradient_of_window(2, 1)(params[2], before, xs[1:], targets[2:]))


def test_truncated_bptt_of_tokens(x64):
    cell, params, carry, xs = draw(MODELS["language_model"], T)
    targets = jnp.roll(xs, -1, 0)
    estimator = truncated_bptt(cell, cross_entropy, 2, T)
    state = estimator.init(params, carry, xs[:2])
    found = []
    for t in range(0, T, 2):
        loss, grads, state = compiled(estimator.update)(params, state, xs[t : t + 2], targets[t : t + 2])
        found.append((loss, grads))
    full = compiled(bptt(cell, cross_entropy).update)(params, carry, xs, targets)[:2]
    close(mean(found), full)


def test_truncated_bptt_with_noise_that_lasts(x64):
    cell, params, carry, xs = draw(MODELS["recurrent_dropout"], T)
    x, noise = xs
    estimator = truncated_bptt(cell, squared_error, 3, T)
    targets = targets_for((cell, params, carry, xs))
    state = estimator.init(params, carry, (x[:3], noise))
    found = []
    for t in (0, 3):
        loss, grads, state = estimator.update(params, state, (x[t : t + 3], noise), targets[t : t + 3])
        found.append((loss, grads))
    close(mean(found), bptt(cell, squared_error).update(params, carry, xs, targets)[:2])


@pytest.mark.parametrize(("k1", "k2"), [(0, 3), (4, 3), (-1, -1)])
def test_windows_that_make_no_sense_are_refused(k1, k2):
    with pytest.raises(ValueError, match=f"needs 1 <= k1 <= k2, got k1 = {k1} and k2 = {k2}"):
        truncated_bptt(cells.gru(H), squared_error, k1, k2)


def test_chunks_of_another_length_are_refused():
    cell, params, carry, xs = drawn = draw(BARE["gru"], T, dtype=jnp.float32)
    estimator = truncated_bptt(cell, squared_error, 2, 4)
    with pytest.raises(ValueError, match="with k1 = 2 takes chunks of 2 steps, got 6"):
        estimator.init(params, carry, xs)
    state = estimator.init(params, carry, xs[:2])
    with pytest.raises(ValueError, match="with k1 = 2 takes chunks of 2 steps, got 3"):
        estimator.update(params, state, xs[:3], targets_for(drawn)[:3])


@pytest.mark.parametrize("name", [*few(BARE), "stack", "head", "head_stack", "from_step", "masked", "reset"])
def test_rtrl_is_bptt_over_chunks(x64, name):
    drawn = draw(MODELS[name], T)
    targets = targets_for(drawn)
    found, state = run_chunks(rtrl(drawn.cell, whole_squared_error(drawn.cell)), drawn, targets, 3)
    close(mean(found), full_gradient(drawn, targets), 1e-9)
    close(state.carry, unroll(*drawn)[0], 1e-9)


def test_rtrl_with_bfloat16_params_keeps_its_influence_in_float32():
    cell = cells.gru(H, dtype=jnp.bfloat16)
    params = cell.init(jax.random.key(0), D)
    carry, xs = cell.initial_carry(params, (2,)), jax.random.normal(jax.random.key(1), (T, 2, D))
    targets = jnp.ones((T, 2, H))
    estimator = rtrl(cell, squared_error)
    state = estimator.init(params, carry, xs)
    assert state.influence.dtype == jnp.float32
    loss, grads, _ = compiled(estimator.update)(params, state, xs, targets)
    expected_loss, expected, _ = bptt(cell, squared_error).update(params, carry, xs, targets)
    close(loss, expected_loss, 1e-6)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(grads))
    close(
        jax.tree.map(lambda g: g.astype(jnp.float32), grads),
        jax.tree.map(lambda g: g.astype(jnp.float32), expected),
        0.03,
    )


def test_bptt_carries_its_state_and_not_its_gradient(x64):
    cell, params, carry, xs = drawn = draw(BARE["lstm"], T)
    targets = targets_for(drawn)
    found, state = run_chunks(bptt(cell, squared_error), drawn, targets, 3)
    middle = unroll(cell, params, carry, xs[:3])[0]
    second = drawn._replace(carry=middle, xs=xs[3:])
    close(found[1], full_gradient(second, targets[3:]))
    close(state, unroll(*drawn)[0])


def test_where_k1_is_k2_the_state_holds_no_past():
    """An array without elements cannot be saved in a checkpoint."""
    cell = cells.gru(H)
    params = cell.init(jax.random.key(0), D)
    estimator = truncated_bptt(cell, lambda ys, targets: jnp.square(ys - targets).sum(-1), 4, 4)
    xs, targets = jnp.ones((4, 2, D)), jnp.ones((4, 2, H))
    state = estimator.init(params, cell.initial_carry(params, (2,)), xs)
    _, _, after = estimator.update(params, state, xs, targets)
    for one in (state, after):
        assert one.past == []
        assert all(leaf.size for leaf in jax.tree.leaves(one))
