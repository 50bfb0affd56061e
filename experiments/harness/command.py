"""The command line of an experiment: `python -m experiments.NAME [--flag=value ...]` is one run."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from experiments.harness import ending, sweep
from experiments.harness.experiment import Definition, define
from experiments.harness.flags import recorded
from experiments.harness.runs import default_directory, run_one
from experiments.harness.texts import shortened
from seqjax.train import InUse

LARGEST_FLAGFILE = 2**20  # bytes; /dev/zero has no end


def usage(definition: Definition) -> str:
    """Returns the help text of an experiment: its docstring and all its flags."""
    name = definition.name.removeprefix("experiments.")
    about = (
        f"usage: python -m {definition.name} [--flag=value ...]    one run\n"
        f"       python launch.py --experiment={name} [--flag=value ...]    a sweep of runs\n"
        f"The sweep it proposes is {definition.sweep!r}."
    )
    return f"{definition.doc}\n{about}\n{definition.flags.get_help()}"


def arguments(argv: Sequence[str]) -> list[str]:
    """Returns the arguments, those of the files that --flagfile names in its place: one a line, # before a comment.

    Raises:
        ValueError: such a file is not there, no regular file, too large, not in UTF-8, or is read already; an argument
            that no flag can hold (bytes that are not UTF-8, NUL).
    """
    expanded = list(_expanded(argv, set()))
    for argument in expanded:
        if "\0" in argument or any("\ud800" <= char <= "\udfff" for char in argument):
            raise ValueError(f"argument {shortened(argument)!r}: expected text in UTF-8 without NUL")
    return expanded


def _expanded(argv: Sequence[str], seen: set[Path]) -> Iterator[str]:
    rest = iter(argv)
    for argument in rest:
        name, equals, file = argument.partition("=")
        if argument == "--":
            yield from (argument, *rest)
        elif name in ("--flagfile", "-flagfile"):
            yield from _expanded(_lines(file if equals else next(rest, ""), seen), seen)
        else:
            yield argument


def _lines(file: str, seen: set[Path]) -> list[str]:
    about = f"--flagfile={shortened(file)}"
    try:
        path = Path(file).expanduser().resolve()
        if not path.is_file():
            raise ValueError(f"{about}: {'it is not a regular file' if path.exists() else 'there is no such file'}")
        if path in seen:
            raise ValueError(f"{about}: it is already being read, by itself or by another flagfile")
        seen.add(path)
        with path.open("rb") as opened:
            content = opened.read(LARGEST_FLAGFILE + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, no home of that user
        raise ValueError(f"{about}: {(isinstance(error, OSError) and error.strerror) or error}") from None
    if len(content) > LARGEST_FLAGFILE:
        raise ValueError(f"{about}: expected at most {LARGEST_FLAGFILE:,} bytes of flags, it has more")
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{about}: expected flags in UTF-8, one a line; its bytes are no text") from None
    return [line for line in lines if line and not line.startswith(("#", "//"))]


def main(module: ModuleType) -> None:
    """Runs the configuration that the command line describes.

    Exits with 0; 1 if the run failed; 2 for bad flags, before anything is started; else as `ending.exit_code`.
    """
    definition = define(module)
    sys.exit(ending.exit_code(definition.name, lambda: _main(definition, sys.argv[1:])))


def _main(definition: Definition, argv: Sequence[str]) -> int:
    if {"--help", "-h", "-help"} & set(argv):
        print(usage(definition))
        return 0
    config = definition.parse(arguments(argv))
    if config.workdir is not None:
        config.workdir = str(sweep.place(config.workdir))
    directory = Path(config.workdir or default_directory(definition.name, recorded(config)))
    try:
        result = run_one(definition, config, directory)
    except InUse as error:
        print(f"{definition.name}: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        print(f"{definition.name}: {ending.summary(error)}", file=sys.stderr)
        if (traceback := directory / "error.txt").exists():
            print(f"the traceback is in {traceback}", file=sys.stderr)
        return 1
    for name, value in result.items():
        print(f"{name:>24}  {value}")
    print(directory)
    return 0
