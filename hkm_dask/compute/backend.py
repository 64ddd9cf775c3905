"""Choice of the array library of a worker, NumPy or CuPy."""

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
    """Return the library an array belongs to: ``cupy`` for a CuPy array, else ``numpy``.

    >>> array_module(np.zeros(3)).__name__
    'numpy'
    """
    if type(array).__module__.split(".")[0] == "cupy":
        import cupy

        return cupy
    return np


def off_device(array: Any) -> Any:
    """Copy a CuPy array to host memory; anything else is returned unchanged."""
    return array if array_module(array) is np else array.get()


def to_host(array: Any) -> np.ndarray:
    """Copy an array to host memory, unless it is there already."""
    return np.asarray(off_device(array))


_thread = threading.local()


@contextmanager
def on_host() -> Iterator[None]:
    """Compute on the CPU within this context and thread, on whatever the worker computes; for small amounts of work.

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
    """Return the device of this process: ``"cuda"`` if ``HKM_DEVICE`` says so, otherwise ``"cpu"``.

    The variable is set in CUDA workers when their cluster is opened; it can also be set by hand. Raises ComputeError if
    it requests CUDA, but CuPy or a device is missing.
    """
    device = os.environ.get("HKM_DEVICE", "cpu")
    if device not in ("cpu", "cuda"):
        raise ComputeError(f"HKM_DEVICE={device!r} should be 'cpu' or 'cuda'; unset it to compute on the CPU")
    if device == "cpu" or getattr(_thread, "on_host", False):
        return "cpu"
    require_cuda()
    return device


def worker_module() -> ModuleType:
    """Return the array library of this process: ``cupy`` on a device, otherwise ``numpy``."""
    if worker_device() == "cpu":
        return np
    import cupy

    return cast(ModuleType, cupy)


def to_module(array: Any, xp: ModuleType) -> Any:
    """Copy an array to the memory of `xp`, ``numpy`` or ``cupy``, unless it is there already."""
    return to_host(array) if xp is np else xp.asarray(array)


@cache
def device_attribute(name: str) -> int:
    """Return an attribute of the device by its CUDA name without the prefix, such as ``"L2CacheSize"``, in bytes."""
    import cupy

    return int(cupy.cuda.Device().attributes[name])


def device_budget() -> int:
    """Return the bytes of device memory for this process to plan with: ``HKM_DEVICE_MEMORY``, or 80 % of the available.

    Free memory and memory held by CuPy's pool count as available; the rest is for temporary arrays of passes. Raises
    ComputeError if the variable is not a number of bytes.
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
    """Return 80 % of the available device memory; measured once, since the driver is slow to answer."""
    import cupy

    if "rmm" in sys.modules:  # its pool was allocated when the worker started, and is not free memory
        import rmm

        pool_size = getattr(rmm.mr.get_current_device_resource(), "pool_size", None)
        if pool_size is not None:
            return int(0.8 * pool_size())
    free, _ = cupy.cuda.runtime.memGetInfo()
    return int(0.8 * (free + cupy.get_default_memory_pool().total_bytes()))


def reserve_to_sort(keys: Any) -> None:
    """Make the device's memory pool hold what sorting keys takes, by allocating and freeing that much.

    Raises MemoryError, as for any array, if it cannot. The sort itself would raise an error that does not mention the
    device or, in older versions of CuPy, continue without the memory.
    """
    import cupy

    # Copies of keys and positions, buffers of the same size for sorting, and histograms of digits.
    cupy.empty((2 * keys.itemsize + 17) * len(keys) + (1 << 16), cupy.uint8)


def device_argsort(keys: Any) -> Any:
    """Return the positions that sort integers on a device, stably.

    It is a radix sort. Raises MemoryError (`staging.ran_out`) if device memory runs out.
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
            "install its dependencies with pip install 'hkm-dask[cuda13]' or [cuda12]"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ComputeError(
            f"there is no GPU, or no driver for it; install the driver, or compute on the CPU (CUDA says: {error})"
        ) from error
    if count < 1:
        raise ComputeError("no GPU is visible; check CUDA_VISIBLE_DEVICES")
