"""How far a training step is from the limits of the machine: measured rates, a floor for every row, a profile.

    python -m benchmarks.roofline

measures the machine and the profile, and reads the step times from benchmarks/results/benchmarks.json, which
`python -m benchmarks.step` writes together with this page.
"""

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import page
from benchmarks.page import Result
from benchmarks.places import REPOSITORY
from benchmarks.problem import CONDITIONS, DTYPES, GATES, NAMES, Row, Shape, head_loss
from benchmarks.programs import AUTO, build
from experiments.harness.report import Table, markdown_table
from seqjax.train import write_atomic

LARGE = 2048  # rows and columns of the large matrix product
ARRAY = 2**25  # elements of the large array
TANHS = {"rnn": 1, "lstm": 5, "gru": 3}  # sigmoids and tanhs of one unit in one step
STATES = {"rnn": 1, "lstm": 2, "gru": 1}  # leaves of the carry


class Machine(NamedTuple):
    """The measured rates and costs of the machine.

    Attributes:
      matrix: flop/s of a large matrix product.
      steps: flop/s of the product [B, D+H] x [D+H, G*H] of one step, by (cell, shape).
      bandwidth: byte/s read or written, an array updated in place.
      fresh: additional seconds per byte written into memory that is new to the process.
      tanh: elements/s of tanh, in the cache.
      iteration: seconds of one iteration of a loop around a step of 16 units.
      call: seconds of a call of a compiled program that does almost nothing.
    """

    matrix: float
    steps: dict[tuple[str, Shape], float]
    bandwidth: float
    fresh: float
    tanh: float
    iteration: float
    call: float


def best(function: Callable[..., Any], *arguments: Any, donate: bool = False, rounds: int = 5) -> float:
    """The least seconds of a call of a compiled function; with `donate`, of a call on its own last result."""
    compiled = jax.jit(function, donate_argnums=0 if donate else ()).lower(*arguments).compile()
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        taken.append(time.perf_counter() - start)
        arguments = (result,) if donate else arguments
    return min(taken[1:])


def product_rate(rows: int, inner: int, columns: int, dtype: Any) -> float:
    """Flop/s of XLA's product [rows, inner] x [inner, columns], many times in one loop."""
    flops = 2 * rows * inner * columns
    repeats = min(max(round(3e9 / flops), 2), 10_000)
    v, w = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)

    def run(v, u, w):
        def body(_, carry):
            v, _ = carry
            u = v @ w
            return jax.lax.dynamic_update_slice(v, u[:1, :1], (0, 0)), u  # else the product would leave the loop

        return jax.lax.fori_loop(0, repeats, body, (v, u))

    return repeats * flops / best(run, v, v @ w, w)


def measure_machine(shapes: Collection[Shape], dtype: Any) -> Machine:
    """Measure; about half a minute."""
    print("measuring the machine", file=sys.stderr, flush=True)
    x = jnp.ones(ARRAY)
    in_place = best(lambda x: x * 1.0001, jnp.ones(ARRAY), donate=True)
    cached = jnp.full((256, 512), 0.5)
    repeats = 500
    tanhs = best(lambda x: jax.lax.fori_loop(0, repeats, lambda _, x: jnp.tanh(x) + 0.1, x), cached)
    count = 20_000
    small = jnp.ones((count, 1, 16)), jnp.eye(16)
    loop = best(lambda xs, w: jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), h), xs[0], xs), *small)
    return Machine(
        matrix=product_rate(LARGE, LARGE, LARGE, dtype),
        steps={
            (cell, shape): product_rate(shape.batch, shape.features + shape.hidden, gates * shape.hidden, dtype)
            for shape in sorted(shapes)
            for cell, gates in GATES.items()
        },
        bandwidth=2 * x.nbytes / in_place,
        fresh=max(best(lambda x: x * 1.0001, x) - in_place, 0) / x.nbytes,
        tanh=repeats * cached.size / tanhs,
        iteration=loop / count,
        call=best(lambda x: x + 1, jnp.ones(()), rounds=100),
    )


