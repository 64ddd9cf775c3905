"""Rows eligible for a draw, as a mask of one byte per row, and their number below every cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hkm_dask.hierarchy.sampling.steering import Cluster
from hkm_dask.hierarchy.tree.arrays import TreeArrays

Mask = NDArray[np.bool_]

#: Rows processed at once.
BLOCK_ROWS = 1 << 18


def row_blocks(n_rows: int) -> Iterator[slice]:
    """Yield slices of `BLOCK_ROWS` rows, which limit the size of temporary arrays."""
    return (slice(low, min(low + BLOCK_ROWS, n_rows)) for low in range(0, n_rows, BLOCK_ROWS))


def unknown_clusters(arrays: TreeArrays, clusters: Iterable[Cluster], option: str) -> list[str]:
    """Describe clusters that the tree does not have, one line each."""
    problems = []
    for cluster in clusters:
        if not 1 <= cluster.level <= arrays.n_levels:
            rule = f"a cluster of a level from 1 to {arrays.n_levels}"
        elif cluster.number >= arrays.n_clusters(cluster.level):
            rule = f"a cluster from {cluster.level}:0 to {cluster.level}:{arrays.n_clusters(cluster.level) - 1}"
        else:
            continue
        problems.append(f"{option}={str(cluster)!r} should be {rule}; choose one of the tree's")
    return problems


def rows_below(arrays: TreeArrays, chosen: Mask) -> Mask:
    """Tell for every sample whether its level-1 cluster is among the `chosen`."""
    mask = np.empty(arrays.n_rows(1), np.bool_)
    for bounds in arrays.blocks(1, "labels"):
        labels = arrays.block(1, "labels", bounds)
        mask[slice(*bounds)] = (labels >= 0) & chosen[labels]
    return mask


def clusters_chosen(arrays: TreeArrays, exclude: Sequence[Cluster], only: Sequence[Cluster]) -> Mask:
    """Tell for every level-1 cluster whether it lies below one of `only`, if there are any, and below no `exclude`."""
    n_top = arrays.n_clusters(arrays.n_levels)
    inside, outside = np.full(n_top, not only), np.zeros(n_top, np.bool_)
    for t in range(arrays.n_levels, 0, -1):
        if t < arrays.n_levels:
            parents = arrays.read(t + 1, "labels")  # -1 for empty clusters, whose answer does not matter
            inside, outside = inside[parents], outside[parents]
        inside[[cluster.number for cluster in only if cluster.level == t]] = True
        outside[[cluster.number for cluster in exclude if cluster.level == t]] = True
    return inside & ~outside


def leaf_sizes(arrays: TreeArrays, mask: Mask | None) -> list[NDArray[np.int64]]:
    """Count the samples below the clusters of every level, level 1 first, optionally only those in `mask`.

    Labels are read in blocks.
    """
    if mask is None:
        return [arrays.read(t, "leaf_sizes") for t in range(1, arrays.n_levels + 1)]
    sizes = np.zeros(arrays.n_clusters(1), np.int64)
    for bounds in arrays.blocks(1, "labels"):
        labels = arrays.block(1, "labels", bounds)
        sizes += np.bincount(labels[mask[slice(*bounds)]], minlength=len(sizes))
    return arrays.sums(sizes)


def count_rows(arrays: TreeArrays, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Count some rows below the clusters of every level, level 1 first; repeated rows count each time."""
    counts = np.zeros(arrays.n_clusters(1), np.int64)
    for some in row_blocks(len(rows)):
        labels = arrays.take(1, "labels", rows[some])
        counts += np.bincount(labels[labels >= 0], minlength=len(counts))
    return arrays.sums(counts)
