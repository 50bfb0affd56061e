import contextlib
import json
import math
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.train import NonFiniteLoss, Preempted, Program, Run, fit, fit_lanes, initial_state, program
from seqjax.train.checkpoint import Checkpoints

DATA = jnp.arange(1.0, 5.0)
CLOCK = "seconds"


def init(numbers):
    params = {"w": jnp.zeros(4)}
    return initial_state(jax.random.key(numbers["seed"]), params, opt_state=(), carry=jnp.float32(0))


def update(numbers, data, state):
    """Noisy gradient descent on |w - data|^2 / 2; the loss of update `explode_at` is nan."""
    noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (4,))
    error = state.params["w"] - data
    params = {"w": state.params["w"] - numbers["learning_rate"] * (error + 0.1 * noise)}
    loss = jnp.where(state.step + 1 == numbers["explode_at"], jnp.nan, jnp.sum(error**2) / 2)
    metrics = {"loss": loss, "updates": state.step}
    return state._replace(step=state.step + 1, params=params, carry=state.carry + loss), metrics


def evaluate(numbers, data, state):
    return {"loss": jnp.sum((state.params["w"] - data) ** 2), "updates": state.step}


PROGRAM = Program(init, update, evaluate, DATA, steps_per_epoch=8)


def numbers(seed=0, learning_rate=0.1, explode_at=0):
    return {
        "seed": jnp.int32(seed),
        "learning_rate": jnp.float32(learning_rate),
        "explode_at": jnp.int32(explode_at),
    }


def open_run(tmp_path, name="run"):
    return Run.open(tmp_path / name, {"name": name})


def records(run, split=None):
    """The records of a run without the clock."""
    found = [{k: v for k, v in record.items() if k != CLOCK} for record in run.records()]
    return [record for record in found if split in (None, record["split"])]


def bits(tree):
    leaves = [
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(tree)
    ]
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def saved_steps(directory):
    return sorted(int(path.name) for path in directory.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """25 steps in calls of 10, 10 and 5, evaluated at 10, 20 and 25."""
    run = open_run(tmp_path_factory.mktemp("trained"))
    options = {"steps": 25, "steps_per_call": 10, "evaluate_every": 10, "checkpoint_every": 10}
    return run, fit(PROGRAM, numbers(), run, **options), options


def test_equals_a_python_loop_of_updates(trained):
    _, result, _ = trained
    state = init(numbers())
    for _ in range(25):
        state, _ = update(numbers(), DATA, state)
    assert int(result.state.step) == 25
    np.testing.assert_allclose(result.state.params["w"], state.params["w"], rtol=1e-5)
    np.testing.assert_allclose(result.state.carry, state.carry, rtol=1e-5)


def test_records(trained):
    run, result, _ = trained
    train, validation = records(run, "train"), records(run, "validation")
    assert [(r["step"], r["epoch"]) for r in train] == [(10, 1.25), (20, 2.5), (25, 3.125)]
    assert [r["step"] for r in validation] == [10, 20, 25]
    assert [r["updates"] for r in validation] == [10, 20, 25], "the state after the updates of the record"
    seconds = [record["seconds"] for record in run.records()]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] <= result.wall_seconds


def test_a_train_record_is_the_mean_over_its_call(tmp_path):
    def counting(numbers, data, state):
        state, metrics = update(numbers, data, state)
        return state, {"loss": metrics["loss"], "count": state.step}

    run = open_run(tmp_path)
    fit(Program(init, counting, None, DATA), numbers(), run, steps=7, steps_per_call=4)
    assert [(r["step"], r["epoch"], r["count"]) for r in records(run)] == [(4, None, 2.5), (7, None, 6.0)]


def test_what_the_result_says(trained):
    _, result, _ = trained
    assert result.compile_seconds > 0
    assert result.steps_per_second > 0
    assert result.peak_memory_bytes > 1e6
    assert result.program_memory_bytes is None or result.program_memory_bytes >= 0
    assert (result.stopped_early, result.error) == (False, None)


