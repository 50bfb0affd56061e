"""Tokens in place of features: through a table, or as one-hot vectors that are never made."""

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Tree, carry_dtype, check_indices, dense_rows, rows
from seqjax.cells.building import check_size
from seqjax.cells.layers import stack
from seqjax.core import Cell, features, is_dense, with_features
from seqjax.identity import recorded
from seqjax.initializers import normal
from seqjax.wrappers.structure import inside


def _no_features(wrapper: str, in_features: int) -> None:
    if in_features != 0:
        raise ValueError(f"{wrapper} reads tokens, so init takes in_features = 0, got {in_features}")


def _tokens(wrapper: str, x: Tree, size: int) -> Array:
    tokens = features(x)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"{wrapper} reads integer tokens, got {tokens.dtype}")
    check_indices("tokens", tokens, size)
    return tokens


@recorded
def with_embedding(cell: Cell, vocabulary: int, features: int, *, scale: float = 1.0) -> Cell:
    """Read tokens, int [B], through a learned table [V, D] that starts at `scale * N(0, 1 / D)`.

    The cell inside reads D = `features`; `init` of the whole takes 0 features, which means tokens. Under jit,
    where tokens are not known, one outside of range(V) is a vector of zeros.

    Args:
      cell: any cell that reads features, also a stack.
      vocabulary: number of tokens V.
      features: width of an embedding D.
      scale: of the initial table.

    Raises:
      ValueError: in `init`, for other than 0 features; for a token outside of range(V), where it is known.
      TypeError: for inputs that are no integers.

    Example:
      >>> cell = seqjax.wrappers.with_embedding(seqjax.cells.gru(8), 5, 3)
      >>> params = cell.init(jax.random.key(0), 0)
      >>> tokens = jnp.array([[0, 4], [1, 1]])  # [T, B]
      >>> params["embedding"].shape, seqjax.unroll(cell, params, None, tokens)[1].shape
      ((5, 3), (2, 2, 8))
    """
    vocabulary = check_size("with_embedding", vocabulary, "tokens")
    features = check_size("with_embedding", features, "features")
    below = inside(cell)
    if cell.layers:
        below = stack(with_embedding(cell.layers[0], vocabulary, features, scale=scale), *cell.layers[1:])

    def init(key, in_features):
        _no_features("with_embedding", in_features)
        k_cell, k_table = jax.random.split(key)
        p = cell.init(k_cell, features)
        dtype = jax.tree.leaves(p)[0].dtype
        embedding = normal(scale * features**-0.5)(k_table, (vocabulary, features), dtype)
        if cell.layers:
            return ({"cell": p[0], "embedding": embedding}, *p[1:])
        return {"cell": p, "embedding": embedding}

    if cell.layers:
        return below._replace(init=init)

    def project(params, x):
        tokens = _tokens("with_embedding", x, vocabulary)
        table = params["embedding"]
        # In this dtype the gradient of a row is summed over all places of its token.
        return below.project(params, with_features(x, rows(table.astype(carry_dtype(table.dtype)), tokens)))

    return below._replace(init=init, project=project, vocabulary=vocabulary)


@recorded
def with_one_hot(cell: Cell, size: int, *, tokens: int = 1) -> Cell:
    """Read tokens, int [B], as one-hot vectors of `size` features V, which are never made where the cell allows it.

        one_hot(token) @ w_x + b = w_x[token] + b

    Where a cell defers its input product (`core.Dense`), as the gated cells do, each step takes a row of w_x [V, G]. A
    cell that computes the product itself, such as the linear ones, gets the vectors. Params are those of the cell
    with V features; `init` takes 0, which means tokens. Under jit, where tokens are not known, one outside of
    range(V) is a vector of zeros.

    Args:
      cell: any cell that reads features, also a stack.
      size: number of tokens V.
      tokens: those of one step. Several, int [B, tokens], are the sum of their vectors: a word and a pair of words.

    Raises:
      ValueError: for no tokens; in `init`, for other than 0 features; for a token outside of range(V), where it is
        known.
      TypeError: for inputs that are no integers.

    Example:
      >>> cell, tokens = seqjax.cells.gru(8), jnp.array([[0, 4], [1, 1]])  # [T, B]
      >>> params = cell.init(jax.random.key(0), 5)
      >>> _, ys = seqjax.unroll(seqjax.wrappers.with_one_hot(cell, 5), params, None, tokens)
      >>> bool(jnp.allclose(ys, seqjax.unroll(cell, params, None, jax.nn.one_hot(tokens, 5))[1], atol=1e-6))
      True
    """
    size = check_size("with_one_hot", size, "tokens")
    tokens = check_size("with_one_hot", tokens, "tokens per step")

    lowest, *above = cell.layers or (cell,)
    reading = _reading_one_hot(lowest, size, tokens)
    return stack(reading, *above) if cell.layers else reading


def _reading_one_hot(cell: Cell, size: int, count: int) -> Cell:
    def init(key, in_features):
        _no_features("with_one_hot", in_features)
        return cell.init(key, size)

    def project(params, x):
        tokens = _tokens("with_one_hot", x, size)
        each = [tokens] if count == 1 else [tokens[..., i] for i in range(count)]
        # Compiled, the vectors are dead code where every use of them is a product that becomes rows.
        hot = [jax.nn.one_hot(one, size, dtype=jax.tree.leaves(params)[0].dtype) for one in each]
        vectors = sum(hot[1:], start=hot[0])

        def look_up(leaf):
            deferred = is_dense(leaf) and leaf.x is vectors
            return dense_rows(each, leaf.w.value, leaf.b.value) if deferred else leaf

        return jax.tree.map(look_up, cell.project(params, with_features(x, vectors)), is_leaf=is_dense)

    space = cell.space if count == 1 else (*cell.space, count)
    return cell._replace(init=init, project=project, vocabulary=size, space=space)
