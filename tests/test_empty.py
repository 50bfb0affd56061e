"""A batch of no sequences has outputs of no sequences, and gradients of zero; nothing divides by it."""

import jax
import jax.numpy as jnp
import pytest

from seqjax import bidirectional, cells, gradients, unroll
from seqjax.solvers.native import compiler

CELLS = {
    "lstm": cells.lstm(5),
    "gru_reset_before": cells.gru_reset_before(5),
    "min_gru": cells.min_gru(5),
    "mlstm": cells.mlstm(2, 3, 4),
}
METHODS = {
    "lstm": ("fused", "newton", "native"),
    "gru_reset_before": ("fused", "native"),
    "min_gru": ("associative", "newton"),
    "mlstm": ("chunkwise",),
}
PAIRS = [(name, m) for name, more in METHODS.items() for m in ("auto", "scan", "checkpointed", "rematerialized", *more)]


@pytest.mark.parametrize("batch", [(0,), (3, 0)], ids=str)
@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_a_batch_of_none_by_every_method(name, method, batch):
    if method == "native" and compiler() is None:
        pytest.skip("needs a C++ compiler")
    cell = CELLS[name]
    params = cell.init(jax.random.key(0), 4)

    def loss(params, xs):
        carry, ys = unroll(cell, params, None, xs, method=method)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves((carry, ys))), ys

    xs = jnp.zeros((7, *batch, 4))
    (value, ys), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, xs)
    assert value == 0
    assert ys.shape[:-1] == (7, *batch)
    assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(grads))
    assert grads[1].shape == xs.shape


@pytest.mark.parametrize("method", ["scan", "native"])
def test_inputs_without_features_are_a_bias(method):
    if method == "native" and compiler() is None:
        pytest.skip("needs a C++ compiler")
    cell = cells.lstm(5)
    params = cell.init(jax.random.key(0), 4)
    xs = jnp.zeros((7, 2, 4))

    def run(params, xs):
        return unroll(cell, params, None, xs, method=method)[1].sum()

    expected, full = jax.value_and_grad(run)(params, xs)
    value, grads = jax.value_and_grad(run)({**params, "w_x": params["w_x"][:0]}, xs[..., :0])
    assert jnp.allclose(value, expected, atol=1e-6)
    assert grads["w_x"].shape == (0, 20)
    assert jnp.allclose(grads["w_h"], full["w_h"], atol=1e-5)


@pytest.mark.parametrize("estimator", [gradients.bptt, gradients.rtrl], ids=["bptt", "rtrl"])
def test_an_estimator_of_a_batch_of_none(estimator):
    cell = cells.gru(3)
    params = cell.init(jax.random.key(0), 2)
    one = estimator(cell, lambda ys, targets: jnp.square(ys - targets).sum(-1))
    carry, xs, targets = cell.initial_carry(params, (0,)), jnp.zeros((6, 0, 2)), jnp.zeros((6, 0, 3))
    one.init(params, carry, xs)
    grads = gradients.stream_gradient(one, params, carry, xs, targets, chunk=2)
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_both_directions_of_a_batch_of_none():
    pair = cells.gru(3), cells.lstm(4)
    params = tuple(cell.init(jax.random.key(0), 2) for cell in pair)
    assert bidirectional(pair, params, None, jnp.zeros((4, 0, 2)))[1].shape == (4, 0, 7)


def test_no_lanes():
    cell = cells.gru(3)
    params = cell.init(jax.random.key(0), 2)
    lanes = jax.vmap(jax.grad(lambda xs: unroll(cell, params, None, xs)[1].sum()))(jnp.zeros((0, 4, 2, 2)))
    assert lanes.shape == (0, 4, 2, 2)
