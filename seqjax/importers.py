"""Trained recurrent layers of Flax, Keras and PyTorch as cells of this library: `from_x(layer) -> (cell, params)`.

    cell, params = importers.from_pytorch(torch.nn.LSTM(14, 64, num_layers=2))
    carry, ys = unroll(cell, params, None, xs)
    rnn = seqjax.nnx.Recurrent(cell, 14, params=params, rngs=nnx.Rngs(0))

Outputs, carries and gradients are the same. Stacked layers become a `cells.stack`; a bidirectional layer becomes a pair
of cells and a pair of params, for `bidirectional` or `seqjax.nnx.Bidirectional`.

What is imported is the recurrence in evaluation mode, from a carry of zeros. How it is run (masks, time axis, which
outputs) is up to `unroll`, and how it is trained (dropout, penalties, frozen weights) to wrappers and optimizers:
docs/flax.md lists where each argument went. Everything else that would change outputs, carries or gradients is refused:
hooks, parametrized weights, other initial carries, layers that run backwards or keep their state between calls,
computation in a narrower dtype than that of the weights. Params have the dtype of the weights, or the wider one of the
computation, and so does our computation. A layer without biases gets biases of 0, which are then trained. Cells with
one bias get the sum of two; a GRU has the bias inside its reset even if the source has none.

No other library is imported: layers are recognized by the names of their classes. Subclasses are refused, since they
may compute something else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from seqjax import cells
from seqjax.arrays import Array, Params
from seqjax.core import Cell

__all__ = ["from_flax", "from_keras", "from_pytorch"]

Imported = tuple[Any, Any]


def from_flax(module: Any) -> Imported:
    """The cell of a `flax.nnx` layer.

    Args:
      module: an nnx.SimpleCell (with `residual`, the identity is added to w_h), LSTMCell, OptimizedLSTMCell or GRUCell;
        an RNN of one; a Bidirectional of two RNN.

    Returns:
      `(cell, params)`; for a Bidirectional a pair of cells and a pair of params. Traceable: gradients with respect to
      the module's own weights pass through.

    Raises:
      TypeError: for another module.
      ValueError: for a `gate_fn`, `activation_fn` or `merge_fn` that no cell here has, a `carry_init`, `reverse`, a
        `dtype` narrower than that of the weights, or linear maps other than Flax's own.
    """
    kind = _kind(module, "flax.nnx", ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell", "RNN", "Bidirectional"))
    if kind == "RNN":
        _only(module, "take the cell (from_flax(rnn.cell)), and unroll it with reverse=True", reverse=(False,))
        return from_flax(module.cell)
    if kind == "Bidirectional":
        _only(module, merge_fn=("_concatenate",))
        return _pair(from_flax(module.forward_rnn), from_flax(module.backward_rnn))
    if module.carry_init is not None:
        given = _name(module.carry_init)
        raise ValueError(f"carry_init={given} of {kind} is not imported: set it to None, and pass unroll a carry")
    if kind == "SimpleCell":
        w_h = _linear(module, "dense_h", bias=False)[0]
        if module.residual:
            w_h = w_h + jnp.eye(w_h.shape[0], dtype=w_h.dtype)
        w_x, b = _linear(module, "dense_i")
        return _simple(w_x, w_h, b, module.activation_fn)
    for name, expected in (("gate_fn", jax.nn.sigmoid), ("activation_fn", jnp.tanh)):
        if getattr(module, name) is not expected:
            raise _no_counterpart(module, name, getattr(module, name), [expected.__name__])
    if kind == "GRUCell":
        w_x, b = _linear(module, "dense_i")
        return _gru(w_x, _linear(module, "dense_h", bias=False)[0], b)
    if kind == "OptimizedLSTMCell":
        w_h, b = _linear(module, "dense_h")
        return _lstm(_linear(module, "dense_i", bias=False)[0], w_h, b)
    of_inputs = [_linear(module, name, bias=False)[0] for name in ("ii", "if_", "ig", "io")]
    of_carry, biases = zip(*(_linear(module, name) for name in ("hi", "hf", "hg", "ho")), strict=True)
    return _lstm(jnp.concatenate(of_inputs, axis=1), jnp.concatenate(of_carry, axis=1), jnp.concatenate(biases))


def _linear(cell: Any, name: str, *, bias: bool = True) -> tuple[Array, Any]:
    """Kernel and bias of a linear map of a Flax cell; `bias` is whether Flax itself gives it one."""
    linear = getattr(cell, name)
    if (kind := type(linear)).__name__ != "Linear" or not kind.__module__.startswith("flax.nnx."):
        raise ValueError(f"{name} of {type(cell).__name__} is a {kind.__name__}, only Flax's Linear can be imported")
    if linear.dot_general is not jax.lax.dot_general:
        raise _no_counterpart(linear, f"{name}.dot_general", linear.dot_general, ["jax.lax.dot_general"])
    if (linear.bias is not None) != bias:
        raise ValueError(f"{name} of {type(cell).__name__} has {'no' if bias else 'a'} bias, unlike Flax's own")
    kernel, b = _array(linear.kernel), _array(linear.bias) if bias else None
    dtype = jnp.dtype(linear.dtype or kernel.dtype)
    if dtype == kernel.dtype:
        return kernel, b
    if jnp.finfo(dtype).bits <= jnp.finfo(kernel.dtype).bits:
        raise ValueError(
            f"dtype={dtype} of {type(cell).__name__} with weights of {kernel.dtype}: use one dtype for both"
        )
    return kernel.astype(dtype), None if b is None else b.astype(dtype)  # a SimpleCell computes in float32 by default


def from_keras(layer: Any) -> Imported:
    """The cell of a Keras 3 layer, on any backend.

    Args:
      layer: a built SimpleRNN, LSTM or GRU, or the cell of one; an RNN of such cells, also StackedRNNCells; a
        Bidirectional of two such layers.

    Returns:
      `(cell, params)`, a GRU as `gru` if `reset_after`, otherwise `gru_reset_before`; for a Bidirectional a pair of
      cells and a pair of params. On the JAX backend traceable, as `from_flax`.

    Raises:
      TypeError: for another layer.
      ValueError: for a layer that is not built; an `activation`, `recurrent_activation`, `merge_mode` or `go_backwards`
        (other than that of the backward layer) without counterpart; `stateful`; or a `dtype` whose computation has
        another dtype than its weights.
    """
    names = ("SimpleRNN", "LSTM", "GRU", "RNN", "SimpleRNNCell", "LSTMCell", "GRUCell", "StackedRNNCells")
    kind = _kind(layer, "keras", (*names, "Bidirectional"))
    if kind in ("SimpleRNN", "LSTM", "GRU", "RNN"):
        _only(layer, "take the cell (from_keras(layer.cell)), and unroll it with reverse=True", go_backwards=(False,))
        return _keras_layer(layer)
    if kind == "StackedRNNCells":
        return _stack([from_keras(cell) for cell in layer.cells])
    if kind == "Bidirectional":
        _only(layer, merge_mode=("concat",))
        _only(layer.forward_layer, go_backwards=(False,))
        _only(layer.backward_layer, go_backwards=(True,))
        return _pair(_keras_layer(layer.forward_layer), _keras_layer(layer.backward_layer))
    if not layer.built:
        raise ValueError(f"from_keras got a {kind} without weights: call or build the layer first")
    if layer.compute_dtype != layer.variable_dtype:
        raise ValueError(
            f"dtype={layer.dtype_policy.name} of {kind} computes in {layer.compute_dtype} with weights of"
            f" {layer.variable_dtype}: make a layer of a single dtype with these weights"
        )
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
        """Swap the gates: Keras has the update gate before the reset gate."""
        update, reset, candidate = jnp.split(w, 3, axis=-1)
        return jnp.concatenate([reset, update, candidate], axis=-1)

    w_x, w_h = reset_first(w_x), reset_first(w_h)
    b = None if b is None else reset_first(b)
    if not layer.reset_after:
        return cells.gru_reset_before(w_h.shape[0], dtype=w_x.dtype), _params(w_x, w_h, b)
    return _gru(w_x, w_h, *((None, None) if b is None else b))


def _keras_layer(layer: Any) -> Imported:
    """The cell of a layer whose direction has been checked."""
    _kind(layer, "keras", ("SimpleRNN", "LSTM", "GRU", "RNN"))
    _only(layer, "set it to False; unroll takes a carry and returns one", stateful=(False,))
    return from_keras(layer.cell)


def from_pytorch(module: Any) -> Imported:
    """The cell of a PyTorch layer.

    Args:
      module: a torch.nn.RNN, LSTM (also with `proj_size`) or GRU, or an RNNCell, LSTMCell or GRUCell; on any device.

    Returns:
      `(cell, params)`; with several `num_layers` the cell is a `cells.stack`. If `bidirectional`, a pair of cells and a
      pair of params; with several `num_layers` too, a list of pairs of cells and a list of pairs of params, one per
      layer, as `seqjax.nnx.Stack` takes them. `dropout` between layers is not part of the cells.

    Raises:
      TypeError: for another module.
      ValueError: for hooks on the module or its weights (weight and spectral norms, pruning), parametrized weights,
        `dropout` of a module in training mode, weights without values ("meta"), or float64 weights where JAX has no
        64-bit types.
    """
    if parametrized := list(getattr(module, "parametrizations", ())):
        raise ValueError(
            f"{parametrized[0]} of {type(module).__name__} is parametrized, which is not imported: call"
            f" torch.nn.utils.parametrize.remove_parametrizations(module, {parametrized[0]!r}) first"
        )
    kind = _kind(module, "torch.nn", ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"))
    for hooks in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
        for hook in getattr(module, hooks).values():
            raise ValueError(
                f"a hook of {kind} ({_name(hook)}) is not imported: remove it; torch.nn.utils.remove_weight_norm,"
                " remove_spectral_norm and prune.remove leave its weights as they are"
            )
    for name, weight in module.named_parameters():
        if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
            raise ValueError(f"{name} of {kind} has a hook for its gradient, which is not imported: remove it")
        if weight.is_meta:
            raise ValueError(f'{name} of {kind} is on the device "meta" and has no values: load them first')
    if getattr(module, "dropout", 0) and module.num_layers > 1 and module.training:
        raise ValueError(
            f"dropout={module.dropout:g} of {kind} is not imported: call module.eval(), and drop by"
            " seqjax.nnx.Stack(..., dropout=...) or regularizers"
        )

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
    """The name of a layer's class, checked to be one of the known classes of the library itself."""
    kind = type(module)
    if kind.__name__ not in known or not f"{kind.__module__}.".startswith(f"{library}."):
        given = f"{kind.__module__}.{kind.__qualname__}"
        raise TypeError(f"no importer for {given}, expected one of {', '.join(known)} of {library}, not a subclass")
    if changed := sorted({"forward", "call", "__call__"} & vars(module).keys()):
        raise ValueError(f"this {kind.__name__} has a method {changed[0]} of its own, which is not imported")
    return kind.__name__


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _no_counterpart(module: Any, name: str, value: Any, expected: Sequence[Any], cure: str = "") -> ValueError:
    given = getattr(value, "__name__", repr(value))
    choices = ", ".join(map(str, expected))
    message = f"{name}={given} of {type(module).__name__} has no counterpart, only {choices} can be imported"
    return ValueError(f"{message}: {cure}" if cure else message)


def _only(module: Any, cure: str = "", **expected: tuple[Any, ...]) -> None:
    """Check settings of a layer: values, or the names of functions."""
    for name, values in expected.items():
        value = getattr(module, name)
        if getattr(value, "__name__", value) not in values:
            raise _no_counterpart(module, name, value, values, cure)


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
    if not getattr(function, "__module__", "").startswith("keras.") or _name(function) not in known:
        raise _no_counterpart(layer, name, function, list(known))
    return _KERAS_ACTIVATIONS[function.__name__]


def _array(weight: Any) -> Array:
    """A weight of any library as an array; a traced JAX array stays traced."""
    if type(weight).__module__.startswith("keras."):
        weight = weight.value
    elif type(weight).__module__.startswith("flax."):
        weight = weight[...]
    if hasattr(weight, "detach"):  # a PyTorch tensor, perhaps from Keras on that backend; NumPy has no bfloat16
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
    """Of the recurrent biases, the candidate's stays inside the reset; the others are added to the input biases."""
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
