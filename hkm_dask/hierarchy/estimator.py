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
from hkm_dask.hierarchy.sampling.sample import sample
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.predictor import TreePredictor
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from hkm_dask.kmeans.inputs import rows_of

if TYPE_CHECKING:
    from distributed import Client


#: Parameters that each level has one of.
_PER_LEVEL = (
    "n_clusters", "n_splits", "n_resamples", "resample_size", "resample_strategy", "init", "max_iter", "tol",
)  # fmt: skip


class HierarchicalKMeans(TreePredictor):
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
    >>> hk.predict(x).shape, hk.predict_path(x).shape, hk.transform(x).shape
    ((6,), (6, 2), (6, 2))
    >>> len(hk.sample(4)), hk.score(x)
    (4, -146.5)
    """

    tree_: xr.DataTree

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
        self._adopt(self.tree_)
        return self

    def _repr_html_inner(self) -> str:
        return super()._repr_html_inner() + self._tree_html()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        """What a notebook shows: scikit-learn's picture and, after a fit, the tree."""
        shown: dict[str, str] = super()._repr_mimebundle_(**kwargs)
        if "text/html" in shown:
            shown["text/html"] += self._tree_html()
        return shown

    def _tree_html(self) -> str:
        return self.tree_.hkm._repr_html_() if "tree_" in vars(self) else ""

    def _adopt(self, tree: xr.DataTree) -> None:
        """Take what the tree of a fit knows; labels wait until they are asked for."""
        arrays = TreeArrays(tree)
        self.tree_ = tree
        self.cluster_centers_ = arrays.read(arrays.n_levels, "centroids")
        histories = [arrays.read(t, "inertia") for t in range(1, arrays.n_levels + 1)]
        self.n_iter_ = sum(int(np.isfinite(history).sum()) for history in histories)
        self.n_features_in_ = self.cluster_centers_.shape[1]
        self._labels_read: NDArray[np.int32] | None = None

    @classmethod
    def from_tree(
        cls,
        tree: xr.DataTree | str | os.PathLike[str],
        *,
        client: Client | None = None,
        memory_limit: int | str | None = None,
    ) -> Self:
        """The estimator whose fit a tree is, without fitting again.

        Parameters
        ----------
        tree : DataTree or path
            As `hkm_dask.build_hierarchy` or ``hkm cluster`` made it. It is read when it is asked for.
        client : distributed.Client, optional
        memory_limit : int or str, optional
            As for the estimator.

        Returns
        -------
        HierarchicalKMeans
            With the parameters of the tree, but for its `path`: fitting again leaves the tree alone.

        Examples
        --------
        >>> import tempfile, numpy as np, hkm_dask as hkm
        >>> x = np.float32([[0], [1], [10], [11], [100], [101]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tree = hkm.build_hierarchy(x, f"{folder}/tree.zarr", hkm.Config.from_flags((3, 2), n_resamples=0))
        ...     hk = hkm.HierarchicalKMeans.from_tree(f"{folder}/tree.zarr")
        ...     bool((hk.predict(x) == tree.hkm.labels(2)).all())
        True
        """
        opened = tree if isinstance(tree, xr.DataTree) else open_hierarchy(tree)
        config = Config.from_json(opened.attrs["config"])
        levels: dict[str, Any] = {name: tuple(getattr(level, name) for level in config.levels) for name in _PER_LEVEL}
        estimator = cls(
            **levels, metric=config.metric, random_state=config.seed, client=client, memory_limit=memory_limit
        )
        estimator._adopt(opened)
        return estimator

    @property
    def labels_(self) -> NDArray[np.int32]:
        """Cluster of each sample of the fit at the top level, int32 (n_samples,); -1 for those left out."""
        if "tree_" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no labels_ before it is fitted; call fit")
        if self._labels_read is None:
            arrays = TreeArrays(self.tree_)
            self._labels_read = np.ascontiguousarray(arrays.ancestors(arrays.read(1, "labels"))[-1])
        return self._labels_read

    def _build(self, source: Any, config: Config, folder: Path | None) -> xr.DataTree:
        where: dict[str, Any] = {"client": self.client, "memory_limit": self.memory_limit}
        if folder is None:
            return build_hierarchy(source, str(self.path), config, restart=self.restart, **where)
        with tempfile.TemporaryDirectory(dir=folder, prefix="tree-", ignore_cleanup_errors=True) as temporary:
            return build_hierarchy(source, Path(temporary, "tree.zarr"), config, **where).load()

    def _config(self) -> Config:
        n_clusters = self.n_clusters
        of_levels = [int(n_clusters)] if isinstance(n_clusters, int | np.integer) else list(n_clusters)
        others = {name: getattr(self, name) for name in _PER_LEVEL if name != "n_clusters"}
        others = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in others.items()}
        return Config.from_flags(of_levels, seed=self._seed(), metric=self.metric, **others)

    def predict(self, X: Any) -> Any:
        """Cluster of every row at the top level, as `labels_` has them of the fit.

        Parameters
        ----------
        X : array of shape (n_samples, n_features), pool or path
            See `hkm_dask.KMeans`.

        Returns
        -------
        array of int32, shape (n_samples,)
            A Dask array or a DataArray for one of these, else NumPy's: the last column of `predict_path`.

        Raises
        ------
        InputError
            Rows of another width, with NaN or with values too large for float32 squares.
        """
        return self.predict_path(X)[:, -1]

    def predict_path(self, X: Any) -> Any:
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
            that is nearest only within its cluster.

        Raises
        ------
        InputError
            Rows of another width, with NaN or with values too large for float32 squares.
        """
        check_is_fitted(self)
        return self._paths(X)

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
