"""Thousands of small k-means on a device at once: what one of them needs next is done for all of them together.

Each is the same k-means as any other (`fit`), with its own random numbers; between its passes over the rows it goes on
on a processor. A pass is what would leave a device idle if it were made for a few rows alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import on_host
from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.keyed_random import random_bits_by_group, stream_key, uniform
from hkm_dask.compute.runner import n_processors, runner_in_task
from hkm_dask.compute.stepwise import MapReduce, Steps
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.fit import Fit, Settings, fit
from hkm_dask.kmeans.lloyd import AssignAndAdd, PartialSums
from hkm_dask.kmeans.search import cuda_kernels
from hkm_dask.kmeans.search.cuda import CudaEngine, CudaIndex, Groups
from hkm_dask.kmeans.search.cuda_operand import make_cuda_operand
from hkm_dask.kmeans.search.geometry import Geometry
from hkm_dask.kmeans.seeding.d2_sampling import Candidates, UpdateAndSample, arrival_times, may_arrive


def fit_together(
    values: NDArray[np.floating],
    bounds: NDArray[np.int64],
    settings: Sequence[Settings],
    *,
    geometry: Geometry,
    memory_budget: int,
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float64]]:
    """Cluster groups of rows, each by a k-means of its own, on this worker's device.

    Parameters
    ----------
    values : ndarray of float16 or float32, shape (n_rows, n_features)
        On the host, one group after the other.
    bounds : ndarray of int64, shape (n_groups + 1,)
        Where each begins; none is empty.
    settings : sequence of Settings
        Of each, with the same number of clusters.
    geometry : Geometry
    memory_budget : int
        Bytes of host memory.

    Returns
    -------
    centroids : ndarray of float32, shape (n_groups * n_clusters, n_features)
        NaN where a group has fewer distinct rows than clusters.
    labels : ndarray of int32, shape (n_rows,)
        Nearest centroid of the row's group.
    distances : ndarray of float64, shape (n_rows,)
        Squared L2.

    Raises
    ------
    cupy.cuda.memory.OutOfMemoryError
        The groups together are too much for the device.
    """
    k = settings[0].n_clusters
    passes = _Batch(values, bounds, k, geometry)
    tables = [ArrayRows(values[low:high]) for low, high in itertools.pairwise(bounds)]
    with on_host():
        runner = runner_in_task(memory_budget)
    steps = [
        fit.steps(table, its, geometry=geometry, runner=runner) for table, its in zip(tables, settings, strict=True)
    ]
    fits: dict[int, Fit] = {}
    try:
        with runner, ThreadPoolExecutor(n_processors(), "hkm-fit") as threads:
            asked = dict(enumerate(threads.map(_advance, steps)))
            while asked:
                fits |= {group: found for group, found in asked.items() if isinstance(found, Fit)}
                wanted = {group: found for group, found in asked.items() if isinstance(found, MapReduce)}
                found = _made(passes, wanted)
                going = [steps[group] for group in wanted]
                asked = dict(zip(wanted, threads.map(_advance, going, wanted.values(), found.values()), strict=True))
    finally:  # no thread is at one of them any more
        for one, table in zip(steps, tables, strict=True):
            one.close()
            forget(table.key)
    centroids = np.concatenate([fits[group].centroids for group in range(len(tables))])
    labels, distances = passes.nearest(centroids)
    return centroids, labels, distances


def _advance(steps: Steps[Fit], made: MapReduce | None = None, found: Any = None) -> MapReduce | Fit:
    """Give a k-means what its pass came to, and have its next pass, or its outcome."""
    with on_host():
        try:
            return next(steps) if made is None else steps.send(made.finish(found))
        except StopIteration as done:
            outcome: Fit = done.value
            return outcome


def _made(passes: _Batch, wanted: Mapping[int, MapReduce]) -> dict[int, Any]:
    """Make passes of every kind, each kind together."""
    tasks = {group: one.task for group, one in wanted.items()}
    drawing = {group: task for group, task in tasks.items() if isinstance(task, UpdateAndSample)}
    adding = {group: task for group, task in tasks.items() if isinstance(task, AssignAndAdd)}
    found = {**passes.measure_and_draw(drawing), **passes.assign_and_add(adding)}
    return {group: found[group] for group in wanted}


class _Batch:
    """The rows of all groups on the device, and passes over some of them.

    Parameters
    ----------
    values, bounds, geometry
        As for `fit_together`.
    k : int
        Clusters of each.
    """

    def __init__(self, values: NDArray[np.floating], bounds: NDArray[np.int64], k: int, geometry: Geometry) -> None:
        import cupy

        self.bounds, self.k, self.geometry, self.xp = bounds, k, geometry, cupy
        self.engine = CudaEngine()
        self.n_groups, n = len(bounds) - 1, len(values)
        self.rows = cupy.asarray(values)
        self.group = cupy.asarray(np.repeat(np.arange(self.n_groups, dtype=np.int32), np.diff(bounds)))
        self.operand = make_cuda_operand(self.rows, geometry)
        # Of the seeding: the nearest center drawn, and how many batches of them were searched.
        self.cells, self.squared = cupy.full(n, -1, cupy.int32), cupy.full(n, cupy.inf)
        self.n_applied = np.zeros(self.n_groups, np.int64)
        # Of Lloyd's iteration: clusters are numbered through all groups.
        self.labels = cupy.full(n, -1, cupy.int32)
        self.sums = cupy.zeros((self.n_groups * k, values.shape[1]), cupy.int64)
        self.counts = cupy.zeros(self.n_groups * k, cupy.int64)

    def _lines(self, groups: Sequence[int]) -> tuple[Any | None, NDArray[np.int64]]:
        """The rows of some groups, None for all, and where each group begins among them."""
        sizes = np.zeros(self.n_groups, np.int64)
        sizes[list(groups)] = np.diff(self.bounds)[list(groups)]
        lines = np.concatenate([[0], np.cumsum(sizes)])
        if len(groups) == self.n_groups:
            return None, lines
        return self.xp.flatnonzero(self.xp.asarray(sizes > 0)[self.group]), lines

    def _rows_of(self, groups: Sequence[int]) -> Any:
        """The rows of some groups, by their numbers."""
        which, _ = self._lines(groups)
        return self.xp.arange(len(self.rows)) if which is None else which

    def _search(
        self, centroids: Mapping[int, NDArray[np.float32]], numbers: NDArray[np.integer], labels: Any, distances: Any
    ) -> None:
        """Bring labels and distances up to date with new centroids of some groups, called by these numbers."""
        which, lines = self._lines(list(centroids))
        n_columns = np.zeros(self.n_groups, np.int64)
        n_columns[list(centroids)] = [len(values) for values in centroids.values()]
        columns = np.concatenate([[0], np.cumsum(n_columns)])
        groups = Groups(self.group, lines, columns, numbers.astype(np.int32))
        search = CudaIndex(np.concatenate(list(centroids.values())), self.geometry)
        search.nearest_in_groups(self.rows, labels, distances, self.operand, groups, which)

    def _totals(self, groups: Sequence[int], distances: Any) -> dict[int, int]:
        """Fixed-point sum of distances over the rows of each group."""
        which, lines = self._lines(groups)
        some = distances if which is None else distances[which]
        total = self.geometry.distance_sum(len(some))
        ends = self.xp.cumsum(total.limbs(some), axis=1)[:, self.xp.asarray(lines[1:][groups] - 1)].get()
        sums = np.diff(ends, axis=1, prepend=0)
        return {group: total.combine(sums[:, i]) for i, group in enumerate(groups)}

    def nearest(self, centroids: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Label every row with the nearest centroid of its group; clusters are numbered through all groups."""
        found = self.xp.full(len(self.rows), -1, self.xp.int32), self.xp.full(len(self.rows), self.xp.inf)
        tables = dict(enumerate(centroids.reshape(self.n_groups, self.k, -1)))
        self._search(tables, np.arange(len(centroids)), *found)
        return found[0].get(), found[1].get()

    # -- Lloyd's iteration --------------------------------------------------------------------------------------------

    def assign_and_add(self, tasks: Mapping[int, AssignAndAdd]) -> dict[int, PartialSums]:
        """Label the rows of some groups and add them up, as `AssignAndAdd` does for one."""
        if not tasks:
            return {}
        groups = sorted(tasks)
        numbers = (np.array(groups)[:, None] * self.k + np.arange(self.k)).ravel()
        labels, distances = self.labels.copy(), self.xp.full(len(self.rows), self.xp.inf)
        self._search({group: tasks[group].centroids.get() for group in groups}, numbers, labels, distances)
        unweighted = self.xp.empty(0, self.xp.int64)
        cuda_kernels.move_rows(self.rows, self.labels, labels, unweighted, self.geometry.scale, self.sums, self.counts)
        self.labels = labels
        inertia, here = self._totals(groups, distances), self.xp.asarray(numbers)
        sums, counts = (table[here].get().reshape(len(groups), self.k, *table.shape[1:])
                        for table in (self.sums, self.counts))  # fmt: skip
        return {
            group: PartialSums.of(
                self.engine, sums[i], counts[i], inertia[group], distances[self.bounds[group] : self.bounds[group + 1]]
            )
            for i, group in enumerate(groups)
        }

    # -- seeding ------------------------------------------------------------------------------------------------------

    def measure_and_draw(self, tasks: Mapping[int, UpdateAndSample]) -> dict[int, Candidates]:
        """Measure D² of the rows of some groups and draw candidates, as `UpdateAndSample` does for one."""
        if not tasks:
            return {}
        groups = sorted(tasks)
        self._apply(tasks)
        potentials = self._totals(groups, self.squared)
        candidates = self._candidates({group: task for group, task in tasks.items() if task.horizon > 0})
        sums = self._add_cells({group: task for group, task in tasks.items() if task.with_sums})
        nobody = np.empty(0), np.empty(0, np.int64), np.empty(0), np.empty((0, self.rows.shape[1]), np.float32)
        return {
            group: Candidates(potentials[group], *candidates.get(group, nobody), *sums.get(group, (None, None)))
            for group in groups
        }

    def _apply(self, tasks: Mapping[int, UpdateAndSample]) -> None:
        """Measure rows against the centers drawn since the last pass of their group."""
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

    def _candidates(self, tasks: Mapping[int, UpdateAndSample]) -> dict[int, tuple[Any, ...]]:
        """Times, rows, D² and values of those who arrive in each group."""
        if not tasks:
            return {}
        xp, groups = self.xp, sorted(tasks)
        which = self._rows_of(groups)
        which = which[self.squared[which] > 0]
        of, squared = self.group[which], self.squared[which]
        keys, horizons = [0] * self.n_groups, np.zeros(self.n_groups)
        for group, task in tasks.items():
            keys[group], horizons[group] = stream_key(task.key, "arrival", 0), task.horizon
        first = uniform(random_bits_by_group(keys, of, which - xp.asarray(self.bounds)[of]))
        chosen = which[may_arrive(first, squared, xp.asarray(horizons)[of])]
        rows, squared = chosen.get(), self.squared[chosen].get()
        values = self.rows[chosen].get().astype(np.float32)
        cuts = np.searchsorted(rows, self.bounds)
        found = {}
        for group in groups:
            mine = slice(cuts[group], cuts[group + 1])
            numbers = rows[mine] - self.bounds[group]
            times, at = arrival_times(tasks[group].key, numbers, squared[mine], tasks[group].horizon)
            found[group] = times, numbers[at], squared[mine][at], values[mine][at]
        return found

    def _add_cells(
        self, tasks: Mapping[int, UpdateAndSample]
    ) -> dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Sums and sizes of the cells of each group's centers."""
        if not tasks:
            return {}
        xp, groups = self.xp, sorted(tasks)
        n_cells = np.zeros(self.n_groups, np.int64)
        n_cells[groups] = [sum(len(batch.get()) for batch in tasks[group].batches) for group in groups]
        firsts = np.concatenate([[0], np.cumsum(n_cells)])
        which = self._rows_of(groups)
        labels = self.cells[which] + xp.asarray(firsts.astype(np.int32))[self.group[which]]
        sums = xp.zeros((int(firsts[-1]), self.rows.shape[1]), xp.int64)
        counts = xp.zeros(len(sums), xp.int64)
        unweighted = xp.empty(0, xp.int64)
        cuda_kernels.add_entries(self.rows, which, labels, unweighted, self.geometry.scale, sums, counts)
        sums, counts = sums.get(), counts.get()
        cells = {group: slice(firsts[group], firsts[group + 1]) for group in groups}
        return {group: (sums[mine], counts[mine]) for group, mine in cells.items()}
