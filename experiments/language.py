"""Which character, which word comes next? Recurrent networks against counted n-grams, on any text.

Truncated back-propagation through one continuous text: every update reads --length further tokens in each of
--batch_size streams, and the carry is kept. Sources: Zaremba, Sutskever & Vinyals 2014, arXiv 1409.2329 (the plain
LSTM); Merity, Keskar & Socher 2017, arXiv 1708.02182 (--awd and --nonmonotone: AWD-LSTM); Krause et al. 2018, arXiv
1709.07432 (--dynamic_rate: dynamic evaluation, which keeps learning from the test text that it has read).

    unigram       how often a token occurs
    kneser_ney    n-grams up to --ngram_order tokens, interpolated (modified Kneser-Ney)
    rnn, lstm...  embedding, --layers of --units, softmax; --tied: one matrix for embedding and softmax

    python -m experiments.language --model=lstm
    python -m experiments.language --model=kneser_ney --corpus=ptb --unit=word --data_dir=DIR
    python launch.py --experiment=language

`python -m experiments.demos.generate --run=DIR` then writes text.

Measured: the small LSTM of Zaremba et al. has a perplexity of 114.3 on Penn Treebank, published 114.5
(docs/results.md).
"""

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment, Hparams, without_data
from experiments.harness.flags import training_flags
from experiments.harness.optimizer import make_optimizer
from experiments.harness.precision import narrow
from experiments.harness.report import COLORS, Section, groups, intervals, panels, save, separate
from experiments.shared import corpora, tasks
from experiments.shared.reading import CELLS, RATES, Network, keep, network, or_default, read, read_and_learn
from seqjax import regularizers
from seqjax.arrays import Array, Params
from seqjax.data import text
from seqjax.models import KneserNey
from seqjax.train import Program, Run, State, initial_state, read_arrays, write_arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = training_flags(
    steps=3000, steps_per_call=100, evaluate_every=500, batch_size=32, learning_rate=2e-3, clip_norm=1.0
)
COUNTED = ("unigram", "kneser_ney")
PENALTIES = {"activation": (2.0, "mean squared output"), "temporal": (1.0, "mean squared change of the output")}

corpora.define(FLAGS)
flags.DEFINE_enum("model", "lstm", [*COUNTED, *CELLS], "Which model.", flag_values=FLAGS)
for name, value, lower, what in (
    ("ngram_order", 5, 1, "Tokens of the longest n-gram of kneser_ney."),
    ("length", 50, 2, "Time steps per update."),
    ("units", 128, 1, "Units of a layer."),
    ("layers", 1, 1, "Layers."),
    ("embedding_size", 0, 0, "Size of a token's embedding; 0: that of --units."),
    ("learning_rate_decay_after", 0, 0, "Epochs at the full learning rate; --learning_rate_decay acts from then on."),
    ("nonmonotone", 0, 0, "NT-ASGD: average the weights after this many evaluations without a new best; 0: never."),
    ("dynamic_length", 20, 2, "Tokens per step of dynamic evaluation."),
    ("sample", 400, 1, "Tokens of the text sample."),
):
    flags.DEFINE_integer(name, value, what, lower_bound=lower, flag_values=FLAGS)
for name, value, what in (
    ("init_range", 0.0, "Draw all weights from U(-r, r); 0: as the layers do."),
    ("learning_rate_decay", 1.0, "Factor of the learning rate each epoch."),
    ("dynamic_rate", 0.0, "Learning rate of dynamic evaluation; 0: none."),
    ("dynamic_decay", 0.002, "How fast dynamic evaluation returns to the trained weights."),
):
    flags.DEFINE_float(name, value, what, lower_bound=0.0, flag_values=FLAGS)
flags.DEFINE_boolean("tied", False, "Embedding and softmax share their weights.", flag_values=FLAGS)
flags.DEFINE_boolean("awd", False, "Regularize as AWD-LSTM does, at the rates below.", flag_values=FLAGS)
for name, (value, what) in (RATES | PENALTIES).items():
    flags.DEFINE_float(
        name, -1.0, f"With --awd: {'factor' if name in PENALTIES else 'rate'} {what}; -1: {value}.", flag_values=FLAGS
    )
    flags.register_multi_flags_validator(
        ("awd", name), lambda given, name=name: given["awd"] or given[name] == -1, f"--{name} is for --awd", FLAGS
    )
    if name in RATES:
        flags.register_validator(name, lambda rate: rate == -1 or 0 <= rate < 1, "a rate in [0, 1), or -1", FLAGS)
    else:
        flags.register_validator(name, lambda factor: factor == -1 or factor >= 0, "a factor from 0 on, or -1", FLAGS)
flags.register_multi_flags_validator(
    ("tied", "embedding_size", "units"),
    lambda given: not given["tied"] or given["embedding_size"] in (0, given["units"]),
    "--tied needs an --embedding_size as wide as --units",
    FLAGS,
)
flags.register_multi_flags_validator(
    ("nonmonotone", "evaluate_every"),
    lambda given: not given["nonmonotone"] or given["evaluate_every"],
    "--nonmonotone counts evaluations: it needs --evaluate_every",
    FLAGS,
)

