"""The method `persistent`: its kernels, interpreted here, and lowered for the platforms that run them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import seqjax
from seqjax import cells, normalization, unroll, unrolling
from seqjax.solvers import native
from seqjax.solvers.gated_loop.solver import supports
from seqjax.solvers.persistent import mosaic, persistent, tiling
from tests.agree import check_methods, close, compiled, values_and_gradients
from tests.cell_list import MODELS, D, H, Model, draw, masked

CUDA, TPU = (partial(persistent, interpret=platform) for platform in ("cuda", "tpu"))
CALLS = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}
# One stage, two, none; several leaves of a carry; peepholes, masks, resets, residuals, noise that has a gradient.
NAMES = ["rnn", "lstm", "gru_reset_before", "peephole_lstm", "ind_rnn", "slstm", "everything", "per_step_dropout"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16 sequences and 3 steps, of which the last are not full."""
    monkeypatch.setattr(mosaic, "for_tpu", lambda *args: tiling.for_tpu(*args)._replace(rows=16, steps=3))


@pytest.mark.parametrize("name", NAMES)
def test_the_carry_passes_from_block_to_block(x64, small_blocks, name):
    check_methods(draw(MODELS[name], batch=(17,)), {"tpu": TPU})


@pytest.mark.parametrize("method", [CUDA, TPU], ids=["cuda", "tpu"])
@pytest.mark.parametrize("batch", [(), (2, 9)], ids=str)
def test_any_batch_axes_and_masks_with_holes(x64, method, batch):
    holes = jax.random.bernoulli(jax.random.key(3), 0.6, (7, *batch))
    check_methods(draw(MODELS["gru_reset_before"], batch=batch), {"it": method}, holes)


@pytest.mark.parametrize("method", [CUDA, TPU], ids=["cuda", "tpu"])
def test_what_arithmetic_makes_of_the_padding_stays_there(x64, method):
    """The slots of 5 units are padded to 16 or 128 with 0, and 0 / 0 is NaN."""
    cell = cells.rnn(H, lambda a: jnp.tanh(a) + 0.1 * a / a)
    check_methods(draw(Model(cell)), {"it": method})


@pytest.mark.parametrize("method", [CUDA, TPU], ids=["cuda", "tpu"])
def test_lanes_have_weights_of_their_own(x64, method):
    drawn = [draw(MODELS["lstm"], steps=4, seed=seed)[1:] for seed in range(3)]
    run = partial(values_and_gradients, MODELS["lstm"].cell, method)
    lanes = compiled(jax.vmap(run))(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn))
    for i, one in enumerate(drawn):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], lanes), compiled(run)(*one))


def test_bfloat16_sums_in_float32():
    cell = cells.lstm(20, dtype=jnp.bfloat16)
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (9, 17, D), jnp.bfloat16)
    carry = cell.initial_carry(params, (17,))
    got, expected = (compiled(partial(values_and_gradients, cell, m))(params, carry, xs) for m in (CUDA, "scan"))
    assert got[0][1].dtype == jnp.float32
    close(got[0], expected[0], 1e-5)  # the same products of the same bfloat16 numbers
    close(jax.tree.map(jnp.float32, got[1]), jax.tree.map(jnp.float32, expected[1]), 2e-2)


@pytest.mark.parametrize("name", ["float16", "float32"])
def test_other_dtypes(name):
    dtype = jnp.dtype(name)
    cell = cells.gru(6, dtype=dtype)
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (9, 3, D), dtype)
    got, expected = (compiled(partial(unroll, cell, method=m))(params, None, xs) for m in (CUDA, "scan"))
    close(got, expected, 1e-5)


