"""Is a film review positive? Bags of words against recurrent networks (IMDB; Maas et al. 2011).

25,000 reviews for training, of which a fifth, film by film, is for validation, and 25,000 for the test; 20,000 tokens,
and for the sequence models 600 steps; the vocabulary is that of the training part. Source of all models but the last
three: Chollet 2021, "Deep Learning with Python", second edition, chapter 11. Pooling is that of Howard & Ruder 2018
(arXiv 1801.06146), the SRU that of Lei et al. 2018 (arXiv 1709.02755). Models:

    unigram, bigram, tf_idf   a bag of words; of words and pairs; the same weighted: Dense(16, relu), dropout, Dense(1)
    one_hot, embedding        bidirectional LSTM(32) on one-hot or learned vectors, which reads the padding as words
    masked, glove(_tuned)     the same without the padding; on pretrained vectors, fixed or trained further
    pooled, sru, sru_pairs    maximum and mean over all outputs; by an SRU on words; on words and pairs of neighbours

    python -m experiments.sentiment --model=bigram --data_dir=DIR
    python launch.py --experiment=sentiment --data_dir=DIR        all models

DIR holds aclImdb_v1.tar.gz (or the folder that it unpacks to), and for the models from glove to pooled
glove.6B.100d.txt. Without --data_dir the reviews are generated.

Measured: sru_pairs has a test accuracy of 90.30 ± 0.44 %, bigram 89.63 ± 0.27 % (docs/results.md).
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment, Hparams, without_data
from experiments.harness.flags import training_flags
from experiments.harness.report import COLORS, DASHES, Section, groups, intervals, panels, save, separate
from seqjax import cells
from seqjax.arrays import Array, Key, Params, Tree
from seqjax.data import buckets, embeddings, reviews, vectorize
from seqjax.models import BagClassifier, SequenceClassifier
from seqjax.train import Run, State, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = training_flags(
    steps=3000, steps_per_call=100, evaluate_every=500, checkpoint_every=1000, batch_size=32, learning_rate=1e-3
)
BAGS = {
    "unigram": vectorize.Vectorizer.multi_hot,
    "bigram": vectorize.Vectorizer.multi_hot,
    "tf_idf": vectorize.Vectorizer.tf_idf,
}
PAIRS = ("bigram", "tf_idf", "sru_pairs")
# These read the padding like a word; the others do without, in batches of texts of similar length.
PADDED = ("one_hot", "embedding")
# On pretrained vectors: fixed, trained further, and trained further under a head on pooled outputs.
PRETRAINED = ("glove", "glove_tuned", "pooled")
# Pooled, on one-hot vectors: no matrix product but that of the head. With pairs, each step also reads the pair that
# its word ends.
SRUS = ("sru", "sru_pairs")
MODELS = (*BAGS, *PADDED, "masked", *PRETRAINED, *SRUS)
# Entries of a bag (the last border reaches to the largest bag), steps of a sequence.
BAG_BORDERS = (100, 200, 300, 400, 600, 1000, 3000)
BORDERS = (100, 150, 200, 300, 400, 600)

flags.DEFINE_enum("model", "masked", MODELS, "Which model.", flag_values=FLAGS)
flags.DEFINE_integer("tokens", 20_000, "Size of the vocabulary.", lower_bound=3, flag_values=FLAGS)
flags.DEFINE_integer("length", 600, "Words of a review that a sequence model reads.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_enum("kept", "first", ["first", "last"], "Which words of a longer one it reads.", flag_values=FLAGS)
flags.DEFINE_integer("units", 32, "Units of the LSTM in each direction.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("embedding_size", 256, "Width of the learned embedding.", lower_bound=1, flag_values=FLAGS)
for name, rate in (("word_dropout", 0.0), ("recurrent_dropout", 0.0), ("dropout", 0.5)):
    flags.DEFINE_float(name, rate, "Rate, in [0, 1).", flag_values=FLAGS)
    flags.register_validator(name, lambda rate: 0 <= rate < 1, "a rate in [0, 1)", flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate", "word_dropout", "recurrent_dropout", "dropout")
synthetic_data = without_data("reviews")


class Corpus(NamedTuple):
    """Reviews by part ("train", "validation", "test"), and how they became numbers."""

    parts: dict[str, reviews.Reviews]
    vectorizer: vectorize.Vectorizer


class Part(NamedTuple):
    """What is trained on or evaluated: buckets of tokens, the weights of a bag's entries beside them, and labels."""

    tokens: tuple[buckets.Bucket, ...]
    weights: tuple[Array, ...]
    labels: Array


