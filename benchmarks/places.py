"""Where the benchmarks write: pages, the figures that they show, and the numbers behind them."""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Places(NamedTuple):
    """The folders of one run. Pages name figures as `figures/NAME.svg`."""

    pages: Path
    results: Path

    @property
    def figures(self) -> Path:
        """The figures of the pages."""
        return self.pages / "figures"


REPOSITORY = Places(pages=ROOT / "docs", results=ROOT / "benchmarks" / "results")


def places(output: Path | None, whole: bool) -> Places | None:
    """Returns where a run writes: `output` and `output`/results if given, else the repository if it is a whole run."""
    if output:
        return Places(output, output / "results")
    return REPOSITORY if whole else None
