"""The files of a run: what was asked for, what was measured, and how it ended."""

import contextlib
import importlib.metadata
import io
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seqjax.train.finite import not_finite
from seqjax.train.strict_json import decode, encode

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "seqjax")


class Run:
    """A run directory.

        config.json    {"flags", "versions", "commit", "device", "seed"}, written once when the run is opened
        metrics.jsonl  one object a line: {"step", "epoch", "split", "seconds", ...values}; a value that is not finite
                       is written as "NaN", "Infinity" or "-Infinity" (`strict_json`)
        result.json    the final numbers, all finite; its presence says that the run is finished
        error.txt      why the last attempt failed, if it did
        checkpoints/   figures/

    Every file but metrics.jsonl is replaced atomically. That one is appended to, and `rewind` drops what a killed
    process wrote after its last checkpoint, half a line included.

    Attributes:
      directory: the path.
      config: the content of config.json.
      checkpoints, figures: the two directories inside.
    """

    def __init__(self, directory: str | os.PathLike, config: dict):
        """Use `Run.open` or `Run.read`."""
        self.directory = Path(directory)
        self.config = config
        self.checkpoints = self.directory / "checkpoints"
        self.figures = self.directory / "figures"
        self._metrics = self.directory / "metrics.jsonl"
        self._result = self.directory / "result.json"
        self._error = self.directory / "error.txt"

    @classmethod
    def open(cls, directory: str | os.PathLike, config: dict, *, resume: bool = True) -> "Run":
        """Starts the run in `directory`, or goes on with the one that is there.

        Args:
          directory: created where missing.
          config: all flags of the run, by name.
          resume: whether a run that is already there may be continued.

        Raises:
          ValueError: the run that is there has other flags.
          FileExistsError: a run is there, and `resume` is False.
        """
        directory = Path(directory)
        path = directory / "config.json"
        flags = decode(encode(config))
        if path.exists():
            if not resume:
                raise FileExistsError(f"{directory} already holds a run; choose another directory or resume it")
            run = cls.read(directory)
            _check_same_flags(directory, given=flags, found=run.flags)
        else:
            run = cls(directory, _describe(flags))
            directory.mkdir(parents=True, exist_ok=True)
            write_atomic(path, _json(run.config))
        run.checkpoints.mkdir(exist_ok=True)
        run.figures.mkdir(exist_ok=True)
        run._error.unlink(missing_ok=True)
        return run

    @classmethod
    def read(cls, directory: str | os.PathLike) -> "Run":
        """The run in `directory`, to be looked at: nothing is created or changed.

        Raises:
          FileNotFoundError: there is no run.
          ValueError: config.json is damaged.
        """
        path = Path(directory) / "config.json"
        if not path.exists():
            raise FileNotFoundError(f"{directory} holds no run: {path} is missing")
        config = _load(path)
        if "flags" not in config:
            raise ValueError(f"{path}: expected an object with 'flags', found {sorted(config)}")
        return cls(directory, config)

    @property
    def flags(self) -> dict[str, Any]:
        """The flags that the run was started with."""
        return self.config["flags"]

    def log(self, record: dict) -> None:
        """Appends one record to metrics.jsonl.

        Raises:
          OSError: it could not be written; `rewind` removes what was.
          TypeError: a value is neither JSON nor an array.
        """
        line = encode(record) + "\n"
        with _named_errors(self._metrics), self._metrics.open("a", encoding="utf-8") as file:
            file.write(line)

    def records(self) -> list[dict]:
        """All records, oldest first; a last line that is still being written is left out.

        Raises:
          ValueError: a complete line is damaged; names file and line.
        """
        if not self._metrics.exists():
            return []
        # A newline ends a record, so the piece behind the last one is empty or unfinished.
        lines = self._metrics.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        return [_parse(line, f"{self._metrics}, line {number}") for number, line in enumerate(lines, start=1)]

    def rewind(self, step: int) -> None:
        """Drops the records after `step`, and half a line at the end, so that training can go on from there."""
        if self._metrics.exists():
            kept = [record for record in self.records() if record["step"] <= step]
            write_atomic(self._metrics, "".join(encode(record) + "\n" for record in kept))

    def finish(self, result: dict) -> None:
        """Writes the final numbers, which marks the run as finished.

        Raises:
          FloatingPointError: for a number that is not finite: a run with such a result did not succeed.
        """
        if bad := [f"{name} is {value}" for name, value in not_finite(result)]:
            raise FloatingPointError(f"the result of {self.directory} is not finite: {', '.join(bad)}")
        write_atomic(self._result, _json(result))

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return self._result.exists()

    def result(self) -> dict[str, Any]:
        """The final numbers.

        Raises:
          FileNotFoundError: the run is not finished.
          ValueError: result.json is damaged.
        """
        if not self.finished:
            raise FileNotFoundError(f"the run in {self.directory} is not finished: {self._result} is missing")
        return _load(self._result)

    def fail(self, message: str) -> None:
        """Writes why the run failed; opening the run again removes it."""
        write_atomic(self._error, message.rstrip() + "\n")

    @property
    def error(self) -> str | None:
        """Why the last attempt failed; None if it did not."""
        return self._error.read_text(encoding="utf-8").rstrip() if self._error.exists() else None


def write_atomic(path: str | os.PathLike, content: str | bytes) -> None:
    """Replaces the file at `path` by `content` (text as UTF-8) as a whole, or, on any failure, not at all.

    Raises:
      OSError: it could not be written; the old file is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with _named_errors(path), temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_arrays(path: str | os.PathLike, /, **arrays: Any) -> None:
    """Writes named arrays as a compressed .npz, which `numpy.load` reads, as `write_atomic` does."""
    with io.BytesIO() as file:
        np.savez_compressed(file, **arrays)
        write_atomic(path, file.getvalue())


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """A failing write does not say by itself which file it was for."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _check_same_flags(directory: Path, *, given: dict, found: dict) -> None:
    missing = "(no such flag)"
    differences = [
        f"{name}: given {given.get(name, missing)!r}, found {found.get(name, missing)!r}"
        for name in sorted(given.keys() | found.keys())
        if encode(given.get(name, missing)) != encode(found.get(name, missing))
    ]
    if differences:
        raise ValueError(f"{directory} holds a run with other flags: {'; '.join(differences)}")


def _describe(flags: dict) -> dict:
    """The content of config.json."""
    devices = jax.devices()
    return {
        "flags": flags,
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
        },
        "commit": _commit(),
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "seed": flags.get("seed"),
    }


def _version(package: str) -> str | None:
    """The version of an installed distribution; None for a source tree that is merely on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree that seqjax is imported from; None for an installed copy."""
    root = Path(__file__).parents[2]
    # Without this, a copy installed below somebody else's repository would report that repository's commit.
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()


def _json(content: dict) -> str:
    return encode(content, indent=2) + "\n"


def _parse(text: str, place: str) -> dict:
    try:
        content = decode(text)
    except ValueError as error:
        raise ValueError(f"{place}: expected a JSON object, found {text[:80]!r}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{place}: expected a JSON object, found {text[:80]!r}")
    return content


def _load(path: Path) -> dict:
    return _parse(path.read_text(encoding="utf-8", errors="replace"), str(path))
