"""The page on long sequences: every section runs at tiny sizes, and the page holds what they say."""

import pytest

from benchmarks import long, long_solvers, timed


@pytest.mark.slow
def test_newton_is_held_to_scan():
    section = long_solvers.accuracy(True)
    _, *rows = section.table
    assert len(rows) == 8
    for row in rows[:4]:
        assert float(row[3]) < 1e-5
        assert 0 < row[2] < 51


@pytest.mark.slow
def test_matrices_are_timed_and_the_page_is_written(tmp_path):
    section = long_solvers.matrices(True)
    assert [row[4] is None for row in section.table[1:]] == [False, True, True]
    timed.write(tmp_path, long.LONG, [section, section], ["a condition"])
    page = (tmp_path / "long_sequences.md").read_text()
    assert "## Matrix carries" in page
    assert "a condition" in page
    assert (tmp_path / "figures" / "long_sequences.svg").exists()


def test_sections_have_a_name_and_are_chosen_by_it(capsys, monkeypatch):
    monkeypatch.setattr(timed, "write", lambda *args: pytest.fail("a part writes nothing"))
    section = timed.Section("Title", "Text", [["a"], ["1"]], print)
    monkeypatch.setitem(long.LONG.sections, "chunkwise", lambda quick: section)
    timed.measure(long.LONG, ["--sections", "chunkwise", "--quick"])
    assert "Title" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        timed.measure(long.LONG, ["--sections", "nothing"])
