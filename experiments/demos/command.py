"""The command line of a demo: `python -m experiments.demos.NAME --run=DIR [--flag=value ...]`.

A demo is a module with a docstring, its own `FLAGS`, which start from `flags`, and a function of their values that
`main` calls.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments.harness import ending
from experiments.harness.command import arguments
from experiments.harness.experiment import define, name_of
from experiments.harness.flags import UNRECORDED, parse
from seqjax.train import Run

__all__ = ["flags", "main", "path", "trained"]


def flags(experiment: str) -> FlagValues:
    """Returns a new FlagValues with --run, the directory of a finished run of an experiment."""
    values = FlagValues()
    path(values, "run", f"directory of a finished run of experiments.{experiment}")
    return values


def path(values: FlagValues, name: str, what: str) -> None:
    """Adds a flag that must be given: a path."""
    absl_flags.DEFINE_string(name, None, f"The {what}.", flag_values=values)
    absl_flags.register_validator(name, bool, f"expected the {what}", flag_values=values)


def trained(directory: str | Path, experiment: ModuleType) -> tuple[Run, SimpleNamespace]:
    """Returns the finished run of an experiment in a directory, and its flags.

    Raises:
        FileNotFoundError: there is no run, or it is not finished.
        ValueError: the run is of another experiment, or a file of it is damaged.
    """
    run = Run.read(directory)
    expected = define(experiment)
    missing = sorted(set(expected.flags) - {*UNRECORDED, *run.flags})
    if missing:
        raise ValueError(
            f"{directory} holds a run of another experiment: expected one of {expected.name}, which has --{missing[0]}"
        )
    run.result()
    return run, SimpleNamespace(**run.flags)


def main(module: ModuleType, demo: Callable[[SimpleNamespace], None], argv: Sequence[str] | None = None) -> int:
    """Calls `demo` with the values of the flags in `argv` (default: of this process) and returns the exit code.

    0; 2 for bad flags and for files that cannot be read, with one line on stderr; else as `ending.exit_code`.
    """
    given = sys.argv[1:] if argv is None else argv
    return ending.exit_code(name_of(module), lambda: _main(module, demo, given))


def _main(module: ModuleType, demo: Callable[[SimpleNamespace], None], argv: Sequence[str]) -> int:
    if {"--help", "-h", "-help"} & set(argv):
        print(f"{module.__doc__}\n{module.FLAGS.get_help()}")
        return 0
    config = parse(module.FLAGS, arguments(argv))
    try:
        demo(config)
    except BrokenPipeError:
        raise
    except OSError as error:  # the flags name every file that is opened
        raise ValueError(ending.sentence(error)) from error
    return 0
