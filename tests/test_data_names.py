"""Every module of seqjax.data lists its public names in `__all__`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "seqjax" / "data").rglob("*.py") if path.stem != "__init__")
EXPORTED_BY_JENA = {"COLUMNS", "OFFICIAL_BLOB", "blob_id"}  # one address each, seqjax.data.jena


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_lists_its_public_names(path):
    defined: set[str] = set()
    listed = None
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
            if names == {"__all__"} and node.value:
                listed = ast.literal_eval(node.value)
            defined |= names - {"__all__", "Array"}
    own = {name for name in defined if not name.startswith("_")}
    assert listed is not None, f"{path} has no __all__"
    assert own - EXPORTED_BY_JENA <= set(listed) <= own | EXPORTED_BY_JENA
