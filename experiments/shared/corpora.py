"""Texts as tokens: what the language models train and are tested on."""

import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags

from seqjax.arrays import Array
from seqjax.data import files, ptb, text, words

Vocabulary = text.Vocabulary | words.Vocabulary
UNITS = {"character": text.Vocabulary, "word": words.Vocabulary}


class Corpus(NamedTuple):
    """A text in tokens.

    Attributes:
      vocabulary: of the training part.
      parts: int32 [N] for "train", "validation" and "test".
    """

    vocabulary: Vocabulary
    parts: dict[str, np.ndarray]


class Windows(NamedTuple):
    """A text cut into L stretches, which are read side by side in C windows of T steps.

    Attributes:
      xs: tokens int32 [C, T, L]; window i + 1 continues window i.
      targets: the token after each, int32 [C, T, L].
      real: bool [C, T, L], false behind the end of the text.
    """

    xs: Array
    targets: Array
    real: Array


def define(values: flags.FlagValues) -> None:
    """Adds the flags --corpus and --unit."""
    flags.DEFINE_string(
        "corpus",
        "pydoc",
        "pydoc (Python's manual), ptb or shakespeare (in --data_dir), or a text file or directory.",
        flag_values=values,
    )
    flags.DEFINE_enum("unit", "character", list(UNITS), "What a token is.", flag_values=values)


def load(config: SimpleNamespace) -> Corpus:
    """The corpus of the flags --corpus, --unit and --data_dir; a text without parts is cut at 90 and at 95 %."""
    return _corpus(config.corpus, config.unit, config.data_dir)


def windows(tokens: np.ndarray, length: int, streams: int) -> Windows:
    """Every token of a text but the first as a target, once.

    Args:
      tokens: integers [N].
      length: steps of a window T.
      streams: stretches L, 1 <= L < N; 1 reads the text as a whole.

    Raises:
      ValueError: too few tokens for this many streams.
    """
    targets = len(tokens) - 1
    if not 1 <= streams <= targets:
        raise ValueError(f"{len(tokens)} tokens cannot be read in {streams} streams")
    steps = -(-targets // streams)

    def cut(values: np.ndarray) -> Array:
        padded = np.pad(values, (0, steps * streams - targets)).reshape(streams, steps)
        padded = np.pad(padded, ((0, 0), (0, -steps % length)))
        return jnp.asarray(padded.T.reshape(-1, length, streams))

    return Windows(cut(tokens[:-1]), cut(tokens[1:]), cut(np.ones(targets, bool)))


def left_out(count: int, streams: int, length: int, unit: str) -> str:
    """The tokens that an epoch of training in this many streams does not read, in one line."""
    rest = text.left_over(count, streams, length)
    return f"{rest:,} of {count:,} training {unit}s, at the ends of {streams} streams of windows of {length}"


def treebank(data_dir: str | None) -> dict[str, str]:
    """The parts of Penn Treebank; without a directory, generated ones."""
    if data_dir is not None:
        return ptb.load(data_dir)
    print("no --data_dir: the sentences are generated, and their numbers mean nothing for news", file=sys.stderr)
    return ptb.generated()


@cache  # read once per process, where a sweep builds many experiments
def _corpus(name: str, unit: str, data_dir: str | None) -> Corpus:
    parts = _texts(name, data_dir)
    vocabulary = UNITS[unit].of(parts["train"])
    return Corpus(vocabulary, {part: vocabulary.encode(content) for part, content in parts.items()})


def _texts(name: str, data_dir: str | None) -> dict[str, str]:
    if name == "ptb":
        return treebank(data_dir)
    if name == "shakespeare":
        if data_dir is None:
            raise ValueError(
                "--corpus=shakespeare needs --data_dir, with input.txt (or tinyshakespeare/input.txt) in it"
            )
        everything = text.read(files.find(Path(data_dir).expanduser(), ("input.txt",), ("tinyshakespeare",)))
    else:
        everything = text.language_reference() if name == "pydoc" else text.read(Path(name).expanduser())
    return dict(zip(("train", "validation", "test"), text.split(everything, (0.9, 0.05, 0.05)), strict=True))
