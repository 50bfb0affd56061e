"""The step benchmark at tiny shapes: what it checks, refuses, computes and writes. No time is asserted."""

import argparse
import importlib.util
import json

import jax
import numpy as np
import pytest

from benchmarks import page, peers, places, programs, roofline, step
from benchmarks.page import Measured, Result
from benchmarks.problem import CONDITIONS, GATES, Row, Shape, draw, no_masks, reference
from benchmarks.programs import AUTO, EQUINOX, FLAX, HAIKU, JAX_PEERS, KERAS, LINEN, TORCH

SHAPE, OTHER = Shape(batch=3, steps=4, features=2, hidden=5), Shape(batch=2, steps=3, features=1, hidden=4)
ROWS = [Row(cell, condition, SHAPE) for cell in GATES for condition in CONDITIONS]
PLAIN = Row("lstm", "plain", SHAPE)
F32 = np.float32


@pytest.fixture(autouse=True)
def _promotion():
    """The peers, and Adam in optax, are not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# Every program computes what the reference says.


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the peers, about themselves
@pytest.mark.parametrize("entry", [AUTO, *JAX_PEERS, TORCH], ids=lambda entry: entry.name)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_peer_agrees_with_the_reference(row, entry):
    if not entry.installed:
        pytest.skip(f"{entry.name} is not installed")
    built, left_out = programs.build(row, [entry], F32)
    known = {(EQUINOX, "rnn", condition) for condition in CONDITIONS} | {(TORCH, cell, "dropout") for cell in GATES}
    assert bool(left_out) == ((entry, row.cell, row.condition) in known)
    assert len(built) + len(left_out) == 1


@pytest.mark.parametrize("name", ["seqjax scan", "seqjax rematerialized", "seqjax fused"])
def test_the_methods_agree_with_the_reference(name):
    [entry] = [e for e in programs.OTHERS if e.name == name]
    assert entry.runs(PLAIN)
    assert not entry.runs(PLAIN._replace(condition="lengths"))
    assert not programs.build(PLAIN, [entry], F32)[1]


def test_a_method_that_is_not_to_be_had_is_left_out_with_its_reason():
    refused = programs._method("associative")
    built, left_out = programs.build(PLAIN, [refused, AUTO], F32)
    assert list(built) == [AUTO]
    assert "needs a cell with the `affine` hint" in left_out[refused]


def test_bfloat16_is_held_to_the_reference_too():
    programs.build(PLAIN, [AUTO, FLAX], jax.numpy.bfloat16)


def test_the_reference_sees_lengths_and_masks():
    row = PLAIN._replace(condition="lengths")
    weights, batches = draw(row, 1)
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    assert int(first.lengths.min()) < SHAPE.steps
    none = no_masks(row)
    losses = [
        float(reference("lstm", weights, batch, masks)[0])
        for batch, masks in (
            (first, none),
            (first._replace(lengths=None), none),
            (first, none._replace(product=0 * none.product)),
        )
    ]
    assert len(set(losses)) == 3


def test_many_updates_in_one_call_are_single_updates():
    entries = [programs.AUTO_MANY, AUTO]
    weights, batches = draw(PLAIN, programs.UPDATES)
    many, one = (entry.build(PLAIN, F32, weights, batches) for entry in entries)
    many.compile()
    one.compile()
    losses = []
    for k in range(programs.UPDATES):
        one.batches = jax.tree.map(lambda leaf, k=k: leaf[k], batches)
        losses.extend(one.run(1))
    np.testing.assert_allclose(many.run(1), losses, rtol=1e-5)
    assert len(set(losses)) == programs.UPDATES


def test_dropout_masks_differ_between_updates():
    row = PLAIN._replace(condition="dropout")
    program = programs.build(row, [AUTO], F32)[0][AUTO]
    masks = [program.model.masks(program.key(k)).product for k in (0, 1)]
    assert not np.array_equal(*masks)


# A program that computes something else is refused.


def _wrong(change=lambda h: h, **ignored):
    """Flax, its output changed or an input ignored."""

    def model(row, dtype):
        right = peers.flax_nnx_model(row, dtype)

        def last(params, x, lengths, key):
            given = {"lengths": lengths, "key": key} | ignored
            return change(right.last(params, x, given["lengths"], given["key"]))

        return right._replace(last=last)

    return programs._jax("wrong", model)


@pytest.mark.parametrize(
    ("condition", "entry", "what"),
    [
        ("plain", _wrong(lambda h: h * 1.01), "'loss'"),
        ("plain", _wrong(lambda h: jax.lax.stop_gradient(0.01 * h) + 0.99 * h), "{'gradient of b'"),
        ("lengths", _wrong(lengths=None), "'loss'"),
    ],
)
def test_a_wrong_loss_or_gradient_is_refused(condition, entry, what):
    with pytest.raises(programs.Disagreement, match=rf"wrong differs from the reference by more than 0.0001 .*{what}"):
        step.measure(PLAIN._replace(condition=condition), [AUTO, entry], F32, 1e-3)


def test_a_dropout_mask_of_another_key_is_refused():
    def model(row, dtype):
        right = peers.flax_nnx_model(row, dtype)
        return right._replace(masks=lambda key: right.masks(jax.random.fold_in(key, 1)))

    with pytest.raises(programs.Disagreement):
        programs.build(PLAIN._replace(condition="dropout"), [programs._jax("wrong", model)], F32)


# What the command prints and writes.


def took(*milliseconds, compile_seconds=1.0, temporary_bytes=4_000_000):
    return Measured([ms / 1e3 for ms in milliseconds], compile_seconds, temporary_bytes)


RESULTS = [
    Result(
        PLAIN,
        {
            AUTO.name: took(1, 3, 100),
            FLAX.name: took(2, 2, 2),
            KERAS.name: took(6),
            TORCH.name: took(1, compile_seconds=None, temporary_bytes=None),
            "seqjax scan": took(4),
        },
        {"seqjax native": "not built"},
    ),
    Result(PLAIN._replace(cell="gru"), {AUTO.name: took(3), FLAX.name: took(8), TORCH.name: took(6)}, {}),
    Result(PLAIN._replace(condition="dropout"), {AUTO.name: took(1), FLAX.name: took(2)}, {TORCH.name: "has none"}),
]
MACHINE = roofline.Machine(1e9, {(cell, SHAPE): 5e8 for cell in GATES}, 1e9, 1e-9, 1e9, 1e-6, 1e-5)
ABOUT = [["", ""], ["command", "none"], ["dtype", "float32"]]


def test_ratios_are_those_of_the_medians():
    head, lstm, gru = page.times(RESULTS[:2])
    assert head == ["B, T, D, H", AUTO.name, FLAX.name, KERAS.name, TORCH.name, "/ fastest JAX peer", "/ PyTorch"]
    assert lstm == ["LSTM (3, 4, 2, 5)", "3.00", "2.00", "6.00", "1.00", "1.50", "3.00"]
    assert gru == ["GRU (3, 4, 2, 5)", "3.00", "8.00", None, "6.00", "0.38", "0.50"]


def test_the_summary_is_the_geometric_mean_and_the_worst_row():
    _, plain, dropout, everything = page.summary(RESULTS)
    assert plain == ["plain", 2, "0.75", "1.50: LSTM (3, 4, 2, 5)", 1, "1.22", "3.00: LSTM (3, 4, 2, 5)", 1]
    assert dropout == ["dropout", 1, "0.50", "0.50: LSTM (3, 4, 2, 5)", 0, None, None, None]
    assert everything[2:4] == ["0.66", "1.50: plain, LSTM (3, 4, 2, 5)"]


def test_what_is_written_is_read_again(tmp_path):
    where = places.Places(tmp_path, tmp_path / "results")
    page.write(RESULTS, ABOUT, where, "benchmarks", 1e-4)
    results, about = page.read(where.results / "benchmarks.json")
    assert about == ABOUT
    assert [r.row for r in results] == [r.row for r in RESULTS]
    assert page.tables(results) == page.tables(RESULTS)
    assert [r.left_out for r in results] == [r.left_out for r in RESULTS]
    raw = json.loads((where.results / "benchmarks.json").read_text())["rows"][0]["entries"][AUTO.name]
    assert raw["milliseconds"] == 3
    assert raw["quartiles"] == [2, 51.5]
    text = (tmp_path / "benchmarks.md").read_text()
    assert "](figures/benchmarks.svg)" in text
    assert "- seqjax native: not built." in text
    assert "relative error below 0.0001" in text


def test_the_floor_is_flops_bytes_and_activations():
    f = roofline.floor(PLAIN, MACHINE)
    n, forward = 12, 2 * 12 * 7 * 20
    assert f.flops == 2 * forward + 2 * n * 5 * 20
    assert f.matrix == pytest.approx(f.flops / 1e9)
    assert f.at_step == pytest.approx((forward + 2 * n * 5 * 20) / 5e8 + forward / 1e9)
    assert f.memory == pytest.approx(4 * (2 * n * 2 + 2 * 2 * n * 5 + 8 * (2 + 5 + 1) * 20) / 1e9)
    assert f.elementwise == pytest.approx(5 * n * 5 / 1e9)
    assert f.total == f.matrix + f.memory + f.elementwise
    assert f.dominated
    lengths = roofline.floor(PLAIN._replace(condition="lengths"), MACHINE)
    assert lengths.flops == f.flops * 3 / 4
    assert not roofline.floor(PLAIN, MACHINE._replace(bandwidth=1e8)).dominated


def test_the_roofline_says_how_far_each_row_is():
    fast = MACHINE._replace(bandwidth=1e15, tanh=1e15)
    least = roofline.floor(PLAIN, fast).total_at_step
    results = [Result(PLAIN, {AUTO.name: took(least * 1.2e3)}, {})]
    profile = {PLAIN: roofline.Profile(0.001, 0.003, 0.0035, {})}
    text = roofline.text(results, fast, profile, ABOUT)
    assert "1 of them are within 1.3 of the floor at the step's rate" in text
    assert "the worst is LSTM, plain, (3, 4, 2, 5), at 1.20" in text
    assert "| 3, 4, 2, 5 | 1.00 | 2.00 | 0.50 | - |" in text


def test_instructions_have_kinds():
    def f(x, w):
        return jax.lax.scan(lambda h, x: (jax.numpy.tanh(h @ w + x), h), x[0], x)

    compiled = jax.jit(f).lower(np.ones((50, 64, 64), F32), np.ones((64, 64), F32)).compile()
    found = set(roofline.kinds(compiled.as_text()).values())
    assert {"matrix products", "elementwise", "loops"} <= found <= set(roofline.KINDS)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The benchmark with a tiny shape as its only one, and a folder in place of docs/."""
    monkeypatch.setattr(step, "SHAPES", (SHAPE,))
    monkeypatch.setattr(places, "REPOSITORY", places.Places(tmp_path, tmp_path / "results"))
    monkeypatch.setattr(step, "BURST", 1e-4)
    monkeypatch.setattr(roofline, "LARGE", 32)
    monkeypatch.setattr(roofline, "ARRAY", 2**10)
    return tmp_path


