"""Data sets: plain loaders, windows gathered on the device, synthetic long-range tasks.

Import `builders` (TensorFlow Datasets) separately: it is slow to import and only needed to prepare data.
"""

from seqjax.data import jena, synthetic, text, windows

__all__ = ["jena", "synthetic", "text", "windows"]
