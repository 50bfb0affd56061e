"""Training: one loop, its checkpoints, the files of a run and of a sweep, trained params, and statistics over seeds."""

from seqjax.extras import needed

with needed("train", by=__name__):
    from seqjax.train.atomic import read_arrays, write_arrays, write_atomic
    from seqjax.train.lock import InUse
    from seqjax.train.loop import FitResult, NonFiniteLoss, Preempted, fit, fit_lanes
    from seqjax.train.metrics import mean_and_interval
    from seqjax.train.mirror import Sink
    from seqjax.train.program import Best, Program, State, initial_state
    from seqjax.train.run import Run
    from seqjax.train.sinks import MLflow, TensorBoard, WandB
    from seqjax.train.sweep import load_sweep

__all__ = [
    "Best",
    "FitResult",
    "InUse",
    "MLflow",
    "NonFiniteLoss",
    "Preempted",
    "Program",
    "Run",
    "Sink",
    "State",
    "TensorBoard",
    "WandB",
    "fit",
    "fit_lanes",
    "initial_state",
    "load_sweep",
    "mean_and_interval",
    "read_arrays",
    "write_arrays",
    "write_atomic",
]
