"""Initial values of weights and gate biases.

A weight initializer is `(key, shape [rows, H], dtype) -> array`, as in `jax.nn.initializers`; a cell calls it once for
each gate, with a key of its own. A bias initializer is `(key, gates, hidden, dtype) -> array [len(gates) * hidden]`:
it sees the names of the gates, so that one can be told from another.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform, zeros

from seqjax.core import Array, Key, carry_dtype

Initializer = Callable[[Key, Sequence[int], jnp.dtype], Array]
BiasInitializer = Callable[[Key, tuple[str, ...], int, jnp.dtype], Array]

__all__ = [
    "BiasInitializer",
    "Initializer",
    "chrono",
    "gate_bias",
    "glorot_uniform",
    "identity",
    "orthogonal",
    "per_gate",
    "uniform",
    "zeros",
]


def orthogonal(scale: float = 1.0) -> Initializer:
    """`scale` times a uniformly drawn orthogonal matrix (Saxe, McClelland & Ganguli 2014, arXiv 1312.6120).

    As `jax.nn.initializers.orthogonal`, which it draws from. Under `vmap` one matrix is drawn after the other: batched
    decompositions that run at the same time can wait for each other forever on a CPU with few cores (jaxlib 0.10.2).
    """

    def init(key, shape, dtype=jnp.float32):
        draw = jax.nn.initializers.orthogonal(scale)
        return jax.custom_batching.sequential_vmap(lambda key: draw(key, shape, dtype))(key)

    return init


def identity(scale: float = 1.0) -> Initializer:
    """`scale` times the identity (Le, Jaitly & Hinton 2015, arXiv 1504.00941: the IRNN with ReLU).

    The shape must be square.
    """

    def init(key, shape, dtype=jnp.float32):
        del key
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"identity initializes square matrices, got the shape {tuple(shape)}")
        return scale * jnp.eye(shape[0], dtype=dtype)

    return init


def uniform(scale: float = 1.0) -> Initializer:
    """`U(-s, s)` with `s = scale / sqrt(H)`, H the number of units: PyTorch's initialization of recurrent layers."""

    def init(key, shape, dtype=jnp.float32):
        bound = scale / shape[-1] ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def per_gate(init: Initializer, key: Key, rows: int, gates: int, hidden: int, dtype: jnp.dtype) -> Array:
    """One `[rows, hidden]` block a gate, each drawn by `init` with a key of its own: `[rows, gates * hidden]`.

    Drawn in at least float32 and then cast: the decomposition behind `orthogonal` does not exist in 16 bits.
    """
    keys = jax.random.split(key, gates)
    blocks = [init(k, (rows, hidden), carry_dtype(dtype)) for k in keys]
    return jnp.concatenate(blocks, axis=1).astype(dtype)


def gate_bias(**values: float) -> BiasInitializer:
    """A constant for each named gate, 0 for the others: `gate_bias(forget=1.0)` (Jozefowicz et al. 2015).

    Raises ValueError, when the cell is initialized, for a gate that the cell does not have.
    """

    def init(key, gates, hidden, dtype=jnp.float32):
        del key
        if unknown := sorted(set(values) - set(gates)):
            raise ValueError(f"gate_bias names {unknown}, but the gates are {list(gates)}")
        return jnp.repeat(jnp.asarray([values.get(gate, 0.0) for gate in gates], dtype), hidden)

    return init


def chrono(t_max: float) -> BiasInitializer:
    """Chrono initialization (Tallec & Ollivier 2018, arXiv 1804.11188), for dependencies up to `t_max` steps.

        b = log U(1, t_max - 1), one draw a unit

    The gate that keeps the carry ("forget" of an LSTM, "update" of a GRU) starts at b, the gate that writes to it
    ("input") at -b, the others at 0. Raises ValueError unless `t_max > 2`, and for a cell without such gates.
    """
    if not t_max > 2:
        raise ValueError(f"chrono needs t_max > 2 steps, got {t_max}")
    signs = {"forget": 1.0, "update": 1.0, "input": -1.0}

    def init(key, gates, hidden, dtype=jnp.float32):
        if not set(signs) & set(gates):
            raise ValueError(f"chrono sets the gates {sorted(signs)}, but the gates are {list(gates)}")
        b = jnp.log(jax.random.uniform(key, (hidden,), dtype, 1.0, t_max - 1.0))
        return jnp.concatenate([signs.get(gate, 0.0) * b for gate in gates])

    return init
