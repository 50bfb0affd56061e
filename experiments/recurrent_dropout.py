"""Where may dropout go in a recurrent network, and why must its mask last a whole sequence?

Dropout of the input, of the recurrent product, of both or of the output, one mask per sequence (Gal & Ghahramani 2016,
arXiv 1512.05287); a mask per gate, as in Keras; of the candidate (Semeniuta, Severyn & Barth 2016, arXiv 1603.05118);
of the recurrent weights (Merity, Keskar & Socher 2017, arXiv 1708.02182); zoneout (Krueger et al. 2016, arXiv
1606.01305); against none, and against the mistake of a new mask at every step. Trained by full BPTT on whole sequences,
evaluated without noise.

Tasks: "temperature" (Jena, 24 hours ahead, see `experiments.temperature`; without --data_dir on a generated record)
and "adding", where every sequence is new, so that nothing can be memorized.

    python -m experiments.recurrent_dropout --where=recurrent --dropout=0.25 --data_dir=DIR
    python launch.py --experiment=recurrent_dropout --data_dir=DIR

Measured on the hourly record: the gap between validation and training loss is 0.035 without dropout, -0.005 with one
mask per sequence, 0.028 with a mask per step (docs/results.md).
"""

import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment, without_data
from experiments.harness.flags import training_flags
from experiments.harness.report import Section, evaluation_lines, groups, separate, summary
from experiments.harness.task import Task
from experiments.shared import tasks
from seqjax import cells, noise, regularizers
from seqjax.arrays import Params
from seqjax.core import Cell, batch_shape, open_const
from seqjax.train import Run
from seqjax.unrolling import unroll
from seqjax.wrappers import with_head

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = training_flags(steps=1200, steps_per_call=100, evaluate_every=200, batch_size=128, learning_rate=5e-3)
# One mask per gate, of the product that all gates share.
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


class Place(NamedTuple):
    """Where noise goes in training, and what is evaluated in its place.

    Attributes:
      regularizers: of the cell, without its head: `(cell, rate) -> (cell, sample)`.
      weights: of the params, `(key, params, rate) -> params`.
      evaluation: `(cell, rate) -> cell`; None for the bare cell.
      models: those that it can be used with.
    """

    regularizers: tuple[Callable[[Cell, Any], tuple[Cell, Any]], ...] = ()
    weights: Callable[[Any, Params, Any], Params] | None = None
    evaluation: Callable[[Cell, Any], Cell] | None = None
    models: tuple[str, ...] = tuple(GATES)


per_step = partial(regularizers.recurrent_dropout, per_step=True)
WHERE = {
    "none": Place(),
    "input": Place((regularizers.input_dropout,)),
    "recurrent": Place((regularizers.recurrent_dropout,)),
    "both": Place((regularizers.recurrent_dropout, regularizers.input_dropout)),
    "per_gate": Place((regularizers.recurrent_dropout,), models=("lstm", "gru")),
    "candidate": Place((regularizers.candidate_dropout,), models=("lstm", "gru")),
    "output": Place((regularizers.output_dropout,)),
    "weights": Place(weights=regularizers.weight_drop),
    "zoneout": Place((noise.zoneout,), evaluation=noise.zoneout_mean),
    "per_step": Place((per_step,)),
}

