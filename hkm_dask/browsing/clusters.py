"""Clusters of a tree, one page at a time, and their number of rows in a subset."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.errors import InputError
from hkm_dask.hierarchy.sampling.eligible import count_rows
from hkm_dask.hierarchy.sampling.steering import Cluster
from hkm_dask.hierarchy.tree.accessor import share_evenly
from hkm_dask.hierarchy.tree.arrays import TreeArrays

#: Cached orders of children; for a tree of one level, each takes 8 bytes per cluster.
_KEPT_ORDERS = 8


class Clusters:
    """Access to a tree, one cluster at a time.

    The whole tree is represented by `root`, the only cluster of the level above the top.
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self.ask, self.arrays = tree.hkm, TreeArrays(tree)
        self.n_levels, self.n_rows = self.ask.n_levels, self.ask.n_samples
        self.n_clusters: tuple[int, ...] = self.ask.n_clusters
        self.root = Cluster(self.n_levels + 1, 0)
        self.n_samples = int(self.n_samples_of(self.n_levels, np.arange(self.n_clusters[-1])).sum())
        #: Sort keys of children by name, in addition to their distance; the least comes first.
        self.keys: dict[str, Callable[[int, NDArray[np.int64]], NDArray[Any]]] = {
            "size": lambda level, numbers: -self.n_samples_of(level, numbers)
        }
        self._sorted = lru_cache(maxsize=_KEPT_ORDERS)(self._sort)

    def parse(self, name: str) -> Cluster:
        """Find a cluster by its name, `root` if it is empty; raises InputError if there is none."""
        if not name:
            return self.root
        try:
            cluster = Cluster.parse(name)
        except ValueError:
            raise InputError(f"cluster={name[:40]!r} should be LEVEL:NUMBER; write it like 2:19") from None
        return self.check(cluster)

    def check(self, cluster: Cluster) -> Cluster:
        """Return a cluster if it is in the tree or its `root`; raises InputError otherwise."""
        if cluster == self.root:
            return cluster
        if cluster.level > self.n_levels:
            raise InputError(f"cluster={cluster} should be of a level from 1 to {self.n_levels}; choose another")
        n = self.n_clusters[cluster.level - 1]
        if cluster.number >= n:
            last = Cluster(cluster.level, n - 1)
            raise InputError(f"cluster={cluster} should be from {cluster.level}:0 to {last}; choose another")
        return cluster

    def n_samples_of(self, level: int, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of samples in clusters of a level; level 0 is the samples themselves."""
        # The array of a level is read whole when it is first needed, 8 bytes per cluster.
        return self.arrays.read(level, "leaf_sizes")[clusters] if level else np.ones(len(clusters), np.int64)

    def size(self, cluster: Cluster) -> int:
        """Return the number of samples in a cluster."""
        if cluster == self.root:
            return self.n_samples
        return int(self.n_samples_of(cluster.level, np.array([cluster.number]))[0])

    def path(self, cluster: Cluster) -> list[Cluster]:
        """Return the ancestors of a cluster and the cluster itself, the highest first, without `root`."""
        if cluster == self.root:
            return []
        above = self.ask.ancestors(cluster.level, cluster.number)
        known = [Cluster(t, number) for t, number in enumerate(above, cluster.level + 1) if number >= 0]
        return [*known[::-1], cluster]

    def paths(self, rows: NDArray[np.int64]) -> list[list[Cluster]]:
        """Return the clusters of each sample, the highest first; empty for samples that were not clustered."""
        paths = self.ask.path(rows).to_numpy()
        return [[Cluster(t + 1, int(n)) for t, n in enumerate(path) if n >= 0][::-1] for path in paths]

    def children(self, cluster: Cluster) -> NDArray[np.int64]:
        """Return the children (clusters, or samples of level 1), closest to the centroid first; of `root`, in order."""
        if cluster == self.root:
            return np.arange(self.n_clusters[-1])
        return self.ask.children(*cluster)

    def ordered(self, cluster: Cluster, order: str) -> NDArray[np.int64]:
        """Return the children in an order: "closest", "furthest", or one of the `keys`."""
        if order in ("closest", "furthest"):
            return self.children(cluster)[:: 1 if order == "closest" else -1]
        return self._sorted(cluster, order)

    def _sort(self, cluster: Cluster, order: str) -> NDArray[np.int64]:
        children = self.children(cluster)
        return children[np.argsort(self.keys[order](cluster.level - 1, children), kind="stable")]

    def typical(self, cluster: Cluster, n: int, *, far: bool = False) -> NDArray[np.int64]:
        """Return representative samples of a cluster: the closest to its centroid, or with `far`, the furthest.

        Above level 1 they are shared evenly among the children, the closest (or furthest) first, each of which
        contributes its own closest (or furthest) samples.
        """
        if cluster.level == 1:
            return self.ordered(cluster, "furthest" if far else "closest")[:n]
        if not far and cluster != self.root:
            return self.ask.nearest_samples(*cluster, n)
        children = self.ordered(cluster, "size" if cluster == self.root else "furthest")
        sizes = self.n_samples_of(cluster.level - 1, children)
        filled = np.flatnonzero(sizes)[:n]
        samples = [
            self.typical(Cluster(cluster.level - 1, int(children[i])), share, far=far)
            for i, share in zip(filled, share_evenly(sizes[filled], n).tolist(), strict=True)
        ]
        return np.concatenate(samples) if samples else np.empty(0, np.int64)


class Subset:
    """Rows of a subset, counted in every cluster; repeated rows count repeatedly."""

    def __init__(self, rows: NDArray[np.int64], clusters: Clusters) -> None:
        self._counts = count_rows(clusters.arrays, rows)
        self.n_samples = int(self._counts[-1].sum())  # those that are in a cluster

    def counts(self, level: int, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of rows of the subset in clusters of a level."""
        return self._counts[level - 1][clusters]
