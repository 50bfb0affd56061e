"""What the laws compare: outputs, carries, gradients; and the loop that everything is held against."""

from contextlib import contextmanager
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from seqjax import solvers, unroll
from seqjax.core import split_const
from seqjax.solvers import native
from seqjax.solvers.gated_loop.solver import supports
from seqjax.solvers.native import compiler
from seqjax.solvers.persistent import Persistent, persistent
from seqjax.solvers.scan import length

compiled = jax.jit
"""Names what is compiled on purpose; conftest.py sets the options of the compiler."""


@contextmanager
def relaxed():
    """Peers promote dtypes and ranks silently; this library does not."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def close(got, expected, tolerance=1e-12):
    """Equal structure, and every leaf within `tolerance` of the leaf's largest entry (or 1)."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max(initial=0))))


def at(xs, t):
    """Inputs of step t: a `Const` stays."""
    timed, merge = split_const(xs)
    return merge([leaf[t] for leaf in timed])


def loop(cell, params, carry, xs):
    """The definition of `unroll`."""
    step, ys = compiled(cell.step), []
    for t in range(length(xs)):
        carry, y = step(params, carry, at(xs, t))
        ys.append(y)
    return carry, jnp.stack(ys)


def is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def values_and_gradients(cell, method, params, carry, xs, mask=None):
    """`(carry, ys)`, and the gradient of a generic loss for params, carry and all floating inputs, noise too."""
    leaves, treedef = jax.tree.flatten(xs)
    floats = [leaf for leaf in leaves if is_float(leaf)]

    def loss(params, carry, floats):
        values = iter(floats)
        inputs = treedef.unflatten([next(values) if is_float(leaf) else leaf for leaf in leaves])
        out = unroll(cell, params, carry, inputs, mask=mask, method=method)
        rng = np.random.default_rng(9)
        terms = [jnp.sum(leaf * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)) for leaf in jax.tree.leaves(out)]
        return sum(terms[1:], terms[0]), out

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, carry, floats)
    return out, grads


def layers(cell):
    """The cells at the bottom of a stack, however nested."""
    return [part for layer in cell.layers for part in layers(layer)] if cell.layers else [cell]


def native_or_auto(cell, params, carry, xs):
    """`native`, and for gates that are not elementwise `auto`, which must then find another method."""
    return (native.native if native.supports(cell, params, carry, xs) else solvers.auto)(cell, params, carry, xs)


def persistent_or_auto(cell, params, carry, xs):
    """`persistent`, interpreted, and for gates that are not elementwise `auto`, as in `native_or_auto`."""
    refused = supports(Persistent(None).check, cell, params, carry, xs)
    return (solvers.auto if refused else partial(persistent, interpret="cuda"))(cell, params, carry, xs)


def methods_of(cell):
    """Every method but scan that admits the cell; checkpointed also in chunks that do not divide 7 steps."""
    found = ["checkpointed", "rematerialized"]
    if all(layer.gated for layer in layers(cell)):
        found.append("fused")
    if all(layer.affine for layer in layers(cell)):
        found.append("associative")
    if all(layer.outer for layer in layers(cell)):
        found.append("chunkwise")
    methods = {name: name for name in found} | {"chunks of 3": partial(solvers.checkpointed, chunk=3)}
    if "fused" in found:
        methods |= {"persistent": persistent_or_auto} | ({"native": native_or_auto} if compiler() else {})
    return methods


def check_methods(drawn, methods, mask=None):
    """Hold methods against scan, all compiled as one program; return what scan gives."""
    cell, params, carry, xs = drawn

    @compiled
    def run(params, carry, xs, mask):
        each = {"scan": "scan", **methods}
        return {name: values_and_gradients(cell, m, params, carry, xs, mask) for name, m in each.items()}

    results = run(params, carry, xs, mask)
    expected = results.pop("scan")
    assert results
    for got in results.values():
        close(got, expected)
    return expected


def equations(jaxpr):
    """All equations of a program, those of inner programs too."""
    for e in jaxpr.eqns:
        yield e
        for value in e.params.values():
            if isinstance(value, jax.extend.core.ClosedJaxpr):
                yield from equations(value.jaxpr)
