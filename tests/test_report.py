"""The report: statistics in tables, figures, and a page that stands alone."""

import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
import toy_experiment as toy

from experiments import report
from seqjax.train.run import Run

# Student's t with 2 degrees of freedom at 97.5 %, from a table.
T2 = 4.302652729911275


def make_run(directory, flags, records, result):
    run = Run.open(directory, flags)
    for record in records:
        run.log(record)
    if result is not None:
        run.finish(result)
    return run


@pytest.fixture(scope="module")
def sweep_directory(tmp_path_factory):
    """Two models with three seeds each, one of them failed; no training."""
    directory = tmp_path_factory.mktemp("sweep")
    listed = []
    for model in ("line", "curve"):
        for seed in range(3):
            name = f"model={model},seed={seed}"
            failed = (model, seed) == ("curve", 2)
            scale = 1.0 + seed if model == "line" else 100.0
            records = [
                {"step": step, "epoch": None, "split": split, "seconds": 0.1 * step, "loss": scale / step}
                for step in (10, 20, 30)
                for split in ("train", "validation")
            ]
            result = {"final_loss": scale, "wall_seconds": 0.5, "steps_per_second": 10.0, "parameters": 3, "text": "x"}
            make_run(directory / name, {"model": model, "seed": seed, "steps": 30}, records, None if failed else result)
            status, error = ("failed", "ValueError: <broken>") if failed else ("done", None)
            listed.append({"name": name, "flags": {"model": model, "seed": seed}, "status": status, "error": error})
    content = {
        "experiment": "experiments.toy",
        "axes": {"model": ["line", "curve"], "seed": [0, 1, 2]},
        "fixed": {"steps": 30},
        "runs": listed,
    }
    (directory / "sweep.json").write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="module")
def runs(sweep_directory):
    listed = json.loads((sweep_directory / "sweep.json").read_text())["runs"]
    return [Run.read(sweep_directory / run["name"]) for run in listed if run["status"] == "done"]


def test_runs_are_grouped_by_what_varies_but_the_seed(runs):
    assert report.varying(runs) == ["model"]
    assert {label: len(members) for label, members in report.groups(runs).items()} == {
        "model=line": 3,
        "model=curve": 2,
    }
    assert list(report.groups(runs[:3])) == ["all runs"]
    assert list(report.groups(runs[:2], by=["model", "seed"])) == ["model=line, seed=0", "model=line, seed=1"]


def test_summary_has_mean_and_interval_over_seeds(runs):
    header, line, curve = report.summary(runs)
    assert header == ["model", "runs", "final_loss", "wall_seconds", "steps_per_second"]
    assert line[:2] == ["line", 3]
    assert line[2].mean == 2.0
    assert line[2].half == pytest.approx(T2 / math.sqrt(3), rel=1e-9)
    assert str(line[2]) == "2.0 ± 2.5"
    assert curve[:2] == ["curve", 2]
    assert str(curve[2]) == "100"
    assert report.summary(runs, ["parameters"])[0] == ["model", "runs", "parameters"]


def test_a_single_run_has_no_interval(runs):
    [_, row] = report.summary(runs[:1])
    assert math.isnan(row[1].half)
    assert str(row[1]) == "1"


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "-"),
        (True, "True"),
        (1234567, "1,234,567"),
        (1234567.0, "1,234,567"),
        (0.123456, "0.1235"),
        (math.nan, "nan"),
        (report.Mean(12345.6, 678.9), "12,346 ± 679"),
        (report.Mean(0.123456, 0.00123), "0.1235 ± 0.0012"),
        (report.Mean(3.0, 0.0), "3"),
        (report.Mean(3.0, math.inf), "3"),
    ],
)
def test_cells(cell, text):
    assert report.cell_text(cell) == text


def test_text_table_is_aligned():
    lines = report.text_table([["model", "x"], ["lstm", 1.5], ["a", None]]).split("\n")
    assert lines == ["model    x", "──────────", " lstm  1.5", "    a    -"]


