"""Structure around a cell: skip connections, a learned carry, a head, a loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, carry_dtype, dense
from seqjax.cells.building import check_size
from seqjax.cells.layers import stack
from seqjax.core import Cell, features, inner, out_features
from seqjax.identity import recorded
from seqjax.initializers import Initializer, glorot_uniform


def inside(cell: Cell, name: str = "cell") -> Cell:
    """`cell` with its params under a name, beside those of a wrapper."""
    gated, affine, outer = cell.gated, cell.affine, cell.outer
    return cell._replace(
        initial_carry=lambda params, batch_shape: cell.initial_carry(params[name], batch_shape),
        project=lambda params, x: cell.project(params[name], x),
        transition=lambda params, carry, z: cell.transition(params[name], carry, z),
        readout=lambda params, carry, z: cell.readout(params[name], carry, z),
        gated=gated and gated._replace(weights=lambda params: gated.weights(params[name])),
        affine=affine and (lambda params, z: affine(params[name], z)),
        outer=outer and outer._replace(write=lambda params, z: outer.write(params[name], z)),
    )


@recorded
def residual(cell: Cell) -> Cell:
    """Add the input to the output: `y = cell(x) + x` (He et al. 2016), where both have the same number of features.

    Around a stack this is one skip over all of it, and the stack is then unrolled step by step; for a skip around each
    layer, and the fast path, wrap the layers.

    Raises:
      ValueError: for an output of another width than the input.

    Example:
      >>> cell = seqjax.wrappers.residual(seqjax.cells.gru(3))
      >>> params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 3))  # a GRU that outputs 0
      >>> xs = jax.random.normal(jax.random.key(1), (5, 2, 3))
      >>> bool((seqjax.unroll(cell, params, None, xs)[1] == xs).all())
      True
    """
    base = inner(cell, lambda z: z[0])

    def readout(params, carry, z):
        y = base.readout(params, carry, z)
        if y.shape != z[1].shape:
            raise ValueError(f"residual adds the input {z[1].shape} to the output {y.shape}: they must agree")
        return y + z[1].astype(y.dtype)

    return base._replace(
        project=lambda params, x: (cell.project(params, x), features(x)),
        readout=readout,
    )


@recorded
def highway(cell: Cell, *, bias: float = -1.0, w: Initializer = glorot_uniform()) -> Cell:
    """Carry the input past the cell as far as a gate allows (Srivastava, Greff & Schmidhuber 2015, arXiv 1505.00387).

        t = sigmoid(x @ w_t + b_t)
        y = t * cell(x) + (1 - t) * x

    Input and output have the same number of features D; w_t is [D, D]. The gate starts near `sigmoid(bias)`, so a
    negative bias starts near a plain copy. It is part of the readout, so all steps go through it at once. Around a
    stack this is one gate over all of it, as for `residual`.

    Raises:
      ValueError: for tokens in place of features, or an output of another width.

    Example:
      >>> cell = seqjax.wrappers.highway(seqjax.cells.gru(3), bias=-100.0)
      >>> xs = jnp.ones((5, 2, 3))
      >>> _, ys = seqjax.unroll(cell, cell.init(jax.random.key(0), 3), None, xs)
      >>> bool((ys == xs).all())  # the gate is shut
      True
    """
    base = inner(inside(cell), lambda z: z[0])

    def init(key, in_features):
        if in_features == 0:
            raise ValueError("highway mixes features into the output, and this cell reads tokens")
        k_cell, k_w = jax.random.split(key)
        p = cell.init(k_cell, in_features)
        dtype = jax.tree.leaves(p)[0].dtype
        return {
            "cell": p,
            "w_t": w(k_w, (in_features, in_features), dtype),
            "b_t": jnp.full((in_features,), bias, dtype),
        }

    def readout(params, carry, z):
        y, x = base.readout(params, carry, z), z[1]
        if y.shape != x.shape:
            raise ValueError(f"highway mixes the input {x.shape} into the output {y.shape}: they must agree")
        t = jax.nn.sigmoid(dense(x, params["w_t"], params["b_t"])).astype(y.dtype)
        return t * y + (1 - t) * x.astype(y.dtype)

    return base._replace(
        init=init,
        project=lambda params, x: (cell.project(params["cell"], x), features(x)),
        readout=readout,
    )


@recorded
def learned_carry(cell: Cell) -> Cell:
    """The initial carry as params, `{"cell": ..., "start": ...}`, which begin at the cell's own initial carry.

    It is learned where the carry is made inside the differentiated function, as `unroll(cell, params, None, xs)` does,
    and by `reset`, which goes around it.

    Example:
      >>> cell = seqjax.wrappers.learned_carry(seqjax.cells.min_gru(2))
      >>> params = cell.init(jax.random.key(0), 3)
      >>> grads = jax.grad(lambda params: seqjax.unroll(cell, params, None, jnp.ones((5, 4, 3)))[1].sum())(params)
      >>> params["start"].tolist(), bool((grads["start"] > 0).all())
      ([0.0, 0.0], True)
    """
    if cell.layers:
        layers = cell.layers
        wrapped = tuple(learned_carry(layer) for layer in layers)

        def init_layers(key, in_features):
            p = cell.init(key, in_features)
            return tuple({"cell": q, "start": c.initial_carry(q, ())} for c, q in zip(layers, p, strict=True))

        return stack(*wrapped)._replace(init=init_layers)

    def init(key, in_features):
        p = cell.init(key, in_features)
        return {"cell": p, "start": cell.initial_carry(p, ())}

    def initial_carry(params, batch_shape):
        def start(h):
            # Params may have been cast to 16 bits as a whole.
            return jnp.broadcast_to(h.astype(carry_dtype(h.dtype)), (*batch_shape, *h.shape))

        return jax.tree.map(start, params["start"])

    # The hint `outer` implies that the carry starts at 0, and `reset` relies on it.
    return inside(cell)._replace(init=init, initial_carry=initial_carry, outer=None)


@recorded
def with_head(
    cell: Cell,
    features: int,
    activation: Callable[[Array], Array] = lambda y: y,
    *,
    w: Initializer = glorot_uniform(),
) -> Cell:
    """A dense output map on every step: `y_t = activation(cell(x)_t @ w_y + b_y)`, w_y [H, O], b_y [O].

    It is part of the readout, hence one matrix product over all steps, and an online gradient sees it as the cell's.
    Wrappers that widen the inputs (masks, resets, dropout) go around the cell with its head, not inside it.

    Args:
      cell: any cell, also a stack.
      features: number of outputs O.
      activation: any function of the outputs.
      w: initializer of w_y.

    Raises:
      ValueError: for no outputs.

    Example:
      >>> cell = seqjax.wrappers.with_head(seqjax.cells.lstm(16), 1)
      >>> params = cell.init(jax.random.key(0), 14)
      >>> seqjax.unroll(cell, params, None, jnp.ones((5, 2, 14)))[1].shape
      (5, 2, 1)
    """
    features = check_size("with_head", features, "features")
    if cell.layers:
        return stack(*cell.layers[:-1], with_head(cell.layers[-1], features, activation, w=w))
    base = inside(cell)

    def init(key, in_features):
        k_cell, k_w = jax.random.split(key)
        p = cell.init(k_cell, in_features)
        dtype = jax.tree.leaves(p)[0].dtype
        shape = (out_features(cell, p, in_features), features)
        return {"cell": p, "w_y": w(k_w, shape, dtype), "b_y": jnp.zeros((features,), dtype)}

    def readout(params, carry, z):
        return activation(dense(base.readout(params, carry, z), params["w_y"], params["b_y"]))

    return base._replace(init=init, readout=readout)


@recorded
def with_loss(cell: Cell, loss: Callable[[Any, Any], Array]) -> Cell:
    """Compute the loss of each step in its readout: `x = (x, target)`, `y_t = loss(cell(x)_t, target_t)`.

    With `loss: (y [B, O], target [B, ...]) -> [B]`, `unroll` returns losses [T, B], and `checkpointed` keeps no output.
    Around it, `masked` makes the losses of padding 0.
    """

    def wide(layer: Cell, last: Callable[[Any, Any], Any]) -> Cell:
        narrow = inner(layer, lambda z: z[0])
        return narrow._replace(
            project=lambda params, x: (layer.project(params, x[0]), x[1]),
            readout=lambda params, carry, z: last(narrow.readout(params, carry, z), z[1]),
        )

    if not cell.layers:
        return wide(cell, loss)
    below = (wide(layer, lambda y, target: (y, target)) for layer in cell.layers[:-1])
    return stack(*below, wide(cell.layers[-1], loss))._replace(init=cell.init)
