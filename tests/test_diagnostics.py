"""Diagnostics against closed forms, and against the same thing taken by hand."""

import io
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from seqjax import cells, unroll
from seqjax.core import Const, is_const, open_dense
from seqjax.diagnostics import (
    Saturation,
    alignment,
    contributions,
    figures,
    gate_saturation,
    gradient_against_lag,
    half_lives,
    lyapunov_exponents,
    participation_ratio,
    product_spectrum,
    receptive_field,
    singular_values,
    step_jacobians,
    trajectory,
)
from seqjax.initializers import critical, gate_bias, zeros
from tests.agree import at, close, compiled, loop
from tests.cell_list import MODELS, D, H, Model, draw, leaky, masked


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


@pytest.mark.parametrize("name", ["gru", "stack", "from_step", "recurrent_dropout", "embedding"])
def test_contributions_are_the_gradients_for_params_that_one_step_uses(x64, name):
    cell, params, carry, xs = draw(MODELS[name], 3)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))

    def loss(ys):
        return jnp.sum(jnp.mean(ys, -1) * weights)

    def by_hand(copies):
        h, ys = carry, []
        for t, params in enumerate(copies):
            h, y = cell.step(params, h, at(xs, t))
            ys.append(y)
        return loss(jnp.stack(ys))

    found = compiled(lambda params: contributions(cell, params, carry, xs, loss))(params)
    grads = compiled(jax.grad(by_hand))([params] * 3)
    expected = [np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(grad))) for grad in grads]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def linear(w):
    """A linear network with the recurrent weights w [H, H] and its params."""
    hidden = len(w)
    return cells.rnn(hidden, lambda u: u), {"w_x": jnp.eye(hidden), "w_h": jnp.asarray(w), "b": jnp.zeros(hidden)}


def test_receptive_field_of_a_linear_network_decays_by_its_weights(x64):
    w = np.random.default_rng(1).normal(size=(2, 2))
    cell, params = linear(w)
    found = receptive_field(cell, params, jnp.ones((3, 2)), jnp.ones((5, 3, 2)))
    expected = [np.linalg.norm(np.linalg.matrix_power(w, lag)) for lag in range(4, -1, -1)]
    np.testing.assert_allclose(found, np.repeat(np.array(expected)[:, None], 3, 1), rtol=1e-10)


def test_receptive_field_ends_where_the_mask_says_and_tokens_have_none(x64):
    cell, params, carry, (xs, _) = draw(MODELS["masked"], 4)
    mask = jnp.array([[1, 1], [0, 1], [1, 0], [1, 1]], bool)
    assert ((np.asarray(receptive_field(cell, params, carry, (xs, mask))) > 0) == mask).all()
    cell, params, carry, tokens = draw(MODELS["embedding"], 2)
    with pytest.raises(TypeError, match=r"receptive_field differentiates with respect to floating inputs, got int32"):
        receptive_field(cell, params, carry, tokens)


@pytest.mark.parametrize("name", ["lstm", "stack", "recurrent_dropout"])
def test_step_jacobians_multiply_to_the_jacobian_of_the_whole_run(x64, name):
    cell, params, carry, xs = draw(MODELS[name], 3)
    found = compiled(lambda params: step_jacobians(cell, params, carry, xs))(params)

    def one(tree, b):
        def pick(leaf):
            return Const(leaf.value[b]) if is_const(leaf) else leaf[:, b]

        return jax.tree.map(pick, tree, is_leaf=is_const)

    for b in range(2):
        start, unravel = ravel_pytree(jax.tree.map(lambda leaf, b=b: leaf[b], carry))

        def run(h, b=b, unravel=unravel):
            last = unroll(cell, params, unravel(h), one(xs, b), method="scan")[0]
            return ravel_pytree(last)[0]

        close(found[2, b] @ found[1, b] @ found[0, b], compiled(jax.jacrev(run))(start), 1e-10)


def orthogonal(rng, n):
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def test_singular_values(x64):
    matrices = np.random.default_rng(0).normal(size=(3, 2, 4, 4))
    close(singular_values(jnp.asarray(matrices)), jnp.asarray(np.linalg.svd(matrices, compute_uv=False)))


