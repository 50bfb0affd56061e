"""The method "native": gated cells on the CPU as one C++ loop."""

from seqjax.solvers.gated_loop.slots import Unsupported
from seqjax.solvers.native.build import compiler
from seqjax.solvers.native.kernel import Native, native, supports

__all__ = ["Native", "Unsupported", "compiler", "native", "supports"]
