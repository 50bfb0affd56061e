"""Trained params: one file of one format, saved by every training, checked when it is read."""

import json
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.train import Program, Run, fit, fit_lanes, initial_state


class Layer(NamedTuple):
    w: jax.Array
    b: jax.Array


PARAMS = {
    "layers": [{"w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "none": None}, {}],
    "by_number": {0: (jnp.ones((), jnp.int32), jnp.zeros((0, 2)))},
    "half": jnp.asarray([1.5, jnp.nan, -jnp.inf], jnp.bfloat16),
    "about": jnp.array([True, False]),
}


def saved(directory, params=PARAMS, flags=None) -> Run:
    """A run that has trained these params and was closed."""
    run = Run.open(directory, flags or {"units": 2})
    run.save_params(params)
    run.close()
    return Run.read(directory)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("params", [PARAMS, {}, jnp.ones(3)], ids=["tree", "empty", "array"])
def test_params_come_back_bit_for_bit(tmp_path, params):
    run = saved(tmp_path / "run", params)
    assert_same(run.params(), params)
    assert_same(run.load_params(params), params)
    assert_same(run.load_params(jax.eval_shape(lambda: params)), params)


def test_the_file_names_each_array_by_its_path(tmp_path):
    with np.load(saved(tmp_path / "run").directory / "params.npz") as file:
        assert set(file) == {"about", "['about']", "['by_number'][0][0]", "['by_number'][0][1]"} | {
            "['half']",
            "['layers'][0]['w']",
        }
        np.testing.assert_array_equal(file["['layers'][0]['w']"], PARAMS["layers"][0]["w"])


def test_a_class_needs_a_tree_like_it(tmp_path):
    params = {"head": Layer(jnp.ones((2, 3)), jnp.zeros(3))}
    run = saved(tmp_path / "run", params)
    assert_same(run.load_params(params), params)
    with pytest.raises(ValueError, match=r"params\.npz holds a Layer, which .*: use Run\.load_params\(like\)"):
        run.params()


def with_w(w):
    return {**PARAMS, "layers": [{"w": w, "none": None}, {}]}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (with_w(jnp.zeros((2, 4))), r"\['layers'\]\[0\]\['w'\]: given 'float32\[2, 4\]', found 'float32\[2, 3\]'"),
        (
            with_w(jnp.zeros((2, 3), jnp.float16)),
            r"\['layers'\]\[0\]\['w'\]: given 'float16\[2, 3\]', found 'float32\[2, 3\]'",
        ),
        ({**PARAMS, "more": jnp.zeros(1)}, r"\['more'\]: given 'float32\[1\]', found '\(no such name\)'"),
        ({**PARAMS, "half": ()}, r"\['half'\]: given '\(no such name\)', found 'bfloat16\[3\]'"),
    ],
    ids=["shape", "dtype", "missing", "left over"],
)
def test_params_of_another_model_are_refused(tmp_path, like, message):
    run = saved(tmp_path / "run")
    with pytest.raises(
        ValueError, match=rf"params\.npz holds params of another model: {message}; build the model with"
    ):
        run.load_params(like)


def test_missing_params_are_named_with_the_cure(tmp_path):
    run = Run.open(tmp_path / "run", {})
    for load in (run.params, lambda: run.load_params(PARAMS)):
        with pytest.raises(FileNotFoundError, match=r"run holds no trained params: params\.npz is missing, .*; resume"):
            load()


def test_no_flipped_byte_goes_unnoticed(tmp_path):
    run = saved(tmp_path / "run")
    file = run.directory / "params.npz"
    content = file.read_bytes()
    refused = []
    for position in np.random.default_rng(0).integers(0, len(content), 200):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        file.write_bytes(damaged)
        try:
            assert_same(run.params(), PARAMS)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 50, "the test did reach bytes that matter"
    assert all(message.startswith(str(file)) and "\n" not in message for message in refused)


