"""An LSTM with a linear head on its last output, in seqjax and in its peers: one interface to train them by.

Every JAX peer runs as one compiled program in which loss and update are the same code: only the layer differs, and no
Python of a training loop is timed. `place` puts weights, or a gradient, where a peer keeps them.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import seqjax
import seqjax.nnx

Tree = Any
Weights = dict[str, np.ndarray]


class Shape(NamedTuple):
    """Batch B, steps T, input features D and hidden units H."""

    batch: int
    steps: int
    features: int
    hidden: int

    def __str__(self) -> str:
        return ", ".join(map(str, self))


SHAPES = (
    Shape(256, 120, 14, 16),
    Shape(256, 120, 14, 32),
    Shape(128, 784, 1, 128),
    Shape(64, 35, 256, 512),
    Shape(20, 35, 650, 650),
)
LEARNING_RATE, DECAY = 1e-3, (0.9, 0.999)  # of Adam
UPDATES = 20  # in one call, where there are many


# The problem: weights, data, and an LSTM to hold all others against.


def draw(shape: Shape) -> tuple[Weights, jax.Array, jax.Array]:
    """Weights, inputs [N, B, T, D] and targets [N, B, 1] of N = `UPDATES` batches."""
    keys = jax.random.split(jax.random.key(0), 4)
    weights = {
        **seqjax.cells.lstm(shape.hidden).init(keys[0], shape.features),
        "w_y": jax.random.normal(keys[1], (shape.hidden, 1)) / shape.hidden**0.5,
        "b_y": jnp.zeros(1),
    }
    xs = jax.random.normal(keys[2], (UPDATES, shape.batch, shape.steps, shape.features))
    # The mean of 1 keeps the gradient of b_y, 2 mean(prediction - y), from cancelling down to its rounding error.
    ys = 1 + jax.random.normal(keys[3], (UPDATES, shape.batch, 1))
    return jax.tree.map(np.asarray, weights), xs, ys


@jax.jit
def reference(weights: Weights, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Weights]:
    """Loss and gradient of one batch, by the equations of the LSTM and nothing else."""

    def loss(w):
        def step(carry, x):
            h, c = carry
            i, f, g, o = jnp.split(x @ w["w_x"] + h @ w["w_h"] + w["b"].reshape(1, -1), 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zeros = jnp.zeros((x.shape[0], w["w_h"].shape[0]))
        (h, _), _ = jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))
        return jnp.mean((h @ w["w_y"] + w["b_y"].reshape(1, -1) - y) ** 2)

    return jax.value_and_grad(loss)(weights)


# The models of the peers.


class Model(NamedTuple):
    """An LSTM and its head: `predict(params, x [B, T, D]) -> [B, 1]`, with the params `place(weights)`."""

    predict: Callable[[Tree, jax.Array], jax.Array]
    place: Callable[[Weights], Tree]


class _LastOutput(nnx.Module):
    def __init__(self, rnn: nnx.Module, hidden: int):
        self.rnn = rnn
        self.head = nnx.Linear(hidden, 1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


def _nnx_model(rnn: nnx.Module, hidden: int, place: Callable[[Weights], Tree]) -> Model:
    graph, _, rest = nnx.split(_LastOutput(rnn, hidden), nnx.Param, ...)
    return Model(
        predict=lambda params, x: nnx.merge(graph, params, rest, copy=True)(x),
        place=lambda w: {"rnn": place(w), "head": {"kernel": w["w_y"], "bias": w["b_y"]}},
    )


def seqjax_model(shape: Shape, method: str) -> Model:
    """`seqjax.nnx.Recurrent`, solved by `method`."""
    cell = seqjax.cells.lstm(shape.hidden)
    rnn = seqjax.nnx.Recurrent(cell, shape.features, method=method, rngs=nnx.Rngs(0))
    return _nnx_model(rnn, shape.hidden, lambda w: {"params": {name: w[name] for name in ("w_x", "w_h", "b")}})


def flax_model(shape: Shape) -> Model:
    """`nnx.RNN` over `nnx.OptimizedLSTMCell`, which has one product for the four gates."""

    def place(w):
        return {"cell": {"dense_i": {"kernel": w["w_x"]}, "dense_h": {"kernel": w["w_h"], "bias": w["b"]}}}

    rnn = nnx.RNN(nnx.OptimizedLSTMCell(shape.features, shape.hidden, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    return _nnx_model(rnn, shape.hidden, place)


def flax_plain_model(shape: Shape) -> Model:
    """`nnx.RNN` over `nnx.LSTMCell`, which has a product for each gate."""

    def place(w):
        split = {name: np.split(np.asarray(w[name]), 4, axis=-1) for name in ("w_x", "w_h", "b")}
        cell = {}
        for k, gate in enumerate("ifgo"):
            cell["if_" if gate == "f" else f"i{gate}"] = {"kernel": split["w_x"][k]}
            cell[f"h{gate}"] = {"kernel": split["w_h"][k], "bias": split["b"][k]}
        return {"cell": cell}

    rnn = nnx.RNN(nnx.LSTMCell(shape.features, shape.hidden, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    return _nnx_model(rnn, shape.hidden, place)


def keras_model(shape: Shape) -> Model:
    """`keras.layers.LSTM` on the JAX backend, through `stateless_call`."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    layers = [keras.layers.LSTM(shape.hidden), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((shape.steps, shape.features)), *layers])
    rest = [variable.value for variable in model.non_trainable_variables]
    return Model(
        predict=lambda params, x: model.stateless_call(params, rest, x)[0],
        place=lambda w: [w[name] for name in ("w_x", "w_h", "b", "w_y", "b_y")],
    )


