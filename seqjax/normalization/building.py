"""The kit of the normalizations: moments of a product, the product of the input, and the gains."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Params, Tree, like
from seqjax.cells.layers import stack
from seqjax.core import Cell, Dense, is_dense, one_input, out_features
from seqjax.hints import Gated, gated_transition
from seqjax.wrappers.masking import over_layers
from seqjax.wrappers.structure import inside

Train = Callable[..., tuple[tuple[Carry, Tree], Tree]]
"""`(params, carry, xs, *, mask=None, method=...) -> ((carry, ys), statistics)`."""


class Moments(NamedTuple):
    """Mean and (biased) variance of each column of a product: [..., G]."""

    mean: Array
    variance: Array


def moments_of(u: Array, real: Array | None) -> Moments:
    """The moments of u [..., G] over all axes but the last, where `real` [...] is true."""
    axes = tuple(range(u.ndim - 1))
    if real is None:
        mean = u.mean(axes)
        return Moments(mean, jnp.square(u - like(mean, u)).mean(axes))
    weight = real.astype(u.dtype) / jnp.maximum(real.sum(), 1).astype(u.dtype)
    weight = like(jnp.expand_dims(weight, -1), u)
    mean = (weight * u).sum(axes)
    return Moments(mean, (weight * jnp.square(u - like(mean, u))).sum(axes))


def scale(variance: Array, gain: Array, epsilon: float) -> Array:
    """`gain / sqrt(variance + epsilon)`, in the dtype of the variance; [..., G]."""
    return like(gain.astype(variance.dtype), variance) * jax.lax.rsqrt(variance + epsilon)


def standardize(u: Array, moments: Moments, gain: Array, epsilon: float) -> Array:
    """`gain * (u - mean) / sqrt(variance + epsilon)` for u [..., G]."""
    return (u - like(moments.mean, u)) * like(scale(moments.variance, gain, epsilon), u)


def add_bias(u: Array, bias: Array) -> Array:
    """`u + bias`, in the dtype of u; [..., G]."""
    return u + like(bias.astype(u.dtype), u)


def input_product(z: Tree) -> Dense:
    """The one `Dense` of z.

    Raises:
      ValueError: if z has none, or several.
    """
    found = [leaf for leaf in jax.tree.leaves(z, is_leaf=is_dense) if is_dense(leaf)]
    if len(found) != 1:
        raise ValueError(f"normalization needs a cell with one input product in z, a `Dense`; this has {len(found)}")
    return found[0]


def replace_product(z: Tree, value: Array | Dense) -> Tree:
    """`z` with `value` in the place of its `Dense`."""
    return jax.tree.map(lambda leaf: value if is_dense(leaf) else leaf, z, is_leaf=is_dense)


def require_gated(name: str, cell: Cell) -> Gated:
    """The `gated` hint of a cell.

    Raises:
      ValueError: if it has none; `name` is what needs it.
    """
    if cell.gated is None:
        raise ValueError(f"{name} needs a cell with the `gated` hint, which defines its recurrent products")
    return cell.gated


def with_hint(cell: Cell, gated: Gated, project: Callable[[Params, Tree], Tree]) -> Cell:
    """`cell` with another projection, and with another `gated` hint and the transition that follows from it."""
    return cell._replace(project=project, transition=gated_transition(gated), gated=gated)


def with_gains(cell: Cell, gain: float, recurrent: bool = True, state: bool = False) -> Cell:
    """`cell` with its params under "cell", next to gains that start at `gain`; nothing is normalized yet.

    Args:
      cell: the cell, or a stack, whose layers get gains of their own.
      gain: the initial value of all gains.
      recurrent: whether there is a "gain_h".
      state: whether there are a "gain_c" and a "b_c", for the last leaf of the carry.
    """
    if cell.layers:
        return stack(*(with_gains(layer, gain, recurrent, state) for layer in cell.layers))

    def init(key, in_features):
        p = cell.init(key, in_features)
        out_features(cell, p, in_features)  # raises for a cell that takes more than x
        x = one_input(p, in_features, cell.space)
        product = input_product(jax.eval_shape(cell.project, p, x))

        def gains(width):
            return jnp.full((width,), gain, jax.tree.leaves(p)[0].dtype)

        params = {"cell": p, "gain_x": gains(product.w.value.shape[1])}
        if recurrent:
            weights = jax.eval_shape(require_gated("normalization", cell).weights, p)
            params["gain_h"] = tuple(gains(w.shape[1]) for w in weights)
        if state:
            units = jax.tree.leaves(jax.eval_shape(lambda p: cell.initial_carry(p, ()), p))[-1].shape[0]
            params |= {"gain_c": gains(units), "b_c": 0 * gains(units)}
        return params

    return inside(cell)._replace(init=init)


def each_layer(cell: Cell, gained: Cell, parts: list[tuple[Cell, Train]]) -> tuple[Cell, Train]:
    """A stack of normalized layers, trained one after the other."""

    def train(params, carry, xs, **options):
        carries, statistics = [], []
        for i, (_, train_layer) in enumerate(parts):
            (last, xs), found = train_layer(params[i], None if carry is None else carry[i], xs, **options)
            carries.append(last)
            statistics.append(found)
        return (tuple(carries), xs), tuple(statistics)

    normalized = over_layers(cell, tuple(part for part, _ in parts), lambda statistics, i: statistics[i])
    return normalized._replace(init=gained.init), train
