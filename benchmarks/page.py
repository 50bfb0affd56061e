"""The page of the step benchmark: summary, tables and figure, and the raw medians as JSON."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.places import Places
from benchmarks.problem import CONDITIONS, NAMES, RATE, Row, Shape
from benchmarks.programs import AUTO, FLAX, JAX_PEERS, LEARNING_RATE, TORCH, UPDATES
from experiments.harness.report import COLORS, Table, markdown_table, panels, save
from seqjax.train import write_atomic
from seqjax.train.strict_json import encode

PEERS = [entry.name for entry in JAX_PEERS]
SHOWN = [AUTO.name, *PEERS, TORCH.name]
BURST = 0.05  # s; a program that is faster is called several times in a row, as a training loop would


class Measured(NamedTuple):
    """What one entry took in one row.

    Attributes:
      seconds: of one step, one value per round.
      compile_seconds: tracing and compilation; None where nothing is compiled or several programs
        are compiled at once.
      temporary_bytes: what XLA allocates beside arguments and results; None where XLA does not run.
    """

    seconds: Sequence[float]
    compile_seconds: float | None
    temporary_bytes: int | None

    @property
    def median(self) -> float:
        """Of the seconds."""
        return float(np.median(self.seconds))


class Result(NamedTuple):
    """What all entries took in one row, and why some have no number."""

    row: Row
    entries: dict[str, Measured]
    left_out: dict[str, str]

    @property
    def fastest(self) -> float | None:
        """Seconds of the fastest peer in JAX."""
        return min((self.entries[name].median for name in PEERS if name in self.entries), default=None)

    def ratio(self, other: float | None) -> float | None:
        """The step of `AUTO` over `other`."""
        return other and self.entries[AUTO.name].median / other

    @property
    def to_fastest(self) -> float | None:
        """The step of `AUTO` over that of the fastest peer in JAX."""
        return self.ratio(self.fastest)

    @property
    def to_torch(self) -> float | None:
        """The step of `AUTO` over that of PyTorch."""
        return self.ratio(self.entries[TORCH.name].median) if TORCH.name in self.entries else None


def _short(row: Row) -> str:
    return f"{NAMES[row.cell]} ({row.shape})"


def _rounded(ratio: float | None) -> str | None:
    return None if ratio is None else f"{ratio:.2f}"


def summary(results: Sequence[Result]) -> Table:
    """Geometric means and worst rows of the ratios, for each condition and for all."""
    table: list[list[Any]] = [
        ["", "rows", "/ fastest JAX peer", "worst row", "rows above 0.8", "/ PyTorch", "worst row", "rows above 1"]
    ]
    present = [c for c in CONDITIONS if any(r.row.condition == c for r in results)]
    groups = [(c, [r for r in results if r.row.condition == c]) for c in present]
    for name, group in [*groups, ("all", list(results))]:
        line: list[Any] = [name, len(group)]
        for ratio, limit in ((lambda r: r.to_fastest, 0.8), (lambda r: r.to_torch, 1.0)):
            found = [(ratio(r), r.row) for r in group if ratio(r) is not None]
            if not found:
                line += [None, None, None]
                continue
            worst, row = max(found, key=lambda pair: pair[0])
            mean = float(np.exp(np.mean(np.log([value for value, _ in found]))))
            where = f"{row.condition}, {_short(row)}" if name == "all" else _short(row)
            line += [_rounded(mean), f"{worst:.2f}: {where}", sum(value > limit for value, _ in found)]
        table.append(line)
    return table


def times(results: Sequence[Result]) -> Table:
    """Milliseconds of every peer, and the ratios of `AUTO`."""
    names = [name for name in SHOWN if any(name in r.entries for r in results)]
    table: list[list[Any]] = [["B, T, D, H", *names, "/ fastest JAX peer", "/ PyTorch"]]
    for r in results:
        ms = [_rounded(r.entries[name].median * 1e3) if name in r.entries else None for name in names]
        table.append([_short(r.row), *ms, _rounded(r.to_fastest), _rounded(r.to_torch)])
    return table


def everything(results: Sequence[Result], names: Sequence[str], value: Callable[[Measured], Any]) -> Table:
    """One quantity of several entries, one line per row."""
    names = [name for name in names if any(name in r.entries for r in results)]
    lines = [[value(r.entries[name]) if name in r.entries else None for name in names] for r in results]
    return [["B, T, D, H", *names], *([_short(r.row), *line] for r, line in zip(results, lines, strict=True))]


def tables(results: Sequence[Result]) -> dict[str, Table]:
    """All tables by their captions."""
    plain = [r for r in results if r.row.condition == "plain"]
    lstm = [r for r in plain if r.row.cell == "lstm"]
    others = [name for r in lstm for name in r.entries if name not in SHOWN]
    made = {"Summary: one training step of seqjax auto over its peers' (below 1: seqjax is faster)": summary(results)}
    titles = {
        "plain": "Milliseconds per step, plain",
        "lengths": "Milliseconds per step, padded sequences with lengths between T/2 and T",
        "dropout": f"Milliseconds per step, recurrent dropout of {RATE}",
    }
    for condition, title in titles.items():
        if group := [r for r in results if r.row.condition == condition]:
            made[title] = times(group)
    if others:
        names = [AUTO.name, *dict.fromkeys(others), FLAX.name]
        made["Milliseconds per step, the methods and many updates in one call"] = everything(
            lstm, names, lambda m: _rounded(m.median * 1e3)
        )
    if plain:
        made["Temporary memory of the compiled program, MB, plain"] = everything(
            plain, SHOWN[:-1], lambda m: None if m.temporary_bytes is None else f"{m.temporary_bytes / 1e6:.1f}"
        )
        made["Seconds to trace and compile, plain"] = everything(
            plain, SHOWN[:-1], lambda m: None if m.compile_seconds is None else f"{m.compile_seconds:.1f}"
        )
    return made


def figure(results: Sequence[Result]) -> Any:
    """The step of every peer over that of the fastest JAX peer, a panel for each condition."""
    present = [c for c in CONDITIONS if any(r.row.condition == c for r in results)]
    drawing, axes = panels(len(present), width=11, height=2.9)
    colors = (*COLORS, "0.5")
    for (ax,), condition in zip(axes, present, strict=True):
        group = [r for r in results if r.row.condition == condition]
        for k, name in enumerate(SHOWN):
            found = [(x, r.entries[name].median / (r.fastest or 1)) for x, r in enumerate(group) if name in r.entries]
            places, heights = zip(*found, strict=True) if found else ((), ())
            if name == AUTO.name:
                ax.bar(places, heights, 0.7, label=name, color=colors[k], alpha=0.5)
            else:
                ax.plot(places, heights, "o^svD*X"[k], label=name, color=colors[k], markersize=5)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set_yscale("log")
        ax.minorticks_off()
        ax.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
        ax.set_ylabel("time / fastest JAX peer")
        ax.set_title(f"One training step, {condition} (lower is faster)")
        labels = [f"{NAMES[r.row.cell]}\n" + "\n".join(map(str, r.row.shape)) for r in group]
        ax.set_xticks(range(len(group)), labels, fontsize=6)
        ax.grid(visible=False, axis="x")
    drawing.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return drawing


def left_out(results: Sequence[Result]) -> str:
    """Which entries have no number somewhere, and why."""
    reasons = dict.fromkeys((name, reason) for r in results for name, reason in r.left_out.items())
    lines = [f"- {name}: {reason}." for name, reason in reasons]
    return "\n".join(["## Dashes", "", *lines]) if lines else ""


def text(results: Sequence[Result], conditions: Table, name: str, tolerance: float) -> str:
    """The page in Markdown."""
    parts = [
        "# One training step",
        "Written by `benchmarks/step.py`; do not edit.",
        *(f"## {caption}\n\n{markdown_table(table)}" for caption, table in tables(results).items()),
        f"![Time of one step, relative to the fastest JAX peer](figures/{name}.svg)",
        left_out(results),
        METHOD.replace("TOLERANCE", f"{tolerance:g}"),
        f"## Conditions\n\n{markdown_table(conditions)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(results: Sequence[Result], conditions: Table, where: Places, name: str, tolerance: float) -> None:
    """Write the page, its figure and its results."""
    save(figure(results), where.figures / name, png=False)
    write_atomic(where.pages / f"{name}.md", text(results, conditions, name, tolerance))
    raw = {
        "conditions": {str(key): str(value) for key, value in conditions[1:]},
        "rows": [_to_json(r) for r in results],
    }
    where.results.mkdir(parents=True, exist_ok=True)
    write_atomic(where.results / f"{name}.json", encode(raw, indent=1) + "\n")


def _to_json(result: Result) -> dict:
    def entry(m):
        low, median, high = (round(float(q) * 1e3, 4) for q in np.quantile(m.seconds, (0.25, 0.5, 0.75)))
        return {
            "milliseconds": median,
            "quartiles": [low, high],
            "rounds": len(m.seconds),
            "compile_seconds": m.compile_seconds and round(m.compile_seconds, 2),
            "temporary_bytes": m.temporary_bytes,
        }

    row = result.row
    return {
        "cell": row.cell,
        "condition": row.condition,
        "shape": list(row.shape),
        "entries": {name: entry(m) for name, m in result.entries.items()},
        "left_out": result.left_out,
    }


def read(path: Path) -> tuple[list[Result], Table]:
    """Results and conditions, from the JSON that `write` wrote; of the seconds only the medians."""
    raw = json.loads(path.read_text(encoding="utf-8"))

    def result(r):
        entries = {
            name: Measured([e["milliseconds"] / 1e3], e["compile_seconds"], e["temporary_bytes"])
            for name, e in r["entries"].items()
        }
        return Result(Row(r["cell"], r["condition"], Shape(*r["shape"])), entries, r["left_out"])

    return [result(r) for r in raw["rows"]], [["", ""], *map(list, raw["conditions"].items())]


METHOD = f"""## What was measured

