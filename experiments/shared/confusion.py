"""Confusion matrices: which class was answered for which."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def count(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """How often each class (rows) was answered by each class (columns), int [V, V]."""
    return np.bincount(labels * classes + answers, minlength=classes**2).reshape(classes, classes)


def balanced_accuracy(counts: np.ndarray) -> float:
    """The mean recall of the classes that occur, from counts [V, V]."""
    present = counts.any(1)
    return float((np.diag(counts)[present] / counts.sum(1)[present]).mean())


def draw(axes: "Axes", counts: np.ndarray, classes: Sequence[str], *, percent: bool = False) -> None:
    """Draws counts [V, V]: colours are shares of a row; numbers are counts, or with `percent` shares of a row."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(np.round(100 * share) if percent else counts):
        if value:
            # Not quite black, which would follow the page: the cells are light on a dark page, too.
            color = "white" if share[row, column] > 0.5 else "#111111"
            axes.text(column, row, f"{value:.0f}", color=color, ha="center", va="center", fontsize=7)
    places = range(len(classes))
    axes.set(xticks=places, yticks=places, xticklabels=classes, yticklabels=classes, xlabel="answer")
    axes.set_ylabel("class, %" if percent else "class")
    axes.tick_params(axis="x", rotation=0 if max(map(len, classes)) < 4 else 45)
    axes.grid(visible=False)
