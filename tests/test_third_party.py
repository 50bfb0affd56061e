"""Layers trained in Flax, Keras (on JAX) and PyTorch give the same outputs, carries and gradients once imported.

Gradients are with respect to the peer's own weights: on JAX the importer is differentiated too; of PyTorch they are
imported as if they were weights.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from seqjax.importers import from_flax, from_keras, from_pytorch
from tests.agree import compiled, relaxed

B, T, D, H = 3, 7, 4, 5
LENGTHS = np.array([7, 2, 5])
PADDED = np.arange(T)[None] < LENGTHS[:, None]
HOLES = np.array([[1, 0, 1, 1, 0, 0, 1], [0, 1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0]], bool)
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


@pytest.fixture
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


# The two sides


def draw(shapes, dtype, seed=0):
    """Normal arrays of these shapes: biases are drawn too, a gate in the wrong place would not go unnoticed."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, dtype), shapes)


def inputs(dtype):
    return draw(jax.ShapeDtypeStruct((B, T, D), dtype), dtype, seed=1)


def ours(imported, xs, mask=None, reverse=False):
    """`(ys [B, T, O], leaves of the carry)`; two cells are run in both directions."""
    mask = None if mask is None else jnp.asarray(mask.T)
    xs = jnp.swapaxes(xs, 0, 1)
    cell, params = imported
    if isinstance(cell, seqjax.Cell):
        carry, ys = seqjax.unroll(cell, params, None, xs, mask=mask, reverse=reverse, method="scan")
    else:
        carry, ys = seqjax.bidirectional(cell, params, None, xs, mask=mask, method="scan")
    return jnp.swapaxes(ys, 0, 1), jax.tree.leaves(carry)


def cotangent(shape, dtype):
    return np.random.default_rng(9).normal(size=shape).astype(dtype)


def differentiated(run):
    """`(weights, xs) -> (outputs and carry, gradients of a scalar made of both for weights and inputs)`, compiled."""

    def scalar(weights, xs):
        ys, carry = run(weights, xs)
        loss = jnp.sum(ys * cotangent(ys.shape, ys.dtype)) + sum(jnp.sum(leaf) for leaf in carry)
        return loss, (ys, carry)

    def results(weights, xs):
        (_, out), grads = jax.value_and_grad(scalar, (0, 1), has_aux=True)(weights, xs)
        return out, grads

    return compiled(results)


def compare(run, theirs, weights, xs, dtype):
    """Train in the peer, import, and hold both against each other."""
    theirs = differentiated(theirs)
    for _ in range(3):
        weights = jax.tree.map(lambda w, g: w - 0.1 * jnp.tanh(g), weights, theirs(weights, xs)[1][0])
    agree(differentiated(run)(weights, xs), theirs(weights, xs), dtype)


def agree(a, b, dtype):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype == dtype
        assert x.shape == y.shape
        error = np.abs(x - y).max() / np.abs(y).max()
        assert error < TOLERANCE[dtype], f"{jax.tree_util.keystr(path)}: relative error {error}"


# Flax

FLAX = {
    "SimpleCell": {},
    "residual SimpleCell": {"residual": True, "activation_fn": jax.nn.softplus},
    "OptimizedLSTMCell": {},
    "LSTMCell": {},
    "GRUCell": {},
}


def flax_cell(name, dtype):
    return getattr(nnx, name.split()[-1])(D, H, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0), **FLAX[name])


def flax_carry(carry):
    """Flax has the cell state before the output."""
    return list(reversed(carry)) if isinstance(carry, tuple) else [carry]


@pytest.mark.parametrize(
    ("name", "dtype", "padded_and_reversed"),
    [*((name, "float64", True) for name in FLAX), ("LSTMCell", "float32", False), ("GRUCell", "float32", False)],
    indirect=["dtype"],
)
def test_flax(name, dtype, padded_and_reversed):
    graphdef, state = nnx.split(nnx.RNN(flax_cell(name, dtype)), nnx.Param, ...)[:2]
    options = {"seq_lengths": jnp.asarray(LENGTHS), "reverse": True, "keep_order": True} if padded_and_reversed else {}
    mask = PADDED if padded_and_reversed else None
    rest = nnx.split(nnx.RNN(flax_cell(name, dtype)), nnx.Param, ...)[2]

    def theirs(weights, xs):
        with relaxed():
            carry, ys = nnx.merge(graphdef, weights, rest, copy=True)(xs, return_carry=True, **options)
        if mask is not None:  # Flax leaves what it computed from the padding in the outputs
            ys = jnp.where(mask[..., None], ys, 0)
        return ys, flax_carry(carry)

    def run(weights, xs):
        return ours(from_flax(nnx.merge(graphdef, weights, rest, copy=True)), xs, mask, reverse=padded_and_reversed)

    compare(run, theirs, draw(state, dtype), inputs(dtype), dtype)


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_flax_bidirectional(dtype):
    module = nnx.Bidirectional(nnx.RNN(flax_cell("OptimizedLSTMCell", dtype)), nnx.RNN(flax_cell("GRUCell", dtype)))
    graphdef, state, rest = nnx.split(module, nnx.Param, ...)

    def theirs(weights, xs):
        with relaxed():
            carry, ys = nnx.merge(graphdef, weights, rest, copy=True)(xs, return_carry=True)
        return ys, [leaf for part in carry for leaf in flax_carry(part)]

    def run(weights, xs):
        return ours(from_flax(nnx.merge(graphdef, weights, rest, copy=True)), xs)

    compare(run, theirs, draw(state, dtype), inputs(dtype), dtype)


