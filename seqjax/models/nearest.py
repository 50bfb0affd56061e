"""The nearest neighbour among labelled series: the baseline of time-series classification (Bagnall et al. 2017).

distances = dtw(queries, examples)                      # [N, M]
answers = labels[distances.argmin(1)]
"""

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, check_indices

__all__ = ["dtw", "euclidean"]


def euclidean(xs: Array, ys: Array) -> Array:
    """Squared Euclidean distances `d_ij = sum_td (x_itd - y_jtd)^2` of all pairs.

    Args:
      xs: float [N, T, D].
      ys: float [M, T, D]; series of unequal lengths are compared as they are padded.

    Returns:
      [N, M].

    Raises:
      ValueError: series of other shapes.

    Example:
      >>> from seqjax.models import nearest
      >>> nearest.euclidean(jnp.zeros((1, 3, 1)), jnp.ones((2, 3, 1))).tolist()
      [[3.0, 3.0]]
    """
    if xs.ndim != 3 or xs.shape[1:] != ys.shape[1:]:
        raise ValueError(f"series have shapes {xs.shape} and {ys.shape}, expected [N, T, D] and [M, T, D]")
    return jax.lax.map(lambda x: jnp.square(jnp.expand_dims(x, 0) - ys).sum((1, 2)), xs)


def dtw(
    xs: Array,
    ys: Array,
    x_lengths: Array | None = None,
    y_lengths: Array | None = None,
    *,
    window: int | None = None,
) -> Array:
    """Squared costs of dynamic time warping of all pairs (Sakoe & Chiba 1978), all variables warped together (DTW_D).

        cost(s, t) = sum_d (x_sd - y_td)^2
        d(s, t) = cost(s, t) + min(d(s-1, t), d(s, t-1), d(s-1, t-1)),    d(0, 0) = cost(0, 0)

    and the result is d at the last step of both. Computed diagonal after diagonal of s + t = k, each as one operation;
    memory is of order S per pair.

    Args:
      xs: float [N, S, D].
      ys: float [M, T, D].
      x_lengths: int32 [N], steps of each series, from 1 to S (under jit, where they are not known, other lengths make
        infinite costs); None for S.
      y_lengths: int32 [M], from 1 to T; None for T.
      window: greatest |s - t|, at least the greatest difference of the lengths of a pair, else its cost is infinite;
        None for no bound, 0 for Euclidean distance.

    Returns:
      [N, M].

    Raises:
      ValueError: series of other shapes, a negative window, lengths out of their range.

    Example:
      >>> from seqjax.models import nearest
      >>> late, early = jnp.array([0.0, 0, 0, 1, 2]), jnp.array([0.0, 1, 2, 2, 2])
      >>> nearest.dtw(late[None, :, None], early[None, :, None]).item()
      0.0
    """
    if xs.ndim != 3 or ys.ndim != 3 or xs.shape[2] != ys.shape[2]:
        raise ValueError(f"series have shapes {xs.shape} and {ys.shape}, expected [N, S, D] and [M, T, D]")
    if window is not None and window < 0:
        raise ValueError(f"window must be at least 0, got {window}")
    for name, lengths, series in (("x_lengths", x_lengths, xs), ("y_lengths", y_lengths, ys)):
        if lengths is not None:
            check_indices(f"{name} - 1", lengths - 1, series.shape[1])
    m, n = (jnp.full(len(v), v.shape[1], jnp.int32) if k is None else k for v, k in ((xs, x_lengths), (ys, y_lengths)))
    bound = max(xs.shape[1], ys.shape[1]) if window is None else window
    pairs = jax.vmap(lambda x, m, y, n: _dtw(x, m, y, n, bound), (None, None, 0, 0))
    return jax.lax.map(lambda one: pairs(one[0], one[1], ys, n), (xs, m))


def _dtw(x: Array, m: Array, y: Array, n: Array, window: int) -> Array:
    """`x [S, D], m [], y [T, D], n [] -> []`."""
    steps, others = len(x), len(y)
    s = jnp.arange(steps, dtype=jnp.int32)
    # Row s of the slice that starts at others + steps - 2 - k is y[k - s].
    turned = jnp.pad(y, ((steps - 1, steps - 1), (0, 0)))[::-1]
    inf = jnp.full((), jnp.inf, x.dtype)

    def below(diagonal: Array, first: Array) -> Array:
        return jnp.concatenate([first[None], diagonal[:-1]])

    def step(carry, k):
        one, two, found = carry  # the diagonals k - 1 and k - 2
        cost = jnp.square(x - jax.lax.dynamic_slice_in_dim(turned, others + steps - 2 - k, steps)).sum(1)
        t = k - s
        inside = (t >= 0) & (t < others) & (jnp.abs(s - t) <= window)
        start = jnp.where(k == 0, jnp.zeros_like(inf), inf)
        least = jnp.minimum(jnp.minimum(one, below(one, inf)), below(two, start))
        new = jnp.where(inside, cost + least, inf)
        return (new, one, jnp.where(k == m + n - 2, new[m - 1], found)), None

    empty = jnp.full(steps, jnp.inf, x.dtype)
    diagonals = jnp.arange(steps + others - 1, dtype=jnp.int32)
    (_, _, found), _ = jax.lax.scan(step, (empty, empty, inf), diagonals)
    return found