WRITTEN = ["benchmarks.md", "figures/benchmarks.svg", "results/benchmarks.json", "roofline.md"]


def test_a_run_prints_what_it_writes(home, capsys):
    arguments = ["--cells", "lstm", "--conditions", "plain", "--seconds", "0.01", "--output", str(home)]
    step.main(arguments, (AUTO, FLAX, programs.AUTO_MANY))
    printed = capsys.readouterr().out
    text, floor = ((home / name).read_text() for name in ("benchmarks.md", "roofline.md"))
    written = (path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())
    assert sorted(written) == WRITTEN
    for caption in (
        "Summary",
        "Milliseconds per step, plain",
        "Temporary memory",
        "Seconds to trace",
        "20 in one call",
    ):
        assert caption in printed
        assert caption in text
    assert "| command | python -m benchmarks.step --cells lstm" in text
    assert "| 3, 4, 2, 5 |" in floor
    roofline.main(["--results", str(home / "results" / "benchmarks.json"), "--output", str(home / "again.md")])
    assert (home / "again.md").read_text().count("|") == floor.count("|")


@pytest.mark.parametrize(
    ("arguments", "rows", "entries", "written"),
    [
        ([], 18, 2, "."),
        (["--quick"], 9, 2, None),
        (["--shapes", "2,3,1,4", "--cells", "gru", "rnn", "--conditions", "lengths"], 2, 2, None),
        (["--peers", "seqjax auto"], 18, 1, None),
        (["--quick", "--output", "elsewhere"], 9, 2, "elsewhere"),
    ],
)
def test_flags_say_what_is_measured_and_where_it_goes(home, monkeypatch, arguments, rows, entries, written):
    asked = []

    def measure(row, entries, dtype, budget):
        asked.append((row, len(entries), budget))
        return Result(row, {entry.name: took(1) for entry in entries}, {})

    monkeypatch.chdir(home)
    monkeypatch.setattr(step, "SHAPES", (SHAPE, OTHER))
    monkeypatch.setattr(step, "measure", measure)
    machine = MACHINE._replace(steps={(cell, shape): 1e9 for cell in GATES for shape in (SHAPE, OTHER)})
    monkeypatch.setattr(roofline, "measure_machine", lambda shapes, dtype: machine)
    monkeypatch.setattr(roofline, "profile", lambda results, dtype: {})
    step.main(arguments, (AUTO, FLAX))
    assert len({row for row, *_ in asked}) == len(asked) == rows
    assert {count for _, count, _ in asked} == {entries}
    assert [path.parent for path in home.rglob("roofline.md")] == ([home / written] if written else [])


