"""What does truncating back-propagation through time cost, and where is it free?

Full BPTT over a training sequence against truncated BPTT(k1, k2), a gradient every k1 steps that reaches k2 steps back
(Williams & Peng 1990), and against the estimators of `seqjax.gradients` that reach further. A training step shows each
run the same data. By default it updates the params after every chunk of k1 steps; with --accumulate once, by the sum of
the gradients of its chunks, so that the number of updates is the same for all.

Tasks: "text" (the next character, of the embedded corpus or of any file: --corpus=input.txt), "recall" and "copy"
(a gradient that does not reach --lag steps back must stay at chance), "adding" (where it need not: see `ADDING`),
"temperature" (Jena, 24 hours ahead, from --length hours) and "chorales" (the next chord), both with --data_dir.

    python launch.py                                             the main job: text and recall, three seeds
    python -m experiments.bptt_vs_tbptt --truncation=8:32        one run
    python launch.py --sweep="lag=5,10,20,40;truncation=4:4,16:16,full;learning_rate=1e-3,3e-3;seed=0:5" --task=recall

Measured, LSTM(128) after the same 300 updates: 2.62 bits per character with the full gradient, 2.59 with 4:4; recall
over 20 steps with an accuracy of 1.00 and 0.13 (docs/results.md).
"""

import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags

from experiments.harness import command
from experiments.harness.experiment import Experiment
from experiments.harness.flags import training_flags
from experiments.harness.optimizer import make_optimizer
from experiments.harness.precision import narrow
from experiments.harness.report import Section, groups
from experiments.harness.task import Batch, Task, evaluate
from experiments.shared import budgets, estimators, quality, reach, tasks
from seqjax import cells, decoding, gradients, initializers
from seqjax.arrays import Array, Params, Tree
from seqjax.core import Cell
from seqjax.data.text import UNKNOWN_TOKEN
from seqjax.diagnostics import gradient_against_lag
from seqjax.gradients import Estimator, Loss
from seqjax.train import Program, State, initial_state
from seqjax.train.run import Run, write_atomic
from seqjax.unrolling import generate, unroll
from seqjax.wrappers import with_embedding, with_head, with_one_hot

