"""Ways to obtain a recurrent network's gradient, behind one interface."""

from seqjax.gradients.bptt import bptt, truncated_bptt
from seqjax.gradients.estimator import Estimator, Loss
from seqjax.gradients.online import rtrl

__all__ = ["Estimator", "Loss", "bptt", "rtrl", "truncated_bptt"]
