"""The estimators of a gradient that experiments compare, by name."""

from collections.abc import Callable

from seqjax import gradients
from seqjax.arrays import Key
from seqjax.core import Cell
from seqjax.gradients import Estimator, Loss

# Of adaptive truncation: the relative bias that it tolerates.
DELTA = 0.2


def _doubled(k1: int, k2: int) -> list[int]:
    """k1, 2 k1, 4 k1, ... below k2, and k2."""
    return [k1 * 2**i for i in range(32) if k1 * 2**i < k2] + [k2]


# Of which two estimates at the same params differ.
NOISY = ("artbp", "uoro", "kf_rtrl")

# Of the cell, the loss, k1, k2, and two keys: one is the same in a whole run, one differs for each sequence.
GRADIENTS: dict[str, Callable[[Cell, Loss, int, int, Key, Key], Estimator]] = {
    "bptt": lambda cell, loss, k1, k2, fixed, noise: gradients.truncated_bptt(cell, loss, k1, k2),
    "adaptive": lambda cell, loss, k1, k2, fixed, noise: gradients.adaptive_truncation(
        cell, loss, k1, _doubled(k1, k2), DELTA, k1
    ),
    "artbp": lambda cell, loss, k1, k2, fixed, noise: gradients.artbp(cell, loss, 1 / k2, noise),
    "rtrl": lambda cell, loss, k1, k2, fixed, noise: gradients.rtrl(cell, loss),
    "snap1": lambda cell, loss, k1, k2, fixed, noise: gradients.snap(cell, loss, 1),
    "eprop": lambda cell, loss, k1, k2, fixed, noise: gradients.eprop(cell, loss),
    "rflo": lambda cell, loss, k1, k2, fixed, noise: gradients.rflo(cell, loss, fixed),
    "uoro": lambda cell, loss, k1, k2, fixed, noise: gradients.uoro(cell, loss, noise),
    "kf_rtrl": lambda cell, loss, k1, k2, fixed, noise: gradients.kf_rtrl(cell, loss, noise),
}
