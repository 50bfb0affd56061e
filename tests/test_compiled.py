"""What `make test-compile` reads from compilers, and what it compares."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import compiled

ROOT = Path(__file__).parents[1]

PTXAS = """ptxas info    : Compiling entry function 'persistent_forward' for 'sm_90a'
ptxas info    : Function properties for persistent_forward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers
ptxas info    : Compiling entry function 'persistent_backward' for 'sm_90a'
ptxas info    : Function properties for persistent_backward
    40 bytes stack frame, 36 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""
HLO = """HloModule jit_f

%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]) parameter(0)
  %g = f32[4]{0} get-tuple-element(%p), index=1
  %a = f32[4]{0} fusion(%g), kind=kLoop, calls=%fused
  %b = f32[4]{0} custom-call(%a), custom_call_target="gemm"
  %i = s32[] add(%c, %d)
  ROOT %t = (s32[], f32[4]) tuple(%i, %b)
}

%cond.1 (p: (s32[], f32[4])) -> pred[] {
  ROOT %l = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %f = f32[4]{0} fusion(%x), kind=kLoop, calls=%other
  %w = (s32[], f32[4]) while(%s), condition=%cond.1, body=%body.1
  ROOT %r = f32[4]{0} get-tuple-element(%w), index=1
}
"""


def test_registers_spills_and_kernels_are_counted():
    code = f"""
import os
os.environ["JAX_PLATFORMS"] = "cpu"
from tools.compile_for import kernels, registers
print(registers({PTXAS!r}), kernels({HLO!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[('persistent_forward', 72, 0), ('persistent_backward', 255, 76)] 2"


def record(**changed):
    registers = [["persistent_forward", 72, 0], ["persistent_backward", 255, 76]]
    found = {"target": "H100", "cell": "gru(64)", "method": "auto", "dtype": "float32", "seconds": 1.24}
    return found | {"temporary": 2_000_000, "kernels": 20, "registers": registers} | changed


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (record(), []),
        (record(kernels=19, registers=[]), []),
        (record(kernels=21), ["H100 gru(64) auto float32: 21 kernels in loops, before 20"]),
        (
            record(registers=[["persistent_forward", 72, 80]]),
            ["H100 gru(64) auto float32: 80 bytes spilled, before 76"],
        ),
    ],
)
def test_what_costs_more_than_before_is_named(now, found):
    assert compiled.regressions(compiled.costs([now]), compiled.costs([record()])) == found


def test_what_does_not_compile_any_more_is_named_and_other_targets_are_left_alone():
    gone = {key: value for key, value in record().items() if key not in ("seconds", "kernels")} | {"failed": "no"}
    before = compiled.costs([record(), record(cell="rnn"), record(target="v5e")])
    now = compiled.costs([gone, record(cell="rnn")])
    assert compiled.regressions(now, before) == ["H100 gru(64) auto float32 does not compile any more"]


def test_every_pair_is_on_the_page_with_its_reason():
    refused = {"target": "H100", "cell": "rnn", "method": "newton", "dtype": "float32", "refused": "needs sizes"}
    text = compiled.page([record(), record(cell="rnn"), refused], ["tpu: no package"], 3)
    assert "| gru(64) | auto | float32 | 1.2 | 2 | 20 | 72, 255 | 0, 76 |" in text
    assert "| rnn | 1.2 | refused (1) |" in text
    assert "- (1): needs sizes" in text
    assert "Left out: tpu: no package." in text


def test_the_page_and_the_costs_on_file_are_of_the_same_programs():
    page, costs = compiled.PAGE.read_text(), compiled.expected()
    assert {key[0] for key in costs} == {"H100", "v5e", "v5e 2x2"}
    for target, cell, method, _ in costs:
        assert f"## {target}" in page
        assert f"| {cell} |" in page
        assert method in page
