"""The `hkm` accessor of a tree: queries that read no more than their answers need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from hkm_dask.data.ids import as_array
from hkm_dask.errors import InputError, is_whole
from hkm_dask.hierarchy.tree.arrays import TreeArrays, ranges
from hkm_dask.hierarchy.tree.nearest import checked_vectors, nearest_clusters
from hkm_dask.hierarchy.tree.pools import pool_of_tree
from hkm_dask.hierarchy.tree.summary import summarize

if TYPE_CHECKING:
    from distributed import Client


@xr.register_datatree_accessor("hkm")
class HkmAccessor:
    """Queries of a hierarchy, such as ``tree.hkm.path(sample)``.

    A query reads only the chunks that contain its answer, and caches those read last.

    Parameters
    ----------
    tree : xarray.DataTree
        A tree from `open_hierarchy`.

    Examples
    --------
    >>> import tempfile, hkm_dask as hkm
    >>> x = np.float32([[0], [1], [10], [11], [100], [101]])
    >>> config = hkm.Config(levels=[hkm.Level(n_clusters=3, n_resamples=0), hkm.Level(n_clusters=2, n_resamples=0)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = hkm.build_hierarchy(x, f"{folder}/tree.zarr", config)
    ...     cluster = tree.hkm.path(4)[0]
    ...     tree.hkm.members(1, cluster).tolist(), tree.hkm.n_levels
    ...     tree.hkm.nearest([90], level=1, k=2)["distance"].tolist()
    ([4, 5], 2)
    [10.5, 79.5]
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree, self._arrays = tree, TreeArrays(tree)

    def __repr__(self) -> str:
        """Summarize the tree as text: levels, distribution of cluster sizes, settings."""
        return str(summarize(self._tree, self._arrays))

    def _repr_html_(self) -> str:
        return summarize(self._tree, self._arrays).to_html()

    # -- shape ---------------------------------------------------------------------------------------------------------

    @property
    def n_levels(self) -> int:
        """Number of levels of the tree."""
        return self._arrays.n_levels

    @property
    def n_clusters(self) -> tuple[int, ...]:
        """Number of clusters of each level, level 1 first."""
        return tuple(self._arrays.n_clusters(t) for t in range(1, self.n_levels + 1))

    @property
    def n_samples(self) -> int:
        """Number of rows of the pool, including those left out of the clustering."""
        return self._arrays.n_rows(1)

    def _checked_clusters(self, level: int, clusters: Any) -> NDArray[np.int64]:
        """Return cluster numbers as an array; raises InputError if that level does not have them."""
        n = self._arrays.n_clusters(level)
        return _checked_numbers(clusters, n, "cluster", f"between 0 and {n - 1} at level {level}; choose another")

    def _checked_cluster(self, level: int, cluster: Any) -> NDArray[np.int64]:
        """Return the number of one cluster, as `_checked_clusters` does."""
        clusters = self._checked_clusters(level, cluster)
        if len(clusters) != 1:
            raise InputError(f"cluster={clusters.tolist()} should be one number; ask for one cluster at a time")
        return clusters

    def _name(self, level: int, numbers: NDArray[np.integer]) -> pd.Index:
        return pd.Index(numbers, name="sample" if level == 0 else "cluster")

    # -- upward --------------------------------------------------------------------------------------------------------

    def labels(self, level: int) -> xr.DataArray:
        """Return the cluster of every sample at any level.

        Parameters
        ----------
        level : int
            From 1.

        Returns
        -------
        xarray.DataArray of int32, shape (sample,)
            -1 for samples that were left out. For a tree on disk, it is read lazily.
        """
        self._arrays.check_level(level)
        first = self._tree["level_1/labels"].data
        # Index -1 selects the last element, so one element -1 is appended.
        clusters = np.append(np.arange(self._arrays.n_clusters(1), dtype=np.int32), np.int32(-1))
        table = self._arrays.ancestors(clusters, level)[-1]
        if isinstance(first, np.ndarray):
            labels: Any = table[first]
        else:
            from dask.delayed import delayed

            # As a keyword argument, the table is sent once, not with every block.
            meta = np.empty(0, np.int32)
            labels = first.map_blocks(_looked_up, table=delayed(table), meta=meta) if level > 1 else first
        return xr.DataArray(labels, dims="sample", name=f"labels_{level}", attrs={"missing": -1})

    @overload
    def path(self, sample: int | str) -> tuple[int, ...]: ...  # type: ignore[overload-overlap]  # ArrayLike has str
    @overload
    def path(self, sample: ArrayLike) -> pd.DataFrame: ...
    def path(self, sample: Any) -> tuple[int, ...] | pd.DataFrame:
        """Return the clusters that contain a sample, or each of several samples.

        Parameters
        ----------
        sample : int, str or array-like of these, shape (n,)
            Row numbers of the pool, or ids if they are texts, in any order. ``pool.rows_of(ids)`` gives the row numbers
            of ids that are integers.

        Returns
        -------
        tuple of int, or pandas.DataFrame
            For one sample, its clusters, level 1 first. For several, one row each, indexed by ``sample``, or ``id``,
            with columns ``level_1`` and so on. -1 if a sample was left out of the clustering.

        Raises
        ------
        InputError
            If a sample is not in the tree.
        """
        n = self.n_samples
        if _are_texts(ids := as_array(sample)) and (pool := pool_of_tree(self._tree.attrs)) is not None:
            rows = pool.rows_of(ids)
            return self.path(rows).set_index(pd.Index(ids, name="id")) if ids.ndim else self.path(int(rows[0]))
        if not np.ndim(sample):
            rows = np.atleast_1d(np.asarray(sample))
            inside = rows.dtype.kind in "iu" and 0 <= rows[0] < n
            labels = self._arrays.take(1, "labels", rows) if inside else np.full(1, -1, np.int32)
            if labels[0] < 0:
                fact = "was left out of the clustering" if inside else f"is not among {n} row numbers"
                rule = f"should be a clustered row of the pool, it {fact}; choose another"
                raise InputError(f"sample={rows.tolist()[0]!r} {rule}")
            return tuple(int(label[0]) for label in self._arrays.ancestors(labels))
        rows = _checked_numbers(sample, n, "sample", f"row numbers of the pool, below {n}; give others")
        columns = self._arrays.ancestors(self._arrays.take(1, "labels", rows))
        return self._columns(self._name(0, rows), columns, 1)

    @overload
    def ancestors(self, level: int, cluster: int) -> tuple[int, ...]: ...
    @overload
    def ancestors(self, level: int, cluster: ArrayLike) -> pd.DataFrame: ...
    def ancestors(self, level: int, cluster: Any) -> tuple[int, ...] | pd.DataFrame:
        """Return the clusters that contain a cluster, or each of several clusters.

        Parameters
        ----------
        level : int
            From 1.
        cluster : int or array-like of int, shape (n,)
            Numbers at that level.

        Returns
        -------
        tuple of int, or pandas.DataFrame
            For one cluster, those at ``level + 1`` and above, empty at the top. For several, one row each, indexed by
            ``cluster``, with a column such as ``level_2`` for each level. -1 if a cluster has no members.

        Raises
        ------
        InputError
            If there is no such level or cluster.
        """
        clusters = self._checked_clusters(level, cluster)
        above = self._arrays.ancestors(clusters.astype(np.int32), first=level)[1:]
        if not np.ndim(cluster):
            return tuple(int(label[0]) for label in above)
        return self._columns(self._name(level, clusters), above, level + 1)

    def _columns(self, index: pd.Index, columns: list[NDArray[np.int32]], first: int) -> pd.DataFrame:
        return pd.DataFrame({f"level_{t}": column for t, column in enumerate(columns, first)}, index=index)

    # -- downward ------------------------------------------------------------------------------------------------------

    def clusters(self, level: int, cluster: ArrayLike | None = None) -> pd.DataFrame:
        """Return a table of the clusters of a level, all or some.

        Parameters
        ----------
        level : int
            From 1.
        cluster : int or array-like of int, optional
            Numbers at that level; all of them by default.

        Returns
        -------
        pandas.DataFrame
            One row per ``cluster``: ``parent``, its cluster at the level above (not for the top level; -1 if it has no
            members); ``size``, the number of its children; ``n_samples``, the number of samples below it.

        Examples
        --------
        The largest clusters of the top level: ``tree.hkm.clusters(3).nlargest(10, "n_samples")``.
        """
        numbers = np.arange(self._arrays.n_clusters(level)) if cluster is None else cluster
        numbers = self._checked_clusters(level, numbers)
        return pd.DataFrame(self._facts(level, numbers), index=self._name(level, numbers))

    def _facts(self, level: int, clusters: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        wanted = {"parent": (level + 1, "labels"), "size": (level, "sizes"), "n_samples": (level, "leaf_sizes")}
        return {
            column: self._arrays.take(*where, clusters) for column, where in wanted.items() if where[0] <= self.n_levels
        }

    def children(self, level: int, cluster: int) -> NDArray[np.int64]:
        """Return the children of a cluster: clusters of the level below, or samples for level 1.

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
            If there is no such level or cluster.
        """
        return self._arrays.children_of(level, int(self._checked_cluster(level, cluster)[0]))

    def subtree(self, level: int, cluster: int, *, lowest: int = 1) -> pd.DataFrame:
        """Return a table of a cluster and all clusters below it.

        Parameters
        ----------
        level, cluster : int
            As for `children`.
        lowest : int, default 1
            Lowest level to include: ``level - 1`` gives the cluster and its children.

        Returns
        -------
        pandas.DataFrame
            One row per cluster, level by level from the top, children closest first: ``level``, ``cluster``, ``parent``
            (its cluster at the level above, -1 at the top), ``size``, the number of its children, ``n_samples``, the
            number of samples below it, and ``distance``, Euclidean, to the centroid of the parent (NaN at the top).

        Raises
        ------
        InputError
            If there is no such level or cluster.
        """
        clusters = self._checked_cluster(level, cluster)
        self._arrays.check_level(lowest)
        tables = []
        for t in range(level, min(level, lowest) - 1, -1):
            facts: dict[str, Any] = {
                "level": t,
                "cluster": clusters,
                "parent": np.int32(-1),
                **self._facts(t, clusters),
            }
            distances = self._arrays.take(t + 1, "distances", clusters) if t < self.n_levels else np.float32(np.nan)
            tables.append(pd.DataFrame({**facts, "distance": np.sqrt(distances)}))
            clusters = self._arrays.children(t, clusters)[0] if t > 1 else clusters
        return pd.concat(tables, ignore_index=True)

    def members(self, level: int, cluster: int) -> NDArray[np.int64]:
        """Return the samples below a cluster of any level.

        Parameters
        ----------
        level, cluster : int
            As for `children`.

        Returns
        -------
        ndarray of int64, shape (n_members,)
            Row numbers of the pool: closest to the centroid first for level 1, otherwise sorted.

        Raises
        ------
        InputError
            If there is no such level or cluster.
        """
        members = self.children(level, cluster)
        for t in range(level - 1, 0, -1):
            members = self._arrays.children(t, np.sort(members))[0]  # sorted, so that gathering needs no search
        return members if level == 1 else np.sort(members)

    def nearest_samples(self, level: int, cluster: int, n: int = 10) -> NDArray[np.int64]:
        """Return samples that represent a cluster, those closest to its centroid, descending through its children.

        Parameters
        ----------
        level, cluster : int
            As for `children`.
        n : int, default 10
            Number of samples, divided evenly among the children, the closest first.

        Returns
        -------
        ndarray of int64
            Row numbers of the pool, those of the closest child first; `n`, or all samples if there are fewer.

        Raises
        ------
        InputError
            If there is no such level or cluster, or `n` is not an integer.
        """
        arrays, clusters = self._arrays, self._checked_cluster(level, cluster)
        if not is_whole(n) or n < 0:
            raise InputError(f"n={n!r} should be a whole number >= 0; give the number of samples")
        shares = np.minimum(arrays.take(level, "leaf_sizes", clusters), n)
        if not shares.any():
            return np.empty(0, np.int64)
        for t in range(level, 1, -1):
            children, bounds = arrays.children(t, clusters)
            sizes = np.split(arrays.take(t - 1, "leaf_sizes", children), bounds[1:-1])
            shares = np.concatenate([share_evenly(own, int(share)) for own, share in zip(sizes, shares, strict=True)])
            clusters, shares = children[shares > 0], shares[shares > 0]
        return arrays.take(1, "members", ranges(arrays.take(1, "indptr", clusters), shares))

    # -- by embedding --------------------------------------------------------------------------------------------------

    def nearest(self, vector: ArrayLike, level: int, k: int = 10) -> pd.DataFrame:
        """Return the clusters of a level whose centroids are nearest to a vector, or to each of several vectors.

        Parameters
        ----------
        vector : array-like, shape (n_features,) or (n, n_features)
            Scaled to unit length if the tree's metric is cosine.
        level : int
            From 1.
        k : int, default 10
            Number of clusters.

        Returns
        -------
        pandas.DataFrame
            ``cluster``, ``distance``, Euclidean, and ``n_samples``, the number of samples below it, nearest first; for
            several vectors, the k rows of each in turn, indexed by ``vector`` and ``rank``.

        Raises
        ------
        InputError
            If the vector has another length or is not finite, or there is no such level.
        """
        n_features = self._arrays.n_features(level)
        vectors = checked_vectors(vector, n_features, spherical=self._tree.attrs.get("metric") == "cosine")
        clusters, squared = nearest_clusters(self._arrays, level, vectors, k)
        index: pd.Index = pd.RangeIndex(clusters.shape[1], name="rank")
        if np.ndim(vector) == 2:
            index = pd.MultiIndex.from_product([range(len(vectors)), index], names=["vector", "rank"])
        numbers = clusters.ravel()
        n_samples = self._arrays.take(level, "leaf_sizes", numbers)
        return pd.DataFrame(
            {"cluster": numbers, "distance": np.sqrt(squared.ravel()), "n_samples": n_samples}, index=index
        )

    def predict(self, x: Any, *, client: Client | None = None, memory_limit: int | str | None = None) -> xr.DataArray:
        """Return the clusters of new samples at every level.

        Parameters
        ----------
        x : array of shape (n_samples, n_features), pool or path
            In memory, or a Dask, xarray or Zarr array; see `hkm_dask.KMeans`. For results larger than memory, use
            `hkm_dask.assign`, which stores the same.
        client : distributed.Client, optional
            Where to run; by default distributed's current client, otherwise threads of this process.
        memory_limit : int or str, optional
            Memory in bytes that this process may use when it runs on threads.

        Returns
        -------
        xarray.DataArray of int32, shape (sample, level)
            The nearest of all level-1 centroids, then the clusters that contain it. Lazy for a Dask array; with the
            coordinates of a DataArray. With `n_splits`, the label of a sample of the tree may differ: it is the nearest
            only within its cluster.

        Raises
        ------
        InputError
            If rows have another number of features, contain NaN, or have values too large to be squared in float32.
        """
        from hkm_dask.hierarchy.tree.predictor import predict_paths

        paths = predict_paths(self._tree, x, client=client, memory_limit=memory_limit)
        if not isinstance(paths, xr.DataArray):
            paths = xr.DataArray(paths, dims=("sample", "level"), name="labels")
        return paths.assign_coords(level=range(1, self.n_levels + 1))


def _are_texts(values: NDArray[Any]) -> bool:
    """Return whether values are texts, of which there is at least one."""
    return values.dtype.kind in "UTO" and values.size > 0 and all(isinstance(one, str) for one in values.flat)


def _checked_numbers(numbers: Any, n: int, name: str, rule: str) -> NDArray[np.int64]:
    """Return sample or cluster numbers as an array; raises InputError for anything but integers in ``range(n)``."""
    array = np.atleast_1d(np.asarray(numbers))
    if not array.size:
        return np.empty(0, np.int64)
    wrong = array.ravel()
    if array.ndim == 1 and array.dtype.kind in "iu":
        wrong = array[(array < 0) | (array >= n)]
    if wrong.size:
        more = f" and {wrong.size - 1} more" if wrong.size > 1 else ""
        raise InputError(f"{name}={wrong.tolist()[0]!r}{more} should be {rule}")
    return array.astype(np.int64)


def _looked_up(labels: NDArray[np.int32], *, table: NDArray[np.int32]) -> NDArray[np.int32]:
    return table[labels]


def share_evenly(sizes: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Divide `n` as evenly as `sizes` allow; the remainder goes to the first.

    >>> share_evenly(np.array([1, 9, 9]), 8), share_evenly(np.array([3, 3, 3]), 2)
    (array([1, 4, 3]), array([1, 1, 0]))
    """
    shares = np.zeros_like(sizes)
    while (left := n - int(shares.sum())) > 0 and (able := shares < sizes).any():
        added = np.minimum(sizes - shares, max(1, left // int(able.sum())))
        added[np.cumsum(added) > left] = 0
        shares += added
    return shares
