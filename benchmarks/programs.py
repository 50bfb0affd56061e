"""The competitors: for one row, each is a compiled program with its training state, checked against the reference."""

import importlib.util
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import peers
from benchmarks.peers import Model, Unavailable
from benchmarks.problem import GATES, Batch, Masks, Row, Tree, Weights, draw, head_loss, no_masks, reference
from benchmarks.torch_peer import TorchProgram
from seqjax.solvers import named

LEARNING_RATE, DECAY = 1e-3, (0.9, 0.999)  # of Adam
UPDATES = 20  # in one call, where there are many
EXPLODED = 1e6  # a loss or gradient beyond any use, and beyond float32 soon after


class Disagreement(ArithmeticError):  # noqa: N818 (the name says it)
    """A program computes another loss or gradient, so there is nothing to compare."""


def tolerance(dtype: Any) -> float:
    """Relative error of loss and gradient. A GPU rounds the factors of float32 products to TF32 (JAX and cuDNN)."""
    if jnp.dtype(dtype) == jnp.bfloat16:
        return 0.2
    return 2e-2 if jax.default_backend() == "gpu" else 1e-4


class JaxProgram:
    """Calls of a compiled program of `updates` updates, each with its own batch."""

    def __init__(self, model: Model, row: Row, updates: int, weights: Weights, batches: Batch):
        """Trace; `compile` is called before the first `run`."""
        optimizer = optax.adam(LEARNING_RATE, *DECAY)
        self.model, self.row = model, row
        self.form, self.without = model.form, model.without

        def update(state, batch):
            params, opt_state, step = state
            key = self.key(step) if row.condition == "dropout" else None

            def loss(params):
                return head_loss(params, model.last(params["layer"], batch.x, batch.lengths, key), batch.y)

            value, gradient = jax.value_and_grad(loss)(params)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state, step + 1), value

        def many_updates(state, batches):
            return jax.lax.scan(update, state, batches)

        params = jax.tree.map(jnp.array, self.place(weights))  # a copy: the state is donated
        self.state: Any = (params, optimizer.init(params), jnp.zeros((), jnp.int32))
        self.batches = jax.tree.map(lambda b: b[0] if updates == 1 else b[:updates], batches)
        start = time.perf_counter()
        step = jax.jit(update if updates == 1 else many_updates, donate_argnums=0)
        self.lowered = step.lower(self.state, self.batches)
        self.compile_seconds = time.perf_counter() - start

    def compile(self) -> None:
        """Compile."""
        start = time.perf_counter()
        self.compiled: Any = self.lowered.compile()
        self.compile_seconds += time.perf_counter() - start
        memory = self.compiled.memory_analysis()
        self.temporary_bytes = memory and memory.temp_size_in_bytes

    @staticmethod
    def key(step: Any) -> jax.Array:
        """The key that the dropout masks of an update are drawn from."""
        return jax.random.fold_in(jax.random.key(1), step)

    def place(self, w: Weights) -> Tree:
        """The params of layer and head."""
        return {"layer": self.model.place(w), "w_y": w["w_y"], "b_y": w["b_y"]}

    def masks(self) -> Masks:
        """What the first update drops."""
        return self.model.masks(self.key(0)) if self.row.condition == "dropout" else no_masks(self.row)

    def run(self, calls: int) -> np.ndarray:
        """Call the program several times in a row, wait, and return the losses [updates] of the last call."""
        losses = np.empty(0)
        for _ in range(calls):
            self.state, losses = self.compiled(self.state, self.batches)
        jax.block_until_ready(self.state)
        return np.ravel(losses)

    def moment(self) -> Tree:
        """Adam's running mean of the gradients."""
        return self.state[1][0].mu

    def compile_inference(self) -> None:
        """Compile the forward pass alone, without dropout."""
        predict = jax.jit(lambda params, x, lengths: self.model.last(params["layer"], x, lengths, None))
        self.predict: Any = predict.lower(self.state[0], self.batches.x, self.batches.lengths).compile()

    def infer(self, calls: int) -> None:
        """Call it several times in a row, and wait."""
        for _ in range(calls):
            jax.block_until_ready(self.predict(self.state[0], self.batches.x, self.batches.lengths))


class Entry(NamedTuple):
    """A competitor.

    Attributes:
      name: as shown.
      build: `(row, dtype, weights, batches) -> program`; raises `Unavailable` for a row that it does not support.
      package: what must be installed.
      updates: in one call of the program.
      everywhere: if false, it runs only in the rows of the LSTM without lengths and dropout.
    """

    name: str
    build: Callable[[Row, Any, Weights, Batch], Any]
    package: str = "jax"
    updates: int = 1
    everywhere: bool = True

    @property
    def installed(self) -> bool:
        """Whether its package is installed."""
        return importlib.util.find_spec(self.package) is not None

    def runs(self, row: Row) -> bool:
        """Whether it takes part in a row."""
        return self.everywhere or (row.cell, row.condition) == ("lstm", "plain")


def _jax(name: str, model: Callable[..., Model], package: str = "jax", updates: int = 1, everywhere: bool = True):
    def build(row, dtype, weights, batches):
        return JaxProgram(model(row, dtype), row, updates, weights, batches)

    name = name if updates == 1 else f"{name}, {updates} in one call"
    return Entry(name, build, package, updates, everywhere)


