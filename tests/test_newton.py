"""Newton's method on all steps at once: what scan gives, or an error, or NaN and a report."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import cells, unroll
from seqjax.core import Cell
from seqjax.initializers import orthogonal
from seqjax.solvers import associative as parallel
from seqjax.solvers import newton as module
from seqjax.solvers.newton import newton, newton_with_report
from tests.agree import close, compiled, values_and_gradients
from tests.cell_list import BARE, MODELS, D, draw
from tests.quick import few


@pytest.fixture(params=[True, False], ids=["sequential", "log_depth"])
def prefix(request, monkeypatch):
    """Both ways to run a prefix, whatever the device."""
    monkeypatch.setattr(parallel, "SEQUENTIAL", request.param)


DIAGONAL = partial(newton, jacobian="diagonal")
NEWTON = {"full": newton, "diagonal": DIAGONAL, "damped": partial(newton, damping=0.3)}
# No hint, layers and tokens, noise.
SOLVED = ["from_step", "language_model", "dropout_stack"]


def check_newton(drawn, methods, mask=None, tolerance=1e-10):
    @compiled
    def run(params, carry, xs, mask):
        each = {"scan": "scan", **methods}
        return {name: values_and_gradients(drawn.cell, m, params, carry, xs, mask) for name, m in each.items()}

    results = run(*drawn[1:], mask)
    expected = results.pop("scan")
    for got in results.values():
        close(got, expected, tolerance)


# One of a kind here; the others, with the full Jacobian, in the matrix of docs/matrix.md and in the slow run.
QUICK = ("gru", "gru_reset_before", "slstm", "min_gru", "lru", "delta_net", "conv_lstm")


@pytest.mark.parametrize("name", few(BARE, QUICK))
def test_every_cell_is_solved(x64, name):
    """Complex carries too, as twice as many real numbers, and matrices, as vectors."""
    damped = partial(newton, jacobian="diagonal", damping=0.3)
    check_newton(draw(BARE[name], steps=3, batch=()), {"full": newton, "damped": damped})


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
    inner = module._jacobians

    def spy(problem, params, before, zs):
        out = inner(problem, params, before, zs)
        dense = inner(problem._replace(probes=None), params, before, zs)
        found["got"], found["expected"] = out[1], jnp.diagonal(dense[1], axis1=-2, axis2=-1)
        return out

    monkeypatch.setattr(module, "_jacobians", spy)
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


@pytest.mark.parametrize(("jacobian", "damping"), [("full", 0.0), ("diagonal", 0.0), ("full", 0.5), ("diagonal", 0.5)])
def test_newton_recovers_from_overflow(jacobian, damping):
    """The products of these Jacobians overflow at first; as many iterations as steps always suffice."""
    cell = cells.rnn(4)
    params = cell.init(jax.random.key(0), D)
    params["w_h"] = 30 * params["w_h"]
    xs = jax.random.normal(jax.random.key(1), (60, 1, D))
    method = partial(newton, jacobian=jacobian, damping=damping, iterations=61)
    close(unroll(cell, params, None, xs, method=method), unroll(cell, params, None, xs, method="scan"), 1e-3)


def restless(batch):
    """A simple RNN whose products of Jacobians overflow on the way, and whose solution forgets: gain 1.8, 8 units."""
    cell = cells.rnn(8)
    params = cell.init(jax.random.key(0), D)
    params["w_h"] = 1.8 * params["w_h"]
    return cell, params, cell.initial_carry(params, (batch,)), jax.random.normal(jax.random.key(1), (1000, batch, D))


def test_damping_takes_fewer_iterations():
    """All sequences of the batch are damped alike."""
    cell, *arguments = restless(2)

    def run(damping):
        return jax.jit(partial(newton_with_report, cell, damping=damping, iterations=1001))(*arguments)

    carry, ys, report = run(0.1)
    assert report.converged.all()
    assert 2 * report.iterations < run(0.0)[2].iterations
    close((carry, ys), unroll(cell, *arguments, method="scan"), 1e-3)


def test_a_correction_that_is_not_finite_is_no_convergence():
    """On a CPU the largest of its numbers can be one that is small: this was reported as right after one iteration."""
    cell = cells.rnn(8, w_h=orthogonal(1.8))
    params = cell.init(jax.random.key(0), 8)
    xs = jax.random.normal(jax.random.key(1), (1000, 1, 8))
    run = jax.jit(partial(newton_with_report, cell, iterations=1001))
    carry, ys, report = run(params, cell.initial_carry(params, (1,)), xs)
    assert report.iterations > 1
    assert report.converged.all()
    close((carry, ys), unroll(cell, params, None, xs, method="scan"), 1e-3)


def test_lanes_may_be_vmapped(x64):
    cell = MODELS["min_gru"].cell
    drawn = [draw(MODELS["min_gru"], steps=4, seed=seed)[1:] for seed in range(2)]
    run = partial(values_and_gradients, cell, DIAGONAL)
    lanes = compiled(jax.vmap(run))(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn))
    single = compiled(run)
    for i, one in enumerate(drawn):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], lanes), single(*one), 1e-10)


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
        ({"damping": 1.0}, r"damping must lie in \[0, 1\), got 1.0"),
        ({"damping": -0.1}, r"damping must lie in \[0, 1\), got -0.1"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        unroll(*draw(MODELS["gru"], dtype=jnp.float32), method=partial(newton, **options))


def test_a_carry_that_is_not_real_is_refused():
    with pytest.raises(TypeError, match=r"a carry of one real floating dtype, got \['int32'\]"):
        unroll(counter(), {"w": jnp.ones((D,))}, None, jnp.ones((3, 2, D)), method=newton)
