"""Clusters of a tree, read by ranges of chunks: what one page needs of a tree of any size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.data.chunks import StoredArray
from hkm_dask.data.layout import MIB
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.tree import TreeArrays

#: Bytes of the chunks that are kept; a chunk has 64 MiB at most.
CACHE_BYTES = 256 * MIB


class Cluster(NamedTuple):
    """One cluster, written ``LEVEL:NUMBER``.

    Examples
    --------
    >>> str(Cluster.parse("2:19")), Cluster.parse("2:19").level
    ('2:19', 2)
    """

    level: int
    number: int

    @classmethod
    def parse(cls, text: str) -> Cluster:
        """Read ``2:19``; InputError where it is something else."""
        level, colon, number = text.partition(":")
        digits = all(part.isascii() and part.isdigit() and len(part) < 12 for part in (level, number))
        if not (colon and digits):
            raise InputError(f"cluster={text[:40]!r} should be LEVEL:NUMBER; write it like 2:19")
        return cls(int(level), int(number))

    def __str__(self) -> str:
        """Write it as people see it."""
        return f"{self.level}:{self.number}"


class ChunkCache:
    """Chunks of arrays, each read whole and checked, the last ones used kept up to `max_bytes`."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def chunk(self, array: StoredArray, index: int, convert: Callable[[np.ndarray], Any] | None = None) -> Any:
        """Give chunk `index` of an array, or what `convert` makes of it, anything with ``nbytes``."""
        key = (array.path, index)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        rows = array.read_chunk(index)
        kept = convert(rows) if convert else rows
        with self._lock:
            if key not in self._kept:
                self._kept[key] = kept
                self._n_bytes += kept.nbytes
            while self._n_bytes > self.max_bytes and len(self._kept) > 1:
                self._n_bytes -= self._kept.popitem(last=False)[1].nbytes
        return kept

    def read(self, array: StoredArray, start: int, stop: int) -> np.ndarray:
        """Read the rows `start` to `stop`."""
        parts = [np.empty((0, *array.shape[1:]), array.dtype)]
        for index in array.spec.chunks(start, stop):
            first, last = array.spec.chunk_range(index)
            parts.append(self.chunk(array, index)[max(start, first) - first : min(stop, last) - first])
        return parts[1] if len(parts) == 2 else np.concatenate(parts)

    def take(self, array: StoredArray, rows: NDArray[np.int64]) -> np.ndarray:
        """Read rows by their numbers, in any order."""
        rows = np.asarray(rows, np.int64)
        out = np.empty((len(rows), *array.shape[1:]), array.dtype)
        indices = rows // array.spec.chunk_rows
        for index in np.unique(indices).tolist():
            here = indices == index
            out[here] = self.chunk(array, index)[rows[here] - array.spec.chunk_range(index)[0]]
        return out


