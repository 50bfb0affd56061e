"""Padding, reversal, both directions, generation, and what `unroll` refuses."""

from functools import cache, partial

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax import Const, bidirectional, cells, from_step, generate, mask_from_lengths, solvers, unroll
from tests.agree import close, compiled, values_and_gradients
from tests.cell_list import BARE, MODELS, TOKENS, D, H, draw

STEPS, BATCH = 6, 3
LENGTHS = st.lists(st.integers(0, STEPS), min_size=BATCH, max_size=BATCH)
MASKS = st.lists(st.lists(st.booleans(), min_size=BATCH, max_size=BATCH), min_size=STEPS, max_size=STEPS)
KINDS = ["gru_reset_before", "min_gru", "language_model"]
fuzz = settings(max_examples=6, deadline=None, derandomize=True)


@cache
def problem(name):
    """A model, and compiled functions of it that the examples share."""
    with jax.enable_x64(True):
        drawn = draw(MODELS[name], STEPS, (BATCH,))
    cell = drawn.cell
    return (
        drawn,
        compiled(partial(values_and_gradients, cell, "auto")),
        compiled(partial(unroll, cell, reverse=True)),
        jax.jit(cell.step),
    )


def rows(tree, b):
    """Sequence b of a tree of [B, ...]."""
    return jax.tree.map(lambda leaf: leaf[b : b + 1], tree)


@fuzz
@given(name=st.sampled_from(KINDS), mask=MASKS)
def test_a_mask_skips_steps_as_if_they_were_cut_out(name, mask):
    """Each sequence by itself, of its real steps only, by a loop of `step`."""
    mask = np.array(mask)
    with jax.enable_x64(True):
        (_, params, carry, xs), run, _, step = problem(name)
        (last, ys), _ = run(params, carry, xs, jnp.asarray(mask))
        for b in range(BATCH):
            state = rows(carry, b)
            for t in range(STEPS):
                if mask[t, b]:
                    state, y = step(params, state, xs[t, b : b + 1])
                    close(ys[t, b : b + 1], y)
                else:
                    assert not np.any(ys[t, b])
            close(rows(last, b), state)


@fuzz
@given(
    name=st.sampled_from(["gru_reset_before", "min_gru"]), mask=MASKS, poison=st.sampled_from([np.nan, np.inf, 1e300])
)
def test_what_the_padding_holds_changes_no_output_and_no_gradient(name, mask, poison):
    with jax.enable_x64(True):
        mask = jnp.asarray(mask)
        (_, params, carry, xs), run, _, _ = problem(name)
        poisoned = jnp.where(jnp.expand_dims(mask, -1), xs, poison)
        clean, dirty = run(params, carry, xs, mask), run(params, carry, poisoned, mask)
        for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
            np.testing.assert_array_equal(a, b)
            assert np.isfinite(b).all()
        _, (_, _, (by_inputs,)) = dirty
        assert not np.any(np.asarray(by_inputs)[~np.asarray(mask)])


@pytest.mark.parametrize("name", ["residual", "head", "from_step", "stack", "stack_of_residuals", "input_dropout"])
@pytest.mark.parametrize("method", ["auto", "rematerialized", "checkpointed"])
def test_poisoned_padding_under_wrappers(x64, name, method):
    cell, params, carry, xs = draw(MODELS[name], 4)
    mask = jnp.array([[True, True], [True, False], [False, True], [True, False]])

    def poison(leaf):
        return leaf if leaf.ndim < 3 else jnp.where(jnp.expand_dims(mask, -1), leaf, jnp.nan)

    dirty = jax.tree.map(poison, xs)
    run = compiled(partial(values_and_gradients, cell, method))
    for a, b in zip(*(jax.tree.leaves(run(params, carry, x, mask)) for x in (xs, dirty)), strict=True):
        np.testing.assert_array_equal(a, b)


@fuzz
@given(name=st.sampled_from(KINDS), lengths=LENGTHS)
def test_reversed_padded_sequences_are_each_reversed_by_its_own_length(name, lengths):
    with jax.enable_x64(True):
        (_, params, carry, xs), run, backwards, _ = problem(name)
        mask = mask_from_lengths(jnp.array(lengths), STEPS)
        last, ys = backwards(params, carry, xs, mask=mask)
        flipped = np.asarray(xs).copy()
        for b, n in enumerate(lengths):
            flipped[:n, b] = flipped[:n, b][::-1]
        (expected, zs), _ = run(params, carry, jnp.asarray(flipped), mask)
        zs = np.asarray(zs).copy()
        for b, n in enumerate(lengths):
            zs[:n, b] = zs[:n, b][::-1]
        close((last, ys), (expected, jnp.asarray(zs)))


