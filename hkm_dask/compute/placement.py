"""Placement of rows for a computation: copied into one array, in memory or in shared files, or left in place."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import worker_device
from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.piece_rows import PieceRows
from hkm_dask.compute.resident import take
from hkm_dask.compute.runner import Runner, n_processors
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore, SharedPieces
from hkm_dask.compute.staging import memory_of_blocks
from hkm_dask.compute.threads import share_out
from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows

#: Bytes of rows copied at once by a task.
_RANGE_BYTES = 16 << 20
#: Bytes of a row from which its number is cached with it: for narrower rows, recomputing derived data is as fast.
_NUMBERED_BYTES = 128


#: A range of a table, from its first row to one past its last.
_Range = tuple[int, int]
#: Rows, and the position of the first one among all requested rows.
_Copies = Iterator[tuple[int, np.ndarray]]


def _copies(rows: Rows, numbers: SharedPieces, source: _Range) -> _Copies:
    """Yield the requested rows (by sorted numbers) that are in a range of a table, some at a time."""
    low, stop = map(numbers.position, source)
    # Rows of a storage chunk are copied together, or it would be read again.
    step = max(1, max(_RANGE_BYTES, memory_of_blocks(rows)[0]) // rows.row_bytes)
    for start in range(low, stop, step):
        yield start, take(rows, numbers.read(start, min(start + step, stop)))


def _gather(copies: Callable[[_Range], _Copies], path: str, offset: int, ranges: Sequence[_Range]) -> None:
    """Task: copy the requested rows in some ranges of a table to their positions in a file."""

    def write(source: _Range) -> None:
        for start, some in copies(source):
            write_npy_rows(path, offset, start, some)

    # Tasks for a device run one at a time and leave the CPU cores free.
    share_out(write, ranges, 1 if worker_device() == "cpu" else n_processors())


def _gather_pieces(
    copies: Callable[[_Range], _Copies], store: SharedArrayStore, name: str, ranges: Sequence[_Range]
) -> list[int]:
    """Task: copy the requested rows in some ranges of a table to arrays of a store; returns the offset of each."""
    starts = []
    for source in ranges:
        for start, some in copies(source):
            store.put(f"{name}-{start}", some)
            starts.append(start)
    return starts


def gather(
    rows: Rows, index: NDArray[np.int64] | SharedPieces, runner: Runner, beside: StageBytes | None = None
) -> Rows:
    """Copy rows by sorted numbers into one array: in memory if they fit easily, otherwise in shared files.

    `beside` is the memory of the computation that uses them. If devices hold all rows, and have room for the copies,
    the rows are copied there. `discard` deletes the files; `forget`, with the key of the rows, releases memory.
    """
    if not isinstance(index, SharedPieces):
        store, name = runner.array_store, f"numbers-{uuid.uuid4().hex}"
        numbers = SharedPieces(store.series(name, [store.put(f"{name}-0", index)]), (0, len(index)))
        try:
            return gather(rows, numbers, runner, beside)
        finally:
            numbers.delete()
    if runner.device_budget is not None and not isinstance(rows, SubsetRows):
        some = SubsetRows(rows, index.read())
        if runner.gathers_on_devices(some, beside):
            return runner.place(some)
    n_bytes, copies = index.n_rows * rows.row_bytes, partial(_copies, rows, index)
    n_ranges = max(runner.n_threads, -(-n_bytes // min(_RANGE_BYTES, runner.batch_bytes)))
    # Ranges end at chunk boundaries, so that each storage chunk is read once.
    sources = list(itertools.pairwise(rows.bounds(-(-rows.n_rows * rows.row_bytes // n_ranges), n_ranges).tolist()))
    if runner.fits_in_memory(n_bytes, beside):
        gathered = np.empty((index.n_rows, rows.n_features), rows.dtype)

        def keep(source: tuple[int, int]) -> None:
            for start, some in copies(source):
                gathered[start : start + len(some)] = some

        with runner.on_processors() as processors:
            processors.map(keep, sources, stage="gather")
        in_memory = ArrayRows(gathered, f"{index.n_rows} rows of {rows.label}")
        host_cache.hold(in_memory.key, n_bytes)
        if rows.row_bytes >= _NUMBERED_BYTES:
            in_memory.origin = rows.key, index.read()
        return in_memory
    n_of_task = 1 if runner.device_budget is None else -(-len(sources) // runner.n_workers)
    ranges = [sources[i : i + n_of_task] for i in range(0, len(sources), n_of_task)]
    shape = index.n_rows, rows.n_features
    if (store := runner.array_store).is_remote:
        name = f"rows-{uuid.uuid4().hex}"
        starts = np.array(sorted(itertools.chain.from_iterable(
            runner.map(partial(_gather_pieces, copies, store, name), ranges, stage="gather")
        )))  # fmt: skip
        return PieceRows(store, name, starts, shape, rows.dtype)
    path = runner.work_dir / f"rows-{uuid.uuid4().hex}.npy"
    try:
        offset = create_npy(path, shape, rows.dtype)
        runner.map(partial(_gather, copies, str(path), offset), ranges, stage="gather")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return NpyRows(path, scratch=True)


def take_rows(rows: Rows, numbers: NDArray[np.int64], runner: Runner) -> np.ndarray:
    """Gather a few rows by sorted numbers into the memory of this process, with the tasks of a pass over all rows."""
    cuts = [part.start for part in runner.split(rows, 1)[1:]]
    pieces = [some for some in np.split(numbers, np.searchsorted(numbers, cuts)) if len(some)]
    return np.concatenate(runner.map(partial(take, rows), pieces, stage="gather"))


def discard(rows: Rows) -> None:
    """Delete the file that `gather` made for these rows, if any."""
    if isinstance(rows, PieceRows):
        rows.delete()
        return
    path = rows.path if isinstance(rows, NpyRows) else rows.index_path if isinstance(rows, SubsetRows) else None
    if path is not None:
        SharedArray(path=path).delete()