def test_best_is_the_lowest_validation_metric(tmp_path):
    """Away from the optimum and back: the best params are kept, not the last."""

    def away(numbers, data, state):
        params = {"w": jnp.full(4, jnp.abs(state.step + 1 - 20).astype(jnp.float32))}
        return state._replace(step=state.step + 1, params=params), {"loss": jnp.float32(0)}

    def distance(numbers, data, state):
        return {"distance": state.params["w"][0]}

    run = open_run(tmp_path)
    program = Program(init, away, distance, DATA, monitor="distance")
    best = fit(program, numbers(), run, steps=40, steps_per_call=5, evaluate_every=5).state.best
    assert (float(best.value), int(best.step)) == (0.0, 20)
    np.testing.assert_array_equal(best.params["w"], np.zeros(4))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path, value):
    def bad_at_last(numbers, data, state):
        return {"loss": jnp.where(state.step < 10, 1.0, value)}

    run = open_run(tmp_path)
    with pytest.raises(NonFiniteLoss, match=f"^validation loss is {value} at step 10$"):
        fit(PROGRAM._replace(evaluate=bad_at_last), numbers(), run, steps=20, steps_per_call=5, evaluate_every=5)
    assert [record["step"] for record in records(run, "validation")] == [5]


def spoiled_at(step, part, value=math.nan):
    """The program, an update of which leaves a finite loss and a `part` of the state that is not."""

    def spoiling(numbers, data, state):
        spoil = jnp.where(state.step + 1 == jnp.where(numbers["explode_at"] > 0, step, -1), value, 0.0)
        state, metrics = update(numbers | {"explode_at": jnp.int32(0)}, data, state)
        changed = jax.tree.map(lambda leaf: leaf + spoil, getattr(state, part))
        return state._replace(**{part: changed}), metrics

    def start(numbers):
        return init(numbers)._replace(opt_state={"momentum": jnp.zeros(2), "lowest": jnp.float32(math.inf)})

    return PROGRAM._replace(init=start, update=spoiling)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("part", "leaf"), [("params", "w"), ("opt_state", "momentum"), ("carry", "")])
def test_a_state_that_is_not_finite_after_the_last_update_is_no_success(tmp_path, part, leaf, value):
    run = open_run(tmp_path)
    program = spoiled_at(10, part, value)
    for _ in range(2):  # a resume starts from the last state that was finite
        with pytest.raises(NonFiniteLoss, match=rf"^{part}.*{leaf}.* is not finite after step 10"):
            fit(program, numbers(explode_at=1), run, steps=10, steps_per_call=5, checkpoint_every=5)
        with contextlib.closing(Checkpoints(run.checkpoints)) as checkpoints:
            assert checkpoints.steps() == [5]
    assert fit(program, numbers(), open_run(tmp_path, "sound"), steps=10, steps_per_call=5).error is None


def test_a_lane_whose_state_or_score_is_not_finite_leaves_the_others_alone(tmp_path):
    def evaluate_badly(numbers, data, state):
        return {"loss": jnp.where(numbers["seed"] == 2, jnp.nan, evaluate(numbers, data, state)["loss"])}

    program = spoiled_at(10, "params")._replace(evaluate=evaluate_badly)
    lanes = [numbers(), numbers(seed=1, explode_at=1), numbers(seed=2)]
    runs = [open_run(tmp_path, f"lane {lane}") for lane in range(3)]
    found = fit_lanes(program, lanes, runs, steps=10, steps_per_call=5)
    assert [result.error and result.error[:20] for result in found] == [
        None,
        "params['w'] is not f",
        "validation loss is n",
    ]
    alone = fit(program, lanes[0], open_run(tmp_path, "alone"), steps=10, steps_per_call=5)
    assert bits(found[0].state) == bits(alone.state)