def test_product_spectrum_is_that_of_the_product(x64):
    factors = np.random.default_rng(2).normal(size=(5, 2, 4, 4))
    products = np.stack([np.linalg.multi_dot(factors[::-1, b]) for b in range(2)])
    expected = np.log(np.linalg.svd(products, compute_uv=False))
    np.testing.assert_allclose(product_spectrum(jnp.asarray(factors)), expected, atol=0.03)
    np.testing.assert_allclose(product_spectrum(jnp.asarray(factors), sweeps=60), expected, atol=1e-6)


def test_product_spectrum_reaches_far_below_what_a_product_could_hold():
    """Factors that share their singular directions: the product of 200 has those to the power of 200."""
    rng = np.random.default_rng(3)
    bases = [orthogonal(rng, 3) for _ in range(201)]
    values = np.array([1.05, 0.7, 0.1])
    factors = np.stack([after @ np.diag(values) @ before.T for before, after in pairwise(bases)])
    found = product_spectrum(jnp.asarray(factors, jnp.float32)[:, None])
    assert found.shape == (1, 3)
    np.testing.assert_allclose(found[0], 200 * np.log(values), rtol=1e-4, atol=1e-3)


def test_lyapunov_exponents_of_a_linear_map_are_the_logarithms_of_its_eigenvalues(x64):
    rng = np.random.default_rng(0)
    values = np.array([0.2, -0.9, 1.1, 0.5])
    basis = rng.normal(size=(4, 4))
    cell, params = linear(basis @ np.diag(values) @ np.linalg.inv(basis))
    xs = jnp.zeros((300, 2, 4))
    expected = np.sort(np.log(np.abs(values)))[::-1]

    @compiled
    def run(key):
        return [lyapunov_exponents(key, cell, params, jnp.zeros((2, 4)), xs, count=n, discard=150) for n in (None, 2)]

    found, few = run(jax.random.key(0))
    np.testing.assert_allclose(found, np.stack([expected] * 2), atol=1e-8)
    np.testing.assert_allclose(few, np.stack([expected[:2]] * 2), atol=1e-8)
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"a carry of 4 numbers has 1 to 4 exponents, got count = {count}"):
            lyapunov_exponents(jax.random.key(0), cell, params, jnp.zeros((2, 4)), xs, count=count)
    with pytest.raises(ValueError, match="can discard fewer than all 300 steps, got discard = 300"):
        lyapunov_exponents(jax.random.key(0), cell, params, jnp.zeros((2, 4)), xs, discard=300)


