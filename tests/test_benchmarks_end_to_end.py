"""The end-to-end benchmarks at tiny sizes: that they run, and what they write. No time is asserted."""

import jax
import numpy as np
import pytest

from benchmarks import end_to_end, places, seeds, start, temperature


@pytest.fixture(autouse=True)
def _setting(monkeypatch, tmp_path):
    """The generated record, and the promotion that the peers are written for."""
    monkeypatch.setenv("SEQJAX_DATA", str(tmp_path / "nowhere"))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_each_command_writes_its_section_in_its_place(tmp_path, capsys):
    page = tmp_path / "end_to_end.md"
    *_, last = end_to_end.SECTIONS
    for title in reversed(end_to_end.SECTIONS):
        end_to_end.Command("x", "", ["--output", str(tmp_path)]).write(title, f"of {title}")
    end_to_end.Command("x", "", ["--output", str(tmp_path)]).write(last, "again")
    text = page.read_text()
    assert text.startswith("# End to end\n\nWritten by")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(end_to_end.SECTIONS)
    assert [f"of {title}" in text for title in end_to_end.SECTIONS] == [True, True, False]
    assert "again" in text
    assert f"written: {page}" in capsys.readouterr().out


def test_a_quick_run_leaves_the_docs_alone():
    assert end_to_end.Command("x", "", ["--quick"]).where is None
    assert end_to_end.Command("x", "", []).where == places.REPOSITORY


def test_verdicts():
    assert end_to_end.verdict("ratio", 16.4, 16) == "- ratio: 16.40. The target, at most 16, is missed."
    assert end_to_end.verdict("ratio", 1.6, 1.5, at_least=True) == "- ratio: 1.60. The target, at least 1.5, is met."


@pytest.mark.slow
def test_seeds(tmp_path, capsys):
    seeds.main(["--quick", "--output", str(tmp_path)])
    text = (tmp_path / "end_to_end.md").read_text()
    assert "| LSTM(2), 8 windows a batch | one run | 2 lanes | ratio |" in text
    assert "jena (generated)" in text


def test_seeds_are_compared_by_medians():
    config = end_to_end.configuration(seeds.temperature, model="lstm", steps=6)
    one = [seeds.Took([0.01, 0.03], 2.0), seeds.Took([0.02], 3.0), seeds.Took([0.02], 2.5)]
    many = [seeds.Took([0.3], 10.0)]
    text = seeds.section(one, many, 16, config)
    assert "| one update, ms | 20.00 | 300.0 | 15.00 |" in text
    assert "| 6 updates in all, s | 2.5 | 10.0 | 4.00 |" in text
    assert "The target, at most 16, is met." in text


@pytest.mark.slow
def test_temperature(tmp_path, capsys):
    temperature.main(["--quick", "--output", str(tmp_path)])
    text = (tmp_path / "end_to_end.md").read_text()
    assert "| LSTM(2), recurrent dropout 0.25, dropout 0.5 | updates per second |" in text
    assert "\n| Keras, 17 steps an execution | " in text
    assert "generated, because no real one was found" in text
    assert (tmp_path / "figures" / "end_to_end.svg").stat().st_size > 1000


def test_everyone_gets_the_windows_and_targets_of_the_experiment():
    problem = temperature.problem(2, 0.0, 0.0, quick=True)
    config = problem.config
    batch = temperature.tasks.temperature(None, length=config.length, batch_size=config.batch_size)
    data = batch.data
    xs, ys = temperature.jena.batch(data, data.train[: len(problem.xs)])
    np.testing.assert_array_equal(problem.xs, np.swapaxes(xs, 0, 1))
    column = data.columns.index(temperature.jena.TEMPERATURE)
    np.testing.assert_allclose(problem.ys[:, 0], (ys - data.scale.mean[column]) / data.scale.std[column], atol=1e-6)
    assert str(problem) == "LSTM(2)"


def test_the_faster_keras_counts():
    def took(rate):
        return [temperature.Took(1.0, [rate, rate], 0.1)]

    by_name = {
        temperature.SEQJAX: took(30.0),
        temperature.KERAS: took(10.0),
        temperature.KERAS_MANY: took(15.0),
        temperature.TORCH: took(40.0),
    }
    text = temperature.section({"LSTM(16)": by_name}, "a record", end_to_end.configuration(seeds.temperature))
    assert "| PyTorch | 40.0 | 0.75 | 1.0 | 0.100 |" in text
    assert "- LSTM(16), times the faster Keras: 2.00. The target, at least 1.5, is met." in text
    assert "- LSTM(16), times PyTorch: 0.75. The target, at least 1, is missed." in text


def test_without_pytorch_it_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(temperature.importlib.util, "find_spec", lambda name: None)
    problem = temperature.problem(2, 0.25, 0.5, quick=True)
    assert list(temperature.trainers(problem)) == [temperature.SEQJAX, temperature.KERAS, temperature.KERAS_MANY]
    assert "PyTorch is not installed and is left out" in capsys.readouterr().err


@pytest.mark.slow
def test_start(tmp_path, capsys):
    start.main(["--quick", "--output", str(tmp_path)])
    text = (tmp_path / "end_to_end.md").read_text()
    for row in ("first launch, empty cache", "second launch", "imports alone"):
        assert f"\n| {row} | " in text
    assert "- The second launch over the first: " in text


def test_a_launch_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended before its first update:\nlaunch\.py: no experiment 'nothing'"):
        start.launch(tmp_path, ["--experiment=nothing"])