FLAGS = training_flags(
    steps=300, steps_per_call=50, evaluate_every=50, batch_size=16, learning_rate=4e-3, clip_norm=1.0, optimizer="adam"
)
tasks.define(FLAGS, "text", ("text", "recall", "copy", "adding", "temperature", "chorales"), length=128)
flags.DEFINE_string("truncation", "full", "full, or k1:k2 with k1 <= k2 (steps).", flag_values=FLAGS)
flags.DEFINE_boolean("accumulate", False, "One update per training step, by the sum of its chunks.", flag_values=FLAGS)
flags.DEFINE_float(
    "reset_rate", 0.0, "Probability that a chunk starts from the initial carry; 0: carried, 1: zeroed.",
    lower_bound=0.0, upper_bound=1.0, flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_enum(
    "model",
    "lstm",
    ["rnn", "lstm", "peephole_lstm", "gru", "gru_reset_before", "min_gru"],
    "Which recurrent cell.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("units", 128, "Units of a layer.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("layers", 1, "Layers.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
    "embedding_size", 32, "Size of a token's embedding; 0: one-hot tokens.", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_float("chrono", 0.0, "Chrono initialization up to this many steps; 0: off.", flag_values=FLAGS)
flags.DEFINE_integer("sample", 400, "Characters of the text sample.", lower_bound=1, flag_values=FLAGS)
flags.register_validator("truncation", lambda value: bool(_truncation(value)), flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate", "reset_rate")
synthetic_data = tasks.synthetic_data

flags.DEFINE_enum(
    "gradient", "bptt", list(estimators.GRADIENTS),
    "Gradient of a chunk of k1 steps. adaptive: reaches back k1 to k2 steps, or to the whole sequence where k1 = k2. "
    "artbp: over the whole sequence, cut at random, every k2 steps on average. The others take k1 = k2, their chunk.",
    flag_values=FLAGS,
)  # fmt: skip

# Metrics of the gradient, beside those of the task.
QUALITY = (*quality.NAMES, "carry_gradient")
# Draws of a noisy estimator, from which its bias and deviation are estimated.
DRAWS = 8

ADDING = """Why a short truncation can learn to add. The two marked values must be added whenever they come, and the
same weights do it at every step. In some sequences the second marker is a few steps before the end, within reach of
the truncated gradient, and there the network learns to add a marked value to what it holds. A gated carry that holds
then holds for any lag: nothing else has to be learned from far away. Recall has no such late examples: its one symbol
is always the whole lag away, so a gradient shorter than the lag never sees it."""

GRADIENT = """The gradient is compared with the full one at the same params, on one fixed batch: over all params, and
over those of the cell, without the head. cell_bias is the distance of the mean estimate to the full gradient, and
cell_deviation the root mean square distance of an estimate to that mean, both over the norm of the full gradient; of an
estimator without noise the deviation is 0. Where the cosine is nearly 1 and nothing is learned, the last figure shows
what is missing: carry_gradient is the norm of the gradient of the last step's loss at the first carry, over that at the
last carry. This part is what a truncation removes. Where it is small, its removal hardly turns the gradient; but it
alone can teach the cell to keep what the first steps showed."""


def _truncation(value: str) -> tuple[int, int] | str:
    if value == "full":
        return value
    k1, _, k2 = value.partition(":")
    if not (k1.isdigit() and k2.isdigit() and 1 <= int(k1) <= int(k2)):
        raise flags.ValidationError("expected full, or k1:k2 with 1 <= k1 <= k2")
    return int(k1), int(k2)


def _chunks(config: SimpleNamespace, length: int) -> tuple[int, int]:
    """Steps from one gradient to the next, and the k2 of the estimator, for sequences of `length` steps."""
    truncation = _truncation(config.truncation)
    k1, k2 = (length, length) if isinstance(truncation, str) else truncation
    if config.gradient == "adaptive":
        longest = -(-length // k1) * k1 if k1 == k2 else k2
        if k1 == longest or longest % k1:
            raise ValueError(
                f"--gradient=adaptive chooses among multiples of k1 up to k2, or up to the length {length} where "
                f"k1 = k2, got --truncation={config.truncation}; expected for example --truncation={k1}:{4 * k1}"
            )
        return k1, longest
    if config.gradient == "artbp":
        return length, k2
    if config.gradient != "bptt" and k1 < k2:
        raise ValueError(
            f"--gradient={config.gradient} reaches back to the start of the sequence, got "
            f"--truncation={config.truncation}; expected one number of steps, as --truncation={k1}:{k1}"
        )
    return k1, k2


def model(config: SimpleNamespace, task: Task) -> Cell:
    """Embedding (of tokens), layers, head, as one cell."""
    bias = {"b": initializers.chrono(config.chrono)} if config.chrono else {}
    layers = [getattr(cells, config.model)(config.units, **bias) for _ in range(config.layers)]
    # Estimators of a single layer do not take a stack of one.
    cell = cells.stack(*layers) if config.layers > 1 else layers[0]
    if task.tokens and config.embedding_size:
        cell = with_embedding(cell, task.tokens, config.embedding_size)
    elif task.tokens:
        cell = with_one_hot(cell, task.tokens)
    return with_head(cell, task.outputs)


def _padded(batch: Batch, blank: int | float, multiple: int) -> Batch:
    """The batch with blanks before it, so that its length is a multiple: the last target ends a chunk."""
    pad = -batch.xs.shape[0] % multiple

    def before(leaf, value):
        return jnp.concatenate([jnp.full((pad, *leaf.shape[1:]), value, leaf.dtype), leaf])

    return Batch(before(batch.xs, blank), before(batch.targets, 0), before(batch.weights, 0))


def _updates_per_step(task: Task, k1: int) -> int:
    """Optimizer updates in one training step: one per chunk of k1 time steps that has a target."""
    batch = task.train(task.data, jax.random.key(0), jnp.int32(0))
    weights = _in_chunks(_padded(batch, task.blank, k1).weights, k1)
    return int((weights.sum((1, 2)) > 0).sum())


def _in_chunks(tree: Tree, k: int) -> Tree:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, k, *leaf.shape[1:]), tree)


def _sums(estimator: Estimator, params: Params, state: Any, chunk: Batch) -> tuple[Array, Params, Any]:
    """The sum of the losses of a chunk, its gradient, and the next state of the estimator."""
    loss, grads, state = estimator.update(params, state, chunk.xs, (chunk.targets, chunk.weights))
    # The estimator has the mean over the steps and the batch.
    size = chunk.weights.size
    return loss * size, jax.tree.map(lambda g: g.astype(chunk.weights.dtype) * size, grads), state


def _summed(
    of_chunk: Callable[[Params, Any, Any], tuple[Array, Params, Any]], params: Params, state: Any, chunks: Any
) -> tuple[Array, Params, Any]:
    """The losses of all chunks, the sum of their gradients, and the last state; `of_chunk` is as `_sums` for one."""

    def add(sums, chunk):
        grads, state = sums
        loss, more, state = of_chunk(params, state, chunk)
        return (jax.tree.map(jnp.add, grads, more), state), loss

    nothing = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)  # in the dtype of the weights of a batch
    (grads, state), losses = jax.lax.scan(add, (nothing, state), chunks)
    return losses, grads, state


def _scores(task: Task, cell: Cell, part: str, data: Tree, params: Params) -> dict[str, Array]:
    _, batch = task.held_out[part]
    size = jax.eval_shape(batch, data, jnp.int32(0)).xs.shape[1]
    return evaluate(
        task, part, data, cell.initial_carry(params, (size,)), lambda carry, xs: unroll(cell, params, carry, xs)
    )


def _last_step(weights: Array) -> Array:
    """The last step with a target: of the longest sequence, where some are padded."""
    return weights.shape[0] - 1 - jnp.argmax(weights.sum(1)[::-1] > 0)


def _last_loss(losses: Loss, batch: Batch, ys: Array) -> Array:
    """The loss of the last step with a target."""
    last = _last_step(batch.weights)
    return losses(ys[last], (batch.targets[last], batch.weights[last])).sum()


def build(config: SimpleNamespace) -> Experiment:
    """Training by an estimate of the gradient; one step of the program is one batch of sequences, or of windows."""
    task = tasks.make_task(config)
    cell = model(config, task)
    drawn = jax.eval_shape(task.train, task.data, jax.random.key(0), jnp.int32(0))
    length = len(drawn.xs)
    k1, k2 = _chunks(config, length)
    if task.continues and length % k1:
        raise ValueError(f"--length={length} of a text must be a multiple of k1 = {k1} (--truncation)")

    def losses(ys, targets):
        targets, weights = targets
        return weights * task.losses(ys, targets)

    full = gradients.bptt(cell, losses)
    pad = partial(_padded, blank=task.blank, multiple=k1)
    updates_per_step = 1 if config.accumulate else _updates_per_step(task, k1)
    schedule = SimpleNamespace(**{**vars(config), "steps": config.steps * updates_per_step})

    def initial_carry(params):
        return cell.initial_carry(params, (config.batch_size,))

    def keys(hparams):
        """Of the params, of the state, and of what an estimator keeps fixed."""
        return jax.random.split(jax.random.key(hparams["seed"]), 3)

    def estimator(hparams, noise):
        return estimators.GRADIENTS[config.gradient](cell, losses, k1, k2, keys(hparams)[2], noise)

    def start(estimator, params) -> Any:
        """The estimator's state at the start of a stream."""
        params = narrow(config, params)
        return estimator.init(params, initial_carry(params), jnp.zeros((k1, *drawn.xs.shape[1:]), drawn.xs.dtype))

    def init(hparams):
        k_params, key, _ = keys(hparams)
        params = cell.init(k_params, task.features)
        opt_state = make_optimizer(schedule, hparams["learning_rate"]).init(params)
        return initial_state(key, params, opt_state, start(estimator(hparams, key), params))

    def update(hparams, data, state: State):
        k_data, k_noise = jax.random.split(state.key)
        k_estimator, k_reset = jax.random.split(jax.random.fold_in(k_noise, state.step))
        optimizer = make_optimizer(schedule, hparams["learning_rate"])
        gradient = estimator(hparams, k_estimator)
        batch = pad(task.train(data, k_data, state.step))
        chunks = _in_chunks(batch, k1)
        resets = jax.random.bernoulli(k_reset, hparams["reset_rate"], (len(chunks.xs),))
        first = (state.step % task.batches == 0) if task.continues and task.batches else jnp.bool_(True)
        resets = resets.at[0].set(resets[0] | first)

        def restarted(params, carried, reset):
            return jax.tree.map(lambda new, old: jnp.where(reset, new, old), start(gradient, params), carried)

        def summed(params, carried, inputs):
            chunk, reset = inputs
            return _sums(gradient, narrow(config, params), restarted(params, carried, reset), chunk)

        def step(params, opt_state, grads, weight):
            """One optimizer update by a sum of gradients; a chunk without targets does not move the optimizer."""
            change, new_opt_state = optimizer.update(
                jax.tree.map(lambda g: g / jnp.maximum(weight, 1), grads), opt_state, params
            )
            new = optax.apply_updates(params, change), new_opt_state
            return jax.tree.map(lambda new, old: jnp.where(weight > 0, new, old), new, (params, opt_state))

        def chunk_update(state, inputs):
            params, opt_state, carried = state
            loss, grads, carried = summed(params, carried, inputs)
            return (*step(params, opt_state, grads, inputs[0].weights.sum()), carried), loss

        if config.accumulate:
            sums, grads, carried = _summed(summed, state.params, state.carry, (chunks, resets))
            params, opt_state = step(state.params, state.opt_state, grads, batch.weights.sum())
        else:
            (params, opt_state, carried), sums = jax.lax.scan(
                chunk_update, (state.params, state.opt_state, state.carry), (chunks, resets)
            )
        state = state._replace(step=state.step + 1, params=params, opt_state=opt_state, carry=carried)
        return state, {"loss": sums.sum() / batch.weights.sum()}

    def evaluate(hparams, data, state: State):
        batch = pad(task.train(data, jax.random.key(7), jnp.int32(0)))
        carry = initial_carry(state.params)
        _, reference, _ = _sums(full, state.params, carry, batch)
        chunks = _in_chunks(batch, k1)

        def estimate(key):
            gradient = estimator(hparams, key)
            return _summed(partial(_sums, gradient), state.params, start(gradient, state.params), chunks)[1]

        draws = DRAWS if config.gradient in estimators.NOISY else 1
        estimates = jax.lax.map(estimate, jax.random.split(jax.random.key(7), draws))
        by_step = gradient_against_lag(cell, state.params, carry, batch.xs, partial(_last_loss, losses, batch))
        return {
            **_scores(task, cell, "validation", data, state.params),
            **quality.quality(estimates, reference),
            "carry_gradient": by_step[0] / by_step[_last_step(batch.weights)],
        }

    def finish(hparams, state, run):
        """Scores on the test part with the best params, and a text sample in sample.txt."""
        del hparams
        params = state.best.params
        test = jax.jit(partial(_scores, task, cell, "test"))(task.data, params)
        if task.vocabulary:
            write_atomic(run.directory / "sample.txt", _sample(cell, params, task.vocabulary, state.key, config.sample))
        last = [record for record in run.records() if record["split"] == "validation"][-1]
        return {
            **{f"test_{name}": float(value) for name, value in test.items()},
            "reach": min(k2, length) if config.gradient in ("bptt", "adaptive") else length,
            "updates": int(state.step) * updates_per_step,
            "time_steps": int(state.step) * length * config.batch_size,
            **{name: last[name] for name in QUALITY},
        }

    program = Program(init, update, evaluate, task.data, "loss", task.batches if task.continues else None)
    return Experiment(program, finish, task.left_out)


def _sample(cell: Cell, params: Params, vocabulary: Any, key: Array, count: int) -> str:
    """Text that the model continues from a line break (the unknown character is never chosen)."""
    choose = partial(decoding.choose, exclude=[UNKNOWN_TOKEN])
    start = jnp.asarray(vocabulary.encode("\n"))
    run = jax.jit(lambda params: generate(cell, params, cell.initial_carry(params, (1,)), start, count, key, choose))
    return vocabulary.decode(run(params)[1][:, 0])


SWEEP = "task=text,recall;truncation=full,16:16,4:4;accumulate=true;seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """Scores against reach and lag, losses at equal budgets, the gradient's direction and size, samples."""
    sections = [*reach.by_reach(runs), *reach.by_lag(runs)]
    for members in groups(runs, by=("task",)).values():
        sections.append(budgets.training(f"Training, {members[0].flags['task']}", members, QUALITY, GRADIENT))
    if any(run.flags["task"] == "adding" for run in runs):
        sections.append(Section("Why adding can be learned", ADDING))
    samples = {
        name: path.read_text()
        for name, members in groups(runs).items()
        if (path := members[0].directory / "sample.txt").exists()
    }
    if samples:
        sections.append(Section("Samples", listings=samples))
    return sections


if __name__ == "__main__":
    command.main(sys.modules[__name__])
