"""Flax NNX models over the cells."""

from seqjax.models.classifier import BagClassifier, SequenceClassifier
from seqjax.models.forecaster import ConvForecaster, DenseForecaster, RecurrentForecaster

__all__ = ["BagClassifier", "ConvForecaster", "DenseForecaster", "RecurrentForecaster", "SequenceClassifier"]
