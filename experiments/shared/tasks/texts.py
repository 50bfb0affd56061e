"""Texts: the next character of any, the next word of Penn Treebank."""

from functools import cache, partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.harness.task import Batch, Task
from experiments.shared import corpora
from experiments.shared.tasks.scores import cross_entropy
from seqjax.data import text

# Lines of Penn Treebank that `words` trains on, a fourteenth: read a dozen times in minutes, they can be memorized.
LINES = 3_000


def characters(corpus: str, *, length: int, batch_size: int) -> Task:
    """The next character of a text (of "pydoc", Python's own language reference, or of a file or directory).

    85 % of the text are for training, 5 % for validation, the last 10 % for the test. Streams as in `_next_token`.
    """
    everything = text.language_reference() if corpus == "pydoc" else text.read(Path(corpus))
    parts = dict(zip(("train", "validation", "test"), text.split(everything, (0.85, 0.05, 0.1)), strict=True))
    vocabulary = text.Vocabulary.of(parts["train"])
    task = _next_token({part: vocabulary.encode(some) for part, some in parts.items()}, vocabulary, length, batch_size)

    def scores(ys, targets):
        nats = cross_entropy(ys, targets)
        return {"loss": nats, "bits_per_character": nats / np.log(2).astype(np.float32)}

    left_out = corpora.left_out(len(parts["train"]), batch_size, length, "character")
    return task._replace(scores=scores, left_out=left_out)


def words(data_dir: str | None, *, length: int, batch_size: int) -> Task:
    """The next word of Penn Treebank, with the first `LINES` of its training text, and all of the other parts.

    The vocabulary is that of these lines. The loss is in nats per word; streams as in `_next_token`.
    """
    vocabulary, parts = _treebank(data_dir)
    task = _next_token(parts, vocabulary, length, batch_size)
    return task._replace(left_out=corpora.left_out(len(parts["train"]), batch_size, length, "word"))


@cache  # read once per process, where a sweep builds many experiments
def _treebank(data_dir: str | None) -> corpora.Corpus:
    texts = corpora.treebank(data_dir)
    train = "".join(texts["train"].splitlines(keepends=True)[:LINES])
    vocabulary = corpora.UNITS["word"].of(train)
    return corpora.Corpus(
        vocabulary, {part: vocabulary.encode(some) for part, some in (texts | {"train": train}).items()}
    )


def _next_token(parts: dict[str, np.ndarray], vocabulary: corpora.Vocabulary, length: int, batch_size: int) -> Task:
    """Stream i of a batch continues stream i of the batch before.

    Scores cover all tokens of a part but its first; `left_out` counts those at the ends of the training streams.
    """
    streams = jnp.asarray(text.lanes(parts["train"], batch_size))
    count = text.chunks(streams, length)
    held_out = {part: corpora.windows(parts[part], length, batch_size) for part in ("validation", "test")}

    def chunk(data, key, step):
        xs, targets = text.chunk(data["train"], step % count, length)
        return Batch(xs, targets, jnp.ones(xs.shape, jnp.float32))

    def window(part, data, index):
        xs, targets, real = (leaf[index] for leaf in data[part])
        return Batch(xs, targets, real.astype(jnp.float32))

    return Task(
        data={"train": streams, **held_out},
        train=chunk,
        held_out={part: (len(one.xs), partial(window, part)) for part, one in held_out.items()},
        continues=True,
        tokens=vocabulary.size,
        features=0,
        outputs=vocabulary.size,
        blank=0,
        losses=cross_entropy,
        scores=lambda ys, targets: {"loss": cross_entropy(ys, targets)},
        batches=count,
        vocabulary=vocabulary,
    )
