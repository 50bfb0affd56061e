"""Gradient against lag: a closed form, and the gradient taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agree import close, compiled, loop
from cell_list import MODELS, draw

from seqjax import cells
from seqjax.core import open_dense
from seqjax.diagnostics import alignment, gradient_against_lag


def test_a_linear_scalar_network_decays_by_its_weight_each_step(x64):
    cell = cells.rnn(1, lambda u: u)
    for w in (0.5, -0.9, 1.0, 1.3):
        params = {"w_x": jnp.ones((1, 1)), "w_h": jnp.full((1, 1), w), "b": jnp.zeros(1)}
        found = gradient_against_lag(cell, params, jnp.zeros((1, 1)), jnp.ones((8, 1, 1)), lambda ys: ys[-1].sum())
        np.testing.assert_allclose(found, np.abs(w) ** np.arange(7, -1, -1.0), rtol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru", "stack", "from_step", "recurrent_dropout"])
def test_gradient_of_a_step_is_that_of_the_rest_of_the_sequence(x64, name):
    """dL/dh_t by hand: run to t, then differentiate the rest with respect to the carry."""
    cell, params, carry, xs = draw(MODELS[name], 4)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))

    def loss(ys):
        return jnp.sum(jnp.mean(ys, -1) * weights)

    def cut(part):
        return jax.tree.map(lambda leaf: leaf[part] if leaf.shape[0] == 4 else leaf, xs)

    found = compiled(lambda params: gradient_against_lag(cell, params, carry, xs, loss))(params)
    assert found.shape == (4,)
    for t in range(4):
        before, ys = loop(cell, params, carry, cut(slice(t + 1)))

        def rest(h, t=t, ys=ys):
            # The output of step t itself is read from h_t.
            x = jax.tree.map(lambda leaf: leaf[t] if leaf.shape[0] == 4 else leaf, xs)
            outputs = [*ys[:-1], cell.readout(params, h, open_dense(cell.project(params, x)))]
            for s in range(t + 1, 4):
                x = jax.tree.map(lambda leaf, s=s: leaf[s] if leaf.shape[0] == 4 else leaf, xs)
                h, y = cell.step(params, h, x)
                outputs.append(y)
            return loss(jnp.stack(outputs))

        grads = jax.tree.leaves(compiled(jax.grad(rest))(before))
        close(found[t], jnp.sqrt(sum(float(jnp.sum(g**2)) for g in grads) * jnp.ones(())), 1e-10)


def test_alignment():
    a, b = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}, {"w": jnp.array([0.0, 2.0]), "b": jnp.array([0.0])}
    close(alignment(a, a), (jnp.array(1.0), jnp.array(1.0)), 1e-6)
    close(alignment(a, b), (jnp.array(0.0), jnp.array(2.5)), 1e-6)
    opposite = jax.tree.map(lambda leaf: -2 * leaf, a)
    close(alignment(opposite, a), (jnp.array(-1.0), jnp.array(2.0)), 1e-6)
    nothing = jax.tree.map(jnp.zeros_like, a)
    cosine, ratio = alignment(nothing, a)
    assert jnp.isnan(cosine)
    assert ratio == 0
    assert jnp.isinf(alignment(a, nothing)[1])
