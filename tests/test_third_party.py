"""The same weights in Flax, Keras (on JAX) and PyTorch give the same outputs, carries and gradients.

Weights are kept in the layout of this library. A function for each peer's layer says how its weights are made of them;
gradients are taken through that function, so that all are with respect to the same numbers. Biases are drawn too:
a gate in the wrong place would not go unnoticed.
"""

import os
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from seqjax import cells

B, T, D, H = 3, 7, 4, 5
CELLS = {
    "rnn": cells.rnn(H),
    "lstm": cells.lstm(H),
    "gru": cells.gru(H),
    "gru_reset_before": cells.gru_reset_before(H),
}
LENGTHS = np.array([7, 2, 5])
PADDED = np.arange(T)[None] < LENGTHS[:, None]
HOLES = np.array([[1, 0, 1, 1, 0, 0, 1], [0, 1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0]], bool)
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


@pytest.fixture
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="compares with Keras, which is not installed")
    if keras.config.backend() != "jax":
        pytest.skip(f"compares with Keras on JAX, but its backend is {keras.config.backend()}")
    return keras


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


@contextmanager
def relaxed():
    """The peers promote dtypes and ranks silently; this library does not."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# The two sides


def draw(cell, dtype, seed=0):
    """`(weights, xs [B, T, D])`, normal."""
    tree = jax.eval_shape(lambda: (cell.init(jax.random.key(0), D), jnp.zeros((B, T, *cell.space, D))))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, dtype), tree)


def ours(cell, mask=None, reverse=False):
    """`(weights, xs) -> (ys [B, T, O], leaves of the carry)`; two cells are run in both directions."""
    mask = None if mask is None else jnp.asarray(mask.T)

    def run(weights, xs):
        xs = jnp.swapaxes(xs, 0, 1)
        if isinstance(cell, list):
            carry, ys = seqjax.bidirectional(tuple(cell), weights, None, xs, mask=mask)
        else:
            carry, ys = seqjax.unroll(cell, weights, None, xs, mask=mask, reverse=reverse)
        return jnp.swapaxes(ys, 0, 1), jax.tree.leaves(carry)

    return run


def cotangent(shape, dtype):
    return np.random.default_rng(9).normal(size=shape).astype(dtype)


def results(run, weights, xs):
    """Outputs, carry, and the gradients of a scalar made of both, with respect to weights and inputs."""

    def scalar(weights, xs):
        ys, carry = run(weights, xs)
        loss = jnp.sum(ys * cotangent(ys.shape, ys.dtype)) + sum(jnp.sum(leaf) for leaf in carry)
        return loss, (ys, carry)

    (_, out), grads = jax.jit(jax.value_and_grad(scalar, (0, 1), has_aux=True))(weights, xs)
    return out, grads


def agree(a, b, dtype):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype == dtype
        error = np.abs(x - y).max() / np.abs(y).max()
        assert error < TOLERANCE[dtype], f"{jax.tree_util.keystr(path)}: relative error {error}"


# Flax


def flax_simple(p):
    return {"dense_i": {"kernel": p["w_x"], "bias": p["b"]}, "dense_h": {"kernel": p["w_h"]}}


def flax_optimized_lstm(p):
    return {"dense_i": {"kernel": p["w_x"]}, "dense_h": {"kernel": p["w_h"], "bias": p["b"]}}


def flax_lstm(p):
    w_x, w_h, b = (jnp.split(p[name], 4, axis=-1) for name in ("w_x", "w_h", "b"))
    inputs = {f"i{gate}": {"kernel": w} for gate, w in zip(("i", "f_", "g", "o"), w_x, strict=True)}
    carry = {f"h{gate}": {"kernel": w, "bias": c} for gate, w, c in zip("ifgo", w_h, b, strict=True)}
    return inputs | carry


FLAX = {
    "SimpleCell": ("rnn", flax_simple),
    "OptimizedLSTMCell": ("lstm", flax_optimized_lstm),
    "LSTMCell": ("lstm", flax_lstm),
    "GRUCell": ("gru", flax_simple),
}


@pytest.mark.parametrize(("dtype", "padded_and_reversed"), [("float32", False), ("float64", True)], indirect=["dtype"])
@pytest.mark.parametrize("name", FLAX)
def test_flax(name, dtype, padded_and_reversed):
    cell, to_flax = CELLS[FLAX[name][0]], FLAX[name][1]
    weights, xs = draw(cell, dtype)
    # Flax's GRU has no bias inside the reset: it is 0, and has no gradient to compare.
    fixed = {"b_n": jnp.zeros_like(weights.pop("b_n"))} if name == "GRUCell" else {}
    graphdef, state = nnx.split(getattr(nnx, name)(D, H, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0)))
    options = {"seq_lengths": jnp.asarray(LENGTHS), "reverse": True, "keep_order": True} if padded_and_reversed else {}
    mask = PADDED if padded_and_reversed else None

    def theirs(weights, xs):
        layer = nnx.merge(graphdef, state, copy=True)
        for dense, values in to_flax(weights).items():
            for key, value in values.items():
                getattr(getattr(layer, dense), key)[...] = value
        with relaxed():
            carry, ys = nnx.RNN(layer)(xs, return_carry=True, **options)
        if mask is not None:  # Flax leaves what it computed from the padding in the outputs
            ys = jnp.where(mask[..., None], ys, 0)
        return ys, list(reversed(carry)) if isinstance(carry, tuple) else [carry]

    run = ours(cell, mask, reverse=padded_and_reversed)
    agree(results(lambda w, xs: run(w | fixed, xs), weights, xs), results(theirs, weights, xs), dtype)


# Keras, in float32: on JAX it rounds float64 to that (`BIT64_TO_BIT32_DTYPE`)


def keras_weights(cell, p):
    """Kernel, recurrent kernel and bias of a Keras layer. Its GRU has the update gate before the reset gate."""
    if cell in ("rnn", "lstm", "conv_lstm"):
        return [p["w_x"], p["w_h"], p["b"]]

    def swap(w):
        r, z, n = jnp.split(w, 3, axis=-1)
        return jnp.concatenate([z, r, n], axis=-1)

    bias = swap(p["b"])
    if cell == "gru":
        bias = jnp.stack([bias, jnp.concatenate([jnp.zeros(2 * H, bias.dtype), p["b_n"]])])
    return [swap(p["w_x"]), swap(p["w_h"]), bias]


def keras_layer(keras, cell, **options):
    options |= {"kernel_initializer": "zeros", "recurrent_initializer": "zeros"}  # the weights are given anyway
    if cell == "rnn":
        return keras.layers.SimpleRNN(H, **options)
    if cell == "lstm":
        return keras.layers.LSTM(H, **options)
    return keras.layers.GRU(H, reset_after=cell == "gru", **options)


def keras_run(layer, names, mask, space=()):
    with relaxed():
        layer.build((B, T, *space, D))
    fixed = [v.value for v in layer.non_trainable_variables]

    def run(weights, xs):
        weights = weights if isinstance(weights, tuple) else (weights,)
        values = [w for name, p in zip(names, weights, strict=True) for w in keras_weights(name, p)]
        with relaxed():
            out, _ = layer.stateless_call(values, fixed, xs, mask=None if mask is None else jnp.asarray(mask))
        return (out[0], list(out[1:])) if isinstance(out, list | tuple) else out

    return run


FULL = {"return_sequences": True, "return_state": True, "zero_output_for_mask": True}


MASKS = pytest.mark.parametrize("mask", [None, PADDED, HOLES], ids=["full", "padded", "holes"])


@pytest.mark.parametrize("mask", [None, HOLES], ids=["full", "holes"])
@pytest.mark.parametrize("cell", CELLS)
def test_keras(keras, cell, mask):
    weights, xs = draw(CELLS[cell], "float32")
    theirs = keras_run(keras_layer(keras, cell, **FULL), [cell], mask)
    agree(results(ours(CELLS[cell], mask), weights, xs), results(theirs, weights, xs), "float32")


@pytest.mark.parametrize(("space", "kernel"), [((6,), (4,)), ((4, 5), (2, 3))])
def test_keras_convolution(keras, space, kernel):
    cell = cells.conv_lstm(H, space, kernel)
    weights, xs = draw(cell, "float32")
    make = keras.layers.ConvLSTM1D if len(space) == 1 else keras.layers.ConvLSTM2D
    options = {"padding": "same", "recurrent_activation": "sigmoid", "return_sequences": True, "return_state": True}
    theirs = keras_run(make(H, kernel, recurrent_initializer="zeros", **options), ["conv_lstm"], None, space)
    agree(results(ours(cell), weights, xs), results(theirs, weights, xs), "float32")


@MASKS
def test_keras_bidirectional(keras, mask):
    (forward, xs), (backward, _) = draw(CELLS["lstm"], "float32", 0), draw(CELLS["gru"], "float32", 1)
    weights = (forward, backward)
    layer = keras.layers.Bidirectional(
        keras_layer(keras, "lstm", **FULL),
        backward_layer=keras_layer(keras, "gru", go_backwards=True, **FULL),
    )
    theirs = keras_run(layer, ["lstm", "gru"], mask)
    agree(results(ours([CELLS["lstm"], CELLS["gru"]], mask), weights, xs), results(theirs, weights, xs), "float32")


@MASKS
def test_keras_last_outputs(keras, mask):
    rnn = seqjax.nnx.Bidirectional(CELLS["lstm"], CELLS["gru"], D, rngs=nnx.Rngs(0), return_sequences=False)
    xs = jax.random.normal(jax.random.key(1), (B, T, D))
    layer = keras.layers.Bidirectional(
        keras_layer(keras, "lstm"), backward_layer=keras_layer(keras, "gru", go_backwards=True)
    )
    theirs = keras_run(layer, ["lstm", "gru"], mask)
    agree(rnn(xs, mask=mask), theirs((rnn.forward.weights, rnn.backward.weights), xs), "float32")


# PyTorch


def torch_weights(cell, p):
    """weight_ih, weight_hh, bias_ih, bias_hh of a PyTorch layer."""
    bias_hh = jnp.zeros_like(p["b"])
    if cell == "gru":
        bias_hh = jnp.concatenate([bias_hh[: 2 * H], p["b_n"]])
    return [p["w_x"].T, p["w_h"].T, p["b"], bias_hh]


def torch_results(torch, cell, weights, xs, dtype, packed):
    """As `results`, through PyTorch's own autograd; the gradients are brought back to the layout of this library."""
    both = isinstance(weights, tuple)
    kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    layer = kind(D, H, batch_first=True, bidirectional=both, dtype=getattr(torch, dtype))

    def to_torch(weights):
        return [w for p in (weights if both else (weights,)) for w in torch_weights(cell, p)]

    values, pull_back = jax.vjp(to_torch, weights)
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(np.asarray(value)))
    inputs = torch.tensor(np.asarray(xs), requires_grad=True)
    if packed:
        ragged = torch.nn.utils.rnn.pack_padded_sequence(inputs, LENGTHS.tolist(), True, enforce_sorted=False)
        ys, carry = layer(ragged)
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, batch_first=True)
    else:
        ys, carry = layer(inputs)
    states = carry if cell == "lstm" else (carry,)
    ((ys * torch.tensor(cotangent(ys.shape, dtype))).sum() + sum(s.sum() for s in states)).backward()
    grads = pull_back([jnp.asarray(parameter.grad.numpy()) for parameter in layer.parameters()])
    carry = [s[direction].detach().numpy() for direction in range(1 + both) for s in states]
    return (ys.detach().numpy(), carry), (*grads, inputs.grad.numpy())


@pytest.mark.parametrize(
    ("dtype", "packed", "bidirectional"),
    [("float32", False, False), ("float32", True, True), ("float64", True, False), ("float64", False, True)],
    indirect=["dtype"],
)
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_torch(torch, cell, dtype, packed, bidirectional):
    weights, xs = draw(CELLS[cell], dtype)
    run_cell = CELLS[cell]
    if bidirectional:
        weights, run_cell = (weights, draw(CELLS[cell], dtype, 1)[0]), [CELLS[cell]] * 2
    mine = results(ours(run_cell, PADDED if packed else None), weights, xs)
    agree(mine, torch_results(torch, cell, weights, xs, dtype, packed), dtype)
