"""Gated cells on the CPU as one C++ loop: the solver "native"."""

from seqjax.native.build import compiler
from seqjax.native.emit import Unsupported
from seqjax.native.solver import native

__all__ = ["Unsupported", "compiler", "native"]
