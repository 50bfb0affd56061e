"""The training loop: many updates in one compiled call, and on the host between the calls what a run leaves behind.

Everything that a resume needs is in `State`, calls start at multiples of `steps_per_call` and checkpoints are taken
between calls. So a process that was killed repeats the calls it lost exactly, and ends with the same bits.
"""

import contextlib
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.train.checkpoint import Checkpoints
from seqjax.train.finite import finite_leaves
from seqjax.train.metrics import progress_bar
from seqjax.train.run import Run

PyTree = Any
Numbers = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class Best(NamedTuple):
    """The lowest monitored value so far (float32 []; inf before the first), the step (int32 []) and params there."""

    value: jax.Array
    step: jax.Array
    params: PyTree


class State(NamedTuple):
    """Everything that a resume needs.

    Attributes:
      step: updates done, int32 [].
      key: typed PRNG key; the randomness of a step is `jax.random.fold_in(state.key, state.step)`.
      params: what is trained.
      opt_state: state of the optimizer.
      carry: what truncated training carries from one update to the next; () if nothing.
      best: see `Best`.
    """

    step: jax.Array
    key: jax.Array
    params: PyTree
    opt_state: PyTree
    carry: PyTree
    best: Best


class Program(NamedTuple):
    """What is trained; the functions are pure and jittable.

    Attributes:
      init: numbers -> State.
      update: numbers, data, state -> (state, metrics): ONE optimizer update. The step of the state is one more than
        before, and the metrics are scalars that include "loss".
      evaluate: numbers, data, state -> metrics on held-out data; None if there is none.
      data: device arrays, passed to update and evaluate as an argument, since arrays that are closed over become
        constants of the compiled program.
      monitor: the metric of evaluate that `Best` and early stopping watch; lower is better.
      steps_per_epoch: for the records; None if epochs mean nothing here.

    `numbers` is a dict of float32 or int32 scalars: what may differ between the lanes of one compiled program.
    """

    init: Callable[[Numbers], State]
    update: Callable[[Numbers, PyTree, State], tuple[State, Metrics]]
    evaluate: Callable[[Numbers, PyTree, State], Metrics] | None
    data: PyTree
    monitor: str = "loss"
    steps_per_epoch: int | None = None


class FitResult(NamedTuple):
    """How a training went.

    Attributes:
      state: the last state.
      wall_seconds: all processes together, compilation left out, evaluation and checkpoints included.
      steps_per_second: updates by the time spent in updates.
      compile_seconds: in this process.
      program_memory_bytes: temporary memory of the compiled updates; None where XLA does not tell.
      peak_memory_bytes: of the device; where it does not tell (CPU), peak resident memory of this process.
      stopped_early: whether patience ran out.
      error: what a lane failed with (`fit_lanes`); None if it did not fail.
    """

    state: State
    wall_seconds: float
    steps_per_second: float
    compile_seconds: float
    program_memory_bytes: int | None
    peak_memory_bytes: int
    stopped_early: bool
    error: str | None


class NonFiniteLoss(FloatingPointError):  # noqa: N818 (the name says it)
    """A loss, a validation score or the state was not finite; the message names which, and the step."""


class Preempted(SystemExit):
    """SIGTERM (code 143) or SIGINT (code 130) came between the first call and the last, and the state is saved."""


