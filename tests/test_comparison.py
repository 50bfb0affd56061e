"""Methods at their own best learning rate, differences by seed, and grids that are extended."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import toy_experiment as toy
from scipy.stats import spearmanr

import launch
from experiments.harness import comparison, plots, report, sweep, tuning
from experiments.harness.comparison import Method, Missing
from experiments.harness.experiment import define
from seqjax.train.run import Run


def made(tmp_path, score, **flags):
    run = Run.open(tmp_path / ",".join(f"{name}={value}" for name, value in flags.items()), flags)
    result = {"test_error": 10 * score, "monitor": "loss", "validation_loss": score, "wall_seconds": 6.0, "lanes": 2}
    run.finish(result)
    return run


# By method and rate, the score of each seed; None did not end.
SCORES = {
    "bptt": {0.001: [3.0, 4.0, 5.0], 0.01: [1.0, 2.0, 3.0], 0.1: [2.0, 2.5, 2.0]},
    "rtrl": {0.001: [2.0, 3.0, 4.0], 0.01: [3.0, 3.0, 3.0], 0.1: [0.5, None, 0.5]},
    "uoro": {0.001: [None, 9.0, 9.0], 0.01: [None, None, 1.0], 0.1: [None, None, None]},
}


@pytest.fixture
def grid(tmp_path):
    runs, missing = [], []
    for method, rates in SCORES.items():
        for rate, scores in rates.items():
            for seed, score in enumerate(scores):
                flags = {"gradient": method, "learning_rate": rate, "seed": seed}
                if score is None:
                    missing.append(Missing(flags, "loss is inf at step 5"))
                else:
                    runs.append(made(tmp_path, score, **flags))
    return runs, missing


def test_each_method_has_its_own_rate(grid):
    bptt, rtrl, uoro = comparison.methods(*grid)
    assert [method.label for method in (bptt, rtrl, uoro)] == ["gradient=bptt", "gradient=rtrl", "gradient=uoro"]
    assert (bptt.point, bptt.edges, bptt.flags) == ((0.01,), {}, {"gradient": "bptt"})
    assert [run.flags["seed"] for run in bptt.runs] == [0, 1, 2]
    # A lower score does not count where a seed failed; where each rate lost one, the fewest.
    assert (rtrl.point, rtrl.edges) == ((0.001,), {"learning_rate": "lowest"})
    assert (uoro.point, uoro.edges) == ((0.001,), {"learning_rate": "lowest"})
    assert uoro.failed == {(0.001,): 1, (0.01,): 2, (0.1,): 3}
    assert comparison.wider([bptt]) == []
    assert comparison.wider([bptt, rtrl]) == [1e-4]
    assert comparison.wider([dataclasses.replace(rtrl, failed=dict.fromkeys(rtrl.failed, 0))]) == [1.0]


def test_without_a_grid_or_a_score_there_are_no_methods(grid, tmp_path):
    runs, _ = grid
    assert comparison.methods([run for run in runs if run.flags["learning_rate"] == 0.01]) == []
    assert comparison.methods([]) == []
    old = Run.open(tmp_path / "old", {"learning_rate": 1.0, "seed": 0})
    old.finish({"loss": 1.0})
    assert comparison.methods([*runs, old]) == []


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_best_of_is_the_mean_over_all_draws(draws):
    scores = [4.0, 1.0, 2.5]
    expected = np.mean([min(drawn) for drawn in itertools.product(scores, repeat=draws)])
    assert comparison.best_of(scores, draws) == pytest.approx(expected, rel=1e-12)


def test_rank_correlation_is_spearman_s_with_the_interval_of_bonett_and_wright():
    rng = np.random.default_rng(0)
    xs = rng.normal(size=30)
    ys = np.round(xs + rng.normal(size=30), 1)  # with ties
    r, low, high = comparison.rank_correlation(xs, ys)
    assert r == pytest.approx(spearmanr(xs, ys).statistic, abs=1e-12)
    half = 1.959964 * ((1 + r**2 / 2) / 27) ** 0.5
    assert (np.arctanh(high) - np.arctanh(low)) / 2 == pytest.approx(half)
    assert low < r < high
    assert comparison.rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]) == (1, 1, 1)
    for few, other in (([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4])):
        assert all(map(math.isnan, comparison.rank_correlation(few, other)))


def test_differences_are_of_runs_of_one_seed(tmp_path):
    first = [made(tmp_path, score, seed=seed, gradient="a") for seed, score in enumerate((1.0, 10.0, 100.0, 5.0))]
    second = [made(tmp_path, score, seed=seed, gradient="b") for seed, score in ((2, 101.0), (0, 1.5), (1, 12.0))]
    assert comparison.paired(second, first, ["validation_loss", "test_error", "unknown"]) == {
        "validation_loss": [1.0, 0.5, 2.0],
        "test_error": [10.0, 5.0, 20.0],
        "unknown": [],
    }
    [section] = tuning.differences([*first, *second])
    assert section.title == "Differences by gradient"
    [head, row] = section.table
    assert head == ["", "pairs", "test_error", "validation_loss"]
    assert row[:2] == ["gradient=b", 3]
    # Far narrower than the seeds are apart.
    assert (row[3].mean, row[3].half) == (
        pytest.approx(3.5 / 3),
        pytest.approx(4.302652729911275 * 0.7637626 / 3**0.5),
    )
    assert tuning.differences([*first, *second[:2]]) == [], "two pairs have no interval"
    assert tuning.differences(first) == []
    assert tuning.differences([]) == []


def test_differences_are_in_conditions_that_are_otherwise_equal(tmp_path):
    """Those of one flag, at each value of the others; the learning rate is a method's own."""
    scores = {("a", 1): 1.0, ("b", 1): 3.0, ("a", 2): 10.0, ("b", 2): 50.0, ("b", 3): 0.0}
    runs = [
        made(tmp_path, score + 1000 * seed, seed=seed, gradient=gradient, lag=lag, learning_rate=score + 1)
        for (gradient, lag), score in scores.items()
        for seed in range(3)
    ]
    by_gradient, by_lag = tuning.differences(runs)
    assert [[row[0], row[1], row[3] and row[3].mean] for row in by_gradient.table[1:]] == [
        ["gradient=b, lag=1", 3, 2],
        ["gradient=b, lag=2", 3, 40],
        ["gradient=b, lag=3", 0, None],
    ]
    assert [[row[0], row[3].mean] for row in by_lag.table[1:]] == [
        ["gradient=a, lag=2", 9],
        ["gradient=b, lag=2", 47],
        ["gradient=b, lag=3", -3],
    ]


