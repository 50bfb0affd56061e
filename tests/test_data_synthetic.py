"""Synthetic tasks: what is wanted follows from what is shown, and chance is what the docstrings say."""

import functools

import jax
import numpy as np
import pytest

from seqjax.data import synthetic


def test_adding_marks_one_value_in_each_half_and_wants_their_sum():
    for length in (2, 7, 20):
        xs, target = synthetic.adding(jax.random.key(0), 500, length)
        assert xs.shape == (length, 500, 2)
        assert xs.dtype == target.dtype == np.float32
        values, markers = np.asarray(xs[..., 0]), np.asarray(xs[..., 1])
        assert set(np.unique(markers)) <= {0.0, 1.0}
        np.testing.assert_array_equal(markers[: length // 2].sum(0), 1)
        np.testing.assert_array_equal(markers[length // 2 :].sum(0), 1)
        assert np.all(markers.sum(1) > 0)  # every step is marked in some sequence
        np.testing.assert_allclose((values * markers).sum(0), target, rtol=1e-6)


def test_adding_baseline_is_one_sixth():
    target = np.asarray(synthetic.adding(jax.random.key(1), 40_000, 4)[1])
    assert abs(np.mean((target - 1) ** 2) - 1 / 6) < 0.005


def test_copy_memory_wants_the_symbols_back_after_the_query():
    lag, count, symbols = 6, 3, 5
    tokens, targets, weights = map(np.asarray, synthetic.copy_memory(jax.random.key(0), 400, lag, symbols, count))
    assert tokens.shape == targets.shape == weights.shape == (lag + 2 * count, 400)
    assert (tokens.dtype, targets.dtype, weights.dtype) == (np.int32, np.int32, np.float32)
    assert set(np.unique(tokens[:count])) == set(range(symbols))
    np.testing.assert_array_equal(targets[-count:], tokens[:count])
    np.testing.assert_array_equal(targets[:-count], symbols)
    np.testing.assert_array_equal(tokens[count : count + lag - 1], symbols)
    np.testing.assert_array_equal(tokens[count + lag - 1], symbols + 1)
    np.testing.assert_array_equal(tokens[count + lag :], symbols)
    # the best answer without memory: blanks for certain, then uniform over the symbols
    nats = np.where(np.arange(len(targets))[:, None] < lag + count, 0.0, np.log(symbols))
    np.testing.assert_allclose((weights * nats).mean(), count * np.log(symbols) / (lag + 2 * count))


def test_copy_memory_default_is_the_published_size():
    tokens, _, _ = synthetic.copy_memory(jax.random.key(0), 2, 100)
    assert tokens.shape == (120, 2)
    assert tokens.max() == 9


@pytest.mark.parametrize("distractors", [0, 3])
def test_delayed_recall_asks_for_the_first_symbol_at_the_lag(distractors):
    lag, symbols = 5, 4
    tokens, targets, weights = map(
        np.asarray, synthetic.delayed_recall(jax.random.key(0), 2000, lag, symbols, distractors)
    )
    assert tokens.shape == targets.shape == weights.shape == (lag + 1, 2000)
    assert (tokens.dtype, targets.dtype, weights.dtype) == (np.int32, np.int32, np.float32)
    np.testing.assert_array_equal(targets[-1], tokens[0])
    np.testing.assert_array_equal(tokens[-1], symbols + 1)
    np.testing.assert_array_equal(weights[:-1], 0)
    np.testing.assert_array_equal(weights[-1], 1)
    filler = {symbols} if distractors == 0 else set(range(symbols + 2, symbols + 2 + distractors))
    assert set(np.unique(tokens[1:-1])) == filler
    shares = np.bincount(targets[-1], minlength=symbols) / 2000
    np.testing.assert_allclose(shares, 1 / symbols, atol=0.05)  # chance is 1 / symbols


def test_delayed_recall_of_lag_one_has_nothing_between_symbol_and_query():
    tokens, targets, _ = synthetic.delayed_recall(jax.random.key(0), 3, 1)
    assert tokens.shape == (2, 3)
    np.testing.assert_array_equal(targets[1], tokens[0])


@pytest.mark.parametrize(
    "draw",
    [
        functools.partial(synthetic.adding, batch=4, length=9),
        functools.partial(synthetic.copy_memory, batch=4, lag=5),
        functools.partial(synthetic.delayed_recall, batch=4, lag=5, distractors=2),
    ],
)
def test_tasks_are_pure_functions_of_the_key(draw):
    first, again = draw(jax.random.key(0)), jax.jit(draw)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first[0], draw(jax.random.key(1))[0])
    with jax.enable_x64(True):
        jax.tree.map(np.testing.assert_array_equal, first, wide := draw(jax.random.key(0)))
    assert [a.dtype for a in wide] == [a.dtype for a in first]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda key: synthetic.adding(key, 4, 1), "length must be at least 2, got 1"),
        (lambda key: synthetic.adding(key, 0, 4), "batch must be at least 1, got 0"),
        (lambda key: synthetic.copy_memory(key, 4, 0), "lag must be at least 1, got 0"),
        (lambda key: synthetic.copy_memory(key, 4, 5, count=0), "count must be at least 1, got 0"),
        (lambda key: synthetic.delayed_recall(key, 4, 5, symbols=1), "symbols must be at least 2, got 1"),
        (
            lambda key: synthetic.delayed_recall(key, 4, 5, distractors=-1),
            "distractors must be at least 0, got -1",
        ),
    ],
)
def test_sizes_that_make_no_task_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw(jax.random.key(0))
