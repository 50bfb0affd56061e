"""Translates lines with a trained run of `experiments.translation`: from a terminal with a prompt, or through a pipe.

python -m experiments.demos.translate --run=RUN_DIRECTORY
echo "I love you." | python -m experiments.demos.translate --run=RUN_DIRECTORY --beam=5
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import translation
from seqjax.data import files, pairs
from seqjax.train import Run

__all__ = ["load", "main"]


def load(directory: str | Path, beam: int | None = None) -> Callable[[str], str]:
    """The translation of a text, by the best weights of a run.

    Args:
      directory: a finished run of `experiments.translation`.
      beam: sequences that beam search keeps, 1 for greedy search; None for that of the run.

    Raises:
      FileNotFoundError: no run, or one that is not finished.
      ValueError: the run of another experiment, or weights of other shapes.
    """
    run = Run.read(directory)
    if "attention" not in run.flags:
        raise ValueError(f"{directory} holds a run of another experiment: it has no flag --attention")
    run.result()
    config = SimpleNamespace(**run.flags)
    english, french = (pairs.Vocabulary.load(run.directory / f"{name}.json") for name in ("english", "french"))
    empty = pairs.Pairs((), ())
    init, module = translation.network(config, translation.Corpus({"train": empty}, english, french))
    expected, treedef = jax.tree.flatten(jax.eval_shape(lambda key: init(vars(config), key), jax.random.key(0)))
    file = run.directory / "weights.npz"
    saved = files.arrays(file.read_bytes(), f"{file}")
    leaves = [jnp.asarray(leaf) for leaf in saved.values()]
    if list(saved) != [f"arr_{i}" for i in range(len(expected))] or any(
        leaf.shape != like.shape for leaf, like in zip(leaves, expected, strict=True)
    ):
        raise ValueError(f"{file} holds weights of other shapes than the flags of the run say")
    params = treedef.unflatten(leaves)
    search = translation.said(module, vars(config), config, config.beam if beam is None else beam)

    def translated(text: str) -> str:
        row = english.encode(text)
        length = max(config.length + 1, -(-len(row) // 8) * 8)  # few lengths, so that few programs are compiled
        source = np.full((1, length), pairs.PADDING, np.int32)
        source[0, : len(row)] = row
        said = np.asarray(search(params, jnp.asarray(source)))[0]
        if pairs.STOP not in said:
            print(f"experiments.demos.translate: cut after {len(said)} words and signs: {text!r}", file=sys.stderr)
        return pairs.join(french.decode(said))

    return translated


def main(argv: list[str] | None = None) -> int:
    """Translates each line of the standard input until its end; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.demos.translate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--run", required=True, help="directory of a finished run of experiments.translation")
    parser.add_argument("--beam", type=int, help="sequences that beam search keeps; default: that of the run")
    given = parser.parse_args(argv)
    if given.beam is not None and given.beam < 1:
        parser.error(f"--beam must be at least 1, got {given.beam}")
    try:
        translated = load(given.run, given.beam)
    except (FileNotFoundError, ValueError) as error:
        print(f"experiments.demos.translate: {error}", file=sys.stderr)
        return 1
    prompt = sys.stdin.isatty()
    while True:
        if prompt:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return 0
        print(translated(line) if line.strip() else "", flush=True)


if __name__ == "__main__":
    sys.exit(main())
