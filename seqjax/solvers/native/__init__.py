"""The solver "native": gated cells on the CPU as one C++ loop."""

from seqjax.solvers.native.arithmetic import Unsupported
from seqjax.solvers.native.build import compiler
from seqjax.solvers.native.solver import native, supports

__all__ = ["Unsupported", "compiler", "native", "supports"]