# Keras, in float32: on JAX it rounds float64 to that (`BIT64_TO_BIT32_DTYPE`)

FULL = {"return_sequences": True, "return_state": True, "zero_output_for_mask": True}
KERAS = {
    "SimpleRNN": {},
    "SimpleRNN of relu": {"activation": "relu", "use_bias": False},
    "LSTM": {},
    "LSTM without bias": {"use_bias": False},
    "GRU": {},
    "GRU without bias": {"use_bias": False},
    "GRU, reset before": {"reset_after": False},
}


def keras_layer(keras, name, **options):
    options |= {"kernel_initializer": "zeros", "recurrent_initializer": "zeros"}  # the weights are drawn anyway
    return getattr(keras.layers, name.replace(",", " ").split()[0])(H, **KERAS[name] | options)


def compare_with_keras(keras, layer, mask=None, run=ours):
    with relaxed():
        layer.build((B, T, D))
    fixed = [v.value for v in layer.non_trainable_variables]

    def theirs(weights, xs):
        with relaxed():
            out, _ = layer.stateless_call(weights, fixed, xs, mask=None if mask is None else jnp.asarray(mask))
        return (out[0], jax.tree.leaves(out[1:])) if isinstance(out, list | tuple) else (out, [])

    def imported(weights, xs):
        with keras.StatelessScope(state_mapping=zip(layer.trainable_variables, weights, strict=True)):
            return run(from_keras(layer), xs, mask)

    weights = draw([v.value for v in layer.trainable_variables], "float32")
    compare(imported, theirs, weights, inputs("float32"), "float32")


MASKS = {"full": None, "padded": PADDED, "holes": HOLES}


@pytest.mark.parametrize("name", KERAS)
def test_keras(keras, name):
    compare_with_keras(keras, keras_layer(keras, name, **FULL), HOLES if name in ("LSTM", "GRU") else None)


@pytest.mark.parametrize(
    ("name", "order"),
    # Keras has the gates of a GRU in the order update, reset, candidate.
    [("SimpleRNN", [0]), ("LSTM", [0, 1, 2, 3]), ("GRU", [1, 0, 2]), ("GRU, reset before", [1, 0, 2])],
)
def test_keras_recurrent_dropout(keras, name, order):
    """The masks that Keras draws, one a gate and sequence, and ours are the same noise of the same cell."""
    layer = keras_layer(keras, name, **FULL, recurrent_dropout=0.4, seed=1)
    with relaxed():
        layer.build((B, T, D))
        drawn = layer.cell._create_dropout_mask(jnp.ones((B, H)), 0.4)
    masks = drawn if isinstance(drawn, list) else [drawn]
    assert len(masks) == len(order)
    fixed = [v.value for v in layer.non_trainable_variables]

    def theirs(weights, xs):
        layer.cell._recurrent_dropout_mask = drawn
        with relaxed():
            out, _ = layer.stateless_call(weights, fixed, xs, training=True)
        return out[0], jax.tree.leaves(out[1:])

    def imported(weights, xs):
        with keras.StatelessScope(state_mapping=zip(layer.trainable_variables, weights, strict=True)):
            cell, params = from_keras(layer)
        noisy, sample = seqjax.regularizers.recurrent_dropout(cell, 0.4, gates=len(order))
        like_ours = sample(jax.random.key(0), cell.initial_carry(params, (B,)), jnp.swapaxes(xs, 0, 1))
        noise = seqjax.Const(jnp.concatenate([jnp.asarray(masks[i]) for i in order], axis=-1))
        assert noise.value.shape == like_ours.value.shape
        carry, ys = seqjax.unroll(noisy, params, None, (jnp.swapaxes(xs, 0, 1), noise))
        return jnp.swapaxes(ys, 0, 1), jax.tree.leaves(carry)

    weights = draw([v.value for v in layer.trainable_variables], "float32")
    compare(imported, theirs, weights, inputs("float32"), "float32")


def test_keras_stacked_cells(keras):
    parts = [keras.layers.LSTMCell(H), keras.layers.SimpleRNNCell(3)]
    compare_with_keras(keras, keras.layers.RNN(parts, **FULL), HOLES)


@pytest.mark.parametrize("mask", ["full", "holes"])
def test_keras_bidirectional(keras, mask):
    layer = keras.layers.Bidirectional(
        keras_layer(keras, "LSTM", **FULL), backward_layer=keras_layer(keras, "GRU", go_backwards=True, **FULL)
    )
    compare_with_keras(keras, layer, MASKS[mask])