def mean_field_exponent(gain):
    """log(g^2 <tanh'(x)^2>) / 2 for x ~ N(0, q), q = g^2 <tanh(x)^2> (Molgedey, Schuchhardt & Schuster 1992)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    q = 1.0
    for _ in range(2000):
        q = gain**2 * weights @ np.tanh(np.sqrt(q) * nodes) ** 2
    return np.log(gain**2 * weights @ (1 - np.tanh(np.sqrt(q) * nodes) ** 2) ** 2) / 2


def test_a_random_network_turns_chaotic_where_its_gain_passes_one():
    hidden, gains = 120, np.array([0.8, 2.0, 4.0])
    cell = cells.rnn(hidden, w_x=zeros, w_h=critical())
    params = cell.init(jax.random.key(0), 1)
    start = jax.random.normal(jax.random.key(1), (2, hidden))

    @compiled
    @jax.vmap
    def exponent(gain):
        scaled = {**params, "w_h": gain * params["w_h"]}
        return lyapunov_exponents(
            jax.random.key(2), cell, scaled, start, jnp.zeros((400, 2, 1)), count=1, discard=100
        ).mean()

    found = exponent(jnp.asarray(gains, jnp.float32))
    assert found[0] < 0 < found[1]
    # What falls silent is linear in the end: its exponent is that of the largest eigenvalue.
    radius = np.abs(np.linalg.eigvals(np.asarray(params["w_h"], np.float64))).max()
    assert found[0] == pytest.approx(np.log(gains[0] * radius), abs=0.01)
    np.testing.assert_allclose(found[1:], [mean_field_exponent(gain) for gain in gains[1:]], atol=0.06)


def test_half_lives_of_gates_that_never_move():
    """Without weights a forget gate is its bias."""
    f = 0.9
    logit = float(np.log(f / (1 - f)))
    expected = np.log(2) / -np.log(f)
    xs = jnp.ones((6, 2, D))
    bare = {"w_x": zeros, "w_h": zeros}
    lstm = cells.lstm(H, b=gate_bias(forget=logit), **bare)
    gru = cells.gru(H, b=gate_bias(update=logit), **bare)
    stacked = cells.stack(lstm, cells.min_gru(H, w_x=zeros, b=gate_bias(input=-logit)), gru, cells.rnn(H))
    params = stacked.init(jax.random.key(0), D)
    carry = stacked.initial_carry(params, (2,))
    found = half_lives(stacked, params, carry, xs)
    assert jax.tree.structure(found) == jax.tree.structure(carry)
    np.testing.assert_allclose(jnp.stack([found[0].c, found[1], found[2]]), np.full((3, 2, H), expected), rtol=1e-4)
    assert not np.any([found[0].h, found[3]])
    mask = jnp.array([[1, 1], [0, 1], [1, 1], [0, 0], [1, 1], [0, 1]], bool)
    wrapped = masked(Model(lstm)).cell
    found = half_lives(wrapped, params[0], carry[0], (xs, mask)).c
    np.testing.assert_allclose(found[0], 2 * expected, rtol=1e-4)
    np.testing.assert_allclose(found[1], 1.2 * expected, rtol=1e-4)
    assert (half_lives(wrapped, params[0], carry[0], (xs, ~mask & mask)).c == np.inf).all()


@pytest.mark.parametrize("name", ["lstm", "min_gru"])
def test_half_lives_are_on_the_diagonal_of_the_jacobians(x64, name):
    """In these cells the matrix products do not reach a unit's own state within a step."""
    cell, params, carry, xs = draw(MODELS[name], 5)
    jacobians = step_jacobians(cell, params, carry, xs)
    diagonal = np.diagonal(jacobians, axis1=2, axis2=3)[..., -H:]
    found = jax.tree.leaves(half_lives(cell, params, carry, xs))[-1]
    np.testing.assert_allclose(found, np.log(2) / -np.log(np.abs(diagonal)).mean(0), rtol=1e-10)


def test_half_lives_need_a_hint():
    cell = leaky()
    params = cell.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match="half_lives needs a cell with the hint gated or affine"):
        half_lives(cell, params, cell.initial_carry(params, (2,)), jnp.ones((3, 2, D)))


def test_gate_saturation_finds_the_gates_of_any_cell():
    bias = gate_bias(input=-9.0, forget=9.0)
    cell = cells.stack(cells.rnn(D), cells.lstm(H, w_x=zeros, w_h=zeros, b=bias))
    params = cell.init(jax.random.key(0), D)
    carry = cell.initial_carry(params, (2,))
    found = gate_saturation(cell, params, carry, jnp.ones((3, 2, D)))
    expected = [Saturation(low, high) for low, high in [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)]]
    close(found, tuple(jax.tree.map(lambda share: jnp.full(H, share), gate) for gate in expected))


def test_gate_saturation_sees_gates_that_are_computed_before_the_loop():
    rnn = cells.rnn(H)
    cell = rnn._replace(project=lambda params, x: jax.nn.sigmoid(x @ params["w_x"]))
    params = cell.init(jax.random.key(0), D)
    (gate,) = gate_saturation(cell, params, cell.initial_carry(params, (2,)), jnp.zeros((3, 2, D)), 0.6)
    close(gate, Saturation(jnp.ones(H), jnp.ones(H)))


def test_gate_saturation_counts_steps_and_sequences(x64):
    cell, params, carry, xs = draw(masked(Model(cells.min_gru(H))), 20, (3,))
    z = (
        np.einsum("tbd,dg->tbg", jnp.where(xs[1][..., None], xs[0], 0.0), params["w_x"])[..., :H]
        + np.asarray(params["b"])[:H]
    )
    activation = 1 / (1 + np.exp(-z))
    keeps, writes = gate_saturation(cell, params, carry, xs, 0.3)
    low, high = (activation < 0.3).mean((0, 1)), (activation > 0.7).mean((0, 1))
    assert 0 < low.min() < high.max() < 1
    close(
        (keeps, writes), (Saturation(jnp.asarray(high), jnp.asarray(low)), Saturation(*map(jnp.asarray, (low, high))))
    )


