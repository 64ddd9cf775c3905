"""Assignment of all rows of a level to clusters in one pass, to store the labels or to pick members to resample."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.keyed_random import random_uniform
from hkm_dask.compute.memory import DRAWN_ROWS, MEMBER_BYTES
from hkm_dask.compute.partition import Part
from hkm_dask.compute.range_memory import label_stage
from hkm_dask.compute.runner import Runner, runner_in_task
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore, SharedPieces
from hkm_dask.compute.stepwise import Outcome
from hkm_dask.data.chunks import open_array
from hkm_dask.data.objects import Location, location
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import Rows
from hkm_dask.hierarchy.candidates import Candidates, choose, choose_together, pick
from hkm_dask.hierarchy.sorting.external_sort import rows_at_once
from hkm_dask.kmeans.ranges import nearest_by_ranges
from hkm_dask.search.engine import Assignment, Engine, fold
from hkm_dask.search.geometry import Geometry
from hkm_dask.search.smallest import bounds_of_labels
from hkm_dask.search.worker import engine_for, worker_engine

#: Of shape (n_clusters, n_features), float32.
Centroids = NDArray[np.float32] | SharedPieces


@dataclass(frozen=True)
class Assigned(Outcome):
    """Totals of a pass: the rows of each cluster, and the members picked for resampling.

    `chosen`, set at the end, holds the row numbers of those chosen among all that were picked.
    """

    counts: NDArray[np.int64]
    picked: Candidates | None = None
    chosen: SharedPieces | None = None

    def __add__(self, other: Assigned) -> Assigned:
        picked = self.picked + other.picked if self.picked is not None and other.picked is not None else None
        return Assigned(self.counts + other.counts, picked)


@dataclass(frozen=True)
class Assign:
    """Task: label the rows of a part; write labels and distances to the group `folder`, or pick members, or both.

    Up to `r` members of each cluster are picked into `store`: the closest, or random ones by `random_key`. `hints` are
    int32: for each label of the last pass of this run, the centroid to try first.
    """

    centroids: SharedArray | SharedPieces
    geometry: Geometry
    run: str
    folder: str | None = None
    r: int = 0
    random_key: int | None = None
    hints: SharedArray | None = None
    store: SharedArrayStore | None = None

    def __call__(self, part: Part) -> Assigned:
        """Label one part."""
        engine = worker_engine()
        if isinstance(self.centroids, SharedPieces):
            n_clusters = self.centroids.n_rows
            assignment = nearest_by_ranges(part, engine, self.centroids, self.geometry, "assign")
        else:
            n_clusters = len(self.centroids.get())
            assignment = self._nearest(part, engine, self.centroids)
        labels, distances = assignment.labels, assignment.distances
        if self.folder is not None:
            self._write(part, engine.host(labels), engine.host(distances))
        picked = None
        if self.r and self.store is not None:
            if self.random_key is not None:  # in the memory of the distances, a few at a time
                for low in range(0, len(labels), DRAWN_ROWS):
                    rows = engine.xp.arange(part.start + low, min(part.start + low + DRAWN_ROWS, part.stop))
                    distances[low : low + DRAWN_ROWS] = random_uniform(self.random_key, rows)
            picks = pick(n_clusters, self.r, distances, labels, range(part.start, part.stop))
            put = (Candidates.put(some, n_clusters, self.store, f"picked-{uuid.uuid4().hex}") for some in picks)
            picked = reduce(Candidates.__add__, put)
        return Assigned(np.diff(bounds_of_labels(labels, n_clusters)), picked)

    def _nearest(self, part: Part, engine: Engine, centroids: SharedArray) -> Assignment:
        assignment = engine.unknown(part.stop - part.start)
        labels = engine.pop(part, "assign", self.run)
        if labels is not None and self.hints is not None:
            assignment.labels = engine.put(self.hints.get())[labels]
        search = engine.search(part, self.geometry, "assign", assignment)
        fold(part, engine, assignment, partial(search.update, centroids=centroids), geometry=self.geometry)
        engine.keep(part, "assign", self.run, assignment.labels, assignment.labels.nbytes)
        return assignment

    def _write(self, part: Part, labels: NDArray[np.int32], distances: NDArray[np.float64]) -> None:
        """Write labels and distances chunk by chunk; rows outside the subset get none."""
        of_labels, of_distances = (open_array(location(str(self.folder)) / name) for name in ("labels", "distances"))
        n_total, chunk_rows = of_labels.spec.shape[0], of_labels.spec.chunk_rows
        index = part.rows.index if isinstance(part.rows, SubsetRows) else None
        first, last = part.start, part.stop
        if index is not None:
            first = 0 if first == 0 else int(index[first]) // chunk_rows * chunk_rows
            last = n_total if last == len(index) else int(index[last]) // chunk_rows * chunk_rows
        right = part.start
        for low in range(first, last, chunk_rows):
            high = min(low + chunk_rows, last)
            some, places = slice(low - part.start, high - part.start), np.arange(high - low)
            if index is not None:
                left, numbers = right, index[right : right + high - low]
                numbers = numbers[numbers < high]
                right = left + len(numbers)
                some, places = slice(left - part.start, right - part.start), numbers - low
            for array, values, missing in ((of_labels, labels, -1), (of_distances, distances, np.nan)):
                chunk = np.full(high - low, missing, array.spec.dtype)
                chunk[places] = values[some]
                array.write(low, chunk)


def _choose_few(r: int, most: int, store: SharedArrayStore, total: Assigned) -> Assigned:
    """Task: choose `r` members of each cluster, if all that were picked fit in memory together."""
    if total.picked is None or total.picked.n_rows > most:
        return total
    name = f"numbers-{uuid.uuid4().hex}"
    return replace(total, chosen=choose_together(total.picked, r, store, name))


@dataclass(frozen=True)
class LevelRows:
    """The input of a level: the rows to cluster, among `n_total` rows with a label (-1 for those left out).

    Labels are stored in chunks of `chunk_rows`.
    """

    rows: Rows
    n_total: int
    geometry: Geometry
    chunk_rows: int = 1

    def boundaries(self) -> NDArray[np.int64]:
        """Positions in `rows` at the boundaries of the label array's chunks."""
        chunks = np.append(np.arange(0, self.n_total, self.chunk_rows), self.n_total)
        if isinstance(self.rows, SubsetRows):
            return np.unique(self.rows.index.searchsorted(chunks))
        return chunks


