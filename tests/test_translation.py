"""Encoder and decoder, baselines of translation, and the experiment through its command line."""

import io
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_experiments import drawn, refused, run

from experiments import translation
from experiments.demos import translate
from experiments.harness.experiment import define
from experiments.shared import translation_baselines
from seqjax import attention, cells
from seqjax.data import pairs
from seqjax.models import Decoder, Translator

SOURCE, LENGTHS = jnp.array([[4, 5, 3], [5, 3, 0]], jnp.int32), jnp.array([3, 2], jnp.int32)
TARGET = jnp.array([[2, 4, 5, 6], [2, 6, 6, 4]], jnp.int32)


pytestmark = pytest.mark.usefixtures("quick_programs")


def test_a_translator():
    """Padding is not read, steps are the whole; greedy search says the likeliest token, a wide beam the best text."""
    model = Translator(cells.lstm(3), 6, 7, 2, attend=attention.bahdanau, rngs=nnx.Rngs(0))
    model.eval()

    @jax.jit
    def logits(source, target, lengths):
        return model(source, lengths, target)

    @jax.jit
    def by_steps(lengths):
        carry, memory = model.encode(SOURCE, lengths)
        step = partial(model.decoder.step, memory=memory)
        return jnp.swapaxes(jax.lax.scan(step, carry, TARGET.T)[1], 0, 1)

    whole = logits(SOURCE, TARGET, LENGTHS)
    assert whole.shape == (2, 4, 7)
    np.testing.assert_allclose(whole, logits(SOURCE.at[1, 2].set(5), TARGET, LENGTHS), atol=1e-6)
    np.testing.assert_allclose(by_steps(LENGTHS), whole, atol=1e-5)

    @partial(jax.jit, static_argnums=0)
    def said(width, lengths):
        return model.translate(SOURCE, lengths, 3, start=pairs.START, stop=pairs.STOP, width=width)

    def log_p(tokens):
        """Of each next token, of tokens NumPy [2, 3] (the fourth step is there for the shape)."""
        given = np.concatenate([np.full((2, 1), pairs.START, np.int32), tokens], 1)
        return np.asarray(jax.nn.log_softmax(logits(SOURCE, given, LENGTHS))), np.cumsum(given == pairs.STOP, 1)[
            :, :3
        ] > 0

    greedy = np.asarray(said(1, LENGTHS))
    found, ended = log_p(greedy)
    assert ((found[:, :3].argmax(-1) == greedy) | ended).all()

    def likelihood(tokens):
        found, ended = log_p(tokens)
        return np.where(ended, 0, np.take_along_axis(found[:, :3], tokens[..., None], -1)[..., 0]).sum(1)

    words = [a for a in range(7) if a != pairs.STOP]
    every = [[3, 3, 3], *([a, 3, 3] for a in words), *([a, b, 3] for a in words for b in words)]
    best = np.max([likelihood(np.array([row] * 2, np.int32)) for row in every], 0)
    np.testing.assert_allclose(likelihood(np.asarray(said(49, LENGTHS))), best, rtol=1e-5)


def test_scheduled_sampling_reads_what_the_decoder_says():
    decoder = Decoder(
        cells.gru(3), 7, 2, about=3, attend=partial(attention.luong, features=2), dropout=0.5, rngs=nnx.Rngs(0)
    )
    decoder.head.kernel[...] = decoder.head.kernel[...] * 1e4  # so sure that a draw is the likeliest token
    given = np.tile(TARGET, (1, 100))

    @jax.jit
    def sampled(rate):
        carry, memory = decoder.start(jnp.ones((2, 3))), decoder.remember(jnp.ones((2, 3, 2)))
        read = decoder.sampled(jax.random.key(1), rate, jnp.asarray(given), carry, memory)
        logits = nnx.view(decoder, deterministic=True)(read, carry, memory)
        return read, jnp.argmax(logits, -1)[:, :-1]

    np.testing.assert_array_equal(sampled(0.0)[0], given)
    own, said = map(np.asarray, sampled(1.0))
    assert own.dtype == given.dtype
    np.testing.assert_array_equal(own[:, 0], given[:, 0])
    np.testing.assert_array_equal(own[:, 1:], said)
    half, said = map(np.asarray, sampled(0.5))
    assert ((half == given)[:, 1:] | (half[:, 1:] == said)).all()
    changed = (half != given)[:, 1:].mean() / (said != given[:, 1:]).mean()
    assert 0.4 < changed < 0.6


