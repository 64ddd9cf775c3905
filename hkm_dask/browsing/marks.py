"""Marks of clusters: weights for the next draw, in a file for `hkm sample --weights`, and the expected draw."""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkm_dask.browsing.clusters import Clusters
from hkm_dask.data.files import folder_problem
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.sampling.steering import Cluster, check_weight, read_weights, write_weights

_MAX_UNDO = 1000


class Marks:
    """Weights of marked clusters, with undo, saved to a file; an existing file is loaded first.

    Raises InputError if the file has another format, or names clusters that the tree does not have.
    """

    def __init__(self, clusters: Clusters, path: str | os.PathLike[str]) -> None:
        self.path, self._clusters = Path(path).absolute(), clusters
        if problem := folder_problem(self.path.parent):
            raise InputError(f"out={path} should {problem}")
        self._lock = threading.RLock()
        self._history: list[dict[Cluster, float]] = []
        self.weights = self._stored() or {}
        for cluster in self.weights:
            try:
                clusters.check(cluster)
            except InputError as error:
                remedy = "if it belongs to another tree, give another file with --out"
                raise InputError(f"{path} should be marks of this tree, {error}; {remedy}") from None
        self.saved = dict(self.weights)

    def _stored(self) -> dict[Cluster, float] | None:
        return dict(read_weights(self.path)) if os.path.lexists(self.path) else None

    @property
    def unsaved(self) -> bool:
        """Whether there are changes that are not in the file."""
        return self.weights != self.saved

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to undo."""
        return bool(self._history)

    def set(self, cluster: Cluster, weight: float) -> None:
        """Mark a cluster; weight 1 removes the mark. Raises InputError for an invalid weight, or for the root."""
        problems = check_weight(weight, f"weight={weight}")
        if problems:
            raise InputError(problems)
        if self._clusters.check(cluster) == self._clusters.root:
            raise InputError("cluster=root should be a cluster of the tree; mark one of those inside")
        with self._lock:
            changed = {name: kept for name, kept in self.weights.items() if name != cluster}
            if weight != 1:
                changed[cluster] = weight
            if changed != self.weights:
                self._history = [*self._history[1 - _MAX_UNDO :], self.weights]
                self.weights = changed

    def undo(self) -> None:
        """Undo the last change."""
        with self._lock:
            if self._history:
                self.weights = self._history.pop()

    def save(self) -> None:
        """Write the file; raises InputError if it was changed by someone else since it was read or saved."""
        with self._lock:
            stored = self._stored()
            if stored is not None and stored != self.saved:
                raise InputError(f"{self.path} was changed by another program; move it away and save again")
            write_weights(self.path, {str(c): w for c, w in self.weights.items()}, overwrite=stored is not None)
            self.saved = dict(self.weights)

    def weight(self, cluster: Cluster) -> float:
        """Return the weight of the cluster itself; 1 if it has no mark."""
        return self.weights.get(cluster, 1.0)

    def excluded(self, cluster: Cluster) -> bool:
        """Return whether a cluster, or one of its ancestors, is excluded."""
        zeros = {marked for marked, weight in self.weights.items() if weight == 0}
        return bool(zeros) and any(above in zeros for above in self._clusters.path(cluster))


class Draw:
    """Expected number of samples of each cluster in a hierarchical draw, up to rounding.

    At every node, child j gives min(n·w_j, s_j), with weight w_j, s_j samples that are not excluded, and a common n.
    """

    def __init__(self, clusters: Clusters, weights: dict[Cluster, float], size: int) -> None:
        self._clusters, self._weights, self.size = clusters, weights, size
        self._left_out: dict[Cluster, int] = {}
        zeros = {cluster for cluster, weight in weights.items() if weight == 0}
        for cluster in zeros:
            *above, _ = clusters.path(cluster)
            if not any(higher in zeros for higher in above):
                for higher in (clusters.root, *above, cluster):
                    self._left_out[higher] = self._left_out.get(higher, 0) + clusters.size(cluster)
        self.available = clusters.n_samples - self._left_out.get(clusters.root, 0)
        self.children = lru_cache(maxsize=64)(self._children)

    def _children(self, cluster: Cluster) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the children of a cluster above level 1, and the number of samples drawn from each."""
        level, children = cluster.level - 1, self._clusters.children(cluster)
        sizes = self._clusters.n_samples_of(level, children).astype(float)
        weights = np.ones(len(children))
        named = {c.number: c for c in {*self._weights, *self._left_out} if c.level == level}
        for i in np.flatnonzero(np.isin(children, list(named))) if named else ():
            name = named[int(children[i])]
            sizes[i] -= self._left_out.get(name, 0)
            weights[i] = self._weights.get(name, 1.0)
        return children, fill(sizes, weights, self.share(cluster))

    def share(self, cluster: Cluster) -> float:
        """Return the number of samples drawn from a cluster."""
        *above, _ = self._clusters.path(cluster) or [cluster]
        if cluster == self._clusters.root:
            return float(min(self.size, self.available))
        if cluster.level < self._clusters.n_levels and not above:
            return 0.0  # it has no members, and therefore no ancestors
        children, shares = self.children(above[-1] if above else self._clusters.root)
        return float(shares[np.flatnonzero(children == cluster.number)[0]])


def fill(capacities: NDArray[np.float64], weights: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """Distribute a total by weights, up to the capacities.

    >>> fill(np.array([1.0, 9, 9]), np.array([1.0, 1, 2]), 10)
    array([1., 3., 6.])
    """
    able = (weights > 0) & (capacities > 0)
    shares = np.zeros(len(capacities))
    some, by = capacities[able], weights[able]
    if not len(some):
        return shares
    # Children fill up in order of capacity over weight; n is reached when the rest share what is left.
    order = np.argsort(some / by, kind="stable")
    full = np.concatenate([[0.0], np.cumsum(some[order])[:-1]])
    open_weight = np.cumsum(by[order][::-1])[::-1]
    heights = (total - full) / open_weight
    first = np.flatnonzero(heights <= (some / by)[order])
    shares[able] = np.minimum(some, by * heights[first[0]]) if len(first) else some
    return shares
