"""What is trained, and the compiled calls that train it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seqjax.train.finite import finite_leaves

__all__ = ["Best", "Calls", "Program", "State", "finite", "initial_state"]

PyTree = Any
_LANES = "lanes"  # the axis of a mesh
HParams = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class Best(NamedTuple):
    """The lowest monitored value so far (float32 []; inf before the first), the step (int32 []) and params there."""

    value: jax.Array
    step: jax.Array
    params: PyTree


class State(NamedTuple):
    """Everything that a resumed run needs.

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
      init: hparams -> State.
      update: hparams, data, state -> (state, metrics): ONE optimizer update. The step of the state is one more than
        before, and the metrics are scalars that include "loss".
      evaluate: hparams, data, state -> metrics on held-out data; None if there is none.
      data: device arrays, passed to update and evaluate as an argument, since arrays captured in a closure become
        constants of the compiled program.
      held_out: what is read only after training, such as a test set; any tree of arrays and strings.
      monitor: the metric of evaluate that `Best` and early stopping watch; lower is better.
      steps_per_epoch: for the records; None without epochs.

    `hparams` is a dict of float32 or int32 scalars: what may differ between the lanes of one compiled program.
    """

    init: Callable[[HParams], State]
    update: Callable[[HParams, PyTree, State], tuple[State, Metrics]]
    evaluate: Callable[[HParams, PyTree, State], Metrics] | None
    data: PyTree
    monitor: str = "loss"
    steps_per_epoch: int | None = None
    held_out: PyTree = ()


def initial_state(key: jax.Array, params: PyTree, opt_state: PyTree, carry: PyTree = ()) -> State:
    """The state before the first update."""
    return State(jnp.int32(0), key, params, opt_state, carry, Best(jnp.float32(jnp.inf), jnp.int32(0), params))


def finite(state: State) -> Metrics:
    """bool [] for each floating leaf of the params, the optimizer and the carry, by its path: whether it is finite."""
    watched = {"params": state.params, "opt_state": state.opt_state, "carry": state.carry}
    return {f"{part}{path}": good for part, tree in watched.items() for path, good in finite_leaves(tree).items()}


class Calls:
    """The compiled calls of a program, each compiled when it is first needed, for a state or for lanes of states.

    Lanes are divided over the accelerators of this process, each of which trains its own without the others, and takes
    every step of them at once (`jax.vmap`). A CPU takes a whole call of one lane after the other (`lax.map`): its cores
    are busy with one lane already, and the memory of one lane stays in their caches.

    Attributes:
      devices: over which lanes are divided.
      compile_seconds: spent on compilation so far.
      memory_bytes: temporary memory of the updates that were compiled last; None where XLA does not report it.
    """

    def __init__(self, program: Program, *, lanes: bool, devices: Sequence[Any] | None = None):
        """Takes the program.

        Args:
          program: what is trained.
          lanes: whether hparams, states and metrics have a leading axis of lanes.
          devices: over which lanes are divided; None for the accelerators of this process, or for its CPU.
        """
        self.compile_seconds = 0.0
        self.memory_bytes: int | None = None
        self.devices = list(devices or _accelerators()) if lanes else _accelerators()[:1]
        self._program = program
        self._lanes = lanes
        self._data: dict[int, PyTree] = {}
        self._compiled: dict[tuple, jax.stages.Compiled] = {}

    def updates(self, length: int, hparams: HParams, state: State) -> jax.stages.Compiled:
        """hparams, data, state -> (state, metrics [(lanes,) length], `finite`): `length` updates."""
        new = (length, *_shape(hparams)) not in self._compiled
        compiled = self._compile((length, *_shape(hparams)), _updates(self._program, length), hparams, state)
        if new:
            memory = compiled.memory_analysis()
            self.memory_bytes = memory and memory.temp_size_in_bytes
        return compiled

    def evaluation(self, hparams: HParams, state: State) -> jax.stages.Compiled | None:
        """hparams, data, state -> (state, metrics): evaluates, and keeps the params if they are the best so far."""
        if self._program.evaluate is None:
            return None
        function = _evaluation(self._program.evaluate, self._program.monitor)
        return self._compile(("evaluate", *_shape(hparams)), function, hparams, state)

    def width(self, lanes: int) -> int:
        """The lanes of the program that trains so many: each device has the same number."""
        devices = min(lanes, len(self.devices))
        return -(-lanes // devices) * devices

    def data(self, width: int) -> PyTree:
        """The data of the program, on each device of a program of so many lanes."""
        if not self._lanes:
            return self._program.data
        devices = min(width, len(self.devices))
        if devices not in self._data:
            self._data[devices] = jax.device_put(self._program.data, NamedSharding(self._mesh(width), P()))
        return self._data[devices]

    def joined(self, lanes: Sequence[PyTree]) -> PyTree:
        """The trees of lanes, equal in structure, as one with a leading axis; without lanes, the one there is.

        The number of lanes is one that `width` returns.
        """
        if not self._lanes:
            return lanes[0]
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
        return jax.device_put(together, self._sharding(len(lanes)))

    def needed_bytes(self, lengths: Iterable[int], hparams: HParams, state: State, lanes: int) -> int:
        """Memory of a device that the calls of so many lanes need, like this one: arguments, results and temporary
        arrays. 0 where XLA does not report it.
        """
        width = self.width(lanes)
        sharding = self._sharding(width)

        def shapes(leaf):
            return jax.ShapeDtypeStruct((width, *jnp.shape(leaf)), leaf.dtype, sharding=sharding)

        hparams, state = jax.tree.map(shapes, (jax.tree.map(jnp.asarray, hparams), state))
        compiled = [*(self.updates(length, hparams, state) for length in lengths), self.evaluation(hparams, state)]
        sizes = [one.memory_analysis() for one in compiled if one]
        return max(
            size.argument_size_in_bytes + size.output_size_in_bytes + size.temp_size_in_bytes - size.alias_size_in_bytes
            if size
            else 0
            for size in sizes
        )

    def split(self, joined: PyTree, count: int) -> list[PyTree]:
        """The inverse of `joined`, for the first `count` lanes, each on the first device."""
        if not self._lanes:
            return [joined]
        # Copied before it is indexed, which devices would do together: on a busy CPU one may wait for others in vain.
        here = jax.device_put(joined, self.devices[0])
        return [jax.tree.map(lambda leaf, i=i: leaf[i], here) for i in range(count)]

    def _mesh(self, width: int) -> Mesh:
        devices = self.devices[: min(width, len(self.devices))]
        return jax.make_mesh((len(devices),), (_LANES,), axis_types=(AxisType.Auto,), devices=devices)

    def _sharding(self, width: int) -> NamedSharding:
        """How an axis of lanes is divided over the devices."""
        return NamedSharding(self._mesh(width), P(_LANES))

    def _compile(self, key: tuple, function: Callable, hparams: HParams, state: State) -> jax.stages.Compiled:
        if key not in self._compiled:
            began = time.perf_counter()
            [width] = _shape(hparams) or (1,)
            each = function
            if self._lanes:
                each = _each_lane(function, platform(state))
            if self._lanes and self._mesh(width).size > 1:
                # By hand, for XLA cannot divide kernels; nothing depends on what another device computes.
                specs = {"in_specs": (P(_LANES), P(), P(_LANES)), "out_specs": P(_LANES), "check_vma": False}
                each = jax.shard_map(each, mesh=self._mesh(width), **specs)
            # Ahead of time, so that compilation is timed apart; the memory of the state is reused for the new one.
            lowered = jax.jit(each, donate_argnums=2).lower(hparams, self.data(width), state)
            self._compiled[key] = lowered.compile()
            self.compile_seconds += time.perf_counter() - began
        return self._compiled[key]


def _accelerators() -> list[Any]:
    """The devices of this process; of a CPU, whose devices share its cores, or where a default is set, one."""
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    devices = [default] if isinstance(default, jax.Device) else jax.local_devices()
    return devices[:1] if devices[0].platform == "cpu" else devices


def _shape(hparams: HParams) -> tuple[int, ...]:
    return next((jnp.shape(number) for number in hparams.values()), ())


def platform(tree: PyTree) -> str:
    """The platform of the devices that hold a tree of arrays, or of `jax.ShapeDtypeStruct` with a sharding."""
    return next(iter(jax.tree.leaves(tree)[0].sharding.device_set)).platform


def _each_lane(function: Callable, platform: str) -> Callable:
    """hparams, data, state -> result, for hparams, state and result with a leading axis of lanes."""
    if platform != "cpu":
        return jax.vmap(function, in_axes=(0, None, 0))
    return lambda hparams, data, state: jax.lax.map(lambda lane: function(lane[0], data, lane[1]), (hparams, state))


def _updates(program: Program, length: int) -> Callable:
    def updates(hparams: HParams, data: PyTree, state: State) -> tuple[State, Metrics, Metrics]:
        def update(state: State, _: None) -> tuple[State, Metrics]:
            state, metrics = program.update(hparams, data, state)
            _check_metrics("update", metrics, "loss")
            return state, metrics

        state, metrics = jax.lax.scan(update, state, length=length)
        # Once per call, not per step: what is not finite stays so, and shows in the loss of the next step.
        return state, metrics, finite(state)

    return updates


def _evaluation(evaluate: Callable[[HParams, PyTree, State], Metrics], monitor: str) -> Callable:
    def evaluation(hparams: HParams, data: PyTree, state: State) -> tuple[State, Metrics]:
        metrics = evaluate(hparams, data, state)
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