def test_a_decoder_without_attention_shows_no_weights():
    decoder = Decoder(cells.gru(3), 7, 2, about=3, rngs=nnx.Rngs(0))
    assert decoder.remember(jnp.ones((2, 3, 2))) is None
    with pytest.raises(ValueError, match="a decoder without attention has no weights to show"):
        decoder.weights(TARGET, decoder.start(jnp.ones((2, 3))), None)


def test_ibm_model_1_is_the_loop_of_its_paper():
    rows = [np.array([0, 1]), np.array([0, 2]), np.array([1])]
    columns = [np.array([0, 1]), np.array([0, 2, 2]), np.array([1])]
    t = np.ones((3, 4))
    for _ in range(4):
        counts = np.zeros((3, 4))
        for e, f in zip(rows, columns, strict=True):
            for j in f:
                for i in e:
                    counts[i, j] += t[i, j] / sum(t[k, j] for k in e)
        t = counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(translation_baselines.ibm1(rows, columns, (3, 4), 4).toarray(), t, rtol=1e-12)


def test_baselines():
    train = pairs.Pairs(
        ("the house", "the book", "a book", "a house"), ("la maison", "le livre", "un livre", "une maison")
    )
    said = translation_baselines.all_of(train, ["a house", "The Book?"])
    assert said["copy"] == ["a house", "the book ?"]
    assert said["words"][0].endswith(" maison")
    assert said["words"][1].endswith(" livre ?")
    assert said["nearest"] == ["une maison", "le livre"]


def test_bleu_takes_the_best_of_several_references(monkeypatch):
    pytest.importorskip("sacrebleu", reason="BLEU is that of sacrebleu, which is not installed")
    text = "Elle a une vieille maison."
    assert translation.bleu([text.lower(), "x"], [["Un chat.", text], ["x"]]) == pytest.approx(100)
    assert translation.bleu([text, "y"], [[text], ["x", "z"]]) < 100
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"BLEU needs sacrebleu: pip install 'seqjax\[text\]'"):
        translation.bleu(["x"], [["x"]])


SMALL = ("--batch_size=8", "--units=3", "--embedding_size=2", "--min_count=1")


@pytest.fixture
def long_translations(monkeypatch):
    """Pairs of which some have 5 English words, and some up to 12 French ones."""
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(list("abcdef"), n)) for n in rng.integers(1, 6, 60)]
    source = [f"{text} {i}" for i, text in enumerate(words)]
    target = [" ".join(rng.choice(list("uvwxyz"), n)) for n in rng.integers(1, 13, 60)]
    monkeypatch.setattr(translation, "FEW", (4, 4))
    monkeypatch.setattr(translation.pairs, "generated", lambda count: pairs.Pairs(tuple(source), tuple(target)))


