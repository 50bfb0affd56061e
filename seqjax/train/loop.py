"""The training loop: many updates in one compiled call, and on the host between the calls what a run leaves behind.

Everything that a resume needs is in `State`, calls start at multiples of `steps_per_call` and checkpoints are taken
between calls. So a process that was killed repeats the calls it lost exactly, and ends with the same bits.
"""

import contextlib
import hashlib
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from seqjax.train.checkpoint import fingerprints
from seqjax.train.lane import Lane
from seqjax.train.metrics import progress_bar
from seqjax.train.program import Calls, Numbers, Program, State
from seqjax.train.run import Run
from seqjax.train.strict_json import encode

SAVES = 4  # checkpoints that are written at the same time; more do not help


class FitResult(NamedTuple):
    """How a training went.

    Attributes:
      state: the last state.
      wall_seconds: all processes together, compilation left out, evaluation and checkpoints included.
      steps_per_second: updates by the time spent in updates.
      compile_seconds: in this process.
      program_memory_bytes: temporary memory of the compiled updates; None where XLA does not tell.
      peak_memory_bytes: of the device; where it does not tell (CPU), peak resident memory of this process.
      lanes: how many runs share these times and this memory at most (`fit_lanes`).
      stopped_early: whether patience ran out.
      data_hash: of all that the program reads.
      error: what a lane failed with (`fit_lanes`); None if it did not fail.
    """

    state: State
    wall_seconds: float
    steps_per_second: float
    compile_seconds: float
    program_memory_bytes: int | None
    peak_memory_bytes: int
    lanes: int
    stopped_early: bool
    data_hash: str
    error: str | None


class NonFiniteLoss(FloatingPointError):  # noqa: N818 (the name says it)
    """A loss, a validation score or the state was not finite; the message names which, and the step."""


class Preempted(SystemExit):
    """SIGTERM (code 143) or SIGINT (code 130) came between the first call and the last, and the state is saved."""


def fit(
    program: Program,
    numbers: Numbers,
    run: Run,
    *,
    steps: int,
    steps_per_call: int = 100,
    evaluate_every: int = 0,
    checkpoint_every: int = 0,
    patience: int = 0,
    progress: bool = True,
) -> FitResult:
    """Trains for `steps` updates, or goes on from the newest checkpoint of `run`.

    Writes to the run one record a call (split "train": mean of each metric over the updates of the call) and one an
    evaluation (split "validation"). "seconds" in a record is the time spent in updates so far, without compilation.

    Args:
      program: what is trained.
      numbers: its numbers.
      run: where records and checkpoints go.
      steps: updates in all.
      steps_per_call: updates in one compiled call; the last call is shorter if `steps` is no multiple.
      evaluate_every: in steps; 0 evaluates at the end only.
      checkpoint_every: in steps; 0 saves at the end only (and when preempted).
      patience: stop after this many evaluations in a row without a new best; 0 never stops early.
      progress: show a progress line, if stderr is a terminal.

    Raises:
      ValueError: the arguments do not fit together, no checkpoint can be read, it is of other flags, numbers, data or
        shapes, or records that were there when it was written are missing.
      InUse: another process has taken the run from this one.
      NonFiniteLoss: a loss, the state after a call (params, optimizer, carry) or the monitored metric of an evaluation
        is nan or infinite, and at which step; nothing of that call is saved, and so no checkpoint holds such a state.
      Preempted: SIGTERM or SIGINT arrived; the state is saved.
      OSError: a record or a checkpoint could not be written.
    """
    schedule = _Schedule(steps, steps_per_call, evaluate_every, checkpoint_every, patience)
    schedule.check(program)
    loop = _Loop(program, schedule, lanes=False)
    with contextlib.ExitStack() as opened:
        [result] = loop.train(loop.restore([numbers], [run], opened), progress)
    if result.error:
        raise NonFiniteLoss(result.error)
    return result


def fit_lanes(
    program: Program,
    numbers: Sequence[Numbers],
    runs: Sequence[Run],
    *,
    steps: int,
    steps_per_call: int = 100,
    evaluate_every: int = 0,
    checkpoint_every: int = 0,
    patience: int = 0,
    progress: bool = True,
) -> list[FitResult]:
    """Trains several runs that differ only in `numbers` as the lanes of one compiled program.

    As `fit`, lane by lane, except that a lane that cannot be restored, or whose loss, state or validation score is not
    finite, ends with `FitResult.error` while the others are trained, and that times and memory are those of the lanes
    that were trained together. Each run has its own checkpoints, so any set of runs can be resumed together; those
    that are behind are trained first, until they have caught up.

    Raises:
      ValueError: the arguments do not fit together; also for patience > 0, since the lanes take every step together.
      Preempted, OSError: as `fit`.
    """
    if not numbers or len(numbers) != len(runs):
        raise ValueError(f"fit_lanes needs one run per lane, got {len(numbers)} numbers and {len(runs)} runs")
    if patience:
        raise ValueError(f"lanes are trained together and cannot stop early: patience must be 0, got {patience}")
    schedule = _Schedule(steps, steps_per_call, evaluate_every, checkpoint_every, patience)
    schedule.check(program)
    loop = _Loop(program, schedule, lanes=True)
    with contextlib.ExitStack() as opened:
        return loop.train(loop.restore(numbers, runs, opened), progress)


