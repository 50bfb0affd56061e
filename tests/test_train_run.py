import errno
import json
import math
import os
import re
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.train import Run, mean_and_interval, read_arrays, write_arrays, write_atomic
from seqjax.train.metrics import progress_bar, student_t_quantile

FLAGS = {"seed": 3, "cell": "lstm", "learning_rate": 0.01, "truncation": (16, 16)}


@pytest.fixture
def run(tmp_path):
    return Run.open(tmp_path / "run", FLAGS)


def record(step, **values):
    return {"step": step, "epoch": None, "split": "train", "seconds": 0.5, **values}


def test_open_writes_config(run):
    config = json.loads((run.directory / "config.json").read_text())
    assert config == run.config
    assert config["flags"] == {**FLAGS, "truncation": [16, 16]}
    assert config["seed"] == 3
    assert config["versions"]["jax"] == jax.__version__
    names = {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "seqjax"}
    assert config["versions"].keys() == names
    assert config["device"].endswith(f"({jax.default_backend()})")
    assert config["commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", config["commit"])
    assert run.checkpoints.is_dir()
    assert run.figures.is_dir()


def test_open_again_with_the_same_flags_goes_on(run):
    before = (run.directory / "config.json").read_bytes()
    run.log(record(1, loss=2.0))
    assert Run.open(run.directory, FLAGS).records() == [record(1, loss=2.0)]
    assert (run.directory / "config.json").read_bytes() == before


def test_open_with_other_flags_names_those_that_differ(run):
    given = {"seed": 4, "cell": "lstm", "learning_rate": 0.01, "clip_norm": 1.0, "truncation": (16, 16)}
    with pytest.raises(ValueError, match="holds a run with other flags: ") as error:
        Run.open(run.directory, given)
    assert str(error.value).endswith("clip_norm: given 1.0, found '(no such name)'; seed: given 4, found 3")


def test_open_without_resume_refuses_a_run(run):
    with pytest.raises(FileExistsError, match="already holds a run"):
        Run.open(run.directory, FLAGS, resume=False)


def test_read_changes_nothing(run):
    run.log(record(1))
    run.fail("it broke")
    before = sorted(run.directory.rglob("*"))
    read = Run.read(run.directory)
    assert (read.config, read.flags, read.records()) == (run.config, run.flags, run.records())
    assert read.error == "it broke"
    assert sorted(run.directory.rglob("*")) == before


