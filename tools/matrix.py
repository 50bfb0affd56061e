"""Every cell, under every wrapper, by every method, in every dtype: what agrees with scan, and why the rest is refused.

    python -m tools.matrix            run everything and write docs/matrix.md; fails if anything disagrees
    python -m tools.matrix --quick    wrappers in float64 alone, as the page then states; a third of the time

Cells and wrappers come from the lists of `cell_list.py`, methods from `seqjax.solvers`; none is named here.
"""

import os
import re
import sys
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import seqjax
from seqjax import solvers
from seqjax.core import Cell, out_features
from seqjax.solvers import native
from tests.agree import compiled, values_and_gradients
from tests.cell_list import BARE, DRESSES, Model, draw

STEPS = 10
# By dtype of the weights; newton stops at a tolerance of its own, eps^(3/4) of the carry's dtype.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03, "float64": 1e-10}
METHODS = [name for name in solvers.METHODS if name != "scan"]
WRAPPERS = {dress.__name__: dress for dress in DRESSES}
PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"


class Found(NamedTuple):
    """One cell, bare ("") or under a wrapper, in one dtype.

    Attributes:
      hints: which of "gated", "affine" and "outer" it has.
      deviation: of each method that ran, from scan: the largest of any value or gradient.
      refused: the message of the library for each method that it refuses; for all methods, under "", where the
        wrapper refuses the cell.
      failed: the message of each error that the library did not raise itself.
    """

    hints: tuple[str, ...]
    deviation: dict[str, float]
    refused: dict[str, str]
    failed: dict[str, str]


def deviation(got, expected) -> float:
    """The largest difference of any leaf, relative to the leaf's largest entry (or 1)."""

    def leaf(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.abs(a - b).max(initial=0) / max(1.0, np.abs(b).max(initial=0)))

    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
    return max(map(leaf, jax.tree.leaves(got), jax.tree.leaves(expected)))


def square(model: Model) -> Model:
    """The model with as many inputs as outputs, which some wrappers require."""
    params = jax.eval_shape(lambda: model.cell.init(jax.random.key(0), model.in_features))
    return model._replace(in_features=out_features(model.cell, params, model.in_features))


def hints(cell: Cell) -> tuple[str, ...]:
    """Those of "gated", "affine" and "outer" that a cell has."""
    return tuple(hint for hint in ("gated", "affine", "outer") if getattr(cell, hint) is not None)


def survey(name: str, wrapper: str, dtype: str) -> Found:
    """Run one combination by every method, all compiled as one program."""
    refused, failed = {}, {}

    def note(method, error):
        # An error raised inside JAX tells the user nothing about the cell, so it does not count as a reason.
        inside = traceback.extract_tb(error.__traceback__)[-1].filename
        own = Path(inside).is_relative_to(Path(seqjax.__file__).parent)
        (refused if own else failed)[method] = f"{error}" if own else f"{type(error).__name__}: {error}"

    bare = BARE[name]
    try:
        drawn = draw(WRAPPERS[wrapper](square(bare)) if wrapper else bare, STEPS, dtype=dtype)
        jax.eval_shape(partial(seqjax.unroll, drawn.cell, method="scan"), *drawn[1:])
    except (TypeError, ValueError) as error:
        note("", error)
        return Found(hints(bare.cell), {}, refused, failed)

    @compiled
    def run(*args):
        results = {}
        for method in ("scan", *METHODS):
            try:
                results[method] = values_and_gradients(drawn.cell, method, *args)
            except (TypeError, ValueError) as error:
                note(method, error)
        return results

    results = run(*drawn[1:])
    expected = results.pop("scan", None)
    found = {method: deviation(got, expected) for method, got in results.items()} if expected else {}
    return Found(hints(drawn.cell), found, refused, failed)


def combinations(name: str, quick: bool) -> list[tuple[str, str, str]]:
    """A cell in every dtype, bare and under wrappers; if quick, under wrappers in float64 alone."""
    dtypes = ["float64"] if quick else TOLERANCE
    return [(name, "", dtype) for dtype in TOLERANCE] + [(name, w, dtype) for w in WRAPPERS for dtype in dtypes]