def test_an_array_that_was_exchanged_is_noticed(tmp_path):
    run = saved(tmp_path / "run")
    file = run.directory / "params.npz"
    with np.load(file) as opened:
        arrays = dict(opened)
    arrays["['layers'][0]['w']"] = arrays["['layers'][0]['w']"] + 1
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match=r"params\.npz is damaged: its content does not match its digest"):
        run.params()


@pytest.mark.parametrize("content", [b"", b"no npz", None], ids=["empty", "text", "other arrays"])
def test_a_file_that_is_no_params_is_refused(tmp_path, content):
    run = saved(tmp_path / "run")
    file = run.directory / "params.npz"
    if content is None:
        np.savez(file, w=np.ones(3))
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"params\.npz: damaged"):
        run.params()


def test_what_is_no_array_is_refused_and_the_old_file_stays(tmp_path):
    run = Run.open(tmp_path / "run", {})
    run.save_params(PARAMS)
    for bad, kind in ((1.0, "float"), (jax.random.key(0), r"key<fry>\[\]")):
        with pytest.raises(TypeError, match=rf"params\['w'\] is of type {kind}, expected an array of numbers"):
            run.save_params({"w": bad})
    assert_same(run.params(), PARAMS)


def test_a_run_that_is_not_open_is_not_written_to(tmp_path):
    with pytest.raises(ValueError, match="not open to be written"):
        saved(tmp_path / "run").save_params(PARAMS)


def test_float64_is_not_rounded_without_a_word(tmp_path):
    with jax.enable_x64(True):
        run = saved(tmp_path / "run", {"w": jnp.ones(2, jnp.float64)})
        assert run.params()["w"].dtype == jnp.float64
    with pytest.raises(ValueError, match=r"\['w'\] is float64\[2\], which JAX reads as float32\[2\]; enable 64-bit"):
        run.params()


def bowl(evaluate) -> Program:
    """Adds 1 to w at every step; the loss is the distance to 2."""

    def init(hparams):
        return initial_state(jax.random.key(0), {"w": hparams["start"]}, ())

    def update(hparams, data, state):
        params = {"w": state.params["w"] + 1}
        return state._replace(step=state.step + 1, params=params), {"loss": params["w"]}

    def score(hparams, data, state):
        return {"loss": jnp.abs(state.params["w"] - 2)}

    return Program(init, update, score if evaluate else None, ())


OPTIONS = {"steps": 4, "steps_per_call": 1, "progress": False}


@pytest.mark.parametrize(("evaluate", "expected"), [(True, 2.0), (False, 4.0)], ids=["best", "last"])
def test_fit_saves_the_best_params_or_without_evaluation_the_last(tmp_path, evaluate, expected):
    run = Run.open(tmp_path / "run", {})
    fit(bowl(evaluate), {"start": jnp.float32(0)}, run, evaluate_every=int(evaluate), **OPTIONS)
    assert run.params() == {"w": expected}


def test_every_lane_that_did_not_fail_saves_its_own(tmp_path):
    runs = [Run.open(tmp_path / str(i), {"i": i}) for i in range(3)]
    starts = [{"start": jnp.float32(start)} for start in (0, jnp.nan, 1)]
    fit_lanes(bowl(True), starts, runs, evaluate_every=1, **OPTIONS)
    assert [run.params()["w"].item() for run in (runs[0], runs[2])] == [2.0, 2.0]
    assert not (runs[1].directory / "params.npz").exists()


def test_a_run_that_resumes_after_its_end_saves_the_same_bytes(tmp_path):
    run = Run.open(tmp_path / "run", {})
    fit(bowl(True), {"start": jnp.float32(0)}, run, evaluate_every=1, **OPTIONS)
    run.close()
    file = run.directory / "params.npz"
    before = file.read_bytes()
    file.unlink()
    shutil.rmtree(run.figures)
    run = Run.open(tmp_path / "run", {})
    fit(bowl(True), {"start": jnp.float32(0)}, run, evaluate_every=1, **OPTIONS)
    assert file.read_bytes() == before
    assert json.loads((run.directory / "config.json").read_text())["flags"] == {}
