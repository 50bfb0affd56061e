"""Cells as values: equal where they are made alike, compiled once, printed as their call, pickled, also for a spawn."""

import copy
import gc
import inspect
import multiprocessing
import pickle
import re
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from seqjax import (
    Cell,
    attention,
    cells,
    from_step,
    initializers,
    noise,
    normalization,
    presets,
    regularizers,
    wrappers,
)
from seqjax.identity import by_value, structure
from seqjax.nnx import Recurrent
from tests.agree import close
from tests.cell_list import MODELS

FACTOR = 2.0


def leaky(hidden, rate=0.5, activation=jnp.tanh):
    """A cell of a user: nothing but a function that returns one."""

    def init(key, in_features):
        return {"w": jax.random.normal(key, (in_features, hidden))}

    def step(params, h, x):
        h = rate * h + activation(x @ params["w"])
        return h, h

    return from_step(init, lambda params, batch: jnp.zeros((*batch, hidden)), step)


def plain(hidden):
    """Another, by `Cell(...)`."""
    return Cell(
        init=lambda key, in_features: {"w": jnp.ones((in_features, hidden))},
        initial_carry=lambda params, batch: jnp.zeros((*batch, hidden)),
        project=lambda params, x: x @ params["w"],
        transition=lambda params, h, z: h + FACTOR * z,
        readout=lambda params, h, z: h,
    )


def doubled(cell):
    """A wrapper of a user."""
    return cell._replace(readout=lambda params, carry, z: 2 * cell.readout(params, carry, z))


def shifted(table):
    """A cell that sees whatever it is given."""
    return plain(2)._replace(readout=lambda params, h, z: (h, table))


# As it prints, and how it is made.
MADE = {
    "lstm(8)": lambda: cells.lstm(hidden=8),
    "rnn(8, activation=relu)": lambda: cells.rnn(8, jax.nn.relu),
    "gru(8, dtype=bfloat16)": lambda: cells.gru(8, dtype=jnp.bfloat16),
    "lstm(8, w_h=orthogonal(scale=0.5))": lambda: cells.lstm(8, w_h=initializers.orthogonal(0.5)),
    "lstm(8, b=gate_bias(forget=2.0))": lambda: cells.lstm(8, b=initializers.gate_bias(forget=2.0)),
    "conv_lstm(2, (3, 4), kernel=(3, 2))": lambda: cells.conv_lstm(2, (3, 4), (3, 2)),
    "residual(gru(64))": lambda: wrappers.residual(cells.gru(64)),
    "stack(lstm(8), residual(gru(8)))": lambda: cells.stack(cells.lstm(8), wrappers.residual(cells.gru(8))),
    "with_head(stack(gru(8), gru(8)), 3)": lambda: wrappers.with_head(cells.stack(cells.gru(8), cells.gru(8)), 3),
    "recurrent_dropout(gru(8), 0.5, per_step=True)[0]": lambda: regularizers.recurrent_dropout(
        cells.gru(8), 0.5, per_step=True
    )[0],
    "zoneout(lstm(8), LSTMCarry(h=0.05, c=0.5))[0]": lambda: noise.zoneout(
        cells.lstm(8), cells.LSTMCarry(h=0.05, c=0.5)
    )[0],
    "layer_norm(gru(8), epsilon=0.001)": lambda: normalization.layer_norm(cells.gru(8), epsilon=1e-3),
    "batch_norm(gru(8))[0]": lambda: normalization.batch_norm(cells.gru(8))[0],
    "batch_norm_lstm(8, dtype=float16)[0]": lambda: normalization.batch_norm_lstm(8, dtype=jnp.float16)[0],
    "luong(gru(8), 3).alignment": lambda: attention.luong(cells.gru(8), 3).alignment,
    "leaky(hidden=8)": lambda: leaky(8),
    "leaky(hidden=8, rate=0.9)": lambda: leaky(8, rate=0.9),
    "plain(hidden=8)": lambda: plain(8),
    "doubled(cell=leaky(hidden=8))": lambda: doubled(leaky(8)),
    "masked(doubled(cell=lstm(8)))": lambda: wrappers.masked(doubled(cells.lstm(8))),
}
OTHERS = [
    lambda: cells.lstm(9),
    lambda: cells.lstm(8, dtype=jnp.bfloat16),
    lambda: cells.lstm(8, w_h=initializers.orthogonal(0.25)),
    lambda: leaky(8, activation=jnp.sin),
    lambda: leaky(8, activation=lambda x: x),
    lambda: leaky(8, activation=lambda x: x + 1),
    lambda: leaky(8, rate=0),
    lambda: leaky(8, rate=0.0),
    lambda: leaky(8, rate=-0.0),
    lambda: leaky(8, rate=np.float32(0)),
    lambda: leaky(8, rate=jnp.float32(0)),
    lambda: leaky(8, rate=False),
]


