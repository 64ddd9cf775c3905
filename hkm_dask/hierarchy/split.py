"""The two-step level: every cluster of a k-means is split by a small k-means of its own (arXiv:2405.15613 §4.2.1).

Ten million clusters in one k-means would measure every row against every centroid; a hundred thousand clusters split
into a hundred each measure it against a hundred thousand and a hundred. Rows are first regrouped by cluster, in one
pass over the pool, so that each small k-means reads one run of a file.
"""

from __future__ import annotations

import itertools
import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.blocks import Part, forget, iter_blocks
from hkm_dask.compute.keys import stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.data.files import as_buffer, careful
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows
from hkm_dask.data.scratch import create_npy
from hkm_dask.kmeans.fit import Settings, fit
from hkm_dask.kmeans.frame import Frame
from hkm_dask.kmeans.lloyd import split_rows
from hkm_dask.kmeans.nearest import Search

#: Bytes of rows one task splits.
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Split:
    """Outcome of splitting every cluster.

    Attributes
    ----------
    centroids : ndarray of float32, shape (n_clusters * n_splits, n_features)
        Those of cluster c are rows ``c * n_splits`` and following; NaN where it has fewer distinct rows.
    labels : ndarray of int32, shape (n_rows,)
        Nearest centroid among those of the row's cluster.
    distances : ndarray of float32, shape (n_rows,)
        Squared L2.
    inertia : float
        Sum of the distances.
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
    places: NDArray[np.int64]
    first: int

    def __call__(self, part: Part) -> None:
        def write() -> None:
            fd = os.open(self.path, os.O_WRONLY)
            try:
                for start, block in iter_blocks(part):
                    self._write_block(fd, block, self.places[start - self.first : start - self.first + len(block)])
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
    frame: Frame
    settings: Settings

    def __call__(
        self, item: tuple[int, NDArray[np.int64]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float64]]:
        first, bounds = item
        k = self.settings.n_clusters
        base = int(bounds[0])
        values = np.ascontiguousarray(self.rows.read(base, int(bounds[-1])), np.float32)
        centroids = np.full(((len(bounds) - 1) * k, self.rows.n_features), np.nan, np.float32)
        labels, distances = np.full(len(values), -1, np.int32), np.full(len(values), np.inf)
        with Runner(n_threads=1) as runner:
            for i, (low, high) in enumerate(zip(bounds[:-1] - base, bounds[1:] - base, strict=True)):
                if low == high:
                    continue
                members = ArrayRows(values[low:high])
                settings = replace(self.settings, key=stream_key(self.settings.key, first + i))
                found = fit(members, settings, frame=self.frame, runner=runner).centroids
                forget(members.key)
                centroids[i * k : (i + 1) * k] = found
                Search(found, self.frame).nearest(values[low:high], labels[low:high], distances[low:high])
                labels[low:high] += (first + i) * k
        return centroids, labels, distances


def split_clusters(
    rows: Rows,
    indptr: NDArray[np.int64],
    members: NDArray[np.int64],
    settings: Settings,
    *,
    frame: Frame,
    runner: Runner,
) -> Split:
    """Split every cluster by a k-means over its members.

    Parameters
    ----------
    rows : Rows
    indptr, members : ndarray of int64
        Members of each cluster, as positions in `rows`; every row is in one cluster.
    settings : Settings
        Of the small k-means; its `n_clusters` is the number of parts of each cluster.
    frame : Frame
    runner : Runner

    Returns
    -------
    Split
    """
    places = np.empty(rows.n_rows, np.int64)
    places[members] = np.arange(rows.n_rows)
    path = Path(runner.work_dir) / f"regrouped-{uuid.uuid4().hex}.npy"
    offset = create_npy(path, (rows.n_rows, rows.n_features), rows.dtype)
    parts = split_rows(rows, runner, 1)
    tasks = [(_Regroup(str(path), offset, places[part.start : part.stop], part.start), part) for part in parts]
    runner.map(_call, tasks, stage="regroup")
    try:
        found = runner.map(
            _SplitClusters(NpyRows(path), frame, settings), _batches(indptr, rows, runner), stage="split"
        )
    finally:
        path.unlink(missing_ok=True)
    labels, distances = np.empty(rows.n_rows, np.int32), np.empty(rows.n_rows, np.float64)
    labels[members] = np.concatenate([labels for _, labels, _ in found])
    distances[members] = np.concatenate([distances for _, _, distances in found])
    fixed = np.rint(distances * frame.distance_scale).astype(np.int64)
    return Split(
        np.concatenate([centroids for centroids, _, _ in found]),
        labels,
        distances.astype(np.float32),
        int(fixed.sum()) / frame.distance_scale,
    )


def _call(item: tuple[_Regroup, Part]) -> None:
    task, part = item
    task(part)


def _batches(indptr: NDArray[np.int64], rows: Rows, runner: Runner) -> list[tuple[int, NDArray[np.int64]]]:
    """Runs of clusters of about equal numbers of rows, with the bounds of each cluster."""
    n_batches = max(4 * runner.n_threads, -(-rows.n_rows * rows.row_bytes // _BATCH_BYTES))
    targets = rows.n_rows * np.arange(n_batches + 1) // n_batches
    cuts = np.unique(np.searchsorted(indptr, targets))
    cuts[0], cuts[-1] = 0, len(indptr) - 1
    return [(int(a), indptr[a : b + 1]) for a, b in itertools.pairwise(cuts)]
