"""The files of a sweep, for reading: what became of each of its runs, and all of them as one table."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from seqjax.train.run import Run
from seqjax.train.strict_json import decode

__all__ = ["Entry", "entry_of", "load_sweep", "look", "read_sweep"]

_STATUSES = ("finished", "waiting", "failed", "damaged")
_BEFORE = {"done": "finished", "pending": "waiting"}  # the names of 0.1
_HEADS = ("run", "status", "reason")


class Entry(NamedTuple):
    """What became of a run.

    Attributes:
      status: "finished"; "waiting", it has not ended; "failed"; "damaged", its files cannot be read.
      error: why it is not finished, in one line, where that is known.
      run: its directory, where there is one that is not damaged.
      result: its final numbers, if it is finished.
    """

    status: str
    error: str | None = None
    run: Run | None = None
    result: Mapping[str, Any] = {}


def load_sweep(directory: str | os.PathLike) -> dict[str, list[Any]]:
    """A sweep as a table that `pandas.DataFrame` takes: for each column its values, one for each run.

    The columns are "run" (the name of its directory), "status" (`Entry`), "reason" (why it is not finished), the flags
    that were swept, and every number, text and truth value in the result of any run; None where a run has none.
    Nested values are left out; `Run.result` has them. A result named as one of the other columns gets the prefix
    "result_", a flag named as one of the first three "flag_".

    The sweep may still be running. Nothing is written.

        >>> import tempfile
        >>> from pathlib import Path
        >>> from seqjax.train import load_sweep
        >>> runs = '[{"name": "seed=0", "flags": {"seed": 0}, "status": "waiting", "error": null}]'
        >>> sweep = f'{{"experiment": "mine", "axes": {{"seed": [0]}}, "fixed": {{}}, "runs": {runs}}}'
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     _ = Path(directory, "sweep.json").write_text(sweep)  # as `launch.py` does
        ...     table = load_sweep(directory)  # pandas.DataFrame(table)
        >>> table
        {'run': ['seed=0'], 'status': ['waiting'], 'reason': [None], 'seed': [0]}

    Args:
      directory: of the sweep, the one with sweep.json.

    Raises:
      FileNotFoundError, NotADirectoryError: there is no sweep.
      ValueError: sweep.json is damaged. (A damaged run is a row with that status.)
    """
    sweep = read_sweep(directory)
    flags = {name: f"flag_{name}" if name in _HEADS else name for name in sweep["axes"]}
    taken = {*_HEADS, *flags.values()}
    rows = []
    for listed in sweep["runs"]:
        found = entry_of(directory, listed)
        row = {"run": listed["name"], "status": found.status, "reason": found.error}
        row |= {column: listed["flags"].get(name) for name, column in flags.items()}
        scalars = {name: value for name, value in found.result.items() if isinstance(value, bool | int | float | str)}
        rows.append(row | {f"result_{name}" if name in taken else name: value for name, value in scalars.items()})
    columns = dict.fromkeys([*_HEADS, *flags.values(), *(name for row in rows for name in row)])
    return {name: [row.get(name) for row in rows] for name in columns}


def read_sweep(directory: str | os.PathLike) -> dict[str, Any]:
    """The content of sweep.json: "experiment", "axes", "fixed", and "runs" with name, flags, status and error of each.

    It is as old as the last outcome that was written; `entry_of` looks at the files of a run.

    Raises:
      FileNotFoundError, NotADirectoryError: there is no sweep.
      ValueError: sweep.json is damaged.
    """
    path = Path(directory) / "sweep.json"
    if not path.exists():
        raise _no_sweep(Path(directory))
    content: Any = None
    try:
        if path.is_file():
            content = decode(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError:
        pass
    if not _is_of_a_sweep(content):
        raise ValueError(
            f"{path} is damaged: expected an object with experiment, axes, fixed and runs; remove it, and the same "
            "command writes it again (finished runs are kept)"
        )
    for run in content["runs"]:
        run["status"] = _BEFORE.get(run["status"], run["status"])
    return content


def _no_sweep(directory: Path) -> OSError:
    if directory.exists() and not directory.is_dir():
        return NotADirectoryError(f"{directory} is not a directory; expected that of a sweep, which has a sweep.json")
    if not directory.exists():
        reason = "there is no such directory; expected one that a sweep was launched in"
    elif (directory / "config.json").exists():
        reason = "it holds a single run, which Run.read reads; that of a sweep has a sweep.json"
    else:
        reason = f"{directory / 'sweep.json'} is missing; expected a directory that a sweep was launched in"
    return FileNotFoundError(f"{directory} holds no sweep: {reason}")


def _is_of_a_sweep(content: Any) -> bool:
    def has(value: Any, **types: type | tuple[type, ...]) -> bool:
        return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in types.items())

    return (
        has(content, experiment=str, axes=dict, fixed=dict, runs=list)
        and all(isinstance(values, list) for values in content["axes"].values())
        and all(has(run, name=str, flags=dict, status=str, error=(str, type(None))) for run in content["runs"])
        and all(run["status"] in (*_STATUSES, *_BEFORE) for run in content["runs"])
    )


def entry_of(directory: str | os.PathLike, listed: Mapping[str, Any]) -> Entry:
    """What became of a run, by its own files, and by the sweep's where it left nothing.

    Args:
      directory: of the sweep.
      listed: the run in "runs" of `read_sweep`.
    """
    found = look(Path(directory) / listed["name"])
    if found.status != "waiting":
        return found
    if found.run and (error := found.run.error) is not None:
        return found._replace(status="failed", error=error.split("\n")[0])
    if listed["status"] == "failed":  # before it could say why
        return found._replace(status="failed", error=listed["error"])
    return found


def look(directory: str | os.PathLike) -> Entry:
    """What a run directory holds: a run that is finished, waiting (also if it does not exist) or damaged.

    One that failed is waiting to be run again.
    """
    run = None
    try:
        run = Run.read(directory)
        if not run.finished:
            return Entry("waiting", run=run)
        result = run.result()
        _check_whole(run)
    except FileNotFoundError:
        return Entry("waiting", run=run)
    except OSError as error:
        return Entry("damaged", f"{error.filename}: {error.strerror}")
    except ValueError as error:
        reason = " ".join(str(error).split())
        return Entry("damaged", f"{reason}; remove {directory}, and the same command trains it again")
    return Entry("finished", None, run, result)


def _check_whole(run: Run) -> None:
    absent = [name for name in ("versions", "commit", "device") if name not in run.config]
    if absent:
        raise ValueError(f"{run.directory / 'config.json'}: expected {', '.join(absent)}, found {sorted(run.config)}")
    run.records()
