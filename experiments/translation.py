"""English to French: what does attention add, for short sentences and for long ones?

An encoder reads the sentence in both directions, a decoder generates the translation. Pairs of the Tatoeba project, of
English sentences of up to --length words and signs; no English sentence is in two parts. Longer English sentences are
left out everywhere, longer French ones from training alone. --scheduled_sampling: Bengio et al. 2015, arXiv 1506.03099.

    none             the decoder starts at the encoder's last state, and sees nothing else
                     (Sutskever et al. 2014, arXiv 1409.3215; Cho et al. 2014, arXiv 1406.1078)
    additive         its context enters the recurrence (Bahdanau et al. 2015, arXiv 1409.0473)
    multiplicative   it attends after each step, all steps at once (Luong et al. 2015, arXiv 1508.04025)

    python -m experiments.translation --attention=additive --data_dir=DIR
    python launch.py --experiment=translation --data_dir=DIR           all three, three seeds
    python -m experiments.demos.translate --run=DIR                    translates what is typed

DIR holds fra-eng.zip of manythings.org/anki. Without --data_dir the pairs are of a made-up grammar. BLEU of greedy
and of beam search is compared with three baselines (`shared/translation_baselines.py`).

Measured: BLEU of the beam is 36.7 ± 0.9 with additive attention, 5.1 without attention (docs/results.md).
"""

import sys
from collections.abc import Sequence
from functools import partial
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
from experiments.harness.report import COLORS, Section, groups, intervals, panels, save, separate
from experiments.shared import translation_baselines
from seqjax import attention, cells
from seqjax.arrays import Array, Tree
from seqjax.data import buckets, pairs
from seqjax.extras import needed
from seqjax.models import Translator
from seqjax.train import Run, State, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = training_flags(
    steps=5000,
    steps_per_call=50,
    evaluate_every=500,
    checkpoint_every=500,
    batch_size=64,
    learning_rate=3e-3,
    schedule="cosine",
    clip_norm=1.0,
)
ATTENTION = {"none": None, "additive": attention.bahdanau, "multiplicative": attention.luong}
CELLS = {"gru": cells.gru, "lstm": cells.lstm}
BORDERS = (6, 8, 10)
# Sentences of the validation and of the test part; small ones for generated pairs.
HELD_OUT, FEW = (1000, 2000), (20, 20)

flags.DEFINE_enum("attention", "additive", list(ATTENTION), "Where and how the decoder attends.", flag_values=FLAGS)
flags.DEFINE_enum("model", "gru", list(CELLS), "Cell of the encoder and of the decoder.", flag_values=FLAGS)
for name, size, about in (
    ("units", 128, "Units of the cell in each direction."),
    ("embedding_size", 128, "Width of the embeddings."),
    ("length", 8, "Words and signs of an English sentence, at most; half as many more of a French one to learn from."),
    ("min_count", 5, "Least count of a known word in the training part."),
    ("beam", 5, "Sequences that beam search keeps."),
):
    flags.DEFINE_integer(name, size, about, lower_bound=1, flag_values=FLAGS)
for name, rate, about in (
    ("dropout", 0.0, "Rate before each layer, in [0, 1)."),
    ("scheduled_sampling", 0.0, "Share of the tokens read that the decoder generates itself, in [0, 1]."),
):
    flags.DEFINE_float(name, rate, about, lower_bound=0.0, upper_bound=1.0, flag_values=FLAGS)
