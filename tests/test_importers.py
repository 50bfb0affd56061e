"""What importers make of a layer, and what they refuse. (That it computes the same: test_third_party.py.)"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import seqjax
from seqjax import importers
from seqjax.importers import from_flax, from_keras, from_pytorch
from tests.agree import relaxed

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


# What would change outputs, carries or gradients, and is not imported


def doubled(*_):
    return None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nn, m: nn.utils.weight_norm(m, "weight_hh_l0"), r"a hook of LSTM \(WeightNorm\) is not imported"),
        (lambda nn, m: nn.utils.spectral_norm(m, "weight_ih_l0"), r"a hook of LSTM \(SpectralNorm\) is not imported"),
        (lambda nn, m: m.register_forward_hook(doubled), r"a hook of LSTM \(doubled\) is not imported: remove it"),
        (lambda nn, m: m.register_forward_pre_hook(doubled), r"a hook of LSTM \(doubled\) is not imported"),
        (lambda nn, m: m.register_full_backward_hook(doubled), r"a hook of LSTM \(doubled\) is not imported"),
        (lambda nn, m: m.register_full_backward_pre_hook(doubled), r"a hook of LSTM \(doubled\) is not imported"),
        (lambda nn, m: m.bias_hh_l0.register_hook(doubled), "bias_hh_l0 of LSTM has a hook for its gradient"),
        (
            lambda nn, m: nn.utils.parametrizations.weight_norm(m, "weight_hh_l0"),
            "weight_hh_l0 of ParametrizedLSTM is parametrized, .* call torch.nn.utils.parametrize.remove_param",
        ),
        (lambda nn, m: setattr(m, "forward", doubled), "this LSTM has a method forward of its own"),
        (lambda nn, m: m.train(), r"dropout=0.5 of LSTM is not imported: call module.eval\(\)"),
        (lambda nn, m: m.to("meta"), 'weight_ih_l0 of LSTM is on the device "meta" and has no values'),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_pytorch_adds_to_a_layer_is_refused(torch, change, message):
    layer = torch.nn.LSTM(D, H, num_layers=2, dropout=0.5).eval()
    from_pytorch(layer)
    change(torch.nn, layer)
    with pytest.raises(ValueError, match=message):
        from_pytorch(layer)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_are_those_of_the_layer_once_a_norm_is_removed(torch):
    layer = torch.nn.utils.weight_norm(torch.nn.GRU(D, H, batch_first=True), "weight_hh_l0")
    with torch.no_grad():
        layer.weight_hh_l0_g.mul_(3)  # what the weight follows at the next call only
    torch.nn.utils.remove_weight_norm(layer, "weight_hh_l0")
    close(run(from_pytorch(layer), xs), layer(torch.tensor(xs))[0].detach().numpy())
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.GRU(D, H, batch_first=True), "weight_hh_l0")
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0")
    close(run(from_pytorch(layer), xs), layer(torch.tensor(xs))[0].detach().numpy())


def test_flax_may_compute_in_a_wider_type_than_that_of_its_weights():
    options = {"dtype": jnp.float32, "param_dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
    rnn = nnx.RNN(nnx.GRUCell(D, H, recurrent_kernel_init=jax.nn.initializers.normal(), **options))
    cell, params = from_flax(rnn)
    fits(cell, params)
    assert params["w_x"].dtype == jnp.float32
    with relaxed():
        close(run((cell, params), xs), rnn(jnp.asarray(xs), initial_carry=jnp.zeros((B, H))), 1e-6)


def flax_lstm(change):
    cell = nnx.LSTMCell(D, H, rngs=nnx.Rngs(0))
    change(cell)
    return cell


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            lambda: flax_lstm(lambda cell: setattr(cell, "carry_init", jax.nn.initializers.ones)),
            "carry_init=ones of LSTM",
        ),
        (lambda: nnx.RNN(flax_lstm(doubled), reverse=True), "reverse=True of RNN has no counterpart.*: take the cell"),
        (lambda: nnx.GRUCell(D, H, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), "dtype=bfloat16 of GRUCell with weights of"),
        (lambda: nnx.SimpleCell(D, H, dtype=jnp.float16, rngs=nnx.Rngs(0)), "dtype=float16 of SimpleCell with"),
        (
            lambda: flax_lstm(lambda cell: setattr(cell, "ii", nnx.LoRALinear(D, H, lora_rank=2, rngs=nnx.Rngs(0)))),
            "ii of LSTMCell is a LoRALinear, only Flax's Linear can be imported",
        ),
        (
            lambda: flax_lstm(lambda cell: setattr(cell, "ii", nnx.Linear(D, H, rngs=nnx.Rngs(0)))),
            "ii of LSTMCell has a bias, unlike Flax's own",
        ),
        (
            lambda: flax_lstm(lambda cell: setattr(cell, "hi", nnx.Linear(H, H, use_bias=False, rngs=nnx.Rngs(0)))),
            "hi of LSTMCell has no bias, unlike Flax's own",
        ),
        (
            lambda: flax_lstm(lambda cell: setattr(cell.hi, "dot_general", jnp.dot)),
            "hi.dot_general=dot of Linear has no counterpart",
        ),
    ],
)
def test_what_flax_adds_to_a_cell_is_refused(module, message):
    with pytest.raises(ValueError, match=message):
        from_flax(module())


def test_what_keras_adds_to_a_layer_is_refused(keras):
    def built(layer):
        with relaxed():
            layer.build((B, T, D))
        return layer

    for layer, message in (
        (
            keras.layers.LSTM(H, stateful=True),
            "stateful=True of LSTM has no counterpart.*: set it to False; unroll takes a",
        ),
        (
            keras.layers.GRU(H, go_backwards=True),
            r"go_backwards=True of GRU.*: take the cell \(from_keras\(layer.cell\)",
        ),
        (keras.layers.LSTM(H, dtype="mixed_bfloat16"), "dtype=mixed_bfloat16 of LSTMCell computes in bfloat16 with"),
        (keras.layers.SimpleRNN(H, activation=keras.layers.LeakyReLU()), "activation=.* of SimpleRNNCell has no"),
    ):
        with pytest.raises(ValueError, match=message):
            from_keras(built(layer))
    backwards = built(keras.layers.GRU(H, go_backwards=True, return_sequences=True))
    cell, params = from_keras(backwards.cell)
    ys = seqjax.unroll(cell, params, None, jnp.swapaxes(xs, 0, 1), reverse=True, method="scan")[1]
    with relaxed():
        close(jnp.swapaxes(ys, 0, 1)[:, ::-1], backwards(xs))
