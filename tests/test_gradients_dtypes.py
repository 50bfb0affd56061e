"""Every estimator in every precision: 16-bit params, and all sums in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from test_gradients import squared_error

from seqjax import cells, wrappers
from seqjax.arrays import carry_dtype
from seqjax.gradients import (
    artbp,
    bptt,
    diagonal_rtrl,
    eprop,
    kf_rtrl,
    persistent_evolution,
    rflo,
    rtrl,
    snap,
    truncated_bptt,
    uoro,
)
from tests.agree import compiled
from tests.cell_list import BARE, H, Model, draw

ESTIMATORS = {
    "bptt": lambda cell, loss, key: bptt(cell, loss, method="scan"),
    "truncated_bptt": lambda cell, loss, key: truncated_bptt(cell, loss, 2, 3, method="scan"),
    "rtrl": lambda cell, loss, key: rtrl(cell, loss),
    "diagonal_rtrl": lambda cell, loss, key: diagonal_rtrl(cell, loss),
    "snap": lambda cell, loss, key: snap(cell, loss),
    "eprop": lambda cell, loss, key: eprop(cell, loss),
    "rflo": lambda cell, loss, key: rflo(cell, loss, key, feedback=jax.nn.initializers.constant(0.3)),
    "kf_rtrl": lambda cell, loss, key: kf_rtrl(cell, loss, key),
    "uoro": lambda cell, loss, key: uoro(cell, loss, key),
    "artbp": lambda cell, loss, key: artbp(cell, loss, 0.3, key),
    "persistent_evolution": lambda cell, loss, key: persistent_evolution(cell, loss, key, pairs=2),
}
CELLS = {"gru": cells.gru(H), "min_gru": cells.min_gru(H)}
CASES = [
    (cell, name)
    for cell in CELLS
    for name in ESTIMATORS
    if name not in (("diagonal_rtrl",) if cell == "gru" else ("eprop", "rflo", "kf_rtrl"))
]


def one_chunk(cell, name, dtype):
    """A function of nothing: loss, gradient, and the state before and after; and the params, which bfloat16 has too."""
    drawn = draw(Model(wrappers.with_head(CELLS[cell], 2)), 2, dtype=jnp.bfloat16)
    wide = carry_dtype(dtype)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), drawn.params)
    carry, xs = jax.tree.map(lambda leaf: leaf.astype(wide), (drawn.carry, drawn.xs))

    def run():
        estimator = ESTIMATORS[name](drawn.cell, squared_error, jax.random.key(0))
        before = estimator.init(params, carry, xs)
        loss, grads, after = estimator.update(params, before, xs, jnp.ones((2, 2, 2), wide))
        return loss, grads, before, after

    return run, params


def check_dtypes(result, params):
    def dtypes(tree):
        return jax.tree.map(lambda leaf: leaf.dtype, tree)

    loss, grads, before, after = result
    wide = carry_dtype(jax.tree.leaves(params)[0].dtype)
    assert (loss.dtype, loss.shape) == (wide, ())
    assert dtypes(grads) == dtypes(params)
    assert dtypes(after) == dtypes(before)
    assert all(leaf.dtype == wide for leaf in jax.tree.leaves(after) if jnp.issubdtype(leaf.dtype, jnp.floating))


@pytest.mark.parametrize(("cell", "name"), CASES)
def test_a_gradient_is_that_of_float64_within_the_precision(x64, cell, name):
    runs = {dtype: one_chunk(cell, name, dtype) for dtype in (jnp.bfloat16, jnp.float32, jnp.float64)}
    results = compiled(lambda: [run() for run, _ in runs.values()])()
    flat = []
    for result, (_, params) in zip(results, runs.values(), strict=True):
        check_dtypes(result, params)
        flat.append(ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), result[:2]))[0])
        assert np.isfinite(flat[-1]).all()
    narrow, single, exact = flat
    if name == "persistent_evolution":  # normal noise has other bits in float64; bfloat16 has that of float32
        np.testing.assert_allclose(narrow, single, rtol=2**-8, atol=1e-6)
        return
    np.testing.assert_allclose(single, exact, rtol=0, atol=1e-6 * np.abs(exact).max())
    np.testing.assert_allclose(narrow, exact, rtol=0, atol=1e-2 * np.abs(exact).max())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize(("cell", "name"), CASES)
def test_dtypes_without_64_bits(cell, name, dtype):
    run, params = one_chunk(cell, name, dtype)
    check_dtypes(jax.eval_shape(run), params)


@pytest.mark.parametrize("method", ["scan", "rematerialized", "fused"])
def test_a_long_sum_of_gradients_is_made_in_float32(method):
    """Summed in bfloat16, those of the gains are off by a tenth."""
    drawn = draw(BARE["layer_norm_lstm"], 500, dtype=jnp.bfloat16)
    params, xs = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (drawn.params, drawn.xs))
    targets = jnp.ones((500, 2, H))

    def gradient(params, xs):
        return bptt(drawn.cell, squared_error, method=method).update(params, drawn.carry, xs, targets)[1]

    both = compiled(lambda: (gradient(drawn.params, drawn.xs), gradient(params, xs)))()
    for got, expected in zip(*map(jax.tree.leaves, both), strict=True):
        error = jnp.linalg.norm(got.astype(jnp.float32) - expected) / jnp.linalg.norm(expected)
        assert error < 0.01