def lowered(platform, cell, method="persistent", *, dtype=jnp.float32, gradient=True):
    """The program of a gradient, lowered for a platform that this machine need not have."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), D))
    xs = jax.ShapeDtypeStruct((11, 5, D), dtype)

    def loss(params, xs):
        return jnp.square(unroll(cell, params, None, xs, method=method)[1]).sum()

    run = jax.jit(jax.grad(loss) if gradient else loss)
    return run.trace(params, xs).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", CALLS)
@pytest.mark.parametrize("cell", [cells.lstm(16), cells.gru_reset_before(40), cells.rnn(100)], ids=str)
def test_a_loop_is_one_kernel(platform, cell):
    for gradient in (False, True):
        text = lowered(platform, cell, gradient=gradient)
        assert "stablehlo.while" not in text
        assert text.count(f"custom_call @{CALLS[platform]}") == 1 + gradient


@pytest.mark.parametrize("platform", ["cpu", "rocm"])
def test_other_platforms_run_a_loop_of_jax(platform):
    text = lowered(platform, cells.lstm(16))
    assert "stablehlo.while" in text
    assert "triton" not in text


def test_the_precision_of_products_is_that_of_the_caller():
    default = lowered("cuda", cells.lstm(16))
    with jax.default_matmul_precision("highest"):
        assert lowered("cuda", cells.lstm(16)) != default


@pytest.mark.parametrize("platform", CALLS)
def test_auto_chooses_by_the_platform_of_the_program(platform):
    assert CALLS[platform] in lowered(platform, cells.gru(16), "auto")
    assert CALLS[platform] not in lowered(platform, cells.gru(2048), "auto")
    assert "seqjax_forward" not in lowered(platform, cells.gru(2048), "auto")


@pytest.mark.parametrize("platform", CALLS)
def test_steps_that_are_more_than_elementwise_run_one_per_turn_of_the_loop(platform):
    """With 8 of them, XLA took two minutes for a layer-normalized LSTM."""
    for units in (16, 256):
        cell = normalization.layer_norm(cells.gru(units))
        params = jax.eval_shape(lambda cell=cell: cell.init(jax.random.key(0), D))
        [one] = seqjax.explain(cell, params, jax.ShapeDtypeStruct((9, 2, D), jnp.float32), platforms=[platform])
        assert one.method == "fused"
        assert "the primitive" in one.others["persistent"]


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="this JAX lowers Triton for the devices of a mesh only")
def test_each_device_of_a_shard_map_runs_the_kernel_and_divided_arrays_are_left_to_xla():
    cell = cells.lstm(16)
    params = cell.init(jax.random.key(0), D)
    xs = jnp.ones((5, 8, D))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def loss(params, xs):
        return jnp.square(unroll(cell, params, None, xs, method="persistent")[1]).sum()

    def text(run, *args):
        return jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",)).as_text()

    reduced = lambda *args: jax.lax.psum(loss(*args), "data")  # noqa: E731
    mapped = jax.shard_map(reduced, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P())
    assert "triton" in text(jax.grad(mapped), params, xs)
    divided = jax.device_put(xs, jax.NamedSharding(mesh, P(None, "data")))
    assert "triton" not in text(jax.grad(loss), params, divided)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (normalization.layer_norm(cells.gru(4)), 'no kernel for these gates: the primitive .*; use "fused"'),
        (cells.min_gru(4), "needs a cell with the `gated` hint"),
        (cells.projected_lstm(4, 2), 'no kernel for these gates: the primitive dot_general; use "fused"'),
    ],
    ids=["layer_norm", "min_gru", "projected_lstm"],
)
def test_what_is_not_elementwise_is_refused_with_the_cure(cell, message):
    params = cell.init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match=message):
        unroll(cell, params, None, jnp.ones((5, 2, 3)), method="persistent")


def test_a_kernel_that_the_platform_cannot_compile_is_named_once(monkeypatch):
    """`auto` runs the loop of JAX then, and the method by name raises."""
    monkeypatch.setattr("seqjax.solvers.gated_loop.call._warned", set())

    def unknown(*args):
        raise NotImplementedError("Triton has no erfc")

    monkeypatch.setattr("seqjax.solvers.persistent.triton.forward", unknown)
    with pytest.warns(RuntimeWarning, match='method "persistent" is left out: Triton has no erfc'):
        assert "stablehlo.while" in lowered("cuda", cells.rnn(4), "auto", gradient=False)
    with pytest.raises(NotImplementedError, match="erfc"):
        lowered("cuda", cells.rnn(4), gradient=False)


def test_blocks_of_a_tpu_fit_into_its_memory():
    def sizes(units, batch, steps):
        cell = cells.lstm(units)
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), D))
        found = []

        def recorded(*args):
            found.append(tiling.for_tpu(*args))
            return found[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mosaic, "for_tpu", recorded)
            xs = jax.ShapeDtypeStruct((steps, batch, D), jnp.float32)
            jax.jit(partial(unroll, cell, method="persistent")).trace(params, None, xs).lower(
                lowering_platforms=("tpu",)
            )
        return found[0]

    small, large, long = sizes(16, 3, 7), sizes(256, 500, 7), sizes(128, 128, 10_000)
    assert (small.rows, small.width, small.steps) == (16, 128, 7)
    assert (large.rows, large.width) == (32, 256)
    assert large.steps < 7
    assert long.rows * long.width * long.steps * 4 < tiling.VMEM
    with pytest.raises(ValueError, match=r"weights of 1024 units do not fit into the memory of a TPU core"):
        sizes(1024, 16, 7)


def test_weights_that_do_not_fit_into_the_blocks_of_a_gpu_are_refused_with_the_cure():
    message = r"no room for 1024 units on a GPU: .* 256 KiB per block, and 184 KiB fit into each of 64; use partial"
    with pytest.raises(ValueError, match=message):
        lowered("cuda", cells.lstm(1024))
    lowered("cuda", cells.lstm(700))
    lowered("cuda", cells.lstm(1024, dtype=jnp.bfloat16), dtype=jnp.bfloat16)


def test_blocks_that_wait_for_each_other_run_at_the_same_time(monkeypatch):
    """A GPU of 40 multiprocessors has room for 20 of them and another 20; 512 units need 32."""
    monkeypatch.setattr(tiling, "processors", lambda: 40)
    assert blocks(cells.lstm(256), 3).across == 16
    with pytest.raises(ValueError, match=r"no room for 512 units .* into each of 20"):
        lowered("cuda", cells.lstm(512))
    assert CALLS["cuda"] not in lowered("cuda", cells.lstm(512), "auto")


@pytest.mark.parametrize("platform", CALLS)
def test_float64_has_no_kernel(x64, platform):
    with pytest.raises(ValueError, match='no kernel for float64; use "fused"'):
        lowered(platform, cells.lstm(16, dtype=jnp.float64), dtype=jnp.float64)
    assert CALLS[platform] not in lowered(platform, cells.lstm(16, dtype=jnp.float64), "auto", dtype=jnp.float64)


def blocks(cell, batch):
    """How a cell is divided on a GPU."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), D))
    found = []

    def check(plan, wanted, arrays):
        found.append(tiling.for_cuda(plan, arrays))

    carry = jax.eval_shape(lambda params: cell.initial_carry(params, (batch,)), params)
    assert not supports(check, cell, params, carry, jax.ShapeDtypeStruct((5, batch, D), params["w_x"].dtype))
    return found[0]


