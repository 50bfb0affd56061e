"""KF-RTRL: no bias, less variance than UORO, exact in its first step and beside the products."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from test_gradients import full_gradient, run_chunks, squared_error, targets_for

from seqjax import cells, unroll, wrappers
from seqjax.gradients import kf_rtrl, stream_gradient, truncated_bptt, uoro
from tests.agree import close, compiled
from tests.cell_list import MODELS, TOKENS, D, H, Model, draw, masked, tokens

DRAWS = 10_000
TINY = {
    "rnn": Model(cells.rnn(2), 1),
    "gru": Model(cells.gru(2), 1),
    "masked_stack": masked(Model(wrappers.with_head(cells.stack(cells.gru_reset_before(2), cells.ugrnn(2)), 1), 1)),
}


def many(make, drawn, targets, draws, chunk):
    """Gradients [draws, P] of a stream, compiled as one program."""

    @compiled
    @jax.vmap
    def gradients(key):
        return ravel_pytree(stream_gradient(make(drawn.cell, squared_error, key), *drawn[1:], targets, chunk))[0]

    return np.asarray(gradients(jax.random.split(jax.random.key(0), draws)))


def once(estimator, drawn, targets, chunk=None):
    return compiled(lambda *data: stream_gradient(estimator, *data, chunk))(*drawn[1:], targets)


@pytest.mark.parametrize("name", TINY)
def test_the_mean_of_many_draws_is_the_full_gradient_and_no_truncation_is(x64, name):
    drawn = draw(TINY[name], 4)
    targets = targets_for(drawn)
    found = many(kf_rtrl, drawn, targets, DRAWS, 2)
    # What is exact has no spread but for rounding.
    error = np.maximum(found.std(0, ddof=1) / np.sqrt(DRAWS), 1e-12)

    def off(reference):
        """The largest distance of the mean, in standard errors."""
        return np.abs((found.mean(0) - ravel_pytree(reference)[0]) / error).max()

    full = full_gradient(drawn, targets)[1]
    assert off(full) < 3
    assert off(once(truncated_bptt(drawn.cell, squared_error, 2, 2), drawn, targets, 2)) > 6
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(ravel_pytree(full)[0])


def test_its_variance_is_below_that_of_uoro():
    """The paper's claim, on an LSTM; the difference is far larger than what chance makes of 300 draws."""
    drawn = draw(Model(cells.lstm(8)), 8, batch=(1,), dtype=jnp.float32)
    targets = targets_for(drawn).astype(jnp.float32)
    kronecker, rank_one = (many(make, drawn, targets, 300, 4).var(0).sum() for make in (kf_rtrl, uoro))
    assert kronecker < rank_one / 3


def rnn_by_hand(params, h, xs, signs):
    """u, A and h after some steps of a simple RNN, for signs that are given; a sequence of its own."""
    norm = np.linalg.norm
    w_h = params["w_h"]
    u, a = np.zeros(D + 1 + H), np.zeros((H, H))
    for x, sign in zip(xs, signs, strict=True):
        v = np.concatenate([x, [1.0], h])
        h = np.tanh(x @ params["w_x"] + h @ w_h + params["b"])
        d = np.diag(1 - h**2)
        moved = d @ w_h.T @ a
        p = (norm(moved) / norm(u)) ** 0.5 if u.any() else 1.0
        q = (norm(d) / norm(v)) ** 0.5
        u, a = p * u + sign * q * v, moved / p + sign * d / q
    return u, a, h


def test_updates_are_those_of_the_paper_for_some_signs(x64):
    drawn = draw(MODELS["rnn"], 3, batch=(1,))
    targets = targets_for(drawn)
    params, carry, xs = jax.tree.map(np.asarray, drawn[1:])
    steps = []
    for signs in itertools.product([1, -1], repeat=3):
        total = 0.0
        for t in range(3):
            u, a, h = rnn_by_hand(params, carry[0], xs[: t + 1, 0], signs[: t + 1])
            total = total + np.outer(u, 2 * (h - np.asarray(targets)[t, 0]) @ a) / 3
        steps.append(np.concatenate([total[D], total[D + 1 :].ravel(), total[:D].ravel()]))
    distance = np.abs(many(kf_rtrl, drawn, targets, 60, 3)[:, None] - np.stack(steps)[None]).max(-1)
    assert (distance.min(1) < 1e-9).all()
    # The first sign changes nothing; each of the others does, and is drawn.
    assert len({int(row.argmin()) % 4 for row in distance}) == 4


