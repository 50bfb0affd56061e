"""The quality of a gradient estimator: direction, size, bias and variance, and its cost."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from seqjax.arrays import Array, Carry, Key, Params, Tree
from seqjax.core import Cell, split_const
from seqjax.diagnostics import alignment
from seqjax.gradients.estimator import Estimator, Loss
from seqjax.gradients.truncation import bptt
from seqjax.solvers.scan import length


class Comparison(NamedTuple):
    """An estimator's gradient g compared with that of full BPTT, r.

    Attributes:
      cosine: the mean over the draws of `<g, r> / (|g| |r|)`.
      norm_ratio: the mean over the draws of `|g| / |r|`.
      bias: `|mean g - r| / |r|`; over n draws of an unbiased estimator it is about sqrt(variance / n).
      variance: `mean |g - mean g|^2 / |r|^2`, 0 for a single draw.
      seconds: wall-clock time of one gradient, the minimum over all draws, without compilation.
      temporary_bytes: memory of the compiled program beyond its arguments and results, or None where the device does
        not report it.
    """

    cosine: float
    norm_ratio: float
    bias: float
    variance: float
    seconds: float
    temporary_bytes: int | None


def stream_gradient(
    estimator: Estimator, params: Params, carry: Carry, xs: Tree, targets: Tree, chunk: int | None = None
) -> Params:
    """The mean of an estimator's gradients over the chunks of a stream, for fixed params.

    Args:
      estimator: any estimator.
      params: the params of its cell.
      carry: the carry before the first step.
      xs: inputs [T, B, ...].
      targets: [T, B, ...].
      chunk: steps per chunk, a divisor of T; by default T.

    Raises:
      ValueError: if the chunks do not divide the stream.
    """
    steps = length(xs)
    chunk = steps if chunk is None else chunk
    if chunk < 1 or steps % chunk:
        raise ValueError(f"chunks must divide the {steps} steps of the stream, got chunks of {chunk}")
    timed, merge = split_const(xs)

    def cut(leaf):
        return leaf.reshape(leaf.shape[0] // chunk, chunk, *leaf.shape[1:])

    def body(state, inputs):
        timed, targets = inputs
        _, grads, state = estimator.update(params, state, merge(timed), targets)
        return state, grads

    state = estimator.init(params, carry, merge([leaf[:chunk] for leaf in timed]))
    _, grads = jax.lax.scan(body, state, ([cut(leaf) for leaf in timed], jax.tree.map(cut, targets)))
    return jax.tree.map(lambda leaf: leaf.mean(0), grads)


def compare(
    estimators: Mapping[str, Estimator | Callable[[Key], Estimator]],
    cell: Cell,
    loss: Loss,
    params: Params,
    carry: Carry,
    xs: Tree,
    targets: Tree,
    key: Key,
    *,
    chunk: int | None = None,
    draws: int = 100,
) -> dict[str, Comparison]:
    """Compare estimators with back-propagation through time over the whole stream, at fixed params.

        compare({"rtrl": rtrl(cell, loss), "uoro": lambda key: uoro(cell, loss, key)}, cell, loss, params, ...)

    Args:
      estimators: by name; a random one as a function of its key.
      cell: the model.
      loss: that of the estimators; it must also take [T, B, ...].
      params: those of the model.
      carry: the carry before the first step, leaves [B, ...].
      xs: inputs [T, B, ...].
      targets: [T, B, ...].
      key: PRNG key of the draws.
      chunk: steps per update, a divisor of T; by default T. (The reference is over the whole stream.)
      draws: gradients of each random estimator; a deterministic one is run up to 3 times, for its time.

    Returns:
      A `Comparison` for each name.

    Raises:
      ValueError: unless draws >= 1; if the chunks do not divide the stream.

    Example:
      >>> cell = seqjax.cells.rnn(3)
      >>> params = cell.init(jax.random.key(0), 2)
      >>> xs, targets = jax.random.normal(jax.random.key(1), (8, 1, 2)), jnp.ones((8, 1, 3))
      >>> def loss(ys, targets):
      ...     return jnp.square(ys - targets).sum(-1)
      >>> estimators = {
      ...     "rtrl": seqjax.gradients.rtrl(cell, loss),
      ...     "truncated": seqjax.gradients.truncated_bptt(cell, loss, 1, 1),
      ... }
      >>> found = seqjax.gradients.compare(
      ...     estimators, cell, loss, params, cell.initial_carry(params, (1,)), xs, targets, jax.random.key(2), chunk=1
      ... )
      >>> round(found["rtrl"].cosine, 3), found["rtrl"].bias < 1e-5, found["truncated"].bias > 0.1
      (1.0, True, True)
    """
    if draws < 1:
        raise ValueError(f"compare needs draws >= 1, got {draws}")
    data = params, carry, xs, targets
    reference = jax.jit(lambda *data: stream_gradient(bptt(cell, loss), *data))(*data)

    def measure(make: Estimator | Callable[[Key], Estimator], key: Key) -> Comparison:
        deterministic = isinstance(make, Estimator)

        def gradient(key, *data):
            return stream_gradient(make if isinstance(make, Estimator) else make(key), *data, chunk=chunk)

        program = jax.jit(gradient).lower(key, *data).compile()
        memory = program.memory_analysis()
        found, seconds = [], []
        for one in jax.random.split(key, min(draws, 3) if deterministic else draws):
            start = time.perf_counter()
            found.append(jax.block_until_ready(program(one, *data)))
            seconds.append(time.perf_counter() - start)
        return _compared(found[:1] if deterministic else found, reference, min(seconds), memory)

    keys = jax.random.split(key, len(estimators))
    return {name: measure(make, one) for (name, make), one in zip(estimators.items(), keys, strict=True)}


def _compared(found: list[Params], reference: Params, seconds: float, memory: object) -> Comparison:
    cosines, ratios = zip(*(alignment(one, reference) for one in found), strict=True)
    flat = jnp.stack([_flat(one) for one in found])
    target, centre = _flat(reference), flat.mean(0)
    size = jnp.sum(target**2)
    return Comparison(
        cosine=float(jnp.stack(cosines).mean()),
        norm_ratio=float(jnp.stack(ratios).mean()),
        bias=float(jnp.sqrt(jnp.sum((centre - target) ** 2) / size)),
        variance=float(jnp.sum((flat - centre[None]) ** 2, 1).mean() / size),
        seconds=seconds,
        temporary_bytes=getattr(memory, "temp_size_in_bytes", None),
    )


def _flat(tree: Params) -> Array:
    return ravel_pytree(tree)[0]
