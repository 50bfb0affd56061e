"""`docs/matrix.md` names every cell, wrapper and method there is, and says what a part of it, run again, says."""

import re

import jax
import pytest

from seqjax import solvers
from seqjax.solvers import native
from tests.cell_list import BARE
from tools.matrix import METHODS, PAGE, TOLERANCE, WRAPPERS, Found, Reasons, method_mark, survey, wrapper_mark, wrong

FOUND = Found(("gated",), {"fused": 1e-16}, {"associative": "no hint"}, {})


def tables():
    """Each table of the page, by its corner and columns: rows of entries by their name."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE.read_text(), re.MULTILINE):
        header, _, *rows = ([part.strip() for part in line.split("|")[1:-1]] for line in block.splitlines())
        found.append((header[1:], {name: dict(zip(header[1:], row, strict=True)) for name, *row in rows}))
    return found


def test_the_page_lists_every_cell_wrapper_and_method():
    (columns, deviations), (methods, cells), (wrappers, dressed), (again, wrapped) = tables()
    assert (columns, list(deviations)) == ([*METHODS, "tolerance"], list(TOLERANCE))
    assert methods == again == METHODS
    assert list(cells) == list(dressed) == list(BARE)
    assert [name.replace(" ", "_") for name in wrappers] == list(wrapped) == list(WRAPPERS)


def test_nothing_on_the_page_disagrees():
    assert "✗" not in PAGE.read_text()


@pytest.mark.parametrize(("name", "wrapper"), [("rnn", "masked"), ("min_gru", "recurrent_dropout")])
def test_a_part_of_the_page_run_again(x64, name, wrapper):
    if native.compiler() is None:
        pytest.skip("no C++ compiler")
    text = PAGE.read_text()
    reasons = Reasons(re.findall(r"^\d+\. (.*)$", text, re.MULTILINE))
    known = list(reasons.messages)
    _, (_, cells), (_, dressed), _ = tables()
    bare = {dtype: survey(name, "", dtype) for dtype in TOLERANCE}
    under = {"float64": survey(name, wrapper, "float64")}
    assert {method: method_mark(bare, method, reasons) for method in METHODS} == cells[name]
    assert wrapper_mark(bare, under, reasons) == dressed[name][wrapper.replace("_", " ")]
    assert reasons.messages == known


@pytest.mark.parametrize(
    "found",
    [
        FOUND._replace(deviation={"fused": 1.0}),
        FOUND._replace(deviation={"fused": float("nan")}),
        FOUND._replace(failed={"": "TypeError: ..."}),
    ],
)
def test_a_deviation_nan_and_an_error_of_jax_are_crosses(found):
    assert not wrong(FOUND, "float64")
    assert wrong(found, "float64")
    assert method_mark({"float64": FOUND, "float32": found}, "fused", Reasons()) == "✓, ✗ float32"
    assert wrapper_mark({"float32": FOUND}, {"float32": found}, Reasons()) == "✗"


def test_an_error_that_jax_raises_is_no_reason(monkeypatch):
    def broken(cell, params, carry, xs):
        return jax.numpy.zeros((2, 3)) @ jax.numpy.zeros((2, 3))

    monkeypatch.setitem(solvers.METHODS, "fused", broken)
    found = survey("rnn", "", "float32")
    assert "TypeError" in found.failed["fused"]
    assert wrong(found, "float32") == ["fused"]


def test_reasons_that_differ_in_shapes_are_one():
    reasons = Reasons(["one"])
    assert reasons.marks(["got (2, 3)", "got (4,)", "one"]) == "¹ ²"
    assert reasons.messages == ["one", "got [...]"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_whole_page_run_again(tmp_path, monkeypatch):
    from tools import matrix

    before = tables()
    monkeypatch.setattr(matrix, "PAGE", tmp_path / "matrix.md")
    with pytest.raises(SystemExit) as end:
        matrix.main()
    assert not end.value.code
    monkeypatch.setattr("test_matrix.PAGE", matrix.PAGE)
    assert tables()[1:] == before[1:]