@cache  # read once per process, where a sweep builds many experiments
def _reviews(data_dir: str | None) -> dict[str, reviews.Reviews]:
    if data_dir is None:
        print("no --data_dir: the reviews are generated, and their numbers mean nothing for films", file=sys.stderr)
        parts = {"train": reviews.generated(600, seed=0), "test": reviews.generated(200, seed=1)}
    else:
        parts = reviews.load(data_dir)
    train, validation = reviews.split(parts["train"])
    return {"train": train, "validation": validation, "test": parts["test"]}


def _corpus(config: SimpleNamespace) -> Corpus:
    parts = _reviews(config.data_dir)
    rules = vectorize.Rules(ngrams=(1, 2) if config.model in PAIRS else (1,))
    return Corpus(parts, vectorize.fit(parts["train"].texts, size=config.tokens, rules=rules))


def _read(vectorizer: vectorize.Vectorizer, texts: Sequence[str], length: int, last: bool) -> tuple[np.ndarray, int]:
    """The first or the last tokens of each text, int32 [N, length, K], and how many texts are longer."""
    if not last:
        tokens = vectorizer.aligned(texts, length + 1)
        return tokens[:, :length], int((tokens[:, length, 0] != vectorize.MASK).sum())
    # No text has more tokens than words, since signs are dropped and not set apart.
    tokens = vectorizer.aligned(texts, max(length, *(len(text.split()) for text in texts)))
    before = np.maximum((tokens[..., 0] != vectorize.MASK).sum(1) - length, 0)
    rows = before[:, None] + np.arange(length)
    return np.take_along_axis(tokens, rows[..., None], axis=1), int((before > 0).sum())


def _part(config: SimpleNamespace, corpus: Corpus, name: str) -> tuple[Part, int]:
    """One part as arrays, and how many of its reviews --length cuts, for a sequence model."""
    found, vectorizer = corpus.parts[name], corpus.vectorizer
    least = config.batch_size if name == "train" else 1
    labels = jnp.asarray(found.labels)
    if config.model in BAGS:
        bags = BAGS[config.model](vectorizer, found.texts)
        rows = np.split(bags.indices.astype(np.int32), bags.indptr[1:-1])
        values = np.split(bags.data, bags.indptr[1:-1])
        borders = buckets.reaching(BAG_BORDERS, max(1, *map(len, rows)))
        tokens, weights = (buckets.make(part, borders, least) for part in (rows, values))
        return Part(tokens, tuple(bucket.rows for bucket in weights), labels), 0
    tokens, longer = _read(vectorizer, found.texts, config.length, config.kept == "last")
    words = tokens[..., 0]
    lengths = np.maximum((words != vectorize.MASK).sum(1), 1)  # of a review without a word the padding is read
    if config.model in PADDED:
        rows, borders = list(words), (config.length,)
    else:
        read = tokens if config.model in PAIRS else words
        rows = [row[:length] for row, length in zip(read, lengths, strict=True)]
        borders = buckets.reaching(BORDERS, config.length)
    return Part(buckets.make(rows, borders, least), (), labels), longer


def _network(config: SimpleNamespace, hparams: Hparams, vectors: np.ndarray | None, rngs: nnx.Rngs) -> nnx.Module:
    if config.model in BAGS:
        return BagClassifier(config.tokens, dropout=hparams["dropout"], rngs=rngs)
    sru = config.model in SRUS
    cell = (cells.peephole_sru if sru else cells.lstm)(config.units)
    features = 0 if sru or config.model == "one_hot" else config.embedding_size
    return SequenceClassifier(
        cell,
        config.tokens,
        features if vectors is None else vectors.shape[1],
        tokens=2 if config.model == "sru_pairs" else 1,
        backward=cell,
        vectors=None if vectors is None else jnp.asarray(vectors),
        frozen=config.model == "glove",
        pooled=config.model == "pooled" or sru,
        word_dropout=hparams["word_dropout"],
        recurrent_dropout=0.0 if sru else hparams["recurrent_dropout"],  # the SRU has no recurrent product
        dropout=hparams["dropout"],
        rngs=rngs,
    )


