"""Finite in, finite out: inputs and biases of any size give what the formula gives, and so do gradients.

The formula is the loop in the docstring of a cell, and for gradients the cell, both in float64 on the same numbers.
Where its carries and outputs fit into the dtype of the carry, the outputs have to be finite and close to it; so does
every entry of the gradient that fits into its own dtype. What does not fit is beyond any stabilizer.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cells import slow_loop

from seqjax import cells, normalization, unroll
from seqjax.arrays import carry_dtype
from tests.agree import compiled
from tests.cell_list import BARE, H, Model, draw
from tests.quick import few

STEPS, SIZES, GATES = 6, (1.0, 1e8, 1e30), (0.0, 200.0)
TOLERANCE = {"float64": 1e-9, "float32": 2e-3, "float16": 1e-2, "bfloat16": 0.1}
NORMED = {"layer_norm_gru": Model(normalization.layer_norm(cells.gru(H)))}


def cast(tree, dtype):
    """Floating leaves in a dtype."""
    return jax.tree.map(lambda u: u.astype(dtype) if jnp.issubdtype(u.dtype, jnp.floating) else u, tree)


def extreme(params, xs, size, gate, rng):
    """Biases moved to +-gate, and inputs of which the second step is so large, and the two after it are 0."""

    def move(path, leaf):
        bias = jax.tree_util.keystr(path[-1:], simple=True).startswith("b")
        return leaf + gate * rng.choice([-1.0, 1.0], leaf.shape) if bias else leaf

    leaves, treedef = jax.tree.flatten(xs)
    scale = np.array([1.0, size, 0.0, 0.0, 1.0, 1.0]).reshape(-1, *(1,) * (leaves[0].ndim - 1))
    leaves[0] = leaves[0] * np.broadcast_to(scale, leaves[0].shape)
    return jax.tree_util.tree_map_with_path(move, params), treedef.unflatten(leaves)


def run(cell, method, params, carry, xs, weights):
    """The last carry and the outputs, and the gradient of their weighted sum by all that goes in."""

    def loss(params, carry, xs):
        out = unroll(cell, params, carry, xs, method=method)
        return sum((w * u).sum() for w, u in zip(weights, jax.tree.leaves(out[1]), strict=True)), out

    grads, out = jax.grad(loss, (0, 1, 2), has_aux=True)(params, carry, xs)
    return jax.tree.leaves(out), jax.tree.leaves(grads)


def fits(values, dtype):
    """Where numbers in float64 are far enough from overflow in a dtype."""
    with np.errstate(invalid="ignore"):
        return np.abs(np.asarray(values, np.float64)) < 1e-3 * float(jnp.finfo(dtype).max)


def close(got, expected, tolerance, scale):
    """Where the expected number fits, the one that was got is finite and close to it."""
    own = fits(expected, got.dtype)
    got = np.asarray(got, np.float64)
    assert np.isfinite(got[own]).all()
    np.testing.assert_allclose(got[own], np.asarray(expected)[own], rtol=tolerance, atol=tolerance * scale + 1e-30)


def hold(name, model, dtype, method):
    drawn = draw(model, steps=STEPS)
    wide = compiled(partial(run, drawn.cell, "scan"))
    narrow = compiled(partial(run, drawn.cell, method))
    checked = 0
    for size in SIZES:
        for gate in GATES:
            rng = np.random.default_rng(1)
            params, xs = extreme(drawn.params, drawn.xs, size, gate, rng)
            params = cast(params, dtype)  # of a dtype; then so in float64
            xs, carry = cast(xs, carry_dtype(dtype)), drawn.cell.initial_carry(params, (2,))
            high = [cast(tree, jnp.float64) for tree in (params, carry, xs)]
            outputs = jax.eval_shape(lambda args, cell=drawn.cell: unroll(cell, *args, method="scan")[1], high)
            weights = [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in jax.tree.leaves(outputs)]
            expected, expected_grads = wide(*high, weights)
            if name in BARE:
                with np.errstate(all="ignore"):
                    loop = slow_loop(name, *high)
                known = [np.where(np.isfinite(u), u, v) for u, v in zip([*loop[0], loop[1]], expected, strict=True)]
            else:
                known = expected
            if not all(fits(leaf, carry_dtype(dtype)).all() for leaf in known):
                continue
            checked += 1
            got, grads = narrow(params, carry, xs, cast(weights, carry_dtype(dtype)))
            tolerance = TOLERANCE[jnp.dtype(dtype).name]
            # What a stabilizer of 1e8 is the logarithm of is not known to a factor of e: only the outputs are compared.
            assert all(jnp.isfinite(leaf).all() for leaf in got)
            close(got[-1], known[-1], tolerance, np.abs(known[-1]).max())
            whole = max(float(jnp.abs(jnp.where(jnp.isfinite(leaf), leaf, 0.0)).max()) for leaf in expected_grads)
            for a, b in zip(grads, expected_grads, strict=True):
                close(a, b, tolerance, whole)
    assert checked >= 2


@pytest.mark.parametrize("name", [*few(BARE), *NORMED])
def test_any_finite_input_and_bias_gives_what_the_formula_gives(x64, name):
    hold(name, (BARE | NORMED)[name], jnp.float32, "scan")


@pytest.mark.parametrize("name", ["rnn_relu", "gru", "min_gru", "conv_lstm", "mlstm"])
def test_float16_weights_take_inputs_and_carries_beyond_their_range(x64, name):
    hold(name, BARE[name], jnp.float16, "scan")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("name", [*BARE, *NORMED])
def test_any_finite_input_and_bias_in_other_dtypes(x64, name, dtype):
    hold(name, (BARE | NORMED)[name], dtype, "scan")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BARE, *NORMED])
def test_any_finite_input_and_bias_by_the_other_methods(x64, name):
    cell = (BARE | NORMED)[name].cell
    hints = {"fused": cell.gated, "associative": cell.affine, "chunkwise": cell.outer}
    for method in ["auto", *(method for method, hint in hints.items() if hint is not None)]:
        hold(name, (BARE | NORMED)[name], jnp.float32, method)
