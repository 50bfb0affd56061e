"""One run, or the lanes of a compiled sweep: from a configuration to a finished run directory."""

import contextlib
import functools
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from experiments.harness import ending
from experiments.harness.experiment import Definition, Experiment, Hparams
from experiments.harness.flags import recorded
from experiments.harness.precision import narrowed
from seqjax.solvers.native.build import user_cache
from seqjax.train import InUse, Run, loop
from seqjax.train.loop import FitResult
from seqjax.train.sinks import SINKS


def default_directory(name: str, *what: Any) -> Path:
    """Returns runs/NAME/<hash of `what`>, relative to the working directory; NAME is the last part of `name`."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return Path("runs", name.rpartition(".")[2], digest)


@functools.cache
def keep_compiled_programs(keep: bool) -> None:
    """Lets JAX store compiled programs in seqjax/jax of the user's cache directory and reuse them; or turns this off.

    The directory is in $XDG_CACHE_HOME, or else in ~/.cache. One that is set already (JAX_COMPILATION_CACHE_DIR) is
    left as it is, with its thresholds. If it is not writable, a warning goes to stderr and programs are not stored.
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
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
            print(f"WARNING: compiled programs are not kept (--nocompilation_cache): {error}", file=sys.stderr)
            return
        jax_config.update("jax_compilation_cache_dir", str(directory))
        # By default a program that compiled within a second is not stored; a launch compiles dozens of those.
        jax_config.update("jax_persistent_cache_min_compile_time_secs", 0)


def run_one(
    definition: Definition, config: SimpleNamespace, directory: str | Path, *, wait: float = 2.0
) -> dict[str, Any]:
    """Trains one configuration in `directory`, resuming from its last checkpoint, and returns its result.

    A finished run is not run again. An error is written to error.txt of the run and raised. A process that is just
    ending there is waited for, up to `wait` seconds.
    """
    keep_compiled_programs(config.compilation_cache)
    with contextlib.closing(Run.open(directory, recorded(config), wait=wait)) as run:
        if run.finished:
            return run.result()
        _mirror(config, run)
        try:
            experiment = _build(definition, config)
            hparams = definition.hparams(config)
            fitted = loop.fit(experiment.program, hparams, run, **_fit_options(config))
            return _finish(definition, config, experiment, hparams, fitted, run)
        except Exception as error:
            _keep_error(run, _report_of(error))
            raise


def run_lanes(
    definition: Definition, configs: Sequence[SimpleNamespace], directories: Sequence[str | Path]
) -> list[str | None]:
    """Trains configurations that differ only in traced flags as the lanes of one compiled program.

    Returns one entry per lane: None, or the error that ended it.
    """
    keep_compiled_programs(configs[0].compilation_cache)
    errors: list[str | None] = [None] * len(configs)
    with contextlib.ExitStack() as opened:
        runs: dict[int, Run] = {}
        for lane, (directory, config) in enumerate(zip(directories, configs, strict=True)):
            try:
                runs[lane] = opened.enter_context(contextlib.closing(Run.open(directory, recorded(config))))
                _mirror(config, runs[lane])
            except (ValueError, InUse) as error:
                errors[lane] = ending.summary(error)
        if not runs:
            return errors
        hparams = {lane: definition.hparams(configs[lane]) for lane in runs}
        try:
            experiment = _build(definition, configs[0])
            options = _fit_options(configs[0])
            fitted = loop.fit_lanes(experiment.program, list(hparams.values()), list(runs.values()), **options)
        except Exception as error:
            for run in runs.values():
                _keep_error(run, _report_of(error))
            raise
        for (lane, run), result in zip(runs.items(), fitted, strict=True):
            message = result.error
            if message is None:
                try:
                    _finish(definition, configs[lane], experiment, hparams[lane], result, run)
                except Exception as error:
                    message = _report_of(error)
            if message is not None:
                _keep_error(run, message)
                errors[lane] = message.splitlines()[0]
    return errors


def _mirror(config: SimpleNamespace, run: Run) -> None:
    if config.log_to is not None:
        run.mirror(SINKS[config.log_to])


def _build(definition: Definition, config: SimpleNamespace) -> Experiment:
    experiment = narrowed(config, definition.build(definition.untraced(config)))
    if experiment.left_out:
        print(f"left out: {experiment.left_out}", file=sys.stderr)
    return experiment


def _finish(
    definition: Definition,
    config: SimpleNamespace,
    experiment: Experiment,
    hparams: Hparams,
    fitted: FitResult,
    run: Run,
) -> dict[str, Any]:
    # Times and memory of lanes are those of all of them together: `lanes` tells how to read them.
    monitor, best = experiment.program.monitor, fitted.state.best
    found = {"monitor": monitor, f"validation_{monitor}": float(best.value), "best_step": int(best.step)}
    result = {
        **experiment.finish(hparams, fitted.state, run),
        **(found if experiment.program.evaluate else {}),
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
    if what := definition.synthetic_data(vars(config)):
        result["generated"] = what
    if experiment.left_out:
        result["left_out"] = experiment.left_out
    if run.changed:
        result["changed"] = run.changed
    run.finish(result)
    return result


def _fit_options(config: SimpleNamespace) -> dict[str, Any]:
    names = ("steps", "steps_per_call", "evaluate_every", "checkpoint_every", "patience", "progress")
    return {name: getattr(config, name) for name in names}


def _keep_error(run: Run, message: str) -> None:
    """Writes error.txt of a run; if that fails too, as on a full disk, it must not hide what failed first."""
    try:
        run.fail(message)
    except (OSError, InUse) as error:
        print(f"{ending.summary(error)}; the error of the run was {message.splitlines()[0]}", file=sys.stderr)


def _report_of(error: BaseException) -> str:
    # The summary comes first: JAX appends a note to tracebacks, so their last line tells nothing.
    return ending.summary(error) + "\n\n" + "".join(traceback.format_exception(error))
