"""The CUDA device: description, peak rates, memory, and choosing where k-means runs."""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.benchmark.measure import clock

#: Side of the matrix product, and numbers copied and sent: far larger than the caches.
_SIDE, _COPIED, _SENT = 8192, 1 << 29, 1 << 26
_BATCH, _BATCHES = 20, 10
#: Duration of a pass at half the rate of the matrix product, if memory permits.
_PASS_SECONDS = 1.0


@dataclass(frozen=True)
class Ceilings:
    """Measured peak rates of the device.

    Attributes
    ----------
    float16, bfloat16 : float or None
        FLOP per second of a matrix product with float32 sums; None if no library offers it.
    copy : float
        Bytes per second of a copy within device memory, bytes read plus bytes written.
    upload : float
        Bytes per second from pinned host memory to the device.
    pin : float
        Bytes of host memory pinned per second.
    """

    float16: float
    bfloat16: float | None
    copy: float
    upload: float
    pin: float = 0.0

    def limit(self, n_flops: float, n_bytes: float) -> float:
        """Return the least seconds for `n_flops` operations while `n_bytes` bytes come from host memory.

        Examples
        --------
        >>> Ceilings(float16=8e14, bfloat16=None, copy=4e12, upload=5e10).limit(n_flops=8e14, n_bytes=1e11)
        2.0
        """
        return max(n_flops / self.float16, n_bytes / self.upload)


def describe_device() -> dict[str, Any]:
    """Describe the device: name, memory (GiB), compute capability, driver and CUDA version."""
    import cupy

    facts = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    version = cupy.cuda.runtime.runtimeGetVersion()
    return {
        "name": facts["name"].decode(),
        "memory_gib": round(facts["totalGlobalMem"] / 2**30, 1),
        "capability": f"{facts['major']}.{facts['minor']}",
        "driver": _driver_version(),
        "cuda": f"{version // 1000}.{version % 1000 // 10}",
    }


def _driver_version() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return (answer.stdout.split() or ["unknown"])[0]


def measure_ceilings() -> Ceilings:
    """Measure the rates that bound a pass; with random numbers, because products of zeros are faster."""
    return Ceilings(*_product_rates(), *_transfer_rates())


def _transfer_rates() -> tuple[float, float, float]:
    """Return bytes per second of copies on the device (read plus written), of uploads, and of pinning memory."""
    import cupy

    pinned = _rate(lambda: pinned_array((_SENT,), np.float32), 4.0 * _SENT, n_times=1)
    source = cupy.random.default_rng(0).standard_normal(_COPIED, dtype=cupy.float32)
    target = cupy.empty_like(source)
    received = target[:_SENT]
    sent = pinned_array((_SENT,), np.float32)
    sent[...] = source[:_SENT].get()
    copied = _rate(lambda: cupy.copyto(target, source), 2.0 * source.nbytes)
    return copied, _rate(lambda: received.set(sent), float(received.nbytes)), pinned


def _product_rates() -> tuple[float, float | None]:
    """Return FLOP per second in float16 and bfloat16: of torch if installed, otherwise of CuPy, without bfloat16."""
    n_flops = 2.0 * _SIDE**3
    try:
        torch = import_module("torch")
        if torch.cuda.is_available():
            rates = []
            for dtype in (torch.float16, torch.bfloat16):
                a, b = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=dtype) for _ in range(2))
                out = torch.empty_like(a)
                rates.append(_rate(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), n_flops))  # type: ignore[misc]
            return rates[0], rates[1]
    except ImportError:
        pass
    import cupy

    rng = cupy.random.default_rng(0)
    left, right = (rng.standard_normal((_SIDE, _SIDE), dtype=cupy.float32).astype(cupy.float16) for _ in range(2))
    return _rate(lambda: left @ right, n_flops), None


def _rate(work: Callable[[], object], amount: float, n_times: int = _BATCH) -> float:
    """Return the rate of `work`: the median of several batches of `n_times` calls, after a warm-up."""

    def run_batch() -> None:
        for _ in range(n_times):
            work()

    seconds = [clock(run_batch, synchronize)[0] for _ in range(_BATCHES + 1)]
    return amount * n_times / statistics.median(seconds[1:])


def synchronize() -> None:
    """Wait until the device is idle."""
    import cupy

    cupy.cuda.runtime.deviceSynchronize()


def choose_rows(n_features: int, n_clusters: int, *, gigabytes: float, flops: float) -> int:
    """Choose the number of float16 rows for a timed pass: at most `gigabytes`, and about one second of work.

    Examples
    --------
    >>> choose_rows(1024, 4096, gigabytes=4, flops=8e14), choose_rows(1024, 100_000, gigabytes=40, flops=8e14)
    (1953000, 1953000)
    """
    by_bytes = gigabytes * 1e9 / (2 * n_features)
    by_time = _PASS_SECONDS * 0.5 * flops / (2.0 * n_features * n_clusters)
    return max(1000, int(min(by_bytes, by_time)) // 1000 * 1000)


def pinned_array(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Allocate pinned host memory; not from CuPy's pool, which rounds up to a power of two."""
    import cupy

    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, buffer=cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(n_bytes), 0))


def free_memory() -> None:
    """Release all unused memory, because CuPy's pool would keep what torch may need next."""
    import cupy

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def computing_on(device: str, *, memory: int | None = None) -> AbstractContextManager[None]:
    """Run the k-means of this process on "cuda" or "cpu", with at most `memory` bytes of device memory."""
    return environment(HKM_DEVICE=device, HKM_DEVICE_MEMORY=None if memory is None else str(memory))


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Set environment variables of this process and its children; None removes a variable."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _set_environment(values)
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
