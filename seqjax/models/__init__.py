"""Flax NNX models over the cells."""

from seqjax.extras import needed

with needed("flax", by=__name__):
    from seqjax.models.anomaly import AnomalyDetector
    from seqjax.models.captioner import Captioner
    from seqjax.models.classifier import BagClassifier, SequenceClassifier
    from seqjax.models.decoder import Decoder
    from seqjax.models.forecaster import ConvForecaster, DenseForecaster, RecurrentForecaster
    from seqjax.models.language import LanguageModel
    from seqjax.models.music import RollModel
    from seqjax.models.ngram import KneserNey
    from seqjax.models.series import ConvClassifier, DenseClassifier, MomentsClassifier, SeriesClassifier
    from seqjax.models.translator import Translator

__all__ = [
    "AnomalyDetector",
    "BagClassifier",
    "Captioner",
    "ConvClassifier",
    "ConvForecaster",
    "Decoder",
    "DenseClassifier",
    "DenseForecaster",
    "KneserNey",
    "LanguageModel",
    "MomentsClassifier",
    "RecurrentForecaster",
    "RollModel",
    "SequenceClassifier",
    "SeriesClassifier",
    "Translator",
]
