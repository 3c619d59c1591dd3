"""Run the package's shape annotations as checks in every test (beartype), draw plots without a screen, and compile
quickly, and a program once for all tests, workers and subprocesses of a session; so with what jaxdiff itself keeps."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers inherit it from the process that starts them
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxdiff-tests-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
if "JAXDIFF_CACHE" not in os.environ:
    os.environ["JAXDIFF_CACHE"] = tempfile.mkdtemp(prefix="jaxdiff-tests-")
    atexit.register(shutil.rmtree, os.environ["JAXDIFF_CACHE"], ignore_errors=True)
os.environ["NUMBA_CACHE_DIR"] = os.path.join(  # librosa's: two workers that write one cache can crash on it
    os.environ["JAX_COMPILATION_CACHE_DIR"], "numba-" + os.environ.get("PYTEST_XDIST_WORKER", "alone")
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # most of a test's time is compiling; 0 runs what users do
if version("jaxlib").startswith("0.10."):  # XLA's flags change, and one that it does not know ends the process
    _flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"  # a third less compiling
    os.environ["XLA_FLAGS"] = f"{_flags} {os.environ.get('XLA_FLAGS', '')}"
os.environ.setdefault("NUMBA_OPT", "0")  # librosa's functions too
os.environ.setdefault("MPLBACKEND", "Agg")
gc.set_threshold(50_000)  # passes over all that JAX keeps take a twentieth of the time at Python's 700
sys.path.insert(0, str(Path(__file__).parent))  # so that oracles.py and annotations.py are found under any import mode
install_import_hook(["jaxdiff.features", "jaxdiff.networks", "jaxdiff.diffusion"], "annotations.checked")


def pytest_collection_finish():
    """Modules and tests stay to the end: the collector need not walk through them again. And JAX makes an MLIR context
    for every program that it lowers, a twelfth of these tests' time: here some programs share one."""
    gc.freeze()
    from jax._src.interpreters import mlir

    if (make := getattr(mlir, "make_ir_context", None)) is None:
        return
    shared = []

    def context():
        if not shared:
            shared.extend([make()] * _PROGRAMS)
        return shared.pop()

    mlir.make_ir_context = context


def pytest_sessionfinish():
    """What is left goes with the process: pytest collects five times at the end, through all that JAX keeps."""
    gc.freeze()


_PROGRAMS = 200  # that share a context, which keeps what they name


@pytest.fixture(scope="module")
def optimised():
    """For tests whose time goes into computing, or whose numbers are as exact as what users run: compiled as theirs."""
    import jax  # not before the variables above are set

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()
        yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()
