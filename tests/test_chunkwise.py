"""Matrix carries in chunks: what scan gives, whatever the chunk, the mask and the decay."""

from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from seqjax import cells, solvers, unroll, wrappers
from seqjax.hints import Outer, Read, Write, outer_transition, read
from seqjax.solvers import associative, chunkwise, dispatch
from tests.agree import check_methods, close, compiled, equations, values_and_gradients
from tests.cell_list import BARE, D, draw, learned_carry, masked, reset, zoneout

METHOD = chunkwise.chunkwise
MATRICES = ["gated_linear_attention", "delta_net", "mlstm"]


@pytest.fixture(params=[True, False], ids=["sequential", "at_once"])
def device(request, monkeypatch):
    """A CPU, chunk after chunk, or what is done elsewhere."""
    monkeypatch.setattr(associative, "SEQUENTIAL", request.param)
    monkeypatch.setattr(chunkwise, "CACHED", 1)


@pytest.mark.parametrize("name", MATRICES)
def test_chunks_give_what_scan_gives(x64, device, name):
    check_methods(draw(BARE[name], steps=10), {"4": partial(METHOD, chunk=4)})


@pytest.mark.parametrize(
    ("name", "batch"), [("mlstm", (1, 2, 1, 2)), ("gated_linear_attention", ()), ("delta_net", ())]
)
def test_masks_with_holes_and_any_batch_axes(x64, name, batch):
    holes = jax.random.bernoulli(jax.random.key(3), 0.6, (7, *batch))
    check_methods(draw(BARE[name], batch=batch), {"4": partial(METHOD, chunk=4)}, holes.at[0].set(False))


def by_definition(step, h, m):
    """The loop of `Write`, in NumPy, with the carry not stabilized: (h, reads)."""
    q, k, v, decay, erase, log_write = (None if leaf is None else np.asarray(leaf) for leaf in step)
    h, reads = np.asarray(h), []
    h = h if m is None else h * np.exp(np.asarray(m))[..., None]
    for t in range(len(k)):
        h = h if decay is None else np.exp(decay[t])[..., None] * h
        u = v[t] if erase is None else v[t] - np.einsum("nk,nkv->nv", erase[t], h)
        weight = 1 if log_write is None else np.exp(log_write[t])
        h = h + (weight * k[t])[..., None] * u[:, None]
        reads.append(np.einsum("nk,nkv->nv", q[t], h))
    return h, np.stack(reads)


@pytest.mark.parametrize("decays", [None, 1, 3])
@pytest.mark.parametrize("erases", [False, True])
@pytest.mark.parametrize("stabilized", [False, True])
def test_every_kind_of_write_is_its_definition(x64, decays, erases, stabilized):
    """Those too that no cell has: decays and erasures at once, which is the gated delta rule."""
    if stabilized and (erases or decays != 1):
        return  # m is one number a head, and so is the decay
    rng = np.random.default_rng(0)

    def numbers(width):
        return jnp.asarray(rng.normal(size=(6, 2, width)))

    step = Write(
        query=numbers(3),
        key=0.5 * numbers(3),
        value=numbers(2),
        log_decay=-jnp.abs(numbers(decays)) if decays else None,
        erase=0.5 * numbers(3) if erases else None,
        log_write=numbers(1) if stabilized else None,
    )
    outer = Outer(
        write=lambda params, z: z,
        pack=(lambda carry: carry) if stabilized else (lambda carry: (carry, None)),
        unpack=(lambda h, m: (h, m)) if stabilized else (lambda h, m: h),
    )
    cell = cells.delta_net(2, 3, 2)._replace(
        initial_carry=lambda params, batch: outer.unpack(jnp.zeros((*batch, 3, 2)), jnp.zeros((*batch, 1))),
        project=lambda params, x: x,
        transition=outer_transition(outer),
        readout=lambda params, carry, z: read(z.query, outer.pack(carry)[0]),
        outer=outer,
    )
    h, m = jnp.asarray(rng.normal(size=(2, 3, 2))), jnp.asarray(rng.normal(size=(2, 1))) if stabilized else None
    last, reads = by_definition(step, h, m)
    for method in ("scan", partial(METHOD, chunk=4)):
        carry, seen = solvers.solve(method, cell, {}, outer.unpack(h, m), step)
        got, after = outer.pack(carry)
        scale = 1.0 if after is None else jnp.exp(after)[..., None]
        close(got * scale, jnp.asarray(last))
        if not stabilized:
            close(seen, jnp.asarray(reads))


@pytest.mark.parametrize(
    ("name", "dress"),
    [
        ("gated_linear_attention", lambda model: masked(reset(model))),
        ("delta_net", lambda model: reset(masked(model))),
        ("mlstm", lambda model: reset(masked(model))),
    ],
)
def test_documents_in_one_stream(x64, name, dress):
    """Around a mask too: a step that is skipped after a border leaves the initial carry."""
    check_methods(draw(dress(BARE[name])), {"4": partial(METHOD, chunk=4)})


