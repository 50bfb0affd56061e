"""Every method gives what scan gives: carry, outputs, and gradients for params, carry, inputs and noise."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.test_util import check_grads

import seqjax
from seqjax import cells, solvers, unroll
from seqjax.solvers import choice, native
from seqjax.solvers.fused import fused
from seqjax.solvers.scan import rematerialized, scan
from tests.agree import at, check_methods, close, compiled, equations, methods_of, values_and_gradients
from tests.cell_list import BARE, MODELS, D, Model, draw
from tests.quick import KINDS, few

# Compositions of what is tested by itself.
COMPOSED = {
    *("masked_conv_stack", "stack_of_one", "nested_stack", "stack_of_from_step", "head_stack", "residual_stack"),
    *("stack_of_residuals", "masked_from_step", "reset_stack", "dropout_stack", "masked_dropout_stack"),
    "layer_norm_stack",
}


@pytest.mark.parametrize("name", few(MODELS, {*MODELS} - {*BARE} - COMPOSED | {*KINDS}))
def test_every_method_equals_scan(x64, name):
    drawn = draw(MODELS[name], steps=4)
    _, grads = check_methods(drawn, methods_of(drawn.cell))
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads[0]))


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("peephole_lstm", (2, 3)),
        ("gru_reset_before", ()),
        ("min_gru", (2, 3)),
        ("from_step", ()),
        ("stack", (2,)),
        ("per_step_dropout", (2, 1)),
    ],
)
def test_every_method_equals_scan_with_a_mask_with_holes_and_any_batch_axes(x64, name, batch):
    drawn = draw(MODELS[name], batch=batch)
    holes = jax.random.bernoulli(jax.random.key(3), 0.6, (7, *batch))
    check_methods(drawn, methods_of(drawn.cell), holes.at[3].set(False))


@pytest.mark.parametrize("name", ["min_gru", "stack_of_one"])
def test_no_batch_axis(x64, name):
    drawn = draw(MODELS[name], batch=())
    check_methods(drawn, methods_of(drawn.cell))


@pytest.mark.parametrize("name", ["gru", "masked"])
def test_checkpointed_with_any_chunk_equals_scan(x64, name):
    check_methods(draw(MODELS[name]), {str(c): partial(solvers.checkpointed, chunk=c) for c in (1, 2, 5, 7)})


@pytest.mark.parametrize("name", few(BARE))
def test_one_step_is_a_sequence_too(x64, name):
    cell, params, carry, xs = draw(MODELS[name], steps=1)
    methods = [method for name, method in methods_of(cell).items() if name != "chunks of 3"]

    @compiled
    def run(params, carry, xs):
        return cell.step(params, carry, at(xs, 0)), [
            unroll(cell, params, carry, xs, method=m) for m in [*methods, "scan"]
        ]

    step, found = run(params, carry, xs)
    for carry, ys in found:
        close((carry, ys[0]), step)


def test_auto_takes_the_first_method_of_the_ranking_that_the_cell_admits(x64, monkeypatch):
    def methods_in(cell, compiler=("c++",)):
        monkeypatch.setattr(native, "compiler", lambda: compiler)
        params = cell.init(jax.random.key(0), D)
        xs = jnp.ones((3, 2, D), jnp.float32)
        return str(jax.make_jaxpr(lambda params, xs: unroll(cell, params, None, xs))(params, xs))

    monkeypatch.setattr(choice, "ranking", lambda *size: ("native", "rematerialized"))
    assert "by_platform" in methods_in(cells.gru(16))
    assert "by_platform" not in methods_in(cells.gru(16), None)
    assert "remat" in methods_in(cells.gru(16), None)
    unknown = cells.rnn(16, lambda h: jax.lax.cumsum(h, h.ndim - 1))  # no arithmetic unit by unit
    assert "by_platform" not in methods_in(unknown)
    for name in ["gru", "min_gru", "from_step", "stack"]:
        drawn = draw(MODELS[name])
        close(unroll(*drawn), unroll(*drawn, method="scan"))


def test_a_compiler_that_fails_is_named_and_another_method_taken(monkeypatch):
    if native.compiler() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("CXX", "false")
    new = Model(cells.rnn(4, lambda h: h * jnp.asarray(0.73, h.dtype)))  # so that nothing of it is compiled yet
    cell, params, carry, xs = draw(new, dtype=jnp.float32)
    with pytest.warns(RuntimeWarning, match="is left out: the C.. compiler 'false' failed"):
        close(unroll(cell, params, carry, xs), unroll(cell, params, carry, xs, method="scan"), 1e-5)


@pytest.mark.parametrize(
    ("size", "first"),
    [
        (("tpu", "gated", 1, 1), "persistent"),
        (("cuda", "gated", 1, 512), "persistent"),
        (("tpu", "gated", 1, 512), "fused:8"),
        (("tpu", "affine", 1, 1), "associative"),
        (("cpu", "gated", 256, 16), "native"),
    ],
)
def test_the_ranking_of_methods(size, first):
    assert solvers.ranking(*size)[0] == first


def test_the_measured_table_names_methods():
    for lines in choice._measured().values():
        for line in lines:
            assert line.methods
            assert {name.partition(":")[0] for name in line.methods} <= set(solvers.METHODS) - {"auto"}


@pytest.mark.parametrize(
    ("name", "method"),
    [("lstm", "fused"), ("gru_reset_before", "scan"), ("gru_reset_before", "fused"), ("gru_reset_before", "native")],
)
def test_gradients_are_those_of_numerical_differences(x64, name, method):
    cell, params, carry, xs = draw(MODELS[name], steps=4)

    @jax.jit
    def run(params, carry, xs):
        return unroll(cell, params, carry, xs, method=method)

    check_grads(run, (params, carry, xs), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", ["fused", "native"])
def test_a_gradient_of_its_own_has_second_derivatives(x64, method):
    cell, params, carry, xs = draw(MODELS["gru"], steps=3)

    def gradient_norm(params, method):
        _, (grads, _, _) = values_and_gradients(cell, method, params, carry, xs)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads))

    close(*(compiled(jax.grad(partial(gradient_norm, method=m)))(params) for m in (method, "scan")))


def test_fused_leaves_the_weight_gradient_out_of_the_backward_loop():
    """No array of the shape of the weights comes out of a loop: that is what the method is for."""
    cell, params, carry, xs = draw(MODELS["gru"], dtype=jnp.float32)

    def made_by_loops(method):
        def loss(params):
            return unroll(cell, params, carry, xs, method=method)[1].sum()

        loops = [e for e in equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr) if e.primitive.name == "scan"]
        assert len(loops) == 2
        return [v.aval.shape for e in loops for v in e.outvars]

    assert params["w_h"].shape in made_by_loops("scan")
    assert params["w_h"].shape not in made_by_loops("fused")


@pytest.mark.parametrize("chunk", [0, -1, 8])
def test_a_chunk_outside_the_sequence_is_refused(chunk):
    cell, params, carry, xs = draw(MODELS["gru"], dtype=jnp.float32)
    with pytest.raises(ValueError, match=f"chunk must lie between 1 and the number of steps 7, got {chunk}"):
        unroll(cell, params, carry, xs, method=partial(solvers.checkpointed, chunk=chunk))


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("min_gru", "fused", 'method "fused" needs a cell with the `gated` hint; use "scan"'),
        ("from_step", "fused", "`gated` hint"),
        ("gru", "associative", 'method "associative" needs a cell with the `affine` hint; use "scan"'),
        ("stack", "associative", "`affine` hint"),
        ("gru", "magic", r"unknown method 'magic', expected one of \['associative', 'auto', .*'scan'\] or a solver"),
    ],
)
def test_methods_that_do_not_fit_are_refused(name, method, message):
    with pytest.raises(ValueError, match=message):
        unroll(*draw(MODELS[name], dtype=jnp.float32), method=method)


def test_explain_names_the_method_of_each_layer_and_platform_and_why_not_the_others(monkeypatch):
    monkeypatch.setattr(native, "compiler", lambda: ("c++",))
    cell = cells.stack(cells.lstm(16), cells.min_gru(300), cells.gru(300), cells.delta_net(2, 3, 2))
    params = cell.init(jax.random.key(0), D)
    found = seqjax.explain(cell, params, jnp.ones((3, 2, D)))
    methods = [(str(one.cell).partition("(")[0], one.platform, one.method) for one in found]
    assert methods == [
        *[("lstm", "cpu", "native"), ("lstm", "cuda", "persistent"), ("lstm", "tpu", "persistent")],
        *[("min_gru", "cpu", "associative"), ("min_gru", "cuda", "associative"), ("min_gru", "tpu", "associative")],
        *[("gru", "cpu", "native"), ("gru", "cuda", "persistent"), ("gru", "tpu", "fused:8")],
        *[("delta_net", platform, "chunkwise") for platform in ("cpu", "cuda", "tpu")],
    ]
    lstm = found[0]
    assert lstm.others["associative"] == "the cell has no `affine` hint"
    assert lstm.others["persistent"] == "runs on NVIDIA GPUs and TPUs only"
    assert lstm.others["scan"] == "is expected to be slower than native at this size"
    assert "native          runs on CPUs only" in str(found[1])
    monkeypatch.setattr(native, "compiler", lambda: None)
    [without] = seqjax.explain(cells.lstm(16), params[0], jnp.ones((3, 2, D)), platforms=["cpu"])
    assert (without.method, without.others["native"]) == ("rematerialized", "there is no C++ compiler")


def test_a_program_holds_all_platforms():
    """`auto` asks for the platform of the program and not for that of this process."""
    cell = cells.stack(cells.lstm(16), cells.gru(300), cells.min_gru(3))
    params = cell.init(jax.random.key(0), D)
    run = jax.jit(lambda params, xs: unroll(cell, params, None, xs)[1])
    xs = jnp.ones((3, 2, D))
    exported = jax.export.export(run, platforms=["cpu", "cuda", "tpu"])(params, xs)
    close(jax.export.deserialize(exported.serialize()).call(params, xs), run(params, xs), 1e-6)


@pytest.mark.parametrize("method", [scan, rematerialized, fused])
def test_several_steps_per_turn_of_the_loop_compute_the_same(x64, method):
    check_methods(draw(MODELS["lstm"]), {str(unroll): partial(method, unroll=unroll) for unroll in (2, 7, 9)})
