"""Solvers in parallel over time: what scan gives, or an error, or NaN and a report."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agree import check_methods, close, compiled, values_and_gradients
from cell_list import MODELS, D, Model, draw, masked, reset, residual

from seqjax import cells, parallel, unroll
from seqjax.core import Cell
from seqjax.newton import newton, newton_with_report
from seqjax.parallel import associative, linear_recurrence

AFFINE = {
    "min_gru": MODELS["min_gru"],
    "input_dropout": MODELS["input_dropout"],
    "masked_reset": masked(reset(MODELS["min_gru"])),
    "residual": residual(Model(cells.min_gru(D))),
    "stack": Model(cells.stack(cells.min_gru(3), cells.min_gru(4))),
}


@pytest.fixture(params=[True, False], ids=["sequential", "log_depth"])
def prefix(request, monkeypatch):
    """Both ways to run a prefix, whatever the device."""
    monkeypatch.setattr(parallel, "sequential", lambda: request.param)


@pytest.mark.parametrize("name", AFFINE)
def test_associative_gives_what_scan_gives(x64, prefix, name):
    chunks = {str(c): partial(associative, chunk=c) for c in (None, 1, 3, 7)}
    check_methods(draw(AFFINE[name]), chunks)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_associative_takes_masks_with_holes_and_any_batch_axes(x64, prefix, batch):
    holes = jax.random.bernoulli(jax.random.key(3), 0.6, (7, *batch))
    check_methods(draw(MODELS["min_gru"], batch=batch), {"3": partial(associative, chunk=3)}, holes)


def test_associative_in_float32_over_many_steps(prefix):
    """The products of a underflow long before the end."""
    drawn = draw(MODELS["min_gru"], steps=4096, dtype=jnp.float32)
    got = compiled(partial(values_and_gradients, drawn.cell, partial(associative, chunk=1024)))(*drawn[1:])
    close(got, compiled(partial(values_and_gradients, drawn.cell, "scan"))(*drawn[1:]), 1e-5)


def test_a_long_sequence_is_cut_on_a_cpu(monkeypatch):
    drawn = draw(MODELS["min_gru"], dtype=jnp.float32)
    program = str(jax.make_jaxpr(partial(unroll, drawn.cell, method=associative))(*drawn[1:]))
    assert "remat" not in program
    monkeypatch.setattr(parallel, "CACHED", 1)
    monkeypatch.setattr(parallel, "sequential", lambda: True)
    program = str(jax.make_jaxpr(partial(unroll, drawn.cell, method=associative))(*drawn[1:]))
    assert "remat" in program


def test_the_gradient_of_a_recurrence_has_a_gradient(x64, prefix):
    a, b, h = (jnp.asarray(np.random.default_rng(k).normal(size=s)) for k, s in enumerate([(5, 2), (5, 2), (2,)]))

    def plain(a, b, h):
        return jax.lax.scan(lambda h, ab: (ab[0] * h + ab[1],) * 2, h, (a, b))[1]

    def twice(recurrence):
        def norm(*args):
            grads = jax.grad(lambda *args: jnp.sin(recurrence(*args)).sum(), (0, 1, 2))(*args)
            return sum(jnp.square(g).sum() for g in grads)

        return jax.grad(norm, (0, 1, 2))(a, b, h)

    close(twice(linear_recurrence), twice(plain))


@pytest.mark.parametrize("method", [associative, partial(newton, jacobian="diagonal")])
def test_lanes_may_be_vmapped(x64, method):
    cell = MODELS["min_gru"].cell
    drawn = [draw(MODELS["min_gru"], steps=4, seed=seed)[1:] for seed in range(2)]
    run = partial(values_and_gradients, cell, method)
    lanes = compiled(jax.vmap(run))(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn))
    for i, one in enumerate(drawn):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], lanes), run(*one), 1e-10)


NEWTON = {"full": newton, "diagonal": partial(newton, jacobian="diagonal")}
# Constants in z, two stages, no hint, two leaves, layers and tokens, noise.
SOLVED = ["gru", "gru_reset_before", "peephole_lstm", "min_gru", "from_step", "language_model", "dropout_stack"]


def check_newton(drawn, methods, mask=None, tolerance=1e-10):
    expected = compiled(partial(values_and_gradients, drawn.cell, "scan"))(*drawn[1:], mask)
    for method in methods.values():
        close(compiled(partial(values_and_gradients, drawn.cell, method))(*drawn[1:], mask), expected, tolerance)


@pytest.mark.parametrize("name", SOLVED)
def test_newton_gives_what_scan_gives(x64, name):
    check_newton(draw(MODELS[name]), NEWTON)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_newton_takes_masks_with_holes_and_any_batch_axes(x64, prefix, batch):
    holes = jax.random.bernoulli(jax.random.key(3), 0.6, (7, *batch))
    check_newton(draw(MODELS["peephole_lstm"], batch=batch), NEWTON, holes)


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_newton_in_float32_over_a_thousand_steps(jacobian):
    cell = cells.gru(32)
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (1000, 2, D))
    carry, ys, report = jax.jit(partial(newton_with_report, cell, jacobian=jacobian))(
        params, cell.initial_carry(params, (2,)), xs
    )
    close((carry, ys), unroll(cell, params, None, xs, method="scan"), 1e-5)
    assert report.converged.all()
    assert report.iterations < 30


@pytest.mark.parametrize("name", ["lstm", "min_gru", "from_step"])
def test_probes_find_the_diagonals_of_the_jacobians(x64, monkeypatch, name):
    cell, params, carry, xs = draw(MODELS[name], steps=2, batch=())
    found = {}
    inner = parallel._jacobians

    def spy(problem, params, before, zs):
        out = inner(problem, params, before, zs)
        dense = inner(problem._replace(probes=None), params, before, zs)
        found["got"], found["expected"] = out[1], jnp.diagonal(dense[1], axis1=-2, axis2=-1)
        return out

    monkeypatch.setattr(parallel, "_jacobians", spy)
    with jax.disable_jit():
        newton(cell, params, carry, xs, jacobian="diagonal", iterations=1)
    close(found["got"], found["expected"])


def test_sequences_that_do_not_converge_are_nan_and_reported(x64):
    """The second sequence is all zeros and right from the start; the first needs more than one iteration."""
    cell = cells.rnn(4)
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (50, 2, D), jnp.float64).at[:, 1].set(0)
    params = jax.tree.map(lambda leaf: leaf.astype(xs.dtype), params)
    run = compiled(partial(newton_with_report, cell, iterations=1))
    carry, ys, report = run(params, cell.initial_carry(params, (2,)), xs)
    assert report.iterations == 1
    np.testing.assert_array_equal(report.converged, [False, True])
    assert report.error[0] > report.error[1] == 0
    assert jnp.isnan(ys[:, 0]).all()
    assert jnp.isnan(carry[0]).all()
    assert not jnp.isnan(ys[:, 1]).any()

    def loss(params):
        return unroll(cell, params, None, xs, method=partial(newton, iterations=1))[1].sum()

    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(compiled(jax.grad(loss))(params)))


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_newton_recovers_from_overflow(jacobian):
    """The products of these Jacobians overflow at first; as many iterations as steps always suffice."""
    cell = cells.rnn(4)
    params = cell.init(jax.random.key(0), D)
    params["w_h"] = 30 * params["w_h"]
    xs = jax.random.normal(jax.random.key(1), (60, 1, D))
    method = partial(newton, jacobian=jacobian, iterations=61)
    close(unroll(cell, params, None, xs, method=method), unroll(cell, params, None, xs, method="scan"), 1e-3)


def counter():
    """A cell with a carry that is no real number."""
    return Cell(
        init=lambda key, features: {"w": jnp.ones((features,))},
        initial_carry=lambda params, batch: jnp.zeros(batch, jnp.int32),
        project=lambda params, x: x[..., 0] > 0,
        transition=lambda params, n, z: n + z.astype(jnp.int32),
        readout=lambda params, n, z: n,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jacobian": "half"}, 'jacobian must be "full" or "diagonal", got \'half\''),
        ({"tolerance": 0.0}, "tolerance must be positive, got 0.0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        unroll(*draw(MODELS["gru"], dtype=jnp.float32), method=partial(newton, **options))


def test_cells_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match=r"a carry of one real floating dtype, got \['int32'\]"):
        unroll(counter(), {"w": jnp.ones((D,))}, None, jnp.ones((3, 2, D)), method=newton)
    with pytest.raises(ValueError, match='method "associative" needs a cell with the `affine` hint; use "scan"'):
        unroll(*draw(MODELS["gru"], dtype=jnp.float32), method=associative)
    for chunk in (0, 8):
        with pytest.raises(ValueError, match=f"chunk must lie between 1 and the number of steps 7, got {chunk}"):
            unroll(*draw(MODELS["min_gru"], dtype=jnp.float32), method=partial(associative, chunk=chunk))
