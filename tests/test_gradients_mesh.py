"""Every estimator on 2 virtual devices: under shard_map, on divided arrays, and on explicit meshes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from test_gradients import squared_error
from test_gradients_dtypes import ESTIMATORS

from seqjax import cells, wrappers
from seqjax.diagnostics import gradient_against_lag
from seqjax.gradients import adaptive_truncation
from tests.agree import close, compiled

ALL = ESTIMATORS | {
    "adaptive_truncation": lambda cell, loss, key: adaptive_truncation(cell, loss, 2, (2, 4), 0.9, 2),
}
ON_EXPLICIT_AXES = ("bptt", "truncated_bptt", "adaptive_truncation", "artbp", "persistent_evolution")
BY_BATCH = P(None, "data")


def mesh(kind):
    return jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])


def problem(name):
    """The loss and the gradient of a second chunk as a function of params, carry, inputs and targets; and those."""
    cell = wrappers.with_head((cells.min_gru if name == "diagonal_rtrl" else cells.gru)(3), 2)
    params = cell.init(jax.random.key(0), 4)
    xs = jax.random.normal(jax.random.key(1), (4, 4, 4))
    targets = jax.random.normal(jax.random.key(2), (4, 4, 2))

    def run(params, carry, xs, targets):
        estimator = ALL[name](cell, squared_error, jax.random.key(3))
        state = estimator.init(params, carry, xs[:2])
        _, _, state = estimator.update(params, state, xs[:2], targets[:2])
        return estimator.update(params, state, xs[2:], targets[2:])[:2]

    return run, (params, cell.initial_carry(params, (4,)), xs, targets)


@pytest.mark.parametrize("name", ALL)
def test_the_mean_over_shards_is_that_of_what_each_computes_alone(name):
    run, (params, carry, xs, targets) = problem(name)

    def mean(*args):
        return jax.lax.pmean(run(*args), "data")

    specs = P(), P("data"), BY_BATCH, BY_BATCH
    sharded = jax.shard_map(mean, mesh=mesh(AxisType.Auto), in_specs=specs, out_specs=P())
    got = compiled(sharded)(params, carry, xs, targets)
    alone = compiled(run)
    halves = [
        alone(params, jax.tree.map(lambda leaf, part=part: leaf[part], carry), xs[:, part], targets[:, part])
        for part in (slice(2), slice(2, None))
    ]
    close(got, jax.tree.map(lambda a, b: (a + b) / 2, *halves), 1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit], ids=str)
def test_divided_arrays(name, kind):
    run, (params, carry, xs, targets) = problem(name)
    with jax.set_mesh(mesh(kind)):
        placed = jax.device_put(carry, P("data")), jax.device_put(xs, BY_BATCH), jax.device_put(targets, BY_BATCH)
        if kind == AxisType.Explicit and name not in ON_EXPLICIT_AXES:
            with pytest.raises(ValueError, match="does not run on explicit axes of a mesh, got float32"):
                compiled(run)(params, *placed)
            return
        got = compiled(run)(params, *placed)
    # Evolution divides differences of losses by its small noise, and their rounding with them.
    tolerance = 2e-5 if name == "persistent_evolution" else 1e-5
    close(jax.device_get(got), jax.device_get(compiled(run)(params, carry, xs, targets)), tolerance)


def test_the_gradient_against_lag_of_a_shard_is_its_own():
    cell = cells.lstm(3)
    params, xs = cell.init(jax.random.key(0), 4), jax.random.normal(jax.random.key(1), (5, 4, 4))

    def measure(params, xs):
        carry = cell.initial_carry(params, (xs.shape[1],))
        return gradient_against_lag(cell, params, carry, xs, lambda ys: jnp.square(ys[-1]).sum())

    sharded = jax.shard_map(measure, mesh=mesh(AxisType.Auto), in_specs=(P(), BY_BATCH), out_specs=P("data"))
    got = compiled(sharded)(params, xs).reshape(2, 5)
    close(got, jnp.stack([compiled(measure)(params, part) for part in (xs[:, :2], xs[:, 2:])]), 1e-6)