@pytest.mark.parametrize("text", MADE)
def test_a_cell_prints_as_it_was_made(text):
    assert repr(MADE[text]()) == text


@pytest.mark.parametrize("name", MODELS)
def test_no_cell_prints_an_address(name):
    for value in (MODELS[name].cell, MODELS[name].cell._replace(vocabulary=7), MODELS[name].cell.gated):
        assert not re.search("0x|<function", repr(value))
        assert len(repr(value)) < 1000


@pytest.mark.parametrize("text", MADE)
def test_cells_made_alike_are_equal_and_others_are_not(text):
    one, two = MADE[text](), MADE[text]()
    assert one == two
    assert (one != two) is False
    assert hash(one) == hash(two)
    different = [make() for key, make in MADE.items() if key != text] + [make() for make in OTHERS]
    assert one not in different
    assert one != tuple(one)


def test_numbers_that_python_takes_for_equal_make_different_cells():
    assert len({make() for make in OTHERS}) == len(OTHERS)


@pytest.mark.parametrize(
    "preset", [presets.keras, presets.flax, partial(presets.pytorch, gru=True), partial(presets.chrono, 10)]
)
def test_presets_made_alike_make_equal_cells(preset):
    assert cells.gru(8, **preset()) == cells.gru(8, **preset()) != cells.gru(8)


def test_hints_and_initializers_have_the_same_equality():
    assert cells.lstm(8).gated == cells.lstm(8).gated != cells.gru(8).gated
    assert cells.mlstm(2, 3, 4).outer == cells.mlstm(2, 3, 4).outer
    assert initializers.jointly(initializers.orthogonal()) == initializers.jointly(initializers.orthogonal())
    assert structure(initializers.orthogonal()) is structure(initializers.orthogonal())
    assert structure(initializers.orthogonal()) is not structure(initializers.orthogonal(2.0))


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: [1, 2], lambda: (1, 2)),
        (lambda: {"a": [1]}, lambda: {"a": [2]}),
        (lambda: {1, 2}, lambda: {1, 3}),
        (lambda: partial(jnp.sum, axis=0), lambda: partial(jnp.sum, axis=1)),
        (lambda: np.arange(3), lambda: np.arange(3.0)),
        (lambda: np.arange(4), lambda: np.arange(4).reshape(2, 2)),
        (lambda: jnp.arange(3), lambda: np.arange(3)),
        (lambda: jnp.float32(1), lambda: jnp.asarray(1.0)),
        (lambda: jax.random.key(1), lambda: jax.random.key(2)),
        (lambda: np.nan, lambda: -np.inf),
        (lambda: cells.LSTMCarry(h=0, c=1), lambda: (0, 1)),
        (lambda: seqjax.Const(np.zeros(2)), lambda: seqjax.Const(np.ones(2))),
        (lambda: cells.LSTMCarry(h=0, c=1)._asdict, lambda: cells.LSTMCarry(h=0, c=2)._asdict),
    ],
)
def test_what_a_function_sees_is_compared_by_value(make, other):
    assert shifted(make()) == shifted(make()) != shifted(other())
    assert hash(shifted(make())) == hash(shifted(make()))


def test_what_cannot_be_compared_by_value_equals_itself_alone():
    class Opaque:
        __hash__ = None  # type: ignore[assignment]

    one = Opaque()
    assert shifted(one) == shifted(one) != shifted(Opaque())