tasks.define(FLAGS, "temperature", 120)
flags.DEFINE_enum("model", "lstm", ["rnn", "lstm", "gru"], "Which recurrent cell.", flag_values=FLAGS)
flags.DEFINE_integer("units", 32, "Units.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_enum("where", "recurrent", list(WHERE), "What is dropped.", flag_values=FLAGS)
flags.DEFINE_float("dropout", 0.25, "Probability of dropping a unit, in [0, 1).", lower_bound=0.0, flag_values=FLAGS)
flags.register_multi_flags_validator(
    ("model", "where"),
    lambda given: given["model"] in WHERE[given["where"]].models,
    "a simple RNN has no gates: --where=per_gate and --where=candidate are for --model=lstm and --model=gru",
    flag_values=FLAGS,
)
flags.register_validator("dropout", lambda rate: rate < 1, "a rate in [0, 1)", flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate", "dropout")
synthetic_data = without_data("record", task="temperature")


def model(config: SimpleNamespace, task: Task) -> supervised.Model:
    """The cell with a head; a training batch sees it through the noise of --where."""
    place, cell = WHERE[config.where], getattr(cells, config.model)(config.units)
    whole = with_head(cell, task.outputs)
    masks = {"gates": GATES[config.model]} if config.where == "per_gate" else {}

    def outputs(hparams, params, xs, key):
        rate, noisy, inputs = hparams["dropout"], cell, xs
        if key is None:
            evaluated = whole if place.evaluation is None else with_head(place.evaluation(cell, rate), task.outputs)
            return unroll(evaluated, params, None, xs)[1]
        if place.weights:
            params = place.weights(key, params, rate)
        carry = cell.initial_carry(params["cell"], batch_shape(xs))
        for regularizer in place.regularizers:
            key, k_noise = jax.random.split(key)
            noisy, sample = regularizer(noisy, rate, **masks)
            inputs = (inputs, sample(k_noise, carry, inputs))
        return unroll(with_head(noisy, task.outputs), params, None, inputs)[1]

    return supervised.Model(lambda hparams, key: whole.init(key, task.features), outputs)


def build(config: SimpleNamespace) -> Experiment:
    """Noisy cell in training, bare cell in evaluation."""
    task = tasks.make_task(config)
    trained = model(config, task)

    def finish(hparams, state, run):
        """Test scores of the best params, and the gap between the validation loss and the noiseless training loss."""
        last = [record for record in run.records() if record["split"] == "validation"][-1]
        return {
            **supervised.test_scores(task, trained, hparams, state.best.params),
            "last_validation_loss": last["loss"],
            "last_gap": last["loss"] - last["training_loss"],
        }

    return Experiment(supervised.task_program(config, task, trained), finish)


SWEEP = f"where={','.join(WHERE)};learning_rate=2e-3,5e-3,1e-2;seed=0:5"


def report(runs: list[Run]) -> list[Section]:
    """The gap between training and validation, and what the masks look like."""
    figures, axes = separate("training", "validation")
    for axis, name in zip(axes, ("training_loss", "loss"), strict=True):
        for index, (label, members) in enumerate(groups(runs).items()):
            evaluation_lines(axis, label, members, name, index)
    axes[0].set(ylabel="training loss, without noise", xlabel="updates")
    axes[1].set(ylabel="validation loss", xlabel="updates")
    columns = [name for name in runs[0].result() if name.startswith(("test_", "validation_", "last_"))]
    text = (
        "A line is a run. Both losses are those of the bare cell. Where the training loss keeps falling and the "
        "validation loss does not, the network memorizes the training years, and dropout should help. On the "
        "adding problem every sequence is new, and there is no such gap."
    )
    return [
        Section("The gap", text, figures, summary(runs, columns)),
        Section("Masks", _MASKS, _masks(max(float(run.flags["dropout"]) for run in runs))),
    ]


_MASKS = """White: dropped. With one mask a sequence a unit is there or not, at every step: the noise lasts. With a new
mask at each step every unit is hit sooner or later: the chance that what goes round through the recurrent product of
a unit comes through t steps is (1 - rate)^t, and what is left of the noise averages out."""


def _masks(rate: float) -> "list[Figure]":
    """The right and the wrong mask of one sequence, over 48 steps of 16 units."""
    steps, hidden = 48, 16
    carry, xs = jnp.zeros((1, hidden)), jnp.zeros((steps, 1, 1))
    figures, axes = separate("sequence", "step", height=2.2)
    for axis, regularizer, title in zip(
        axes,
        (regularizers.recurrent_dropout, per_step),
        ("one mask a sequence", "a new mask at each step (wrong)"),
        strict=True,
    ):
        _, sample = regularizer(cells.rnn(hidden), rate)
        mask = open_const(sample(jax.random.key(0), carry, xs)).reshape(-1, hidden)
        axis.imshow(jnp.broadcast_to(mask, (steps, hidden)).T > 0, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
        axis.set(title=title, xlabel="time step", ylabel="unit")
        axis.grid(visible=False)
    return figures


if __name__ == "__main__":
    command.main(sys.modules[__name__])
