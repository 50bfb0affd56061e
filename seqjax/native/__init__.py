"""Gated cells on the CPU as one C++ loop: the solver "native"."""

from seqjax.native.arithmetic import Unsupported
from seqjax.native.build import compiler
from seqjax.native.solver import native, supports

__all__ = ["Unsupported", "compiler", "native", "supports"]
