"""Where may dropout go in a recurrent network, and why must its mask last a whole sequence?

Dropout of the input, of the recurrent product, of both or of the output, one mask per sequence (Gal & Ghahramani 2016,
arXiv 1512.05287); a mask per gate, as in Keras; of the candidate (Semeniuta, Severyn & Barth 2016, arXiv 1603.05118);
of the recurrent weights (Merity, Keskar & Socher 2017, arXiv 1708.02182); zoneout (Krueger et al. 2016, arXiv
1606.01305); against none, and against the mistake of a new mask at every step. Trained by full BPTT on whole sequences,
evaluated without noise.

Tasks: "temperature" (Jena, 24 hours ahead, see `experiments.temperature`), "chorales" (the next chord), "words" (the
next word of a part of Penn Treebank), each generated without --data_dir; and "adding", where every sequence is new, so
that nothing can be memorized.

    python -m experiments.recurrent_dropout --where=recurrent --dropout=0.25 --data_dir=DIR
    python launch.py --experiment=recurrent_dropout --data_dir=DIR

Measured on chorales, at the best rates: one mask per sequence lowers the test loss of an LSTM by 0.20 ± 0.06 nats per
step, a mask per step by 0.03 ± 0.05 (docs/results.md).
"""

import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.harness import command, supervised
from experiments.harness.comparison import paired, validation
from experiments.harness.experiment import Experiment
from experiments.harness.flags import training_flags
from experiments.harness.plots import interval_rows
from experiments.harness.report import Section, curve, evaluation_lines, groups, mean, separate
from experiments.harness.task import Task
from experiments.shared import tasks
from seqjax import cells, initializers, noise, regularizers
from seqjax.arrays import Params
from seqjax.core import Cell, open_const
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

tasks.define(FLAGS, "temperature", ("temperature", "chorales", "words", "adding"), length=120)
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
synthetic_data = tasks.synthetic_data


def model(config: SimpleNamespace, task: Task) -> supervised.Model:
    """The cell with a head; a training batch sees it through the noise of --where."""
    place, cell = WHERE[config.where], getattr(cells, config.model)(config.units)
    whole, features = with_head(cell, task.outputs), task.features or config.units
    masks = {"gates": GATES[config.model]} if config.where == "per_gate" else {}

    def init(hparams, key):
        params = whole.init(key, features)
        if task.tokens:
            # Outside of the cell, so that dropout of the input drops features of an embedding.
            table = initializers.normal(features**-0.5)
            params["embedding"] = table(jax.random.fold_in(key, 1), (task.tokens, features), jnp.float32)
        return params

    def outputs(hparams, params, xs, key):
        rate, noisy, inputs = hparams["dropout"], cell, xs
        if task.tokens:
            inputs = params["embedding"][xs]
            params = {name: leaf for name, leaf in params.items() if name != "embedding"}
        if key is None:
            evaluated = whole if place.evaluation is None else with_head(place.evaluation(cell, rate), task.outputs)
            return unroll(evaluated, params, None, inputs)[1]
        if place.weights:
            params = place.weights(key, params, rate)
        carry = cell.initial_carry(params["cell"], inputs.shape[1:2])
        for regularizer in place.regularizers:
            key, k_noise = jax.random.split(key)
            noisy, sample = regularizer(noisy, rate, **masks)
            inputs = (inputs, sample(k_noise, carry, inputs))
        return unroll(with_head(noisy, task.outputs), params, None, inputs)[1]

    return supervised.Model(init, outputs)


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


SWEEP = f"where={','.join(WHERE)};dropout=0.2,0.4,0.6;learning_rate=3e-3,1e-2;seed=0:5"


def report(runs: list[Run]) -> list[Section]:
    """What each place is worth at its best rate, the gap between training and validation, what the masks look like."""
    sections = []
    for kind, members in groups(runs, ("task", "model")).items():
        places = groups(members, ("where",))
        rated = {name.removeprefix("where="): _best_rate(found) for name, found in places.items()}
        sections += [_gains(kind, members, rated), _gap(kind, rated)]
    return [*sections, Section("Masks", _MASKS, _masks(max(float(run.flags["dropout"]) for run in runs)))]


def _best_rate(runs: list[Run]) -> list[Run]:
    """The runs at the rate of dropout with the lowest mean validation score."""
    return min(groups(runs, ("dropout",)).values(), key=lambda found: np.mean([validation(run) for run in found]))


def _gains(kind: str, runs: list[Run], rated: dict[str, list[Run]]) -> Section:
    """The test score against the rate, and at the best rate less that without dropout, seed by seed."""
    columns = [name for name in runs[0].result() if name.startswith("test_")]
    score = columns[-1]
    references = [name for name in ("none", "recurrent") if name in rated]
    heads = [part for name in columns for part in (name, *(f"less {other}" for other in references))]
    figures, (gains, by_rate) = separate("gain", "rate")
    table: list[list[Any]] = [["where", "rate", "runs", *heads]]
    rows = {}
    for where, found in rated.items():
        row: list[Any] = [where, None if where == "none" else found[0].flags["dropout"], len(found)]
        differences = {other: paired(found, rated[other], columns) for other in references if other != where}
        for name in columns:
            row.append(mean([run.result()[name] for run in found]))
            row += [mean(differences[other][name]) if other in differences else None for other in references]
        table.append(row)
        if "none" in differences:
            rows[f"{where}, {row[1]:g}"] = differences["none"][score]
    interval_rows(gains, rows)
    gains.axvline(0, color="0.4", linewidth=1)
    gains.set_xlabel(f"{score.replace('_', ' ')} less that without dropout")
    for index, (where, found) in enumerate(groups(runs, ("where",)).items()):
        by = {members[0].flags["dropout"]: members for members in groups(found, ("dropout",)).values()}
        values = [[run.result()[score] for run in by[rate]] for rate in sorted(by)]
        curve(by_rate, where.removeprefix("where="), sorted(by), values, index)
    by_rate.set(xlabel="rate of dropout", ylabel=score.replace("_", " "))
    text = (
        "Each place at its rate of the lowest validation loss, and its learning rate likewise. A difference is between "
        "runs with the same seed: to those without dropout, and to those that drop the recurrent product, one mask per "
        "sequence. Below 0, dropout helps."
    )
    return Section(f"Which place is worth what, {kind}", text, figures, table)


def _gap(kind: str, rated: dict[str, list[Run]]) -> Section:
    figures, axes = separate("training", "validation")
    for axis, name in zip(axes, ("training_loss", "loss"), strict=True):
        for index, (where, members) in enumerate(rated.items()):
            evaluation_lines(axis, where, members, name, index)
    axes[0].set(ylabel="training loss, without noise", xlabel="updates")
    axes[1].set(ylabel="validation loss", xlabel="updates")
    text = (
        "A line is a run. Both losses are those of the bare cell. Where the training loss keeps falling and the "
        "validation loss does not, the network memorizes the training data, and dropout should help. On the "
        "adding problem every sequence is new, and there is no such gap."
    )
    columns = ("last_validation_loss", "last_gap")
    table = [["where", *columns]]
    table += [
        [where, *(mean([run.result()[name] for run in found]) for name in columns)] for where, found in rated.items()
    ]
    return Section(f"The gap, {kind}", text, figures, table)


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