def test_the_report_compares_methods_at_their_best(grid):
    best, sensitivity = tuning.sections(comparison.methods(*grid))
    assert best.table[0] == [
        "gradient", "learning_rate", "runs", "failed, all rates", "test_error", "validation_loss",
    ]  # fmt: skip
    assert [row[:4] for row in best.table[1:]] == [
        ["bptt", "0.01", 3, "0 of 9"],
        ["rtrl", "0.001 (lowest)", 3, "1 of 9"],
        ["uoro", "0.001 (lowest)", 2, "6 of 9"],
    ]
    assert str(best.table[1][5]) == "2.0 ± 2.5"
    # Lanes in pairs, 6 seconds together.
    assert "All runs together took 1.0 minutes of training." in best.text
    assert "The best rate of 2 of 3 methods is at an end of the grid" in best.text
    by_rate, by_draws = (figure.axes[0] for figure in sensitivity.figures)
    line = next(line for line in by_rate.lines if line.get_label() == "gradient=bptt")
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (
        [0.001, 0.01, 0.1],
        [4.0, 2.0, pytest.approx(6.5 / 3)],
    )
    line = next(line for line in by_draws.lines if line.get_label() == "gradient=bptt")
    assert line.get_ydata()[0] == pytest.approx(np.mean([*map(np.mean, SCORES["bptt"].values())]))


def test_a_method_without_any_result_is_in_the_table(grid):
    runs, missing = grid
    methods = comparison.methods(
        [run for run in runs if run.flags["gradient"] != "uoro"],
        [*missing, *(Missing({"gradient": "uoro", "learning_rate": 0.001, "seed": s}, "killed") for s in (1, 2))],
    )
    [*_, row] = tuning.sections(methods)[0].table
    assert row == ["uoro", None, 0, "8 of 8", None, None]


