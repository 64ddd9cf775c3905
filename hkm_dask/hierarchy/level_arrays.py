"""The arrays of one level of a tree: creating and filling them, and sorting rows by cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedPieces
from hkm_dask.compute.stepwise import Outcome
from hkm_dask.data import layout, store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.objects import Location, location
from hkm_dask.hierarchy.sorting.external_sort import Run, grouped, stored_runs
from hkm_dask.hierarchy.sorting.members import starts, write_members
from hkm_dask.search.smallest import count_labels

#: Most bytes of centroids copied by one task, unless a single chunk has more.
_COPIED_BYTES = 16 << 20
#: Dtype and attributes of the per-row arrays; -1 and NaN stand for rows left out.
_OF_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "labels": ("i4", {"missing": -1}),
    "distances": ("f4", {"units": "squared L2"}),
}


def create_row_arrays(folder: Location, level: int, n_rows: int, chunk_rows: int) -> None:
    """Create the arrays ``labels`` and ``distances`` of a level (from 1), to be written in whole chunks.

    `n_rows` includes rows left out.
    """
    below = layout.SAMPLE if level == 1 else f"cluster_{level - 1}"
    for name, (dtype, attributes) in _OF_ROWS.items():
        store.create_array(
            folder, name, shape=(n_rows,), dtype=dtype, chunks=(chunk_rows,), dims=(below,), attributes=attributes
        )


def write_row_arrays(folder: Location, labels: NDArray[np.int32], distances: NDArray[np.float32]) -> None:
    """Replace the labels and distances of a level."""
    for name, values in zip(_OF_ROWS, (labels, distances), strict=True):
        open_array(folder / name).write(0, values)


@dataclass(frozen=True)
class _Sizes(Outcome):
    """Members of each cluster, and samples below them; int64 (n_clusters,)."""

    members: NDArray[np.int64]
    leaves: NDArray[np.int64]

    def __add__(self, other: _Sizes) -> _Sizes:
        return _Sizes(self.members + other.members, self.leaves + other.leaves)


def _count_members(n_clusters: int, below: str | None, runs: Sequence[Run]) -> _Sizes:
    """Task: count the members of each cluster in some runs; samples are counted by the level `below`."""
    members = np.zeros(n_clusters, np.int64)
    leaves = members if below is None else members.copy()
    for run in runs:
        records = run.read()
        count_labels(records.labels, members)
        if below is not None and len(records.rows):
            low, high = int(records.rows[0]), int(records.rows[-1]) + 1
            of_rows = open_array(location(below) / "leaf_sizes").read(low, high)
            np.add.at(leaves, records.labels, of_rows[records.rows - low])
    return _Sizes(members, leaves)


def _write_sizes(folder: str, level: int, sizes: _Sizes) -> NDArray[np.int64]:
    """Task: write the counts; returns the offsets of the clusters' members."""
    cluster, indptr = f"cluster_{level}", starts(sizes.members)
    for name, values, dim in (
        ("sizes", sizes.members, cluster),
        ("leaf_sizes", sizes.leaves, cluster),
        (f"indptr_{level}", indptr, f"{cluster}_bound"),
    ):
        _write(location(folder), name, values, (dim,))
    return indptr


def create_centroids(folder: Location, level: int, shape: tuple[int, int]) -> Location:
    """Create the array ``centroids`` of a level (from 1), to be written in whole chunks."""
    return _create(folder, "centroids", shape, np.dtype(np.float32), (f"cluster_{level}", layout.FEATURE))


class Readable(Protocol):
    """Rows in files."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows ``start:stop``."""


def _copy_centroids(path: str, centroids: Readable, clusters: tuple[int, int]) -> None:
    """Task: write a range of centroids, whole chunks, to the array at `path`."""
    open_array(location(path)).write(clusters[0], centroids.read(*clusters))


def copy_centroids(folder: Location, level: int, centroids: Readable, shape: tuple[int, int], runner: Runner) -> None:
    """Create the array ``centroids`` of a level (from 1) from files, with tasks that each hold a few."""
    path = create_centroids(folder, level, shape)
    chunk = open_array(path).spec.chunk_rows
    step = chunk * max(1, _COPIED_BYTES // (4 * shape[1] * chunk))
    items = [(low, min(low + step, shape[0])) for low in range(0, shape[0], step)]
    runner.map(partial(_copy_centroids, str(path), centroids), items, stage="split")


def write_cluster_arrays(
    folder: Location,
    level: int,
    centroids: NDArray[np.float32] | SharedPieces | None,
    inertia: Sequence[NDArray[np.float64]],
    runner: Runner,
) -> None:
    """Write the per-cluster arrays of a level (from 1), given its labels and distances on disk.

    `folder` is beside that of the level below; `centroids` is None if they are on disk as well; `inertia` has the
    values of every iteration for each step. Per-row data is read and written by tasks.
    """
    history = np.full((len(inertia), max(map(len, inertia))), np.nan)
    for step, values in enumerate(inertia):
        history[step, : len(values)] = values
    if isinstance(centroids, np.ndarray):
        open_array(create_centroids(folder, level, centroids.shape)).write(0, centroids)
    _write(folder, "inertia", history, ("step", "iteration"))
    if isinstance(centroids, SharedPieces):
        copy_centroids(folder, level, centroids, (centroids.n_rows, centroids.read(0, 1).shape[1]), runner)
    n_clusters = open_array(folder / "centroids").spec.shape[0]
    spec = open_array(folder / "labels").spec
    runs = stored_runs(folder, spec.shape[0], spec.chunk_rows, runner)
    below = None if level == 1 else str(folder.with_name(f"level_{level - 1}"))
    indptr: NDArray[np.int64] = runner.map_reduce(
        partial(_count_members, n_clusters, below), grouped(runs, runner), combine=_Sizes.__add__,
        finish=partial(_write_sizes, str(folder), level), stage="members",
    )  # fmt: skip
    path = _create(folder, f"members_{level}", (int(indptr[-1]),), np.dtype(np.int64), (f"member_{level}",))
    write_members(path, runs, indptr, spec.shape[0], runner)


def _create(folder: Location, name: str, shape: tuple[int, ...], dtype: np.dtype, dims: tuple[str, ...]) -> Location:
    n_rows, row_bytes = max(shape[0], 1), math.prod(shape[1:]) * dtype.itemsize
    chunk = min(n_rows, layout.chunk_rows(n_rows, row_bytes))
    store.create_array(folder, name, shape=shape, dtype=dtype, chunks=(chunk, *shape[1:]), dims=dims)
    return folder / name


def _write(folder: Location, name: str, values: NDArray[Any], dims: tuple[str, ...]) -> None:
    open_array(_create(folder, name, values.shape, values.dtype, dims)).write(0, values)


def read_whole(path: Location) -> NDArray[Any]:
    """Read an array, checking every chunk."""
    array = open_array(path)
    return array.read(0, array.spec.shape[0])
