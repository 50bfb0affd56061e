"""The layers of seqjax and of its peers in JAX behind one interface; only the layer differs between their programs.

A peer without lengths or recurrent dropout gets what its user would write: the output at the last step is picked by
index, and h is multiplied by a mask before the cell sees it. In a GRU such a mask falls on all of the carry, which is
another function; it is checked against a reference of that function. So is Keras' dropout, which draws a mask for
each gate, and Haiku's GRU, which resets before the product.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx

import seqjax
import seqjax.nnx
from benchmarks.problem import GATES, RATE, Masks, Row, Tree, Weights, no_masks
from seqjax.draws import dropout_mask
from seqjax.regularizers import recurrent_dropout


class Unavailable(ValueError):  # noqa: N818 (it is no error of the benchmark)
    """An entry does not support a row; the message gives the reason."""


class Model(NamedTuple):
    """A layer of a peer for one row.

    Attributes:
      last: `(params, x [B, T, D], lengths [B] or None, key or None) -> [B, H]`, the output at the last real step.
      place: `weights -> params`, differentiable: the gradient of the weights is pulled back through it.
      masks: `key -> Masks` that `last` draws from the key.
      form: which of `problem.STEPS` it computes.
      without: the weights that the peer does not have.
    """

    last: Callable[[Tree, jax.Array, Any, Any], jax.Array]
    place: Callable[[Weights], Tree]
    masks: Callable[[jax.Array], Masks]
    form: str
    without: tuple[str, ...] = ()


def _mask(row: Row, dtype: Any, key: Any) -> Any:
    """The mask [B, H] of one batch, or None where nothing is dropped."""
    return None if key is None else dropout_mask(key, RATE, (row.shape.batch, row.shape.hidden), dtype)


def _masks_of_h(row: Row, dtype: Any, key: jax.Array) -> Masks:
    """What `_mask` on h before the cell is: in a GRU it falls on the carry as well as on the products."""
    mask = _mask(row, jnp.float32 if dtype is None else dtype, key)
    carry = mask if row.cell == "gru" else jnp.ones_like(mask)
    return jax.tree.map(lambda m: m.astype(jnp.float32), Masks(jnp.stack([mask] * GATES[row.cell]), carry))


def _at_own_end(hs: jax.Array, lengths: Any) -> jax.Array:
    """Of outputs [B, T, H] those at the last real steps [B, H]."""
    return hs[:, -1] if lengths is None else hs[jnp.arange(len(hs)), lengths - 1]


def _gates(row: Row, w: Weights) -> dict[str, list[jax.Array]]:
    """w_x, w_h and b, cut into gates."""
    return {name: jnp.split(w[name], GATES[row.cell], axis=-1) for name in ("w_x", "w_h", "b")}


def _joined(gates: dict[str, list[jax.Array]], order: list[int]) -> dict[str, jax.Array]:
    """Gates put together in another order."""
    return {name: jnp.concatenate([parts[k] for k in order], axis=-1) for name, parts in gates.items()}


def seqjax_model(row: Row, dtype: Any, method: Any) -> Model:
    """`seqjax.nnx.Recurrent`, solved by `method`."""
    zeros: Any = jax.nn.initializers.zeros  # replaced by `place`; an orthogonal draw would take seconds
    cell = getattr(seqjax.cells, row.cell)(row.shape.hidden, w_x=zeros, w_h=zeros, dtype=dtype)
    rate = RATE if row.condition == "dropout" else 0.0
    rnn = seqjax.nnx.Recurrent(
        cell,
        row.shape.features,
        regularizers=[partial(recurrent_dropout, rate=rate)],
        return_sequences=False,
        method=method,
        rngs=nnx.Rngs(0),
    )
    graph, params, rest = nnx.split(rnn, nnx.Param, ...)
    names = tuple(nnx.to_pure_dict(params)["cell_params"])

    def last(params, x, lengths, key):
        rngs = None if key is None else nnx.Rngs(dropout=key)
        return nnx.merge(graph, params, rest, copy=True)(x, seq_lengths=lengths, rngs=rngs)

    def masks(key):
        carry = cell.initial_carry(rnn.weights, (row.shape.batch,))
        mask = recurrent_dropout(cell, RATE)[1](nnx.Rngs(dropout=key).dropout(), carry, None).value
        return no_masks(row)._replace(product=jnp.stack([mask] * GATES[row.cell]))

    return Model(last, lambda w: {"cell_params": {name: w[name] for name in names}}, masks, row.cell)


class _NNXDropped(nnx.RNNCellBase):
    """A cell of Flax NNX whose h is masked."""

    def __init__(self, cell: Any):
        self.cell = cell
        self.mask = nnx.Variable(jnp.zeros(()))

    def __call__(self, carry, inputs):
        m = self.mask[...]
        return self.cell((carry[0], carry[1] * m) if isinstance(carry, tuple) else carry * m, inputs)

    def initialize_carry(self, *args, **options):
        return self.cell.initialize_carry(*args, **options)

    @property
    def num_feature_axes(self) -> int:
        return 1


def flax_nnx_model(row: Row, dtype: Any) -> Model:
    """`nnx.RNN` over `SimpleCell`, `OptimizedLSTMCell` and `GRUCell`, each with one product for its gates."""
    cells: dict[str, Any] = {"rnn": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}
    options: Any = {"dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(0)}
    options |= dict.fromkeys(("kernel_init", "recurrent_kernel_init"), nnx.initializers.zeros)
    cell = cells[row.cell](row.shape.features, row.shape.hidden, **options)
    dropped = row.condition == "dropout"
    graph, _, rest = nnx.split(nnx.RNN(_NNXDropped(cell) if dropped else cell), nnx.Param, ...)

    def last(params, x, lengths, key):
        rnn: Any = nnx.merge(graph, params, rest, copy=True)
        if key is not None:
            rnn.cell.mask.set_value(_mask(row, dtype, key))
        if lengths is None:
            return rnn(x)[:, -1]
        carry, _ = rnn(x, seq_lengths=lengths, return_carry=True)
        return carry[1] if isinstance(carry, tuple) else carry

    def place(w):
        x, h = {"kernel": w["w_x"]}, {"kernel": w["w_h"]}
        (h if row.cell == "lstm" else x)["bias"] = w["b"]
        dense = {"dense_i": x, "dense_h": h}
        return {"cell": {"cell": dense} if dropped else dense}

    return Model(last, place, partial(_masks_of_h, row, dtype), row.cell, ("b_n",))


class _LinenDropped(linen.RNNCellBase):
    """A cell of Flax Linen whose h is masked."""

    cell: Any
    mask: Any

    def __call__(self, carry, inputs):
        m = self.mask
        return self.cell((carry[0], carry[1] * m) if isinstance(carry, tuple) else carry * m, inputs)

    @linen.nowrap
    def initialize_carry(self, rng, input_shape):
        return self.cell.initialize_carry(rng, input_shape)

    @property
    def num_feature_axes(self) -> int:
        return 1


def flax_linen_model(row: Row, dtype: Any) -> Model:
    """`linen.RNN` over `SimpleCell`, `OptimizedLSTMCell` and `GRUCell`."""
    cells: dict[str, Any] = {"rnn": linen.SimpleCell, "lstm": linen.OptimizedLSTMCell, "gru": linen.GRUCell}
    cell = cells[row.cell](row.shape.hidden, dtype=dtype, param_dtype=dtype)
    dropped = row.condition == "dropout"

    def last(params, x, lengths, key):
        rnn: Any = linen.RNN(_LinenDropped(cell, _mask(row, dtype, key)) if dropped else cell)
        if lengths is None:
            return rnn.apply(params, x)[:, -1]
        carry, _ = rnn.apply(params, x, seq_lengths=lengths, return_carry=True)
        return carry[1] if isinstance(carry, tuple) else carry

    def place(w):
        parts = _gates(row, w)
        names = {"rnn": ("",), "lstm": "ifgo", "gru": "rzn"}[row.cell]
        dense: dict[str, Any] = {}
        for name, w_x, w_h, b in zip(names, *parts.values(), strict=True):
            dense[f"i{name}"], dense[f"h{name}"] = {"kernel": w_x}, {"kernel": w_h}
            dense[f"h{name}" if row.cell == "lstm" else f"i{name}"]["bias"] = b
        if row.cell == "gru":
            dense["hn"]["bias"] = w["b_n"]
        return {"params": {"cell": {"cell": dense} if dropped else dense}}

    return Model(last, place, partial(_masks_of_h, row, dtype), row.cell)


def keras_model(row: Row, dtype: Any) -> Model:
    """`keras.layers.SimpleRNN`, `LSTM` and `GRU` on the JAX backend, through `stateless_call`."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    shape = row.shape
    layers = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
    rate = RATE if row.condition == "dropout" else 0.0
    start: Any = dict.fromkeys(("kernel_initializer", "recurrent_initializer"), "zeros")
    layer = layers[row.cell](shape.hidden, recurrent_dropout=rate, dtype=jnp.dtype(dtype).name, **start)
    layer.build((shape.batch, shape.steps, shape.features))
    [seed] = layer.non_trainable_variables

    def last(params, x, lengths, key):
        mask = None if lengths is None else jnp.arange(shape.steps).reshape(1, -1) < lengths.reshape(-1, 1)
        state = seed.value if key is None else jax.random.key_data(key)
        return layer.stateless_call(params, [state], x, mask=mask, training=True)[0]

    def place(w):
        if row.cell != "gru":
            return [w["w_x"], w["w_h"], w["b"]]
        gates = _joined(_gates(row, w), [1, 0, 2])
        zeros = jnp.zeros_like(w["b_n"])
        return [gates["w_x"], gates["w_h"], jnp.stack([gates["b"], jnp.concatenate([zeros, zeros, w["b_n"]])])]

    def masks(key):
        ones = jnp.ones((shape.batch, shape.hidden))
        with keras.StatelessScope([(seed, jax.random.key_data(key))]):
            drawn: Any = [
                keras.random.dropout(ones, RATE, seed=layer.cell.seed_generator) for _ in range(GATES[row.cell])
            ]
        drawn = [drawn[k] for k in (1, 0, 2)] if row.cell == "gru" else drawn
        return no_masks(row)._replace(product=jnp.stack(drawn))

    return Model(last, place, masks, row.cell)


