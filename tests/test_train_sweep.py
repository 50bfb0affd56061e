"""A sweep as a table: what `load_sweep` reads of real sweeps, while they run and after, and what it refuses."""

import json
import shutil

import pytest
import toy_experiment as toy

from experiments.harness import executors, sweep
from experiments.harness.experiment import define
from seqjax.train import Run, load_sweep


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A sweep with a finished run, one whose program fails, one that was killed, and one that has not started."""
    directory = tmp_path_factory.mktemp("mixed") / "sweep"
    plan = sweep.plan(define(toy), "fault=none,program,kill,finish;model=line", {"steps": 10}, directory)

    def three(definition, members):
        yield from executors.debug(definition, members[:2])
        yield members[2], "killed by SIGKILL"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.harness.report.write", lambda *_: None)
        assert sweep.run(plan, three) == 1
    return directory


@pytest.fixture
def copied(mixed, tmp_path):
    return shutil.copytree(mixed, tmp_path / "sweep")


def test_a_row_for_each_run_and_a_column_for_each_scalar(mixed):
    table = load_sweep(mixed)
    assert table["run"] == [f"fault={fault},model=line" for fault in ("none", "program", "kill", "finish")]
    assert table["status"] == ["finished", "failed", "failed", "waiting"]
    assert table["reason"] == [None, "ValueError: the program is", "killed by SIGKILL", None]
    assert table["fault"] == ["none", "program", "kill", "finish"]
    result = Run.read(mixed / "fault=none,model=line").result()
    assert table["final_loss"] == [result["final_loss"], None, None, None]
    assert (table["sample"][0], table["stopped_early"][0], table["lanes"][0]) == ("not a number", False, 1)
    assert "records" not in table, "a nested value"
    assert list(table)[:5] == ["run", "status", "reason", "fault", "model"]
    assert {len(values) for values in table.values()} == {4}


def test_pandas_reads_it(mixed):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(load_sweep(mixed))
    assert list(frame.groupby("status").size().items()) == [("failed", 2), ("finished", 1), ("waiting", 1)]
    assert frame["final_loss"].dtype == float
    assert frame["final_loss"].notna().tolist() == [True, False, False, False]


def test_nothing_is_written_and_other_files_are_left_out(copied):
    expected = load_sweep(copied)
    (copied / "notes.txt").write_text("mine")
    (copied / "fault=none,model=line" / "more.json").write_text("{")
    shutil.copytree(copied / "fault=none,model=line", copied / "another run")
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert load_sweep(str(copied)) == expected
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_a_damaged_run_is_a_row_that_says_so(copied):
    result = copied / "fault=none,model=line" / "result.json"
    result.write_text(result.read_text()[:20])
    table = load_sweep(copied)
    assert table["status"] == ["damaged", "failed", "failed", "waiting"]
    assert str(result) in table["reason"][0]
    assert table["reason"][0].endswith(f"; remove {result.parent}, and the same command trains it again")
    assert "final_loss" not in table


def test_a_run_that_was_removed_or_is_tried_again_waits(copied):
    shutil.rmtree(copied / "fault=none,model=line")
    (copied / "fault=program,model=line" / "error.txt").unlink()
    listed = json.loads((copied / "sweep.json").read_text())
    listed["runs"][1] |= {"status": "waiting", "error": None}
    (copied / "sweep.json").write_text(json.dumps(listed))
    assert load_sweep(copied)["status"] == ["waiting", "waiting", "failed", "waiting"]


def test_columns_of_the_same_name_are_told_apart(copied):
    listed = json.loads((copied / "sweep.json").read_text())
    listed["axes"] |= {"steps": [10], "status": ["x"]}
    for run in listed["runs"]:
        run["flags"] |= {"steps": 10, "status": "x"}
    (copied / "sweep.json").write_text(json.dumps(listed))
    result = copied / "fault=none,model=line" / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "steps": 7, "run": 3, "by": {"lag": [1]}}))
    row = {name: values[0] for name, values in load_sweep(copied).items()}
    assert (row["steps"], row["result_steps"], row["flag_status"]) == (10, 7, "x")
    assert (row["run"], row["result_run"], row["status"]) == ("fault=none,model=line", 3, "finished")
    assert "by" not in row


def test_the_names_of_earlier_versions_are_read(copied):
    path = copied / "sweep.json"
    path.write_text(path.read_text().replace('"finished"', '"done"').replace('"waiting"', '"pending"'))
    assert load_sweep(copied)["status"] == ["finished", "failed", "failed", "waiting"]


def test_a_sweep_without_runs_has_columns(tmp_path):
    (tmp_path / "sweep.json").write_text(
        json.dumps({"experiment": "mine", "axes": {"seed": []}, "fixed": {}, "runs": []})
    )
    assert load_sweep(tmp_path) == {"run": [], "status": [], "reason": [], "seed": []}


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("nothing", FileNotFoundError, "there is no such directory; expected one that a sweep was launched in"),
        ("empty", FileNotFoundError, "sweep.json is missing; expected a directory that a sweep was launched in"),
        ("single", FileNotFoundError, "it holds a single run, which Run.read reads"),
        ("file", NotADirectoryError, "is not a directory; expected that of a sweep, which has a sweep.json"),
        ("damaged", ValueError, "sweep.json is damaged: expected an object with experiment, axes, fixed and runs; rem"),
    ],
)
def test_what_is_no_sweep_is_named_with_the_cure(name, kind, message, tmp_path):
    path = tmp_path / name
    if name == "file":
        path.touch()
    elif name != "nothing":
        path.mkdir()
    if name in ("single", "damaged"):
        (path / {"single": "config.json", "damaged": "sweep.json"}[name]).write_text("{}")
    with pytest.raises(kind) as error:
        load_sweep(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
