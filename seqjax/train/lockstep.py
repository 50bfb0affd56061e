"""Lanes that are at the same step and take every call together."""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from seqjax.train.lane import Lane
from seqjax.train.program import Calls, Program

__all__ = ["Lockstep"]

SAVES = 4  # checkpoints that are written at the same time; more do not help


class Lockstep:
    """Lanes at the same step, joined: one compiled call advances all of them, and each keeps its own records.

    A lane that fails stays in the calls, whose shapes are compiled, but is neither recorded nor saved any more.

    Attributes:
      step: updates done.
      shown: the latest means over the healthy lanes, for the progress line.
    """

    def __init__(self, program: Program, calls: Calls, lanes: Sequence[Lane], lengths: Iterable[int], width: int):
        """Compiles what the lanes need.

        Args:
          program: what is trained.
          calls: its compiled calls.
          lanes: at least one, all at the same step.
          lengths: the numbers of updates that `update` will be called with.
          width: lanes of the compiled program, as `calls.width` returns it; if there are fewer, the last of them is
            repeated and not looked at.
        """
        self._program, self._calls, self._lanes = program, calls, lanes
        padded = [*lanes, *[lanes[-1]] * (width - len(lanes))]
        self._hparams = calls.joined([lane.hparams for lane in padded])
        self._state = calls.joined([lane.state for lane in padded])
        self._data = calls.data(width)
        self.step = lanes[0].step
        self.shown: dict[str, float] = {}
        for length in lengths:
            calls.updates(length, self._hparams, self._state)
        self._evaluation = calls.evaluation(self._hparams, self._state)
        self._clock = time.perf_counter()

    @property
    def healthy(self) -> list[int]:
        """The indices of the lanes that have not failed."""
        return [i for i, lane in enumerate(self._lanes) if not lane.error]

    @property
    def best_step(self) -> int:
        """The latest step at which a lane was at its best."""
        return int(np.max(np.asarray(self._state.best.step)))

    def update(self, length: int) -> None:
        """Takes `length` steps in one call, and records the means of their metrics.

        Raises:
          ValueError: the program's `update` does not count its steps.
          OSError: a record could not be written.
        """
        updates = self._calls.updates(length, self._hparams, self._state)
        called = time.perf_counter()
        self._state, metrics, finite = updates(self._hparams, self._data, self._state)
        metrics = {name: each.reshape(-1, length) for name, each in jax.device_get(metrics).items()}
        took = time.perf_counter() - called
        self.step += length
        for lane in self._lanes:
            lane.update_seconds += took
        self._find_errors(metrics["loss"], jax.device_get(finite))
        if self.healthy and np.any(np.asarray(self._state.step) != self.step):
            raise ValueError(f"update must add 1 to state.step: it is {self._state.step} after {self.step} updates")
        means = {name: values.mean(axis=1, dtype=np.float64) for name, values in metrics.items()}
        self._record("train", means, "loss", "loss")

    def evaluate(self) -> None:
        """Evaluates the lanes and records it; nothing where the program has no `evaluate`.

        Raises:
          OSError: a record could not be written.
        """
        if self._evaluation is None:
            return
        monitor = self._program.monitor
        self._state, metrics = self._evaluation(self._hparams, self._data, self._state)
        metrics = {name: np.atleast_1d(values) for name, values in jax.device_get(metrics).items()}
        for i in self.healthy:
            if not np.isfinite(score := metrics[monitor][i]):
                self._lanes[i].error = f"validation {monitor} is {score} at step {self.step}"
        self._record("validation", metrics, f"validation {monitor}", monitor)

    def save(self) -> None:
        """Writes the checkpoints of the healthy lanes.

        Raises:
          OSError: one could not be written.
          InUse: another process has taken one of the runs from this one.
        """
        self.split()
        with ThreadPoolExecutor(SAVES) as pool:
            list(pool.map(Lane.save, [self._lanes[i] for i in self.healthy]))

    def split(self) -> None:
        """Gives each lane its state, and the time since the last split."""
        now = time.perf_counter()
        for lane, state in zip(self._lanes, self._calls.split(self._state, len(self._lanes)), strict=True):
            lane.state = state
            lane.wall_seconds += now - self._clock
            # The maximum over calls: a lane that catches up runs a program of its own.
            lane.memory_bytes = max(filter(None, (lane.memory_bytes, self._calls.memory_bytes)), default=None)
            lane.lanes = max(lane.lanes, len(self._lanes))
        self._clock = now

    def _find_errors(self, losses: np.ndarray, finite: Mapping[str, np.ndarray]) -> None:
        """Notes in each lane what is not finite in the losses [lanes, length] of a call, or in the state after it."""
        for i in self.healthy:
            lane = self._lanes[i]
            bad = np.flatnonzero(~np.isfinite(losses[i]))
            broken = [path for path in lane.watched if not np.atleast_1d(finite[path])[i]]
            if bad.size:
                lane.error = f"loss is {losses[i, bad[0]]} at step {self.step - len(losses[i]) + bad[0] + 1}"
            elif broken:
                lane.error = f"{broken[0]} is not finite after step {self.step}, whose loss was {losses[i, -1]}"

    def _record(self, split: str, values: Mapping[str, np.ndarray], name: str, shown: str) -> None:
        """Logs the values [lanes] of the healthy lanes, and shows the mean of one of them under a name."""
        healthy, epochs = self.healthy, self._program.steps_per_epoch
        for i in healthy:
            lane = self._lanes[i]
            clock = {"step": self.step, "epoch": epochs and self.step / epochs, "seconds": lane.update_seconds}
            lane.run.log({**clock, "split": split, **{key: float(value[i]) for key, value in values.items()}})
        if healthy:
            self.shown[name] = float(np.mean(values[shown][healthy]))
