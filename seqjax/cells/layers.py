"""Cells on top of each other."""

import jax

from seqjax.core import Cell, open_dense, out_features
from seqjax.identity import recorded


@recorded
def stack(*cells: Cell) -> Cell:
    """Layers: each cell reads the output of the one before.

    Params and carry are tuples with one entry a layer. The `layers` hint lets `unroll` run each layer over all of time
    before the next, on its own fast path. All layers have the same `space`.

    Args:
      *cells: the layers, the lowest first.

    Raises:
      ValueError: for no cell at all, or cells of several spaces; in `init`, for a layer that does not read the
        output of the one below.

    Example:
      >>> cell = seqjax.cells.stack(seqjax.cells.lstm(8), seqjax.wrappers.residual(seqjax.cells.gru(8)))
      >>> params = cell.init(jax.random.key(0), 3)
      >>> (lower, upper), ys = seqjax.unroll(cell, params, None, jnp.ones((5, 2, 3)))
      >>> lower.c.shape, upper.shape, ys.shape
      ((2, 8), (2, 8), (5, 2, 8))
    """
    if not cells:
        raise ValueError("stack needs at least one cell")
    # The lowest layer may read several tokens per step, which the others do not see.
    lowest = cells[0].space[:-1] if cells[0].vocabulary and len(cells[0].space) else cells[0].space
    if {cell.space for cell in cells[1:]} - {lowest}:
        raise ValueError(f"stack needs cells of one space, got those of {[cell.space for cell in cells]}")

    def init(key, in_features):
        params = []
        for cell, k in zip(cells, jax.random.split(key, len(cells)), strict=True):
            p = cell.init(k, in_features)
            params.append(p)
            if len(params) < len(cells):
                in_features = out_features(cell, p, in_features)
        return tuple(params)

    def project(params, x):
        return cells[0].project(params[0], x)

    def transition(params, carry, z):
        carries = []
        for i, cell in enumerate(cells):
            if i > 0:
                z = open_dense(cell.project(params[i], cells[i - 1].readout(params[i - 1], carries[-1], z)))
            carries.append(cell.transition(params[i], carry[i], z))
        return tuple(carries)

    def readout(params, carry, z):
        for i in range(1, len(cells)):
            z = open_dense(cells[i].project(params[i], cells[i - 1].readout(params[i - 1], carry[i - 1], z)))
        return cells[-1].readout(params[-1], carry[-1], z)

    return Cell(
        init=init,
        initial_carry=lambda params, batch_shape: tuple(
            cell.initial_carry(p, batch_shape) for cell, p in zip(cells, params, strict=True)
        ),
        project=project,
        transition=transition,
        readout=readout,
        layers=cells,
        space=cells[0].space,
        vocabulary=cells[0].vocabulary,
    )
