"""Each cell is what its docstring says: the indented code of the docstring is run as NumPy, in a loop."""

import inspect
import textwrap
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import cells, unroll
from seqjax.arrays import operand_dtype
from seqjax.hints import gated_transition
from seqjax.solvers.scan import length
from seqjax.wrappers import with_head
from tests.agree import at, compiled
from tests.cell_list import BARE, MODELS, D, H, Model, draw

CELLS = [name for name, f in vars(cells).items() if inspect.isfunction(f) and name != "stack"]
SIZES = {"fast_weights": {"steps": 2}}
RELU = partial(np.maximum, 0.0)
ACTIVATIONS = {"rnn": np.tanh, "rnn_relu": RELU, "ind_rnn": RELU, "ct_rnn": np.tanh, "fast_weights": RELU}


def convolve(x, w):
    """x [B, *space, D] and w [*kernel, D, G], place by place."""
    y = np.zeros((*x.shape[:-1], w.shape[-1]))
    space, kernel = x.shape[1:-1], w.shape[:-2]
    for p in np.ndindex(space):
        for k in np.ndindex(kernel):
            at = tuple(i + j - (n - 1) // 2 for i, j, n in zip(p, k, kernel, strict=True))
            if all(0 <= i < n for i, n in zip(at, space, strict=True)):
                y[:, *p] += x[:, *at] @ w[k]
    return y


def docstring_code(function) -> types.CodeType:
    """The indented block after `::` in the docstring of a cell."""
    _, found, rest = inspect.getdoc(function).partition("::\n\n")
    assert found, f"the docstring of {function.__name__} shows no code"
    lines = rest.split("\n")
    end = next(i for i, line in enumerate(lines) if line and not line.startswith(" "))
    return compile(textwrap.dedent("\n".join(lines[:end])), function.__name__, "exec")


def slow_loop(name, params, carry, xs):
    """The docstring of a cell as a NumPy program over [T, B, D]: the leaves of the last carry, and the outputs."""
    function = getattr(cells, name.removesuffix("_relu").removesuffix("_2d"))
    code = docstring_code(function)
    arguments = inspect.signature(function).parameters.values()
    space = {
        "sigmoid": lambda u: 1 / (1 + np.exp(-u)),
        "tanh": np.tanh,
        "exp": np.exp,
        "split": lambda u, n: np.split(u, n, axis=-1),
        "convolve": convolve,
        "activation": ACTIVATIONS.get(name),
        **{a.name: a.default for a in arguments if isinstance(a.default, int | float)},
        **SIZES.get(name, {}),
        **{k: np.asarray(v, np.float64) for k, v in params.items()},
    }
    named = carry._asdict() if isinstance(carry, tuple) else {"h": carry}
    space |= {name: np.asarray(leaf, np.float64) for name, leaf in named.items()}
    ys = []
    for t in range(length(xs)):
        space["x"] = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), at(xs, t))
        exec(code, space)
        ys.append(space["y"])
    return [space[name] for name in named], np.stack(ys)


