"""Normalization in the recurrence, around any gated cell.

Params are `{"cell": ..., "gain_x": [G], "gain_h": ([G_1], ...)}`: a gain for the input product and one for each
recurrent product; the bias is that of the cell.

Batch statistics are an input, as noise is: `Cell -> (Cell, train)`. The cell takes `x = (x, statistics)`, treats each
sequence independently, and works wherever a cell does. `train` unrolls it on the statistics of its own batch, with the
exact gradient through them, and returns them. No running average is hidden:

    normalized, train = batch_norm(cells.lstm(64))
    params = normalized.init(key, D)
    (carry, ys), statistics = train(params, None, xs, mask=mask)
    running = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, running, statistics)
    carry, ys = unroll(normalized, params, None, (xs, spread(running, xs)), mask=mask)

A cell that takes an `x = (x, extra)` of its own (noise, resets) can be wrapped too; its params then come from `init` of
the wrapped bare cell, which are the same.
"""

from seqjax.normalization.batch import BATCH_METHODS, Statistics, batch_norm, batch_norm_lstm, spread
from seqjax.normalization.building import Moments, Train
from seqjax.normalization.layer import layer_norm
from seqjax.normalization.sequence import sequence_batch_norm

__all__ = [
    "BATCH_METHODS",
    "Moments",
    "Statistics",
    "Train",
    "batch_norm",
    "batch_norm_lstm",
    "layer_norm",
    "sequence_batch_norm",
    "spread",
]
