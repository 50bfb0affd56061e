"""Flax NNX models over the cells."""

from seqjax.models.classifier import BagClassifier, SequenceClassifier
from seqjax.models.forecaster import ConvForecaster, DenseForecaster, RecurrentForecaster
from seqjax.models.music import RollModel

__all__ = [
    "BagClassifier",
    "ConvForecaster",
    "DenseForecaster",
    "RecurrentForecaster",
    "RollModel",
    "SequenceClassifier",
]
