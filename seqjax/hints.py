"""Hints: other descriptions of a transition, each of which opens a faster way to run a cell."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Params, Tree, exportable, like, matmul
from seqjax.identity import by_value


@by_value
class Gated(NamedTuple):
    """Hint: the transition is matrix products of the carry, and arithmetic around them.

        v_1 = stages[0](h, z, ());  u_1 = v_1 @ weights(params)[0]
        v_2 = stages[1](h, z, (u_1,));  u_2 = v_2 @ weights(params)[1];  ...
        h'  = gates(h, z, (u_1, u_2, ...))

    One stage is enough for most cells; the GRU that resets before the product has two, the IndRNN none. Stages and
    gates do not receive params: what they need (a peephole, a bias) comes through z, in a `Const`. Each v has the
    shape of the first leaf of the carry. So the gradient of each weight is one matrix product over all steps
    (`solvers.fused`), and recurrent dropout knows what to mask. `native` also needs the arithmetic to be elementwise:
    layer normalization or a projection of the output is refused there, and `auto` takes another method.

    A cell may also name its candidate n, the value that a step proposes to write (the LSTM's tanh(g)), of the shape of
    the last leaf of the carry: `candidate(h, z, us, f)` is the gates with f(n) in place of n, and so with f(n) = n the
    gates.
    """

    weights: Callable[[Params], tuple[Array, ...]]
    stages: tuple[Callable[[Carry, Tree, tuple[Array, ...]], Array], ...]
    gates: Callable[[Carry, Tree, tuple[Array, ...]], Carry]
    candidate: Callable[[Carry, Tree, tuple[Array, ...], Callable[[Array], Array]], Carry] | None = None


def gated_step(gated: Gated, weights: tuple[Array, ...], carry: Carry, z: Tree) -> Carry:
    """One step of the transition that a `Gated` hint describes, from the value of its weights."""
    us = ()
    for stage, w in zip(gated.stages, weights, strict=True):
        us = (*us, matmul(stage(carry, z, us), w))
    return gated.gates(carry, z, us)


def gated_transition(gated: Gated) -> Callable[[Params, Carry, Tree], Carry]:
    """The transition that a `Gated` hint describes."""
    return lambda params, carry, z: gated_step(gated, gated.weights(params), carry, z)


def around(
    gated: Gated,
    enter: Callable[..., tuple[Carry, Tree, tuple[Array, ...]]] = lambda h, z, us: (h, z, us),
    leave: Callable[[Carry, Tree, Carry], Carry] = lambda h, z, new: new,
) -> Gated:
    """`gated` whose stages and gates see `enter(h, z, us)`, and whose carry after the step is `leave(h, z, new)`."""
    stages, gates, candidate = gated.stages, gated.gates, gated.candidate
    return Gated(
        weights=gated.weights,
        stages=tuple(lambda h, z, us, stage=stage: stage(*enter(h, z, us)) for stage in stages),
        gates=lambda h, z, us: leave(h, z, gates(*enter(h, z, us))),
        candidate=candidate and (lambda h, z, us, f: leave(h, z, candidate(*enter(h, z, us), f))),
    )


@exportable
class Complex(NamedTuple):
    """A node of a carry that holds complex numbers `re + i im`, as two real arrays of one shape."""

    re: Array
    im: Array


def is_complex(node: Tree) -> bool:
    """Whether a node of a carry is a `Complex`."""
    return isinstance(node, Complex)


def multiply(a: Tree, h: Tree) -> Tree:
    """`a * h` of two trees of one structure, elementwise; of two `Complex`, the product of complex numbers."""

    def product(a, h):
        if is_complex(a):
            return Complex(a.re * h.re - a.im * h.im, a.re * h.im + a.im * h.re)
        return a * h

    return jax.tree.map(product, a, h, is_leaf=is_complex)


def affine_transition(affine: Callable[[Params, Tree], tuple[Carry, Carry]]) -> Callable:
    """The transition that an `affine` hint describes."""

    def transition(params, carry, z):
        a, b = affine(params, z)
        return jax.tree.map(jnp.add, multiply(a, carry), b)

    return transition


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


@by_value
class Outer(NamedTuple):
    """Hint: the carry is a matrix that decays, takes one outer product per step, and is read by a query.

    Many steps at once are then a few matrix products (`chunkwise`). The initial carry is 0.

    Attributes:
      write: `(params, z) -> Write`.
      pack: `carry -> (h, m)`, with m None where the `Write` has no `log_write`.
      unpack: its inverse. Both must also accept a `Read` in the place of h.
    """

    write: Callable[[Params, Tree], Write]
    pack: Callable[[Carry], tuple[Any, Array | None]] = lambda carry: (carry, None)
    unpack: Callable[[Any, Array | None], Carry] = lambda h, m: h


class Read(NamedTuple):
    """Replaces a matrix h [B, N, K, V] in the carry passed to a readout when q^T h [B, N, V] is already known."""

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
