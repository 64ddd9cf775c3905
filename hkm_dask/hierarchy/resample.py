"""How many members each cluster gives to the set that the next k-means of a level is run on (arXiv:2405.15613 §3.3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hkm_dask.config import Level


def resample_size(level: Level, n_rows: int) -> int:
    """Members to take per cluster.

    Parameters
    ----------
    level : Level
        With ``resample_size`` a number, or "auto": half the mean cluster size, at least 2.
    n_rows : int
        Rows the level clusters.

    Returns
    -------
    int

    Examples
    --------
    >>> resample_size(Level(n_clusters=100), 5000), resample_size(Level(n_clusters=100, resample_size=7), 5000)
    (25, 7)
    """
    if level.resample_size == "auto":
        # Resampling comes before clusters are split: those of the k-means count, not their parts.
        return max(2, n_rows // (2 * level.n_clusters))
    return int(level.resample_size)


def enough_members(sizes: NDArray[np.int64], r: int, n_clusters: int) -> int:
    """Raise r, where clusters are so unequal that fewer than `n_clusters` members would come together.

    Parameters
    ----------
    sizes : ndarray of int64
        Rows of each cluster.
    r : int
        Members wanted per cluster.
    n_clusters : int

    Returns
    -------
    int
        The smallest number >= r with ``sum(min(r, sizes)) >= n_clusters``, or the largest cluster's size.

    Examples
    --------
    >>> enough_members(np.array([5, 0, 0]), 1, 3)
    3
    """
    if int(np.minimum(sizes, r).sum()) >= n_clusters:
        return r
    low, high = r, max(r, int(sizes.max(initial=r)))
    while low < high:
        middle = (low + high) // 2
        if int(np.minimum(sizes, middle).sum()) >= n_clusters:
            high = middle
        else:
            low = middle + 1
    return low