def survey_cell(name: str, quick: bool) -> dict[tuple[str, str, str], Found]:
    """All combinations of one cell."""
    found = {key: survey(*key) for key in combinations(name, quick)}
    jax.clear_caches()  # a thousand programs would not fit into memory
    return found


class Reasons:
    """The footnotes of the page: every message once."""

    def __init__(self, messages: Iterable[str] = ()):
        self.messages = list(messages)

    def marks(self, messages: Iterable[str]) -> str:
        """The numbers of these messages, as superscripts. Shapes are left out, so similar messages share a number."""
        short = {re.sub(r"\[[\d, ]+\]|\([\d, ]+\)", "[...]", message) for message in messages}
        self.messages += sorted(short - set(self.messages))
        numbers = sorted(self.messages.index(message) + 1 for message in short)
        return " ".join(str(n).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) for n in numbers)


def wrong(found: Found, dtype: str) -> list[str]:
    """The methods that neither agree with scan nor are refused with a reason."""
    far = [method for method, value in found.deviation.items() if not value <= TOLERANCE[dtype]]
    return far + [method or "every method" for method in found.failed]


def method_mark(found: dict[str, Found], method: str, reasons: Reasons) -> str:
    """A bare cell by a method: what happens in which dtype."""
    groups: dict[str, list[str]] = {}
    for dtype, one in found.items():
        reason = one.refused.get(method, one.refused.get(""))
        mark = "✗" if wrong(one, dtype) else f"no {reasons.marks([reason])}" if reason else "✓"
        groups.setdefault(mark, []).append(dtype)
    if len(groups) == 1:
        return next(iter(groups))
    return ", ".join(mark if mark == "✓" else f"{mark} {' '.join(dtypes)}" for mark, dtypes in groups.items())


def wrapper_mark(bare: dict[str, Found], found: dict[str, Found], reasons: Reasons) -> str:
    """A cell under a wrapper: the remaining hints, and why it is refused or loses a method of the bare cell."""
    if not found:
        return "·"
    if any(wrong(one, dtype) for dtype, one in found.items()):
        return "✗"
    lost = {
        message
        for dtype, one in found.items()
        for method, message in one.refused.items()
        if method not in bare[dtype].refused
    }
    refused = all("" in one.refused for one in found.values())
    left = " ".join(hint[0].upper() for hint in next(iter(found.values())).hints) or "✓"
    return f"{'no' if refused else left} {reasons.marks(lost)}".strip()


