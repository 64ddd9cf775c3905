"""Where rows lie for a computation: copied into one array, in memory or in files that workers see."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows

#: Bytes of rows that one task copies at once.
_RANGE_BYTES = 16 << 20


@dataclass(frozen=True)
class _Gather:
    """Task: copy the rows of a range of numbers to their places in a file."""

    rows: Rows
    numbers: SharedArray
    path: str
    offset: int

    def __call__(self, places: tuple[int, int]) -> None:
        write_npy_rows(self.path, self.offset, places[0], self.rows.take(self.numbers.read(*places)))


def gather(rows: Rows, index: NDArray[np.int64], runner: Runner, beside: StageBytes | None = None) -> Rows:
    """Copy rows by their sorted numbers into one array: in memory if they fit easily, else in a file all workers see.

    What is done with them takes what is `beside` them.

    `discard` removes that file; `forget`, with the key of the rows, tells that their memory is free.
    """
    n_bytes = len(index) * rows.row_bytes
    if runner.fits_in_memory(n_bytes, beside):
        gathered = ArrayRows(rows.take(index), f"{len(index)} rows of {rows.label}")
        host_cache.hold(gathered.key, n_bytes)
        return gathered
    path = runner.work_dir / f"rows-{uuid.uuid4().hex}.npy"
    numbers = runner.array_store.put(f"numbers-{uuid.uuid4().hex}", index)
    n_ranges = min(len(index), max(runner.n_threads, -(-n_bytes // min(_RANGE_BYTES, runner.batch_bytes))))
    places = itertools.pairwise((len(index) * np.arange(n_ranges + 1) // n_ranges).tolist())
    try:
        offset = create_npy(path, (len(index), rows.n_features), rows.dtype)
        runner.map(_Gather(rows, numbers, str(path), offset), list(places), stage="gather")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        numbers.delete()
    return NpyRows(path, scratch=True)


def discard(rows: Rows) -> None:
    """Remove the file that `gather` made for these rows, if any."""
    if isinstance(rows, NpyRows):
        SharedArray(path=rows.path).delete()
