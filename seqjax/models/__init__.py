"""Flax NNX models over the cells."""

from seqjax.models.classifier import BagClassifier, SequenceClassifier
from seqjax.models.decoder import Decoder
from seqjax.models.forecaster import ConvForecaster, DenseForecaster, RecurrentForecaster
from seqjax.models.translator import Translator

__all__ = [
    "BagClassifier",
    "ConvForecaster",
    "Decoder",
    "DenseForecaster",
    "RecurrentForecaster",
    "SequenceClassifier",
    "Translator",
]
