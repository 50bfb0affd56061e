"""The compiled loop: what it can write out, both partitions of its work, and that it is the scan.

The laws of every cell and wrapper are in test_solve.py; here is what is special to generated code.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import seqjax.nnx
from seqjax import Const, cells, regularizers, unroll
from seqjax.core import over_time
from seqjax.solvers.gated_loop.plan import make_plan, transposed_by_caller
from seqjax.solvers.native import Unsupported, compiler, kernel
from tests.agree import close, compiled, values_and_gradients
from tests.cell_list import MODELS, draw
from tests.quick import few

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

GATED = {
    "rnn": cells.rnn,
    "lstm": cells.lstm,
    "peephole_lstm": cells.peephole_lstm,
    "gru": cells.gru,
    "gru_reset_before": cells.gru_reset_before,
}
# Batch, steps, features, units. By rows: small weights; by columns: large ones, or a small batch.
ROWS = {"one": (1, 3, 2, 1), "narrow": (50, 9, 5, 16), "ragged": (33, 7, 3, 21), "wide input": (9, 5, 40, 17)}
COLUMNS = {"one sequence": (1, 11, 6, 40), "ragged": (5, 7, 35, 70), "large": (37, 4, 20, 400)}


def inputs(cell, shape, dtype=jnp.float32, seed=0):
    batch, steps, features, _ = shape
    rng = np.random.default_rng(seed)

    def noise(like):
        return jnp.asarray(rng.normal(size=like.shape) / max(like.shape[0], 1) ** 0.5, dtype)

    params = jax.tree.map(noise, jax.eval_shape(lambda: cell.init(jax.random.key(0), features)))
    carry = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), dtype),
        jax.eval_shape(lambda: cell.initial_carry(params, (batch,))),
    )
    return params, carry, jnp.asarray(rng.normal(size=(steps, batch, features)), dtype)


def outcome(cell, method, *args):
    """Values and gradients, as one program."""
    return compiled(partial(values_and_gradients, cell, method))(*args)


def columns(cell, params, carry, xs):
    gated = cell.gated
    _, arrays = make_plan(gated, gated.weights(params), carry, over_time(partial(cell.project, params), xs))
    return kernel.columns(arrays)


@pytest.mark.parametrize("shape", [*ROWS.values(), *COLUMNS.values()], ids=str)
@pytest.mark.parametrize("name", few(GATED, ("lstm", "gru", "gru_reset_before")))
def test_float32_is_within_1e_4_of_a_scan_in_float64(x64, name, shape):
    cell = GATED[name](shape[-1])
    params, carry, xs = inputs(cell, shape)
    assert columns(cell, params, carry, xs) == (shape in COLUMNS.values())
    lengths = np.random.default_rng(1).integers(0, shape[1] + 1, shape[0])
    mask = jnp.asarray(np.arange(shape[1])[:, None] < lengths)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, carry, xs))
    for m in (None, mask):
        got = outcome(cell, "native", params, carry, xs, m)
        expected = outcome(cell, "scan", *wide, m)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert a.dtype == jnp.float32
            assert np.linalg.norm(np.subtract(a, b)) <= 1e-4 * np.linalg.norm(b)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "gelu": partial(jax.nn.gelu, approximate=True),
    "gelu_erf": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "soft_sign": jax.nn.soft_sign,
    "hard_tanh": jax.nn.hard_tanh,
    "sin": jnp.sin,
    "cube": lambda h: h**3 / jnp.asarray(4.0, h.dtype),
    "root": lambda h: jnp.sqrt(jnp.square(h) + jnp.asarray(0.1, h.dtype)),
    "clip": lambda h: jnp.clip(h, jnp.asarray(-0.5, h.dtype), jnp.asarray(0.7, h.dtype)),
    "sign": lambda h: jnp.sign(h) * jnp.log1p(jnp.abs(h)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_any_elementwise_arithmetic(x64, name):
    cell = cells.rnn(19, ACTIVATIONS[name])
    args = inputs(cell, (4, 5, 3, 19), jnp.float64)
    close(outcome(cell, "native", *args), outcome(cell, "scan", *args), 1e-11)


@pytest.mark.parametrize(
    ("name", "activation"), [("tanh", jnp.tanh), ("sigmoid", jax.nn.sigmoid), ("exp", lambda u: jnp.exp(u))]
)
def test_float32_functions_are_accurate_everywhere_and_keep_infinity_and_nan(name, activation):
    """One unit that reads its input alone: y = f(x)."""
    cell = cells.rnn(1, activation)
    params = {"w_x": jnp.ones((1, 1)), "w_h": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
    grid = np.concatenate([np.linspace(-100, 100, 4001), np.linspace(-1, 1, 4001), np.logspace(-30, 1, 500)])
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 87.9, -86.9, 1e30, -1e30]
    x = np.concatenate([grid, special]).astype(np.float32)
    # An infinite carry times w_h = 0 is NaN, so every number is a sequence of one step.
    [ys] = unroll(cell, params, None, jnp.asarray(x)[None, :, None], method="native")[1][..., 0]
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        expected = {"tanh": np.tanh(wide), "sigmoid": 1 / (1 + np.exp(-wide)), "exp": np.exp(wide)}[name]
    inside = (np.abs(x) < 87) | ~np.isfinite(x)
    np.testing.assert_allclose(np.asarray(ys)[inside], expected[inside], rtol=4e-7, atol=1e-37)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
@pytest.mark.parametrize("shape", [*ROWS.values(), *COLUMNS.values()], ids=[*ROWS, *COLUMNS])
def test_a_loop_in_batch_major_memory_has_the_same_bits(name, shape):
    cell = GATED[name](shape[-1])
    given = inputs(cell, shape)
    expected = outcome(cell, "native", *given)
    with transposed_by_caller(True):
        got = outcome(cell, "native", *given)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_loop_in_batch_major_memory_with_two_batch_axes_masks_and_lanes(x64):
    cell, (params, carry, xs) = cells.lstm(20), inputs(cells.lstm(20), (6, 5, 3, 20), jnp.float64)
    carry = jax.tree.map(lambda leaf: leaf.reshape(2, 3, -1), carry)
    xs, mask = xs.reshape(5, 2, 3, 3), jnp.arange(30).reshape(5, 2, 3) % 4 != 1

    def loss(method, params, xs):
        (h, c), ys = unroll(cell, params, carry, xs, mask=mask, method=method)
        return (h * c).sum() + jnp.sin(ys).sum()

    def of_lanes(method):
        return compiled(jax.vmap(jax.grad(partial(loss, method), (0, 1))))(lanes, xs_of_lanes)

    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    xs_of_lanes = jnp.stack([xs, -xs])
    with transposed_by_caller(True):
        got = of_lanes("native")
    close(got, of_lanes("scan"), 1e-9)


def test_wide_batch_major_layers_need_no_more_memory_than_time_major_ones():
    """Nothing is copied to transpose it, between the layers neither."""

    def memory(time_major, xs):
        layers = [seqjax.nnx.Recurrent(cells.gru(256), 256, time_major=time_major, rngs=nnx.Rngs(0)) for _ in range(2)]
        graph, params, rest = nnx.split(layers, nnx.Param, ...)

        def loss(params, xs, w):
            for layer in nnx.merge(graph, params, rest):
                xs = layer(xs)
            return ((xs @ w) ** 2).sum()

        program = jax.jit(jax.grad(loss)).lower(params, xs, jnp.ones((256, 2))).compile()
        return program.memory_analysis().temp_size_in_bytes

    batch_major, time_major = memory(False, jnp.ones((40, 50, 256))), memory(True, jnp.ones((50, 40, 256)))
    assert batch_major <= 1.02 * time_major


@pytest.mark.parametrize(
    "swap",
    [
        lambda a: jnp.concatenate(jnp.split(a, 2, -1)[::-1], -1),
        lambda a: jnp.stack([a[..., 1], a[..., 0]], -1),
        lambda a: jnp.concatenate([a[..., 1:], a[..., :1]], -1),
    ],
    ids=["split", "stack", "slices"],
)
@pytest.mark.parametrize("method", ["native", "persistent"])
def test_gates_that_take_units_apart_are_refused_and_auto_runs_them(swap, method):
    cell = cells.rnn(2, lambda a: jnp.tanh(swap(a)))
    given = cell.init(jax.random.key(0), 3), None, jax.random.normal(jax.random.key(1), (4, 5, 3))
    with pytest.raises(ValueError, match=r"a slot|an array of shape|the primitive"):
        unroll(cell, *given, method=method)
    close(unroll(cell, *given), unroll(cell, *given, method="scan"), 1e-6)


def test_a_nan_stays_in_its_sequence():
    cell = cells.lstm(16)
    params, carry, xs = inputs(cell, (20, 6, 3, 16))
    ys = unroll(cell, params, carry, xs.at[2, 7].set(jnp.nan), method="native")[1]
    assert bool(jnp.isnan(ys[2:, 7]).all())
    assert not bool(jnp.isnan(jnp.delete(ys, 7, axis=1)).any())


@pytest.mark.parametrize(
    "shape",
    [ROWS["narrow"], COLUMNS["ragged"], COLUMNS["one sequence"], (3, 11, 6, 40)],
    ids=["rows", "columns", "one sequence", "three sequences"],
)
def test_the_same_bits_every_time_also_from_many_threads(shape):
    """No result may depend on how many threads are free, and no call may wait for a thread that another one holds."""
    cell = cells.lstm(shape[-1])
    args = inputs(cell, shape)
    run = jax.jit(lambda *args: values_and_gradients(cell, "native", *args))
    expected = jax.tree.map(np.asarray, run(*args))
    with ThreadPoolExecutor(6) as threads:
        for got in threads.map(lambda _: jax.tree.map(np.asarray, run(*args)), range(60), timeout=120):
            jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_threads_that_share_the_units_do_not_overtake_each_other(name):
    """The left factor of the recurrent product is no carry here: every thread writes a part of it at each step."""
    cell, sample = regularizers.recurrent_dropout(GATED[name](304), 0.4)
    params, carry, xs = inputs(cell, (100, 24, 3, 304))
    args = (params, carry, (xs, sample(jax.random.key(0), carry, xs)))
    assert columns(GATED[name](304), params, carry, xs)
    native, scan = (jax.jit(partial(values_and_gradients, cell, method)) for method in ("native", "scan"))
    expected = scan(*args)
    for _ in range(5):
        close(native(*args), expected, 2e-4)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 30),
    steps=st.integers(1, 12),
    features=st.integers(1, 20),
    units=st.integers(1, 70),
    name=st.sampled_from(["lstm", "gru"]),
)
def test_any_shape(batch, steps, features, units, name):
    cell = GATED[name](units)
    args = inputs(cell, (batch, steps, features, units))
    got, expected = (outcome(cell, method, *args) for method in ("native", "scan"))
    close(got, expected, 2e-5)


def test_lanes_loops_and_checkpoints_around_it(x64):
    cell = cells.gru(18)
    params, carry, xs = inputs(cell, (6, 5, 3, 18), jnp.float64)
    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)

    def gradient(method, params):
        def loss(params):
            run = jax.checkpoint(lambda params: unroll(cell, params, carry, xs, method=method)[1])
            return jnp.sum(jnp.square(run(params)))

        return jax.grad(loss)(params)

    def descend(method):
        def body(params, _):
            grads = gradient(method, params)
            return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), None

        return jax.lax.scan(body, params, length=3)[0]

    close(jax.vmap(partial(gradient, "native"))(lanes), jax.vmap(partial(gradient, "scan"))(lanes))
    close(descend("native"), descend("scan"))


def test_a_const_of_the_batch_size_is_read_as_what_the_gates_make_of_it(x64):
    """The three rows of the peepholes [3, H] and a dropout mask [B, H] look alike if B is 3."""
    cell, sample = regularizers.recurrent_dropout(cells.peephole_lstm(8), 0.5)
    params, carry, xs = inputs(cell._replace(init=cells.peephole_lstm(8).init), (3, 5, 2, 8), jnp.float64)
    xs = (xs, sample(jax.random.key(1), carry, xs))
    assert isinstance(xs[1], Const)
    args = (cell, params, carry, xs)
    close(unroll(*args, method="native"), unroll(*args, method="scan"))


def test_second_derivatives_of_inputs_and_carry(x64):
    cell, params, carry, xs = draw(MODELS["gru_reset_before"], steps=3)

    def size(method, params, carry, xs):
        _, grads = values_and_gradients(cell, method, params, carry, xs)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads))

    native, scan = (jax.grad(partial(size, m), (0, 1, 2))(params, carry, xs) for m in ("native", "scan"))
    close(native, scan)


@pytest.mark.parametrize(
    ("cell", "dtype", "message"),
    [
        (cells.gru(4, dtype=jnp.bfloat16), jnp.bfloat16, "weights of the dtype of the carry, float32, got bfloat16"),
        (cells.peephole_sru(4, dtype=jnp.bfloat16), jnp.bfloat16, "weights of the dtype of the carry, float32"),
        (cells.rnn(4, lambda h: jax.lax.cumsum(h, h.ndim - 1)), jnp.float32, "no C.. for these gates: the primitive"),
        (cells.rnn(4, lambda h: h[..., ::-1]), jnp.float32, "no C.. for these gates: the primitive rev"),
        (cells.min_gru(4), jnp.float32, "needs a cell with the `gated` hint"),
    ],
)
def test_what_cannot_be_written_out_is_refused_and_auto_does_without(cell, dtype, message):
    params = cell.init(jax.random.key(0), 3)
    xs = jnp.ones((5, 2, 3), dtype)
    with pytest.raises(ValueError, match=message):
        unroll(cell, params, None, xs, method="native")
    close(unroll(cell, params, None, xs), unroll(cell, params, None, xs, method="scan"), 1e-2)


def test_unsupported_is_a_value_error():
    assert issubclass(Unsupported, ValueError)
