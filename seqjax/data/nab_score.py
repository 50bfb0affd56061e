"""The score of the Numenta anomaly benchmark (Lavin & Ahmad 2015, arXiv 1510.03336, section II).

    marks = {name: nab_score.Marks.of(scores[name], series) for name, series in corpus.items()}
    threshold = nab_score.best_threshold(list(marks.values()), nab_score.PROFILES["standard"])
    nab_score.normalized(list(marks.values()), nab_score.PROFILES["standard"], threshold)   # 0 null, 100 perfect

A detector assigns a score to every row of a series; an alarm is a score at or above one threshold for all series. The
first alarm in a window earns `A_TP s(y) / s(-1)`, with `s(y) = 2 / (1 + exp(5 y)) - 1` and y from -1 at the first row
of the window to 0 after the last one; a window without an alarm costs A_FN. An alarm outside of windows costs
`-A_FP s(y)`, with y the rows since the last window divided by its width, so that one just after a window is cheap, and
A_FP before any window. The probationary rows do not count.

    score = 100 (raw - null) / (perfect - null),   null = -A_FN W,   perfect = A_TP W   for W windows
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from seqjax.data.nab import Series, probation

__all__ = ["PROFILES", "Marks", "Profile", "best_threshold", "held_out", "normalized", "raw", "scaled_sigmoid"]


class Profile(NamedTuple):
    """Gains and losses of an application: the weights A_TP, A_FP, A_FN."""

    true_positive: float
    false_positive: float
    false_negative: float


PROFILES: Mapping[str, Profile] = {
    "standard": Profile(1.0, 0.11, 1.0),
    "reward_low_fp": Profile(1.0, 0.22, 1.0),
    "reward_low_fn": Profile(1.0, 0.11, 2.0),
}
"""The three profiles of the benchmark; 0.11 is about the fraction of rows in windows."""


def scaled_sigmoid(y: np.ndarray | float) -> np.ndarray:
    """`2 / (1 + exp(5 y)) - 1`, float64 of the shape of y; -1 for y >= 3."""
    y = np.asarray(y, np.float64)
    return np.where(y >= 3, -1.0, 2 * expit(-5 * y) - 1)


class Marks(NamedTuple):
    """The rows of a series that count, with the worth of an alarm at each.

    Attributes:
      scores: float64 [N], of the detector, higher is stranger.
      window: int32 [N], the index from 0 to W - 1 of the window that a row is in, -1 outside.
      worth: float64 [N], the gain of a first alarm there (in a window, 0 to 1), or the loss (outside, -1 to 1).
      windows: W, those that do not end during probation.
    """

    scores: np.ndarray
    window: np.ndarray
    worth: np.ndarray
    windows: int

    @classmethod
    def of(cls, scores: np.ndarray, series: Series) -> "Marks":
        """The marks of a detector's scores [T].

        Raises:
          ValueError: scores of another length than the series, or not finite.
        """
        scores = np.asarray(scores, np.float64)
        rows = np.arange(len(series.values))
        if scores.shape != rows.shape:
            raise ValueError(f"scores have shape {scores.shape}, expected {rows.shape}, one per row of the series")
        if not np.isfinite(scores).all():
            raise ValueError(f"the score of row {np.argmin(np.isfinite(scores))} is not finite")
        start = probation(len(rows))
        window, place = np.full(len(rows), -1, np.int32), np.full(len(rows), np.inf)
        on_probation = int((series.windows[:, 1] < start).sum())
        for number, (first, last) in enumerate(series.windows, start=-on_probation):
            inside, width = slice(first, last + 1), last - first + 1
            place[inside] = (rows[inside] - last - 1) / width
            place[last + 1 :] = (rows[last + 1 :] - last) / max(width - 1, 1)
            window[inside] = number
        worth = scaled_sigmoid(place) / np.where(window >= 0, scaled_sigmoid(-1.0), 1.0)
        return cls(scores[start:], window[start:], worth[start:], len(series.windows) - on_probation)


def raw(marks: Marks, profile: Profile, threshold: float) -> float:
    """The points of one series, before normalization.

    Args:
      marks: of the series.
      profile: the weights.
      threshold: an alarm is a score of at least this.
    """
    alarm = marks.scores >= threshold
    inside, outside = alarm & (marks.window >= 0), alarm & (marks.window < 0)
    detected, first = np.unique(marks.window[inside], return_index=True)
    missed = marks.windows - len(detected)
    return float(
        profile.true_positive * marks.worth[inside][first].sum()
        + profile.false_positive * marks.worth[outside].sum()
        - profile.false_negative * missed
    )


def normalized(corpus: Sequence[Marks], profile: Profile, threshold: float) -> float:
    """The score of a detector over a corpus: 0 without alarms, 100 if perfect, negative if worse than no alarms.

    Args:
      corpus: marks of all series.
      profile: the weights.
      threshold: one for all series.

    Raises:
      ValueError: no series has a window.
    """
    return _normalized(corpus, profile, sum(raw(marks, profile, threshold) for marks in corpus))


def held_out(groups: Sequence[Sequence[Marks]], profile: Profile) -> float:
    """The score over all groups of series, each with the threshold that is best on the other groups.

    Args:
      groups: at least two, each with series that have windows.
      profile: the weights.

    Raises:
      ValueError: fewer than two groups, or no series has a window.
    """
    if len(groups) < 2:
        raise ValueError(
            f"held_out takes the threshold of a group from the others, got {len(groups)}, expected 2 or more"
        )
    points = 0.0
    for number, group in enumerate(groups):
        others = [marks for i, other in enumerate(groups) if i != number for marks in other]
        threshold = best_threshold(others, profile)
        points += sum(raw(marks, profile, threshold) for marks in group)
    return _normalized([marks for group in groups for marks in group], profile, points)


def _normalized(corpus: Sequence[Marks], profile: Profile, points: float) -> float:
    windows = sum(marks.windows for marks in corpus)
    if not windows:
        raise ValueError("no window in the corpus: there is nothing to detect")
    null = -profile.false_negative * windows
    return 100 * (points - null) / (profile.true_positive * windows - null)


def best_threshold(corpus: Sequence[Marks], profile: Profile) -> float:
    """The threshold with the most points on a corpus, as the benchmark sets it; inf where no alarm is best.

    All thresholds are tried at once: in descending order of the scores of all series, each row adds its worth when it
    becomes an alarm. Of equally good thresholds, the highest is returned. It depends on the labels of the series that
    it is then applied to; `held_out` avoids this.
    """
    offsets = np.cumsum([0, *(marks.windows for marks in corpus)])
    numbered = [np.where(m.window < 0, -1, m.window + offset) for m, offset in zip(corpus, offsets, strict=False)]
    scores, worth, window = map(np.concatenate, ([m.scores for m in corpus], [m.worth for m in corpus], numbered))
    order = np.argsort(-scores, kind="stable")
    scores, worth, window = scores[order], worth[order], window[order]
    change = profile.false_positive * worth
    for number in range(offsets[-1]):
        rows = np.flatnonzero(window == number)
        best = np.maximum.accumulate(profile.true_positive * worth[rows])
        change[rows] = np.diff(best, prepend=-profile.false_negative)
    together = np.append(scores[1:] != scores[:-1], True)  # rows of equal score become alarms together
    points = np.where(together, np.cumsum(change), -np.inf)
    best = np.argmax(points)
    return float(scores[best]) if points[best] > 0 else float("inf")
