"""How far back does the gradient of each cell reach, before and after training?

Through a recurrence a gradient tends to vanish (Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013, arXiv
1211.5063). Every cell of seqjax.cells but conv_lstm, which reads images, recalls a symbol that it saw --lag steps ago:
its own initialization, an embedding as wide as the cell, Adam, whole sequences. Measured is the norm of the gradient of
the last step's loss by the carry at each step, over all leaves of the carry (an LSTM's h and c together, a matrix
memory as one vector) and the batch. Its ratio to that at lag 0 depends on the coordinates of a carry, so small
differences between cells mean little. The half-life is the lag at which it first is below half of that at lag 0.

    python -m experiments.memory --model=gru
    python launch.py --experiment=memory        all cells

Measured, 32 cells, lag 20: of the 21 whose gradient at the longest lag starts above 0.005 of that at lag 0, 19 reach an
accuracy of 1.00, and of the other 11 only 3; rank correlation 0.67, 0.38 to 0.84 (docs/results.md).
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.harness import command, supervised
from experiments.harness.comparison import rank_correlation
from experiments.harness.experiment import Experiment
from experiments.harness.flags import training_flags
from experiments.harness.plots import named_points
from experiments.harness.report import Mean, Section, groups, mean, panels, varying
from experiments.harness.task import Task
from experiments.shared import tasks
from seqjax import cells
from seqjax.arrays import Array, Params
from seqjax.core import Cell, batch_shape
from seqjax.diagnostics import gradient_against_lag
from seqjax.train import Run, read_arrays, write_arrays
from seqjax.wrappers import with_embedding, with_head

FLAGS = training_flags(steps=300, steps_per_call=100, evaluate_every=100, batch_size=32, learning_rate=3e-3)
# All are `units` wide; where the memory is a matrix, the carry has units^2 / 2 numbers.
CELLS: dict[str, Callable[[int], Cell]] = {
    name: getattr(cells, name) for name in cells.__all__ if name[0].islower() and name not in ("stack", "conv_lstm")
} | {
    "delta_net": lambda units: cells.delta_net(2, units // 2, units // 2),
    "gated_linear_attention": lambda units: cells.gated_linear_attention(2, units // 2, units // 2),
    "mlstm": lambda units: cells.mlstm(2, units // 2, units // 2),
    "projected_lstm": lambda units: cells.projected_lstm(units, units // 2),
    "rg_lru": lambda units: cells.rg_lru(),  # as wide as its input
    "s4d": lambda units: cells.s4d(units // 4),
}

flags.DEFINE_enum("model", "lstm", list(CELLS), "Which cell.", flag_values=FLAGS)
flags.DEFINE_integer("lag", 20, "Time steps from symbol to query.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("units", 32, "Units.", lower_bound=1, flag_values=FLAGS)
# Some cells have two heads of half as many keys, or a quarter as many states.
flags.register_validator("units", lambda units: units % 4 == 0, "must be a multiple of 4", flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate")


def network(config: SimpleNamespace, task: Task) -> Cell:
    """The cell between an embedding, as wide as itself, and a head."""
    cell = CELLS[config.model](config.units)
    return with_head(with_embedding(cell, task.tokens, config.units), task.outputs)


def gradient_by_lag(task: Task, cell: Cell, params: Params) -> Array:
    """The gradient of the last step's loss at each carry [T], by lag, on one batch that is the same in all runs."""
    batch = task.train(task.data, jax.random.key(7), jnp.int32(0))

    def loss(ys):
        return task.losses(ys[-1], batch.targets[-1]).mean()

    carry = cell.initial_carry(params, batch_shape(batch.xs))
    return gradient_against_lag(cell, params, carry, batch.xs, loss)[::-1]


def relative_log10(norms: np.ndarray) -> np.ndarray:
    """log10 of norms by lag [T] over that at lag 0; a norm may be 0 in float32."""
    norms = np.maximum(norms.astype(np.float64), 1e-38)
    return np.maximum(np.log10(norms / norms[0]), -38)


def half_life(norms: np.ndarray) -> int:
    """The lag at which norms [T] are first below half of that at lag 0; T if they never are."""
    below = norms < norms[0] / 2
    return int(np.argmax(below)) if below.any() else len(norms)


def build(config: SimpleNamespace) -> Experiment:
    """Training on whole sequences."""
    task = tasks.recall(lag=config.lag, batch_size=config.batch_size)
    cell = network(config, task)
    model = supervised.cell_model(cell, task.features)
    # Compiled once for all lanes of a sweep.
    gradients = jax.jit(partial(gradient_by_lag, task, cell))
    scores = jax.jit(partial(supervised.scores, task, model, "test", {}))

    def finish(hparams, state, run):
        """Test scores of the best params; the gradient by lag before the first update and after the last."""
        first, _ = supervised.first_params(model.init, hparams)
        norms = {name: np.asarray(gradients(params)) for name, params in (("first", first), ("last", state.params))}
        write_arrays(run.directory / "gradients.npz", **norms)
        return {
            **{f"test_{name}": float(value) for name, value in scores(task.data, state.best.params).items()},
            **{f"{name}_gradient_log10": float(relative_log10(row)[-1]) for name, row in norms.items()},
            **{f"{name}_half_life": half_life(row) for name, row in norms.items()},
        }

    return Experiment(supervised.task_program(config, task, model), finish)


