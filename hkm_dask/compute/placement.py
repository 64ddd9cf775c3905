"""Where rows lie for a computation: copied into one array, in memory or in files that workers see."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.files import careful
from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows

#: Bytes of rows that one task copies at once.
_RANGE_BYTES = 16 << 20


@dataclass(frozen=True)
class RowNumbers:
    """Row numbers of which every task reads a range: by reference within a process, from a file between processes.

    Attributes
    ----------
    path : str or None
        A file of int64 that every worker sees.
    array : ndarray of int64 or None
        The numbers, where there is but one process.

    Examples
    --------
    >>> with Runner(n_threads=1) as runner:
    ...     RowNumbers.put(np.array([7, 8, 9]), runner).read(1, 3)
    array([8, 9])
    """

    path: str | None = None
    array: NDArray[np.int64] | None = None

    @classmethod
    def put(cls, numbers: NDArray[np.int64], runner: Runner) -> RowNumbers:
        """Share numbers with the tasks of a runner."""
        folder = runner.array_store.folder
        if folder is None:
            return cls(array=numbers)
        path = Path(folder, f"numbers-{uuid.uuid4().hex}.i8")
        careful(lambda: np.ascontiguousarray(numbers, np.int64).tofile(path), f"writing {path}")
        return cls(path=str(path))

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Numbers `start` up to `stop`."""
        if self.array is not None:
            return self.array[start:stop]
        path = str(self.path)
        return careful(lambda: np.fromfile(path, np.int64, stop - start, offset=8 * start), f"reading {path}")

    def delete(self) -> None:
        """Remove the file, if there is one."""
        if self.path is not None:
            Path(self.path).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Gather:
    """Task: copy the rows of a range of numbers to their places in a file."""

    rows: Rows
    numbers: RowNumbers
    path: str
    offset: int

    def __call__(self, places: tuple[int, int]) -> None:
        write_npy_rows(self.path, self.offset, places[0], self.rows.take(self.numbers.read(*places)))


def gather(rows: Rows, index: NDArray[np.int64], runner: Runner) -> Rows:
    """Copy chosen rows into one array: in memory if they fit easily, else in a file all workers see.

    Parameters
    ----------
    rows : Rows
    index : ndarray of int64
        Sorted.
    runner : Runner

    Returns
    -------
    Rows
        `discard` removes the file, if there is one.
    """
    n_bytes = len(index) * rows.row_bytes
    if runner.fits_in_memory(n_bytes):
        return ArrayRows(rows.take(index), f"{len(index)} rows of {rows.label}")
    path = runner.work_dir / f"rows-{uuid.uuid4().hex}.npy"
    numbers = RowNumbers.put(index, runner)
    n_ranges = min(len(index), max(runner.n_threads, -(-n_bytes // _RANGE_BYTES)))
    places = itertools.pairwise((len(index) * np.arange(n_ranges + 1) // n_ranges).tolist())
    try:
        offset = create_npy(path, (len(index), rows.n_features), rows.dtype)
        runner.map(_Gather(rows, numbers, str(path), offset), list(places), stage="gather")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        numbers.delete()
    return NpyRows(path)


def discard(rows: Rows) -> None:
    """Remove the file `gather` made.

    Parameters
    ----------
    rows : Rows
        As `gather` returned them.
    """
    if isinstance(rows, NpyRows):
        SharedArray(path=rows.path).delete()
