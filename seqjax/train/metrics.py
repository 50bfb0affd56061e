"""Statistics over seeds, and the progress line."""

import math
from collections.abc import Sequence

from tqdm import tqdm

__all__ = ["mean_and_interval", "progress_bar", "student_t_quantile"]


def mean_and_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean of n independent runs and the half width of its confidence interval, t * s / sqrt(n).

    s is the sample standard deviation and t the quantile (1 + level) / 2 of Student's t with n - 1 degrees of
    freedom (Student 1908). The half width for a single value is nan.

    Raises:
      ValueError: no values, or a level outside (0, 1).
    """
    if not len(values):
        raise ValueError("mean_and_interval needs at least one value, got none")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, student_t_quantile((1 + level) / 2, n - 1) * math.sqrt(variance / n)


def student_t_quantile(probability: float, degrees: int) -> float:
    """The t with P(T <= t) = probability, T of Student's distribution with `degrees` degrees of freedom.

    Found by bisection in the angle atan(t / sqrt(degrees)).

    Raises:
      ValueError: a probability outside (0, 1), or fewer than one degree of freedom.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability must lie between 0 and 1, got {probability}")
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, got {degrees}")
    central = abs(2 * probability - 1)
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, degrees) < central else (low, middle)
    return math.copysign(math.sqrt(degrees) * math.tan(low), probability - 0.5)


def _central_probability(angle: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(angle)): the finite series 26.7.3 and 26.7.4 of Abramowitz and Stegun (1964)."""
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    series = 0.0
    for k in range(1 + odd, degrees, 2):
        series += term
        term *= k / (k + 1) * math.cos(angle) ** 2
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * series)
    return math.sin(angle) * series


def progress_bar(steps: int, done: int, *, enabled: bool) -> tqdm:
    """A line on stderr with steps done, rate and time left; silent unless stderr is a terminal."""
    return tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, disable=None if enabled else True)