def haiku_model(row: Row, dtype: Any) -> Model:
    """`hk.dynamic_unroll` over `hk.LSTM` and `hk.GRU`, and over a core with tanh: `hk.VanillaRNN` has ReLU only."""
    import haiku as hk  # pyright: ignore[reportMissingImports]

    class TanhRNN(hk.VanillaRNN):
        def __call__(self, inputs, prev_state):
            parts = hk.Linear(self.hidden_size)(inputs), hk.Linear(self.hidden_size, with_bias=False)(prev_state)
            out = jnp.tanh(sum(parts))
            return out, out

    def forward(x, lengths, mask):
        core: Any = {"rnn": TanhRNN, "lstm": hk.LSTM, "gru": hk.GRU}[row.cell](row.shape.hidden, name="core")

        def dropped(x, state):
            h = state.hidden if row.cell == "lstm" else state
            return core(x, state._replace(hidden=h * mask) if row.cell == "lstm" else h * mask)

        start = jax.tree.map(lambda leaf: leaf.astype(dtype), core.initial_state(row.shape.batch))
        hs: Any = hk.dynamic_unroll(core if mask is None else dropped, x, start, time_major=False)[0]
        return _at_own_end(hs, lengths)

    net = hk.without_apply_rng(hk.transform(forward))

    def place(w):
        if row.cell == "rnn":
            return {"core/linear": {"w": w["w_x"], "b": w["b"]}, "core/linear_1": {"w": w["w_h"]}}
        parts = _gates(row, w)
        if row.cell == "lstm":
            parts["b"][1] = parts["b"][1] - 1  # Haiku adds 1 to the forget gate
            gates = _joined(parts, [0, 2, 1, 3])
            return {"core/linear": {"w": jnp.concatenate([gates["w_x"], gates["w_h"]]), "b": gates["b"]}}
        for part in parts.values():
            part[1] = -part[1]  # its update gate lets the candidate in, ours keeps the carry
        gates = _joined(parts, [1, 0, 2])
        return {"core": {"w_i": gates["w_x"], "w_h": gates["w_h"], "b": gates["b"]}}

    form = "gru_reset_before" if row.cell == "gru" else row.cell
    return Model(
        lambda params, x, lengths, key: net.apply(params, x, lengths, _mask(row, dtype, key)),
        place,
        partial(_masks_of_h, row, dtype),
        form,
        ("b_n",),
    )


