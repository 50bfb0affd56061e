"""Windows of a series, gathered on the device, in an order that is a pure function of (key, epoch)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from seqjax.arrays import check_indices

__all__ = [
    "Standardizer",
    "every",
    "gather",
    "minibatch",
    "moments",
    "order",
]

Array = jax.Array

_ROUNDS = 8  # four suffice for large domains; a permutation of a few indices needs more to be uniform


def order(key: Array, epoch: Array | int, positions: Array, count: int) -> Array:
    """The indices at `positions` of epoch `epoch`'s random permutation of range(count).

    Only these positions are computed: a Feistel network, keyed by (key, epoch), permutes range(2**bits) with
    2**bits the next power of two, and values outside range(count) are permuted again until they fall inside (cycle
    walking; Black & Rogaway 2002). So an epoch needs no memory, and the only state needed to resume is the step.

    Args:
      key: PRNG key.
      epoch: int32 [], may be traced.
      positions: integers [...], 0 <= position < count (not checked when traced).
      count: number of indices, static, 1 <= count < 2**31.

    Returns:
      int32 [...]; for positions = arange(count), a permutation of range(count).

    Raises:
      ValueError: count out of range, or positions (if known) not in range(count).
      TypeError: positions that are not integers.

    Example:
      >>> from seqjax.data import windows
      >>> positions = jnp.arange(5)
      >>> first, second = (windows.order(jax.random.key(0), epoch, positions, 5) for epoch in range(2))
      >>> sorted(first.tolist()), first.tolist() == second.tolist()
      ([0, 1, 2, 3, 4], False)
      >>> windows.order(jax.random.key(0), 0, jnp.array([3]), 5).item() == first[3].item()  # only this position
      True
    """
    if not 1 <= count < 2**31:
        raise ValueError(f"count must be in [1, 2**31), got {count}")
    positions = jnp.asarray(positions)
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(f"positions must be integers, got {positions.dtype}")
    check_indices("positions", positions, count)
    bits = (count - 1).bit_length()
    round_keys = jax.random.bits(jax.random.fold_in(key, epoch), (_ROUNDS,), jnp.uint32)

    def outside(x: Array) -> Array:
        return jnp.any(x >= count)

    def walk(x: Array) -> Array:
        return jnp.where(x >= count, _feistel(round_keys, x, bits), x)

    x = _feistel(round_keys, positions.astype(jnp.uint32), bits)
    return jax.lax.while_loop(outside, walk, x).astype(jnp.int32)


def minibatch(key: Array, step: Array | int, batch: int, count: int) -> Array:
    """The indices of update `step`'s minibatch: epochs of count // batch batches, each epoch in a new order.

    The count % batch indices that an epoch leaves out differ between epochs.

    Args:
      key: PRNG key of the whole training.
      step: int32 [], updates done so far, may be traced.
      batch: minibatch size, static, 1 <= batch <= count.
      count: number of examples, static.

    Returns:
      int32 [B], distinct indices in range(count).

    Raises:
      ValueError: for a batch below 1 or above count.

    Example:
      >>> from seqjax.data import windows
      >>> batches = [windows.minibatch(jax.random.key(0), step, 2, 5).tolist() for step in range(2)]  # of one epoch
      >>> len(set(batches[0] + batches[1]))
      4
    """
    if not 1 <= batch <= count:
        raise ValueError(f"batch must be in [1, count = {count}], got {batch}")
    step = jnp.asarray(step, jnp.int32)
    epoch, index = jnp.divmod(step, count // batch)
    return order(key, epoch, index * batch + jnp.arange(batch, dtype=jnp.int32), count)


def every(count: int, batch: int, f: Callable[[Array], Any]) -> Any:
    """`f(rows int32 [B])` for all rows 0 to count - 1, batch by batch, as an evaluation needs.

    The last batch is padded with the last row, which still counts only once.

    Args:
      count: number of rows N, static, at least 1.
      batch: rows B per batch, static, at least 1; N if that is less.
      f: returns a tree of arrays [B, ...], in which each row depends only on its own input.

    Returns:
      The results of all rows, a tree of arrays [N, ...].

    Raises:
      ValueError: no rows, or a batch below 1.

    Example:
      >>> from seqjax.data import windows
      >>> windows.every(5, 2, lambda rows: 10 * rows).tolist()
      [0, 10, 20, 30, 40]
    """
    if count < 1 or batch < 1:
        raise ValueError(f"count and batch must be at least 1, got {count} and {batch}")
    batch = min(batch, count)
    rows = jnp.minimum(jnp.arange(-(-count // batch) * batch, dtype=jnp.int32), count - 1).reshape(-1, batch)
    return jax.tree.map(lambda leaf: leaf.reshape(rows.size, *leaf.shape[2:])[:count], jax.lax.map(f, rows))


def gather(series: Array, starts: Array, length: int, stride: int = 1) -> Array:
    """Windows of a series: result[t, b] = series[starts[b] + stride * t].

    Args:
      series: [N, ...features].
      starts: integers [B], the first row of each window.
      length: rows T of a window, static.
      stride: rows of the series between rows of a window, static.

    Returns:
      [T, B, ...features], time-major. Rows outside the series are NaN in float windows, so that a wrong start
      shows up in the loss; for other dtypes they are the fill value of JAX's `.at[].get(mode="fill")`.

    Raises:
      ValueError: length or stride below 1, starts not of shape [B], or a known start whose window leaves the series.
      TypeError: starts that are not integers.

    Example:
      >>> from seqjax.data import windows
      >>> windows.gather(jnp.arange(10), jnp.array([0, 4]), length=3, stride=2).T.tolist()
      [[0, 2, 4], [4, 6, 8]]
    """
    series, starts = jnp.asarray(series), jnp.asarray(starts)
    if length < 1 or stride < 1:
        raise ValueError(f"length and stride must be at least 1, got {length} and {stride}")
    if starts.ndim != 1:
        raise ValueError(f"starts must have shape [B], got {starts.shape}")
    if not jnp.issubdtype(starts.dtype, jnp.integer):
        raise TypeError(f"starts must be integers, got {starts.dtype}")
    check_indices("starts", starts, len(series) - stride * (length - 1))
    offsets = stride * jnp.arange(length, dtype=starts.dtype)
    rows = offsets[:, None] + starts[None, :]  # [T, B]
    return series.at[rows].get(mode="fill", wrap_negative_indices=False)


def moments(values: Any, axis: int | tuple[int, ...] = 0, where: Any = True) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (population) standard deviation along axes, computed in float64 on the host, whatever the magnitude.

        mean = mean(x),    std = sqrt(mean((x - mean)^2)), or 0 where that is not above 4 eps max|x|

    eps is that of the dtype of the values (2^-52 for integers): values that vary less are constant up to rounding, and
    dividing by their deviation would divide by noise. The mean is corrected by that of the residuals (Chan, Golub &
    LeVeque 1983), so it is accurate to about eps for any number of values.

    Args:
      values: [..., N, ...], known numbers.
      axis: the axes to reduce over; the result does not have them.
      where: bool, broadcast against the values; which of them count.

    Returns:
      `(mean, std)`, float64.

    Raises:
      ValueError: no values to take the mean of.

    Example:
      >>> from seqjax.data import windows
      >>> mean, std = windows.moments([1e8, 1e8 + 1, 1e8 + 2])
      >>> (mean - 1e8).item(), round(std.item(), 6)
      (1.0, 0.816497)
    """
    values = np.asarray(values)
    eps = jnp.finfo(values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else np.float64).eps
    where = np.broadcast_to(where, values.shape)
    if not where.any(axis).all():
        raise ValueError(f"moments need at least one value each, got {list(values.shape)} along axis {axis}")
    x = np.where(where, values, 0).astype(np.float64)
    largest = np.abs(x).max(axis, keepdims=True)
    unit = np.ldexp(1.0, np.frexp(largest)[1] - 1)  # a power of two, so no digit is lost and no square overflows
    x = x / unit
    mean = x.mean(axis, keepdims=True, where=where)
    mean += (x - mean).mean(axis, keepdims=True, where=where)
    std = np.sqrt(np.square(x - mean).mean(axis, keepdims=True, where=where))
    std = np.where(std > 4 * float(eps) * largest / unit, std, 0)
    return (unit * mean).squeeze(axis), (unit * std).squeeze(axis)


