"""Flax NNX models over the cells."""

from seqjax.models.forecaster import ConvForecaster, DenseForecaster, RecurrentForecaster, naive

__all__ = ["ConvForecaster", "DenseForecaster", "RecurrentForecaster", "naive"]
