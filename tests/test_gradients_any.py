"""Any stack, any loss, an update every step or every n; and what an estimator cannot do, it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gradients_dtypes import ESTIMATORS

from seqjax import cells, wrappers
from seqjax.gradients import stream_gradient
from tests.agree import close, compiled
from tests.cell_list import TOKENS, D, H, Model, draw, masked, tokens

STEPS = 4
STACK = wrappers.with_head(cells.stack(cells.gru(H), cells.lstm(H + 1)), 2)
BY_CHUNK = ("bptt", "truncated_bptt", "artbp", "persistent_evolution")  # their gradient is another for other chunks


def masked_error(ys, targets):
    """0 at the steps that do not count, whatever their targets."""
    targets, counts = targets
    return jnp.where(counts, jnp.sum(jnp.square(ys - targets), -1), 0.0)


def gradients(name, drawn, *runs):
    """Of one estimator for some inputs, targets and chunks, compiled as one program."""
    estimator = ESTIMATORS[name](drawn.cell, masked_error, jax.random.key(0))
    return compiled(
        lambda params, carry: [stream_gradient(estimator, params, carry, *run) for run in runs],
    )(drawn.params, drawn.carry)


@pytest.mark.parametrize("name", ["rtrl", "snap", "kf_rtrl", "uoro"])
def test_a_stack_is_trained_every_step_or_every_n(x64, name):
    drawn = draw(Model(STACK), STEPS)
    targets = jnp.asarray(np.random.default_rng(1).normal(size=(STEPS, 2, 2))), jnp.ones((STEPS, 2), bool)
    close(*gradients(name, drawn, (drawn.xs, targets, 1), (drawn.xs, targets, STEPS)), 1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_padding_is_of_no_consequence(x64, name):
    """Not what it holds, nor its targets; with an update every step, or every n."""
    cell = cells.min_gru(H) if name == "diagonal_rtrl" else cells.lstm(H)
    drawn = draw(masked(Model(wrappers.with_head(cell, 2))), STEPS)
    xs, counts = drawn.xs
    assert 0 < counts.sum() < counts.size
    targets = jnp.asarray(np.random.default_rng(1).normal(size=(STEPS, 2, 2)))
    other = jnp.where(counts[..., None], xs, jnp.nan), counts
    off = jnp.where(counts[..., None], targets, 1e3), counts
    chunk = 2 if name in BY_CHUNK else 1
    found, expected = gradients(name, drawn, (other, off, chunk), (drawn.xs, (targets, counts), max(chunk, 2)))
    close(found, expected, 1e-9)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(found))


EMBEDDING = Model(wrappers.with_head(wrappers.with_embedding(cells.gru(H), TOKENS, D), 2), 0, tokens)
REFUSED = [
    ("diagonal_rtrl", Model(STACK), "depends on other numbers"),
    ("eprop", Model(STACK), "eprop takes a single layer, got a stack of 2"),
    ("rflo", Model(STACK), "rflo takes a single layer, got a stack of 2"),
    ("eprop", EMBEDDING, r"eprop needs params .* \['cell'\]\['embedding'\] \(5, 3\) influence several"),
    ("rflo", EMBEDDING, r"rflo needs params .* \['cell'\]\['embedding'\] \(5, 3\) influence several"),
    ("kf_rtrl", Model(cells.stack(cells.gru(H), cells.min_gru(H))), "kf_rtrl needs a cell with the `gated` hint"),
]


@pytest.mark.parametrize(("name", "model", "message"), REFUSED)
def test_what_an_estimator_cannot_do_it_refuses(name, model, message):
    drawn = draw(model, 2, dtype=jnp.float32)
    with pytest.raises(ValueError, match=message):
        ESTIMATORS[name](drawn.cell, masked_error, jax.random.key(0)).init(*drawn[1:])