@pytest.mark.parametrize("name", ["antisymmetric_rnn", "layer_norm_lstm", "multiplicative_lstm", "head_of_stack"])
def test_the_first_step_is_exact(x64, name):
    """It finds its way from the products to the params, whatever the cell makes of them."""
    stack = Model(wrappers.with_head(cells.stack(cells.gru(H), cells.lstm(H + 1)), 2))
    drawn = draw({**MODELS, "head_of_stack": stack}[name], 1)
    targets = targets_for(drawn)
    ((found,), state) = run_chunks(kf_rtrl(drawn.cell, squared_error, jax.random.key(0)), drawn, targets, 1)
    close(found, full_gradient(drawn, targets), 1e-9)
    close(state.carry, unroll(*drawn)[0])


BESIDE = {
    "gru": (MODELS["gru"], ["b_n"]),
    "peephole_lstm": (MODELS["peephole_lstm"], ["p"]),
    "ct_rnn": (MODELS["ct_rnn"], ["log_tau"]),
    "embedding": (Model(wrappers.with_embedding(cells.rnn(H), TOKENS, D), 0, tokens), ["embedding"]),
}


@pytest.mark.parametrize("name", BESIDE)
def test_params_beside_the_products_have_their_exact_gradient(x64, name):
    model, leaves = BESIDE[name]
    drawn = draw(model, 5)
    targets = targets_for(drawn)
    found = once(kf_rtrl(drawn.cell, squared_error, jax.random.key(0)), drawn, targets)
    expected = full_gradient(drawn, targets)[1]
    for leaf in leaves:
        close(found[leaf], expected[leaf], 1e-9)
    assert not np.allclose(ravel_pytree(found)[0], ravel_pytree(expected)[0], rtol=0, atol=1e-4)


def test_chunks_with_carried_state_are_one_stream(x64):
    drawn = draw(MODELS["peephole_lstm"], 4)
    targets = targets_for(drawn)
    estimator = kf_rtrl(drawn.cell, squared_error, jax.random.key(3))
    close(*(once(estimator, drawn, targets, chunk) for chunk in (1, None)), 1e-9)


def test_products_that_are_only_added_up_share_their_pre_activations():
    def columns(cell):
        drawn = draw(Model(cell), 2, dtype=jnp.float32)
        return kf_rtrl(drawn.cell, squared_error, jax.random.key(0)).init(*drawn[1:]).influence.a.shape[-1]

    assert columns(cells.lstm(H)) == 4 * H
    assert columns(cells.ct_rnn(H)) == H
    assert columns(cells.gru(H)) == 6 * H
    # One that is added, and used once more.
    rnn = cells.rnn(H)
    twice = rnn.gated._replace(gates=lambda carry, z, us: jnp.tanh(z + us[0]) + us[0])
    assert columns(rnn._replace(gated=twice)) == 2 * H


def test_sequences_have_signs_of_their_own():
    drawn = draw(MODELS["gru"], 2, batch=(1,), dtype=jnp.float32)
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, 8, -2), (drawn.carry, drawn.xs))
    estimator = kf_rtrl(drawn.cell, squared_error, jax.random.key(0))
    state = estimator.init(drawn.params, *many)
    _, _, state = compiled(estimator.update)(drawn.params, state, many[1], jnp.ones((2, 8, H)))
    assert not np.allclose(state.influence.u[:1], state.influence.u, atol=1e-3)


@pytest.mark.parametrize("name", ["min_gru", "mlstm", "from_step", "stack_of_from_step"])
def test_cells_that_show_no_product_are_refused(name):
    with pytest.raises(ValueError, match="kf_rtrl needs a cell with the `gated` hint, or a stack of such"):
        kf_rtrl(MODELS[name].cell, squared_error, jax.random.key(0))
