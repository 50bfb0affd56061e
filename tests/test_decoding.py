"""Decoding: sampling against its probabilities, beam search against all sequences there are."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import cells, decoding, wrappers

V = 4
TABLE = jax.random.normal(jax.random.key(1), (V, V)) * 1.5
KEYS = jax.random.split(jax.random.key(0), 4000)


def markov(carry, token):
    """Logits of a table, and a count of the steps, to see whether carries follow their beams."""
    return carry + 1, TABLE[token]


def shares(**options):
    logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
    drawn = jax.vmap(lambda key: decoding.choose(key, logits, **options))(KEYS)
    assert drawn.dtype == jnp.int32
    return np.bincount(np.asarray(drawn), minlength=4) / len(KEYS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, np.array([1, 16, 4, 9]) / 30),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 1, "temperature": 3.0}, [0, 1, 0, 0]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 3, "top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        # Sharper first, then the nucleus: 16/30 reaches a half.
        ({"temperature": 0.5, "top_p": 0.5}, [0, 1, 0, 0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(options, expected):
    found = shares(**options)
    assert found[np.array(expected) == 0].sum() == 0
    np.testing.assert_allclose(found, expected, atol=0.035)


def test_equal_logits_leave_exactly_k():
    drawn = jax.vmap(lambda key: decoding.choose(key, jnp.zeros(6), top_k=2))(KEYS[:200])
    assert len(set(drawn.tolist())) == 2


def test_bad_options_are_refused():
    key, logits = KEYS[0], jnp.zeros(3)
    with pytest.raises(ValueError, match=r"temperature must not be negative, got -1"):
        decoding.choose(key, logits, temperature=-1)
    with pytest.raises(ValueError, match=r"top_k must be between 1 and the 3 tokens, got 4"):
        decoding.choose(key, logits, top_k=4)
    with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\], got 0"):
        decoding.choose(key, logits, top_p=0)
    with pytest.raises(ValueError, match="width and length must be at least 1, got 0 and 3"):
        decoding.beam(markov, jnp.zeros(1), jnp.zeros(1, jnp.int32), 3, width=0)


def test_a_sample_is_what_a_loop_of_steps_draws():
    cell = wrappers.with_head(wrappers.with_embedding(cells.gru(3), V, 2), V)
    params = cell.init(jax.random.key(2), 0)
    key, first = jax.random.key(3), jnp.array([1, 2], jnp.int32)
    start = cell.initial_carry(params, (2,))
    carry, tokens = jax.jit(
        lambda params: decoding.sample(lambda c, x: cell.step(params, c, x), start, first, 6, key, temperature=0.7)
    )(params)
    expected, token = start, first
    for t in range(6):
        expected, logits = cell.step(params, expected, token)
        token = decoding.choose(jax.random.fold_in(key, t), logits, temperature=0.7)
        np.testing.assert_array_equal(tokens[t], token)
    np.testing.assert_allclose(jax.tree.leaves(carry)[0], jax.tree.leaves(expected)[0], rtol=1e-5)


def test_greedy_stops():
    to = jnp.array([1, 2, 3, 0])
    _, tokens = decoding.greedy(lambda c, x: (c, 9.0 * jax.nn.one_hot(to[x], V)), (), jnp.array([0, 2]), 4, stop=2)
    assert tokens.T.tolist() == [[1, 2, 2, 2], [3, 0, 1, 2]]


def everything(first, length, stop, alpha):
    """All sequences that end with `stop` within the length, and all that do not, with their scores: by brute force."""
    log_p = np.asarray(jax.nn.log_softmax(TABLE, -1), np.float64)
    ended, cut = {}, {}
    for count in range(1, length + 1):
        for tokens in itertools.product(range(V), repeat=count):
            if stop in tokens[:-1] or (tokens[-1] != stop and count < length):
                continue
            total = sum(log_p[a, b] for a, b in itertools.pairwise((first, *tokens)))
            score = total / ((5 + count) / 6) ** alpha
            (ended if tokens[-1] == stop else cut)[tokens + (stop,) * (length - count)] = score
    return [sorted(found.items(), key=lambda item: -item[1]) for found in (ended, cut)]


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(alpha):
    first, length, width = jnp.array([0, 3], jnp.int32), 4, 64
    tokens, scores = decoding.beam(markov, jnp.zeros(2), first, length, width=width, stop=2, length_penalty=alpha)
    assert tokens.shape == (length, 2, width)
    for b in range(2):
        ended, cut = everything(int(first[b]), length, 2, alpha)
        expected = (ended + cut)[:width]
        assert [tuple(row) for row in tokens[:, b].T.tolist()[:10]] == [row for row, _ in expected[:10]]
        np.testing.assert_allclose(scores[b], [score for _, score in expected], rtol=1e-5)


def test_without_a_stop_all_sequences_have_the_full_length():
    tokens, scores = decoding.beam(markov, jnp.zeros(1), jnp.array([1]), 3, width=64)
    log_p = np.asarray(jax.nn.log_softmax(TABLE, -1))
    every = sorted(
        (sum(log_p[a, b] for a, b in itertools.pairwise((1, *row))) for row in itertools.product(range(V), repeat=3)),
        reverse=True,
    )
    np.testing.assert_allclose(scores[0], every, rtol=1e-5)
    assert len({tuple(row) for row in tokens[:, 0].T.tolist()}) == 64


def test_width_one_is_greedy_and_fewer_sequences_than_width_are_said():
    first = jnp.array([0, 1, 3], jnp.int32)
    tokens, _ = decoding.beam(markov, jnp.zeros(3), first, 5, width=1)
    np.testing.assert_array_equal(tokens[:, :, 0], decoding.greedy(markov, jnp.zeros(3), first, 5)[1])
    _, scores = decoding.beam(markov, jnp.zeros(1), jnp.array([0]), 1, width=6)
    assert np.isfinite(scores[0]).tolist() == [True] * 4 + [False] * 2


def test_carries_follow_their_beams():
    """The carry says which tokens were read; the logits would differ if a beam got another's."""

    def step(carry, token):
        carry = carry * 10 + (token + 1).astype(jnp.float32)
        return carry, jnp.sin(jnp.outer(carry, jnp.arange(1.0, V + 1)))

    tokens, scores = decoding.beam(step, jnp.zeros(2), jnp.array([0, 1]), 4, width=3)
    for b, k in itertools.product(range(2), range(3)):
        carry, token, total = jnp.zeros(1), jnp.array([b]), 0.0
        for t in range(4):
            carry, logits = step(carry, token)
            token = tokens[t, b, k][None]
            total += float(jax.nn.log_softmax(logits)[0, token[0]])
        assert float(scores[b, k]) == pytest.approx(total, rel=1e-4)


