"""Every method on 2 and 8 virtual devices against one: under shard_map, sharded inputs, explicit meshes, pmap."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import seqjax
from seqjax import Const, cells, normalization, regularizers, solvers, wrappers
from tests.agree import close, compiled, methods_of

TIME, BATCH, FEATURES = 5, 16, 4
CELLS = {
    "lstm": cells.lstm(5),
    "gru_reset_before": cells.gru_reset_before(5),
    "lru": cells.lru(6),
    "mlstm": cells.mlstm(2, 2, 2),
    "delta_net": cells.delta_net(2, 2, 2),
    "stack": cells.stack(cells.min_gru(5), cells.gru(4)),
    "dropout": regularizers.recurrent_dropout(cells.lstm(5), 0.5)[0],
}
# Cells with a matrix take as long to compile as all the rest.
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in ("mlstm", "delta_net"))) for name in CELLS]
BY_BATCH = P(None, "data")


def methods(cell):
    found = methods_of(cell) | {"scan": "scan", "auto": "auto"}
    found["slots"] = partial(solvers.checkpointed, slots=2, chunk=1)
    found["newton"] = "newton"
    # Kernels are not interpreted under shard_map: JAX's interpreter does not know which axes a value varies over.
    found.pop("persistent", None)
    return found


def mesh(count, kind=AxisType.Auto):
    return jax.make_mesh((count,), ("data",), axis_types=(kind,), devices=jax.devices()[:count])


def problem(name):
    """A loss by every method, summed over the batch, and its arguments: params, inputs, mask, dropout mask."""
    cell = CELLS[name]
    params = cell.init(jax.random.key(0), FEATURES)
    xs = jax.random.normal(jax.random.key(1), (TIME, BATCH, FEATURES))
    mask = seqjax.mask_from_lengths(jnp.arange(BATCH) % (TIME + 1), TIME)
    drop = jnp.where(jax.random.bernoulli(jax.random.key(2), 0.5, (BATCH, 5)), 2.0, 0.0)

    def loss(method, params, xs, mask, drop):
        inputs = (xs, Const(drop)) if name == "dropout" else xs
        carry, ys = seqjax.unroll(cell, params, None, inputs, mask=mask, method=method)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves((carry, ys)))

    return {key: partial(loss, method) for key, method in methods(cell).items()}, (params, xs, mask, drop)


def differentiated(losses):
    """The value and the gradient of every loss, as one function."""

    def run(*args):
        return {key: jax.value_and_grad(loss, (0, 1))(*args) for key, loss in losses.items()}

    return run


@pytest.fixture(scope="module")
def expected():
    """What one device computes by scan, by name of the cell."""

    def run(name):
        losses, args = problem(name)
        return compiled(jax.value_and_grad(losses["scan"], (0, 1)))(*args)

    return functools.cache(run)


def check(got, expected):
    for result in got.values():
        close(jax.device_get(result), jax.device_get(expected), 1e-4)


SPECS = P(), BY_BATCH, BY_BATCH, P("data")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_the_gradient_of_a_shard_map(expected, name, count):
    losses, args = problem(name)

    def sharded(loss):
        reduced = lambda *args: jax.lax.psum(loss(*args), "data")  # noqa: E731
        return jax.shard_map(reduced, mesh=mesh(count), in_specs=SPECS, out_specs=P())

    check(compiled(differentiated({key: sharded(loss) for key, loss in losses.items()}))(*args), expected(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_a_gradient_inside_a_shard_map(expected, name, count):
    losses, args = problem(name)

    def inside(*args):
        found = differentiated(losses)(*args)
        return {key: (jax.lax.psum(value, "data"), gradient) for key, (value, gradient) in found.items()}

    specs = dict.fromkeys(losses, (P(), (P(), BY_BATCH)))
    run = jax.shard_map(inside, mesh=mesh(count), in_specs=SPECS, out_specs=specs)
    check(compiled(run)(*args), expected(name))


@pytest.mark.parametrize("name", ["lstm", "lru", "mlstm"])
def test_a_loss_that_is_not_reduced_is_refused_as_replicated(name):
    losses, args = problem(name)
    for loss in losses.values():
        with pytest.raises(ValueError, match="require replication which can't be statically inferred"):
            jax.eval_shape(jax.shard_map(loss, mesh=mesh(2), in_specs=SPECS, out_specs=P()), *args)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit], ids=str)
def test_sharded_inputs(expected, name, kind):
    losses, (params, xs, mask, drop) = problem(name)
    over = mesh(8, kind)
    with jax.set_mesh(over):
        placed = jax.device_put(xs, BY_BATCH), jax.device_put(mask, BY_BATCH), jax.device_put(drop, P("data"))
        check(compiled(differentiated(losses))(params, *placed), expected(name))


@pytest.mark.parametrize("name", ["lstm", "lru", pytest.param("mlstm", marks=pytest.mark.slow)])
def test_pmap(expected, name):
    losses, (params, xs, mask, drop) = problem(name)

    def cut(leaf, axis):
        return leaf.reshape(*leaf.shape[:axis], 8, -1, *leaf.shape[axis + 1 :])

    run = jax.pmap(differentiated(losses), in_axes=(None, 1, 1, 0), out_axes=dict.fromkeys(losses, (0, (0, 1))))
    got = run(params, cut(xs, 1), cut(mask, 1), cut(drop, 0))

    def joined(result):
        value, (d_params, d_xs) = result
        return value.sum(), (jax.tree.map(lambda leaf: leaf.sum(0), d_params), d_xs.reshape(xs.shape))

    check({key: joined(jax.device_get(result)) for key, result in got.items()}, expected(name))


def tokens(wrap):
    """A loss of a cell that reads tokens."""
    cell = wrap(cells.gru(3), 7)

    def loss(params, xs):
        return jnp.square(seqjax.unroll(cell, params, None, xs)[1]).sum()

    return loss, cell.init(jax.random.key(0), 0), jax.random.randint(jax.random.key(1), (5, 16), 0, 7)


def batch_norm():
    """A loss of what is trained on the statistics of the whole batch."""
    cell, train = normalization.batch_norm(cells.gru(3))

    def loss(params, xs):
        (_, ys), statistics = train(params, None, xs)
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves((ys, statistics)))

    return loss, cell.init(jax.random.key(0), 4), jax.random.normal(jax.random.key(1), (5, 16, 4))


@pytest.mark.parametrize(
    "make",
    [
        partial(tokens, lambda cell, size: wrappers.with_embedding(cell, size, 4)),
        partial(tokens, wrappers.with_one_hot),
        batch_norm,
    ],
    ids=["embedding", "one_hot", "batch_norm"],
)
def test_tokens_and_statistics_on_explicit_axes(make):
    loss, params, xs = make()
    run = compiled(jax.value_and_grad(loss))
    with jax.set_mesh(mesh(8, AxisType.Explicit)):
        got = run(params, jax.device_put(xs, BY_BATCH))
    close(jax.device_get(got), jax.device_get(run(params, xs)), 1e-5)


def test_native_runs_on_every_device_of_a_shard_map_and_leaves_divided_arrays_to_xla():
    losses, (params, xs, mask, drop) = problem("lstm")
    native = losses["auto"]
    manual = jax.shard_map(native, mesh=mesh(2), in_specs=SPECS, out_specs=P(), check_vma=False)
    assert "seqjax_forward" in jax.jit(manual).lower(params, xs, mask, drop).as_text()
    assert "seqjax_forward" in jax.jit(native).lower(params, xs, mask, drop).as_text()
    divided = jax.device_put(xs, NamedSharding(mesh(2), BY_BATCH))
    assert "seqjax_forward" not in jax.jit(native).lower(params, divided, mask, drop).as_text()


def test_time_that_is_sharded_is_refused():
    losses, (params, xs, mask, drop) = problem("lstm")
    over = mesh(5, AxisType.Explicit)
    with jax.set_mesh(over), pytest.raises(ValueError, match="sharded over time"):
        losses["auto"](params, jax.device_put(xs, P("data")), mask, drop)
