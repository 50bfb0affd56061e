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
    Tree,
    around,
    carry_dtype,
    dense,
    dense_rows,
    features,
    inner,
    is_complex,
    is_const,
    is_dense,
    like,
    multiply,
    out_features,
    select,
    with_features,
)
from seqjax.initializers import Initializer, glorot_uniform

__all__ = [
    "highway",
    "learned_carry",
    "masked",
    "reset",
    "residual",
    "with_embedding",
    "with_head",
    "with_one_hot",
]


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

    Example:
      >>> cell = seqjax.wrappers.masked(seqjax.cells.min_gru(4))
      >>> params = cell.init(jax.random.key(0), 3)
      >>> xs, mask = jnp.ones((3, 1, 3)).at[2].set(jnp.nan), jnp.array([[True], [True], [False]])
      >>> carry, ys = seqjax.unroll(cell, params, None, (xs, mask))
      >>> bool((carry == ys[1]).all()), ys[2].tolist()
      (True, [[0.0, 0.0, 0.0, 0.0]])
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
        gated=gated and around(gated, leave=lambda carry, z, new: select(z[1], new, carry)),
        affine=affine and still,
        outer=outer and outer._replace(write=idle),
    )


def reset(cell: Cell) -> Cell:
    """Start anew at borders: `x = (x, border)`, border bool [B] a step.

    Where the border is true the carry is replaced by the initial carry before the step, so that many documents can lie
    in one stream without a gradient from one to another. Under `unroll(..., reverse=True)` the step that comes first in
    a document is its last one, so that is where the border belongs.

    Example:
      >>> cell = seqjax.wrappers.reset(seqjax.cells.min_gru(4))
      >>> params = cell.init(jax.random.key(0), 3)
      >>> borders = jnp.array([True, False, False, True, False])[:, None]  # documents of 3 and 2 steps
      >>> _, ys = seqjax.unroll(cell, params, None, (jnp.ones((5, 1, 3)), borders))
      >>> bool((ys[3:] == ys[:2]).all())
      True
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
        gated=gated and around(gated, lambda carry, z, us: (before(carry, z), z, us)),
        affine=affine and anew,
        outer=outer and outer._replace(write=forget),
    )


def residual(cell: Cell) -> Cell:
    """Add the input to the output: `y = cell(x) + x` (He et al. 2016), where both have the same number of features.

    Around a stack this is one skip over all of it, and the stack is then unrolled step by step; for a skip around each
    layer, and the fast path, wrap the layers.

    Raises:
      ValueError: for an output of another width than the input.

    Example:
      >>> cell = seqjax.wrappers.residual(seqjax.cells.gru(3))
      >>> params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 3))  # a GRU that says 0
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


def highway(cell: Cell, *, bias: float = -1.0, w: Initializer = glorot_uniform()) -> Cell:
    """Carry the input past the cell as far as a gate says (Srivastava, Greff & Schmidhuber 2015, arXiv 1505.00387).

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

    # The hint `outer` says that a carry begins at 0, and `reset` goes by it.
    return inside(cell)._replace(init=init, initial_carry=initial_carry, outer=None)


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

    Example:
      >>> cell = seqjax.wrappers.with_head(seqjax.cells.lstm(16), 1)
      >>> params = cell.init(jax.random.key(0), 14)
      >>> seqjax.unroll(cell, params, None, jnp.ones((5, 2, 14)))[1].shape
      (5, 2, 1)
    """
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


def with_embedding(cell: Cell, vocabulary: int, features: int, *, scale: float = 1.0) -> Cell:
    """Read tokens, int [B], through a learned table [V, D] that starts at `scale * N(0, 1 / D)`.

    The cell inside reads D = `features`; `init` of the whole takes 0 features, which stands for tokens.

    Args:
      cell: any cell that reads features, also a stack.
      vocabulary: number of tokens V.
      features: width of an embedding D.
      scale: of the initial table.

    Raises:
      ValueError: in `init`, for other than 0 features.
      TypeError: for inputs that are no integers.

    Example:
      >>> cell = seqjax.wrappers.with_embedding(seqjax.cells.gru(8), 5, 3)
      >>> params = cell.init(jax.random.key(0), 0)
      >>> tokens = jnp.array([[0, 4], [1, 1]])  # [T, B]
      >>> params["embedding"].shape, seqjax.unroll(cell, params, None, tokens)[1].shape
      ((5, 3), (2, 2, 8))
    """
    below = inside(cell)
    if cell.layers:
        below = stack(with_embedding(cell.layers[0], vocabulary, features, scale=scale), *cell.layers[1:])

    def init(key, in_features):
        if in_features != 0:
            raise ValueError(f"with_embedding reads tokens, so init takes in_features = 0, got {in_features}")
        k_cell, k_table = jax.random.split(key)
        p = cell.init(k_cell, features)
        dtype = jax.tree.leaves(p)[0].dtype
        embedding = scale * features**-0.5 * jax.random.normal(k_table, (vocabulary, features), dtype)
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


def with_one_hot(cell: Cell, size: int) -> Cell:
    """Read tokens, int [B], as one-hot vectors of `size` features V, which are never made where the cell lets it be.

        one_hot(token) @ w_x + b = w_x[token] + b

    Of a cell that leaves its input product undone (`core.Dense`), as the gated cells do, each step takes a row of w_x
    [V, G]. A cell that multiplies by itself, such as the linear ones, gets the vectors. Params are those of the cell
    with V features; `init` takes 0, which stands for tokens. A token outside of range(V) is a vector of zeros.

    Args:
      cell: any cell that reads features, also a stack.
      size: number of tokens V.

    Raises:
      ValueError: in `init`, for other than 0 features.
      TypeError: for inputs that are no integers.

    Example:
      >>> cell, tokens = seqjax.cells.gru(8), jnp.array([[0, 4], [1, 1]])  # [T, B]
      >>> params = cell.init(jax.random.key(0), 5)
      >>> _, ys = seqjax.unroll(seqjax.wrappers.with_one_hot(cell, 5), params, None, tokens)
      >>> bool(jnp.allclose(ys, seqjax.unroll(cell, params, None, jax.nn.one_hot(tokens, 5))[1], atol=1e-6))
      True
    """
    if cell.layers:
        return stack(with_one_hot(cell.layers[0], size), *cell.layers[1:])

    def init(key, in_features):
        if in_features != 0:
            raise ValueError(f"with_one_hot reads tokens, so init takes in_features = 0, got {in_features}")
        return cell.init(key, size)

    def project(params, x):
        tokens = features(x)
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"with_one_hot reads integer tokens, got {tokens.dtype}")
        # Compiled, the vectors are dead code where every use of them is a product that becomes rows.
        vectors = jax.nn.one_hot(tokens, size, dtype=jax.tree.leaves(params)[0].dtype)

        def look_up(leaf):
            undone = is_dense(leaf) and leaf.x is vectors
            return dense_rows(tokens, leaf.w.value, leaf.b.value) if undone else leaf

        return jax.tree.map(look_up, cell.project(params, with_features(x, vectors)), is_leaf=is_dense)

    return cell._replace(init=init, project=project)
