"""Each transformation of JAX around one method, and each method under one; `make transforms` runs all."""

import pytest

from tools.transforms import METHODS, TRANSFORMS, outcome

# What goes wrong in one place goes wrong for these: `make test` runs them, `make test-slow` every combination.
QUICK = [
    *((transform, "auto, gated") for transform in TRANSFORMS),
    *(("jvp", method) for method in METHODS),
    *(("export, symbolic sizes", method) for method in METHODS),
    *(("lower for a TPU", method) for method in ("native", "persistent", "associative")),
    *(("hessian", method) for method in ("fused", "newton")),
    ("grad of grad", "checkpointed, slots"),
    *(("debug.print", method) for method in ("native", "persistent", "fused")),
]
ALL = [(transform, method) for transform in TRANSFORMS for method in METHODS]


@pytest.mark.parametrize(("transform", "method"), dict.fromkeys(QUICK))
def test_it_works_or_names_the_method_to_take(transform, method):
    found = outcome(transform, method)
    if method.startswith(("auto", "scan", "rematerialized")) and transform not in ("jvp", "jacfwd"):
        assert found == "works"
    if method == "scan":
        assert found == "works"


@pytest.mark.slow
@pytest.mark.parametrize(("transform", "method"), [pair for pair in ALL if pair not in set(QUICK)])
def test_every_other_combination(transform, method):
    outcome(transform, method)
