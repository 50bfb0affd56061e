"""Text from a trained language model, token by token, or the likeliest by beam search.

    python -m experiments.demos.generate --run=DIR --prompt="ROMEO:" --length=400 --temperature=0.8 --top_p=0.95
    python -m experiments.demos.generate --run=DIR --prompt="the company" --length=20 --beam=5

DIR is a finished run of `experiments.language`. Tokens are printed as they are drawn, by one compiled step whose carry
goes on; the same seed gives the same text, however it is drawn. Without a prompt the text begins after a line break.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.shared import corpora, reading
from seqjax import decoding
from seqjax.arrays import Array, Carry, Key, Params
from seqjax.data import words
from seqjax.train import Run

FLAGS = flags.FlagValues()
flags.DEFINE_string("run", None, "Directory of the run.", flag_values=FLAGS, required=True)
flags.DEFINE_string("prompt", "", "How the text begins.", flag_values=FLAGS)
flags.DEFINE_integer("length", 400, "Tokens to say.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "Seed of the draws.", lower_bound=0, upper_bound=2**31 - 1, flag_values=FLAGS)
flags.DEFINE_float("temperature", 1.0, "Below 1 sharper; 0: the likeliest.", lower_bound=0.0, flag_values=FLAGS)
flags.DEFINE_integer("top_k", None, "Draw from so many of the likeliest tokens.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float("top_p", None, "Draw from the likeliest tokens of this probability.", flag_values=FLAGS)
flags.DEFINE_integer(
    "beam", 0, "Width of a beam search, which draws nothing; 0: draw.", lower_bound=0, flag_values=FLAGS
)
flags.register_validator("top_p", lambda p: p is None or 0 < p <= 1, "a probability in (0, 1]", flag_values=FLAGS)


class Speech(NamedTuple):
    """A network that has read a prompt.

    Attributes:
      vocabulary: of its tokens.
      say: `params -> step`, as `decoding` wants it.
      params: the weights.
      carry: after all of the prompt but its last token.
      last: that token, int32 [1].
    """

    vocabulary: corpora.Vocabulary
    say: Callable[[Params], decoding.Step]
    params: Params
    carry: Carry
    last: Array


def read_prompt(run: Run, prompt: str) -> Speech:
    """The network of a run after a line break and the prompt.

    Raises:
      FileNotFoundError: the run holds no network.
      ValueError: the training text had no such token.
    """
    config, vocabulary, model, params = reading.load(run)
    numbers = vars(config)
    tokens = jnp.asarray(encode(vocabulary, prompt))
    carry = model.start(numbers, params, 1)
    if len(tokens) > 1:
        carry, _, _ = jax.jit(lambda params, xs: model.of(numbers, params, None)(xs, carry))(params, tokens[:-1, None])
    return Speech(vocabulary, partial(reading.speaker, model, numbers), params, carry, tokens[-1:])


def encode(vocabulary: corpora.Vocabulary, prompt: str) -> np.ndarray:
    """The tokens of a line break and of the prompt, int32 [N]; ValueError for one that the training text had not."""
    line_break, tokens = vocabulary.encode("\n")[:1], vocabulary.encode(prompt)
    given = list(prompt)
    if isinstance(vocabulary, words.Vocabulary):
        given = words.split(prompt)
        if not prompt.endswith("\n"):
            given, tokens = given[:-1], tokens[:-1]  # the last line goes on
    pairs = zip(given, tokens, strict=True)
    if unknown := sorted({repr(one) for one, token in pairs if token == 0 and one != words.UNKNOWN}):
        raise ValueError(f"--prompt holds what the training text does not: {', '.join(unknown)}")
    return np.concatenate([line_break, tokens])


def stream(speech: Speech, length: int, key: Key, **options: Any) -> Iterator[int]:
    """The tokens of `decoding.sample`, each as soon as it is drawn; the options are those of `decoding.choose`."""

    @jax.jit
    def draw(params, carry, token, t):
        carry, logits = speech.say(params)(carry, token)
        return carry, decoding.choose(jax.random.fold_in(key, t), logits, **options)

    carry, token = speech.carry, speech.last
    for t in range(length):
        carry, token = draw(speech.params, carry, token, jnp.int32(t))
        yield int(token[0])


def pieces(vocabulary: corpora.Vocabulary, last: int, tokens: Iterable[int]) -> Iterator[str]:
    """The text of each token after the one before, spaces and line breaks included."""
    for token in tokens:
        yield vocabulary.decode([last, token])[len(vocabulary.decode([last])) :]
        last = token


def search(speech: Speech, length: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest continuations that a beam search finds, int32 [T, K], and their log probabilities [K]."""

    def run(params, carry, last):
        return decoding.beam(speech.say(params), carry, last, length, width=width)

    tokens, scores = jax.jit(run)(speech.params, speech.carry, speech.last)
    return np.asarray(tokens[:, 0]), np.asarray(scores[0])


def main(argv: Sequence[str]) -> int:
    """Prints the text of the flags; returns 0, or 2 where they are bad, said in one line on stderr."""
    try:
        config = parse(argv)
        speech = read_prompt(Run.read(config.run), config.prompt)
        if config.beam:
            tokens, scores = search(speech, config.length, config.beam)
            for row, score in zip(tokens.T.tolist(), scores, strict=True):
                print(f"{score:9.2f}  {config.prompt}{''.join(pieces(speech.vocabulary, int(speech.last[0]), row))}")
            return 0
        options = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
        drawn = stream(speech, config.length, jax.random.key(config.seed), **options)
        print(config.prompt, end="", flush=True)
        for piece in pieces(speech.vocabulary, int(speech.last[0]), drawn):
            print(piece, end="", flush=True)
        print()
    except (ValueError, FileNotFoundError) as error:
        print(f"experiments.demos.generate: {error}", file=sys.stderr)
        return 2
    return 0


def parse(argv: Sequence[str]) -> SimpleNamespace:
    """The flags with their values; ValueError for bad ones."""
    values = copy.deepcopy(FLAGS)
    try:
        _, *rest = values(["", *argv])
    except flags.Error as error:
        raise ValueError(str(error)) from None
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; flags are given as --name=value")
    return SimpleNamespace(**values.flag_values_dict())


if __name__ == "__main__":
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        print(__doc__, FLAGS.get_help(), sep="\n")
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