def test_another_value_of_a_global_makes_another_cell(monkeypatch):
    before = plain(8)
    assert before == plain(8)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert plain(8) != before


def endless(n, last=0):
    def even(k):
        return True if k == 0 else odd(k - 1)

    def odd(k):
        return last if k == 0 else even(k - 1)

    made = Cell(even, odd, even, odd, lambda params, carry, z: (made.space, n))
    return made


def test_functions_may_see_themselves():
    assert endless(3) == endless(3)
    assert endless(3) != endless(4)
    assert endless(3) != endless(3, last=1)
    made = pickle.loads(pickle.dumps(endless(3)))
    assert made.init(4) is True
    assert made.readout(None, None, None) == ((), 3)
    assert repr(endless(3)) == "endless(n=3)"


def test_a_structure_takes_linear_time_in_the_depth_of_wrappers():
    cell = cells.gru(4)
    for _ in range(40):
        cell = doubled(wrappers.residual(cell))
    other = cells.gru(4)
    for _ in range(40):
        other = doubled(wrappers.residual(other))
    assert cell == other
    assert len(pickle.dumps(cell)) < 200_000


def test_structures_are_freed_with_what_they_describe():
    from seqjax.identity import structures

    gc.collect()
    before = len(structures._KNOWN)
    made = [shifted(("unseen", i)) for i in range(100)]
    assert len({hash(cell) for cell in made}) == 100
    assert len(structures._KNOWN) >= before + 100
    del made
    gc.collect()
    assert len(structures._KNOWN) < before + 100


def test_a_cell_is_still_a_tuple():
    cell = cells.lstm(8)
    init, *_ = cell
    assert init is cell.init
    assert cell._fields[:2] == ("init", "initial_carry")
    other = cell._replace(space=(3,))
    assert type(other) is Cell
    assert other.space == (3,)
    assert other != cell
    assert other._replace(space=()) == cell
    assert repr(other) != repr(cell)
    assert jax.tree.leaves(cell) == []
    assert jax.tree.unflatten(jax.tree.structure(cell), []) is cell


def test_jit_compiles_equal_cells_once():
    traces = []

    @jax.jit
    def by_tree(cell, x):
        traces.append(cell)
        return cell.step({"w": jnp.ones((2, 3))}, jnp.zeros((1, 3)), x)[1]

    @partial(jax.jit, static_argnums=0)
    def by_static(cell, x):
        traces.append(cell)
        return cell.step({"w": jnp.ones((2, 3))}, jnp.zeros((1, 3)), x)[1]

    for run in (by_tree, by_static):
        for _ in range(3):
            run(plain(3), jnp.ones((1, 2)))
    assert len(traces) == 2
    by_tree(doubled(plain(3)), jnp.ones((1, 2)))
    assert len(traces) == 3


TRACES = []


def counted(hidden, record=TRACES.append):
    """A cell that notes when its step is traced."""
    cell = cells.rnn(hidden)

    def project(params, x):
        record(hidden)
        return cell.project(params, x)

    return cell._replace(project=project)


def test_unroll_and_a_jitted_module_compile_equal_cells_once():
    params = counted(3).init(jax.random.key(0), 2)
    unrolled = [seqjax.unroll(counted(3), params, None, jnp.ones((4, 1, 2)), method="scan")[1] for _ in range(2)]
    first = len(TRACES)
    seqjax.unroll(counted(3), params, None, jnp.ones((4, 1, 2)), method=partial(seqjax.solvers.checkpointed, chunk=2))
    second = len(TRACES)
    seqjax.unroll(counted(3), params, None, jnp.ones((4, 1, 2)), method=partial(seqjax.solvers.checkpointed, chunk=2))
    assert first > 0
    assert len(TRACES) == second > first
    np.testing.assert_array_equal(*unrolled)

    calls = []

    @nnx.jit
    def run(model, xs):
        calls.append(model)
        return model(xs)

    for seed in range(3):
        noisy = [partial(regularizers.input_dropout, rate=0.5), partial(noise.zoneout, rate=0.5)]
        run(Recurrent(cells.lstm(4), 2, regularizers=noisy, rngs=nnx.Rngs(seed)), jnp.ones((1, 3, 2)))
    assert len(calls) == 1
    run(Recurrent(cells.lstm(4), 2, rngs=nnx.Rngs(0)), jnp.ones((1, 3, 2)))
    assert len(calls) == 2