- One step is the forward pass, the backward pass and the update of one recurrent layer (input projection included)
  with a linear head on its last output and the mean squared error, on batches [B, T, D]. The update is Adam with
  learning rate {LEARNING_RATE:g}.
- All JAX entries share the code of head, loss and update (optax) and run as one compiled program with donated state:
  only the layer differs. PyTorch runs in eager mode with its own Adam. seqjax is `seqjax.nnx.Recurrent(cell, D,
  method=...)`; `auto`, the default, chooses among the other methods.
- Flax NNX is `nnx.RNN` over `SimpleCell`, `OptimizedLSTMCell`, `GRUCell`; Flax Linen uses the cells of the same names
  in `flax.linen`; Keras is `keras.layers` on the JAX backend through `stateless_call`; Haiku is `hk.dynamic_unroll`;
  Equinox is a cell under `lax.scan` and `vmap`, as in its documentation; PyTorch is `torch.nn.RNN`, `LSTM`, `GRU`.
- The GRU resets after the product, as in cuDNN, PyTorch and Keras. Flax NNX has no bias inside the reset. Haiku
  resets before the product and counts as a peer all the same. `hk.VanillaRNN` supports ReLU only: its row is the same
  core with tanh.
- With lengths, the output is taken at each sequence's own last step. Flax takes `seq_lengths`, Keras a mask, PyTorch
  a packed sequence; with Haiku and Equinox the user selects the output by its index.
