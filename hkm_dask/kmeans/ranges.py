"""Lloyd's iteration by ranges of clusters, for centroids that no worker can hold; each range and its sums are files.

A part of the rows is searched against the ranges in order and keeps the nearest centroid so far. A distance depends on
its row and centroid only, and ties keep the lower index, so the labels are bitwise those of one search among all
centroids. The part then sums its rows in int64, one range after another, into files. The task that moves the centroids
of a range adds up the files of all parts for it. No process holds all centroids or all sums; only counts stay whole.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.partition import Part
from hkm_dask.compute.range_memory import lloyd_by_ranges, range_offsets, rows_of_range, update_of_range
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import RecentCache, SharedArray, SharedArrayStore, SharedPieces
from hkm_dask.compute.stepwise import Outcome
from hkm_dask.data.objects import each, location
from hkm_dask.data.rows import Rows
from hkm_dask.kmeans.fit import Hooks, Settings
from hkm_dask.kmeans.lloyd import Course, LloydStep, PartialSums, Progress, moved
from hkm_dask.kmeans.relocation import NO_RELOCATIONS, Relocations, relocate
from hkm_dask.kmeans.seeding.random_rows import seed_by_ranges
from hkm_dask.search.engine import Assignment, CentroidIndex, Engine, tiles
from hkm_dask.search.geometry import Geometry
from hkm_dask.search.worker import worker_engine

#: The most recent index of a range, shared by threads of this process that search the same range.
_last_index = RecentCache(n_least=1, most_bytes=1)
#: Rows of sums copied at once.
_COPIED_ROWS = 4096
_NO_SUMS = np.empty(0, np.int64)


def put_ranges(centroids: NDArray[np.float32], n_ranges: int, store: SharedArrayStore, name: str) -> SharedPieces:
    """Split centroids into `n_ranges` ranges and store them.

    >>> put_ranges(np.zeros((5, 2), np.float32), 2, SharedArrayStore(), "zeros").offsets
    (0, 2, 5)
    """
    offsets = range_offsets(len(centroids), n_ranges)
    arrays = [
        store.put(f"{name}-{i}", centroids[low:high]) for i, (low, high) in enumerate(itertools.pairwise(offsets))
    ]
    return SharedPieces(store.series(name, arrays), offsets)


# -- over a part of the rows -------------------------------------------------------------------------------------------


def nearest_by_ranges(
    part: Part, engine: Engine, centroids: SharedPieces, geometry: Geometry, phase: str
) -> Assignment:
    """Label the rows of a part with their nearest centroids, holding one range of centroids at a time."""
    assignment = engine.unknown(part.stop - part.start)
    search = engine.search(part, geometry, phase, assignment)
    for number, first in enumerate(centroids.offsets[:-1]):
        piece, index = centroids.series[number], None
        for tile in tiles(part, engine, assignment):
            if index is None:
                form = search.form(tile, piece)
                make: Callable[[], CentroidIndex] = partial(_index, search.make_index, piece, geometry, form)
                index = _last_index.get((piece.name, geometry.name, form), (piece,), make)
            index.nearest(tile.rows, tile.labels, tile.distances, search.operand(tile, index), first)
    return assignment


def _index(make: Callable[..., CentroidIndex], piece: SharedArray, geometry: Geometry, form: Any) -> CentroidIndex:
    return make(piece.get(), geometry, form)


def _sums_of_range(
    part: Part, engine: Engine, assignment: Assignment, first: int, stop: int, geometry: Geometry
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return fixed-point sums and counts of the clusters ``first:stop``, on the host."""
    units, xp = geometry.units, engine.xp
    sums = engine.zeros(stop - first, units.n_columns(part.rows.n_features))
    counts = engine.zeros(stop - first)
    for tile in tiles(part, engine, assignment):
        within = (tile.labels >= first) & (tile.labels < stop)
        labels = xp.where(within, tile.labels - np.int32(first), np.int32(-1))
        units.add_rows(engine, tile.rows, labels, tile.weights, sums, counts)
    return engine.host(sums), engine.host(counts)


@dataclass(frozen=True)
class RangeSums(Outcome):
    """Totals of one pass over the rows of one part, or of several, with the sums in files."""

    totals: PartialSums  # without the sums
    far_labels: dict[int, int]  # clusters of the far rows, by row number
    #: For each part and range: an int64 array (n_filled, 2 + n_columns), and `n_filled`. Each of its rows holds the
    #: index of a non-empty cluster within the range, the number of the part's rows in it, and their sum.
    files: tuple[tuple[tuple[SharedArray, int], ...], ...]

    def __add__(self, other: RangeSums) -> RangeSums:
        totals, labels = self.totals + other.totals, self.far_labels | other.far_labels
        far = {row: labels[row] for row in totals.far_rows.tolist()}
        return RangeSums(totals, far, self.files + other.files)