@pytest.mark.parametrize("name", MODELS)
def test_a_cell_is_pickled_and_copied(name):
    cell = MODELS[name].cell
    again = pickle.loads(pickle.dumps(cell))
    assert again == cell
    assert repr(again) == repr(cell)
    bare = cell._replace(vocabulary=cell.vocabulary)  # without its record
    assert pickle.loads(pickle.dumps(bare)) == cell
    assert copy.deepcopy(cell) == cell == copy.copy(cell)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle(protocol):
    for cell in (cells.lstm(8), leaky(8), doubled(leaky(8))):
        assert pickle.loads(pickle.dumps(cell, protocol)) == cell


def outputs(cell):
    params = cell.init(jax.random.key(0), 8)
    return repr(cell), np.asarray(seqjax.unroll(cell, params, None, jnp.ones((3, 1, 8)), method="scan")[1])


def test_cells_go_to_a_spawned_process():
    made = [wrappers.residual(cells.lstm(8)), leaky(8, activation=lambda x: 3 * x), doubled(plain(8))]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(outputs, made)
    for (text, ys), cell in zip(found, made, strict=True):
        assert text == repr(cell)
        np.testing.assert_allclose(ys, outputs(cell)[1], rtol=1e-6)


def test_what_cannot_be_pickled_is_named():
    with open(__file__) as file, pytest.raises(pickle.PicklingError, match=r"cannot pickle plain\(.*TextIOWrapper"):
        pickle.dumps(shifted(file))


def test_a_pickle_of_another_python_is_refused(monkeypatch):
    data = pickle.dumps(plain(8))
    monkeypatch.setattr("importlib.util.MAGIC_NUMBER", b"other")
    with pytest.raises(pickle.UnpicklingError, match="another version of Python"):
        pickle.loads(data)
    pickle.loads(pickle.dumps(cells.lstm(8)))


def test_help_shows_the_signature_of_a_factory():
    assert str(inspect.signature(cells.lstm)).startswith("(hidden: int, *, w_x: ")
    assert cells.lstm.__doc__.startswith("Long short-term memory")


def test_by_value_keeps_methods_and_defaults():
    @by_value
    class Pair(NamedTuple):
        """Two values."""

        a: object
        b: int = 2

        def total(self):
            return self.b + 1

    assert Pair(1).total() == 3
    assert Pair([1]) == Pair([1]) != Pair([1], 3)
    assert repr(Pair(1)) == "Pair(a=1)"


NUMBERS = {
    "janet": lambda number: cells.janet(4, number(0.5)),
    "antisymmetric_rnn": lambda number: cells.antisymmetric_rnn(4, number(0.1), number(0.01)),
    "ct_rnn": lambda number: cells.ct_rnn(4, number(0.1)),
    "fast_weights": lambda number: cells.fast_weights(4, decay=number(0.9), rate=number(0.5), epsilon=number(1e-5)),
    "layer_norm_lstm": lambda number: cells.layer_norm_lstm(4, epsilon=number(1e-5)),
    "gated_linear_attention": lambda number: cells.gated_linear_attention(1, 2, 2, temperature=number(16.0)),
    "lru": lambda number: cells.lru(4, r_min=number(0.1), r_max=number(0.9), max_phase=number(6.0)),
    "rg_lru": lambda number: cells.rg_lru(c=number(8.0)),
    "s5": lambda number: cells.s5(4, dt_min=number(0.001), dt_max=number(0.1)),
    "zoneout_mean": lambda number: noise.zoneout_mean(cells.min_gru(4), number(0.5)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_numpy_do_not_promote(x64, name):
    cell, plain = NUMBERS[name](np.float64), NUMBERS[name](float)
    assert repr(cell) == repr(plain)
    assert cell == plain
    params = cell.init(jax.random.key(0), 3)
    xs = jnp.ones((2, 1, 3), jnp.float32)
    close(seqjax.unroll(cell, params, None, xs), seqjax.unroll(plain, params, None, xs), 0)
