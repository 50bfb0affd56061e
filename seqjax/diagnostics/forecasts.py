"""Scores of forecasts that are distributions: the continuous ranked probability score (CRPS), and calibration.

A distribution is given by samples, by a mean and a standard deviation (a Gaussian), or by means and standard deviations
[S, ...] of the components of a Gaussian mixture, all of the weight 1 / S. The CRPS is in the units of the truth, and
lower is better; that of a single sample is the absolute error (Gneiting & Raftery 2007, "Strictly proper scoring
rules, prediction, and estimation", section 4.2):

    CRPS(F, y) = integral (F(x) - 1{y <= x})^2 dx = E|X - y| - E|X - X'| / 2,   X, X' ~ F independent

F(y) is the probability integral transform (PIT) of y. It is uniform over many forecasts if these are calibrated.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, logsumexp, ndtr

from seqjax.arrays import Array


def _check(name: str, given: Array, truth: Array, axes: int = 0) -> None:
    """Refuses forecasts whose axes, the first `axes` left out, are not those of the truth."""
    if given.ndim < axes or given.shape[axes:] != truth.shape:
        expected = ", ".join([*"S"[:axes], *map(str, truth.shape)])
        raise ValueError(f"{name} have shape {given.shape}, expected [{expected}] for a truth of shape {truth.shape}")


def _check_mixture(means: Array, stds: Array, x: Array) -> None:
    _check("means", means, x, 1)
    _check("stds", stds, x, 1)
    if means.shape != stds.shape or not len(means):
        raise ValueError(f"a mixture has one or more means and as many stds, got shapes {means.shape} and {stds.shape}")


def _mean_size(mean: Array, std: Array) -> Array:
    """`E|X|` of a Gaussian."""
    z = mean / std
    return mean * erf(z / math.sqrt(2)) + std * (math.sqrt(2 / math.pi) * jnp.exp(-jnp.square(z) / 2))


@partial(jax.jit, static_argnames="fair")
def ensemble_crps(samples: Array, truth: Array, *, fair: bool = True) -> Array:
    """The CRPS of S samples x_i, such as the members of an ensemble of forecasts.

        CRPS = mean_i |x_i - y| - sum_{i < j} |x_i - x_j| / (S (S - 1))

    This is the fair estimator: its expectation is the CRPS of the distribution that the samples are drawn from, for any
    S (Ferro 2014, "Fair scores for ensemble forecasts"). With S^2 in place of S (S - 1), the ordinary one, it is the
    CRPS of the samples as a distribution of their own, which favours large S.

    Args:
      samples: [S, ...], two or more for the fair estimator.
      truth: y, [...].
      fair: which estimator.

    Returns:
      [...].

    Raises:
      ValueError: for arrays of other shapes, or too few samples.

    Example:
      >>> samples = jnp.array([[0.0], [1.0], [3.0]])
      >>> for fair in (True, False):
      ...     crps = seqjax.diagnostics.ensemble_crps(samples, jnp.array([1.0]), fair=fair)
      ...     print(round(crps.item(), 3))
      0.0
      0.333
    """
    _check("samples", samples, truth, 1)
    count = len(samples)
    if count < (2 if fair else 1):
        raise ValueError(f"{'the fair CRPS needs two samples' if fair else 'the CRPS needs a sample'}, got {count}")
    # The sum over pairs from sorted samples: the i-th is above i others and below the rest.
    ranked = jnp.sort(samples - samples.mean(0, keepdims=True), axis=0)
    weights = jnp.arange(1 - count, count, 2).astype(ranked.dtype).reshape(-1, *[1] * truth.ndim)
    pairs = (weights * ranked).sum(0) / (count * (count - fair))
    return jnp.abs(samples - jnp.expand_dims(truth, 0)).mean(0) - pairs


@jax.jit
def gaussian_crps(mean: Array, std: Array, truth: Array) -> Array:
    """The CRPS of a Gaussian: `std (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))`, z = (truth - mean) / std.

    Gneiting & Raftery 2007, section 4.2. Its expectation over a truth with this distribution is `std / sqrt(pi)`.

    Args:
      mean: [...].
      std: [...], positive.
      truth: [...].

    Returns:
      [...].

    Raises:
      ValueError: for arrays of different shapes.

    Example:
      >>> zero, one = jnp.zeros(1), jnp.ones(1)
      >>> round(seqjax.diagnostics.gaussian_crps(zero, one, zero).item(), 4)  # sqrt(2 / pi) - 1 / sqrt(pi)
      0.2337
    """
    _check("means", mean, truth)
    _check("stds", std, truth)
    return _mean_size(truth - mean, std) - std / math.sqrt(math.pi)


@jax.jit
def mixture_crps(means: Array, stds: Array, truth: Array) -> Array:
    """The CRPS of a Gaussian mixture in closed form (Grimit et al. 2006).

        CRPS = mean_i A(y - m_i, s_i) - mean_ij A(m_i - m_j, sqrt(s_i^2 + s_j^2)) / 2,   A(m, s) = E|X|, X ~ N(m, s^2)

    Args:
      means: m, [S, ...].
      stds: s, [S, ...], positive.
      truth: y, [...].

    Returns:
      [...].

    Raises:
      ValueError: for arrays of other shapes.

    Example:
      >>> means, stds = jnp.zeros((3, 1)), jnp.ones((3, 1))  # three times the same Gaussian
      >>> round(seqjax.diagnostics.mixture_crps(means, stds, jnp.zeros(1)).item(), 4)
      0.2337
    """
    _check_mixture(means, stds, truth)

    def add(total, component):
        mean, std = (jnp.expand_dims(part, 0) for part in component)
        return total + _mean_size(means - mean, jnp.hypot(stds, std)).mean(0), None

    # One component after the other: all pairs at once would need S times the memory.
    pairs, _ = jax.lax.scan(add, jnp.zeros_like(truth), (means, stds))
    return _mean_size(jnp.expand_dims(truth, 0) - means, stds).mean(0) - pairs / (2 * len(means))


@jax.jit
def mixture_cdf(means: Array, stds: Array, x: Array) -> Array:
    """The probability that a Gaussian mixture is below x; for the truth in place of x, its PIT value.

    Args:
      means: [S, ...].
      stds: [S, ...], positive.
      x: [...].

    Returns:
      [...], in [0, 1].

    Raises:
      ValueError: for arrays of other shapes.

    Example:
      >>> means, stds = jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1))
      >>> seqjax.diagnostics.mixture_cdf(means, stds, jnp.zeros(1)).item()
      0.5
    """
    _check_mixture(means, stds, x)
    return ndtr((jnp.expand_dims(x, 0) - means) / stds).mean(0)


@jax.jit
def mixture_log_density(means: Array, stds: Array, x: Array) -> Array:
    """The logarithm of the density of a Gaussian mixture; arguments and errors as of `mixture_cdf`, returns [...].

    Example:
      >>> round(seqjax.diagnostics.mixture_log_density(jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.zeros(1)).item(), 4)
      -0.9189
    """
    _check_mixture(means, stds, x)
    squares = jnp.square((jnp.expand_dims(x, 0) - means) / stds)
    return logsumexp(-squares / 2 - jnp.log(stds), axis=0) - math.log(len(means) * math.sqrt(2 * math.pi))


@jax.jit
def mixture_quantile(means: Array, stds: Array, probability: Array | float) -> Array:
    """The quantile of a Gaussian mixture, found by bisection between those of its components.

    Args:
      means: [S, ...].
      stds: [S, ...], positive.
      probability: [], in (0, 1), otherwise the result is not finite.

    Returns:
      [...]; two of them are the ends of a central interval.

    Raises:
      ValueError: for arrays of other shapes.

    Example:
      >>> means, stds = jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1))
      >>> ends = [seqjax.diagnostics.mixture_quantile(means, stds, p) for p in (0.05, 0.95)]
      >>> [round(end.item(), 2) for end in ends]
      [-2.28, 2.28]
    """
    if means.ndim < 1:
        raise ValueError(f"means have shape {means.shape}, expected [S, ...]")
    _check_mixture(means, stds, means[:1].reshape(means.shape[1:]))
    of_components = means + stds * jax.scipy.special.ndtri(jnp.asarray(probability, means.dtype))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = mixture_cdf(means, stds, middle) < jnp.asarray(probability, means.dtype)
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    digits = jnp.finfo(means.dtype).nmant
    low, high = jax.lax.fori_loop(0, digits, halve, (of_components.min(0), of_components.max(0)))
    return (low + high) / 2


@jax.jit
def coverage(pit: Array, levels: Array | float) -> Array:
    """How often the truth was in the central interval: the share of PIT values within `levels / 2` of 1/2.

    A calibrated forecast covers as often as its level says.

    Args:
      pit: PIT values, [...].
      levels: of the intervals, in [0, 1], any shape.

    Returns:
      Shares, in the shape of the levels.

    Example:
      >>> pit = jnp.array([0.01, 0.3, 0.5, 0.9])
      >>> seqjax.diagnostics.coverage(pit, jnp.array([0.5, 0.9])).tolist()
      [0.5, 0.75]
    """
    levels = jnp.asarray(levels, pit.dtype)
    distances = jnp.abs(pit.reshape(*[1] * levels.ndim, -1) - 0.5)
    return (distances <= jnp.expand_dims(levels, -1) / 2).astype(pit.dtype).mean(-1)
