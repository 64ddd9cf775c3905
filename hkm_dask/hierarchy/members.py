"""Members of clusters as compressed sparse rows: one array of row numbers, one of where each cluster begins."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import array_module, to_host
from hkm_dask.hierarchy import selection

#: Fewer are grouped by one thread.
_ROWS_FOR_THREADS = 100_000


def bounds_of_labels(labels: Any, n_clusters: int) -> NDArray[np.int64]:
    """Where the members of each cluster begin and end once rows are grouped; rows labeled -1 are left out.

    Labels (int32) may be on a device; the bounds are on the host.

    Examples
    --------
    >>> bounds_of_labels(np.int32([1, 0, -1, 1]), 3).tolist()
    [0, 1, 3, 3]
    """
    indptr, xp = np.zeros(n_clusters + 1, np.int64), array_module(labels)
    if xp is np:
        selection.count_labels(np.ascontiguousarray(labels), indptr[1:])
    else:
        indptr[1:] = to_host(xp.bincount(labels + 1, minlength=n_clusters + 1))[1:]
    return np.cumsum(indptr, out=indptr)


def group_by_label(
    labels: NDArray[np.int32], distances: NDArray[np.float32], n_clusters: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Group rows by their cluster; rows labeled -1 are left out.

    Members of cluster c are ``members[indptr[c]:indptr[c + 1]]``: row numbers in order of distance, then of row.

    Examples
    --------
    >>> indptr, members = group_by_label(np.int32([1, 0, -1, 1]), np.float32([2, 0, 0, 1]), 3)
    >>> indptr.tolist(), members.tolist()
    ([0, 1, 3, 3], [1, 3, 0])
    """
    labels, distances = np.ascontiguousarray(labels), np.ascontiguousarray(distances)
    indptr = bounds_of_labels(labels, n_clusters)
    members = np.empty(int(indptr[-1]), np.int64)
    # Every thread looks at all labels and sorts the clusters of a range: reading them is the least of it.
    n_threads = len(os.sched_getaffinity(0)) if len(labels) > _ROWS_FOR_THREADS else 1
    cuts = np.searchsorted(indptr, len(members) * np.arange(n_threads + 1) // n_threads)
    cuts[0], cuts[-1] = 0, n_clusters

    def group(part: int) -> None:
        selection.group_members(labels, distances, indptr, int(cuts[part]), int(cuts[part + 1]), members)

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(group, range(n_threads)))
    return indptr, members
