"""A subset of a pool beside the pool: how many of its rows each cluster holds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hkm_dask.browsing.clusters import Clusters
from hkm_dask.hierarchy.steering import Cluster

#: Rows whose clusters are counted at a time.
_BLOCK_ROWS = 2**20


class Subset:
    """Rows of a subset, counted in every cluster; a row that comes twice counts twice."""

    def __init__(self, rows: NDArray[np.int64], clusters: Clusters) -> None:
        n_clusters, arrays = clusters.n_clusters, clusters.arrays
        counts = np.zeros(n_clusters[0], np.int64)
        for start in range(0, len(rows), _BLOCK_ROWS):
            labels = arrays.take(1, "labels", rows[start : start + _BLOCK_ROWS])
            counts += np.bincount(labels[labels >= 0], minlength=n_clusters[0])
        self._counts = arrays.sums(counts)
        self.n_samples = int(self._counts[-1].sum())  # that the tree has a cluster for

    def count(self, cluster: Cluster) -> int:
        """Rows of the subset below a cluster, or of all where it is the root."""
        return self.n_samples if cluster.level > len(self._counts) else int(self._counts[cluster.level - 1][cluster[1]])

    def counts(self, level: int, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the subset below clusters of a level."""
        return self._counts[level - 1][clusters]
