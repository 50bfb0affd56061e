"""The tasks that the studies share: batches as pure functions of (data, key, step), time-major, and scores."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments.harness.task import Task
from experiments.shared.tasks.digits import permuted, rows
from experiments.shared.tasks.drawn import adding, copy, recall
from experiments.shared.tasks.music import chorales, pieces
from experiments.shared.tasks.scores import cross_entropy
from experiments.shared.tasks.texts import characters, words
from experiments.shared.tasks.weather import climate, temperature

__all__ = [
    "DATA", "TASKS", "adding", "characters", "chorales", "climate", "copy", "cross_entropy", "define", "make_task",
    "permuted", "pieces", "recall", "rows", "steps", "synthetic_data", "temperature", "words",
]  # fmt: skip

# Each task by the flags that it has beside --batch_size.
TASKS: dict[str, Callable[..., Task]] = {
    "text": lambda config, **size: characters(config.corpus, length=config.length, **size),
    "words": lambda config, **size: words(config.data_dir, length=config.length, **size),
    "recall": lambda config, **size: recall(lag=config.lag, **size),
    "copy": lambda config, **size: copy(lag=config.lag, **size),
    "adding": lambda config, **size: adding(length=config.length, **size),
    "temperature": lambda config, **size: temperature(config.data_dir, length=config.length, **size),
    "chorales": lambda config, **size: chorales(config.data_dir, **size),
    "rows": lambda config, **size: rows(config.data_dir, **size),
    "permuted": lambda config, **size: permuted(config.data_dir, **size),
}
# What is generated for a task without --data_dir.
DATA = {"words": "sentences", "temperature": "record", "chorales": "pieces", "rows": "digits", "permuted": "digits"}


def define(values: flags.FlagValues, default: str, kinds: Sequence[str], *, length: int, lag: int = 20) -> None:
    """Adds the flag --task, of these kinds, and those of --length, --lag and --corpus that they have."""

    def of(*names: str) -> str:
        return ", ".join(name for name in names if name in kinds)

    own: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_enum("task", default, list(kinds), "What is learned.", **own)
    if found := of("text", "words", "adding", "temperature"):
        flags.DEFINE_integer("length", length, f"Time steps of a sequence, of {found}.", lower_bound=2, **own)
    if found := of("recall", "copy"):
        flags.DEFINE_integer("lag", lag, f"Time steps from symbol to query, of {found}.", lower_bound=1, **own)
    if found := of("text"):
        flags.DEFINE_string("corpus", "pydoc", "Text file or directory; pydoc: Python's manual.", **own)


def synthetic_data(given: Mapping[str, Any]) -> str | None:
    """What is generated for the task of these flags, without --data_dir: see `without_data`."""
    return DATA.get(given["task"]) if given["data_dir"] is None else None


def steps(task: Task) -> int:
    """Time steps of a training sequence."""
    return len(jax.eval_shape(task.train, task.data, jax.random.key(0), jnp.int32(0)).xs)


def make_task(config: SimpleNamespace) -> Task:
    """The task of the flags."""
    return TASKS[config.task](config, batch_size=config.batch_size)
