"""Sixteen seeds of the temperature experiment as the lanes of one compiled program, against one run of the same length.

python -m benchmarks.seeds            writes its section of docs/end_to_end.md; about a minute and a half
python -m benchmarks.seeds --quick    two seeds of a tiny network; writes nothing
"""

import itertools
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax

from benchmarks.end_to_end import Command, configuration, verdict
from experiments import temperature
from experiments.harness.experiment import define
from experiments.harness.report import markdown_table
from experiments.shared import tasks
from seqjax.train import Run, fit, fit_lanes

BUDGET = 100.0  # s, after which no round starts
ROUNDS = 5


class Took(NamedTuple):
    """Seconds of one training.

    Attributes:
      updates: of one update, one value for each call except the first.
      total: compilation, updates, and the final evaluation and checkpoint.
    """

    updates: list[float]
    total: float


def train(config: SimpleNamespace, seeds: Sequence[int]) -> Took:
    """Trains with these seeds: one as a single run, several as lanes."""
    program = temperature.build(config).program
    hparams = [{**define(temperature).hparams(config), "seed": jax.numpy.int32(seed)} for seed in seeds]
    options = {"steps": config.steps, "steps_per_call": config.steps_per_call, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run.open(Path(folder, str(seed)), {"seed": seed}) for seed in seeds]
        if len(seeds) == 1:
            result = fit(program, hparams[0], runs[0], **options)
        else:
            result, *_ = fit_lanes(program, hparams, runs, **options)
        clock = [record["seconds"] for record in runs[0].records() if record["split"] == "train"]
    updates = [(end - begin) / config.steps_per_call for begin, end in itertools.pairwise(clock)]
    return Took(updates, result.compile_seconds + result.wall_seconds)


def section(one: Sequence[Took], many: Sequence[Took], lanes: int, config: SimpleNamespace) -> str:
    """The table and its explanation."""
    (update_1, total_1), (update_n, total_n) = (
        (statistics.median(s for t in took for s in t.updates), statistics.median(t.total for t in took))
        for took in (one, many)
    )
    table = [
        [
            f"LSTM({config.units or temperature.RECURRENT[config.model].units}), {config.batch_size} windows a batch",
            "one run",
            f"{lanes} lanes",
            "ratio",
        ],
        ["one update, ms", f"{update_1 * 1e3:.2f}", f"{update_n * 1e3:.1f}", f"{update_n / update_1:.2f}"],
        [f"{config.steps} updates in all, s", f"{total_1:.1f}", f"{total_n:.1f}", f"{total_n / total_1:.2f}"],
    ]
    bound = 2 if jax.default_backend() == "gpu" else lanes
    return "\n\n".join(
        [
            f"{lanes} seeds trained by `fit_lanes` as one compiled program, against one seed trained by `fit`: "
            f"{len(one)} complete trainings of each, in turns, with {config.steps} updates in calls of "
            f"{config.steps_per_call}; medians. The time of one update excludes the first call. The last line includes "
            "everything: compilation, updates, and the final evaluation and checkpoint. "
            f"The record: {tasks.climate(config.data_dir).report}.",
            markdown_table(table),
            verdict(f"One update of {lanes} lanes over that of one run", update_n / update_1, bound),
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Measures, prints the section and writes it."""
    command = Command("seeds", "Time sixteen seeds as one program.", arguments)
    lanes, flags = (2, {"units": 2, "length": 8, "batch_size": 8}) if command.quick else (16, {})
    calls = 2 if command.quick else 4
    config = configuration(temperature, model="lstm", steps_per_call=13, steps=13 * calls, **flags)
    one, many = [], []
    for turn in range(1 if command.quick else ROUNDS):
        if turn and command.seconds > BUDGET:
            break
        one.append(train(config, [0]))
        many.append(train(config, range(lanes)))
    command.write("Sixteen seeds as one program", section(one, many, lanes, config))


if __name__ == "__main__":
    main(sys.argv[1:])
