"""Regrouping of rows, cluster by cluster, in a file, and returning results to the original order of the rows.

A task holds the numbers, labels and distances of a run of rows, or of a share of the clusters, and passes them to other
tasks through files. The driver holds only how many rows of each run are in each share. If workers share no folder, they
cannot write one file together: runs and shares are then small enough for a task to hold their rows too, which are
passed on as objects.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import iter_blocks
from hkm_dask.compute.memory import REGROUPED_ROW_BYTES, StageBytes, sort_stage
from hkm_dask.compute.partition import Part
from hkm_dask.compute.piece_rows import PieceRows
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore, SharedSeries
from hkm_dask.data.chunks import open_array
from hkm_dask.data.files import careful
from hkm_dask.data.npy import create_npy, write_at
from hkm_dask.data.objects import Location, location
from hkm_dask.data.rows import NpyRows, Rows
from hkm_dask.hierarchy.level_arrays import Readable
from hkm_dask.hierarchy.sorting.external_sort import (
    PartitionedRuns,
    Share,
    StoredRun,
    partitioned,
    rows_at_once,
    whole_clusters,
)
from hkm_dask.hierarchy.sorting.members import chunk_cuts, order_of

#: With fewer rows than this, one task regroups all.
_LEAST_RUN = 1 << 14
#: Bytes of a block's rows that are reordered at once before they are written.
_COPIED_BYTES = 4 << 20

#: A part of whole runs, the number of its first run, and the boundaries of its runs as positions.
_RunsOfPart = tuple[Part, int, tuple[int, ...]]


def _find_places(store: SharedArrayStore, name: str, share: Share) -> SharedArray:
    """Task: find the position of each row of a share among the rows of all clusters."""
    places = np.empty(share.stop - share.start, np.int64)
    places[order_of(share.read())] = np.arange(share.start, share.stop)
    return store.put(f"{name}-{share.number}", places)


def _regroup(path: str, offset: int, runs: PartitionedRuns, places: SharedSeries, item: _RunsOfPart) -> None:
    """Task: write the rows of a part, made up of runs with these boundaries, to their positions in a file."""
    part, first, positions = item

    def write() -> None:
        fd = os.open(path, os.O_WRONLY)
        try:
            for number, (low, high) in enumerate(itertools.pairwise(positions), first):
                bounds = (low, *(bound for bound in part.bounds if low < bound < high), high)
                if low < high:
                    of_run = runs.of_run(number, places)[1]
                    for start, block in iter_blocks(replace(part, bounds=bounds)):
                        _write_block(fd, offset, block, of_run[start - low :][: len(block)])
        finally:
            os.close(fd)

    careful(write, f"writing {path}")


def _write_block(fd: int, offset: int, block: NDArray[np.floating], places: NDArray[np.int64]) -> None:
    order, width = np.argsort(places), block.shape[1] * block.itemsize
    step = max(1, _COPIED_BYTES // width)
    for begin in range(0, len(order), step):
        some = order[begin : begin + step]
        rows, to = np.ascontiguousarray(block[some]), places[some]
        cuts = np.flatnonzero(np.diff(to) != 1) + 1
        for low, high in itertools.pairwise([0, *cuts.tolist(), len(rows)]):
            write_at(fd, rows[low:high], offset + int(to[low]) * width)


def _sort_runs(runs: PartitionedRuns, store: SharedArrayStore, name: str, item: _RunsOfPart) -> list[SharedArray]:
    """Task: write the rows of runs with these boundaries share by share, as one array per run."""
    part, first, positions = item
    return [
        store.put(f"{name}-{number}", part.rows.read(low, high)[runs.order_of(number)])
        for number, (low, high) in enumerate(itertools.pairwise(positions), first)
    ]


def _merge_share(of_runs: SharedSeries, places: SharedSeries, store: SharedArrayStore, name: str, share: Share) -> None:
    """Task: write the rows of a share, gathered from all runs, to an array in the order of their positions."""
    own_places = places[share.number].read(0, share.stop - share.start)
    merged, low = None, 0
    for number, start, stop in share.spans():
        rows = of_runs[number].read(start, stop)
        if merged is None:
            merged = np.empty((len(own_places), *rows.shape[1:]), rows.dtype)
        merged[own_places[low : low + len(rows)] - share.start] = rows
        low += len(rows)
    assert merged is not None
    store.put(f"{name}-{share.start}", merged)


def _put_back(found: Readable, places: SharedSeries, store: SharedArrayStore, name: str, share: Share) -> SharedArray:
    """Task: reorder the file's results for the rows of a share into the order in which the share is read."""
    own_places = places[share.number].read(0, share.stop - share.start)
    values = found.read(share.start, share.stop)[own_places - share.start]
    return store.put(f"{name}-{share.number}", values)


