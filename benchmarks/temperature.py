"""Training in the temperature experiment, against Keras' `fit` and a PyTorch loop on the same windows.

    python -m benchmarks.temperature            writes its section of docs/end_to_end.md; under three minutes
    python -m benchmarks.temperature --quick    tiny networks; writes nothing

All of them train the same network by Adam on the same number of windows per batch, each from its own weights and in
its own order. seqjax is `experiments/temperature.py`, as shipped, run by `seqjax.train.fit`. Keras and PyTorch get
all windows precomputed, in memory, which is the fastest way to feed either.
"""

import importlib.util
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.end_to_end import Command, configuration, verdict
from experiments import temperature
from experiments.harness.experiment import define
from experiments.harness.report import COLORS, markdown_table, panels, save
from experiments.shared import tasks
from seqjax.data import jena
from seqjax.train import Run, fit

BUDGET = 120.0  # s, after which no round is started
ROUNDS = 4
TARGET = 1.5  # times Keras
FIGURE = "end_to_end"


class Problem(NamedTuple):
    """What is trained on what.

    Attributes:
      xs: all windows [N, T, D], standardized.
      ys: their targets [N, 1], standardized.
      batch: windows in a batch.
      units, recurrent_dropout, dropout: of the LSTM, inside of it, and before the head.
      rate: the learning rate.
      updates: of Keras and PyTorch at a time: once to warm up, once for the clock.
      config: the flags of the experiment.
    """

    xs: np.ndarray
    ys: np.ndarray
    batch: int
    units: int
    recurrent_dropout: float
    dropout: float
    rate: float
    updates: int
    config: Any

    def __str__(self) -> str:
        if not self.recurrent_dropout:
            return f"LSTM({self.units})"
        return f"LSTM({self.units}), recurrent dropout {self.recurrent_dropout:g}, dropout {self.dropout:g}"


class Took(NamedTuple):
    """One training.

    Attributes:
      first: seconds to build, trace and compile, up to and with the first update.
      rates: updates per second, without those that warm up: one value for each compiled call or epoch.
      loss: mean over the last call or epoch.
    """

    first: float
    rates: list[float]
    loss: float


def problem(units: int, recurrent_dropout: float, dropout: float, quick: bool) -> Problem:
    """The network of these numbers on the record that is there, with the flags as shipped."""
    given = {"units": units, "recurrent_dropout": recurrent_dropout, "dropout": dropout}
    small = {"batch_size": 8, "length": 8, "steps_per_call": 2, "steps": 6, "evaluate_every": 0, "checkpoint_every": 0}
    config = configuration(temperature, model="lstm", **given, **(small if quick else {"steps": 3 * 91}))
    data: jena.Forecasting = tasks.temperature(config.data_dir, length=config.length, batch_size=config.batch_size).data
    starts = np.asarray(data.train)
    # Whole batches only: a batch of another size would be compiled once more.
    updates = 2 if quick else len(starts) // config.batch_size // 2
    starts = starts[: 2 * updates * config.batch_size]
    rows = starts[:, None] + np.arange(config.length)
    column = data.columns.index(jena.TEMPERATURE)
    ys = (np.asarray(data.temperature) - np.asarray(data.scale.mean)[column]) / np.asarray(data.scale.std)[column]
    xs, ys = np.asarray(data.series)[rows], ys[starts + data.target][:, None]
    return Problem(xs, ys, config.batch_size, units, recurrent_dropout, dropout, config.learning_rate, updates, config)


def seqjax_fit(problem: Problem) -> Took:
    """`fit` of the experiment's program; evaluation and checkpoints are not in the rates, nor are they elsewhere."""
    config = problem.config
    start = time.perf_counter()
    program = temperature.build(config).program
    built = time.perf_counter() - start
    names = ("steps", "steps_per_call", "evaluate_every", "checkpoint_every", "progress")
    with tempfile.TemporaryDirectory() as folder:
        run = Run.open(folder, vars(config))
        start = time.perf_counter()
        options = {name: getattr(config, name) for name in names}
        result = fit(program, define(temperature).hparams(config), run, **options)
        began = time.perf_counter() - start - result.wall_seconds
        calls = [record for record in run.records() if record["split"] == "train"]
    clock = [record["seconds"] for record in calls]
    rates = [config.steps_per_call / (end - begin) for begin, end in itertools.pairwise(clock)]
    return Took(built + began + clock[0] / config.steps_per_call, rates, calls[-1]["loss"])


