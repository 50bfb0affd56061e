"""The Flax NNX layers: the cells of the library, with the conventions of Flax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import seqjax
from seqjax import cells
from seqjax.nnx import Bidirectional, Dropout, Recurrent
from seqjax.regularizers import input_dropout, recurrent_dropout

B, T, D, H = 3, 6, 4, 5
CELLS = {
    "lstm": cells.lstm(H),
    "min_gru": cells.min_gru(H),
    "stack": cells.stack(cells.lstm(3), cells.gru(H)),
}
LENGTHS = jnp.array([6, 1, 4])


@pytest.fixture(scope="module")
def xs():
    return jax.random.normal(jax.random.key(1), (B, T, D))


@nnx.jit
def run(rnn, xs, **options):
    """`(carry, ys)`, compiled: eager loops would be compiled anew at every call."""
    return rnn(xs, return_carry=True, **options)


unroll = jax.jit(seqjax.unroll, static_argnums=0, static_argnames="reverse")


def outputs(rnn, xs, **options):
    return run(rnn, xs, **options)[1]


def swap(x):
    return jnp.swapaxes(x, 0, 1)


def recurrent(cell=CELLS["lstm"], seed=0, **options):
    return Recurrent(cell, D, rngs=nnx.Rngs(seed), **options)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a, b)


# The same as unroll


@pytest.mark.parametrize(("name", "reverse"), [("lstm", False), ("min_gru", False), ("stack", True)])
def test_it_is_unroll(xs, name, reverse):
    cell = CELLS[name]
    rnn = recurrent(cell, reverse=reverse)
    expected = unroll(cell, rnn.weights, None, swap(xs), reverse=reverse)
    carry, ys = run(rnn, xs)
    close(carry, expected[0])
    close(ys, swap(expected[1]))
    assert rnn.out_features == ys.shape[-1] == H


def test_time_major(xs):
    rnn = recurrent(time_major=True)
    same(outputs(rnn, swap(xs)), swap(outputs(recurrent(), xs)))
    same(outputs(rnn, swap(xs), seq_lengths=LENGTHS), swap(outputs(recurrent(), xs, seq_lengths=LENGTHS)))
    mask = xs[..., 0] > 0
    same(outputs(rnn, swap(xs), mask=swap(mask)), swap(outputs(recurrent(), xs, mask=mask)))


@pytest.mark.parametrize("shape", [(T, D), (2, B, T, D)])
def test_any_number_of_batch_axes(shape):
    xs = jax.random.normal(jax.random.key(2), shape)
    ys = outputs(recurrent(), xs)
    assert ys.shape == (*shape[:-1], H)
    close(ys.reshape(-1, T, H), outputs(recurrent(), xs.reshape(-1, T, D)))


def test_tokens():
    tokens = jnp.array([[1, 2, 0], [3, 3, 1]])
    rnn = Recurrent(seqjax.wrappers.with_embedding(cells.gru(H), 7, D), 0, rngs=nnx.Rngs(0))
    ys = outputs(rnn, tokens)
    assert ys.shape == (2, 3, H)
    close(outputs(rnn, tokens, seq_lengths=jnp.array([3, 2]))[1, 1], ys[1, 1])
    with pytest.raises(TypeError, match="integer tokens"):
        rnn(tokens.astype(jnp.float32))


def test_method_reaches_the_solver(xs):
    with pytest.raises(ValueError, match="unknown method 'quantum'"):
        outputs(recurrent(method="quantum"), xs)
    close(outputs(recurrent(method=partial(seqjax.solvers.checkpointed, chunk=2)), xs), outputs(recurrent(), xs))


# Lengths, masks, carries


@pytest.mark.parametrize(("name", "reverse"), [("lstm", False), ("lstm", True), ("stack", True)])
def test_padding_changes_nothing(xs, name, reverse):
    cell = CELLS[name]
    rnn = recurrent(cell, reverse=reverse)
    carry, ys = run(rnn, xs.at[1, 1:].set(jnp.nan), seq_lengths=LENGTHS)
    for b, length in enumerate(LENGTHS.tolist()):
        alone_carry, alone = run(rnn, xs[b : b + 1, :length])
        close(ys[b, :length], alone[0])
        assert not ys[b, length:].any()
        close(jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], carry), alone_carry)


def test_a_mask_of_lengths_is_lengths(xs):
    mask = swap(seqjax.mask_from_lengths(LENGTHS, T))
    same(outputs(recurrent(), xs, mask=mask), outputs(recurrent(), xs, seq_lengths=LENGTHS))


def test_a_mask_with_holes_skips_steps(xs):
    mask = jnp.array([[True, False, True, True, False, True]] * B)
    real = jnp.array([0, 2, 3, 5])
    close(outputs(recurrent(), xs, mask=mask)[:, real], outputs(recurrent(), xs[:, real]))


def test_a_carry_continues_a_sequence(xs):
    rnn = recurrent(CELLS["stack"])
    carry, first = run(rnn, xs[:, :2])
    last_carry, second = run(rnn, xs[:, 2:], initial_carry=carry)
    whole_carry, whole = run(rnn, xs)
    close(jnp.concatenate([first, second], 1), whole)
    close(last_carry, whole_carry)


@pytest.mark.parametrize("reverse", [False, True])
def test_return_sequences_false_is_the_step_processed_last(xs, reverse):
    options = {"reverse": reverse}
    last, ys = recurrent(return_sequences=False, **options), recurrent(**options)
    same(outputs(last, xs), outputs(ys, xs)[:, 0 if reverse else -1])
    padded = outputs(ys, xs, seq_lengths=LENGTHS)
    steps = [0] * B if reverse else (LENGTHS - 1).tolist()
    same(outputs(last, xs, seq_lengths=LENGTHS), jnp.stack([padded[b, t] for b, t in enumerate(steps)]))
    # It is also the output part of the carry, whatever the holes of the mask.
    mask = jnp.array([[False, True, True, False, True, False], [True] * T, [False] * T])
    carry, y = run(last, xs, mask=mask)
    same(y, carry.h)
    assert not y[2].any()


# Dropout


def dropout(rate, *kinds):
    return [partial(kind, rate=rate) for kind in kinds or (recurrent_dropout, input_dropout)]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("lstm", [recurrent_dropout]), ("lstm", [input_dropout]), ("stack", [recurrent_dropout, input_dropout])],
)
def test_dropout_is_new_each_call_and_absent_in_eval(xs, name, kinds):
    rnn, bare = recurrent(CELLS[name], regularizers=dropout(0.5, *kinds)), recurrent(CELLS[name])
    first, second = outputs(rnn, xs), outputs(rnn, xs)
    assert not jnp.array_equal(first, second)
    same(outputs(recurrent(CELLS[name], regularizers=dropout(0.5, *kinds)), xs), first)  # same seed, same masks
    rnn.eval()
    same(outputs(rnn, xs), outputs(bare, xs))
    same(outputs(rnn, xs), outputs(rnn, xs))
    rnn.train()
    assert not jnp.array_equal(outputs(rnn, xs), outputs(bare, xs))
    same(outputs(nnx.view(rnn, deterministic=True), xs), outputs(bare, xs))
    assert not rnn.deterministic


def test_masks_are_those_of_the_wrapper(xs):
    rnn = recurrent(regularizers=dropout(0.5, recurrent_dropout))
    ys = outputs(rnn, xs, rngs=nnx.Rngs(dropout=7))
    noisy, sample = recurrent_dropout(rnn.cell, 0.5)
    carry = rnn.cell.initial_carry(rnn.weights, (B,))
    noise = sample(nnx.Rngs(dropout=7).dropout(), carry, swap(xs))
    same(ys, swap(unroll(noisy, rnn.weights, None, (swap(xs), noise))[1]))


def test_input_masks_are_constant_over_a_sequence_and_differ_between_sequences():
    sees = cells.rnn(D, lambda u: u, w_x=seqjax.initializers.identity(), w_h=jax.nn.initializers.zeros)
    ys = outputs(recurrent(sees, regularizers=dropout(0.5, input_dropout)), jnp.ones((64, T, D)))
    assert set(np.unique(ys)) == {0.0, 2.0}
    same(ys, jnp.broadcast_to(ys[:, :1], ys.shape))
    assert len(np.unique(ys[:, 0], axis=0)) > 8
    assert 0.8 < ys.mean() < 1.2


def test_rngs_of_the_call_go_first_and_fix_the_masks(xs):
    rnn = recurrent(regularizers=dropout(0.5, recurrent_dropout))
    given = outputs(rnn, xs, rngs=nnx.Rngs(dropout=3))
    same(outputs(rnn, xs, rngs=nnx.Rngs(dropout=3)), given)
    same(outputs(rnn, xs, rngs=nnx.Rngs(dropout=3).dropout), given)
    assert not jnp.array_equal(outputs(rnn, xs, rngs=nnx.Rngs(dropout=4)), given)
    assert rnn.rngs.count[...] == 0  # the own stream was not touched


def test_rate_zero_is_the_bare_layer(xs):
    bare = outputs(recurrent(), xs)
    same(outputs(recurrent(regularizers=[*dropout(0.0, recurrent_dropout), *dropout(0, input_dropout)]), xs), bare)
    close(outputs(recurrent(regularizers=dropout(jnp.float32(0))), xs), bare)
    same(recurrent(regularizers=dropout(0.5)).weights, recurrent().weights)


def test_rates_may_be_traced(xs):
    rates = jnp.array([0.0, 0.5])

    def build(rate):
        return recurrent(regularizers=dropout(rate))(xs)

    graphdef, state = nnx.split(recurrent())

    def replace(state, rate):
        rnn = nnx.merge(graphdef, state)
        rnn.regularizers = dropout(rate)
        return rnn(xs)

    single = jnp.stack([outputs(recurrent(regularizers=dropout(rate)), xs) for rate in rates.tolist()])
    close(jax.jit(jax.vmap(build))(rates), single)
    close(jax.jit(jax.vmap(replace, in_axes=(None, 0)))(state, rates), single)


def test_a_rate_that_is_an_array_is_state():
    rate = jnp.float32(0.25)
    assert jax.tree.leaves(nnx.state(recurrent(regularizers=dropout(rate)))["_regularizers"]) == [rate, rate]
    assert "_regularizers" not in nnx.state(recurrent(regularizers=dropout(0.25)))


def test_dropout_layer():
    x = jnp.full((1000,), 3.0)
    drop = Dropout(0.25, rngs=nnx.Rngs(0))
    y = drop(x)
    assert set(np.unique(y)) == {0.0, 4.0}
    assert 2.8 < y.mean() < 3.2
    assert not jnp.array_equal(drop(x), y)
    drop.eval()
    same(drop(x), x)
    same(Dropout(0.0)(x), x)
    same(jax.vmap(lambda rate: Dropout(rate, rngs=nnx.Rngs(0))(x))(jnp.array([0.0, 0.25])), jnp.stack([x, y]))


# Flax's machinery


def loss(model, xs, targets):
    return jnp.mean((model(xs)[:, -1] - targets) ** 2)


def test_gradient_is_that_of_the_cell(xs):
    cell = CELLS["stack"]
    rnn = recurrent(cell)
    targets = jnp.ones((B, H))
    grads = nnx.jit(nnx.grad(loss))(rnn, xs, targets)

    def plain(params):
        return jnp.mean((unroll(cell, params, None, swap(xs))[1][-1] - targets) ** 2)

    close(jax.tree.leaves(grads), jax.tree.leaves(jax.jit(jax.grad(plain))(rnn.weights)))


def test_an_optimizer_learns(xs):
    model = recurrent(CELLS["stack"], regularizers=dropout(0.1, recurrent_dropout))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    targets = 0.5 * jnp.ones((B, H))

    @nnx.jit
    def train(model, optimizer):
        value, grads = nnx.value_and_grad(loss)(model, xs, targets)
        optimizer.update(model, grads)
        return value

    values = [float(train(model, optimizer)) for _ in range(60)]
    assert values[-1] < 0.5 * values[0]
    assert model.rngs.count[...] == 60  # masks were drawn anew in each compiled call


def test_split_and_merge_keep_everything(xs):
    cell = CELLS["stack"]
    rnn = recurrent(cell)
    graphdef, params, rest = nnx.split(rnn, nnx.Param, ...)
    same(outputs(nnx.merge(graphdef, params, rest), xs), outputs(rnn, xs))
    shapes = jax.tree.map(jnp.shape, cell.init(jax.random.key(0), D))
    assert jax.tree.map(jnp.shape, rnn.weights) == shapes
    count = sum(leaf.size for leaf in jax.tree.leaves(cell.init(jax.random.key(0), D)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_state_moves_between_modules(xs):
    cell = CELLS["stack"]
    source, target = recurrent(cell, seed=0), recurrent(cell, seed=1)
    assert not jnp.array_equal(outputs(source, xs), outputs(target, xs))
    saved = nnx.to_pure_dict(nnx.state(source, nnx.Param))
    state = nnx.state(target, nnx.Param)
    nnx.replace_by_pure_dict(state, saved)
    nnx.update(target, state)
    same(outputs(target, xs), outputs(source, xs))


def test_an_ensemble_is_its_members(xs):
    models = [recurrent(CELLS["stack"], seed, regularizers=dropout(0.3, recurrent_dropout)) for seed in range(3)]
    graphdef, _ = nnx.split(models[0])
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.state(model) for model in models))
    together = jax.jit(jax.vmap(lambda state: nnx.merge(graphdef, state)(xs)))(states)
    close(together, jnp.stack([outputs(model, xs) for model in models]))


# Bidirectional


def bidirectional(**options):
    return Bidirectional(CELLS["lstm"], CELLS["stack"], D, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_bidirectional_is_both_directions(xs, lengths):
    both = bidirectional()
    mask = None if lengths is None else seqjax.mask_from_lengths(lengths, T)
    weights = both.forward.weights, both.backward.weights
    expected = seqjax.bidirectional((CELLS["lstm"], CELLS["stack"]), weights, None, swap(xs), mask=mask)
    carries, ys = run(both, xs, seq_lengths=lengths)
    same(carries, expected[0])
    same(ys, swap(expected[1]))
    assert both.out_features == ys.shape[-1] == 2 * H


def test_bidirectional_last_outputs(xs):
    carries, y = run(bidirectional(return_sequences=False), xs, seq_lengths=LENGTHS)
    same(y, jnp.concatenate([carries[0].h, carries[1][-1]], -1))
    ys = outputs(bidirectional(), xs, seq_lengths=LENGTHS)
    same(y, jnp.concatenate([ys[jnp.arange(B), LENGTHS - 1, :H], ys[:, 0, H:]], -1))


def test_bidirectional_carries_go_in(xs):
    carries, _ = run(bidirectional(), xs)
    ys = outputs(bidirectional(), xs, initial_carry=carries)
    same(ys[..., :H], outputs(bidirectional().forward, xs, initial_carry=carries[0]))
    same(ys[..., H:], outputs(bidirectional().backward, xs, initial_carry=carries[1]))


def test_bidirectional_directions_draw_their_own():
    noisy = dropout(0.5, recurrent_dropout)
    both = Bidirectional(CELLS["lstm"], CELLS["lstm"], D, rngs=nnx.Rngs(0), regularizers=noisy)
    assert not jnp.array_equal(both.forward.weights["w_x"], both.backward.weights["w_x"])
    xs = jnp.ones((B, T, D))
    given = outputs(both, xs, rngs=nnx.Rngs(dropout=1))
    same(outputs(both, xs, rngs=nnx.Rngs(dropout=1)), given)
    assert not jnp.array_equal(outputs(both, xs)[..., H:], outputs(both, xs)[..., H:])
    both.eval()
    same(outputs(both, xs), outputs(both, xs))
    assert both.backward.deterministic


# Errors


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((B, T, D + 1), r"inputs have shape \(3, 6, 5\), expected \[B, T, 4\]"),
        ((D,), r"inputs have shape \(4,\), expected \[B, T, 4\]"),
        ((B, 0, D), "empty sequence"),
    ],
)
def test_inputs_of_the_wrong_shape(shape, message):
    with pytest.raises(ValueError, match=message):
        recurrent()(jnp.zeros(shape))


def test_wrong_inputs_are_named(xs):
    rnn = recurrent()
    mask = jnp.ones((B, T), bool)
    with pytest.raises(ValueError, match="lengths and mask both"):
        rnn(xs, seq_lengths=LENGTHS, mask=mask)
    with pytest.raises(ValueError, match=r"lengths have shape \(2,\), expected \(3,\)"):
        rnn(xs, seq_lengths=LENGTHS[:2])
    with pytest.raises(ValueError, match="lengths must lie between 0 and the number of steps 6"):
        rnn(xs, seq_lengths=LENGTHS + 1)
    with pytest.raises(TypeError, match="lengths must be integers, got float32"):
        rnn(xs, seq_lengths=jnp.ones(B))
    with pytest.raises(ValueError, match=r"mask must be bool \(3, 6\), .* got bool \(6, 3\)"):
        rnn(xs, mask=swap(mask))
    with pytest.raises(ValueError, match="got float32"):
        rnn(xs, mask=mask.astype(jnp.float32))
    with pytest.raises(ValueError, match="the carry is"):
        rnn(xs, initial_carry=rnn.cell.initial_carry(rnn.weights, (B + 1,)))
    with pytest.raises(ValueError, match=r"expected \[T, B, 4\]"):
        recurrent(time_major=True)(swap(xs)[..., :2])


def test_wrong_rates_are_refused_at_construction():
    with pytest.raises(ValueError, match=r"a dropout rate lies in \[0, 1\), got 1\.0"):
        recurrent(regularizers=dropout(1.0, recurrent_dropout))
    with pytest.raises(ValueError, match=r"got -0\.1"):
        recurrent(regularizers=dropout(-0.1, input_dropout))
    with pytest.raises(ValueError, match=r"got 2\.0"):
        Dropout(2.0)
    with pytest.raises(ValueError, match="no recurrent product"):
        recurrent(CELLS["min_gru"], regularizers=dropout(0.5, recurrent_dropout))


def test_dropout_needs_a_random_stream(xs):
    rnn = Recurrent(CELLS["lstm"], D, regularizers=dropout(0.5, recurrent_dropout), rngs=nnx.Rngs(params=0))
    with pytest.raises(ValueError, match="Recurrent has noise to draw and no random stream"):
        rnn(xs)
    with pytest.raises(ValueError, match="Dropout has noise to draw and no random stream"):
        Dropout(0.5)(xs)
    assert rnn(xs, rngs=nnx.Rngs(dropout=0)).shape == (B, T, H)
    rnn.eval()
    assert rnn(xs).shape == (B, T, H)