def _vectors(config: SimpleNamespace, corpus: Corpus) -> np.ndarray | None:
    if config.model not in PRETRAINED:
        return None
    if config.data_dir is None:
        rng = np.random.default_rng(0)
        return rng.normal(size=(corpus.vectorizer.size, 8)).astype(np.float32)
    files = sorted(Path(config.data_dir).expanduser().rglob("glove*100d*txt*"))
    if not files:
        raise FileNotFoundError(f"{config.data_dir}: --model={config.model} needs glove.6B.100d.txt there")
    vectors, known = embeddings.load(files[0], corpus.vectorizer)
    missing = len(known) - 2 - int(known.sum())
    print(f"{missing:,} of {len(known) - 2:,} tokens have no vector in {files[0].name}", file=sys.stderr)
    return vectors


class Network(NamedTuple):
    """The model as functions of its weights.

    Attributes:
      init: `(hparams, key) -> params`.
      logits: `(hparams, params, part, bucket's number, rows [B], key) -> [B]`; without noise where the key is None.
    """

    init: Callable[[Any, Key], Params]
    logits: Callable[[Any, Params, Part, int, Array, Key | None], Array]


def network(config: SimpleNamespace, corpus: Corpus) -> Network:
    """The model of the flags."""
    config = SimpleNamespace(**{**vars(config), "tokens": corpus.vectorizer.size})
    vectors = _vectors(config, corpus)

    init, bind = supervised.functional(lambda hparams, rngs: _network(config, hparams, vectors, rngs))

    def logits(hparams, params, part, number, rows, key):
        model, bucket = bind(hparams, params, key), part.tokens[number]
        if config.model in BAGS:
            return model(bucket.rows[rows], part.weights[number][rows])
        return model(bucket.rows[rows], None if config.model in PADDED else bucket.lengths[rows])

    return Network(init, logits)


def _number(part: Part, bucket: buckets.Bucket) -> int:
    return next(i for i, one in enumerate(part.tokens) if one is bucket)


def _every_logit(model: Network, hparams: Hparams, params: Params, part: Part) -> tuple[Array, Array]:
    """`(index [N], logits [N])` without noise."""
    return buckets.every(
        part.tokens, 256, lambda bucket, rows: model.logits(hparams, params, part, _number(part, bucket), rows, None)
    )


def build(config: SimpleNamespace) -> Experiment:
    """Cross-entropy of the labels; the best params have the lowest validation loss."""
    corpus = _corpus(config)
    parts = {name: _part(config, corpus, name) for name in corpus.parts}
    data, test = {name: parts[name][0] for name in ("train", "validation")}, parts["test"][0]
    model = network(config, corpus)

    def gradient(hparams, data: Tree, params, step, k_data, k_noise):
        part: Part = data["train"]

        def of_bucket(bucket, rows):
            def loss(params):
                logits = model.logits(hparams, params, part, _number(part, bucket), rows, k_noise)
                labels = part.labels[bucket.which[rows]].astype(logits.dtype)
                return optax.losses.sigmoid_binary_cross_entropy(logits, labels).mean()

            return jax.value_and_grad(loss)(params)

        return buckets.minibatch(k_data, step, config.batch_size, part.tokens, of_bucket)

    def evaluate(hparams, data: Tree, params):
        part: Part = data["validation"]
        index, logits = _every_logit(model, hparams, params, part)
        labels = part.labels[index]
        losses = optax.losses.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype))
        return {"loss": losses.mean(), "accuracy": ((logits > 0) == (labels == 1)).astype(jnp.float32).mean()}

    batches = buckets.batches(data["train"].tokens, config.batch_size)
    program = supervised.program(config, model.init, gradient, evaluate, data, batches=batches, held_out=test)
    cut = [f"{parts[name][1]:,} of {len(part.texts):,} {name} reviews" for name, part in corpus.parts.items()]
    where = f"after {config.length} words" if config.kept == "first" else f"before the last {config.length} words"
    left_out = None if config.model in BAGS else f"what {' and '.join(cut)} say {where}"
    return Experiment(program, partial(_finish, corpus, model, test), left_out)


