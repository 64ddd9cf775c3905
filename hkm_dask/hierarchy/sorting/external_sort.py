"""External sort of rows by cluster, then key, then row number, with many tasks in bounded memory.

Rows are in *runs*, each in order of row number and small enough for a task. The sorted order is cut at given positions
into *shares*. `find_splitters` finds the row at every such position digit by digit, without sorting, so a cut may lie
within a cluster of any size; `shares_between` rewrites each run with its rows grouped by share; and the task that sorts
a share reads its piece of every run. Only counts and file names pass between tasks, never rows.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.memory import LEAST_SORTED_ROWS, sort_stage
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore, SharedSeries
from hkm_dask.compute.stepwise import Outcome
from hkm_dask.data.chunks import open_array
from hkm_dask.data.objects import Location, location
from hkm_dask.hierarchy.sorting import selection

#: A row in a scratch file; keys are unsigned, since non-negative floats sort like their bits.
_RECORD = np.dtype([("row", "<i8"), ("key", "<u8"), ("label", "<i4")])
#: Bits of a splitter found by one pass.
_DIGIT = 8


@dataclass(frozen=True)
class Records:
    """Rows with a cluster each: row numbers, keys and labels, of shape (n_rows,)."""

    rows: NDArray[np.int64]
    keys: NDArray[np.uint64]
    labels: NDArray[np.int32]

    def packed(self) -> NDArray[np.void]:
        """Return all three in one structured array, as `ScratchRun` reads it."""
        out = np.empty(len(self.rows), _RECORD)
        out["row"], out["key"], out["label"] = self.rows, self.keys, self.labels
        return out


class Run(Protocol):
    """Rows that one task holds, in order of row number, all with a cluster."""

    def read(self) -> Records:
        """Read the rows."""
        ...


@dataclass(frozen=True)
class StoredRun:
    """Rows ``start:stop`` of the arrays ``labels`` and ``distances`` of a level; the keys are the distances."""

    folder: str
    start: int
    stop: int

    def read(self) -> Records:
        """Read the rows that have a label."""
        labels, distances = (
            open_array(location(self.folder) / name).read(self.start, self.stop) for name in ("labels", "distances")
        )
        rows = np.arange(self.start, self.stop)
        used = labels >= 0
        if not used.all():
            rows, labels, distances = rows[used], labels[used], distances[used]
        return Records(rows, distances.view(np.uint32).astype(np.uint64), labels)


@dataclass(frozen=True)
class ScratchRun:
    """Rows ``start:stop`` of an array made by `Records.packed`."""

    records: SharedArray
    start: int
    stop: int

    def read(self) -> Records:
        """Read the rows."""
        packed = self.records.read(self.start, self.stop)
        return Records(*(np.ascontiguousarray(packed[name]) for name in ("row", "key", "label")))


@dataclass(frozen=True)
class Share:
    """Rows at positions ``start:stop`` of the sorted order, in pieces that are in order of row number.

    The pieces are whole runs, or parts of the arrays in `written`: row `number` of `bounds` holds the beginning of the
    share in each array, and the next row its end.
    """

    start: int
    stop: int
    runs: tuple[Run, ...] = ()
    written: SharedSeries | None = None
    bounds: SharedArray | None = None
    number: int = 0

    def spans(self) -> list[tuple[int, int, int]]:
        """Return the number of each written array that has rows of the share, with their beginning and end in it."""
        assert self.bounds is not None
        low, high = self.bounds.read(self.number, self.number + 2)
        return [(i, int(low[i]), int(high[i])) for i in np.flatnonzero(low < high).tolist()]

    def read(self) -> Records:
        """Read the share, in order of row number."""
        pieces: Sequence[Run] = self.runs
        if self.written is not None:
            pieces = [ScratchRun(self.written[i], first, last) for i, first, last in self.spans()]
        n_rows, low = self.stop - self.start, 0
        out = Records(np.empty(n_rows, np.int64), np.empty(n_rows, np.uint64), np.empty(n_rows, np.int32))
        for piece in pieces:
            records = piece.read()
            some = slice(low, low := low + len(records.rows))
            out.rows[some], out.keys[some], out.labels[some] = records.rows, records.keys, records.labels
        return out


@dataclass(frozen=True)
class Splitters(Outcome):
    """Cuts of the sorted order: each before the first row of the cluster whose key and number reach the given ones.

    All arrays are of shape (n_places,), in sorted order.
    """

    clusters: NDArray[np.int32]
    keys: NDArray[np.uint64]
    rows: NDArray[np.uint64]


def rows_at_once(runner: Runner) -> int:
    """Return the rows of a run or share: a quarter of a worker's memory divided by its threads, up to a limit."""
    n_bytes = runner.memory_budget // (4 * runner.threads_per_worker)
    return int(min(max(n_bytes // sort_stage(1).task, LEAST_SORTED_ROWS), 1 << 22))


def n_at_once(n_rows: int, runner: Runner) -> int:
    """Return the rows of a run or share of `n_rows` in all: few enough to give every thread one, if that pays off."""
    return min(rows_at_once(runner), max(1 << 18, -(-n_rows // runner.n_threads)))


def stored_runs(folder: Location, n_rows: int, chunk_rows: int, runner: Runner) -> list[Run]:
    """Return runs of all rows of a level whose arrays are in `folder`, each of whole chunks if these are small."""
    size = n_at_once(n_rows, runner)
    size = max(1, size // chunk_rows) * chunk_rows if chunk_rows < size else size
    return [StoredRun(str(folder), low, min(low + size, n_rows)) for low in range(0, n_rows, size)]


def grouped(runs: Sequence[Run], runner: Runner) -> list[list[Run]]:
    """Divide runs into as many tasks as there are threads, keeping neighbors together."""
    cuts = np.unique(len(runs) * np.arange(runner.n_threads + 1) // runner.n_threads).tolist()
    return [list(runs[low:high]) for low, high in itertools.pairwise(cuts)]


def _count_digits(splitters: Splitters, of_keys: bool, shift: int, runs: Sequence[Run]) -> NDArray[np.int64]:
    """Task: for each splitter, count the rows that match its digits so far, by their next digit of key or number."""
    counts = np.zeros((len(splitters.clusters), 1 << _DIGIT), np.int64)
    for run in runs:
        records = run.read()
        rows = records.rows.view(np.uint64)
        selection.count_digits(
            records.labels, records.keys, rows, splitters.clusters, splitters.keys, splitters.rows, of_keys,
            np.uint64(shift), counts,
        )  # fmt: skip
    return counts


def find_splitters(
    runs: Sequence[Run],
    clusters: NDArray[np.int32],
    ranks: NDArray[np.int64],
    *,
    key_bits: int,
    n_rows: int,
    runner: Runner,
    stage: str,
) -> Splitters:
    """Find the row of each rank (from 0) within its cluster; `clusters` are sorted, as are the ranks within one.

    Keys have at most `key_bits` bits, and row numbers are below `n_rows`.
    """
    ranks = ranks.copy()
    found = Splitters(clusters, np.zeros(len(ranks), np.uint64), np.zeros(len(ranks), np.uint64))
    for name, n_bits in (("keys", key_bits), ("rows", n_rows.bit_length())):
        for shift in range((n_bits - 1) // _DIGIT * _DIGIT, -1, -_DIGIT):
            if not ranks.any():  # each is the first of all rows that match so far
                return found
            task = partial(_count_digits, found, name == "keys", shift)
            counts = runner.map_reduce(task, grouped(runs, runner), combine=np.add, stage=stage)
            below = np.cumsum(counts, axis=1)
            digits = (below <= ranks[:, None]).sum(axis=1)
            ranks -= np.where(digits > 0, np.take_along_axis(below, np.maximum(digits - 1, 0)[:, None], 1)[:, 0], 0)
            words = getattr(found, name) | (digits.astype(np.uint64) << np.uint64(shift))
            found = replace(found, **{name: words})
    return found


def whole_clusters(indptr: NDArray[np.int64], at_once: int) -> tuple[NDArray[np.int64], Splitters]:
    """Return positions, with the first and last, that delimit whole clusters: at most `at_once` rows, or one cluster.

    >>> whole_clusters(np.array([0, 2, 2, 5, 9, 10]), 5)[0].tolist()
    [0, 5, 10]
    """
    cuts = [0]
    while cuts[-1] < len(indptr) - 1:
        last = int(np.searchsorted(indptr, indptr[cuts[-1]] + at_once, side="right")) - 1
        cuts.append(max(last, cuts[-1] + 1))
    places = np.unique(np.append(indptr[cuts], [0, indptr[-1]]))
    clusters = np.searchsorted(indptr, places[1:-1], side="right") - 1
    zeros = np.zeros(len(clusters), np.uint64)
    return places, Splitters(clusters.astype(np.int32), zeros, zeros)


def splitters_before(splitters: Splitters, records: Records) -> NDArray[np.int32]:
    """Count, for each row, the splitters at or before it."""
    counts, rows = np.empty(len(records.rows), np.int32), records.rows.view(np.uint64)
    selection.count_splitters(
        records.labels, records.keys, rows, splitters.clusters, splitters.keys, splitters.rows, counts
    )
    return counts


def _partition(
    splitters: Splitters, store: SharedArrayStore, name: str, item: tuple[int, Run]
) -> tuple[SharedArray, NDArray[np.int64]]:
    """Task: rewrite a run grouped by share; returns the array, and the offsets of the shares in it."""
    number, run = item
    records = run.read()
    share = splitters_before(splitters, records).astype(np.uint16)
    order = np.argsort(share, kind="stable")  # a radix sort, as shares have 16 bits
    bounds = np.searchsorted(share[order], np.arange(len(splitters.clusters) + 2))
    ordered = Records(records.rows[order], records.keys[order], records.labels[order])
    return store.put(f"{name}-{number}", ordered.packed()), bounds


@dataclass(frozen=True)
class PartitionedRuns:
    """Runs rewritten by `partitioned`, grouped by share, with a compact mapping back from shares to runs.

    Row `i` of `begins` has, for each share, its number of rows in the runs before run `i`.
    """

    written: SharedSeries
    begins: SharedArray

    def order_of(self, number: int) -> NDArray[np.int64]:
        """Return the rows of a run in the order in which it was rewritten, as positions in order of row number."""
        low, high = self.begins.read(number, number + 2)
        rows = self.written[number].read(0, int((high - low).sum()))["row"]
        order = np.empty(len(rows), np.int64)
        order[np.argsort(rows, kind="stable")] = np.arange(len(rows))
        return order

    def of_run(self, number: int, values: SharedSeries) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return the sorted row numbers of a run, and its rows of `values`, which has one array per share."""
        low, high = self.begins.read(number, number + 2)
        of_shares = [values[i].read(int(low[i]), int(high[i])) for i in np.flatnonzero(low < high).tolist()]
        rows = self.written[number].read(0, int((high - low).sum()))["row"]
        order = np.argsort(rows, kind="stable")
        return rows[order], np.concatenate([values[0].read(0, 0), *of_shares])[order]


@contextmanager
def partitioned(
    places: NDArray[np.int64],
    splitters: Splitters,
    runs: Sequence[Run],
    *,
    store: SharedArrayStore,
    runner: Runner,
    stage: str,
) -> Iterator[tuple[list[Share], PartitionedRuns]]:
    """Yield the shares between `places`, with the first and last; `splitters` are those of the places between.

    The runs are rewritten, grouped by share, to arrays in `store` that are deleted at the end.
    """
    name = f"shares-{uuid.uuid4().hex}"
    task = partial(_partition, splitters, store, name)
    outcomes = runner.map(task, list(enumerate(runs)), stage=stage, takes=sort_stage(rows_at_once(runner)))
    written = store.series(name, [records for records, _ in outcomes])
    of_runs = np.stack([bounds for _, bounds in outcomes], axis=1)
    before = np.zeros((len(outcomes) + 1, len(places) - 1), np.int64)
    np.cumsum(np.diff(of_runs, axis=0).T, axis=0, out=before[1:])
    bounds, begins = store.put(f"{name}-bounds", of_runs), store.put(f"{name}-begins", before)
    try:
        shares = [
            Share(low, high, (), written, bounds, number)
            for number, (low, high) in enumerate(itertools.pairwise(places.tolist()))
        ]
        yield shares, PartitionedRuns(written, begins)
    finally:
        written.delete()
        bounds.delete()
        begins.delete()


@contextmanager
def shares_between(
    places: NDArray[np.int64], splitters: Splitters, runs: Sequence[Run], *, runner: Runner, stage: str
) -> Iterator[list[Share]]:
    """Yield the shares only, as `partitioned` does; a single share consists of the runs, and nothing is written."""
    if len(places) == 2:
        yield [Share(int(places[0]), int(places[1]), tuple(runs))]
        return
    store = runner.scratch_store(int(places[-1]) * _RECORD.itemsize)
    with partitioned(places, splitters, runs, store=store, runner=runner, stage=stage) as (shares, _):
        yield shares