flags.register_validator("dropout", lambda rate: rate < 1, "a rate in [0, 1)", flag_values=FLAGS)
flags.DEFINE_float("length_penalty", 1.0, "Of beam search.", lower_bound=0.0, flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate", "dropout", "scheduled_sampling")
synthetic_data = without_data("pairs of sentences")


class Corpus(NamedTuple):
    """Pairs by part ("train", "validation", "test"), the vocabularies of the training part, pairs too long for both."""

    parts: dict[str, pairs.Pairs]
    english: pairs.Vocabulary
    french: pairs.Vocabulary
    longer: int = 0


def load_corpus(config: SimpleNamespace) -> Corpus:
    """The pairs whose English sentence has at most --length tokens."""
    if config.data_dir is None:
        print("no --data_dir: the pairs are of a made-up grammar, and their numbers mean nothing", file=sys.stderr)
        found, held_out = pairs.generated(600), FEW
    else:
        found, held_out = pairs.load(config.data_dir), HELD_OUT
    short = [len(pairs.tokens(source)) <= config.length for source in found.source]
    parts = pairs.split(found.take(np.flatnonzero(short)), *held_out)
    english, french = (pairs.vocabulary(texts, config.min_count) for texts in parts["train"])
    return Corpus(parts, english, french, longer=len(short) - sum(short))


def longest(words: int) -> int:
    """Tokens of the longest translation of a sentence of this many words and signs."""
    return words + words // 2


def _taught(train: pairs.Pairs, length: int) -> pairs.Pairs:
    """The training pairs whose French sentence is not too long to learn from."""
    short = [len(pairs.tokens(target)) <= longest(length) for target in train.target]
    return train.take(np.flatnonzero(short))


def _left_out(corpus: Corpus, taught: pairs.Pairs, length: int) -> str:
    """How many pairs have sentences that are too long."""
    train = len(corpus.parts["train"].source)
    whole = corpus.longer + sum(len(part.source) for part in corpus.parts.values())
    return (
        f"{corpus.longer:,} of {whole:,} pairs, with more than {length} English words and signs;"
        f" {train - len(taught.source):,} of {train:,} training pairs, with more than {longest(length)} French ones"
    )


def _rows(corpus: Corpus, part: pairs.Pairs, least: int = 1) -> tuple[buckets.Bucket, ...]:
    """All pairs in buckets of [L, 2]: English with its end, and French with its start and its end, 0 after each."""
    rows = []
    for source, target in zip(*part, strict=True):
        english, french = corpus.english.encode(source), corpus.french.encode(target)
        row = np.full((max(len(english), len(french) + 1), 2), pairs.PADDING, np.int32)
        row[: len(english), 0], row[0, 1], row[1 : len(french) + 1, 1] = english, pairs.START, french
        rows.append(row)
    return buckets.make(rows, buckets.reaching(BORDERS, max(map(len, rows))), least)


def _translator(config: SimpleNamespace, corpus: Corpus, hparams: Hparams, rngs: nnx.Rngs) -> Translator:
    return Translator(
        CELLS[config.model](config.units),
        corpus.english.size,
        corpus.french.size,
        config.embedding_size,
        attend=ATTENTION[config.attention],
        dropout=hparams["dropout"],
        rngs=rngs,
    )


def network(config: SimpleNamespace, corpus: Corpus) -> tuple[supervised.Init, supervised.Bind]:
    """`init` and `bind` of the model of the flags, see `supervised.functional`."""
    return supervised.functional(partial(_translator, config, corpus))


def _lengths(source: Array) -> Array:
    return (source != pairs.PADDING).sum(-1, dtype=jnp.int32)


def _losses(model: Translator, rows: Array, rate: Array | float = 0.0, key: Array | None = None) -> tuple[Array, Array]:
    """Cross-entropy of each sentence of [B, L, 2], summed over its tokens, and their number, both [B]."""
    source, target = rows[..., 0], rows[..., 1]
    start, memory = model.encode(source, _lengths(source))
    read, labels = target[:, :-1], target[:, 1:]
    if key is not None:
        read = model.decoder.sampled(key, rate, read, start, memory)
    logits = model.decoder(read, start, memory)
    real = (labels != pairs.PADDING).astype(logits.dtype)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (real * losses).sum(-1), real.sum(-1)


def _mean_loss(bind: supervised.Bind, hparams: Hparams, params: Tree, part: Sequence[buckets.Bucket]) -> Array:
    """Cross-entropy per token, without noise."""

    def of(bucket: buckets.Bucket, index: Array) -> tuple[Array, Array]:
        return _losses(bind(hparams, params, None), bucket.rows[index])

    _, (losses, counts) = buckets.every(part, 100, of)
    return losses.sum() / counts.sum()


def build(config: SimpleNamespace) -> Experiment:
    """Cross-entropy of the next token; the best params have the lowest validation loss."""
    found = load_corpus(config)
    taught = _taught(found.parts["train"], config.length)
    data = {"train": _rows(found, taught, config.batch_size), "validation": _rows(found, found.parts["validation"])}
    init, bind = network(config, found)

    def gradient(hparams, data: Tree, params, step, k_data, k_noise):
        k_dropout, k_sampling = jax.random.split(k_noise)

        def of_bucket(bucket, rows):
            def loss(params):
                model = bind(hparams, params, k_dropout)
                losses, counts = _losses(model, bucket.rows[rows], hparams["scheduled_sampling"], k_sampling)
                return losses.sum() / counts.sum()

            return jax.value_and_grad(loss)(params)

        return buckets.minibatch(k_data, step, config.batch_size, data["train"], of_bucket)

    def evaluate(hparams, data: Tree, params):
        return {"loss": _mean_loss(bind, hparams, params, data["validation"])}

    batches, test = buckets.batches(data["train"], config.batch_size), ["\n".join(one) for one in found.parts["test"]]
    program = supervised.program(config, init, gradient, evaluate, data, batches=batches, held_out=test)
    finish = partial(_finish, config, bind, found)
    return Experiment(program, finish, _left_out(found, taught, config.length))


def said(bind: supervised.Bind, hparams: Hparams, config: SimpleNamespace, width: int) -> Any:
    """`(params, source int [B, S]) -> tokens int [B, longest(S - 1) + 1]`, compiled; `width` is that of the beam."""

    @jax.jit
    def run(params, source):
        options: Any = {"start": pairs.START, "stop": pairs.STOP, "length_penalty": config.length_penalty}
        model = bind(hparams, params, None)
        limit = longest(source.shape[1] - 1) + 1  # with STOP, as the source
        return model.translate(source, _lengths(source), limit, width=width, **options)

    return run


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of a corpus, 0 to 100, of all references of each sentence, in lower case (Papineni et al. 2002; Post 2018).

    Raises:
      ImportError: sacrebleu is not there.
    """
    with needed("text", by="BLEU"):
        import sacrebleu
    most = max(map(len, references))
    streams: Any = [[given[i] if i < len(given) else None for given in references] for i in range(most)]
    return sacrebleu.corpus_bleu(list(hypotheses), streams, lowercase=True).score


def _finish(
    config: SimpleNamespace, bind: supervised.Bind, found: Corpus, hparams: Hparams, state: State, run: Run
) -> dict[str, Any]:
    """BLEU and perplexity of the test part; vocabularies, all translations, maps of attention.

    Also BLEU by the words and signs of the source, of lengths that 20 sentences have, and how many translations of each
    search did not end within `longest`.
    """
    params = state.best.params
    test = found.parts["test"].references()
    sentences, references = list(test), list(test.values())
    loss = float(jax.jit(partial(_mean_loss, bind, hparams))(params, _rows(found, found.parts["test"])))
    source = _padded([found.english.encode(sentence) for sentence in sentences], config.length + 1)
    searched: dict[int, list[str]] = {}
    unfinished: dict[int, int] = {}
    for width in sorted({1, config.beam}):
        rows = _by_batch(said(bind, hparams, config, width), params, source)
        searched[width] = [pairs.join(found.french.decode(row)) for row in rows]
        unfinished[width] = int((rows != pairs.STOP).all(1).sum())
    systems = {"greedy": searched[1], "beam": searched[config.beam]}
    systems |= translation_baselines.all_of(found.parts["train"], sentences)
    scores = {f"bleu_{name}": bleu(texts, references) for name, texts in systems.items()}
    lengths = np.array([len(pairs.tokens(sentence)) for sentence in sentences])
    by_length = {}
    for n in np.unique(lengths):
        if len(index := np.flatnonzero(lengths == n)) >= 20:
            by_length[int(n)] = bleu([systems["beam"][i] for i in index], [references[i] for i in index])
    found.english.save(run.directory / "english.json")
    found.french.save(run.directory / "french.json")
    _write(run, sentences, systems, references)
    if config.attention != "none":
        # Long sentences, and not neighbours, which are much alike.
        chosen = np.argsort(-lengths, kind="stable")[:: max(len(lengths) // 12, 1)][:4]
        save(_maps(bind, config, hparams, found, params, [sentences[i] for i in chosen]), run.figures / "attention")
    return {
        "test_loss": loss,
        "test_perplexity": float(np.exp(loss)),
        **scores,
        **{f"bleu_of_{n}": score for n, score in by_length.items()},
        "unfinished_greedy": unfinished[1],
        "unfinished_beam": unfinished[config.beam],
    }


def _padded(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    result = np.full((len(rows), length), pairs.PADDING, np.int32)
    for out, row in zip(result, rows, strict=True):
        out[: len(row)] = row
    return result


def _by_batch(run: Any, params: Tree, source: np.ndarray, size: int = 100) -> np.ndarray:
    """The rows of a compiled function of [size, S], of any number of rows."""
    short = -len(source) % size
    filled = np.concatenate([source, np.repeat(source[:1], short, 0)])
    return np.concatenate([np.asarray(run(params, part)) for part in np.split(filled, len(filled) // size)])[
        : len(source)
    ]


def _write(
    run: Run, sentences: Sequence[str], systems: dict[str, list[str]], references: Sequence[Sequence[str]]
) -> None:
    """All test sentences with the output of each system and all references."""
    blocks = []
    for i, sentence in enumerate(sentences):
        lines = [f"{name:>10}  {texts[i]}" for name, texts in systems.items()]
        blocks.append("\n".join([sentence, *lines, *(f"{'reference':>10}  {text}" for text in references[i])]))
    write_atomic(run.directory / "translations.txt", "\n\n".join(blocks) + "\n")


def _maps(
    bind: supervised.Bind,
    config: SimpleNamespace,
    hparams: Hparams,
    found: Corpus,
    params: Tree,
    sentences: Sequence[str],
) -> "Figure":
    """Which words of a sentence the decoder attends to at each word of the translation."""
    source = _padded([found.english.encode(sentence) for sentence in sentences], config.length + 1)

    @jax.jit
    def seen(params, source):
        model = bind(hparams, params, None)
        start, memory = model.encode(source, _lengths(source))
        options = {"start": pairs.START, "stop": pairs.STOP}
        tokens = model.translate(source, _lengths(source), longest(config.length) + 1, **options)
        read = jnp.concatenate([jnp.full_like(tokens[:, :1], pairs.START), tokens[:, :-1]], 1)
        return tokens, model.decoder.weights(read, start, memory)

    figure, axes = panels(2, 2, width=3.6, height=3.4)
    for axis, sentence, tokens, weights in zip(axes.flat, sentences, *seen(params, source), strict=False):
        columns = [*pairs.tokens(sentence), "(end)"]
        rows = [*found.french.decode(np.asarray(tokens)), "(end)"][: len(tokens)]
        axis.imshow(weights[: len(rows), : len(columns)], cmap="Greys", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
        axis.set_yticks(range(len(rows)), rows)
        axis.grid(visible=False)
    return figure


SWEEP = f"attention={','.join(ATTENTION)};seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """BLEU of each kind of attention beside the baselines, and by the length of the sentence."""
    figures, (table, length) = separate("bleu", "by-length")
    by_label = groups(runs)
    intervals(table, by_label, "bleu_beam", (0, 100))
    for name, dashes in (("copy", ":"), ("words", "--"), ("nearest", "-.")):
        table.axvline(runs[0].result()[f"bleu_{name}"], color="0.5", linestyle=dashes, linewidth=1, label=name)
    for i, (label, members) in enumerate(by_label.items()):
        results = [run.result() for run in members]
        numbers = [int(name.rpartition("_")[2]) for name in results[0] if name.startswith("bleu_of_")]
        values = [np.mean([result[f"bleu_of_{n}"] for result in results]) for n in numbers]
        length.plot(numbers, values, "o-", color=COLORS[i % len(COLORS)], label=label, markersize=3)
    table.set(xlabel="test BLEU, beam search")
    length.set(xlabel="words and signs of the English sentence", ylabel="test BLEU")
    text = (
        "BLEU of the test part at the params of the lowest validation loss; the lines are baselines without a network."
    )
    return [Section("Translation", text, figures)]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