def keras_fit(problem: Problem, steps_per_execution: int = 1) -> Took:
    """`model.fit` on arrays, on the JAX backend."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    class Clock(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.begin, self.seconds = 0.0, []

        def on_epoch_begin(self, epoch, logs=None):
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds.append(time.perf_counter() - self.begin)

    xs, ys, batch = problem.xs, problem.ys, problem.batch
    start = time.perf_counter()
    layers = [keras.layers.LSTM(problem.units, recurrent_dropout=problem.recurrent_dropout)]
    if problem.dropout:
        layers.append(keras.layers.Dropout(problem.dropout))
    model: Any = keras.Sequential([keras.Input(xs.shape[1:]), *layers, keras.layers.Dense(1)])
    adam = keras.optimizers.Adam(problem.rate)
    model.compile(adam, "mse", steps_per_execution=steps_per_execution)
    model.fit(xs[:batch], ys[:batch], batch_size=batch, verbose=0)
    first = time.perf_counter() - start
    clock = Clock()
    options = {"epochs": 2, "steps_per_epoch": problem.updates, "verbose": 0, "callbacks": [clock]}
    history = model.fit(xs, ys, batch_size=batch, **options)
    return Took(first, [problem.updates / clock.seconds[1]], history.history["loss"][-1])


def torch_loop(problem: Problem, fused_lstm: bool = False) -> Took:
    """The loop that everybody writes.

    `torch.nn.LSTM` has no recurrent dropout: with it the network is a loop over `torch.nn.LSTMCell` with a mask, unless
    `fused_lstm`, which leaves the recurrent dropout out.
    """
    import torch  # pyright: ignore[reportMissingImports]

    nn = torch.nn
    features, units, rate = problem.xs.shape[-1], problem.units, problem.recurrent_dropout

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(features, units, batch_first=True)
            self.head = nn.Sequential(nn.Dropout(problem.dropout), nn.Linear(units, 1))

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(features, units)
            self.head = nn.Sequential(nn.Dropout(problem.dropout), nn.Linear(units, 1))

        def forward(self, x):
            h = c = x.new_zeros(len(x), units)
            mask = nn.functional.dropout(torch.ones_like(h), rate)
            for x_t in x.unbind(1):
                h, c = self.cell(x_t, (h * mask, c))
            return self.head(h)

    xs, ys = torch.from_numpy(problem.xs), torch.from_numpy(problem.ys)
    start = time.perf_counter()
    first, rates, losses = 0.0, [], []
    model = Fused() if fused_lstm or not rate else Masked()
    optimizer = torch.optim.Adam(model.parameters(), problem.rate, fused=True)
    batches = torch.randperm(len(xs)).split(problem.batch)
    for part in (batches[: problem.updates], batches[problem.updates :]):
        began, losses = time.perf_counter(), []
        for index in part:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(xs[index]), ys[index])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            first = first or time.perf_counter() - start
        rates.append(len(losses) / (time.perf_counter() - began))
    return Took(first, rates[1:], statistics.fmean(losses))


SEQJAX, KERAS, KERAS_MANY = "seqjax", "Keras", "Keras, 17 steps an execution"
TORCH, TORCH_BOUND = "PyTorch", "PyTorch, nn.LSTM without recurrent dropout"


def trainers(problem: Problem) -> dict[str, Callable[[Problem], Took]]:
    """The trainers of this network, by name."""
    found: dict[str, Callable[[Problem], Took]] = {
        SEQJAX: seqjax_fit,
        KERAS: keras_fit,
        KERAS_MANY: lambda problem: keras_fit(problem, 17),
    }
    if not importlib.util.find_spec("torch"):
        print("PyTorch is not installed and is left out", file=sys.stderr)
        return found
    found[TORCH] = torch_loop
    if problem.recurrent_dropout:
        found[TORCH_BOUND] = lambda problem: torch_loop(problem, fused_lstm=True)
    return found


def rate(took: Sequence[Took]) -> float:
    """The median of the updates per second."""
    return statistics.median(rate for training in took for rate in training.rates)


Results = dict[str, dict[str, list[Took]]]  # by network and trainer
METHOD = """\
- seqjax is `seqjax.train.fit` on `experiments/temperature.py` as shipped, with many updates per call and the windows
  gathered on the device. Keras is `model.fit` on the JAX backend with all windows in memory as NumPy arrays, with and
  without `steps_per_execution`. PyTorch is eager, with all windows in memory as a tensor, and Adam with `fused=True`;
  with recurrent dropout it is a loop over `nn.LSTMCell` with a mask, since `nn.LSTM` has none.
