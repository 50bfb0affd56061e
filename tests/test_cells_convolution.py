"""The convolutional LSTM, and what a cell whose inputs are images asks of the rest of the library."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax.nnx
from seqjax import cells, regularizers, unroll, wrappers
from seqjax.initializers import jointly, orthogonal
from tests.agree import check_methods, close, compiled, methods_of, values_and_gradients
from tests.cell_list import BARE, MODELS, H, Model, draw, masked, reset, residual

KEY = jax.random.key(0)
LINE = Model(cells.conv_lstm(2, (5,)), 2)


def run(cell, *args, **options):
    return compiled(partial(unroll, cell, **options))(*args)


@pytest.mark.parametrize("space", [(1,), (1, 1)])
def test_on_one_pixel_with_a_kernel_of_one_it_is_an_lstm(x64, space):
    _, params, carry, xs = draw(BARE["lstm"])

    def image(leaf):
        return leaf.reshape(*leaf.shape[:-1], *space, leaf.shape[-1])

    kernels = {name: w.reshape(*space, *w.shape) if name != "b" else w for name, w in params.items()}
    cell = cells.conv_lstm(H, space, 1)
    got = run(cell, kernels, jax.tree.map(image, carry), image(xs))
    close(got, jax.tree.map(image, run(cells.lstm(H), params, carry, xs)))


def test_an_image_that_moves_moves_the_outputs(x64):
    """Far from the border; and with the params of a cell for small images."""
    _, params, _, _ = draw(LINE)
    small = jax.random.normal(KEY, (2, 3, 5, 2))
    _, expected = run(cells.conv_lstm(2, (13,)), params, None, jnp.pad(small, ((0, 0), (0, 0), (4, 4), (0, 0))))
    _, moved = run(cells.conv_lstm(2, (15,)), params, None, jnp.pad(small, ((0, 0), (0, 0), (6, 4), (0, 0))))
    # What the empty border holds reaches as far in as there are kernels on its way: two of the input and the carry.
    close(moved[:, :, 4:13], expected[:, :, 2:11])
    assert (
        jnp.abs(expected - run(cells.conv_lstm(2, (13,)), params, None, jnp.zeros((2, 3, 13, 2)))[1])[0, :, :3].max()
        == 0
    )


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_every_method_with_a_mask_with_holes_and_any_batch_axes(x64, batch):
    drawn = draw(LINE, batch=batch)
    holes = jax.random.bernoulli(jax.random.key(3), 0.6, (7, *batch)).at[3].set(False)
    methods = methods_of(drawn.cell)
    assert set(methods) == {"checkpointed", "rematerialized", "chunks of 3"}
    check_methods(drawn, methods, holes)


def test_padding_changes_nothing_and_a_reversed_row_starts_at_its_own_end(x64):
    cell, params, carry, xs = draw(LINE)
    lengths = jnp.array([7, 4])
    mask = jnp.arange(7)[:, None] < lengths[None]
    poisoned = jnp.where(mask[..., None, None], xs, jnp.nan)
    last, ys = run(cell, params, carry, poisoned, mask=mask, reverse=True)
    short, expected = run(cell, params, carry, xs[:4], reverse=True)
    close(
        (jax.tree.map(lambda leaf: leaf[1], last), ys[:4, 1]),
        (jax.tree.map(lambda leaf: leaf[1], short), expected[:, 1]),
    )
    assert not ys[4:, 1].any()
    _, grads = compiled(partial(values_and_gradients, cell, "scan"))(params, carry, poisoned, mask)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_kernels_are_drawn_as_one_matrix_for_each_gate_and_for_all_jointly():
    params = cells.conv_lstm(4, (9, 9), (3, 2)).init(KEY, 5)
    assert jax.tree.map(jnp.shape, params) == {"w_x": (3, 2, 5, 16), "w_h": (3, 2, 4, 16), "b": (16,)}
    for gate in np.split(np.asarray(params["w_h"]).reshape(24, 16), 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(4), atol=1e-6)
    np.testing.assert_array_equal(params["b"], np.repeat([0, 1, 0, 0], 4))
    w = cells.conv_lstm(4, (9,), w_h=jointly(orthogonal())).init(KEY, 5)["w_h"].reshape(12, 16)
    np.testing.assert_allclose(w @ w.T, np.eye(12), atol=1e-6)


def test_bfloat16_params_are_summed_in_float32_and_have_gradients_of_their_dtype():
    cell = cells.conv_lstm(2, (5,), dtype=jnp.bfloat16)
    params, xs = cell.init(KEY, 2), jax.random.normal(KEY, (5, 2, 5, 2))

    @compiled
    def run(params):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        return [values_and_gradients(cell, "scan", p, cell.initial_carry(p, (2,)), xs) for p in (params, wide)]

    (got, grads), (expected, wide_grads) = run(params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(grads[0]))
    close(got, expected, 0.02)
    close(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), grads), wide_grads, 0.05)


def depth(model):
    return model._replace(cell=regularizers.stochastic_depth(model.cell, 0.5)[0])


def test_wrappers_take_images(x64):
    """A border and a skipped layer are those of a sequence, a head is one of each place."""
    cell = LINE.cell
    drawn = draw(masked(reset(residual(LINE))), batch=(2, 3))
    check_methods(drawn, {"checkpointed": "checkpointed"})
    _, params, carry, xs = draw(LINE)
    noisy, sample = regularizers.stochastic_depth(cell, 0.5)
    noise = sample(KEY, carry, xs)
    assert noise.value.shape == (2, 1, 1)
    bare, ys = run(cell, params, carry, xs)
    close(run(noisy, params, carry, (xs, noise)), (bare, noise.value[None] * ys + (1 - noise.value[None]) * xs))
    noisy, sample = regularizers.input_dropout(cells.stack(cell, cell), 0.5)
    noise = sample(KEY, (carry, carry), xs)
    assert [n.value.shape for n in noise] == [xs.shape[1:]] * 2
    run(noisy, (params, params), (carry, carry), (xs, noise))
    head = wrappers.with_head(cells.stack(cell, cell), 4)
    params = head.init(KEY, 2)
    assert run(head, params, None, jnp.ones((3, 2, 5, 2), jnp.float32))[1].shape == (3, 2, 5, 4)
    tokens = wrappers.with_embedding(cell, 9, 3)
    assert run(tokens, tokens.init(KEY, 0), None, jnp.ones((3, 2, 5), jnp.int32))[1].shape == (3, 2, 5, 2)
    start = wrappers.learned_carry(cell)
    assert start.init(KEY, 2)["start"].h.shape == (5, 2)
    close(
        run(start, start.init(KEY, 2), None, xs.astype(jnp.float32)),
        run(cell, cell.init(KEY, 2), None, xs.astype(jnp.float32)),
    )


@pytest.mark.parametrize("time_major", [False, True])
def test_a_module_takes_images(time_major):
    rnn = seqjax.nnx.Recurrent(LINE.cell, 2, rngs=nnx.Rngs(0), return_sequences=False, time_major=time_major)
    xs, lengths = jax.random.normal(KEY, (3, 7, 5, 2)), jnp.array([7, 2, 4])
    ys = rnn(jnp.swapaxes(xs, 0, 1) if time_major else xs, seq_lengths=lengths)
    assert rnn.out_features == 2
    for row, length, y in zip(xs, lengths, ys, strict=True):
        close(y, unroll(LINE.cell, rnn.weights, None, row[:length])[1][-1], 1e-6)
    with pytest.raises(ValueError, match=r"inputs have shape \(3, 7, 4, 2\), expected \[.*, 5, 2\]"):
        rnn(xs[:, :, :4])
    with pytest.raises(ValueError, match=r"mask must be bool \(.*\), .* got bool \(3, 7, 5\)"):
        rnn(xs, mask=jnp.ones((3, 7, 5), bool))


SHAPES = r"inputs have shape \({}\), expected \[T, B, 3, 4, D\] for a cell of the space \(3, 4\)"


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((6, 2, 3, 5, 2), {}, SHAPES.format("6, 2, 3, 5, 2")),
        ((6, 2, 4, 2), {}, SHAPES.format("6, 2, 4, 2")),
        ((6, 2), {}, SHAPES.format("6, 2")),
        ((6, 2, 3, 4, 3), {}, r"inputs have shape \(2, 3, 4, 3\), expected \[\.\.\., 3, 4, 2\] \(weights \(2, 8\)\)"),
        ((0, 2, 3, 4, 2), {}, "unroll got an empty sequence"),
        (
            (6, 2, 3, 4, 2),
            {"mask": (6, 2, 3, 4)},
            r"mask must be bool \(6, 2\), \[T, B\] of the inputs, got bool \(6, 2, 3, 4\)",
        ),
        ((6, 2, 3, 4, 2), {"mask": (5, 2)}, r"mask must be bool \(6, 2\)"),
        ((6, 5, 3, 4, 2), {"carry": (2,)}, r"the carry is .*\[2, 3, 4, 2\].*, expected .*\[5, 3, 4, 2\]"),
    ],
)
def test_inputs_masks_and_carries_that_do_not_fit_are_named(shape, options, message):
    cell = MODELS["conv_lstm_2d"].cell
    params = cell.init(KEY, 2)
    carry = cell.initial_carry(params, options["carry"]) if "carry" in options else None
    mask = jnp.ones(options["mask"], bool) if "mask" in options else None
    with pytest.raises(ValueError, match=message):
        unroll(cell, params, carry, jnp.ones(shape), mask=mask)


def test_one_step_and_integers_and_another_float_are_checked_too():
    cell = LINE.cell
    params = cell.init(KEY, 2)
    with pytest.raises(ValueError, match=r"inputs have shape \(4, 2\), expected \[\.\.\., 5, 2\]"):
        cell.step(params, cell.initial_carry(params, ()), jnp.ones((4, 2)))
    with pytest.raises(TypeError, match="inputs have dtype int32"):
        cell.step(params, cell.initial_carry(params, ()), jnp.ones((5, 2), jnp.int32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cells.conv_lstm(0, (5,)), "conv_lstm takes a positive number of units, got 0"),
        (lambda: cells.conv_lstm(2, ()), r"conv_lstm takes a space of positive sizes, one for each axis, got \(\)"),
        (lambda: cells.conv_lstm(2, 5), "takes a space of positive sizes, .* got 5"),
        (lambda: cells.conv_lstm(2, (5, 0)), r"takes a space of positive sizes, .* got \(5, 0\)"),
        (lambda: cells.conv_lstm(2, (5,), 0), r"takes a kernel of positive sizes, .* got \(0,\)"),
        (lambda: cells.conv_lstm(2, (5,), (3, 3)), r"as many axes as the space \(5,\), got \(3, 3\)"),
        (
            lambda: cells.stack(LINE.cell, cells.gru(2)),
            r"stack needs cells of one space, got those of \[\(5,\), \(\)\]",
        ),
    ],
)
def test_what_makes_no_cell_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
