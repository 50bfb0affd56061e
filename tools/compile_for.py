"""Compiles every cell by every method for a device that this machine does not have, and prints one JSON line for each.

    python -m tools.compile_for cuda     for an H100; needs jax[cuda12]
    python -m tools.compile_for tpu      for a TPU v5e, one chip and 2x2; needs jax[tpu]

Nothing is run. `tools.compiled` calls this in virtual environments of its own.
"""

import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

DUMP = tempfile.mkdtemp()
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
os.environ["XLA_FLAGS"] = f"--xla_dump_to={DUMP} --xla_dump_hlo_as_text=false --xla_dump_hlo_pass_re=none"

# ruff: noqa: E402 (JAX reads the environment when it is imported)
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import seqjax
from seqjax.solvers import METHODS, named
from tests.cell_list import BARE, draw
from tools.targets import hopper

H100 = hopper("NVIDIA H100 80GB HBM3", memory=84_929_347_584, bandwidth=3_352_320_000_000)
UNITS, BATCH, STEPS, FEATURES = (16, 32, 64, 128, 256, 512), 256, 120, 14
SIZED = ("auto", "persistent", "fused", "fused:8", "scan")
# What becomes a kernel of its own; the rest is bookkeeping of the host.
KERNELS = re.compile(r"= \S+ (fusion|custom-call|copy|dot|dynamic-slice|dynamic-update-slice|convolution|sort)\(")


class Case(NamedTuple):
    """A program to compile.

    Attributes:
      target: "H100", "v5e" or "v5e 2x2".
      name: of the cell.
      method: as in a ranking.
      dtype: of params and inputs.
      make: `() -> (cell, params, carry, xs)`, arrays or shapes.
    """

    target: str
    name: str
    method: str
    dtype: str
    make: Callable[[], tuple[Any, Any, Any, Any]]


def sized(make: Any, units: int, dtype: str) -> tuple[Any, Any, Any, Any]:
    """A cell and shapes at a size of the benchmark."""
    cell = make(units, dtype=jnp.dtype(dtype))
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES))
    return cell, params, None, jax.ShapeDtypeStruct((STEPS, BATCH, FEATURES), jnp.dtype(dtype))


def cases(target: str) -> Iterator[Case]:
    """All programs for a target."""
    if target != "v5e 2x2":
        for kind, make in (("lstm", seqjax.cells.lstm), ("gru", seqjax.cells.gru)):
            for units in UNITS:
                for method in SIZED:
                    yield Case(target, f"{kind}({units})", method, "float32", partial(sized, make, units, "float32"))
                yield Case(target, f"{kind}({units})", "auto", "bfloat16", partial(sized, make, units, "bfloat16"))
    for name, model in BARE.items():
        for method in METHODS if target != "v5e 2x2" else ["auto"]:
            for dtype in ("float32", "bfloat16") if method == "auto" and target != "v5e 2x2" else ("float32",):
                make = partial(draw, model, batch=(8,), dtype=jnp.dtype(dtype))
                yield Case(target, name, method, dtype, make)


def bodies(text: str) -> list[str]:
    """The text of the bodies of all while loops of a program in HLO."""
    computations = {m[1]: m[2] for m in re.finditer(r"^%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S)}
    names = set(re.findall(r"body=%?([\w.\-]+)", text))
    return [computations[name] for name in sorted(names) if name in computations]


def kernels(text: str) -> int:
    """The number of kernels in the bodies of all loops: those of one turn, forward and backward."""
    return sum(len(KERNELS.findall(body)) for body in bodies(text))


def registers(report: str) -> list[tuple[str, int, int]]:
    """Name, registers and bytes of spills, stores and loads together, of each kernel in a report of `ptxas -v`."""
    pattern = r"entry function '([^']+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    return [(m[1], int(m[4]), int(m[2]) + int(m[3])) for m in re.finditer(pattern, report, re.S)]


def assembled(seen: set[str]) -> list[tuple[str, int, int]]:
    """Registers and spills of the Pallas kernels that were compiled since the last call."""
    found = []
    [ptxas] = glob.glob(f"{Path(jax.__file__).parents[1]}/nvidia/cuda_nvcc/bin/ptxas")
    for path in sorted(set(glob.glob(f"{DUMP}/*.ptx")) - seen):
        seen.add(path)
        if "persistent_" in Path(path).read_text():
            command = [ptxas, "-arch=sm_90a", "-v", path, "-o", os.devnull]
            report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            found += [one for one in registers(report) if one[0].startswith("persistent_")]
    return found


def compile_case(case: Case, placed: Callable[[Any], Any], by_batch: Callable[[Any], Any], seen: set[str]) -> dict:
    """The record of a case: what its gradient costs to compile and to keep, or why it does not compile."""
    cell, params, carry, xs = case.make()
    record: dict[str, Any] = {"target": case.target, "cell": case.name, "method": case.method, "dtype": case.dtype}
    method = case.method if case.method in METHODS else named(case.method)

    def loss(params, carry, xs):
        out = seqjax.unroll(cell, params, carry, xs, method=method)
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(out))

    start = time.perf_counter()
    try:
        traced = jax.jit(jax.grad(loss)).trace(placed(params), placed(carry), by_batch(xs))
        lowered = traced.lower(lowering_platforms=("cuda" if case.target == "H100" else "tpu",))
    except (ValueError, NotImplementedError) as error:
        return record | {"refused": str(error).partition("\n")[0]}
    try:
        compiled = lowered.compile({"xla_gpu_autotune_level": "0"} if case.target == "H100" else None)
    except jax.errors.JaxRuntimeError as error:
        return record | {"failed": str(error).partition("\n")[0][:300]}
    memory = compiled.memory_analysis()
    record |= {"seconds": round(time.perf_counter() - start, 2), "temporary": memory and memory.temp_size_in_bytes}
    record["kernels"] = kernels(compiled.as_text())
    return record | ({"registers": assembled(seen)} if case.target == "H100" else {})


def main(platform: str) -> None:
    """Compile everything for a platform."""
    if platform == "cuda":
        devices = topologies.get_topology_desc(
            "h100",
            "cuda",
            target_config=H100,
            topology="1x1x1",
        ).devices
        targets = ["H100"]
    else:
        devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
        targets = ["v5e", "v5e 2x2"]
    seen: set[str] = set()
    for target in targets:
        one: Any = SingleDeviceSharding(devices[0])
        split = one
        if target == "v5e 2x2":
            mesh = jax.sharding.Mesh(devices, ("data",))
            one, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "data"))

        def placed(tree, sharding=one):
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

        for case in cases(target):
            print(json.dumps(compile_case(case, placed, partial(placed, sharding=split), seen)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
