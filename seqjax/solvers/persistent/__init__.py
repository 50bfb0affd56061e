"""The method "persistent": gated cells on a GPU or TPU, a whole loop over time as one kernel."""

from seqjax.solvers.persistent.solver import Persistent, persistent, precision

__all__ = ["Persistent", "persistent", "precision"]