def _choose(logits, fixed, key, traced):
    return decoding.choose(key, logits, **fixed, **traced)


EXTREME = [
    {"temperature": 1e-4},
    {"temperature": 1e-38},
    {"temperature": 1e-44},
    {"temperature": 1e-300},
    {"top_p": 1e-8},
    {"top_p": 1e-300},
    {"top_k": 1},
    {"temperature": 1e38, "top_k": 1},
    {"temperature": 1e-8, "top_p": 1e-8, "top_k": 2},
]


@pytest.mark.parametrize(
    "dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64], ids=lambda d: jnp.dtype(d).name
)
@pytest.mark.parametrize(
    "traced", [pytest.param(False, id="given", marks=pytest.mark.slow), pytest.param(True, id="traced")]
)
def test_extreme_options_leave_the_likeliest_token(dtype, traced):
    """Also among logits as far apart as the dtype has them."""
    with jax.enable_x64(dtype == jnp.float64):
        large = min(float(jnp.finfo(dtype).max), 1e30)
        for row in ([0.0, 1.0, 3.0, 2.0], [-large, 0.0, large, -jnp.inf], [-jnp.inf, -large, 0.0, -jnp.inf]):
            logits = jnp.asarray(row, dtype)
            for options in EXTREME:
                numbers = {k: jnp.float32(value) for k, value in options.items() if k != "top_k"} if traced else {}
                fixed = {k: value for k, value in options.items() if k not in numbers}
                choose = jax.jit(partial(_choose, logits, fixed))
                assert choose(KEYS[0], numbers) == 2, (logits, options)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize(
    ("logits", "options", "expected"),
    [
        # So hot that all that may be drawn is equally likely, but nothing that may not.
        ([0.0, -jnp.inf, 5.0, 10.0], {"temperature": 1e5}, [1 / 3, 0, 1 / 3, 1 / 3]),
        ([0.0, -jnp.inf, 5.0, 10.0], {"temperature": 3e38}, [1 / 3, 0, 1 / 3, 1 / 3]),
        ([0.0, -jnp.inf, 5.0, 10.0], {"temperature": float("inf")}, [1 / 3, 0, 1 / 3, 1 / 3]),
        ([0.0, -jnp.inf, 5.0, 10.0], {"temperature": float("inf"), "top_k": 4}, [1 / 3, 0, 1 / 3, 1 / 3]),
        ([5.0, jnp.inf, 1e4, jnp.inf], {}, [0, 0.5, 0, 0.5]),
        ([5.0, jnp.inf, 1e4, jnp.inf], {"temperature": 1e-4, "top_p": 0.9}, [0, 0.5, 0, 0.5]),
        ([-6e4, -6e4, -jnp.inf, -6e4], {"top_p": 1.0}, [1 / 3, 1 / 3, 0, 1 / 3]),
        ([-jnp.inf] * 4, {}, [1, 0, 0, 0]),
        ([6e4, -6e4, 6e4, 0.0], {"temperature": 1e-38}, [0.5, 0, 0.5, 0]),
    ],
)
def test_infinite_and_large_logits_have_their_limits(dtype, logits, options, expected):
    logits = jnp.asarray(logits, dtype)
    drawn = jax.vmap(lambda key: decoding.choose(key, logits, **options))(KEYS)
    found = np.bincount(np.asarray(drawn), minlength=4) / len(KEYS)
    assert found[np.array(expected) == 0].sum() == 0
    np.testing.assert_allclose(found, expected, atol=0.035)


