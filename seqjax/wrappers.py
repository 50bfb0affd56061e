"""Wrappers: `Cell -> Cell`, each of them mapping the hints of the cell that it wraps.

A wrapper that needs one more input takes `x = (x, extra)`. The features are the first leaf of x, however deep. Around a
stack, a wrapper goes around every layer, so that the layers stay on their fast paths. (Noise: `regularizers`.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.cells.stack import stack
from seqjax.core import (
    Array,
    Cell,
    Complex,
    Const,
    Gated,
    Tree,
    dense,
    features,
    inner,
    is_complex,
    is_const,
    like,
    multiply,
    out_features,
    select,
    with_features,
)
from seqjax.initializers import Initializer, glorot_uniform


def over_layers(cell: Cell, wrapped: tuple[Cell, ...], pick: Callable[[Tree, int], Tree]) -> Cell:
    """A stack of wrapped layers, where layer i takes `(x, pick(extra, i))` and hands `extra` on."""
    last = len(wrapped) - 1

    def layer(i: int, wrap: Cell) -> Cell:
        narrow = inner(wrap, lambda z: z[0])
        hand_on = narrow._replace(
            project=lambda params, x: (wrap.project(params, (x[0], pick(x[1], i))), x[1]),
            readout=lambda params, carry, z: (narrow.readout(params, carry, z), z[1]),
        )
        return hand_on if i < last else hand_on._replace(readout=narrow.readout)

    return stack(*(layer(i, wrap) for i, wrap in enumerate(wrapped)))._replace(init=cell.init)


def masked(cell: Cell) -> Cell:
    """Skip padding: `x = (x, mask)`, mask bool [B] a step.

    Where the mask is false the carry stays as it is and the output is 0, and whatever the padding holds, NaN included,
    touches neither an output nor a gradient. The mask may have holes.
    """
    if cell.layers:
        return over_layers(cell, tuple(masked(layer) for layer in cell.layers), lambda mask, i: mask)
    base = inner(cell, lambda z: z[0])
    gated = base.gated
    affine: Any = base.affine
    outer: Any = base.outer

    def blank(mask, tree):
        """0 where the mask is false; a Const is no part of any one step."""

        def clean(leaf):
            return leaf if is_const(leaf) else select(mask, leaf, jnp.zeros_like(leaf))

        return jax.tree.map(clean, tree, is_leaf=is_const)

    def project(params, x):
        x, mask = x
        # A gradient that is 0 times NaN is NaN, so the padding must not reach the cell at all.
        return cell.project(params, blank(mask, x)), mask

    def ones(a):
        """The a of a step that keeps the carry."""

        def one(leaf):
            if is_complex(leaf):
                return Complex(jnp.ones_like(leaf.re), jnp.zeros_like(leaf.im))
            return jnp.ones_like(leaf)

        return jax.tree.map(one, a, is_leaf=is_complex)

    def transition(params, carry, z):
        return select(z[1], base.transition(params, carry, z), carry)

    def readout(params, carry, z):
        return blank(z[1], base.readout(params, carry, z))

    def still(params, z):
        a, b = affine(params, z)
        return (
            select(z[1], a, ones(a)),
            select(z[1], b, jax.tree.map(jnp.zeros_like, b)),
        )

    def idle(params, z):
        step = outer.write(params, z)
        return select(z[1], step, step.idle())

    return base._replace(
        project=project,
        transition=transition,
        readout=readout,
        gated=gated and gated._replace(gates=lambda carry, z, us: select(z[1], gated.gates(carry, z, us), carry)),
        affine=affine and still,
        outer=outer and outer._replace(write=idle),
    )


def reset(cell: Cell) -> Cell:
    """Start anew at borders: `x = (x, border)`, border bool [B] a step.

    Where the border is true the carry is replaced by the initial carry before the step, so that many documents can lie
    in one stream without a gradient from one to another. Under `unroll(..., reverse=True)` the step that comes first in
    a document is its last one, so that is where the border belongs.
    """
    if cell.layers:
        return over_layers(cell, tuple(reset(layer) for layer in cell.layers), lambda border, i: border)
    base = inner(cell, lambda z: z[0])
    gated = base.gated
    affine: Any = base.affine
    outer: Any = base.outer

    def project(params, x):
        x, border = x
        return cell.project(params, x), border, Const(cell.initial_carry(params, ()))

    def before(carry, z):
        _, border, start = z
        return select(border, jax.tree.map(like, start.value, carry), carry)

    def anew(params, z):
        _, border, start = z
        a, b = affine(params, z)
        fresh = jax.tree.map(jnp.add, multiply(a, jax.tree.map(like, start.value, a)), b)
        return select(border, jax.tree.map(jnp.zeros_like, a), a), select(border, fresh, b)

    def forget(params, z):
        step = outer.write(params, z).decaying()
        return select(z[1], step.fresh(), step)

    return base._replace(
        project=project,
        transition=lambda params, carry, z: base.transition(params, before(carry, z), z),
        gated=gated
        and Gated(
            weights=gated.weights,
            stages=tuple(lambda carry, z, us, stage=stage: stage(before(carry, z), z, us) for stage in gated.stages),
            gates=lambda carry, z, us: gated.gates(before(carry, z), z, us),
        ),
        affine=affine and anew,
        outer=outer and outer._replace(write=forget),
    )


def residual(cell: Cell) -> Cell:
    """Add the input to the output: `y = cell(x) + x` (He et al. 2016), where both have the same number of features.

    Around a stack this is one skip over all of it, and the stack is then unrolled step by step; for a skip around each
    layer, and the fast path, wrap the layers.
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