def test_participation_ratio_counts_directions():
    rng = np.random.default_rng(0)
    line = rng.normal(size=(50, 2, 1)) * np.array([1.0, -2.0, 0.5]) + 7
    assert participation_ratio(jnp.asarray(line, jnp.float32)) == pytest.approx(1, abs=1e-4)
    corners = np.array([[s, t] for s in (-2, 2) for t in (-1, 1)])
    assert participation_ratio(jnp.asarray(corners, jnp.float32)) == pytest.approx((4 + 1) ** 2 / (16 + 1))
    cloud = 1e-15 * rng.normal(size=(4000, 5))
    assert participation_ratio(jnp.asarray(cloud, jnp.float32)) == pytest.approx(5, rel=0.02)


def test_a_trajectory_ends_where_the_run_does(x64):
    cell, params, carry, xs = draw(MODELS["peephole_lstm"], 4)
    path = trajectory(cell, params, carry, xs)
    last, ys = unroll(cell, params, carry, xs, method="scan")
    close((jax.tree.map(lambda leaf: leaf[-1], path), path.h), (last, ys))


def lines(figure):
    return [np.asarray(line.get_ydata(), np.float64) for line in figure.axes[0].lines]


def test_figures_show_what_they_are_given():
    rng = np.random.default_rng(0)
    norms = rng.uniform(0.1, 1, 5)
    batch = rng.uniform(0.1, 1, (5, 3))
    figure = figures.against_lag({"one": norms, "batch": batch}, "|dL/dh|")
    np.testing.assert_array_equal(lines(figure)[0], norms[::-1])
    np.testing.assert_allclose(lines(figure)[1], np.median(batch, 1)[::-1])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["one", "batch"]

    values = -np.sort(-rng.uniform(0.1, 1, (5, 3, 4)))
    drawn = lines(figures.spectrum_over_time(values))
    np.testing.assert_allclose(drawn[0], np.median(values[..., 0], 1))
    np.testing.assert_allclose(drawn[2], np.median(values[..., -1], 1))

    drawn = lines(figures.exponents({"gain 1": values[0]}))
    np.testing.assert_allclose(drawn[0], np.median(values[0], 0))

    kept = np.array([[1.0, np.inf, 0.0, 8.0]])
    np.testing.assert_array_equal(lines(figures.half_lives_by_rank({"c": kept}))[0], [np.nan, 8, 1, np.nan])

    shares = Saturation(np.array([0.1, 0.2]), np.array([0.7, 0.3]))
    axes = figures.saturation({"forget": shares}).axes[0]
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), [[0.7, 0.1], [0.3, 0.2]])
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (0, 1))  # shares

    figure = figures.variances(np.array([[s, t] for s in (-2, 2) for t in (-1, 1)]))
    np.testing.assert_allclose([bar.get_height() for bar in figure.axes[0].patches], [0.8, 0.2])
    assert figure.axes[0].get_title() == "participation ratio 1.47"


def test_figures_are_drawn_from_arrays_of_the_diagnostics_without_a_warning():
    cell = cells.lstm(H)
    params = cell.init(jax.random.key(0), D)
    xs, carry = jnp.ones((4, 2, D)), cell.initial_carry(params, (2,))

    @compiled
    def run(*args):
        jacobians = step_jacobians(cell, *args)
        of_cell = [f(cell, *args) for f in (receptive_field, half_lives, gate_saturation, trajectory)]
        return singular_values(jacobians), product_spectrum(jacobians), *of_cell

    values, product, field, kept, gates, path = run(params, carry, xs)
    drawn = [
        figures.against_lag({"lstm": field}, "|dy/dx|"),
        figures.spectrum_over_time(values),
        figures.exponents({"lstm": product}, "log singular values"),
        figures.half_lives_by_rank(kept._asdict()),
        figures.saturation(dict(zip(["forget", "input", "output"], gates, strict=True))),
        figures.variances(path.h),
    ]
    for figure in drawn:
        assert isinstance(figure, Figure)
        figure.savefig(io.BytesIO(), format="png", dpi=30)
