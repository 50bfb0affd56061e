"""What `unroll` takes: params of its cell, the carry of a user's step, NumPy arrays; and sizes, any integers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

import seqjax
from seqjax import attention, cells, from_step, regularizers, wrappers
from seqjax.nnx import Recurrent
from tests.agree import close

XS = jnp.ones((3, 2, 3))
unroll = partial(seqjax.unroll, method="scan")


def drawn(cell, features=3):
    return cell.init(jax.random.key(0), features)


OTHER_PARAMS = {
    "another number of units": (
        cells.lstm(4),
        cells.lstm(8),
        r"'w_h': \[4, 16\].*expected .*\[8, 32\].*as lstm\(8\)",
    ),
    "another cell": (
        cells.lstm(4),
        cells.gru(4),
        r"expected \{'b': \[12\], 'b_n': \[4\].* as gru\(4\)",
    ),
    "the other way round": (cells.gru(4), cells.lstm(4), r"the params are .*'b_n'.*as lstm\(4\) makes them"),
    "a stack": (cells.stack(cells.gru(4)), cells.gru(4), r"the params are \(\{.*\},\), expected \{"),
    "a wrapper": (wrappers.residual(cells.gru(3)), wrappers.highway(cells.gru(3)), "expected {.*w_t"),
    "another order": (
        cells.stack(cells.gru(4), cells.lstm(4)),
        cells.stack(cells.lstm(4), cells.gru(4)),
        "as stack.lstm",
    ),
}


@pytest.mark.parametrize("name", OTHER_PARAMS)
def test_params_of_another_cell_are_refused(name):
    other, cell, message = OTHER_PARAMS[name]
    with pytest.raises(ValueError, match=message):
        unroll(cell, drawn(other), None, XS)
    with pytest.raises(ValueError, match=message):
        jax.jit(partial(unroll, cell))(drawn(other), None, XS)
    with pytest.raises(ValueError, match=message):
        Recurrent(cell, 3, params=drawn(other), rngs=nnx.Rngs(0))


def test_params_of_another_kind_of_dtype_are_refused():
    cell = cells.gru(4)
    whole = jax.tree.map(lambda w: w.astype(jnp.int8), drawn(cell))
    with pytest.raises(ValueError, match=r"the params are \{'b': 'int8'.*expected \{'b': 'floating'"):
        unroll(cell, whole, None, XS)


def test_inputs_that_do_not_fit_the_params_are_still_named_as_such():
    with pytest.raises(ValueError, match=r"inputs have shape \(2, 5\), expected \[..., 3\] \(weights \(3, 16\)\)"):
        unroll(cells.lstm(4), drawn(cells.lstm(4)), None, jnp.ones((3, 2, 5)))
    reading = wrappers.with_embedding(cells.gru(4), 5, 3)
    with pytest.raises(TypeError, match="with_embedding reads integer tokens, got float32"):
        unroll(reading, drawn(reading, 0), None, XS)


def test_params_in_another_dtype_in_lists_in_lanes_or_dropped_are_the_cells_own():
    cell = cells.stack(cells.gru(4), cells.lstm(4))
    params = drawn(cell)
    _, ys = unroll(cell, params, None, XS)
    narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    assert unroll(cell, narrow, None, XS.astype(jnp.bfloat16))[1].shape == ys.shape
    close(unroll(cell, list(params), None, XS)[1], ys, 1e-6)
    lanes = jax.vmap(lambda key: cell.init(key, 3))(jax.random.split(jax.random.key(0), 2))
    assert jax.vmap(lambda p: unroll(cell, p, None, XS)[1])(lanes).shape == (2, *ys.shape)
    assert unroll(cell, regularizers.weight_drop(jax.random.key(1), params, 0.5), None, XS)[1].shape == ys.shape
    attending = attention.luong(cells.gru(4), 2)
    p = drawn(attending.cell)
    unroll(attending.cell, p, None, (XS, attending.remember(p, jnp.ones((2, 5, 2)))))


def test_an_init_that_cannot_be_traced_is_not_held_against_params():
    def init(key, in_features):
        return {"a": jnp.float32(float(jax.random.uniform(key)))}

    cell = from_step(init, lambda params, batch: jnp.zeros((*batch, 3)), lambda params, h, x: (params["a"] * h + x, h))
    assert unroll(cell, drawn(cell), None, XS)[1].shape == XS.shape


def test_a_cell_of_known_params_is_checked_without_another_trace():
    calls = []

    def init(key, in_features):
        calls.append(in_features)
        return {"a": jnp.zeros(())}

    cell = from_step(init, lambda params, batch: jnp.zeros((*batch, 3)), lambda params, h, x: (params["a"] * h + x, h))
    for _ in range(3):
        unroll(cell, {"a": jnp.ones(())}, None, XS)
    assert calls == [3]


def counting():
    """A cell whose carry is a dict, and which outputs the count before the step."""

    def step(params, carry, x):
        return {"count": carry["count"] + x}, carry["count"]

    return from_step(lambda key, d: {}, lambda params, batch: {"count": jnp.zeros((*batch, 3))}, step)


def test_the_carry_of_from_step_is_the_users_own():
    cell = counting()
    last, ys = unroll(cell, {}, {"count": jnp.full((2, 3), 5.0)}, XS)
    np.testing.assert_array_equal(ys[:, 0, 0], [5, 6, 7])
    assert jax.tree.map(lambda leaf: leaf[0, 0].item(), last) == {"count": 8.0}
    assert jax.tree.structure(unroll(cell, {}, None, XS)[0]) == jax.tree.structure(last)
    np.testing.assert_array_equal(unroll(cell, {}, last, XS)[1][:, 0, 0], [8, 9, 10])
    np.testing.assert_array_equal(cell.step({}, last, XS[0])[1], 8 * XS[0])
    with pytest.raises(ValueError, match=r"the carry is float32\[2, 3\], expected \{'count': 'float32\[2, 3\]'\}"):
        unroll(cell, {}, jnp.zeros((2, 3)), XS)


@pytest.mark.parametrize(
    "wrap", [wrappers.residual, wrappers.masked, lambda cell: cells.stack(cells.gru(3), cell, cell)]
)
def test_the_carry_of_from_step_is_the_users_own_through_wrappers_too(wrap):
    cell = wrap(counting())
    params = drawn(cell)
    xs = (XS, jnp.ones((3, 2), bool)) if wrap is wrappers.masked else XS
    middle, first = unroll(cell, params, None, jax.tree.map(lambda x: x[:1], xs))
    assert "Stepped" not in str(jax.tree.structure(middle))
    last, rest = unroll(cell, params, middle, jax.tree.map(lambda x: x[1:], xs))
    whole, ys = unroll(cell, params, None, xs)
    close((last, jnp.concatenate([first, rest])), (whole, ys), 1e-6)


def test_a_carry_that_the_cell_made_comes_back_as_it_was_given():
    cell = counting()
    inner = cell.initial_carry({}, (2,))
    assert jax.tree.structure(unroll(cell, {}, inner, XS)[0]) == jax.tree.structure(inner)
    carry, _ = Recurrent(cell, 3, return_carry=True, rngs=nnx.Rngs(0))(jnp.ones((2, 3, 3)))
    assert set(carry) == {"count"}


def test_numpy_arrays_are_taken_as_jax_takes_them():
    cell, xs = cells.gru(4), np.ones((3, 2, 3))  # float64
    params = drawn(cell)
    last, ys = unroll(cell, params, None, xs, mask=np.ones((3, 2), bool))
    assert ys.dtype == jnp.float32
    wide = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    for run in (partial(unroll, cell, params), jax.jit(lambda *args: unroll(cell, params, *args[:1], xs))):
        close(run(None, xs)[1], ys, 1e-6)
    close(
        jax.jit(lambda: unroll(cell, wide, np.asarray(last, np.float64), xs)[1])(),
        unroll(cell, params, last, xs)[1],
        1e-6,
    )
    rnn = Recurrent(cell, 3, params=params, method="scan", rngs=nnx.Rngs(0))
    close(rnn(np.moveaxis(xs, 0, 1), seq_lengths=np.array([3, 3])), jnp.moveaxis(ys, 0, 1), 1e-6)
    close(jax.jit(lambda: rnn(np.moveaxis(xs, 0, 1)))(), jnp.moveaxis(ys, 0, 1), 1e-6)
    with pytest.raises(TypeError, match=r"xs must be an array \[B, T, D\], got a list that holds a float: use jnp"):
        rnn([[[1.0, 2.0, 3.0]]])


def test_a_module_goes_through_the_bridge_to_linen():
    layer = bridge.ToLinen(Recurrent, args=(cells.lstm(4), 3))
    xs = jnp.ones((2, 3, 3))
    variables = layer.init(jax.random.key(0), xs)
    assert set(variables["params"]) == {"cell_params"}
    assert layer.apply(variables, xs).shape == (2, 3, 4)


SIZES = {
    cells.lstm: (4,),
    cells.peephole_lstm: (4,),
    cells.coupled_lstm: (4,),
    cells.projected_lstm: (4, 2),
    cells.layer_norm_lstm: (4,),
    cells.multiplicative_lstm: (4,),
    cells.gru: (4,),
    cells.gru_reset_before: (4,),
    cells.rnn: (4,),
    cells.ind_rnn: (4,),
    cells.ugrnn: (4,),
    cells.mgu: (4,),
    cells.janet: (4,),
    cells.antisymmetric_rnn: (4,),
    cells.exp_rnn: (4,),
    cells.fast_weights: (3, 2),
    cells.ct_rnn: (4,),
    cells.ltc: (4,),
    cells.cfc: (4,),
    cells.conv_lstm: (2, (5,), 3),
    cells.min_gru: (4,),
    cells.min_lstm: (4,),
    cells.qrnn: (4,),
    cells.sru: (4,),
    cells.peephole_sru: (4,),
    cells.lru: (4,),
    cells.s4d: (2,),
    cells.s5: (4, 2),
    cells.slstm: (4, 2),
    cells.mlstm: (2, 3, 2),
    cells.delta_net: (2, 3, 2),
    cells.gated_linear_attention: (2, 3, 2),
    partial(wrappers.with_head, cells.gru(4)): (2,),
    partial(wrappers.with_embedding, cells.gru(4)): (5, 3),
    partial(wrappers.with_one_hot, cells.gru(4)): (5,),
    lambda features: attention.luong(cells.gru(4), features).cell: (2,),
    lambda features: attention.bahdanau(cells.gru(4), features).cell: (2,),
}


@pytest.mark.parametrize("make", SIZES)
@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_sizes_are_integers_of_any_kind(make, kind):
    made = make(*(tuple(map(kind, size)) if isinstance(size, tuple) else kind(size) for size in SIZES[make]))
    assert made == make(*SIZES[make])
    assert repr(made) == repr(make(*SIZES[make]))
    for wrong in (2.0, "4", 0, None):
        with pytest.raises(ValueError, match=r"positive|divides"):
            make(wrong, *SIZES[make][1:])


def test_no_cell_is_missing_among_the_sizes():
    factories = {one for name in cells.__all__ if not isinstance(one := getattr(cells, name), type)}
    assert factories - {cells.stack, cells.rg_lru} <= set(SIZES)
