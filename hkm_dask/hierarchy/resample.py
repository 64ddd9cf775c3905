"""Members of each cluster for the next k-means of a level: how many, and which (arXiv:2405.15613 §3.3)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import array_module, to_host
from hkm_dask.compute.memory import PICKED_ROWS
from hkm_dask.compute.outcome import Outcome
from hkm_dask.config import Level
from hkm_dask.kmeans.search.smallest import are_smallest


@dataclass(frozen=True)
class ResampleSet(Outcome):
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
        cls,
        n_clusters: int,
        r: int,
        keys: Any,
        labels: Any,
        rows: NDArray[np.int64] | range,
    ) -> ResampleSet:
        """Pick from rows in ascending order; those labeled -1 are left out.

        `keys` (float64, none negative) and `labels` (int32) may be on a device: only what is picked comes to the host.
        """
        chosen = array_module(keys).flatnonzero(are_smallest(n_clusters, r, keys, labels))
        picked, of_labels, of_keys = map(to_host, (chosen, labels[chosen], keys[chosen]))
        return cls(n_clusters, r, of_keys, of_labels, picked + rows.start if isinstance(rows, range) else rows[picked])

    @classmethod
    def picks(
        cls, n_clusters: int, r: int, keys: Any, labels: Any, rows: range, step: int = PICKED_ROWS
    ) -> Iterator[ResampleSet]:
        """Pick as `pick` does, and give what was picked of `step` rows at a time, so that little of it is held."""
        chosen = are_smallest(n_clusters, r, keys, labels)
        for low in range(0, max(1, len(labels)), step):
            some = slice(low, low + step)
            places = array_module(keys).flatnonzero(chosen[some])
            picked, of_labels, of_keys = map(to_host, (places, labels[some][places], keys[some][places]))
            yield cls(n_clusters, r, of_keys, of_labels, picked + (rows.start + low))

    def __add__(self, other: ResampleSet) -> ResampleSet:
        """Pick from the members of both; the rows of `other` come after those of this one."""
        keys, labels = np.concatenate([self.keys, other.keys]), np.concatenate([self.labels, other.labels])
        chosen = are_smallest(self.n_clusters, self.r, keys, labels)
        del keys, labels  # members may be as many as the rows
        of_each = (self, chosen[: len(self.rows)]), (other, chosen[len(self.rows) :])
        return ResampleSet(
            self.n_clusters,
            self.r,
            np.concatenate([part.keys[some] for part, some in of_each]),
            np.concatenate([part.labels[some] for part, some in of_each]),
            np.concatenate([part.rows[some] for part, some in of_each]),
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
