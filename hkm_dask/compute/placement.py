"""Where rows lie for a computation: copied together, in memory or in files that workers see."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.cluster_runner import ClusterRunner
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.row_views import SubsetRows, UnitRows
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows
from hkm_dask.data.scratch import create_npy, write_npy_rows


def on_workers(rows: Rows, runner: Runner) -> Rows:
    """Put what lies in this process's memory where workers can read it.

    Parameters
    ----------
    rows : Rows
    runner : Runner

    Returns
    -------
    Rows
        The same rows, cheap to send to a worker; `rows` themselves where there are no workers but threads.
    """
    if not isinstance(runner, ClusterRunner):
        return rows
    if isinstance(rows, ArrayRows):
        shared = runner.array_store.put(f"rows-{rows.key[-1]}", rows.array)
        return NpyRows(str(shared.path), label=rows.label)
    if isinstance(rows, UnitRows):
        return UnitRows(on_workers(rows.base, runner))
    if isinstance(rows, SubsetRows):
        placed = SubsetRows(on_workers(rows.base, runner), rows.index)
        placed.travel_by(Path(str(runner.array_store.folder)) / f"subset-{uuid.uuid4().hex}.npy")
        return placed
    return rows


@dataclass(frozen=True)
class _Gather:
    """Task: copy some rows into their place in a file."""

    rows: Rows
    path: str
    offset: int

    def __call__(self, item: tuple[int, NDArray[np.int64]]) -> None:
        place, index = item
        write_npy_rows(self.path, self.offset, place, self.rows.take(index))


def gather(rows: Rows, index: NDArray[np.int64], runner: Runner) -> Rows:
    """Copy chosen rows together: in memory if they fit easily, else in a file all workers see.

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
    if not isinstance(runner, ClusterRunner) and n_bytes <= runner.memory_budget // 4:
        return ArrayRows(rows.take(index), f"{len(index)} rows of {rows.label}")
    path = runner.work_dir / f"rows-{uuid.uuid4().hex}.npy"
    offset = create_npy(path, (len(index), rows.n_features), rows.dtype)
    n_slabs = max(runner.n_threads, -(-n_bytes // (16 << 20)))
    slabs = [slab for slab in np.array_split(np.arange(len(index)), n_slabs) if len(slab)]
    items = [(int(slab[0]), index[slab]) for slab in slabs]
    runner.map(_Gather(rows, str(path), offset), items, stage="gather")
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
