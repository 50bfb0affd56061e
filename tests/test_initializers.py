"""Distributions, positions and seeds of initial weights and biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import cells, initializers
from tests.agree import compiled, equations

KEY = jax.random.key(0)
GATES = {
    cells.lstm: ("input", "forget", "candidate", "output"),
    cells.peephole_lstm: ("input", "forget", "candidate", "output"),
    cells.gru: ("reset", "update", "candidate"),
    cells.gru_reset_before: ("reset", "update", "candidate"),
    cells.min_gru: ("input", "candidate"),
    cells.rnn: ("candidate",),
}


@pytest.mark.parametrize("make", [cells.lstm, cells.gru, cells.rnn])
def test_recurrent_weights_are_orthogonal_gate_by_gate_and_drawn_apart(make):
    hidden, gates = 16, len(GATES[make])
    blocks = np.split(np.asarray(make(hidden).init(KEY, 3)["w_h"]), gates, axis=1)
    for block in blocks:
        np.testing.assert_allclose(block @ block.T, np.eye(hidden), atol=1e-5)
    for one, other in zip(blocks[1:], blocks[:-1], strict=True):
        assert np.abs(one - other).max() > 0.1


def test_orthogonal_has_its_scale():
    w = np.asarray(initializers.orthogonal(0.5)(KEY, (6, 6)))
    np.testing.assert_allclose(w @ w.T, 0.25 * np.eye(6), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_unitary_is_the_product_of_complex_numbers_that_keeps_the_norm(dtype):
    w = initializers.unitary(0.5)(KEY, (6, 6), dtype)
    assert w.dtype == dtype
    w = np.asarray(w, np.float32)
    parts, u = np.random.default_rng(0).normal(size=(2, 4, 3)), w[:3, :3] + 1j * w[:3, 3:]
    z = parts[0] + 1j * parts[1]
    np.testing.assert_allclose(u @ u.conj().T, 0.25 * np.eye(3), atol=1e-6 if dtype == jnp.float32 else 1e-2)
    found = np.concatenate([z.real, z.imag], -1) @ w
    np.testing.assert_allclose(found, np.concatenate([(z @ u).real, (z @ u).imag], -1), atol=1e-5)


def test_unitary_is_uniform():
    """Its eigenvalues repel each other: the mean of |tr u|^2 is 1, and all phases are equally likely."""
    draw = compiled(jax.vmap(lambda key: initializers.unitary()(key, (8, 8))))
    w = np.asarray(draw(jax.random.split(KEY, 2000)))
    trace = np.trace(w[:, :4, :4], axis1=1, axis2=2) + 1j * np.trace(w[:, :4, 4:], axis1=1, axis2=2)
    square = np.abs(trace) ** 2
    assert abs(square.mean() - 1) < 4 * square.std() / np.sqrt(len(w))
    assert abs(trace.mean()) < 4 / np.sqrt(len(w))
    assert np.abs(np.exp(1j * np.angle(w[:, 0, 0] + 1j * w[:, 0, 4])).mean()) < 4 / np.sqrt(len(w))


def test_unitary_refuses_an_odd_number_of_units():
    with pytest.raises(ValueError, match=r"pairs units as real and imaginary parts, got the odd shape \(3, 3\)"):
        initializers.unitary()(KEY, (3, 3))
    with pytest.raises(ValueError, match=r"unitary initializes square matrices, got the shape \(2, 4\)"):
        initializers.unitary()(KEY, (2, 4))


def test_unit_forget_is_one_for_a_forget_gate_and_nothing_else():
    for gates in GATES.values():
        expected = np.repeat([float(gate == "forget") for gate in gates], 5)
        np.testing.assert_array_equal(initializers.unit_forget()(KEY, gates, 5), expected)


def test_input_weights_are_glorot_of_each_gate():
    """The limit counts one gate, sqrt(6 / (D + H)), and not all of them."""
    w = np.asarray(cells.lstm(50).init(KEY, 30)["w_x"])
    limit = np.sqrt(6 / (30 + 50))
    for block in np.split(w, 4, axis=1):
        assert 0.95 * limit < np.abs(block).max() <= limit
        assert abs(block.std() - limit / np.sqrt(3)) < 0.03 * limit


@pytest.mark.parametrize("make", GATES)
def test_a_named_bias_goes_to_its_gate_and_to_no_other(make):
    for position, gate in enumerate(GATES[make]):
        bias = initializers.gate_bias(**{gate: 2.5})
        found = np.asarray(make(3, b=bias).init(KEY, 2)["b"]).reshape(len(GATES[make]), 3)
        expected = np.zeros_like(found)
        expected[position] = 2.5
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("make", "keeps", "keeping"), [(cells.lstm, 1, "forget"), (cells.gru, 1, "update")])
def test_a_large_bias_of_the_gate_that_keeps_really_keeps_the_carry(make, keeps, keeping):
    cell = make(4, b=initializers.gate_bias(**{keeping: 30.0}))
    params = cell.init(KEY, 2)
    start = cell.initial_carry(params, (1,))
    carry, _ = cell.step(params, jax.tree.map(lambda leaf: leaf + 0.5, start), jnp.zeros((1, 2)))
    kept = jax.tree.leaves(carry)[-1]
    zero = {**params, "b": 0 * params["b"]}
    moved = jax.tree.leaves(cell.step(zero, jax.tree.map(lambda leaf: leaf + 0.5, start), jnp.zeros((1, 2)))[0])[-1]
    written = kept - 0.5 if make is cells.gru else jnp.zeros(())
    np.testing.assert_allclose(written, 0, atol=1e-6)
    assert np.abs(kept - moved).max() > 0.05


@pytest.mark.parametrize(("make", "named"), [(cells.gru, "forget"), (cells.rnn, "update"), (cells.lstm, "reset")])
def test_a_bias_of_a_gate_that_is_not_there_is_refused(make, named):
    with pytest.raises(ValueError, match=rf"gate_bias names \['{named}'\], but the gates are \['"):
        make(4, b=initializers.gate_bias(**{named: 1.0})).init(KEY, 3)


def test_chrono_is_the_logarithm_of_a_uniform_draw():
    hidden, t_max = 4000, 200.0
    b = np.asarray(cells.lstm(hidden, w_h=initializers.zeros, b=initializers.chrono(t_max)).init(KEY, 1)["b"])
    i, f, g, o = np.split(b, 4)
    np.testing.assert_array_equal(i, -f)
    assert not np.any([g, o])
    times = (np.exp(f.astype(np.float64)) - 1) / (t_max - 2)
    # Kolmogorov-Smirnov distance to U(0, 1); 1.63 / sqrt(n) is passed once in a hundred keys.
    distance = np.abs(np.sort(times) - (np.arange(hidden) + 0.5) / hidden).max()
    assert distance < 1.63 / np.sqrt(hidden)


@pytest.mark.parametrize(
    ("make", "gate", "sign"),
    [(cells.gru, "update", 1), (cells.gru_reset_before, "update", 1), (cells.min_gru, "input", -1)],
)
def test_chrono_of_other_cells_sets_the_gate_that_keeps_or_writes(make, gate, sign):
    b = np.asarray(make(50, b=initializers.chrono(100.0)).init(KEY, 1)["b"]).reshape(-1, 50)
    position = GATES[make].index(gate)
    assert np.all(sign * b[position] >= 0)
    assert np.abs(b[position]).max() > 3
    assert not np.delete(b, position, axis=0).any()


def test_chrono_units_keep_a_state_for_as_long_as_they_were_drawn_for():
    """With the bias log(T - 1), a forget gate without input is 1 - 1 / T: its memory is T steps."""
    b = initializers.chrono(50.0)(KEY, ("forget",), 100, jnp.float32)
    memory = 1 / (1 - jax.nn.sigmoid(b))
    assert float(memory.min()) >= 2
    assert float(memory.max()) <= 50 + 1e-3


@pytest.mark.parametrize("t_max", [2, 0, -5.0, float("nan")])
def test_chrono_needs_a_time(t_max):
    with pytest.raises(ValueError, match=f"chrono needs t_max > 2 steps, got {t_max}"):
        initializers.chrono(t_max)


def test_chrono_needs_a_gate():
    with pytest.raises(
        ValueError, match=r"chrono sets the gates \['forget', 'input', 'update'\], but .* \['candidate'\]"
    ):
        cells.rnn(4, b=initializers.chrono(10.0)).init(KEY, 3)


def test_identity():
    w = cells.rnn(5, jax.nn.relu, w_h=initializers.identity(0.5)).init(KEY, 3)["w_h"]
    np.testing.assert_array_equal(w, 0.5 * np.eye(5))
    with pytest.raises(ValueError, match=r"identity initializes square matrices, got the shape \(3, 5\)"):
        cells.rnn(5, w_x=initializers.identity()).init(KEY, 3)


def test_uniform_is_bounded_by_the_number_of_units():
    params = cells.lstm(64, w_x=initializers.uniform(2.0), w_h=initializers.uniform()).init(KEY, 9)
    for name, bound in [("w_x", 2 / 8), ("w_h", 1 / 8)]:
        assert 0.99 * bound < float(jnp.abs(params[name]).max()) <= bound
        assert abs(float(params[name].mean())) < 0.05 * bound


@pytest.mark.parametrize("make", GATES)
def test_seeds(make):
    one, same, other = (make(4, b=initializers.gate_bias()).init(jax.random.key(seed), 3) for seed in (0, 0, 1))
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
    assert not np.any(one["w_x"] == other["w_x"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_narrow_weights_are_the_float32_draw_rounded(dtype):
    narrow, wide = (cells.gru(4, dtype=d).init(KEY, 3) for d in (dtype, jnp.float32))
    for name in wide:
        assert narrow[name].dtype == dtype
        np.testing.assert_array_equal(narrow[name], wide[name].astype(dtype))


def test_lanes_draw_orthogonal_matrices_one_after_the_other():
    """Two batched decompositions at the same time could wait for each other forever."""
    cell = cells.stack(cells.lstm(4), cells.gru(4))
    keys = jax.random.split(jax.random.key(0), 3)
    draw = jax.vmap(lambda key: cell.init(key, 2))
    decomposed = [e for e in equations(jax.make_jaxpr(draw)(keys).jaxpr) if e.primitive.name in ("qr", "geqrf")]
    assert decomposed
    assert {e.invars[0].aval.shape for e in decomposed} == {(4, 4)}
    for lane, single in zip(jax.tree.leaves(draw(keys)), jax.tree.leaves(cell.init(keys[1], 2)), strict=True):
        # Batched and single, a decomposition may be compiled with other roundings.
        np.testing.assert_allclose(lane[1], single, rtol=1e-5, atol=1e-6)


def eigenvalues(w):
    return np.linalg.eigvals(np.asarray(w, np.float64))


def test_critical_is_normal_with_a_variance_of_one_over_the_rows():
    w = np.asarray(initializers.critical(1.5)(KEY, (100, 40)))
    assert w.std() == pytest.approx(1.5 / 10, rel=0.05)
    assert np.abs(w).max() > 3 * w.std()


def test_sparse_connects_every_unit_to_as_many_others():
    w = np.asarray(initializers.sparse(5, 2.0)(KEY, (40, 200)))
    np.testing.assert_array_equal((w != 0).sum(0), np.full(200, 5))
    # Which ones is drawn: every row is read by 25 of 200 units, give or take.
    assert 8 < (w != 0).sum(1).min() < (w != 0).sum(1).max() < 45
    assert w[w != 0].std() == pytest.approx(2, rel=0.1)
    for k in (41, 0):
        with pytest.raises(ValueError, match=f"sparse takes between 1 and all 40 rows for each unit, got k = {k}"):
            initializers.sparse(k)(KEY, (40, 200))


@pytest.mark.parametrize("init", [initializers.critical(3.0), initializers.sparse(6), initializers.orthogonal(7.0)])
def test_spectral_radius(init):
    draw = initializers.spectral_radius(0.8, init)

    @compiled
    def run(keys):
        return jax.vmap(lambda key: draw(key, (25, 25)))(keys), draw(keys[1], (25, 25))

    lanes, single = run(jax.random.split(KEY, 3))
    for w in lanes:
        assert np.abs(eigenvalues(w)).max() == pytest.approx(0.8, rel=1e-4)
    np.testing.assert_allclose(lanes[1], single, rtol=1e-4, atol=1e-6)


def test_spectral_radius_of_matrices_that_have_none_to_scale():
    def shift(key, shape, dtype=jnp.float32):
        return jnp.eye(shape[0], k=1, dtype=dtype)

    np.testing.assert_array_equal(initializers.spectral_radius(0.8, shift)(KEY, (4, 4)), np.eye(4, k=1))
    np.testing.assert_array_equal(initializers.spectral_radius(0.8, initializers.zeros)(KEY, (4, 4)), np.zeros((4, 4)))


def test_np_rnn_is_positive_definite_with_largest_eigenvalue_one():
    cell = cells.rnn(60, jax.nn.relu, w_h=initializers.np_rnn())
    w = np.asarray(compiled(lambda key: cell.init(key, 3))(KEY)["w_h"])
    np.testing.assert_array_equal(w, w.T)
    values = np.linalg.eigvalsh(w.astype(np.float64))
    assert values.max() == pytest.approx(1, rel=1e-5)
    # Before it is scaled the spectrum reaches from 1 to 1 + 4 (Marchenko and Pastur).
    assert values.min() == pytest.approx(1 / 5, rel=0.2)


@pytest.mark.parametrize("name", ["spectral_radius", "np_rnn", "rotations"])
def test_what_needs_a_square_matrix_says_so(name):
    with pytest.raises(ValueError, match=rf"{name} initializes square matrices, got the shape \(3, 5\)"):
        getattr(initializers, name)()(KEY, (3, 5))


def test_jointly_draws_all_gates_at_once():
    found = cells.lstm(4, w_h=initializers.jointly(initializers.orthogonal(2.0)), dtype=jnp.float16).init(KEY, 3)["w_h"]
    assert found.shape == (4, 16)
    assert found.dtype == jnp.float16
    np.testing.assert_allclose(found.astype(np.float32) @ found.astype(np.float32).T, 4 * np.eye(4), atol=0.02)
    assert initializers.jointly(initializers.zeros)(KEY, (2, 3)).shape == (2, 3)


def test_uniform_bias():
    b = np.asarray(cells.gru(400, w_h=initializers.zeros, b=initializers.uniform_bias(0.5)).init(KEY, 1)["b"])
    bound = 0.5 / 20
    assert 0.99 * bound < np.abs(b).max() <= bound
    assert b.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert len(np.unique(b)) > 1000


def test_uniform_gates_start_anywhere_between_closed_and_open():
    hidden = 2000
    b = np.asarray(cells.lstm(hidden, w_h=initializers.zeros, b=initializers.uniform_gate()).init(KEY, 1)["b"])
    i, f, g, o = np.split(b, 4)
    np.testing.assert_array_equal(i, -f)
    assert not np.any([g, o])
    activations = np.sort(1 / (1 + np.exp(-f.astype(np.float64))))
    assert 0.999 / hidden < activations[0] < activations[-1] < 1 - 0.999 / hidden
    distance = np.abs(activations - (np.arange(hidden) + 0.5) / hidden).max()
    assert distance < 1.63 / np.sqrt(hidden)


def test_uniform_gates_need_units_and_gates():
    with pytest.raises(ValueError, match=r"uniform_gate draws from .* needs H > 1 units, got 1"):
        cells.lstm(1, b=initializers.uniform_gate()).init(KEY, 3)
    with pytest.raises(ValueError, match=r"uniform_gate sets the gates .*, but the gates are \['candidate'\]"):
        cells.rnn(4, b=initializers.uniform_gate()).init(KEY, 3)


def test_rotations_turn_pairs_of_units_by_angles_drawn_uniformly():
    w = np.asarray(initializers.rotations()(KEY, (2001, 2001)))
    np.testing.assert_array_equal(w, -w.T)
    angles = np.diag(w, 1)[::2]
    # All that is not 0 are these, so that the last unit, which has no partner, stands still.
    assert (np.count_nonzero(w), np.count_nonzero(angles), angles.shape) == (2000, 1000, (1000,))
    distance = np.abs(np.sort(angles) / (2 * np.pi) + 0.5 - (np.arange(1000) + 0.5) / 1000).max()
    assert distance < 1.63 / np.sqrt(1000)
    few = np.diag(np.asarray(initializers.rotations(0, np.pi / 2)(KEY, (400, 400))), 1)[::2]
    assert 0 <= few.min() < 0.05
    assert np.pi / 2 - 0.05 < few.max() <= np.pi / 2


def test_rotations_need_a_range():
    with pytest.raises(ValueError, match=r"rotations draws angles between low < high, got 1.0 and 1.0"):
        initializers.rotations(1.0, 1.0)
