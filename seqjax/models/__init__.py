"""Flax NNX models over the cells."""

from seqjax.models.anomaly import AnomalyDetector
from seqjax.models.classifier import BagClassifier, SequenceClassifier
from seqjax.models.forecaster import ConvForecaster, DenseForecaster, RecurrentForecaster

__all__ = [
    "AnomalyDetector",
    "BagClassifier",
    "ConvForecaster",
    "DenseForecaster",
    "RecurrentForecaster",
    "SequenceClassifier",
]