# The programs: a peer at one shape, compiled, with the state of its training.


class JaxProgram:
    """Calls of a compiled program of `updates` updates, each with a batch of its own."""

    def __init__(self, model: Model, updates: int, weights: Weights, xs: jax.Array, ys: jax.Array):
        """Compile; xs is [N, B, T, D] and ys [N, B, 1]."""
        optimizer = optax.adam(LEARNING_RATE, *DECAY)

        def update(state, batch):
            params, opt_state = state
            x, y = batch
            loss, gradient = jax.value_and_grad(lambda p: jnp.mean((model.predict(p, x) - y) ** 2))(params)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        def many_updates(state, batches):
            return jax.lax.scan(update, state, batches)

        params = jax.tree.map(jnp.asarray, model.place(weights))
        self.place = model.place
        self.state: Any = (params, optimizer.init(params))
        self.batches = (xs[0], ys[0]) if updates == 1 else (xs[:updates], ys[:updates])
        start = time.perf_counter()
        step = jax.jit(update if updates == 1 else many_updates, donate_argnums=0)
        self.compiled = step.lower(self.state, self.batches).compile()
        self.compile_seconds = time.perf_counter() - start
        memory = self.compiled.memory_analysis()
        self.temporary_bytes = memory and memory.temp_size_in_bytes

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


class TorchProgram:
    """`torch.nn.LSTM` in eager mode, with `torch.optim.Adam`; the interface of `JaxProgram`."""

    compile_seconds = temporary_bytes = None

    def __init__(self, shape: Shape, weights: Weights, xs: jax.Array, ys: jax.Array):
        """Build the module."""
        import torch  # pyright: ignore[reportMissingImports]

        class LastOutput(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = torch.nn.LSTM(shape.features, shape.hidden, batch_first=True)
                self.head = torch.nn.Linear(shape.hidden, 1)

            def forward(self, x):
                return self.head(self.rnn(x)[0][:, -1])

        self.model: Any = LastOutput()
        # torch has two biases that add up; the second stays 0, so that there are as many weights to train as elsewhere.
        torch.nn.init.zeros_(self.model.rnn.bias_hh_l0).requires_grad_(False)
        placed = {name: torch.tensor(value) for name, value in self.place(weights).items()}
        self.model.load_state_dict(placed, strict=False)
        self.trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam([p for _, p in self.trained], LEARNING_RATE, DECAY)
        self.x, self.y = torch.tensor(np.asarray(xs[0])), torch.tensor(np.asarray(ys[0]))

    @staticmethod
    def place(w: Weights) -> Tree:
        """Weights by torch's names."""
        return {
            "rnn.weight_ih_l0": np.asarray(w["w_x"]).T,
            "rnn.weight_hh_l0": np.asarray(w["w_h"]).T,
            "rnn.bias_ih_l0": np.asarray(w["b"]),
            "head.weight": np.asarray(w["w_y"]).T,
            "head.bias": np.asarray(w["b_y"]),
        }

    def run(self, calls: int) -> np.ndarray:
        """Take several steps and return the loss [1] of the last one."""
        loss: Any = None
        for _ in range(calls):
            self.optimizer.zero_grad()
            loss = ((self.model(self.x) - self.y) ** 2).mean()
            loss.backward()
            self.optimizer.step()
        return np.ravel(loss.item())

    def moment(self) -> Tree:
        """Adam's running mean of the gradients."""
        return {name: self.optimizer.state[p]["exp_avg"].numpy() for name, p in self.trained}


class Entry(NamedTuple):
    """A competitor.

    Attributes:
      name: as shown.
      build: `(shape, weights, xs, ys) -> program`.
      updates: in one call of the program.
    """

    name: str
    build: Callable[..., Any]
    updates: int = 1


def _entry(name: str, model: Callable[[Shape], Model], updates: int = 1) -> Entry:
    name = name if updates == 1 else f"{name}, {updates} in one call"
    return Entry(name, lambda shape, *data: JaxProgram(model(shape), updates, *data), updates)


AUTO, *METHODS = (
    _entry(f"seqjax {method}", partial(seqjax_model, method=method))
    for method in ("auto", "fused", "rematerialized", "scan", "checkpointed")
)
FLAX = _entry("Flax NNX", flax_model)
FLAX_PLAIN = _entry("Flax NNX LSTMCell", flax_plain_model)
KERAS = _entry("Keras", keras_model)
JAX_PEERS = (FLAX, FLAX_PLAIN, KERAS)
TORCH = Entry("PyTorch", TorchProgram)
AUTO_MANY = _entry("seqjax auto", partial(seqjax_model, method="auto"), UPDATES)
FLAX_MANY = _entry("Flax NNX", flax_model, UPDATES)
ENTRIES = (AUTO, *METHODS, *JAX_PEERS, TORCH, AUTO_MANY, FLAX_MANY)
