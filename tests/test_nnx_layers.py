"""Flax modules beyond a plain `Recurrent`: any regularizer, dtypes, given params, steps, stacks, Flax's own layers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import seqjax
from seqjax import cells, initializers, noise, presets, regularizers, wrappers
from seqjax.importers import from_flax
from seqjax.nnx import Bidirectional, Recurrent, RNNCell, Stack
from tests.agree import compiled, relaxed

B, T, D, H = 3, 6, 4, 4
LENGTHS = jnp.array([6, 1, 4])
GRU, LSTM = cells.gru(H), cells.lstm(H)
DEEP = cells.stack(cells.gru(H), cells.min_gru(H))
xs = jax.random.normal(jax.random.key(1), (B, T, D))


def recurrent(cell=GRU, **options):
    return Recurrent(cell, D, rngs=nnx.Rngs(0), method="scan", **options)


@partial(nnx.jit, static_argnames=("return_carry", "time_major", "reverse", "keep_order"))
def run(module, xs, **options):
    return module(xs, **options)


def swap(x):
    return jnp.swapaxes(x, 0, 1)


@partial(compiled, static_argnums=0)
def unrolled(cell, params, inputs):
    return swap(seqjax.unroll(cell, params, None, inputs, method="scan")[1])


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, tolerance=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b)


# Regularizers

REGULARIZERS = {
    "recurrent_dropout": partial(regularizers.recurrent_dropout, rate=0.5, per_step=True),
    "input_dropout": partial(regularizers.input_dropout, rate=0.5),
    "output_dropout": partial(regularizers.output_dropout, rate=0.5),
    "stochastic_depth": partial(regularizers.stochastic_depth, rate=0.5),
    "zoneout": partial(noise.zoneout, rate=0.5),
    "carry_noise": partial(noise.carry_noise, scale=0.5),
}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_regularizer_is_that_of_the_cell_and_its_evaluation(name):
    rnn = recurrent(regularizers=[REGULARIZERS[name]])
    noisy, sample = REGULARIZERS[name](GRU)
    drawn = sample(nnx.Rngs(dropout=7).dropout(), GRU.initial_carry(rnn.weights, (B,)), swap(xs))
    bare = unrolled(GRU, rnn.weights, swap(xs))
    expected = unrolled(noisy, rnn.weights, (swap(xs), drawn))
    close(run(rnn, xs, rngs=nnx.Rngs(dropout=7)), expected)
    assert jnp.abs(expected - bare).max() > 1e-2
    assert not jnp.array_equal(run(rnn, xs), run(rnn, xs))
    rnn.eval()
    evaluated = noise.zoneout_mean(GRU, 0.5) if name == "zoneout" else GRU
    ys = run(rnn, xs)
    close(ys, unrolled(evaluated, rnn.weights, swap(xs)))
    assert (jnp.abs(ys - bare).max() > 1e-2) == (name == "zoneout")


@pytest.mark.parametrize("name", sorted(REGULARIZERS.keys() - {"carry_noise"}))
def test_the_number_zero_omits_a_regularizer_and_a_scalar_zero_draws(name):
    bare = run(recurrent(), xs)
    omitted = recurrent(regularizers=[partial(REGULARIZERS[name], rate=0)])
    same(run(omitted, xs), bare)
    assert omitted.rngs.count[...] == 0
    omitted.eval()
    same(run(omitted, xs), bare)
    drawn = recurrent(regularizers=[partial(REGULARIZERS[name], rate=jnp.float32(0))])
    close(run(drawn, xs), bare)
    assert drawn.rngs.count[...] == 1


def test_what_is_omitted_takes_no_key_from_the_others_and_suits_any_cell():
    cell = cells.min_gru(H)
    noisy = [partial(regularizers.input_dropout, rate=0.5)]
    dropped = [partial(regularizers.weight_drop, rate=0.5, names=("w_x",))]
    rnn = recurrent(
        cell,
        regularizers=[partial(regularizers.recurrent_dropout, rate=0.0), *noisy],
        weight_regularizers=[partial(regularizers.weight_drop, rate=0), *dropped],
    )
    same(run(rnn, xs), run(recurrent(cell, regularizers=noisy, weight_regularizers=dropped), xs))
    assert rnn.rngs.count[...] == 2


def test_regularizers_go_around_each_other():
    rnn = recurrent(
        regularizers=[
            partial(regularizers.input_dropout, rate=0.5),
            partial(noise.zoneout, rate=0.3),
            partial(regularizers.output_dropout, rate=0.5),
        ],
        weight_regularizers=[partial(regularizers.weight_drop, rate=0.5, names=("w_x",))],
    )
    rngs = nnx.Rngs(dropout=7)
    carry = GRU.initial_carry(rnn.weights, (B,))
    cell, inputs = GRU, swap(xs)
    for regularizer, rate in (
        (regularizers.input_dropout, 0.5),
        (noise.zoneout, 0.3),
        (regularizers.output_dropout, 0.5),
    ):
        cell, sample = regularizer(cell, rate)
        inputs = (inputs, sample(rngs.dropout(), carry, inputs))
    dropped = regularizers.weight_drop(rngs.dropout(), rnn.weights, 0.5, ("w_x",))
    close(run(rnn, xs, rngs=nnx.Rngs(dropout=7)), unrolled(cell, dropped, inputs))
    rnn.eval()
    close(run(rnn, xs), unrolled(noise.zoneout_mean(GRU, 0.3), rnn.weights, swap(xs)))


def test_rates_for_each_leaf_of_the_carry():
    rates = cells.LSTMCarry(h=0.05, c=0.5)
    rnn = recurrent(LSTM, regularizers=[partial(noise.zoneout, rate=rates)])
    rnn.eval()
    close(run(rnn, xs), unrolled(noise.zoneout_mean(LSTM, rates), rnn.weights, swap(xs)))


def test_a_regularizer_may_bring_its_own_evaluation():
    def sleepy(cell, rate, extra=1):
        del extra
        return noise.zoneout(cell, rate)

    def awake(cell, rate, extra):
        return noise.zoneout_mean(cell, rate * extra)

    rate = jnp.float32(0.1)
    rnn = recurrent(regularizers=[(partial(sleepy, rate=rate, extra=2), awake)])
    rnn.eval()
    close(run(rnn, xs), unrolled(noise.zoneout_mean(GRU, 0.2), rnn.weights, swap(xs)))


def test_a_rate_that_is_an_array_is_state_and_may_be_traced():
    rates = jnp.array([0.2, 0.6])

    def zoneout(rate):
        return [partial(noise.zoneout, rate=rate)]

    graphdef, state = nnx.split(recurrent(regularizers=zoneout(rates[0])))
    (rate,) = jax.tree.leaves(nnx.state(nnx.merge(graphdef, state))["_regularizers"])
    assert rate == rates[0]
    assert "_regularizers" not in nnx.state(recurrent(regularizers=zoneout(0.2)))

    def replace(rate):
        rnn = nnx.merge(graphdef, state, copy=True)
        rnn.regularizers = zoneout(rate)
        return rnn(xs)

    single = jnp.stack([run(recurrent(regularizers=zoneout(rate)), xs) for rate in rates.tolist()])
    later = recurrent()
    later.regularizers = zoneout(rates[1])
    assert later.regularizers[0].arrays["rate"] == rates[1]
    same(*jax.tree.leaves(nnx.state(later)["_regularizers"]), rates[1])
    close(jax.jit(jax.vmap(lambda rate: recurrent(regularizers=zoneout(rate))(xs)))(rates), single)
    close(jax.jit(jax.vmap(replace))(rates), single)


def test_wrong_regularizers_are_refused_at_construction():
    with pytest.raises(ValueError, match=r"rate lies in \[0, 1\), got 1\.5"):
        recurrent(regularizers=[partial(noise.zoneout, rate=1.5)])
    with pytest.raises(TypeError, match=r"a regularizer is Cell -> \(Cell, sample\), and zoneout_mean makes a Cell"):
        recurrent(regularizers=[partial(noise.zoneout_mean, rate=0.5)])
    with pytest.raises(TypeError, match="and <lambda> makes a tuple"):
        recurrent(regularizers=[lambda cell: (1, 2)])
    with pytest.raises(ValueError, match="no leaf of the params is named w_q"):
        recurrent(weight_regularizers=[partial(regularizers.weight_drop, rate=0.5, names=("w_q",))])
    rnn = Recurrent(GRU, D, rngs=nnx.Rngs(params=0), weight_regularizers=[partial(regularizers.weight_drop, rate=0.5)])
    with pytest.raises(ValueError, match="Recurrent has noise to draw and no random stream"):
        rnn(xs)


# Dtypes, params, initializers


def test_dtype_is_that_of_the_computation():
    rnn = recurrent(LSTM, dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rnn.weights))
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), rnn.weights)
    carry, ys = run(rnn, xs, return_carry=True)
    assert ys.dtype == carry.c.dtype == jnp.float32
    close(ys, unrolled(LSTM, narrow, swap(xs.astype(jnp.bfloat16))), 1e-6)
    assert jnp.abs(ys - run(recurrent(LSTM), xs)).max() > 1e-4
    grads = nnx.jit(nnx.grad(lambda rnn: rnn(xs).sum()))(rnn)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
    tokens = Recurrent(wrappers.with_embedding(GRU, 7, D), 0, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert run(tokens, jnp.array([[1, 2, 0]])).shape == (1, 3, H)


def test_given_params_are_the_weights():
    params = LSTM.init(jax.random.key(5), D)
    same(recurrent(LSTM, params=params).weights, params)
    both = Bidirectional(LSTM, LSTM, D, params=(params, recurrent(LSTM).weights), rngs=nnx.Rngs(0))
    same(both.forward.weights, params)
    same(both.backward.weights, recurrent(LSTM).weights)
    with pytest.raises(ValueError, match=r"the params are .*'w_x': \[3, 16\].*, expected .*\[4, 16\].* for 4 features"):
        recurrent(LSTM, params=LSTM.init(jax.random.key(5), 3))
    with pytest.raises(ValueError, match="the params are"):
        recurrent(LSTM, params=GRU.init(jax.random.key(5), D))


def test_initializers_of_jax_for_each_matrix():
    inits = jax.nn.initializers
    cell = cells.lstm(
        H, w_x=inits.normal(1.0), w_h=initializers.jointly(inits.ones), b=initializers.from_jax(inits.constant(0.25))
    )
    weights = recurrent(cell).weights
    assert 0.5 < weights["w_x"].std() < 1.5
    assert (weights["w_h"] == 1).all()
    assert (weights["b"] == 0.25).all()
    assert weights["b"].shape == (4 * H,)
    half = cells.gru(H, dtype=jnp.bfloat16, **presets.flax() | {"b": initializers.from_jax(inits.normal(1.0))})
    b = half.init(jax.random.key(0), D)["b"]
    assert b.dtype == jnp.bfloat16
    assert len(jnp.unique(b)) == 3 * H


# The calls of Flax


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
@pytest.mark.parametrize(
    "options",
    [{}, {"time_major": True}, {"reverse": True, "keep_order": True}, {"reverse": True, "keep_order": False}],
    ids=["plain", "time major", "in order", "as processed"],
)
def test_calls_are_those_of_nnx_rnn(options, lengths):
    theirs = nnx.RNN(nnx.OptimizedLSTMCell(D, H, rngs=nnx.Rngs(0)))
    cell, params = from_flax(theirs)
    inputs = swap(xs) if "time_major" in options else xs
    given = options | ({} if lengths is None else {"seq_lengths": lengths})
    with relaxed():
        (c, h), expected = run(theirs, inputs, return_carry=True, **given)
    if lengths is not None:
        real = seqjax.mask_from_lengths(lengths, T)
        expected = jnp.where((real if "time_major" in options else real.T)[..., None], expected, 0)
    rnn = recurrent(cell, params=params)
    carry, ys = run(rnn, inputs, return_carry=True, **given)
    close(ys, expected)
    close(carry, cells.LSTMCarry(h, c))
    for name, value in options.items():
        setattr(rnn, name, value)
    same(run(rnn, inputs, seq_lengths=lengths), ys)


def test_options_of_a_call_go_before_those_of_the_constructor():
    rnn = recurrent(reverse=True, return_carry=True, time_major=True)
    carry, ys = run(rnn, swap(xs))
    assert ys.shape == (T, B, H)
    same(run(rnn, swap(xs), return_carry=False), ys)
    same(run(rnn, xs, return_carry=False, time_major=False, reverse=False), run(recurrent(), xs))
    same(carry, ys[0])
    with pytest.raises(ValueError, match="keep_order=False turns each sequence by its length"):
        rnn(swap(xs), mask=jnp.ones((T, B), bool), keep_order=False)


def test_flax_runs_our_layers_and_our_cells():
    both = Bidirectional(GRU, LSTM, D, rngs=nnx.Rngs(0), method="scan")
    close(
        run(nnx.Bidirectional(both.forward, both.backward), xs, seq_lengths=LENGTHS), run(both, xs, seq_lengths=LENGTHS)
    )
    step = RNNCell(LSTM, D, params=both.backward.weights, rngs=nnx.Rngs(0))
    with relaxed():
        carry, ys = run(nnx.RNN(step), xs, return_carry=True)
    close((carry, ys), run(recurrent(LSTM, params=step.weights), xs, return_carry=True))
    carry = step.initialize_carry(xs[:, 0].shape)
    _, y = step(carry, xs[:, 0])
    close(y, ys[:, 0])
    assert step.num_feature_axes == 1
    assert step.out_features == H


def test_a_cell_that_reads_tokens_by_hand():
    cell = wrappers.with_embedding(GRU, 7, D)
    step = RNNCell(cell, 0, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    tokens = jnp.array([[1, 2, 0], [3, 3, 1]])
    carry, ys = step.initialize_carry(tokens[:, 0].shape), []
    for t in range(3):
        carry, y = step(carry, tokens[:, t])
        ys.append(y)
    expected = Recurrent(cell, 0, params=step.weights, dtype=jnp.bfloat16, method="scan", rngs=nnx.Rngs(0))(tokens)
    close(jnp.stack(ys, 1), expected)
    assert step.num_feature_axes == 0


def test_an_ensemble_by_nnx_vmap_and_layers_by_nnx_scan():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def make(rngs):
        return Recurrent(GRU, D, regularizers=[partial(noise.zoneout, rate=0.2)], rngs=rngs, method="scan")

    many = make(nnx.Rngs(0))

    @nnx.jit
    @nnx.vmap(in_axes=(0, None))
    def each(rnn, xs):
        return rnn(xs)

    assert each(many, xs).shape == (3, B, T, H)
    assert not jnp.array_equal(each(many, xs), each(many, xs))
    many.eval()
    weights = [jax.tree.map(lambda leaf, i=i: leaf[i], many.weights) for i in range(3)]
    mean = noise.zoneout_mean(GRU, 0.2)
    close(each(many, xs), jnp.stack([unrolled(mean, w, swap(xs)) for w in weights]))

    @nnx.jit
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def deep(xs, rnn):
        return rnn(xs)

    close(deep(xs, many), unrolled(cells.stack(mean, mean, mean), tuple(weights), swap(xs)))


def test_the_state_survives_a_checkpoint(tmp_path):
    def build(seed, rate):
        noisy = [partial(regularizers.input_dropout, rate=rate), partial(noise.zoneout, rate=rate)]
        return Stack([(LSTM, LSTM), GRU], D, dropout=0.5, rngs=nnx.Rngs(seed), method="scan", regularizers=noisy)

    source, target = build(0, jnp.float32(0.3)), build(1, jnp.float32(0.1))
    source.dropout.rngs()  # the random streams move on
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(source))
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.state(target))
        nnx.update(target, checkpointer.restore(tmp_path / "state", abstract))
    saved, restored = (jax.tree.leaves(nnx.state(module)) for module in (source, target))
    for a, b in zip(saved, restored, strict=True):
        typed = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        same(*((jax.random.key_data(leaf) if typed else leaf) for leaf in (a, b)))
    assert target.dropout.rngs.count[...] == 1


# Bidirectional and Stack


def test_outputs_of_both_directions_may_be_added():
    both = Bidirectional(GRU, LSTM, D, merge_fn=jnp.add, return_carry=True, rngs=nnx.Rngs(0), method="scan")
    _, ys = run(both, xs)
    close(ys, run(both.forward, xs) + run(both.backward, xs))
    assert both.out_features == H
    same(run(both, swap(xs), time_major=True, return_carry=False), swap(ys))


def test_a_stack_is_a_stack_of_cells():
    stack = Stack(DEEP.layers, D, rngs=nnx.Rngs(0), method="scan")
    rnn = recurrent(DEEP, params=tuple(layer.weights for layer in stack.layers))
    carry, ys = run(stack, xs, seq_lengths=LENGTHS, return_carry=True)
    close((carry, ys), run(rnn, xs, seq_lengths=LENGTHS, return_carry=True))
    _, first = run(stack, xs[:, :2], return_carry=True)
    carry, _ = run(stack, xs[:, :2], return_carry=True)
    second = run(stack, xs[:, 2:], initial_carry=carry)
    close(jnp.concatenate([first, second], 1), run(rnn, xs))
    same(run(stack, swap(xs), time_major=True), swap(run(stack, xs)))


def test_a_stack_of_both_directions():
    params = [tuple(LSTM.init(jax.random.key(10 * i + j), D * (1 + i)) for j in range(2)) for i in range(2)]
    stack = Stack([(LSTM, LSTM), (LSTM, LSTM)], D, params=params, return_carry=True, rngs=nnx.Rngs(0), method="scan")
    assert stack.out_features == 2 * H
    mask = seqjax.mask_from_lengths(LENGTHS, T)
    first = seqjax.bidirectional((LSTM, LSTM), params[0], None, swap(xs), mask=mask, method="scan")
    second = seqjax.bidirectional((LSTM, LSTM), params[1], None, first[1], mask=mask, method="scan")
    carry, ys = run(stack, xs, seq_lengths=LENGTHS)
    close(carry, (first[0], second[0]))
    close(ys, swap(second[1]))
    last = Stack([(LSTM, LSTM), LSTM], D, return_sequences=False, rngs=nnx.Rngs(0), method="scan")
    carry, y = run(last, xs, return_carry=True)
    close(y, carry[1].h)


def test_a_residual_stack_skips_each_layer_but_the_first():
    cell, width = cells.gru(H), 2
    stack = Stack([cells.gru(H), cell, cell], width, residual=True, rngs=nnx.Rngs(0), method="scan")
    wrapped = cells.stack(cell, wrappers.residual(cell), wrappers.residual(cell))
    weights = tuple(layer.weights for layer in stack.layers)
    close(run(stack, xs[..., :width]), unrolled(wrapped, weights, swap(xs[..., :width])))


def test_dropout_between_layers():
    sees = cells.rnn(D, lambda u: u, w_x=initializers.identity(), w_h=jax.nn.initializers.zeros)
    stack = Stack([sees, sees, sees], D, dropout=0.5, rngs=nnx.Rngs(0), method="scan")
    ys = run(stack, jnp.ones((32, T, D)))
    values, counts = np.unique(ys, return_counts=True)  # two masks, one between each two layers
    np.testing.assert_array_equal(values, [0, 4])
    assert 0.2 < counts[1] / ys.size < 0.3
    assert len(np.unique(ys[0], axis=0)) > 1  # new at each step
    skips = Stack([sees, sees], D, dropout=0.5, residual=True, rngs=nnx.Rngs(0), method="scan")
    assert set(np.unique(run(skips, jnp.ones((32, T, D))))) == {1.0, 3.0}  # what is skipped is not dropped
    given = run(stack, xs, rngs=nnx.Rngs(dropout=3))
    same(run(stack, xs, rngs=nnx.Rngs(dropout=3)), given)
    stack.eval()
    close(run(stack, xs), xs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cells": []}, ValueError, "Stack needs at least one cell"),
        ({"params": [{}]}, ValueError, "params for 1 layers and 2 cells"),
        ({"residual": True}, ValueError, "residual adds 4 features to the 3 of layer 1"),
        ({"residual": True, "return_sequences": False}, ValueError, "residual adds sequences"),
        ({"reverse": True}, TypeError, r"the layers of a Stack run forward or in both directions, got \['reverse'\]"),
        ({"dropout": 1.0}, ValueError, r"a dropout rate lies in \[0, 1\), got 1\.0"),
    ],
)
def test_stacks_that_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        Stack(**{"cells": [GRU, cells.gru(3)], "in_features": D, "rngs": nnx.Rngs(0)} | arguments)


def test_wrong_options_and_carries_are_named():
    with pytest.raises(TypeError, match=r"Bidirectional settles \['keep_order'\] itself"):
        Bidirectional(GRU, GRU, D, keep_order=False, rngs=nnx.Rngs(0))
    stack = Stack([GRU, GRU], D, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="Stack has 2 layers and got a carry of 1 entries"):
        stack(xs, initial_carry=(jnp.zeros((B, H)),))
