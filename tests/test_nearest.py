"""The nearest neighbour: dynamic time warping against a loop over its table, and the archive's published accuracies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.data import ucr
from seqjax.models import nearest


def slow_dtw(x, y, window):
    """The table of all d(s, t), cell by cell."""
    d = np.full((len(x) + 1, len(y) + 1), np.inf)
    d[0, 0] = 0
    for s in range(len(x)):
        for t in range(len(y)):
            if abs(s - t) <= window:
                d[s + 1, t + 1] = np.square(x[s] - y[t]).sum() + min(d[s, t], d[s, t + 1], d[s + 1, t])
    return d[-1, -1]


@pytest.mark.parametrize("window", [None, 3, 0])
def test_dtw_is_the_recursion(window):
    rng = np.random.default_rng(0)
    xs, ys = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 7, 2), (4, 5, 2)))
    m, n = np.array([7, 3, 1], np.int32), np.array([5, 4, 3, 1], np.int32)
    found = nearest.dtw(jnp.asarray(xs), jnp.asarray(ys), jnp.asarray(m), jnp.asarray(n), window=window)
    bound = 99 if window is None else window
    expected = [[slow_dtw(x[:a], y[:b], bound) for y, b in zip(ys, n, strict=True)] for x, a in zip(xs, m, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isinf(found).any() == (window is not None)


def test_dtw_without_warping_is_euclidean_and_without_lengths_reads_everything():
    xs, ys = (jax.random.normal(jax.random.key(i), (4 + i, 6, 3)) for i in range(2))
    expected = np.square(np.asarray(xs)[:, None] - np.asarray(ys)).sum((2, 3))
    np.testing.assert_allclose(nearest.euclidean(xs, ys), expected, rtol=1e-5)
    np.testing.assert_allclose(nearest.dtw(xs, ys, window=0), expected, rtol=1e-5)
    warped = nearest.dtw(xs, ys)
    assert (warped <= expected * 1.0001).all()
    assert (warped < expected * 0.9).any()


def test_shapes_are_refused():
    xs = jnp.zeros((2, 3, 1))
    with pytest.raises(ValueError, match=r"shapes \(2, 3, 1\) and \(2, 4, 1\), expected \[N, T, D\] and \[M, T, D\]"):
        nearest.euclidean(xs, jnp.zeros((2, 4, 1)))
    with pytest.raises(ValueError, match=r"shapes \(2, 3, 1\) and \(2, 3, 2\), expected \[N, S, D\] and \[M, T, D\]"):
        nearest.dtw(xs, jnp.zeros((2, 3, 2)))
    with pytest.raises(ValueError, match="window must be at least 0, got -1"):
        nearest.dtw(xs, xs, window=-1)


# Euclidean (of single variables) and DTW accuracies that the archives publish (Dau et al. 2018, Bagnall et al. 2018).
PUBLISHED = {
    "ECG200": (0.88, 0.77),
    "ItalyPowerDemand": (0.955, 0.950),
    "GunPoint": (0.913, 0.907),
    "ArrowHead": (0.800, None),  # the warped ones of these two, 0.703 and 0.591, take longer than a test should
    "OSULeaf": (0.521, None),
    "BasicMotions": (None, 0.975),
    "JapaneseVowels": (None, 0.949),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_accuracies_come_out(name, data_dir):
    if not (data_dir / "ucr").is_dir():
        pytest.skip(f"no series at {data_dir}/ucr")
    parts = ucr.load(data_dir, name)
    train, test = parts["train"], parts["test"]
    plain, warped = PUBLISHED[name]
    if plain is not None:
        answers = np.asarray(jax.jit(nearest.euclidean)(test.values, train.values)).argmin(1)
        assert round((train.labels[answers] == test.labels).mean(), 3) == plain
    if warped is not None:
        answers = jax.jit(nearest.dtw)(test.values, train.values, test.lengths, train.lengths).argmin(1)
        assert round((train.labels[answers] == test.labels).mean(), 3) == warped
