"""The measurement behind `method="auto"`."""

import pytest

from benchmarks import methods
from seqjax import solvers
from seqjax.solvers import named
from seqjax.solvers.native import compiler


@pytest.mark.parametrize(
    ("seconds", "order"),
    [
        ({"native": 2.0, "scan": 1.0}, ["scan", "native"]),
        ({"native": 1.02, "scan": 1.0}, ["native", "scan"]),
        ({"native": 3.0, "fused": 2.0, "scan": 1.99}, ["fused", "scan", "native"]),
    ],
)
def test_the_fastest_comes_first_and_ties_keep_their_order(seconds, order):
    assert methods.ranked(seconds) == order


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_it_measures_every_method_and_writes_nothing_when_quick(capsys):
    before = methods.TABLE.read_text()
    methods.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["gated", "affine"]
    assert all(f" {method} " in lines[0] for method in methods.GATED)
    assert methods.TABLE.read_text() == before


def test_the_methods_measured_are_methods():
    accelerated = (*methods.GATED_ON_ACCELERATORS, *methods.AFFINE_ON_ACCELERATORS)
    assert {name.partition(":")[0] for name in (*methods.GATED, *methods.AFFINE, *accelerated)} <= set(solvers.METHODS)
    assert all(callable(named(name)) for name in accelerated)
