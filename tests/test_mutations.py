"""The list of bugs that were put in on purpose stays true: each can still be made, and its test is there."""

import ast

import pytest

from tools import mutations
from tools.mutations import MUTATIONS, ROOT, Mutation, caught, place, run

PAGE = mutations.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_mutation_can_be_made_and_is_on_the_page(mutation):
    path = place(mutation)
    assert mutation.new != mutation.old
    if path.suffix == ".py":
        ast.parse(path.read_text(encoding="utf-8").replace(mutation.old, mutation.new))
    file, name = mutation.test.split("[")[0].split("::")
    tests = [node.name for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body if hasattr(node, "name")]
    assert name in tests
    assert f"| {mutation.what} |" in PAGE
    assert mutation.test.removeprefix("tests/") in PAGE


def test_the_page_holds_nothing_else():
    assert len([line for line in PAGE.splitlines() if line.startswith("| ")]) == len(MUTATIONS) + 1
    assert len({mutation.what for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.fixture
def repository(tmp_path):
    """One function, and tests of it: one that notices what it says, one that does not, one that crashes."""
    (tmp_path / "code.txt").write_text("1 + 1")
    (tmp_path / "test_code.py").write_text(
        "from pathlib import Path\n\n"
        "def value():\n    return eval(Path('code.txt').read_text())\n\n"
        "def test_good():\n    assert value() == 2\n\n"
        "def test_blind():\n    assert value() == value()\n\n"
        "def test_crash():\n    assert (1 / (value() - 1)) == 1\n"
    )
    return tmp_path


def test_a_bug_is_caught_by_an_assertion_and_taken_out_again(repository):
    bug = Mutation("a sign", "code.txt", "+", "-", "test_code.py::test_good")
    assert run(repository, ["test_code.py"]).passed
    assert "assert 0 == 2" in caught(repository, bug).message
    assert (repository / "code.txt").read_text() == "1 + 1"
    with pytest.raises(AssertionError, match=r"no test caught: a sign \(test_code.py::test_blind\)"):
        caught(repository, bug._replace(test="test_code.py::test_blind"))
    with pytest.raises(AssertionError, match=r"not by an assertion: a sign .*ZeroDivisionError"):
        caught(repository, bug._replace(old="+", new="*", test="test_code.py::test_crash"))
    with pytest.raises(AssertionError, match=r"(?s)not by an assertion: a sign .*SyntaxError"):
        caught(repository, bug._replace(new="+ (", test="test_code.py::test_good"))
    with pytest.raises(ValueError, match="contains '1' 2 times, expected once"):
        caught(repository, bug._replace(old="1"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_bug_is_caught(monkeypatch, tmp_path):
    monkeypatch.setattr(mutations, "PAGE", tmp_path / "mutations.md")
    assert mutations.main([]) == 0
