"""The benchmarks of a GPU and of memory orders at tiny sizes: that they run, and what they write."""

from itertools import pairwise

import jax
import pytest

from benchmarks import ahead, gpu, layout
from benchmarks.problem import SHAPES
from seqjax.solvers import METHODS


def test_the_most_important_jobs_come_first_and_each_has_a_name_of_its_own():
    names = [str(job) for job in gpu.jobs(SHAPES, gpu.LANES)]
    assert len(set(names)) == len(names)
    assert names[0] == "LSTM, plain, (256, 120, 14, 16), float32"
    assert names[len(SHAPES)] == "variants (256, 120, 14, 16)"


def test_the_page_compares_with_the_fastest_jax_peer_and_with_pytorch():
    row = "LSTM, plain, (256, 120, 14, 16), float32"
    results = {
        "variants (256, 120, 14, 16)": {"plain": 1e-3, "mask": 1.5e-3},
        row: {
            "seqjax auto": {"update": 1e-3, "inference": 5e-4, "compile": 2.0},
            "Flax NNX": {"update": 5e-3, "inference": 1e-3},
            "Equinox": {"update": 4e-3},
            "PyTorch": {"update": 2e-3},
            "jax cuDNN": {"left out": "no GPU"},
        },
    }
    text = gpu.page(results, [["", ""], ["device", "a GPU"]])
    assert text.index("## One update") < text.index("## seqjax LSTM")
    [line] = [line for line in text.splitlines() if line.startswith("| LSTM, plain") and "4.00" in line]
    assert line.split("|")[-3:-1] == [" 0.25 ", " 0.50 "]
    assert "geometric mean 0.25, at most 0.25" in text
    assert "| mask | 1.50 | 1.50 |" in text
    assert "- jax cuDNN: no GPU" in text


@pytest.mark.slow
def test_processes_share_the_jobs(capfd):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        gpu.main(["--quick", "--processes", "2"])
    assert '"variants (2, 3, 2, 4)"' in capfd.readouterr().out


def test_programs_that_are_compiled_ahead():
    made = list(ahead.programs())
    assert len({program.file for program in made}) == len(made)
    assert {program.column.partition(":")[0] for program in made} <= set(METHODS)
    function, arrays = made[0].make()
    text = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in text


def test_the_page_of_times_names_the_fastest_first():
    found = {("lstm, float32", "1, 2, 3, 4", column): s for column, s in (("persistent", 3e-3), ("PyTorch", 2e-3))}
    text = ahead.page(found, "a GPU")
    assert "| 1, 2, 3, 4 | 3.00 | 2.00 | PyTorch, persistent |" in text


def test_in_turns_each_program_follows_each_other_one_once():
    orders = layout.orders_of(["a", "b", "c", "d"])
    pairs = [pair for order in orders for pair in pairwise(order)]
    assert len(set(pairs)) == len(pairs) == 12


def test_layers_are_timed_in_a_row_and_in_turns():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        section = layout.layout(True)
    assert [row[:2] for row in section.table[1:]] == [["3, 5, 2, 4", "in a row"], ["3, 5, 2, 4", "in turns"]]
