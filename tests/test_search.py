"""Ranges in a sweep: the points that are drawn of them, and what a search reports."""

import re

import numpy as np
import pytest

import launch
from experiments.harness import comparison, plots, report, search, sweep, tuning
from experiments.harness.experiment import define
from experiments.harness.flags import training_flags
from experiments.harness.search import Range, Search
from seqjax.train.strict_json import decode
from tests import toy_experiment

FLAGS = training_flags()
TOY = define(toy_experiment)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("learning_rate", "1e-4..1e-1:log", Range(1e-4, 0.1, log=True, integer=False)),
        ("learning_rate", ".5..2.", Range(0.5, 2, log=False, integer=False)),
        ("batch_size", "8..64:log", Range(8, 64, log=True, integer=True)),
        ("seed", "0..9", Range(0, 9, log=False, integer=True)),
        ("learning_rate", "0.12345678..12345678.5", Range(0.12345678, 12345678.5, log=False, integer=False)),
        ("learning_rate", "0.1", None),
        ("seed", "0:3", None),
        ("optimizer", "..", None),
    ],
)
def test_a_range_is_parsed_and_written(name, text, found):
    assert search.parse(name, text, FLAGS) == found
    if found:
        assert search.parse(name, str(found), FLAGS) == found


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("optimizer", "1..2", "the range 1..2 is of numbers, and --optimizer is a string; list its values"),
        ("learning_rate", "1..1", "expected its lower end first"),
        ("learning_rate", "0..1:log", "a logarithmic scale needs positive ends"),
        ("learning_rate", "0.1..1e999", "the range 0.1..1e999: expected finite ends"),
        ("batch_size", "0..8", "the range 0..8: "),
        ("batch_size", "1.5..8", "the range 1.5..8: "),
    ],
)
def test_bad_ranges_are_refused(name, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        search.parse(name, text, FLAGS)


@pytest.mark.parametrize("sampler", search.SAMPLERS)
def test_points_fill_their_ranges(sampler):
    ranges = [Range(1e-4, 1e-1, log=True, integer=False), Range(0, 0.6, log=False, integer=False)]
    found = np.array(search.points(ranges, 512, sampler))
    assert len(np.unique(found, axis=0)) == 512
    places = np.stack([np.log10(found[:, 0]) / 3 + 4 / 3, found[:, 1] / 0.6], 1)
    assert (places >= 0).all()
    assert (places <= 1).all()
    for column in places.T:
        counts, _ = np.histogram(column, 8, (0, 1))
        # Halton's points are even; independent ones have a standard deviation of 7.5.
        assert abs(counts - 64).max() <= (4 if sampler == "halton" else 38)
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.15
    # A longer search continues a shorter one.
    np.testing.assert_array_equal(found[:100], search.points(ranges, 100, sampler))


def test_integers_of_a_range_are_equally_likely_and_drawn_once():
    ranges = [Range(1, 4, log=False, integer=True)]
    values = [ranges[0].at(quantile) for quantile in np.linspace(0, 1, 4000, endpoint=False)]
    assert np.unique(values, return_counts=True)[1] == pytest.approx([1000] * 4, abs=1)
    assert sorted(search.points(ranges, 4, "random")) == [(1,), (2,), (3,), (4,)]
    with pytest.raises(ValueError, match=r"--points=5: the ranges 1\.\.4 have 4 points"):
        search.points(ranges, 5, "halton")


def test_ranges_are_one_axis_of_a_sweep():
    axes = sweep.parse("model=line,curve;learning_rate=1e-3..1e-1:log;seed=0:2", TOY.flags)
    points = sweep.expand(axes, Search(3))
    assert len(points) == 12
    assert [*points[0]] == ["model", "learning_rate", "seed"]
    rates = {point["learning_rate"] for point in points if point["model"] == "line"}
    assert len(rates) == 3
    assert {point["learning_rate"] for point in points if point["model"] == "curve"} == rates
    axes = sweep.parse("learning_rate=1e-3..1e-1:log;batch_size=4..64", TOY.flags)
    drawn = sweep.expand(axes, Search(5))
    assert len(drawn) == len({point["learning_rate"] for point in drawn}) == 5


@pytest.mark.parametrize(
    ("axes", "more", "message"),
    [
        ("learning_rate=1e-3..1e-1", {}, "the sweep has ranges: expected --points=N points of them"),
        ("seed=0:2", {"search": Search(4)}, "the sweep has no range a..b: expected one, or no --points"),
        ("learning_rate=1e-3..1e-1,0.5", {}, "give one range a..b, or values"),
        ("learning_rate=1e-3..1e-1;seed=0:2000", {"search": Search(6)}, "the sweep has 12,000 runs"),
        ("learning_rate=1e-3..1e-1", {"search": Search(4), "widen": True}, "learning_rate is searched"),
    ],
)
def test_what_a_search_refuses(axes, more, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep.plan(TOY, axes, {}, tmp_path, **more)


AXES = "model=line,curve;learning_rate=1e-3..1e-1:log;seed=0:3"


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of eight points for each of two models, launched twice: four points, then eight."""
    directory = tmp_path_factory.mktemp("search")
    command = ["--experiment=tests.toy_experiment", f"--sweep={AXES}", f"--workdir={directory}", "--steps=20"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", lambda figure, path: b"<svg/>")
        # The steeper bowl diverges at the larger rates.
        assert launch.main([*command, "--points=4"]) == 1
        assert launch.main([*command, "--points=8"]) == 1
    return directory


def test_a_search_is_continued_and_not_cut_short(searched, capsys):
    sweep_json = decode((searched / "sweep.json").read_text())
    assert len(sweep_json["runs"]) == 48
    assert sweep_json["search"] == {"points": 8, "sampler": "halton"}
    command = ["--experiment=tests.toy_experiment", f"--sweep={AXES}", f"--workdir={searched}", "--steps=20"]
    assert launch.main([*command, "--points=4"]) == 2
    assert launch.main([*command, "--points=8", "--sampler=random"]) == 2
    assert "holds a search of 8 points by --sampler=halton, not of 4 by halton" in capsys.readouterr().err
    assert "--sweep='model=line,curve;learning_rate=0.001..0.1:log;seed=0,1,2' --points=8 --sampler=halton" in (
        report.command(sweep_json, searched)
    )


def test_the_report_of_a_search_shows_each_method_at_its_best_point(searched):
    """Of a bowl, gradient descent is the better the larger its rate: the best point is near the end of the range."""
    assert "At the best point" in (searched / "report.html").read_text()
    ranges = search.written({"learning_rate": ["0.001..0.1:log"], "model": ["line", "curve"]}, TOY.flags)
    runs = [report.Run.read(path.parent) for path in sorted(searched.glob("*/result.json"))]
    header = decode((searched / "sweep.json").read_text())
    missing = [report.Missing(run["flags"], run["error"]) for run in header["runs"] if run["error"]]
    line, curve = sorted(comparison.methods(runs, missing, ranges), key=lambda method: method.label, reverse=True)
    assert sum(curve.failed.values()) == len(missing) > 0 == sum(line.failed.values())
    assert curve.failed[curve.point] == 0
    assert (line.label, line.tuned, len(line.grid)) == ("model=line", ("learning_rate",), 8)
    assert line.point == max(line.grid)
    assert line.edges == ({"learning_rate": "highest"} if line.point[0] > 10**-1.2 else {})
    best, found = tuning.sections([line, curve])
    assert best.table[0][:4] == ["model", "learning_rate", "runs", "failed, all points"]
    assert best.table[1][1].startswith(f"{line.point[0]:g}")
    assert best.table[2][3] == f"{len(missing)} of 24"
    assert [figure.get_label() for figure in found.figures] == ["rate", "best-of"]
    by_rate = found.figures[0].axes[0]
    assert by_rate.get_xscale() == "log"
    assert sorted(by_rate.lines[0].get_xdata()) == sorted(rate for (rate,) in line.grid)
