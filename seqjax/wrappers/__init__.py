"""Wrappers: `Cell -> Cell`, each of them mapping the hints of the cell that it wraps.

A wrapper that needs one more input takes `x = (x, extra)`. The features are the first leaf of x, however deep. Around a
stack, a wrapper goes around every layer, so that the layers stay on their fast paths. (Noise: `regularizers`.)
"""

from seqjax.wrappers.masking import masked, reset
from seqjax.wrappers.structure import highway, learned_carry, residual, with_head, with_loss
from seqjax.wrappers.tokens import with_embedding, with_one_hot

__all__ = [
    "highway",
    "learned_carry",
    "masked",
    "reset",
    "residual",
    "with_embedding",
    "with_head",
    "with_loss",
    "with_one_hot",
]
