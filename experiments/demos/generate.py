"""Generates text with a trained run of `experiments.language`: samples token by token, or the likeliest by beam search.

    python -m experiments.demos.generate --run=DIR --prompt="ROMEO:" --length=400 --temperature=0.8 --top_p=0.95
    python -m experiments.demos.generate --run=DIR --prompt="the company" --length=20 --beam=5

Tokens are printed as they are sampled, by one compiled step that passes its carry on; the same seed gives the same text
as sampling in a single compiled loop. Without a prompt the text begins after a line break.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import language
from experiments.demos import command
from experiments.shared import corpora, reading
from seqjax import decoding
from seqjax.arrays import Array, Carry, Key, Params
from seqjax.data import text, words
from seqjax.train import Run

__all__ = ["Primed", "encode", "main", "pieces", "read_prompt", "search", "stream"]

FLAGS = command.flags("language")
flags.DEFINE_string("prompt", "", "How the text begins.", flag_values=FLAGS)
flags.DEFINE_integer("length", 400, "Tokens to generate.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "Seed of the samples.", lower_bound=0, upper_bound=2**31 - 1, flag_values=FLAGS)
flags.DEFINE_float("temperature", 1.0, "Below 1 sharper; 0: the likeliest.", lower_bound=0.0, flag_values=FLAGS)
flags.DEFINE_integer("top_k", None, "Sample from this many of the likeliest tokens.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float("top_p", None, "Sample from the likeliest tokens of this total probability.", flag_values=FLAGS)
flags.DEFINE_integer("beam", 0, "Width of a beam search; 0: sample.", lower_bound=0, flag_values=FLAGS)
flags.register_validator("top_p", lambda p: p is None or 0 < p <= 1, "a probability in (0, 1]", flag_values=FLAGS)

_EXCLUDED = [text.UNKNOWN_TOKEN]


class Primed(NamedTuple):
    """A network that has read a prompt.

    Attributes:
      vocabulary: of its tokens.
      stepper: `params -> step`, as `decoding` takes it.
      params: the weights.
      carry: after all of the prompt but its last token.
      last: that token, int32 [1].
    """

    vocabulary: corpora.Vocabulary
    stepper: Callable[[Params], decoding.Step]
    params: Params
    carry: Carry
    last: Array


def read_prompt(run: Run, prompt: str) -> Primed:
    """The network of a run after a line break and the prompt.

    Raises:
      FileNotFoundError: the run holds no network.
      ValueError: the prompt has a token that the training text has not.
    """
    config, vocabulary, model, params = reading.load(run)
    numbers = vars(config)
    tokens = jnp.asarray(encode(vocabulary, prompt))
    carry = model.start(numbers, params, 1)
    if len(tokens) > 1:
        carry, _, _ = jax.jit(lambda params, xs: model.of(numbers, params, None)(xs, carry))(params, tokens[:-1, None])
    return Primed(vocabulary, partial(reading.stepper, model, numbers), params, carry, tokens[-1:])


def encode(vocabulary: corpora.Vocabulary, prompt: str) -> np.ndarray:
    """The tokens of a line break and of the prompt, int32 [N]; ValueError for one that the training text lacks."""
    line_break, tokens = vocabulary.encode("\n")[:1], vocabulary.encode(prompt)
    given = list(prompt)
    if isinstance(vocabulary, words.Vocabulary):
        given = words.split(prompt)
        if not prompt.endswith("\n"):
            given, tokens = given[:-1], tokens[:-1]  # the last line is not complete
    pairs = zip(given, tokens, strict=True)
    if unknown := sorted({repr(one) for one, token in pairs if token == 0 and one != words.UNKNOWN}):
        raise ValueError(f"--prompt holds what the training text does not: {', '.join(unknown)}")
    return np.concatenate([line_break, tokens])


def stream(primed: Primed, length: int, key: Key, **options: Any) -> Iterator[int]:
    """The tokens of `decoding.sample`, each as soon as it is sampled; the options are those of `decoding.choose`."""

    @jax.jit
    def draw(params, carry, token, t):
        carry, logits = primed.stepper(params)(carry, token)
        return carry, decoding.choose(jax.random.fold_in(key, t), logits, exclude=_EXCLUDED, **options)

    carry, token = primed.carry, primed.last
    for t in range(length):
        carry, token = draw(primed.params, carry, token, jnp.int32(t))
        yield int(token[0])


def pieces(vocabulary: corpora.Vocabulary, last: int, tokens: Iterable[int]) -> Iterator[str]:
    """The text of each token after the one before, spaces and line breaks included."""
    for token in tokens:
        yield vocabulary.decode([last, token])[len(vocabulary.decode([last])) :]
        last = token


def search(primed: Primed, length: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest continuations that a beam search finds, int32 [T, K], and their log probabilities [K]."""

    def run(params, carry, last):
        return decoding.beam(primed.stepper(params), carry, last, length, width=width, exclude=_EXCLUDED)

    tokens, scores = jax.jit(run)(primed.params, primed.carry, primed.last)
    return np.asarray(tokens[:, 0]), np.asarray(scores[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the text of the flags; returns the exit code of `command.main`."""
    return command.main(sys.modules[__name__], _generate, argv)


def _generate(config: SimpleNamespace) -> None:
    run, _ = command.trained(config.run, language)
    primed = read_prompt(run, config.prompt)
    last = int(primed.last[0])
    if config.beam:
        tokens, scores = search(primed, config.length, config.beam)
        for row, score in zip(tokens.T.tolist(), scores, strict=True):
            print(f"{score:9.2f}  {config.prompt}{''.join(pieces(primed.vocabulary, last, row))}")
        return
    options = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    drawn = stream(primed, config.length, jax.random.key(config.seed), **options)
    print(config.prompt, end="", flush=True)
    for piece in pieces(primed.vocabulary, last, drawn):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    sys.exit(main())
