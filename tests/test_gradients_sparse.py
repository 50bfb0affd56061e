"""The structure of a program; sparse RTRL is exact where the structure says so, and what it says elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from test_gradients import T, full_gradient, mean, run_chunks, squared_error, targets_for

from seqjax import Cell, cells, unroll, wrappers
from seqjax.core import open_dense
from seqjax.gradients import diagonal_rtrl, eprop, rflo, snap, stream_gradient, truncated_bptt
from seqjax.gradients.structure import dependence
from seqjax.hints import gated_transition
from tests.agree import close, compiled
from tests.cell_list import MODELS, TOKENS, D, H, Model, draw, masked, reset, tokens


def independent() -> Cell:
    """Elementwise, not linear, with two leaves that depend on each other."""

    def init(key, in_features):
        return {"w": jax.random.normal(key, (in_features, H)), "u": jnp.ones(H), "v": jnp.ones(H)}

    def transition(params, carry, z):
        h, c = carry
        u, v = (jnp.broadcast_to(params[name], h.shape) for name in "uv")
        c = jax.nn.relu(u * h + v * c + z)
        return jnp.tanh(v * c * h), c

    return Cell(
        init=init,
        initial_carry=lambda params, batch: (jnp.zeros((*batch, H), params["w"].dtype),) * 2,
        project=lambda params, x: x @ params["w"],
        transition=transition,
        readout=lambda params, carry, z: carry[0],
    )


ELEMENTWISE = {
    "head": Model(wrappers.with_head(cells.min_gru(H), 2)),
    "dressed": masked(reset(MODELS["min_gru"])),
    "lru": Model(wrappers.with_head(cells.lru(H), 2)),
    "ind_rnn": Model(cells.ind_rnn(H)),
    "independent": Model(independent()),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_diagonal_rtrl_is_bptt_over_chunks(x64, name):
    drawn = draw(ELEMENTWISE[name], T)
    targets = targets_for(drawn)
    found, state = run_chunks(diagonal_rtrl(drawn.cell, squared_error), drawn, targets, 3)
    close(mean(found), full_gradient(drawn, targets), 1e-9)
    close(state.carry, unroll(*drawn)[0], 1e-9)
    assert state.influence.size == 2 * state.pattern.rows.size  # linear in the params: B C P


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rnn", "a number of this cell's carry depends on other numbers"),
        ("reset_stack", "a number of this cell's carry depends on other numbers"),
        ("table", r"\['embedding'\] \(5, 3\) influence several"),
    ],
)
def test_diagonal_rtrl_refuses_what_is_not_elementwise(name, message):
    table = Model(wrappers.with_embedding(cells.min_gru(H), TOKENS, D), 0, tokens)
    drawn = draw(table if name == "table" else MODELS[name], T, dtype=jnp.float32)
    with pytest.raises(ValueError, match=message):
        diagonal_rtrl(drawn.cell, squared_error).init(*drawn[1:])


def jacobian_pattern(f, *args):
    """Where a Jacobian is not 0 at a random point, with all inputs in one row."""
    jac = compiled(jax.jacrev(f, argnums=tuple(range(len(args)))))(*args)
    n = sum(part.size for part in jax.eval_shape(f, *args))
    rows = [np.concatenate([np.reshape(j, (-1, arg.size)) for j, arg in zip(js, args, strict=True)], 1) for js in jac]
    return np.concatenate(rows).reshape(n, -1) != 0


MASK = np.array([[0, 1, 1], [1, 0, 0]], np.float32)
FUNCTIONS = {
    "products": lambda a, b, c: [a @ b, jnp.einsum("ij,ij->j", a, jnp.tile(b[:, :1].T, (2, 1)))],
    "batched products": lambda a, b, c: [jnp.einsum("ij,jk,k->ji", a, b, c)],
    "slices": lambda a, b, c: [jnp.concatenate([a[:, ::2], b[:2, 1:3]], 1), jnp.stack(jnp.split(c, 2)[::-1]), *b.T],
    "shapes": lambda a, b, c: [a.T.reshape(2, 3) * 2.0, jnp.broadcast_to(c, (3, 4)) + b, c[None] * c[:, None]],
    "sums": lambda a, b, c: [a.sum(0), b.max(1) * a[0], jnp.tanh(c).mean()],
    "branches": lambda a, b, c: [jax.nn.sigmoid(jnp.where(a > 0, a, 2 * a)), jax.jit(jnp.cumsum)(c)],
    "a constant mask": lambda a, b, c: [a * MASK, (MASK * a) @ b, jnp.tanh(b) @ c],
    "constants": lambda a, b, c: [jax.lax.stop_gradient(a) * 2.0, jnp.zeros(3), c],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dependence_is_the_pattern_of_the_jacobian(name):
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.uniform(0.1, 1, size), jnp.float32) for size in [(2, 3), (3, 4), (4,)]]
    n = sum(part.size for part in jax.eval_shape(FUNCTIONS[name], *args))
    found = np.concatenate(dependence(FUNCTIONS[name], *args)(np.eye(n, dtype=bool)), 1)
    expected = jacobian_pattern(FUNCTIONS[name], *args)
    if name in ("sums", "branches"):  # the largest of a row is known only from its numbers; a cumsum is not looked into
        assert (found >= expected).all()
        assert not found.all()
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "lookup",
    [
        lambda a, i: a[i],
        lambda a, i: a[:, i],
        lambda a, i: a.at[i].get(mode="fill", fill_value=0, wrap_negative_indices=False),
        lambda a, i: jnp.take_along_axis(a, i[:, None], 1),
        lambda a, i: jax.lax.dynamic_slice(a, (i[0], 0), (2, 3)),
    ],
    ids=["rows", "columns", "filled", "along", "slice"],
)
def test_a_lookup_depends_on_all_places_and_on_no_other_column(lookup):
    """Of all indices that it might get, since they are not constants."""
    a, index = jnp.ones((4, 3)), jnp.array([1, 0, 2, 0])
    n = lookup(a, index).size
    found, _ = dependence(lambda a, i: [lookup(a, i)], a, index)(np.eye(n, dtype=bool))
    jacobian, expected = compiled(jax.jacrev(lookup)), np.zeros_like(found)
    for other in np.random.default_rng(0).integers(0, 3, (50, 4)):
        expected |= np.asarray(jacobian(a, jnp.asarray(other)) != 0).reshape(n, -1)
    assert (found >= expected).all(), "never less than the Jacobian has"
    if lookup(a, index).shape == (4, 3):
        by_column = found.reshape(n, 4, 3).any(1)
        np.testing.assert_array_equal(by_column, np.tile(np.eye(3, dtype=bool), (n // 3, 1)))


@pytest.mark.parametrize(
    ("estimator", "cell"),
    [
        (lambda cell: eprop(cell, squared_error), wrappers.with_head(cells.lstm(H), H)),
        (lambda cell: rflo(cell, squared_error, jax.random.key(1)), wrappers.with_head(cells.gru(H), H)),
        (lambda cell: snap(cell, squared_error), cells.rnn(H)),
    ],
    ids=["eprop", "rflo", "snap"],
)
def test_one_hot_tokens_are_the_vectors_that_they_stand_for(x64, estimator, cell):
    """The rows of w_x that they look up are as local as its columns are."""
    token_ids = draw(Model(wrappers.with_one_hot(cell, TOKENS), 0, tokens), T).xs
    vectors = jax.nn.one_hot(token_ids, TOKENS, dtype=jnp.float64)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), cell.init(jax.random.key(0), TOKENS))
    carry, targets = cell.initial_carry(params, token_ids.shape[1:]), jnp.ones((*token_ids.shape, H))

    def gradient(cell, xs):
        return stream_gradient(estimator(cell), params, carry, xs, targets, 1)

    close(gradient(wrappers.with_one_hot(cell, TOKENS), token_ids), gradient(cell, vectors), 1e-12)


def test_a_dead_unit_still_depends_on_its_inputs():
    found = dependence(lambda x: [jax.nn.relu(x - 10.0)], jnp.ones(3))(np.eye(3, dtype=bool))
    np.testing.assert_array_equal(found[0], np.eye(3, dtype=bool))


def chain(hidden: int) -> Cell:
    """A simple RNN where unit i hears itself and unit i - 1."""
    mask = jnp.eye(hidden) + jnp.eye(hidden, k=1)
    base = cells.rnn(hidden)
    hint = base.gated._replace(weights=lambda params: (params["w_h"] * mask.astype(params["w_h"].dtype),))
    return base._replace(gated=hint, transition=gated_transition(hint))


def by_definition(drawn, targets, keep, by_carry=None):
    """Loss and gradient of `J = keep(D J + I)`, densely, one sequence after the other."""
    cell, params, carry, xs = drawn
    weights, as_params = ravel_pytree(params)
    as_carry = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], carry))[1]

    def transition(weights, h, x):
        params = as_params(weights)
        return ravel_pytree(cell.transition(params, as_carry(h), open_dense(cell.project(params, x))))[0]

    def step_loss(weights, h, x, target):
        params = as_params(weights)
        z = open_dense(cell.project(params, x))
        return squared_error(cell.readout(params, as_carry(h), z), target)

    @compiled
    def step(weights, h, x, target):
        immediate, dense = jax.jacrev(transition, (0, 1))(weights, h, x)
        after = transition(weights, h, x)
        local = dense if by_carry is None else by_carry(params, h, after, x)
        return after, immediate, local, jax.value_and_grad(step_loss, (0, 1))(weights, after, x, target)

    steps, batch = targets.shape[:2]
    total, gradient = 0.0, 0.0
    for b in range(batch):
        h, influence = ravel_pytree(jax.tree.map(lambda leaf, b=b: leaf[b], carry))[0], 0.0
        for t in range(steps):
            h, immediate, d, (value, (direct, dh)) = step(weights, h, xs[t, b], targets[t, b])
            influence = keep(d @ influence + immediate if t else immediate, immediate, d)
            total, gradient = total + value, gradient + direct + dh @ influence
    count = steps * batch
    return total / count, as_params(gradient / count)


def within(n):
    """The pattern of n steps, from the Jacobians of one of them at a random point."""

    def keep(influence, immediate, d):
        pattern = immediate != 0
        for _ in range(n - 1):
            pattern = (immediate != 0) | ((d != 0).astype(d.dtype) @ pattern.astype(d.dtype) > 0)
        return jnp.where(pattern, influence, 0)

    return keep


@pytest.mark.parametrize(("name", "n"), [("ind_rnn", 1), ("lru", 2)])
def test_snap_is_exact_where_the_pattern_closes(x64, name, n):
    drawn = draw(ELEMENTWISE[name], T)
    targets = targets_for(drawn)
    found, _ = run_chunks(snap(drawn.cell, squared_error, n), drawn, targets, 3)
    close(mean(found), full_gradient(drawn, targets), 1e-9)


@pytest.mark.parametrize(
    ("model", "products"),
    [(Model(cells.ind_rnn(H)), 1), (ELEMENTWISE["independent"], 2), (Model(chain(4)), 2), (MODELS["rnn"], 4)],
)
def test_snap_takes_the_rows_of_a_sparse_recurrence_together(model, products):
    drawn = draw(model, T, dtype=jnp.float32)
    state = snap(drawn.cell, squared_error).init(*drawn[1:])
    assert len(state.pattern.recurrence[1]) == products


@pytest.mark.parametrize(("n", "groups"), [(1, 1), (2, 2), (4, 4)])
def test_snap_of_a_sparse_network_keeps_what_n_steps_reach(x64, n, groups):
    drawn = draw(Model(chain(4)), T)
    targets = targets_for(drawn)
    found, state = run_chunks(snap(drawn.cell, squared_error, n), drawn, targets, 3)
    full = full_gradient(drawn, targets)
    close(mean(found), full if n == 4 else by_definition(drawn, targets, within(n)), 1e-9)
    assert len(state.pattern.groups) == groups
    assert np.allclose(mean(found)[1]["w_h"], full[1]["w_h"], rtol=1e-6) == (n == 4)


@pytest.mark.parametrize(("name", "n", "groups"), [("gru", 1, 1), ("lstm", 1, 2), ("lstm", 2, 8)])
def test_snap_of_dense_cells(x64, name, n, groups):
    drawn = draw(MODELS[name], T)
    targets = targets_for(drawn)
    found, state = run_chunks(snap(drawn.cell, squared_error, n), drawn, targets, 3)
    expected = full_gradient(drawn, targets) if n == 2 else by_definition(drawn, targets, within(1))
    close(mean(found), expected, 1e-9)
    assert len(state.pattern.groups) == groups


def lstm_cell_path(params, h, after, x):
    """dh_t/dh_{t-1} of an LSTM by hand, without its recurrent product: from c to c, and to h."""
    size = len(h) // 2
    u = x @ params["w_x"] + h[:size] @ params["w_h"] + params["b"]
    _, f, _, o = jax.nn.sigmoid(u).reshape(4, size)
    zero = jnp.zeros((size, size))
    return jnp.block([[zero, jnp.diag(o * (1 - jnp.tanh(after[size:]) ** 2) * f)], [zero, jnp.diag(f)]])


def test_eprop_follows_the_cell_state_of_an_lstm_and_no_more(x64):
    drawn = draw(MODELS["lstm"], T)
    targets = targets_for(drawn)
    found, _ = run_chunks(eprop(drawn.cell, squared_error), drawn, targets, 3)
    close(mean(found), by_definition(drawn, targets, lambda j, *_: j, lstm_cell_path), 1e-9)


@pytest.mark.parametrize("units", [1, H])  # what one unit says to itself comes through a recurrent product too
def test_eprop_of_a_simple_rnn_is_truncation_to_one_step(x64, units):
    drawn = draw(Model(cells.rnn(units)), T)
    targets = targets_for(drawn)
    found, _ = run_chunks(eprop(drawn.cell, squared_error), drawn, targets, 3)
    expected, _ = run_chunks(truncated_bptt(drawn.cell, squared_error, 1, 1), drawn, targets, 1)
    close(mean(found), mean(expected), 1e-9)


def leaky_by_hand(params, feedback, h, xs, targets, dt):
    """The loop of the paper for one sequence, with P_ab for W and P_ab for W_in: loss, dW, dW_in and dW_out."""
    rate = dt / np.exp(params["log_tau"])
    w, w_in, w_out = params["cell"]["w_h"].T, params["cell"]["w_x"].T, params["w_y"].T
    p, p_in = np.zeros(w.shape), np.zeros(w_in.shape)
    total, dw, dw_in, dw_out = 0.0, 0.0, 0.0, 0.0
    for x, target in zip(xs, targets, strict=True):
        u = w @ h + w_in @ x + params["cell"]["b"]
        slope = rate * (1 - np.tanh(u) ** 2)
        p = (1 - rate)[:, None] * p + np.outer(slope, h)
        p_in = (1 - rate)[:, None] * p_in + np.outer(slope, x)
        h = h + rate * (np.tanh(u) - h)
        error = w_out @ h + params["b_y"] - target
        total = total + (error**2).sum() / len(xs)
        dw = dw + 2 * (feedback @ error)[:, None] * p / len(xs)
        dw_in = dw_in + 2 * (feedback @ error)[:, None] * p_in / len(xs)
        dw_out = dw_out + 2 * np.outer(error, h) / len(xs)
    return total, dw, dw_in, dw_out


def test_rflo_of_leaky_units_is_the_loop_of_the_paper(x64):
    drawn = draw(Model(wrappers.with_head(cells.ct_rnn(H, 0.5), 2)), T, batch=(1,))
    targets = targets_for(drawn)
    (((value, grads),), state) = run_chunks(rflo(drawn.cell, squared_error, jax.random.key(1)), drawn, targets, T)
    params, carry, xs, hit = jax.tree.map(np.asarray, (*drawn[1:], targets))
    feedback = np.asarray(state.pattern.feedback).T
    params["log_tau"] = params["cell"]["log_tau"]
    total, dw, dw_in, dw_out = leaky_by_hand(params, feedback, carry[0], xs[:, 0], hit[:, 0], 0.5)
    found = grads["cell"]["w_h"].T, grads["cell"]["w_x"].T, grads["w_y"].T
    close((value, *found), (jnp.asarray(total), *map(jnp.asarray, (dw, dw_in, dw_out))), 1e-9)


@pytest.mark.parametrize("name", ["gru", "masked"])
def test_rflo_through_the_weights_of_the_head_is_eprop(x64, name):
    """For a head that is not linear, too, and one that is masked."""
    if name == "masked":
        model = masked(Model(wrappers.with_head(cells.lstm(H), 2, jnp.tanh)))
    else:
        model = Model(wrappers.with_head(MODELS[name].cell, 2, jnp.tanh))
    drawn = draw(model, T)
    targets = targets_for(drawn)

    def transposed(key, shape, dtype):
        w = drawn.params["w_y"].T.astype(dtype)
        assert w.shape == shape
        return w

    got, _ = run_chunks(rflo(drawn.cell, squared_error, jax.random.key(0), feedback=transposed), drawn, targets, 3)
    expected, _ = run_chunks(eprop(drawn.cell, squared_error), drawn, targets, 3)
    close(got, expected, 1e-12)


def test_rflo_learns_and_the_head_comes_to_resemble_its_feedback():
    """Sums and differences of two inputs, smoothed; against a network of which the head alone is trained."""
    model = wrappers.with_head(cells.ct_rnn(16, 1.0, log_tau=jax.nn.initializers.constant(1.0)), 2)
    tail = jnp.exp(-0.3 * jnp.arange(20.0))

    def learn(key, **kwargs):
        k_params, k_xs, k_feedback = jax.random.split(key, 3)
        params = model.init(k_params, 2)
        xs = jax.random.normal(k_xs, (2000, 8, 2))
        smooth = jax.vmap(lambda x: jnp.convolve(x, 0.3 * tail)[:2000], 1, 1)(xs.reshape(2000, 16)).reshape(xs.shape)
        targets = smooth @ jnp.array([[1.0, -1.0], [1.0, 1.0]])
        estimator = rflo(model, squared_error, k_feedback, **kwargs)
        state = estimator.init(params, model.initial_carry(params, (8,)), xs[:10])

        def body(both, data):
            params, state = both
            loss, grads, state = estimator.update(params, state, *data)
            params = jax.tree.map(lambda w, g: w - 0.05 * g, params, grads)
            w, feedback = params["w_y"].T, state.pattern.feedback
            return (params, state), (loss, jnp.vdot(w, feedback) / jnp.linalg.norm(w))

        data = xs.reshape(200, 10, 8, 2), targets.reshape(200, 10, 8, 2)
        return jax.lax.scan(body, (params, state), data)[1], jnp.linalg.norm(state.pattern.feedback)

    @compiled
    @jax.vmap
    def run(key):
        (losses, toward), size = learn(key)
        (alone, _), _ = learn(key, feedback=jax.nn.initializers.zeros)
        return losses, alone, toward / size

    losses, alone, cosine = map(np.asarray, run(jax.random.split(jax.random.key(0), 4)))
    assert (losses[:, -20:].mean(1) < 0.2 * losses[:, :5].mean(1)).all()
    assert (losses[:, -20:].mean(1) < 0.9 * alone[:, -20:].mean(1)).all()
    assert (cosine[:, -1] - cosine[:, 0] > 0.1).all()


def test_rflo_refuses_a_model_without_a_head_or_with_another_one():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="rflo needs a cell with the `gated` hint"):
        rflo(wrappers.with_head(cells.min_gru(H), 2), squared_error, key)
    drawn = draw(MODELS["rnn"], T, dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"rflo needs a model with wrappers\.with_head outermost"):
        rflo(drawn.cell, squared_error, key).init(*drawn[1:])
    rnn = cells.rnn(H)
    half = rnn._replace(readout=lambda params, carry, z: carry[..., :2])
    drawn = draw(Model(wrappers.with_head(half, 3)), T, dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"reads the first leaf of the carry \(4,\), and w_y is \(2, 3\)"):
        rflo(drawn.cell, squared_error, key).init(*drawn[1:])


def test_eprop_and_snap_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="eprop needs a cell with the `gated` hint"):
        eprop(cells.min_gru(H), squared_error)
    drawn = draw(MODELS["gru_reset_before"], T, dtype=jnp.float32)
    with pytest.raises(ValueError, match="eprop needs params that each influence at most one number"):
        eprop(drawn.cell, squared_error).init(*drawn[1:])
    with pytest.raises(ValueError, match="snap needs n >= 1 steps, got 0"):
        snap(cells.rnn(H), squared_error, 0)
