"""Members of each cluster for the next k-means of a level: how many, and which (arXiv:2405.15613 §3.3)."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkm_dask.config import Level
from hkm_dask.hierarchy import selection


@dataclass(frozen=True)
class ResampleSet:
    """Members of clusters: up to r of each, those with the smallest keys, ties to the lowest row.

    Keys are squared distances or random numbers; `keys`, `labels` and `rows` are of shape (n_members,), rows ascending.
    It takes 20 bytes for each member picked, however large r is.

    Examples
    --------
    >>> keys, labels = np.array([3.0, 1.0, 1.0, 5.0]), np.int32([0, 0, 0, 1])
    >>> first = ResampleSet.pick(2, 1, keys, labels, np.arange(4))
    >>> second = ResampleSet.pick(2, 1, keys, labels, np.arange(4, 8))
    >>> first.rows.tolist(), (first + second).rows.tolist()
    ([1, 3], [1, 3])
    """

    n_clusters: int
    r: int
    keys: NDArray[np.float64]
    labels: NDArray[np.int32]
    rows: NDArray[np.int64]

    @classmethod
    def pick(
        cls, n_clusters: int, r: int, keys: NDArray[np.float64], labels: NDArray[np.int32], rows: NDArray[np.int64]
    ) -> ResampleSet:
        """Pick from rows in ascending order; those labeled -1 are left out."""
        indptr = np.concatenate([[0], np.cumsum(np.bincount(labels[labels >= 0], minlength=n_clusters))])
        chosen = np.zeros(len(keys), np.bool_)
        selection.mark_smallest(np.ascontiguousarray(keys), np.ascontiguousarray(labels), indptr, r, chosen)
        return cls(n_clusters, r, keys[chosen], labels[chosen], rows[chosen])

    def __add__(self, other: ResampleSet) -> ResampleSet:
        """Pick from the members of both; the rows of `other` come after those of this one."""
        return ResampleSet.pick(
            self.n_clusters,
            self.r,
            np.concatenate([self.keys, other.keys]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.rows, other.rows]),
        )


def resample_size(level: Level, n_rows: int) -> int:
    """Members to take per cluster: a number, or for "auto" half the mean cluster size, at least 2.

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

    Gives the smallest number >= r with ``sum(min(r, sizes)) >= n_clusters``, or the largest cluster's size.

    Examples
    --------
    >>> enough_members(np.array([5, 0, 0]), 1, 3)
    3
    """
    candidates = range(r, int(sizes.max(initial=r)))
    return r + bisect_left(candidates, n_clusters, key=lambda n: int(np.minimum(sizes, n).sum()))
