"""What does truncating back-propagation through time cost, and what does it save?

Full BPTT over the training length against truncated BPTT(k1, k2): an update every k1 steps, from a gradient that
reaches k2 steps back (Williams & Peng 1990). Every training step shows each run the same `--length` time steps of data,
so a run with k1 = length / 8 makes eight updates where full BPTT makes one.

Tasks: "text" (the next character, of the embedded corpus or of any file: --corpus=input.txt), "recall" and "copy"
(a truncation shorter than the lag --length must stay at chance), and "adding" (where it need not: see `ADDING`).

    python launch.py                                             the main job: all truncations, three seeds
    python -m experiments.bptt_vs_tbptt --truncation=8:32        one run
    python launch.py --sweep="truncation=full,25:25;seed=0:3" --task=recall --length=100 --chrono=100 --units=64

Reported for each run: loss against updates and wall clock, memory of the compiled program, steps per second, the cosine
and the norm ratio of its gradient to the full one along training, and a text sample.

Measured on the embedded text after the same 150 windows: 3.05 bits per character by full BPTT, 2.17 by 4:4
(docs/results.md).
"""

import math
import sys
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
from experiments.harness.report import Section, curve, groups, separate, summary
from experiments.harness.task import Batch, Task, evaluate
from experiments.shared import tasks
from seqjax import cells, decoding, gradients, initializers
from seqjax.arrays import Array, Params, Tree
from seqjax.core import Cell
from seqjax.data.text import UNKNOWN_TOKEN
from seqjax.diagnostics import alignment
from seqjax.gradients import Estimator
from seqjax.train import Program, State, initial_state
from seqjax.train.run import Run, write_atomic
from seqjax.unrolling import generate, unroll
from seqjax.wrappers import with_embedding, with_head

