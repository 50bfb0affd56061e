"""Checkpointing by chunks: what scan gives, in less memory, for as many forward steps as the schedule says."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import Cell, cells, unroll, wrappers
from seqjax.core import Const
from seqjax.solvers.chunks import fitting_chunk
from seqjax.solvers.dispatch import checkpointed
from seqjax.solvers.revolve import forward_runs, revolve, schedule
from seqjax.wrappers.structure import with_loss
from tests.agree import check_methods, close, compiled, values_and_gradients
from tests.cell_list import MODELS, D, H, draw
from tests.quick import few


@pytest.mark.parametrize("name", ["gru", "min_gru", "from_step", "masked", "dropout_stack", "language_model"])
def test_any_chunk_gives_what_scan_gives(x64, name):
    """Default, one step, a chunk that does not divide 7, all steps; constants among the inputs stay."""
    chunks = {str(c): partial(checkpointed, chunk=c) for c in (None, 1, 3, 7)}
    check_methods(draw(MODELS[name]), chunks)


SCHEDULES = {
    "2 levels": partial(checkpointed, chunk=2, levels=2),
    "3 levels": partial(checkpointed, chunk=1, levels=3),
    "1 slot": partial(checkpointed, chunk=3, slots=1),
    "2 slots": partial(checkpointed, chunk=1, slots=2),
}


@pytest.mark.parametrize(
    "name", few(["lru", "from_step", "masked_dropout_stack", "language_model"], ("lru", "from_step"))
)
def test_any_schedule_gives_what_scan_gives(x64, name):
    """7 steps: chunks that divide them and not, tokens and masks that have no gradient, noise that all steps share."""
    check_methods(draw(MODELS[name]), SCHEDULES)


@pytest.mark.parametrize("schedule", ["2 levels", "2 slots"])
def test_masks_with_holes_by_any_schedule(x64, schedule):
    holes = jax.random.bernoulli(jax.random.key(3), 0.6, (7, 2, 3))
    check_methods(draw(MODELS["stack"], batch=(2, 3)), {schedule: SCHEDULES[schedule]}, holes)


@cache
def fewest(chunks, slots):
    """t(N, m) by dynamic programming: runs before the chunks that are reversed."""
    if slots == 1 or chunks == 1:
        return chunks * (chunks - 1) // 2
    return min(k + fewest(chunks - k, slots - 1) + fewest(k, slots) for k in range(1, chunks))


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8, 13])
def test_no_schedule_with_as_many_slots_has_fewer_runs(slots):
    for chunks in range(1, 60):
        plan = schedule(chunks, min(slots, chunks))
        way, reversals, forward = len(plan.again) - 1, chunks, chunks
        assert way + reversals + forward == fewest(chunks, slots) + chunks + 1 == forward_runs(chunks, slots)


def test_a_schedule_written_out():
    """6 chunks, 2 slots (2 is the working one): the carries before chunks 0 and 3 are kept, later that before 1."""
    plan = schedule(6, 2)
    np.testing.assert_array_equal(plan.stored, [0, 2, 2, 1, 2, 2])
    np.testing.assert_array_equal(plan.source, [0, 1, 0, 1, 1, 2])
    np.testing.assert_array_equal(plan.begin, [0, 1, 0, 3, 3, 5])
    np.testing.assert_array_equal(plan.offset, [3, 3, 1, 1, 0, 0])
    np.testing.assert_array_equal(plan.again, [2, 1, 2, 2])


def counting():
    """A cell that counts its steps as they are run, and the list that it counts in."""
    seen = []

    def transition(params, carry, z):
        jax.debug.callback(lambda _: seen.append(1), carry)
        return jnp.tanh(params * carry + z)

    cell = Cell(
        init=lambda key, in_features: jnp.ones(()),
        initial_carry=lambda params, batch: jnp.zeros(batch),
        project=lambda params, x: x[..., 0],
        transition=transition,
        readout=lambda params, carry, z: carry,
    )
    return cell, seen


@pytest.mark.parametrize(
    ("method", "steps", "runs"),
    [
        (partial(checkpointed, chunk=3), 12, 24),
        (partial(checkpointed, chunk=3), 14, 28),
        (partial(checkpointed, chunk=2, levels=2), 16, 48),
        (partial(checkpointed, chunk=2, levels=3), 16, 64),
        (partial(checkpointed, chunk=1, slots=1), 7, 7 + 7 + 15),
        (partial(checkpointed, chunk=1, slots=3), 20, forward_runs(20, 3)),
        (partial(checkpointed, chunk=2, slots=3), 20, 2 * forward_runs(10, 3)),
        (partial(checkpointed, chunk=2, slots=10), 20, 40),
        (partial(checkpointed, chunk=3, slots=2), 20, 3 * forward_runs(6, 2) + 2 * 2),
    ],
)
def test_a_gradient_runs_as_many_steps_as_its_schedule_says(method, steps, runs):
    cell, seen = counting()

    def loss(params, xs):
        return unroll(cell, params, jnp.zeros(()), xs, method=method)[1].sum()

    gradient = compiled(jax.value_and_grad(loss))
    jax.block_until_ready(gradient(jnp.ones(()), jnp.ones((steps, 1))))
    jax.effects_barrier()
    assert len(seen) == runs


def test_nested_loops_are_about_as_long_as_each_other():
    """The lengths as a program is printed: the innermost loop first."""
    cell, _ = counting()
    for steps, flags, lengths in (
        (27, {"chunk": 1, "levels": 3}, ["1", "3", "3", "3"]),
        (64, {"chunk": 4, "levels": 2}, ["4", "4", "4"]),
        (64, {"chunk": 4}, ["4", "16"]),
    ):
        run = partial(unroll, cell, jnp.ones(()), jnp.zeros(()), method=partial(checkpointed, **flags))
        assert re.findall(r"\blength=(\d+)", str(jax.make_jaxpr(run)(jnp.ones((steps, 1))))) == lengths


def test_second_derivatives_with_slots_are_forward_over_reverse(x64):
    cell, params, carry, xs = draw(MODELS["from_step"])

    def loss(method, scale):
        return jnp.square(unroll(cell, params, carry, scale * xs, method=method)[1]).sum()

    slots = partial(loss, partial(checkpointed, chunk=2, slots=2, method="scan"))
    close(compiled(jax.hessian(slots))(1.0), compiled(jax.hessian(partial(loss, "scan")))(1.0))
    with pytest.raises(TypeError, match=r'second derivatives .* for jax.grad of jax.grad use method="scan"'):
        jax.grad(jax.grad(slots))(1.0)


def test_levels_and_slots_that_make_no_sense_are_refused():
    cell, params, carry, xs = draw(MODELS["gru"], dtype=jnp.float32)
    for flags, message in (
        ({"levels": 0}, "levels must be at least 1, got 0"),
        ({"slots": 0}, "slots must be at least 1, got 0"),
        ({"levels": 2, "slots": 3}, "takes levels or slots, got levels = 2 and slots = 3"),
        ({"slots": 2, "chunk": 8}, "chunk must lie between 1 and the number of steps 7, got 8"),
    ):
        with pytest.raises(ValueError, match=message):
            unroll(cell, params, carry, xs, method=partial(checkpointed, **flags))
    with pytest.raises(ValueError, match="revolve stacks all outputs, got a Const among"):
        revolve(lambda carry, x: (carry, Const(x)), carry, xs, 2)


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


def test_memory_falls_as_the_schedule_says():
    """Of the last carry of an LSTM: what is kept is carries of 2 * 2 * 32 numbers, and what a chunk needs."""
    carry = 2 * 2 * 32 * 4

    def needed(steps, **flags):
        def loss(params, xs):
            last, _ = unroll(cells.lstm(32), params, None, xs, method=partial(checkpointed, method="scan", **flags))
            return jnp.square(last.h).sum()

        return temporary_bytes(cells.lstm(32), steps, loss)

    borders = {levels: needed(4096, chunk=4, levels=levels) for levels in (1, 2)}
    assert borders[1] - borders[2] > 0.8 * carry * (1024 - 2 * 32)
    slots = {m: needed(4096, chunk=4, slots=m) for m in (8, 64)}
    assert slots[64] - slots[8] == 56 * carry
    # Beside the slots, a number or two a chunk, which is the schedule.
    assert slots[8] - needed(256, chunk=4, slots=8) < 16 * (1024 - 64)
    assert slots[8] < borders[2] < borders[1]


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