def test_groups_at_one_rate_each_are_not_named_by_it(grid):
    runs, _ = grid
    assert set(comparison.groups(runs)) == {
        f"gradient={run.flags['gradient']}, learning_rate={run.flags['learning_rate']}" for run in runs
    }
    best = [run for method in comparison.methods(*grid) for run in method.runs]
    assert len({run.flags["learning_rate"] for run in best}) == 2
    assert list(comparison.groups(best)) == ["gradient=bptt", "gradient=rtrl", "gradient=uoro"]


AXES = "learning_rate=1e-3,3e-3;seed=0:3"


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(plots, "save", lambda figure, path: b"<svg/>")


def test_a_grid_is_extended_while_the_best_rate_is_at_its_end(tmp_path, capsys, undrawn):
    """Of a bowl the best rate of gradient descent is far above both; the same command again finds all done."""
    command = ["--experiment=toy_experiment", f"--sweep={AXES}", f"--workdir={tmp_path}", "--widen=2"]
    assert launch.main(command) == 0
    out = capsys.readouterr().out
    assert "adding learning_rate=0.009" in out
    assert "adding learning_rate=0.027" in out
    files = {path: path.read_bytes() for path in tmp_path.glob("*/result.json")}
    assert len(files) == 4 * 3
    assert launch.main(command) == 0
    assert "12 of 12 runs are finished already" in capsys.readouterr().out
    assert files == {path: path.read_bytes() for path in tmp_path.glob("*/result.json")}
    page = (tmp_path / "report.html").read_text()
    assert "At the best learning rate" in page
    assert "0.027 (highest)" in page
    # Without the flag it is another sweep; with a larger number it continues.
    assert launch.main(command[:-1]) == 2
    assert "which this one leaves out" in capsys.readouterr().err
    assert launch.main([*command[:-1], "--widen=3"]) == 0
    assert "adding learning_rate=0.081" in capsys.readouterr().out


def test_widening_needs_a_grid(tmp_path, capsys):
    for axes, found in (("seed=0:3", "none"), ("learning_rate=0.1;seed=0:3", "1")):
        directory = tmp_path / "none"
        command = ["--experiment=toy_experiment", f"--sweep={axes}", f"--workdir={directory}", "--widen=1"]
        assert launch.main(command) == 2
        assert f"--widen extends a grid of learning rates, and this sweep has {found}" in capsys.readouterr().err
        assert not directory.exists()


def test_curves_and_the_experiment_s_sections_are_of_the_best_rate(tmp_path, monkeypatch, undrawn):
    seen = []
    monkeypatch.setattr(toy, "report", lambda runs: seen.extend(runs) or [])
    plan = sweep.plan(define(toy), AXES, {}, tmp_path)
    assert sweep.run(plan) == 0
    assert {run.flags["learning_rate"] for run in seen} == {0.003}
    assert report.summary(seen)[1][0] == 3


def test_an_error_in_the_experiments_report_leaves_the_comparison(tmp_path, monkeypatch, undrawn, capsys):
    def fail(runs):
        raise RuntimeError("no figure")

    monkeypatch.setattr(toy, "report", fail)
    sweep.run(sweep.plan(define(toy), f"model=line,curve;{AXES}", {}, tmp_path))
    page = (tmp_path / "report.html").read_text()
    for title in (
        "Error in the experiment",
        "At the best learning rate",
        "Learning-rate sensitivity",
        "Differences by model",
    ):
        assert title in page
    assert "no figure" in capsys.readouterr().err


def test_a_text_among_the_results_is_not_compared(grid):
    runs, missing = grid
    (runs[0].directory / "result.json").write_text(
        (runs[0].directory / "result.json").read_text().replace('"monitor"', '"test_note": "x", "monitor"')
    )
    best, _ = tuning.sections(comparison.methods(runs, missing))
    assert "test_note" not in best.table[0]
    tuning.differences(runs)


def test_rates_are_rounded_and_a_method_of_one_rate_has_no_edge():
    assert Method("", {}, ("learning_rate",), {(0.01,): []}, {(0.01,): 0}).edges == {}
    assert math.isclose(comparison._rounded(1e-2**2 / 3e-3), 0.033)