def test_a_nucleus_of_everything_leaves_nothing_out():
    """However the sum of many probabilities is rounded: the last of the tail is drawn as often as without."""
    logits = jnp.concatenate([jnp.zeros(3), jnp.full(30_000, -12.0)])
    bare, everything = (
        jax.vmap(lambda key, o=o: _choose(logits, o, key, {}))(KEYS[:300]) for o in ({}, {"top_p": 1.0})
    )
    np.testing.assert_array_equal(everything, bare)


def test_a_beam_of_16_bits_or_of_tokens_that_are_ruled_out_has_no_nan():
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        table = jnp.array([[-jnp.inf, 6e4, -6e4], [-jnp.inf] * 3, [jnp.inf, 0.0, jnp.inf]], dtype)
        step = partial(lambda table, c, x: (c, table[x]), table)
        tokens, scores = decoding.beam(step, jnp.zeros(1), jnp.array([2]), 2, width=3)
        # From 2 to 0 or 2, equally likely; from 0 to 1 alone, from 2 to 0 or 2 again.
        np.testing.assert_array_equal(tokens[:, 0], [[0, 2, 2], [1, 0, 2]])
        np.testing.assert_allclose(scores[0], -np.log([2, 4, 4]), rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        (jnp.zeros(3), {"temperature": float("nan")}, "temperature must not be negative, got nan"),
        (jnp.zeros(3), {"top_k": 1.5}, "top_k must be between 1 and the 3 tokens, got 1.5"),
        (jnp.zeros(3), {"top_k": 0}, "top_k must be between 1 and the 3 tokens, got 0"),
        (jnp.zeros(3), {"top_p": float("nan")}, r"top_p must lie in \(0, 1\], got nan"),
        (jnp.zeros((2, 0)), {}, r"logits are floating \[..., V\], got float32 \(2, 0\)"),
        (jnp.zeros(3, jnp.int32), {}, r"logits are floating \[..., V\], got int32 \(3,\)"),
    ],
)
def test_options_that_say_nothing_are_refused(logits, options, message):
    with pytest.raises(ValueError, match=message):
        _choose(logits, options, KEYS[0], {})


def test_excluded_tokens_are_never_drawn():
    logits = jnp.log(jnp.array([0.9, 0.06, 0.03, 0.01]))
    draws = {int(decoding.choose(jax.random.key(i), logits, exclude=(0, 2))) for i in range(30)}
    assert draws == {1, 3}
    assert int(decoding.choose(jax.random.key(0), logits, temperature=0.0, exclude=(0,))) == 1
    assert int(decoding.choose(jax.random.key(0), logits, top_k=1, exclude=[0, 1])) == 2

    def step(carry, tokens):
        return carry, jnp.broadcast_to(logits, (*tokens.shape, 4))

    first = jnp.array([0, 3])
    assert not np.any(decoding.sample(step, (), first, 20, jax.random.key(1), exclude=(0,))[1] == 0)
    np.testing.assert_array_equal(decoding.greedy(step, (), first, 3, exclude=(0,))[1], 1)
    tokens, scores = decoding.beam(step, (), first, 2, width=1, exclude=(0,))
    np.testing.assert_array_equal(tokens, 1)
    np.testing.assert_allclose(scores, 2 * np.log(0.6), rtol=1e-5)


@pytest.mark.parametrize("exclude", [(4,), (-1,), (0, 1, 2, 3)])
def test_what_cannot_be_excluded_is_refused(exclude):
    with pytest.raises(ValueError, match=r"exclude takes some of the tokens in range\(4\), and not all, got"):
        decoding.choose(jax.random.key(0), jnp.zeros(4), exclude=exclude)
