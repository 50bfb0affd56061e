"""Distributions, positions and seeds of initial weights and biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agree import equations

from seqjax import cells, initializers

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
        np.testing.assert_array_equal(lane[1], single)
