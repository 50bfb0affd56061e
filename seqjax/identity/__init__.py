"""Cells as values: compared, printed and pickled by their structure.

A cell is made of closures, which Python compares, prints and pickles by their address. Here two functions are equal if
they have the same code and see equal values, so that `lstm(8) == lstm(8)`, and jit compiles the two once. A cell that a
plain function returns gets all of it undecorated: its call is read off the closures.
"""

from seqjax.identity.structures import ByValue, Structure, structure
from seqjax.identity.values import Value, by_value, recorded

__all__ = ["ByValue", "Structure", "Value", "by_value", "recorded", "structure"]
