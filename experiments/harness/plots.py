"""The figures of the reports: how panels look, where their axes end, and how they are saved.

A panel is a figure of its own, so that a page can place panels beside or below each other. Its axes are set by the
curves: a band is cut off where it leaves them, and no margin reaches past a bound that the curves respect.
"""

import functools
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cycler import cycler

from experiments.harness.texts import escaped, visible
from seqjax.diagnostics.figures import COLORS
from seqjax.train.metrics import mean_and_interval
from seqjax.train.run import Run, write_atomic

if TYPE_CHECKING:  # imported where something is drawn: no run waits for it before its first step
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", "--", ":", "-.")
STYLE: dict = {
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "svg.hashsalt": "seqjax",
}
# With two runs the quantile of Student's t is 12.7, and the interval would show only that.
FEWEST_RUNS = 3
# A legend of more is longer than the figure that it explains, and takes minutes to lay out.
MOST_LABELS = 60
# Cosines, shares and per cents end at these; a margin does not go past one that no curve passes.
BOUNDS = (-100.0, -1.0, 0.0, 1.0, 100.0)
# Black follows the color of the text, which an SVG in a page takes from the reader's preference.
_SVG_STYLE = (
    "<style>svg { color: #1c1c1c; fill: currentColor } "
    "@media (prefers-color-scheme: dark) { svg { color: #e4e4e4 } }</style>"
)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the half width of its 95 % interval, which is nan for fewer than `FEWEST_RUNS` values."""
    mean, half = mean_and_interval(values)
    return mean, half if len(values) >= FEWEST_RUNS else math.nan


def drawable(text: str) -> str:
    """Returns a text of which matplotlib's font has every character: emoji, for example, become escapes."""
    return "".join(char if char == "\n" or ord(char) in _glyphs() else escaped(char) for char in visible(text, "\n"))


@functools.cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def plain(figure: "Figure") -> None:
    """Makes every text of a figure be drawn literally: no "$" in it begins a formula.

    The numbers at logarithmic axes are formulas of matplotlib's own, and stay so.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    logarithmic = [axis for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter)]
    formulas = {label for axis in logarithmic for label in (*axis.get_ticklabels(which="both"), axis.get_offset_text())}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in formulas:
            text.set_parse_math(False)
            text.set_text(drawable(text.get_text()))


def panels(rows: int = 1, columns: int = 1, *, width: float = 4.4, height: float = 3.1) -> "tuple[Figure, np.ndarray]":
    """Returns a figure in the style of the reports and its axes, [rows, columns]; sizes in inches a panel."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def separate(*names: str, width: float = 4.4, height: float = 3.1) -> "tuple[list[Figure], list[Axes]]":
    """Returns a figure for each name, labelled with it, and the axes of each: panels that a page places as it likes."""
    pairs = [panels(width=width, height=height) for _ in names]
    for name, (figure, _) in zip(names, pairs, strict=True):
        figure.set_label(name)
    return [figure for figure, _ in pairs], [axes[0, 0] for _, axes in pairs]


