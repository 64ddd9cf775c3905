"""The arrays of one level of a tree: made, filled and put in the order of their clusters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data import layout, store
from hkm_dask.data.chunks import open_array
from hkm_dask.hierarchy.members import group_by_label

#: Type and attributes of what an assignment writes of every row; -1 and NaN for those left out.
_OF_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "labels": ("i4", {"missing": -1}),
    "distances": ("f4", {"units": "squared L2"}),
}


def create_row_arrays(folder: Path, level: int, n_rows: int, chunk_rows: int) -> None:
    """Make the arrays ``labels`` and ``distances`` of a level (from 1), to be written in whole chunks.

    Their `n_rows` include those left out.
    """
    below = layout.SAMPLE if level == 1 else f"cluster_{level - 1}"
    for name, (dtype, attributes) in _OF_ROWS.items():
        store.create_array(
            folder, name, shape=(n_rows,), dtype=dtype, chunks=(chunk_rows,), dims=(below,), attributes=attributes
        )


def read_row_arrays(folder: Path) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Read the labels and distances of a level."""
    labels, distances = (read_whole(folder / name) for name in _OF_ROWS)
    return labels, distances


def write_row_arrays(folder: Path, labels: NDArray[np.int32], distances: NDArray[np.float32]) -> None:
    """Replace the labels and distances of a level."""
    for name, values in zip(_OF_ROWS, (labels, distances), strict=True):
        open_array(folder / name).write(0, values)


def write_cluster_arrays(
    folder: Path, level: int, centroids: NDArray[np.float32], inertia: Sequence[NDArray[np.float64]]
) -> None:
    """Write what a level (from 1) knows of its clusters, from the labels and distances that are there.

    `folder` is beside that of the level below; `inertia` is that of every iteration of each step.
    """
    indptr, members = group_by_label(*read_row_arrays(folder), len(centroids))
    sizes = leaf_sizes = np.diff(indptr)
    if level > 1:
        below = read_whole(folder.with_name(f"level_{level - 1}") / "leaf_sizes")
        leaf_sizes = np.diff(np.concatenate([[0], np.cumsum(below[members])])[indptr])
    history = np.full((len(inertia), max(map(len, inertia))), np.nan)
    for step, values in enumerate(inertia):
        history[step, : len(values)] = values
    cluster = f"cluster_{level}"
    arrays: list[tuple[str, NDArray[Any], tuple[str, ...]]] = [
        ("centroids", centroids, (cluster, layout.FEATURE)),
        ("sizes", sizes, (cluster,)),
        ("leaf_sizes", leaf_sizes, (cluster,)),
        (f"members_{level}", members, (f"member_{level}",)),
        (f"indptr_{level}", indptr, (f"{cluster}_bound",)),
        ("inertia", history, ("step", "iteration")),
    ]
    for name, values, dims in arrays:
        n_rows = max(len(values), 1)
        chunk = min(n_rows, layout.chunk_rows(n_rows, values[:1].nbytes or values.itemsize))
        chunks = (chunk, *values.shape[1:])
        store.create_array(folder, name, shape=values.shape, dtype=values.dtype, chunks=chunks, dims=dims)
        open_array(folder / name).write(0, values)


def read_whole(path: Path) -> NDArray[Any]:
    """Read an array, every chunk of it checked."""
    array = open_array(path)
    return array.read(0, array.spec.shape[0])
