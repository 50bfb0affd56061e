"""Estimators of a recurrent network's gradient, behind one interface."""

from seqjax.gradients.adaptive import adaptive_truncation
from seqjax.gradients.comparison import Comparison, compare, stream_gradient
from seqjax.gradients.estimator import Estimator, Loss
from seqjax.gradients.kronecker import kf_rtrl
from seqjax.gradients.online import rtrl
from seqjax.gradients.sparse import diagonal_rtrl, eprop, rflo, snap
from seqjax.gradients.stochastic import artbp, persistent_evolution, uoro
from seqjax.gradients.truncation import bptt, truncated_bptt

__all__ = [
    "Comparison",
    "Estimator",
    "Loss",
    "adaptive_truncation",
    "artbp",
    "bptt",
    "compare",
    "diagonal_rtrl",
    "eprop",
    "kf_rtrl",
    "persistent_evolution",
    "rflo",
    "rtrl",
    "snap",
    "stream_gradient",
    "truncated_bptt",
    "uoro",
]
