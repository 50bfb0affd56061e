"""What importers make of a layer, and what they refuse. (That it computes the same: test_third_party.py.)"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agree import relaxed
from flax import linen, nnx

import seqjax
from seqjax import importers
from seqjax.importers import from_flax, from_keras, from_pytorch

B, T, D, H = 3, 7, 4, 5
xs = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=tolerance)


def run(imported, xs, mask=None):
    cell, params = imported
    ys = seqjax.unroll(cell, params, None, jnp.swapaxes(xs, 0, 1), mask=mask, method="scan")[1]
    return jnp.swapaxes(ys, 0, 1)


def test_importing_the_importers_imports_no_other_library():
    code = "import sys, seqjax.importers; print({'flax', 'keras', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# What is made


def shapes(params):
    return jax.tree.map(jnp.shape, params)


def fits(cell, params, in_features=D):
    """Params are those that the cell itself would make."""
    expected = jax.eval_shape(lambda: cell.init(jax.random.key(0), in_features))
    assert shapes(params) == shapes(expected)
    dtypes = (jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (params, expected))
    assert next(dtypes) == next(dtypes)


@pytest.mark.parametrize("kind", [nnx.SimpleCell, nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell])
def test_flax_cells_fit(kind):
    zeros = jax.nn.initializers.zeros
    fits(*from_flax(nnx.RNN(kind(D, H, param_dtype=jnp.bfloat16, recurrent_kernel_init=zeros, rngs=nnx.Rngs(0)))))


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_pytorch_cells_are_their_layers(torch, kind):
    step = getattr(torch.nn, kind)(D, H)
    imported = from_pytorch(step)
    fits(*imported)
    state, ys = None, []
    for t in range(T):
        state = step(torch.tensor(xs[:, t]), state)
        ys.append((state[0] if kind == "LSTMCell" else state).detach().numpy())
    close(run(imported, xs), np.stack(ys, 1))


def test_pytorch_in_bfloat16(torch):
    cell, params = from_pytorch(torch.nn.GRU(D, H, dtype=torch.bfloat16))
    fits(cell, params)
    assert params["w_x"].dtype == jnp.bfloat16


def test_pytorch_layers_in_both_directions_are_a_stack_of_flax_modules(torch):
    layer = torch.nn.LSTM(D, H, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5).eval()
    pairs, params = from_pytorch(layer)
    rnn = seqjax.nnx.Stack(pairs, D, params=params, dropout=0.5, rngs=nnx.Rngs(0))
    rnn.eval()
    close(nnx.jit(lambda rnn, xs: rnn(xs))(rnn, xs), layer(torch.tensor(xs))[0].detach().numpy())


def test_keras_masking(keras):
    model = keras.Sequential(
        [
            keras.layers.Masking(mask_value=-1.0),
            keras.layers.LSTM(H, return_sequences=True, dropout=0.2),
            keras.layers.GRU(3, return_sequences=True, zero_output_for_mask=True),
        ]
    )
    padded = xs.copy()
    padded[0, 4:] = padded[1, 2] = -1.0
    with relaxed():
        expected = model(padded)
    imported = [from_keras(layer) for layer in model.layers[1:]]
    stacked = seqjax.cells.stack(*(cell for cell, _ in imported)), tuple(params for _, params in imported)
    close(run(stacked, padded, mask=jnp.any(padded != -1.0, axis=-1).T), expected)


def test_keras_activations(keras):
    x = jnp.linspace(-3, 3, 31)
    for name, function in importers._KERAS_ACTIVATIONS.items():
        with relaxed():
            close(function(x), keras.activations.get(name)(x), 1e-6)


def test_the_library_of_a_layer_may_change(keras, torch):
    """PyTorch and Keras agree through this library."""
    theirs = torch.nn.LSTM(D, H, batch_first=True)
    _, params = from_pytorch(theirs)
    layer = keras.layers.LSTM(H, return_sequences=True)
    with relaxed():
        layer.build((B, T, D))
        layer.set_weights([np.asarray(params[name]) for name in ("w_x", "w_h", "b")])
        close(layer(xs), theirs(torch.tensor(xs))[0].detach().numpy())
    cell, params = from_keras(layer)
    close(
        seqjax.nnx.Recurrent(cell, D, params=params, rngs=nnx.Rngs(0))(jnp.asarray(xs)),
        theirs(torch.tensor(xs))[0].detach().numpy(),
    )


def test_training_goes_on(torch):
    cell, params = from_pytorch(torch.nn.GRU(D, H, num_layers=2))

    def loss(params):
        return jnp.mean((run((cell, params), xs) - 0.5) ** 2)

    @jax.jit
    def before_and_after(params):
        value, grads = jax.value_and_grad(loss)(params)
        return value, loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))

    before, after = before_and_after(params)
    assert after < before


# What is refused


class MyLSTM(nnx.LSTMCell):
    pass


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: MyLSTM(D, H, rngs=nnx.Rngs(0)), r"no importer for test_importers\.MyLSTM, expected one of SimpleCell"),
        (lambda: nnx.Linear(D, H, rngs=nnx.Rngs(0)), r"no importer for flax\.nnx\.nn\.linear\.Linear"),
        (lambda: linen.LSTMCell(H), r"no importer for flax\.linen\.recurrent\.LSTMCell, .* of flax\.nnx"),
    ],
)
def test_other_modules_are_refused(module, message):
    with pytest.raises(TypeError, match=message):
        from_flax(module())


def test_what_flax_computes_otherwise_is_refused():
    with pytest.raises(ValueError, match="gate_fn=hard_sigmoid of LSTMCell has no counterpart, only sigmoid"):
        from_flax(nnx.LSTMCell(D, H, gate_fn=jax.nn.hard_sigmoid, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="activation_fn=relu of GRUCell has no counterpart, only tanh"):
        from_flax(nnx.RNN(nnx.GRUCell(D, H, activation_fn=jax.nn.relu, rngs=nnx.Rngs(0))))
    both = [nnx.RNN(nnx.GRUCell(D, H, rngs=nnx.Rngs(0))) for _ in range(2)]
    with pytest.raises(ValueError, match="merge_fn=add of Bidirectional"):
        from_flax(nnx.Bidirectional(*both, merge_fn=jnp.add))


def test_what_keras_computes_otherwise_is_refused(keras):
    def built(layer):
        with relaxed():
            layer.build((B, T, D))
        return layer

    with pytest.raises(ValueError, match="LSTMCell without weights: call or build the layer first"):
        from_keras(keras.layers.LSTM(H))
    with pytest.raises(ValueError, match="recurrent_activation=hard_sigmoid of LSTMCell has no counterpart"):
        from_keras(built(keras.layers.LSTM(H, recurrent_activation="hard_sigmoid")))
    with pytest.raises(ValueError, match="activation=relu of GRUCell has no counterpart, only tanh"):
        from_keras(built(keras.layers.GRU(H, activation="relu")))
    with pytest.raises(ValueError, match="activation=gelu of SimpleRNNCell has no counterpart, only elu, linear"):
        from_keras(built(keras.layers.SimpleRNN(H, activation="gelu")))
    with pytest.raises(ValueError, match="activation=tanh of SimpleRNNCell"):
        from_keras(built(keras.layers.SimpleRNN(H, activation=jnp.tanh)))
    with pytest.raises(ValueError, match="merge_mode='sum' of Bidirectional has no counterpart, only concat"):
        from_keras(keras.layers.Bidirectional(keras.layers.LSTM(H), merge_mode="sum"))
    with pytest.raises(ValueError, match="go_backwards=True of LSTM has no counterpart, only False"):
        from_keras(
            keras.layers.Bidirectional(
                keras.layers.LSTM(H, go_backwards=True), backward_layer=keras.layers.LSTM(H, go_backwards=False)
            )
        )
    with pytest.raises(TypeError, match=r"no importer for .*Dense, expected one of SimpleRNN, LSTM"):
        from_keras(keras.layers.Dense(H))


def test_what_pytorch_has_otherwise_is_refused(torch):
    with pytest.raises(TypeError, match=r"no importer for torch\.nn\.modules\.linear\.Linear"):
        from_pytorch(torch.nn.Linear(D, H))
    with pytest.raises(ValueError, match=r"the weights are float64: set jax\.config\.update"):
        from_pytorch(torch.nn.LSTM(D, H, dtype=torch.float64))
    with jax.enable_x64(True):
        assert from_pytorch(torch.nn.LSTM(D, H, dtype=torch.float64))[1]["b"].dtype == jnp.float64
