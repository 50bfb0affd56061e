"""What holds for any shape, mask, length and dtype: of values, and of gradients for params, carry and inputs."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seqjax import bidirectional, cells, generate, mask_from_lengths, unroll
from seqjax.arrays import carry_dtype
from seqjax.core import Cell
from tests.agree import close, compiled
from tests.cell_list import BARE, DRESSES, H, Model, draw, leaky
from tests.quick import few

TOLERANCE = {"float64": 1e-11, "float32": 1e-5, "bfloat16": 0.03}
KINDS = {
    "lstm": cells.lstm,
    "gru_reset_before": cells.gru_reset_before,
    "min_gru": cells.min_gru,
    "lru": cells.lru,
    "mlstm": lambda units: cells.mlstm(1, 2, units),
    "stack": lambda units: cells.stack(cells.min_gru(units), cells.rnn(units)),
    "from_step": lambda units: leaky(),
}


class Problem(NamedTuple):
    """A kind of cell, shapes down to 1 and none at all, a dtype, and a method beside scan."""

    kind: str
    steps: int
    batch: tuple[int, ...]
    features: int
    units: int
    dtype: str
    method: str

    @property
    def cell(self) -> Cell:
        return KINDS[self.kind](self.units)

    @property
    def shape(self) -> tuple[int, ...]:
        """[T, *batch], of a mask."""
        return (self.steps, *self.batch)


PROBLEMS = [
    Problem("lstm", 1, (1,), 1, 1, "float64", "fused"),
    Problem("lstm", 5, (3,), 2, 4, "bfloat16", "auto"),
    Problem("gru_reset_before", 4, (2, 2), 3, 1, "float32", "auto"),
    Problem("min_gru", 6, (3,), 1, 4, "float64", "associative"),
    Problem("min_gru", 3, (), 2, 3, "bfloat16", "associative"),
    Problem("lru", 4, (2, 1), 3, 2, "float32", "associative"),
    Problem("mlstm", 4, (2,), 2, 2, "float64", "rematerialized"),
    Problem("stack", 5, (2,), 3, 3, "float32", "auto"),
    Problem("from_step", 3, (), 2, 4, "float64", "checkpointed"),
]
of_any_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.kind}-{p.batch}-{p.dtype}-{p.method}")
fuzz = settings(max_examples=3, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def _double(x64):
    """All problems in one process, whatever their dtype."""


@cache
def programs(problem, reverse=False, masks=True):
    """`(params, carry, xs, mask, cotangents) -> (carry, ys), gradients`, by scan and by the method of the problem."""

    def pulled(method, params, carry, xs, mask, cotangents):
        def run(*args):
            return unroll(problem.cell, *args, mask=mask if masks else None, reverse=reverse, method=method)

        out, back = jax.vjp(run, params, carry, xs)
        return out, back(cotangents)

    return compiled(lambda *args: [pulled(method, *args) for method in ("scan", problem.method)])


def solved(problem, drawn, mask, cotangents, **options):
    """Values and gradients of a problem; both methods agree, and everything has the dtype that it ought to have."""
    expected, got = programs(problem, **options)(*drawn[1:], mask, cotangents)
    close(wide(got), wide(expected), TOLERANCE[problem.dtype])
    values, (by_params, by_carry, by_xs) = got
    for leaf in jax.tree.leaves((values, by_carry)):
        assert leaf.dtype == carry_dtype(problem.dtype)
    for leaf in jax.tree.leaves((by_params, by_xs)):
        assert leaf.dtype == problem.dtype
    return got


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def near(got, expected, problem):
    close(wide(got), wide(expected), TOLERANCE[problem.dtype])


def given_case(problem, seed):
    """Params, carry and inputs, and cotangents of all that comes out."""
    drawn = draw(Model(problem.cell, problem.features), problem.steps, problem.batch, seed, problem.dtype)
    shapes = jax.eval_shape(lambda *args: unroll(problem.cell, *args, method="scan"), *drawn[1:])
    rng = np.random.default_rng(seed)
    return drawn, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


def masks(problem):
    return arrays(bool, problem.shape)


def lengths(problem):
    return arrays(np.int32, problem.batch, elements=st.integers(0, problem.steps))


def expand(mask, leaf):
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))


@of_any_problem
@fuzz
@given(data=st.data(), seed=st.integers(0, 99))
def test_a_masked_sequence_is_a_loop_that_keeps_its_carry_and_says_zero(problem, data, seed):
    mask = data.draw(masks(problem))
    (cell, params, carry, xs), cotangents = given_case(problem, seed)
    got, _ = solved(problem, (cell, params, carry, xs), mask, cotangents)
    step = stepping(problem)
    ys = []
    for t in range(problem.steps):
        after, y = step(params, carry, xs[t])
        carry = jax.tree.map(lambda a, b, t=t: jnp.where(expand(mask[t], a), a, b), after, carry)
        ys.append(jnp.where(expand(mask[t], y), y, jnp.zeros_like(y)))
    near(got, (carry, jnp.stack(ys)), problem)
    assert not np.any(np.asarray(got[1])[~mask])


@cache
def stepping(problem):
    return compiled(problem.cell.step)


@of_any_problem
@fuzz
@given(data=st.data(), seed=st.integers(0, 99), poison=st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
def test_padding_may_hold_anything(problem, data, seed, poison):
    mask = data.draw(masks(problem))
    (cell, params, carry, xs), cotangents = given_case(problem, seed)
    dirty = jnp.where(expand(mask, xs), xs, jnp.asarray(poison, xs.dtype))
    clean = solved(problem, (cell, params, carry, xs), mask, cotangents)
    got = solved(problem, (cell, params, carry, dirty), mask, cotangents)
    for a, b in zip(jax.tree.leaves(wide(got)), jax.tree.leaves(wide(clean)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
    assert not np.any(wide(got[1][2])[~mask])


@pytest.mark.parametrize("problem", PROBLEMS[1:7:2], ids=lambda p: f"{p.kind}-{p.dtype}")
@fuzz
@given(seed=st.integers(0, 99))
def test_a_mask_that_is_true_is_no_mask(problem, seed):
    drawn, cotangents = given_case(problem, seed)
    got = solved(problem, drawn, np.ones(problem.shape, bool), cotangents)
    near(got, solved(problem, drawn, None, cotangents, masks=False), problem)


@of_any_problem
@fuzz
@given(seed=st.integers(0, 99))
def test_no_real_step_gives_the_carry_back_and_no_gradient(problem, seed):
    drawn, cotangents = given_case(problem, seed)
    mask = mask_from_lengths(jnp.zeros(problem.batch, jnp.int32), problem.steps)
    (last, ys), (by_params, by_carry, by_xs) = solved(problem, drawn, mask, cotangents)
    jax.tree.map(np.testing.assert_array_equal, last, drawn.carry)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(wide((ys, by_params, by_xs))))
    if problem.kind != "from_step":  # its carry holds the one before too
        jax.tree.map(np.testing.assert_array_equal, by_carry, cotangents[0])


@of_any_problem
@fuzz
@given(data=st.data(), seed=st.integers(0, 99))
def test_reversed_each_sequence_starts_at_its_own_end(problem, data, seed):
    """Values and gradients of `reverse=True` are those of rows that are turned round one by one."""
    long = data.draw(lengths(problem))
    mask = mask_from_lengths(jnp.asarray(long), problem.steps)
    (cell, params, carry, xs), (at_end, at_ys) = given_case(problem, seed)
    time = np.arange(problem.steps).reshape(-1, *[1] * len(problem.batch))
    turn = np.where(time < long, long - 1 - time, time)

    def turned(leaf):
        return jnp.take_along_axis(leaf, expand(jnp.asarray(turn), leaf), 0)

    (last, ys), (by_params, by_carry, by_xs) = solved(
        problem, (cell, params, carry, xs), mask, (at_end, at_ys), reverse=True
    )
    (last_too, zs), (*others, by_turned) = solved(
        problem, (cell, params, carry, turned(xs)), mask, (at_end, turned(at_ys))
    )
    near(((last, ys), (by_params, by_carry, by_xs)), ((last_too, turned(zs)), (*others, turned(by_turned))), problem)


@of_any_problem
@fuzz
@given(data=st.data(), seed=st.integers(0, 99))
def test_a_cut_with_a_carry_handed_on_changes_nothing(problem, data, seed):
    """The steps before the cut, and then those after it; the gradient goes back the same way."""
    mask = data.draw(masks(problem))
    cut = data.draw(st.integers(0, problem.steps))
    before = np.arange(problem.steps).reshape(-1, *[1] * len(problem.batch)) < cut
    (cell, params, carry, xs), (at_end, at_ys) = given_case(problem, seed)
    zeros = jax.tree.map(jnp.zeros_like, at_end)
    (middle, first), _ = solved(problem, (cell, params, carry, xs), mask & before, (zeros, at_ys))
    (last, second), end = solved(problem, (cell, params, middle, xs), mask & ~before, (at_end, at_ys))
    _, start = solved(problem, (cell, params, carry, xs), mask & before, (end[1], at_ys))
    grads = (*jax.tree.map(jnp.add, (start[0], start[2]), (end[0], end[2])), start[1])
    whole, (by_params, by_carry, by_xs) = solved(problem, (cell, params, carry, xs), mask, (at_end, at_ys))
    near(((last, first + second), grads), (whole, (by_params, by_xs, by_carry)), problem)


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.batch], ids=lambda p: f"{p.kind}-{p.dtype}")
@fuzz
@given(data=st.data(), seed=st.integers(0, 99))
def test_a_batch_is_its_rows_without_a_batch_axis(problem, data, seed):
    mask = data.draw(masks(problem))
    (cell, params, carry, xs), (at_end, at_ys) = given_case(problem, seed)
    (last, ys), (by_params, by_carry, by_xs) = solved(problem, (cell, params, carry, xs), mask, (at_end, at_ys))
    total = jax.tree.map(jnp.zeros_like, wide(by_params))
    for row in np.ndindex(problem.batch):
        timed = (slice(None), *row)

        def of(tree, row=row):
            return jax.tree.map(lambda leaf: leaf[row], tree)

        one = (cell, params, of(carry), xs[timed])
        values, (grads, *rest) = solved(problem._replace(batch=()), one, mask[timed], (of(at_end), at_ys[timed]))
        near((values, rest), ((of(last), ys[timed]), [of(by_carry), by_xs[timed]]), problem)
        total = jax.tree.map(jnp.add, total, wide(grads))
    near(by_params, total, problem)


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if len(p.batch) == 2], ids=lambda p: p.kind)
@fuzz
@given(data=st.data(), seed=st.integers(0, 99))
def test_two_batch_axes_are_one_folded(problem, data, seed):
    mask = data.draw(masks(problem))
    (cell, params, carry, xs), (at_end, at_ys) = given_case(problem, seed)
    rows = int(np.prod(problem.batch))

    def flat(tree):
        return jax.tree.map(lambda leaf: leaf.reshape(rows, *leaf.shape[2:]), tree)

    def flat_in_time(leaf):
        return leaf.reshape(len(leaf), rows, *leaf.shape[3:])

    (last, ys), (by_params, by_carry, by_xs) = solved(problem, (cell, params, carry, xs), mask, (at_end, at_ys))
    folded = (cell, params, flat(carry), flat_in_time(xs))
    got = solved(problem._replace(batch=(rows,)), folded, flat_in_time(mask), (flat(at_end), flat_in_time(at_ys)))
    near(got, ((flat(last), flat_in_time(ys)), (by_params, flat(by_carry), flat_in_time(by_xs))), problem)


@of_any_problem
def test_one_step_is_step(problem):
    problem = problem._replace(steps=1)
    (cell, params, carry, xs), cotangents = given_case(problem, 0)
    (last, ys), _ = solved(problem, (cell, params, carry, xs), None, cotangents, masks=False)
    near((last, ys[0]), stepping(problem)(params, carry, xs[0]), problem)


@settings(fuzz, max_examples=2)
@given(data=st.data(), seed=st.integers(0, 99))
def test_bidirectional_is_both_directions_side_by_side(data, seed):
    forward = Problem("lstm", 4, (2,), 2, 3, "float32", "fused")
    backward = forward._replace(kind="min_gru", method="associative")
    mask = data.draw(masks(forward))
    one, cotangents = given_case(forward, seed)
    other, cotangents_too = given_case(backward, seed + 1)
    (last, ys), (by_params, by_carry, by_xs) = solved(forward, one, mask, cotangents)
    other = other._replace(xs=one.xs)
    (last_too, zs), grads = solved(backward, other, mask, cotangents_too, reverse=True)
    by_params_too, by_carry_too, by_xs_too = grads

    ends, (at_ys, at_zs) = zip(cotangents, cotangents_too, strict=True)
    run = both_directions((one.cell, other.cell))
    params, carries = (one.params, other.params), (one.carry, other.carry)
    got = run(params, carries, one.xs, mask, (ends, jnp.concatenate([at_ys, at_zs], -1)))
    values = (last, last_too), jnp.concatenate([ys, zs], -1)
    near(got, (values, ((by_params, by_params_too), (by_carry, by_carry_too), by_xs + by_xs_too)), forward)


def both_directions(pair):
    """As `programs`, for `bidirectional`."""

    def run(params, carries, xs, mask, cotangents):
        out, back = jax.vjp(lambda *args: bidirectional(pair, *args, mask=mask), params, carries, xs)
        return out, back(cotangents)

    return compiled(run)


@pytest.mark.parametrize(
    "problem",
    [
        Problem("lstm", 5, (2,), 3, 3, "float32", "auto"),
        Problem("lru", 3, (2, 2), 2, 4, "float64", "auto"),
        Problem("min_gru", 4, (3,), 2, 2, "bfloat16", "auto"),
    ],
    ids=lambda p: p.kind,
)
@settings(fuzz, max_examples=2)
@given(seed=st.integers(0, 99))
def test_what_is_generated_read_again_is_generated_again(problem, seed):
    (cell, params, carry, xs), cotangents = given_case(problem, seed)

    def choose(key, y):
        return (y + 0.1 * jax.random.normal(key, y.shape, y.dtype)).astype(problem.dtype)

    key = jax.random.key(seed)
    last, said = compiled(lambda *args: generate(cell, *args, problem.steps, key, choose))(params, carry, xs[0])
    assert said.shape == xs.shape
    assert said.dtype == xs.dtype
    read = jnp.concatenate([xs[:1], said[:-1]])
    (end, ys), _ = solved(problem, (cell, params, carry, read), None, cotangents, masks=False)
    again = jnp.stack([choose(jax.random.fold_in(key, t), y) for t, y in enumerate(ys)])
    near((last, said), (end, again), problem)


@pytest.mark.parametrize("name", few(BARE))
def test_sixteen_bit_weights_are_rounded_and_nothing_else_is(name):
    """Carries and outputs are float32, gradients of the dtype of what they are for, values those of float64 nearly."""
    cell, params, carry, xs = draw(BARE[name], dtype="bfloat16")

    def run(method, *args):
        return unroll(cell, *args, method=method)

    exact, got = compiled(lambda *args: (run("scan", *wide_arrays(args)), run("auto", *args)))(params, carry, xs)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
    close(wide(got), exact, 0.03)
    loss = lambda *args: sum(leaf.sum() for leaf in jax.tree.leaves(run("auto", *args)))  # noqa: E731
    grads = jax.eval_shape(jax.grad(loss, (0, 1, 2)), params, carry, xs)
    assert jax.tree.map(lambda leaf: leaf.dtype, grads) == jax.tree.map(lambda leaf: leaf.dtype, (params, carry, xs))


def wide_arrays(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)


@pytest.mark.parametrize("name", ["lstm", "min_gru"])
@pytest.mark.parametrize("wrap", DRESSES, ids=lambda wrap: wrap.__name__)
def test_wrappers_take_params_that_are_cast_to_sixteen_bits_as_a_whole(name, wrap):
    try:
        cell, params, carry, xs = draw(wrap(Model(BARE[name].cell, H)), dtype="bfloat16")
    except ValueError as error:
        assert "needs a cell with" in str(error)  # noqa: PT017  min_gru has no recurrent product
        return
    out = jax.eval_shape(lambda *args: unroll(cell, *args, method="scan"), params, None, xs)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((carry, out)))
