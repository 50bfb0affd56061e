"""Buckets: every sequence in one, whole; every batch from one bucket, every sequence at most once an epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.data import buckets

ROWS = [np.arange(1, n + 1, dtype=np.int32) for n in (3, 1, 7, 2, 0, 12, 5, 6)]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 15), min_size=1, max_size=30),
    borders=st.sets(st.integers(1, 15), min_size=1).map(sorted),
    least=st.integers(0, 9),
)
def test_every_sequence_is_in_one_bucket_and_whole(lengths, borders, least):
    rows = [np.arange(1, n + 1, dtype=np.int32) for n in lengths]
    if longer := sum(n > borders[-1] for n in lengths):
        found = rf"{longer} of {len(rows)} sequences .* {max(lengths)} steps, .* {borders[-1]}; expected"
        with pytest.raises(ValueError, match=found):
            buckets.make(rows, borders, 0)
        borders = list(buckets.reaching(borders, max(lengths)))
    if len(rows) < max(least, 1):
        with pytest.raises(ValueError, match=f"{len(rows)} sequences are too few for a bucket of at least {least}"):
            buckets.make(rows, borders, least)
        return
    parts = buckets.make(rows, borders, least)
    assert sorted(i for part in parts for i in part.which.tolist()) == list(range(len(rows)))
    sizes = [part.rows.shape[1] for part in parts]
    assert sizes == sorted(set(sizes))
    for part in parts:
        assert len(part.which) >= max(least, 1)
        for row, length, i in zip(np.asarray(part.rows), part.lengths.tolist(), part.which.tolist(), strict=True):
            assert length == len(rows[i])
            np.testing.assert_array_equal(row, np.pad(rows[i], (0, len(row) - length)))
    if least <= 1:  # nothing joined: each is in the shortest that it fits
        for part in parts:
            shorter = [b for b in borders if b < part.rows.shape[1]]
            assert not shorter or part.lengths.min() > shorter[-1]


def test_borders_reach_the_longest_sequence_and_no_further():
    assert buckets.reaching((3, 6, 9), 5) == (3, 5)
    assert buckets.reaching((3, 6, 9), 6) == (3, 6)
    assert buckets.reaching((3, 6, 9), 12) == (3, 6, 9, 12)
    assert buckets.reaching((), 4) == (4,)
    rows = [np.ones(n, np.float32) for n in (1, 12, 20, 5)]
    parts = buckets.make(rows, buckets.reaching((3, 6), 20))
    assert sum(float(part.rows.sum()) for part in parts) == sum(map(len, rows))


def test_rows_may_have_features():
    parts = buckets.make([np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)], (5,))
    assert parts[0].rows.shape == (2, 5, 3)
    assert parts[0].rows.sum() == 18


def test_an_epoch_sees_every_sequence_that_fits_a_batch_once():
    rows = [np.full(1 + i % 9, i, np.int32) for i in range(103)]
    parts = buckets.make(rows, (3, 6, 9), least=8)
    count = buckets.batches(parts, 8)
    assert count == sum(len(part.which) // 8 for part in parts)

    @jax.jit
    def batch(step):
        return buckets.minibatch(jax.random.key(1), step, 8, parts, lambda part, rows: part.which[rows])

    epochs = [[batch(jnp.int32(step)) for step in range(e * count, (e + 1) * count)] for e in range(2)]
    for epoch in epochs:
        seen = np.concatenate(epoch)
        assert len(set(seen.tolist())) == len(seen) == 8 * count
        for found in epoch:
            assert len({min(b for b in (3, 6, 9) if b >= len(rows[i])) for i in found.tolist()}) == 1
    assert any((a != b).any() for a, b in zip(*epochs, strict=True))
    order = [int(np.searchsorted((3, 6, 9), len(rows[int(found[0])]))) for found in epochs[0]]
    assert order != sorted(order)  # buckets are mixed
    np.testing.assert_array_equal(batch(jnp.int32(5)), batch(jnp.int32(5)))


def test_every_gives_each_sequence_its_own_result():
    parts = buckets.make(ROWS, (2, 6, 12), least=2)
    index, (sums, lengths) = jax.jit(
        lambda: buckets.every(parts, 3, lambda part, rows: (part.rows[rows].sum(1), part.lengths[rows]))
    )()
    assert sorted(index.tolist()) == list(range(len(ROWS)))
    for i, total, length in zip(index.tolist(), sums.tolist(), lengths.tolist(), strict=True):
        assert (total, length) == (ROWS[i].sum(), len(ROWS[i]))


def test_errors():
    for borders in ((), (0, 3), (3, 3), (5, 2)):
        with pytest.raises(ValueError, match="borders must increase from at least 1"):
            buckets.make(ROWS, borders)
    with pytest.raises(ValueError, match="0 sequences are too few"):
        buckets.make([], (3,))
    with pytest.raises(ValueError, match="1 of 8 sequences have up to 12 steps, more than the last border, 9;"):
        buckets.make(ROWS, (2, 9))
    mixed = [np.ones((2, 3), np.float32), np.ones((2, 1), np.float32)]
    with pytest.raises(ValueError, match=r"sequence 1 is float32 \[2, 1\], expected float32 \[steps, 3\]"):
        buckets.make(mixed, (3,))
    with pytest.raises(ValueError, match=r"sequence 1 is float64 \[2\], expected int32 \[steps\]"):
        buckets.make([np.ones(2, np.int32), np.full(2, 0.5)], (3,))
    parts = buckets.make(ROWS, (2, 12))
    with pytest.raises(ValueError, match=r"buckets of \[3, 5\] sequences, expected at least a batch of 4 in each"):
        buckets.minibatch(jax.random.key(0), 0, 4, parts, lambda part, rows: rows)
