"""Launches sweeps: `python launch.py --experiment=temperature --sweep="model=lstm,gru;seed=0:3" --executor=local`.

Without any flag: the main job, truncated against full back-propagation through time on the embedded corpus.

A sweep is a product of axes: ";" between axes, "," between values, and a:b for the integers a, ..., b - 1
(seed=0:3 is 0, 1, 2). Without --sweep the experiment's own STUDY is run. Any flag of the experiment may be given
beside the flags below and then holds for all runs (--steps=100 --data_dir=DIR). Everything is checked before the
first run starts. The same command again goes on where it was ended: finished runs are not run again, broken ones are.
"""

import copy
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from absl import flags

from experiments import base, command, executors, sweep

FLAGS = flags.FlagValues()
flags.DEFINE_string("experiment", "bptt_vs_tbptt", "A module of experiments/, or any other module.", flag_values=FLAGS)
flags.DEFINE_string("sweep", None, "Axes of the sweep (default: the experiment's STUDY).", flag_values=FLAGS)
flags.DEFINE_enum(
    "executor",
    "vmap",
    ["debug", "local", "vmap", "slurm"],
    "debug: in this process; local: --processes at a time; vmap: runs that differ only in numbers as one compiled"
    " program; slurm: jobs of a cluster, through submitit.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("processes", 2, "Runs at the same time (local, slurm).", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "Directory of the sweep (default: runs/NAME/<hash>).", flag_values=FLAGS)
flags.DEFINE_string("slurm_partition", None, "Partition of the cluster.", flag_values=FLAGS)
flags.DEFINE_integer("slurm_minutes", 60, "Time limit of a job.", lower_bound=1, flag_values=FLAGS)


def experiment(name: str) -> ModuleType:
    """Returns the experiment module of that name.

    Raises:
        ValueError: there is none; names those there are.
    """
    full = next(filter(_exists, (f"experiments.{name}", name)), None)
    module = importlib.import_module(full) if full else None
    if module is None or not hasattr(module, "STUDY"):
        files = sorted(Path(base.__file__).parent.glob("*.py"))
        known = [file.stem for file in files if "\nSTUDY = " in file.read_text()]
        raise ValueError(f"no experiment {name!r}; expected one of {', '.join(known)}, or any importable module")
    return module


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # no parent of a dotted name; an empty name
        return False


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns the exit code: 0, 1 where a run failed, 2 for bad flags."""
    options = copy.deepcopy(FLAGS)
    options.set_gnu_getopt(True)
    wants_help = bool({"--help", "-h", "-help"} & set(argv))
    try:
        try:
            _, *rest = options(["", *(a for a in argv if a not in ("--help", "-h", "-help"))], known_only=True)
        except flags.Error as error:
            raise ValueError(str(error)) from None
        if wants_help:
            print(f"{__doc__}\n{FLAGS.get_help(include_special_flags=False)}")
            if options["experiment"].present:
                print(command.usage(experiment(options.experiment)))
            return 0
        module = experiment(options.experiment)
        executor = _executor(options)
        plan = sweep.plan(module, options.sweep, base.given_flags(module, rest, beside=list(FLAGS)), options.workdir)
        if options.executor == "vmap" and any(member.config.patience for member in plan.members):
            raise ValueError("--patience: the lanes of --executor=vmap cannot stop early; take debug or local")
    except ValueError as error:
        print(f"launch.py: {error}", file=sys.stderr)
        return 2
    return sweep.run(plan, executor)


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