def _nearest_centroids(
    points: SharedArray, centroids: SharedArray, geometry: Geometry, places: tuple[int, int]
) -> NDArray[np.int32]:
    """Task: find the centroids nearest to a range of the points; -1 for NaN points."""
    some, table = points.read(*places), centroids.get()
    labels, used = np.full(len(some), -1, np.int32), ~np.isnan(some[:, 0])
    engine = engine_for(2.0 * some.size * len(table))
    key = ("hints", centroids.name, geometry.name)
    index = engine.made.get(key, (centroids,), lambda: engine.index(table, geometry))
    nearest = engine.unknown(int(used.sum()))
    index.nearest(engine.put(some[used]), nearest.labels, nearest.distances)
    labels[used] = engine.host(nearest.labels)
    return labels


def _hints(
    before: SharedArray, n_before: int, centroids: SharedArray, geometry: Geometry, runner: Runner
) -> NDArray[np.int32]:
    """Return the centroid nearest to each of the `n_before` centroids of the last pass."""
    n_ranges = runner.n_parts(2.0 * n_before * centroids.get().size)
    places = itertools.pairwise((n_before * np.arange(n_ranges + 1) // n_ranges).tolist())
    task = partial(_nearest_centroids, before, centroids, geometry)
    return np.concatenate(runner.map(task, list(places), stage="assign"))


@contextmanager
def shared_centroids(*centroids: Centroids | None, runner: Runner) -> Iterator[list[Any]]:
    """Share centroids with tasks while the context is open, as one array unless they are in pieces; see `loaded`.

    None stays None.
    """
    with ExitStack() as stack:
        yield [
            one if isinstance(one, SharedPieces) else stack.enter_context(runner.array_store.lent("centroids", one))
            for one in centroids
        ]


def loaded(shared: SharedArray | SharedPieces | None) -> Centroids | None:
    """Return the centroids that were shared, or None."""
    return shared.get() if isinstance(shared, SharedArray) else shared


def labels_in_one_task(runner: Runner, shape: tuple[int, int], n_clusters: int, row_bytes: int) -> bool:
    """Tell whether one task labels rows of this shape, maybe with last labels cached by a resampling in one task."""
    n_rows, n_features = shape
    stage = label_stage(n_rows, n_clusters, n_features)
    return runner.fits_one_task(2.0 * n_rows * n_clusters * n_features, n_rows * row_bytes, stage)


def _assign_in_task(
    level: LevelRows, run: str, folder: str, shared: list[Any], n_threads: int, memory_budget: int
) -> Assigned:
    centroids, before = map(loaded, shared)
    assert centroids is not None
    with runner_in_task(memory_budget, n_threads) as runner:
        return assign(level, centroids, run=run, runner=runner, folder=location(folder), before=before)


def assign(
    level: LevelRows,
    centroids: Centroids,
    *,
    run: str,
    runner: Runner,
    folder: Location | None = None,
    r: int = 0,
    random_key: int | None = None,
    before: Centroids | None = None,
) -> Assigned:
    """Label all rows of a level; write labels and distances to `folder`, or pick `r` members per cluster, or both.

    `before` are the centroids of the last pass of this `run`: a row's search starts near its old centroid. Centroids in
    pieces are searched piece by piece, and nothing is cached. A few rows are labeled by one task.
    """
    rows = level.rows
    if isinstance(centroids, SharedPieces):
        n_clusters, n_ranges = centroids.n_rows, centroids.series.n_arrays
    else:
        n_clusters, n_ranges = len(centroids), 1
    with shared_centroids(centroids, before, runner=runner) as (shared, last):
        if (
            folder is not None
            and isinstance(shared, SharedArray)
            and labels_in_one_task(runner, rows.shape, n_clusters, rows.row_bytes)
        ):
            in_task = partial(_assign_in_task, level, run, str(folder), [shared, last], runner.n_threads_alone)
            alone: Assigned = runner.call(in_task, runner.memory_budget, stage="assign")
            return alone
        # The same parts in every pass, so that each finds its cached state.
        shape = (runner.n_own(rows), n_clusters, rows.n_features)
        stage = label_stage(*shape, n_ranges, min(shape[0], n_clusters * r * runner.threads_per_worker) if r else None)
        parts = runner.split(rows, n_clusters, cuts=level.boundaries(), stage=stage)
        nearest = None
        if isinstance(shared, SharedArray) and isinstance(before, np.ndarray):
            nearest = _hints(last, len(before), shared, level.geometry, runner)
        store = runner.scratch_store(MEMBER_BYTES * min(rows.n_rows, n_clusters * r * len(parts)))
        with runner.array_store.lent("hints", nearest) as hints:
            written = None if folder is None else str(folder)
            task = Assign(shared, level.geometry, run, written, r, random_key, hints, store)
            finish = partial(_choose_few, r, rows_at_once(runner), store)
            total: Assigned = runner.map_reduce(task, parts, combine=Assigned.__add__, finish=finish, stage="assign")
    if total.picked is not None:
        if total.chosen is None:
            total = replace(total, chosen=choose(total.picked, r, rows.n_rows, runner))
        assert total.picked is not None
        total.picked.delete()
    return total
