"""The hint of a matrix carry: it decays, takes an outer product a step, and is read by a query."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from seqjax.arrays import like
from seqjax.core import Array, Carry, Params, Tree


class Write(NamedTuple):
    """What one step does to a matrix h [B, N, K, V], under N heads with keys of K numbers and values of V.

        h <- exp(log_decay) h;   h <- h + key (value - erase^T h)^T;   query^T h is read

    Attributes:
      query: [B, N, K].
      key: [B, N, K].
      value: [B, N, V].
      log_decay: [B, N, K] or [B, N, 1], at most 0 and -inf to forget all; None where nothing decays.
      erase: [B, N, K]; None where nothing is erased.
      log_write: [B, N, 1]: the key counts exp(log_write) times. What the carry holds is then exp(-m) h, beside the
        stabilizer m <- max(log_decay + m, log_write). None where the carry is h itself, and beside `erase`.
    """

    query: Array
    key: Array
    value: Array
    log_decay: Array | None = None
    erase: Array | None = None
    log_write: Array | None = None

    def idle(self) -> "Write":
        """The same step, which leaves the carry as it is."""
        return self._replace(
            key=jnp.zeros_like(self.key),
            log_decay=None if self.log_decay is None else jnp.zeros_like(self.log_decay),
            log_write=None if self.log_write is None else jnp.full_like(self.log_write, -jnp.inf),
        )

    def decaying(self) -> "Write":
        """The same step with a log_decay, which is 0 where there was none."""
        return self if self.log_decay is not None else self._replace(log_decay=jnp.zeros_like(self.key[..., :1]))

    def fresh(self) -> "Write":
        """The same step from a carry of 0."""
        step: Any = self.decaying()
        forget = jnp.full_like(step.log_decay, -jnp.inf)
        if step.log_write is None:
            return step._replace(log_decay=forget)
        m = jnp.maximum(step.log_decay, step.log_write)
        key = step.key * like(jnp.exp(step.log_write - m), step.key)
        return step._replace(key=key, log_decay=forget, log_write=m)

    def stabilized(self, before: Array, after: Array) -> "Write":
        """The step of exp(-m) h, for the m [B, N, 1] before and after it."""
        step: Any = self
        key = step.key * like(jnp.exp(step.log_write - after), step.key)
        return step._replace(key=key, log_decay=step.log_decay + before - after, log_write=None)


class Outer(NamedTuple):
    """Hint: the carry is a matrix that decays, takes one outer product a step, and is read by a query.

    Many steps at once are then a few matrix products (`chunkwise`). The initial carry is 0.

    Attributes:
      write: `(params, z) -> Write`.
      pack: `carry -> (h, m)`, with m None where the `Write` has no `log_write`.
      unpack: its inverse. Both are also asked to do it for a `Read` in the place of h.
    """

    write: Callable[[Params, Tree], Write]
    pack: Callable[[Carry], tuple[Any, Array | None]] = lambda carry: (carry, None)
    unpack: Callable[[Any, Array | None], Carry] = lambda h, m: h


class Read(NamedTuple):
    """What stands for a matrix h [B, N, K, V] in the carry that a readout gets, where q^T h [B, N, V] is known."""

    value: Array


def read(q: Array, h: Any) -> Array:
    """q^T h: [..., K] and [..., K, V] give [..., V]; the readout of a cell with the hint `outer` reads h so only."""
    return h.value if isinstance(h, Read) else (q[..., :, None] * h).sum(-2)


def outer_transition(outer: Outer) -> Callable[[Params, Carry, Tree], Carry]:
    """The transition that an `Outer` hint describes."""

    def transition(params, carry, z):
        step: Any = outer.write(params, z)
        h, m = outer.pack(carry)
        if m is not None:
            before, m = m, jnp.maximum(step.log_decay + m, step.log_write)
            step = step.stabilized(before, m)
        if step.log_decay is not None:
            h = like(jnp.exp(step.log_decay)[..., None], h) * h
        value = step.value if step.erase is None else step.value - read(step.erase, h)
        return outer.unpack(h + step.key[..., :, None] * value[..., None, :], m)

    return transition
