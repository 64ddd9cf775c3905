"""All tests here run on a GPU if there is one, otherwise on the emulator of `tests/emulated`."""

from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from hkm_dask.compute import staging
from hkm_dask.compute.backend import require_cuda
from hkm_dask.compute.block_cache import device_cache
from hkm_dask.errors import ComputeError
from hkm_dask.search.cuda import check as cuda_check
from hkm_dask.search.cuda import forms as cuda_forms
from hkm_dask.search.cuda import kernels as cuda_kernels
from pipelines.gpu import compiled
from tests.emulated.plugin import Emulator

_fault = cuda_forms._fault  # which the emulator leaves out

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
        monkeypatch.setattr("hkm_dask.search.cuda.forms.APART", False)  # a process for each shape takes its time
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
def checked(cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forms are checked, in this process, and nothing is known of them."""
    monkeypatch.setattr(cuda_forms, "_fault", _fault)
    monkeypatch.setattr(cuda_forms, "APART", False)
    monkeypatch.setattr(cuda_forms, "_faults", {})
    monkeypatch.setattr(cuda_forms, "_begun", {})
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cupy"))
    monkeypatch.setattr(cuda_check, "_N_STEPS", 1)  # an emulator is slow
    monkeypatch.setattr(cuda_check, "_N_COPIES", 700)


@pytest.fixture
def little_work_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is little work would stay on the host, and an emulator is slow, most of all that of a Hopper."""
    monkeypatch.setattr("hkm_dask.search.worker._TINY_FLOPS", 1e4)
    if not HAS_GPU:
        monkeypatch.setattr("hkm_dask.search.cuda.hopper.is_available", lambda: False)


@pytest.fixture
def trials_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms are compared on as few rows as tests have, where the first form would be taken."""
    monkeypatch.setattr("hkm_dask.search.cuda.forms.MOST_TRIAL_ROWS", 64)
    monkeypatch.setattr("hkm_dask.search.cuda.forms.LEAST_TRIAL_ROWS", 1)


@pytest.fixture
def compile_once(pytestconfig: pytest.Config, tmp_path: Path) -> Callable[..., tuple[list[compiled.Compiled], str]]:
    """Compile kernels by nvcc, and give what it says of them and their PTX; what it said of the same source is kept."""

    def compile_for(architecture: str, half: bool = True) -> tuple[list[compiled.Compiled], str]:
        sources = [cuda_kernels.source(files) for files in (cuda_kernels.FILES, cuda_kernels.HOPPER_FILES)]
        tools = [
            Path(compiled.__file__).read_text(encoding="utf-8"),
            compiled.compiler_version(),
            compiled.disassembler(),
        ]
        key = f"nvcc/{sha256(repr([*sources, *tools, architecture, half]).encode()).hexdigest()}"
        made = pytestconfig.cache.get(key, None) if hasattr(pytestconfig, "cache") else None
        if made is None:
            kernels = compiled.compile_for(architecture, half=half, folder=tmp_path)
            made = {"kernels": [vars(one) for one in kernels], "ptx": (tmp_path / "kernels.ptx").read_text()}
            if hasattr(pytestconfig, "cache"):
                pytestconfig.cache.set(key, made)
        kernels = [
            compiled.Compiled(**{**one, "instructions": Counter(one["instructions"])}) for one in made["kernels"]
        ]
        return kernels, made["ptx"]

    return compile_for
