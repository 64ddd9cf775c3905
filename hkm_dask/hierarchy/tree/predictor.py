"""Prediction of the clusters of rows at every level, for the accessor of a tree and `HierarchicalKMeans`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.nearest import paths_of_centroids
from hkm_dask.kmeans.base import Clusterer

if TYPE_CHECKING:
    from distributed import Client


class TreePredictor(Clusterer):
    """Base class of predictors that assign rows to the clusters of a tree."""

    tree_: xr.DataTree

    def _paths(self, X: Any) -> Any:
        """Return the clusters of every row at every level; see `HierarchicalKMeans.predict_path`."""
        arrays = TreeArrays(self.tree_)
        return self._labels(X, arrays.read(1, "centroids"), paths_of_centroids(arrays))


def predict_paths(tree: xr.DataTree, x: Any, *, client: Client | None, memory_limit: int | str | None) -> Any:
    """Return the clusters of rows of any kind at every level of a tree that was not fitted in this process."""
    predictor = TreePredictor()
    predictor.tree_, predictor.n_features_in_ = tree, TreeArrays(tree).n_features(1)
    predictor.metric, predictor.work_dir = tree.attrs["metric"], None
    predictor.client, predictor.memory_limit = client, memory_limit
    return predictor._paths(x)
