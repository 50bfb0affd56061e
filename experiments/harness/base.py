"""What every experiment shares: the training flags, their checks, and the way from flags to a finished run.

An experiment is a module `experiments/NAME.py` with

    FLAGS = base.flags(steps=2000)   # its own FlagValues: the training flags below and what it adds
    NUMBERS = ("seed", "learning_rate")   # flags that are only numbers inside the compiled program
    STUDY = "cell=lstm,gru;seed=0:3"      # the sweep that answers its question
    def program(config): ...              # -> seqjax.train.Program
    def finish(config, program, state, run): ...   # -> dict for result.json
    def report(runs): ...                 # -> sections of the report (experiments.harness.report.Section)
    generated = base.without_data("digits")   # where data can be generated: what, and with which flags
    def left_out(config): ...        # -> what of the data a run does not read, in one line, or None; if there is such
    if __name__ == "__main__":
        command.main(sys.modules[__name__])

`program` gets a config without the flags in NUMBERS, so it cannot read by mistake what differs between the lanes
of one compiled program: those arrive as the argument `numbers` of its functions.
"""

import contextlib
import copy
import difflib
import functools
import hashlib
import inspect
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags as absl_flags
from absl.flags import FlagValues

from seqjax.solvers.native.build import user_cache
from seqjax.train import InUse, Program, Run, loop
from seqjax.train.loop import FitResult

# Where a run is kept, how much it prints and how soon it starts, not what it computes: not recorded.
UNRECORDED = ("workdir", "progress", "compilation_cache")


def flags(**defaults: Any) -> FlagValues:
    """Returns a new FlagValues with the training flags, each with the default given here or its own.

    Raises absl's UnrecognizedFlagError for a default of a flag that is not a training flag.
    """
    values = FlagValues()
    own: dict[str, Any] = {"flag_values": values}
    integer, number = absl_flags.DEFINE_integer, absl_flags.DEFINE_float
    integer("seed", 0, "Seed of everything random.", lower_bound=0, upper_bound=2**31 - 1, **own)
    integer("steps", 1000, "Optimizer updates.", lower_bound=1, **own)
    integer("steps_per_call", 100, "Updates in one compiled call.", lower_bound=1, **own)
    integer("batch_size", 32, "Sequences in one update.", lower_bound=1, **own)
    absl_flags.DEFINE_string("optimizer", "adam", "A factory of optax, by name: adam, sgd, rmsprop, ...", **own)
    number("learning_rate", 1e-3, "Learning rate, after the warmup.", **own)
    schedule = ["constant", "cosine", "linear"]
    absl_flags.DEFINE_enum("schedule", "constant", schedule, "Learning rate over --steps.", **own)
    integer("warmup_steps", 0, "Updates of linear warmup from 0.", lower_bound=0, **own)
    number("clip_norm", 0.0, "Clip the global gradient norm at this value; 0: off.", lower_bound=0.0, **own)
    integer("evaluate_every", 0, "Updates between evaluations; 0: only at the end.", lower_bound=0, **own)
    integer("checkpoint_every", 0, "Updates between checkpoints; 0: only at the end.", lower_bound=0, **own)
    integer("patience", 0, "Stop after so many evaluations without a new best; 0: never.", lower_bound=0, **own)
    absl_flags.DEFINE_string("workdir", None, "Directory of the run (default: runs/NAME/<hash>).", **own)
    absl_flags.DEFINE_string("data_dir", None, "Directory of the data sets.", **own)
    absl_flags.DEFINE_boolean("progress", True, "Show a progress bar on a terminal.", **own)
    absl_flags.DEFINE_boolean("compilation_cache", True, "Keep compiled programs in ~/.cache/seqjax/jax.", **own)

    # Before the validators, which would judge the first of two defaults that only hold together.
    for name, value in defaults.items():
        values.set_default(name, value)

    absl_flags.register_validator("learning_rate", lambda rate: rate > 0, "must be positive", flag_values=values)
    absl_flags.register_validator("optimizer", _check_optimizer, flag_values=values)
    for every in ("evaluate_every", "checkpoint_every"):
        absl_flags.register_multi_flags_validator(
            (every, "steps_per_call"),
            lambda given, every=every: given[every] % given["steps_per_call"] == 0,
            f"--{every} must be a multiple of --steps_per_call",
            flag_values=values,
        )
    absl_flags.register_multi_flags_validator(
        ("warmup_steps", "steps"),
        lambda given: given["warmup_steps"] < given["steps"],
        "--warmup_steps must be less than --steps",
        flag_values=values,
    )
    absl_flags.register_multi_flags_validator(
        ("patience", "evaluate_every"),
        lambda given: not given["patience"] or given["evaluate_every"],
        "--patience counts evaluations: it needs --evaluate_every",
        flag_values=values,
    )
    return values