class Floor(NamedTuple):
    """The minimum time of one training step of a row, in seconds; see `METHOD`."""

    flops: float
    matrix: float
    at_step: float
    memory: float
    elementwise: float

    @property
    def total(self) -> float:
        """With all products at the rate of a large one."""
        return self.matrix + self.memory + self.elementwise

    @property
    def total_at_step(self) -> float:
        """With the products of each step at the rate of that shape."""
        return self.at_step + self.memory + self.elementwise

    @property
    def dominated(self) -> bool:
        """Whether matrix products are more than half of the floor."""
        return self.matrix > self.total / 2


def floor(row: Row, machine: Machine, itemsize: int = 4) -> Floor:
    """The floor of a row; padding costs nothing."""
    batch, steps, features, hidden = row.shape
    gates = GATES[row.cell]
    real = batch * (steps if row.condition != "lengths" else (steps // 2 + steps) / 2)
    forward = 2 * real * (features + hidden) * gates * hidden
    backward = 2 * real * hidden * gates * hidden
    parameters = (features + hidden + 1) * gates * hidden
    moved = itemsize * (2 * real * features + 2 * STATES[row.cell] * real * hidden + 8 * parameters)
    rate = max(machine.matrix, machine.steps[row.cell, row.shape])
    return Floor(
        flops=2 * forward + backward,
        matrix=(2 * forward + backward) / rate,
        at_step=(forward + backward) / machine.steps[row.cell, row.shape] + forward / rate,
        memory=moved / machine.bandwidth,
        elementwise=TANHS[row.cell] * real * hidden / machine.tanh,
    )


# The profile.


class Profile(NamedTuple):
    """Where the time of `AUTO` goes in one row.

    Attributes:
      forward, gradient, step: seconds of the forward pass alone, with the gradient, with the update.
      shares: of the time of all operations of a step, by kind; empty where the profiler reports none of them.
    """

    forward: float
    gradient: float
    step: float
    shares: dict[str, float]


KINDS = ("matrix products", "other kernels", "copies", "elementwise", "loops")


def kinds(program: str) -> dict[str, str]:
    """The kind of every instruction of an optimized program in HLO text, by its name."""
    computations = {
        found[1]: found[2] for found in re.finditer(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", program, re.M | re.S)
    }

    def kind(line: str, operation: str) -> str:
        called = re.search(r"calls=%?([\w.-]+)", line)
        inside = computations.get(called[1], "") if called else ""
        if operation == "dot" or " dot(" in inside or re.search(r'target="[^"]*(gemm|matmul|dot)', line):
            return "matrix products"
        if operation == "custom-call":
            return "other kernels"
        if operation in ("copy", "transpose", "copy-start", "copy-done") or (operation == "fusion" and "copy_" in line):
            return "copies"
        return "loops" if operation in ("while", "call", "conditional") else "elementwise"

    line = re.compile(r"^ +(?:ROOT )?%?([\w.-]+) = .*? ([a-z][\w-]*)\(.*$", re.M)
    return {found[1]: kind(found[0], found[2]) for found in line.finditer(program)}


def shares(compiled: Any, run: Callable[[], Any]) -> dict[str, float]:
    """Shares of the time of one run of a compiled program, by kind of operation, as reported by the JAX profiler."""
    of = kinds(compiled.as_text())
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for line in plane.lines:
                    events = [(e.start_ns, -e.duration_ns, of[e.name]) for e in line.events if e.name in of]
                    open_: list[tuple[float, str]] = []  # operations around the present one, by their ends
                    for start, minus, kind in sorted(events):
                        while open_ and open_[-1][0] <= start:
                            open_.pop()
                        if open_:
                            total[open_[-1][1]] += minus  # what is inside is not the outer one's own
                        total[kind] -= minus
                        open_.append((start - minus, kind))
    whole = sum(total.values())
    return {kind: total[kind] / whole for kind in KINDS} if whole else {}


def profile(results: Sequence[Result], dtype: Any) -> dict[Row, Profile]:
    """Time the phases of the LSTM's plain rows, and trace a step of each."""
    profiles = {}
    for row in [r.row for r in results if (r.row.cell, r.row.condition) == ("lstm", "plain")]:
        print(f"profiling {row}", file=sys.stderr, flush=True)
        program = build(row, [AUTO], dtype)[0][AUTO]
        batch, last = program.batches, program.model.last

        def loss(params, batch=batch, last=last):
            return head_loss(params, last(params["layer"], batch.x, None, None), batch.y)

        params = program.state[0]
        forward, gradient = best(loss, params), best(jax.value_and_grad(loss), params)
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            program.run(1)
            taken.append(time.perf_counter() - start)
        step = min(taken)
        profiles[row] = Profile(forward, gradient, step, shares(program.compiled, lambda p=program: p.run(1)))
    return profiles


# The page.


def machine_table(machine: Machine) -> Table:
    """The machine's rates."""
    return [
        ["", ""],
        [f"matrix product, [{LARGE}, {LARGE}] x [{LARGE}, {LARGE}], GFLOP/s", f"{machine.matrix / 1e9:.0f}"],
        ["bandwidth, array updated in place, GB/s", f"{machine.bandwidth / 1e9:.1f}"],
        ["memory new to the process, additional ms per MB", f"{machine.fresh * 1e9:.3f}"],
        ["tanh in the cache, 10^9 elements/s", f"{machine.tanh / 1e9:.2f}"],
        ["one iteration of a loop around a step of 16 units, us", f"{machine.iteration * 1e6:.2f}"],
        ["one call of a compiled program, us", f"{machine.call * 1e6:.1f}"],
    ]


def floors(results: Sequence[Result], machine: Machine, itemsize: int) -> Table:
    """The floor of every row, part by part, and the distance of `AUTO`."""
    head = ["B, T, D, H", "GFLOP", "GFLOP/s of a step", "products", "memory", "elementwise", "floor", "floor at step"]
    table: list[list[Any]] = [
        [*head, "2T iterations", "fresh memory", "auto", "auto / floor", "auto / floor at step", "products dominate"]
    ]
    for r in results:
        f, auto = floor(r.row, machine, itemsize), r.entries[AUTO.name]
        parts = (f.matrix, f.memory, f.elementwise, f.total, f.total_at_step, 2 * r.row.shape.steps * machine.iteration)
        fresh = None if auto.temporary_bytes is None else f"{auto.temporary_bytes * machine.fresh * 1e3:.2f}"
        table.append([
            f"{NAMES[r.row.cell]} ({r.row.shape})",
            f"{f.flops / 1e9:.2f}",
            f"{machine.steps[r.row.cell, r.row.shape] / 1e9:.0f}",
            *(f"{part * 1e3:.2f}" for part in parts),
            fresh,
            f"{auto.median * 1e3:.2f}",
            f"{auto.median / f.total:.2f}",
            f"{auto.median / f.total_at_step:.2f}",
            "yes" if f.dominated else "",
        ])  # fmt: skip
    return table


def dominated(results: Sequence[Result], machine: Machine, itemsize: int) -> str:
    """One line: how far the rows are from their floors where matrix products dominate."""
    rows = [(r, floor(r.row, machine, itemsize)) for r in results]
    far = [(r.entries[AUTO.name].median / f.total_at_step, r.row) for r, f in rows if f.dominated]
    if not far:
        return "Matrix products dominate no row."
    worst, row = max(far, key=lambda pair: pair[0])
    within = sum(ratio <= 1.3 for ratio, _ in far)
    return (
        f"Matrix products dominate {len(far)} of {len(rows)} rows. {within} of them are within 1.3 of the floor at the "
        f"step's rate; the worst is {row}, at {worst:.2f}."
    )


def methods(results: Sequence[Result], machine: Machine, itemsize: int) -> Table:
    """Every entry over the floor at the step's rate, in the LSTM's plain rows."""
    rows = [r for r in results if (r.row.cell, r.row.condition) == ("lstm", "plain")]
    names = list(dict.fromkeys(name for r in rows for name in r.entries))
    table: list[list[Any]] = [["B, T, D, H", *names]]
    for r in rows:
        least = floor(r.row, machine, itemsize).total_at_step
        ratios = [f"{r.entries[n].median / least:.2f}" if n in r.entries else None for n in names]
        table.append([str(r.row.shape), *ratios])
    return table


def phases(profiles: dict[Row, Profile]) -> Table:
    """Milliseconds of the phases, and shares of the operations in percent."""
    table: list[list[Any]] = [["B, T, D, H", "forward", "backward", "update", *(f"{kind}, %" for kind in KINDS)]]
    for row, p in profiles.items():
        ms = (p.forward, p.gradient - p.forward, p.step - p.gradient)
        percent = [f"{100 * p.shares[kind]:.0f}" if p.shares else None for kind in KINDS]
        table.append([str(row.shape), *(f"{1e3 * max(part, 0):.2f}" for part in ms), *percent])
    return table


METHOD = """One training step of a row with N real steps in the batch (N = B T; with lengths from T/2 to T, 3/4 of it;
work on padding is not part of the floor), G gates, S leaves of the carry, P parameters and A activations per unit:

    products    = (2 N (D+H) G H [forward] + 2 N H G H [dh] + 2 N (D+H) G H [dW]) flop / rate
    memory      = (2 N D [inputs, for forward and dW] + 2 N S H [carries, written and read]
                   + 8 P [gradient and Adam: written and read]) bytes per element / bandwidth
    elementwise = A N H / rate of tanh        (A = 5 LSTM, 3 GRU, 1 RNN; forward only)
    floor       = products + memory + elementwise

There is no dx, because the layer is the first. "Floor" uses the rate of a large matrix product. "Floor at step"
computes the products that must wait for each other, forward and dh, at the rate of the product [B, D+H] x [D+H, G H],
measured alone in a loop through XLA; a kernel that is faster than XLA's product may go below it. Shown, but not part
of the floor: T iterations of a loop forward and T backward, and the cost of getting the temporary memory of `auto`
from the system in every call. All times are in ms."""


def text(results: Sequence[Result], machine: Machine, profiles: dict[Row, Profile], conditions: Table) -> str:
    """The page in Markdown."""
    dtype = dict(map(tuple, conditions[1:])).get("dtype", "float32")
    itemsize = jnp.dtype(DTYPES[dtype]).itemsize
    parts = [
        "# How far from the machine",
        "Written by `benchmarks/roofline.py`; do not edit.",
        dominated(results, machine, itemsize),
        f"## The machine\n\n{markdown_table(machine_table(machine))}",
        f"## The floor\n\n{METHOD}",
    ]
    for condition in CONDITIONS:
        if group := [r for r in results if r.row.condition == condition]:
            parts.append(f"### {condition}\n\n{markdown_table(floors(group, machine, itemsize))}")
    if any(r.row.cell == "lstm" and r.row.condition == "plain" for r in results):
        title = "## Every method and peer over the floor at the step's rate, LSTM, plain"
        parts.append(f"{title}\n\n{markdown_table(methods(results, machine, itemsize))}")
    if profiles:
        parts.append(
            "## Profile of seqjax auto, LSTM, plain\n\nMilliseconds of the forward pass alone, and what the gradient "
            "and Adam add (minimum of five calls each). Then the shares of the operations in the time of one step, "
            "from a trace of `jax.profiler`, each without the operations inside it; a product that is fused with "
            f"other arithmetic counts as a product.\n\n{markdown_table(phases(profiles))}"
        )
    parts.append(f"## Conditions\n\n{markdown_table(conditions)}")
    return "\n\n".join(parts) + "\n"


def write(
    results: Sequence[Result], machine: Machine, profiles: dict[Row, Profile], conditions: Table, path: Path
) -> None:
    """Write the page."""
    write_atomic(path, text(results, machine, profiles, conditions))


def main(arguments: Sequence[str]) -> None:
    """Measure the machine and the profile, and write the page from existing results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description="Write docs/roofline.md.")
    written = REPOSITORY.results / "benchmarks.json"
    parser.add_argument("--results", type=Path, default=written, help="of `python -m benchmarks.step`")
    parser.add_argument("--output", type=Path, help="default: the page in docs/ of the same name")
    flags = parser.parse_args(arguments)
    results, conditions = page.read(flags.results)
    dtype = DTYPES[dict(map(tuple, conditions[1:])).get("dtype", "float32")]
    machine = measure_machine({r.row.shape for r in results}, dtype)
    name = flags.results.with_suffix(".md").name.replace("benchmarks", "roofline")
    output = flags.output or REPOSITORY.pages / name
    write(results, machine, profile(results, dtype), conditions, output)
    print(f"written: {output}")


if __name__ == "__main__":
    main(sys.argv[1:])
