"""Kills, signals, broken checkpoints and write errors, with real processes.

Run as a script, this file is the small training that the tests start: `python test_train_faults.py DIRECTORY`.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.faults_of_runs import CLOCKS

STEPS, CALL = 300, 10


def main(directory: str, explode_at: int) -> None:
    """Noisy linear regression with a carried value: every field of the state matters to the result."""
    import jax
    import jax.numpy as jnp
    import optax

    from seqjax.train import Program, Run, fit, initial_state

    optimizer = optax.adam(0.01)

    def init(numbers):
        key = jax.random.key(numbers["seed"])
        params = {"w": jax.random.normal(key, (64, 8)), "b": jnp.zeros(8)}
        return initial_state(key, params, optimizer.init(params), carry=jnp.zeros(8))

    def loss(params, data, noise):
        x, y = data
        return jnp.mean((jnp.tanh((x + noise) @ params["w"] + params["b"]) - y) ** 2)

    def update(numbers, data, state):
        noise = jax.random.normal(jax.random.fold_in(state.key, state.step), data[0].shape)
        value, grads = jax.value_and_grad(loss)(state.params, data, noise + jnp.mean(state.carry))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": jnp.where(state.step + 1 == numbers["explode_at"], jnp.nan, value)}
        carry = 0.9 * state.carry + params["b"]
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state, carry=carry), metrics

    def evaluate(numbers, data, state):
        return {"loss": loss(state.params, data, jnp.zeros_like(data[0]))}

    data = (jax.random.normal(jax.random.key(1), (32, 64)), jax.random.normal(jax.random.key(2), (32, 8)))
    numbers = {"seed": jnp.int32(0), "explode_at": jnp.int32(explode_at)}
    run = Run.open(directory, {"seed": 0, "explode_at": explode_at})
    if run.finished:
        print("already finished")
        return
    program = Program(init, update, evaluate, data, steps_per_epoch=40)
    fitted = fit(
        program, numbers, run, steps=STEPS, steps_per_call=CALL, evaluate_every=2 * CALL, checkpoint_every=CALL
    )
    weights = jax.device_get((fitted.state.params, fitted.state.best, fitted.state.carry))
    run.finish(
        {
            "weights": [leaf.tolist() for leaf in jax.tree.leaves(weights)],
            **{name: getattr(fitted, name) for name in CLOCKS if hasattr(fitted, name)},
        }
    )


def start(directory: Path, explode_at: int = 0) -> subprocess.Popen:
    command = [sys.executable, __file__, str(directory), str(explode_at)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def outcome(directory: Path) -> tuple[dict, list[dict]]:
    """The result and the records of a run, without what a clock or the machine decides."""
    result = json.loads((directory / "result.json").read_text())
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return tuple(
        [{name: value for name, value in entry.items() if name not in CLOCKS} for entry in entries]
        for entries in ([result], records)
    )


def wait_for_step(directory: Path, step: int) -> None:
    """Until the run has a checkpoint at or after `step`."""
    deadline = time.monotonic() + 120
    while not any(step <= n for n in checkpoint_steps(directory)):
        assert time.monotonic() < deadline, "the training did not get there in time"
        time.sleep(0.005)


def checkpoint_steps(directory: Path) -> list[int]:
    if not (directory / "checkpoints").exists():
        return []
    return sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "uninterrupted"
    code, _, err = finish(start(directory))
    assert code == 0, err
    return directory


@pytest.fixture(scope="module")
def preempted(tmp_path_factory) -> Path:
    """A run that got SIGTERM half way."""
    directory = tmp_path_factory.mktemp("runs") / "preempted"
    process = start(directory)
    wait_for_step(directory, STEPS // 3)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 143, err
    assert not (directory / "result.json").exists()
    return directory


def kill_and_resume(directory: Path, kills: int) -> list[float]:
    """Kills the run `kills` times at random moments, then lets it end.

    Every other kill may come as early as the start of the process, while it imports, restores or compiles; the ones
    between come after a new checkpoint, so that the run gets on, and mostly while the next one is written.
    """
    delays = []
    for kill in range(kills):
        step = max([0, *checkpoint_steps(directory)])
        process = start(directory)
        if kill % 2 == 0:
            wait_for_step(directory, min(step + CALL, STEPS - CALL))
        delays.append(random.uniform(0, 0.6 / kills if kill % 2 == 0 else 0.8))
        time.sleep(delays[-1])
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL, "finished before the kill: make STEPS larger"
    code, _, err = finish(start(directory))
    assert code == 0, err
    return delays


def test_a_finished_run_returns_its_result_without_training(uninterrupted):
    before = {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()}
    code, out, err = finish(start(uninterrupted))
    assert (code, out) == (0, "already finished\n"), err
    assert before == {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()}


def test_killed_three_times_ends_bit_for_bit_equal(uninterrupted, tmp_path):
    delays = kill_and_resume(tmp_path / "run", kills=3)
    assert outcome(tmp_path / "run") == outcome(uninterrupted), delays


@pytest.mark.slow
def test_killed_ten_times_ends_bit_for_bit_equal(uninterrupted, tmp_path):
    delays = kill_and_resume(tmp_path / "run", kills=10)
    assert outcome(tmp_path / "run") == outcome(uninterrupted), delays


def test_sigterm_saves_and_the_resumed_run_ends_equal(uninterrupted, preempted, tmp_path):
    step = checkpoint_steps(preempted)[-1]
    records = [json.loads(line) for line in (preempted / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == step, "the checkpoint is of the last call"
    shutil.copytree(preempted, tmp_path / "run")
    code, _, err = finish(start(tmp_path / "run"))
    assert code == 0, err
    assert "WARNING" not in err
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_corrupt_latest_checkpoint_falls_back_loudly_and_ends_equal(uninterrupted, preempted, tmp_path):
    shutil.copytree(preempted, tmp_path / "run")
    latest = checkpoint_steps(preempted)[-1]
    for path in (tmp_path / "run" / "checkpoints" / str(latest)).rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": ')
    code, _, err = finish(start(tmp_path / "run"))
    assert code == 0, err
    assert f"WARNING: skipping corrupt checkpoint of step {latest}" in err
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_all_checkpoints_corrupt_is_an_error_not_a_restart(preempted, tmp_path):
    shutil.copytree(preempted, tmp_path / "run")
    steps = checkpoint_steps(preempted)
    for path in (tmp_path / "run" / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"garbage")
    code, _, err = finish(start(tmp_path / "run"))
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("ValueError: no checkpoint in ")
    assert all(f"step {step}: " in last for step in steps)
    assert checkpoint_steps(tmp_path / "run") == steps, "nothing is thrown away"


def test_nonfinite_loss_names_the_step_and_keeps_the_last_good_checkpoint(uninterrupted, tmp_path):
    code, _, err = finish(start(tmp_path / "run", explode_at=57))
    assert code == 1
    assert err.splitlines()[-1].endswith("NonFiniteLoss: loss is nan at step 57")
    assert checkpoint_steps(tmp_path / "run")[-1] == 50
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 50
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_a_full_disk_names_the_checkpoint_and_the_run_goes_on_when_there_is_room(uninterrupted, preempted, tmp_path):
    # A limit on the size of a file, which a new process inherits, stands in for the full disk: the kernel refuses.
    run = shutil.copytree(preempted, tmp_path / "run")
    steps = checkpoint_steps(run)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited[1]))
    try:
        process = start(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    code, _, err = finish(process)
    assert code == 1
    assert f"OSError: checkpoint of step {steps[-1] + CALL} could not be written to {run}/checkpoints: " in err, err
    assert checkpoint_steps(run) == steps
    code, _, err = finish(start(run))
    assert code == 0, err
    assert outcome(run) == outcome(uninterrupted)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
