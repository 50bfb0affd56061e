"""Checkpointing by chunks: what scan gives, in memory of order sqrt(T)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agree import check_methods, close, compiled, values_and_gradients
from cell_list import MODELS, D, H, draw

from seqjax import cells, unroll, wrappers
from seqjax.checkpointed import checkpointed, fitting_chunk, with_loss


@pytest.mark.parametrize("name", ["gru", "min_gru", "from_step", "masked", "dropout_stack", "language_model"])
def test_any_chunk_gives_what_scan_gives(x64, name):
    """Default, one step, a chunk that does not divide 7, all steps; constants among the inputs stay."""
    chunks = {str(c): partial(checkpointed, chunk=c) for c in (None, 1, 3, 7)}
    check_methods(draw(MODELS[name]), chunks)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_masks_with_holes_and_any_batch_axes(x64, batch):
    holes = jax.random.bernoulli(jax.random.key(3), 0.6, (7, *batch))
    check_methods(draw(MODELS["stack"], batch=batch), {"3": partial(checkpointed, chunk=3)}, holes)


def test_a_chunk_is_run_by_the_method_that_is_asked_for(x64):
    methods = {m: partial(checkpointed, chunk=3, method=m) for m in ("scan", "fused", "rematerialized")}
    drawn = draw(MODELS["gru"])
    check_methods(drawn, methods)
    program = jax.make_jaxpr(partial(unroll, drawn.cell, method=methods["fused"]))
    assert "custom_vjp" in str(program(*drawn[1:]))


@pytest.mark.parametrize("name", ["stack", "dropout_stack"])
def test_a_stack_runs_as_a_whole_in_each_chunk(x64, name):
    cell, params, carry, xs = draw(MODELS[name])
    run = compiled(lambda *args: checkpointed(cell, *args, chunk=3))
    close(run(params, carry, xs), unroll(cell, params, carry, xs, method="scan"))


@pytest.mark.parametrize(
    ("steps", "wanted", "chunk"),
    [
        (100_000, 100_000**0.5 / 2, 160),
        (1024, 16.0, 16),
        (1009, 1009**0.5 / 2, 16),  # a prime
        (1, 0.5, 1),
        (3, 100.0, 3),
        (7, 1.3, 1),
    ],
)
def test_the_default_chunk_divides_the_steps_where_it_can(steps, wanted, chunk):
    assert fitting_chunk(steps, wanted) == chunk


@pytest.mark.parametrize("chunk", [0, -1, 8])
def test_a_chunk_outside_the_sequence_is_refused(chunk):
    cell, params, carry, xs = draw(MODELS["gru"], dtype=jnp.float32)
    with pytest.raises(ValueError, match=f"chunk must lie between 1 and the number of steps 7, got {chunk}"):
        unroll(cell, params, carry, xs, method=partial(checkpointed, chunk=chunk))


def square(y, target):
    return jnp.square(y - target).sum(-1)


@pytest.mark.parametrize("name", ["head", "head_stack", "stack"])
def test_a_loss_inside_is_the_loss_outside(x64, name):
    cell, params, carry, xs = draw(MODELS[name])
    ys = unroll(cell, params, carry, xs, method="scan")[1]
    targets = jnp.asarray(np.random.default_rng(1).normal(size=ys.shape))

    def outside(params):
        return square(unroll(cell, params, carry, xs, method="scan")[1], targets).sum()

    def inside(params, method):
        return unroll(with_loss(cell, square), params, carry, (xs, targets), method=method)[1].sum()

    expected = jax.value_and_grad(outside)(params)
    for method in ("auto", partial(checkpointed, chunk=3)):
        close(compiled(jax.value_and_grad(partial(inside, method=method)))(params), expected)


def test_a_loss_inside_is_initialized_and_masked_as_its_cell():
    cell = wrappers.with_head(cells.stack(cells.gru(H), cells.gru(H)), 2)
    inside = with_loss(cell, square)
    params = cell.init(jax.random.key(0), D)
    close(inside.init(jax.random.key(0), D), params)
    mask = jnp.array([[True], [False], [True]])
    xs, targets = jnp.ones((3, 1, D)), jnp.ones((3, 1, 2))
    losses = unroll(inside, params, None, (xs, targets), mask=mask)[1]
    assert losses.shape == (3, 1)
    assert losses[1, 0] == 0


def temporary_bytes(cell, steps, loss, extra=()):
    """What the gradient of a loss allocates beside its inputs, xs [T, 2, D]."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), D))
    xs = [jax.ShapeDtypeStruct((steps, 2, size), jnp.float32) for size in (D, *extra)]
    run = jax.jit(jax.grad(loss)).lower(params, *xs).compile()
    return run.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("method", ["auto", "scan", "fused"])
def test_memory_grows_as_the_root_of_the_number_of_steps(method):
    cell = cells.lstm(32)

    def loss(params, xs):
        carry, _ = unroll(cell, params, None, xs, method=partial(checkpointed, method=method))
        return jnp.square(carry.h).sum()

    short, long = (temporary_bytes(cell, steps, loss) for steps in (256, 4096))
    assert long < 5 * short


def test_memory_of_a_loss_on_every_step_grows_by_little_more_than_the_losses():
    cell = with_loss(cells.lstm(32), square)

    def loss(params, xs, targets):
        return unroll(cell, params, None, (xs, targets), method=checkpointed)[1].mean()

    short, long = (temporary_bytes(cell, steps, loss, (32,)) for steps in (256, 4096))
    assert long < 5 * short


def test_values_and_gradients_in_float32():
    drawn = draw(MODELS["lstm"], steps=50, dtype=jnp.float32)
    got = values_and_gradients(drawn.cell, checkpointed, *drawn[1:])
    close(got, values_and_gradients(drawn.cell, "scan", *drawn[1:]), 1e-5)
