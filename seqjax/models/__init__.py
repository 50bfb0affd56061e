"""Flax NNX models over the cells."""

from seqjax.models.classifier import BagClassifier, SequenceClassifier
from seqjax.models.forecaster import ConvForecaster, DenseForecaster, RecurrentForecaster
from seqjax.models.language import LanguageModel
from seqjax.models.ngram import KneserNey

__all__ = [
    "BagClassifier",
    "ConvForecaster",
    "DenseForecaster",
    "KneserNey",
    "LanguageModel",
    "RecurrentForecaster",
    "SequenceClassifier",
]