@pytest.mark.parametrize("name", [*BARE, "conv_lstm_2d"])
def test_a_cell_is_the_loop_in_its_docstring(x64, name):
    cell, params, carry, xs = draw(MODELS[name])
    got, ys = unroll(cell, params, carry, xs, method="scan")
    expected, expected_ys = slow_loop(name, params, carry, xs)
    for a, b in zip(jax.tree.leaves((got, ys)), jax.tree.leaves((expected, expected_ys)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def test_the_list_holds_every_cell():
    assert set(CELLS) == {name.removesuffix("_relu") for name in BARE}


@pytest.mark.parametrize("name", BARE)
def test_initial_carry_is_zero_and_outputs_have_the_batch(name):
    cell = BARE[name].cell
    params = cell.init(jax.random.key(0), D)
    carry = cell.initial_carry(params, (2, 5))
    assert all(leaf.shape[:2] == (2, 5) and not leaf.any() for leaf in jax.tree.leaves(carry))
    xs = jax.ShapeDtypeStruct((3, 2, 5, *cell.space, D), jnp.float32)
    _, ys = jax.eval_shape(lambda params, xs: unroll(cell, params, None, xs), params, xs)
    assert ys.shape[:-1] == (3, 2, 5, *cell.space)
    assert ys.dtype == jnp.float32


def test_lstm_has_the_parameters_of_the_formula():
    params = cells.lstm(16).init(jax.random.key(0), 14)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4 * (16 * (14 + 16) + 16)
    params = with_head(cells.lstm(16), 1).init(jax.random.key(0), 14)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2001


def test_gates_start_as_documented():
    key = jax.random.key(0)
    for cell in (cells.lstm, cells.peephole_lstm):
        i, f, g, o = np.split(cell(H).init(key, D)["b"], 4)
        assert (f == 1).all()
        assert not np.any([i, g, o])
    assert not cells.peephole_lstm(H).init(key, D)["p"].any()
    for cell in (cells.rnn, cells.gru, cells.gru_reset_before, cells.min_gru):
        assert not cell(H).init(key, D)["b"].any()
    assert not cells.gru(H).init(key, D)["b_n"].any()


def test_the_same_key_gives_the_same_params_and_another_key_others():
    one, same, other = (cells.gru(H).init(jax.random.key(seed), D) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one["w_h"], same["w_h"])
    assert not np.any(one["w_h"] == other["w_h"])
    layers = cells.stack(cells.gru(D), cells.gru(D)).init(jax.random.key(0), D)
    assert not np.any(layers[0]["w_x"] == layers[1]["w_x"])


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "min_gru"])
def test_sixteen_bit_weights_accumulate_in_float32(x64, name, narrow):
    """The only errors are those of rounding what enters a product; the reference rounds the same and no more."""
    hidden, steps = 64, 12
    cell = getattr(cells, name)(hidden)
    _, params, _, xs = draw(Model(cell, 48), steps)
    params = jax.tree.map(lambda leaf: (0.3 * leaf).astype(narrow), params)
    carry, ys = compiled(partial(unroll, cell))(params, None, xs.astype(jnp.float32))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((carry, ys)))

    def rounded(leaf):
        return leaf.astype(operand_dtype(narrow)).astype(jnp.float64)

    if cell.gated:
        stages = tuple(lambda h, z, us, stage=stage: rounded(stage(h, z, us)) for stage in cell.gated.stages)
        gated = cell.gated._replace(stages=stages)
        cell = cell._replace(transition=gated_transition(gated), gated=gated)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    _, expected = compiled(partial(unroll, cell, method="scan"))(wide, None, rounded(xs))
    assert expected.dtype == jnp.float64
    error = np.abs(np.asarray(ys, np.float64) - expected)
    # A state on the edge between two 16 bit numbers may round to the other one: that is the median and not the maximum.
    assert np.median(error) < 1e-6
    assert error.max() < 2e-3


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("make", [cells.rnn, cells.lstm, cells.peephole_lstm, cells.gru, cells.min_gru])
def test_sixteen_bit_params_initialize_and_have_gradients_of_their_dtype(make, narrow):
    cell = with_head(make(H, dtype=narrow), 2)
    params = cell.init(jax.random.key(0), D)
    assert all(leaf.dtype == narrow for leaf in jax.tree.leaves(params))
    grads = compiled(jax.grad(lambda params: unroll(cell, params, None, jnp.ones((5, 2, D)))[1].sum()))(params)
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == narrow
        assert jnp.isfinite(leaf).all()


def test_float64_params_give_float64(x64):
    cell = cells.lstm(H, dtype=jnp.float64)
    carry, ys = unroll(cell, cell.init(jax.random.key(0), D), None, jnp.ones((5, 2, D)))
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves((carry, ys)))


@pytest.mark.parametrize("make", [cells.rnn, cells.lstm, cells.peephole_lstm, cells.gru, cells.min_gru])
@pytest.mark.parametrize("hidden", [0, -1, 2.0, "8"])
def test_a_number_of_units_that_is_none_is_refused(make, hidden):
    with pytest.raises(ValueError, match=f"{make.__name__} takes a positive number of units, got {hidden!r}"):
        make(hidden)


def test_an_empty_stack_is_refused():
    with pytest.raises(ValueError, match="at least one cell"):
        cells.stack()
