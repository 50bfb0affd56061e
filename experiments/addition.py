"""Can a recurrent network learn to add, from sums that it reads as text? ("535+61" -> "596")

An encoder reads the characters of the question, a decoder writes those of the answer (Sutskever et al. 2014, arXiv
1409.3215; on sums, Zaremba & Sutskever 2014, arXiv 1410.4615). At each of its steps the decoder reads the last output
of the encoder, and nothing that it wrote. Numbers are drawn with 1 to --digits digits, each length equally often; each
sum is kept once, in one order of its two numbers. So no sum of the validation and the test part, which are the same for
all runs, occurs in training.

    rnn, gru, lstm   one layer of --units units each in the encoder and the decoder

--reverse reads the question from its end: its first character is then next to the first of the answer (Sutskever et al.
2014, section 3.3). --noreverse reads it from its start.

    python -m experiments.addition --model=lstm
    python launch.py --experiment=addition                 all models, three learning rates, five seeds

Measured: lstm gives 99.4 ± 0.6 % of the answers right (docs/results.md).
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment, Hparams
from experiments.harness.flags import training_flags
from experiments.harness.report import Section, curve, evaluation_lines, groups, intervals, mean, separate
from seqjax import cells, wrappers
from seqjax.arrays import Array, Params, Tree
from seqjax.data import windows
from seqjax.train import Run, State, read_arrays, write_arrays
from seqjax.unrolling import unroll

FLAGS = training_flags(
    steps=6000, steps_per_call=250, evaluate_every=500, checkpoint_every=2000, batch_size=128, learning_rate=3e-3,
    schedule="cosine", clip_norm=1.0,
)  # fmt: skip
CELLS = {"rnn": cells.rnn, "gru": cells.gru, "lstm": cells.lstm}
# The space fills a question and an answer up to their longest.
ALPHABET = "0123456789+ "
# Pairs that are drawn; those whose numbers were drawn before, in either order, are left out.
DRAWN = 150_000
# Sums of the validation and of the test part.
HELD_OUT = (1000, 2000)
_BATCH = 500  # of an evaluation

flags.DEFINE_enum("model", "lstm", list(CELLS), "Cell of the encoder and of the decoder.", flag_values=FLAGS)
flags.DEFINE_integer("units", 128, "Units of either layer.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("digits", 3, "Digits of a number, at most.", lower_bound=1, upper_bound=9, flag_values=FLAGS)
flags.DEFINE_integer("examples", 45_000, "Sums to learn from.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_boolean("reverse", True, "Read the question from its end.", flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate")


class Sums(NamedTuple):
    """Sums and their text, as indices of `ALPHABET`, with D digits a number at most.

    Attributes:
      numbers: int64 [N, 2], on the host.
      questions: int32 [N, 2 D + 1], as they are read.
      answers: int32 [N, D + 1].
    """

    numbers: np.ndarray
    questions: Array
    answers: Array


def distinct(digits: int) -> np.ndarray:
    """Pairs of numbers int64 [N, 2] in random order, no two of the same numbers in whatever order."""
    k_length, k_number, k_order = jax.random.split(jax.random.key(1410_4615), 3)
    lengths = jax.random.randint(k_length, (DRAWN, 2), 1, digits + 1)
    drawn = np.asarray(jax.random.randint(k_number, (DRAWN, 2), 0, 10**lengths), np.int64)
    _, first = np.unique(drawn.min(1) * 10**digits + drawn.max(1), return_index=True)
    # Not in the order drawn: short numbers, of which there are few, would all come first, and be held out.
    return drawn[first[np.asarray(jax.random.permutation(k_order, len(first)))]]


def encode(texts: Sequence[str], width: int) -> np.ndarray:
    """Texts as indices int32 [N, width], filled up with spaces."""
    index = {character: i for i, character in enumerate(ALPHABET)}
    return np.array([[index[character] for character in text.ljust(width)] for text in texts], np.int32)


def decode(row: np.ndarray) -> str:
    """The text of indices [T], without the spaces at its end."""
    return "".join(ALPHABET[i] for i in row).rstrip()


def written(numbers: np.ndarray, digits: int, reverse: bool) -> Sums:
    """Pairs of numbers [N, 2] as text."""
    questions = encode([f"{a}+{b}" for a, b in numbers], 2 * digits + 1)
    answers = encode([str(total) for total in numbers.sum(1)], digits + 1)
    return Sums(numbers, jnp.asarray(questions[:, ::-1] if reverse else questions), jnp.asarray(answers))


def parts(config: SimpleNamespace) -> dict[str, Sums]:
    """The sums by part; held-out ones do not depend on the number of examples.

    Raises:
      ValueError: more examples than there are different sums.
    """
    found = distinct(config.digits)
    left = max(len(found) - sum(HELD_OUT), 0)
    if config.examples > left:
        raise ValueError(
            f"--examples={config.examples} --digits={config.digits}: {len(found):,} different sums were drawn, which "
            f"leaves {left:,} besides the {sum(HELD_OUT):,} of the validation and the test part; take fewer --examples "
            "or more --digits"
        )
    validation, test, train = np.split(found[: sum(HELD_OUT) + config.examples], np.cumsum(HELD_OUT))
    named = {"train": train, "validation": validation, "test": test}
    return {name: written(numbers, config.digits, config.reverse) for name, numbers in named.items()}


def network(config: SimpleNamespace) -> tuple[supervised.Init, Callable[[Params, Array], Array]]:
    """`init(hparams, key) -> params` and `(params, questions int [B, S]) -> logits [B, D + 1, V]`."""
    encoder = wrappers.with_one_hot(CELLS[config.model](config.units), len(ALPHABET))
    decoder = wrappers.with_head(CELLS[config.model](config.units), len(ALPHABET))

    def init(hparams, key):
        del hparams
        k_encoder, k_decoder = jax.random.split(key)
        return {"encoder": encoder.init(k_encoder, 0), "decoder": decoder.init(k_decoder, config.units)}

    def logits(params, questions):
        _, ys = unroll(encoder, params["encoder"], None, questions.T)
        repeated = jnp.broadcast_to(ys[-1], (config.digits + 1, *ys.shape[1:]))
        return jnp.swapaxes(unroll(decoder, params["decoder"], None, repeated)[1], 0, 1)

    return init, logits


def build(config: SimpleNamespace) -> Experiment:
    """Cross-entropy of the characters; the best params have the lowest validation loss."""
    found = parts(config)
    data = {name: found[name][1:] for name in ("train", "validation")}
    init, logits = network(config)
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels

    def gradient(hparams, data: Tree, params, step, k_data, k_noise):
        del hparams, k_noise
        rows = windows.minibatch(k_data, step, config.batch_size, config.examples)
        questions, answers = (leaf[rows] for leaf in data["train"])
        return jax.value_and_grad(lambda params: cross_entropy(logits(params, questions), answers).mean())(params)

    def evaluate(hparams, data: Tree, params):
        del hparams

        def scores(rows):
            questions, answers = (leaf[rows] for leaf in data["validation"])
            found = logits(params, questions)
            right = found.argmax(2) == answers
            accuracies = {"accuracy": right.all(1), "characters": right.mean(1)}
            return {"loss": cross_entropy(found, answers), **accuracies}

        return jax.tree.map(partial(jnp.mean, dtype=jnp.float32), windows.every(HELD_OUT[0], _BATCH, scores))

    batches = config.examples // config.batch_size
    program = supervised.program(config, init, gradient, evaluate, data, batches=batches, held_out=found["test"])
    return Experiment(program, partial(_finish, logits, found["test"]))


def carries(numbers: np.ndarray) -> np.ndarray:
    """How often one is carried in the sum of each pair [N, 2], int [N]."""
    count, carry = np.zeros(len(numbers), int), np.zeros(len(numbers), int)
    for place in range(len(str(numbers.max()))):
        carry = (numbers // 10**place % 10).sum(1) + carry >= 10
        count += carry
    return count


def _finish(
    logits: Callable[[Params, Array], Array], test: Sums, hparams: Hparams, state: State, run: Run
) -> dict[str, Any]:
    """Accuracy of whole test answers and of their characters; answers.npz with every answer."""
    del hparams

    @jax.jit
    def answer(params, questions):
        return windows.every(len(questions), _BATCH, lambda rows: logits(params, questions[rows]).argmax(2))

    given, right = np.asarray(answer(state.best.params, test.questions)), np.asarray(test.answers)
    write_arrays(run.directory / "answers.npz", numbers=test.numbers, given=given, right=right)
    return {
        "test_accuracy": float((given == right).all(1).mean()),
        "test_characters": float((given == right).mean()),
    }


SWEEP = f"model={','.join(CELLS)};learning_rate=1e-3,3e-3,1e-2;seed=0:5"
# Mistakes that the report shows of a run.
_SHOWN = 5


def report(runs: list[Run]) -> list[Section]:
    """Accuracy of whole answers, along training and by what is hard in a sum, and mistakes of the first run of each."""
    figures, (table, learning, by_carries, by_digits) = separate("accuracy", "learning", "carries", "digits")
    by_label = groups(runs)
    intervals(table, by_label, "test_accuracy", (0, 1))
    table.set(xlabel="accuracy of whole test answers")
    most = max(run.flags["digits"] for run in runs)
    shares: list[list[Any]] = [["", *(f"{count} carried" for count in range(most + 1))]]
    mistakes: list[list[Any]] = [["", "question", "answer", "given"]]
    for index, (label, members) in enumerate(by_label.items()):
        evaluation_lines(learning, label, members, "accuracy", index)
        found = [read_arrays(run.directory / "answers.npz") for run in members]
        numbers = found[0]["numbers"]
        right = np.stack([(one["given"] == one["right"]).all(1) for one in found], axis=1)  # [N, runs]
        carried = carries(numbers)
        longest = np.array([len(str(number)) for number in numbers.max(1)])
        for axes, kind in ((by_carries, carried), (by_digits, longest)):
            values = np.unique(kind)
            curve(axes, label, values.tolist(), [right[kind == value].mean(0).tolist() for value in values], index)
        rows = [right[carried == count] for count in range(most + 1)]
        shares.append([label, *(mean(row.mean(0).tolist()) if len(row) else None for row in rows)])
        for i in np.flatnonzero(~right[:, 0])[:_SHOWN]:
            question = "{}+{}".format(*numbers[i])
            mistakes.append([label, question, decode(found[0]["right"][i]), decode(found[0]["given"][i])])
    learning.set(xlabel="updates", ylabel="accuracy of whole validation answers", ylim=(0, 1))
    by_carries.set(xlabel="ones carried", ylabel="accuracy of whole test answers", ylim=(0, 1))
    by_digits.set(xlabel="digits of the longer number", ylabel="accuracy of whole test answers", ylim=(0, 1))
    text = "Share of the answers of which every character is right, at the params of the lowest validation loss."
    return [
        Section("Sums", text, figures, shares),
        Section("Mistakes", "The first wrong answers of the first run of each row of the table.", table=mistakes),
    ]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