def intervals(
    axes: "Axes",
    by_label: Mapping[str, Sequence[Run]],
    metric: str,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> None:
    """Draws a result of each run of each group, a row for a group, the first at the top; see `interval_rows`.

    Args:
        axes: where to draw; a figure of one panel grows with the number of rows.
        by_label: the groups.
        metric: the name of the result.
        within: the range of the metric, where the intervals are cut.
    """
    values = {label: [run.result()[metric] for run in members] for label, members in by_label.items()}
    interval_rows(axes, values, within)


def interval_rows(
    axes: "Axes", rows: Mapping[str, Sequence[float]], within: tuple[float, float] = (-math.inf, math.inf)
) -> None:
    """Draws the values of each row, the first row at the top; from three values on their mean and 95 % interval too.

    Args:
        axes: where to draw; a figure of one panel grows with the number of rows.
        rows: values by label; one without values is named all the same.
        within: the range of the values, where the intervals are cut.
    """
    for i, values in enumerate(rows.values()):
        if not len(values):
            continue
        color = COLORS[i % len(COLORS)]
        mean, half = interval(values)
        marker, size = ("o", 4) if len(values) == 1 else ("|", 9)
        axes.plot(values, [i] * len(values), marker, color=color, markersize=size, markeredgewidth=1.3, clip_on=False)
        if not math.isnan(half):
            low, high = np.clip([mean - half, mean + half], *within)
            axes.errorbar(mean, i, xerr=[[mean - low], [high - mean]], color=color, fmt="o", markersize=4, capsize=3)
    labels = [label if len(values) else f"{label} (no result)" for label, values in rows.items()]
    axes.set(yticks=range(len(rows)), yticklabels=[drawable(textwrap.fill(label, 28)) for label in labels])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    figure = axes.get_figure(root=True)
    if figure is not None and len(figure.axes) == 1:
        lines = sum(max(1, math.ceil(len(label) / 28)) for label in rows)
        figure.set_figheight(max(figure.get_figheight(), 0.8 + 0.22 * lines))


def curve(axes: "Axes", label: str, x: Sequence[float], ys: Sequence[Sequence[float]], index: int = 0) -> None:
    """Draws the mean of several runs with its 95 % interval as a band; of two runs, a thin line each and no band.

    Args:
        axes: where to draw. The band does not widen their limits.
        label: for the legend.
        x: [N].
        ys: for each of the N places, the values of the runs, in the same order; nan where a run did not get there.
            Where the last runs are missing, a place may have fewer values.
        index: chooses colour and dashes.
    """
    label = f" {label}" if label.startswith("_") else label  # matplotlib takes it for hidden
    width = max(map(len, ys))
    rows = np.array([[*values, *[math.nan] * (width - len(values))] for values in ys], np.float64)
    reached = [row[~np.isnan(row)] for row in rows]
    center, half = np.array([interval(row) if len(row) else (math.nan, math.nan) for row in reached]).T
    style: Any = {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index // len(COLORS) % len(DASHES)]}
    marker = "o" if len(rows) == 1 else None
    if 1 < rows.shape[1] < FEWEST_RUNS:
        for number, values in enumerate(rows.T):
            axes.plot(x, values, linewidth=1.1, marker=marker, markersize=4, label=None if number else label, **style)
        return
    axes.plot(x, center, linewidth=1.6, marker=marker, markersize=4, label=label, **style)
    limits = axes.dataLim.frozen()
    axes.fill_between(x, center - half, center + half, color=style["color"], alpha=0.15, linewidth=0)
    axes.dataLim = limits


def scale(axes: Sequence["Axes"]) -> None:
    """Gives axes of one quantity a logarithmic scale where its curves are positive and span a factor of 30."""
    values = np.concatenate([np.ravel(line.get_ydata()) for line in axes[0].lines])
    low, high = np.nanmin(values), np.nanmax(values)
    if low > 0 and high > 30 * low:
        for panel in axes:
            panel.set(yscale="log", ylim=(low / 1.5, high * 1.5))


def finish(figure: "Figure") -> None:
    """Ends axes at the bounds that their curves respect, breaks long names, puts a legend of several labels below.

    The legend has as many columns as fit, and the figure grows by its height.
    """
    for panel in figure.axes:
        if panel.get_autoscalex_on():
            panel.set_xlim(_ends(panel.get_xlim(), panel.dataLim.intervalx), auto=None)
        if panel.get_autoscaley_on():
            panel.set_ylim(_ends(panel.get_ylim(), panel.dataLim.intervaly), auto=None)
        width, height = panel.get_position().size * figure.get_size_inches()
        panel.set_xlabel(textwrap.fill(panel.get_xlabel(), max(16, int(12 * width))))
        panel.set_ylabel(textwrap.fill(panel.get_ylabel(), max(16, int(12 * height))))
    if figure.legends or any(panel.get_legend() for panel in figure.axes):
        return
    found: dict = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if len(found) < 2:
        return
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.lines import Line2D

    if len(found) > MOST_LABELS:
        found = {
            f"{len(found):,} curves, too many for a legend: the tables name them": Line2D([], [], linestyle="none")
        }
    plain(figure)
    FigureCanvasAgg(figure)
    labels = [drawable(textwrap.fill(label, 48)) for label in found]

    def below(columns: int) -> Any:
        with matplotlib.rc_context({"text.parse_math": False}):
            return figure.legend(found.values(), labels, loc="outside lower center", ncols=columns, frameon=False)

    columns = min(4, len(found))
    box = below(columns)
    while columns > 1 and box.get_window_extent().width > 0.98 * figure.bbox.width:
        box.remove()
        columns -= 1
        box = below(columns)
    figure.set_figheight(figure.get_figheight() + box.get_window_extent().height / figure.dpi)


def _ends(view: tuple[float, float], data: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis without the margins that pass a bound which the data respect, rounding errors aside."""
    (low, high), error = view, 1e-5 * np.ptp(view) + 1e-6
    below = [bound for bound in BOUNDS if bound <= min(data) + error]
    above = [bound for bound in BOUNDS if bound >= max(data) - error]
    if below and above and below[-1] == above[0]:  # constant at a bound: the axis needs its margin on one side
        below, above = (below[:-1], above) if above[0] > 0 else (below, above[1:])
    return max([low, *below]), min([high, *above])


def described(figure: "Figure") -> str:
    """Returns what a figure shows in words, for those who do not see it: axes and labels."""
    parts = []
    for panel in figure.axes:
        names = [panel.get_title(), " against ".join(filter(None, (panel.get_ylabel(), panel.get_xlabel())))]
        lines = panel.get_legend_handles_labels()[1]
        ticks = [text.get_text().replace("\n", " ") for text in panel.get_yticklabels()]
        if not lines and any(re.search(r"[A-Za-z]", tick) for tick in ticks):
            lines = ticks
        names = [name.replace("\n", " ") for name in names]
        parts.append(": ".join(filter(None, [*names, ", ".join(lines)])))
    return "; ".join(dict.fromkeys(filter(None, parts)))


def save(figure: "Figure", path: Path, *, png: bool = True) -> bytes:
    """Writes a figure as `path`.png, on white, and as `path`.svg, which is transparent and light or dark as the reader
    prefers, and returns the SVG.

    Args:
      png: whether to write the first of the two.
    """
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    plain(figure)
    images = {}
    with matplotlib.rc_context(STYLE):
        for kind in ("png", "svg") if png else ("svg",):
            buffer = io.BytesIO()
            options = {"metadata": {"Date": None}, "transparent": True} if kind == "svg" else {}
            figure.savefig(buffer, format=kind, **options)
            images[kind] = buffer.getvalue()
            if kind == "svg":
                images[kind] = _themed(images[kind].decode()).encode()
            write_atomic(path.with_name(f"{path.name}.{kind}"), images[kind])
    return images["svg"]


def _themed(svg: str) -> str:
    head, tag, rest = svg.partition("<defs>")
    return head + _SVG_STYLE + tag + rest.replace("#000000", "currentColor")


def named_points(axes: "Axes", names: Sequence[str], xs: Sequence[float], ys: Sequence[float]) -> None:
    """Draws points, and their names in a column beside the axes; the scales of these have to be set before."""
    for index, (x, y) in enumerate(zip(xs, ys, strict=True)):
        axes.plot(x, y, "o", color=COLORS[index % len(COLORS)], markersize=5, clip_on=False)
    axes.autoscale_view()
    points = np.column_stack([xs, ys])
    heights = axes.transAxes.inverted().transform(axes.transData.transform(points))[:, 1]
    ranked = sorted(zip(heights, names, xs, ys, strict=True))
    places = spread([height for height, *_ in ranked], min(0.08, 1 / len(names)), 1)
    for place, (_, name, x, y) in zip(places, ranked, strict=True):
        line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "relpos": (0, 0.5)}
        to = {"xytext": (1.06, place), "textcoords": "axes fraction", "arrowprops": line}
        axes.annotate(drawable(name), (x, y), va="center", fontsize=8, **to)


def spread(ys: Sequence[float], gap: float, high: float) -> np.ndarray:
    """The places nearest to ascending ys, in least squares, that are at least `gap` apart, all up to `high`."""
    from scipy.optimize import isotonic_regression

    steps = gap * np.arange(len(ys))
    return np.minimum(isotonic_regression(np.subtract(ys, steps)).x, high - steps[-1:]) + steps


def run_lines(
    axes: "Axes", label: str, xs: Sequence[Sequence[float]], ys: Sequence[Sequence[float]], index: int
) -> None:
    """Draws a line for each run of a group: an interval over two or three seeds would be wider than the effect.

    Args:
      axes: where to draw.
      label: of the group.
      xs: for each run its [N] abscissas; one that stopped early has fewer than another.
      ys: for each run its [N] values.
      index: of the group; chooses colour and dashes.
    """
    style: Any = {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index // len(COLORS) % len(DASHES)],
        "linewidth": 1.2,
    }
    for number, (x, values) in enumerate(zip(xs, ys, strict=True)):
        axes.plot(x, values, label=None if number else label, **style)