def test_same_seed_same_bits_other_seed_other_bits(trained, tmp_path):
    _, result, options = trained
    again = fit(PROGRAM, numbers(), open_run(tmp_path, "again"), **options)
    other = fit(PROGRAM, numbers(seed=1), open_run(tmp_path, "other"), **options)
    assert bits(again.state) == bits(result.state)
    assert bits(other.state.params) != bits(result.state.params)


class StopError(Exception):
    """Stands in for a crash."""


def crash(monkeypatch, owner, name, is_time):
    """The method `name` raises after a call whose arguments fulfil `is_time`."""
    original = getattr(owner, name)

    def wrapped(self, *arguments):
        original(self, *arguments)
        if is_time(*arguments):
            raise StopError

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("step", [20, 25])
@pytest.mark.parametrize("where", ["log", "save"])
def test_resumes_bit_for_bit_after_a_crash(trained, tmp_path, monkeypatch, where, step):
    run, result, options = trained
    broken = open_run(tmp_path)
    if where == "log":
        crash(monkeypatch, Run, "log", lambda record: (record["step"], record["split"]) == (step, "validation"))
    else:
        crash(monkeypatch, Checkpoints, "save", lambda saved, *_: saved == step)
    with pytest.raises(StopError):
        fit(PROGRAM, numbers(), broken, **options)
    monkeypatch.undo()
    resumed = fit(PROGRAM, numbers(), broken, **options)
    assert bits(resumed.state) == bits(result.state)
    assert records(broken) == records(run)


def test_training_that_is_done_is_not_done_again(trained):
    run, result, options = trained
    before = records(run), saved_steps(run.checkpoints)
    again = fit(PROGRAM, numbers(), run, **options)
    assert bits(again.state) == bits(result.state)
    assert (records(run), saved_steps(run.checkpoints)) == before
    assert again.steps_per_second == result.steps_per_second
    assert again.wall_seconds >= run.records()[-1]["seconds"]


def signal_on_log(monkeypatch, number, step):
    """This process sends itself a signal when the training record of `step` is written."""
    log = Run.log

    def log_and_signal(self, record):
        log(self, record)
        if (record["step"], record["split"]) == (step, "train"):
            signal.raise_signal(number)

    monkeypatch.setattr(Run, "log", log_and_signal)


def test_wall_seconds_accumulate(tmp_path, monkeypatch):
    run = open_run(tmp_path)
    options = {"steps": 20, "steps_per_call": 5, "checkpoint_every": 5}
    signal_on_log(monkeypatch, signal.SIGTERM, step=10)
    with pytest.raises(Preempted):
        fit(PROGRAM._replace(evaluate=None), numbers(), run, **options)
    monkeypatch.undo()
    before = run.records()[-1]["seconds"]
    result = fit(PROGRAM._replace(evaluate=None), numbers(), run, **options)
    seconds = [record["seconds"] for record in run.records()]
    assert len(seconds) == 4
    assert seconds[2] > before, "the clock of the records goes on where it stopped"
    assert seconds == sorted(seconds)
    assert result.steps_per_second == pytest.approx(20 / seconds[-1])
    assert result.wall_seconds > seconds[-1], "checkpoints take time as well"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_after_the_current_call(trained, tmp_path, monkeypatch, number, code):
    reference, result, options = trained
    run, options = open_run(tmp_path), options | {"checkpoint_every": 0}
    handler = signal.getsignal(number)
    signal_on_log(monkeypatch, number, step=10)
    with pytest.raises(Preempted) as stop:
        fit(PROGRAM, numbers(), run, **options)
    monkeypatch.undo()
    assert stop.value.code == code
    assert signal.getsignal(number) == handler
    assert saved_steps(run.checkpoints) == [10]
    resumed = fit(PROGRAM, numbers(), run, **options)
    assert bits(resumed.state) == bits(result.state)
    assert records(run) == records(reference)