def test_perplexity_is_over_all_tokens_of_all_pairs(long_translations):
    """Against one pair at a time, without padding; what is left out is counted."""
    flags = {"length": 5, "units": 3, "embedding_size": 2, "min_count": 1, "batch_size": 4, "attention": "none"}
    config = define(translation).parse(flags)
    experiment, hparams = translation.build(config), define(translation).hparams(config)
    program = experiment.program
    params = program.init(hparams).params
    assert program.evaluate is not None
    found = translation.load_corpus(config)
    part = found.parts["validation"]
    lengths = {name: [len(text.split()) for text in one.target] for name, one in found.parts.items()}
    assert max(lengths["validation"]) > translation.longest(5) == 7
    model = translation.network(config, found)[1](hparams, params, None)
    sums, count = 0.0, 0
    for source, target in zip(*part, strict=True):
        english, french = found.english.encode(source), found.french.encode(target)
        start, memory = model.encode(jnp.asarray(english)[None], jnp.array([len(english)], jnp.int32))
        read = jnp.asarray([pairs.START, *french[:-1]], jnp.int32)[None]
        logits = np.asarray(model.decoder(read, start, memory)[0], np.float64)
        sums -= (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(len(french)), french].sum()
        count += len(french)
    assert count == sum(lengths["validation"]) + len(part.target)
    loss = program.evaluate(hparams, program.data, program.init(hparams))["loss"]
    np.testing.assert_allclose(loss, sums / count, rtol=1e-5)

    taught = sum(len(bucket.which) for bucket in program.data["train"])
    untaught = sum(length > 7 for length in lengths["train"])
    assert taught == len(lengths["train"]) - untaught
    longer = 60 - sum(map(len, lengths.values()))
    assert longer > 0
    assert experiment.left_out == (
        f"{longer} of 60 pairs, with more than 5 English words and signs; {untaught} of {taught + untaught} training"
        " pairs, with more than 7 French ones"
    )


def test_a_long_sentence_has_room_for_a_long_translation():
    """Of a network that never says STOP: as many words as its source may have, whatever --length is."""
    config = define(translation).parse({"length": 4})
    model = Translator(cells.gru(3), 8, 8, 2, rngs=nnx.Rngs(0))
    bias: Any = model.decoder.head.bias
    bias[...] = bias[...].at[pairs.STOP].set(-1e4)
    said = translation.said(lambda hparams, params, key: model, {}, config, 1)
    assert said({}, jnp.full((1, 5), 4, jnp.int32)).shape == (1, 4 + 2 + 1)
    assert said({}, jnp.full((1, 21), 4, jnp.int32)).shape == (1, 20 + 10 + 1)


@pytest.mark.parametrize(
    "kind", ["multiplicative", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("none", "additive"))]
)
def test_translation(kind, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sacrebleu", reason="BLEU is that of sacrebleu, which is not installed")
    monkeypatch.setattr(translation, "BORDERS", ())
    beam = 2 if kind == "additive" else 1  # one program less to be compiled
    flags = (f"--attention={kind}", f"--beam={beam}", "--scheduled_sampling=0.5", *SMALL)
    finished = run("translation", tmp_path / "run", *flags)
    result = finished.result()
    assert result["test_perplexity"] == pytest.approx(np.exp(result["test_loss"]))
    assert all(0 <= value <= 100 for name, value in result.items() if name.startswith("bleu_"))
    assert 0 <= result["unfinished_beam"] <= 20
    assert result["left_out"].startswith("0 of 600 pairs, with more than 8 English words")
    assert f"left out: {result['left_out']}\n" in capsys.readouterr().err
    text = (finished.directory / "translations.txt").read_text()
    assert text.count("    greedy  ") == text.count("   nearest  ") == 20
    assert (finished.figures / "attention.png").exists() == (kind != "none")
    assert [section.title for section in drawn(translation, [finished])] == ["Translation"]
    if kind != "additive":
        return
    sentence, said = text.split("\n")[0], text.split("\n")[2].removeprefix("      beam").strip()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{sentence}\n\n"))
    assert translate.main([f"--run={finished.directory}"]) == 0
    assert capsys.readouterr().out.split("\n")[-3:] == [said, "", ""]


def test_translation_refuses():
    assert "--scheduled_sampling" in refused("translation", "--scheduled_sampling=1.5")
    assert "a rate in [0, 1)" in refused("translation", "--dropout=1")
