"""The files around the code: figures and links of the pages, and what hosted services and hooks read."""

import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import seqjax

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
SETTINGS = sorted([*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"])


def parsed(path):
    return yaml.safe_load((ROOT / path).read_text())


def links(page):
    """The files that a page links to or shows."""
    found = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", page.read_text())
    return {(page.parent / link).resolve() for link in found if "://" not in link}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(page):
    assert {link for link in links(page) if not link.exists()} == set()


def exists(name):
    """Whether a dotted name is a module, or an attribute of one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_name_of_the_library_on_a_page_exists(page):
    names = set(re.findall(r"\bseqjax(?:\.[a-zA-Z_]\w*)+", page.read_text()))
    assert {name for name in names if not exists(name)} == set()


def test_every_figure_is_an_svg_that_a_page_shows():
    figures = set((ROOT / "docs" / "figures").iterdir())
    shown = {link for page in PAGES for link in links(page) if link.suffix in (".svg", ".png", ".jpg", ".gif")}
    assert figures == shown
    assert {figure.suffix for figure in figures} == {".svg"}


def test_every_file_of_results_is_named_by_its_page():
    for path in (ROOT / "benchmarks" / "results").iterdir():
        page = ROOT / "docs" / f"{path.stem}.md"
        assert path.relative_to(ROOT).as_posix() in page.read_text()


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_settings_can_be_read(path):
    assert isinstance(parsed(path), dict)


def test_hosted_tests_are_those_of_this_repository():
    job = parsed(".github/workflows/ci.yml")["jobs"]["run"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert job["strategy"]["matrix"]["python"] == [oldest.removeprefix(">="), "3.x"]


def test_hooks_run_the_commands_of_make_lint():
    [repository] = parsed(".pre-commit-config.yaml")["repos"]
    lint = re.search(r"^lint:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint
    commands = lint[1].replace("$(BIN)", ".venv/bin").split("\n\t")
    for hook, command in zip(repository["hooks"], commands, strict=True):
        # Hooks are given the files, and format them.
        assert hook["entry"].removesuffix(" --force-exclude") == re.sub(r"( --check)? \.$", "", command.strip())


def test_the_citation_has_what_the_format_requires():
    citation = parsed("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [citation["license"], citation["authors"]] == [project["license"], project["authors"]]


def test_the_changelog_begins_with_the_release_of_this_source():
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first
    assert first[1] == seqjax.__version__.partition(".dev")[0]
