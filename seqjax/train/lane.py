"""One run while it is trained: its state in memory, and its files."""

import jax
import numpy as np

from seqjax.train.checkpoint import Checkpoints
from seqjax.train.program import HParams, State, finite
from seqjax.train.run import Run

__all__ = ["Lane"]


class Lane:
    """A run, its hyperparameters and its state.

    Attributes:
      run, hparams: as given.
      state: of the last step that was taken.
      error: what ended it; None if nothing did.
      update_seconds: spent in updates so far, by all processes.
      wall_seconds: spent in all so far, by all processes, without compilation.
      memory_bytes: temporary memory of the compiled updates; None where XLA does not report it.
      lanes: how many runs share these times and this memory with it at most, itself included.
      watched: the paths of the leaves that must stay finite.
    """

    def __init__(self, run: Run, hparams: HParams, state: State, data: dict[str, str]):
        """The run before its first update.

        Args:
          run: one that was opened.
          hparams: scalars.
          state: before the first update.
          data: the fingerprints of what it reads.
        """
        self.run, self.hparams, self.state = run, hparams, state
        self.error: str | None = None
        self.update_seconds, self.wall_seconds = 0.0, 0.0
        self.memory_bytes: int | None = None
        self.lanes = 1
        # A leaf that is infinite from the start is meant to be: the lowest loss so far, for example.
        self.watched = {path for path, good in jax.device_get(jax.jit(finite)(state)).items() if good}
        own = {name: np.asarray(value).tolist() for name, value in hparams.items()}
        # Checkpoints hold these names: with other names, those already written would be refused.
        parts = {"flag": run.flags, "number": own, "data": data}
        origin = {f"{part} {name}".strip(): value for part, named in parts.items() for name, value in named.items()}
        self._checkpoints = Checkpoints(run.checkpoints, origin)

    def restore(self) -> None:
        """Goes to the newest checkpoint, if there is one, and drops the records after it.

        Raises:
          ValueError: no checkpoint can be read, it is of other flags, hyperparameters or data, or records that preceded
            it are missing.
        """
        saved = self._checkpoints.restore(self.state)
        if saved:
            self.state, meta = saved
            self.update_seconds, self.wall_seconds = meta["update_seconds"], meta["wall_seconds"]
            self.memory_bytes, self.lanes = meta["memory_bytes"], meta["lanes"]
        self.run.rewind(saved[1]["records"] if saved else None)

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.state.step)

    def save(self) -> None:
        """Writes the checkpoint of the state.

        Raises:
          OSError: it could not be written.
          InUse: another process has taken the run from this one.
        """
        meta = {name: getattr(self, name) for name in ("update_seconds", "wall_seconds", "memory_bytes", "lanes")}
        self._checkpoints.save(self.step, self.state, {**meta, "records": self.run.mark()})

    def close(self) -> None:
        """Releases what the checkpoints hold."""
        self._checkpoints.close()