def test_reverse_is_the_flipped_sequence(x64):
    cell, params, carry, xs = draw(MODELS["stack"])
    last, ys = unroll(cell, params, carry, xs, reverse=True)
    expected, flipped = unroll(cell, params, carry, xs[::-1])
    close((last, ys[::-1]), (expected, flipped))


def test_reverse_leaves_constants_alone(x64):
    cell, params, carry, xs = draw(MODELS["dropout_stack"])
    (x, inputs_noise), noise = xs
    expected = unroll(cell, params, carry, ((x[::-1], inputs_noise), noise))[1]
    close(unroll(cell, params, carry, xs, reverse=True)[1][::-1], expected)


def test_bidirectional_pads_each_direction_by_itself(x64):
    forward, backward = draw(MODELS["gru"], STEPS, (BATCH,)), draw(MODELS["lstm"], STEPS, (BATCH,), seed=1)
    lengths = [STEPS, 0, 4]
    mask = mask_from_lengths(jnp.array(lengths), STEPS)
    pair = (forward.cell, backward.cell), (forward.params, backward.params), (forward.carry, backward.carry)
    xs = forward.xs
    last, ys = bidirectional(*pair, jnp.where(jnp.expand_dims(mask, -1), xs, jnp.nan), mask=mask)
    assert ys.shape == (STEPS, BATCH, 2 * H)
    for b, n in enumerate(lengths):
        assert not np.any(ys[n:, b])
        if n == 0:
            close(rows(last, b), rows(pair[2], b))
            continue
        x = xs[:n, b : b + 1]
        first = unroll(forward.cell, forward.params, rows(forward.carry, b), x)
        second = unroll(backward.cell, backward.params, rows(backward.carry, b), x[::-1])
        close(rows(last, b), (first[0], second[0]))
        close(ys[:n, b : b + 1], jnp.concatenate([first[1], second[1][::-1]], -1))


def test_bidirectional_starts_from_the_initial_carries():
    cell = cells.gru(H)
    params = cell.init(jax.random.key(0), D), cell.init(jax.random.key(1), D)
    xs = jnp.ones((STEPS, BATCH, D))
    _, ys = bidirectional((cell, cell), params, None, xs)
    zeros = jnp.zeros((BATCH, H))
    np.testing.assert_array_equal(ys, bidirectional((cell, cell), params, (zeros, zeros), xs)[1])


def test_a_sequence_of_length_zero_keeps_its_carry_and_gives_it_the_gradient(x64):
    (_, params, carry, xs), run, _, _ = problem("gru_reset_before")
    (last, ys), (by_params, by_carry, _) = run(params, carry, xs, jnp.zeros((STEPS, BATCH), bool))
    close(last, carry)
    assert not np.any(ys)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(by_params))
    assert np.all(by_carry != 0)


def test_mask_from_lengths():
    expected = [[True, False, True], [True, False, True], [True, False, False]]
    np.testing.assert_array_equal(mask_from_lengths(jnp.array([3, 0, 2]), 3), expected)
    narrow = mask_from_lengths(jnp.array([255, 7], jnp.uint8), 300)
    np.testing.assert_array_equal(narrow.sum(0), [255, 7])
    assert jax.jit(mask_from_lengths, static_argnums=1)(jnp.array([1]), 2).tolist() == [[True], [False]]
    known = jnp.array([1])
    assert jax.jit(lambda: mask_from_lengths(known, 2))().tolist() == [[True], [False]]


@pytest.mark.parametrize("lengths", [[4], [-1]])
def test_lengths_outside_the_sequence_are_refused(lengths):
    with pytest.raises(ValueError, match=r"lengths must lie between 0 and the number of steps 3, got \[-?\d\]"):
        mask_from_lengths(jnp.array(lengths), 3)


def test_lengths_that_are_no_integers_are_refused():
    with pytest.raises(TypeError, match="lengths must be integers, got float32"):
        mask_from_lengths(jnp.array([1.0]), 3)


def test_generate_feeds_back_what_it_chose():
    cell, params, carry, _ = draw(MODELS["language_model"], dtype=jnp.float32)
    key, first = jax.random.key(5), jnp.array([0, 3])

    def choose(key, logits):
        return jax.random.categorical(key, logits).astype(jnp.int32)

    last, said = jax.jit(lambda: generate(cell, params, carry, first, 20, key, choose))()
    assert said.shape == (20, 2)
    assert set(np.unique(said)) <= set(range(TOKENS))
    # What was said, read as inputs, leads to the same carry and to logits that choose the same.
    end, logits = unroll(cell, params, carry, jnp.concatenate([first[None], said[:-1]]), method="scan")
    close(last, end, 1e-5)
    again = jax.vmap(lambda t, y: choose(jax.random.fold_in(key, t), y))(jnp.arange(20), logits)
    np.testing.assert_array_equal(said, again)
    other = generate(cell, params, carry, first, 20, jax.random.key(6), choose)[1]
    assert np.any(said != other)


