"""Training: one loop, its checkpoints, the files of a run, and statistics over seeds."""

from seqjax.train.loop import (
    Best,
    FitResult,
    NonFiniteLoss,
    Preempted,
    Program,
    State,
    fit,
    fit_lanes,
    initial_state,
)
from seqjax.train.metrics import mean_and_interval
from seqjax.train.run import Run, write_arrays, write_atomic

__all__ = [
    "Best",
    "FitResult",
    "NonFiniteLoss",
    "Preempted",
    "Program",
    "Run",
    "State",
    "fit",
    "fit_lanes",
    "initial_state",
    "mean_and_interval",
    "write_arrays",
    "write_atomic",
]
