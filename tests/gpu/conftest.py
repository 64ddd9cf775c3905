"""Every test here runs on the GPU where there is one, and on the emulator of `tests/emulated` where there is none."""

from collections.abc import Iterator
from typing import Any

import pytest

from hkm_dask.compute import staging
from hkm_dask.compute.backend import require_cuda
from hkm_dask.compute.block_cache import device_cache
from hkm_dask.errors import ComputeError
from tests.emulated.plugin import Emulator

try:
    require_cuda()
    HAS_GPU = True
except ComputeError:
    HAS_GPU = False


@pytest.fixture
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`cupy`, real or emulated; `HKM_DEVICE` asks for it."""
    if HAS_GPU:
        monkeypatch.setenv("HKM_DEVICE", "cuda")
        monkeypatch.setattr("hkm_dask.kmeans.search.cuda.forms.APART", False)  # a process for each shape takes its time
    else:
        request.getfixturevalue("emulated_cuda")
    import cupy

    device_cache.clear()
    monkeypatch.setattr(staging, "_most_resident", None)
    yield cupy
    device_cache.clear()


@pytest.fixture
def emulator(request: pytest.FixtureRequest, cuda: Any) -> Emulator:
    """The emulated device, to be made small."""
    if HAS_GPU:
        pytest.skip("a real device has more memory than a test should take")
    actual: Emulator = request.getfixturevalue("emulated_cuda")
    return actual


@pytest.fixture
def little_work_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is little work would stay on the host, and an emulator is slow, most of all that of a Hopper."""
    monkeypatch.setattr("hkm_dask.kmeans.search.worker._TINY_FLOPS", 1e4)
    if not HAS_GPU:
        monkeypatch.setattr("hkm_dask.kmeans.search.cuda.hopper.is_available", lambda: False)


@pytest.fixture
def trials_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms are compared on as few rows as tests have, where the first form would be taken."""
    monkeypatch.setattr("hkm_dask.kmeans.search.cuda.forms.MOST_TRIAL_ROWS", 64)
    monkeypatch.setattr("hkm_dask.kmeans.search.cuda.forms.LEAST_TRIAL_ROWS", 1)
