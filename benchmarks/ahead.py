"""Times seqjax on a GPU with programs that were compiled on a machine without one, because device time is scarce.

    python -m benchmarks.ahead compile DIR    needs jax[cuda13] of the version that the GPU's machine has; 5 minutes
    python -m benchmarks.ahead time DIR       on the GPU: one minute; writes docs/gpu-times.md

Without the device, XLA cannot try out which kernel is fastest for a matrix product. Here it takes cuBLAS's choice, and
at narrow sizes a Triton kernel of its own, which was faster there. A program that is compiled on the device may be
faster; `benchmarks.gpu` measures those, and the peers.
"""

import argparse
import datetime
import importlib.util
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import seqjax
from benchmarks import methods
from benchmarks.places import REPOSITORY
from benchmarks.problem import SHAPES, Shape
from benchmarks.timed import median
from experiments.harness.report import markdown_table
from seqjax.solvers import named
from seqjax.train import write_atomic
from tools.targets import hopper

SECONDS, CALLS = 0.08, 8  # at least, to time one program
CUBLAS: dict[str, Any] = {"xla_gpu_enable_triton_gemm": False}
TRITON: dict[str, Any] = {}
H200 = hopper("NVIDIA H200", memory=150_000_000_000, bandwidth=4_800_000_000_000)


class Program(NamedTuple):
    """A program to time: `make() -> (function, arguments)`, and the options of its compilation."""

    table: str
    row: str
    column: str
    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
    options: dict[str, Any]

    @property
    def file(self) -> str:
        """Its file in the folder of compiled programs."""
        return "-".join(re.findall(r"\w+", f"{self.table} {self.row} {self.column}")) + ".pickle"


def drawn(make: Any, shape: Shape, dtype: Any, lanes: int = 0) -> tuple[Any, Any, jax.Array]:
    """A cell with params (one set for each of `lanes`, if there are any), and inputs [T, B, D]; drawn by NumPy."""
    cell, rng = make(shape.hidden, dtype=jnp.dtype(dtype)), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), shape.features))
    lead = (lanes,) * bool(lanes)

    def normal(leaf):
        scale = leaf.shape[0] ** -0.5 if leaf.ndim > 1 else 0.0
        return jnp.asarray(scale * rng.standard_normal((*lead, *leaf.shape)), leaf.dtype)

    params = jax.tree.map(normal, shapes)
    return cell, params, jnp.asarray(rng.standard_normal((shape.steps, shape.batch, shape.features)), dtype)


def gradient(make: Any, shape: Shape, dtype: Any, method: str, lanes: int = 0) -> tuple[Any, tuple[Any, ...]]:
    """Value and gradient of the mean square of all outputs."""
    cell, params, xs = drawn(make, shape, dtype, lanes)

    def loss(params, xs):
        ys = seqjax.unroll(cell, params, None, xs, method=named(method))[1]
        return jnp.mean(jnp.square(ys.astype(jnp.float32)))

    run = jax.value_and_grad(loss)
    return (jax.vmap(run, (0, None)) if lanes else run), (params, xs)


def last_output(make: Any, shape: Shape, method: str) -> tuple[Any, tuple[Any, ...]]:
    """What `benchmarks.methods` times."""
    cell, params, xs = drawn(make, shape, jnp.float32)
    return methods.gradient(cell, method), (params, xs)


def programs() -> Iterator[Program]:
    """All that is timed."""
    cells = seqjax.cells
    for shape in SHAPES:
        for kind in ("lstm", "gru", "rnn"):
            for dtype in ("float32", "bfloat16") if kind == "lstm" else ("float32",):
                for method in ("persistent", "fused:8"):
                    make = partial(gradient, getattr(cells, kind), shape, dtype, method)
                    options = TRITON if shape.hidden <= 32 else CUBLAS
                    yield Program(f"{kind}, {dtype}", str(shape), method, make, options)
    for lanes in (1, 16, 64, 256):
        make = partial(gradient, cells.lstm, SHAPES[0], "float32", "persistent", lanes)
        yield Program(f"lanes of lstm ({SHAPES[0]})", str(lanes), "persistent", make, CUBLAS if lanes > 1 else TRITON)
    gated = ("gated", cells.lstm, methods.GATED_ON_ACCELERATORS)
    affine = ("affine", cells.min_gru, methods.AFFINE_ON_ACCELERATORS)
    for kind, cell, names in (gated, affine):
        for batch in methods.BATCHES:
            for units in methods.UNITS:
                for method in names:
                    make = partial(last_output, cell, Shape(batch, methods.STEPS, min(units, 64), units), method)
                    yield Program(f"methods, {kind}", f"{batch}, {units}", method, make, CUBLAS)


