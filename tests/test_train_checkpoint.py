import asyncio
import gc
import os
import resource
import shutil
import subprocess
import sys
from contextlib import closing, contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.train import State, initial_state
from seqjax.train.checkpoint import Checkpoints
from seqjax.train.leaves import fingerprints

# Where a read fails, Orbax leaves coroutines and callbacks behind, and Python warns when it collects them.
pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

META = {"errors": [None], "seconds": 0.1 + 0.2}


@pytest.fixture(autouse=True)
def collect():
    yield
    gc.collect()


def state_at(step: int) -> State:
    key = jax.random.key(7)
    params = {"w": jax.random.normal(jax.random.fold_in(key, step), (40, 3)), "half": jnp.ones(3, jnp.bfloat16)}
    state = initial_state(key, params, opt_state=(jnp.zeros(3), ()), carry={"h": jnp.full(2, jnp.nan)})
    return state._replace(step=jnp.int32(step))


def assert_same_bits(given: State, expected: State) -> None:
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    assert given.key.dtype == expected.key.dtype, "a typed key stays one"
    for a, b in zip(
        *(jax.tree.leaves(s._replace(key=jax.random.key_data(s.key))) for s in (given, expected)), strict=True
    ):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 10 and 20."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with closing(Checkpoints(directory)) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state_at(step), META)
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def restore(directory):
    with closing(Checkpoints(directory)) as checkpoints:
        return checkpoints.restore(state_at(0)), checkpoints.steps()


def test_restores_the_newest_bit_for_bit(saved):
    (state, meta), _ = restore(saved)
    assert_same_bits(state, state_at(20))
    assert meta == META


def test_nothing_saved_is_none(tmp_path):
    assert restore(tmp_path / "checkpoints") == (None, [])


def test_keeps_three(copy):
    with closing(Checkpoints(copy)) as checkpoints:
        for step in (30, 40):
            checkpoints.save(step, state_at(step), META)
    assert restore(copy)[1] == [20, 30, 40]


def test_half_written_checkpoints_are_removed(copy):
    shutil.copytree(copy / "20", copy / "30.orbax-checkpoint-tmp")
    (state, _), steps = restore(copy)
    assert_same_bits(state, state_at(20))
    assert steps == [10, 20]
    with closing(Checkpoints(copy)) as checkpoints:
        checkpoints.save(30, state_at(30), META)
    assert sorted(path.name for path in copy.iterdir()) == ["10", "20", "30"]


def damage_truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def damage_garbage(path):
    path.write_bytes(b"\x00garbage" * 50)


def damage_delete(path):
    path.unlink()


@pytest.mark.parametrize("damage", [damage_truncate, damage_garbage, damage_delete])
@pytest.mark.parametrize("item", ["state", "meta"])
def test_falls_back_loudly(copy, capsys, damage, item):
    for path in (copy / "20" / item).rglob("*"):
        if path.is_file():
            damage(path)
    (state, _), steps = restore(copy)
    assert_same_bits(state, state_at(10))
    assert steps == [10], "the corrupt one is removed, or it could not be written again"
    warning = capsys.readouterr().err
    assert warning.startswith(f"WARNING: skipping corrupt checkpoint of step 20, {copy / '20'}: ")
    assert warning.split(": ", 2)[2].strip(), "a reason is given"


def test_a_missing_item_falls_back_loudly(copy, capsys):
    shutil.rmtree(copy / "20" / "state")
    (state, _), _ = restore(copy)
    assert_same_bits(state, state_at(10))
    assert "step 20" in capsys.readouterr().err


def test_no_flipped_byte_goes_unnoticed(copy, saved, capsys):
    """Wherever one byte of the newest checkpoint is wrong, a sound state comes back: that one or the one before."""
    fallbacks = 0
    random = np.random.default_rng(0)
    for path in sorted(path for path in (copy / "20").rglob("*") if path.is_file()):
        content = path.read_bytes()
        for position in random.integers(0, len(content), 3):
            damaged = bytearray(content)
            damaged[position] ^= 0x10
            path.write_bytes(damaged)
            (state, meta), steps = restore(copy)
            assert_same_bits(state, state_at(steps[-1]))
            assert meta == META
            if steps == [10]:
                fallbacks += 1
                shutil.copytree(saved / "20", copy / "20")
            path.write_bytes(content)
    assert fallbacks > 10, "the test did reach bytes that matter"


def test_values_changed_behind_a_valid_format_are_noticed(copy, capsys):
    shutil.rmtree(copy / "20" / "state")
    shutil.copytree(copy / "10" / "state", copy / "20" / "state")
    (state, _), _ = restore(copy)
    assert_same_bits(state, state_at(10))
    assert "does not match its digest" in capsys.readouterr().err


