"""Clusters of rows by a tree, at every level: what its accessor and `HierarchicalKMeans` predict by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

from hkm_dask.hierarchy.nearest import paths_of_centroids
from hkm_dask.hierarchy.tree_arrays import TreeArrays
from hkm_dask.kmeans.base import Clusterer

if TYPE_CHECKING:
    from distributed import Client


class TreePredictor(Clusterer):
    """Gives rows of every kind the clusters of a tree; see `HierarchicalKMeans` for `client` and `memory_limit`."""

    tree_: xr.DataTree

    @classmethod
    def of(
        cls, tree: xr.DataTree, *, client: Client | None = None, memory_limit: int | str | None = None
    ) -> TreePredictor:
        """A predictor by a tree; it has no parameters."""
        predictor = TreePredictor()
        predictor.tree_, predictor.n_features_in_ = tree, TreeArrays(tree).n_features(1)
        predictor.metric, predictor.client, predictor.memory_limit = tree.attrs["metric"], client, memory_limit
        predictor.work_dir = None
        return predictor

    def paths_of(self, X: Any) -> Any:
        """Clusters of every row at every level; see `HierarchicalKMeans.predict_path`."""
        arrays = TreeArrays(self.tree_)
        return self._labels(X, arrays.read(1, "centroids"), paths_of_centroids(arrays))
