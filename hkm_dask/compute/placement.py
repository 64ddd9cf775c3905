"""Where rows lie for a computation: copied into one array, in memory or in files that workers see, or left in place."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import worker_device
from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.resident import take
from hkm_dask.compute.runner import Runner, n_processors
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows

#: Bytes of rows that one task copies at once.
_RANGE_BYTES = 16 << 20


@dataclass(frozen=True)
class _Gather:
    """Task: copy the rows of some ranges of numbers to their places in a file."""

    rows: Rows
    numbers: SharedArray
    path: str
    offset: int

    def __call__(self, ranges: Sequence[tuple[int, int]]) -> None:
        # Tasks for a device come one at a time and leave the processors free.
        with ThreadPoolExecutor(1 if worker_device() == "cpu" else n_processors(), "hkm-read") as threads:
            list(threads.map(self._copy, ranges))

    def _copy(self, places: tuple[int, int]) -> None:
        write_npy_rows(self.path, self.offset, places[0], take(self.rows, self.numbers.read(*places)))


def gather(rows: Rows, index: NDArray[np.int64], runner: Runner, beside: StageBytes | None = None) -> Rows:
    """Copy rows by their sorted numbers into one array: in memory if they fit easily, else in a file all workers see.

    What is done with them takes what is `beside` them. Devices that keep all rows, and these besides, copy them there.

    `discard` removes that file; `forget`, with the key of the rows, tells that their memory is free.
    """
    some = SubsetRows(rows, index)
    if some.base is rows and runner.gathers_on_devices(some, beside):
        return runner.place(some)
    n_bytes = len(index) * rows.row_bytes
    n_ranges = max(runner.n_threads, -(-n_bytes // min(_RANGE_BYTES, runner.batch_bytes)))
    places = list(itertools.pairwise(some.bounds(-(-n_bytes // n_ranges), n_ranges).tolist()))
    if runner.fits_in_memory(n_bytes, beside):
        gathered = np.empty((len(index), rows.n_features), rows.dtype)

        def copy(places: tuple[int, int]) -> None:
            gathered[slice(*places)] = take(rows, index[slice(*places)])

        with runner.on_processors() as processors:
            processors.map(copy, places, stage="gather")
        in_memory = ArrayRows(gathered, f"{len(index)} rows of {rows.label}")
        host_cache.hold(in_memory.key, n_bytes)
        return in_memory
    path = runner.work_dir / f"rows-{uuid.uuid4().hex}.npy"
    numbers = runner.array_store.put(f"numbers-{uuid.uuid4().hex}", index)
    try:
        offset = create_npy(path, (len(index), rows.n_features), rows.dtype)
        n_of_task = 1 if runner.device_budget is None else -(-len(places) // runner.n_workers)
        ranges = [places[i : i + n_of_task] for i in range(0, len(places), n_of_task)]
        runner.map(_Gather(rows, numbers, str(path), offset), ranges, stage="gather")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        numbers.delete()
    return NpyRows(path, scratch=True)


def take_rows(rows: Rows, numbers: NDArray[np.int64], runner: Runner) -> np.ndarray:
    """Gather a few rows by their sorted numbers into the memory of this process, by the tasks of a pass over all."""
    cuts = [part.start for part in runner.split(rows, 1)[1:]]
    pieces = [some for some in np.split(numbers, np.searchsorted(numbers, cuts)) if len(some)]
    return np.concatenate(runner.map(partial(take, rows), pieces, stage="gather"))


def discard(rows: Rows) -> None:
    """Remove the file that `gather` made for these rows, if any."""
    path = rows.path if isinstance(rows, NpyRows) else rows.index_path if isinstance(rows, SubsetRows) else None
    if path is not None:
        SharedArray(path=path).delete()
