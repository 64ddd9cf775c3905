"""The fixture `emulated_cuda`: in tests that use it, `import cupy` imports the emulated CuPy."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

from hkm_dask.search.cuda import hopper as cuda_hopper
from tests.emulated import arrays, kernels, memory, runtime, streams, tensor_maps


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name, "Emulated on the CPU.")
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(contents)
    return module


def _make_modules() -> dict[str, ModuleType]:
    """Create the modules that replace CuPy's, by name."""
    cublas = _module(
        "cupy_backends.cuda.libs.cublas",
        gemmEx=runtime.gemm_ex,
        CUBLAS_OP_N=0, CUBLAS_OP_T=1, CUBLAS_OP_C=2, CUBLAS_GEMM_DEFAULT=-1, CUBLAS_GEMM_DEFAULT_TENSOR_OP=99,
        CUBLAS_COMPUTE_32F=68, CUBLAS_COMPUTE_32F_PEDANTIC=69, CUBLAS_COMPUTE_64F=70,
        CUBLAS_COMPUTE_32F_FAST_TF32=77, CUBLAS_POINTER_MODE_HOST=0, CUBLAS_POINTER_MODE_DEVICE=1,
        getVersion=lambda handle: 130000, getPointerMode=lambda handle: 0, setPointerMode=lambda handle, mode: None,
    )  # fmt: skip
    cuda_runtime = _module(
        "cupy_backends.cuda.api.runtime",
        CUDARuntimeError=runtime.CUDARuntimeError, getDeviceCount=runtime.device_count, getDevice=lambda: 0,
        setDevice=runtime.set_device, memGetInfo=runtime.memory_information,
        deviceSynchronize=streams.synchronize_device, getDeviceProperties=runtime.get_device_properties,
        runtimeGetVersion=lambda: 13000, driverGetVersion=lambda: 13000, is_hip=False, CUDA_R_16F=2, CUDA_R_32F=0,
        CUDA_R_64F=1,
    )  # fmt: skip
    driver = _module("cupy_backends.cuda.api.driver", CUDADriverError=kernels.CUDADriverError)
    nvrtc = _module("cupy_backends.cuda.libs.nvrtc", getVersion=lambda: (13, 0))
    api = _module("cupy_backends.cuda.api", runtime=cuda_runtime, driver=driver)
    libs = _module("cupy_backends.cuda.libs", cublas=cublas, nvrtc=nvrtc)
    backends_cuda = _module("cupy_backends.cuda", api=api, libs=libs)
    backends = _module("cupy_backends", cuda=backends_cuda)

    random = _module("cupy.random", Generator=arrays.Generator, default_rng=arrays.default_rng)
    cuda_memory = _module("cupy.cuda.memory", OutOfMemoryError=memory.OutOfMemoryError)
    device = _module("cupy.cuda.device", Device=runtime.Device, get_cublas_handle=lambda: runtime.Device.cublas_handle)
    queues = {
        "Stream": streams.Stream, "Event": streams.Event, "get_current_stream": streams.get_current_stream,
        "get_elapsed_time": streams.get_elapsed_time,
    }  # fmt: skip
    stream = _module("cupy.cuda.stream", **queues)
    compiler = _module("cupy.cuda.compiler", CompileException=kernels.CompileException)
    cuda = _module(
        "cupy.cuda", **queues, Device=runtime.Device, memory=cuda_memory, device=device, stream=stream, cublas=cublas,
        runtime=cuda_runtime, driver=driver, compiler=compiler, nvrtc=nvrtc, is_available=lambda: True,
        get_cublas_handle=device.get_cublas_handle, PinnedMemory=runtime.PinnedMemory,
        PinnedMemoryPointer=runtime.pinned_memory_pointer,
    )  # fmt: skip
    cupy = _module(
        "cupy", **arrays.namespace(), cuda=cuda, random=random,
        get_default_pinned_memory_pool=lambda: runtime.PinnedMemoryPool(), RawModule=kernels.RawModule,
        get_default_memory_pool=lambda: memory.pool, get_array_module=_get_array_module, __version__="14.0.0",
    )  # fmt: skip
    cupyx = _module("cupyx", empty_pinned=runtime.empty_pinned, zeros_pinned=runtime.zeros_pinned)
    modules = [
        cupy, random, cuda, cuda_memory, device, stream, compiler, cupyx, backends, backends_cuda, api, cuda_runtime,
        driver, libs, cublas, nvrtc,
    ]  # fmt: skip
    named = {module.__name__: module for module in modules}
    again = {"runtime": cuda_runtime, "driver": driver, "cublas": cublas, "nvrtc": nvrtc}
    return named | {f"cupy.cuda.{name}": module for name, module in again.items()}


