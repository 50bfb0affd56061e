"""The report: statistics in tables, figures, and a page that stands alone."""

import base64
import importlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import toy_experiment as toy

import experiments
from experiments.harness import page, plots, report, texts
from experiments.harness.experiment import define
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
            status, error = ("failed", "ValueError: <broken>") if failed else ("finished", None)
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
    return [Run.read(sweep_directory / run["name"]) for run in listed if run["status"] == "finished"]


def test_runs_of_one_kind_that_read_other_data_are_named(tmp_path):
    def run_with(data, **flags):
        name = ",".join(f"{name}={value}" for name, value in flags.items())
        return make_run(tmp_path / name, flags, [], {"loss": 1.0, "data_hash": data} if data else {"loss": 1.0})

    same = [
        run_with("aa", model="line", seed=0),
        run_with("aa", model="line", seed=1),
        run_with(None, model="line", seed=2),
    ]
    assert report.mixed_data([*same, run_with("bb", model="curve", seed=0)], ("learning_rate",)) == ""
    other = run_with("bb", model="line", seed=3)
    assert report.mixed_data([*same, other], ()) == (
        "Different data, though the flags are the same, were read by model=line,seed=0 and model=line,seed=3."
    )
    faster = run_with("bb", model="curve", learning_rate=1.0)
    slower = run_with("aa", model="curve", learning_rate=0.1)
    assert report.mixed_data([faster, slower], ()) == ""
    assert report.mixed_data([faster, slower], ("learning_rate",)) != ""


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
        (report.Mean(15.358397, 1e-15), "15.36"),
        (report.Mean(3.21e-8, 1.2e-9), "(3.21 ± 0.12)e-8"),
        (report.Mean(1e-9, 3.2e-7), "(0.0 ± 3.2)e-7"),
        (report.Mean(1.4e26, 3.6e26), "(1.4 ± 3.6)e26"),
        (report.Mean(0.9999982, 2.8e-6), "0.9999982 ± 0.0000028"),
    ],
)
def test_cells(cell, text):
    assert report.cell_text(cell) == text


def test_text_table_is_aligned():
    lines = report.text_table([["model", "x"], ["lstm", 1.5], ["a", None]]).split("\n")
    assert lines == ["model    x", "──────────", " lstm  1.5", "    a    -"]


def test_learning_curves_show_mean_and_band(runs):
    figures = report.learning_curves(runs, "loss")
    assert [figure.get_label() for figure in figures] == [
        "loss-train-steps",
        "loss-train-seconds",
        "loss-validation-steps",
        "loss-validation-seconds",
    ]
    updates, clock, validation, _ = (figure.axes[0] for figure in figures)
    line = updates.lines[0]
    np.testing.assert_allclose(line.get_xdata(), [10, 20, 30])
    np.testing.assert_allclose(line.get_ydata(), [0.2, 0.1, 2 / 30])
    np.testing.assert_allclose(clock.lines[0].get_xdata(), [1, 2, 3])
    half = T2 / math.sqrt(3) / 10
    band = updates.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(0.2 + half)
    assert (updates.get_ylabel(), validation.get_ylabel()) == ("train loss", "validation loss")
    assert updates.get_yscale() == "log"  # from 0.07 to 10
    assert report.learning_curves(runs[:3], "loss")[0].axes[0].get_yscale() == "linear"


def test_two_runs_are_two_lines_without_a_band():
    _, [axes] = report.separate("loss")
    report.curve(axes, "two", [1, 2, 3], [[1.0, 0.4], [0.9, 0.3], [0.8, 0.2]])
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1.0, 0.9, 0.8], [0.4, 0.3, 0.2]]
    assert not axes.collections
    assert axes.get_legend_handles_labels()[1] == ["two"]
    assert math.isnan(report.mean([1.0, 0.4]).half)
    assert not math.isnan(report.mean([1.0, 0.4, 0.5]).half)