def test_rows_that_come_too_late_are_named(home, monkeypatch, capsys):
    monkeypatch.setattr(step, "measure", lambda row, *_: Result(row, {AUTO.name: took(1), FLAX.name: took(2)}, {}))
    clock = iter(range(0, 10_000, 60))
    monkeypatch.setattr(step.time, "perf_counter", lambda: next(clock))
    step.main(["--quick", "--minutes", "6.5"], (AUTO, FLAX))
    printed = capsys.readouterr().out
    assert "not begun after 6.5 min: RNN, lengths, (3, 4, 2, 5); " in printed
    assert "dropout of" not in printed


def test_the_figure_has_a_panel_a_condition_and_every_peer():
    row = {entry.name: took(1) for entry in (AUTO, FLAX, LINEN, KERAS, HAIKU, EQUINOX, TORCH)}
    axes = page.figure([Result(PLAIN._replace(condition=condition), row, {}) for condition in CONDITIONS]).axes
    assert len(axes) == 3
    for ax in axes:
        looks = {(line.get_marker(), line.get_color()) for line in ax.lines if len(line.get_xdata()) == 1}
        assert len(looks) == 6
        assert len(ax.patches) == 1


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "1,2,3,x", "1,2,3,0", ""])
def test_a_bad_shape_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not B,T,D,H"):
        step.parse_shape(text)


@pytest.mark.parametrize("text", ["0", "-1", "two", "nan", "inf"])
def test_bad_seconds_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a positive number"):
        step.parse_duration(text)


def test_the_peers_of_the_extra_are_needed_and_torch_is_not(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "haiku") else found(name))
    assert step.installed((AUTO, FLAX, TORCH)) == [AUTO, FLAX]
    assert "PyTorch is not installed and is left out" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError, match=r"Haiku cannot be imported: .*\[bench\]"):
        step.installed((AUTO, HAIKU))
