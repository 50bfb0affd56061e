"""Launches a sweep: `python launch.py --experiment=temperature --sweep="model=lstm,gru;seed=0:3" --executor=local`.

Without any flag: the main job, truncated against full back-propagation through time on the embedded corpus.

A sweep is a product of axes: ";" between axes, "," between values, and a:b for the integers a, ..., b - 1
(seed=0:3 is 0, 1, 2), at most 10,000 runs in all. Without --sweep it is the one that the experiment proposes, which
`--experiment=NAME --help` shows. Any flag of the experiment may be given as well and then holds for all runs
(--steps=100 --data_dir=DIR); one that the proposed sweep varies is fixed at the given value. Everything is checked
before the first run starts. The same command again resumes: finished runs are kept, failed ones are run again.

A sweep over --learning_rate is a grid: the report compares each method at its own best rate, by the validation score.
With --points=N, an axis may be a range: learning_rate=1e-4..1e-1:log;dropout=0..0.6 is searched at N points, which
--sampler chooses, and each method is compared at its own best point. A larger N continues the search.

Without starting anything, beside a sweep that runs as well as after it:

    python launch.py --status=DIR         how many runs are finished, failed (and why), running (and how far), waiting
    python launch.py --watch=DIR          the same, until no run is left
    python launch.py --best=DIR           the best run of each method: its scores, directory and command
    python launch.py --compare=DIR1,DIR2  two sweeps of one experiment, by method, in differences paired by seed

A single run is `python -m experiments.NAME`.
"""

import copy
import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import experiments  # first, for it names a package that is missing

# isort: split
from absl import flags

from experiments.harness import command, ending, executors, findings, progress, search, sweep
from experiments.harness.comparison import RATE
from experiments.harness.experiment import ATTRIBUTES, Definition, define
from experiments.harness.flags import given_flags
from experiments.harness.texts import shortened