def _method(method: str) -> Entry:
    """seqjax by one method, as in a ranking; if it refuses a cell or a machine, its error is the reason."""
    entry = _jax(f"seqjax {method}", partial(peers.seqjax_model, method=named(method)), everywhere=False)

    def build(*row):
        try:
            return entry.build(*row)
        except ValueError as error:
            raise Unavailable(str(error)) from error

    return entry._replace(build=build)


def _torch(row, dtype, weights, batches):
    return TorchProgram(row, dtype, weights, batches, LEARNING_RATE, DECAY)


AUTO = _jax("seqjax auto", partial(peers.seqjax_model, method="auto"))
FLAX = _jax("Flax NNX", peers.flax_nnx_model)
LINEN = _jax("Flax Linen", peers.flax_linen_model)
KERAS = _jax("Keras", peers.keras_model, "keras")
HAIKU = _jax("Haiku", peers.haiku_model, "haiku")
EQUINOX = _jax("Equinox", peers.equinox_model, "equinox")
JAX_PEERS = (FLAX, LINEN, KERAS, HAIKU, EQUINOX)
TORCH = Entry("PyTorch", _torch, "torch")
# What runs without a C++ compiler; the methods for long sequences are measured apart (`long.py`).
OTHERS = tuple(map(_method, ("scan", "rematerialized", "fused")))
AUTO_MANY = _jax("seqjax auto", partial(peers.seqjax_model, method="auto"), "jax", UPDATES, False)
FLAX_MANY = _jax("Flax NNX", peers.flax_nnx_model, "jax", UPDATES, False)
ENTRIES = (AUTO, *JAX_PEERS, TORCH, *OTHERS, AUTO_MANY, FLAX_MANY)
CUDNN = _jax("jax cuDNN", peers.cudnn_model)
ON_GPU = (AUTO, FLAX, EQUINOX, CUDNN, TORCH, _method("fused:8"))


def check(entry: Entry, program: Any, losses: np.ndarray, loss: Any, gradient: Weights, dtype: Any) -> None:
    """Check the first call of a program against the reference.

    Adam's first moment after one update is (1 - beta_1) times the gradient, so the program that is checked is the one
    that is timed. The moment is pulled back through `place` to the layout of the reference. After many updates only
    the loss of the first one is comparable.

    Raises:
      Disagreement: loss or gradient are off by more than `tolerance`, relative to the norm of each leaf.
    """

    def error(got, expected):
        got, expected = np.asarray(got, np.float32), np.asarray(expected, np.float32)
        return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))

    errors = {"loss": error(losses[0], loss)}
    if entry.updates == 1:
        placed, pull_back = jax.vjp(program.place, jax.tree.map(lambda g: g.astype(dtype), gradient))
        [got] = pull_back(jax.tree.map(lambda m, p: jnp.asarray(m, p.dtype), program.moment(), placed))
        errors |= {f"gradient of {name}": error(got[name], (1 - DECAY[0]) * g) for name, g in gradient.items()}
    wrong = {what: e for what, e in errors.items() if not e <= tolerance(dtype)}
    if wrong:
        raise Disagreement(
            f"{entry.name} differs from the reference by more than {tolerance(dtype):g} (relative): {wrong}"
        )


def build(row: Row, entries: Sequence[Entry], dtype: Any) -> tuple[dict[Entry, Any], dict[Entry, str]]:
    """The programs of a row, compiled and checked, and why the other entries have none.

    Each program is held against the reference in its own form, without the weights that it lacks, and with the masks
    that it draws.

    Raises:
      Disagreement: a program is wrong.
    """
    weights, batches = draw(row, max(entry.updates for entry in entries), dtype)
    programs, left_out = {}, {}
    for entry in entries:
        try:
            programs[entry] = entry.build(row, dtype, weights, batches)
        except Unavailable as reason:
            left_out[entry] = str(reason)
    # One at a time where the time of compilation is shown; otherwise two, to be done sooner.
    with ThreadPoolExecutor(1 if row.condition == "plain" else 2) as pool:
        list(pool.map(lambda program: program.compile(), programs.values()))

    @cache  # most programs have the same form and masks
    def expected(form: str, names: tuple[str, ...], product: bytes, carry: bytes) -> tuple[Any, Weights]:
        shape = (GATES[row.cell], row.shape.batch, row.shape.hidden)
        masks = [jnp.asarray(np.frombuffer(mask, np.float32)) for mask in (product, carry)]
        masks = Masks(masks[0].reshape(shape), masks[1].reshape(shape[1:]))
        return reference(form, {name: weights[name] for name in names}, jax.tree.map(lambda b: b[0], batches), masks)

    for entry, program in list(programs.items()):
        names = tuple(name for name in weights if name not in program.without)
        masks = (np.asarray(mask, np.float32).tobytes() for mask in program.masks())
        loss, gradient = expected(program.form, names, *masks)
        if not all(np.abs(leaf).max() < EXPLODED for leaf in jax.tree.leaves((loss, gradient))):
            # A GRU whose h is masked outside the cell multiplies what it keeps by 1 / (1 - rate) at every step.
            left_out[entry] = "its gradient explodes in this row"
            del programs[entry]
            continue
        check(entry, program, program.run(1), loss, gradient, dtype)
    return programs, left_out
