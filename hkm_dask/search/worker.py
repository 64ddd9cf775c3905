"""The engine of this worker: the one place that asks whether it computes on processors or on a GPU."""

from __future__ import annotations

from functools import cache

import numpy as np

from hkm_dask.compute.backend import on_host, worker_device
from hkm_dask.search.cpu.engine import CpuEngine
from hkm_dask.search.engine import Engine

#: Operations of a pass that take a CPU no longer than a device takes to start its kernels.
_TINY_FLOPS = 1e7


@cache
def _engine(device: str) -> Engine:
    if device == "cpu":
        return CpuEngine()
    from hkm_dask.search.cuda.engine import CudaEngine  # not to be read where nothing computes on a GPU

    return CudaEngine()


def worker_engine() -> Engine:
    """The engine of this worker, made once; a ComputeError where it is to compute on a GPU and cannot."""
    return _engine(worker_device())


def prepare(n_features: int, dtype: np.dtype, precision: str) -> None:
    """Have this worker begin what takes its time before rows of such a width and type are searched."""
    worker_engine().prepare(n_features, dtype, precision)


def is_too_little(flops: float) -> bool:
    """Tell whether a pass of so many operations would have this worker's device do nothing but start kernels."""
    return flops < _TINY_FLOPS and worker_device() != "cpu"


def engine_for(flops: float) -> Engine:
    """The engine for a search of so many operations: that of processors where it is too little for a device."""
    if is_too_little(flops):
        with on_host():
            return worker_engine()
    return worker_engine()