TRACED_FLAGS = ("seed", "learning_rate", *RATES, *PENALTIES)
synthetic_data = without_data("sentences", corpus="ptb")


class Average(NamedTuple):
    """The carry of NT-ASGD: the weights that are updated, of which `State.params` is the mean since step `since`."""

    params: Params
    since: Array  # int32 [], 0: not yet


def build(config: SimpleNamespace) -> Experiment:
    """Truncated BPTT over the text; the best params have the lowest validation loss."""
    corpus = corpora.load(config)
    return _counted(config, corpus) if config.model in COUNTED else _trained(config, corpus)


def _trained(config: SimpleNamespace, corpus: corpora.Corpus) -> Experiment:
    model = network(config, corpus.vocabulary.size)
    streams = jnp.asarray(text.lanes(corpus.parts["train"], config.batch_size))
    epoch = text.chunks(streams, config.length)
    held_out = corpora.windows(corpus.parts["validation"], config.length, config.batch_size)

    def init(hparams):
        params, key = supervised.first_params(model.init, hparams)
        opt_state = make_optimizer(config, hparams["learning_rate"]).init(params)
        average = Average(params, jnp.int32(0)) if config.nonmonotone else None
        return initial_state(key, params, opt_state, (model.start(hparams, params, config.batch_size), average))

    def update(hparams, data, state: State):
        hidden, average = state.carry
        params = average.params if average else state.params
        place = state.step % epoch
        start = model.start(hparams, params, config.batch_size)
        hidden = jax.tree.map(lambda new, old: jnp.where(place == 0, new, old), start, hidden)
        xs, targets = text.chunk(data[0], place, config.length)
        key = jax.random.fold_in(state.key, state.step) if config.awd else None

        def loss(params):
            carry, ys, logits = model.of(hparams, params, key)(xs, hidden)
            nats = tasks.cross_entropy(logits, targets).mean()
            return nats + (_penalties(hparams, ys) if config.awd else 0.0), (nats, carry)

        (_, (nats, hidden)), grads = jax.value_and_grad(loss, has_aux=True)(narrow(config, params))
        optimizer = make_optimizer(config, hparams["learning_rate"])
        changes, opt_state = optimizer.update(grads, state.opt_state, params)
        rate = decayed(config, state.step // epoch)
        params = optax.apply_updates(params, jax.tree.map(lambda change: rate * change, changes))
        if average:
            late = state.step - state.best.step >= config.nonmonotone * config.evaluate_every
            since = jnp.where((average.since == 0) & late, state.step, average.since)
            weight = jnp.where(since > 0, 1 / (state.step + 1 - since).astype(jnp.float32), 1.0)
            average = Average(params, since)
            params = jax.tree.map(lambda mean, new: mean + weight * (new - mean), state.params, params)
        state = state._replace(step=state.step + 1, params=params, opt_state=opt_state, carry=(hidden, average))
        return state, {"loss": nats}

    def evaluate(hparams, data, state: State):
        nats = read(model, hparams, state.params, data[1])
        return _scores(config, supervised.weighted_mean(nats, data[1].real.astype(nats.dtype)))

    def finish(hparams, state, run):
        """Test scores, and the best weights with a text sample."""
        params = state.best.params
        nats = _read_test(config, model, corpus.parts["test"], hparams, streams, params)
        keep(config, model, hparams, corpus.vocabulary, params, run)
        return _tested(config, corpus, nats, run)

    program = Program(init, update, evaluate, (streams, held_out), "loss", epoch, corpus.parts["test"])
    left_out = corpora.left_out(len(corpus.parts["train"]), config.batch_size, config.length, config.unit)
    return Experiment(program, finish, left_out)


def _penalties(hparams: Any, ys: Array) -> Array:
    alpha, beta = (or_default(hparams[name], value) for name, (value, _) in PENALTIES.items())
    return alpha * regularizers.activation_penalty(ys) + beta * regularizers.temporal_activation_penalty(ys)


def decayed(config: SimpleNamespace, epoch: Array) -> Array:
    """The factor of the learning rate in an epoch, the first being 0."""
    return jnp.float32(config.learning_rate_decay) ** jnp.maximum(
        epoch + 1 - config.learning_rate_decay_after, 0
    ).astype(jnp.float32)


def _scores(config: SimpleNamespace, nats: Any) -> dict[str, Any]:
    """The mean nats per token, and in the usual unit: bits per character, perplexity per word."""
    if config.unit == "character":
        return {"loss": nats, "bits_per_character": nats / np.log(2).astype(np.float32)}
    return {"loss": nats, "perplexity": jnp.exp(nats)}


def _counted(config: SimpleNamespace, corpus: corpora.Corpus) -> Experiment:
    """A model that is counted, not trained: the updates do nothing."""
    order = 1 if config.model == "unigram" else config.ngram_order
    counted = KneserNey.fit(corpus.parts["train"], corpus.vocabulary.size, order)
    nats = jnp.float32(counted.nats(corpus.parts["validation"])[1:].mean())

    def update(hparams, data, state: State):
        return state._replace(step=state.step + 1), {"loss": data}

    def init(hparams):
        return initial_state(jax.random.key(hparams["seed"]), {}, {})

    def finish(hparams, state, run):
        """Test scores."""
        del hparams
        nats = {"nats": counted.nats(corpus.parts["test"])[1:]}
        return {**_tested(config, corpus, nats, run), "ngrams": counted.ngrams}

    # No update reads the training part, so its hash is recorded with that of the test part.
    read = {name: corpus.parts[name] for name in ("train", "test")}
    program = Program(init, update, lambda hparams, data, state: _scores(config, data), nats, held_out=read)
    return Experiment(program, finish)


def _tested(config: SimpleNamespace, corpus: corpora.Corpus, nats: dict[str, np.ndarray], run: Run) -> dict[str, Any]:
    """Test scores; the cost of each test token in nats.npz and a figure."""
    counts = np.bincount(corpus.parts["train"], minlength=corpus.vocabulary.size)[corpus.parts["test"][1:]]
    write_arrays(run.directory / "nats.npz", count=counts, **nats)
    save(_figure(counts, nats), run.figures / "nats")
    scores = {name: _scores(config, float(values.mean())) for name, values in nats.items()}
    return {
        **{f"test_{name}": float(value) for name, value in scores["nats"].items()},
        **{f"test_dynamic_{name}": float(value) for name, value in scores.get("dynamic", {}).items()},
    }


def _read_test(
    config: SimpleNamespace, model: Network, test: np.ndarray, hparams: Hparams, train: Array, params: Params
) -> dict[str, np.ndarray]:
    """Nats of the test tokens in order, read as one text; "dynamic" with dynamic evaluation."""

    def flat(nats: Array, windows: corpora.Windows) -> np.ndarray:
        return np.asarray(nats, np.float64)[np.asarray(windows.real)]

    windows = corpora.windows(test, config.length, 1)
    found = {"nats": flat(jax.jit(lambda *given: read(model, hparams, *given))(params, windows), windows)}
    if config.dynamic_rate:
        windows = corpora.windows(test, config.dynamic_length, 1)
        rates = {"rate": config.dynamic_rate, "decay": config.dynamic_decay}
        learn = jax.jit(lambda *given: read_and_learn(model, hparams, *given, **rates))
        found["dynamic"] = flat(learn(params, train, windows), windows)
    return found


def _by_count(counts: np.ndarray) -> dict[str, np.ndarray]:
    """The test tokens that occur at least so often in the training part, up to the next power of ten."""
    lows = [0, 1, *(10**k for k in range(1, 7))]
    masks = {low: (counts >= low) & (counts < high) for low, high in zip(lows, [*lows[1:], np.inf], strict=True)}
    return {f"{low:,}": mask for low, mask in masks.items() if mask.any()}


def _figure(counts: np.ndarray, nats: dict[str, np.ndarray]) -> "Figure":
    """The nats of a token by its frequency, and along the text."""
    figure, axes = panels(1, 2)
    by_count, along = axes[0]
    found = _by_count(counts)
    for i, (name, values) in enumerate(nats.items()):
        means = [values[mask].mean() for mask in found.values()]
        by_count.plot(list(found), means, "o-", color=COLORS[i], markersize=3, label=name)
        parts = np.array_split(values, min(50, len(values)))
        places = np.cumsum([len(part) for part in parts])
        along.plot(places, [part.mean() for part in parts], color=COLORS[i], label=name)
    by_count.set(xlabel="times in the training text, at least", ylabel="nats per token")
    along.set(xlabel="test token", ylabel="nats per token, mean of a fiftieth")
    if len(nats) > 1:
        along.legend()
    return figure


SWEEP = "model=unigram,kneser_ney,rnn,gru,lstm;seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """The test score of each model, what tokens cost by how often they occur, and samples."""
    figures, (table, by_count) = separate("loss", "by-count")
    by_label = groups(runs)
    intervals(table, by_label, "test_loss", (0, np.inf))
    for i, (label, members) in enumerate(by_label.items()):
        saved = [read_arrays(run.directory / "nats.npz") for run in members]
        found = _by_count(saved[0]["count"])
        means = [np.mean([one["nats"][mask].mean() for one in saved]) for mask in found.values()]
        by_count.plot(list(found), means, "o-", color=COLORS[i % len(COLORS)], label=label, markersize=3)
    table.set(xlabel="test loss, nats per token")
    by_count.set(xlabel="times in the training text, at least", ylabel="nats per token")
    sections = [Section("Test text", "Read as one, at the params of the lowest validation loss.", figures)]
    samples = {
        label: path.read_text()
        for label, members in by_label.items()
        if (path := members[0].directory / "sample.txt").exists()
    }
    return [*sections, Section("Samples", listings=samples)] if samples else sections


if __name__ == "__main__":
    command.main(sys.modules[__name__])
