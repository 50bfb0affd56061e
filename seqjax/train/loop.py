"""The training loop: many updates in one compiled call, and on the host between the calls the files of the run.

Everything that a resume needs is in `State`, calls start at multiples of `steps_per_call` and checkpoints are taken
between calls. So a process that was killed repeats the calls it lost exactly, and ends with the same bits.
"""

import contextlib
import hashlib
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from seqjax.train.lane import Lane
from seqjax.train.leaves import fingerprints
from seqjax.train.lockstep import Lockstep
from seqjax.train.metrics import progress_bar
from seqjax.train.program import Calls, HParams, Program, State
from seqjax.train.run import Run
from seqjax.train.strict_json import encode

__all__ = ["FitResult", "NonFiniteLoss", "Preempted", "fit", "fit_lanes"]


class FitResult(NamedTuple):
    """How a training went.

    Attributes:
      state: the last state.
      wall_seconds: all processes together, compilation left out, evaluation and checkpoints included.
      steps_per_second: updates by the time spent in updates.
      compile_seconds: in this process.
      program_memory_bytes: temporary memory of the compiled updates; None where XLA does not report it.
      peak_memory_bytes: of the device; where it is not reported (CPU), peak resident memory of this process.
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


class NonFiniteLoss(FloatingPointError):  # noqa: N818 (reads better without Error)
    """A loss, a validation score or the state was not finite; the message names which, and the step."""


class Preempted(SystemExit):
    """SIGTERM (code 143) or SIGINT (code 130) came between the first call and the last, and the state is saved."""


def fit(
    program: Program,
    hparams: HParams,
    run: Run,
    *,
    steps: int,
    steps_per_call: int = 100,
    evaluate_every: int = 0,
    checkpoint_every: int = 0,
    patience: int = 0,
    progress: bool = True,
) -> FitResult:
    """Trains for `steps` updates, or resumes from the newest checkpoint of `run`.

    Writes to the run one record per call (split "train": mean of each metric over the updates of the call) and one per
    evaluation (split "validation"); "seconds" in a record is the time spent in updates so far, without compilation.
    At the end it saves the best params (`Run.params`), or the last ones if the program has no `evaluate`.

    Args:
      program: what is trained.
      hparams: its hyperparameters.
      run: where records and checkpoints go.
      steps: updates in all.
      steps_per_call: updates in one compiled call; the last call is shorter if `steps` is no multiple.
      evaluate_every: in steps; 0 evaluates at the end only.
      checkpoint_every: in steps; 0 saves at the end only (and when preempted).
      patience: stop after this many evaluations in a row without a new best; 0 never stops early.
      progress: show a progress line, if stderr is a terminal.

    Raises:
      ValueError: the arguments are inconsistent, no checkpoint can be read, it is of other flags, hyperparameters, data
        or shapes, or records that preceded it are missing.
      InUse: another process has taken the run from this one.
      NonFiniteLoss: a loss, the state after a call (params, optimizer, carry) or the monitored metric of an evaluation
        is nan or infinite (the message names the step); nothing of that call is saved, so no checkpoint holds such a
        state.
      Preempted: SIGTERM or SIGINT arrived; the state is saved.
      OSError: a record or a checkpoint could not be written.
    """
    schedule = _Schedule(steps, steps_per_call, evaluate_every, checkpoint_every, patience)
    schedule.check(program)
    loop = _Loop(program, schedule, lanes=False)
    with contextlib.ExitStack() as opened:
        [result] = loop.train(loop.restore([hparams], [run], opened), progress)
    if result.error:
        raise NonFiniteLoss(result.error)
    return result


def fit_lanes(
    program: Program,
    hparams: Sequence[HParams],
    runs: Sequence[Run],
    *,
    steps: int,
    steps_per_call: int = 100,
    evaluate_every: int = 0,
    checkpoint_every: int = 0,
    patience: int = 0,
    progress: bool = True,
    memory_bytes: int | None = None,
    devices: Sequence[Any] | None = None,
) -> list[FitResult]:
    """Trains several runs that differ only in `hparams` as the lanes of one compiled program.

    As `fit`, lane by lane, except that a lane that cannot be restored, or whose loss, state or validation score is not
    finite, ends with `FitResult.error` while the others are trained, and that times and memory are those of the lanes
    that were trained together. Each run has its own checkpoints, so any set of runs can be resumed together; those
    that are behind are trained first, until they have caught up.

    The lanes are divided over devices, on which they are trained without communication.

    Args:
      program, steps, steps_per_call, evaluate_every, checkpoint_every, patience, progress: as of `fit`.
      hparams: of each lane.
      runs: of each lane.
      memory_bytes: of a device; lanes that do not fit are trained in parts, one after the other. None for what JAX
        knows of the device.
      devices: over which the lanes are divided; None for the accelerators of this process, or for its CPU.

    Raises:
      ValueError: the arguments are inconsistent; also for patience > 0, since the lanes take every step together.
      Preempted, OSError: as `fit`.
    """
    if not hparams or len(hparams) != len(runs):
        raise ValueError(f"fit_lanes needs one run per lane, got {len(hparams)} sets of hparams and {len(runs)} runs")
    if patience:
        raise ValueError(f"lanes are trained together and cannot stop early: patience must be 0, got {patience}")
    schedule = _Schedule(steps, steps_per_call, evaluate_every, checkpoint_every, patience)
    schedule.check(program)
    loop = _Loop(program, schedule, lanes=True, memory_bytes=memory_bytes, devices=devices)
    with contextlib.ExitStack() as opened:
        return loop.train(loop.restore(hparams, runs, opened), progress)


class _Schedule(NamedTuple):
    """When what happens, in steps; see `fit`."""

    steps: int
    steps_per_call: int
    evaluate_every: int
    checkpoint_every: int
    patience: int

    def check(self, program: Program) -> None:
        """Raises ValueError where the numbers are inconsistent."""
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

    def length(self, step: int, until: int) -> int:
        """Updates of the call that starts at `step` and may not go beyond `until`."""
        return min(self.steps_per_call, until - step)

    def lengths(self, step: int, until: int) -> set[int]:
        """Those of all calls from `step` to `until`."""
        return {self.length(at, until) for at in range(step, until, self.steps_per_call)}

    def due(self, step: int, every: int) -> bool:
        """Whether an action taken `every` steps, and at the end, is due at `step`."""
        return step == self.steps or (every > 0 and step % every == 0)

    def out_of_patience(self, step: int, best_step: int | np.integer) -> bool:
        """Whether the last `patience` evaluations brought no new best."""
        return self.patience > 0 and step - best_step >= self.patience * self.evaluate_every


class _Loop:
    """The calls of some runs, one after the other, and their results."""

    def __init__(
        self,
        program: Program,
        schedule: _Schedule,
        *,
        lanes: bool,
        memory_bytes: int | None = None,
        devices: Sequence[Any] | None = None,
    ):
        self.program, self.schedule, self.lanes, self.memory_bytes = program, schedule, lanes, memory_bytes
        self.width = 0  # lanes of the compiled program once they have been split, so that all parts share it
        self.calls = Calls(program, lanes=lanes, devices=devices)
        parts = {"": program.data, "held out ": program.held_out}
        self.data = {part + path: one for part, tree in parts.items() for path, one in fingerprints(tree).items()}
        self.data_hash = hashlib.blake2b(encode(self.data).encode(), digest_size=8).hexdigest()

    def restore(self, hparams: Sequence[HParams], runs: Sequence[Run], opened: contextlib.ExitStack) -> list[Lane]:
        """The lanes as their checkpoints left them; `opened` closes them."""
        init = jax.jit(self.program.init)
        lanes = [Lane(run, own, init(own), self.data) for own, run in zip(hparams, runs, strict=True)]
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
                bar.n = step  # the next part of lanes that were split starts again
                self.advance([lane for lane in active if lane.step == step], until, bar, signals)
                active = [lane for lane in active if not lane.error and not self.ended(lane)]
        for lane in lanes:
            if not lane.error:
                lane.run.save_params(lane.state.best.params if self.program.evaluate else lane.state.params)
        return [self.result(lane) for lane in lanes]

    def ended(self, lane: Lane) -> bool:
        """Whether a lane has taken all its steps, or run out of patience."""
        return lane.step >= self.schedule.steps or self.schedule.out_of_patience(lane.step, int(lane.state.best.step))

    def advance(self, lanes: Sequence[Lane], until: int, bar: tqdm, signals: list[int]) -> None:
        """Takes lanes that are at the same step, those that fit at once, to `until`, or until patience runs out."""
        schedule = self.schedule
        lengths = schedule.lengths(lanes[0].step, until)
        width = self.at_once(lanes, lengths) if self.lanes else 1
        together = Lockstep(self.program, self.calls, lanes[:width], lengths, width)
        while together.step < until and together.healthy:
            length = schedule.length(together.step, until)
            together.update(length)
            if together.healthy and schedule.due(together.step, schedule.evaluate_every):
                together.evaluate()
            if not together.healthy:
                break
            bar.update(length)
            bar.set_postfix(together.shown)
            stopped = schedule.out_of_patience(together.step, together.best_step)
            if schedule.due(together.step, schedule.checkpoint_every) or stopped or signals:
                together.save()
            if signals:
                raise Preempted(128 + signals[0])
            if stopped:
                break
        together.split()

    def at_once(self, lanes: Sequence[Lane], lengths: set[int]) -> int:
        """The number of lanes of one program, as `Calls.width` has it: for all, or for those that fit into memory.

        Raises:
          MemoryError: for a lane that does not fit alone.
        """
        if self.width:
            return self.width
        limit = _memory_limit(lanes[0].state) if self.memory_bytes is None else self.memory_bytes
        whole = self.calls.width(len(lanes))
        if limit is None:
            return whole
        devices = min(whole, len(self.calls.devices))
        # Of each device: its lanes, and the memory that they need.
        each = most = whole // devices
        needed = first = self._needed(lanes, lengths, whole)
        shared = sum(leaf.nbytes for leaf in jax.tree.leaves(self.program.data))
        while needed > limit:
            if each == 1:
                raise MemoryError(
                    f"one lane needs {needed:,} bytes and {limit:,} are available: take smaller batches or models, "
                    "or fewer steps per call"
                )
            share = max(limit - shared, 0) / max(needed - shared, 1)
            parts = -(-most // max(1, min(each - 1, int(each * share))))
            each = -(-most // parts)
            needed = self._needed(lanes, lengths, each * devices)
        if each < most:
            self.width = each * devices
            where = f" of each of {devices} devices" if devices > 1 else ""
            print(
                f"{len(lanes)} lanes need {first:,} bytes{where} and {limit:,} are available: they are trained in "
                f"{-(-len(lanes) // self.width)} parts of {self.width} lanes, one after the other",
                file=sys.stderr,
            )
        return each * devices

    def _needed(self, lanes: Sequence[Lane], lengths: set[int], count: int) -> int:
        return self.calls.needed_bytes(lengths, lanes[0].hparams, lanes[0].state, count)

    def result(self, lane: Lane) -> FitResult:
        """The result of a lane."""
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


def _memory_limit(state: State) -> int | None:
    """Bytes of the memory of the device that holds a state; None where JAX does not know."""
    device = next(iter(jax.tree.leaves(state)[0].sharding.device_set))
    return (device.memory_stats() or {}).get("bytes_limit")


def _peak_memory_bytes() -> int:
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes everywhere but there


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """SIGTERM and SIGINT become entries of the yielded list; the same signal a second time has its previous effect."""
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
