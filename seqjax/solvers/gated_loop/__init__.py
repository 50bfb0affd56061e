"""The loop of a gated cell as one operation: JAX operations on any platform, and kernels on single ones."""

from seqjax.solvers.gated_loop.slots import Unsupported

__all__ = ["Unsupported"]
