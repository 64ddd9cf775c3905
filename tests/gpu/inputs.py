"""Rows for the tests of the GPU path, and engines for both devices."""

import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hkm_dask.compute.block_cache import device_cache, host_cache
from hkm_dask.data.rows import Rows
from hkm_dask.search.cpu.engine import CpuIndex
from hkm_dask.search.cuda.index import CudaIndex
from hkm_dask.search.geometry import Geometry


def groups(n: int, d: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(12, d))
    return (centers[rng.integers(12, size=n)] + 0.4 * rng.normal(size=(n, d))).astype(dtype)


def twice(cuda: Any, monkeypatch: pytest.MonkeyPatch, compute: Callable[[], Any]) -> tuple[Any, Any]:
    """What `compute` gives on the CPU and on the device."""
    with monkeypatch.context() as patch:
        patch.setenv("HKM_DEVICE", "cpu")
        host_cache.clear()
        on_cpu = compute()
    host_cache.clear()
    device_cache.clear()
    return on_cpu, compute()


class Stored(Rows):
    """Rows that are read block by block, as from a disk."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.label, self.chunk_rows = array, "stored", 1
        self.n_rows, self.n_features = array.shape
        self.dtype = array.dtype
        self.key = ("stored", uuid.uuid4().hex)  # an id would be used again
        self.n_reads = 0

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        self.n_reads += 1
        return self._deliver(self.array[start:stop].copy(), out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        self.n_reads += 1
        return self.array[rows]


def geometry_of(rows: np.ndarray, **options: Any) -> Geometry:
    wide = rows.astype(np.float64)
    return Geometry(wide.mean(axis=0).astype(np.float32), float(np.abs(wide).max()), len(rows), **options)


def search_on_cpu(
    rows: np.ndarray, centroids: np.ndarray, geometry: Geometry, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    labels, distances = np.full(len(rows), -1, np.int32), np.full(len(rows), np.inf)
    CpuIndex(centroids, geometry).nearest(rows.astype(np.float32), labels, distances, **options)
    return labels, distances


def search_on_device(cuda: Any, rows: np.ndarray, search: CudaIndex, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, distances = cuda.full(len(rows), -1, cuda.int32), cuda.full(len(rows), cuda.inf)
    search.nearest(cuda.asarray(rows), labels, distances, **options)
    return labels.get(), distances.get()
