"""Language models: the network, counted n-grams, the experiment, dynamic evaluation, and text that they generate."""

import itertools
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_experiments import drawn, refused, run

import seqjax
from experiments import language
from experiments.demos import generate
from experiments.harness.experiment import define
from experiments.shared import corpora, reading
from experiments.shared.reading import read, read_and_learn
from seqjax import cells, decoding
from seqjax.data import ptb, words
from seqjax.models import KneserNey, LanguageModel
from seqjax.train import Run, read_arrays

TOKENS = jnp.array([[2, 4], [0, 3], [4, 4]], jnp.int32)


pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_is_its_layers(tied):
    layers = [cells.gru(4), cells.rnn(3)]

    @jax.jit
    def run():
        model = LanguageModel(layers, 5, 3, tied=tied, rngs=nnx.Rngs(0))
        model.bias[...] = jnp.arange(5, dtype=jnp.float32)
        table = model.embedding.embedding[...]
        params = tuple(layer.weights for layer in model.layers)
        expected = seqjax.unroll(cells.stack(*layers), params, model.initial_carry(2), table[TOKENS])
        middle, _, _ = model(TOKENS[:1])
        head = table.T if tied else model.kernel[...]
        return model(TOKENS), model(TOKENS[1:], middle)[2], expected, table, head

    (after, ys, logits), rest, (carry, expected), table, head = run()
    np.testing.assert_allclose(ys, expected, rtol=1e-5)
    np.testing.assert_allclose(logits, np.asarray(expected) @ np.asarray(head) + np.arange(5), rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, carry)
    np.testing.assert_allclose(rest, logits[1:], rtol=1e-5)  # a text in two parts is one text
    assert np.abs(table).max() <= 0.1 < 2 * np.abs(table).max()


def test_each_rate_drops_what_it_says():
    @jax.jit
    def outputs(key, rates):
        """The outputs and logits with noise, and the logits without."""
        model = LanguageModel([cells.rnn(8), cells.rnn(6)], 5, 4, rngs=nnx.Rngs(params=0, dropout=key), **rates)
        _, ys, logits = model(TOKENS)
        model.eval()
        return ys, logits, model(TOKENS)[2]

    rates = dict.fromkeys(reading.RATES, jnp.float32(0))
    bare = outputs(jax.random.key(0), rates)
    np.testing.assert_allclose(bare[1], bare[2], rtol=1e-5)
    for name in reading.RATES:
        draws = [outputs(jax.random.key(seed), rates | {name: jnp.float32(0.5)}) for seed in range(4)]
        assert np.ptp([logits for _, logits, _ in draws], 0).max() > 1e-3, name
        np.testing.assert_allclose(draws[0][2], bare[2], rtol=1e-6)
    # The output is masked alike at all steps.
    ys = np.asarray(outputs(jax.random.key(1), rates | {"output_dropout": jnp.float32(0.5)})[0])
    np.testing.assert_array_equal((ys == 0).all(0), (ys == 0).any(0))
    assert 0 < (ys == 0).mean() < 1


def test_a_word_is_dropped_wherever_it_stands_and_the_tied_head_keeps_it():
    model = LanguageModel([cells.rnn(4)], 3, 4, tied=True, embedding_dropout=0.5, rngs=nnx.Rngs(2))
    model.layers[0].cell_params["w_h"][...] = jnp.zeros((4, 4))  # an output is that of its own token
    model.layers[0].cell_params["b"][...] = jnp.ones(4)
    _, ys, logits = nnx.jit(lambda model, tokens: model(tokens))(model, jnp.array([[0, 1], [1, 2], [2, 0]], jnp.int32))
    of = {token: np.asarray(ys[step, row]) for token, step, row in ((0, 0, 0), (1, 0, 1), (2, 1, 1))}
    for token, step, row in ((1, 1, 0), (2, 2, 0), (0, 2, 1)):
        np.testing.assert_allclose(ys[step, row], of[token], rtol=1e-6)
    dropped = [token for token, y in of.items() if np.allclose(y, np.tanh(1))]
    assert 0 < len(dropped) < 3
    np.testing.assert_allclose(logits, ys @ model.embedding.embedding[...].T, rtol=1e-5)


