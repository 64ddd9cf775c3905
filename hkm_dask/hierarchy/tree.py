"""The tree on disk: names, opening, and the `hkm` accessor that people query it with."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.data import layout
from hkm_dask.data.chunks import StoredArray, open_array
from hkm_dask.data.files import read_complete
from hkm_dask.errors import InputError, StoreError
from hkm_dask.untrusted import reading


def open_hierarchy(path: str | os.PathLike[str]) -> xr.DataTree:
    """Open a complete tree; arrays are read when they are asked for.

    Parameters
    ----------
    path : path-like
        As `build_hierarchy` or ``hkm cluster`` made it.

    Returns
    -------
    xarray.DataTree
        One node per level, ``level_1`` first; the `hkm` accessor asks it questions. Chunks are checked when they are
        read: one that is missing, altered, or of a tree that has replaced this one by then is a StoreError.

    Raises
    ------
    StoreError
        It is missing, no tree, not complete, of another format version, or its metadata was altered.

    Examples
    --------
    >>> open_hierarchy("nowhere.zarr")
    Traceback (most recent call last):
    hkm_dask.errors.StoreError: ...nowhere.zarr is missing; make it with `hkm cluster`
    """
    folder = Path(path).absolute()
    if not folder.exists():
        wip = layout.wip_path(folder)
        unfinished = f"{wip.name} is unfinished, run the same `hkm cluster` again"
        remedy = unfinished if wip.exists() else "make it with `hkm cluster`"
        raise StoreError(f"{folder} is missing; {remedy}")
    read_complete(folder, layout.TREE_FORMAT)
    with reading(f"{folder} is damaged", layout.remedy(layout.TREE_FORMAT), StoreError):
        tree = xr.open_datatree(folder, engine="zarr", chunks={})
        for level, node in tree.children.items():
            for name, values in node.data_vars.items():
                node[str(name)] = values.copy(data=_checked(folder / level / str(name), values.chunks))
    return tree


def _checked(path: Path, chunks: Any) -> da.Array:
    """The array at `path`, whose every chunk is checked when it is read; those of a tree that took its place fail."""
    stored = open_array(path)
    return da.from_array(stored, chunks=chunks, name=f"{path.name}-{stored.fingerprint}", fancy=False)


class TreeArrays:
    """The arrays of a tree, each read once and whole, every chunk of it checked where it lies on a local disk."""

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree
        self._read: dict[tuple[int, str], NDArray[Any]] = {}
        self.n_levels = sum(name.startswith("level_") for name in tree.children)

    def read(self, level: int, name: str) -> NDArray[Any]:
        """Read an array of a level (from 1), such as "labels" or "members"; it is not to be written to.

        Raises
        ------
        InputError
            There is no such level.
        StoreError
            A chunk is missing, cut or altered.
        """
        if not 1 <= level <= self.n_levels:
            raise InputError(f"level={level} should be between 1 and {self.n_levels}; choose one of the tree's levels")
        if (level, name) not in self._read:
            self._read[level, name] = self._load(level, f"{name}_{level}" if name in ("members", "indptr") else name)
        return self._read[level, name]

    def _load(self, level: int, name: str) -> NDArray[Any]:
        # Faster from the disk than through dask.
        stored, array = self.stored(level, name), self._tree[f"level_{level}/{name}"]
        return array.to_numpy() if stored is None else stored.read(0, array.shape[0])

    def stored(self, level: int, name: str) -> StoredArray | None:
        """The array where it lies on a local disk, bound to what it was when the tree was opened; else None."""
        array, source = self._tree[f"level_{level}/{name}"], self._tree.encoding.get("source")
        if source is None or array.chunks is None:
            return None
        stored = open_array(Path(source, f"level_{level}", name))
        fingerprint = array.attrs.get(layout.FINGERPRINT, "")
        return replace(stored, fingerprint=fingerprint) if stored.shape == array.shape else None

    def ancestors(self, labels: NDArray[np.int32], level: int | None = None) -> list[NDArray[np.int32]]:
        """Clusters above clusters of level 1, for every level up to `level` or the top, level 1 first; -1 stays -1."""
        path = [labels]
        for t in range(2, (level or self.n_levels) + 1):
            parents = self.read(t, "labels")
            path.append(np.where(path[-1] >= 0, parents[path[-1]], np.int32(-1)))
        return path


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
        self._tree, self._arrays = tree, TreeArrays(tree)

    @property
    def n_levels(self) -> int:
        """Levels of the tree."""
        return self._arrays.n_levels

    @property
    def n_clusters(self) -> tuple[int, ...]:
        """Clusters of each level, level 1 first."""
        return tuple(int(self._tree[f"level_{t}"].sizes[f"cluster_{t}"]) for t in range(1, self.n_levels + 1))

    def _check_cluster(self, level: int, cluster: int) -> None:
        n = len(self._arrays.read(level, "sizes"))
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
        self._arrays.read(level, "labels")
        labels = self._arrays.ancestors(self._arrays.read(1, "labels"), level)[-1]
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
        labels = self._arrays.read(1, "labels")
        if not 0 <= sample < len(labels) or labels[sample] < 0:
            where = "was left out of the clustering" if 0 <= sample < len(labels) else f"is not among {len(labels)}"
            raise InputError(f"sample={sample} should be a clustered row of the pool, it {where}; choose another")
        return tuple(int(label[0]) for label in self._arrays.ancestors(labels[sample : sample + 1]))

    def children(self, level: int, cluster: int) -> NDArray[np.int64]:
        """Children of a cluster: clusters of the level below, or samples for level 1.

        Parameters
        ----------
        level : int
            From 1.
        cluster : int
            Its number at that level.

        Returns
        -------
        ndarray of int64, shape (n_children,)
            Closest to the centroid first.

        Raises
        ------
        InputError
            There is no such level or cluster.
        """
        self._check_cluster(level, cluster)
        indptr, members = self._arrays.read(level, "indptr"), self._arrays.read(level, "members")
        return members[indptr[cluster] : indptr[cluster + 1]]

    def members(self, level: int, cluster: int) -> NDArray[np.int64]:
        """Samples below a cluster of any level.

        Parameters
        ----------
        level, cluster : int
            As for `children`.

        Returns
        -------
        ndarray of int64, shape (n_members,)
            Row numbers of the pool: for level 1 closest to the centroid first, else sorted.

        Raises
        ------
        InputError
            There is no such level or cluster.
        """
        members = self.children(level, cluster)
        for t in range(level - 1, 0, -1):
            members = np.concatenate([self.children(t, int(c)) for c in members]) if len(members) else members
        return members if level == 1 else np.sort(members)

    def nearest_samples(self, level: int, cluster: int, n: int = 10) -> NDArray[np.int64]:
        """Samples that stand for a cluster: the ones closest to its centroid, going down its children.

        Parameters
        ----------
        level, cluster : int
            As for `children`.
        n : int, default 10
            How many, shared evenly among the children, the closest ones first.

        Returns
        -------
        ndarray of int64
            Row numbers of the pool, those of the closest child first; `n`, or all the samples there are.

        Raises
        ------
        InputError
            There is no such level or cluster.
        """
        children = self.children(level, cluster)
        if level == 1:
            return children[: max(n, 0)]
        shares = _share_out(self._arrays.read(level - 1, "leaf_sizes")[children], n)
        samples = [
            self.nearest_samples(level - 1, int(child), int(share))
            for child, share in zip(children, shares, strict=True)
            if share
        ]
        return np.concatenate(samples) if samples else np.empty(0, np.int64)


def _share_out(sizes: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Share `n` out as evenly as `sizes` allow; what is left over goes to the first.

    Examples
    --------
    >>> _share_out(np.array([1, 9, 9]), 8), _share_out(np.array([3, 3, 3]), 2)
    (array([1, 4, 3]), array([1, 1, 0]))
    """
    shares = np.zeros_like(sizes)
    while (left := n - int(shares.sum())) > 0 and (able := shares < sizes).any():
        added = np.minimum(sizes - shares, max(1, left // int(able.sum())))
        added[np.cumsum(added) > left] = 0
        shares += added
    return shares
