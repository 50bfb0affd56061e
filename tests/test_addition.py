"""Sums as text: their parts, what is carried, the network against a loop of steps, and the command line."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experiments import drawn, refused, run

from experiments import addition
from experiments.harness.experiment import define
from seqjax.train import read_arrays, write_arrays

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(autouse=True)
def few_sums(monkeypatch):
    monkeypatch.setattr(addition, "DRAWN", 3000)
    monkeypatch.setattr(addition, "HELD_OUT", (30, 70))


def config(**given):
    return define(addition).parse({"examples": 200, "units": 5, "batch_size": 8, **given})


@pytest.mark.parametrize("digits", [2, 3, 9])
def test_no_held_out_sum_occurs_in_training_in_either_order(digits):
    found = addition.parts(config(digits=digits))
    assert [len(found[name].numbers) for name in ("train", "validation", "test")] == [200, 30, 70]
    numbers = np.concatenate([part.numbers for part in found.values()])
    assert len({tuple(sorted(pair)) for pair in numbers.tolist()}) == 300
    assert 0 <= numbers.min() <= numbers.max() < 10**digits
    # The larger number is as often the second one.
    assert (numbers[:, 0] < numbers[:, 1]).mean() == pytest.approx(0.5, abs=0.1)


def test_held_out_sums_are_the_same_for_all_runs():
    one, other = addition.parts(config()), addition.parts(config(examples=5, model="rnn", seed=3))
    for name in ("validation", "test"):
        np.testing.assert_array_equal(one[name].numbers, other[name].numbers)
    np.testing.assert_array_equal(one["train"].numbers[:5], other["train"].numbers)


def test_each_length_is_drawn_equally_often(monkeypatch):
    monkeypatch.setattr(addition, "DRAWN", 100_000)
    # Of nine digits hardly a pair is drawn twice; a number begins with 0 in one of ten draws of each length.
    longest = np.char.str_len(addition.distinct(9).astype(str))
    expected = 0.9 * 100_000 * 2 / 9
    assert (longest == 9).sum() == pytest.approx(expected, rel=0.05)


def test_sums_are_written_with_spaces_at_the_end_and_read_from_either():
    numbers = np.array([[535, 61], [7, 0], [999, 999]])
    sums = addition.written(numbers, 3, reverse=False)
    assert [addition.decode(row) for row in np.asarray(sums.questions)] == ["535+61", "7+0", "999+999"]
    assert [addition.decode(row) for row in np.asarray(sums.answers)] == ["596", "7", "1998"]
    assert (sums.questions.shape, sums.answers.shape) == ((3, 7), (3, 4))
    reverse = addition.written(numbers, 3, reverse=True)
    np.testing.assert_array_equal(reverse.questions, sums.questions[:, ::-1])
    np.testing.assert_array_equal(reverse.answers, sums.answers)


def test_ones_are_carried_as_on_paper():
    numbers = np.array([[535, 61], [5, 5], [95, 5], [999, 1], [999, 999], [150, 60], [0, 0]])
    np.testing.assert_array_equal(addition.carries(numbers), [0, 1, 2, 3, 3, 1, 0])


@pytest.mark.parametrize("model", list(addition.CELLS))
def test_the_decoder_reads_the_last_output_of_the_encoder_at_each_step(model):
    """Against a loop of steps on one-hot vectors."""
    given = config(model=model, digits=2)
    init, logits = addition.network(given)
    params = init({}, jax.random.key(0))
    questions = jax.random.randint(jax.random.key(1), (3, 5), 0, 12)
    encoder = decoder = addition.CELLS[model](5)
    carry = encoder.initial_carry(params["encoder"], (3,))
    y = jnp.zeros((3, 5))
    for token in questions.T:
        carry, y = encoder.step(params["encoder"], carry, jax.nn.one_hot(token, 12))
    said = []
    carry = decoder.initial_carry(params["decoder"]["cell"], (3,))
    for _ in range(3):
        carry, out = decoder.step(params["decoder"]["cell"], carry, y)
        said.append(np.asarray(out) @ np.asarray(params["decoder"]["w_y"]) + np.asarray(params["decoder"]["b_y"]))
    np.testing.assert_allclose(logits(params, questions), np.stack(said, 1), rtol=1e-5, atol=1e-6)


def test_a_network_has_the_weights_of_its_two_layers_and_its_head():
    init, _ = addition.network(config(model="lstm", units=128))
    params = jax.eval_shape(init, {}, jax.random.key(0))
    expected = 4 * 128 * (12 + 128 + 1) + 4 * 128 * (128 + 128 + 1) + 12 * (128 + 1)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == expected


def test_addition(tmp_path):
    small = ("--model=rnn", "--units=3", "--batch_size=8", "--examples=100", "--digits=2")
    finished = run("addition", tmp_path / "run", *small)
    saved, result = read_arrays(finished.directory / "answers.npz"), finished.result()
    right = saved["given"] == saved["right"]
    assert right.shape == (70, 3)
    assert result["test_characters"] == pytest.approx(right.mean())
    assert result["test_accuracy"] == pytest.approx(right.all(1).mean())
    validated = [record for record in finished.records() if record["split"] == "validation"]
    assert all(record["accuracy"] <= record["characters"] for record in validated)
    sums, mistakes = drawn(addition, [finished])
    assert (sums.title, mistakes.title) == ("Sums", "Mistakes")
    assert sums.table[0] == ["", "0 carried", "1 carried", "2 carried"]
    counts = np.bincount(addition.carries(saved["numbers"]))
    shares = [cell.mean for cell in sums.table[1][1:]]
    assert np.dot(counts, shares) / 70 == pytest.approx(result["test_accuracy"])
    assert len(mistakes.table) == 6
    for _, question, answer, given in mistakes.table[1:]:
        assert sum(map(int, question.split("+"))) == int(answer)
        assert given != answer


def test_runs_of_different_digits_are_in_one_table(tmp_path):
    """Sums of one digit carry at most one."""
    runs = []
    for digits, numbers in ((1, [[5, 5], [2, 3]]), (2, [[99, 9], [2, 3]])):
        sums = addition.written(np.array(numbers), digits, reverse=True)
        answers = np.asarray(sums.answers)
        (tmp_path / str(digits)).mkdir()
        write_arrays(tmp_path / str(digits) / "answers.npz", numbers=sums.numbers, given=answers, right=answers)
        runs.append(
            SimpleNamespace(
                directory=tmp_path / str(digits),
                flags={"digits": digits},
                result=lambda: {"test_accuracy": 1.0},
                records=lambda: [{"split": "validation", "step": 1, "accuracy": 1.0}],
            )
        )
    sums, mistakes = drawn(addition, runs)
    assert [[cell and cell.mean for cell in row[1:]] for row in sums.table[1:]] == [[1, 1, None], [1, None, 1]]
    assert len(mistakes.table) == 1


def test_addition_learns_the_sums_that_it_is_trained_on(monkeypatch):
    monkeypatch.setattr(addition, "HELD_OUT", (5, 5))
    given = config(model="gru", digits=1, examples=45, units=32, batch_size=45, learning_rate=1e-2)
    program, hparams = addition.build(given).program, define(addition).hparams(given)
    state, losses = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: program.update(hparams, program.data, s), state, length=300)
    )(program.init(hparams))
    assert losses["loss"][0] > 1.5
    assert losses["loss"][-1] < 0.05
    assert set(program.evaluate(hparams, program.data, state)) == {"loss", "accuracy", "characters"}


def test_addition_refuses():
    assert "value should be one of <rnn|gru|lstm>" in refused("addition", "--model=transformer")
    assert "--digits=0" in refused("addition", "--digits=0")
    message = (
        r"--examples=46 --digits=1: 55 different sums were drawn, which leaves 0 besides the 100 .*fewer --examples"
    )
    with pytest.raises(ValueError, match=message):
        addition.build(config(digits=1, examples=46))
