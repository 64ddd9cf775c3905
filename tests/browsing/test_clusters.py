"""Pages of clusters, compared with the accessor of the tree."""

import numpy as np
import pytest
import xarray as xr

from hkm_dask.browsing.clusters import Clusters
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.sampling.steering import Cluster


def test_children_paths_and_sizes_are_those_of_the_tree(tree: xr.DataTree, clusters: Clusters) -> None:
    assert (clusters.n_clusters, clusters.n_samples, clusters.n_rows) == ((60, 12, 3), 599, 600)
    for level, n in enumerate(clusters.n_clusters, start=1):
        for number in range(n):
            cluster = Cluster(level, number)
            below = tree.hkm.children(level, number).tolist()
            assert clusters.children(cluster).tolist() == below
            assert clusters.ordered(cluster, "furthest").tolist() == below[::-1]
            assert clusters.size(cluster) == len(tree.hkm.members(level, number))
            if level > 1:
                sizes = [clusters.size(Cluster(level - 1, int(c))) for c in clusters.ordered(cluster, "size")]
                assert sizes == sorted(sizes, reverse=True)
                assert all(clusters.path(Cluster(level - 1, c))[:-1] == clusters.path(cluster) for c in below)
    for row, path in zip([0, 50, 599], clusters.paths(np.array([0, 50, 599])), strict=True):
        assert [c.number for c in path[::-1]] == list(tree.hkm.path(row))
    assert clusters.paths(np.array([7])) == [[]]
    assert (clusters.path(clusters.root), clusters.size(clusters.root)) == ([], 599)
    assert clusters.parse("") == clusters.root


def test_typical_samples_are_the_closest_and_the_furthest(tree: xr.DataTree, clusters: Clusters) -> None:
    members = tree.hkm.children(1, 7).tolist()
    assert clusters.typical(Cluster(1, 7), 4).tolist() == members[:4]
    assert clusters.typical(Cluster(1, 7), 4, far=True).tolist() == members[::-1][:4]
    below = set(tree.hkm.members(3, 0).tolist())
    for far in (False, True):
        some = clusters.typical(Cluster(3, 0), 40, far=far).tolist()
        assert len(set(some)) == min(40, len(below))
        assert set(some) <= below
    furthest_child = tree.hkm.children(3, 0)[-1]
    assert clusters.typical(Cluster(3, 0), 1, far=True)[0] in tree.hkm.members(2, int(furthest_child))
    assert sorted(clusters.typical(clusters.root, 1000).tolist()) == [row for row in range(600) if row != 7]


def test_a_children_order_of_ones_own_is_kept(clusters: Clusters) -> None:
    asked = []

    def by_number(level: int, numbers: np.ndarray) -> np.ndarray:
        asked.append(level)
        return -numbers

    clusters.keys["own"] = by_number
    for _ in range(2):
        assert clusters.ordered(clusters.root, "own").tolist() == [2, 1, 0]
    assert asked == [3]


@pytest.mark.parametrize("text", ["2", "2:", ":3", "2:-1", "2:1:1", "²:1", "a:b", "1:9999999999999999999999", "2:1\n"])
def test_what_is_no_cluster_is_refused(clusters: Clusters, text: str) -> None:
    with pytest.raises(InputError, match="should be LEVEL:NUMBER"):
        clusters.parse(text)


def test_clusters_the_tree_lacks_are_refused(clusters: Clusters) -> None:
    with pytest.raises(InputError, match="cluster=5:0 should be of a level from 1 to 3"):
        clusters.parse("5:0")
    with pytest.raises(InputError, match="cluster=2:12 should be from 2:0 to 2:11"):
        clusters.parse("2:12")
