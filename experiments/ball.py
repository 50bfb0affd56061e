"""Where does the ball go next? Without its past that is a guess; with it, it is known.

A ball flies in a box with elastic walls. From the places where it was observed, where will it be in the next frame?
Each ball has its own speed, between 3 and 10 % of the box per frame. --gravity pulls it down; --noise is the standard
deviation of an observation around the true place, which is always the target.

    last             the last observed place
    line             straight on from the last two places, through the walls
    one, two         Dense(64, relu) on the last place, or on the last two
    rnn, gru, lstm   64 units, reading place by place

With --input=frames the networks see pictures of 16 x 16 pixels instead of two coordinates.

    python -m experiments.ball --model=gru
    python launch.py --experiment=ball                     all models, without noise and with it, three seeds

Measured without noise: the mean distance to the next place is 0.46 ± 0.04 % of the box for gru, 6.20 ± 0.00 % for one
(docs/results.md).
"""

import sys
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment, Hparams
from experiments.harness.flags import training_flags
from experiments.harness.report import COLORS, Section, curve, groups, intervals, panels, save, separate
from seqjax import cells
from seqjax.arrays import Array, Key, Params
from seqjax.data import motion
from seqjax.models.tracker import Tracker
from seqjax.train import Run, State, read_arrays, write_arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = training_flags(
    steps=3000, steps_per_call=300, evaluate_every=600, checkpoint_every=1500, batch_size=64, learning_rate=3e-3,
    schedule="cosine",
)  # fmt: skip
MODELS = ("last", "line", "one", "two", "rnn", "gru", "lstm")
MEMORIES = {"rnn": cells.rnn, "gru": cells.gru, "lstm": cells.lstm}
# Displacements are predicted in units of this, so that a learning rate means the same everywhere.
SPEED = 0.05
RADIUS = 0.1
# Pixels of a side of a picture.
PIXELS = 16
HELD_OUT = 2048
# Frames after which errors at walls and in free flight are told apart: before, what is not yet known outweighs both.
KNOWN = 5

