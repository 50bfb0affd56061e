"""What a resume continues, and what it refuses: other data, other flags, other code, lanes that come and go."""

import json
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from test_train_loop import DATA, PROGRAM, bits, numbers, open_run, records, saved_steps

from seqjax.train import Preempted, Run, fit, fit_lanes

OPTIONS = {"steps": 30, "steps_per_call": 5, "checkpoint_every": 5}


def preempt(monkeypatch, step, train):
    """Runs `train`, and stops it by one signal after the call that ends at `step`."""
    log, sent = Run.log, []

    def log_and_signal(self, record):
        log(self, record)
        if record["step"] == step and not sent:
            sent.append(signal.raise_signal(signal.SIGTERM))

    monkeypatch.setattr(Run, "log", log_and_signal)
    with pytest.raises(Preempted):
        train()
    monkeypatch.undo()


def taken(monkeypatch, train):
    """What `train` returns, and the (run, step) of each call that was made for a run."""
    log, calls = Run.log, []

    def counted(self, record):
        log(self, record)
        if record["split"] == "train":
            calls.append((self.directory.name, record["step"]))

    monkeypatch.setattr(Run, "log", counted)
    result = train()
    monkeypatch.undo()
    return result, calls


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    run = open_run(tmp_path)
    preempt(monkeypatch, 10, lambda: fit(PROGRAM, numbers(), run, **OPTIONS))
    return run


# Data


def test_changed_data_is_refused_with_the_difference(stopped):
    before = {path: path.read_bytes() for path in stopped.directory.rglob("*") if path.is_file()}
    permuted = PROGRAM._replace(data=DATA[jnp.array([0, 1, 3, 2])])
    message = (
        r"the checkpoint of step 10 in .* is of another training: data: given 'float32\[4\] \w{16}', found 'float32"
    )
    with pytest.raises(ValueError, match=message):
        fit(permuted, numbers(), stopped, **OPTIONS)
    with pytest.raises(ValueError, match=r"data: given 'float32\[5\] \w{16}', found 'float32\[4\] "):
        fit(PROGRAM._replace(data=jnp.arange(5.0)), numbers(), stopped, **OPTIONS)
    assert before == {path: path.read_bytes() for path in stopped.directory.rglob("*") if path.is_file()}
    assert int(fit(PROGRAM, numbers(), stopped, **OPTIONS).state.step) == 30


def test_changed_data_that_only_the_result_reads_is_refused(tmp_path, monkeypatch):
    run = open_run(tmp_path)
    program = PROGRAM._replace(held_out={"test": np.arange(3)})
    preempt(monkeypatch, 10, lambda: fit(program, numbers(), run, **OPTIONS))
    with pytest.raises(ValueError, match=r"data held out \['test'\]: given 'int64\[3\] .*, found 'int64\[3\] "):
        fit(program._replace(held_out={"test": np.array([0, 2, 1])}), numbers(), run, **OPTIONS)


def test_a_run_without_a_checkpoint_may_read_other_data(tmp_path):
    run = open_run(tmp_path)
    run.log({"step": 5, "loss": 1.0})
    fit(PROGRAM._replace(data=DATA + 1), numbers(), run, **OPTIONS)
    assert [record["step"] for record in records(run, "train")] == [5, 10, 15, 20, 25, 30]


# Flags


def test_checkpoints_of_a_run_with_other_flags_are_refused(stopped, tmp_path):
    other = Run.open(tmp_path / "other", {"name": "run", "clip_norm": 1.0})
    shutil.copytree(stopped.checkpoints, other.checkpoints, dirs_exist_ok=True)
    shutil.copy(stopped.directory / "metrics.jsonl", other.directory)
    with pytest.raises(ValueError, match=r"flag clip_norm: given 1.0, found '\(no such name\)'"):
        fit(PROGRAM, numbers(), other, **OPTIONS)


def test_a_state_of_other_shapes_is_not_called_corrupt(stopped, capsys):
    wider = PROGRAM._replace(init=lambda given: PROGRAM.init(given)._replace(carry=jnp.zeros(2)))
    with pytest.raises(
        ValueError, match=r"is of a state of other shapes: .carry: given 'float32\[2\]', found 'float32\[\]'"
    ):
        fit(wider, numbers(), stopped, **OPTIONS)
    assert "corrupt" not in capsys.readouterr().err


# Records


def test_records_that_are_missing_at_a_resume_are_refused(stopped):
    (stopped.directory / "metrics.jsonl").write_text("")
    with pytest.raises(
        ValueError, match=r"metrics\.jsonl has 0 records, expected the 2 that the checkpoint was written"
    ):
        fit(PROGRAM, numbers(), stopped, **OPTIONS)


# Code


