"""Lloyd's iteration as a map-reduce: assign all rows, sum them by cluster, move the centroids, until none moves.

Sums are int64 fixed point and counts are int64. Integer addition is associative, so the centroids are bitwise the same
for any number of tasks in any order, and whether sums are made anew or updated by the rows that changed clusters.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore, SharedPieces
from hkm_dask.compute.stepwise import MapReduce, Outcome, Steps, stepwise
from hkm_dask.data.rows import Rows
from hkm_dask.kmeans.relocation import NO_RELOCATIONS, relocate
from hkm_dask.search.cpu.engine import CpuIndex
from hkm_dask.search.cpu.kernels import divide
from hkm_dask.search.engine import Assignment, Engine, RowTile, fold
from hkm_dask.search.geometry import Geometry
from hkm_dask.search.worker import worker_engine

#: Centroids scaled to unit length at once.
_MEANS_ROWS = 1024


@dataclass(frozen=True)
class PartialSums(Outcome):
    """Totals of one pass over the rows of one part, or of several."""

    #: (n_clusters, n_columns): fixed-point sums of the rows of each cluster; `RowUnits` may use two columns per
    #: feature.
    sums: NDArray[np.int64]
    counts: NDArray[np.int64]  # (n_clusters,)
    inertia: int  # fixed-point sum of squared distances
    #: (n_far,): squared distances and numbers of the rows furthest from their centroids, the furthest first; empty if
    #: the part has no empty cluster.
    far_distances: NDArray[np.float64]
    far_rows: NDArray[np.int64]
    #: The inertia without the rows that are far from their centroid; None if the geometry has no far rows.
    near_inertia: int | None = None

    def n_members(self, r: int) -> int | None:
        """Count the members if at most `r` are taken from each cluster; None if `r` is 0."""
        return int(np.minimum(self.counts, r).sum()) if r else None

    def __add__(self, other: PartialSums) -> PartialSums:
        distances = np.concatenate([self.far_distances, other.far_distances])
        rows = np.concatenate([self.far_rows, other.far_rows])
        order = np.lexsort((rows, -distances))[: _n_far(len(self.counts))]
        return PartialSums(
            self.sums + other.sums,
            self.counts + other.counts,
            self.inertia + other.inertia,
            distances[order],
            rows[order],
            None if self.near_inertia is None or other.near_inertia is None else self.near_inertia + other.near_inertia,
        )

    @classmethod
    def of(
        cls, engine: Engine, sums: Any, counts: Any, inertia: int, near: int | None, distances: Any, *, start: int = 0
    ) -> PartialSums:
        """Make the totals of a pass, with the rows that may found new clusters in place of empty ones.

        `distances` are those of the rows that were summed; the first of these has the row number `start`.
        """
        sums, counts = engine.host(sums), engine.host(counts)
        # A cluster that is empty overall is empty in every part; a part without empty clusters need not offer far rows.
        if counts.all():
            return cls(sums, counts, inertia, np.empty(0), np.empty(0, np.int64), near)
        far_distances, places = engine.furthest(distances, _n_far(len(counts)))
        return cls(sums, counts, inertia, far_distances, places + start, near)


def _n_far(n_clusters: int) -> int:
    return min(1024, max(16, n_clusters // 8))


@dataclass
class _PartState:
    """State that a part caches between iterations: the assignment to the `centroids` of that name, and the sums.

    `handed_out` returns the outcome that shares the arrays of sums, while that is still referenced.
    """

    assignment: Assignment
    sums: Any
    counts: Any
    centroids: object
    handed_out: Callable[[], PartialSums | None] = lambda: None


@dataclass(frozen=True)
class AssignAndAdd:
    """Task: label the rows of a part and sum them by cluster."""

    #: float32 (n_clusters, n_features); `before` holds those of the previous iteration.
    centroids: SharedArray
    geometry: Geometry
    run: str  # name of the k-means, under which parts cache the state of its last iteration
    weights: SharedArray | None = None  # int64 (n_rows,), for rows in memory
    hints: SharedArray | None = None  # int32: the centroid to try first for each cell of the seeding
    before: SharedArray | None = None

    def __call__(self, part: Part) -> PartialSums:
        """Label and sum one part."""
        engine, units = worker_engine(), self.geometry.units
        state: _PartState | None = engine.pop(part, "lloyd", self.run)
        # Unless the labels are those of the previous iteration, they serve as hints only.
        is_next = state is not None and self.before is not None and state.centroids == self.before.name
        before, is_first = self.before if is_next else None, state is None
        if state is None:
            k, d = self.centroids.get().shape
            sums = engine.zeros(k, units.n_columns(d))
            state = _PartState(self._hinted(part, engine), sums, engine.zeros(k), None)
        assignment, sums, counts = state.assignment, state.sums, state.counts
        if state.handed_out() is not None:  # the task is repeated while its last outcome is still in use
            sums, counts = sums.copy(), counts.copy()
            state.sums, state.counts = sums, counts
        search = engine.search(part, self.geometry, "lloyd", assignment)

        def label(tile: RowTile) -> None:
            search.update(tile, self.centroids, before)

        def add(tile: RowTile) -> None:
            if is_first:
                units.add_rows(engine, tile.rows, tile.labels, tile.weights, sums, counts)
            else:
                units.move_rows(engine, tile.rows, tile.previous_labels, tile.labels, tile.weights, sums, counts)

        distances = fold(part, engine, assignment, label, add, geometry=self.geometry, weights=self.weights)
        state.centroids = self.centroids.name
        engine.keep(part, "lloyd", self.run, state, assignment.n_bytes + sums.nbytes)
        # The outcome shares these arrays; it does not copy them.
        outcome = PartialSums.of(
            engine, sums, counts, distances.total(), distances.near(), assignment.distances, start=part.start
        )
        state.handed_out = weakref.ref(outcome)
        return outcome

    def _hinted(self, part: Part, engine: Engine) -> Assignment:
        """Make an assignment that starts each row at the centroid nearest to its seeding cell."""
        assignment = engine.unknown(part.stop - part.start)
        cells: Assignment | None = engine.pop(part, "cells", self.run) if self.hints is not None else None
        if cells is not None and self.hints is not None:
            assignment.labels = engine.put(self.hints.get())[cells.labels]
        return assignment


def last_labels(engine: Engine, part: Part, run: str) -> Any | None:
    """Remove from the cache and return the labels of a part in the last iteration of a run; None if not cached."""
    state: _PartState | None = engine.pop(part, "lloyd", run)
    return None if state is None else state.assignment.labels


@dataclass(frozen=True)
class LloydStep:
    """Outcome of one iteration."""

    centroids: SharedArray | SharedPieces  # in pieces if no worker can hold all of them; see `ranges`
    inertia: float  # of the centroids before the update
    n_relocated: int  # empty clusters moved to far rows
    n_unused: int  # slots without a centroid, because there are fewer distinct rows than clusters
    at_rest: bool  # no centroid moved
    last: bool = False  # the iteration ends with this step, at rest or not
    #: The inertia without the rows far from their centroids; None if the geometry has no far rows.
    near_inertia: float | None = None
    #: Members if at most r are taken from each cluster, for the centroids before the update; None if no r was given.
    n_members: int | None = None

    @classmethod
    def after(
        cls, totals: PartialSums, geometry: Geometry, centroids: SharedArray | SharedPieces, n_relocated: int,
        n_unused: int, at_rest: bool, n_members: int | None = None,
    ) -> LloydStep:  # fmt: skip
        """Make the outcome from the totals of a pass and the centroids after the update."""
        near, scale = totals.near_inertia, geometry.distance_scale
        near_inertia = None if near is None else near / scale
        inertia = totals.inertia / scale
        return cls(
            centroids, inertia, n_relocated, n_unused, at_rest, near_inertia=near_inertia, n_members=n_members
        )  # fmt: skip


@dataclass(frozen=True)
class Update:
    """Task: move `centroids` to the means of their assigned rows and store the result under `name`.

    Rows far from their centroids found new clusters in place of empty ones.
    """

    centroids: SharedArray
    geometry: Geometry
    rows: Rows
    array_store: SharedArrayStore
    name: str
    r: int = 0  # see `LloydStep.n_members`

    def __call__(self, totals: PartialSums) -> LloydStep:
        """Compute the update."""
        before = self.centroids.get()
        sums, counts, relocations = totals.sums, totals.counts, NO_RELOCATIONS
        if (counts == 0).any():
            sums, counts = sums.copy(), counts.copy()
            far = totals.far_rows[totals.far_distances > self.geometry.resolution]
            relocations = relocate(far, totals.counts, self.rows, self.geometry, self._nearest)
            relocations.apply(sums, counts)
        centroids = moved(before, sums, counts, self.geometry, exhausted=relocations.exhausted)
        at_rest = bool(np.array_equal(centroids.view(np.int32), np.ascontiguousarray(before).view(np.int32)))
        n_unused = int(np.isnan(centroids[:, 0]).sum())
        shared = self.array_store.put(self.name, centroids)
        n_members = totals.n_members(self.r)
        return LloydStep.after(totals, self.geometry, shared, len(relocations.slots), n_unused, at_rest, n_members)

    def _nearest(self, rows: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        labels = np.full(len(rows), -1, np.int32)
        CpuIndex(self.centroids.get(), self.geometry).nearest(rows, labels, np.full(len(rows), np.inf))
        return labels


def moved(
    before: NDArray[np.float32],
    sums: NDArray[np.int64],
    counts: NDArray[np.int64],
    geometry: Geometry,
    *,
    exhausted: bool,
) -> NDArray[np.float32]:
    """Return the centroids moved to the means of their rows; one without rows keeps its place or becomes NaN.

    It becomes NaN if all rows coincide with their centroids, so that none can found a cluster (`exhausted`); otherwise
    the slot waits for the next iteration.
    """
    centroids = means(sums, counts, geometry)
    empty = counts == 0
    centroids[empty] = np.nan if exhausted else before[empty]
    return centroids


def means(sums: NDArray[np.int64], counts: NDArray[np.int64], geometry: Geometry) -> NDArray[np.float32]:
    """Return the means of fixed-point sums: 0 without rows, scaled to unit length if the geometry is spherical."""
    units = geometry.units
    if units.is_split:
        return (units.values(sums) / np.maximum(counts, 1)[:, None]).astype(np.float32)
    out = np.empty(sums.shape, np.float32)
    if geometry.spherical:
        for low in range(0, len(sums), _MEANS_ROWS):
            some = slice(low, low + _MEANS_ROWS)
            centroids = sums[some] / (np.maximum(counts[some], 1)[:, None] * geometry.scale)
            norms = np.sqrt((centroids * centroids).sum(axis=1, keepdims=True))
            out[some] = centroids / np.where(norms > 0, norms, 1.0)
        return out
    divide(sums, counts, units.scale, out)
    return out


@dataclass(frozen=True)
class LloydResult:
    """Final centroids (NaN in unused slots), the inertia before each update, and the number of relocated clusters."""

    centroids: NDArray[np.float32]
    inertia: NDArray[np.float64]
    n_relocated: int


@dataclass(frozen=True)
class Progress:
    """State of an interrupted Lloyd iteration, or with an empty history, the initial centroids.

    `relocated` is the number of clusters moved to far rows in the last iteration, and `near_inertia` its
    `LloydStep.near_inertia`. Centroids that no worker can hold are in pieces.
    """

    centroids: NDArray[np.float32] | SharedPieces
    inertia: tuple[float, ...] = ()
    relocated: int = 0
    near_inertia: float | None = None

    @property
    def whole(self) -> NDArray[np.float32]:
        """The centroids in one array."""
        return self.centroids.read() if isinstance(self.centroids, SharedPieces) else self.centroids


@stepwise
def iterate(
    rows: Rows,
    centroids: NDArray[np.float32],
    *,
    geometry: Geometry,
    runner: Runner,
    max_iter: int,
    tol: float,
    r: int = 0,
    weights: NDArray[np.int64] | None = None,
    hints: NDArray[np.int32] | None = None,
    run: str | None = None,
    on_iteration: Callable[[int, LloydStep], None] | None = None,
    progress: Progress | None = None,
) -> Steps[LloydResult]:
    """Run Lloyd's iteration from given centroids, float32 (n_clusters, n_features).

    It stops when an iteration lowers the inertia by no more than `tol` of it, and also changes the inertia of the rows
    near their centroids by no more than that share, as a few far rows in one cluster can make up nearly all of the
    total. With `r`, each iteration reports how many members there are if at most `r` are taken from each cluster.
    `weights` are int64 (n_rows,). `run` is the name under which the seeding cached its cells, and `hints`, int32, holds
    the centroid to try first for each of them. `on_iteration` gets the iteration number, from 1, and its outcome.
    `progress` is the state after iterations before an interruption, which led to `centroids`.
    """
    n_clusters = len(centroids)
    run = run or uuid.uuid4().hex
    parts, n_cuts = runner.split(rows, n_clusters), runner.n_cuts
    array_store = runner.array_store
    shared_weights = None if weights is None else array_store.put(f"weights-{run}", weights)
    shared_hints = None if hints is None else array_store.put(f"hints-{run}", hints)
    current = array_store.put(f"centroids-{run}-0", centroids)
    previous: SharedArray | None = None
    course = Course(progress or Progress(centroids), tol, max_iter)
    for iteration in range(len(course.inertia) + 1, max_iter + 1):
        if runner.n_cuts != n_cuts:
            parts, n_cuts = runner.split(rows, n_clusters), runner.n_cuts
        step: LloydStep = yield MapReduce(
            AssignAndAdd(current, geometry, run, shared_weights, shared_hints, previous),
            parts,
            PartialSums.__add__,
            Update(current, geometry, rows, array_store, f"centroids-{run}-{iteration}", r),
            f"lloyd-iteration{iteration}",
        )
        if previous is not None:
            previous.delete()
        assert isinstance(step.centroids, SharedArray)
        previous, current = current, step.centroids
        if course.ends_with(step, on_iteration):
            break
    final = current.get()
    for shared in (previous, current, shared_weights, shared_hints):
        if shared is not None:
            shared.delete()
    return LloydResult(final, np.array(course.inertia), course.n_relocated)


class Course:
    """History of a Lloyd iteration (inertia before every update, relocated clusters) and its stopping rule."""

    def __init__(self, before: Progress, tol: float, max_iter: int) -> None:
        self.inertia, self.n_relocated = list(before.inertia), before.relocated
        self._relocated, self._near = before.relocated, before.near_inertia
        self._tol, self._max_iter = tol, max_iter

    def ends_with(self, step: LloydStep, on_iteration: Callable[[int, LloydStep], None] | None) -> bool:
        """Record an outcome, report it, and tell whether it is the last."""
        self.inertia.append(step.inertia)
        self.n_relocated += step.n_relocated
        last = step.at_rest or self._is_settled(step) or len(self.inertia) == self._max_iter
        if on_iteration is not None:
            on_iteration(len(self.inertia), replace(step, last=last))
        self._relocated, self._near = step.n_relocated, step.near_inertia
        return last

    def _is_settled(self, step: LloydStep) -> bool:
        """Tell whether the iteration has converged within `tol`."""
        if len(self.inertia) < 2 or step.n_relocated or self._relocated:
            return False
        before, now = self.inertia[-2:]
        return before - now <= self._tol * before and _near_settled(self._near, step, self._tol)


def _near_settled(before: float | None, step: LloydStep, tol: float) -> bool:
    """Tell whether the inertia without far rows has settled; it may also rise, when far rows release a centroid."""
    if step.near_inertia is None or step.near_inertia == step.inertia:
        return True
    return before is not None and abs(before - step.near_inertia) <= tol * before
