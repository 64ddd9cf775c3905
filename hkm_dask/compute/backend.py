"""The array library of a worker: NumPy or CuPy."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, cast

import numpy as np

from hkm_dask.errors import ComputeError


def array_module(array: Any) -> ModuleType:
    """Return the library of an array: ``cupy`` for a CuPy array, else ``numpy``.

    >>> array_module(np.zeros(3)).__name__
    'numpy'
    """
    if type(array).__module__.split(".")[0] == "cupy":
        import cupy

        return cupy
    return np


def off_device(array: Any) -> Any:
    """Copy a CuPy array to host memory; return anything else unchanged."""
    return array if array_module(array) is np else array.get()


def to_host(array: Any) -> np.ndarray:
    """Copy an array to host memory, unless it is there already."""
    return np.asarray(off_device(array))


_thread = threading.local()


@contextmanager
def on_host() -> Iterator[None]:
    """Compute on the CPU within this context and thread, on any worker: for work too small for a device.

    >>> with on_host():
    ...     worker_device()
    'cpu'
    """
    outer = getattr(_thread, "on_host", False)
    _thread.on_host = True
    try:
        yield
    finally:
        _thread.on_host = outer


def worker_device() -> str:
    """Return the device on which this process computes: ``"cuda"`` if ``HKM_DEVICE`` says so, else ``"cpu"``.

    The variable is set in the CUDA workers of a cluster, and may also be set by hand. Raises ComputeError if it
    requests CUDA, but CuPy or a device is missing.
    """
    device = os.environ.get("HKM_DEVICE", "cpu")
    if device not in ("cpu", "cuda"):
        raise ComputeError(f"HKM_DEVICE={device!r} should be 'cpu' or 'cuda'; unset it to compute on the CPU")
    if device == "cpu" or getattr(_thread, "on_host", False):
        return "cpu"
    require_cuda()
    return device


def worker_module() -> ModuleType:
    """Return the array library of this process: ``cupy`` on a device, else ``numpy``."""
    if worker_device() == "cpu":
        return np
    import cupy

    return cast(ModuleType, cupy)


def to_module(array: Any, xp: ModuleType) -> Any:
    """Convert an array to one of `xp`, ``numpy`` or ``cupy``, without a copy if it is one already."""
    return to_host(array) if xp is np else xp.asarray(array)


@cache
def device_attribute(name: str) -> int:
    """Return an attribute of the device by CUDA's name without the prefix, e.g. ``"L2CacheSize"`` in bytes."""
    import cupy

    return int(cupy.cuda.Device().attributes[name])


def device_budget() -> int:
    """Return the bytes of device memory this process may use: ``HKM_DEVICE_MEMORY``, else 80 % of what is available.

    Available are free memory and the memory that CuPy's pool retains; the rest is for temporary arrays of passes.
    Raises ComputeError if the variable is not a number of bytes.
    """
    text = os.environ.get("HKM_DEVICE_MEMORY")
    if text is None:
        return _measured_budget()
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(text))
    except ValueError as error:
        raise ComputeError(f"HKM_DEVICE_MEMORY={text!r} should be a number of bytes; write it as 40GiB") from error


@cache
def _measured_budget() -> int:
    """Return 80 % of the device memory available to this process, cached because the driver is slow to report it."""
    import cupy

    if "rmm" in sys.modules:  # its pool was allocated when the worker started
        import rmm

        pool_size = getattr(rmm.mr.get_current_device_resource(), "pool_size", None)
        if pool_size is not None:
            return int(0.8 * pool_size())
    free, _ = cupy.cuda.runtime.memGetInfo()
    return int(0.8 * (free + cupy.get_default_memory_pool().total_bytes()))


def reserve_to_sort(keys: Any) -> None:
    """Ensure that the device's memory pool has what sorting `keys` takes: copies of keys and 64-bit positions.

    Raises MemoryError, as any allocation does, if it does not. The sort itself would raise an error that does not
    mention the device or, as in earlier versions of CuPy, continue without memory.
    """
    import cupy

    # Copies of keys and positions, the same again as sort buffers, and digit counts.
    cupy.empty((2 * keys.itemsize + 17) * len(keys) + (1 << 16), cupy.uint8)


def device_argsort(keys: Any) -> Any:
    """Return the positions that sort integers on a device; equal ones stay in order.

    This is a stable radix sort. Raises MemoryError (see `staging.ran_out`) if device memory runs out.
    """
    import cupy

    reserve_to_sort(keys)
    return cupy.argsort(keys)


@cache
def require_cuda() -> None:
    """Raise ComputeError if CuPy is not installed, cannot be imported, or finds no device."""
    try:
        import cupy
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise ComputeError("CuPy is not installed; pip install 'hkm-dask[cuda13]' or [cuda12]") from error
        raise ComputeError(
            f"CuPy cannot be imported ({error}); "
            "install what it lacks, as pip install 'hkm-dask[cuda13]' or [cuda12] does"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ComputeError(
            f"there is no GPU, or no driver for it; install the driver, or compute on the CPU (CUDA says: {error})"
        ) from error
    if count < 1:
        raise ComputeError("no GPU is visible; look at CUDA_VISIBLE_DEVICES")
