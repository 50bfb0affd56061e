"""Flax NNX models over the cells."""

from seqjax.models.classifier import BagClassifier, SequenceClassifier
from seqjax.models.forecaster import ConvForecaster, DenseForecaster, RecurrentForecaster
from seqjax.models.speech import ConvWordClassifier, MomentsWordClassifier, RecurrentWordClassifier

__all__ = [
    "BagClassifier",
    "ConvForecaster",
    "ConvWordClassifier",
    "DenseForecaster",
    "MomentsWordClassifier",
    "RecurrentForecaster",
    "RecurrentWordClassifier",
    "SequenceClassifier",
]