class _Schedule(NamedTuple):
    """When what happens, in steps; see `fit`."""

    steps: int
    steps_per_call: int
    evaluate_every: int
    checkpoint_every: int
    patience: int

    def check(self, program: Program) -> None:
        """Raises ValueError where the numbers do not fit together."""
        for name in ("steps", "steps_per_call"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("evaluate_every", "checkpoint_every"):
            every = getattr(self, name)
            if every < 0 or every % self.steps_per_call:
                raise ValueError(f"{name} must be a multiple of steps_per_call ({self.steps_per_call}), got {every}")
        if self.evaluate_every and program.evaluate is None:
            raise ValueError(f"evaluate_every is {self.evaluate_every}, but the program has no evaluate")
        if self.patience < 0 or (self.patience and not self.evaluate_every):
            raise ValueError(
                "patience counts evaluations: it must be at least 0, and 0 if evaluate_every is 0,"
                f" got {self.patience} with evaluate_every={self.evaluate_every}"
            )

    def due(self, step: int, every: int) -> bool:
        """Whether what is done `every` steps, and at the end, is done at `step`."""
        return step == self.steps or (every > 0 and step % every == 0)

    def out_of_patience(self, step: int, best_step: int | np.integer) -> bool:
        """Whether the last `patience` evaluations brought no new best."""
        return self.patience > 0 and step - best_step >= self.patience * self.evaluate_every


class _Loop:
    """The calls of some runs, one after the other, and what is recorded of them."""

    def __init__(self, program: Program, schedule: _Schedule, *, lanes: bool):
        self.program, self.schedule, self.lanes = program, schedule, lanes
        self.calls = Calls(program, lanes=lanes)
        parts = {"": program.data, "held out ": program.held_out}
        self.data = {part + path: one for part, tree in parts.items() for path, one in fingerprints(tree).items()}
        self.data_hash = hashlib.blake2b(encode(self.data).encode(), digest_size=8).hexdigest()

    def restore(self, numbers: Sequence[Numbers], runs: Sequence[Run], opened: contextlib.ExitStack) -> list[Lane]:
        """The lanes as their checkpoints left them; `opened` closes them."""
        init = jax.jit(self.program.init)
        lanes = [Lane(run, own, init(own), self.data) for own, run in zip(numbers, runs, strict=True)]
        for lane in lanes:
            opened.callback(lane.close)
            try:
                lane.restore()
            except ValueError as error:
                if not self.lanes:
                    raise
                lane.error = str(error)
        return lanes

    def train(self, lanes: Sequence[Lane], progress: bool) -> list[FitResult]:
        """Takes all lanes to the end. Those that are behind go first, alone, until they have caught up."""
        active = [lane for lane in lanes if not lane.error and not self.ended(lane)]
        first = min((lane.step for lane in active), default=self.schedule.steps)
        with _stop_requests() as signals, progress_bar(self.schedule.steps, first, enabled=progress) as bar:
            while active:
                step = min(lane.step for lane in active)
                until = min((lane.step for lane in active if lane.step > step), default=self.schedule.steps)
                self.advance([lane for lane in active if lane.step == step], until, bar, signals)
                active = [lane for lane in active if not lane.error and not self.ended(lane)]
        return [self.result(lane) for lane in lanes]

    def ended(self, lane: Lane) -> bool:
        """Whether a lane has taken all its steps, or run out of patience."""
        return lane.step >= self.schedule.steps or self.schedule.out_of_patience(lane.step, int(lane.state.best.step))

    def advance(self, lanes: Sequence[Lane], until: int, bar: tqdm, signals: list[int]) -> None:
        """Takes lanes that are at the same step to the step `until`, or until their patience runs out."""
        schedule, monitor = self.schedule, self.program.monitor
        numbers, state = self._joined([lane.numbers for lane in lanes]), self._joined([lane.state for lane in lanes])
        step = lanes[0].step
        for length in {min(schedule.steps_per_call, until - at) for at in range(step, until, schedule.steps_per_call)}:
            self.calls.updates(length, numbers, state)
        evaluate = self.calls.evaluation(numbers, state)
        clock, shown = time.perf_counter(), {}
        while step < until and not all(lane.error for lane in lanes):
            length = min(schedule.steps_per_call, until - step)
            called = time.perf_counter()
            state, metrics, finite = self.calls.updates(length, numbers, state)(numbers, self.program.data, state)
            metrics = {name: values.reshape(len(lanes), length) for name, values in jax.device_get(metrics).items()}
            took = time.perf_counter() - called
            step += length
            for lane in lanes:
                lane.update_seconds += took
            _find_errors(lanes, step, metrics["loss"], jax.device_get(finite))
            healthy = [i for i, lane in enumerate(lanes) if not lane.error]
            if not healthy:
                break
            if np.any(np.asarray(state.step) != step):
                raise ValueError(f"update must add 1 to state.step: it is {state.step} after {step} updates")
            means = {name: values.mean(axis=1, dtype=np.float64) for name, values in metrics.items()}
            self._log(lanes, healthy, step, "train", means)
            shown["loss"] = np.mean(means["loss"][healthy])
            if evaluate and schedule.due(step, schedule.evaluate_every):
                state, metrics = evaluate(numbers, self.program.data, state)
                metrics = {name: np.atleast_1d(values) for name, values in jax.device_get(metrics).items()}
                for i in healthy:
                    if not np.isfinite(score := metrics[monitor][i]):
                        lanes[i].error = f"validation {monitor} is {score} at step {step}"
                healthy = [i for i in healthy if not lanes[i].error]
                if not healthy:
                    break
                self._log(lanes, healthy, step, "validation", metrics)
                shown[f"validation {monitor}"] = np.mean(metrics[monitor][healthy])
            bar.update(length)
            bar.set_postfix(shown)

            stopped = schedule.out_of_patience(step, np.max(np.asarray(state.best.step)))
            if schedule.due(step, schedule.checkpoint_every) or stopped or signals:
                clock = self._share(lanes, state, clock)
                with ThreadPoolExecutor(SAVES) as pool:
                    list(pool.map(Lane.save, [lanes[i] for i in healthy]))
            if signals:
                raise Preempted(128 + signals[0])
            if stopped:
                break
        self._share(lanes, state, clock)

    def result(self, lane: Lane) -> FitResult:
        """How it went."""
        return FitResult(
            state=lane.state,
            wall_seconds=lane.wall_seconds,
            steps_per_second=lane.step / lane.update_seconds if lane.update_seconds else 0.0,
            compile_seconds=self.calls.compile_seconds,
            program_memory_bytes=lane.memory_bytes,
            peak_memory_bytes=_peak_memory_bytes(),
            lanes=lane.lanes,
            stopped_early=not lane.error and lane.step < self.schedule.steps,
            data_hash=self.data_hash,
            error=lane.error,
        )

    def _joined(self, trees: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if self.lanes else trees[0]

    def _share(self, lanes: Sequence[Lane], state: State, clock: float) -> float:
        """Gives each lane its state, and its time since `clock`; returns the time of now."""
        now = time.perf_counter()
        for i, lane in enumerate(lanes):
            lane.state = jax.tree.map(lambda leaf, i=i: leaf[i], state) if self.lanes else state
            lane.wall_seconds += now - clock
            # The most of any calls: a lane that has to catch up is a program of its own.
            lane.memory_bytes = max(filter(None, (lane.memory_bytes, self.calls.memory_bytes)), default=None)
            lane.lanes = max(lane.lanes, len(lanes))
        return now

    def _log(self, lanes: Sequence[Lane], healthy: Sequence[int], step: int, split: str, values: Mapping) -> None:
        epoch = self.program.steps_per_epoch and step / self.program.steps_per_epoch
        for i in healthy:
            clock = {"step": step, "epoch": epoch, "seconds": lanes[i].update_seconds, "split": split}
            lanes[i].run.log({**clock, **{name: float(value[i]) for name, value in values.items()}})


def _find_errors(lanes: Sequence[Lane], step: int, losses: np.ndarray, finite: Mapping[str, np.ndarray]) -> None:
    """Notes in each lane what is not finite in the losses [lanes, length] of a call, or in the state after it."""
    for i, lane in enumerate(lanes):
        if lane.error:
            continue
        bad = np.flatnonzero(~np.isfinite(losses[i]))
        broken = [path for path in lane.watched if not np.atleast_1d(finite[path])[i]]
        if bad.size:
            lane.error = f"loss is {losses[i, bad[0]]} at step {step - len(losses[i]) + bad[0] + 1}"
        elif broken:
            lane.error = f"{broken[0]} is not finite after step {step}, whose loss was {losses[i, -1]}"


def _peak_memory_bytes() -> int:
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes everywhere but there


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """SIGTERM and SIGINT become entries of the yielded list; the same signal a second time acts as it used to."""
    received: list[int] = []

    def receive(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
