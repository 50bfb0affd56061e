"""Translates lines with a trained run of `experiments.translation`: from a terminal with a prompt, or through a pipe.

python -m experiments.demos.translate --run=DIR
echo "I love you." | python -m experiments.demos.translate --run=DIR --beam=5
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import translation
from experiments.demos import command
from seqjax.data import pairs

__all__ = ["load", "main"]

FLAGS = command.flags("translation")
flags.DEFINE_integer("beam", None, "Width of the beam search; default: of the run.", lower_bound=1, flag_values=FLAGS)


def load(directory: str | Path, beam: int | None = None) -> Callable[[str], str]:
    """The translation of a text by a trained run.

    Args:
      directory: of a finished run of `experiments.translation`.
      beam: width of the beam search, 1 for greedy search; None for that of the run.

    Raises:
      FileNotFoundError: there is no run, or it is not finished.
      ValueError: the run is of another experiment, or its params are damaged or of another model.
    """
    run, config = command.trained(directory, translation)
    english, french = (pairs.Vocabulary.load(run.directory / f"{name}.json") for name in ("english", "french"))
    empty = pairs.Pairs((), ())
    init, module = translation.network(config, translation.Corpus({"train": empty}, english, french))
    params = run.load_params(jax.eval_shape(lambda key: init(vars(config), key), jax.random.key(0)))
    search = translation.said(module, vars(config), config, config.beam if beam is None else beam)

    def translated(text: str) -> str:
        row = english.encode(text)
        length = max(config.length + 1, -(-len(row) // 8) * 8)  # few lengths, so that few programs are compiled
        source = np.full((1, length), pairs.PADDING, np.int32)
        source[0, : len(row)] = row
        tokens = np.asarray(search(params, jnp.asarray(source)))[0]
        if pairs.STOP not in tokens:
            print(
                f"experiments.demos.translate: cut after {len(tokens)} words and punctuation marks: {text!r}",
                file=sys.stderr,
            )
        return pairs.join(french.decode(tokens))

    return translated


def main(argv: Sequence[str] | None = None) -> int:
    """Translates each line of the standard input until it ends; returns the exit code of `command.main`."""
    return command.main(sys.modules[__name__], _translate, argv)


def _translate(config: SimpleNamespace) -> None:
    translated = load(config.run, config.beam)
    prompt = sys.stdin.isatty()
    while True:
        if prompt:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        print(translated(line) if line.strip() else "", flush=True)


if __name__ == "__main__":
    sys.exit(main())
