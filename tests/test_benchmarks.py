"""The step benchmark at tiny shapes: what it refuses and what it writes. No time is asserted."""

import argparse
import importlib.util

import jax
import numpy as np
import pytest

from benchmarks import peers, step

SHAPE = peers.Shape(batch=3, steps=4, features=2, hidden=5)
OTHER = peers.Shape(batch=2, steps=3, features=1, hidden=4)
ENTRIES = (peers.AUTO, peers.FLAX)


@pytest.fixture(autouse=True)
def _promotion():
    """The peers, and Adam in optax, are not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The benchmark with a tiny shape as its only one, and a folder in place of docs/."""
    monkeypatch.setattr(step, "SHAPES", (SHAPE,))
    monkeypatch.setattr(step, "DOCS", tmp_path)
    monkeypatch.setattr(step, "BURST", 1e-4)
    return tmp_path


def test_a_full_run_prints_what_it_writes(home, capsys):
    step.main(["--repeats", "2"], ENTRIES)
    printed = capsys.readouterr().out
    page = (home / "benchmarks.md").read_text()
    assert sorted(path.name for path in home.iterdir()) == ["benchmarks.md", "benchmarks.png", "benchmarks.svg"]
    assert "](benchmarks.svg)" in page
    assert "| command | python -m benchmarks.step --repeats 2 |" in page
    for caption in ("Ratio of one training step", "Milliseconds a step", "Temporary memory", "Seconds to trace"):
        assert caption in printed
        assert f"## {caption}" in page
    assert "| B, T, D, H | seqjax auto, ms | / Flax NNX | / best JAX peer |\n|---|--:|--:|--:|\n| 3, 4, 2, 5 |" in page


@pytest.mark.parametrize(
    ("arguments", "measured", "written"),
    [
        ([], [(SHAPE, 15), (OTHER, 15)], "."),
        (["--quick"], [(SHAPE, 2)], None),
        (["--shapes", "2,3,1,4", "--repeats", "4"], [(OTHER, 4)], None),
        (["--quick", "--output", "elsewhere"], [(SHAPE, 2)], "elsewhere"),
    ],
)
def test_flags_say_what_is_measured_and_where_it_goes(home, monkeypatch, arguments, measured, written):
    asked = []

    def measure(shape, entries, repeats):
        asked.append((shape, repeats))
        return {entry: step.Measured([1.0], None, None) for entry in entries}

    monkeypatch.chdir(home)
    monkeypatch.setattr(step, "SHAPES", (SHAPE, OTHER))
    monkeypatch.setattr(step, "measure", measure)
    step.main(arguments, ENTRIES)
    assert asked == measured
    assert [path.parent for path in home.rglob("benchmarks.md")] == ([home / written] if written else [])


def test_ratios_are_those_of_the_medians():
    def took(*seconds):
        return step.Measured(list(seconds), 1.0, 0)

    row = {peers.AUTO: took(1, 3, 100), peers.FLAX: took(2, 2, 2), peers.KERAS: took(6), peers.TORCH: took(1)}
    assert step.ratios({SHAPE: row})[1] == ["3, 4, 2, 5", "3000.00", "1.50", "0.50", "3.00", "1.50"]


def test_every_entry_has_a_bar_of_its_own_color():
    row = {entry: step.Measured([1.0], 1.0, 0) for entry in peers.ENTRIES}
    [axes] = step.figure({SHAPE: row}).axes
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in axes.patches}
    assert len(looks) == len(axes.patches) == len(peers.ENTRIES)


def _wrong_entry(change):
    """Flax, its output changed."""

    def model(shape):
        right = peers.flax_model(shape)
        return right._replace(predict=lambda params, x: change(right.predict(params, x)))

    return peers.Entry("wrong", lambda shape, *data: peers.JaxProgram(model(shape), 1, *data))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda y: y * 1.001, "'loss'"),
        (lambda y: jax.lax.stop_gradient(0.001 * y) + 0.999 * y, r"\{\"gradient\['head'\]"),
    ],
)
def test_a_peer_that_disagrees_stops_the_run(home, capsys, change, what):
    with pytest.raises(step.Disagreement, match=rf"wrong differs from the reference by more than 0.0001 .*{what}"):
        step.main([], (_wrong_entry(change),))
    assert not capsys.readouterr().out
    assert not list(home.iterdir())


def test_many_updates_in_one_call_are_single_updates():
    weights, xs, ys = peers.draw(SHAPE)
    many, one = (entry.build(SHAPE, weights, xs, ys) for entry in (peers.AUTO_MANY, peers.AUTO))
    losses = []
    for x, y in zip(xs, ys, strict=True):
        one.batches = (x, y)
        losses.extend(one.run(1))
    np.testing.assert_allclose(many.run(1), losses, rtol=1e-5)
    assert len(set(losses)) == peers.UPDATES


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "1,2,3,x", "1,2,3,0", ""])
def test_a_bad_shape_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not B,T,D,H"):
        step.parse_shape(text)


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_bad_repeats_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a positive number of rounds"):
        step.parse_repeats(text)


def test_keras_is_needed_and_torch_is_not(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert peers.TORCH not in step.installed((peers.AUTO, peers.FLAX, peers.TORCH))
    assert "PyTorch is not installed and is left out" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError, match=r"\[bench\]"):
        step.installed(peers.ENTRIES)
