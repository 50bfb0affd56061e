"""The code of the README runs, and the files that it names are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_runs():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert names["ys"].shape == (32, 120, 64)
    assert names["value"].shape == ()
    assert names["state"].carry.shape == (32, 64)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:docs/)?[\w]+\.md)`", README))))
def test_the_pages_are_there(name):
    assert (ROOT / name).is_file()
