"""One pass that gives every row of a level its cluster: to keep, and to resample from."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.keyed_random import random_uniform
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.chunks import open_array
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import Rows
from hkm_dask.hierarchy.resample import ResampleSet
from hkm_dask.kmeans.search.cpu import CpuIndex
from hkm_dask.kmeans.search.engine import RowTile, fold, worker_engine
from hkm_dask.kmeans.search.geometry import Geometry


@dataclass(frozen=True)
class Assigned:
    """What a pass adds up.

    Attributes
    ----------
    counts : ndarray of int64, shape (n_clusters,)
    inertia : int
        Fixed point.
    chosen : ResampleSet or None
    """

    counts: NDArray[np.int64]
    inertia: int
    chosen: ResampleSet | None = None

    def __add__(self, other: Assigned) -> Assigned:
        chosen = self.chosen + other.chosen if self.chosen is not None and other.chosen is not None else None
        return Assigned(self.counts + other.counts, self.inertia + other.inertia, chosen)


@dataclass(frozen=True)
class Assign:
    """Task: label the rows of a part; write labels and distances, or pick members to resample, or both.

    Attributes
    ----------
    centroids : SharedArray
    geometry : Geometry
    run : str
    folder : str or None
        Group with the arrays ``labels`` and ``distances`` to write to.
    r : int
        Members to pick per cluster, 0 for none.
    random_key : int or None
        Pick at random by this key, instead of the closest.
    hints : SharedArray or None
        int32: for each label the last pass of this run gave, the centroid to try first.
    """

    centroids: SharedArray
    geometry: Geometry
    run: str
    folder: str | None = None
    r: int = 0
    random_key: int | None = None
    hints: SharedArray | None = None

    def __call__(self, part: Part) -> Assigned:
        """Fold the part."""
        engine = worker_engine()
        n_clusters = len(self.centroids.get())
        assignment = engine.unknown(part.stop - part.start)
        labels = engine.pop(part, "assign", self.run)
        if labels is not None and self.hints is not None:
            assignment.labels = engine.put(self.hints.get())[labels]
        search = engine.search(part, self.geometry, "assign", assignment)

        def label(tile: RowTile) -> None:
            search.update(tile, self.centroids)

        inertia = fold(part, engine, assignment, label, geometry=self.geometry)
        engine.keep(part, "assign", self.run, assignment.labels, assignment.labels.nbytes)
        labels, distances = engine.host(assignment.labels), engine.host(assignment.distances)
        if self.folder is not None:
            self._write(part, labels, distances.astype(np.float32))
        members = self._pick(part, n_clusters, labels, distances) if self.r else None
        return Assigned(np.bincount(labels, minlength=n_clusters), inertia, members)

    def _pick(
        self, part: Part, n_clusters: int, labels: NDArray[np.int32], distances: NDArray[np.float64]
    ) -> ResampleSet:
        rows = np.arange(part.start, part.stop)
        keys = distances if self.random_key is None else random_uniform(self.random_key, rows)
        return ResampleSet.pick(n_clusters, self.r, keys, labels, rows)

    def _write(self, part: Part, labels: NDArray[np.int32], distances: NDArray[np.float32]) -> None:
        start, stop = part.start, part.stop
        if isinstance(part.rows, SubsetRows):
            index = part.rows.index
            chunk_rows = open_array(Path(str(self.folder), "labels")).spec.chunk_rows
            total = open_array(Path(str(self.folder), "labels")).spec.shape[0]
            first = 0 if start == 0 else int(index[start]) // chunk_rows * chunk_rows
            last = total if stop == part.rows.n_rows else int(index[stop]) // chunk_rows * chunk_rows
            places, chosen = index[start:stop] - first, (labels, distances)
            labels, distances = np.full(last - first, -1, np.int32), np.full(last - first, np.nan, np.float32)
            labels[places], distances[places] = chosen
            start = first
        for name, values in (("labels", labels), ("distances", distances)):
            open_array(Path(str(self.folder), name)).write(start, values)


@dataclass(frozen=True)
class LevelRows:
    """The input of a level.

    Attributes
    ----------
    rows : Rows
        What is clustered: all of it, or a subset.
    n_total : int
        Length of the level's label array: rows left out have label -1.
    geometry : Geometry
    chunk_rows : int
        Rows that share a chunk of the label array.
    """

    rows: Rows
    n_total: int
    geometry: Geometry
    chunk_rows: int = field(default=1)

    def boundaries(self) -> NDArray[np.int64]:
        """Positions in `rows` where a chunk of the label array begins or ends."""
        chunks = np.append(np.arange(0, self.n_total, self.chunk_rows), self.n_total)
        if isinstance(self.rows, SubsetRows):
            return np.unique(np.searchsorted(self.rows.index, chunks))
        return chunks


def assign(
    level: LevelRows,
    centroids: NDArray[np.float32],
    *,
    run: str,
    runner: Runner,
    folder: Path | None = None,
    r: int = 0,
    random_key: int | None = None,
    before: NDArray[np.float32] | None = None,
) -> Assigned:
    """Label all rows of a level.

    Parameters
    ----------
    level : LevelRows
    centroids : ndarray of float32, shape (n_clusters, n_features)
    run : str
    runner : Runner
    folder : Path, optional
        Group with the arrays to write.
    r : int
        Members to pick per cluster.
    random_key : int, optional
        Pick them at random.
    before : ndarray of float32, shape (n_clusters, n_features), optional
        Centroids of the last pass of this run: a row's new centroid is sought near its old one first.

    Returns
    -------
    Assigned
    """
    shared = runner.array_store.put(f"centroids-{uuid.uuid4().hex}", centroids)
    # The same parts in every pass, so that each finds what it remembered in the last one.
    parts = runner.split(level.rows, len(centroids), cuts=level.boundaries())
    hints = None
    if before is not None:
        near = np.full(len(before), -1, np.int32)
        used = ~np.isnan(before[:, 0])
        found = near[used]
        CpuIndex(centroids, level.geometry).nearest(before[used], found, np.full(len(found), np.inf))
        near[used] = found
        hints = runner.array_store.put(f"hints-{uuid.uuid4().hex}", near)
    task = Assign(shared, level.geometry, run, None if folder is None else str(folder), r, random_key, hints)
    total: Assigned = runner.map_reduce(task, parts, combine=Assigned.__add__, stage="assign")
    shared.delete()
    if hints is not None:
        hints.delete()
    return total