def equinox_model(row: Row, dtype: Any) -> Model:
    """`eqx.nn.LSTMCell` and `eqx.nn.GRUCell` in a `lax.scan` over one sequence, under `vmap`."""
    import equinox as eqx  # pyright: ignore[reportMissingImports]

    if row.cell == "rnn":
        raise Unavailable("Equinox has no simple recurrent cell")
    cells: dict[str, Any] = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}
    make = partial(cells[row.cell], row.shape.features, row.shape.hidden, dtype=dtype)
    cell = eqx.filter_eval_shape(make, key=jax.random.key(0))
    shapes, static = eqx.partition(cell, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def one(params, x, length, mask):
        cell = eqx.combine(params, static)

        def step(state, x):
            if mask is not None:
                state = (state[0] * mask, state[1]) if row.cell == "lstm" else state * mask
            state = cell(x, state)
            return state, None if length is None else jax.tree.leaves(state)[0]

        zeros = jnp.zeros(row.shape.hidden, dtype)
        state, hs = jax.lax.scan(step, (zeros, zeros) if row.cell == "lstm" else zeros, x)
        return jax.tree.leaves(state)[0] if hs is None else hs[length - 1]

    def last(params, x, lengths, key):
        mask = _mask(row, dtype, key)
        axes = (None, 0, None if lengths is None else 0, None if mask is None else 0)
        return jax.vmap(one, axes)(params, x, lengths, mask)

    def place(w):
        placed = eqx.tree_at(lambda c: (c.weight_ih, c.weight_hh, c.bias), shapes, (w["w_x"].T, w["w_h"].T, w["b"]))
        return eqx.tree_at(lambda c: c.bias_n, placed, w["b_n"]) if row.cell == "gru" else placed

    return Model(last, place, partial(_masks_of_h, row, dtype), row.cell)


def cudnn_model(row: Row, dtype: Any) -> Model:
    """cuDNN's LSTM, by `jax.experimental.rnn`: float32 on an NVIDIA GPU."""
    from jax.experimental import rnn

    if jax.default_backend() != "gpu" or row.cell != "lstm" or row.condition == "dropout" or dtype != jnp.float32:
        raise Unavailable("jax.experimental.rnn has an LSTM in float32 on an NVIDIA GPU, without recurrent dropout")
    batch, steps, features, hidden = row.shape

    def last(params, x, lengths, key):
        zeros = jnp.zeros((1, batch, hidden))
        real = jnp.full(batch, steps, jnp.int32) if lengths is None else lengths
        found: Any = rnn.lstm(x, zeros, zeros, params, real, features, hidden, 1, 0.0, False)
        return found[1][0]

    def place(w):
        biases = [w["b"], jnp.zeros_like(w["b"])]
        return jnp.concatenate([w["w_x"].T.ravel(), w["w_h"].T.ravel(), *biases])

    return Model(last, place, partial(_masks_of_h, row, dtype), row.cell)
