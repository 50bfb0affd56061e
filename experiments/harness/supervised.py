"""Programs of supervised training: an optimizer step on the gradient of a minibatch.

`program` takes the gradient from the experiment. `task_program` is for those that train a `Model` on a `Task`, whole
sequences by full back-propagation through time.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.harness.experiment import Hparams
from experiments.harness.optimizer import make_optimizer
from experiments.harness.precision import narrow
from experiments.harness.task import Task, evaluate
from seqjax.arrays import Array, Key, Params, Tree
from seqjax.core import Cell
from seqjax.train import Program, State, initial_state
from seqjax.unrolling import unroll

Init = Callable[[Hparams, Key], Params]
# A Flax module with the given params; Any, since each experiment calls its own.
Bind = Callable[[Hparams, Params, Key | None], Any]

# Training batches that are evaluated, without noise, to show the gap to the validation part.
TRAINING_SAMPLE = 8


class Model(NamedTuple):
    """What is trained.

    Attributes:
      init: `(hparams, key) -> params`.
      outputs: `(hparams, params, xs [T, B, ...], key) -> ys [T, B, O]`; the key draws the noise of a training batch,
        with None the outputs are without noise.
    """

    init: Init
    outputs: Callable[[Hparams, Params, Array, Key | None], Array]


def cell_model(cell: Cell, features: int) -> Model:
    """A cell without noise: the same in training and in evaluation."""

    def outputs(hparams, params, xs, key):
        del hparams, key
        return unroll(cell, params, None, xs)[1]

    return Model(lambda hparams, key: cell.init(key, features), outputs)


def functional(make: Callable[[Hparams, nnx.Rngs], nnx.Module]) -> tuple[Init, Bind]:
    """A Flax module as pure functions of its params.

    The module is made again in every trace, so its rates may be traced, and its random streams start from a given key.

    Args:
      make: `(hparams, rngs) -> module`.

    Returns:
      `init`: `(hparams, key) -> params`.
      `bind`: `(hparams, params, key) -> module` with these params. Its noise is drawn from the key; with None it is in
        evaluation mode, without noise.
    """

    def split(hparams, key):
        return nnx.split(make(hparams, nnx.Rngs(key)), nnx.Param, ...)

    def bind(hparams, params, key):
        graph, _, rest = split(hparams, jax.random.key(0) if key is None else key)
        module: Any = nnx.merge(graph, params, nnx.as_pure(rest))
        if key is None:
            module.eval()
        return module

    return lambda hparams, key: nnx.as_pure(split(hparams, key)[1]), bind


def weighted_mean(values: Array, weights: Array) -> Array:
    """`sum(w v) / sum(w)` of [T, B] and [T, B]."""
    return jnp.sum(weights * values) / jnp.sum(weights)


def first_params(init: Init, hparams: Hparams) -> tuple[Params, Key]:
    """The params before the first update, and the key of everything random after it."""
    k_params, key = jax.random.split(jax.random.key(hparams["seed"]))
    return init(hparams, k_params), key


def scores(task: Task, model: Model, part: str, hparams: Hparams, data: Tree, params: Params) -> dict[str, Array]:
    """The task's scores over "validation" or "test", or over a sample of the training part, without noise."""
    if part == "training":
        sample = TRAINING_SAMPLE, lambda data, index: task.train(data, jax.random.key(7), index)
        task = task._replace(held_out={part: sample})

    def forward(carry, xs):
        return carry, model.outputs(hparams, params, xs, None)

    return evaluate(task, part, data, (), forward)


def program(
    config: SimpleNamespace,
    init: Init,
    gradient: Callable[..., tuple[Array, Params]],
    evaluate: Callable[[Hparams, Tree, Params], dict[str, Array]],
    data: Tree,
    monitor: str = "loss",
    batches: int | None = None,
    held_out: Tree = (),
) -> Program:
    """The optimizer of the flags on the gradient of an experiment.

    Args:
      config: the flags, see `make_optimizer` and `precision.narrow`.
      init: `(hparams, key) -> params`.
      gradient: `(hparams, data, params, step, k_data, k_noise) -> (loss, grads)` of one minibatch. k_data is the same
        in all updates, as `windows.minibatch` expects; k_noise differs in each.
      evaluate: `(hparams, data, params) -> scalars` on the validation part, without noise.
      data: device arrays, passed to the two functions.
      monitor: the scalar of `evaluate` that decides which params are best; lower is better.
      batches: updates per epoch; None where there are no epochs.
      held_out: arrays and strings that are read after training only; their hash is recorded.
    """

    def start(hparams):
        params, key = first_params(init, hparams)
        return initial_state(key, params, make_optimizer(config, hparams["learning_rate"]).init(params))

    def update(hparams, data, state: State):
        k_data, k_noise = jax.random.split(state.key)
        k_noise = jax.random.fold_in(k_noise, state.step)
        loss, grads = gradient(hparams, data, narrow(config, state.params), state.step, k_data, k_noise)
        optimizer = make_optimizer(config, hparams["learning_rate"])
        changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": loss}

    def evaluate_params(hparams, data, state: State):
        return evaluate(hparams, data, state.params)

    return Program(start, update, evaluate_params, data, monitor, batches, held_out)


def task_program(config: SimpleNamespace, task: Task, model: Model) -> Program:
    """Trains a model on whole sequences of a task.

    Evaluation gives the validation scores, and "training_loss", the loss on training sequences without noise.
    """

    def gradient(hparams, data, params, step, k_data, k_noise):
        batch = task.train(data, k_data, step)

        def loss(params):
            ys = model.outputs(hparams, params, batch.xs, k_noise)
            return weighted_mean(task.losses(ys, batch.targets), batch.weights)

        return jax.value_and_grad(loss)(params)

    def evaluate(hparams, data, params):
        part = partial(scores, task, model, hparams=hparams, data=data, params=params)
        return {**part("validation"), "training_loss": part("training")["loss"]}

    return program(config, model.init, gradient, evaluate, task.data, batches=task.batches)


def test_scores(task: Task, model: Model, hparams: Hparams, params: Params) -> dict[str, float]:
    """The task's scores on the test part, as results of a run."""
    run = jax.jit(lambda data, params: scores(task, model, "test", hparams, data, params))
    return {f"test_{name}": float(value) for name, value in run(task.data, params).items()}