def test_a_run_that_stopped_early_keeps_its_own_line(tmp_path):
    def one(seed, steps):
        flags = {"model": "m", "seed": seed}
        records = [{"step": s, "epoch": None, "split": "train", "seconds": s, "loss": seed + 1.0} for s in steps]
        return make_run(tmp_path / str(seed), flags, records, {"final_loss": 1.0})

    both = [one(0, [10]), one(1, [10, 20])]
    lines = report.learning_curves(both, "loss")[0].axes[0].lines
    np.testing.assert_array_equal([line.get_ydata() for line in lines], [[1, math.nan], [2, 2]])


def test_a_band_does_not_set_the_axes():
    [figure], [axes] = report.separate("loss")
    report.curve(axes, "three", [1, 2, 3], [[0.1, 0.5, 3.0], [0.1, 0.4, 2.5], [0.1, 0.2, 2.0]])
    plots.finish(figure)
    assert axes.collections[0].get_paths()[0].vertices[:, 1].min() < -1
    low, high = axes.get_ylim()
    assert 0 <= low < 0.77
    assert 1.2 < high < 1.3


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bound", [1.0, 100.0])
def test_no_margin_passes_a_bound_that_the_curves_respect(bound, sign):
    [figure], [axes] = report.separate("cosine")
    report.curve(axes, "one", [1, 2], [[0.2 * bound * sign], [0.999 * bound * sign]])
    plots.finish(figure)
    assert max(abs(end) for end in axes.get_ylim()) == bound
    axes.plot([1], [1.0000001 * bound * sign])  # as cosines in float32 are
    plots.finish(figure)
    assert max(abs(end) for end in axes.get_ylim()) == bound
    axes.plot([1], [1.2 * bound * sign])
    plots.finish(figure)
    assert max(abs(end) for end in axes.get_ylim()) > 1.2 * bound


@pytest.mark.parametrize(("value", "ends"), [(1.0, (0.945, 1.0)), (0.0, (0.0, 0.055)), (-1.0, (-1.0, -0.945))])
def test_an_axis_of_equal_values_has_a_margin_on_one_side(value, ends):
    [figure], [axes] = report.separate("accuracy")
    report.curve(axes, "one", [1, 2], [[value], [value]])
    plots.finish(figure)
    assert axes.get_ylim() == pytest.approx(ends, abs=0.01)


def test_intervals_are_cut_to_the_range_of_the_metric(tmp_path):
    values = [0.7, 0.99, 0.98]
    made = [make_run(tmp_path / str(i), {"seed": i}, [], {"accuracy": value}) for i, value in enumerate(values)]
    [figure], [axes] = report.separate("accuracy")
    report.intervals(axes, {"all": made}, "accuracy", (0, 1))
    plots.finish(figure)
    assert axes.get_xlim()[1] == 1
    assert axes.collections[0].get_segments()[0][:, 0].max() == 1
    [figure], [few] = report.separate("accuracy")
    report.intervals(few, {f"model {i}": made[:2] for i in range(30)}, "accuracy", (0, 1))
    assert few.lines[0].get_xdata().tolist() == values[:2]
    assert not few.collections
    assert figure.get_figheight() > 6


def test_a_group_without_a_result_is_a_row_that_is_named():
    [_], [axes] = report.separate("accuracy")
    plots.interval_rows(axes, {"one": [0.5], "none": [], "three": [0.1, 0.2, 0.3]})
    assert [text.get_text() for text in axes.get_yticklabels()] == ["one", "none (no result)", "three"]
    assert [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata())][:2] == [0, 2]


def test_a_legend_is_whole_and_so_are_the_names_of_axes():
    [figure], [axes] = report.separate("loss")
    labels = [f"model=stacked_gru, recurrent_dropout=0.{i}, units=32, a_flag_with_a_long_name=1e-05" for i in range(7)]
    for index, label in enumerate(labels):
        report.curve(axes, label, [0, 1], [[1.0], [2.0]], index)
    axes.set(xlabel="a long name of an axis, " * 5, ylabel="monthly test MAE less the last value's, in degrees")
    plots.finish(figure)
    figure.canvas.draw()
    inside = figure.bbox.padded(1)
    for artist in (figure.legends[0], axes.xaxis.label, axes.yaxis.label):
        box = artist.get_window_extent()
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1
    assert axes.get_position().height * figure.get_figheight() > 1.5
    shown = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]
    assert shown == labels