def test_the_second_signal_interrupts_at_once(tmp_path, monkeypatch):
    def twice(self, record):
        # To this thread: of two signals to the process the second can come before the first is handled, and is lost.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "log", twice)
    run = open_run(tmp_path)
    # A shell starts a background process with SIGINT ignored; then the second one would be ignored too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(PROGRAM._replace(evaluate=None), numbers(), run, steps=5, steps_per_call=5)
    finally:
        signal.signal(signal.SIGINT, before)
    assert saved_steps(run.checkpoints) == []


@pytest.mark.parametrize("explode_at", [1, 10, 25])
def test_nonfinite_loss_names_the_exact_step(tmp_path, explode_at):
    run = open_run(tmp_path)
    options = {"steps": 25, "steps_per_call": 10, "evaluate_every": 10, "checkpoint_every": 10}
    with pytest.raises(NonFiniteLoss, match=f"^loss is nan at step {explode_at}$"):
        fit(PROGRAM, numbers(explode_at=explode_at), run, **options)
    good = (explode_at - 1) // 10 * 10
    assert saved_steps(run.checkpoints) == list(range(10, good + 1, 10))
    assert max([0, *(record["step"] for record in run.records())]) == good
    with pytest.raises(NonFiniteLoss, match=f"^loss is nan at step {explode_at}$"):
        fit(PROGRAM, numbers(explode_at=explode_at), run, **options)


def validation_from(values):
    """An evaluation that returns one given value after another, every five steps."""
    return lambda numbers, data, state: {"loss": jnp.asarray(values, jnp.float32)[state.step // 5 - 1]}


PATIENT = {"steps": 50, "steps_per_call": 5, "evaluate_every": 5, "patience": 2}


def test_early_stopping(tmp_path):
    program = PROGRAM._replace(evaluate=validation_from([5, 4, 6, 3, 3, 7, 0, 0, 0, 0]))
    run = open_run(tmp_path)
    result = fit(program, numbers(), run, **PATIENT)
    assert result.stopped_early
    assert int(result.state.step) == 30, "two evaluations after the best at 20; an equal one is no better"
    assert (float(result.state.best.value), int(result.state.best.step)) == (3.0, 20)
    assert saved_steps(run.checkpoints) == [30]
    again = fit(program, numbers(), run, **PATIENT)
    assert (again.stopped_early, int(again.state.step)) == (True, 30)


def test_patience_is_remembered_over_a_resume(tmp_path, monkeypatch):
    program = PROGRAM._replace(evaluate=validation_from([5, 4, 3, 6, 7, 0, 0, 0, 0, 0]))
    run = open_run(tmp_path)
    signal_on_log(monkeypatch, signal.SIGTERM, step=20)
    with pytest.raises(Preempted):
        fit(program, numbers(), run, **PATIENT)
    monkeypatch.undo()
    assert saved_steps(run.checkpoints) == [20]
    result = fit(program, numbers(), run, **PATIENT)
    assert (result.stopped_early, int(result.state.step), int(result.state.best.step)) == (True, 25, 15)


def test_patience_that_runs_out_on_the_last_step_is_no_early_stop(tmp_path):
    program = PROGRAM._replace(evaluate=validation_from([1, 2, 3]))
    result = fit(program, numbers(), open_run(tmp_path), **PATIENT | {"steps": 15})
    assert (result.stopped_early, int(result.state.step)) == (False, 15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps_per_call": 0}, "steps_per_call must be at least 1, got 0"),
        ({"evaluate_every": 15}, r"evaluate_every must be a multiple of steps_per_call \(10\), got 15"),
        ({"checkpoint_every": 5}, r"checkpoint_every must be a multiple of steps_per_call \(10\), got 5"),
        ({"checkpoint_every": -10}, "checkpoint_every must be a multiple"),
        ({"patience": 2}, "patience counts evaluations.*got 2 with evaluate_every=0"),
        ({"patience": -1, "evaluate_every": 10}, "patience counts evaluations.*got -1"),
    ],
)
def test_refuses_a_schedule_that_does_not_fit(tmp_path, options, message):
    run = open_run(tmp_path)
    with pytest.raises(ValueError, match=message):
        fit(PROGRAM, numbers(), run, **{"steps": 20, "steps_per_call": 10, **options})
    assert not saved_steps(run.checkpoints)


def changed_update(**changes):
    def changed(numbers, data, state):
        new, metrics = update(numbers, data, state)
        return changes.get("state", lambda old, new: new)(state, new), changes.get("metrics", metrics)

    return PROGRAM._replace(update=changed, evaluate=None)


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        (
            PROGRAM._replace(evaluate=None),
            {"evaluate_every": 5},
            "evaluate_every is 5, but the program has no evaluate",
        ),
        (PROGRAM._replace(monitor="mae"), {}, r"evaluate must return the metric 'mae', got \['loss', 'updates'\]"),
        (changed_update(metrics={"nll": jnp.float32(1)}), {}, r"update must return the metric 'loss', got \['nll'\]"),
        (
            changed_update(metrics={"loss": jnp.float32(1), "epoch": jnp.float32(1)}),
            {},
            "update must not return a metric named 'epoch'",
        ),
        (
            changed_update(metrics={"loss": jnp.ones(3)}),
            {},
            r"update must return scalar metrics, got 'loss' of shape \(3,\)",
        ),
        (
            changed_update(state=lambda old, new: new._replace(step=old.step)),
            {},
            "update must add 1 to state.step: it is 0",
        ),
    ],
)
def test_refuses_a_program_that_breaks_the_contract(tmp_path, program, options, message):
    with pytest.raises(ValueError, match=message):
        fit(program, numbers(), open_run(tmp_path), steps=5, steps_per_call=5, **options)