def test_other_code_and_versions_are_warned_of_and_recorded(stopped, tmp_path, capsys, monkeypatch):
    path = stopped.directory / "config.json"
    stopped.close()
    written = json.loads(path.read_text())
    before = {**written, "commit": "0" * 40, "versions": {**written["versions"], "jax": "0.1"}}
    path.write_text(json.dumps(before))
    run = Run.open(stopped.directory, {"name": "run"})
    said = capsys.readouterr().err
    assert f"WARNING: {run.directory} is resumed by other code: commit: given " in said
    assert f"found '{'0' * 40}'; jax: given " in said
    [change] = run.changed
    assert change["commit"] == written["commit"]
    assert change["jax"] == written["versions"]["jax"]
    assert {name: value for name, value in json.loads(path.read_text()).items() if name != "changed"} == before
    run.close()
    run = Run.open(stopped.directory, {"name": "run"})
    assert capsys.readouterr().err == "", "compared with the latest"
    assert run.changed == [change]


def test_a_run_without_a_checkpoint_is_all_of_the_new_code(tmp_path, capsys):
    run = open_run(tmp_path)
    path = run.directory / "config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "commit": "0" * 40}))
    assert open_run(tmp_path).changed == []
    assert json.loads(path.read_text()) == written
    assert capsys.readouterr().err == ""


# Lanes


def lanes(directory, seeds, **options):
    runs = [open_run(directory, f"seed {seed}") for seed in seeds]
    return fit_lanes(PROGRAM, [numbers(seed) for seed in seeds], runs, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    directory = tmp_path_factory.mktemp("together")
    return directory, lanes(directory, (0, 1, 2))


def assert_as_together(found, together, directory):
    expected_directory, expected = together
    for seed, result in found.items():
        assert bits(result.state) == bits(expected[seed].state), seed
        given, wanted = (open_run(folder, f"seed {seed}") for folder in (directory, expected_directory))
        assert records(given) == records(wanted)


def test_lanes_may_be_added_and_no_step_is_taken_twice(tmp_path, monkeypatch, together):
    preempt(monkeypatch, 20, lambda: lanes(tmp_path, (0, 1)))
    found, calls = taken(monkeypatch, lambda: lanes(tmp_path, (0, 1, 2)))
    assert calls[:4] == [("seed 2", step) for step in (5, 10, 15, 20)], "the one that is behind goes first"
    assert sorted(calls[4:]) == [(f"seed {seed}", step) for seed in (0, 1, 2) for step in (25, 30)]
    assert_as_together(dict(enumerate(found)), together, tmp_path)


def test_lanes_may_be_left_out_and_resumed_alone(tmp_path, monkeypatch, together):
    preempt(monkeypatch, 20, lambda: lanes(tmp_path, (0, 1, 2)))
    [alone], calls = taken(monkeypatch, lambda: lanes(tmp_path, (1,)))
    assert calls == [("seed 1", 25), ("seed 1", 30)]
    found, calls = taken(monkeypatch, lambda: lanes(tmp_path, (2, 0)))
    assert len(calls) == 4
    assert_as_together({1: alone, 2: found[0], 0: found[1]}, together, tmp_path)
    assert {result.lanes for result in (alone, *found)} == {3}
    assert {result.program_memory_bytes for result in (alone, *found)} == {together[1][0].program_memory_bytes}


def test_lanes_that_have_taken_all_steps_take_none(tmp_path, monkeypatch, together):
    lanes(tmp_path, (0, 1))
    found, calls = taken(monkeypatch, lambda: lanes(tmp_path, (0, 1)))
    assert calls == []
    assert_as_together(dict(enumerate(found)), together, tmp_path)
    assert 0 < found[0].program_memory_bytes <= together[1][0].program_memory_bytes
    assert (found[0].lanes, together[1][0].lanes) == (2, 3)
    assert found[0].steps_per_second > 0


def test_a_lane_resumes_as_a_single_run_and_the_other_way(tmp_path, monkeypatch):
    preempt(monkeypatch, 20, lambda: lanes(tmp_path, (0, 1)))
    run = open_run(tmp_path, "seed 0")
    result, calls = taken(monkeypatch, lambda: fit(PROGRAM, numbers(0), run, **OPTIONS))
    assert calls == [("seed 0", 25), ("seed 0", 30)]
    single = open_run(tmp_path, "seed 2")
    preempt(monkeypatch, 10, lambda: fit(PROGRAM, numbers(2), single, **OPTIONS))
    _, calls = taken(monkeypatch, lambda: lanes(tmp_path, (1, 2)))
    assert calls[:2] == [("seed 2", 15), ("seed 2", 20)]
    alone = fit(PROGRAM, numbers(0), open_run(tmp_path, "alone"), **OPTIONS)
    np.testing.assert_allclose(result.state.params["w"], alone.state.params["w"], rtol=1e-5)


def test_a_lane_that_cannot_be_restored_leaves_the_others_alone(tmp_path, monkeypatch, together):
    preempt(monkeypatch, 20, lambda: lanes(tmp_path, (0, 1)))
    for path in (tmp_path / "seed 1" / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"garbage")
    found = lanes(tmp_path, (0, 1))
    assert found[0].error is None
    assert found[1].error.startswith(f"no checkpoint in {tmp_path / 'seed 1' / 'checkpoints'} can be read")
    assert_as_together({0: found[0]}, together, tmp_path)
    assert saved_steps(tmp_path / "seed 1" / "checkpoints") == [10, 15, 20], "nothing is thrown away"
