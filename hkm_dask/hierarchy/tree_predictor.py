"""Clusters of rows by a tree, at every level: what its accessor and `HierarchicalKMeans` predict by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr
from sklearn.utils.validation import check_is_fitted

from hkm_dask.hierarchy.nearest import paths_of_centroids
from hkm_dask.hierarchy.tree_arrays import TreeArrays
from hkm_dask.kmeans.base import Clusterer

if TYPE_CHECKING:
    from distributed import Client


class TreePredictor(Clusterer):
    """Gives rows of every kind the clusters of a tree; see `HierarchicalKMeans` for `client` and `memory_limit`."""

    tree_: xr.DataTree

    def __init__(
        self, tree: xr.DataTree, *, client: Client | None = None, memory_limit: int | str | None = None
    ) -> None:
        self.tree_, self.n_features_in_ = tree, TreeArrays(tree).n_features(1)
        self.metric, self.random_state = tree.attrs["metric"], None
        self.client, self.memory_limit, self.work_dir = client, memory_limit, None

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
            that is nearest only within its part of the level.

        Raises
        ------
        InputError
            Rows of another width, with NaN or with values too large for float32 squares.
        """
        check_is_fitted(self)
        arrays = TreeArrays(self.tree_)
        return self._labels(X, arrays.read(1, "centroids"), paths_of_centroids(arrays))