def test_refuses_the_checkpoints_of_other_numbers(trained):
    run, _, options = trained
    with pytest.raises(ValueError, match="is of another training: number seed: given 1, found 0; give"):
        fit(PROGRAM, numbers(seed=1), run, **options)


# Lanes

LANES = [numbers(seed=0), numbers(seed=1, learning_rate=0.2), numbers(seed=2, explode_at=14)]


@pytest.fixture(scope="module", params=[("cpu", 1), ("gpu", 1), ("cpu", 2), ("gpu", 8)], ids=str)
def lanes(request, tmp_path_factory, trained):
    """One lane after the other, and all at once, on one device or divided over two, or three of eight."""
    platform, count = request.param
    directory = tmp_path_factory.mktemp("lanes")
    runs = [open_run(directory, name) for name in "abc"]
    _, _, options = trained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "platform", lambda tree: platform)
        return directory, runs, fit_lanes(PROGRAM, LANES, runs, devices=jax.devices()[:count], **options)


def test_a_lane_equals_its_single_run(lanes, trained, tmp_path):
    _, runs, results = lanes
    _, _, options = trained
    for lane in (0, 1):
        single = open_run(tmp_path, f"single {lane}")
        expected = fit(PROGRAM, LANES[lane], single, **options)
        assert jax.tree.structure(results[lane].state) == jax.tree.structure(expected.state)
        np.testing.assert_array_equal(
            jax.random.key_data(results[lane].state.key), jax.random.key_data(expected.state.key)
        )
        for name in ("step", "params", "carry", "best"):
            given, wanted = (jax.tree.leaves(getattr(s, name)) for s in (results[lane].state, expected.state))
            for a, b in zip(given, wanted, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5)
        for given, wanted in zip(records(runs[lane]), records(single), strict=True):
            assert given.pop("split") == wanted.pop("split")
            assert given == pytest.approx(wanted, rel=1e-5)


def test_a_lane_that_fails_leaves_the_others_alone(lanes):
    _, runs, results = lanes
    assert [result.error for result in results] == [None, None, "loss is nan at step 14"]
    assert [records(run)[-1]["step"] for run in runs] == [25, 25, 10]


