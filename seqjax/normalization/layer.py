"""Layer normalization of the products of a gated cell."""

from seqjax.arrays import dense
from seqjax.cells.building import normalize
from seqjax.cells.layers import stack
from seqjax.core import Cell, Const, inner
from seqjax.hints import around
from seqjax.identity import recorded
from seqjax.normalization.building import (
    add_bias,
    input_product,
    replace_product,
    require_gated,
    with_gains,
    with_hint,
)


@recorded
def layer_norm(cell: Cell, *, epsilon: float = 1e-5) -> Cell:
    """Layer normalization of every product of a gated cell (Ba, Kiros & Hinton 2016, arXiv 1607.06450).

        norm(u) = gain * (u - mean(u)) / sqrt(variance(u) + epsilon)
        x @ w_x + b  becomes  norm(x @ w_x) + b,   and  u_k = v_k @ w_k  becomes  norm(u_k)

    Mean and variance are those of one product of one sequence at one step, over the columns of all gates at once, as
    in the paper's LSTM; in a cell with several products (`gru_reset_before`: [2H] and [H]) each is normalized
    separately. The gains start at 1. What is inside the gates is not normalized: a `b_n`, a peephole, the state c.
    `cells.layer_norm_lstm` also normalizes c before its tanh, as the paper does; otherwise it is
    `layer_norm(cells.lstm(H))`.

    Args:
      cell: a gated cell, or a stack of gated cells, each of which is wrapped.
      epsilon: added to the variances.

    Returns:
      A cell with the carry of the one inside; gated, but not elementwise, so `native` refuses it.

    Raises:
      ValueError: for a cell without the `gated` hint, or whose input does not enter by exactly one product.
    """
    if cell.layers:
        return stack(*(layer_norm(layer, epsilon=epsilon) for layer in cell.layers))
    base = inner(with_gains(cell, 1.0), lambda z: z[0])
    gated = require_gated("layer_norm", base)

    def project(params, x):
        z = cell.project(params["cell"], x)
        product = input_product(z)
        u = normalize(dense(product.x, product.w.value), params["gain_x"], epsilon)
        return replace_product(z, add_bias(u, product.b.value)), Const(params["gain_h"])

    def normalize_products(carry, z, us):
        # A stage sees fewer products than there are gains.
        return carry, z, tuple(normalize(u, gain, epsilon) for u, gain in zip(us, z[1].value, strict=False))

    return with_hint(base, around(gated, normalize_products), project)