def test_a_checkpoint_of_another_origin_is_refused_and_kept(tmp_path):
    """A sound checkpoint that a training does not continue is neither corrupt nor passed over."""
    with closing(Checkpoints(tmp_path, {"seed": 0, "lanes": (1, 2)})) as checkpoints:
        checkpoints.save(10, state_at(10), META)
        assert checkpoints.restore(state_at(0)) is not None, "a tuple is a list in JSON"
    with (
        closing(Checkpoints(tmp_path, {"seed": 1, "lanes": (1, 2), "data": "int32[3] ab"})) as checkpoints,
        pytest.raises(
            ValueError, match=r"step 10 .* data: given 'int32.*, found .*; seed: given 1, found 0; give what"
        ),
    ):
        checkpoints.restore(state_at(0))
    assert [path.name for path in tmp_path.iterdir()] == ["10"]


def test_fingerprints_tell_every_byte_apart():
    tree = {
        "x": np.arange(4, dtype=np.int32),
        "key": jax.random.key(0),
        "y": [jnp.ones((), jnp.bfloat16), np.zeros((0, 3))],
    }
    found = fingerprints(tree)
    assert [value.rpartition(" ")[0] for value in found.values()] == [
        "key<fry>[]",
        "int32[4]",
        "bfloat16[]",
        "float64[0, 3]",
    ]
    assert fingerprints(tree) == found
    changed = {**tree, "x": np.array([0, 1, 3, 2], np.int32), "key": jax.random.key(1)}
    assert {path for path, value in fingerprints(changed).items() if value != found[path]} == {"['x']", "['key']"}
    assert fingerprints({"x": np.zeros(4, np.int32)}) != fingerprints({"x": np.zeros(4, np.float32)})


def test_all_corrupt_is_an_error_and_removes_nothing(copy):
    for path in copy.rglob("*"):
        if path.is_file():
            damage_truncate(path)
    before = sorted(copy.rglob("*"))
    with (
        closing(Checkpoints(copy)) as checkpoints,
        pytest.raises(
            ValueError, match=r"no checkpoint in .* can be read \(step 20: .*; step 10: .*\); remove this directory"
        ),
    ):
        checkpoints.restore(state_at(0))
    assert sorted(copy.rglob("*")) == before


def test_a_state_of_another_shape_is_refused(copy):
    other = state_at(0)
    other = other._replace(params=other.params | {"w": jnp.zeros((41, 3))})
    with (
        closing(Checkpoints(copy)) as checkpoints,
        pytest.raises(
            ValueError,
            match=r"is of a state of other shapes: .params\['w'\]: given 'float32\[41, 3\]', found 'float32\[40, 3\]'",
        ),
    ):
        checkpoints.restore(other)


FULL = """
import sys
import jax
from seqjax.train.checkpoint import Checkpoints
try:
    Checkpoints(sys.argv[1]).save(1, {"w": jax.random.normal(jax.random.key(0), (1000, 100))}, {})
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_said_in_one_line(tmp_path):
    """Among the tracebacks of Orbax's own threads nobody would find it."""
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    (tmp_path / "full.py").write_text(FULL)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f"mount -t tmpfs -o size=128k none {disk} && {sys.executable} {tmp_path / 'full.py'} {disk}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mounted], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"checkpoint of step 1 could not be written to {disk}: ")
    assert done.stderr == ""


@contextmanager
def full_disk(size: int):
    """The kernel refuses to write beyond `size` bytes of any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_error_in_a_task_of_orbax_is_raised_and_not_logged_beside(caplog):
    async def failed(path):
        code = compile("async def serialize():\n    raise ValueError('no space')\n", path, "exec")
        exec(code, scope := {})
        task = asyncio.ensure_future(scope["serialize"]())
        await asyncio.wait([task])

    asyncio.run(failed("/lib/orbax/checkpoint/serialization.py"))
    gc.collect()
    assert caplog.text == ""
    asyncio.run(failed("/lib/another.py"))
    gc.collect()
    assert "Task exception was never retrieved" in caplog.text


def test_a_full_disk_names_the_step_and_keeps_the_older_ones(copy):
    with (
        closing(Checkpoints(copy)) as checkpoints,
        full_disk(100),
        pytest.raises(OSError, match=r"checkpoint of step 30 could not be written to .*checkpoints"),
    ):
        checkpoints.save(30, state_at(30), META)
    (state, _), steps = restore(copy)
    assert_same_bits(state, state_at(20))
    assert steps == [10, 20]
    with closing(Checkpoints(copy)) as checkpoints:
        checkpoints.save(30, state_at(30), META)
    assert_same_bits(restore(copy)[0][0], state_at(30))
