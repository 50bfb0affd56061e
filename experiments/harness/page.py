"""A page that stands alone: sections with text, figures, tables and listings, for screens of any width, light or dark,
and for paper.
"""

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.harness import plots
from experiments.harness.texts import file_name, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = Sequence[Sequence[Any]]


class Section(NamedTuple):
    """A part of the report.

    Attributes:
        title: its heading; also the name of its figure files.
        text: plain text; an empty line separates paragraphs.
        figures: matplotlib figures, best of one panel (`plots.separate`); each becomes a picture in the report, and
            figures/TITLE.png and .svg (where there are several, TITLE-LABEL, by the label of the figure or its number).
        table: rows of cells, the header first; a cell is a text, a number, None or a `Mean`.
        listings: texts to be shown as they are, letter for letter, by their headings.
        caption: shown at the table, at every figure and at the listings.
    """

    title: str
    text: str = ""
    figures: "Sequence[Figure]" = ()
    table: Table | None = None
    listings: Mapping[str, str] = {}
    caption: str = ""


class Mean(NamedTuple):
    """The mean of n runs and the half width of its 95 % interval (nan where there are too few runs for one)."""

    mean: float
    half: float

    def __str__(self) -> str:
        """The mean to the digits that the interval leaves certain."""
        # Below this the runs agree in all the digits that float32 has.
        if not self.half > 1e-6 * abs(self.mean) or math.isinf(self.half):
            return cell_text(self.mean)
        decimals = 1 - math.floor(math.log10(self.half))
        if decimals <= (9 if abs(self.mean) >= 0.1 else 6) and max(abs(self.mean), self.half) < 1e9:
            return f"{self.mean:,.{max(0, decimals)}f} ± {self.half:,.{max(0, decimals)}f}"
        exponent = math.floor(math.log10(max(abs(self.mean), self.half)))
        unit = 10.0**exponent
        return f"({self.mean / unit:.{decimals + exponent}f} ± {self.half / unit:.{decimals + exponent}f})e{exponent}"


def cell_text(cell: Any) -> str:
    """Returns a cell of a table as text: four significant digits, thousands separated."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if 1e4 <= abs(cell) < 1e15 else f"{cell:.4g}"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return visible(str(cell))


def _html(text: str) -> str:
    """A text, letter for letter, in an element or an attribute."""
    return html.escape(visible(text, keep="\n\t"))


def section(content: Section, figures: Path) -> str:
    """Returns a section as HTML, after its figures were written to the directory `figures`."""
    parts = [f"<section><h2>{_html(content.title)}</h2>"]
    parts += [f"<p>{_html(paragraph)}</p>" for paragraph in content.text.split("\n\n") if paragraph]
    slug = re.sub(r"[^a-z0-9]+", "-", content.title.lower()).strip("-") or "figure"
    drawn = []
    for number, figure in enumerate(content.figures, start=1):
        label = figure.get_label() or number
        name = slug if len(content.figures) == 1 else f"{slug}-{label}"
        drawn.append(_figure(content, figure, figures / file_name(name)))
    if drawn:
        parts.append(f'<div class="figures">{"".join(drawn)}</div>')
    if content.table:
        parts.append(table(content.table, content.title, content.caption))
    if content.listings and content.caption:
        parts.append(f'<p class="caption">{_html(content.caption)}</p>')
    for heading, text in content.listings.items():
        parts.append(f"<h3>{_html(heading)}</h3><pre>{_html(text)}</pre>")
    return "\n".join([*parts, "</section>"])


def _figure(content: Section, figure: "Figure", path: Path) -> str:
    plots.finish(figure)
    # As an image of its own: the ids inside two SVGs of one page would clash.
    data = base64.b64encode(plots.save(figure, path)).decode()
    alt = _html(f"{content.title}: {plots.described(figure) or path.name}")
    caption = f"<figcaption>{_html(content.caption)}</figcaption>" if content.caption else ""
    return f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{data}">{caption}</figure>'


def table(rows: Table, title: str, caption: str = "") -> str:
    """Returns a table as HTML, in a container that scrolls where the page is narrower."""
    head, *body = rows
    header = "".join(f'<th scope="col">{_head(cell_text(cell))}</th>' for cell in head)
    lines = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in body)
    caption_tag = f"<caption>{_html(caption)}</caption>" if caption else ""
    name = _html(f"Table: {title}")
    # Focusable, so that the arrow keys scroll it.
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{name}">'
        f"<table>{caption_tag}<thead><tr>{header}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _head(name: str) -> str:
    """A long name may be broken after an underscore, so that it is not much wider than its numbers."""
    first, bracket, rest = _html(name).partition(" (")
    first = first.replace("_", "_<wbr>")
    return f"{first}<br>({rest.replace(' ', '&nbsp;')}" if bracket else first


def _cell(cell: Any) -> str:
    number = cell is None or (isinstance(cell, int | float | Mean) and not isinstance(cell, bool))
    return f"<td{number * ' class=number'}>{_html(cell_text(cell))}</td>"


def page(title: str, head: str, notice: str, body: str) -> str:
    """Returns the whole page; a notice stands above everything."""
    notice_tag = f'<p class="notice">{_html(notice)}</p>' if notice else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_html(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{_html(title)}</h1>
<p class="head">{_html(head)}</p>
{notice_tag}
{body}
</body>
</html>
"""


