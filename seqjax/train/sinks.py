"""What shows the records of a run elsewhere (`Run.mirror`): TensorBoard, W&B and MLflow, each an extra.

Each writes below the run directory and nowhere else; nothing is sent over a network. A number of a record is named by
its split and its name, as "train/loss"; one of the result as "result/test_loss", at the last step.

A run that is finished is shown by `run = Run.read(DIR)` and `run.show(TensorBoard(run.directory, run.flags))`.
"""

import os
import secrets
import shutil
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqjax.extras import needed

__all__ = ["SINKS", "MLflow", "TensorBoard", "WandB", "check_installed"]


class TensorBoard:
    """Scalars in `tensorboard/`, for `tensorboard --logdir=DIR`, where DIR is a run, or a directory of runs.

    Times are those of config.json plus the seconds of the records, so they have no gap where a run was resumed.
    """

    extra, package = "tensorboard", "tensorboardX"

    def __init__(self, directory: Path, flags: Mapping[str, Any]):
        """Empties the files of an earlier sink; the flags are not shown.

        Raises:
          ModuleNotFoundError: tensorboardX is missing.
          OSError: nothing can be written.
        """
        check_installed(TensorBoard)
        folder = directory / "tensorboard"
        folder.mkdir(exist_ok=True)
        for path in folder.glob("*.tfevents.*"):
            path.write_bytes(b"")  # a TensorBoard that is reading a file never turns to the next one if it is removed
        # Files are read in the order of their names.
        self._path = folder / f"events.out.tfevents.{time.time():.6f}"
        self._began, self._step, self._seconds = _began(directory), 0, 0.0
        # A TensorBoard that has shown earlier scalars drops those from the step of a start on.
        self._write(file_version="brain.Event:2")
        self._write(session_log={"status": "START"})

    def log(self, record: Mapping[str, Any]) -> None:
        """Writes one event with the numbers of a record."""
        self._step, self._seconds = record["step"], record["seconds"]
        self._write_scalars(_scalars(record))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes one event with the numbers of the result."""
        self._write_scalars(_results(result))

    def close(self) -> None:
        """Does nothing: no file stays open."""

    def _write_scalars(self, scalars: Mapping[str, float]) -> None:
        self._write(summary={"value": [{"tag": tag, "simple_value": value} for tag, value in scalars.items()]})

    def _write(self, **fields: Any) -> None:
        """Appends an event.

        tensorboardX's own writer has a thread for each file, which ends at the first error and leaves the next ones who
        write waiting for ever. As here, a thousand lanes have no open file.
        """
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=self._began + self._seconds, step=self._step, **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        parts = (length, struct.pack("<I", masked_crc32c(length)), event, struct.pack("<I", masked_crc32c(event)))
        with self._path.open("ab") as file:
            file.write(b"".join(parts))


class WandB:
    """An offline run of Weights & Biases in `wandb/`, named as the directory, in the group of the one above it.

    `wandb sync DIR/wandb/offline-run-*` uploads it, if that is wanted. The variables of W&B hold as far as they do not
    concern where a run is written and whether it is online (WANDB_PROJECT, WANDB_TAGS).
    """

    extra, package = "wandb", "wandb"

    def __init__(self, directory: Path, flags: Mapping[str, Any]):
        """Replaces the run of an earlier sink, keeping its identifier, by which an upload replaces the earlier one.

        Raises:
          ModuleNotFoundError: wandb is missing.
          Exception: those of `wandb.init`.
        """
        check_installed(WandB)
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # to the makers of wandb; read when it is imported
        import wandb  # pyright: ignore[reportMissingImports]

        folder = directory.absolute() / "wandb"
        earlier = [path.name.rpartition("-")[2] for path in folder.glob("offline-run-*")]
        shutil.rmtree(folder, ignore_errors=True)
        self._step, self._finished = 0, False
        self._run = wandb.init(
            dir=directory.absolute(),
            id=earlier[0] if earlier else secrets.token_hex(4),
            name=directory.name,
            group=directory.absolute().parent.name,
            config=dict(flags),
            mode="offline",
            reinit="create_new",  # beside the runs of the other lanes
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )

    def log(self, record: Mapping[str, Any]) -> None:
        """Logs the numbers of a record at its step."""
        self._step = record["step"]
        self._run.log(_scalars(record), step=self._step)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Logs the numbers of the result, which W&B then shows in the summary."""
        self._run.log(_results(result), step=self._step)
        self._finished = True

    def close(self) -> None:
        """Ends the run for W&B; one without a result as failed."""
        self._run.finish(exit_code=0 if self._finished else 1)


class MLflow:
    """A file store of MLflow in `mlflow/` with one run: `mlflow ui --backend-store-uri=DIR/mlflow`.

    Recent versions of MLflow read a file store only where MLFLOW_ALLOW_FILE_STORE=true is set.
    """

    extra, package = "mlflow", "mlflow"

    def __init__(self, directory: Path, flags: Mapping[str, Any]):
        """Replaces the store of an earlier sink; the flags become the parameters of the run.

        Raises:
          ModuleNotFoundError: mlflow is missing.
          mlflow.exceptions.MlflowException: the store cannot be written.
        """
        check_installed(MLflow)
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # to the makers of MLflow
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        folder = directory.absolute() / "mlflow"
        for earlier in folder.glob("0/*/"):  # not all of it: MLflow creates the store once in a process
            shutil.rmtree(earlier)
        self._began, self._step, self._seconds, self._finished = _began(directory), 0, 0.0, False
        self._client = MlflowClient(tracking_uri=folder.as_uri())
        self._id = self._client.create_run("0", start_time=self._time(), run_name=directory.name).info.run_id
        for name, value in flags.items():
            self._client.log_param(self._id, name, value)

    def log(self, record: Mapping[str, Any]) -> None:
        """Logs the numbers of a record at its step."""
        self._step, self._seconds = record["step"], record["seconds"]
        self._log_metrics(_scalars(record))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Logs the numbers of the result."""
        self._log_metrics(_results(result))
        self._finished = True

    def close(self) -> None:
        """Marks the run as finished, or without a result as killed."""
        self._client.set_terminated(self._id, "FINISHED" if self._finished else "KILLED", end_time=self._time())

    def _log_metrics(self, scalars: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        metrics = [Metric(name, value, self._time(), self._step) for name, value in scalars.items()]
        self._client.log_batch(self._id, metrics)

    def _time(self) -> int:
        """In milliseconds."""
        return round(1000 * (self._began + self._seconds))


SINKS = {sink.extra: sink for sink in (TensorBoard, WandB, MLflow)}
"""The sinks, by the names of their extras."""


def check_installed(sink: type[TensorBoard | WandB | MLflow]) -> None:
    """Raises ModuleNotFoundError where the package of a sink is missing, with the command that installs it."""
    with needed(sink.extra, sink.__name__, sink.package):
        pass


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    return _numbers(record["split"], {name: value for name, value in record.items() if name != "step"})


def _results(result: Mapping[str, Any]) -> dict[str, float]:
    return _numbers("result", result)


def _numbers(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers and truth values among the values; nested ones are left out, as in `load_sweep`."""
    return {f"{prefix}/{name}": float(value) for name, value in values.items() if isinstance(value, int | float)}


def _began(directory: Path) -> float:
    """When a run was first opened, in seconds."""
    return (directory / "config.json").stat().st_mtime
