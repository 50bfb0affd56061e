"""Flax NNX models over the cells."""

from seqjax.models.classifier import BagClassifier, SequenceClassifier
from seqjax.models.forecaster import ConvForecaster, DenseForecaster, RecurrentForecaster
from seqjax.models.series import ConvClassifier, DenseClassifier, SeriesClassifier

__all__ = [
    "BagClassifier",
    "ConvClassifier",
    "ConvForecaster",
    "DenseClassifier",
    "DenseForecaster",
    "RecurrentForecaster",
    "SequenceClassifier",
    "SeriesClassifier",
]
