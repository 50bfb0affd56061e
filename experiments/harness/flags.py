"""Flags of an experiment: the training flags that all share, and parsing of a command line or a dict."""

import copy
import difflib
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments.harness.optimizer import is_usable
from seqjax.train.sinks import SINKS, check_installed

# Where a run is stored and shown, how much it prints and how fast it starts: these do not affect its result and are not
# recorded.
UNRECORDED = ("workdir", "progress", "compilation_cache", "log_to")


def training_flags(**defaults: Any) -> FlagValues:
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
    # No float16: it ends at 65504, and gradients below 6e-8 would be 0 unless the loss is scaled.
    dtypes = ["float32", "bfloat16"]
    absl_flags.DEFINE_enum("dtype", "float32", dtypes, "Of the factors of matrix products; sums are float32.", **own)
    number("learning_rate", 1e-3, "Learning rate, after the warmup.", **own)
    schedule = ["constant", "cosine", "linear"]
    absl_flags.DEFINE_enum("schedule", "constant", schedule, "Learning rate over --steps.", **own)
    integer("warmup_steps", 0, "Updates of linear warmup from 0.", lower_bound=0, **own)
    number("clip_norm", 0.0, "Clip the global gradient norm at this value; 0: off.", lower_bound=0.0, **own)
    integer("evaluate_every", 0, "Updates between evaluations; 0: only at the end.", lower_bound=0, **own)
    integer("checkpoint_every", 0, "Updates between checkpoints; 0: only at the end.", lower_bound=0, **own)
    integer("patience", 0, "Stop after this many evaluations without a new best; 0: never.", lower_bound=0, **own)
    absl_flags.DEFINE_string("workdir", None, "Directory of the run (default: runs/NAME/<hash>).", **own)
    absl_flags.DEFINE_string("data_dir", None, "Directory of the data sets.", **own)
    absl_flags.DEFINE_boolean("progress", True, "Show a progress bar on a terminal.", **own)
    absl_flags.DEFINE_boolean("compilation_cache", True, "Keep compiled programs in ~/.cache/seqjax/jax.", **own)
    log_to = "Where training is shown too, by files in the directory of the run."
    absl_flags.DEFINE_enum("log_to", None, list(SINKS), log_to, **own)

    # Before the validators, which would check the first of two defaults that are only valid together.
    for name, value in defaults.items():
        values.set_default(name, value)

    absl_flags.register_validator("learning_rate", lambda rate: rate > 0, "must be positive", flag_values=values)
    absl_flags.register_validator("optimizer", is_usable, flag_values=values)
    absl_flags.register_validator("log_to", _is_installed, flag_values=values)
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


def _is_installed(log_to: str | None) -> bool:
    if log_to is not None:
        try:
            check_installed(SINKS[log_to])
        except ModuleNotFoundError as error:
            raise absl_flags.ValidationError(str(error)) from None
    return True


def parse(flags: FlagValues, given: Sequence[str] | Mapping[str, Any]) -> SimpleNamespace:
    """Returns the configuration: every flag with its value, as attributes.

    Args:
        flags: the flags of an experiment; they are not changed.
        given: command-line arguments after the program's name ("--steps=10"), or a dict of flag to value.

    Raises:
        ValueError: an unknown flag, a value that its flag rejects, an argument that is not a flag.
    """
    values = copy.deepcopy(flags)
    _read(values, given)
    config = values.flag_values_dict()
    for name, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"flag --{name}={value}: expected a finite number")
    return SimpleNamespace(**config)


def given_flags(flags: FlagValues, argv: Sequence[str], beside: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the flags that `argv` sets, with their values; `parse` checks later what must hold between flags.

    `beside` names flags that the caller reads itself; they are only suggested for a misspelled one.

    Raises:
        ValueError: as `parse`.
    """
    values = copy.deepcopy(flags)
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
    """Returns the message for an unknown flag, with the names that are close to it."""
    close = difflib.get_close_matches(name, known)
    hint = f"did you mean {' or '.join('--' + match for match in close)}?" if close else "--help lists the flags"
    return f"unknown flag --{name}; {hint}"


def arguments(flags: Mapping[str, Any]) -> list[str]:
    """Returns the command-line arguments of flags; one that is None keeps its default."""
    text = {
        name: ",".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in flags.items() if v is not None
    }
    return [f"--{name}={value}" for name, value in text.items()]


def recorded(config: SimpleNamespace) -> dict[str, Any]:
    """Returns the flags that decide what a run computes."""
    return {name: value for name, value in vars(config).items() if name not in UNRECORDED}