def _inside(cell: Cell, name: str = "cell") -> Cell:
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


def highway(cell: Cell, *, bias: float = -1.0, w: Initializer = glorot_uniform()) -> Cell:
    """Carry the input past the cell as far as a gate says (Srivastava, Greff & Schmidhuber 2015, arXiv 1505.00387).

        t = sigmoid(x @ w_t + b_t)
        y = t * cell(x) + (1 - t) * x

    Input and output have the same number of features D; w_t is [D, D]. The gate starts near `sigmoid(bias)`, so a
    negative bias starts near a plain copy. It is part of the readout, so all steps go through it at once. Around a
    stack this is one gate over all of it, as for `residual`.

    Raises:
      ValueError: for tokens in place of features, or an output of another width.
    """
    base = inner(_inside(cell), lambda z: z[0])

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


def learned_carry(cell: Cell) -> Cell:
    """The initial carry as params, `{"cell": ..., "start": ...}`, which begin at the cell's own initial carry.

    It is learned where the carry is made inside the differentiated function, as `unroll(cell, params, None, xs)` does,
    and by `reset`, which goes around it.
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
        return jax.tree.map(lambda h: jnp.broadcast_to(h, (*batch_shape, *h.shape)), params["start"])

    # The hint `outer` says that a carry begins at 0, and `reset` goes by it.
    return _inside(cell)._replace(init=init, initial_carry=initial_carry, outer=None)


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
    """
    if cell.layers:
        return stack(*cell.layers[:-1], with_head(cell.layers[-1], features, activation, w=w))
    base = _inside(cell)

    def init(key, in_features):
        k_cell, k_w = jax.random.split(key)
        p = cell.init(k_cell, in_features)
        dtype = jax.tree.leaves(p)[0].dtype
        shape = (out_features(cell, p, in_features), features)
        return {"cell": p, "w_y": w(k_w, shape, dtype), "b_y": jnp.zeros((features,), dtype)}

    def readout(params, carry, z):
        return activation(dense(base.readout(params, carry, z), params["w_y"], params["b_y"]))

    return base._replace(init=init, readout=readout)


def with_embedding(cell: Cell, vocabulary: int, features: int, *, scale: float = 1.0) -> Cell:
    """Read tokens, int [B], through a learned table [V, D] that starts at `scale * N(0, 1 / D)`.

    The cell inside reads D = `features`; `init` of the whole takes 0 features, which stands for tokens.
    """
    if cell.layers:
        first = with_embedding(cell.layers[0], vocabulary, features, scale=scale)
        below = stack(first, *cell.layers[1:])
    else:
        first = below = _inside(cell)

    def table(key, dtype):
        return scale * features**-0.5 * jax.random.normal(key, (vocabulary, features), dtype)

    def init(key, in_features):
        if in_features != 0:
            raise ValueError(f"with_embedding reads tokens, so init takes in_features = 0, got {in_features}")
        k_cell, k_table = jax.random.split(key)
        p = cell.init(k_cell, features)
        embedding = table(k_table, jax.tree.leaves(p)[0].dtype)
        if cell.layers:
            return ({"cell": p[0], "embedding": embedding}, *p[1:])
        return {"cell": p, "embedding": embedding}

    if cell.layers:
        return below._replace(init=init)

    def project(params, x):
        tokens = jax.tree.leaves(x)[0]
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"with_embedding reads integer tokens, got {tokens.dtype}")
        return below.project(params, with_features(x, jnp.take(params["embedding"], tokens, axis=0)))

    return below._replace(init=init, project=project)
