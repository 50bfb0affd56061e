"""Plots of the diagnostics: every function takes arrays and returns a new matplotlib figure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from seqjax.extras import needed

if TYPE_CHECKING:  # imported at the first plot: seqjax needs only JAX
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "against_lag",
    "exponents",
    "half_lives_by_rank",
    "saturation",
    "spectrum_over_time",
    "variances",
]

# Okabe and Ito (2008), without yellow, which is too light for a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _figure(xlabel: str, ylabel: str, **scales: str) -> "tuple[Figure, Axes]":
    with needed("figures", by=__name__):
        import matplotlib
        from matplotlib.figure import Figure

    with matplotlib.rc_context({"axes.spines.right": False, "axes.spines.top": False, "legend.frameon": False}):
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, **scales)
    axes.grid(alpha=0.25)
    return figure, axes


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _band(axes: "Axes", x: Any, rows: Any, index: int, label: str | None = None) -> None:
    """The median of rows [S, N] as a line, minimum and maximum as a band."""
    low, middle, high = np.quantile(np.asarray(rows, np.float64), [0.0, 0.5, 1.0], axis=0, method="nearest")
    axes.plot(x, middle, color=_color(index), label=label)
    if len(rows) > 1:
        axes.fill_between(x, low, high, color=_color(index), alpha=0.15, linewidth=0)


def against_lag(norms: Mapping[str, Any], ylabel: str) -> "Figure":
    """Norms against the lag from the last step, on a logarithmic scale: the slope is the rate of decay.

    Args:
      norms: `{label: [T] or [T, B]}` from `gradient_against_lag`, `contributions` or `receptive_field`, where the loss
        is of the last output. A batch is drawn as its median, in a band from minimum to maximum.
      ylabel: the label of the norms.
    """
    figure, axes = _figure("lag", ylabel, yscale="log")
    for index, (label, values) in enumerate(norms.items()):
        rows = np.asarray(values)[::-1]
        rows = rows.reshape(rows.shape[0], -1).T
        _band(axes, np.arange(rows.shape[1]), rows, index, label)
    axes.legend()
    return figure


def spectrum_over_time(values: Any) -> "Figure":
    """The largest, the median and the smallest singular value of every step.

    Args:
      values: [T, B, N] in descending order, from `singular_values(step_jacobians(...))`. A batch is drawn as a band.
    """
    values = np.asarray(values)
    figure, axes = _figure("step", "singular values of a step", yscale="log")
    n = values.shape[-1]
    for index, (label, place) in enumerate({"largest": 0, "median": n // 2, "smallest": n - 1}.items()):
        _band(axes, np.arange(1, len(values) + 1), values[:, :, place].T, index, label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.legend()
    return figure


def exponents(values: Mapping[str, Any], ylabel: str = "Lyapunov exponent") -> "Figure":
    """Exponents by rank, with a line at 0: above it a direction grows, below it decays.

    Args:
      values: `{label: [B, N]}` in descending order, from `lyapunov_exponents` or `product_spectrum` (perhaps divided by
        the number of steps). A batch is drawn as a band.
      ylabel: the label of the values.
    """
    figure, axes = _figure("rank", ylabel)
    for index, (label, rows) in enumerate(values.items()):
        _band(axes, np.arange(1, np.shape(rows)[-1] + 1), rows, index, label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.legend()
    return figure


def half_lives_by_rank(half_lives: Mapping[str, Any]) -> "Figure":
    """Half lives of all units, longest first, on a logarithmic scale; those of 0 and inf are left out.

    Args:
      half_lives: `{label: [B, H]}`, leaves of the result of `half_lives`. A batch is drawn as a band.
    """
    figure, axes = _figure("unit, by rank", "half life [steps]", yscale="log")
    for index, (label, rows) in enumerate(half_lives.items()):
        rows = np.sort(np.asarray(rows, np.float64))[:, ::-1]
        rows = np.where(np.isfinite(rows) & (rows > 0), rows, np.nan)
        _band(axes, np.arange(1, rows.shape[-1] + 1), rows, index, label)
    axes.legend()
    return figure


def saturation(gates: Mapping[str, Any]) -> "Figure":
    """How often each unit of each gate is closed, against how often it is open (Karpathy et al. 2015, figure 2).

    Args:
      gates: `{label: Saturation}`, from `gate_saturation`. Units at the origin are never saturated, those on the
        diagonal always.
    """
    figure, axes = _figure("share of steps open", "share of steps closed")
    for index, (label, (low, high)) in enumerate(gates.items()):
        axes.scatter(np.ravel(high), np.ravel(low), s=12, color=_color(index), label=label, alpha=0.6, clip_on=False)
    axes.plot([0, 1], [1, 0], color="black", linewidth=0.8)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    return figure


def variances(states: Any) -> "Figure":
    """The share of the variance along each principal direction of the states, titled with their participation ratio.

    Args:
      states: [..., H], as for `participation_ratio`.
    """
    rows = np.asarray(states, np.float64).reshape(-1, np.shape(states)[-1])
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    shares = values / values.sum()
    figure, axes = _figure("principal direction", "share of the variance")
    axes.bar(np.arange(1, len(shares) + 1), shares, color=_color(0))
    axes.set_ylim(0, 1)
    axes.set_title(f"participation ratio {1 / np.sum(shares**2):.3g}", fontsize=10)
    return figure