# The shadows at the edges of a table show that it continues: the first two layers move with it and cover its ends.
_CSS = """
:root { color-scheme: light dark; --text: #1c1c1c; --quiet: #5f5f5f; --line: #ddd; --page: #fff; --soft: #f5f5f5;
        --shade: rgb(0 0 0 / .28); --notice: #8a4b00; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e4e4; --quiet: #a8a8a8; --line: #3a3a3a; --page: #17181a;
        --soft: #222426; --shade: rgb(255 255 255 / .35); --notice: #f0b060; } }
body { max-width: 62rem; margin: 3rem auto; padding: 0 1.25rem; background: var(--page); color: var(--text);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; overflow-wrap: anywhere; }
p { max-width: 46rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.head { color: var(--quiet); margin-top: 0; }
.notice { border-left: 4px solid var(--notice); padding-left: .8rem; font-weight: 600; }
figcaption, caption, .caption { color: var(--notice); font-size: .85rem; text-align: left; padding: .2rem 0; }
caption { white-space: nowrap; }
.figures, .table { margin: 1rem 0; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { box-sizing: border-box; max-width: 100%; margin: 0; padding: .5rem; border: 1px solid var(--line);
         border-radius: 6px; }
img { display: block; max-width: 100%; height: auto; margin: auto; }
.table { max-width: 100%; overflow-x: auto; background:
         linear-gradient(to right, var(--page) 40%, transparent) left / 2.5rem 100% no-repeat local,
         linear-gradient(to left, var(--page) 40%, transparent) right / 2.5rem 100% no-repeat local,
         linear-gradient(to right, var(--shade), transparent) left / .6rem 100% no-repeat scroll,
         linear-gradient(to left, var(--shade), transparent) right / .6rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--quiet); font-weight: 600; vertical-align: bottom; }
td { max-width: 34rem; overflow-wrap: break-word; }
td.number { white-space: nowrap; }
pre { font: .85rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
      white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 8;
      background: var(--soft); padding: .7rem .9rem; border-radius: 6px; }
@media print {
  :root { color-scheme: light; --text: #000; --quiet: #444; --line: #bbb; --page: #fff; --soft: #fff;
          --notice: #6a3a00; }
  body { max-width: none; margin: 0; font-size: 10pt; }
  h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  .table { overflow: visible; background: none; }
  table { font-size: .75rem; }
  td.number { white-space: normal; }
}
"""
