"""Back-propagation through time, in full and truncated."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Tree
from seqjax.core import Cell, batch_shape, split_const
from seqjax.gradients.estimator import Estimator, Loss, on_mesh
from seqjax.placement import placed_as
from seqjax.solvers.dispatch import Solver
from seqjax.solvers.scan import length
from seqjax.unrolling import unroll


def bptt(cell: Cell, loss: Loss, *, method: str | Solver = "auto") -> Estimator:
    """Back-propagation through time over each chunk (Werbos 1990).

        dL/dW = sum_t dL_t/dh_t  sum_{k <= t} (prod_{k < j <= t} dh_j/dh_{j-1})  dh_k/dW

    The state is the carry: it is passed from one chunk to the next, the gradient is not. With whole sequences as chunks
    this is the full gradient.

    Args:
      cell: the model.
      loss: `(ys [T, B, O], targets [T, B, ...]) -> losses [T, B]`.
      method: as in `unroll`.

    Example:
      >>> cell = seqjax.wrappers.with_head(seqjax.cells.rnn(4), 1)
      >>> params = cell.init(jax.random.key(0), 3)
      >>> xs, targets = jnp.ones((6, 2, 3)), jnp.ones((6, 2, 1))
      >>> def loss(ys, targets):  # [T, B, O], [T, B, O] -> [T, B]
      ...     return jnp.square(ys - targets).mean(-1)
      >>> estimator = seqjax.gradients.bptt(cell, loss)
      >>> state = estimator.init(params, cell.initial_carry(params, (2,)), xs)
      >>> value, grads, state = estimator.update(params, state, xs, targets)
      >>> jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
      True
    """

    def update(params, carry, xs, targets):
        def objective(params):
            last, ys = unroll(cell, params, carry, xs, method=method)
            return jnp.mean(loss(ys, targets)), last

        (value, last), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return value, grads, last

    return on_mesh(cell, lambda params, carry, xs: carry, update)


class Window(NamedTuple):
    """State of truncated back-propagation: the carry at the start of the window, and the earlier inputs in it.

    Attributes:
      carry: the carry before the first step of the window.
      past: the timed leaves of the last k2 - k1 inputs, each [k2 - k1, B, ...]; none where k1 = k2.
      filled: int32 [], how many of them have been seen; the others lie before the start of the stream.
    """

    carry: Carry
    past: list[Array]
    filled: Array


def check_chunk(name: str, k1: int, xs: Tree) -> None:
    """Check that xs [T, B, ...] is a chunk of the length that the estimator `name` takes.

    Raises:
      ValueError: unless T is k1.
    """
    if length(xs) != k1:
        raise ValueError(f"{name} with k1 = {k1} takes chunks of {k1} steps, got {length(xs)}")


def truncated_bptt(cell: Cell, loss: Loss, k1: int, k2: int, *, method: str | Solver = "auto") -> Estimator:
    """Truncated back-propagation through time, BPTT(k2; k1) (Williams & Peng 1990; Sutskever 2013, section 2.8.6).

    Every k1 steps, the losses of these k1 steps are back-propagated k2 steps from the newest:

        dL/dW = mean_{t-k1 < s <= t} dL_s/dh_s  sum_{t-k2 < k <= s} (prod_{k < j <= s} dh_j/dh_{j-1})  dh_k/dW

    The carry k2 steps back is a constant; from there the window is run again with the current params, so with k1 < k2
    each step is run k2/k1 times. k1 = k2 is the usual case, and k1 = k2 = T is BPTT.

    Args:
      cell: the model.
      loss: `(ys [T, B, O], targets [T, B, ...]) -> losses [T, B]`.
      k1: steps between updates; `update` takes chunks of exactly k1 steps.
      k2: steps that the gradient reaches back, counted from the newest; at least k1.
      method: as in `unroll`.

    Raises:
      ValueError: unless 1 <= k1 <= k2; in `init` and `update`, for a chunk that is not k1 steps long.

    Example:
      >>> cell = seqjax.cells.rnn(1, lambda u: u, w_x=jax.nn.initializers.ones, w_h=seqjax.initializers.identity())
      >>> params = cell.init(jax.random.key(0), 1)  # a sum: d loss / d w_x counts the inputs within reach
      >>> xs, targets = jnp.ones((8, 1, 1)), jnp.zeros((8, 1, 1))
      >>> for k2 in (2, 4, 6):
      ...     estimator = seqjax.gradients.truncated_bptt(cell, lambda ys, targets: ys[..., 0], 2, k2)
      ...     state = estimator.init(params, cell.initial_carry(params, (1,)), xs[:2])
      ...     for t in range(0, 8, 2):  # a stream in chunks of k1 = 2 steps
      ...         value, grads, state = estimator.update(params, state, xs[t : t + 2], targets[t : t + 2])
      ...     print(k2, grads["w_x"].item())  # of the mean loss of the last two steps
      2 1.5
      4 3.5
      6 5.5
    """
    if not 1 <= k1 <= k2:
        raise ValueError(f"truncated_bptt needs 1 <= k1 <= k2, got k1 = {k1} and k2 = {k2}")
    plain = bptt(cell, loss, method=method)
    kept = k2 - k1

    def init(params, carry, xs):
        check_chunk("truncated_bptt", k1, xs)
        timed = split_const(xs)[0] if kept else []
        past = [placed_as(jnp.zeros((kept, *leaf.shape[1:]), leaf.dtype), leaf) for leaf in timed]
        return Window(carry, past, jnp.int32(0))

    def update(params, state: Any, xs, targets):
        check_chunk("truncated_bptt", k1, xs)
        if kept == 0:
            value, grads, carry = plain.update(params, state.carry, xs, targets)
            return value, grads, state._replace(carry=carry)
        timed, merge = split_const(xs)
        window = [jnp.concatenate([old, new]) for old, new in zip(state.past, timed, strict=True)]
        seen = jnp.arange(k2, dtype=jnp.int32) >= kept - state.filled
        batch = batch_shape(xs, cell.space)
        mask = jnp.broadcast_to(seen.reshape(k2, *(1,) * len(batch)), (k2, *batch))

        def objective(params):
            # In two parts, since the next window starts from the carry after the first k1 steps.
            first, rest = (merge([leaf[part] for leaf in window]) for part in (slice(k1), slice(k1, None)))
            begin, ys = unroll(cell, params, state.carry, first, mask=mask[:k1], method=method)
            _, zs = unroll(cell, params, begin, rest, mask=mask[k1:], method=method)
            newest = jax.tree.map(lambda y, z: jnp.concatenate([y, z])[kept:], ys, zs)
            return jnp.mean(loss(newest, targets)), begin

        (value, begin), grads = jax.value_and_grad(objective, has_aux=True)(params)
        filled = jnp.minimum(state.filled + k1, kept)
        return value, grads, Window(begin, [leaf[k1:] for leaf in window], filled)

    return on_mesh(cell, init, update)
