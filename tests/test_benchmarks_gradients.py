"""The page of gradients at tiny sizes: that it runs, and what it writes. No time is asserted."""

import jax
import pytest

from benchmarks import gradients as page
from benchmarks.timed import measure
from seqjax import cells, wrappers


def test_forward_steps_are_those_of_the_schedule():
    assert page.forward_steps(1_024) == 2 * 1_024
    assert page.forward_steps(1_000, levels=3) == 4 * 1_000
    # 8 slots, chunks of 2: 512 chunks in 5 repetitions at most, since binom(12, 8) = 495 < 512 <= binom(13, 8).
    assert page.forward_steps(1_024, slots=8) == 2 * (5 * 512 - 715 + 512 + 1)
    assert page.forward_steps(7, slots=64) == 14


def test_every_estimator_of_the_library_has_a_row():
    cell = wrappers.with_head(cells.gru(2), 2)
    names = " ".join(page.makers(cell, 2))
    public = {name: getattr(page.gradients, name) for name in page.gradients.__all__}
    made = [n for n, f in public.items() if getattr(f, "__annotations__", {}).get("return") is page.Estimator]
    assert len(made) >= 10
    assert [name for name in made if name not in names] == []


def test_an_estimator_that_is_not_always_there_is_taken_in(monkeypatch):
    monkeypatch.setattr(page.gradients, "rflo", lambda cell, loss, key: "made", raising=False)
    made = page.makers(wrappers.with_head(cells.gru(2), 2), 2)["rflo"]
    assert callable(made)
    assert made(jax.random.key(0)) == "made"


@pytest.fixture
def _few(monkeypatch):
    few = ("diagonal_rtrl", "uoro")
    makers = page.makers
    monkeypatch.setattr(page, "makers", lambda cell, chunk: {name: makers(cell, chunk)[name] for name in few})
    monkeypatch.setattr(page, "SCHEDULES", {name: page.SCHEDULES[name] for name in ("sqrt(T)", "8 slots")})


@pytest.mark.slow
@pytest.mark.usefixtures("_few")
def test_a_quick_run_writes_every_section(tmp_path, capsys):
    measure(page.GRADIENTS, ["--quick", "--output", str(tmp_path)])
    text = (tmp_path / "gradients.md").read_text()
    assert text.startswith("# Gradients\n\nWritten by")
    for row in (
        "| 8 slots | 64 | 2 | ",
        "| uoro | minGRU | ",
        "| diagonal_rtrl | minGRU | 1.0000 | 1.000 | ",
        "| lru | 4 | ",
    ):
        assert f"\n{row}" in text
    assert "\n- diagonal_rtrl refuses the GRU: diagonal_rtrl needs an elementwise recurrence" in text
    assert (tmp_path / "figures" / "gradients.svg").stat().st_size > 1000
    assert "`python -m benchmarks.gradients --quick" in capsys.readouterr().out
