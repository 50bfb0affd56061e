"""Every method under every transformation of JAX: what agrees with scan, and what is refused, naming another method.

python -m tools.transforms    run everything and write docs/transforms.md; fails if anything disagrees
"""

import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.experimental.checkify
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import seqjax
from seqjax import cells, solvers
from seqjax.core import Cell

PAGE = Path(__file__).parents[1] / "docs" / "transforms.md"
TIME, BATCH, FEATURES = 3, 8, 4
Loss = Callable[..., jax.Array]  # of params and xs [T, B, D], in any batch


def gated_that_prints(units: int) -> Cell:
    """An LSTM with a `jax.debug.print` among its gates."""
    cell = cells.lstm(units)

    def gates(h, z, us):
        jax.debug.print("{}", h.c.sum())
        return cell.gated.gates(h, z, us)

    gated = cell.gated._replace(gates=gates, candidate=None)
    return cell._replace(gated=gated, transition=seqjax.hints.gated_transition(gated))


def affine_that_prints(units: int) -> Cell:
    """A minGRU with a `jax.debug.print` in its hint."""
    cell = cells.min_gru(units)

    def affine(params, z):
        jax.debug.print("{}", z.sum())
        return cell.affine(params, z)

    return cell._replace(affine=affine, transition=seqjax.hints.affine_transition(affine))


CELLS = {"gated": cells.lstm(3), "affine": cells.min_gru(3), "outer": cells.mlstm(1, 2, 2)}
PRINTING = {"gated": gated_that_prints(3), "affine": affine_that_prints(3)}
METHODS: dict[str, tuple[str, object]] = {  # the hint of the cell that each is run on, and the method
    "auto, gated": ("gated", "auto"),
    "auto, affine": ("affine", "auto"),
    "auto, outer": ("outer", "auto"),
    "scan": ("gated", "scan"),
    "rematerialized": ("gated", "rematerialized"),
    "checkpointed": ("gated", "checkpointed"),
    "checkpointed, slots": ("gated", partial(solvers.checkpointed, chunk=1, slots=2)),
    "fused": ("gated", "fused"),
    "native": ("gated", "native"),
    "persistent": ("gated", "persistent"),
    "associative": ("affine", "associative"),
    "chunkwise": ("outer", "chunkwise"),
    "newton": ("gated", "newton"),
}


def loss_of(cell: Cell, method) -> Loss:
    """The sum of squares of all outputs and of the last carry."""

    def loss(params, xs):
        carry, ys = seqjax.unroll(cell, params, None, xs, method=method)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves((carry, ys)))

    return loss


def arguments(cell: Cell):
    """Params and inputs [T, B, D]."""
    params = cell.init(jax.random.key(0), FEATURES)
    return params, jax.random.normal(jax.random.key(1), (TIME, BATCH, FEATURES))


def _mesh(kind):
    return jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])


def _shard_map(loss):
    def reduced(params, xs):
        return jax.lax.psum(loss(params, xs), "data")

    return jax.shard_map(reduced, mesh=_mesh(AxisType.Auto), in_specs=(P(), P(None, "data")), out_specs=P())


def _sharded(kind, loss, params, xs):
    with jax.set_mesh(_mesh(kind)):
        return jax.jit(jax.grad(loss))(params, jax.device_put(xs, P(None, "data")))


def _pmap(loss, params, xs):
    halves = xs.reshape(TIME, 2, BATCH // 2, FEATURES)
    summed = jax.pmap(jax.grad(loss), in_axes=(None, 1), devices=jax.devices()[:2])(params, halves)
    return jax.tree.map(lambda leaf: leaf.sum(0), jax.device_get(summed))


def _export(loss, params, xs, platforms=("cpu", "cuda", "tpu")):
    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=platforms)(params, xs)
    return jax.export.deserialize(exported.serialize()).call(params, xs)


def _symbolic(loss, params, xs):
    time, batch = jax.export.symbolic_shape("t, b")
    types = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    inputs = jax.ShapeDtypeStruct((time, batch, FEATURES), xs.dtype)
    return jax.export.export(jax.jit(loss))(types, inputs).call(params, xs)


def _for_tpu(loss, params, xs):
    text = jax.jit(jax.grad(loss)).trace(params, xs).lower(lowering_platforms=("tpu",)).as_text()
    assert "seqjax_" not in text, "a call of C++ in a program for a TPU"
    return jax.grad(loss)(params, xs)


def _checkify(loss, params, xs):
    checked = jax.experimental.checkify.checkify(loss, errors=jax.experimental.checkify.float_checks)
    error, value = jax.jit(checked)(params, xs)
    error.throw()
    return value


def _config(context, loss, params, xs):
    with context():
        return jax.grad(loss)(params, xs)


def _x64(loss, params, xs):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), (params, xs))
        return jax.jit(jax.grad(loss))(*wide)