def test_lanes_share_a_clock_and_say_so_where_the_number_is(tmp_path):
    def one(seed, lanes):
        result = {"loss": 0.1 * seed, "lanes": lanes, "wall_seconds": 15.358397, "steps_per_second": 0.1}
        return make_run(tmp_path / f"{lanes}{seed}", {"seed": seed, "lanes": lanes}, [], result)

    together = [one(seed, 3) for seed in range(3)]
    header, row = report.summary(together)
    assert header[-2:] == ["wall_seconds (3 lanes together)", "steps_per_second (3 lanes together)"]
    assert [str(cell) for cell in row[-2:]] == ["15.36", "0.1"]
    assert all(math.isnan(cell.half) for cell in row[-2:])
    assert not math.isnan(row[-3].half)
    alone = [one(seed, 1) for seed in range(3)]
    assert report.summary(alone)[0][-2:] == ["wall_seconds", "steps_per_second"]
    assert "1 or 3 lanes together" in report.summary(alone + together)[0][-1]


def test_what_a_run_leaves_out_is_said_with_the_results(tmp_path):
    said = ["7 of 1,496 characters", "7 of 1,496 characters", None]
    made = [
        make_run(tmp_path / str(i), {"seed": i}, [], {"loss": 0.1, **({"left_out": line} if line else {})})
        for i, line in enumerate(said)
    ]
    results = report._generic_sections(made)[0]
    assert results.text.endswith("Left out: 7 of 1,496 characters.")
    assert "Left out" not in report._generic_sections(made[2:])[0].text


def test_curves_differ_in_colour_or_dashes():
    _, axes = report.panels()
    for index in range(28):
        report.curve(axes[0, 0], str(index), [0, 1], [[1.0], [2.0]], index)
    styles = {(line.get_color(), line.get_linestyle()) for line in axes[0, 0].lines}
    assert len(styles) == 28


