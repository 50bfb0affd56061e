"""Diagnostics of gradients, memory and forecasts. Every function is pure and compiled.

    norms = gradient_against_lag(cell, params, carry, xs, loss)      # [T]
    figure = figures.against_lag({"lstm": norms}, "|dL/dh|")

`gradient` covers gradients, `spectrum` the Jacobians of the steps, `memory` what the carry holds and for how long, of
any cell; `figures` plots each of them. A cell and a loss are static arguments: calls with the same ones do not
recompile. `forecasts` scores forecasts that are distributions.
"""

from seqjax.diagnostics import figures
from seqjax.diagnostics.forecasts import (
    coverage,
    ensemble_crps,
    gaussian_crps,
    mixture_cdf,
    mixture_crps,
    mixture_log_density,
    mixture_quantile,
)
from seqjax.diagnostics.gradient import (
    Decay,
    alignment,
    contributions,
    decay_rate,
    gradient_against_lag,
    gradient_decay,
    receptive_field,
    relative_bias,
)
from seqjax.diagnostics.memory import Saturation, gate_saturation, half_lives, participation_ratio, trajectory
from seqjax.diagnostics.spectrum import lyapunov_exponents, product_spectrum, singular_values, step_jacobians

__all__ = [
    "Decay",
    "Saturation",
    "alignment",
    "contributions",
    "coverage",
    "decay_rate",
    "ensemble_crps",
    "figures",
    "gate_saturation",
    "gaussian_crps",
    "gradient_against_lag",
    "gradient_decay",
    "half_lives",
    "lyapunov_exponents",
    "mixture_cdf",
    "mixture_crps",
    "mixture_log_density",
    "mixture_quantile",
    "participation_ratio",
    "product_spectrum",
    "receptive_field",
    "relative_bias",
    "singular_values",
    "step_jacobians",
    "trajectory",
]
