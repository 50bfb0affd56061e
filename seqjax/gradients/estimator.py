"""The interface of every way to obtain a recurrent network's gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

from seqjax.core import Array, Carry, Params, Tree

Loss = Callable[[Tree, Tree], Array]
"""`(ys [..., B, O], targets [..., B, ...]) -> losses [..., B]`, one number for each step of each sequence."""


class Estimator(NamedTuple):
    """A gradient of a stream, chunk by chunk of time.

        state = init(params, carry, xs)
        loss, grads, state = update(params, state, xs, targets)      for each chunk

    Attributes:
      init: `(params, carry, xs) -> state`. `xs` is a chunk as `update` will get it; only its shapes are used.
      update: `(params, state, xs [K, B, ...], targets [K, B, ...]) -> (loss, grads, state)`, where loss is the mean of
        the losses of the K steps and of the batch, and grads, a tree like params, estimates its gradient.

    The cell of an estimator is the whole model: encoder in its projection, head in its readout. Its loss is
    `(ys [..., B, O], targets [..., B, ...]) -> losses [..., B]`, one number for each step of each sequence; a step that
    does not count has the loss 0. The state carries on from chunk to chunk, and so do the params, which the caller
    changes in between as an optimizer says.
    """

    init: Callable[[Params, Carry, Tree], Any]
    update: Callable[[Params, Any, Tree, Tree], tuple[Array, Params, Any]]
