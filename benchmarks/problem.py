"""The rows of the benchmark, their weights and data, and the reference cells that all peers are checked against."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
Weights = dict[str, jax.Array]


class Shape(NamedTuple):
    """Batch B, steps T, input features D and hidden units H."""

    batch: int
    steps: int
    features: int
    hidden: int

    def __str__(self) -> str:
        return ", ".join(map(str, self))


class Row(NamedTuple):
    """A problem: a cell, a condition of its training, and a shape."""

    cell: str
    condition: str
    shape: Shape

    def __str__(self) -> str:
        return f"{NAMES[self.cell]}, {self.condition}, ({self.shape})"


SHAPES = (
    Shape(256, 120, 14, 16),
    Shape(256, 120, 14, 32),
    Shape(128, 784, 1, 128),
    Shape(64, 35, 256, 512),
    Shape(20, 35, 650, 650),
    Shape(32, 100, 128, 256),
    Shape(1, 200, 64, 512),
)
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
NAMES = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
CONDITIONS = ("plain", "lengths", "dropout")
RATE = 0.3  # of recurrent dropout
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Batch(NamedTuple):
    """Inputs x [B, T, D], targets y [B, 1] and, where sequences are padded, their lengths int32 [B]."""

    x: jax.Array
    y: jax.Array
    lengths: jax.Array | None


def draw(row: Row, updates: int, dtype: Any = jnp.float32) -> tuple[Weights, Batch]:
    """Weights in the layout of this library, and as many batches as updates, stacked.

    By NumPy: drawing with JAX would compile for seconds at every shape. Recurrent matrices are orthogonal and the gates
    that keep the carry start with memories of up to 32 steps (Tallec & Ollivier 2018, arXiv 1804.11188), else the
    gradient would fade to numbers so small that some processors are slow with them, and that some programs round to 0.
    """
    batch, steps, features, hidden = row.shape
    gates, rng = GATES[row.cell], np.random.default_rng(0)

    def uniform(*shape):
        return rng.uniform(-1, 1, shape) * hidden**-0.5

    w_h = np.hstack([np.linalg.qr(rng.standard_normal((hidden, hidden)))[0] for _ in range(gates)])
    if row.condition == "dropout":
        w_h *= (1 - RATE) ** 0.5  # else what is kept, times 1 / (1 - rate), makes a simple RNN chaotic over 784 steps
    b, keep = uniform(gates, hidden), np.log(rng.uniform(1, 32, hidden))
    if row.cell == "lstm":
        b[0], b[1] = b[0] - keep, b[1] + keep
    if row.cell == "gru":
        b[1] += keep
    weights = {"w_x": uniform(features, gates * hidden), "w_h": w_h, "b": b.ravel()}
    weights |= {"w_y": uniform(hidden, 1), "b_y": np.zeros(1)}
    if row.cell == "gru":
        weights["b_n"] = np.zeros(hidden)  # Flax NNX has none
    xs = rng.standard_normal((updates, batch, steps, features), np.float32)
    # The mean of 1 keeps the gradient of b_y, 2 mean(prediction - y), from cancelling down to its rounding error.
    ys = 1 + rng.standard_normal((updates, batch, 1), np.float32)
    lengths = None
    if row.condition == "lengths":
        lengths = jnp.asarray(rng.integers(max(steps // 2, 1), steps + 1, (updates, batch)), jnp.int32)
    return {name: jnp.asarray(w, dtype) for name, w in weights.items()}, Batch(
        jnp.asarray(xs, dtype), jnp.asarray(ys), lengths
    )


class Masks(NamedTuple):
    """Noise of one batch: `product` [G, B, H] on h where it enters each gate's product, `carry` [B, H] elsewhere."""

    product: jax.Array
    carry: jax.Array


def no_masks(row: Row) -> Masks:
    """Masks that change nothing."""
    ones = jnp.ones((GATES[row.cell], row.shape.batch, row.shape.hidden))
    return Masks(ones, ones[0])


# One step of each cell: x [G, B, H] projected, h and c [B, H], product(h) [G, B, H], keep [B, H], b_n [1, H].


def _rnn(x, h, c, product, keep, b_n):
    return jnp.tanh(x[0] + product(h)[0]), c


def _lstm(x, h, c, product, keep, b_n):
    i, f, g, o = x + product(h)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru(x, h, c, product, keep, b_n):
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x, product(h)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * (h_n + b_n))
    return z * h * keep + (1 - z) * n, c


def _gru_reset_before(x, h, c, product, keep, b_n):
    (x_r, x_z, x_n), (h_r, h_z, _) = x, product(h)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + product(r * h)[2])
    return z * h * keep + (1 - z) * n, c


STEPS = {"rnn": _rnn, "lstm": _lstm, "gru": _gru, "gru_reset_before": _gru_reset_before}


def reference(form: str, weights: Weights, batch: Batch, masks: Masks) -> tuple[jax.Array, Weights]:
    """Loss and gradient of one batch, by the equations of a cell (`STEPS`) and nothing else, in float32."""
    size, steps = batch.x.shape[:2]
    lengths = jnp.full(size, steps, jnp.int32) if batch.lengths is None else batch.lengths
    return _reference(form, weights, batch._replace(lengths=lengths), masks)


@partial(jax.jit, static_argnums=0)
def _reference(form, weights, batch, masks):
    weights, x = jax.tree.map(lambda a: a.astype(jnp.float32), (weights, batch.x))
    size, steps = x.shape[:2]

    def loss(w):
        hidden = w["w_h"].shape[0]
        w_h = jnp.moveaxis(w["w_h"].reshape(hidden, -1, hidden), 1, 0)
        b_n = w.get("b_n", jnp.zeros(hidden)).reshape(1, -1)

        def product(h):
            return jnp.einsum("gbh,ghk->gbk", jnp.expand_dims(h, 0) * masks.product, w_h)

        def step(carry, inputs):
            t, x = inputs
            z = x @ w["w_x"] + w["b"].reshape(1, -1)
            z = jnp.moveaxis(z.reshape(size, -1, hidden), 1, 0)
            new = STEPS[form](z, *carry, product, masks.carry, b_n)
            return tuple(
                jnp.where((t < batch.lengths).reshape(-1, 1), a, b) for a, b in zip(new, carry, strict=True)
            ), None

        zeros = jnp.zeros((size, hidden))
        (h, _), _ = jax.lax.scan(step, (zeros, zeros), (jnp.arange(steps), jnp.swapaxes(x, 0, 1)))
        return head_loss(w, h, batch.y)

    with jax.default_matmul_precision("highest"):
        return jax.value_and_grad(loss)(weights)


def head_loss(weights: Weights, h: jax.Array, y: jax.Array) -> jax.Array:
    """mean_b (h[b] @ w_y + b_y - y[b])^2 in float32, for the last outputs h [B, H]."""
    prediction = h.astype(weights["w_y"].dtype) @ weights["w_y"] + weights["b_y"].reshape(1, -1)
    return jnp.mean((prediction.astype(jnp.float32) - y) ** 2)