- Complete trainings of new models take turns; medians. The first call, or epoch, is excluded, as are evaluation and
  checkpoints, of which Keras and PyTorch have none here.
- The time to the first update starts when the model is built, with all libraries imported and no compilation cache.
  For seqjax it includes compiling the evaluation.
- The loss is the mean over the last updates of these short trainings, each with its own weights and order: it shows
  that all of them learn the same thing. seqjax makes twice as many updates as the others."""


def section(results: Results, record: str, config: Any) -> str:
    """The tables, the targets, and what was measured."""
    parts, verdicts = [], []
    for network, by_name in results.items():
        ours = rate(by_name[SEQJAX])
        rows = [
            [
                name,
                f"{rate(took):.1f}",
                f"{ours / rate(took):.2f}",
                f"{statistics.median(t.first for t in took):.1f}",
                f"{statistics.median(t.loss for t in took):.3f}",
            ]
            for name, took in by_name.items()
        ]
        head = [network, "updates per second", "seqjax / this", "s to the first update", "loss at the end"]
        parts.append(markdown_table([head, *rows]))
        keras = max(rate(took) for name, took in by_name.items() if name in (KERAS, KERAS_MANY))
        verdicts.append(verdict(f"{network}, times the faster Keras", ours / keras, TARGET, at_least=True))
        if TORCH in by_name:
            verdicts.append(verdict(f"{network}, times PyTorch", ours / rate(by_name[TORCH]), 1, at_least=True))
    figure = f"![Updates per second of the temperature experiment](figures/{FIGURE}.svg)"
    generated = "; generated, because no real one was found" if config.data_dir is None else ""
    data = f"- {config.batch_size} windows of {config.length} steps in a batch. The record: {record}{generated}."
    return "\n\n".join([*parts, "\n".join(verdicts), figure, f"{data}\n{METHOD}"])


def draw(results: Results) -> Any:
    """Updates per second, as bars."""
    figure, ((*all_axes,),) = panels(1, len(results), width=4.6, height=2.6)
    for axes, (network, by_name) in zip(all_axes, results.items(), strict=True):
        names = [name.replace(", ", ",\n", 1) for name in by_name]
        axes.barh(names, [rate(took) for took in by_name.values()], color=COLORS[: len(names)])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(title=network, xlabel="updates per second")
    return figure


def main(arguments: Sequence[str]) -> None:
    """Measures, prints the section and writes it."""
    command = Command("temperature", "Time the temperature experiment against Keras and PyTorch.", arguments)
    networks = [(2, 0.25, 0.5)] if command.quick else [(16, 0.0, 0.0), (32, 0.25, 0.5)]
    problems = [problem(*network, command.quick) for network in networks]
    everyone = [trainers(problem) for problem in problems]
    results: Results = {str(p): {name: [] for name in by_name} for p, by_name in zip(problems, everyone, strict=True)}
    for turn in range(1 if command.quick else ROUNDS):
        if turn and command.seconds > BUDGET:
            break
        for trained, by_name in zip(problems, everyone, strict=True):
            for name, train in by_name.items():
                results[str(trained)][name].append(train(trained))
    config = problems[0].config
    record = tasks.climate(config.data_dir).report
    if command.where:
        save(draw(results), command.where.figures / FIGURE, png=False)
    packages = ("jax", "flax", "optax", "keras", "torch")
    command.write("The temperature experiment", section(results, record, config), packages)


if __name__ == "__main__":
    main(sys.argv[1:])
