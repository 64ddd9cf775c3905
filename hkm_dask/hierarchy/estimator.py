"""`HierarchicalKMeans`: scikit-learn's conventions over a tree of k-means, and balanced subsets from it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from hkm_dask.config import Config
from hkm_dask.data.pool import Pool
from hkm_dask.hierarchy.build import build_hierarchy
from hkm_dask.hierarchy.sampling import sample
from hkm_dask.hierarchy.tree import TreeArrays
from hkm_dask.kmeans.base import Clusterer
from hkm_dask.kmeans.inputs import rows_of

if TYPE_CHECKING:
    from distributed import Client


class HierarchicalKMeans(Clusterer):
    """Hierarchical k-means with resampling, with scikit-learn's conventions.

    Level 1 clusters the samples, level t the centroids of level t - 1. Inputs are those of `hkm_dask.KMeans`. For runs
    of hours take `hkm_dask.build_hierarchy` or give a `path`: both go on where an interrupted run stopped.

    Parameters
    ----------
    n_clusters : int or sequence of int, default=(2000, 400, 100)
        Of every level, level 1 first.
    n_splits, n_resamples, resample_size, resample_strategy, init, max_iter, tol
        As in `hkm_dask.Level`: a value for all levels, or a sequence of one per level.
    metric : {"l2", "cosine"}, default="l2"
    random_state : int, RandomState or None, default=None
        A number gives the same tree again, and lets an interrupted fit go on.
    path : path, optional
        Where to put the tree. It is resumed or opened where the same fit was begun or finished before. Without a path
        the tree is built in a temporary folder and then held in memory.
    restart : bool, default=False
        Replace whatever tree lies at `path`.
    client : distributed.Client, optional
        Where to run: given, else distributed's current client, else threads of this process. It is not pickled with
        the estimator.
    memory_limit : int or str, optional
        What this process may hold when it runs on threads, as in ``"4GiB"``.
    work_dir : path, optional
        Folder for intermediate files, seen by all workers; a temporary one on this machine by default.

    Attributes
    ----------
    tree_ : xarray.DataTree
        As `hkm_dask.open_hierarchy` gives it, with its ``hkm`` accessor.
    cluster_centers_ : ndarray of float32, shape (n_clusters[-1], n_features)
        Of the top level; NaN where there are too few distinct rows.
    labels_ : ndarray of int32, shape (n_samples,)
        Cluster of each sample at the top level.
    n_iter_ : int
        Lloyd iterations of all steps of all levels.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Where `X` had names for its features.

    See Also
    --------
    hkm_dask.build_hierarchy : The same as a function, for a pool and a stored tree.

    References
    ----------
    arXiv:2405.15613

    Examples
    --------
    >>> import numpy as np, hkm_dask as hkm
    >>> x = np.float32([[0, 0], [0, 1], [9, 9], [9, 8], [50, 50], [50, 51]])
    >>> hk = hkm.HierarchicalKMeans(n_clusters=(3, 2), n_resamples=0, random_state=0).fit(x)
    >>> hk.labels_[0] == hk.labels_[2], hk.labels_[0] == hk.labels_[4]
    (np.True_, np.False_)
    >>> hk.predict(x).shape
    (6, 2)
    >>> len(hk.sample(4))
    4
    """

    tree_: xr.DataTree
    cluster_centers_: NDArray[np.float32]
    labels_: NDArray[np.int32]
    n_iter_: int

    def __init__(
        self,
        n_clusters: int | Sequence[int] = (2000, 400, 100),
        *,
        n_splits: int | Sequence[int] = 1,
        n_resamples: int | Sequence[int] = 10,
        resample_size: int | str | Sequence[int | str] = "auto",
        resample_strategy: str | Sequence[str] = "closest",
        init: str | Sequence[str] = "coreset",
        max_iter: int | Sequence[int] = 50,
        tol: float | Sequence[float] = 1e-4,
        metric: str = "l2",
        random_state: Any = None,
        path: str | os.PathLike[str] | None = None,
        restart: bool = False,
        client: Client | None = None,
        memory_limit: int | str | None = None,
        work_dir: str | Path | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_splits = n_splits
        self.n_resamples = n_resamples
        self.resample_size = resample_size
        self.resample_strategy = resample_strategy
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.metric = metric
        self.random_state = random_state
        self.path = path
        self.restart = restart
        self.client = client
        self.memory_limit = memory_limit
        self.work_dir = work_dir

    def fit(self, X: Any, y: None = None) -> Self:
        """Build the tree.

        Parameters
        ----------
        X : array of shape (n_samples, n_features), pool or path
            See `hkm_dask.KMeans`.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        InputError
            Parameters or rows should be otherwise, or another tree lies at `path`; a ValueError.
        """
        config = self._config()
        with self._runner() as runner:
            x = self._validated(X, runner.memory_budget, reset=True)
            with rows_of(x, runner) as rows:
                # What lies on disk keeps its name in the tree, and its fingerprint.
                source = x if isinstance(x, str | os.PathLike | Pool) else rows
                self.tree_ = self._build(source, config, runner.work_dir if self.path is None else None)
        arrays = TreeArrays(self.tree_)
        self.cluster_centers_ = arrays.read(arrays.n_levels, "centroids")
        self.labels_ = np.ascontiguousarray(arrays.ancestors(arrays.read(1, "labels"))[-1])
        histories = [arrays.read(t, "inertia") for t in range(1, arrays.n_levels + 1)]
        self.n_iter_ = sum(int(np.isfinite(history).sum()) for history in histories)
        return self

    def _build(self, source: Any, config: Config, folder: Path | None) -> xr.DataTree:
        where: dict[str, Any] = {"client": self.client, "memory_limit": self.memory_limit}
        if folder is None:
            return build_hierarchy(source, str(self.path), config, restart=self.restart, **where)
        with tempfile.TemporaryDirectory(dir=folder, prefix="tree-", ignore_cleanup_errors=True) as temporary:
            return build_hierarchy(source, Path(temporary, "tree.zarr"), config, **where).load()

    def _config(self) -> Config:
        n_clusters = self.n_clusters
        return Config.from_flags(
            [int(n_clusters)] if isinstance(n_clusters, int | np.integer) else list(n_clusters),
            seed=self._seed(),
            metric=self.metric,
            n_splits=self.n_splits,
            n_resamples=self.n_resamples,
            resample_size=self.resample_size,
            resample_strategy=self.resample_strategy,
            init=self.init,
            max_iter=self.max_iter,
            tol=self.tol,
        )

    def predict(self, X: Any) -> Any:
        """Clusters of every row at every level.

        Parameters
        ----------
        X : array of shape (n_samples, n_features), pool or path
            See `hkm_dask.KMeans`.

        Returns
        -------
        array of int32, shape (n_samples, n_levels)
            Level 1 first: the nearest of all its centroids, then the clusters that one lies in. A Dask array or a
            DataArray for one of these, else NumPy's. With `n_splits` a sample of the fit may have been given a centroid
            that is nearest only within its part of the level.

        Raises
        ------
        InputError
            Rows of another width, with NaN or with values too large for float32 squares.
        """
        check_is_fitted(self)
        arrays = TreeArrays(self.tree_)
        centroids = arrays.read(1, "centroids")
        paths = arrays.ancestors(np.arange(len(centroids), dtype=np.int32))
        return self._labels(X, centroids, np.stack(paths, axis=1))

    def sample(
        self, size: int, *, strategy: str = "hierarchical", within: str = "random", multiplier: int = 1, seed: int = 0
    ) -> NDArray[np.int64]:
        """Draw a balanced subset of the rows of the fit.

        Parameters
        ----------
        size : int
        strategy, within, multiplier, seed
            As in `hkm_dask.sample`.

        Returns
        -------
        ndarray of int64, shape (size,)
            Sorted row numbers.

        Raises
        ------
        InputError
            There are not so many rows, or a choice is unknown.
        """
        check_is_fitted(self)
        return sample(self.tree_, size, strategy=strategy, within=within, multiplier=multiplier, seed=seed)