def test_a_language_model_refuses():
    with pytest.raises(ValueError, match="a last layer of 3 outputs, as the embedding has, got 4"):
        LanguageModel([cells.rnn(4)], 5, 3, tied=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="at least one cell"):
        LanguageModel([], 5, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no leaf of the params is named w_h"):
        LanguageModel([cells.min_gru(4)], 5, 3, weight_drop=0.5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"a dropout rate lies in \[0, 1\), got 1.0"):
        LanguageModel([cells.rnn(4)], 5, 3, embedding_dropout=1.0, rngs=nnx.Rngs(0))


def kneser_ney(train, size, order, history, token):
    """p(token | history) with dictionaries, as Chen & Goodman write it."""
    grams = {n: Counter(tuple(train[i : i + n]) for i in range(len(train) - n + 1)) for n in range(1, order + 1)}

    def counts(n):
        if n == order:
            return grams[n]
        return Counter(longer[1:] for longer in grams[n + 1])

    def discount(n, count):
        times = Counter(counts(n).values())
        t = [times[k] for k in range(5)]
        k = min(count, 3)
        if not (t[1] or t[2]) or not t[k]:
            return 0.5
        found = k - (k + 1) * t[1] / (t[1] + 2 * t[2]) * t[k + 1] / t[k]
        return found if 0 < found < k else 0.5

    def p(history):
        n = len(history) + 1
        after = {gram[-1]: count for gram, count in counts(n).items() if gram[:-1] == history}
        shorter = p(history[1:]) if history else 1 / size
        if not after:
            return shorter
        left = sum(discount(n, count) for count in after.values())
        own = after[token] - discount(n, after[token]) if token in after else 0
        return (own + left * shorter) / sum(after.values())

    return p(tuple(history[max(0, len(history) - order + 1) :]))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_kneser_ney_is_the_formula(order):
    rng = np.random.default_rng(0)
    train = rng.choice(6, 120, p=[0.05, 0.5, 0.2, 0.15, 0.08, 0.02])
    test = rng.integers(0, 7, 40)  # token 6 is new
    model = KneserNey.fit(train, size=7, order=order)
    expected = [-np.log(kneser_ney(train.tolist(), 7, order, test[:i].tolist(), test[i])) for i in range(40)]
    np.testing.assert_allclose(model.nats(test), expected, rtol=1e-10)
    for history in itertools.product(range(7), repeat=2):
        p = [np.exp(-model.nats(np.array([*history, token]))[-1]) for token in range(7)]
        assert sum(p) == pytest.approx(1)
    assert model.ngrams == sum(len({tuple(train[i : i + n]) for i in range(121 - n)}) for n in range(1, order + 1))


def test_kneser_ney_refuses():
    for order in (0, 4):
        with pytest.raises(ValueError, match=f"order must lie between 1 and the 3 tokens, got {order}"):
            KneserNey.fit(np.arange(3), 3, order)
    with pytest.raises(ValueError, match=r"tokens must be in range\(2\), got 2"):
        KneserNey.fit(np.arange(3), 2, 1)


def test_kneser_ney_on_the_treebank_is_that_of_the_literature(data_dir):
    if not (data_dir / "ptb").is_dir():
        pytest.skip(f"no Penn Treebank at {data_dir / 'ptb'}")
    parts = ptb.load(data_dir)
    vocabulary = words.Vocabulary.of(parts["train"])
    model = KneserNey.fit(vocabulary.encode(parts["train"]), vocabulary.size, order=3)
    perplexity = np.exp(model.nats(vocabulary.encode(parts["test"]))[1:].mean())
    assert perplexity == pytest.approx(
        148.3, abs=0.5
    )  # Mikolov et al. 2011, "Extensions of recurrent neural network..."


@pytest.mark.parametrize(("length", "lanes"), [(3, 1), (3, 2), (4, 5), (10, 1)])
def test_windows_have_every_token_once_as_a_target_after_its_own(length, lanes):
    tokens = np.arange(11, dtype=np.int32)
    found = corpora.windows(tokens, length, lanes)
    assert found.xs.shape[1:] == (length, lanes)
    for values in found:
        assert values.shape == found.xs.shape
    assert sorted(np.asarray(found.targets)[found.real].tolist()) == list(range(1, 11))
    np.testing.assert_array_equal(found.targets[found.real], found.xs[found.real] + 1)
    if lanes == 1:
        assert np.asarray(found.xs)[found.real].tolist() == list(range(10))
    with pytest.raises(ValueError, match="11 tokens cannot be read in 11 streams"):
        corpora.windows(tokens, 2, 11)


SMALL = {"units": 4, "length": 3, "batch_size": 2, "unit": "word", "corpus": "ptb"}


def small(**flags):
    """A configuration, its corpus, its network and weights."""
    config = define(language).parse({**SMALL, **flags})
    corpus = corpora.load(config)
    model = reading.network(config, corpus.vocabulary.size)
    return config, corpus, model, jax.jit(lambda key: model.init(vars(config), key))(jax.random.key(0))


@pytest.mark.parametrize("cell", reading.CELLS)
def test_a_network_of_any_cell_says_a_logit_a_token(cell):
    config = define(language).parse({**SMALL, "model": cell, "layers": 2, "embedding_size": 3})
    model = reading.network(config, 7)

    def logits(key):
        params = model.init(vars(config), key)
        return model.of(vars(config), params, None)(TOKENS, model.start(vars(config), params, 2))[2]

    assert jax.eval_shape(logits, jax.random.key(0)).shape == (3, 2, 7)


def test_a_text_costs_the_same_in_windows_of_any_length():
    config, corpus, model, params = small(model="rnn")
    test = corpus.parts["test"][:20]

    @jax.jit
    def nats(params):
        _, _, logits = model.of(vars(config), params, None)(test[:-1, None])
        cut = [corpora.windows(test, length, 1) for length in (19, 4)]
        return [read(model, vars(config), params, windows).ravel()[:19] for windows in cut], logits[:, 0]

    found, logits = nats(params)
    expected = -np.asarray(jax.nn.log_softmax(logits))[np.arange(19), test[1:]]
    for one in found:
        np.testing.assert_allclose(one, expected, rtol=1e-5)


def test_dynamic_evaluation_is_its_equation():
    config, corpus, model, params = small(model="rnn")
    hparams, train = vars(config), jnp.asarray(corpus.parts["train"][:13].reshape(-1, 1))
    windows = corpora.windows(corpus.parts["test"][:12], 4, 1)
    rate, decay = 0.1, 0.7
    found = jax.jit(lambda *given: read_and_learn(model, hparams, *given, rate=rate, decay=decay))(
        params, train, windows
    )

    @jax.jit
    def window(params, carry, xs, targets, real):
        def loss(params):
            after, _, logits = model.of(hparams, params, None)(xs, carry)
            nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
            return (nats * real).sum() / real.sum(), (after, nats)

        (_, (carry, nats)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return carry, nats, grads

    carry, every = model.start(hparams, params, 1), []
    for i in range(3):
        carry, _, grads = window(
            params, carry, train[4 * i : 4 * i + 4], train[4 * i + 1 : 4 * i + 5], jnp.ones((4, 1))
        )
        every.append(jax.tree.leaves(grads))
    size = [np.sqrt(np.mean(np.square(np.stack(leaf)), 0)) for leaf in zip(*every, strict=True)]
    mean = np.concatenate([leaf.ravel() for leaf in size]).mean()
    trained, tree = jax.tree.flatten(params)
    now, carry = trained, model.start(hparams, params, 1)
    for i in range(3):
        real = windows.real[i].astype(jnp.float32)
        carry, nats, grads = window(tree.unflatten(now), carry, windows.xs[i], windows.targets[i], real)
        np.testing.assert_allclose((nats * real), found[i] * real, rtol=1e-4)
        now = [
            w - rate * g / (r + mean) + np.minimum(decay * r / mean, 1) * (w0 - w)
            for w, g, r, w0 in zip(now, jax.tree.leaves(grads), size, trained, strict=True)
        ]
    _, nats, _ = window(params, model.start(hparams, params, 1), windows.xs[0], windows.targets[0], jnp.ones((4, 1)))
    np.testing.assert_allclose(nats, found[0], rtol=1e-4)  # nothing is learned from a window before it is read


def updates(config, count):
    """The states before, between and after some updates; the program."""
    hparams, program = define(language).hparams(config), language.build(config).program
    update = jax.jit(program.update)
    states = [jax.jit(program.init)(hparams)]
    for _ in range(count):
        states.append(update(hparams, program.data, states[-1])[0])
    return states, program


def test_the_carry_goes_on_and_starts_anew_with_the_text_and_the_rate_falls_then():
    # With next to no learning, the carry after some updates is that of the text up to there.
    flags = {"optimizer": "sgd", "learning_rate": 1e-12, "learning_rate_decay": 0.0, "learning_rate_decay_after": 1}
    config = define(language).parse({**SMALL, **flags, "model": "rnn", "batch_size": 300})
    states, program = updates(config, 4)
    assert program.steps_per_epoch == 3
    model = reading.network(config, corpora.load(config).vocabulary.size)
    params = states[0].params

    @jax.jit
    def carries():
        read = model.of(vars(config), params, None)
        return [read(program.data[0][:steps])[0][0] for steps in (3, 6, 9, 3)]

    for state, carry in zip(states[1:], carries(), strict=True):
        np.testing.assert_allclose(state.carry[0][0], carry, atol=1e-6)
    # The biases start at 0, so that they show the smallest change.
    changed = [not np.array_equal(old.params["bias"], new.params["bias"]) for old, new in itertools.pairwise(states)]
    assert changed == [True, True, True, False]


def test_the_learning_rate_falls_by_epochs():
    config = SimpleNamespace(learning_rate_decay=0.5, learning_rate_decay_after=4)
    factors = [float(language.decayed(config, jnp.int32(epoch))) for epoch in range(7)]
    assert factors == [1, 1, 1, 1, 0.5, 0.25, 0.125]


def test_nt_asgd_averages_after_evaluations_without_a_new_best():
    flags = {**SMALL, "model": "rnn", "nonmonotone": 2, "evaluate_every": 1, "steps_per_call": 1}
    states, _ = updates(define(language).parse(flags), 5)
    since = [int(state.carry[1].since) for state in states]
    assert since == [0, 0, 0, 2, 2, 2]
    descended = [np.asarray(state.carry[1].params["bias"]) for state in states]
    for i, state in enumerate(states):
        expected = descended[i] if i <= 2 else np.mean(descended[3 : i + 1], 0)
        np.testing.assert_allclose(state.params["bias"], expected, rtol=1e-5, atol=1e-7)
    assert not np.allclose(states[5].params["bias"], descended[5])


def test_all_weights_start_in_the_given_range():
    _, _, _, params = small(init_range=0.25, units=16)
    leaves = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    assert 0.24 < np.abs(leaves).max() <= 0.25
    assert abs(leaves.mean()) < 0.01


FAST = ("--batch_size=4", "--units=4", "--length=5", "--corpus=ptb", "--unit=word", "--sample=6")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two updates with everything on."""
    more = ("--awd", "--layers=2", "--tied", "--dynamic_rate=1e-3", "--nonmonotone=1", "--model=rnn")
    return run("language", tmp_path_factory.mktemp("language") / "run", *FAST, *more)


def test_language(trained):
    result = trained.result()
    assert result["test_perplexity"] == pytest.approx(np.exp(result["test_loss"]), rel=1e-5)
    assert result["test_dynamic_loss"] < result["test_loss"]
    saved = read_arrays(trained.directory / "nats.npz")
    assert saved["nats"].mean() == pytest.approx(result["test_loss"])
    test = corpora.load(define(language).parse({"corpus": "ptb", "unit": "word"})).parts["test"]
    assert saved["nats"].shape == saved["dynamic"].shape == saved["count"].shape == (len(test) - 1,)
    assert (trained.figures / "nats.png").stat().st_size > 10_000
    assert len((trained.directory / "sample.txt").read_text().split()) <= 6
    assert [section.title for section in drawn(language, [trained])] == ["Test text", "Samples"]


def test_characters_of_a_file(tmp_path):
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    result = (counted := run("language", tmp_path / "run", f"--corpus={tmp_path}", "--model=kneser_ney")).result()
    assert result["test_bits_per_character"] == pytest.approx(result["test_loss"] / np.log(2), rel=1e-5)
    assert result["test_bits_per_character"] < 0.2
    with pytest.raises(FileNotFoundError, match="run holds no network"):
        generate.read_prompt(counted, "the")


def test_counted_models(tmp_path):
    results = [run("language", tmp_path / model, *FAST, f"--model={model}").result() for model in language.COUNTED]
    assert results[0]["test_perplexity"] > 2 * results[1]["test_perplexity"]
    assert results[0]["ngrams"] == 20


def test_streamed_text_is_the_text_of_one_compiled_loop(trained, capsys):
    primed = generate.read_prompt(Run.read(trained.directory), "the company")
    options = {"temperature": 0.8, "top_k": 15, "top_p": 0.9}
    key = jax.random.key(3)
    streamed = list(generate.stream(primed, 12, key, **options))
    step = primed.stepper(primed.params)
    whole = jax.jit(lambda carry, last: decoding.sample(step, carry, last, 12, key, exclude=[0], **options)[1])
    np.testing.assert_array_equal(streamed, whole(primed.carry, primed.last)[:, 0])
    assert 0 not in streamed
    flags = ["--prompt=the company", "--length=12", "--temperature=0.8", "--top_k=15", "--top_p=0.9", "--seed=3"]
    assert generate.main([f"--run={trained.directory}", *flags]) == 0
    tokens = [*primed.vocabulary.encode("the company")[:-1], *streamed]
    assert capsys.readouterr().out == primed.vocabulary.decode(tokens) + "\n"


def test_the_prompt_is_read(trained):
    """The carry after a prompt, from the weights of the checkpoint, is that of the tokens in it."""
    config, vocabulary, model, params = reading.load(Run.read(trained.directory))
    primed = generate.read_prompt(Run.read(trained.directory), "the market\nin london")
    tokens = vocabulary.encode("\nthe market\nin london")[:-1]
    carry, _, _ = model.of(vars(config), params, None)(tokens[:-1, None])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), primed.carry, carry)
    assert primed.last.tolist() == tokens[-1:].tolist()
    assert generate.read_prompt(trained, "").last.tolist() == vocabulary.encode("\n")[:1].tolist()


def test_a_beam_prints_its_continuations(trained, capsys):
    assert generate.main([f"--run={trained.directory}", "--prompt=the", "--length=3", "--beam=2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "the" in line]
    scores = [float(line.split()[0]) for line in lines if line.split()[0].startswith("-")]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt=the bond market"], "--prompt holds what the training text does not: 'bond'"),
        (["--top_p=2"], "--top_p=2.0: a probability in (0, 1]"),
        (["--top_k=21"], "top_k must be between 1 and the 20 tokens, got 21"),
    ],
)
def test_generate_refuses(trained, capsys, flags, message):
    assert generate.main([f"--run={trained.directory}", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output_dropout=0.5"], "--output_dropout is for --awd"),
        (["--awd", "--weight_drop=1"], "a rate in [0, 1), or -1"),
        (["--awd", "--temporal=-2"], "a factor from 0 on, or -1"),
        (["--tied", "--embedding_size=3"], "--tied needs an --embedding_size as wide as --units"),
        (["--nonmonotone=1"], "--nonmonotone counts evaluations: it needs --evaluate_every"),
        (["--model=bigram"], "value should be one of <unigram|kneser_ney|rnn|"),
    ],
)
def test_language_refuses(flags, message):
    assert message in refused("language", "--evaluate_every=0", *flags)


def test_shakespeare_is_in_the_data_directory(tmp_path):
    with pytest.raises(ValueError, match="--corpus=shakespeare needs --data_dir"):
        corpora.load(define(language).parse({"corpus": "shakespeare"}))
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text("to be or not to be, that is the question\n" * 3)
    flags = {"corpus": "shakespeare", "data_dir": str(tmp_path)}
    assert len(corpora.load(define(language).parse(flags)).parts["test"]) == 6
