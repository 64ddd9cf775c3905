"""Members of each cluster, chosen among those picked by every part of the rows, without gathering all in one place.

A task picks among the rows of its part; of everything picked, the `r` members of each cluster with the smallest keys
are chosen. If they are few, the task that combines a pass chooses among all of them. If they are many, they are sorted
by cluster in shares that fit in a task, which give the first excess row of each cluster; each part then drops the rows
from there on.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import array_module, to_host
from hkm_dask.compute.memory import PICKED_ROWS, sort_stage
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore, SharedPieces
from hkm_dask.compute.stepwise import Outcome
from hkm_dask.hierarchy.sorting.external_sort import (
    Records,
    Run,
    ScratchRun,
    Share,
    Splitters,
    find_splitters,
    rows_at_once,
    shares_between,
    splitters_before,
    whole_clusters,
)
from hkm_dask.hierarchy.sorting.members import starts
from hkm_dask.search.smallest import are_smallest, bounds_of_labels, mark_smallest


def pick(n_clusters: int, r: int, keys: Any, labels: Any, rows: range, step: int = PICKED_ROWS) -> Iterator[Records]:
    """Pick up to `r` members of each cluster among the rows of a part: the smallest keys, ties to the lowest row.

    Keys are squared distances or random numbers, float64, and labels int32, -1 for rows left out; both may be on a
    device. Only picked rows are copied to the host, those of `step` rows at a time, to limit memory.

    >>> (picked,) = pick(2, 1, np.array([3.0, 1.0, 1.0, 5.0]), np.int32([0, 0, 0, 1]), range(10, 14))
    >>> picked.rows.tolist(), picked.labels.tolist()
    ([11, 13], [0, 1])
    """
    chosen = are_smallest(n_clusters, r, keys, labels)
    for low in range(0, max(1, len(labels)), step):
        some = slice(low, low + step)
        places = array_module(keys).flatnonzero(chosen[some])
        picked, of_labels, of_keys = map(to_host, (places, labels[some][places], keys[some][places]))
        yield Records(picked + (rows.start + low), of_keys.view(np.uint64), of_labels)


@dataclass(frozen=True)
class Candidates(Outcome):
    """Rows picked by parts: the count for each cluster, and the stored records, part by part."""

    counts: NDArray[np.int64]
    runs: tuple[ScratchRun, ...]

    @classmethod
    def put(cls, picked: Records, n_clusters: int, store: SharedArrayStore, name: str) -> Candidates:
        """Store what one part picked, where all tasks can read it."""
        counts, packed = np.diff(bounds_of_labels(picked.labels, n_clusters)), picked.packed()
        return cls(counts, (ScratchRun(store.put(name, packed), 0, len(packed)),))

    def __add__(self, other: Candidates) -> Candidates:
        return Candidates(self.counts + other.counts, self.runs + other.runs)

    @property
    def n_rows(self) -> int:
        """Number of candidates of all clusters."""
        return sum(run.stop - run.start for run in self.runs)

    def delete(self) -> None:
        """Delete the stored records."""
        for run in self.runs:
            run.records.delete()


def choose_together(candidates: Candidates, r: int, store: SharedArrayStore, name: str) -> SharedPieces:
    """Choose up to `r` candidates of each cluster, all in memory at once; returns their sorted row numbers."""
    records = Share(0, candidates.n_rows, candidates.runs).read()
    chosen = np.zeros(len(records.rows), np.bool_)
    mark_smallest(records.keys.view(np.float64), records.labels, starts(candidates.counts), r, chosen)
    numbers = records.rows[chosen]
    return SharedPieces(store.series(name, [store.put(f"{name}-0", numbers)]), (0, len(numbers)))


def _find_limits(r: int, share: Share) -> Splitters:
    """Task: find the first excess candidate of each cluster of a share with more than `r` candidates."""
    records = share.read()
    first, last = int(records.labels.min()), int(records.labels.max())
    order = np.lexsort((records.keys, records.labels))  # stable: ties stay in row order
    indptr = bounds_of_labels(records.labels - np.int32(first), last - first + 1)
    large = np.flatnonzero(np.diff(indptr) > r)
    beyond = order[indptr[large] + r]
    return Splitters((large + first).astype(np.int32), records.keys[beyond], records.rows[beyond].astype(np.uint64))


def _leave_out(
    shared: Sequence[SharedArray], store: SharedArrayStore, name: str, item: tuple[int, ScratchRun]
) -> tuple[SharedArray, int]:
    """Task: keep the row numbers of a run that come before the limit of their cluster."""
    number, run = item
    records, limits = run.read(), Splitters(*(values.get() for values in shared))
    chosen = splitters_before(limits, records) == np.searchsorted(limits.clusters, records.labels)
    numbers = records.rows[chosen]
    return store.put(f"{name}-{number}", numbers), len(numbers)


def choose(candidates: Candidates, r: int, n_rows: int, runner: Runner) -> SharedPieces:
    """Choose up to `r` candidates of each cluster, with many tasks; row numbers are below `n_rows` and sorted."""
    name, at_once = f"numbers-{uuid.uuid4().hex}", rows_at_once(runner)
    pieces = [
        ScratchRun(run.records, low, min(low + at_once, run.stop))
        for run in candidates.runs
        for low in range(run.start, run.stop, at_once)
    ]
    limits = _limits(candidates.counts, pieces, r, n_rows, runner)
    store = runner.scratch_store(8 * candidates.n_rows)
    words = limits.clusters, limits.keys, limits.rows
    shared = [store.put(f"limits-{uuid.uuid4().hex}", values) for values in words]
    try:
        task = partial(_leave_out, shared, store, name)
        outcomes = runner.map(task, list(enumerate(pieces)), stage="resample", takes=sort_stage(at_once))
    finally:
        for handle in shared:
            handle.delete()
    offsets = starts(np.array([n for _, n in outcomes])).tolist()
    return SharedPieces(store.series(name, [numbers for numbers, _ in outcomes]), tuple(offsets))


def _limits(counts: NDArray[np.int64], runs: Sequence[Run], r: int, n_rows: int, runner: Runner) -> Splitters:
    """Find the first excess candidate of every cluster with more than `r`; `counts` has all clusters."""
    at_once = rows_at_once(runner)
    huge = np.flatnonzero(counts > at_once)
    # A cluster too large for a task is a share by itself, and its limit is found digit by digit.
    places, splitters = whole_clusters(starts(counts), at_once)
    with shares_between(places, splitters, runs, runner=runner, stage="resample") as shares:
        held = [share for share in shares if share.stop - share.start <= at_once]
        found = [Splitters(np.empty(0, np.int32), np.empty(0, np.uint64), np.empty(0, np.uint64))]
        if held:
            found += runner.map(partial(_find_limits, r), held, stage="resample", takes=sort_stage(at_once))
    huge = huge[counts[huge] > r]
    if len(huge):
        ranks = np.full(len(huge), r, np.int64)
        found.append(
            find_splitters(
                runs, huge.astype(np.int32), ranks, key_bits=64, n_rows=n_rows, runner=runner, stage="resample"
            )
        )
    of_each = [np.concatenate([getattr(some, name) for some in found]) for name in ("clusters", "keys", "rows")]
    order = np.argsort(of_each[0], kind="stable")
    return Splitters(*(values[order] for values in of_each))
