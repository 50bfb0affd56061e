"""The ball: what the baselines say is known in closed form, and a memory is worth what it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_experiments import drawn, refused, run

from experiments import ball
from experiments.harness.experiment import define
from seqjax import cells
from seqjax.models.tracker import Tracker, Window, last
from seqjax.train import read_arrays

pytestmark = pytest.mark.usefixtures("quick_programs")


def test_a_window_sees_the_last_inputs_alone():
    xs = jnp.arange(10, dtype=jnp.float32).reshape(1, 5, 2)
    np.testing.assert_array_equal(last(xs, 1), xs)
    np.testing.assert_array_equal(last(xs, 3)[0, :, 0], [0, 0, 0, 2, 4])
    np.testing.assert_array_equal(last(xs, 3)[0, :, -2:], xs[0])
    window = Window(2, 2, 4, rngs=nnx.Rngs(0))
    changed = window(xs.at[0, 2].set(9.0)) != window(xs)
    assert changed.any(-1)[0].tolist() == [False, False, True, True, False]
    with pytest.raises(ValueError, match="Window sees the last count >= 1 inputs, got 0"):
        Window(0, 2, 4, rngs=nnx.Rngs(0))


def test_a_tracker_with_a_cell_sees_the_whole_past_and_nothing_of_the_future():
    tracker = Tracker(cells.gru(4), 2, 3, rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(0), (1, 5, 2))
    changed = tracker(xs.at[0, 2].set(9.0)) != tracker(xs)
    assert changed.shape == (1, 5, 3)
    assert changed.any(-1)[0].tolist() == [False, False, True, True, True]


def balls(noise=0.0, gravity=0.0, count=300):
    config = define(ball).parse({"length": 30})
    return ball.draw(config, {"noise": noise, "gravity": gravity}, jax.random.key(0), count)


def test_straight_on_is_wrong_only_at_walls():
    made = balls()
    line = ball.model(define(ball).parse({"model": "line"})).outputs({}, {}, made.seen, None)
    errors = np.asarray(ball._distance(line, made))
    hits = ball._hits(jax.tree.map(np.asarray, made.path), 0.0)
    known = np.pad(~hits[:-1], ((1, 0), (0, 0)))  # the place before was not beyond a wall either
    known[0] = False
    assert errors[known & ~hits].max() < 1e-3
    assert errors[known & hits].min() > 1e-3
    assert 0.03 < hits.mean() < 0.3
    # The last place is as far from the next as the ball is fast.
    still = ball.model(define(ball).parse({"model": "last"})).outputs({}, {}, made.seen, None)
    speeds = 100 * np.linalg.norm(made.path.velocities[:-1], axis=-1)
    np.testing.assert_allclose(np.asarray(ball._distance(still, made))[~hits], speeds[~hits], rtol=1e-2, atol=1e-3)


def test_noise_is_on_what_is_seen_and_not_on_what_is_wanted():
    clean, noisy = balls(), balls(noise=0.05)
    np.testing.assert_array_equal(clean.path.positions, noisy.path.positions)
    np.testing.assert_array_equal(clean.seen, clean.path.positions[:-1])
    assert float((noisy.seen - clean.seen).std()) == pytest.approx(0.05, rel=0.05)


def test_a_roll_out_reads_its_own_forecasts():
    made = balls(count=3)
    line = ball.model(define(ball).parse({"model": "line"}))
    ahead = ball.roll_out(line, {}, {}, made.seen[:8], 4)
    np.testing.assert_array_equal(ahead[:4], made.seen[:4])
    step = made.seen[3] - made.seen[2]
    np.testing.assert_allclose(ahead[7], made.seen[3] + 4 * step, atol=1e-5)


def learned(**flags):
    """Validation distance after some updates, in per cent of the box."""
    config = define(ball).parse({"length": 8, "learning_rate": 1e-2, **flags})
    program, hparams = ball.build(config).program, define(ball).hparams(config)

    @jax.jit
    def train(state):
        return jax.lax.fori_loop(0, config.steps, lambda _, s: program.update(hparams, program.data, s)[0], state)

    return float(program.evaluate(hparams, program.data, train(program.init(hparams)))["distance"])


def test_a_memory_knows_what_one_place_does_not(monkeypatch):
    monkeypatch.setattr(ball, "HELD_OUT", 256)
    distance = learned(model="gru", units=32, batch_size=32, steps=300)
    assert distance < 4  # a ball flies 6.5 % of the box in a frame


SMALL = ("--batch_size=4", "--units=3", "--length=8", "--gravity=0.003", "--noise=0.01")


@pytest.mark.parametrize(
    ("model", "places", "frames"),
    [
        ("last", 0, 0),
        ("line", 0, 0),
        ("one", 9 + 8, 256 * 3 + 3 + 8),
        ("two", 15 + 8, 512 * 3 + 3 + 8),
        ("rnn", 3 * 6 + 8, 3 * 260 + 8),
        ("gru", 3 * 3 * 6 + 3 + 8, 3 * 3 * 260 + 3 + 8),
        ("lstm", 4 * 3 * 6 + 8, 4 * 3 * 260 + 8),
    ],
)
def test_ball_models(model, places, frames):
    """Every model has its weights and can be trained: all but the compiler's part of a run."""
    for seen, weights in (("places", places), ("frames", frames)):
        config = define(ball).parse([f"--model={model}", f"--input={seen}", *SMALL])
        program, hparams = ball.build(config).program, define(ball).hparams(config)
        state = jax.eval_shape(program.init, hparams)
        assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)) == weights
        after, _ = jax.eval_shape(program.update, hparams, program.data, state)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_ball(tmp_path, monkeypatch):
    monkeypatch.setattr(ball, "HELD_OUT", 32)
    finished = run("ball", tmp_path / "run", "--model=two", "--input=frames", *SMALL)
    saved, result = read_arrays(finished.directory / "errors.npz"), finished.result()
    assert saved["errors"].shape == saved["hits"].shape == (8, 32)
    assert result["test_distance"] == pytest.approx(saved["errors"].mean(), rel=1e-5)
    assert result["test_distance_wall"] == pytest.approx(saved["errors"][5:][saved["hits"][5:]].mean(), rel=1e-5)
    assert (finished.figures / "balls.png").stat().st_size > 10_000
    assert [section.title for section in drawn(ball, [finished])] == ["Balls"]


def test_few_frames_have_no_error_of_later_ones(tmp_path, monkeypatch):
    """A result that is not a number would end the run after all of its training."""
    monkeypatch.setattr(ball, "HELD_OUT", 20)
    result = run("ball", tmp_path / "run", "--model=last", "--length=5").result()
    assert {name for name in result if name.startswith("test_")} == {"test_distance"}


def test_ball_refuses():
    assert "is not a non-negative number" in refused("ball", "--noise=-1")
    assert "value should be one of <last|line|one|two|" in refused("ball", "--model=three")