def test_wrappers_around_the_output_keep_the_hint(x64):
    model = BARE["delta_net"]
    cell = wrappers.residual(wrappers.highway(wrappers.with_head(model.cell, D)))
    check_methods(draw(model._replace(cell=cell)), {"4": partial(METHOD, chunk=4)})


@pytest.mark.parametrize("dress", [zoneout, learned_carry])
def test_what_changes_the_carry_drops_the_hint(dress):
    model = dress(BARE["gated_linear_attention"])
    assert model.cell.outer is None
    with pytest.raises(ValueError, match='method "chunkwise" needs a cell with the `outer` hint; use "scan"'):
        unroll(*draw(model, dtype=jnp.float32), method=METHOD)


@pytest.mark.parametrize("chunk", [0, -4, 12, 1.5])
def test_a_chunk_that_is_no_power_of_2_is_refused(chunk):
    with pytest.raises(ValueError, match=f"chunk must be a power of 2, got {chunk}"):
        unroll(*draw(BARE["delta_net"], dtype=jnp.float32), method=partial(METHOD, chunk=chunk))


@pytest.mark.parametrize(("name", "bias"), [("gated_linear_attention", "b_a"), ("mlstm", "b")])
def test_strong_and_weak_decays_stay_finite_in_float32(name, bias):
    """Decays of exp(-10000 / 16), of nearly 1, and both side by side, against the same in steps."""
    cell, params, carry, xs = draw(BARE[name], steps=40, dtype=jnp.float32)
    run, scan = (compiled(partial(values_and_gradients, cell, m)) for m in (partial(METHOD, chunk=32), "scan"))
    for gate in (-1e4, -30.0, 30.0):
        gates = {bias: params[bias] + jnp.full_like(params[bias], gate).at[1::2].set(30.0)}
        out, grads = run(params | gates, carry, xs)
        expected, expected_grads = scan(params | gates, carry, xs)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((out, grads)))
        close(out, expected, 2e-5)
        # Those for gates that are shut are differences of large numbers.
        close(*(jax.flatten_util.ravel_pytree(g)[0] for g in (grads, expected_grads)), 2e-5)


def test_a_strong_decay_does_not_blur_the_weak_ones_after_it():
    """Differences of sums of logarithms would: -1e6 and -1e6 - 1e-3 are one number in float32."""
    decay = jnp.array([0.0, -1e6, -1e-3, -1e-3]).reshape(1, 4, 1)
    ones = jnp.ones((1, 4, 1))
    scores = chunkwise._scores(ones, ones, decay)[0]
    np.testing.assert_allclose(scores[3], [0, np.exp(-2e-3), np.exp(-1e-3), 1], rtol=1e-6)


@pytest.mark.parametrize("name", MATRICES)
def test_bfloat16_weights_sum_in_float32(name):
    heads = getattr(cells, name)(2, 3, 2, dtype=jnp.bfloat16)
    params = heads.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (20, 2, D), jnp.bfloat16)
    got = compiled(partial(unroll, heads, method=METHOD))(params, None, xs)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    close(got, compiled(partial(unroll, heads, method="scan"))(params, None, xs), 1e-5)


def test_gradients_are_those_of_numerical_differences(x64):
    cell, params, carry, xs = draw(BARE["delta_net"], steps=5)
    run = jax.jit(partial(unroll, cell, method=partial(METHOD, chunk=4)))
    check_grads(run, (params, carry, xs), order=1, modes=["fwd", "rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", MATRICES)
def test_no_matrix_of_a_single_step_is_made(name):
    """Neither forward nor backward is there an array of T matrices."""
    cell = getattr(cells, name)(2, 8, 8)
    params, xs = cell.init(jax.random.key(0), D), jnp.ones((64, 1, D))

    def largest(method):
        def loss(params):
            return unroll(cell, params, None, xs, method=method)[1].sum()

        return max(v.aval.size for e in equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr) for v in e.outvars)

    matrices = 64 * 2 * 8 * 8
    assert largest(partial(METHOD, chunk=16)) < matrices / 2
    assert largest("rematerialized") >= matrices


def test_lanes_may_be_vmapped(x64):
    cell = BARE["delta_net"].cell
    drawn = [draw(BARE["delta_net"], steps=5, seed=seed)[1:] for seed in range(2)]
    run = partial(values_and_gradients, cell, partial(METHOD, chunk=4))
    lanes = compiled(jax.vmap(run))(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn))
    single = compiled(run)
    for i, one in enumerate(drawn):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], lanes), single(*one), 1e-10)


def test_auto_takes_it_for_a_matrix(monkeypatch):
    taken = []
    monkeypatch.setitem(dispatch.METHODS, "chunkwise", lambda *args: taken.append(args) or METHOD(*args))
    for name in MATRICES:
        unroll(*draw(BARE[name], dtype=jnp.float32))
    assert len(taken) == 3


def test_a_read_stands_for_a_matrix():
    h, q = jnp.arange(6.0).reshape(3, 2), jnp.array([1.0, 0.0, 2.0])
    close(read(q, h), q @ h)
    close(read(q, Read(q @ h)), q @ h)