@pytest.mark.parametrize("mask", ["full", "padded"])
def test_keras_last_outputs(keras, mask):
    layer = keras.layers.Bidirectional(
        keras_layer(keras, "LSTM"), backward_layer=keras_layer(keras, "GRU", go_backwards=True)
    )

    def last(imported, xs, mask):
        pair, params = imported
        rnn = seqjax.nnx.Bidirectional(*pair, D, params=params, return_sequences=False, rngs=nnx.Rngs(0))
        return rnn(xs, mask=mask), []

    compare_with_keras(keras, layer, MASKS[mask], last)


@pytest.mark.parametrize(("space", "kernel"), [((6,), (4,)), ((4, 5), (2, 3))])
def test_keras_convolution(keras, space, kernel):
    cell = seqjax.cells.conv_lstm(H, space, kernel)
    make = keras.layers.ConvLSTM1D if len(space) == 1 else keras.layers.ConvLSTM2D
    options = {"padding": "same", "recurrent_activation": "sigmoid", "return_sequences": True, "return_state": True}
    layer = make(H, kernel, recurrent_initializer="zeros", **options)
    with relaxed():
        layer.build((B, T, *space, D))

    def theirs(weights, xs):
        with relaxed():
            out, _ = layer.stateless_call(weights, [v.value for v in layer.non_trainable_variables], xs)
        return out[0], jax.tree.leaves(out[1:])

    def same_weights(weights, xs):
        return ours((cell, dict(zip(("w_x", "w_h", "b"), weights, strict=True))), xs)

    weights = draw([v.value for v in layer.trainable_variables], "float32")
    xs = draw(jax.ShapeDtypeStruct((B, T, *space, D), "float32"), "float32", seed=1)
    compare(same_weights, theirs, weights, xs, "float32")


# PyTorch

TORCH = {
    "RNN": {},
    "RNN of relu": {"nonlinearity": "relu", "bias": False},
    "LSTM": {},
    "LSTM with projection": {"proj_size": 3},
    "GRU": {},
    "GRU without bias": {"bias": False},
}


def torch_layer(torch, name, dtype, **options):
    torch.manual_seed(1)
    kind = getattr(torch.nn, name.split()[0])
    return kind(D, H, batch_first=True, dtype=getattr(torch, dtype), **TORCH[name] | options)


def torch_results(torch, layer, xs, packed):
    """As `differentiated`, through PyTorch's own autograd; the gradients are those of the imported weights."""
    inputs = torch.tensor(np.asarray(xs), requires_grad=True)
    if packed:
        ragged = torch.nn.utils.rnn.pack_padded_sequence(inputs, LENGTHS.tolist(), True, enforce_sorted=False)
        ys, carry = layer(ragged)
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, batch_first=True)
    else:
        ys, carry = layer(inputs)
    states = carry if isinstance(carry, tuple) else (carry,)
    ys_bar = torch.tensor(cotangent(ys.shape, str(xs.dtype)))
    layer.zero_grad()
    ((ys * ys_bar).sum() + sum(s.sum() for s in states)).backward()
    grads = copy.deepcopy(layer)
    for name, weight in grads.named_parameters():
        weight.data = dict(layer.named_parameters())[name].grad.clone()
        # The same numbers as for the other bias, but for the candidate of a GRU.
        if name.startswith("bias_hh"):
            weight.data[: 2 * H if isinstance(layer, torch.nn.GRU) else None] = 0
    carry = [s[i].detach().numpy() for i in range(len(states[0])) for s in states]
    return (ys.detach().numpy(), carry), (from_pytorch(grads)[1], inputs.grad.numpy())


def without_biases(params):
    return [leaf for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key not in ("b", "b_n")]


def compare_with_torch(torch, layer, dtype, packed):
    xs = inputs(dtype)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        torch_results(torch, layer, xs, packed)
        optimizer.step()
    cell, params = from_pytorch(layer)
    run = differentiated(lambda params, xs: ours((cell, params), xs, PADDED if packed else None))
    (mine, (grads, xs_grad)), (theirs, expected) = run(params, xs), torch_results(torch, layer, xs, packed)
    if not layer.bias:  # the biases of 0 have a gradient here
        grads, expected = without_biases(grads), (without_biases(expected[0]), expected[1])
    agree((mine, (grads, xs_grad)), (theirs, expected), dtype)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    ("dtype", "packed", "options"),
    [
        ("float32", False, {}),
        ("float32", True, {"bidirectional": True}),
        ("float64", True, {"num_layers": 2}),
        ("float64", False, {"bidirectional": True}),
    ],
    indirect=["dtype"],
)
@pytest.mark.parametrize("name", TORCH)
def test_torch(torch, name, dtype, packed, options):
    compare_with_torch(torch, torch_layer(torch, name, dtype, **options), dtype, packed)
