"""How other libraries and papers initialize a recurrent layer, as keyword arguments of a cell.

    cell = seqjax.cells.lstm(64, **presets.keras())

Each sets the input weights `w_x`, the recurrent weights `w_h` and the biases `b` of any cell that takes them (and the
second bias `b_n` of a GRU, which otherwise starts at 0), so that the params are distributed as those of the source.
Single entries can be replaced: `lstm(64, **presets.keras() | {"b": initializers.chrono(100)})`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from seqjax import initializers
from seqjax.draws import cast_last
from seqjax.initializers import gate_bias, glorot_uniform, identity, jointly, lecun_normal, normal, orthogonal, uniform

__all__ = ["chrono", "flax", "irnn", "keras", "pytorch"]


def keras() -> dict[str, Any]:
    """`keras.layers.SimpleRNN`, `LSTM` and `GRU` (Keras 3).

    Glorot uniform and orthogonal, each one draw for all gates; biases 0, those of a forget gate 1.

    Example:
      >>> w = seqjax.cells.lstm(16, **seqjax.presets.keras()).init(jax.random.key(0), 14)["w_h"]  # [16, 4 * 16]
      >>> bool(jnp.allclose(w @ w.T, jnp.eye(16), atol=1e-5))
      True
    """
    return {"w_x": jointly(glorot_uniform()), "w_h": jointly(orthogonal()), "b": initializers.unit_forget()}


def flax(*, packed: bool = False) -> dict[str, Any]:
    """`flax.nnx.SimpleCell` and `LSTMCell`; with `packed`, `GRUCell` and `OptimizedLSTMCell`.

    LeCun normal, orthogonal, biases 0. With `packed`, the recurrent weights are one orthogonal draw for all gates.
    """
    return {"w_x": lecun_normal(), "w_h": jointly(orthogonal()) if packed else orthogonal(), "b": gate_bias()}


def pytorch(*, gru: bool = False) -> dict[str, Any]:
    """`torch.nn.RNN` and `LSTM`; with `gru`, `GRU`: everything `U(-1 / sqrt(H), 1 / sqrt(H))`.

    PyTorch adds two biases where the cells here have one, which is drawn as the sum of two. In the candidate of a GRU
    one of the two is inside the reset, the `b_n` of `cells.gru`: `b_n` and `b` are then one draw each.
    """

    @cast_last
    def b(key, gates, hidden, dtype=jnp.float32):
        of_inputs, of_carry = (initializers.uniform_bias()(k, gates, hidden, dtype) for k in jax.random.split(key))
        one_of_two = jnp.repeat(jnp.asarray([gru and gate == "candidate" for gate in gates]), hidden)
        return of_inputs + jnp.where(one_of_two, 0.0, of_carry)

    preset = {"w_x": uniform(), "w_h": uniform(), "b": b}
    return preset | {"b_n": initializers.uniform_bias()} if gru else preset


def chrono(t_max: float) -> dict[str, Any]:
    """Biases for dependencies up to `t_max` steps (Tallec & Ollivier 2018), see `initializers.chrono`.

    The weights are the cell's defaults. Raises ValueError unless `t_max > 2`.
    """
    return {"b": initializers.chrono(t_max)}


def irnn(scale: float = 1.0) -> dict[str, Any]:
    """The IRNN (Le, Jaitly & Hinton 2015, arXiv 1504.00941), for `cells.rnn`.

    ReLU, recurrent weights `scale` times the identity, input weights `N(0, 0.001^2)`, biases 0.

    Example:
      >>> cell = seqjax.cells.rnn(2, **seqjax.presets.irnn())
      >>> params = cell.init(jax.random.key(0), 3)
      >>> seqjax.unroll(cell, params, jnp.array([[1.0, 2.0]]), jnp.zeros((100, 1, 3)))[0].tolist()  # kept
      [[1.0, 2.0]]
    """
    return {"activation": jax.nn.relu, "w_x": normal(1e-3), "w_h": identity(scale), "b": gate_bias()}