def _get_array_module(*args: Any) -> ModuleType:
    import numpy

    return _MODULES["cupy"] if any(isinstance(arg, arrays.ndarray) for arg in args) else numpy


_MODULES = _make_modules()


class Emulator:
    """Controls of the emulated device for tests."""

    pool = memory.pool

    def limit_memory(self, n_bytes: int) -> None:
        """Set the memory of the device in bytes; 1 GiB by default."""
        memory.pool._capacity = n_bytes

    def lose_context_by_faults(self) -> None:
        """Let a failing kernel destroy the context; see `renew_context`."""
        streams.loses_context = True

    def renew_context(self) -> None:
        """Create a new context, as in a new process."""
        streams.lost = None

    def allocate_with(self, allocator: Literal["cupy", "rmm"]) -> None:
        """Choose the allocator, which determines the out-of-memory error: CuPy's, or a plain MemoryError."""
        memory.pool._allocator = allocator


def install(monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Install the emulated CuPy until `monkeypatch` is undone."""
    monkeypatch.setenv("HKM_DEVICE", "cuda")
    for name in [name for name in sys.modules if name.split(".")[0] in ("cupy", "cupyx", "cupy_backends")]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in _MODULES.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cuda_hopper, "encoder", lambda: tensor_maps.encode_tiled)
    monkeypatch.setattr(memory.pool, "_capacity", 1 << 30)
    monkeypatch.setattr(memory.pool, "_limit", 0)
    monkeypatch.setattr(memory.pool, "_allocator", "cupy")
    # Kernels are tested elsewhere, and slow here; tests/gpu/test_cuda_forms.py tests what is left out.
    monkeypatch.setattr("hkm_dask.search.cuda.forms._fault", lambda *_: None)
    monkeypatch.setattr("hkm_dask.search.cuda.forms.APART", False)  # other processes have no emulator
    monkeypatch.setattr(streams, "loses_context", False)
    monkeypatch.setattr(streams, "lost", None)
    forget()
    return Emulator()


def forget() -> None:
    """Clear the caches of hkm_dask's CUDA modules, which describe the device."""
    for name, module in list(sys.modules.items()):
        if name in ("hkm_dask.compute.backend", "hkm_dask.search.worker") or (
            name.startswith("hkm_dask.") and "cuda" in name
        ):
            for thing in list(vars(module).values()):
                if hasattr(thing, "cache_clear"):
                    thing.cache_clear()
            if hasattr(module, "_module"):
                module._module = None


@pytest.fixture(scope="session")
def built_kernels(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder for compiled kernels, by content: in pytest's cache, for all processes and sessions.

    `pytest --cache-clear` removes them.
    """
    if hasattr(pytestconfig, "cache"):
        folder = pytestconfig.cache.mkdir("emulated-kernels")
    else:
        folder = tmp_path_factory.mktemp("kernels")
    kernels.build_in(folder)
    return folder


@pytest.fixture
def emulated_cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Compute on an emulated GPU: `import cupy` works and HKM_DEVICE is cuda."""
    if why := kernels.missing():
        pytest.skip(why)
    request.getfixturevalue("built_kernels")
    yield install(monkeypatch)
    streams.lost = None
    streams.synchronize_device()
    monkeypatch.undo()
    forget()