class Clusters:
    """A tree on a local disk, asked about one cluster at a time.

    The tree itself is the only cluster of the level above the top: `root`.

    Parameters
    ----------
    tree : xarray.DataTree
        From `open_hierarchy`; InputError where it does not lie on a disk.
    """

    def __init__(self, tree: xr.DataTree) -> None:
        arrays = TreeArrays(tree)
        self.n_levels = arrays.n_levels
        self.cache = ChunkCache()
        self.arrays: dict[tuple[int, str], StoredArray] = {}
        for level in range(1, self.n_levels + 1):
            for name in ("labels", "distances", "leaf_sizes", "members", "indptr"):
                stored = arrays.stored(level, f"{name}_{level}" if name in ("members", "indptr") else name)
                if stored is None:
                    raise InputError("tree=(in memory) should be a tree that lies on disk; open it with open_hierarchy")
                self.arrays[level, name] = stored
        self.n_clusters = tuple(self.arrays[t, "leaf_sizes"].shape[0] for t in range(1, self.n_levels + 1))
        self.n_rows = self.arrays[1, "labels"].shape[0]
        self.root = Cluster(self.n_levels + 1, 0)
        self.n_samples = int(self._read(self.n_levels, "leaf_sizes", 0, self.n_clusters[-1]).sum())
        # Of a cluster with very many children only, so that few of these are large.
        self._ordered = lru_cache(maxsize=16)(self._order)

    def _read(self, level: int, name: str, start: int, stop: int) -> np.ndarray:
        return self.cache.read(self.arrays[level, name], start, stop)

    def take(self, level: int, name: str, rows: NDArray[np.int64]) -> np.ndarray:
        """Read rows of an array of a level, in any order."""
        return self.cache.take(self.arrays[level, name], rows)

    def check(self, cluster: Cluster) -> Cluster:
        """Give a cluster back where it is one of the tree or its `root`; InputError else."""
        if cluster == self.root:
            return cluster
        if not 1 <= cluster.level <= self.n_levels:
            raise InputError(f"level={cluster.level} should be between 1 and {self.n_levels}; choose another cluster")
        n = self.n_clusters[cluster.level - 1]
        if not 0 <= cluster.number < n:
            raise InputError(
                f"cluster={cluster} should be between {cluster.level}:0 and {cluster.level}:{n - 1}; choose another"
            )
        return cluster

    def leaf_sizes(self, level: int, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples below clusters of a level; each sample is one."""
        return self.take(level, "leaf_sizes", clusters) if level else np.ones(len(clusters), np.int64)

    def size(self, cluster: Cluster) -> int:
        """Samples below a cluster."""
        if cluster == self.root:
            return self.n_samples
        return int(self.leaf_sizes(cluster.level, np.array([cluster.number]))[0])

    def parent(self, cluster: Cluster) -> Cluster | None:
        """Cluster above; `root` above the top ones and above those that hold nothing, None above `root`."""
        if cluster == self.root:
            return None
        if cluster.level == self.n_levels:
            return self.root
        label = int(self._read(cluster.level + 1, "labels", cluster.number, cluster.number + 1)[0])
        return Cluster(cluster.level + 1, label) if label >= 0 else self.root

    def path(self, cluster: Cluster) -> list[Cluster]:
        """Clusters above a cluster and itself, the highest first, without `root`."""
        path, above = [], cluster
        while above != self.root:
            path.append(above)
            parent = self.parent(above)
            assert parent is not None
            above = parent
        return path[::-1]

    def paths(self, rows: NDArray[np.int64]) -> list[list[Cluster]]:
        """Clusters that samples lie in, the highest first; none of a sample that was left out."""
        labels = self.take(1, "labels", rows)
        known = {int(label): self.path(Cluster(1, int(label))) for label in np.unique(labels[labels >= 0])}
        return [known.get(int(label), []) for label in labels]

    def children(self, cluster: Cluster) -> NDArray[np.int64]:
        """Clusters of the level below, or samples, closest to the centroid first; of `root` all in order."""
        if cluster == self.root:
            return np.arange(self.n_clusters[-1])
        first, last = self._read(cluster.level, "indptr", cluster.number, cluster.number + 2).tolist()
        return self._read(cluster.level, "members", first, last)

    def _order(self, cluster: Cluster) -> NDArray[np.int64]:
        children = self.children(cluster)
        return children[np.argsort(-self.leaf_sizes(cluster.level - 1, children), kind="stable")]

    def by_size(self, cluster: Cluster) -> NDArray[np.int64]:
        """Children of a cluster above level 1, the largest first."""
        return self._ordered(cluster)

    def typical(self, cluster: Cluster, n: int, *, far: bool = False) -> NDArray[np.int64]:
        """Samples that stand for a cluster, or with `far` those at its border.

        The closest to the centroid, or the farthest; above level 1 shared evenly among the children, the closest (or
        farthest) first, each of which gives its own closest (or farthest).
        """
        children = self.children(cluster)
        children = children[::-1] if far else children
        if cluster.level == 1:
            return children[:n]
        sizes = self.leaf_sizes(cluster.level - 1, children)
        if cluster == self.root:
            children, sizes = children[np.argsort(-sizes, kind="stable")], np.sort(sizes)[::-1]
        filled = np.flatnonzero(sizes)[:n]
        samples = [
            self.typical(Cluster(cluster.level - 1, int(children[i])), share, far=far)
            for i, share in zip(filled, _shares(sizes[filled].tolist(), n), strict=True)
        ]
        return np.concatenate(samples) if samples else np.empty(0, np.int64)


def _shares(sizes: list[int], n: int) -> list[int]:
    """Share `n` out, one at a time from the first on, as far as `sizes` allow.

    >>> _shares([1, 9, 9], 8), _shares([1, 2], 5)
    ([1, 4, 3], [1, 2])
    """
    shares = [0] * len(sizes)
    n = min(n, sum(sizes))
    while n:
        for i, size in enumerate(sizes):
            if n and shares[i] < size:
                shares[i] += 1
                n -= 1
    return shares
