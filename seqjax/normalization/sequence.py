"""Batch normalization of the input product of a cell, by statistics over whole sequences."""

from functools import partial

from seqjax.arrays import dense, like
from seqjax.core import Cell, Const, Dense, inner, over_time
from seqjax.identity import recorded
from seqjax.normalization.building import (
    Moments,
    Train,
    each_layer,
    input_product,
    moments_of,
    replace_product,
    scale,
    with_gains,
)
from seqjax.unrolling import checked_inputs, unroll
from seqjax.wrappers import masked


@recorded
def sequence_batch_norm(cell: Cell, *, epsilon: float = 1e-5) -> tuple[Cell, Train]:
    """Sequence-wise batch normalization of the input product only (Laurent et al. 2016, arXiv 1510.01378).

        x @ w_x + b  becomes  gain_x * (x @ w_x - mean) / sqrt(variance + epsilon) + b

    Mean and variance of a column are over all sequences and all steps of a batch, so they are known before the loop and
    do not slow it down: they are folded into w_x and b. The recurrent products are not normalized, and there is no
    `gain_h`. The gain starts at 1.

    `train(params, carry, xs, *, mask=None, method="auto") -> ((carry, ys), statistics)` is `unroll` on the statistics
    of the batch at hand (over the steps where the mask is true), with the exact gradient through them. The cell takes
    `x = (x, statistics)`, a `Const` of `Moments` [G] as `train` returns it (for a stack a tuple, one per layer).

    Args:
      cell: a cell whose input enters by one product that is left to the solver (a `Dense`), as that of most gated
        cells is, or a stack of such cells.
      epsilon: added to the variances.

    Returns:
      The cell, with the hints of the one inside, and `train`.

    Raises:
      ValueError: for a cell whose input does not enter by exactly one product; from `train`, as `unroll`.
    """
    gained = with_gains(cell, 1.0, recurrent=False)
    if cell.layers:
        return each_layer(cell, gained, [sequence_batch_norm(layer, epsilon=epsilon) for layer in cell.layers])

    def project(params, x):
        x, statistics = x
        moments: Moments = statistics.value
        z = gained.project(params, x)
        product = input_product(z)
        w, b = product.w.value, product.b.value
        factor = scale(moments.variance, params["gain_x"], epsilon)
        shift = b.astype(factor.dtype) - moments.mean * factor
        return replace_product(z, Dense(product.x, Const(w * like(factor.astype(w.dtype), w)), Const(shift)))

    normalized = inner(gained, lambda z: z)._replace(project=project)
    gained_masked = masked(gained)

    def train(params, carry, xs, *, mask=None, method="auto"):
        xs, mask = checked_inputs(cell, xs, mask)
        read, inputs = (gained, xs) if mask is None else (gained_masked, (xs, mask))
        product = input_product(over_time(partial(read.project, params), inputs))
        statistics = Const(moments_of(dense(product.x, product.w.value), mask))
        return unroll(normalized, params, carry, (xs, statistics), mask=mask, method=method), statistics

    return normalized, train
