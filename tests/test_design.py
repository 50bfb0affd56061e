"""docs/design.md describes the tree as it is, file by file."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
LISTED = ("seqjax", "experiments/harness", "experiments/shared", "experiments/demos")


def described() -> set[str]:
    """The files that the section "The tree" names, by their paths."""
    section = PAGE.partition("## The tree\n\n")[2].partition("\n\n")[0]
    folders: list[str] = []
    found = set()
    for line in section.splitlines():
        entry = re.match(r"( {4}|(?: {6}| {8}))([a-z_]+)(/|\.\w+)  ", line + "  ")
        if entry:
            depth = (len(entry[1]) - 4) // 2
            folders = [*folders[:depth], *([entry[2]] if entry[3] == "/" else [])]
        found |= {"/".join([*folders, name]) for name in re.findall(r"\b\w+\.(?:py|h|csv)\b", line)}
    return found


def test_the_tree_names_every_file_and_no_other():
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in LISTED
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".h", ".csv") and path.name != "__init__.py"
    }
    named = {name for name in described() if name.startswith(LISTED) and not name.endswith("__init__.py")}
    assert named == files
