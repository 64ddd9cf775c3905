"""Rows for a device: how many, made there, kept there or in pinned host memory, and what to clear up between cases."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.kmeans.search.geometry import Geometry

#: A pass at half the rate of the matrix product should take about so many seconds, if there are bytes for it.
_PASS_SECONDS = 1.0
_PIECE = 1 << 17


def choose_rows(n_features: int, n_clusters: int, *, gigabytes: float, flops: float) -> int:
    """Choose how many rows of float16 a pass is timed on.

    Parameters
    ----------
    n_features, n_clusters : int
    gigabytes : float
        What they may take.
    flops : float
        FLOP per second of a matrix product.

    Returns
    -------
    int

    Examples
    --------
    >>> choose_rows(1024, 4096, gigabytes=4, flops=8e14), choose_rows(1024, 100_000, gigabytes=40, flops=8e14)
    (1953000, 1953000)
    """
    by_bytes = gigabytes * 1e9 / (2 * n_features)
    by_time = _PASS_SECONDS * 0.5 * flops / (2.0 * n_features * n_clusters)
    return max(1000, int(min(by_bytes, by_time)) // 1000 * 1000)


class Maker:
    """Makes rows as `inputs.make_rows` does, but on the device: groups, and a spectrum that decays.

    Parameters
    ----------
    xp : module
        CuPy, or NumPy.
    n_features : int
    """

    def __init__(self, xp: Any, n_features: int, *, n_groups: int = 256) -> None:
        rng = np.random.default_rng(0)
        turn = np.linalg.qr(rng.standard_normal((n_features, n_features)))[0].astype(np.float32)
        self._xp, self.n_features = xp, n_features
        self._spread = xp.asarray((1.0 / np.sqrt(np.arange(1, n_features + 1))).astype(np.float32))
        self._turn = xp.asarray(turn)
        self._groups = xp.asarray(rng.standard_normal((n_groups, n_features), dtype=np.float32))

    def pieces(self, n_rows: int, seed: int, noise: float = 1.0) -> Iterator[tuple[slice, Any]]:
        """Yield places and float32 rows; centroids have less noise than rows, being means of some.

        Parameters
        ----------
        n_rows, seed : int
        noise : float

        Yields
        ------
        place : slice
        rows : array of float32, shape (n, n_features)
        """
        rng = self._xp.random.default_rng(seed)
        for low in range(0, n_rows, _PIECE):
            n = min(_PIECE, n_rows - low)
            rows = rng.standard_normal((n, self.n_features), dtype=self._xp.float32)
            rows *= noise
            rows += self._groups[rng.integers(0, len(self._groups), n)]
            rows *= self._spread
            yield slice(low, low + n), rows @ self._turn

    def fill(self, out: Any, seed: int = 0) -> Geometry:
        """Fill an array of float16, on the device or not.

        Parameters
        ----------
        out : array of float16, shape (n_rows, n_features)
        seed : int

        Returns
        -------
        Geometry
            Of these rows.
        """
        total, largest = np.zeros(self.n_features), 0.0
        for place, rows in self.pieces(len(out), seed):
            half = rows.astype(self._xp.float16)
            total += _to_numpy(half.sum(axis=0, dtype=self._xp.float64))
            largest = max(largest, float(abs(half).max()))
            if isinstance(out, np.ndarray) and not isinstance(half, np.ndarray):
                half.get(out=out[place])  # straight into pinned memory
            else:
                out[place] = half
        return Geometry((total / len(out)).astype(np.float32), largest, len(out))

    def centroids(self, n_clusters: int) -> NDArray[np.float32]:
        """Return centroids that no 16-bit number is exactly.

        Parameters
        ----------
        n_clusters : int

        Returns
        -------
        ndarray of float32, shape (n_clusters, n_features)
        """
        pieces = [_to_numpy(rows) for _, rows in self.pieces(n_clusters, seed=1, noise=0.5)]
        return np.ascontiguousarray(np.concatenate(pieces), np.float32)


def _to_numpy(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) else array.get()


def pinned_rows(n_rows: int, n_features: int) -> NDArray[np.float16]:
    """Return host memory the device can read by itself, not filled.

    Parameters
    ----------
    n_rows, n_features : int

    Returns
    -------
    ndarray of float16, shape (n_rows, n_features)
    """
    import cupy

    # Not from CuPy's pool, which rounds up to a power of two.
    memory = cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(2 * n_rows * n_features), 0)
    return np.ndarray((n_rows, n_features), np.float16, buffer=memory)


def free_memory() -> None:
    """Give all memory back that nobody holds, so that the next has it."""
    import cupy

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


@contextmanager
def computing_on(device: str, *, memory: int | None = None) -> Iterator[None]:
    """Have k-means of this process run on a device, with so many bytes of its memory at most.

    Parameters
    ----------
    device : {"cuda", "cpu"}
    memory : int, optional
    """
    wanted = {"HKM_DEVICE": device, "HKM_DEVICE_MEMORY": None if memory is None else str(memory)}
    before = {name: os.environ.get(name) for name in wanted}
    try:
        for name, value in wanted.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        yield
    finally:
        for name, old in before.items():
            os.environ.pop(name, None)
            if old is not None:
                os.environ[name] = old
