"""Data sets: plain loaders, windows gathered on the device, synthetic long-range tasks.

`builders` (TensorFlow Datasets) is imported on its own: it is slow to import and only needed to prepare data.
"""

from seqjax.data import jena, synthetic, text, windows

__all__ = ["jena", "synthetic", "text", "windows"]