def compile_all(folder: Path) -> None:
    """Compile all programs for an H200 that this machine need not have."""
    from jax.experimental import serialize_executable, topologies

    topology: Any = topologies.get_topology_desc("h200", "cuda", target_config=H200, topology="1x1x1")
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    folder.mkdir(parents=True, exist_ok=True)
    for program in programs():
        start = time.perf_counter()
        function, arrays = program.make()
        types = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arrays)
        lowered = jax.jit(function).trace(*types).lower(lowering_platforms=("cuda",))
        compiled = lowered.compile({"xla_gpu_autotune_level": "0"} | program.options)
        write_atomic(folder / program.file, pickle.dumps(serialize_executable.serialize(compiled)))
        print(f"{time.perf_counter() - start:5.1f} s  {program.table}: {program.row}, {program.column}", flush=True)


def torch_seconds(kind: str, shape: Shape, dtype: str) -> float:
    """Seconds of the same value and gradient by PyTorch's layer, which is cuDNN's, in TF32 where it is float32."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    layer = getattr(torch.nn, kind.upper())(shape.features, shape.hidden).to("cuda", getattr(torch, dtype))
    layer.flatten_parameters()
    xs = torch.randn(shape.steps, shape.batch, shape.features, device="cuda", dtype=getattr(torch, dtype))

    def run():
        layer.zero_grad()
        layer(xs)[0].float().square().mean().backward()
        torch.cuda.synchronize()

    return median(run, SECONDS, CALLS)


def time_all(folder: Path) -> dict[tuple[str, str, str], float]:
    """Seconds of all programs, by table, row and column: the median of at least 8 calls."""
    from jax.experimental import serialize_executable

    found = {}
    for program in programs():
        payload, inputs, outputs = pickle.loads((folder / program.file).read_bytes())
        device = jax.devices()[:1]
        run = serialize_executable.deserialize_and_load(payload, inputs, outputs, execution_devices=device)
        _, arrays = program.make()
        seconds = median(lambda run=run, arrays=arrays: jax.block_until_ready(run(*arrays)), SECONDS, CALLS)
        found[program.table, program.row, program.column] = seconds
        print(f"{program.table}: {program.row}, {program.column}: {1e3 * seconds:.3f} ms", flush=True)
    if importlib.util.find_spec("torch"):
        for kind, dtype in (("lstm", "float32"), ("lstm", "bfloat16"), ("gru", "float32"), ("rnn", "float32")):
            for shape in SHAPES:
                found[f"{kind}, {dtype}", str(shape), "PyTorch"] = torch_seconds(kind, shape, dtype)
    return found


INTRODUCTION = """\
# Times on a GPU

Written by `python -m benchmarks.ahead`: {where}, jax {version}, {date}. Milliseconds, the median of at least 8 calls.
Value and gradient of the mean square of all outputs, in TF32 where it is float32; "methods": the gradient of the last
output after 200 steps, by which `seqjax/solvers/methods.csv` is ranked.

The programs were compiled on a machine without a GPU, where XLA cannot try out which kernel is fastest for a matrix
product: those before and after a loop may take longer than in a program that is compiled on the device. PyTorch's
layers are cuDNN's.
"""


def page(found: dict[tuple[str, str, str], float], where: str) -> str:
    """The tables."""
    today = f"{datetime.date.today():%Y-%m-%d}"
    parts = [INTRODUCTION.format(where=where, version=jax.__version__, date=today).rstrip()]
    for table in dict.fromkeys(name for name, _, _ in found):
        here = {(row, column): s for (name, row, column), s in found.items() if name == table}
        columns = list(dict.fromkeys(column for _, column in here))
        lines = [["", *columns, "fastest first"]]
        for row in dict.fromkeys(row for row, _ in here):
            seconds = {column: here[row, column] for column in columns if (row, column) in here}
            shown = [f"{1e3 * seconds[column]:.2f}" if column in seconds else "" for column in columns]
            lines.append([row, *shown, ", ".join(methods.ranked(seconds))])
        parts += [f"## {table}", markdown_table(lines)]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Compile, or time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compile", "time"])
    parser.add_argument("folder", type=Path)
    flags = parser.parse_args(arguments)
    if flags.what == "compile":
        compile_all(flags.folder)
    else:
        write_atomic(REPOSITORY.pages / "gpu-times.md", page(time_all(flags.folder), jax.devices()[0].device_kind))


if __name__ == "__main__":
    main(sys.argv[1:])
