"""Flax NNX models over the cells."""

from seqjax.models.forecaster import ConvForecaster, DenseForecaster, RecurrentForecaster

__all__ = ["ConvForecaster", "DenseForecaster", "RecurrentForecaster"]
