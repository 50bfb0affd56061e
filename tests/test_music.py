"""Models of piano rolls against loops in NumPy, and the music experiment through its command line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from flax import nnx
from test_experiments import drawn, refused, run

from experiments import music
from experiments.harness.experiment import define
from experiments.shared import tasks
from seqjax import cells
from seqjax.data import music as rolls
from seqjax.models.music import Chain, Independent, Nade, RollModel
from seqjax.train import read_arrays

K, C = 5, 3


pytestmark = pytest.mark.usefixtures("quick_programs")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def every_chord(keys):
    return (np.arange(2**keys)[:, None] >> np.arange(keys) & 1).astype(np.float32)


def nade():
    head = Nade(C, K, hidden=4, rngs=nnx.Rngs(0))
    head.bias.bias[...] = jnp.linspace(-1, 1, K)
    head.first.bias[...] = jnp.linspace(1, -1, 4)
    return head


CONTEXT = jnp.array([[0.5, -1.0, 2.0]])


def test_nade_is_the_loop_over_keys():
    head, chord = nade(), np.array([1, 0, 1, 1, 0], np.float32)
    kernel = {name: np.asarray(getattr(head, name).kernel[...]) for name in ("bias", "first")}
    b = np.asarray(CONTEXT[0]) @ kernel["bias"] + np.asarray(head.bias.bias[...])
    a = np.asarray(CONTEXT[0]) @ kernel["first"] + np.asarray(head.first.bias[...])
    expected = []
    for k in range(K):
        expected.append(b[k] + sigmoid(a) @ np.asarray(head.read[...])[k])
        a = a + chord[k] * np.asarray(head.write[...])[k]
    np.testing.assert_allclose(head.logits(CONTEXT, jnp.asarray(chord)[None])[0], expected, rtol=1e-5)


def probabilities(head):
    """Of all chords, given the context."""
    chords = jnp.asarray(every_chord(K))
    logits = head.logits(jnp.broadcast_to(CONTEXT, (len(chords), C)), chords)
    return np.asarray(jnp.prod(jax.nn.sigmoid(jnp.where(chords == 1, logits, -logits)), -1))


@pytest.mark.parametrize("make", [nade, lambda: Independent(C, K, rngs=nnx.Rngs(1))], ids=["nade", "independent"])
def test_a_head_draws_chords_as_often_as_it_says(make):
    head, count = make(), 20_000
    said = probabilities(head)
    np.testing.assert_allclose(said.sum(), 1, rtol=1e-5)
    chords = np.asarray(head.sample(jnp.broadcast_to(CONTEXT, (count, C)), jax.random.key(0)))
    found = np.bincount((chords @ 2 ** np.arange(K)).astype(int), minlength=2**K) / count
    assert np.abs(found - said).max() < 5 * np.sqrt(said.max() / count)
    cold = np.asarray(head.sample(jnp.broadcast_to(CONTEXT, (50, C)), jax.random.key(0), 1e-3))
    assert (cold == cold[0]).all()


def test_a_chain_has_the_frequencies_of_its_counts():
    pieces = [np.zeros((4, 88), np.uint8), np.zeros((3, 88), np.uint8)]
    pieces[0][:, 7] = 1, 1, 0, 1
    pieces[1][:, 7] = 0, 1, 1
    # Key 7: silent twice and sounding both times after; sounding three times, and twice after. All others stay silent.
    markov, repeat, marginal = (
        sigmoid(music.log_odds(pieces, music.CHAINS[m])) for m in ("markov", "repeat", "marginal")
    )
    np.testing.assert_allclose(markov[:, 7], [2.5 / 3, 2.5 / 4], rtol=1e-6)
    np.testing.assert_allclose(markov[:, 8], [0.5 / 6, 0.5], rtol=1e-6)
    np.testing.assert_allclose(repeat[:, 30], [2.5 / (2 + 5 * 87 + 1), 2.5 / 4], rtol=1e-6)
    np.testing.assert_allclose(marginal[:, 7], [4.5 / 6] * 2, rtol=1e-6)
    table = jnp.asarray(music.log_odds(pieces, ()))
    model = RollModel(None, Chain(table), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(model.logits(jnp.asarray(pieces[0])[None])[0, :, 7], table[jnp.array([1, 1, 0]), 7])


def test_the_likelihood_is_that_of_a_loop_and_padding_is_not_read():
    model = RollModel.recurrent(cells.gru(4), keys=K, dropout=0.3, rngs=nnx.Rngs(0))
    model.eval()
    rng = np.random.default_rng(0)
    pieces = jnp.asarray(rng.integers(0, 2, (2, 6, K)), jnp.uint8)
    lengths = jnp.array([6, 4], jnp.int32)
    found = model.nll(pieces, lengths)
    assert found.shape == (2, 5)
    np.testing.assert_array_equal(found[1, 3:], 0)
    for b, length in enumerate(lengths.tolist()):
        carry, past = None, pieces[b : b + 1].astype(jnp.float32)
        for t in range(length - 1):
            carry, context = model.contexts(past[:, t : t + 1], carry)
            p = sigmoid(np.asarray(model.head.logits(context, context))[0, 0])
            chord = np.asarray(pieces[b, t + 1])
            expected = -np.log(np.where(chord == 1, p, 1 - p)).sum()
            np.testing.assert_allclose(found[b, t], expected, rtol=1e-4)
    np.testing.assert_array_equal(found, model.nll(pieces.at[1, 4:].set(1), lengths))
    model.train()
    assert not np.allclose(found, model.nll(pieces, lengths))


@pytest.mark.parametrize("width", [0, 4])
def test_a_composition_goes_on_from_its_start(width):
    """Near temperature 0 each chord is the likeliest after all before, the start among them."""
    model = RollModel.recurrent(cells.lstm(6), keys=K, nade=width, rngs=nnx.Rngs(3))
    model.eval()
    start = jnp.asarray(np.random.default_rng(1).integers(0, 2, (2, 3, K)), jnp.uint8)
    composed = model.compose(start, 4, jax.random.key(0), temperature=1e-4)
    assert composed.shape == (2, 4, K)
    whole = jnp.concatenate([start.astype(jnp.float32), composed], 1)
    np.testing.assert_array_equal(composed, (model.logits(whole)[:, 2:] > 0).astype(jnp.float32))
    one, other, again = (model.compose(start, 8, jax.random.key(seed)) for seed in (0, 1, 0))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


SMALL = ("--batch_size=4", "--units=3", "--layers=1", "--start=5", "--composed=7")


PIECES = {"train": 12, "validation": 5, "test": 5}


@pytest.fixture
def few_pieces(monkeypatch):
    """Of unequal lengths, and in each part one that is longer than the longest bucket."""
    monkeypatch.setitem(music.BORDERS, "jsb", (48,))
    small = {part: rolls.generated(count, seed) for seed, (part, count) in enumerate(PIECES.items())}
    small = {part: (*some[:-1], np.concatenate([some[-1], some[0], some[1]])) for part, some in small.items()}
    monkeypatch.setattr(tasks, "pieces", lambda data_dir, name: small)
    return small


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("lstm", 4 * 220 * (88 + 220 + 1) + 88 * 221),
        ("gru", 3 * 260 * (88 + 260 + 1) + 260 + 88 * 261),
        ("rnn", 460 * (88 + 460 + 1) + 88 * 461),
        ("marginal", 0),
        ("repeat", 0),
    ],
)
def test_music_models(model, parameters, few_pieces):
    """Every model has its weights and can be trained: all but the compiler's part of a run."""
    config = define(music).parse({"model": model, "batch_size": 4})
    made, hparams = music.build(config).program, define(music).hparams(config)
    state = jax.eval_shape(made.init, hparams)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)) == parameters
    after, _ = jax.eval_shape(made.update, hparams, made.data, state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


@pytest.mark.parametrize("flags", [["--model=markov"], ["--model=rnn", "--nade=2"]], ids="".join)
def test_music(flags, tmp_path, few_pieces):
    finished = run("music", tmp_path / "run", *flags, *SMALL)
    result = finished.result()
    assert result["validation_nll"] == min(r["nll"] for r in finished.records() if r["split"] == "validation")
    assert result["piece_keys"] == 4
    assert result["piece_held"] > 0.5
    composed = read_arrays(finished.directory / "composed.npz")["composed"]
    assert composed.shape == (5, 5 + 7, 88)
    for i in range(3):
        assert (finished.figures / f"rolls_{i}.png").stat().st_size > 10_000
        assert (finished.directory / f"composed_{i}.mid").read_bytes()[:4] == b"MThd"
        np.testing.assert_array_equal(composed[i, :5], few_pieces["test"][i][:5])
    if flags == ["--model=markov"]:
        assert result["parameters"] == 0
        table = music.log_odds(few_pieces["train"], ())
        for part, found in (("test", result["test_nll"]), ("validation", result["validation_nll"])):
            sums = []  # of one piece at a time
            for piece in few_pieces[part]:
                p = sigmoid(np.where(piece[:-1] == 1, table[1], table[0]))
                sums.append(-np.log(np.where(piece[1:] == 1, p, 1 - p)).sum(1))
            assert len(sums[-1]) > 48
            np.testing.assert_allclose(found, np.concatenate(sums).mean(), rtol=1e-4)
            if part == "test":
                np.testing.assert_allclose(result["test_nll_sequence"], np.mean([s.mean() for s in sums]), rtol=1e-4)
        assert [section.title for section in drawn(music, [finished])] == ["Music"]


@pytest.mark.parametrize(
    ("data", "file"),
    [("piano_midi", "Piano_midi.mat"), ("musedata", "MuseData.mat"), ("jsb_quarter", "jsb-chorales-quarter.json")],
)
def test_every_file_of_the_paper_has_a_name(data, file, tmp_path):
    """A small file of that name is read, and a program made of it, by `--data`."""
    pieces = {"train": rolls.generated(6, 0), "valid": rolls.generated(2, 1), "test": rolls.generated(2, 2)}
    if file.endswith(".json"):
        sequences = {part: [rolls.chords(roll) for roll in parts] for part, parts in pieces.items()}
        (tmp_path / file).write_text(json.dumps(sequences))
    else:
        cells_of = {f"{part}data": np.empty((1, len(parts)), object) for part, parts in pieces.items()}
        for part, parts in pieces.items():
            cells_of[f"{part}data"][0, :] = parts
        scipy.io.savemat(tmp_path / file, cells_of)
    config = define(music).parse({"data": data, "model": "markov", "batch_size": 4, "data_dir": str(tmp_path)})
    buckets = music.build(config).program.data["train"]
    np.testing.assert_array_equal(
        np.sort(np.concatenate([bucket.lengths for bucket in buckets])), sorted(len(roll) for roll in pieces["train"])
    )
    assert music.SECONDS[data] > 0


def test_what_compositions_are_like():
    train = [rolls.roll([[60, 64], [62, 64]])]
    piece = rolls.roll([[60, 64], [60, 64], [62, 64], [61], [72, 76]])
    found = music._likeness([piece], train, start=2)
    assert found == {"keys": 5 / 3, "held": 1 / 5, "in_key": 3 / 5, "known": 1 / 3}


def test_music_refuses(tmp_path):
    assert "value should be one of <jsb|jsb_quarter|jsb_16th|nottingham|piano_midi|musedata>" in refused(
        "music", "--data=bach"
    )
    assert "must be positive" in refused("music", "--temperature=0")
    assert "a rate in [0, 1)" in refused("music", "--dropout=1")
    assert "--nade is for the recurrent models (rnn, lstm, gru)" in refused("music", "--model=markov", "--nade=8")
    with pytest.raises(FileNotFoundError, match=r"no JSB_Chorales.mat .*in it, found nothing"):
        music.build(define(music).parse({"data_dir": str(tmp_path)}))


def test_a_start_that_is_longer_than_a_piece_is_refused(few_pieces):
    shortest = min(map(len, few_pieces["test"]))
    with pytest.raises(ValueError, match=rf"--start={shortest}: a test piece has {shortest} steps"):
        music.build(define(music).parse({"start": shortest, "batch_size": 4}))
    music.build(define(music).parse({"start": shortest - 1, "batch_size": 4}))


def test_generated_pieces_are_said_to_be_generated(capsys):
    parts = tasks.pieces.__wrapped__(None, "jsb")
    assert {name: len(part) for name, part in parts.items()} == {"train": 64, "validation": 24, "test": 24}
    assert "the pieces are generated" in capsys.readouterr().err