def test_learning_curves_show_mean_and_band(runs):
    figure = report.learning_curves(runs, "loss")
    assert len(figure.axes) == 4
    updates, clock, validation, _ = figure.axes
    line = updates.lines[0]
    np.testing.assert_allclose(line.get_xdata(), [10, 20, 30])
    np.testing.assert_allclose(line.get_ydata(), [0.2, 0.1, 2 / 30])
    np.testing.assert_allclose(clock.lines[0].get_xdata(), [1, 2, 3])
    half = T2 / math.sqrt(3) / 10
    band = updates.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(0.2 + half)
    assert (updates.get_ylabel(), validation.get_ylabel()) == ("train loss", "validation loss")
    assert figure.get_label() == "loss"
    assert updates.get_yscale() == "log"  # from 0.07 to 10
    assert report.learning_curves(runs[:3], "loss").axes[0].get_yscale() == "linear"


def test_curves_differ_in_colour_or_dashes():
    _, axes = report.panels()
    for index in range(28):
        report.curve(axes[0, 0], str(index), [0, 1], [[1.0], [2.0]], index)
    styles = {(line.get_color(), line.get_linestyle()) for line in axes[0, 0].lines}
    assert len(styles) == 28


class Page(HTMLParser):
    """Collects the headings, the cells, and whatever a page would load from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.cells, self.outside, self.images, self._tag = [], [], [], 0, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._tag = tag
        for name, value in attrs:
            if name in ("src", "href"):
                self.images += value.startswith("data:image/svg+xml;base64,")
                self.outside += [] if value.startswith("data:") else [value]

    def handle_data(self, data):
        if self._tag == "h2":
            self.headings.append(data.strip())
        if self._tag == "td":
            self.cells.append(data.strip())


def test_the_page_stands_alone(sweep_directory):
    assert report.write(toy, sweep_directory) is None
    text = (sweep_directory / "report.html").read_text()
    page = Page(text)
    assert [heading for heading in page.headings if heading] == [
        "Results",
        "Final <losses>",
        "Learning curves",
        "Cost",
        "Runs failed",
        "Configuration",
        "Versions",
    ]
    assert page.outside == []
    assert page.images == 2
    assert {"2.0 ± 2.5", "ValueError: <broken>", "curve"} <= set(page.cells)
    assert "<p>Second &amp; last.</p>" in text
    assert "How fast does gradient descent find the minimum of a bowl?" in text
    assert "python launch.py --experiment=toy --sweep=&#x27;model=line,curve;seed=0,1,2&#x27;" in text
    for name in ("learning-curves", "final-losses"):
        png = (sweep_directory / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert b"<svg" in (sweep_directory / "figures" / f"{name}.svg").read_bytes()


def test_several_figures_of_a_section_have_names(sweep_directory, monkeypatch):
    figures = [report.panels()[0] for _ in range(2)]
    figures[1].set_label("second")
    monkeypatch.setattr(toy, "report", lambda runs: [report.Section("Two of them", figures=figures)])
    assert report.write(toy, sweep_directory) is None
    assert {"two-of-them-1.png", "two-of-them-second.svg"} <= {p.name for p in sweep_directory.glob("figures/*")}


def test_figures_are_reproduced_bit_for_bit(sweep_directory):
    paths = [sweep_directory / "figures" / f"learning-curves.{kind}" for kind in ("png", "svg")]
    report.write(toy, sweep_directory)
    first = [path.read_bytes() for path in paths]
    report.write(toy, sweep_directory)
    assert [path.read_bytes() for path in paths] == first


def test_an_error_in_the_experiments_report_is_named_and_the_rest_is_written(sweep_directory, monkeypatch, capsys):
    def broken(runs):
        raise KeyError("no such number")

    monkeypatch.setattr(toy, "report", broken)
    assert report.write(toy, sweep_directory) == "KeyError: 'no such number'"
    page = Page((sweep_directory / "report.html").read_text())
    assert {"Results", "Learning curves", "Error in the experiment's report"} <= set(page.headings)
    assert "Traceback" in capsys.readouterr().err


def test_a_sweep_without_finished_runs_has_a_report(tmp_path):
    run = {"name": "seed=0", "flags": {"seed": 0}, "status": "pending", "error": None}
    content = {"experiment": "experiments.toy", "axes": {"seed": [0]}, "fixed": {}, "runs": [run]}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    assert report.write(toy, tmp_path) is None
    page = Page((tmp_path / "report.html").read_text())
    assert "Runs pending" in page.headings