def parse(module: ModuleType, given: Sequence[str] | Mapping[str, Any]) -> SimpleNamespace:
    """Returns the configuration, every flag of the experiment with its value, as attributes.

    Args:
        module: the experiment.
        given: command-line arguments after the program's name ("--steps=10"), or a dict of flag to value.

    Raises:
        ValueError: an unknown flag, a value that the flag refuses, an argument that is no flag.
    """
    values = copy.deepcopy(module.FLAGS)
    _read(values, given)
    config = values.flag_values_dict()
    for name, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"flag --{name}={value}: expected a finite number")
    return SimpleNamespace(**config)


def given_flags(module: ModuleType, argv: Sequence[str], beside: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the flags that `argv` names, with their values; `parse` checks later what must hold between flags.

    `beside` names flags that a caller reads itself; they are only suggested for a misspelled one.

    Raises:
        ValueError: as `parse`.
    """
    values = copy.deepcopy(module.FLAGS)
    for name in values:
        values[name].validators.clear()
    _read(values, argv, beside)
    return {name: values[name].value for name in values if values[name].present}


def _read(values: FlagValues, given: Sequence[str] | Mapping[str, Any], beside: Sequence[str] = ()) -> None:
    try:
        _, *rest = values(["", *(arguments(given) if isinstance(given, Mapping) else given)])
    except absl_flags.UnrecognizedFlagError as error:
        raise ValueError(unknown_flag(error.flagname, [*values, *beside])) from None
    except absl_flags.Error as error:
        raise ValueError(str(error)) from None
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; flags are given as --name=value")


def unknown_flag(name: str, known: Sequence[str]) -> str:
    """Returns the message for a flag that is not known, with the names that are close to it."""
    close = difflib.get_close_matches(name, known)
    hint = f"did you mean {' or '.join('--' + match for match in close)}?" if close else "--help lists the flags"
    return f"unknown flag --{name}; {hint}"


def without_data(what: str, **where: Any) -> Callable[[Mapping[str, Any]], str | None]:
    """Returns the attribute `generated` of an experiment: `flags -> what` was generated in place of data, or None.

    That is done without --data_dir, in the experiments with the flags `where`. It is recorded in the result of a run,
    and the report marks with it what rests on such data.
    """

    def generated(flags: Mapping[str, Any]) -> str | None:
        return what if flags["data_dir"] is None and all(flags[name] == where[name] for name in where) else None

    return generated


def arguments(flags: Mapping[str, Any]) -> list[str]:
    """Returns the command-line arguments of flags; one that is None keeps its default."""
    text = {
        name: ",".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in flags.items() if v is not None
    }
    return [f"--{name}={value}" for name, value in text.items()]


def numbers(module: ModuleType, config: SimpleNamespace) -> dict[str, jax.Array]:
    """Returns the seed and the flags in NUMBERS as scalar arrays: int32 for integers, float32 for floats."""
    names = dict.fromkeys(("seed", *module.NUMBERS))
    dtypes = {int: jnp.int32, float: jnp.float32}
    values = {name: getattr(config, name) for name in names}
    for name, value in values.items():
        if type(value) not in dtypes:
            raise TypeError(f"NUMBERS of {name_of(module)}: --{name} is {value!r}, expected an integer or a float")
    return {name: jnp.asarray(value, dtypes[type(value)]) for name, value in values.items()}


def recorded(config: SimpleNamespace) -> dict[str, Any]:
    """Returns the flags that decide what a run computes."""
    return {name: value for name, value in vars(config).items() if name not in UNRECORDED}


def name_of(module: ModuleType) -> str:
    """Returns the name that `python -m` and `import` know the experiment by, also when it runs as __main__."""
    return module.__spec__.name if module.__spec__ else module.__name__


def default_directory(module: ModuleType, *what: Any) -> Path:
    """Returns runs/NAME/<hash of `what`>, relative to the working directory."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return Path("runs", name_of(module).rpartition(".")[2], digest)


@functools.cache
def keep_compiled_programs(keep: bool) -> None:
    """Lets JAX read compiled programs from seqjax/jax in the user's cache directory, and write them there; or neither.

    The directory is in $XDG_CACHE_HOME, or else in ~/.cache. One that is set already (JAX_COMPILATION_CACHE_DIR) is
    left, with its thresholds. Where it cannot be written, that is said on stderr, and programs are compiled anew.
    """
    jax_config: Any = jax.config  # its options are attributes that a type checker does not know
    if not keep:
        jax_config.update("jax_enable_compilation_cache", False)
    elif jax_config.jax_enable_compilation_cache and jax_config.jax_compilation_cache_dir is None:
        try:
            directory = user_cache() / "jax"
            directory.mkdir(parents=True, exist_ok=True)
            if not os.access(directory, os.W_OK):
                raise PermissionError(f"{directory} is not writable")
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
            print(f"WARNING: compiled programs are not kept (--nocompilation_cache): {error}", file=sys.stderr)
            return
        jax_config.update("jax_compilation_cache_dir", str(directory))
        # By default a program that compiled within a second is not kept; a launch compiles dozens of those.
        jax_config.update("jax_persistent_cache_min_compile_time_secs", 0)


def run_one(module: ModuleType, config: SimpleNamespace, directory: str | Path, *, wait: float = 2.0) -> dict[str, Any]:
    """Trains one configuration in `directory`, from where an earlier start left it, and returns its result.

    A finished run is not run again. An error is written to error.txt of the run and raised. A process that is ending
    there is waited for, up to `wait` seconds.
    """
    keep_compiled_programs(config.compilation_cache)
    with contextlib.closing(Run.open(directory, recorded(config), wait=wait)) as run:
        if run.finished:
            return run.result()
        try:
            program = module.program(_without_numbers(module, config))
            _say_left_out(module, config)
            fitted = loop.fit(program, numbers(module, config), run, **_fit_options(config))
            return _finish(module, config, program, fitted, run)
        except Exception as error:
            _keep_error(run, _report_of(error))
            raise


def run_lanes(
    module: ModuleType, configs: Sequence[SimpleNamespace], directories: Sequence[str | Path]
) -> list[str | None]:
    """Trains configurations that differ only in NUMBERS as the lanes of one compiled program.

    Returns one entry a lane: None, or the error that ended it.
    """
    keep_compiled_programs(configs[0].compilation_cache)
    errors: list[str | None] = [None] * len(configs)
    with contextlib.ExitStack() as opened:
        runs: dict[int, Run] = {}
        for lane, (directory, config) in enumerate(zip(directories, configs, strict=True)):
            try:
                runs[lane] = opened.enter_context(contextlib.closing(Run.open(directory, recorded(config))))
            except (ValueError, InUse) as error:
                errors[lane] = summary(error)
        if not runs:
            return errors
        try:
            program = module.program(_without_numbers(module, configs[0]))
            _say_left_out(module, configs[0])
            per_lane = [numbers(module, configs[lane]) for lane in runs]
            fitted = loop.fit_lanes(program, per_lane, list(runs.values()), **_fit_options(configs[0]))
        except Exception as error:
            for run in runs.values():
                _keep_error(run, _report_of(error))
            raise
        for (lane, run), result in zip(runs.items(), fitted, strict=True):
            message = result.error
            if message is None:
                try:
                    _finish(module, configs[lane], program, result, run)
                except Exception as error:
                    message = _report_of(error)
            if message is not None:
                _keep_error(run, message)
                errors[lane] = message.splitlines()[0]
    return errors


def _keep_error(run: Run, message: str) -> None:
    """Writes error.txt of a run; where that fails too, as on a full disk, it must not hide what failed first."""
    try:
        run.fail(message)
    except (OSError, InUse) as error:
        print(f"{summary(error)}; the error of the run was {message.splitlines()[0]}", file=sys.stderr)


def summary(error: BaseException) -> str:
    """Returns the error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split("\n", 1)[0].split())


def _report_of(error: BaseException) -> str:
    # The line that says it comes first: JAX appends a note to tracebacks, so their last line says nothing.
    return summary(error) + "\n\n" + "".join(traceback.format_exception(error))


def _without_numbers(module: ModuleType, config: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(**{name: v for name, v in vars(config).items() if name not in module.NUMBERS})


def _left_out(module: ModuleType, config: SimpleNamespace) -> str | None:
    return getattr(module, "left_out", lambda config: None)(config)


def _say_left_out(module: ModuleType, config: SimpleNamespace) -> None:
    if line := _left_out(module, config):
        print(f"left out: {line}", file=sys.stderr)


def _fit_options(config: SimpleNamespace) -> dict[str, Any]:
    names = ("steps", "steps_per_call", "evaluate_every", "checkpoint_every", "patience", "progress")
    return {name: getattr(config, name) for name in names}


def _finish(
    module: ModuleType, config: SimpleNamespace, program: Program, fitted: FitResult, run: Run
) -> dict[str, Any]:
    # Times and memory of lanes are those of all of them together: `lanes` says how to read them.
    result = {
        **module.finish(config, program, fitted.state, run),
        "lanes": fitted.lanes,
        "steps": int(fitted.state.step),
        "stopped_early": fitted.stopped_early,
        "parameters": sum(np.size(leaf) for leaf in jax.tree.leaves(fitted.state.params)),
        "wall_seconds": fitted.wall_seconds,
        "steps_per_second": fitted.steps_per_second,
        "compile_seconds": fitted.compile_seconds,
        "program_memory_bytes": fitted.program_memory_bytes,
        "peak_memory_bytes": fitted.peak_memory_bytes,
        "data_hash": fitted.data_hash,
    }
    if what := getattr(module, "generated", lambda flags: None)(vars(config)):
        result["generated"] = what
    if line := _left_out(module, config):
        result["left_out"] = line
    if run.changed:
        result["changed"] = run.changed
    run.finish(result)
    return result


def optimizer(config: SimpleNamespace, learning_rate: jax.Array | float) -> optax.GradientTransformation:
    """Returns the optimizer of the flags: clip by global norm, then optax.NAME under the schedule.

    The learning rate rises linearly from 0 over `warmup_steps` updates, then stays (constant), or falls to 0 at
    `steps` along half a cosine wave (cosine) or a line (linear).

    Args:
        config: with optimizer, schedule, warmup_steps, steps, clip_norm.
        learning_rate: float or traced float32 [] (a lane's own), the rate after the warmup.

    Raises:
        ValueError: optax has no such optimizer.
    """
    after = config.steps - config.warmup_steps
    rate: optax.Schedule = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, after),
        "linear": lambda: optax.linear_schedule(learning_rate, 0.0, after),
    }[config.schedule]()
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, config.warmup_steps)
        rate = optax.join_schedules([warmup, rate], [config.warmup_steps])
    descent = _factory(config.optimizer)(learning_rate=rate)
    if config.clip_norm:
        descent = optax.chain(optax.clip_by_global_norm(config.clip_norm), descent)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # Optax mixes integer counters with floats, which strict promotion (on in our tests) forbids.
        with jax.numpy_dtype_promotion("standard"):
            return descent.update(updates, state, params)

    return optax.GradientTransformation(descent.init, update)


def _factory(name: str) -> Callable[..., optax.GradientTransformation]:
    def is_factory(member: Any) -> bool:
        return inspect.isfunction(member) and next(iter(inspect.signature(member).parameters), "") == "learning_rate"

    factory = getattr(optax, name, None)
    if factory is None or not is_factory(factory):
        known = sorted(name for name, member in vars(optax).items() if is_factory(member))
        known = [name for name in known if not name.startswith(("_", "scale_by"))]
        raise ValueError(f"optax has no optimizer {name!r}; expected one of {', '.join(known)}")
    return factory


@functools.cache
def _check_optimizer(name: str) -> bool:
    # Some factories (lbfgs, polyak_sgd) need more than gradients; an abstract update finds them before any run.
    config = SimpleNamespace(optimizer=name, schedule="constant", steps=1, warmup_steps=0, clip_norm=0.0)

    def update(params: Any) -> Any:
        descent = optimizer(config, 1e-3)
        return descent.update(params, descent.init(params), params)

    try:
        jax.eval_shape(update, {"w": np.zeros((2, 2), np.float32)})
    except (ValueError, TypeError) as error:
        raise absl_flags.ValidationError(f"cannot train with it: {summary(error)}") from None
    return True
