"""The laws that every cell in the list obeys, whatever it is wrapped in. (The methods: test_solve.py.)"""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax import cells, regularizers, unroll, wrappers
from seqjax.core import Cell, open_dense
from seqjax.hints import Complex, affine_transition, gated_transition, outer_transition
from tests.agree import at, check_methods, close, compiled, loop, methods_of, values_and_gradients
from tests.cell_list import BARE, DRESSES, MODELS, H, Model, draw


@pytest.mark.parametrize("name", MODELS)
def test_unroll_is_a_loop_of_steps(x64, name):
    cell, params, carry, xs = draw(MODELS[name], steps=3)
    close(compiled(partial(unroll, cell, method="scan"))(params, carry, xs), loop(cell, params, carry, xs))


def check_hints(cell, params, carry, xs):
    """Hold the hints of a cell, or of each layer of a stack, against its transition at random values."""
    if cell.layers:
        for layer, p, c in zip(cell.layers, params, carry, strict=True):
            check_hints(layer, p, c, xs)
            _, xs = unroll(layer, p, c, xs, method="scan")
        return
    hints = [gated_transition(cell.gated)] if cell.gated else []
    hints += [affine_transition(cell.affine)] if cell.affine else []
    hints += [outer_transition(cell.outer)] if cell.outer else []

    @compiled
    def run(params, carry, x):
        z = open_dense(cell.project(params, x))
        return cell.transition(params, carry, z), [hint(params, carry, z) for hint in hints]

    expected, found = run(params, carry, at(xs, 0))
    for got in found:
        close(got, expected)


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model not in BARE.values()])
def test_hints_equal_the_transition(x64, name):
    check_hints(*draw(MODELS[name], steps=2))


def is_vector(cell: Cell) -> bool:
    """Whether carry and output are vectors of H, as every wrapper can take them."""

    def run():
        params = cell.init(jax.random.key(0), H)
        return cell.step(params, cell.initial_carry(params, ()), jnp.zeros((*cell.space, H)))

    carry, y = jax.eval_shape(run)
    return not isinstance(carry, Complex) and all(leaf.shape == (H,) for leaf in jax.tree.leaves((carry, y)))


VECTORS = [model.cell for model in BARE.values() if is_vector(model.cell)]


def test_most_cells_are_vectors():
    assert len(VECTORS) == len(BARE) - 9  # projected_lstm, lru, s4d, s5, the three matrices, fast_weights, conv_lstm


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    cell=st.sampled_from([*VECTORS, MODELS["stack_of_one"].cell]),
    dresses=st.lists(st.sampled_from(DRESSES), min_size=2, max_size=4),
    seed=st.integers(0, 2**31 - 1),
)
def test_compositions_of_wrappers_keep_hints_and_methods(cell, dresses, seed):
    model = Model(cell, H)
    with jax.enable_x64(True):
        for dress in dresses:
            try:
                model = dress(model)
            except ValueError as error:
                assert "needs a cell with" in str(error)  # noqa: PT017  min_gru has no recurrent product
        drawn = draw(model, steps=4, seed=seed)
        check_hints(*drawn)
        check_methods(drawn, methods_of(drawn.cell))


@pytest.mark.parametrize(
    "wrap",
    [
        wrappers.masked,
        wrappers.reset,
        wrappers.residual,
        lambda cell: regularizers.input_dropout(cell, 0.5)[0],
        lambda cell: wrappers.with_head(cell, 2),
        lambda cell: wrappers.with_embedding(cell, 9, 3),
        lambda cell: wrappers.with_one_hot(cell, 9),
    ],
)
def test_wrappers_keep_the_fast_paths(wrap):
    assert wrap(cells.lstm(H)).gated is not None
    assert wrap(cells.min_gru(H)).affine is not None
    assert wrap(cells.delta_net(1, 2, 2)).outer is not None
    if wrap is not wrappers.residual:
        assert len(wrap(MODELS["stack"].cell).layers) == 2


def test_recurrent_dropout_keeps_the_fast_path():
    assert regularizers.recurrent_dropout(cells.lstm(H), 0.5)[0].gated is not None
    assert len(regularizers.recurrent_dropout(cells.stack(cells.lstm(H), cells.gru(H)), 0.5)[0].layers) == 2


@pytest.mark.parametrize("name", ["gru_reset_before", "min_gru", "dropout_stack"])
def test_a_vmapped_lane_is_the_single_run(x64, name):
    """Over params, carry, inputs and noise, for values and gradients, with the method that is picked by itself."""
    cell = MODELS[name].cell
    drawn = [draw(MODELS[name], steps=4, seed=seed)[1:] for seed in range(2)]
    run = partial(values_and_gradients, cell, "auto")
    lanes = compiled(jax.vmap(run))(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn))
    single = compiled(run)
    for i, one in enumerate(drawn):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], lanes), single(*one))


def test_keys_and_rates_are_lanes_too(x64):
    cell, params, carry, xs = draw(MODELS["lstm"])

    def run(key, rate):
        noisy, sample = regularizers.recurrent_dropout(cell, rate)
        return unroll(noisy, params, carry, (xs, sample(key, carry, xs)))[1]

    keys, rates = jax.random.split(jax.random.key(1), 3), jnp.array([0.0, 0.3, 0.9])
    lanes = jax.jit(jax.vmap(run))(keys, rates)
    for lane, key, rate in zip(lanes, keys, [0.0, 0.3, 0.9], strict=True):
        close(lane, run(key, rate))


@pytest.mark.parametrize("name", ["stack", "min_gru"])
def test_chunks_with_carried_state_equal_one_long_sequence(x64, name):
    cell, params, carry, xs = draw(MODELS[name])
    run = compiled(partial(unroll, cell))
    last, ys = run(params, carry, xs)
    middle, first = run(params, carry, xs[:3])
    end, second = run(params, middle, xs[3:])
    close((end, jnp.concatenate([first, second])), (last, ys))
