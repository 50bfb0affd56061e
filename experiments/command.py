"""The command line of an experiment: `python -m experiments.NAME [--flag=value ...]`."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

from experiments import base, sweep
from seqjax.train import InUse


def usage(module: ModuleType) -> str:
    """Returns the help text of an experiment: its docstring and all its flags."""
    about = (
        f"usage: python -m {base.name_of(module)} [--flag=value ...]\n"
        f"The study is {module.STUDY!r}. It is what runs where no flag names one of its axes;\n"
        "where one does, it is a single run. A part of the study: launch.py, which takes the same flags."
    )
    return f"{module.__doc__}\n{about}\n{module.FLAGS.get_help()}"


def main(module: ModuleType) -> None:
    """Runs the whole STUDY in this process, or, if a flag names one of its axes, a single run.

    Exits with 0; 1 where a run failed; 2 for bad flags, before anything is started.
    """
    argv = sys.argv[1:]
    if {"--help", "-h", "-help"} & set(argv):
        print(usage(module))
        return
    try:
        given = base.given_flags(module, argv)
        single = sweep.parse(module.STUDY, module.FLAGS).keys() & given
        what = base.parse(module, argv) if single else sweep.plan(module, None, given, given.get("workdir"))
    except ValueError as error:
        print(f"{base.name_of(module)}: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(sweep.run(what) if isinstance(what, sweep.Plan) else _run(module, what))


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
