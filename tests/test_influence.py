"""Influence balancing: what the gradient is in closed form, and where a truncation turns it around."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import influence
from experiments.harness.experiment import define
from experiments.shared import estimators
from seqjax import unroll
from seqjax.train import Run
from tests.test_experiments import drawn, run


def trained(tmp_path, method, *flags):
    return run("influence", tmp_path / method, f"--method={method}", *flags)


def at_rest(theta):
    """The chain after many steps with one theta, by NumPy."""
    s = np.zeros(23)
    for _ in range(2000):
        s = 0.5 * s + 0.5 * np.append(s[1:], 0) + theta * np.array([1.0] * 10 + [-1.0] * 13)
    return s


def test_the_chain_comes_to_rest_at_minus_six_theta():
    assert at_rest(0.5)[0] == pytest.approx(-3)
    cell = influence.chain()
    carry = jnp.asarray(at_rest(0.5)[None], jnp.float32)
    after, ys = unroll(cell, {"theta": jnp.float32(0.5)}, carry, jnp.zeros((1, 1, 1)))
    np.testing.assert_allclose(after, carry, rtol=1e-5)
    assert ys.item() == pytest.approx(-3)


def gradient(method, steps=400):
    """The last gradient of an estimator over a run with fixed theta."""
    name, k = influence.METHODS[method]
    cell = influence.chain()
    params = {"theta": jnp.float32(0.5)}
    estimator = estimators.GRADIENTS[name](cell, influence.loss, k, k, jax.random.key(0), jax.random.key(0))
    xs, targets = jnp.zeros((k, 1, 1)), jnp.ones((k, 1))

    def chunk(state, _):
        _, grads, state = estimator.update(params, state, xs, targets)
        return state, grads["theta"]

    state = estimator.init(params, cell.initial_carry(params, (1,)), xs)
    return jax.jit(lambda state: jax.lax.scan(chunk, state, length=steps // k)[1][-1])(state).item()


def test_a_truncated_gradient_has_the_wrong_sign():
    exact = (-3 - 1) * -6  # (s - 1) ds/dtheta, at rest
    assert gradient("rtrl") == pytest.approx(exact, rel=1e-4)
    assert gradient("bptt_1") == pytest.approx(-3 - 1)  # its own step alone
    assert gradient("bptt_10") < 0
    # Of 100 steps, the early ones outweigh the others: the mean still points the wrong way.
    assert gradient("bptt_100") < 0


def test_one_finds_the_minimum_and_the_other_leaves_it(tmp_path):
    """Two training steps, 200 time steps, each."""
    found = {method: trained(tmp_path, method) for method in ("bptt_10", "rtrl")}
    assert found["rtrl"].result()["test_theta"] < influence.START < found["bptt_10"].result()["test_theta"]
    [section] = drawn(influence, list(found.values()))
    assert [row[0] for row in section.table] == ["method", "bptt_10", "rtrl"]
    assert isinstance(Run.read(found["rtrl"].directory).result()["validation_loss"], float)


def test_every_method_divides_a_training_step():
    assert all(influence.LENGTH % k == 0 for _, k in influence.METHODS.values())
    config = define(influence).parse({"method": "bptt_100"})
    program = influence.build(config).program
    state = jax.eval_shape(program.init, define(influence).hparams(config))
    after, metrics = jax.eval_shape(program.update, define(influence).hparams(config), (), state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()
