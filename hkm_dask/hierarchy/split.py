"""Two-step levels: every cluster of a k-means is split by a small k-means of its own (arXiv:2405.15613 §4.2.1).

A k-means with ten million clusters would compare every row with every centroid; a hundred thousand clusters split into
a hundred each compare it with a hundred thousand and a hundred. Rows are first regrouped by cluster, in one pass over
the pool, so that each small k-means reads a contiguous run of a file. Results go through files to the level as well:
the driver holds only the offsets of the clusters, no rows or centroids.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.memory import StageBytes, split_stage
from hkm_dask.compute.piece_rows import Pieces
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore
from hkm_dask.data.files import as_buffer
from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.data.objects import Location, location
from hkm_dask.data.rows import Rows
from hkm_dask.errors import StoreError
from hkm_dask.events import emit
from hkm_dask.hierarchy.checkpoint import Checkpoints
from hkm_dask.hierarchy.level_arrays import Readable, copy_centroids
from hkm_dask.hierarchy.regroup import regrouped
from hkm_dask.kmeans.fit import Settings
from hkm_dask.kmeans.fit_groups import fit_groups
from hkm_dask.search.geometry import Geometry

#: Batches per thread between progress reports.
_BATCHES_PER_ROUND = 4

#: Number of the first cluster, row offsets of the clusters, and the checksum if they were split earlier.
Batch = tuple[int, NDArray[np.int64], int | None]


class _Table(Readable, Protocol):
    """A table whose rows are read and written by tasks."""

    def write(self, start: int, rows: NDArray[np.generic]) -> None:
        """Write rows from row number `start` on."""

    def delete(self) -> None:
        """Delete the table."""


@dataclass(frozen=True)
class _File:
    """A `.npy` file with concurrent writers; see `_Table`."""

    path: Path
    offset: int

    @classmethod
    def make(cls, path: Path, shape: tuple[int, int], dtype: type, *, kept: bool) -> _File:
        """Create the file; if `kept`, an existing file of the same size is reused."""
        other = path.with_name(f"{path.name}.npy")
        offset = create_npy(other, shape, np.dtype(dtype))
        if kept and path.exists() and path.stat().st_size == other.stat().st_size:
            other.unlink()
        else:
            other.replace(path)
        return cls(path, offset)

    def write(self, start: int, rows: NDArray[np.generic]) -> None:
        write_npy_rows(self.path, self.offset, start, rows)

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        return SharedArray(str(self.path)).read(start, stop)

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)


@contextmanager
def _lent(table: _Table, *, kept: bool) -> Iterator[_Table]:
    """Yield a table that is deleted at the end; if `kept`, it survives a failure, and the next run reuses it."""
    try:
        yield table
    except BaseException:
        if not kept:
            table.delete()
        raise
    table.delete()


@dataclass(frozen=True)
class _SplitClusters:
    """Task: split some clusters, whose rows are contiguous in a file; returns the checksum of the results.

    Centroids are written to one table, the new label and the distance bits of each row to another. Results that are
    already there, by their checksum, stay.
    """

    rows: Rows
    geometry: Geometry
    settings: Settings
    batch_bytes: int
    memory_budget: int
    batched: bool
    centroids: _Table
    found: _Table

    def __call__(self, item: Batch) -> int:
        first, bounds, known = item
        if known is None or not self._is_there(first, bounds, known):
            self._split(first, bounds)
        return self._checksum(first, bounds)

    def _is_there(self, first: int, bounds: NDArray[np.int64], known: int) -> bool:
        with suppress(FileNotFoundError, StoreError):
            return self._checksum(first, bounds) == known
        return False

    def _checksum(self, first: int, bounds: NDArray[np.int64]) -> int:
        k = self.settings.n_clusters
        centroids = self.centroids.read(first * k, (first + len(bounds) - 1) * k)
        found = self.found.read(int(bounds[0]), int(bounds[-1]))
        checksum = 0
        for values in (centroids, found):
            checksum = crc32c(as_buffer(values), checksum)
        return checksum

    def _split(self, first: int, bounds: NDArray[np.int64]) -> None:
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
        self.centroids.write(first * k, centroids.reshape(-1, self.rows.n_features))
        found = np.empty((len(fits.labels), 2), np.int32)
        found[:, 0] = (first + filled[fits.labels // k]).astype(np.int32) * k + fits.labels % k
        found[:, 1] = fits.distances.astype(np.float32).view(np.int32)
        self.found.write(base, found)


def split_clusters(
    rows: Rows,
    folder: Location,
    sizes: NDArray[np.int64],
    settings: Settings,
    *,
    level: int,
    geometry: Geometry,
    runner: Runner,
    report: Callable[[int, int], None] | None = None,
    checkpoints: Checkpoints | None = None,
    batched: bool = True,
) -> None:
    """Split every cluster of a level by a k-means over its members, into as many parts as `settings` has clusters.

    `rows` are those with a label, in order; `sizes` is int64 (n_clusters,). ``labels`` and ``distances`` in `folder`
    first hold the cluster of each row, and at the end its part; ``centroids`` is created: those of cluster c are rows
    ``c * n_splits`` and following, NaN if it has fewer distinct rows.

    `report` gets the number of clusters split so far, and the total. Finished clusters are recorded in `checkpoints`,
    and not split again after a failure. With `batched`, a device makes the passes of many k-means at once, otherwise
    one after another, with bitwise the same result.
    """
    indptr, n_parts = np.append(0, np.cumsum(sizes)), len(sizes) * settings.n_clusters
    report = report or (lambda done, total: None)
    report(0, len(sizes))
    before = None if checkpoints is None else checkpoints.split_before(level)
    cuts, known = (_cuts_of_batches(indptr, rows, runner), []) if before is None else before
    if known:
        emit("resumed", what=f"level {level}: {cuts[len(known)]:,} of {len(sizes):,} clusters were already split")
    checksums: list[int] = []
    takes = _bytes_taken(rows, indptr[cuts], len(sizes), settings, runner)
    n = _BATCHES_PER_ROUND * runner.n_threads
    with (
        _tables(f"level_{level}-split", cuts, indptr, settings, rows.n_features, runner, checkpoints) as tables,
        regrouped(rows, folder, indptr, runner) as clusters,
    ):
        centroids, found = tables
        task = _SplitClusters(
            clusters.rows, geometry, settings, runner.batch_bytes, runner.memory_budget, batched, centroids, found
        )
        for low in range(0, len(cuts) - 1, n):
            some = cuts[low : low + n + 1].tolist()
            known_of = itertools.chain(known[low : low + n], itertools.repeat(None))
            batches = [
                (first, indptr[first : stop + 1], checksum)
                for (first, stop), checksum in zip(itertools.pairwise(some), known_of, strict=False)
            ]
            checksums += runner.map(task, batches, stage="split", takes=takes)
            if checkpoints is not None:
                checkpoints.split(level, cuts, checksums + known[len(checksums) :])
            report(some[-1], len(sizes))
        clusters.write_back(found, runner)
        copy_centroids(folder, level, centroids, (n_parts, rows.n_features), runner)
    if checkpoints is not None:
        checkpoints.finish_split(level)


@contextmanager
def _tables(
    name: str, cuts: NDArray[np.int64], indptr: NDArray[np.int64], settings: Settings, n_features: int, runner: Runner,
    checkpoints: Checkpoints | None,
) -> Iterator[tuple[_Table, _Table]]:  # fmt: skip
    """Yield the tables for centroids and for per-row results; with checkpoints, they survive a failure."""
    k, kept = settings.n_clusters, checkpoints is not None
    shapes: dict[str, tuple[tuple[int, int], type, NDArray[np.int64]]] = {
        "centroids": ((k * (len(indptr) - 1), n_features), np.float32, k * cuts[:-1]),
        "found": ((int(indptr[-1]), 2), np.int32, indptr[cuts[:-1]]),
    }
    with ExitStack() as stack:
        tables = []
        for what, (shape, dtype, starts) in shapes.items():
            table: _Table
            if runner.array_store.is_remote:
                place = location(str(runner.array_store.folder)) / name
                if checkpoints is not None:
                    place = checkpoints.folder / f"{name}-{checkpoints.run_name}"
                table = Pieces(SharedArrayStore(str(place)), what, np.append(starts, shape[0]))
            else:
                table = _File.make(Path(runner.work_dir) / f"{name}.{what}", shape, dtype, kept=kept)
            tables.append(stack.enter_context(_lent(table, kept=kept)))
        yield tables[0], tables[1]


def _bytes_taken(
    rows: Rows, bounds: NDArray[np.int64], n_clusters: int, settings: Settings, runner: Runner
) -> StageBytes:
    """Return the memory of splitting: scratch if it is in this process, and the largest batch in every task."""
    largest = int(np.diff(bounds).max())
    stage = split_stage(rows.n_rows, n_clusters, rows.n_features, settings.n_clusters, largest * 4 * rows.n_features)
    return stage if runner.in_process else StageBytes(0, stage.task)


def _cuts_of_batches(indptr: NDArray[np.int64], rows: Rows, runner: Runner) -> NDArray[np.int64]:
    """Return the first cluster of each batch of about equal numbers of rows, and the number of clusters."""
    n_batches = runner.n_batches(rows.n_rows * rows.row_bytes)
    targets = rows.n_rows * np.arange(n_batches + 1) // n_batches
    cuts = np.unique(np.searchsorted(indptr, targets))
    cuts[0], cuts[-1] = 0, len(indptr) - 1
    return cuts