FLAGS = flags.FlagValues()
flags.DEFINE_string("experiment", "bptt_vs_tbptt", "A module of experiments/, or any other module.", flag_values=FLAGS)
flags.DEFINE_string(
    "sweep", None, "Axes of the sweep (default: those that the experiment proposes).", flag_values=FLAGS
)
flags.DEFINE_enum(
    "executor",
    "vmap",
    ["debug", "local", "vmap", "slurm"],
    "debug: in this process; local: --processes at a time; vmap: runs that differ only in traced flags as one"
    " compiled program; slurm: jobs of a cluster, through submitit.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("processes", 2, "Runs at the same time (local, slurm).", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("points", 0, "Points of the ranges a..b of --sweep.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_enum(
    "sampler", search.SAMPLERS[0], list(search.SAMPLERS), "halton: evenly spread points; random: independent ones.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "widen", 0, "Times to extend the grid of --learning_rate, while a method has its best rate at an end; 0: never.",
    lower_bound=0, flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string("workdir", None, "Directory of the sweep (default: runs/NAME/<hash>).", flag_values=FLAGS)
flags.DEFINE_string("slurm_partition", None, "Partition of the cluster.", flag_values=FLAGS)
flags.DEFINE_integer("slurm_minutes", 60, "Time limit of a job.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("status", None, "Print how far the sweep in this directory is.", flag_values=FLAGS)
flags.DEFINE_string("watch", None, "Show how far the sweep in this directory is, until it ends.", flag_values=FLAGS)
flags.DEFINE_string("best", None, "Print the best run of each method in this sweep directory.", flag_values=FLAGS)
flags.DEFINE_string("compare", None, "Print how the second of two sweeps, DIR1,DIR2, differs.", flag_values=FLAGS)

# What shows a sweep and starts nothing: by flag, a function of its value that returns the exit code.
VIEWS = {"status": progress.status, "watch": progress.watch, "best": findings.best, "compare": findings.compare}


def experiment(name: str) -> Definition:
    """Returns the experiment of that name.

    Raises:
        ValueError: there is no such module, it cannot be imported, or it lacks an attribute of an experiment.
    """
    about = f"experiment {shortened(name)!r}"
    module = None
    try:
        # Other names would mean files, or modules relative to this one.
        if all(part.isidentifier() for part in name.split(".")):
            full = next(filter(_exists, (f"experiments.{name}", name)), None)
            module = importlib.import_module(full) if full else None
    except ending.Stopped:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"{about} cannot be imported: {ending.summary(error)}") from None
    if module is None or not hasattr(module, "SWEEP"):
        files = sorted(Path(experiments.__file__).parent.glob("*.py"))
        known = [file.stem for file in files if "\nSWEEP = " in file.read_text()]
        stem = re.sub(r".*/|\.py$", "", name)
        hint = f" (give the name alone: {stem})" if stem != name and stem in known else ""
        raise ValueError(f"no {about}{hint}; expected one of {', '.join(known)}, or any importable module")
    if lacking := [attribute for attribute in ATTRIBUTES if not hasattr(module, attribute)]:
        raise ValueError(f"{about} lacks {', '.join(lacking)}: see experiments/harness/experiment.py")
    return define(module)


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # no parent of a dotted name; a module without a specification
        return False


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns the exit code.

    0; 1 where a run failed, for --status and --watch where one is not finished; 2 for bad flags; else as
    `ending.exit_code`.
    """
    return ending.exit_code("launch.py", lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    options = copy.deepcopy(FLAGS)
    options.set_gnu_getopt(True)
    wants_help = bool({"--help", "-h", "-help"} & set(argv))
    argv = command.arguments([argument for argument in argv if argument not in ("--help", "-h", "-help")])
    try:
        _, *rest = options(["", *argv], known_only=True)
    except flags.Error as error:
        raise ValueError(str(error)) from None
    if wants_help:
        print(f"{__doc__}\n{FLAGS.get_help(include_special_flags=False)}")
        definition = experiment(options.experiment)
        if options["experiment"].present:
            print(command.usage(definition))
        else:
            print(f"The sweep that {options.experiment} proposes is {definition.sweep!r}.")
        return 0
    if asked := [name for name in VIEWS if options[name].present]:
        return _view(asked[0], options, rest)
    definition = experiment(options.experiment)
    executor = _executor(options)
    fixed = given_flags(definition.flags, rest, beside=list(FLAGS))
    searched = search.Search(options.points, options.sampler)
    plan = sweep.plan(definition, options.sweep, fixed, options.workdir, widen=options.widen > 0, search=searched)
    if options.executor == "vmap" and any(member.config.patience for member in plan.members):
        raise ValueError("--patience: the lanes of --executor=vmap cannot stop early; take debug or local")
    code = sweep.run(plan, executor)
    while plan.widened < options.widen and code != 2 and (wider := sweep.wider(plan)):
        added = sorted({*wider.axes[RATE]} - {*plan.axes[RATE]})
        print(f"\na method has its best rate at an end of the grid: adding {RATE}={','.join(map(str, added))}")
        plan = wider
        code = sweep.run(plan, executor)
    return code


def _view(name: str, options: flags.FlagValues, rest: Sequence[str]) -> int:
    others = [f"--{other}" for other in FLAGS if options[other].present and other != name] + list(rest)
    if others:
        raise ValueError(f"--{name} shows a sweep and starts nothing: leave out {shortened(' '.join(others))}")
    value = options[name].value
    if not value:
        raise ValueError(f"--{name} is empty; expected the directory of a sweep")
    return VIEWS[name](value)


def _executor(options: flags.FlagValues) -> Callable[..., executors.Outcomes]:
    name, processes = options.executor, options.processes
    if name == "slurm":
        executors.require_slurm()
        partition, minutes = options.slurm_partition, options.slurm_minutes
        return functools.partial(executors.slurm, processes=processes, partition=partition, minutes=minutes)
    if name == "local":
        return functools.partial(executors.local, processes=processes)
    return {"debug": executors.debug, "vmap": executors.vmap}[name]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
