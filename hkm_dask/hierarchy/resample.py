"""How many members of each cluster the next k-means of a level takes (arXiv:2405.15613 §3.3)."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from hkm_dask.config import Level


def resample_size(level: Level, n_rows: int) -> int:
    """Members to take per cluster: a number, or for "auto" half the mean cluster size, at least 2.

    >>> resample_size(Level(n_clusters=100), 5000), resample_size(Level(n_clusters=100, resample_size=7), 5000)
    (25, 7)
    """
    if level.resample_size == "auto":
        # Resampling comes before clusters are split: those of the k-means count, not their parts.
        return max(2, n_rows // (2 * level.n_clusters))
    return int(level.resample_size)


def enough_members(sizes: NDArray[np.int64], r: int, n_clusters: int) -> int:
    """Raise r, where clusters are so unequal that fewer than `n_clusters` members would come together.

    Gives the smallest number >= r with ``sum(min(r, sizes)) >= n_clusters``, or the largest cluster's size.

    >>> enough_members(np.array([5, 0, 0]), 1, 3)
    3
    """
    candidates = range(r, int(sizes.max(initial=r)))
    return r + bisect_left(candidates, n_clusters, key=lambda n: int(np.minimum(sizes, n).sum()))
