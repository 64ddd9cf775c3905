"""Choice of the engine of this worker, the only place that asks whether it computes on a CPU or a GPU."""

from __future__ import annotations

from functools import cache

import numpy as np

from hkm_dask.compute.backend import on_host, worker_device
from hkm_dask.search.cpu.engine import CpuEngine
from hkm_dask.search.engine import Engine

#: Floating-point operations that take a CPU no longer than launching kernels takes on a device.
_TINY_FLOPS = 1e7


@cache
def _engine(device: str) -> Engine:
    if device == "cpu":
        return CpuEngine()
    from hkm_dask.search.cuda.engine import CudaEngine  # imported only where a GPU is used

    return CudaEngine()


def worker_engine() -> Engine:
    """Return the engine of this worker, made once; raises ComputeError if it should use a GPU and cannot."""
    return _engine(worker_device())


def prepare(n_features: int, dtype: np.dtype, precision: str) -> None:
    """Start slow preparations of this worker for searching rows of such a width and dtype."""
    worker_engine().prepare(n_features, dtype, precision)


def is_too_little(flops: float) -> bool:
    """Tell whether a pass with this many operations would spend its time on a device launching kernels."""
    return flops < _TINY_FLOPS and worker_device() != "cpu"


def engine_for(flops: float) -> Engine:
    """Return the engine for a search with this many operations: the CPU engine if it is too little for a device."""
    if is_too_little(flops):
        with on_host():
            return worker_engine()
    return worker_engine()