def test_lanes_resume_bit_for_bit(lanes, trained, tmp_path, monkeypatch):
    _, expected_runs, expected = lanes
    _, _, options = trained
    runs = [open_run(tmp_path, name) for name in "abc"]
    crash(monkeypatch, Run, "log", lambda record: (record["step"], record["split"]) == (25, "validation"))
    with pytest.raises(StopError):
        fit_lanes(PROGRAM, LANES, runs, **options)
    monkeypatch.undo()
    assert [saved_steps(run.checkpoints) for run in runs] == [[10, 20], [10, 20], [10]], "the third lane failed"
    results = fit_lanes(PROGRAM, LANES, runs, **options)
    for lane in (0, 1):
        assert bits(results[lane].state) == bits(expected[lane].state)
    assert [records(run) for run in runs] == [records(run) for run in expected_runs]
    assert [result.error for result in results] == [result.error for result in expected]


def test_when_every_lane_fails_each_has_its_error(tmp_path):
    runs = [open_run(tmp_path, name) for name in "ab"]
    given = [numbers(explode_at=3), numbers(explode_at=12)]
    results = fit_lanes(PROGRAM, given, runs, steps=40, steps_per_call=10, checkpoint_every=10)
    assert [result.error for result in results] == ["loss is nan at step 3", "loss is nan at step 12"]
    assert [saved_steps(run.checkpoints) for run in runs] == [[], [10]]


def test_lanes_refuse_what_they_cannot_do(tmp_path):
    run = open_run(tmp_path)
    with pytest.raises(ValueError, match="cannot stop early: patience must be 0, got 2"):
        fit_lanes(PROGRAM, [numbers()], [run], **PATIENT)
    with pytest.raises(ValueError, match="one run per lane, got 2 sets of hparams and 1 runs"):
        fit_lanes(PROGRAM, [numbers(), numbers()], [run], steps=5)
    with pytest.raises(ValueError, match="one run per lane, got 0 sets of hparams and 0 runs"):
        fit_lanes(PROGRAM, [], [], steps=5)


def test_every_number_in_the_records_survives_json(trained):
    run, _, _ = trained
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(json.loads(line)["loss"]) for line in lines)
    loss = [record["loss"] for record in records(run, "validation")][-1]
    assert np.float32(loss) == loss, "nothing is rounded"


# Lanes that do not fit into memory together


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(program, "platform", lambda tree: "gpu")


def needed(count, steps_per_call=5):
    """Bytes of the program of so many lanes."""
    calls = program.Calls(PROGRAM, lanes=True, devices=jax.devices()[:1])
    return calls.needed_bytes([steps_per_call], numbers(), jax.jit(PROGRAM.init)(numbers()), count)


def test_lanes_that_do_not_fit_are_trained_in_parts_by_one_program(tmp_path, at_once, capsys, monkeypatch):
    options = {"steps": 10, "steps_per_call": 5, "evaluate_every": 5, "progress": False, "devices": jax.devices()[:1]}
    hparams = [numbers(seed=seed, explode_at=7 * (seed == 3)) for seed in range(5)]
    whole = fit_lanes(PROGRAM, hparams, [open_run(tmp_path, f"whole {i}") for i in range(5)], **options)
    assert not capsys.readouterr().err
    compiled, limit = [], needed(2)
    monkeypatch.setattr(program.Calls, "_compile", counted(program.Calls._compile, compiled))
    runs = [open_run(tmp_path, f"part {i}") for i in range(5)]
    parts = fit_lanes(PROGRAM, hparams, runs, **options, memory_bytes=limit)
    assert "they are trained in 3 parts of 2 lanes" in capsys.readouterr().err
    assert compiled.count((5, 2)) == 1
    assert compiled[-1][1] == 2, "what was tried before is larger"
    assert [result.lanes for result in parts] == [2, 2, 2, 2, 1]
    for one, other, run in zip(parts, whole, runs, strict=True):
        assert one.error == other.error
        if not one.error:
            for a, b in zip(jax.tree.leaves(one.state.params), jax.tree.leaves(other.state.params), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)
            assert [record["step"] for record in run.records() if record["split"] == "train"] == [5, 10]
    again = fit_lanes(PROGRAM, hparams[:3], runs[:3], **options, memory_bytes=needed(2))
    assert [int(result.state.step) for result in again] == [10, 10, 10]


