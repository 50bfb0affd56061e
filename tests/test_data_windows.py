"""Windows: the epoch order is a fair permutation, windows are the rows they should be, statistics scale exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.data import windows

jitted_order = jax.jit(windows.order, static_argnums=3)


@functools.partial(jax.jit, static_argnums=2)
def whole_epoch(key, epoch, count):
    return windows.order(key, epoch, jnp.arange(count, dtype=jnp.int32), count)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 256, 1000, 34_875])
def test_order_is_a_permutation_in_every_epoch(count):
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (7, 100_000)]:
        found = np.asarray(whole_epoch(jax.random.key(seed), epoch, count))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(np.sort(found), np.arange(count))


@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 70), seed=st.integers(0, 2**31 - 1))
def test_order_is_a_permutation_of_any_count(count, seed):
    found = windows.order(jax.random.key(seed), 3, jnp.arange(count), count)
    assert sorted(found.tolist()) == list(range(count))


def test_order_differs_between_epochs_and_keys_and_is_not_the_identity():
    base, epoch, key = (whole_epoch(jax.random.key(s), e, 1000) for s, e in [(0, 0), (0, 1), (1, 0)])
    for a, b in [(base, epoch), (base, key), (epoch, key), (base, jnp.arange(1000))]:
        assert np.mean(np.asarray(a) == np.asarray(b)) < 0.01  # 1 in 1000 agrees by chance


def test_order_is_the_same_for_single_positions_jitted_or_not_and_vmapped():
    key = jax.random.key(3)
    positions = jnp.array([[0, 999], [500, 17]])
    expected = np.asarray(whole_epoch(key, 5, 1000))[np.asarray(positions)]
    np.testing.assert_array_equal(windows.order(key, 5, positions, 1000), expected)
    np.testing.assert_array_equal(jitted_order(key, 5, positions, 1000), expected)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(windows.order(key, 5, np.asarray(positions), 1000), expected)
    keys, epochs = jax.random.split(key, 3), jnp.arange(3)
    lanes = jax.vmap(lambda k, e: windows.order(k, e, positions, 1000))(keys, epochs)
    for lane, k, e in zip(lanes, keys, epochs, strict=True):
        np.testing.assert_array_equal(lane, jitted_order(k, e, positions, 1000))


@pytest.mark.parametrize("count", [2, 3, 7, 50])
def test_order_is_uniform_at_every_position(count):
    draws = 4000
    keys = jax.random.split(jax.random.key(11), draws)
    orders = np.asarray(jax.vmap(lambda k: whole_epoch(k, 0, count))(keys))
    for position in {0, count // 2, count - 1}:
        observed = np.bincount(orders[:, position], minlength=count)
        chi_square = np.sum((observed - draws / count) ** 2) / (draws / count)
        assert chi_square < (count - 1) + 5 * np.sqrt(2 * (count - 1)), (position, chi_square)


def test_order_of_three_draws_each_of_the_six_permutations_equally_often():
    keys = jax.random.split(jax.random.key(12), 6000)
    orders = np.asarray(jax.vmap(lambda k: whole_epoch(k, 0, 3))(keys))
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(1000))


def test_order_has_no_correlation_between_neighbours_or_epochs():
    first, second = (np.asarray(whole_epoch(jax.random.key(5), e, 34_875), np.float64) for e in (0, 1))
    bound = 5 / np.sqrt(34_875)
    for lag in (1, 2, 3, 128):
        assert abs(np.corrcoef(first[:-lag], first[lag:])[0, 1]) < bound
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    assert abs(np.corrcoef(first, np.arange(34_875))[0, 1]) < bound


def test_order_refuses_what_it_cannot_permute():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"count must be in \[1, 2\*\*31\), got 0"):
        windows.order(key, 0, jnp.arange(1), 0)
    with pytest.raises(ValueError, match=r"positions must be in range\(4\), got values from 0 to 4"):
        windows.order(key, 0, jnp.arange(5), 4)
    with pytest.raises(TypeError, match="positions must be integers, got float32"):
        windows.order(key, 0, jnp.zeros(2), 4)


def test_minibatches_of_an_epoch_are_disjoint_and_follow_the_order():
    key = jax.random.key(2)
    draw = jax.jit(lambda step: windows.minibatch(key, step, 3, 10))
    epochs = [[np.asarray(draw(step)) for step in range(e * 3, e * 3 + 3)] for e in range(2)]
    for e, batches in enumerate(epochs):
        np.testing.assert_array_equal(np.concatenate(batches), whole_epoch(key, e, 10)[:9])
    with pytest.raises(ValueError, match=r"batch must be in \[1, count = 10\], got 11"):
        windows.minibatch(key, 0, 11, 10)


@pytest.mark.parametrize(("count", "batch"), [(1, 3), (5, 2), (6, 3), (12, 14)])
def test_an_evaluation_is_over_every_row_once(count, batch):
    xs, sizes = jnp.arange(3 * count, dtype=jnp.float32).reshape(count, 3), set()

    def scores(rows):
        sizes.add(len(rows))
        return {"sum": xs[rows].sum(1), "row": rows, "nothing": xs[rows, :0]}

    found = windows.every(count, batch, scores)
    np.testing.assert_array_equal(found["row"], np.arange(count))
    np.testing.assert_array_equal(found["sum"], np.asarray(xs).sum(1))
    assert found["nothing"].shape == (count, 0)
    assert sizes == {min(batch, count)}
    for wrong in ((0, batch), (count, 0)):
        with pytest.raises(ValueError, match=f"count and batch must be at least 1, got {wrong[0]} and {wrong[1]}"):
            windows.every(*wrong, scores)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 4), stride=st.integers(1, 3), data=st.data())
def test_gather_takes_the_rows_of_each_window(length, stride, data):
    series = np.arange(40, dtype=np.float32).reshape(20, 2)
    starts = np.array(data.draw(st.lists(st.integers(0, 20 - stride * (length - 1) - 1), min_size=1, max_size=3)))
    found = windows.gather(series, starts, length, stride)
    expected = np.stack([series[s : s + stride * length : stride][:length] for s in starts], axis=1)
    np.testing.assert_array_equal(found, expected)


def test_gather_jitted_marks_rows_outside_of_the_series_as_nan():
    series = jnp.arange(5.0)[:, None]
    found = jax.jit(windows.gather, static_argnums=2)(series, jnp.array([3, -1]), 3)[:, :, 0]
    np.testing.assert_array_equal(found, np.array([[3, 4, np.nan], [np.nan, 0, 1]]).T)


def test_gather_checks_starts_that_a_jitted_function_closes_over():
    series, good, bad = jnp.arange(5.0), jnp.array([0, 2]), jnp.array([0, 3])
    np.testing.assert_array_equal(jax.jit(lambda: windows.gather(series, good, 3))(), [[0, 2], [1, 3], [2, 4]])
    with pytest.raises(ValueError, match=r"starts must be in range\(3\), got values from 0 to 3"):
        jax.jit(lambda: windows.gather(series, bad, 3))()


def test_gather_refuses_bad_starts():
    series = jnp.zeros((10, 2))
    with pytest.raises(ValueError, match=r"starts must be in range\(8\), got values from 0 to 8"):
        windows.gather(series, jnp.array([0, 8]), 3)
    with pytest.raises(ValueError, match=r"starts must be in range\(0\)"):
        windows.gather(series, jnp.array([0]), 11)
    with pytest.raises(ValueError, match=r"starts must have shape \[B\], got \(1, 2\)"):
        windows.gather(series, jnp.array([[0, 1]]), 3)
    with pytest.raises(TypeError, match="starts must be integers, got float32"):
        windows.gather(series, jnp.array([0.0]), 3)
    with pytest.raises(ValueError, match="length and stride must be at least 1, got 0 and 1"):
        windows.gather(series, jnp.array([0]), 0)


def test_standardizer_scales_the_training_part_and_inverts():
    train = np.random.default_rng(0).normal([1000.0, -3.0], [8.0, 0.5], (500, 2))
    scale = windows.Standardizer.fit(train)
    z = scale.apply(train)
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(z).mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.asarray(z).std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(scale.invert(z), train, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(scale.apply(train[None, 3]), z[None, 3])


LARGE = np.array([[1e8], [1e8 + 1], [1e8 + 2]])


def test_the_magnitude_of_a_column_does_not_matter():
    normal = np.array([[-(1.5**0.5)], [0.0], [1.5**0.5]])
    for train in (LARGE, LARGE.astype(np.int64), LARGE.tolist(), 1e-300 * LARGE, 1e295 * LARGE):
        scale = windows.Standardizer.fit(train)
        np.testing.assert_allclose(scale.apply(train), normal, rtol=1e-6, atol=1e-6)
    scale = windows.Standardizer.fit(LARGE)
    np.testing.assert_array_equal(scale.invert(scale.apply(LARGE)), LARGE.astype(np.float32))


def test_a_standardizer_that_is_itself_traced_is_the_same():
    train = np.random.default_rng(0).normal([1000.0, -3.0], [8.0, 0.5], (50, 2)).astype(np.float32)
    scale = windows.Standardizer.fit(train)
    z = jax.jit(lambda scale, x: scale.apply(x))(scale, train)
    np.testing.assert_allclose(z, scale.apply(train), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.jit(lambda scale, z: scale.invert(z))(scale, z), train, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("base", [1e-3, 0.1, 1.0, 20.1, 1e4])
def test_what_varies_by_rounding_alone_is_constant(dtype, base):
    base = dtype(base)
    noisy = np.array([base, np.nextafter(base, dtype(np.inf)), np.nextafter(base, dtype(0))] * 40, dtype)[:, None]
    many = np.full((100_001, 1), base)  # whose plain mean is off by many roundings
    for column in (noisy, many):
        assert windows.moments(column)[1].item() == 0
        with pytest.raises(ValueError, match=r"'column 0' is constant \(.*\) in the training part, up to rounding"):
            windows.Standardizer.fit(column)
    spread = (float(base) * (1 + 100 * float(np.finfo(dtype).eps) * np.array([0, 1, 2] * 40))).astype(dtype)[:, None]
    assert windows.moments(spread)[1].item() == pytest.approx(np.std(spread.astype(np.float64)), rel=1e-6)


def test_moments_are_those_of_what_counts():
    rng = np.random.default_rng(0)
    values = rng.normal(1e6, 3, (4, 6, 3)).astype(np.float32)
    real = (np.arange(6) < np.array([6, 1, 3, 5])[:, None])[..., None]
    mean, std = windows.moments(np.where(real, values, np.nan), 1, where=real)
    assert mean.dtype == std.dtype == np.float64
    for row, length, m, s in zip(values.astype(np.float64), (6, 1, 3, 5), mean, std, strict=True):
        np.testing.assert_allclose(m, row[:length].mean(0), rtol=1e-15)
        np.testing.assert_allclose(s, row[:length].std(0), rtol=1e-7)
    assert windows.moments(values, (0, 1))[0].shape == (3,)
    with pytest.raises(ValueError, match=r"moments need at least one value each, got \[0, 3\] along axis 0"):
        windows.moments(np.zeros((0, 3)))


def test_standardizer_names_the_column_that_it_cannot_scale():
    train = np.array([[1.0, 5.0], [2.0, 5.0]])
    with pytest.raises(ValueError, match=r"'p \(mbar\)' is constant \(5\) in the training part"):
        windows.Standardizer.fit(train, ["T (degC)", "p (mbar)"])
    with pytest.raises(ValueError, match="'column 0' has a value that is not finite at row 1"):
        windows.Standardizer.fit(np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match=r"train must have shape \[N, D\] with N >= 2, got \(3,\)"):
        windows.Standardizer.fit(np.zeros(3))
