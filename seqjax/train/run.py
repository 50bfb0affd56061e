"""The files of a run: its configuration, its measurements, and how it ended."""

import hashlib
import os
import sys
import weakref
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from seqjax.arrays import Params, Tree
from seqjax.train.atomic import named_errors, write_atomic
from seqjax.train.differences import differences
from seqjax.train.environment import describe, environment
from seqjax.train.finite import not_finite
from seqjax.train.lock import Lock
from seqjax.train.mirror import Mirror, Opener, Sink
from seqjax.train.params import read_params, write_params
from seqjax.train.strict_json import decode, encode

__all__ = ["Run"]


class Run:
    """A run directory.

        config.json    {"flags", "versions", "commit", "device", "seed"}, written when the run is first opened; where it
                       was resumed by other code or versions, also "changed", a list with the new ones of each time
        metrics.jsonl  one object per line: {"step", "epoch", "split", "seconds", ...values}; a value that is not finite
                       is written as "NaN", "Infinity" or "-Infinity" (`strict_json`)
        result.json    the final numbers, all finite, and the mark of the records as "records"; its presence means
                       that the run is finished
        error.txt      why the last attempt failed, if it did
        params.npz     the trained params (`params`), once training has ended
        .lock          the process that writes to the run
        checkpoints/   figures/
        tensorboard/   wandb/   mlflow/   what a sink shows (`mirror`)

    Every file but metrics.jsonl is replaced atomically. That one is appended to. A checkpoint holds its `mark`, and
    `rewind` drops what a killed process wrote after that, an incomplete line included.

    An open run is written to by this process alone, until it is closed or the process ends.

    `fit` saves the params that were best in validation, so that a trained model is reused without its training code:

        >>> import tempfile
        >>> from seqjax.train import Run
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     training = Run.open(directory, {"units": 2})
        ...     training.save_params(seqjax.cells.gru(2).init(jax.random.key(0), 3))  # as `fit` does
        ...     training.close()
        ...
        ...     run = Run.read(directory)
        ...     cell = seqjax.cells.gru(run.flags["units"])
        ...     carry, ys = seqjax.unroll(cell, run.params(), None, jnp.zeros((5, 1, 3)))
        >>> ys.shape
        (5, 1, 2)

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
        self._params = self.directory / "params.npz"
        self._mirror: Mirror | None = None
        self._lock: Lock | None = None
        self._release: Callable[[], Any] = lambda: None

    @classmethod
    def open(cls, directory: str | os.PathLike, config: dict, *, resume: bool = True, wait: float = 2.0) -> "Run":
        """Starts the run in `directory`, or resumes the one that is there; a finished one is opened as by `read`.

        Where code, versions or device are not those that the checkpoints were made with, that is a warning on stderr,
        and is recorded in config.json.

        Args:
          directory: created where missing.
          config: all flags of the run, by name.
          resume: whether a run that is already there may be continued.
          wait: seconds to wait for a process that was just killed to end.

        Raises:
          ValueError: the run that is there has other flags.
          FileExistsError: a run is there, and `resume` is False.
          InUse: another process writes to it.
        """
        directory = Path(directory)
        flags = decode(encode(config))
        if (directory / "config.json").exists():
            if not resume:
                raise FileExistsError(f"{directory} already holds a run; choose another directory or resume it")
            run = cls.read(directory)
            run.check_flags(flags)
            if run.finished:
                return run
        directory.mkdir(parents=True, exist_ok=True)
        lock = Lock.take(directory, wait=wait)
        try:
            run = cls._begin(directory, flags)
        except BaseException:
            lock.release()
            raise
        run._lock = lock
        run._release = weakref.finalize(run, lock.release)
        return run

    @classmethod
    def _begin(cls, directory: Path, flags: dict) -> "Run":
        """The run in a directory that is locked."""
        path = directory / "config.json"
        now = describe(flags)
        found = cls.read(directory) if path.exists() else None
        run = found or cls(directory, now)
        run.check_flags(flags)
        before = found and found.config
        run.checkpoints.mkdir(exist_ok=True)
        run.figures.mkdir(exist_ok=True)
        if not any(run.checkpoints.iterdir()):
            run.config = now  # no result of other code is left
        elif changes := differences(environment(now), environment(run.config)):
            print(f"WARNING: {directory} is resumed by other code: {'; '.join(changes)}", file=sys.stderr)
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            run.config = {**run.config, "changed": [*run.changed, {"since": since, **environment(now)}]}
        if before != decode(encode(run.config)):
            write_atomic(path, _json(run.config))
        run._error.unlink(missing_ok=True)
        return run

    @classmethod
    def read(cls, directory: str | os.PathLike) -> "Run":
        """The run in `directory`, for reading: nothing is created or changed.

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

    def check_flags(self, flags: dict) -> None:
        """Raises ValueError where `flags` are not those of the run; names the differences."""
        if different := differences(decode(encode(flags)), self.flags):
            raise ValueError(f"{self.directory} holds a run with other flags: {'; '.join(different)}")

    @property
    def changed(self) -> list[dict[str, Any]]:
        """Commit, device and versions of each resume by others than before, oldest first."""
        return self.config.get("changed", [])

    def close(self) -> None:
        """Closes the run, so that other processes can write to it."""
        if self._mirror:
            self._mirror.close()
        if self._lock:
            self._release()
            self._lock = None

    def mirror(self, opener: Opener) -> None:
        """Shows the run in a sink as well: its records so far, each that is logged from now on, and the result.

        metrics.jsonl and result.json are written first, and the sink never has anything else: where a resume drops
        records, it is written anew. If it fails, that is a warning on stderr, and the run goes on without it.

            >>> import tempfile
            >>> from seqjax.train import Run, TensorBoard
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     run = Run.open(directory, {"units": 2})
            ...     run.mirror(TensorBoard)  # before `fit`; then: tensorboard --logdir=DIRECTORY
            ...     run.close()

        Args:
          opener: `TensorBoard`, `WandB`, `MLflow`, or any function of directory and flags that returns a `Sink`.

        Raises:
          ValueError: the run is not open to be written.
        """
        self._check_open()
        self._mirror = Mirror(opener, self.directory, self.flags)

    def show(self, sink: Sink) -> None:
        """Shows a sink the run as it is: its records and, if it is finished, its result.

        Raises:
          ValueError: as `records`; also what the sink raises.
        """
        for record in self.records():
            sink.log(record)
        if self.finished:
            sink.finish(self.result())

    def log(self, record: dict) -> None:
        """Appends one record to metrics.jsonl.

        Raises:
          ValueError: the run is not open to be written.
          OSError: it could not be written; `rewind` removes what was.
          TypeError: a value is neither JSON nor an array.
        """
        self._check_open()
        line = encode(record) + "\n"
        with named_errors(self._metrics), self._metrics.open("a", encoding="utf-8") as file:
            file.write(line)
        if self._mirror:
            self._mirror.tell(lambda sink: sink.log(decode(line)), self.show)

    def records(self) -> list[dict]:
        """All records, oldest first; a last line that is still being written is left out.

        Raises:
          ValueError: a complete line is damaged; names file and line. Or the run is finished, and these are not the
            records that it had then.
        """
        content = self._metrics.read_bytes() if self._metrics.exists() else b""
        lines = _lines(content)
        found = [
            _parse(line.decode(errors="replace").rstrip("\n"), f"{self._metrics}, line {number}")
            for number, line in enumerate(lines, start=1)
        ]
        mark = self.result().get("records") if self.finished else None
        if mark is not None and (mark != _mark(lines) or content != b"".join(lines)):
            raise ValueError(
                f"{self._metrics} was changed: it has {len(lines)} records, {mark['records']} were written"
            )
        return found

    def mark(self) -> dict[str, Any]:
        """How many records there are, and a hash of them, once they are on the disk.

        Raises:
          InUse: another process has taken the run from this one, or its directory was removed.
        """
        self._check_open().check()
        if not self._metrics.exists():
            return _mark([])
        with named_errors(self._metrics), self._metrics.open("rb") as file:
            os.fsync(file.fileno())
            return _mark(_lines(file.read()))

    def rewind(self, mark: dict[str, Any] | None = None) -> None:
        """Drops the records after a mark, and an incomplete line at the end; without a mark, all.

        Raises:
          ValueError: records before the mark are missing or were changed.
        """
        self._check_open()
        mark = mark or _mark([])
        content = self._metrics.read_bytes() if self._metrics.exists() else b""
        lines = _lines(content)
        kept = lines[: mark["records"]]
        if _mark(kept) != mark:
            self.records()  # names a line that is no record
            what = f"has {len(lines)} records" if len(lines) < mark["records"] else "was changed"
            raise ValueError(
                f"{self._metrics} {what}, expected the {mark['records']} that the checkpoint was written after:"
                f" restore the file, or remove {self.checkpoints} to train from the start"
            )
        if content != b"".join(kept):
            write_atomic(self._metrics, b"".join(kept))
        if self._mirror:
            self._mirror.close()

    def save_params(self, params: Params) -> None:
        """Writes the trained params to params.npz, in place of those that were there.

        Args:
          params: any tree of arrays; `numpy.load` reads the file too, where each array is named by its path.

        Raises:
          ValueError: the run is not open to be written.
          InUse: another process has taken the run from this one, or its directory was removed.
          TypeError: a leaf is not an array of numbers.
          OSError: the file could not be written; the old one is as it was.
        """
        self._check_open().check()
        write_params(self._params, params)

    def params(self) -> Params:
        """The trained params as nested dicts, lists and tuples of arrays, which cells and `nnx.merge` take.

        Raises:
          FileNotFoundError: the training has not ended.
          ValueError: params.npz is damaged, or cannot be read without a `like` (`load_params`).
        """
        return read_params(self._trained())

    def load_params(self, like: Tree) -> Params:
        """The trained params in the structure of `like`, after a check that they are params of that model.

        Args:
          like: params of the model that will use them, or their shapes: `jax.eval_shape(init, key)`.

        Raises:
          FileNotFoundError: the training has not ended.
          ValueError: params.npz is damaged, or its paths, shapes or dtypes are not those of `like`; names them.
        """
        return read_params(self._trained(), like)

    def _trained(self) -> Path:
        if not self._params.exists():
            raise FileNotFoundError(
                f"{self.directory} holds no trained params: {self._params.name} is missing, which is written when the"
                " training has ended; resume the run by the command that started it"
            )
        return self._params

    def finish(self, result: dict) -> None:
        """Writes the final numbers, which marks the run as finished.

        Raises:
          InUse: another process has taken the run from this one, or its directory was removed.
          FloatingPointError: for a number that is not finite: a run with such a result did not succeed.
        """
        mark = self.mark()
        if bad := [f"{name} is {value}" for name, value in not_finite(result)]:
            raise FloatingPointError(f"the result of {self.directory} is not finite: {', '.join(bad)}")
        write_atomic(self._result, _json({**result, "records": mark}))
        if self._mirror:
            self._mirror.tell(lambda sink: sink.finish(self.result()), self.show)

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
        """Writes the reason of a failure to error.txt; opening the run again removes it."""
        self._check_open()
        write_atomic(self._error, message.rstrip() + "\n")

    @property
    def error(self) -> str | None:
        """The reason why the last attempt failed; None if it did not."""
        return self._error.read_text(encoding="utf-8").rstrip() if self._error.exists() else None

    def _check_open(self) -> Lock:
        if self._lock is None:
            raise ValueError(f"the run in {self.directory} is not open to be written: it is finished, closed or read")
        return self._lock


def _lines(content: bytes) -> list[bytes]:
    """The complete lines, each with its end."""
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def _mark(lines: list[bytes]) -> dict[str, Any]:
    return {"records": len(lines), "hash": hashlib.blake2b(b"".join(lines), digest_size=16).hexdigest()}


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