def test_read_of_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: .*config\.json is missing"):
        Run.read(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", '{"flags": {', "[1, 2]", '{"seed": 1}'])
def test_damaged_config_names_the_file(run, content):
    (run.directory / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: expected an? (JSON )?object"):
        Run.read(run.directory)


def test_log_takes_array_scalars_and_keeps_every_bit(run):
    run.log(record(jnp.int32(1), loss=np.float32(0.1), error=1 / 3))
    assert run.records() == [record(1, loss=float(np.float32(0.1)), error=1 / 3)]


def test_log_refuses_what_is_no_number(run):
    with pytest.raises(TypeError, match="expected a number, a string, a list, a dict or an array, got set"):
        run.log(record(1, loss={1}))
    assert run.records() == []


def test_half_a_line_is_not_a_record(run):
    run.log(record(1))
    mark = run.mark()
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert run.records() == [record(1)]
    run.rewind(mark)
    run.log(record(2))
    assert run.records() == [record(1), record(2)]


def test_a_damaged_line_is_named(run):
    run.log(record(1))
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write("broken\n")
    run.log(record(2))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected a JSON object, found 'broken'"):
        run.records()


def test_a_full_disk_names_the_file_and_what_was_written_can_be_rewound(run):
    run.log(record(1))
    mark = run.mark()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((run.directory / "metrics.jsonl").stat().st_size + 20, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*metrics\.jsonl'"):
            run.log(record(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (run.directory / "metrics.jsonl").read_text().count("step") == 2, "half a line is there"
    run.rewind(mark)
    run.log(record(2))
    assert run.records() == [record(1), record(2)]


def test_rewind_drops_what_came_after(run):
    marks = []
    for step in (10, 20, 30):
        run.log(record(step))
        run.log(record(step) | {"split": "validation"})
        marks.append(run.mark())
    run.rewind(marks[1])
    assert [entry["step"] for entry in run.records()] == [10, 10, 20, 20]
    run.rewind()
    assert run.records() == []


def _empty(lines):
    return []


def _cut(lines):
    return lines[:-1]


def _missing(lines):
    return lines[1:]


def _swapped(lines):
    return lines[::-1]


def _changed(lines):
    return [lines[0].replace("1.5", "2.5"), *lines[1:]]


def _broken(lines):
    return [lines[0][:-3] + "\n", *lines[1:]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_empty, "has 0 records, expected the 3 that the checkpoint was written after: restore the file"),
        (_cut, "has 2 records, expected the 3"),
        (_missing, "has 2 records, expected the 3"),
        (_swapped, "was changed, expected the 3"),
        (_changed, "was changed, expected the 3"),
        (_broken, "line 1: expected a JSON object, found"),
    ],
    ids=["empty", "cut", "missing", "swapped", "changed", "broken"],
)
def test_records_that_are_missing_or_were_changed_are_refused(run, damage, message):
    for step in (10, 20, 30):
        run.log(record(step, loss=1.5))
    mark = run.mark()
    path = run.directory / "metrics.jsonl"
    path.write_text("".join(damage(path.read_text().splitlines(keepends=True))))
    damaged = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        run.rewind(mark)
    assert path.read_bytes() == damaged, "nothing is thrown away"


def test_result(run):
    assert not run.finished
    with pytest.raises(FileNotFoundError, match="is not finished"):
        run.result()
    run.finish({"test_loss": jnp.float32(0.5), "history": np.arange(2)})
    assert run.finished
    run.close()
    result = Run.read(run.directory).result()
    assert result.pop("records")["records"] == 0
    assert result == {"test_loss": 0.5, "history": [0, 1]}


@pytest.mark.parametrize("damage", [_empty, _cut, _missing, _swapped, _changed, lambda lines: [*lines, lines[0]]])
def test_records_of_a_finished_run_that_were_changed_are_not_read(run, damage):
    for step in (10, 20, 30):
        run.log(record(step, loss=1.5))
    run.finish({})
    assert len(run.records()) == 3
    path = run.directory / "metrics.jsonl"
    path.write_text("".join(damage(path.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match=r"metrics\.jsonl was changed: it has \d records, 3 were written"):
        Run.read(run.directory).records()


def test_text_that_is_nested_too_deeply_is_named(run):
    (run.directory / "metrics.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: expected a JSON object"):
        run.records()


def test_error_is_removed_when_the_run_is_started_again(run):
    assert run.error is None
    run.fail("loss is nan at step 3")
    assert (run.directory / "error.txt").read_text() == "loss is nan at step 3\n"
    assert Run.open(run.directory, FLAGS).error is None


def test_write_atomic(tmp_path):
    for content in ("text ü", b"\x00bytes"):
        write_atomic(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_arrays_are_read_as_they_were_written(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b/c": np.array(3), "names": np.array(["x", "yz"])}
    file = tmp_path / "arrays.npz"
    write_arrays(file, **arrays)
    found = read_arrays(file)
    assert isinstance(found, dict), "a lazy file would stay open"
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"arrays\.npz: damaged"):
        read_arrays(file)
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        read_arrays(tmp_path / "none.npz")


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_write_atomic_on_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch, broken):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_atomic(tmp_path / "file", "old")
    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match=r"No space left on device: .*file'$") as error:
        write_atomic(tmp_path / "file", "new")
    assert error.value.errno == errno.ENOSPC
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),
    [  # printed tables of Student's t
        (0.975, 1, 12.7062047362),
        (0.975, 2, 4.3026527297),
        (0.975, 3, 3.1824463053),
        (0.975, 4, 2.7764451052),
        (0.975, 9, 2.2621571628),
        (0.975, 30, 2.0422724563),
        (0.95, 5, 2.0150483733),
        (0.995, 7, 3.4994832974),
        (0.975, 1000, 1.9623390808),
        (0.025, 4, -2.7764451052),
        (0.5, 6, 0.0),
    ],
)
def test_student_t_quantile(probability, degrees, expected):
    assert student_t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_student_t_refuses_bad_input():
    with pytest.raises(ValueError, match="probability must lie between 0 and 1, got 1"):
        student_t_quantile(1, 3)
    with pytest.raises(ValueError, match="degrees must be at least 1, got 0"):
        student_t_quantile(0.9, 0)


def test_mean_and_interval():
    mean, half = mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.3026527297 * 1 / math.sqrt(3))
    assert mean_and_interval([2.5, 2.5]) == (2.5, 0.0)
    assert mean_and_interval(np.asarray([1.0, 2.0, 3.0]), level=0.9)[1] == pytest.approx(2.9199855804 / math.sqrt(3))


def test_one_value_has_no_interval():
    mean, half = mean_and_interval([4.0])
    assert mean == 4.0
    assert math.isnan(half)


def test_mean_and_interval_refuses_bad_input():
    with pytest.raises(ValueError, match="at least one value"):
        mean_and_interval([])
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        mean_and_interval([1.0], level=95)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    covered = [abs(mean) <= half for mean, half in map(mean_and_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


@pytest.mark.parametrize(
    ("terminal", "enabled", "shown"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_progress_is_quiet_unless_on_a_terminal(monkeypatch, capsys, terminal, enabled, shown):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    with progress_bar(10, 4, enabled=enabled) as bar:
        bar.update(6)
        bar.set_postfix(loss=0.25)
    line = capsys.readouterr().err
    assert bool(line) == shown
    if shown:
        assert all(part in line for part in ("10/10", "loss=0.25", "step/s")), line


def test_what_is_written_is_json_by_its_standard_and_read_back(run):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    given = record(1, loss=math.inf, least=-math.inf, gradient=np.float32("nan"), several=[1.0, math.nan])
    run.log(given)
    run.rewind(run.mark())
    other = Run.open(run.directory.parent / "other", {"clip_norm": math.inf})
    for path in (run.directory / "metrics.jsonl", other.directory / "config.json"):
        assert "Infinity" in str(json.loads(path.read_text(), parse_constant=refuse))
    [found] = run.records()
    assert (found["loss"], found["least"], found["epoch"]) == (math.inf, -math.inf, None)
    assert math.isnan(found["gradient"])
    assert math.isnan(found["several"][1])
    assert Run.open(other.directory, {"clip_norm": math.inf}).flags == {"clip_norm": math.inf}
    with pytest.raises(ValueError, match=r"clip_norm: given 1.0, found inf"):
        Run.open(other.directory, {"clip_norm": 1.0})


@pytest.mark.parametrize("bad", [math.nan, np.float32("inf"), jnp.float32(math.nan), [0.0, -math.inf], {"x": math.nan}])
def test_a_result_that_is_not_finite_is_no_success(run, bad):
    with pytest.raises(FloatingPointError, match=r"the result of .* is not finite: score.* is (nan|-?inf)"):
        run.finish({"accuracy": 1.0, "score": bad})
    assert not run.finished
    run.finish({"accuracy": 1.0, "score": None, "counts": np.arange(2)})
    assert {**run.result(), "records": None} == {"accuracy": 1.0, "score": None, "counts": [0, 1], "records": None}
