"""Many small k-means over separate groups of rows: one after another, or on a device in batched passes.

Each group gets the same k-means as any other rows (`fit`), with its own random numbers. A few rows alone would leave a
device idle, so where it holds thousands of groups, the passes over rows that they need next are made for all of them at
once. Between its passes each k-means continues on a CPU thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import on_host
from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.keyed_random import random_bits_by_group, stream_key, uniform
from hkm_dask.compute.runner import Runner, n_processors, runner_in_task
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.compute.staging import make_room, ran_out
from hkm_dask.compute.stepwise import MapReduce, Steps
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.fit import Fit, GroupFits, Settings, fit
from hkm_dask.kmeans.lloyd import AssignAndAdd, PartialSums
from hkm_dask.kmeans.seeding.d2_sampling import Candidates, Drawn, UpdateAndSample, arrival_times, may_arrive
from hkm_dask.search.engine import RowTile, fold
from hkm_dask.search.geometry import Geometry
from hkm_dask.search.worker import worker_engine


def fit_groups(
    values: NDArray[np.floating],
    bounds: NDArray[np.int64],
    settings: Sequence[Settings],
    *,
    geometry: Geometry,
    memory_budget: int,
    batch_bytes: int,
    batched: bool = True,
) -> GroupFits:
    """Cluster groups of rows, each with a k-means of its own.

    `values` (n_rows, n_features) holds the groups one after another; group i is ``bounds[i]:bounds[i + 1]``, never
    empty. `settings` has one entry per group, all with the same number of clusters. `memory_budget` is in bytes of host
    memory, `batch_bytes` in bytes of rows that a device takes at once; if the device runs out of memory all the same,
    the groups are halved. With `batched`, an engine that supports it makes each pass for all groups at once; the
    results are the same.
    """
    engine = worker_engine()
    values = np.ascontiguousarray(values, engine.row_dtype(values.dtype))
    if not (batched and engine.batches(geometry, values.dtype)):
        return _one_by_one(values, bounds, settings, geometry, memory_budget)
    if values.nbytes <= 2 * batch_bytes:
        try:
            return fit_batch(values, bounds, settings, geometry, memory_budget)
        except Exception as error:
            if not ran_out(error):
                raise
        make_room()
    if len(settings) == 1:  # a single large group can be streamed
        return _one_by_one(values, bounds, settings, geometry, memory_budget)
    half = len(settings) // 2
    cut = bounds[half]
    halves = (values[:cut], bounds[: half + 1], settings[:half]), (values[cut:], bounds[half:] - cut, settings[half:])
    first, second = (
        fit_groups(*some, geometry=geometry, memory_budget=memory_budget, batch_bytes=batch_bytes) for some in halves
    )
    return first + second


def _one_by_one(
    values: NDArray[np.floating], bounds: NDArray[np.int64], settings: Sequence[Settings], geometry: Geometry,
    memory_budget: int,
) -> GroupFits:  # fmt: skip
    k = settings[0].n_clusters
    fits = GroupFits(
        np.empty((len(settings) * k, values.shape[1]), np.float32),
        np.empty(len(values), np.int32),
        np.empty(len(values), np.float64),
    )
    with runner_in_task(memory_budget) as runner:
        for i, group_settings in enumerate(settings):
            group, slots = slice(bounds[i], bounds[i + 1]), slice(i * k, (i + 1) * k)
            rows = ArrayRows(values[group])
            fits.centroids[slots] = fit(rows, group_settings, geometry=geometry, runner=runner).centroids
            labels, fits.distances[group] = _label(rows, fits.centroids[slots], geometry, runner)
            fits.labels[group] = labels + np.int32(i * k)
            forget(rows.key)
    return fits


def _label(
    rows: ArrayRows, centroids: NDArray[np.float32], geometry: Geometry, runner: Runner
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    engine, shared = worker_engine(), SharedArray(array=centroids)
    (part,) = runner.split(rows, len(centroids))
    assignment = engine.unknown(rows.n_rows)
    search = engine.search(part, geometry, "split", assignment)

    def label(tile: RowTile) -> None:
        search.nearest(tile, shared)

    fold(part, engine, assignment, label, geometry=geometry)
    return engine.host(assignment.labels), engine.host(assignment.distances)


# -- batched on a device -----------------------------------------------------------------------------------------------


def fit_batch(
    values: NDArray[np.floating], bounds: NDArray[np.int64], settings: Sequence[Settings], geometry: Geometry,
    memory_budget: int,
) -> GroupFits:  # fmt: skip
    """Do what `fit_groups` does on this worker's device, which must hold all `values`, float16 or float32."""
    passes = _Batch(values, bounds, settings[0].n_clusters, geometry)
    tables = [ArrayRows(values[low:high]) for low, high in itertools.pairwise(bounds)]
    with on_host():
        runner = runner_in_task(memory_budget)
    steps = [
        fit.steps(table, group_settings, geometry=geometry, runner=runner)
        for table, group_settings in zip(tables, settings, strict=True)
    ]
    fits: dict[int, Fit] = {}
    try:
        with runner, ThreadPoolExecutor(n_processors(), "hkm-fit") as threads:
            outcomes = dict(enumerate(threads.map(_advance, steps)))
            while outcomes:
                fits |= {group: outcome for group, outcome in outcomes.items() if isinstance(outcome, Fit)}
                wanted = {group: outcome for group, outcome in outcomes.items() if isinstance(outcome, MapReduce)}
                totals = passes.make({group: request.task for group, request in wanted.items()})
                pending, answers = [steps[group] for group in wanted], [totals[group] for group in wanted]
                outcomes = dict(zip(wanted, threads.map(_advance, pending, wanted.values(), answers), strict=True))
    finally:  # no thread is advancing any of them now
        for one, table in zip(steps, tables, strict=True):
            one.close()
            forget(table.key)
    centroids = np.concatenate([fits[group].centroids for group in range(len(tables))])
    return GroupFits(centroids, *passes.nearest(centroids))


