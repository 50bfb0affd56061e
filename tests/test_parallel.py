"""Affine recurrences in parallel over time: what scan gives, or an error."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import cells, unroll
from seqjax.solvers import associative as parallel
from seqjax.solvers.associative import associative, linear_recurrence
from tests.agree import check_methods, close, compiled, values_and_gradients
from tests.cell_list import MODELS, D, Model, draw, masked, reset, residual

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
    monkeypatch.setattr(parallel, "SEQUENTIAL", request.param)


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
    monkeypatch.setattr(parallel, "SEQUENTIAL", True)
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

    close(twice(partial(linear_recurrence, parallel.SEQUENTIAL)), twice(plain))


def test_lanes_may_be_vmapped(x64):
    cell = MODELS["min_gru"].cell
    drawn = [draw(MODELS["min_gru"], steps=4, seed=seed)[1:] for seed in range(2)]
    run = partial(values_and_gradients, cell, associative)
    lanes = compiled(jax.vmap(run))(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn))
    for i, one in enumerate(drawn):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], lanes), run(*one), 1e-10)


def test_cells_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match='method "associative" needs a cell with the `affine` hint; use "scan"'):
        unroll(*draw(MODELS["gru"], dtype=jnp.float32), method=associative)
    for chunk in (0, 8):
        with pytest.raises(ValueError, match=f"chunk must lie between 1 and the number of steps 7, got {chunk}"):
            unroll(*draw(MODELS["min_gru"], dtype=jnp.float32), method=partial(associative, chunk=chunk))