- Recurrent dropout applies one mask per sequence to h where it enters the recurrent product, drawn in every update.
  Keras draws one mask per gate. With the others the user multiplies h by a mask before the cell. In a GRU this masks
  the carry itself too, which is a different function of equal cost. PyTorch has no recurrent dropout.
- "{UPDATES} in one call" is a scan over {UPDATES} updates in one compiled program, each with its own batch, as
  `seqjax.train.fit` runs them; its time is divided by {UPDATES}. It is not part of any ratio.
- Before the timing, the loss and the gradient of every program are compared with those of the cell written out in
  `benchmarks/problem.py`, in the peer's own form, with the same weights and masks: relative error below TOLERANCE, or
  there is no table. The gradient is read from Adam's first moment after one update, so it comes from the very program
  that is timed; for programs with {UPDATES} updates the first loss is compared.
- The entries take turns, round after round; the tables show medians, and `benchmarks/results/benchmarks.json` has the
  quartiles and the number of rounds. A step faster than 100 ms is first called once without being counted, since that
  call finds caches and memory as another program left them, and then repeatedly for {BURST * 1e3:g} ms.
- Temporary memory is what `memory_analysis()` reports for the compiled program: residuals and scratch space, without
  weights, optimizer state and batch. Memory and compilation times of the other conditions are in
  `benchmarks/results/benchmarks.json`."""