def test_generate_resumes_from_the_carry_of_unroll():
    """Also for a step function, whose carry `unroll` returns without the one before."""
    total = from_step(
        init=lambda key, in_features: {},
        initial_carry=lambda params, batch_shape: jnp.zeros((*batch_shape, 1)),
        step=lambda params, h, x: (h + x, h + x),
    )
    carry, ys = unroll(total, {}, None, jnp.ones((3, 2, 1)))  # 1, 2, 3
    carry, ys = generate(total, {}, carry, ys[-1], 3, jax.random.key(0), lambda key, y: y)
    np.testing.assert_array_equal(ys[:, 0, 0], [6, 12, 24])
    np.testing.assert_array_equal(carry, jnp.full((2, 1), 24.0))
    with pytest.raises(ValueError, match=r"the carry is float32\[3, 1\], expected float32\[2, 1\]"):
        generate(total, {}, jnp.zeros((3, 1)), ys[-1], 3, jax.random.key(0), lambda key, y: y)


def gru(dtype=jnp.float32):
    cell = cells.gru(H, dtype=dtype)
    return cell, cell.init(jax.random.key(0), D)


@pytest.mark.parametrize(
    ("xs", "options", "error", "message"),
    [
        (jnp.ones((0, 2, D)), {}, ValueError, "empty sequence: the inputs have 0 steps"),
        ((), {}, ValueError, "inputs with a time axis"),
        (Const(jnp.ones((2, D))), {}, ValueError, "inputs with a time axis, got only Const leaves"),
        (jnp.ones(()), {}, ValueError, r"same number of steps, got \[\(\)\]"),
        (
            (jnp.ones((5, 2, D)), jnp.ones((4, 2))),
            {},
            ValueError,
            r"same number of steps, got \[\(5, 2, 3\), \(4, 2\)\]",
        ),
        (
            jnp.ones((5, 2, D + 1)),
            {},
            ValueError,
            r"inputs have shape \(2, 4\), expected \[..., 3\] \(weights \(3, 12\)",
        ),
        (jnp.ones((5,)), {}, ValueError, r"inputs have shape \(\), expected \[..., 3\]"),
        (jnp.ones((5, 2, D), jnp.int32), {}, TypeError, "inputs have dtype int32, expected a floating dtype"),
        (
            jnp.ones((5, 2, D)),
            {"mask": jnp.ones((5, 2))},
            ValueError,
            r"mask must be bool \(5, 2\).*got float32 \(5, 2\)",
        ),
        (
            jnp.ones((5, 2, D)),
            {"mask": jnp.ones((2, 5), bool)},
            ValueError,
            r"mask must be bool \(5, 2\).* got bool \(2, 5\)",
        ),
        (jnp.ones((5, 2, D)), {"method": "quick"}, ValueError, "unknown method 'quick'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(xs, options, error, message):
    with pytest.raises(error, match=message):
        unroll(*gru(), None, xs, **options)


@pytest.mark.parametrize(
    ("carry", "message"),
    [
        (jnp.zeros((3, H)), r"the carry is float32\[3, 4\], expected float32\[2, 4\] for inputs \[5, 2, 3\]"),
        (jnp.zeros((2, H), jnp.bfloat16), r"the carry is bfloat16\[2, 4\], expected float32\[2, 4\]"),
        (
            cells.LSTMCarry(jnp.zeros((2, H)), jnp.zeros((2, H))),
            r"the carry is LSTMCarry\(h=.*expected float32\[2, 4\]",
        ),
    ],
)
def test_a_carry_that_does_not_fit_is_refused(carry, message):
    with pytest.raises(ValueError, match=message):
        unroll(*gru(), carry, jnp.ones((5, 2, D)))


def test_a_plain_tuple_is_no_lstm_carry():
    cell = cells.lstm(H)
    params = cell.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match="expected LSTMCarry"):
        unroll(cell, params, (jnp.zeros((2, H)), jnp.zeros((2, H))), jnp.ones((5, 2, D)))


def test_a_weakly_typed_carry_is_a_carry():
    cell, params = gru()
    xs = jnp.ones((5, 2, D))
    weak = jnp.full((2, H), 0.0)
    assert weak.weak_type
    np.testing.assert_array_equal(unroll(cell, params, weak, xs)[1], unroll(cell, params, None, xs)[1])


def test_wide_inputs_on_narrow_weights_are_refused_and_the_other_way_round(x64):
    with pytest.raises(TypeError, match="inputs have dtype float64 and the weights float32: cast one of them"):
        unroll(*gru(), None, jnp.ones((5, 2, D), jnp.float64))
    with pytest.raises(TypeError, match="inputs have dtype float32 and the weights float64: cast one of them"):
        unroll(*gru(jnp.float64), None, jnp.ones((5, 2, D), jnp.float32))


def test_errors_come_before_a_compiled_program_runs():
    cell, params = gru()
    with pytest.raises(ValueError, match="empty sequence"):
        jax.jit(partial(unroll, cell))(params, None, jnp.ones((0, 2, D)))


def test_an_eager_loop_is_compiled_once_for_a_cell_and_shapes():
    cell = cells.lstm(3)
    params = cell.init(jax.random.key(0), 2)

    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compilations.append(event) if "backend_compile" in event else None
    )

    def compiled_by(run):
        before = len(compilations)
        run()
        return len(compilations) - before

    runs = {
        "auto": lambda xs: unroll(cell, params, None, xs),
        "solver": lambda xs: unroll(cell, params, None, xs, method=partial(solvers.checkpointed, chunk=2)),
        "mask": lambda xs: unroll(cell, params, None, xs, mask=xs[..., 0] > 0, reverse=True),
        "gradient": lambda xs: jax.grad(lambda p: unroll(cell, p, None, xs)[1].sum())(params),
    }
    for name, run in runs.items():
        first, again = jnp.ones((4, 2, 2)), jnp.zeros((4, 2, 2))
        assert compiled_by(partial(run, first)), name
        assert not compiled_by(partial(run, again)), name
    other = cells.gru(3)
    _, ys = unroll(other, other.init(jax.random.key(0), 2), None, jnp.ones((4, 2, 2)))
    assert jnp.abs(ys - runs["auto"](jnp.ones((4, 2, 2)))[1]).max() > 0.01


def test_a_cell_is_an_argument_of_jit():
    @jax.jit
    def last(cell, params, xs):
        return unroll(cell, params, None, xs)[1][-1]

    xs = jnp.ones((4, 2, 2))
    for cell in (cells.lstm(3), cells.gru(3)):
        params = cell.init(jax.random.key(0), 2)
        np.testing.assert_allclose(last(cell, params, xs), unroll(cell, params, None, xs)[1][-1], atol=1e-6)
    assert jax.tree.leaves(cells.stack(cells.gru(3), cells.gru(3))) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"xs": [[[1.0, 2.0]]]}, r"xs must be an array \[T, B, D\] or a tree of arrays, got a list that holds a float"),
        ({"xs": 3.0}, "xs must be an array .*, got a float: use jnp.asarray"),
        ({"mask": [[True]]}, "mask must be an array bool .*, got a list that holds a bool"),
        ({"method": None}, "method must be one of .*'scan'.* or a solver, got None"),
    ],
    ids=str,
)
def test_what_is_no_array_or_method_is_named(changed, message):
    cell = cells.lstm(3)
    given = {"xs": jnp.ones((1, 1, 2)), "mask": None, "method": "auto"} | changed
    with pytest.raises(TypeError, match=message):
        unroll(cell, cell.init(jax.random.key(0), 2), None, given.pop("xs"), **given)


@pytest.mark.parametrize("name", [name for name, model in BARE.items() if model.in_features])
def test_a_tree_for_a_cell_that_reads_an_array_is_named(name):
    model = BARE[name]
    params = jax.eval_shape(lambda: model.cell.init(jax.random.key(0), model.in_features))
    x = jnp.ones((2, 1, *model.cell.space, model.in_features))
    for xs in ({"x": x}, (x, x, x)):
        with pytest.raises(TypeError, match=r"an array|one array"):
            jax.eval_shape(lambda params, xs: unroll(model.cell, params, None, xs, method="scan"), params, xs)


def test_lengths_that_are_a_list_are_named():
    with pytest.raises(TypeError, match=r"lengths must be an array int .*, got a list that holds a int"):
        mask_from_lengths([3, 1], 3)


@pytest.mark.parametrize("name", [name for name, model in BARE.items() if model.in_features])
def test_no_cell_takes_0_features(name):
    with pytest.raises(ValueError, match=r"has no entries: .* wrap this one in with_embedding or with_one_hot"):
        BARE[name].cell.init(jax.random.key(0), 0)
