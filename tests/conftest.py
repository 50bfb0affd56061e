"""Strict promotion for every test: a silent cast or broadcast in the library is an error."""

import gc
import os
import shutil
import signal
from pathlib import Path

# Nothing is read from the user's cache or written there, by the processes that tests start either.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
# The tests compile a hundred cells in C++ and run each for a moment.
if "CXX" not in os.environ and shutil.which("c++"):
    os.environ["CXX"] = "c++ -O1"
# Of the source tree only seqjax is installed; what tests start needs the rest as well.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)
# A shell starts a background process with SIGINT ignored, nohup with SIGHUP; what tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import jax
import pytest

from seqjax.solvers import choice

# Tracing makes many objects, few of them garbage: looking for it less often saves a tenth of the time.
gc.set_threshold(100_000, 50, 1000)
jax.config.update("jax_num_cpu_devices", 8)  # for what is tested on a mesh; everything else runs on the first
# The tests compile much and compute little: without XLA's optimizations they take half the time. What they start in
# other processes is compiled as users compile it. In `make test-slow` only
# `agree.compiled` and `quick_programs` still leave optimizations out.
if not os.environ.get("SEQJAX_TESTS_OPTIMIZED"):
    with pytest.MonkeyPatch.context() as patch:
        quick = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
        if jax.__version_info__ < (0, 12):  # later ones do not know this flag, and end the process
            quick += " --xla_cpu_use_fusion_emitters=false"
        patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {quick}")
        jax.devices()  # reads the flags
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def clear_caches():
    """Frees the programs of a module: gigabytes, and slow to search for garbage, by the end of all modules."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("SEQJAX_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no data at {path}; set SEQJAX_DATA to the folder of the data sets")
    return path


@pytest.fixture(scope="module")
def quick_programs():
    """Programs that compile fast and run slowly, none of them in C++: for what is the same by any compiler."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqjax.solvers.native.compiler", lambda: None)
        patch.setattr("seqjax.solvers.dispatch.choose", lambda platform, *args: choice.choose("cpu", *args))
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def x64():
    """Run one test with 64-bit types."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="compares with Keras, which is not installed")
    if keras.config.backend() != "jax":
        pytest.skip(f"compares with Keras on JAX, but its backend is {keras.config.backend()}")
    return keras


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