flags.DEFINE_enum("model", "gru", MODELS, "Which model.", flag_values=FLAGS)
flags.DEFINE_enum("input", "places", ["places", "frames"], "What the nets see.", flag_values=FLAGS)
flags.DEFINE_integer("units", 64, "Units of the network.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("length", 40, "Frames that are seen.", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_float("noise", 0.0, "Standard deviation of a seen place, in sides of the box.", 0, flag_values=FLAGS)
flags.DEFINE_float("gravity", 0.0, "Pull downwards, in sides of the box a frame².", 0, flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate", "noise", "gravity")


class Balls(NamedTuple):
    """Observations of balls, and their targets.

    Attributes:
      seen: float32 [T, B, 2].
      path: `motion.Path` of T + 1 frames; the next place of frame t is `path.positions[t + 1]`.
    """

    seen: Array
    path: motion.Path


def draw(config: SimpleNamespace, hparams: Hparams, key: Key, count: int) -> Balls:
    """`count` balls."""
    k_path, k_noise = jax.random.split(key)
    path = motion.ball(k_path, count, config.length + 1, gravity=hparams["gravity"], radius=RADIUS)
    places = path.positions[:-1]
    return Balls(places + hparams["noise"] * jax.random.normal(k_noise, places.shape), path)


def model(config: SimpleNamespace) -> supervised.Model:
    """The next places [T, B, 2] from the seen ones [T, B, 2]."""
    if config.model in ("last", "line"):

        def straight(hparams, params, seen, key):
            before = jnp.concatenate([seen[:1], seen[:-1]])
            return 2 * seen - before if config.model == "line" else seen

        return supervised.Model(lambda hparams, key: {}, straight)

    frames = config.input == "frames"

    def make(hparams, rngs):
        memory = MEMORIES[config.model](config.units) if config.model in MEMORIES else MODELS.index(config.model) - 1
        return Tracker(memory, PIXELS**2 if frames else 2, 2, hidden=config.units, rngs=rngs)

    init, network = supervised.functional(make)

    def outputs(hparams, params, seen, key):
        xs = motion.blobs(seen, PIXELS, RADIUS).reshape(*seen.shape[:2], -1) if frames else (seen - 0.5) * 4
        predicted = jnp.swapaxes(network(hparams, params, key)(jnp.swapaxes(xs, 0, 1)), 0, 1)
        # A picture does not tell the place as a number, to which a displacement could be added.
        return 0.5 + predicted / 4 if frames else seen + SPEED * predicted

    return supervised.Model(init, outputs)


def _distance(forecasts: Array, balls: Balls) -> Array:
    """[T, B], in per cent of the side of the box."""
    return 100 * jnp.sqrt(jnp.square(forecasts - balls.path.positions[1:]).sum(-1))


def build(config: SimpleNamespace) -> Experiment:
    """Squared error of the next place; the best params have the smallest distance on the validation balls."""
    forecaster = model(config)
    keys = dict(zip(("validation", "test"), jax.random.split(jax.random.key(20_150_216)), strict=True))

    def gradient(hparams, data, params, step, k_data, k_noise):
        balls = draw(config, hparams, jax.random.fold_in(k_data, step), config.batch_size)

        def loss(params):
            error = forecaster.outputs(hparams, params, balls.seen, k_noise) - balls.path.positions[1:]
            return jnp.square(error / SPEED).sum(-1).mean()

        return jax.value_and_grad(loss)(params)

    def evaluate(hparams, data, params):
        balls = draw(config, hparams, data["validation"], HELD_OUT)
        return {"distance": _distance(forecaster.outputs(hparams, params, balls.seen, None), balls).mean()}

    program = supervised.program(config, forecaster.init, gradient, evaluate, keys, monitor="distance")
    return Experiment(program, partial(_finish, config, forecaster, keys["test"]))


def roll_out(forecaster: supervised.Model, hparams: Hparams, params: Params, seen: Array, given: int):
    """Places [T, B, 2]: the first `given` as they were seen, the others the model's own forecasts, fed back."""

    def forward(t, places):
        return places.at[t].set(forecaster.outputs(hparams, params, places, None)[t - 1])

    return jax.lax.fori_loop(given, len(seen), forward, seen)


def _hits(path: motion.Path, gravity: float) -> np.ndarray:
    """Whether there is a wall between a frame and the next, bool [T, B]."""
    ahead = path.positions[:-1] + path.velocities[:-1] - np.array([0, gravity / 2])
    return np.any(np.abs(ahead - 0.5) > 0.5 - RADIUS, axis=-1)


def _where(hits: np.ndarray) -> dict[str, np.ndarray]:
    return {"free": ~hits, "wall": hits}


def _finish(
    config: SimpleNamespace, forecaster: supervised.Model, key: Key, hparams: Hparams, state: State, run: Run
) -> dict[str, Any]:
    """Test distances of all frames; of those after the first `KNOWN`, where a wall is hit and where not; a figure."""

    @jax.jit
    def test(params, key):
        balls = draw(config, hparams, key, HELD_OUT)
        forecasts = forecaster.outputs(hparams, params, balls.seen, None)
        few = balls.seen[:, :4]
        return balls, forecasts, _distance(forecasts, balls), roll_out(forecaster, hparams, params, few, len(few) // 2)

    balls, forecasts, errors, ahead = jax.tree.map(np.asarray, test(state.best.params, key))
    hits = _hits(balls.path, float(hparams["gravity"]))
    write_arrays(run.directory / "errors.npz", errors=errors, hits=hits)
    save(_figure(config, balls, forecasts, errors, hits, ahead), run.figures / "balls")
    return {
        "test_distance": float(errors.mean()),
        **{
            f"test_distance_{name}": float(errors[KNOWN:][at[KNOWN:]].mean())
            for name, at in _where(hits).items()
            if at[KNOWN:].any()
        },
    }


def _figure(
    config: SimpleNamespace,
    balls: Balls,
    forecasts: np.ndarray,
    errors: np.ndarray,
    hits: np.ndarray,
    ahead: np.ndarray,
) -> "Figure":
    """Forecasts (crosses), a roll-out of them, and the error against the number of frames seen."""
    figure, axes = panels(1, 4, width=3.4, height=3.4)
    first, one, far, time = axes[0]
    places, given = balls.path.positions, len(ahead) // 2
    for panel, frame in ((first, 0), (one, given // 2 - 1)):
        for i in range(6):
            panel.plot(*places[: frame + 1, i].T, color="0.8", linewidth=1)
            panel.annotate("", places[frame + 1, i], places[frame, i], arrowprops={"arrowstyle": "->", "color": "0.3"})
            panel.plot(*forecasts[frame, i], "x", color=COLORS[1], markersize=6)
        panel.set_title(f"frames seen: {frame + 1}; where to?")
    for i in range(ahead.shape[1]):
        far.plot(*places[:given, i].T, color="0.8", linewidth=1)
        far.plot(*places[given - 1 : -1, i].T, color="0.3", linewidth=1)
        far.plot(*ahead[given:, i].T, "x", color=COLORS[i], markersize=4)
    far.set_title(f"{len(ahead) - given} frames ahead")
    for panel in (first, one, far):
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        panel.axis("off")
        panel.add_patch(_box())
    for index, (name, at) in enumerate(_where(hits).items()):
        label = {"free": "in free flight", "wall": "a wall is hit"}[name]
        time.plot(np.arange(1, len(errors) + 1), _by_time(errors, at), color=COLORS[index], label=label)
    time.set(xlabel="frames seen", ylabel="distance to the next place, %", ylim=(0, None))
    time.legend()
    return figure


def _box():
    from matplotlib.patches import Rectangle

    return Rectangle((RADIUS, RADIUS), 1 - 2 * RADIUS, 1 - 2 * RADIUS, fill=False, linewidth=0.8)


def _by_time(errors: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The mean of [T, B] at each frame, where `at` is true."""
    return (errors * at).sum(1) / np.maximum(at.sum(1), 1)


SWEEP = f"model={','.join(MODELS)};noise=0.0,0.02;seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """The test distance of each model, by what was seen before and where; a figure for each amount of noise."""
    text = "Mean distance between the forecast and where the ball is in the next frame, in per cent of the box."
    by_noise = groups(runs, ["noise"])
    return [
        Section("Balls", text, [figure for noise, members in by_noise.items() for figure in _compared(noise, members)])
    ]


def _compared(noise: str, runs: list[Run]) -> "list[Figure]":
    figures, axes = separate(noise, f"{noise}-free", f"{noise}-wall")
    by_label = groups(runs)
    intervals(axes[0], by_label, "test_distance", (0, np.inf))
    axes[0].set(xlabel="distance to the next place, %", title=noise, xlim=(0, None))
    for panel, name, title in ((axes[1], "free", "in free flight"), (axes[2], "wall", "a wall is hit")):
        for index, (label, members) in enumerate(by_label.items()):
            found = [read_arrays(run.directory / "errors.npz") for run in members]
            lines = np.stack([_by_time(one["errors"], _where(one["hits"])[name]) for one in found], axis=1)
            curve(panel, label, list(range(1, len(lines) + 1)), lines.tolist(), index)
        panel.set(xlabel="frames seen", ylabel="distance to the next place, %", title=title, yscale="log")
    return figures


if __name__ == "__main__":
    command.main(sys.modules[__name__])