def test_blocks_of_a_gpu():
    """One of them has up to 64 units; more are divided, and the fewest sequences per block that use the whole GPU."""
    assert blocks(cells.lstm(5), 3) == tiling.Blocks(5, 16, 16, 16, 16, 4)
    assert blocks(cells.lstm(64), 3) == tiling.Blocks(64, 16, 64, 64, 64, 8)
    assert blocks(cells.lstm(65), 3) == tiling.Blocks(65, 16, 128, 16, 64, 8)
    assert blocks(cells.rnn(65), 3).units == 64
    assert blocks(cells.gru(650), 20)[1:4] == (16, 704, 16)
    assert blocks(cells.lstm(512), 64).rows == 16
    assert blocks(cells.lstm(512), 256).rows == 64
    assert blocks(cells.lstm(512), 70).rows == 32
    assert blocks(cells.ind_rnn(3000), 2).across == 47  # without products they do not wait for each other


def test_a_mask_keeps_the_carry(x64):
    drawn = draw(masked(MODELS["lstm"]), batch=(3,))
    check_methods(drawn, {"cuda": CUDA, "tpu": TPU})
    assert np.isfinite(jax.tree.leaves(drawn.params)[0]).all()


@pytest.mark.skipif(native.compiler() is None, reason="needs a C++ compiler")
def test_what_a_gradient_keeps_on_a_cpu_does_not_depend_on_the_kernels_of_other_platforms():
    """Outside jit all of it is in memory, and its types are the same on every platform."""
    cell = cells.lstm(16)
    params, xs = cell.init(jax.random.key(0), D), jnp.ones((30, 20, D))

    def kept(method):
        _, pull = jax.vjp(lambda params: unroll(cell, params, None, xs, method=method)[1], params)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pull))

    assert kept("auto") == kept("native")


@pytest.mark.parametrize("given", [False, True])
def test_both_directions_share_a_kernel_on_a_gpu_of_this_process(x64, monkeypatch, given):
    monkeypatch.setattr("seqjax.unrolling.gpus", lambda: ["a GPU"])
    monkeypatch.setattr("seqjax.unrolling.choose", lambda *args: "persistent")
    cell = cells.peephole_lstm(4)
    params = tuple(draw(Model(cell), batch=(3,), seed=seed).params for seed in (1, 2))
    _, _, carry, xs = draw(Model(cell), batch=(3,))
    carries = (carry, jax.tree.map(lambda leaf: -leaf, carry)) if given else None
    mask = seqjax.mask_from_lengths(jnp.array([7, 4, 5]), 7)

    def run(params, carries, xs):
        return seqjax.bidirectional((cell, cell), params, carries, xs, mask=mask)

    def lanes(params, carries, xs):
        return unrolling._lanes(cell, params, carries or (None, None), xs, mask)

    close(compiled(lanes)(params, carries, xs), compiled(run)(params, carries, xs))
    lower = partial(jax.jit(run).trace(params, carries, xs).lower)
    assert "tensor<2x4x16x" not in lower(lowering_platforms=("cpu",)).as_text()
    assert "tensor<2x4x16x" in lower(lowering_platforms=("cuda",)).as_text()
