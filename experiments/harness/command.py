"""The command line of an experiment: `python -m experiments.NAME [--flag=value ...]`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

from experiments.harness import base, ending, sweep
from experiments.harness.texts import shortened
from seqjax.train import InUse

LARGEST_FLAGFILE = 2**20  # bytes; /dev/zero has no end


def usage(module: ModuleType) -> str:
    """Returns the help text of an experiment: its docstring and all its flags."""
    about = (
        f"usage: python -m {base.name_of(module)} [--flag=value ...]\n"
        f"The study is {module.STUDY!r}. It is what runs where no flag names one of its axes;\n"
        "where one does, it is a single run. A part of the study: launch.py, which takes the same flags."
    )
    return f"{module.__doc__}\n{about}\n{module.FLAGS.get_help()}"


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
            raise ValueError(f"{about}: it is read already, by itself or by another flagfile")
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
    """Runs the whole STUDY in this process, or, if a flag names one of its axes, a single run.

    Exits with 0; 1 where a run failed; 2 for bad flags, before anything is started; else as `ending.exit_code`.
    """
    sys.exit(ending.exit_code(base.name_of(module), lambda: _main(module, sys.argv[1:])))


def _main(module: ModuleType, argv: Sequence[str]) -> int:
    if {"--help", "-h", "-help"} & set(argv):
        print(usage(module))
        return 0
    argv = arguments(argv)
    given = base.given_flags(module, argv)
    if not sweep.parse(module.STUDY, module.FLAGS).keys() & given:
        return sweep.run(sweep.plan(module, None, given, given.get("workdir")))
    config = base.parse(module, argv)
    if config.workdir is not None:
        config.workdir = str(sweep.place(config.workdir))
    return _run(module, config)


def _run(module: ModuleType, config: SimpleNamespace) -> int:
    directory = Path(config.workdir or base.default_directory(module, base.recorded(config)))
    try:
        result = base.run_one(module, config, directory)
    except InUse as error:
        print(f"{base.name_of(module)}: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        print(f"{base.name_of(module)}: {base.summary(error)}", file=sys.stderr)
        if (traceback := directory / "error.txt").exists():
            print(f"the traceback is in {traceback}", file=sys.stderr)
        return 1
    for name, value in result.items():
        print(f"{name:>24}  {value}")
    print(directory)
    return 0
