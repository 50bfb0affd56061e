"""Trained recurrent layers of Flax, Keras and PyTorch as cells of this library: `from_x(layer) -> (cell, params)`.

    cell, params = importers.from_pytorch(torch.nn.LSTM(14, 64, num_layers=2))
    carry, ys = unroll(cell, params, None, xs)
    rnn = seqjax.nnx.Recurrent(cell, 14, params=params, rngs=nnx.Rngs(0))

The same outputs, carries and gradients. Layers on top of each other become a `cells.stack`; a layer in both directions
becomes a pair of cells and a pair of params, for `bidirectional` or `seqjax.nnx.Bidirectional`.

What is imported is the recurrence. How it is run (reverse, masks, time axis) is said to `unroll`, and how it is trained
(dropout, penalties, frozen weights) to wrappers and optimizers: docs/flax.md says where each argument went. Params have
the dtype of the weights, and so has the computation. A layer without biases gets biases of 0, which training moves.
Cells with one bias get the sum of two; the bias inside the reset of a GRU is there also where the source has none.

No library is imported for this: layers are known by the names of their classes. A subclass may compute something
else, so it is refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from seqjax import cells
from seqjax.core import Array, Cell, Params

__all__ = ["from_flax", "from_keras", "from_pytorch"]

Imported = tuple[Any, Any]


def from_flax(module: Any) -> Imported:
    """The cell of a `flax.nnx` layer.

    Args:
      module: an nnx.SimpleCell (with `residual`, the identity is added to w_h), LSTMCell, OptimizedLSTMCell or GRUCell;
        an RNN of one; a Bidirectional of two RNN.

    Returns:
      `(cell, params)`, of a Bidirectional two pairs. Traceable: the gradient for the module's own weights goes through.

    Raises:
      TypeError: for another module.
      ValueError: for a `gate_fn`, `activation_fn` or `merge_fn` that no cell here has.
    """
    kind = _kind(module, "flax.nnx", ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell", "RNN", "Bidirectional"))
    if kind == "RNN":
        return from_flax(module.cell)
    if kind == "Bidirectional":
        _only(module, merge_fn=("_concatenate",))
        return _pair(from_flax(module.forward_rnn), from_flax(module.backward_rnn))
    if kind == "SimpleCell":
        w_h = _array(module.dense_h.kernel)
        if module.residual:
            w_h = w_h + jnp.eye(w_h.shape[0], dtype=w_h.dtype)
        return _simple(_array(module.dense_i.kernel), w_h, _array(module.dense_i.bias), module.activation_fn)
    for name, expected in (("gate_fn", jax.nn.sigmoid), ("activation_fn", jnp.tanh)):
        if getattr(module, name) is not expected:
            raise _no_counterpart(module, name, getattr(module, name), [expected.__name__])
    if kind == "GRUCell":
        return _gru(_array(module.dense_i.kernel), _array(module.dense_h.kernel), _array(module.dense_i.bias))
    if kind == "OptimizedLSTMCell":
        return _lstm(_array(module.dense_i.kernel), _array(module.dense_h.kernel), _array(module.dense_h.bias))
    of_inputs = (module.ii, module.if_, module.ig, module.io)
    of_carry = (module.hi, module.hf, module.hg, module.ho)
    return _lstm(
        jnp.concatenate([_array(part.kernel) for part in of_inputs], axis=1),
        jnp.concatenate([_array(part.kernel) for part in of_carry], axis=1),
        jnp.concatenate([_array(part.bias) for part in of_carry]),
    )


def from_keras(layer: Any) -> Imported:
    """The cell of a Keras 3 layer, on any backend.

    Args:
      layer: a built SimpleRNN, LSTM or GRU, or the cell of one; an RNN of such cells, also StackedRNNCells; a
        Bidirectional of two such layers.

    Returns:
      `(cell, params)`: `gru` where `reset_after`, otherwise `gru_reset_before`; of a Bidirectional two pairs. On JAX
      traceable, as `from_flax`.

    Raises:
      TypeError: for another layer.
      ValueError: for a layer without weights yet, or an `activation`, `recurrent_activation`, `merge_mode` or
        `go_backwards` (of a forward layer) that has no counterpart.
    """
    names = ("SimpleRNN", "LSTM", "GRU", "RNN", "SimpleRNNCell", "LSTMCell", "GRUCell", "StackedRNNCells")
    kind = _kind(layer, "keras", (*names, "Bidirectional"))
    if kind in ("SimpleRNN", "LSTM", "GRU", "RNN"):
        return from_keras(layer.cell)
    if kind == "StackedRNNCells":
        return _stack([from_keras(cell) for cell in layer.cells])
    if kind == "Bidirectional":
        _only(layer, merge_mode=("concat",))
        _only(layer.forward_layer, go_backwards=(False,))
        return _pair(from_keras(layer.forward_layer), from_keras(layer.backward_layer))
    if not layer.built:
        raise ValueError(f"from_keras got a {kind} without weights: call or build the layer first")
    activation = _keras_activation(layer, "activation", _KERAS_ACTIVATIONS)
    w_x, w_h = _array(layer.kernel), _array(layer.recurrent_kernel)
    b = None if layer.bias is None else _array(layer.bias)
    if kind == "SimpleRNNCell":
        return _simple(w_x, w_h, b, activation)
    _keras_activation(layer, "activation", ("tanh",))
    _keras_activation(layer, "recurrent_activation", ("sigmoid",))
    if kind == "LSTMCell":
        return _lstm(w_x, w_h, b)

    def reset_first(w):
        """Keras has the update gate before the reset gate."""
        update, reset, candidate = jnp.split(w, 3, axis=-1)
        return jnp.concatenate([reset, update, candidate], axis=-1)

    w_x, w_h = reset_first(w_x), reset_first(w_h)
    b = None if b is None else reset_first(b)
    if not layer.reset_after:
        return cells.gru_reset_before(w_h.shape[0], dtype=w_x.dtype), _params(w_x, w_h, b)
    return _gru(w_x, w_h, *((None, None) if b is None else b))


def from_pytorch(module: Any) -> Imported:
    """The cell of a PyTorch layer.

    Args:
      module: a torch.nn.RNN, LSTM (also with `proj_size`) or GRU, or an RNNCell, LSTMCell or GRUCell; on any device.

    Returns:
      `(cell, params)`, with `num_layers` a `cells.stack`. Where `bidirectional`, two pairs; with `num_layers` too, a
      list of pairs of cells and a list of pairs of params, one a layer, which is what `seqjax.nnx.Stack` takes.
      `dropout` between layers is not part of the cells.

    Raises:
      TypeError: for another module.
      ValueError: for float64 weights where JAX has no 64-bit types.
    """
    kind = _kind(module, "torch.nn", ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"))

    def layer(suffix=""):
        w_x, w_h = (_array(getattr(module, f"weight_{part}{suffix}")).T for part in ("ih", "hh"))
        b_x, b_h = (_array(getattr(module, f"bias_{part}{suffix}")) if module.bias else None for part in ("ih", "hh"))
        if kind.startswith("GRU"):
            return _gru(w_x, w_h, b_x, b_h)
        b = None if b_x is None or b_h is None else b_x + b_h
        if kind.startswith("RNN"):
            return _simple(w_x, w_h, b, {"tanh": jnp.tanh, "relu": jax.nn.relu}[module.nonlinearity])
        projected = getattr(module, "proj_size", 0) > 0
        return _lstm(w_x, w_h, b, _array(getattr(module, f"weight_hr{suffix}")).T if projected else None)

    if kind.endswith("Cell"):
        return layer()
    suffixes = [f"_l{i}" for i in range(module.num_layers)]
    if not module.bidirectional:
        return _stack([layer(suffix) for suffix in suffixes])
    pairs = [_pair(layer(suffix), layer(f"{suffix}_reverse")) for suffix in suffixes]
    return pairs[0] if len(pairs) == 1 else ([pair for pair, _ in pairs], [params for _, params in pairs])


def _kind(module: Any, library: str, known: tuple[str, ...]) -> str:
    """The name of the class of a layer, if it is one of the known ones of the library itself."""
    kind = type(module)
    if kind.__name__ not in known or not f"{kind.__module__}.".startswith(f"{library}."):
        given = f"{kind.__module__}.{kind.__qualname__}"
        raise TypeError(f"no importer for {given}, expected one of {', '.join(known)} of {library}, no subclass")
    return kind.__name__


def _no_counterpart(module: Any, name: str, value: Any, expected: Sequence[Any]) -> ValueError:
    given = getattr(value, "__name__", repr(value))
    choices = ", ".join(map(str, expected))
    return ValueError(f"{name}={given} of {type(module).__name__} has no counterpart, only {choices} can be imported")


def _only(module: Any, **expected: tuple[Any, ...]) -> None:
    """Check settings of a layer by their values, or functions by their names."""
    for name, values in expected.items():
        value = getattr(module, name)
        if getattr(value, "__name__", value) not in values:
            raise _no_counterpart(module, name, value, values)


_KERAS_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "elu": jax.nn.elu,
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "tanh": jnp.tanh,
}


def _keras_activation(layer: Any, name: str, known: Sequence[str] | dict) -> Callable[[Array], Array]:
    function = getattr(layer, name)
    if not function.__module__.startswith("keras.") or function.__name__ not in known:
        raise _no_counterpart(layer, name, function, list(known))
    return _KERAS_ACTIVATIONS[function.__name__]


def _array(weight: Any) -> Array:
    """A weight of any library; on JAX a traced one stays traced."""
    if type(weight).__module__.startswith("keras."):
        weight = weight.value
    elif type(weight).__module__.startswith("flax."):
        weight = weight[...]
    if hasattr(weight, "detach"):  # a tensor of PyTorch, also where Keras runs on it; NumPy has no bfloat16
        weight = weight.detach().cpu()
        narrow = str(weight.dtype) == "torch.bfloat16"
        array = jnp.asarray(weight.float().numpy(), jnp.bfloat16) if narrow else weight.numpy()
    else:
        array = weight
    if str(array.dtype) == "float64" and jnp.result_type(float) != jnp.float64:
        raise ValueError('the weights are float64: set jax.config.update("jax_enable_x64", True), or convert the layer')
    return jnp.asarray(array)


def _simple(w_x: Array, w_h: Array, b: Array | None, activation: Callable[[Array], Array]) -> tuple[Cell, Params]:
    return cells.rnn(w_h.shape[0], activation, dtype=w_x.dtype), _params(w_x, w_h, b)


def _lstm(w_x: Array, w_h: Array, b: Array | None, w_p: Array | None = None) -> tuple[Cell, Params]:
    hidden = w_x.shape[1] // 4
    if w_p is None:
        return cells.lstm(hidden, dtype=w_x.dtype), _params(w_x, w_h, b)
    return cells.projected_lstm(hidden, w_p.shape[1], dtype=w_x.dtype), {**_params(w_x, w_h, b), "w_p": w_p}


def _gru(w_x: Array, w_h: Array, b_x: Array | None, b_h: Array | None = None) -> tuple[Cell, Params]:
    """Of the biases of the carry, that of the candidate stays inside the reset; the others add up with the inputs'."""
    hidden = w_h.shape[0]
    params = _params(w_x, w_h, b_x)
    b_h = jnp.zeros_like(params["b"]) if b_h is None else b_h
    outside = jnp.concatenate([b_h[: 2 * hidden], jnp.zeros_like(b_h[2 * hidden :])])
    return cells.gru(hidden, dtype=w_x.dtype), {**params, "b": params["b"] + outside, "b_n": b_h[2 * hidden :]}


def _params(w_x: Array, w_h: Array, b: Array | None) -> dict[str, Array]:
    return {"w_x": w_x, "w_h": w_h, "b": jnp.zeros(w_x.shape[1:], w_x.dtype) if b is None else b}


def _stack(layers: Sequence[tuple[Cell, Params]]) -> tuple[Cell, Params]:
    if len(layers) == 1:
        return layers[0]
    return cells.stack(*(cell for cell, _ in layers)), tuple(params for _, params in layers)


def _pair(forward: Imported, backward: Imported) -> Imported:
    return (forward[0], backward[0]), (forward[1], backward[1])