def table(corner: str, columns: Iterable[str], rows: dict[str, list[str]]) -> str:
    lines = [[corner, *columns], ["---", *[":---:" for _ in columns]], *([name, *row] for name, row in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def counts(founds: list[dict[str, Found]], method: str) -> str:
    """The number of cells on which a method agrees with scan, by dtype where that differs."""
    ran = [dtype for dtype in TOLERANCE if any(dtype in found for found in founds)]
    numbers = {dtype: sum(method in found[dtype].deviation for found in founds if found) for dtype in ran}
    most = max(numbers.values(), default=0)
    return ", ".join([str(most), *(f"{dtype} {n}" for dtype, n in numbers.items() if n < most)])


def far_off(found: dict[tuple[str, str, str], Found], method: str, dtype: str) -> str:
    """The largest deviation of a method in a dtype."""
    every = [one.deviation[method] for key, one in found.items() if key[2] == dtype and method in one.deviation]
    return f"{max(every):.0e}" if every else "refused"


def page(found: dict[tuple[str, str, str], Found], minutes: float) -> str:
    """docs/matrix.md."""
    reasons = Reasons()

    def dtypes(name, wrapper):
        return {dtype: found[name, wrapper, dtype] for dtype in TOLERANCE if (name, wrapper, dtype) in found}

    cells = {name: [method_mark(dtypes(name, ""), method, reasons) for method in METHODS] for name in BARE}
    dressed = {name: [wrapper_mark(dtypes(name, ""), dtypes(name, w), reasons) for w in WRAPPERS] for name in BARE}
    wrapped = {w: [counts([dtypes(name, w) for name in BARE], method) for method in METHODS] for w in WRAPPERS}
    largest = {
        dtype: [*(far_off(found, method, dtype) for method in METHODS), f"{TOLERANCE[dtype]:.0e}"]
        for dtype in TOLERANCE
    }
    whole = len(found) == sum(len(combinations(name, quick=False)) for name in BARE)
    quick = "" if whole else "**Made with `--quick`: wrappers in float64 alone.**\n\n"
    bad = [f"- {' '.join(key)}: {', '.join(wrong(one, key[2]))}" for key, one in found.items() if wrong(one, key[2])]
    agree = sum(value <= TOLERANCE[key[2]] for key, one in found.items() for value in one.deviation.values())
    refused = sum(len(METHODS) if "" in one.refused else len(one.refused) for one in found.values())
    verdict = "\n".join(["**These disagree or fail:**\n", *bad]) if bad else "None disagrees."
    return f"""# What runs with what

{quick}{len(BARE)} cells, bare and under each of {len(WRAPPERS)} wrappers, by each of {len(METHODS)} methods, with
weights in {", ".join(TOLERANCE)}: {agree} combinations agree with `scan`, {refused} are refused, for the
reasons listed below. {verdict}

Made by `python -m tools.matrix{"" if whole else " --quick"}` in {minutes:.0f} minutes, from the lists of
`tests/cell_list.py`, with JAX {jax.__version__} on {jax.default_backend()}. The comparison covers the last carry,
all outputs, and the gradients for params, carry, inputs and noise, over {STEPS} random steps, with random params and
carry. Deviations are relative to the largest entry of an array, or to 1 where that is smaller. The largest over all
combinations, and the tolerance:

{table("", [*METHODS, "tolerance"], largest)}
With bfloat16 weights, carries are float32; the gradient of a weight is bfloat16, after a sum over the steps in float32.
All programs round to bfloat16 where the code does (`--xla_allow_excess_precision=false`).

## Cells and methods

✓: agrees with `scan` in every dtype; no: refused, for the reason with that number (below).

{table("cell", METHODS, cells)}
## Cells and wrappers

The hints that remain under the wrapper: G is `gated` (`fused`, `native`), A is `affine` (`associative`), O is
`outer` (`chunkwise`), ✓ a cell without a hint. All methods that the bare cell admits agree with `scan` under the
wrapper too, except for the numbered reasons; no: the wrapper refuses the cell. Each wrapped cell has as many
inputs as outputs, which `residual` requires.

{table("cell", [w.replace("_", " ") for w in WRAPPERS], dressed)}
## Wrappers and methods

The number of cells on which the method agrees with `scan` under the wrapper.

{table("wrapper", METHODS, wrapped)}
## Reasons

The library's messages, verbatim except for shapes.

{chr(10).join(f"{i}. {message}" for i, message in enumerate(reasons.messages, 1))}
"""


def prepare() -> None:
    """In every process: what `conftest.py` sets, and 64-bit types."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_traceback_filtering", "off")  # so that an error's last frame is where it was raised


def main() -> None:
    if native.compiler() is None:
        sys.exit("the matrix needs a C++ compiler, for the method native")
    os.environ.setdefault("CXX", " ".join([*native.compiler(), "-O1"]))
    # Otherwise XLA leaves out a rounding to bfloat16 in one program and not in another: dropout of the inputs then
    # differs by 0.2 %, and gradients of the mLSTM by 3 %, where all methods agree on equal inputs.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_allow_excess_precision=false"
    survey_one = partial(survey_cell, quick="--quick" in sys.argv[1:])
    start, found = time.monotonic(), {}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), prepare) as pool:
        for name, part in zip(BARE, pool.map(survey_one, BARE), strict=True):
            found |= part
            print(f"{time.monotonic() - start:5.0f} s  {name}", flush=True)
    PAGE.write_text(page(found, (time.monotonic() - start) / 60))
    bad = [" ".join(key) for key, one in found.items() if wrong(one, key[2])]
    sys.exit(f"see {PAGE}: {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