class Page(HTMLParser):
    """Collects the headings, the cells, what surrounds the tables, and whatever a page would load from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.cells, self.outside, self.svgs, self.tags = [], [], [], [], []
        self.tables, self.listings, self.captions, self.alts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "table":
            self.tables.append(self.tags[-1])
        if tag not in ("meta", "img", "wbr"):
            self.tags.append((tag, attributes))
        if tag == "img":
            assert any(outer[1].get("class") == "figures" for outer in self.tags)
            self.alts.append(attributes["alt"])
        for name, value in attrs:
            if name in ("src", "href"):
                kind = "data:image/svg+xml;base64,"
                if value.startswith(kind):
                    self.svgs.append(base64.b64decode(value.removeprefix(kind)).decode())
                else:
                    self.outside.append(value)

    def handle_endtag(self, tag):
        assert self.tags.pop()[0] == tag

    def handle_data(self, data):
        into = {"h2": self.headings, "td": self.cells, "pre": self.listings}
        into |= {"caption": self.captions, "figcaption": self.captions}
        if self.tags and self.tags[-1][1].get("class") == "caption":
            self.captions.append(data)
        if self.tags and self.tags[-1][0] in into:
            into[self.tags[-1][0]].append(data)


def test_the_page_stands_alone(sweep_directory):
    assert report.write(define(toy), sweep_directory) is None
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
    assert len(page.svgs) == 5  # training and validation, against steps and seconds, and the experiment's own
    assert {"2.0 ± 2.5", "ValueError: <broken>", "curve"} <= set(page.cells)
    assert "<p>Second &amp; last.</p>" in text
    assert "How fast does gradient descent find the minimum of a bowl?" in text
    [listing] = page.listings
    assert listing.startswith("python launch.py --experiment=toy --sweep='model=line,curve;seed=0,1,2'")
    for name in ("learning-curves-loss-train-steps", "final-losses"):
        png = (sweep_directory / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert b"<svg" in (sweep_directory / "figures" / f"{name}.svg").read_bytes()


def test_every_table_scrolls_in_a_container_of_its_own(sweep_directory):
    report.write(define(toy), sweep_directory)
    text = (sweep_directory / "report.html").read_text()
    tables = Page(text).tables
    assert len(tables) == 6
    for tag, attributes in tables:
        assert (tag, attributes["class"], attributes["tabindex"]) == ("div", "table", "0")
        assert attributes["aria-label"]
    assert re.search(r"\.table {[^}]*overflow-x: auto", text)


def test_figures_follow_the_page_and_are_described(sweep_directory):
    report.write(define(toy), sweep_directory)
    text = (sweep_directory / "report.html").read_text()
    page = Page(text)
    assert not re.search(r"(figure|img) {[^}]*background", text)
    for svg in page.svgs:
        assert "prefers-color-scheme: dark" in svg
        assert "#ffffff" not in svg
        assert "#000000" not in svg
        assert "currentColor" in svg
    assert "Learning curves: train loss against steps: model=line, model=curve" in page.alts
    assert re.search(r"\.figures {[^}]*flex-wrap: wrap", text)


def test_listings_keep_every_letter_in_a_font_of_one_width(sweep_directory, monkeypatch):
    sample = "  if a < b:\n\n\n\treturn  'x'  \n" + 300 * "long"
    monkeypatch.setattr(toy, "report", lambda runs: [report.Section("Samples", listings={"model=line": sample})])
    assert report.write(define(toy), sweep_directory) is None
    text = (sweep_directory / "report.html").read_text()
    assert Page(text).listings[0] == sample
    assert re.search(r"pre {[^}]*monospace;[^}]*white-space: pre-wrap;[^}]*overflow-wrap: anywhere", text)


def test_generated_data_are_said_at_every_table_figure_and_listing(sweep_directory, monkeypatch):
    own = toy.report
    samples = report.Section("Samples", listings={"a": "b"})
    monkeypatch.setattr(toy, "report", lambda runs: [*own(runs), samples])
    paths = [path for path in sweep_directory.glob("*/result.json") if "model=line" in str(path)]
    before = [path.read_text() for path in paths]
    try:
        for path, text in zip(paths, before, strict=True):
            path.write_text(json.dumps({**json.loads(text), "generated": "digits"}))
        report.write(define(toy), sweep_directory)
        text = (sweep_directory / "report.html").read_text()
    finally:
        for path, content in zip(paths, before, strict=True):
            path.write_text(content)
    page = Page(text)
    absent = "1 of 6 runs have no result and are not in it: the tables of runs at the end give the reasons."
    assert page.captions == [f"Generated digits, not real data (some of the runs). {absent}"] * (5 + 3 + 1)
    assert '<p class="notice">Generated digits' in text
    assert page.cells[:3] == ["line", "generated", "3"]
    report.write(define(toy), sweep_directory)
    assert page.captions != [absent] * (5 + 3) == Page((sweep_directory / "report.html").read_text()).captions[:8]


def test_every_experiment_says_when_its_data_are_generated():
    # A simulation is the task, or a text is always there.
    complete = {"addition", "ball", "mackey_glass", "vanishing", "influence", "memory"}
    folder = Path(experiments.__file__).parent
    names = [path.stem for path in folder.glob("*.py") if "\nSWEEP = " in path.read_text()]
    assert len(names) > 10
    for name in set(names) - complete:
        module = importlib.import_module(f"experiments.{name}")
        flags = define(module).parse({"workdir": "w"})
        where = {
            "language": {"corpus": "ptb"},
            "initialization": {"task": "rows"},
            "bptt_vs_tbptt": {"task": "chorales"},
        }.get(name, {})
        asked = {**vars(flags), **where}
        assert module.synthetic_data(asked), name
        assert module.synthetic_data({**asked, "data_dir": "there"}) is None


def test_several_figures_of_a_section_have_names(sweep_directory, monkeypatch):
    figures = [report.panels()[0] for _ in range(2)]
    figures[1].set_label("second")
    monkeypatch.setattr(toy, "report", lambda runs: [report.Section("Two of them", figures=figures)])
    assert report.write(define(toy), sweep_directory) is None
    assert {"two-of-them-1.png", "two-of-them-second.svg"} <= {p.name for p in sweep_directory.glob("figures/*")}


def test_figures_are_reproduced_bit_for_bit(sweep_directory):
    paths = [sweep_directory / "figures" / f"learning-curves-loss-train-steps.{kind}" for kind in ("png", "svg")]
    report.write(define(toy), sweep_directory)
    first = [path.read_bytes() for path in paths]
    report.write(define(toy), sweep_directory)
    assert [path.read_bytes() for path in paths] == first


def test_an_error_in_the_experiments_report_is_named_and_the_rest_is_written(sweep_directory, monkeypatch, capsys):
    def broken(runs):
        raise KeyError("no such number")

    monkeypatch.setattr(toy, "report", broken)
    assert report.write(define(toy), sweep_directory) == "KeyError: 'no such number'"
    page = Page((sweep_directory / "report.html").read_text())
    assert {"Results", "Learning curves", "Error in the experiment's report"} <= set(page.headings)
    assert "Traceback" in capsys.readouterr().err


def test_a_sweep_without_finished_runs_has_a_report(tmp_path):
    run = {"name": "seed=0", "flags": {"seed": 0}, "status": "waiting", "error": None}
    content = {"experiment": "experiments.toy", "axes": {"seed": [0]}, "fixed": {}, "runs": [run]}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    assert report.write(define(toy), tmp_path) is None
    page = Page((tmp_path / "report.html").read_text())
    assert "Runs waiting" in page.headings


# ---- texts that anybody may have written

STRANGE = [
    "a$b",
    "$x^2$",
    "$\\frac{1}{$",
    "\\$",
    "_hidden",
    "a_b^c{d}%s",
    "<b>&amp;\"'",
    "a\nb\r\tc",
    "\x1b[31mred\x00",
    "😀 日本",
    "\u202eturned",
    "שלום",
    "\udcff",
    "long " * 60,
    "x" * 300,
]


def test_any_text_is_drawn_as_it_is_written(tmp_path):
    # Warnings are errors here: one is what matplotlib says of a character that its font has not.
    [figure], [axes] = report.separate("loss")
    for index, text in enumerate(STRANGE):
        report.curve(axes, text, [1, 10], [[1.0], [2.0]], index)
        axes.annotate(text[:20], (1, 1))
    axes.set(xlabel="$\\frac{", ylabel="x" * 300, title="$x_", yscale="log")
    plots.finish(figure)
    plots.save(figure, tmp_path / "figure")
    legend = figure.legends[0].get_texts()
    expected = [plots.drawable(" ".join(text.split())) for text in STRANGE]
    assert ["".join(label.get_text().split()) for label in legend] == ["".join(text.split()) for text in expected]
    assert (expected[0], expected[1], expected[9]) == ("a$b", "$x^2$", r"😀 \u65e5\u672c")
    assert not any(label.get_parse_math() for label in [*legend, *axes.texts, axes.title, axes.xaxis.label])
    # The numbers of a logarithmic axis are formulas, which matplotlib writes itself.
    assert any("mathdefault" in label.get_text() and label.get_parse_math() for label in axes.get_yticklabels())


def test_any_text_names_a_row(tmp_path):
    [figure], [axes] = report.separate("accuracy")
    run = make_run(tmp_path / "run", {"seed": 0}, [], {"accuracy": 0.5})
    report.intervals(axes, {text: [run] for text in STRANGE}, "accuracy")
    plots.finish(figure)
    plots.save(figure, tmp_path / "rows")
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["a$b", "$x^2$"]


def test_a_legend_of_too_many_curves_is_a_line():
    [figure], [axes] = report.separate("loss")
    for index in range(plots.MOST_LABELS + 1):
        report.curve(axes, f"seed={index}", [1], [[1.0]], index)
    plots.finish(figure)
    [text] = figure.legends[0].get_texts()
    assert text.get_text().replace("\n", " ") == "61 curves, too many for a legend: the tables name them"
    assert figure.get_figheight() < 4


def test_escapes_are_of_what_acts_and_of_nothing_else():
    assert texts.visible("é 日本 😀 שלום\u00a0\u200d|") == "é 日本 😀 שלום\u00a0\u200d|"
    assert texts.visible("a\n\r\x1b\x00\u202e\u2067\u2028\udcff") == r"a\n\r\x1b\x00\u202e\u2067\u2028\udcff"
    assert texts.visible("a\n\tb", keep="\n\t") == "a\n\tb"


@pytest.mark.parametrize("text", STRANGE, ids=ascii)
def test_any_text_stands_in_the_page(text):
    content = report.Section(text, text, table=[[text], [text]], listings={text: text}, caption=text)
    found = Page(f"<html>{page.section(content, Path('nowhere'))}</html>")
    kept, line = texts.visible(text, keep="\n\t"), texts.visible(text)
    assert (found.headings, found.listings) == ([kept], [kept])
    assert found.cells == [line]
    assert page.page(text, text, text, "").encode()


def test_files_of_figures_stay_in_their_directory_and_differ(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(plots, "save", lambda figure, path: names.append(path) or b"")
    for title in ("../../up", "x" * 400, "x" * 401):
        for label in ("../../../up", "a/b", "a b", "y" * 400):
            figures = [report.panels()[0] for _ in range(2)]
            figures[0].set_label(label)
            page.section(report.Section(title, figures=figures), tmp_path)
    page.section(report.Section("日本", figures=figures[1:]), tmp_path)
    assert {name.parent for name in names} == {tmp_path}
    assert max(len(name.name) for name in names) < 140
    assert len(set(names)) == 3 * (4 + 1) + 1
    assert names[-1].name == "figure"


def test_a_table_in_markdown_keeps_its_columns():
    assert report.markdown_table([["a|b"], ["c\nd"]]).splitlines() == [r"| a\|b |", "|---|", r"| c\nd |"]


def test_runs_without_a_result_are_counted_where_their_seeds_are(runs):
    missing = [
        report.Missing({"model": "curve", "seed": 2}, "loss is inf at step 5"),
        report.Missing({"model": "square", "seed": 0}, "waiting"),
        report.Missing({"model": "square", "seed": 1}, "failed"),
    ]
    header, line, curve, square = report.summary(runs, ["final_loss"], missing)
    assert header == ["model", "runs", "missing", "final_loss"]
    assert line[:3] == ["line", 3, None]
    assert curve[:3] == ["curve", "2 of 3", "loss is inf at step 5"]
    assert str(curve[3]) == "100"
    assert square == ["square", "0 of 2", "waiting (and 1 more)", None]
    assert report.summary([], missing=missing) == [
        ["model", "runs", "missing"],
        ["curve", "0 of 1", "loss is inf at step 5"],
        ["square", "0 of 2", "waiting (and 1 more)"],
    ]


def test_a_figure_that_cannot_be_drawn_leaves_the_rest_of_the_page(sweep_directory, monkeypatch, capsys):
    def save(figure, path):
        if "final" in path.name:
            raise ValueError("the image is too large")
        return b"<svg/>"

    monkeypatch.setattr(plots, "save", save)
    problem = report.write(define(toy), sweep_directory)
    assert problem == "section 'Final <losses>': ValueError: the image is too large"
    text = (sweep_directory / "report.html").read_text()
    found = Page(text)
    assert {"Results", "Final <losses>", "Learning curves", "Versions"} <= set(found.headings)
    assert "Its figures could not be drawn: section" in text
    assert re.findall(r'<th scope="col">([ab])</th>', text) == ["a", "b"]
    assert "Traceback" in capsys.readouterr().err
