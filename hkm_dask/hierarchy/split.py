"""The two-step level: every cluster of a k-means is split by a small k-means of its own (arXiv:2405.15613 §4.2.1).

Ten million clusters in one k-means would measure every row against every centroid; a hundred thousand clusters split
into a hundred each measure it against a hundred thousand and a hundred. Rows are first regrouped by cluster, in one
pass over the pool, so that each small k-means reads one run of a file.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import iter_blocks
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.memory import StageBytes, split_stage
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.files import as_buffer, careful
from hkm_dask.data.npy import create_npy
from hkm_dask.data.rows import NpyRows, Rows
from hkm_dask.kmeans.batch import fit_groups
from hkm_dask.kmeans.fit import Settings
from hkm_dask.kmeans.search.geometry import Geometry

#: Batches of a thread after which progress is told.
_BATCHES_PER_ROUND = 4

#: The number of the first cluster, and where the rows of each begin and end.
Batch = tuple[int, NDArray[np.int64]]
#: Centroids, and the label and squared distance of every row.
_Outcome = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float64]]


@dataclass(frozen=True)
class Split:
    """Outcome of splitting every cluster.

    Centroids of cluster c are rows ``c * n_splits`` and following, NaN where it has fewer distinct rows; the label of a
    row is the nearest of its cluster's. Distances are squared L2, `inertia` is their sum.
    """

    centroids: NDArray[np.float32]
    labels: NDArray[np.int32]
    distances: NDArray[np.float32]
    inertia: float


@dataclass(frozen=True)
class _Regroup:
    """Task: write the rows of a part to their places in the regrouped file."""

    path: str
    offset: int
    places: SharedArray

    def __call__(self, part: Part) -> None:
        def write() -> None:
            fd = os.open(self.path, os.O_WRONLY)
            try:
                for start, block in iter_blocks(part):
                    self._write_block(fd, block, self.places.read(start, start + len(block)))
            finally:
                os.close(fd)

        careful(write, f"writing {self.path}")

    def _write_block(self, fd: int, block: NDArray[np.floating], places: NDArray[np.int64]) -> None:
        order = np.argsort(places)
        rows, places = np.ascontiguousarray(block[order]), places[order]
        cuts = np.flatnonzero(np.diff(places) != 1) + 1
        width = rows.shape[1] * rows.itemsize
        for low, high in zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True):
            data = as_buffer(rows[low:high])
            at = self.offset + int(places[low]) * width
            while data:
                done = os.pwrite(fd, data, at)
                data, at = data[done:], at + done


@dataclass(frozen=True)
class _SplitClusters:
    """Task: split some clusters, whose rows stand together in a file or in memory."""

    rows: Rows
    geometry: Geometry
    settings: Settings
    batch_bytes: int
    memory_budget: int
    batched: bool

    def __call__(self, item: Batch) -> _Outcome:
        first, bounds = item
        k, base = self.settings.n_clusters, int(bounds[0])
        centroids = np.full((len(bounds) - 1, k, self.rows.n_features), np.nan, np.float32)
        filled = np.flatnonzero(np.diff(bounds))
        settings = [replace(self.settings, key=stream_key(self.settings.key, first + i)) for i in filled.tolist()]
        fits = fit_groups(
            self.rows.read(base, int(bounds[-1])), np.append(bounds[filled], bounds[-1]) - base, settings,
            geometry=self.geometry, memory_budget=self.memory_budget, batch_bytes=self.batch_bytes,
            batched=self.batched,
        )  # fmt: skip
        centroids[filled] = fits.centroids.reshape(len(filled), k, -1)
        labels = (first + filled[fits.labels // k]).astype(np.int32) * k + fits.labels % k
        return centroids.reshape(-1, self.rows.n_features), labels, fits.distances


def split_clusters(
    rows: Rows,
    indptr: NDArray[np.int64],
    members: NDArray[np.int64],
    settings: Settings,
    *,
    geometry: Geometry,
    runner: Runner,
    report: Callable[[int, int], None] | None = None,
    batched: bool = True,
) -> Split:
    """Split every cluster by a k-means over its members, into as many parts as `settings` has clusters.

    `members` are positions in `rows`, every row in one cluster. `report` gets the number of clusters split so far, and
    of all. Where `batched`, a device makes the passes of many k-means at once; else one after the other, to the same
    bits.
    """
    n_clusters = len(indptr) - 1
    report = report or (lambda done, total: None)
    report(0, n_clusters)
    path = Path(runner.work_dir) / f"regrouped-{uuid.uuid4().hex}.npy"
    try:
        _regroup(rows, members, path, runner)
        task = _SplitClusters(
            NpyRows(path, scratch=True), geometry, settings, runner.batch_bytes, runner.memory_budget, batched
        )
        batches, n = _batches(indptr, rows, runner), _BATCHES_PER_ROUND * runner.n_threads
        takes = _bytes_taken(rows, batches, settings, runner)
        centroids: list[NDArray[np.float32]] = []
        labels, distances = np.empty(rows.n_rows, np.int32), np.empty(rows.n_rows, np.float32)
        inertia = geometry.distance_sum(rows.n_rows)
        for low in range(0, len(batches), n):
            some = batches[low : low + n]
            outcomes = runner.map(task, some, stage="split", takes=takes)
            for (_, bounds), outcome in zip(some, outcomes, strict=True):
                of_batch = members[bounds[0] : bounds[-1]]
                centroids.append(outcome[0])
                labels[of_batch], distances[of_batch] = outcome[1:]
                inertia.add(outcome[2])
            report(some[-1][0] + len(some[-1][1]) - 1, n_clusters)
    finally:
        path.unlink(missing_ok=True)
    return Split(np.concatenate(centroids), labels, distances, inertia.total() / geometry.distance_scale)


def _bytes_taken(rows: Rows, batches: list[Batch], settings: Settings, runner: Runner) -> StageBytes:
    """What splitting takes: that of all rows where it is in this process, and of the largest batch in every task."""
    largest = max(int(bounds[-1] - bounds[0]) for _, bounds in batches)
    stage = split_stage(
        rows.n_rows, sum(len(bounds) - 1 for _, bounds in batches), rows.n_features, settings.n_clusters,
        largest * 4 * rows.n_features,
    )  # fmt: skip
    return stage if runner.client is None else StageBytes(0, stage.task)


def _regroup(rows: Rows, members: NDArray[np.int64], path: Path, runner: Runner) -> None:
    """Write the rows of each cluster next to each other, clusters in order."""
    places = np.empty(rows.n_rows, np.int64)
    places[members] = np.arange(rows.n_rows)
    shared = runner.array_store.put(f"places-{uuid.uuid4().hex}", places)
    try:
        offset = create_npy(path, (rows.n_rows, rows.n_features), rows.dtype)
        runner.map(_Regroup(str(path), offset, shared), runner.split(rows, 1), stage="regroup")
    finally:
        shared.delete()


def _batches(indptr: NDArray[np.int64], rows: Rows, runner: Runner) -> list[Batch]:
    """Runs of clusters of about equal numbers of rows, with the bounds of each cluster."""
    n_batches = runner.n_batches(rows.n_rows * rows.row_bytes)
    targets = rows.n_rows * np.arange(n_batches + 1) // n_batches
    cuts = np.unique(np.searchsorted(indptr, targets))
    cuts[0], cuts[-1] = 0, len(indptr) - 1
    return [(int(a), indptr[a : b + 1]) for a, b in itertools.pairwise(cuts)]
