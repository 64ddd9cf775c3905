"""NumPy or CuPy: which array library a worker computes with."""

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
    """Copy a CuPy array to host memory; anything else is returned as it is."""
    return array if array_module(array) is np else array.get()


def to_host(array: Any) -> np.ndarray:
    """Copy an array to host memory, unless it is there already."""
    return np.asarray(off_device(array))


_thread = threading.local()


@contextmanager
def on_host() -> Iterator[None]:
    """Compute on the CPU within this context and thread, whatever the worker computes on: for what is too little work.

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
    """Tell what this process computes on: ``"cuda"`` where ``HKM_DEVICE`` says so, else ``"cpu"``.

    Whoever opens a cluster of CUDA workers sets that variable in them; one may set it by hand. Raises ComputeError
    where it asks for CUDA, and CuPy or a device is missing.
    """
    device = os.environ.get("HKM_DEVICE", "cpu")
    if device not in ("cpu", "cuda"):
        raise ComputeError(f"HKM_DEVICE={device!r} should be 'cpu' or 'cuda'; unset it to compute on the CPU")
    if device == "cpu" or getattr(_thread, "on_host", False):
        return "cpu"
    require_cuda()
    return device


def worker_module() -> ModuleType:
    """Return the library this process keeps its arrays with: ``cupy`` on a device, else ``numpy``."""
    if worker_device() == "cpu":
        return np
    import cupy

    return cast(ModuleType, cupy)


def to_module(array: Any, xp: ModuleType) -> Any:
    """Bring an array to where `xp`, ``numpy`` or ``cupy``, keeps its own; nothing is copied that is there already."""
    return to_host(array) if xp is np else xp.asarray(array)


@cache
def device_attribute(name: str) -> int:
    """Return an attribute of the device, as CUDA names it without its prefix: ``"L2CacheSize"``, in bytes."""
    import cupy

    return int(cupy.cuda.Device().attributes[name])


def device_budget() -> int:
    """Bytes of device memory this process may keep things in: ``HKM_DEVICE_MEMORY``, else 80 % of what it can have.

    What is free and what CuPy's pool holds for later both count; the rest is for what passes need besides. Raises
    ComputeError where the variable is no number of bytes.
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
    """80 % of the device memory this process can have; asked once, since a driver takes its time to tell."""
    import cupy

    if "rmm" in sys.modules:  # its pool was taken from what is free when the worker started
        import rmm

        pool_size = getattr(rmm.mr.get_current_device_resource(), "pool_size", None)
        if pool_size is not None:
            return int(0.8 * pool_size())
    free, _ = cupy.cuda.runtime.memGetInfo()
    return int(0.8 * (free + cupy.get_default_memory_pool().total_bytes()))


def reserve_to_sort(keys: Any) -> None:
    """Have the device's pool of memory hold what a sort of keys takes, so many times as they and 64-bit places.

    A MemoryError, as of any array, where it cannot. The sort itself would raise one that does not tell of the device
    or, as CuPy did before it looked, go on with no memory.
    """
    import cupy

    # Copies of keys and places, the same again to sort them by, and counts of digits.
    cupy.empty((2 * keys.itemsize + 17) * len(keys) + (1 << 16), cupy.uint8)


def device_argsort(keys: Any) -> Any:
    """Places of integers on a device, by how large these are; those of equal ones in their order.

    Sorts are by radix, and stable. A MemoryError (`staging.ran_out`) where device memory runs out.
    """
    import cupy

    reserve_to_sort(keys)
    return cupy.argsort(keys)


@cache
def require_cuda() -> None:
    """Raise ComputeError where CuPy is not installed, cannot be imported, or finds no device."""
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
        raise ComputeError("no GPU is visible; check CUDA_VISIBLE_DEVICES")