SWEEP = f"model={','.join(CELLS)};learning_rate=3e-3,1e-2;seed=0:5"
SIGNALS = {
    "first_gradient_log10": "gradient before training, log10",
    "last_gradient_log10": "gradient after training, log10",
    "first_half_life": "half-life before training",
    "last_half_life": "half-life after training",
}


class Row(NamedTuple):
    """A cell: the means of its results by name, of its accuracy to two digits, and of its log10 gradients by lag."""

    cell: str
    results: dict[str, Mean]
    accuracy: float
    gradients: dict[str, np.ndarray]


def report(runs: list[Run]) -> list[Section]:
    """Map and table of all cells, and whether the gradient before training tells how well a cell learns."""
    sections = []
    by = [name for name in ("lag", "units", "steps") if name in varying(runs)]
    for label, members in groups(runs, by).items():
        rows = [_row(found) for found in groups(members, ("model",)).values()]
        rows.sort(key=lambda row: (-row.accuracy, -row.results["first_gradient_log10"].mean))
        where = f", {label}" if by else ""
        sections += [_reach(f"Reach of the gradient{where}", rows), _prediction(f"Prediction{where}", rows)]
    return sections


def _row(runs: list[Run]) -> Row:
    # Of an orthogonal recurrence the logarithm is a rounding error.
    results = {name: mean([round(run.result()[name], 4) for run in runs]) for name in ("test_accuracy", *SIGNALS)}
    norms = [read_arrays(run.directory / "gradients.npz") for run in runs]
    gradients = {when: np.mean([relative_log10(found[when]) for found in norms], 0) for when in ("first", "last")}
    return Row(runs[0].flags["model"], results, round(results["test_accuracy"].mean, 2), gradients)


def _reach(title: str, rows: Sequence[Row]) -> Section:
    figure, axes = panels(1, 2, width=3.9, height=1.3 + 0.23 * len(rows))
    for axis, when in zip(axes[0], ("first", "last"), strict=True):
        values = np.array([row.gradients[when] for row in rows])
        # What is less than a millionth is lost among the gradients of later steps.
        image = axis.imshow(values, cmap="Blues", vmin=-6, vmax=0, aspect="auto", interpolation="nearest")
        for place, value in enumerate(values[:, -1].round(1) + 0):  # no -0.0
            axis.text(1.02, place, f"{value:.1f}", transform=axis.get_yaxis_transform(), va="center", clip_on=False)
        labels = [f"{row.cell}  {row.accuracy:.2f}" for row in rows] if when == "first" else []
        axis.set(title=f"{'before' if when == 'first' else 'after'} training", xlabel="time lag")
        axis.set_yticks(range(len(labels)), labels)
        axis.grid(visible=False)
        figure.colorbar(image, ax=axis, location="bottom", extend="both", label="log10 of |dL/dh|, lag 0 = 0")
    text = (
        "Rows: cells, sorted by test accuracy (chance: 0.125), then by the gradient before training. Colour: log10 of "
        "|dL/dh| over that at lag 0, mean of the runs; beside a row that at the longest lag, -38 where it is 0. "
        "Half-life: the lag at which |dL/dh| is first below half of that at lag 0, or the number of lags."
    )
    table: list[list[Any]] = [["cell", "accuracy", *SIGNALS.values()]]
    return Section(title, text, [figure], table + [[row.cell, *row.results.values()] for row in rows])


def _prediction(title: str, rows: Sequence[Row]) -> Section:
    accuracies = [row.accuracy for row in rows]
    by_signal = {name: [row.results[name].mean for row in rows] for name in SIGNALS}
    figure, axes = panels(width=6.4, height=6.0)
    axes[0, 0].set(xlabel="test accuracy", ylabel="gradient at the longest lag before training, log10")
    named_points(axes[0, 0], [row.cell for row in rows], accuracies, by_signal["first_gradient_log10"])
    table: list[list[Any]] = [["", "cells", "rank correlation with accuracy", "95 % interval"]]
    for name, values in by_signal.items():
        r, low, high = rank_correlation(values, accuracies)
        table.append([SIGNALS[name], len(rows), r, None if np.isnan(r) else f"{low:.2f} to {high:.2f}"])
    text = (
        "Each point is a cell, the mean of its runs. Spearman's rank correlation over the cells, accuracies to two "
        "digits, with the interval of Bonett & Wright (2000)."
    )
    return Section(title, text, [figure], table)


if __name__ == "__main__":
    command.main(sys.modules[__name__])