def _tangents(loss, params, xs):
    return jax.jvp(lambda xs: loss(params, xs), (xs,), (jnp.ones_like(xs),))


TRANSFORMS: dict[str, Callable] = {
    "eager": lambda loss, params, xs: loss(params, xs),
    "jit": lambda loss, *args: jax.jit(loss)(*args),
    "grad": lambda loss, *args: jax.jit(jax.grad(loss, (0, 1)))(*args),
    "eager grad": lambda loss, *args: jax.grad(loss, (0, 1))(*args),
    "vmap of grad": lambda loss, params, xs: jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, jnp.stack([xs, -xs])),
    "jvp": _tangents,
    "jacfwd": lambda loss, params, xs: jax.jit(jax.jacfwd(lambda xs: loss(params, xs)))(xs),
    "hessian": lambda loss, params, xs: jax.jit(jax.hessian(lambda xs: loss(params, xs)))(xs[:, :1]),
    "grad of grad": lambda loss, params, xs: jax.jit(
        jax.grad(lambda xs: (jax.grad(lambda xs: loss(params, xs))(xs) ** 2).sum())
    )(xs),
    "remat": lambda loss, *args: jax.jit(jax.grad(jax.checkpoint(loss)))(*args),
    "eval_shape": lambda loss, *args: jnp.zeros(jax.eval_shape(loss, *args).shape),
    "export, 3 platforms": _export,
    "export, symbolic sizes": _symbolic,
    "lower for a TPU": _for_tpu,
    "shard_map": lambda loss, *args: jax.jit(jax.grad(_shard_map(loss)))(*args),
    "sharded inputs": partial(_sharded, AxisType.Auto),
    "explicit mesh": partial(_sharded, AxisType.Explicit),
    "pmap": _pmap,
    "checkify": _checkify,
    "debug_nans": partial(_config, lambda: jax.debug_nans(True)),
    "disable_jit": partial(_config, jax.disable_jit),
    "x64": _x64,
    "debug.print": lambda loss, *args: jax.jit(jax.grad(loss))(*args),
    "cell as an argument": lambda loss, *args: loss(*args),  # see `outcome`
}


def outcome(transform: str, method: str) -> str:
    """Returns "works", or the library's error message, which names the method to use instead.

    Raises:
      AssertionError: the result differs from that of scan.
      Exception: any other error, unchanged.
    """
    hint, solver = METHODS[method]
    cell = CELLS[hint]
    if transform == "debug.print":
        if hint not in PRINTING:
            return "works"
        cell = PRINTING[hint]
    args = arguments(cell)
    expected = TRANSFORMS[transform](loss_of(cell, "scan"), *args)
    try:
        if transform == "cell as an argument":
            got = jax.jit(lambda cell, *args: loss_of(cell, solver)(*args))(cell, *args)
        else:
            got = TRANSFORMS[transform](loss_of(cell, solver), *args)
    except (TypeError, ValueError) as error:
        if re.search(r'use (method=)?"(scan|fused)"', str(error)):
            return str(error)
        raise
    for a, b in zip(jax.tree.leaves(jax.device_get(got)), jax.tree.leaves(jax.device_get(expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(1.0, float(np.abs(b).max(initial=0))))
    return "works"


def page(found: dict[tuple[str, str], str]) -> str:
    """The table in Markdown."""
    notes = list(dict.fromkeys(text for text in found.values() if text != "works"))
    lines = [
        "# Transformations",
        "",
        "Every method under every transformation of JAX. Written by `make transforms` with JAX "
        f"{jax.__version__} on a CPU divided into 8 virtual devices.",
        "✓: values and gradients equal those of scan. A number: refused, with the message below.",
        "`auto` was run on a gated, an affine and a matrix cell.",
        "",
        "| | " + " | ".join(METHODS) + " |",
        "|---|" + "---|" * len(METHODS),
    ]
    for transform in TRANSFORMS:
        row = [found[transform, method] for method in METHODS]
        marks = ["✓" if text == "works" else str(notes.index(text) + 1) for text in row]
        lines.append(f"| {transform} | " + " | ".join(marks) + " |")
    return "\n".join([*lines, "", *(f"{i}. {text}" for i, text in enumerate(notes, 1)), ""])


def main() -> None:
    """Run everything and write the page."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    found, failed = {}, []
    for transform in TRANSFORMS:
        for method in METHODS:
            try:
                found[transform, method] = outcome(transform, method)
            except Exception as error:  # report every failure, not just the first
                failed.append(f"{transform}, {method}: {type(error).__name__}: {str(error)[:300]}")
                print(failed[-1], flush=True)
    if failed:
        sys.exit(f"{len(failed)} of {len(TRANSFORMS) * len(METHODS)} neither work nor name a method to use instead")
    PAGE.write_text(page(found))
    print(f"{len(found)} combinations, {sum(text == 'works' for text in found.values())} work; {PAGE}")


if __name__ == "__main__":
    main()