class Standardizer(NamedTuple):
    """Scales columns to mean 0 and standard deviation 1: apply(x) = (x - mean) / std, invert(z) = z * std + mean.

    Known values are computed in float64 on the host, and rounded to float32 last. Under jit everything is float32, with
    a relative precision of about 6e-8: if the deviation of the values is not far above that, standardize before jit.

    Example:
      >>> from seqjax.data import windows
      >>> scale = windows.Standardizer.fit([[0.0], [2.0]])
      >>> scale.apply([[4.0]]).tolist(), scale.invert([[0.0]]).tolist()
      ([[3.0]], [[1.0]])
    """

    mean: np.ndarray | Array  # float64 [D], in the units of the columns
    std: np.ndarray | Array  # float64 [D], in the units of the columns

    @classmethod
    def fit(cls, train: Any, columns: Sequence[str] | None = None) -> "Standardizer":
        """The `moments` of the columns of `train` [N, D].

        Give it the training part only. `columns` names the columns in errors.

        Raises:
          ValueError: train is not [N, D] with N >= 2, has a NaN or an infinity, or has a column that is constant or
            varies only by rounding.
        """
        train = np.asarray(train)
        if train.ndim != 2 or len(train) < 2:
            raise ValueError(f"train must have shape [N, D] with N >= 2, got {train.shape}")
        names = columns or [f"column {i}" for i in range(train.shape[1])]
        for name, column in zip(names, train.T, strict=True):
            finite = np.isfinite(column.astype(np.float64))
            if not finite.all():
                raise ValueError(f"{name!r} has a value that is not finite at row {np.argmin(finite)}")
        mean, std = moments(train)
        for name, first, deviation in zip(names, train[0], std, strict=True):
            if not deviation:
                raise ValueError(
                    f"{name!r} is constant ({first:g}) in the training part, up to rounding: nothing to scale by"
                )
        return cls(mean, std)

    def apply(self, x: Any) -> Array:
        """Values [..., D] in the units of the columns to standardized float32 [..., D]."""
        if not self._traced(x):
            return jnp.asarray((np.asarray(x).astype(np.float64) - self.mean) / self.std, jnp.float32)
        x = jnp.asarray(x, jnp.float32)
        return (x - self._rows(self.mean, x)) / self._rows(self.std, x)

    def invert(self, z: Any) -> Array:
        """Standardized values [..., D] to float32 [..., D] in the units of the columns."""
        if not self._traced(z):
            return jnp.asarray(np.asarray(z).astype(np.float64) * self.std + self.mean, jnp.float32)
        z = jnp.asarray(z, jnp.float32)
        return z * self._rows(self.std, z) + self._rows(self.mean, z)

    def _traced(self, x: Any) -> bool:
        return any(isinstance(leaf, jax.core.Tracer) for leaf in (x, self.mean, self.std))

    def _rows(self, row: np.ndarray | Array, x: Array) -> Array:
        return jnp.broadcast_to(jnp.asarray(row, jnp.float32), x.shape)


def _feistel(round_keys: Array, x: Array, bits: int) -> Array:
    """A keyed bijection of range(2**bits), uint32 [...] to uint32 [...]: (L, R) -> (R, L ^ f(R)), repeatedly."""
    left, right = (
        bits - bits // 2,
        bits // 2,
    )  # widths, swapped in every round, and in place again after an even number
    for round_key in round_keys:
        high, low = x >> right, x & (2**right - 1)
        high = high ^ (_mix(low ^ round_key) & (2**left - 1))
        x = (low << left) | high
        left, right = right, left
    return x


def _mix(x: Array) -> Array:
    """A 32-bit mixer with low bias (C. Wellons 2018, "lowbias32"), uint32 [...] to uint32 [...]."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
