"""Shared by the end-to-end benchmarks: flags, the location of the Jena record, and docs/end_to_end.md.

Each of them writes one section of the page and leaves the others as they are.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.places import ROOT, places
from benchmarks.processor import processor
from seqjax.train import write_atomic

HEAD = "# End to end\n\nWritten by `make bench-experiments`; do not edit.\n\n"
SECTIONS = ("The temperature experiment", "Sixteen seeds as one program", "The second launch")


class Command:
    """One benchmark command: its flags, its clock, and its section.

    Attributes:
      name: `python -m benchmarks.NAME`.
      quick: whether to do the minimum that shows that everything runs; the docs are then left alone.
    """

    def __init__(self, name: str, description: str, arguments: Sequence[str]):
        """Read the flags."""
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
        add = parser.add_argument
        add("--quick", action="store_true", help="a smoke test; writes no section")
        add("--output", type=Path, metavar="DIR", help="where to write; default docs/, nowhere if quick")
        flags = parser.parse_args(arguments)
        self.name, self.quick = name, flags.quick
        self.where = places(flags.output, whole=not flags.quick)
        self.load, self.start = os.getloadavg()[0], time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.start

    def write(self, section: str, text: str, packages: Sequence[str] = ("jax",)) -> None:
        """Print a section, and insert it at its place on the page."""
        versions = [f"{name} {importlib.metadata.version(name)}" for name in packages if importlib.util.find_spec(name)]
        load = f"load average {self.load:.1f} before"
        made = (
            f"Measured by `python -m benchmarks.{self.name}`, {datetime.date.today():%Y-%m-%d}, in "
            f"{self.seconds / 60:.1f} min on {processor()} ({os.cpu_count()} cores, {load}, "
            f"device {jax.devices()[0].device_kind}): {', '.join([f'Python {platform.python_version()}', *versions])}."
        )
        text = f"{text}\n\n{made}"
        print(f"\n{section}\n\n{text}")
        if self.where:
            page = self.where.pages / "end_to_end.md"
            head, *old = re.split(r"^(?=## )", page.read_text() if page.exists() else HEAD, flags=re.MULTILINE)
            by_title = {part.partition("\n")[0].removeprefix("## "): part.strip() for part in old}
            by_title[section] = f"## {section}\n\n{text}"
            parts = [by_title[title] for title in SECTIONS if title in by_title]
            page.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(page, head + "\n\n".join(parts) + "\n")
            print(f"\nwritten: {page}")


def data_dir() -> Path | None:
    """The folder of the record of Jena (`$SEQJAX_DATA/jena`, or beside the repository), or None if it is missing."""
    path = Path(os.environ.get("SEQJAX_DATA", ROOT.parent / "shared" / "data"), "jena")
    return path if path.is_dir() else None


def verdict(what: str, value: float, bound: float, *, at_least: bool = False) -> str:
    """One line that states the target and whether it was reached."""
    met = value >= bound if at_least else value <= bound
    sign = "at least" if at_least else "at most"
    return f"- {what}: {value:.2f}. The target, {sign} {bound:g}, is {'met' if met else 'missed'}."


def configuration(module: Any, **flags: Any) -> Any:
    """The shipped configuration of an experiment on the available record, with some flags changed."""
    from experiments.harness.experiment import define

    return define(module).parse({"data_dir": data_dir(), "progress": False, **flags})