def _advance(steps: Steps[Fit], request: MapReduce | None = None, total: Any = None) -> MapReduce | Fit:
    """Send a k-means the total of the pass it asked for; returns the next pass that it needs, or its result."""
    with on_host():
        try:
            return next(steps) if request is None else steps.send(request.finish(total))
        except StopIteration as done:
            outcome: Fit = done.value
            return outcome


class _Batch:
    """The rows of all groups on the device, with passes over some of the groups; `k` clusters in each group."""

    def __init__(self, values: NDArray[np.floating], bounds: NDArray[np.int64], k: int, geometry: Geometry) -> None:
        import cupy

        from hkm_dask.search.cuda.engine import CudaEngine
        from hkm_dask.search.cuda.operand import make_cuda_operand

        self.bounds, self.k, self.geometry, self.xp = bounds, k, geometry, cupy
        self.engine = CudaEngine()
        self.n_groups, n = len(bounds) - 1, len(values)
        self.rows = cupy.asarray(values)
        self.group = cupy.asarray(np.repeat(np.arange(self.n_groups, dtype=np.int32), np.diff(bounds)))
        self.operand = make_cuda_operand(self.rows, geometry)
        # State of the seeding: each row's nearest center so far, and how many batches of centers each group has
        # searched.
        self.cells, self.squared = cupy.full(n, -1, cupy.int32), cupy.full(n, cupy.inf)
        self.n_applied = np.zeros(self.n_groups, np.int64)
        # State of Lloyd's iteration; clusters are numbered consecutively over all groups.
        self.labels = cupy.full(n, -1, cupy.int32)
        self.units = geometry.units
        self.sums = cupy.zeros((self.n_groups * k, self.units.n_columns(values.shape[1])), cupy.int64)
        self.counts = cupy.zeros(self.n_groups * k, cupy.int64)

    def make(self, tasks: Mapping[int, Any]) -> dict[int, Any]:
        """Return the totals of each group's pass; passes of the same kind are made at once."""
        sampling = {group: task for group, task in tasks.items() if isinstance(task, UpdateAndSample)}
        adding = {group: task for group, task in tasks.items() if isinstance(task, AssignAndAdd)}
        return {**self.update_and_sample(sampling), **self.assign_and_add(adding)}

    def _lines(self, groups: Sequence[int]) -> tuple[Any | None, NDArray[np.int64]]:
        """Return the rows of some groups (None for all rows), and the offset of each group among them."""
        sizes = np.zeros(self.n_groups, np.int64)
        sizes[list(groups)] = np.diff(self.bounds)[list(groups)]
        lines = np.concatenate([[0], np.cumsum(sizes)])
        if len(groups) == self.n_groups:
            return None, lines
        return self.xp.flatnonzero(self.xp.asarray(sizes > 0)[self.group]), lines

    def _search(
        self, centroids: Mapping[int, NDArray[np.float32]], numbers: NDArray[np.integer], labels: Any, distances: Any
    ) -> None:
        """Update labels and distances for new centroids of some groups; `numbers` are the labels of the centroids."""
        from hkm_dask.search.cuda.index import CudaIndex, Groups

        which, lines = self._lines(list(centroids))
        n_columns = np.zeros(self.n_groups, np.int64)
        n_columns[list(centroids)] = [len(values) for values in centroids.values()]
        columns = np.concatenate([[0], np.cumsum(n_columns)])
        groups = Groups(self.group, lines, columns, numbers.astype(np.int32))
        search = CudaIndex(np.concatenate(list(centroids.values())), self.geometry)
        search.nearest_in_groups(self.rows, labels, distances, self.operand, groups, which)

    def _totals(self, groups: Sequence[int], distances: Any) -> dict[int, int]:
        """Return the fixed-point sum of the distances over the rows of each group."""
        which, lines = self._lines(groups)
        some = distances if which is None else distances[which]
        total = self.geometry.distance_sum(len(some))
        ends = self.xp.cumsum(total.limbs(some), axis=1)[:, self.xp.asarray(lines[1:][groups] - 1)].get()
        sums = np.diff(ends, axis=1, prepend=0)
        return {group: total.combine(sums[:, i]) for i, group in enumerate(groups)}

    def nearest(self, centroids: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Label every row with the nearest centroid of its group, numbering clusters consecutively over all groups."""
        nearest = self.engine.unknown(len(self.rows))
        tables = dict(enumerate(centroids.reshape(self.n_groups, self.k, -1)))
        self._search(tables, np.arange(len(centroids)), nearest.labels, nearest.distances)
        return nearest.labels.get(), nearest.distances.get()

    # -- Lloyd's iteration --------------------------------------------------------------------------------------------

    def assign_and_add(self, tasks: Mapping[int, AssignAndAdd]) -> dict[int, PartialSums]:
        """Label the rows of some groups and sum them, as `AssignAndAdd` does for one."""
        if not tasks:
            return {}
        groups = sorted(tasks)
        numbers = (np.array(groups)[:, None] * self.k + np.arange(self.k)).ravel()
        labels, distances = self.labels.copy(), self.xp.full(len(self.rows), self.xp.inf)
        self._search({group: tasks[group].centroids.get() for group in groups}, numbers, labels, distances)
        unweighted = self.xp.empty(0, self.xp.int64)
        self.units.move_rows(self.engine, self.rows, self.labels, labels, unweighted, self.sums, self.counts)
        self.labels = labels
        inertia, clusters = self._totals(groups, distances), self.xp.asarray(numbers)
        sums, counts = (table[clusters].get().reshape(len(groups), self.k, *table.shape[1:])
                        for table in (self.sums, self.counts))  # fmt: skip
        near, cuts, of = self._near(groups, distances), self.bounds, partial(PartialSums.of, self.engine)
        return {
            group: of(sums[i], counts[i], inertia[group], near[group], distances[cuts[group] : cuts[group + 1]])
            for i, group in enumerate(groups)
        }

    def _near(self, groups: Sequence[int], distances: Any) -> Mapping[int, int | None]:
        """Return the totals over rows that are not far from their centroids; None if the geometry has no far rows."""
        limit = self.geometry.far_distance
        if limit == np.inf:
            return dict.fromkeys(groups)
        return self._totals(groups, self.xp.where(distances <= limit, distances, 0.0))

    # -- seeding ------------------------------------------------------------------------------------------------------

    def update_and_sample(self, tasks: Mapping[int, UpdateAndSample]) -> dict[int, Candidates]:
        """Update D² of the rows of some groups and draw candidates, as `UpdateAndSample` does for one."""
        if not tasks:
            return {}
        groups = sorted(tasks)
        self._apply(tasks)
        potentials = self._totals(groups, self.squared)
        drawn = self._draw({group: task for group, task in tasks.items() if task.horizon > 0})
        sums = self._add_cells({group: task for group, task in tasks.items() if task.with_sums})
        return {
            group: Candidates(potentials[group], drawn.get(group, ()), *sums.get(group, (None, None)))
            for group in groups
        }

    def _apply(self, tasks: Mapping[int, UpdateAndSample]) -> None:
        """Update D² of the rows with the centers accepted since the last pass of their group."""
        centers: dict[int, NDArray[np.float32]] = {}
        numbers = []
        for group, task in sorted(tasks.items()):
            n_before = int(self.n_applied[group])
            new = [batch.get() for batch in task.batches[n_before:]]
            if new:
                first = sum(len(batch.get()) for batch in task.batches[:n_before])
                centers[group] = np.concatenate(new)
                numbers.append(np.arange(first, first + len(centers[group])))
                self.n_applied[group] = len(task.batches)
        if centers:
            self._search(centers, np.concatenate(numbers), self.cells, self.squared)

    def _draw(self, tasks: Mapping[int, UpdateAndSample]) -> dict[int, tuple[Drawn, ...]]:
        if not tasks:
            return {}
        xp, groups = self.xp, sorted(tasks)
        which, _ = self._lines(groups)
        which = xp.arange(len(self.rows)) if which is None else which
        which = which[self.squared[which] > 0]
        group_of, squared = self.group[which], self.squared[which]
        keys, horizons = [0] * self.n_groups, np.zeros(self.n_groups)
        for group, task in tasks.items():
            keys[group], horizons[group] = stream_key(task.key, "arrival", 0), task.horizon
        first = uniform(random_bits_by_group(keys, group_of, which - xp.asarray(self.bounds)[group_of]))
        chosen = which[may_arrive(first, squared, xp.asarray(horizons)[group_of])]
        rows, squared = chosen.get(), self.squared[chosen].get()
        values = self.rows[chosen].get().astype(np.float32)
        cuts = np.searchsorted(rows, self.bounds)
        drawn: dict[int, tuple[Drawn, ...]] = {}
        for group in groups:
            own = slice(cuts[group], cuts[group + 1])
            numbers = rows[own] - self.bounds[group]
            times, places = arrival_times(tasks[group].key, numbers, squared[own], tasks[group].horizon)
            drawn[group] = (Drawn(times, numbers[places], squared[own][places], values[own][places]),)
        return drawn

    def _add_cells(
        self, tasks: Mapping[int, UpdateAndSample]
    ) -> dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return the sums and sizes of the cells of each group's centers."""
        if not tasks:
            return {}
        xp, groups = self.xp, sorted(tasks)
        n_cells = np.zeros(self.n_groups, np.int64)
        n_cells[groups] = [sum(len(batch.get()) for batch in tasks[group].batches) for group in groups]
        firsts = np.concatenate([[0], np.cumsum(n_cells)])
        labels = self.cells + xp.asarray(firsts[:-1].astype(np.int32))[self.group]
        labels[~xp.asarray(n_cells > 0)[self.group]] = -1
        sums = xp.zeros((int(firsts[-1]), self.sums.shape[1]), xp.int64)
        counts = xp.zeros(len(sums), xp.int64)
        unweighted = xp.empty(0, xp.int64)
        self.units.add_rows(self.engine, self.rows, labels, unweighted, sums, counts)
        sums, counts = sums.get(), counts.get()
        cells = {group: slice(firsts[group], firsts[group + 1]) for group in groups}
        return {group: (sums[own], counts[own]) for group, own in cells.items()}
