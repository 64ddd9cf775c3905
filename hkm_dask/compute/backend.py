"""NumPy or CuPy: which array library a worker computes with."""

from __future__ import annotations

import os
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from hkm_dask.errors import ComputeError


def array_module(array: Any) -> ModuleType:
    """Return the library an array belongs to: ``cupy`` for a CuPy array, else ``numpy``.

    Examples
    --------
    >>> array_module(np.zeros(3)).__name__
    'numpy'
    """
    if type(array).__module__.split(".")[0] == "cupy":
        import cupy

        return cupy
    return np


def to_host(array: Any) -> np.ndarray:
    """Copy an array to host memory, unless it is there already."""
    return array.get() if array_module(array) is not np else np.asarray(array)


def worker_device() -> str:
    """Tell what this process computes on: ``"cuda"`` in a worker of a LocalCUDACluster, else ``"cpu"``.

    dask-cuda gives every worker the environment variable this reads; a user may set it by hand for `dask cuda worker`.

    Raises
    ------
    ComputeError
        The variable asks for CUDA and CuPy or a device is missing.
    """
    device = os.environ.get("HKM_DEVICE", "cpu")
    if device not in ("cpu", "cuda"):
        raise ComputeError(f"HKM_DEVICE={device!r} should be 'cpu' or 'cuda'; unset it to compute on the CPU")
    if device == "cuda":
        require_cuda()
    return device


@cache
def require_cuda() -> None:
    """Raise a clear error where CUDA was asked for and cannot be had.

    Raises
    ------
    ComputeError
        CuPy is not installed, or finds no device.
    """
    try:
        import cupy
    except ImportError as error:
        raise ComputeError("device='cuda' should have CuPy; install the extra hkm-dask[cuda13] or [cuda12]") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ComputeError(f"device='cuda' should have a GPU and its driver; CUDA says: {error}") from error
    if count < 1:
        raise ComputeError("device='cuda' should have a GPU; none is visible, look at CUDA_VISIBLE_DEVICES")