def initial_state(key: jax.Array, params: PyTree, opt_state: PyTree, carry: PyTree = ()) -> State:
    """The state before the first update."""
    return State(jnp.int32(0), key, params, opt_state, carry, Best(jnp.float32(jnp.inf), jnp.int32(0), params))


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
      ValueError: the arguments do not fit together, or no checkpoint can be read.
      NonFiniteLoss: a loss, the state after a call (params, optimizer, carry) or the monitored metric of an evaluation
        is nan or infinite, and at which step; nothing of that call is saved, and so no checkpoint holds such a state.
      Preempted: SIGTERM or SIGINT arrived; the state is saved.
      OSError: a record or a checkpoint could not be written.
    """
    schedule = _Schedule(steps, steps_per_call, evaluate_every, checkpoint_every, patience)
    [result] = _train(program, numbers, [run], run.checkpoints, schedule, progress, lanes=False)
    if result.error:
        raise NonFiniteLoss(result.error)
    return result


def fit_lanes(
    program: Program,
    numbers: Sequence[Numbers],
    runs: Sequence[Run],
    *,
    directory: Path,
    steps: int,
    steps_per_call: int = 100,
    evaluate_every: int = 0,
    checkpoint_every: int = 0,
    patience: int = 0,
    progress: bool = True,
) -> list[FitResult]:
    """Trains several runs that differ only in `numbers` as the lanes of one compiled program.

    An accelerator takes every step of all lanes at once (`jax.vmap`). A CPU takes a whole call of one lane after the
    other (`lax.map`): its cores are busy with one lane already, and the memory of one lane stays in their caches.

    As `fit`, lane by lane, except that the checkpoints hold all lanes together, in `directory`, that a lane whose loss,
    state or validation score is not finite ends with `FitResult.error` while the others go on, and that times and
    memory are those of all lanes.

    Raises:
      ValueError: as `fit`; also for patience > 0, since the lanes take every step together.
      Preempted, OSError: as `fit`.
    """
    if not numbers or len(numbers) != len(runs):
        raise ValueError(f"fit_lanes needs one run per lane, got {len(numbers)} numbers and {len(runs)} runs")
    if patience:
        raise ValueError(f"lanes are trained together and cannot stop early: patience must be 0, got {patience}")
    stacked = jax.tree.map(lambda *lanes: jnp.stack(lanes), *numbers)
    schedule = _Schedule(steps, steps_per_call, evaluate_every, checkpoint_every, patience)
    return _train(program, stacked, runs, directory, schedule, progress, lanes=True)


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


def _train(
    program: Program,
    numbers: Numbers,
    runs: Sequence[Run],
    directory: Path,
    schedule: _Schedule,
    progress: bool,
    *,
    lanes: bool,
) -> list[FitResult]:
    """The loop. With `lanes`, numbers, states and metrics have a leading axis [len(runs)]."""
    schedule.check(program)
    each = _each_lane if lanes else lambda function: function
    state = jax.jit(jax.vmap(program.init) if lanes else program.init)(numbers)
    # A leaf that is infinite from the start means something by it, the lowest loss so far for example.
    usable = {name: np.atleast_1d(good) for name, good in jax.device_get(each(_sound)(numbers, (), state)).items()}
    host = {  # what a resume needs beside the state
        "numbers": {name: np.asarray(number).tolist() for name, number in numbers.items()},
        "errors": [None] * len(runs),
        "update_seconds": 0.0,
        "wall_seconds": 0.0,
    }

    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        if saved := checkpoints.restore(state):
            given, (state, host) = host["numbers"], saved
            if given != host["numbers"]:
                raise ValueError(f"{directory} is of other runs: numbers given {given}, found {host['numbers']}")
        errors: list[str | None] = host["errors"]
        step = int(np.max(np.asarray(state.step)))
        for run in runs:
            run.rewind(step)

        began = time.perf_counter()
        lengths = {min(schedule.steps_per_call, schedule.steps), schedule.steps % schedule.steps_per_call} - {0}
        advance = {n: _compile(each(_updates(program, n)), numbers, program.data, state) for n in lengths}
        evaluate = program.evaluate and _compile(
            each(_evaluation(program.evaluate, program.monitor)), numbers, program.data, state
        )
        compile_seconds = time.perf_counter() - began

        shown = {}
        stopped = schedule.out_of_patience(step, np.max(np.asarray(state.best.step)))
        began = time.perf_counter() - host["wall_seconds"]
        with _stop_requests() as signals, progress_bar(schedule.steps, step, enabled=progress) as bar:
            while step < schedule.steps and not stopped:
                length = min(schedule.steps_per_call, schedule.steps - step)
                called = time.perf_counter()
                state, metrics, sound = advance[length](numbers, program.data, state)
                metrics = {name: values.reshape(len(runs), length) for name, values in jax.device_get(metrics).items()}
                host["update_seconds"] += time.perf_counter() - called
                step += length

                for lane, losses in enumerate(metrics["loss"]):
                    bad = np.flatnonzero(~np.isfinite(losses))
                    if bad.size and not errors[lane]:
                        errors[lane] = f"loss is {losses[bad[0]]} at step {step - length + bad[0] + 1}"
                for name, values in jax.device_get(sound).items():
                    for lane, good in enumerate(np.atleast_1d(values)):
                        if usable[name][lane] and not good and not errors[lane]:
                            errors[lane] = (
                                f"{name} is not finite after step {step}, whose loss was {metrics['loss'][lane, -1]}"
                            )
                if all(errors):
                    break
                if np.any(np.asarray(state.step) != step):
                    raise ValueError(f"update must add 1 to state.step: it is {state.step} after {step} updates")

                healthy = [lane for lane, error in enumerate(errors) if not error]
                clock = {
                    "step": step,
                    "epoch": program.steps_per_epoch and step / program.steps_per_epoch,
                    "seconds": host["update_seconds"],
                }
                means = {name: values.mean(axis=1, dtype=np.float64) for name, values in metrics.items()}
                for lane in healthy:
                    runs[lane].log({**clock, "split": "train", **_lane(means, lane)})
                shown["loss"] = np.mean(means["loss"][healthy])
                if evaluate and schedule.due(step, schedule.evaluate_every):
                    state, metrics = evaluate(numbers, program.data, state)
                    metrics = jax.device_get(metrics)
                    for lane in healthy:
                        score = np.atleast_1d(metrics[program.monitor])[lane]
                        if not np.isfinite(score):
                            errors[lane] = f"validation {program.monitor} is {score} at step {step}"
                    if all(errors):
                        break
                    healthy = [lane for lane in healthy if not errors[lane]]
                    for lane in healthy:
                        runs[lane].log({**clock, "split": "validation", **_lane(metrics, lane)})
                    shown[f"validation {program.monitor}"] = np.mean(np.atleast_1d(metrics[program.monitor])[healthy])
                bar.update(length)
                bar.set_postfix(shown)

                stopped = schedule.out_of_patience(step, np.max(np.asarray(state.best.step)))
                if schedule.due(step, schedule.checkpoint_every) or stopped or signals:
                    host["wall_seconds"] = time.perf_counter() - began
                    checkpoints.save(step, state, host)
                if signals:
                    raise Preempted(128 + signals[0])
        wall_seconds = time.perf_counter() - began

    memory = advance[max(lengths)].memory_analysis()
    return [
        FitResult(
            state=jax.tree.map(lambda leaf, lane=lane: leaf[lane], state) if lanes else state,
            wall_seconds=wall_seconds,
            steps_per_second=step / host["update_seconds"],
            compile_seconds=compile_seconds,
            program_memory_bytes=memory and memory.temp_size_in_bytes,
            peak_memory_bytes=_peak_memory_bytes(),
            stopped_early=stopped and step < schedule.steps,
            error=error,
        )
        for lane, error in enumerate(errors)
    ]


def _each_lane(function: Callable) -> Callable:
    """numbers, data, state -> result, for numbers, state and result with a leading axis of lanes; see `fit_lanes`."""
    if jax.default_backend() != "cpu":
        return jax.vmap(function, in_axes=(0, None, 0))
    return lambda numbers, data, state: jax.lax.map(lambda lane: function(lane[0], data, lane[1]), (numbers, state))


def _updates(program: Program, length: int) -> Callable:
    """numbers, data, state -> (state, metrics [length], `_sound`): `length` updates."""

    def updates(numbers: Numbers, data: PyTree, state: State) -> tuple[State, Metrics, Metrics]:
        def update(state: State, _: None) -> tuple[State, Metrics]:
            state, metrics = program.update(numbers, data, state)
            _check_metrics("update", metrics, "loss")
            return state, metrics

        state, metrics = jax.lax.scan(update, state, length=length)
        # Once a call and not once a step: what is not finite stays so, and is in the loss of the next step.
        return state, metrics, _sound(numbers, data, state)

    return updates


def _sound(numbers: Numbers, data: PyTree, state: State) -> Metrics:
    """bool [] for each leaf of the params, the optimizer and the carry: whether it is finite."""
    del numbers, data
    watched = {"params": state.params, "opt_state": state.opt_state, "carry": state.carry}
    return {f"{part}{path}": good for part, tree in watched.items() for path, good in finite_leaves(tree).items()}


def _evaluation(evaluate: Callable[[Numbers, PyTree, State], Metrics], monitor: str) -> Callable:
    """numbers, data, state -> (state, metrics): evaluates, and keeps the params if they are the best so far."""

    def evaluation(numbers: Numbers, data: PyTree, state: State) -> tuple[State, Metrics]:
        metrics = evaluate(numbers, data, state)
        _check_metrics("evaluate", metrics, monitor)
        value = metrics[monitor].astype(jnp.float32)
        better = jnp.isfinite(value) & (value < state.best.value)
        now = Best(value, state.step, state.params)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now, state.best)
        return state._replace(best=best), metrics

    return evaluation


def _check_metrics(function: str, metrics: Metrics, required: str) -> None:
    if required not in metrics:
        raise ValueError(f"{function} must return the metric {required!r}, got {sorted(metrics)}")
    for name, value in metrics.items():
        if name in ("step", "epoch", "split", "seconds"):
            raise ValueError(f"{function} must not return a metric named {name!r}: every record has that field")
        if jnp.shape(value):
            raise ValueError(f"{function} must return scalar metrics, got {name!r} of shape {jnp.shape(value)}")


def _compile(function: Callable, numbers: Numbers, data: PyTree, state: State) -> jax.stages.Compiled:
    """Ahead of time, so that compilation is timed apart; the memory of the state is reused for the new one."""
    return jax.jit(function, donate_argnums=2).lower(numbers, data, state).compile()


def _lane(metrics: Mapping[str, Any], lane: int) -> dict[str, float]:
    return {name: float(np.atleast_1d(values)[lane]) for name, values in metrics.items()}


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
