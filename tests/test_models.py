"""The forecasters of the temperature table: parameter counts, what they compute, what they refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from seqjax import cells, regularizers
from seqjax.models import ConvForecaster, DenseForecaster, RecurrentForecaster

B, T, D = 4, 120, 14


@nnx.jit
def forecast(model, xs, rngs=None):
    return model(xs) if rngs is None else model(xs, rngs=rngs)


def recurrent(cell=None, recurrent_dropout=0.0, **options):
    dropped = [partial(regularizers.recurrent_dropout, rate=recurrent_dropout)]
    return RecurrentForecaster(cell or cells.lstm(16), D, regularizers=dropped, rngs=nnx.Rngs(0), **options)


MODELS = {
    "dense": (lambda: DenseForecaster(T, D, rngs=nnx.Rngs(0)), 26_913),
    "conv": (lambda: ConvForecaster(D, rngs=nnx.Rngs(0)), 3_873),
    "lstm": (recurrent, 2_001),
    "lstm with dropout": (lambda: recurrent(cells.lstm(32), recurrent_dropout=0.25, dropout=0.5), 6_049),
    # 3 * (32 * (D + 32) + 32) + 32 a layer, the last 32 being the bias inside the reset
    "two gru": (
        lambda: recurrent(cells.stack(cells.gru(32), cells.gru(32)), recurrent_dropout=0.5, dropout=0.5),
        4_544 + 6_272 + 33,
    ),
    "bidirectional": (lambda: recurrent(backward=cells.lstm(16)), 2 * 1_984 + 33),
}


@pytest.fixture(scope="module")
def xs():
    return jax.random.normal(jax.random.key(0), (B, T, D))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_shape(name, xs):
    build, parameters = MODELS[name]
    model = build()
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters
    ys = forecast(model, xs)
    assert ys.shape == (B,)
    assert ys.dtype == jnp.float32
    assert np.isfinite(ys).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_window_is_forecast_on_its_own(name, xs):
    model = MODELS[name][0]()
    model.eval()
    changed = forecast(model, xs.at[1].add(1.0))
    np.testing.assert_allclose(changed[2:], forecast(model, xs)[2:], rtol=1e-5, atol=1e-6)
    assert not np.allclose(changed[1], forecast(model, xs)[1])


@pytest.mark.parametrize("name", MODELS)
def test_it_learns(name, xs):
    model = MODELS[name][0]()
    model.eval()
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2, momentum=0.9), wrt=nnx.Param)
    targets = jnp.arange(4.0) / 4

    @nnx.jit
    def train(model, optimizer):
        value, grads = nnx.value_and_grad(lambda model: jnp.mean((model(xs) - targets) ** 2))(model)
        optimizer.update(model, grads)
        return value

    values = [float(train(model, optimizer)) for _ in range(30)]
    assert values[-1] < 0.5 * values[0]


def test_dense_is_its_formula(xs):
    model = DenseForecaster(T, D, rngs=nnx.Rngs(0))
    k1, b1, k2, b2 = (
        np.asarray(p[...]) for p in (model.hidden.kernel, model.hidden.bias, model.head.kernel, model.head.bias)
    )
    expected = np.maximum(np.asarray(xs).reshape(B, -1) @ k1 + b1, 0) @ k2 + b2
    np.testing.assert_allclose(model(xs), expected[:, 0], rtol=1e-4, atol=1e-5)


def test_conv_is_its_loop(xs):
    model = ConvForecaster(D, rngs=nnx.Rngs(0))

    def conv(x, layer):
        kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
        width = kernel.shape[0]
        ys = [np.tensordot(x[t : t + width], kernel, 2) + bias for t in range(len(x) - width + 1)]
        return np.maximum(np.stack(ys), 0)

    def pool(x):
        return np.stack([x[t : t + 2].max(0) for t in range(0, len(x) - 1, 2)])

    def forecast(x):
        x = conv(pool(conv(pool(conv(x, model.conv1)), model.conv2)), model.conv3)
        return (x.mean(0) @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...]))[0]

    np.testing.assert_allclose(model(xs), [forecast(x) for x in np.asarray(xs)], rtol=1e-4, atol=1e-5)


def test_conv_needs_enough_steps(xs):
    model = ConvForecaster(D, rngs=nnx.Rngs(0))
    assert np.isfinite(model(xs[:, : model.shortest])).all()
    with pytest.raises(ValueError, match=r"inputs have shape \(4, 68, 14\), expected \[B, 69 or more, 14\]"):
        model(xs[:, : model.shortest - 1])


def test_recurrent_is_the_last_output_through_the_head(xs):
    model = recurrent()
    carry, _ = model.rnn(xs, return_carry=True)
    expected = np.asarray(carry.h) @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...])
    np.testing.assert_allclose(model(xs), expected[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("backward", "rates"), [(None, {"recurrent_dropout": 0.5}), (cells.gru(3), {"dropout": 0.5})])
def test_dropout_only_in_training(xs, rates, backward):
    short, cell = xs[:, :8], cells.gru(3)
    model = recurrent(cell, backward=backward, **rates)
    assert not np.array_equal(forecast(model, short), forecast(model, short))
    given = forecast(model, short, nnx.Rngs(1))
    np.testing.assert_array_equal(forecast(model, short, nnx.Rngs(1)), given)
    assert not np.array_equal(forecast(model, short, nnx.Rngs(2)), given)
    model.eval()
    np.testing.assert_array_equal(forecast(model, short), forecast(recurrent(cell, backward=backward), short))


def test_a_sweep_over_rates_is_a_vmap(xs):
    short, cell = xs[:, :8], cells.gru(3)
    rates = jnp.array([0.0, 0.5])

    def build(dropout, recurrent_dropout):
        return recurrent(cell, dropout=dropout, recurrent_dropout=recurrent_dropout)(short)

    run = jax.jit(build, static_argnums=(0, 1))
    single = [run(d, r) for d, r in zip(rates.tolist(), rates[::-1].tolist(), strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(build))(rates, rates[::-1]), single, rtol=1e-5, atol=1e-6)


def test_windows_of_the_wrong_shape(xs):
    with pytest.raises(ValueError, match=r"inputs have shape \(4, 119, 14\), expected \[B, 120, 14\]"):
        DenseForecaster(T, D, rngs=nnx.Rngs(0))(xs[:, 1:])
    with pytest.raises(ValueError, match=r"expected \[B, T, 14\]"):
        recurrent()(xs[..., 1:])
