"""What only a GPU can show: that the kernels of `persistent` run, with blocks that wait for each other.

Needs an NVIDIA GPU: python -m pytest tests/test_gpu.py. Skipped elsewhere.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax import cells
from seqjax.solvers.gated_loop.solver import supports
from seqjax.solvers.persistent import Persistent
from seqjax.solvers.persistent.tiling import gpus
from tests.agree import values_and_gradients
from tests.cell_list import MODELS, Model, draw, masked

if not gpus():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

# One stage, two, none; units that are not a multiple of a block's.
WIDE = {
    f"{name}({units})": Model(getattr(cells, name)(units))
    for units in (72, 130)
    for name in ("rnn", "lstm", "gru", "gru_reset_before", "peephole_lstm", "ind_rnn")
} | {"masked": masked(Model(cells.gru_reset_before(130)))}


def on_gpu(cell, method, *args):
    with jax.default_device(gpus()[0]):
        return jax.device_get(jax.jit(partial(values_and_gradients, cell, method))(*args))


def error(got, expected):
    """The largest difference, relative to the largest entry of each array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(a - b).max(initial=0) / max(1, np.abs(b).max(initial=0))) for a, b in pairs)


@pytest.mark.parametrize(("name", "model"), [*MODELS.items(), *WIDE.items()], ids=lambda value: str(value)[:30])
def test_values_and_gradients_are_those_of_a_scan(name, model):
    cell, params, carry, xs = draw(model, batch=(37,), dtype=jnp.float32)
    reason = supports(partial(Persistent(None).check_on, "cuda"), cell, params, carry, xs)
    if reason:
        pytest.skip(reason)
    with jax.default_matmul_precision("highest"):
        expected, got = (on_gpu(cell, method, params, carry, xs) for method in ("scan", "persistent"))
    assert error(got, expected) < 3e-4


@pytest.mark.parametrize("units", [32, 200, 512])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_every_time(units, dtype):
    cell = cells.lstm(units, dtype=jnp.dtype(dtype))
    params = cell.init(jax.random.key(0), 8)
    xs = jax.random.normal(jax.random.key(1), (200, 64, 8), jnp.dtype(dtype))
    carry = cell.initial_carry(params, (64,))
    first = on_gpu(cell, "persistent", params, carry, xs)
    for _ in range(5):
        for a, b in zip(
            jax.tree.leaves(first), jax.tree.leaves(on_gpu(cell, "persistent", params, carry, xs)), strict=True
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("units", [16, 72])
def test_lanes_are_the_calls_of_one(units):
    cell = cells.lstm(units)
    params = jax.vmap(lambda key: cell.init(key, 3))(jax.random.split(jax.random.key(0), 40))
    xs = jax.random.normal(jax.random.key(1), (9, 20, 3))

    def run(params):
        return seqjax.unroll(cell, params, None, xs, method="persistent")[1]

    with jax.default_device(gpus()[0]), jax.default_matmul_precision("highest"):
        lanes = jax.jit(jax.vmap(run))(params)
        for i in (0, 17, 39):
            one = jax.jit(run)(jax.tree.map(lambda leaf, i=i: leaf[i], params))
            np.testing.assert_allclose(lanes[i], one, rtol=0, atol=1e-5)


def test_auto_runs_the_kernel_and_on_a_cpu_of_the_same_machine_does_not():
    cell = cells.lstm(256)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    xs = jax.ShapeDtypeStruct((9, 20, 3), jnp.float32)
    for device, runs in ((gpus()[0], True), (jax.devices("cpu")[0], False)):
        sharding = jax.sharding.SingleDeviceSharding(device)
        placed = jax.tree.map(lambda leaf, s=sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), params)
        text = jax.jit(partial(seqjax.unroll, cell)).lower(placed, None, xs).as_text()
        assert ("triton" in text) == runs