def _assign_and_add(
    centroids: SharedPieces, geometry: Geometry, store: SharedArrayStore, name: str, part: Part
) -> RangeSums:
    """Task: label the rows of a part and sum them, range by range; `name` is the prefix of the stored sums."""
    engine = worker_engine()
    assignment = nearest_by_ranges(part, engine, centroids, geometry, "lloyd")
    inertia = geometry.distance_sum(part.stop - part.start)
    inertia.add(assignment.distances, add_limbs=engine.add_limbs)
    counts, files = [], []
    for number, (first, stop) in enumerate(itertools.pairwise(centroids.offsets)):
        # Sums of one range are released before those of the next are made.
        packed, of_range = _packed(*_sums_of_range(part, engine, assignment, first, stop, geometry))
        files.append((store.put(f"{name}-{part.start}-{number}", packed), len(packed)))
        counts.append(of_range)
        del packed
    totals = PartialSums.of(
        engine, _NO_SUMS, np.concatenate(counts), inertia.total(), inertia.near(), assignment.distances,
        start=part.start,
    )  # fmt: skip
    labels = engine.host(assignment.labels[engine.put(totals.far_rows - part.start)])
    far = dict(zip(totals.far_rows.tolist(), labels.tolist(), strict=True))
    return RangeSums(totals, far, (tuple(files),))


