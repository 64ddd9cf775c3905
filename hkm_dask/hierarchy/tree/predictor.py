"""Clusters of rows by a tree, at every level: what its accessor and `HierarchicalKMeans` predict by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.nearest import paths_of_centroids
from hkm_dask.kmeans.base import Clusterer

if TYPE_CHECKING:
    from distributed import Client


class TreePredictor(Clusterer):
    """Base of what gives rows the clusters of a tree."""

    tree_: xr.DataTree

    def _paths(self, X: Any) -> Any:
        """Clusters of every row at every level; see `HierarchicalKMeans.predict_path`."""
        arrays = TreeArrays(self.tree_)
        return self._labels(X, arrays.read(1, "centroids"), paths_of_centroids(arrays))


def predict_paths(tree: xr.DataTree, x: Any, *, client: Client | None, memory_limit: int | str | None) -> Any:
    """Clusters of rows of every kind at every level of a tree, which nobody fitted here."""
    predictor = TreePredictor()
    predictor.tree_, predictor.n_features_in_ = tree, TreeArrays(tree).n_features(1)
    predictor.metric, predictor.work_dir = tree.attrs["metric"], None
    predictor.client, predictor.memory_limit = client, memory_limit
    return predictor._paths(x)
