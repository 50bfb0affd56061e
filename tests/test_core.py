"""The protocol: constants among inputs and outputs, step functions as cells, dtypes of products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import Const, cells, from_step, unroll
from seqjax.arrays import carry_dtype, dense, matmul
from seqjax.core import out_features, over_time, scan_const, select
from seqjax.wrappers import masked, with_embedding, with_head
from tests.agree import close
from tests.cell_list import MODELS, D, H, draw, leaky


def test_a_constant_is_a_pytree_node_and_keeps_its_value_under_jit():
    doubled = jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree))(
        {"c": Const(jnp.ones(3)), "x": jnp.ones(2)}
    )
    assert isinstance(doubled["c"], Const)
    np.testing.assert_array_equal(doubled["c"].value, 2 * np.ones(3))


def test_over_time_maps_timed_leaves_and_keeps_constants():
    xs, c = jnp.arange(6.0).reshape(3, 2), Const(jnp.array([10.0, 20.0]))

    def f(x, c):
        return x + c.value, Const(2 * c.value), {"sum": x.sum()}

    ys, const, sums = over_time(f, xs, c)
    np.testing.assert_array_equal(ys, np.arange(6.0).reshape(3, 2) + np.array([10, 20]))
    assert isinstance(const, Const)
    np.testing.assert_array_equal(const.value, [20, 40])
    np.testing.assert_array_equal(sums["sum"], [1, 5, 9])


def test_scan_sees_the_same_constant_at_every_step():
    def body(carry, inputs):
        x, c = inputs
        carry = carry + x * c.value
        return carry, (carry, Const(c.value + 1))

    last, (ys, const) = scan_const(body, jnp.zeros(2), (jnp.ones((3, 2)), Const(jnp.array([1.0, 2.0]))))
    np.testing.assert_array_equal(ys, [[1, 2], [2, 4], [3, 6]])
    np.testing.assert_array_equal(last, ys[-1])
    np.testing.assert_array_equal(const.value, [2, 3])


def static_covariate():
    """h' = tanh(h + x w + s), where s is the same at every step."""

    def step(params, h, x):
        x, s = x
        h = jnp.tanh(h + x @ params["w"] + s)
        return h, h

    return from_step(
        lambda key, d: {"w": jax.random.normal(key, (d, H))}, lambda params, batch: jnp.zeros((*batch, H)), step
    )


@pytest.mark.parametrize("method", ["scan", "rematerialized", "checkpointed"])
def test_a_constant_equals_the_same_input_at_every_step_and_gathers_its_gradient(method):
    cell = static_covariate()
    params = cell.init(jax.random.key(0), D)
    xs, s = jax.random.normal(jax.random.key(1), (7, 2, D)), jnp.ones((2, H))

    def loss(s, wrap):
        return unroll(cell, params, None, (xs, wrap(s)), method=method)[1].sum()

    once, grad = jax.value_and_grad(loss)(s, Const)
    repeated, expected = jax.value_and_grad(loss)(s, lambda s: jnp.broadcast_to(s, (7, 2, H)))
    close((once, grad), (repeated, expected), 1e-5)


def test_from_step_may_use_the_carry_before_the_step(x64):
    cell, params, carry, xs = draw(MODELS["from_step"])
    (last, _), ys = unroll(cell, params, carry, xs)
    h = np.asarray(carry[0]["h"])
    a, w = np.asarray(params["a"]), np.asarray(params["w"])
    for x, y in zip(np.asarray(xs), ys, strict=True):
        new = np.tanh(a * h + x @ w)
        close(y, new - h)
        h = new
    close(last["h"], h)
    assert cell.gated is None
    assert cell.affine is None


def test_step_and_sequence_agree_on_a_single_sequence_and_on_a_batch(x64):
    cell, params, carry, xs = draw(MODELS["lstm"], batch=(2,))
    _, ys = unroll(cell, params, carry, xs)
    _, alone = unroll(cell, params, jax.tree.map(lambda leaf: leaf[1], carry), xs[:, 1])
    close(alone, ys[:, 1])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_carry_dtype(x64, dtype, expected):
    assert carry_dtype(dtype) == expected
    w = jnp.ones((D, H), dtype)
    assert matmul(jnp.ones((2, D), expected), w).dtype == expected
    assert dense(jnp.ones((2, D), expected), w, jnp.ones(H, dtype)).dtype == expected


def test_a_product_of_bfloat16_is_summed_and_returned_in_float32():
    # 1 + 4097 / 512: a running sum in bfloat16 stops at 1, and a result in bfloat16 is rounded to 9.
    x = jnp.full((1, 4098), 2.0**-9).at[0, 0].set(1.0)
    assert float(matmul(x, jnp.ones((4098, 1), jnp.bfloat16))[0, 0]) == 9 + 2.0**-9


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            jnp.ones((2, D), jnp.int32),
            TypeError,
            r"inputs have dtype int32, expected a floating dtype \(the weights are float32",
        ),
        (jnp.ones((2, D), bool), TypeError, "inputs have dtype bool"),
        (jnp.ones((2, H)), ValueError, r"inputs have shape \(2, 4\), expected \[..., 3\] \(weights \(3, 4\)\)"),
        (jnp.ones(()), ValueError, r"inputs have shape \(\)"),
    ],
)
def test_dense_refuses_what_does_not_fit(x, error, message):
    with pytest.raises(error, match=message):
        dense(x, jnp.ones((D, H)))


def test_select_picks_rows_of_every_leaf():
    mask = jnp.array([True, False])
    on, off = (
        {"h": jnp.ones((2, 3)), "n": jnp.ones(2, jnp.int32)},
        {"h": jnp.zeros((2, 3)), "n": jnp.zeros(2, jnp.int32)},
    )
    picked = select(mask, on, off)
    np.testing.assert_array_equal(picked["h"], [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(picked["n"], [1, 0])


@pytest.mark.parametrize(
    ("cell", "in_features", "expected"),
    [
        (cells.lstm(H), D, H),
        (with_head(cells.lstm(H), 9), D, 9),
        (cells.stack(cells.gru(H), cells.min_gru(7)), D, 7),
        (with_embedding(cells.gru(H), 5, D), 0, H),
        (leaky(), D, H),
    ],
)
def test_out_features(cell, in_features, expected):
    params = cell.init(jax.random.key(0), in_features)
    assert out_features(cell, params, in_features) == expected


def test_a_head_around_a_masked_cell_says_which_goes_outside():
    cell = with_head(masked(cells.gru(4)), 2)
    with pytest.raises(ValueError, match="such as masked, goes outside of stack and with_head"):
        cell.init(jax.random.key(0), 3)
