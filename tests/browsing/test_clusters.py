"""Clusters read by ranges, held against the tree read whole."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import hkm_dask as hkm
from hkm_dask.browsing.clusters import ChunkCache, Cluster, Clusters
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.tree import open_hierarchy


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    path = Path(tmp_path_factory.mktemp("clusters"))
    x = np.random.default_rng(0).normal(size=(600, 3)).astype("f4")
    hkm.build_hierarchy(x, path / "tree.zarr", hkm.Config.from_flags((60, 12, 3), n_resamples=0, max_iter=3))
    return open_hierarchy(path / "tree.zarr")


def test_children_paths_and_sizes_are_those_of_the_tree(tree: xr.DataTree) -> None:
    clusters = Clusters(tree)
    assert (clusters.n_clusters, clusters.n_samples, clusters.n_rows) == ((60, 12, 3), 600, 600)
    for level, n in enumerate(clusters.n_clusters, start=1):
        for number in range(n):
            cluster = Cluster(level, number)
            assert clusters.children(cluster).tolist() == tree.hkm.children(level, number).tolist()
            assert clusters.size(cluster) == len(tree.hkm.members(level, number))
            if level > 1 and clusters.size(cluster):
                sizes = [clusters.size(Cluster(level - 1, int(c))) for c in clusters.by_size(cluster)]
                assert sizes == sorted(sizes, reverse=True)
                assert all(clusters.parent(Cluster(level - 1, int(c))) == cluster for c in clusters.children(cluster))
    for row, path in zip(range(0, 600, 50), clusters.paths(np.arange(0, 600, 50)), strict=True):
        assert [c.number for c in path[::-1]] == list(tree.hkm.path(row))
    assert clusters.parent(Cluster(3, 1)) == clusters.root
    assert clusters.parent(clusters.root) is None


def test_typical_samples_are_the_closest_and_the_farthest(tree: xr.DataTree) -> None:
    clusters = Clusters(tree)
    members = tree.hkm.children(1, 7).tolist()
    assert clusters.typical(Cluster(1, 7), 4).tolist() == members[:4]
    assert clusters.typical(Cluster(1, 7), 4, far=True).tolist() == members[::-1][:4]
    below = set(tree.hkm.members(3, 0).tolist())
    for far in (False, True):
        some = clusters.typical(Cluster(3, 0), 40, far=far).tolist()
        assert len(set(some)) == 40
        assert set(some) <= below
    assert sorted(clusters.typical(clusters.root, 1000).tolist()) == list(range(600))


@pytest.mark.parametrize("text", ["", "2", "2:", ":3", "2:-1", "2:1:1", "²:1", "a:b", "1:1000000000000", "2:1\n"])
def test_what_is_no_cluster_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="should be LEVEL:NUMBER"):
        Cluster.parse(text)


def test_clusters_the_tree_lacks_are_refused(tree: xr.DataTree) -> None:
    clusters = Clusters(tree)
    with pytest.raises(InputError, match="level=5 should be between 1 and 3"):
        clusters.check(Cluster(5, 0))
    with pytest.raises(InputError, match="cluster=2:12 should be between 2:0 and 2:11"):
        clusters.check(Cluster(2, 12))


def test_a_cache_stays_within_its_bytes(tree: xr.DataTree) -> None:
    cache, array = ChunkCache(max_bytes=1), Clusters(tree).arrays[1, "members"]
    whole = array.read(0, 600)
    assert cache.read(array, 10, 20).tolist() == whole[10:20].tolist()
    assert cache.take(array, np.array([599, 0, 599])).tolist() == whole[[599, 0, 599]].tolist()
    assert len(cache._kept) == 1