FLAGS = training_flags(
    steps=150, steps_per_call=25, evaluate_every=25, batch_size=16, learning_rate=4e-3, clip_norm=1.0, optimizer="adam"
)
flags.DEFINE_enum("task", "text", ["text", "recall", "copy", "adding"], "What is learned.", flag_values=FLAGS)
flags.DEFINE_string("corpus", "pydoc", "Text file or directory; pydoc: Python's manual.", flag_values=FLAGS)
flags.DEFINE_integer(
    "length", 128, "Time steps of a training step; of recall and copy, the lag.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_string("truncation", "full", "full, or k1:k2 with k1 <= k2 (steps).", flag_values=FLAGS)
flags.DEFINE_enum(
    "model",
    "lstm",
    ["rnn", "lstm", "peephole_lstm", "gru", "gru_reset_before", "min_gru"],
    "Which recurrent cell.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("units", 128, "Units of a layer.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("layers", 1, "Layers.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("embedding_size", 32, "Size of a token's embedding.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float("chrono", 0.0, "Chrono initialization up to this many steps; 0: off.", flag_values=FLAGS)
flags.DEFINE_integer("sample", 400, "Characters of the text sample.", lower_bound=1, flag_values=FLAGS)
flags.register_validator("truncation", lambda value: bool(_truncation(value)), flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate")

ADDING = """Why a short truncation can learn to add. The two marked values must be added whenever they come, and the
same weights do it at every step. In some sequences the second marker is a few steps before the end, within reach of
the truncated gradient, and there the network learns to add a marked value to what it holds. A gated carry that holds
then holds for any lag: nothing else has to be learned from far away. Recall has no such late examples: its one symbol
is always the whole lag away, so a gradient shorter than the lag never sees it."""


def _truncation(value: str) -> tuple[int, int] | str:
    if value == "full":
        return value
    k1, _, k2 = value.partition(":")
    if not (k1.isdigit() and k2.isdigit() and 1 <= int(k1) <= int(k2)):
        raise flags.ValidationError("expected full, or k1:k2 with 1 <= k1 <= k2")
    return int(k1), int(k2)


def _task(config: SimpleNamespace) -> Task:
    if config.task == "text":
        return tasks.characters(config.corpus, length=config.length, batch_size=config.batch_size)
    make = {"recall": tasks.recall, "copy": tasks.copy, "adding": tasks.adding}[config.task]
    return make(length=config.length, batch_size=config.batch_size)


def model(config: SimpleNamespace, task: Task) -> Cell:
    """Embedding (of tokens), layers, head, as one cell."""
    bias = {"b": initializers.chrono(config.chrono)} if config.chrono else {}
    cell = cells.stack(*(getattr(cells, config.model)(config.units, **bias) for _ in range(config.layers)))
    if task.tokens:
        cell = with_embedding(cell, task.tokens, config.embedding_size)
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


def _gradient(estimator: Estimator, k: int, params: Params, carry: Any, batch: Batch) -> Params:
    """The gradient of the weighted mean loss of a batch, as the estimator has it from chunks of k steps."""
    chunks = _in_chunks(batch, k)

    def add(state, chunk):
        _, grads, state = estimator.update(params, state, chunk.xs, (chunk.targets, chunk.weights))
        return state, grads

    _, grads = jax.lax.scan(add, estimator.init(params, carry, jax.tree.map(lambda leaf: leaf[0], chunks.xs)), chunks)
    # Each is the mean over its k steps and the batch of the weighted losses.
    scale = k * batch.weights.shape[1] / batch.weights.sum()
    return jax.tree.map(lambda g: g.astype(scale.dtype).sum(0) * scale, grads)


def _scores(task: Task, cell: Cell, part: str, data: Tree, params: Params) -> dict[str, Array]:
    _, batch = task.held_out[part]
    size = jax.eval_shape(batch, data, jnp.int32(0)).xs.shape[1]
    return evaluate(
        task, part, data, cell.initial_carry(params, (size,)), lambda carry, xs: unroll(cell, params, carry, xs)
    )


def build(config: SimpleNamespace) -> Experiment:
    """Training by truncated or full BPTT; one step of the program is `--length` time steps of data."""
    task = _task(config)
    cell = model(config, task)
    drawn = jax.eval_shape(task.train, task.data, jax.random.key(0), jnp.int32(0))
    truncation = _truncation(config.truncation)
    k1, k2 = (len(drawn.xs), len(drawn.xs)) if isinstance(truncation, str) else truncation
    if task.continues and config.length % k1:
        raise ValueError(f"--length={config.length} of a text must be a multiple of k1 = {k1} (--truncation)")

    def losses(ys, targets):
        targets, weights = targets
        return weights * task.losses(ys, targets)

    estimator = gradients.truncated_bptt(cell, losses, k1, k2)
    full = gradients.bptt(cell, losses)
    pad = partial(_padded, blank=task.blank, multiple=k1)
    updates_per_step = _updates_per_step(task, k1)
    schedule = SimpleNamespace(**{**vars(config), "steps": config.steps * updates_per_step})

    def initial_carry(params):
        return cell.initial_carry(params, (config.batch_size,))

    def start(params) -> Any:
        """The estimator's state at the start of a stream."""
        params = narrow(config, params)
        return estimator.init(params, initial_carry(params), jnp.zeros((k1, *drawn.xs.shape[1:]), drawn.xs.dtype))

    def init(hparams):
        k_params, key = jax.random.split(jax.random.key(hparams["seed"]))
        params = cell.init(k_params, task.features)
        opt_state = make_optimizer(schedule, hparams["learning_rate"]).init(params)
        return initial_state(key, params, opt_state, start(params))

    def update(hparams, data, state: State):
        optimizer = make_optimizer(schedule, hparams["learning_rate"])
        batch = pad(task.train(data, state.key, state.step))
        restart = (state.step % task.batches == 0) if task.continues and task.batches else jnp.bool_(True)
        carried = jax.tree.map(lambda new, old: jnp.where(restart, new, old), start(state.params), state.carry)

        def chunk_update(state, chunk):
            params, opt_state, carried = state
            weight = chunk.weights.sum()
            loss, grads, carried = estimator.update(
                narrow(config, params), carried, chunk.xs, (chunk.targets, chunk.weights)
            )
            scale = chunk.weights.size / jnp.maximum(weight, 1)
            grads = jax.tree.map(lambda g: g.astype(scale.dtype) * scale, grads)
            change, new_opt_state = optimizer.update(grads, opt_state, params)
            new = optax.apply_updates(params, change), new_opt_state
            # A chunk without targets has no gradient; it must not move the optimizer either.
            kept = jax.tree.map(lambda new, old: jnp.where(weight > 0, new, old), new, (params, opt_state))
            return (*kept, carried), (loss * chunk.weights.size, weight)

        (params, opt_state, carried), (sums, weights) = jax.lax.scan(
            chunk_update, (state.params, state.opt_state, carried), _in_chunks(batch, k1)
        )
        state = state._replace(step=state.step + 1, params=params, opt_state=opt_state, carry=carried)
        return state, {"loss": sums.sum() / weights.sum()}

    def evaluate(hparams, data, state: State):
        del hparams
        batch = pad(task.train(data, jax.random.key(7), jnp.int32(0)))
        carry = initial_carry(state.params)
        reference = _gradient(full, len(batch.xs), state.params, carry, batch)
        estimate = _gradient(estimator, k1, state.params, carry, batch)
        cosine, ratio = alignment(estimate, reference)
        return {**_scores(task, cell, "validation", data, state.params), "cosine": cosine, "norm_ratio": ratio}

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
            "updates": int(state.step) * updates_per_step,
            "cosine": last["cosine"],
            "norm_ratio": last["norm_ratio"],
        }

    program = Program(init, update, evaluate, task.data, "loss", task.batches if task.continues else None)
    return Experiment(program, finish, task.left_out)


def _sample(cell: Cell, params: Params, vocabulary: Any, key: Array, count: int) -> str:
    """Text that the model continues from a line break (the unknown character is never chosen)."""
    choose = partial(decoding.choose, exclude=[UNKNOWN_TOKEN])
    start = jnp.asarray(vocabulary.encode("\n"))
    run = jax.jit(lambda params: generate(cell, params, cell.initial_carry(params, (1,)), start, count, key, choose))
    return vocabulary.decode(run(params)[1][:, 0])


SWEEP = "truncation=full,16:64,16:16,4:4;seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """Loss against updates, the gradient's direction and size along training, costs, samples."""
    by_label = groups(runs)
    titles = (
        ("loss", "validation loss"),
        ("cosine", "cosine to the full gradient"),
        ("norm_ratio", "norm / full norm"),
    )
    figures, axes = separate(*(name for name, _ in titles))
    for index, (label, members) in enumerate(by_label.items()):
        records = [{r["step"]: r for r in run.records() if r["split"] == "validation"} for run in members]
        steps = sorted(set().union(*records))  # one that stopped early has fewer than another
        every = [run.result()["updates"] / run.result()["steps"] for run in members]
        for axis, (name, _) in zip(axes, titles, strict=True):
            scale = every[0] if name == "loss" else 1
            curve(
                axis,
                label,
                [step * scale for step in steps],
                [[rows[step][name] if step in rows else math.nan for rows in records] for step in steps],
                index,
            )
    for axis, (name, title) in zip(axes, titles, strict=True):
        axis.set(ylabel=title, xlabel="optimizer updates" if name == "loss" else "training steps")
    axes[0].set_xscale("log")
    axes[2].set_ylim(0, None)
    text = (
        "First: the same data give a truncated run more updates. Second and third: its gradient against the full one, "
        "at its own params and on one fixed batch. The table has the cost of a training step in time and memory."
    )
    columns = ["updates", "cosine", "norm_ratio", "steps_per_second", "program_memory_bytes"]
    sections = [Section("Truncation", text, figures, summary(runs, columns))]
    if any(run.flags["task"] == "adding" for run in runs):
        sections.append(Section("Why adding can be learned", ADDING))
    samples = {
        label: path.read_text()
        for label, members in by_label.items()
        if (path := members[0].directory / "sample.txt").exists()
    }
    if samples:
        sections.append(Section("Samples", listings=samples))
    return sections


if __name__ == "__main__":
    command.main(sys.modules[__name__])
