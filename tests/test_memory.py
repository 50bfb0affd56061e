"""The reach of the gradient of every cell: runs of the experiment, gradients known in closed form, its report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import memory
from experiments.harness import plots
from experiments.harness.experiment import define
from experiments.harness.report import panels
from experiments.shared import tasks
from seqjax import cells
from seqjax.train import read_arrays
from tests.quick import few
from tests.test_experiments import drawn, refused, run

pytestmark = pytest.mark.usefixtures("quick_programs")
SMALL = ("--units=4", "--batch_size=2")


def network(model, lag):
    """The task and the cell of the experiment, at a small size, with params."""
    config = define(memory).parse({"model": model, "units": 4, "lag": lag, "batch_size": 2})
    task = tasks.recall(lag=lag, batch_size=2)
    cell = memory.network(config, task)
    return task, cell, cell.init(jax.random.key(0), 0)


def test_every_cell_that_reads_vectors_is_measured():
    names = {name for name in cells.__all__ if name[0].islower()}
    assert names - set(memory.CELLS) == {"stack", "conv_lstm"}
    assert memory.SWEEP.startswith(f"model={','.join(memory.CELLS)};")


@pytest.mark.parametrize("model", few(memory.CELLS))
def test_the_gradient_of_a_cell_has_an_entry_for_each_lag(model):
    task, cell, params = network(model, 4)
    norms = jax.eval_shape(lambda params: memory.gradient_by_lag(task, cell, params), params)
    assert norms.shape == (5,)


@pytest.mark.parametrize("model", few(memory.CELLS, ("lstm", "mlstm")))
def test_a_run_measures_the_gradient_before_and_after(model, tmp_path):
    finished = run("memory", tmp_path / "run", f"--model={model}", "--lag=4", *SMALL)
    norms, result = read_arrays(finished.directory / "gradients.npz"), finished.result()
    assert {name: row.shape for name, row in norms.items()} == {"first": (5,), "last": (5,)}
    for name, row in norms.items():
        assert np.isfinite(row).all()
        assert row[0] > 0
        assert 10 ** result[f"{name}_gradient_log10"] == pytest.approx(row[-1] / row[0], rel=1e-4)
        assert result[f"{name}_half_life"] == memory.half_life(row)
    assert 0 <= result["test_accuracy"] <= 1


@pytest.mark.parametrize("model", ["rnn", "lru"])
def test_the_gradient_decays_by_the_factor_that_a_cell_multiplies_its_carry_by(model):
    """Linear in its carry, or all but linear, since a carry of 1e-9 is where tanh is the identity."""
    lag, factor = 8, 0.8
    task, cell, params = network(model, lag)
    inner = params["cell"]["cell"]
    if model == "rnn":
        params["cell"]["embedding"] *= 1e-9
        inner["w_h"] = factor * jnp.eye(4)
    else:
        inner["nu"] = jnp.full((4,), np.log(-np.log(factor)), jnp.float32)
    norms = np.asarray(memory.gradient_by_lag(task, cell, params))
    np.testing.assert_allclose(norms / norms[0], factor ** np.arange(lag + 1), rtol=1e-4)
    np.testing.assert_allclose(memory.relative_log10(norms), np.arange(lag + 1) * np.log10(factor), atol=1e-4)
    assert memory.half_life(norms) == 4  # 0.8^3 = 0.512, 0.8^4 = 0.41


def test_a_gradient_that_is_lost_or_never_halved():
    assert memory.half_life(np.array([1, 0.6, 0.4, 0.6], np.float32)) == 2
    assert memory.half_life(np.array([1, 2, 0.5], np.float32)) == 3
    np.testing.assert_allclose(memory.relative_log10(np.array([2, 20, 0], np.float32)), [0, 1, -38], atol=1e-6)
    np.testing.assert_array_equal(memory.relative_log10(np.zeros(3, np.float32)), [0, 0, 0])


def test_the_report_sorts_the_cells_and_separates_what_else_is_swept(tmp_path):
    runs = [
        run("memory", tmp_path / f"{model}{lag}", f"--model={model}", f"--lag={lag}", *SMALL)
        for model, lag in (("rnn", 3), ("min_gru", 3), ("rnn", 2))
    ]
    tables = [section.table or [] for section in drawn(memory, runs[:2])]
    results = {run.flags["model"]: run.result() for run in runs[:2]}

    def place(model):
        return -round(results[model]["test_accuracy"], 2), -results[model]["first_gradient_log10"]

    order = sorted(results, key=place)
    (head, *rows), (_, *correlations) = tables
    assert head == ["cell", "accuracy", *memory.SIGNALS.values()]
    assert [row[0] for row in rows] == order
    assert rows[0][1].mean == pytest.approx(results[order[0]]["test_accuracy"], abs=1e-4)
    assert [row[1] for row in correlations] == [2] * len(memory.SIGNALS)
    titles = [section.title for section in drawn(memory, runs)]
    kinds = ("Reach of the gradient", "Prediction")
    assert titles == [f"{kind}, lag={lag}" for lag in (3, 2) for kind in kinds]


def test_the_labels_of_points_keep_a_distance():
    np.testing.assert_allclose(plots.spread([1.0, 1.0, 5.0], 1.0, 9.0), [0.5, 1.5, 5.0])
    np.testing.assert_allclose(plots.spread([4.0, 5.0, 5.0], 1.0, 5.0), [3.0, 4.0, 5.0])
    assert not plots.spread([], 1.0, 5.0).size
    _, axes = panels()
    plots.named_points(axes[0, 0], ["a", "b", "c"], [0.1, 1.0, 1.0], [-3.0, 0.0, 0.0])
    named = {text.get_text(): (text.xy, text.xyann) for text in axes[0, 0].texts}
    assert {name: point for name, (point, _) in named.items()} == {"a": (0.1, -3), "b": (1, 0), "c": (1, 0)}
    places = {name: place for name, (_, place) in named.items()}
    assert places["a"][0] == places["b"][0] == places["c"][0] == 1.06
    assert places["a"][1] < min(places["b"][1], places["c"][1])
    assert abs(places["b"][1] - places["c"][1]) == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--units=6", "must be a multiple of 4"),
        ("--lag=0", "lag"),
        ("--model=conv_lstm", "value should be one of <antisymmetric_rnn|cfc|"),
    ],
)
def test_what_no_cell_can_read_is_refused(flag, message):
    assert message in refused("memory", flag)
