"""Fixtures and options for all tests."""

import gc
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from _pytest.doctest import DoctestModule
from hypothesis import settings

import tests.disk  # replaces os.fsync
import tests.threads  # noqa: F401 before NumPy
from tests.browser import chromium, open_page
from tests.emulated.plugin import built_kernels, emulated_cuda
from tests.forked import fork_workers
from tests.kernels import compile_share
from tests.object_store import bucket, object_store
from tests.order import longest_first
from tests.runners import in_parts, runner
from tests.threads import two_blas_threads

__all__ = [
    "bucket", "built_kernels", "chromium", "emulated_cuda", "in_parts", "object_store", "open_page", "runner",
    "two_blas_threads",
]  # fmt: skip

# No deadline, because the first call of a compiled kernel takes seconds.
settings.register_profile("slow", deadline=None, print_blob=True)
settings.register_profile("quick", settings.get_profile("slow"), max_examples=50)

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("slow" if config.getoption("--slow") else "quick")
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):  # else others run tests
        fork_workers()
    else:
        config.option.loadscopereorder = False  # they are sorted already


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow, which take minutes")
    parser.addoption(
        "--emulate-cuda", action="store_true", help="compute on an emulated GPU; for a few files at a time"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # scikit-learn's array-API check skips itself unless an experimental option is set, so it would test nothing.
    idle = [item for item in items if "array_api" in item.nodeid and not os.environ.get("SCIPY_ARRAY_API")]
    items[:] = [item for item in items if item not in idle]
    config.hook.pytest_deselected(items=idle)
    if hasattr(config, "workerinput"):
        longest_first(items)
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="takes minutes; run `pytest --slow`")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and (missing := _no_gpu()):
        skip = pytest.mark.skip(reason=f"{missing}; run on a CUDA machine after `pip install -e '.[test,cuda13]'`")
        for item in on_gpu:
            item.add_marker(skip)


def _no_gpu() -> str | None:
    """Return why GPU tests cannot run here, or None if they can."""
    try:
        import cupy
    except ImportError:
        return "needs CuPy"
    try:
        n_devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:  # no driver
        n_devices = 0
    return None if n_devices else "needs a CUDA GPU"


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Skip the doctests of test files, which have none: looking for them takes every process seconds."""
    return [file for file in (yield) if type(file) is not DoctestModule]


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Return one process more than processors, because tests wait for processes, servers and clocks."""
    told = "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ
    return (yield) + (not told)


# Collection creates half a million permanent objects, whose repeated garbage collection takes a tenth of all time.
# Garbage collection of the objects that tests create, at Python's default rate, takes another twentieth.
@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
        gc.enable()


def pytest_collection_finish(session: pytest.Session) -> None:
    if worker := getattr(session.config, "workerinput", None):
        compile_share(int(worker["workerid"].removeprefix("gw")), worker["workercount"])


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return a function that returns the path of a real data file, or skips the test if the file does not exist."""

    def find(name: str) -> Path:
        path = REAL_DATA / name
        if not path.is_file():
            pytest.skip(f"needs the data file {name} in ../shared/data beside the checkout")
        return path

    return find


@pytest.fixture(autouse=True)
def _on_an_emulated_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With --emulate-cuda, compute even small work on the emulated GPU, one task after the other."""
    if not request.config.getoption("--emulate-cuda"):
        yield
        return
    from hkm_dask.compute import runner
    from hkm_dask.compute.block_cache import device_cache

    request.getfixturevalue("emulated_cuda")
    monkeypatch.setattr("hkm_dask.search.worker._TINY_FLOPS", 0)
    monkeypatch.setattr("hkm_dask.search.cuda.forms.MOST_TRIAL_ROWS", 64)
    monkeypatch.setattr("hkm_dask.search.cuda.forms.LEAST_TRIAL_ROWS", 1)
    monkeypatch.setattr("hkm_dask.search.cuda.hopper.is_available", lambda: False)
    run_task = runner.run_task
    monkeypatch.setattr(
        runner.Runner, "map", lambda _, task, items, *, stage, takes=None: [run_task(task, i) for i in items]
    )
    yield
    device_cache.clear()
