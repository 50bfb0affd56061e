"""Initial values of gate biases."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from seqjax.arrays import Array, Key
from seqjax.draws import cast_last
from seqjax.initializers.weights import Initializer

BiasInitializer = Callable[[Key, tuple[str, ...], int, DTypeLike], Array]
"""An initializer of the biases of all gates: `(key, names of the gates, H, dtype) -> array [gates * H]`."""


def gate_bias(**values: float) -> BiasInitializer:
    """A constant for each named gate and 0 for the others: `gate_bias(forget=1.0)` (Jozefowicz et al. 2015).

    Raises ValueError, when the cell is initialized, for a gate that the cell does not have.

    Example:
      >>> b = seqjax.initializers.gate_bias(forget=1.0)
      >>> b(jax.random.key(0), ("input", "forget"), 2).tolist()
      [0.0, 0.0, 1.0, 1.0]
    """

    def init(key, gates, hidden, dtype=jnp.float32):
        del key
        if unknown := sorted(set(values) - set(gates)):
            raise ValueError(f"gate_bias names {unknown}, but the gates are {list(gates)}")
        return jnp.repeat(jnp.asarray([values.get(gate, 0.0) for gate in gates], dtype), hidden)

    return init


def unit_forget() -> BiasInitializer:
    """1 for the gate "forget", if the cell has one, and 0 for all others: the default of Keras.

    In contrast, `gate_bias(forget=1.0)` refuses a cell without that gate.
    """

    def init(key, gates, hidden, dtype=jnp.float32):
        return gate_bias(**{gate: 1.0 for gate in gates if gate == "forget"})(key, gates, hidden, dtype)

    return init


def from_jax(init: Initializer) -> BiasInitializer:
    """The biases of all gates as one draw of a JAX initializer `(key, shape [len(gates) * H], dtype)`.

    As `bias_init` in Flax: `lstm(64, b=from_jax(jax.nn.initializers.constant(0.1)))`. Weight initializers need no
    adapter.
    """

    @cast_last
    def draw(key, gates, hidden, dtype=jnp.float32):
        return init(key, (len(gates) * hidden,), dtype)

    return draw


def uniform_bias(scale: float = 1.0) -> BiasInitializer:
    """`U(-s, s)` with `s = scale / sqrt(H)`: `uniform` for the biases of all gates."""

    @cast_last
    def init(key, gates, hidden, dtype=jnp.float32):
        bound = scale / hidden**0.5
        return jax.random.uniform(key, (len(gates) * hidden,), dtype, -bound, bound)

    return init


def _signed_by_gate(name: str, gates: tuple[str, ...], b: Array) -> Array:
    """`b` [H] for the gate that keeps the carry, -b for the one that writes to it, 0 for the others."""
    signs = {"forget": 1.0, "update": 1.0, "input": -1.0}
    if not set(signs) & set(gates):
        raise ValueError(f"{name} sets the gates {sorted(signs)}, but the gates are {list(gates)}")
    return jnp.concatenate([signs.get(gate, 0.0) * b for gate in gates])


def chrono(t_max: float) -> BiasInitializer:
    """Chrono initialization (Tallec & Ollivier 2018, arXiv 1804.11188), for dependencies up to `t_max` steps.

        b = log U(1, t_max - 1), one draw per unit

    The gate that keeps the carry ("forget" of an LSTM, "update" of a GRU) starts at b, the gate that writes to it
    ("input") at -b, the others at 0. Raises ValueError unless `t_max > 2`, and for a cell without such gates.

    Example:
      >>> cell = seqjax.cells.lstm(3, b=seqjax.initializers.chrono(100))
      >>> i, f, _, _ = jnp.split(cell.init(jax.random.key(0), 2)["b"], 4)
      >>> bool((i == -f).all()), bool((f >= 0).all() and (f <= jnp.log(99)).all())
      (True, True)
    """
    if not t_max > 2:
        raise ValueError(f"chrono needs t_max > 2 steps, got {t_max}")

    @cast_last
    def init(key, gates, hidden, dtype=jnp.float32):
        return _signed_by_gate("chrono", gates, jnp.log(jax.random.uniform(key, (hidden,), dtype, 1.0, t_max - 1.0)))

    return init


def uniform_gate() -> BiasInitializer:
    """Uniform gate initialization (Gu et al. 2020, arXiv 1910.09890): the gate that keeps starts uniformly in (0, 1).

        b = log(u / (1 - u)),   u ~ U(1 / H, 1 - 1 / H), one draw per unit

    As in `chrono`, b is for "forget" or "update", and -b for "input", which thus starts at 1 minus the forget gate.
    Raises ValueError for a single unit, whose interval is empty, and for a cell without such gates.

    Example:
      >>> b = seqjax.initializers.uniform_gate()(jax.random.key(0), ("reset", "update", "candidate"), 1000)
      >>> update = jax.nn.sigmoid(b[1000:2000])
      >>> round(update.min().item(), 2), round(update.mean().item(), 1), round(update.max().item(), 2)
      (0.0, 0.5, 1.0)
    """

    @cast_last
    def init(key, gates, hidden, dtype=jnp.float32):
        if hidden < 2:
            raise ValueError(f"uniform_gate draws from [1 / H, 1 - 1 / H] and needs H > 1 units, got {hidden}")
        u = jax.random.uniform(key, (hidden,), dtype, 1 / hidden, 1 - 1 / hidden)
        return _signed_by_gate("uniform_gate", gates, jax.scipy.special.logit(u))

    return init
