"""Training on whole sequences by full back-propagation through time: what several studies share.

A study brings a `Model` and a `Task`; `program` makes of them what the training loop runs.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import flags
from flax import nnx

from experiments.harness import base
from experiments.harness.report import COLORS, DASHES
from experiments.harness.task import Task, evaluate
from seqjax.arrays import Array, Key, Params, Tree
from seqjax.core import Cell
from seqjax.train import Program, Run, State, initial_state
from seqjax.unrolling import unroll

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = Mapping[str, Any]

# Training batches that an evaluation looks at, without noise, for the gap to the validation part.
_SEEN = 8


class Model(NamedTuple):
    """What is trained.

    Attributes:
      init: `(numbers, key) -> params`.
      outputs: `(numbers, params, xs [T, B, ...], key) -> ys [T, B, O]`; the key draws the noise of a training batch,
        None asks for the outputs without noise.
    """

    init: Callable[[Numbers, Key], Params]
    outputs: Callable[[Numbers, Params, Array, Key | None], Array]


def of_cell(cell: Cell, features: int) -> Model:
    """A cell, as it is in training and in evaluation."""

    def outputs(numbers, params, xs, key):
        del numbers, key
        return unroll(cell, params, None, xs)[1]

    return Model(lambda numbers, key: cell.init(key, features), outputs)


def of_module(make: Callable[[Numbers, nnx.Rngs], nnx.Module]) -> tuple[Callable, Callable]:
    """A Flax module as functions of its weights.

    It is made anew in every trace, so its rates may be traced numbers, and its random streams start from a given key.

    Args:
      make: `(numbers, rngs) -> module`.

    Returns:
      `init`: `(numbers, key) -> params`, and `network`: `(numbers, params, key) -> module` with these params, its noise
      drawn from the key; without noise (`eval()`) where the key is None.
    """

    def split(numbers, key):
        return nnx.split(make(numbers, nnx.Rngs(key)), nnx.Param, ...)

    def network(numbers, params, key):
        graph, _, rest = split(numbers, jax.random.key(0) if key is None else key)
        module: Any = nnx.merge(graph, params, nnx.as_pure(rest))
        if key is None:
            module.eval()
        return module

    return lambda numbers, key: nnx.as_pure(split(numbers, key)[1]), network


def weighted_mean(values: Array, weights: Array) -> Array:
    """`sum(w v) / sum(w)` of [T, B] and [T, B]."""
    return jnp.sum(weights * values) / jnp.sum(weights)


def first_params(init: Callable[[Numbers, Key], Params], numbers: Numbers) -> tuple[Params, Key]:
    """The params before the first update, and the key of everything random after it."""
    k_params, key = jax.random.split(jax.random.key(numbers["seed"]))
    return init(numbers, k_params), key


def scores(task: Task, model: Model, part: str, numbers: Numbers, data: Tree, params: Params) -> dict[str, Array]:
    """The task's scores over "validation" or "test", or over a sample of the training part, without noise."""
    if part == "training":
        sample = _SEEN, lambda data, index: task.train(data, jax.random.key(7), index)
        task = task._replace(held_out={part: sample})

    def forward(carry, xs):
        return carry, model.outputs(numbers, params, xs, None)

    return evaluate(task, part, data, (), forward)


def descent(
    config: SimpleNamespace,
    init: Callable[[Numbers, Key], Params],
    gradient: Callable[..., tuple[Array, Params]],
    evaluate: Callable[[Numbers, Tree, Params], dict[str, Array]],
    data: Tree,
    monitor: str = "loss",
    batches: int | None = None,
    held_out: Tree = (),
) -> Program:
    """What the training loop runs: the optimizer of the flags on some gradient.

    Args:
      config: the flags, see `base.optimizer`.
      init: `(numbers, key) -> params`.
      gradient: `(numbers, data, params, step, k_data, k_noise) -> (loss, grads)`. k_data is the same in all updates, as
        `windows.minibatch` wants it; k_noise is of this update.
      evaluate: `(numbers, data, params) -> scalars` on the validation part, without noise.
      data: device arrays that the functions get back.
      monitor: the one of these scalars that says which params are best; lower is better.
      batches: updates of an epoch; None where there is none.
      held_out: arrays and texts that `finish` reads beside them.
    """

    def start(numbers):
        params, key = first_params(init, numbers)
        return initial_state(key, params, base.optimizer(config, numbers["learning_rate"]).init(params))

    def update(numbers, data, state: State):
        k_data, k_noise = jax.random.split(state.key)
        k_noise = jax.random.fold_in(k_noise, state.step)
        value, grads = gradient(numbers, data, state.params, state.step, k_data, k_noise)
        optimizer = base.optimizer(config, numbers["learning_rate"])
        changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": value}

    def scored(numbers, data, state: State):
        return evaluate(numbers, data, state.params)

    return Program(start, update, scored, data, monitor, batches, held_out)


def program(config: SimpleNamespace, task: Task, model: Model, monitor: str = "loss") -> Program:
    """The gradient of the loss of whole sequences, and the optimizer of the flags.

    Evaluation gives the validation scores, and "training_loss", the loss on training sequences without noise.
    """

    def gradient(numbers, data, params, step, k_data, k_noise):
        batch = task.train(data, k_data, step)

        def loss(params):
            ys = model.outputs(numbers, params, batch.xs, k_noise)
            return weighted_mean(task.losses(ys, batch.targets), batch.weights)

        return jax.value_and_grad(loss)(params)

    def evaluate(numbers, data, params):
        part = partial(scores, task, model, numbers=numbers, data=data, params=params)
        return {**part("validation"), "training_loss": part("training")["loss"]}

    return descent(config, model.init, gradient, evaluate, task.data, monitor, task.batches)


def test_scores(config: SimpleNamespace, task: Task, model: Model, program: Program, state: State) -> dict[str, float]:
    """The task's scores on the test part, with the params that were best on the validation part."""
    run = jax.jit(lambda data, params: scores(task, model, "test", vars(config), data, params))
    return {f"test_{name}": float(value) for name, value in run(program.data, state.best.params).items()}


def define_task(values: flags.FlagValues, task: str, length: int) -> None:
    """Adds the flags --task and --length with these defaults."""
    flags.DEFINE_enum("task", task, ["temperature", "adding"], "What is learned.", flag_values=values)
    flags.DEFINE_integer("length", length, "Time steps of a sequence.", lower_bound=2, flag_values=values)


def each_run(
    axes: "Axes", label: str, xs: Sequence[Sequence[float]], ys: Sequence[Sequence[float]], index: int
) -> None:
    """Draws a line for each run of a group: an interval over two or three seeds is wider than what it is about.

    Args:
      axes: where to draw.
      label: of the group.
      xs: for each run its [N] places; one that stopped early has fewer than another.
      ys: for each run its [N] values.
      index: of the group; chooses colour and dashes.
    """
    style: Any = {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index // len(COLORS) % len(DASHES)],
        "linewidth": 1.2,
    }
    for number, (x, values) in enumerate(zip(xs, ys, strict=True)):
        axes.plot(x, values, label=None if number else label, **style)


def evaluations(axes: "Axes", label: str, members: Sequence[Run], metric: str, index: int) -> None:
    """Draws a metric of the evaluations of each run of a group against updates; see `each_run`."""
    records = [[record for record in run.records() if record["split"] == "validation"] for run in members]
    steps = [[record["step"] for record in rows] for rows in records]
    each_run(axes, label, steps, [[record[metric] for record in rows] for rows in records], index)
