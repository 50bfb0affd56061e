"""The kit that cells are built from: sizes, params, carries, and cells that are nothing but their hint."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from seqjax.arrays import Array, carry_dtype, check_features, exportable, like
from seqjax.core import Cell, Const, Dense
from seqjax.hints import Gated, gated_transition
from seqjax.initializers import per_gate


def as_size(value: Any) -> int:
    """An integer of Python, NumPy or JAX as an int; 0, which is no size, for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        return 0


def check_size(name: str, size: Any, what: str = "units") -> int:
    """A size of a cell as an int.

    Raises:
      ValueError: unless it is an integer above 0.
    """
    if as_size(size) < 1:
        raise ValueError(f"{name} takes a positive number of {what}, got {size!r}")
    return as_size(size)


def check_divisor(name: str, hidden: int, parts: Any, what: str) -> int:
    """The number of equal parts that the units of a cell are divided into, as an int.

    Raises:
      ValueError: unless it is an integer that divides the units.
    """
    if as_size(parts) < 1 or hidden % as_size(parts):
        raise ValueError(f"{name} takes a number of {what} that divides its {hidden} units, got {parts!r}")
    return as_size(parts)


def check_positive(cell: str, name: str, value: float) -> None:
    """Check that an argument of a cell is above 0."""
    if not value > 0:
        raise ValueError(f"{cell} takes a positive {name}, got {value}")


@exportable
class LSTMCarry(NamedTuple):
    """Carry of the LSTM cells: output h and cell state c, each [B, H]."""

    h: Array
    c: Array


def initial_params(hidden: int, gates: tuple[str, ...], w_x, w_h, b, dtype, rows: int | None = None) -> Callable:
    """The init of a cell with weights w_x [D, G*H], w_h [rows, G*H], of H rows unless told, and b [G*H]."""

    def init(key, in_features):
        k_x, k_h, k_b = jax.random.split(key, 3)
        return {
            "w_x": per_gate(w_x, k_x, in_features, len(gates), hidden, dtype),
            "w_h": per_gate(w_h, k_h, rows or hidden, len(gates), hidden, dtype),
            "b": b(k_b, gates, hidden, dtype),
        }

    return init


def zeros_carry(params, batch_shape) -> Array:
    """The initial carry h [*batch_shape, H] of zeros, for weights w_h of H rows."""
    w_h = params["w_h"]
    return jnp.zeros((*batch_shape, w_h.shape[0]), carry_dtype(w_h.dtype))


def zeros_lstm(params, batch_shape) -> LSTMCarry:
    """The initial carry of an LSTM: zeros."""
    return LSTMCarry(zeros_carry(params, batch_shape), zeros_carry(params, batch_shape))


def project_dense(params, x) -> Dense:
    """The product `x @ w_x + b`, deferred: the solver decides when to compute it."""
    check_features(x, params["w_x"])
    return Dense(x, Const(params["w_x"]), Const(params["b"]))


def itself(n: Array) -> Array:
    """The identity: a candidate written as it is."""
    return n


def gated_hint(weights: Callable, stages: tuple[Callable, ...], gates: Callable) -> Gated:
    """The hint of a cell with `gates(carry, z, us, write)`, where `write(n)` stands for the candidate n."""
    return Gated(weights, stages, lambda carry, z, us: gates(carry, z, us, itself), gates)


def one_product(gates: Callable) -> Gated:
    """The hint of a cell with `gates(carry, z, u, write)`, whose only matrix product u is that of its output h."""
    return gated_hint(
        weights=lambda params: (params["w_h"],),
        stages=(lambda carry, z, us: jax.tree.leaves(carry)[0],),
        gates=lambda carry, z, us, write: gates(carry, z, us[0], write),
    )


def gated_cell(
    init: Callable, hint: Gated, *, initial_carry: Callable = zeros_carry, project: Callable = project_dense
) -> Cell:
    """A cell of nothing but its hint, whose output is the first leaf of its carry."""
    return Cell(
        init=init,
        initial_carry=initial_carry,
        project=project,
        transition=gated_transition(hint),
        readout=lambda params, carry, z: jax.tree.leaves(carry)[0],
        gated=hint,
    )


def lstm_gates(carry: LSTMCarry, u: Array, write: Callable = itself, show: Callable = itself) -> LSTMCarry:
    """The LSTM's arithmetic on its pre-activations u [..., 4H]; the output sees `show(c)`."""
    i, f, g, o = jnp.split(u, 4, axis=-1)
    c = sigmoid(f) * carry.c + sigmoid(i) * write(jnp.tanh(g))
    return LSTMCarry(sigmoid(o) * jnp.tanh(show(c)), c)


def normalize(u: Array, gain: Array, epsilon: float) -> Array:
    """`gain * (u - mean) / sqrt(variance + epsilon)`, mean and variance of the last axis; u [..., G], gain [G]."""
    # The result is that of u / size and epsilon / size^2, for any size: here no square of u overflows.
    size = largest(u)
    u = u / like(size, u)
    u = u - u.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(u).mean(-1, keepdims=True) + jnp.square(epsilon**0.5 / size))
    return u * like(scale, u) * like(gain.astype(u.dtype), u)


def largest(u: Array) -> Array:
    """[..., 1]: the largest absolute value of u [..., G], or 1 where all are smaller, with a gradient of 0.

    It is for formulas whose value, and so whose gradient, does not depend on what u is divided by.
    """
    return jax.lax.stop_gradient(jnp.maximum(jnp.abs(u).max(-1, keepdims=True), 1.0))