def _packed(sums: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the non-empty clusters with their counts and sums (see `RangeSums.files`), and all counts."""
    filled = np.flatnonzero(counts)
    packed = np.empty((len(filled), 2 + sums.shape[1]), np.int64)
    packed[:, 0], packed[:, 1] = filled, counts[filled]
    for low in range(0, len(filled), _COPIED_ROWS):  # copying all rows at once would need twice the memory
        some = slice(low, low + _COPIED_ROWS)
        packed[some, 2:] = sums[filled[some]]
    return packed, counts


# -- over a range of the clusters --------------------------------------------------------------------------------------


def _found(
    rows: Rows, geometry: Geometry, store: SharedArrayStore, name: str, r: int, sums: RangeSums
) -> tuple[RangeSums, Relocations, SharedArray, int | None]:
    """Task: choose the far rows that found clusters in place of empty ones, and store their fixed-point values.

    Counts and values stay with the workers; only the number of members for at most `r` per cluster is returned.
    """
    totals, relocations = sums.totals, NO_RELOCATIONS
    if (totals.counts == 0).any():
        far = totals.far_rows[totals.far_distances > geometry.resolution]

        def labels_of(_: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.int32]:
            return np.array([sums.far_labels[number] for number in numbers.tolist()], np.int32)

        relocations = relocate(far, totals.counts, rows, geometry, labels_of)
    values = store.put(name, relocations.values)
    kept = replace(sums, totals=replace(totals, counts=_NO_SUMS))
    return kept, replace(relocations, values=NO_RELOCATIONS.values), values, totals.n_members(r)


def _move_range(
    centroids: SharedPieces,
    geometry: Geometry,
    relocations: Relocations,
    values: SharedArray,
    store: SharedArrayStore,
    name: str,
    item: tuple[int, tuple[tuple[SharedArray, int], ...]],
) -> tuple[SharedArray, int, bool]:
    """Task: move the centroids of one range to their means; returns them, how many are unused, and if none moved."""
    number, files = item
    first, stop = centroids.offsets[number : number + 2]
    before = centroids.series[number].read(0, stop - first)
    counts = np.zeros(stop - first, np.int64)
    sums = np.zeros((stop - first, geometry.units.n_columns(before.shape[1])), np.int64)
    for file, n_filled in files:
        packed = file.read(0, n_filled)
        sums[packed[:, 0]] += packed[:, 2:]
        counts[packed[:, 0]] += packed[:, 1]
    replace(relocations, values=values.get()).apply(sums, counts, first)
    after = moved(before, sums, counts, geometry, exhausted=relocations.exhausted)
    at_rest = bool(np.array_equal(after.view(np.int32), before.view(np.int32)))
    return store.put(f"{name}-{number}", after), int(np.isnan(after[:, 0]).sum()), at_rest


# -- the iteration -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitByRanges:
    """Result of a k-means, as `fit.Fit`, but with centroids in pieces, which the caller deletes."""

    centroids: SharedPieces
    inertia: NDArray[np.float64]
    n_relocated: int
    n_unused: int
    seconds: float = 0.0


def fit_by_ranges(
    rows: Rows,
    settings: Settings,
    n_ranges: int,
    *,
    geometry: Geometry,
    runner: Runner,
    hooks: Hooks,
    progress: Progress | None,
) -> FitByRanges:
    """Cluster rows with the clusters in `n_ranges` ranges; parameters and result are bitwise those of `fit`."""
    rows, begin, kept = runner.place(rows), time.perf_counter(), False
    if progress is None:
        start = seed_by_ranges(rows, settings.n_clusters, n_ranges, init=settings.init, key=settings.key, runner=runner)
        progress = Progress(start)
    elif isinstance(progress.centroids, SharedPieces):
        start, kept = progress.centroids, True
    else:
        store = runner.scratch_store(progress.centroids.nbytes)
        start = put_ranges(progress.centroids, n_ranges, store, f"centroids-{uuid.uuid4().hex}")
    lloyd = iterate_by_ranges(
        rows, start, geometry=geometry, runner=runner, max_iter=settings.max_iter, tol=settings.tol,
        r=settings.r, on_iteration=hooks.on_iteration, progress=progress,
    )  # fmt: skip
    if not kept and lloyd.centroids is not start:
        start.delete()
    return replace(lloyd, seconds=time.perf_counter() - begin)


def iterate_by_ranges(
    rows: Rows,
    centroids: SharedPieces,
    *,
    geometry: Geometry,
    runner: Runner,
    max_iter: int,
    tol: float,
    r: int = 0,
    on_iteration: Callable[[int, LloydStep], None] | None = None,
    progress: Progress | None = None,
) -> FitByRanges:
    """Run Lloyd's iteration from given centroids; parameters and result are bitwise those of `lloyd.iterate`.

    The caller deletes both the pieces it passes in and those of the result.
    """
    passes = _Passes(rows, centroids, geometry, runner, r)
    course, current, n_unused = Course(progress or Progress(centroids), tol, max_iter), centroids, 0
    for iteration in range(len(course.inertia) + 1, max_iter + 1):
        step = passes.step(current, iteration)
        assert isinstance(step.centroids, SharedPieces)
        if current is not centroids:
            current.delete()
        current, n_unused = step.centroids, step.n_unused
        if course.ends_with(step, on_iteration):
            break
    return FitByRanges(current, np.array(course.inertia), course.n_relocated, n_unused)


class _Passes:
    """The two passes of each iteration: over the parts of the rows, then over the ranges of the clusters."""

    def __init__(self, rows: Rows, centroids: SharedPieces, geometry: Geometry, runner: Runner, r: int) -> None:
        self.rows, self.geometry, self.runner, self.r, self.run = rows, geometry, runner, r, uuid.uuid4().hex
        k, d, n_ranges = centroids.n_rows, rows.n_features, centroids.series.n_arrays
        self.stage = lloyd_by_ranges(runner.n_own(rows), k, d, n_ranges)
        n_columns = geometry.units.n_columns(d)
        self.update = StageBytes(0, update_of_range(rows_of_range(k, n_ranges), n_columns))
        self.store = runner.scratch_store(8 * k * (n_columns + 2))
        self.parts, self.n_cuts = runner.split(rows, k, stage=self.stage), runner.n_cuts

    def step(self, centroids: SharedPieces, iteration: int) -> LloydStep:
        """Assign all rows and move the centroids."""
        runner, name = self.runner, f"{self.run}-{iteration}"
        if runner.n_cuts != self.n_cuts:
            self.parts = runner.split(self.rows, centroids.n_rows, stage=self.stage)
            self.n_cuts = runner.n_cuts
        found = partial(_found, self.rows, self.geometry, self.store, f"found-{name}", self.r)
        sums, relocations, values, n_members = runner.map_reduce(
            partial(_assign_and_add, centroids, self.geometry, self.store, f"sums-{name}"), self.parts,
            combine=RangeSums.__add__, finish=found, stage=f"lloyd-iteration{iteration}",
        )  # fmt: skip
        move = partial(_move_range, centroids, self.geometry, relocations, values, self.store, f"centroids-{name}")
        of_ranges = list(enumerate(zip(*sums.files, strict=True)))
        outcomes = runner.map(move, of_ranges, stage=f"update-iteration{iteration}", takes=self.update)
        files = [values, *(file for file, _ in itertools.chain.from_iterable(sums.files))]
        each(SharedArray.delete, files, location(self.store.folder or "."))
        arrays, unused, at_rest = zip(*outcomes, strict=True)
        pieces = SharedPieces(self.store.series(f"centroids-{name}", arrays), centroids.offsets)
        n_relocated = len(relocations.slots)
        return LloydStep.after(
            sums.totals, self.geometry, pieces, n_relocated, sum(unused), all(at_rest), n_members
        )  # fmt: skip