def test_parts_of_lanes_are_divided_over_devices(tmp_path, at_once, capsys):
    """Seven lanes on three devices, of which each has room for one: three parts, the last one padded."""
    options = {"steps": 10, "steps_per_call": 5, "evaluate_every": 5, "progress": False}
    hparams = [numbers(seed=seed, explode_at=7 * (seed == 3)) for seed in range(7)]
    runs = [open_run(tmp_path, f"part {i}") for i in range(7)]
    parts = fit_lanes(PROGRAM, hparams, runs, **options, memory_bytes=needed(1), devices=jax.devices()[:3])
    assert "they are trained in 3 parts of 3 lanes" in capsys.readouterr().err
    assert [result.error for result in parts] == [None] * 3 + ["loss is nan at step 7"] + [None] * 3
    for seed in (0, 6):
        single = fit(PROGRAM, hparams[seed], open_run(tmp_path, f"single {seed}"), **options)
        for a, b in zip(jax.tree.leaves(parts[seed].state), jax.tree.leaves(single.state), strict=True):
            assert a.sharding.device_set == {jax.devices()[0]}
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_devices_do_not_talk_to_each_other():
    """There is no collective in the program of lanes on two devices."""
    calls = program.Calls(PROGRAM, lanes=True, devices=jax.devices()[:2])
    assert [calls.width(count) for count in (1, 2, 3, 5)] == [1, 2, 4, 6]
    states = [jax.jit(PROGRAM.init)(numbers(seed=seed)) for seed in range(4)]
    hparams, state = calls.joined([numbers(seed=seed) for seed in range(4)]), calls.joined(states)
    text = calls.updates(5, hparams, state).as_text()
    assert not [
        line for line in text.splitlines() if re.search(r"all-(reduce|gather|to-all)|collective|send|recv", line)
    ]
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(state)} == {2}


def counted(compile_one, compiled):
    def record(self, key, function, hparams, state):
        if key not in self._compiled:
            compiled.append((key[0], key[1] if len(key) > 1 else 1))
        return compile_one(self, key, function, hparams, state)

    return record


def test_parts_are_resumed_where_each_was(tmp_path, at_once):
    options = {"steps_per_call": 5, "checkpoint_every": 5, "progress": False}
    one = {"devices": jax.devices()[:1]}
    hparams, runs = [numbers(seed=seed) for seed in range(3)], [open_run(tmp_path, name) for name in "abc"]
    fit_lanes(PROGRAM, hparams[:2], runs[:2], steps=5, **options, **one)
    parts = fit_lanes(PROGRAM, hparams, runs, steps=10, **options, **one, memory_bytes=needed(2))
    for seed, part in enumerate(parts):
        single = fit(PROGRAM, numbers(seed=seed), open_run(tmp_path, f"single {seed}"), steps=10, **options)
        for a, b in zip(jax.tree.leaves(part.state.params), jax.tree.leaves(single.state.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_lane_that_does_not_fit_alone_is_refused_before_it_is_trained(tmp_path, at_once):
    run = open_run(tmp_path)
    with pytest.raises(MemoryError, match=r"one lane needs [\d,]+ bytes and 10 are available: take smaller batches"):
        fit_lanes(PROGRAM, [numbers(), numbers(seed=1)], [run, open_run(tmp_path, "b")], steps=5, memory_bytes=10)
    assert not list(run.records())
