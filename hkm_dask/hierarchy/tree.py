"""The tree on disk: names, opening, and the `hkm` accessor that people query it with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.data import layout
from hkm_dask.data.files import read_attributes
from hkm_dask.errors import InputError, StoreError


def n_levels(tree: xr.DataTree) -> int:
    """Count the levels of a tree."""
    return sum(name.startswith("level_") for name in tree.children)


def open_hierarchy(path: str | os.PathLike[str]) -> xr.DataTree:
    """Open a complete tree; arrays are read when they are asked for.

    Parameters
    ----------
    path : path-like
        As `build_hierarchy` or ``hkm cluster`` made it.

    Returns
    -------
    xarray.DataTree
        One node per level, ``level_1`` first; the `hkm` accessor asks it questions.

    Raises
    ------
    StoreError
        It is missing, no tree, not complete, or of another format version.

    Examples
    --------
    >>> open_hierarchy("nowhere.zarr")
    Traceback (most recent call last):
    hkm_dask.errors.StoreError: ...nowhere.zarr is missing; make it with `hkm cluster`
    """
    folder = Path(path).absolute()
    if not folder.exists():
        wip = layout.wip_path(folder)
        remedy = f"{wip.name} is unfinished, run the same `hkm cluster` again" if wip.exists() else "make it with `hkm cluster`"
        raise StoreError(f"{folder} is missing; {remedy}")
    layout.check_marker(read_attributes(folder), layout.TREE_FORMAT, folder)
    return xr.open_datatree(folder, engine="zarr", chunks={})


@xr.register_datatree_accessor("hkm")
class HkmAccessor:
    """Questions to a hierarchy: ``tree.hkm.path(sample)`` and the like.

    Parameters
    ----------
    tree : xarray.DataTree
        From `open_hierarchy`.

    Examples
    --------
    >>> import tempfile, hkm_dask as hkm
    >>> x = np.float32([[0], [1], [10], [11], [100], [101]])
    >>> config = hkm.Config(levels=[hkm.Level(n_clusters=3, n_resamples=0), hkm.Level(n_clusters=2, n_resamples=0)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = hkm.build_hierarchy(x, f"{folder}/tree.zarr", config)
    ...     cluster = tree.hkm.path(4)[0]
    ...     tree.hkm.members(1, cluster).tolist(), tree.hkm.n_levels
    ([4, 5], 2)
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree
        self._kept: dict[str, NDArray[Any]] = {}

    @property
    def n_levels(self) -> int:
        """Levels of the tree."""
        return n_levels(self._tree)

    @property
    def n_clusters(self) -> tuple[int, ...]:
        """Clusters of each level, level 1 first."""
        return tuple(int(self._tree[f"level_{t}"].sizes[f"cluster_{t}"]) for t in range(1, self.n_levels + 1))

    def _array(self, level: int, name: str) -> NDArray[Any]:
        if not 1 <= level <= self.n_levels:
            raise InputError(f"level={level} should be between 1 and {self.n_levels}; choose one of the tree's levels")
        path = f"level_{level}/{name}"
        if path not in self._kept:
            self._kept[path] = self._tree[path].to_numpy()
        return self._kept[path]

    def _check_cluster(self, level: int, cluster: int) -> None:
        n = len(self._array(level, "sizes"))
        if not 0 <= cluster < n:
            raise InputError(f"cluster={cluster} should be between 0 and {n - 1} at level {level}; choose another")

    def labels(self, level: int) -> xr.DataArray:
        """Cluster of every sample at a level, any level.

        Parameters
        ----------
        level : int
            From 1.

        Returns
        -------
        xarray.DataArray of int32, shape (sample,)
            -1 for samples that were left out.
        """
        labels = self._array(1, "labels")
        for t in range(2, level + 1):
            labels = np.where(labels >= 0, self._array(t, "labels")[labels], np.int32(-1))
        self._array(level, "sizes")
        return xr.DataArray(labels, dims="sample", name=f"labels_{level}", attrs={"missing": -1})

    def path(self, sample: int) -> tuple[int, ...]:
        """Clusters a sample lies in, level 1 first.

        Parameters
        ----------
        sample : int
            Row number of the pool.

        Raises
        ------
        InputError
            The sample is not in the tree.
        """
        labels = self._array(1, "labels")
        if not 0 <= sample < len(labels) or labels[sample] < 0:
            where = "was left out of the clustering" if 0 <= sample < len(labels) else f"is not among {len(labels)}"
            raise InputError(f"sample={sample} should be a clustered row of the pool, it {where}; choose another")
        path = [int(labels[sample])]
        for t in range(2, self.n_levels + 1):
            path.append(int(self._array(t, "labels")[path[-1]]))
        return tuple(path)

    def children(self, level: int, cluster: int) -> NDArray[np.int64]:
        """Children of a cluster, closest first: clusters of the level below, or samples for level 1."""
        self._check_cluster(level, cluster)
        indptr, members = self._array(level, f"indptr_{level}"), self._array(level, f"members_{level}")
        return members[indptr[cluster] : indptr[cluster + 1]]  # type: ignore[no-any-return]

    def members(self, level: int, cluster: int) -> NDArray[np.int64]:
        """Samples below a cluster of any level; for level 1 closest first, else sorted."""
        found = self.children(level, cluster)
        if level == 1:
            return found
        for t in range(level - 1, 0, -1):
            found = np.concatenate([self.children(t, int(c)) for c in found]) if len(found) else found
        return np.sort(found)

    def nearest_samples(self, level: int, cluster: int, n: int = 10) -> NDArray[np.int64]:
        """Samples that stand for a cluster: the ones closest to its centroid, going down its closest children."""
        self._check_cluster(level, cluster)
        if level == 1:
            return self.children(1, cluster)[:n]
        found: list[NDArray[np.int64]] = []
        children = [c for c in self.children(level, cluster) if self._array(level - 1, "leaf_sizes")[c]]
        each = max(1, -(-n // max(len(children), 1)))
        for child in children:
            found.append(self.nearest_samples(level - 1, int(child), each))
            if sum(map(len, found)) >= n:
                break
        return np.concatenate(found)[:n] if found else np.empty(0, np.int64)