def _finish(corpus: Corpus, model: Network, part: Part, hparams: Hparams, state: State, run: Run) -> dict[str, Any]:
    """Test accuracy; the vocabulary, all test logits, the reviews that were most wrong, and a figure."""
    run_network = jax.jit(lambda params, part: _every_logit(model, hparams, params, part))
    index, found = run_network(state.best.params, part)
    logits = np.zeros(len(part.labels), np.float32)
    logits[np.asarray(index)] = np.asarray(found)
    np.save(run.directory / "test_logits.npy", logits)
    test = corpus.parts["test"]
    corpus.vectorizer.save(run.directory / "vectorizer.json")
    words = np.array([len(text.split()) for text in test.texts])
    right = (logits > 0) == (test.labels == 1)
    save(_figure(logits, test.labels, words), run.figures / "answers")
    worst = np.argsort(np.where(test.labels == 1, logits, -logits))[:20]
    lines = [
        f"{test.stars[i]} stars, predicted {1 / (1 + np.exp(-logits[i])):.3f} positive\n{test.texts[i]}\n"
        for i in worst
    ]
    write_atomic(run.directory / "most_wrong.txt", "\n".join(lines))
    return {
        "test_accuracy": float(right.mean()),
        **{f"accuracy_{low}": float(right[mask].mean()) for low, mask in _by_length(words).items() if mask.any()},
    }


def _by_length(words: np.ndarray) -> dict[int, np.ndarray]:
    """The reviews of at least this many words, up to the next number."""
    lows = [0, 100, 200, 300, 400, 600]
    return {a: (words >= a) & (words < b) for a, b in zip(lows, [*lows[1:], np.inf], strict=True)}


def _figure(logits: np.ndarray, labels: np.ndarray, words: np.ndarray) -> "Figure":
    """Predictions for positive and negative reviews, their calibration, and accuracy by length."""
    figure, axes = panels(1, 3, width=3.6)
    predicted, trust, length = axes[0]
    probability = 1 / (1 + np.exp(-logits))
    for label, name in ((0, "4 stars or fewer"), (1, "7 stars or more")):
        predicted.hist(probability[labels == label], np.linspace(0, 1, 26).tolist(), alpha=0.6, label=name)
    predicted.set(xlabel="predicted probability of a positive review", ylabel="reviews")
    predicted.legend()
    place = np.minimum((probability * 10).astype(int), 9)
    full = [i for i in range(10) if (place == i).any()]
    trust.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    trust.plot([probability[place == i].mean() for i in full], [labels[place == i].mean() for i in full], "o-")
    trust.set(xlabel="predicted probability", ylabel="share of positive reviews")
    right = (logits > 0) == (labels == 1)
    found = {low: mask for low, mask in _by_length(words).items() if mask.any()}
    length.bar([str(low) for low in found], [right[mask].mean() for mask in found.values()], color=COLORS[0])
    length.set(xlabel="words, at least", ylabel="test accuracy", ylim=(0.5, 1))
    return figure


SWEEP = f"model={','.join(MODELS)};seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """The test accuracy of each model, beside that of the best bag of words, and by the length of the review."""
    figures, (table, length) = separate("accuracy", "by-length")
    by_label = groups(runs)
    intervals(table, by_label, "test_accuracy", (0, 1))
    for i, (label, members) in enumerate(by_label.items()):
        results = [run.result() for run in members]
        lows = [int(name.split("_")[1]) for name in results[0] if name.startswith("accuracy_")]
        values = [np.mean([result[f"accuracy_{low}"] for result in results]) for low in lows]
        style: Any = {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i // len(COLORS) % len(DASHES)]}
        length.plot([str(low) for low in lows], values, marker="o", markersize=3, label=label, **style)
    bags = [members for members in by_label.values() if members[0].flags["model"] in BAGS]
    if bags:
        best = max(float(np.mean([run.result()["test_accuracy"] for run in members])) for members in bags)
        table.axvline(best, color="gray", linewidth=0.8)
    table.set(xlabel="test accuracy")
    length.set(xlabel="words, at least", ylabel="test accuracy")
    text = (
        "Accuracy on the test reviews, at the params of the lowest validation loss. First: the line is the best bag of"
        " words, so that what lies right of it is what the order of the words was worth."
    )
    return [Section("Reviews", text, figures)]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
