"""How good an estimate of a gradient is: its direction and size, its bias and deviation."""

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Params, Tree
from seqjax.diagnostics import alignment

# What `quality` returns.
NAMES = ("cosine", "norm_ratio", "cell_cosine", "cell_norm_ratio", "cell_bias", "cell_deviation")


def quality(estimates: Params, reference: Params) -> dict[str, Array]:
    """Direction and size of a gradient, means of the draws; of all params, and of those of the cell: all but the head.

    Args:
      estimates: draws of the estimate [N, ...].
      reference: the full gradient.
    """
    cosine, ratio = (jnp.mean(found) for found in jax.vmap(alignment, (0, None))(estimates, reference))
    of_cell = _without_head(estimates), _without_head(reference)
    cell_cosine, cell_ratio = (jnp.mean(found) for found in jax.vmap(alignment, (0, None))(*of_cell))
    bias, deviation = bias_and_deviation(*of_cell)
    return {
        "cosine": cosine,
        "norm_ratio": ratio,
        "cell_cosine": cell_cosine,
        "cell_norm_ratio": cell_ratio,
        "cell_bias": bias,
        "cell_deviation": deviation,
    }


def bias_and_deviation(estimates: Tree, reference: Tree) -> tuple[Array, Array]:
    """`|E g - r| / |r|` and `sqrt(E |g - E g|^2) / |r|` of N draws g [N, ...] of an estimate of r.

    Both squares are without bias themselves, up to the square root: the mean of N draws is off by the N-th part of the
    variance, which is subtracted. The deviation of one draw is 0.
    """

    def squared(tree):
        return jnp.stack([jnp.square(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(tree)]).sum()

    count = len(jax.tree.leaves(estimates)[0])
    centre = jax.tree.map(lambda leaf: leaf.mean(0), estimates)
    spread = jax.tree.map(lambda leaf, mean: leaf - jnp.expand_dims(mean, 0), estimates, centre)
    variance = squared(spread) / max(count - 1, 1)
    bias = squared(jax.tree.map(jnp.subtract, centre, reference)) - variance / count
    norm = jnp.sqrt(squared(reference))
    return jnp.sqrt(jnp.maximum(bias, 0)) / norm, jnp.sqrt(variance) / norm


def _without_head(params: Params) -> list[Array]:
    head = ("w_y", "b_y")  # of `with_head`
    return [leaf for path, leaf in jax.tree.leaves_with_path(params) if getattr(path[-1], "key", None) not in head]
