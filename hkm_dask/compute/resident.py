"""Rows taken from resident blocks, in host memory or on the device, and read from storage otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import array_module, to_host
from hkm_dask.compute.block_cache import BlockCache, device_cache, host_cache
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import ArrayRows, Rows

#: Slice of the requested rows that is in one block, the first row of that block, and the block.
_Piece = tuple[slice, int, Any]


def take(rows: Rows, numbers: NDArray[np.int64]) -> np.ndarray:
    """Gather rows by sorted numbers, in host memory; rows in no block are read, see `Rows.take`.

    >>> take(ArrayRows(np.arange(8.0).reshape(4, 2)), np.array([1, 3]))
    array([[2., 3.],
           [6., 7.]])
    """
    caches = [cache for cache in (host_cache, device_cache) if cache.blocks(rows.key)]
    if not caches or isinstance(rows, ArrayRows):
        return take(rows.base, rows.index[numbers]) if isinstance(rows, SubsetRows) else rows.take(numbers)
    out = np.empty((len(numbers), rows.n_features), rows.dtype)
    missing = np.ones(len(numbers), np.bool_)
    for cache in caches:
        for some, first, block in _pieces(cache, rows, numbers):
            if block.dtype == rows.dtype and missing[some].any():
                out[some] = to_host(block[array_module(block).asarray(numbers[some] - first)])
                missing[some] = False
    if missing.any():
        out[missing] = rows.take(numbers[missing])
    return out


def can_gather(rows: Rows, start: int, stop: int) -> bool:
    """Tell whether `gather_on_device` can make this block, from a table that is resident on the device."""
    return len(_device_pieces(rows, start, stop)) > 0


def gather_on_device(rows: Rows, start: int, stop: int) -> Any | None:
    """Gather some rows of a table into a block on the device, from resident blocks; None if some are missing."""
    pieces = _device_pieces(rows, start, stop)
    if not pieces:
        return None
    import cupy

    assert isinstance(rows, SubsetRows)
    numbers = cupy.asarray(rows.index[start:stop])
    parts = [block[numbers[some] - first] for some, first, block in pieces]
    return parts[0] if len(parts) == 1 else cupy.concatenate(parts)


def _device_pieces(rows: Rows, start: int, stop: int) -> list[_Piece]:
    """Return the resident blocks with these rows of a table; empty if they do not contain all of them."""
    if not isinstance(rows, SubsetRows):
        return []
    pieces = list(_pieces(device_cache, rows.base, rows.index[start:stop]))
    return pieces if sum(some.stop - some.start for some, _, _ in pieces) == stop - start else []


def _pieces(cache: BlockCache, rows: Rows, numbers: NDArray[np.int64]) -> Iterator[_Piece]:
    """Yield blocks with some of the sorted row numbers, each number once, as blocks of two passes may overlap."""
    done = 0
    for (first, last), block in cache.blocks(rows.key):
        low, high = (np.searchsorted(numbers[done:], [first, last]) + done).tolist()
        if high > low:
            yield slice(low, high), first, block
            done = high