def _write_back(folder: str, runs: PartitionedRuns, found: SharedSeries, item: tuple[int, tuple[int, ...]]) -> None:
    """Task: write labels and distances of runs made up of whole chunks; rows without a cluster get none.

    `item` holds the number of the first run, and the boundaries of the runs as row numbers.
    """
    first, bounds = item
    arrays = [open_array(location(folder) / name) for name in ("labels", "distances")]

    def of_rows(number: int, low: int, high: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        rows, values = runs.of_run(number, found)
        labels, distances = np.full(high - low, -1, np.int32), np.full(high - low, np.nan, np.float32)
        labels[rows - low], distances[rows - low] = values[:, 0], values[:, 1].view(np.float32)
        return labels, distances

    if len(bounds) == 2:
        for array, values in zip(arrays, of_rows(first, *bounds), strict=True):
            array.write(bounds[0], values)
        return
    with ExitStack() as stack:
        chunks = [stack.enter_context(array.writer(bounds[0] // array.spec.chunk_rows)) for array in arrays]
        for number, (low, high) in enumerate(itertools.pairwise(bounds), first):
            for chunk, values in zip(chunks, of_rows(number, low, high), strict=True):
                chunk.append(values)


@dataclass(frozen=True)
class Regrouped:
    """Rows regrouped by cluster, those of each cluster in order of distance, then of row.

    `tasks` holds the row boundaries of the runs of each task, whole chunks of the labels in `folder`.
    """

    rows: Rows
    folder: Location
    shares: list[Share]
    runs: PartitionedRuns
    places: SharedSeries
    tasks: list[NDArray[np.int64]]
    store: SharedArrayStore
    takes: StageBytes

    def write_back(self, found: Readable, runner: Runner) -> None:
        """Write labels and distances of all rows; `found`, int32 (n_rows, 2), has labels and distance bits in order."""
        takes, name = self.takes, f"found-{uuid.uuid4().hex}"
        task = partial(_put_back, found, self.places, self.store, name)
        of_shares = self.store.series(name, runner.map(task, self.shares, stage="regroup", takes=takes))
        try:
            first = np.cumsum([0, *(len(task) - 1 for task in self.tasks)]).tolist()
            items = [(number, tuple(task.tolist())) for number, task in zip(first, self.tasks, strict=False)]
            write = partial(_write_back, str(self.folder), self.runs, of_shares)
            runner.map(write, items, stage="regroup", takes=takes)
        finally:
            of_shares.delete()


@contextmanager
def regrouped(rows: Rows, folder: Location, indptr: NDArray[np.int64], runner: Runner) -> Iterator[Regrouped]:
    """Regroup rows by the labels and distances in `folder`; `indptr` holds the offsets of the clusters.

    `rows` are those with a label, in order. Temporary files are deleted at the end.
    """
    store, name = runner.scratch_store(REGROUPED_ROW_BYTES * rows.n_rows), f"places-{uuid.uuid4().hex}"
    spec, at_once = open_array(folder / "labels").spec, rows_at_once(runner)
    if store.is_remote:  # a task holds the rows as well
        at_once = min(at_once, max(1, runner.memory_budget // (8 * runner.threads_per_worker * rows.row_bytes)))
    size = min(at_once, max(_LEAST_RUN, -(-spec.shape[0] // runner.n_threads)))
    tasks = chunk_cuts(spec.shape[0], spec.chunk_rows, size)
    runs = [StoredRun(str(folder), low, high) for task in tasks for low, high in itertools.pairwise(task.tolist())]
    ends, splitters = whole_clusters(indptr, at_once)
    takes = sort_stage(at_once)
    with partitioned(ends, splitters, runs, store=store, runner=runner, stage="regroup") as (shares, of_runs):
        found = runner.map(partial(_find_places, store, name), shares, stage="regroup", takes=takes)
        places = store.series(name, found)
        try:
            items = _parts_of_runs(rows, of_runs.begins.get().sum(axis=1), takes, runner)
            if store.is_remote:
                # Rows are held twice, those of a run or of a share; the latter contains a large cluster as a whole.
                n_held = max(size, int(np.diff(ends).max()))
                takes = replace(takes, task=sort_stage(n_held).task + 2 * n_held * rows.row_bytes)
                together = _in_pieces(rows, items, shares, of_runs, places, store, runner, takes)
            else:
                together = _in_file(rows, items, of_runs, places, runner, takes)
            with together as regrouped_rows:
                yield Regrouped(regrouped_rows, folder, shares, of_runs, places, tasks, store, takes)
        finally:
            places.delete()


@contextmanager
def _in_file(
    rows: Rows, items: list[_RunsOfPart], runs: PartitionedRuns, places: SharedSeries, runner: Runner, takes: StageBytes
) -> Iterator[Rows]:
    """Regroup rows into one file, written by all tasks."""
    path = Path(runner.work_dir) / f"regrouped-{uuid.uuid4().hex}.npy"
    try:
        offset = create_npy(path, rows.shape, rows.dtype)
        runner.map(partial(_regroup, str(path), offset, runs, places), items, stage="regroup", takes=takes)
        yield NpyRows(path, scratch=True)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _in_pieces(
    rows: Rows, items: list[_RunsOfPart], shares: list[Share], runs: PartitionedRuns, places: SharedSeries,
    store: SharedArrayStore, runner: Runner, takes: StageBytes,
) -> Iterator[Rows]:  # fmt: skip
    """Regroup rows into one array per share."""
    name, of_run = (f"{kind}-{uuid.uuid4().hex}" for kind in ("regrouped", "run"))
    starts = np.array([share.start for share in shares])
    regrouped_rows = PieceRows(store, name, starts, rows.shape, rows.dtype)
    try:
        written = runner.map(partial(_sort_runs, runs, store, of_run), items, stage="regroup", takes=takes)
        of_runs = store.series(of_run, list(itertools.chain.from_iterable(written)))
        try:
            runner.map(partial(_merge_share, of_runs, places, store, name), shares, stage="regroup", takes=takes)
        finally:
            of_runs.delete()
        yield regrouped_rows
    finally:
        regrouped_rows.delete()


def _parts_of_runs(rows: Rows, positions: NDArray[np.int64], stage: StageBytes, runner: Runner) -> list[_RunsOfPart]:
    """Return parts of whole runs with boundaries at these positions: the part, its first run, its boundaries."""
    items = []
    for part in runner.split(rows, 1, cuts=np.unique(positions), stage=stage):
        first = int(np.searchsorted(positions, part.start, side="right")) - 1
        last = int(np.searchsorted(positions, part.stop))
        items.append((part, first, tuple(positions[first : last + 1].tolist())))
    return items
