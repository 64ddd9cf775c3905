"""Queries of a tree on disk, against its arrays read by plain xarray."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr

import hkm_dask as hkm
from hkm_dask.data.chunks import StoredArray
from hkm_dask.errors import InputError, StoreError
from hkm_dask.hierarchy import level_arrays
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.nearest import nearest_clusters

RandomTree = Callable[[int], xr.DataTree]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    """A tree of 900 samples, some left out, in chunks so small that every question crosses some."""
    folder = tmp_path_factory.mktemp("asked")
    np.save(folder / "idx.npy", np.arange(7, 880))
    x = np.random.default_rng(0).normal(size=(900, 5)).astype("f4")
    levels = [hkm.Level(n_clusters=k, n_resamples=1) for k in (60, 12, 3)]
    with (
        patch.object(level_arrays.layout, "chunk_rows", lambda n, row_bytes: 7),
        patch("hkm_dask.hierarchy.build.label_chunk_rows", lambda rows: 50),
        patch("hkm_dask.hierarchy.source.label_chunk_rows", lambda rows: 50),
    ):
        config = hkm.Config(levels=levels, subset=str(folder / "idx.npy"), seed=3)
        hkm.build_hierarchy(x, folder / "tree.zarr", config)
    return hkm.open_hierarchy(folder / "tree.zarr")


def in_memory(tree: xr.DataTree) -> xr.DataTree:
    return tree.copy().load()


def parents(tree: xr.DataTree, level: int) -> list[int]:
    return tree[f"level_{level}/labels"].values.tolist()


def test_paths_of_many_samples_are_those_of_each(tree: xr.DataTree) -> None:
    samples = [880, 879, 3, 450, 450]
    paths = tree.hkm.path(samples)
    assert (paths.index.name, paths.index.tolist(), list(paths)) == (
        "sample",
        samples,
        ["level_1", "level_2", "level_3"],
    )
    assert paths.loc[[880, 3]].to_numpy().tolist() == [[-1] * 3] * 2
    for sample in (879, 450):
        one = parents(tree, 1)[sample]
        two = parents(tree, 2)[one]
        assert tree.hkm.path(sample) == (one, two, parents(tree, 3)[two])
        assert paths.loc[[sample]].to_numpy()[0].tolist() == list(tree.hkm.path(sample))
    every = tree.hkm.path(range(900))
    for level in (1, 2, 3):
        np.testing.assert_array_equal(every[f"level_{level}"], tree.hkm.labels(level))
    assert tree.hkm.path([]).shape == (0, 3)


def test_samples_are_named_by_ids_too(tmp_path: Path) -> None:
    x, names = np.random.default_rng(0).normal(size=(90, 4)).astype("f4"), [f"id-{row}" for row in range(90)]
    pool = hkm.ingest(x, tmp_path / "pool.zarr", ids=names)
    with patch("hkm_dask.data.layout.MAX_ID_CHUNK_ROWS", 7):
        opened = hkm.build_hierarchy(pool, tmp_path / "tree.zarr", hkm.Config.from_flags((9, 3), n_resamples=0))
        assert pool.rows_of(["id-80", "id-3", "id-80"]).tolist() == [80, 3, 80]
        paths = opened.hkm.path(["id-80", "id-3"])
        assert (paths.index.name, paths.index.tolist()) == ("id", ["id-80", "id-3"])
        assert paths.to_numpy().tolist() == opened.hkm.path([80, 3]).to_numpy().tolist()
        assert opened.hkm.path("id-80") == opened.hkm.path(80)
        with pytest.raises(InputError, match=r"ids=id-90, x should be ids of .*pool.zarr, like 'id-0'; leave them out"):
            opened.hkm.path(["id-3", "x", "id-90"])
    numbered = hkm.ingest(x, tmp_path / "numbered.zarr", ids=np.arange(90) * 1000)
    assert numbered.rows_of([5000, 2000]).tolist() == [5, 2]
    with pytest.raises(InputError, match=r"ids=5000 should be ids of .*, like 0; leave"):
        numbered.rows_of(["5000"])
    with pytest.raises(
        InputError, match=r"ids=.* should be of a pool with ids, .*bare.zarr has none; give row numbers"
    ):
        hkm.ingest(x, tmp_path / "bare.zarr").rows_of(["a"])


def test_ancestors(tree: xr.DataTree) -> None:
    two = parents(tree, 2)
    assert tree.hkm.ancestors(1, 17) == (two[17], parents(tree, 3)[two[17]])
    assert tree.hkm.ancestors(3, 1) == ()
    above = tree.hkm.ancestors(1, range(60))
    assert above["level_2"].tolist() == two
    assert (above.index.name, list(above)) == ("cluster", ["level_2", "level_3"])


def test_a_subtree_has_every_cluster_below_once(tree: xr.DataTree) -> None:
    for top in range(3):
        below = tree.hkm.subtree(3, top)
        own = {level: table["cluster"].tolist() for level, table in below.groupby("level")}
        assert own[3] == [top]
        assert sorted(own[2]) == [c for c, parent in enumerate(parents(tree, 3)) if parent == top]
        assert own[2] == tree.hkm.children(3, top).tolist()
        assert own[1] == [c for two in own[2] for c in tree.hkm.children(2, two).tolist()]
        ones = below[below["level"] == 1].set_index("cluster")
        assert ones["n_samples"].sum() == len(tree.hkm.members(3, top)) == below["n_samples"][0]
        for c, row in ones.iterrows():
            assert row["parent"] == parents(tree, 2)[c]
            assert row["distance"] == pytest.approx(np.sqrt(tree["level_2/distances"].values[c]))
        assert tree.hkm.subtree(3, top, lowest=2)["cluster"].tolist() == [top, *own[2]]
    assert below.loc[0, ["parent", "level"]].tolist() == [-1, 3]
    assert np.isnan(below.loc[0, "distance"])


def test_clusters_of_a_level(tree: xr.DataTree) -> None:
    table = tree.hkm.clusters(1)
    assert table["parent"].tolist() == parents(tree, 2)
    np.testing.assert_array_equal(table["size"], tree["level_1/sizes"])
    assert tree.hkm.clusters(2, [5, 1])["n_samples"].tolist() == tree["level_2/leaf_sizes"].values[[5, 1]].tolist()
    assert list(tree.hkm.clusters(3)) == ["size", "n_samples"]


@pytest.mark.parametrize("kept_bytes", [0, 200, 512 << 20])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_the_nearest_clusters_are_those_of_a_sort(tree: xr.DataTree, k: int, kept_bytes: int) -> None:
    vectors = np.random.default_rng(2).normal(size=(4, 5)).astype("f4")
    arrays = TreeArrays(tree, kept_bytes)
    asked = tree.hkm
    with patch.object(asked, "_arrays", arrays):
        for level in (1, 2, 3):
            centroids = tree[f"level_{level}/centroids"].values.astype("f8")
            distances = np.sqrt(((vectors[:, None].astype("f8") - centroids) ** 2).sum(axis=2))
            order = np.argsort(distances, axis=1, kind="stable")[:, :k]
            near = asked.nearest(vectors, level, k)
            assert near.index.names == ["vector", "rank"]
            np.testing.assert_array_equal(near["cluster"].to_numpy().reshape(4, -1), order)
            np.testing.assert_allclose(near["distance"], np.take_along_axis(distances, order, axis=1).ravel())
            one = asked.nearest(vectors[2], level, k)
            assert (one.index.name, one["cluster"].tolist()) == ("rank", order[2].tolist())
            leaves = tree[f"level_{level}/leaf_sizes"].values
            assert one["n_samples"].tolist() == leaves[order[2]].tolist()


def test_searches_keep_more_centroids_each_time_and_find_what_was_altered(tree: xr.DataTree, tmp_path: Path) -> None:
    shutil.copytree(tree.encoding["source"], tmp_path / "tree.zarr")
    chunk_bytes = 7 * 5 * 4 + 4
    for altered, n_searches in ((8, 2), (2, 0)):  # one that is not kept, and one that would be
        arrays, vector = TreeArrays(hkm.open_hierarchy(tmp_path / "tree.zarr")), np.zeros((1, 5), np.float32)
        expected = nearest_clusters(TreeArrays(tree), 1, vector, 3)
        with patch("hkm_dask.hierarchy.tree.arrays._KEPT_AT_ONCE", 4 * chunk_bytes):
            for n_kept in (4, 8)[:n_searches]:
                np.testing.assert_array_equal(nearest_clusters(arrays, 1, vector, 3), expected)
                assert arrays._kept._n_bytes == n_kept * 7 * 5 * 4
            chunk = tmp_path / f"tree.zarr/level_1/centroids/c/{altered}/0"
            whole = chunk.read_bytes()
            chunk.write_bytes(bytes(len(whole)))
            with pytest.raises(StoreError, match=rf"centroids: chunk {altered} .* rows {7 * altered}:"):
                nearest_clusters(arrays, 1, vector, 3)
            chunk.write_bytes(whole)  # chunks are read side by side, and any of them may be refused first


def test_a_question_keeps_some_chunks_and_the_next_one_more(tree: xr.DataTree, tmp_path: Path) -> None:
    shutil.copytree(tree.encoding["source"], tmp_path / "tree.zarr")
    arrays = TreeArrays(hkm.open_hierarchy(tmp_path / "tree.zarr"))
    members, rng = tree["level_1/members_1"].values, np.random.default_rng(5)
    few, many = rng.permutation(28)[:20], rng.integers(0, len(members), (2, 300))
    with patch("hkm_dask.hierarchy.tree.arrays._KEPT_AT_ONCE", 4 * (7 * 8 + 4)):
        np.testing.assert_array_equal(arrays.take(1, "members", few), members[few])
        assert arrays._kept._n_bytes == 4 * 7 * 8
        np.testing.assert_array_equal(arrays.take(1, "members", many), members[many])
        assert arrays._kept._n_bytes == 8 * 7 * 8
    np.testing.assert_array_equal(arrays.take(1, "members", many), members[many])
    shutil.rmtree(tmp_path / "tree.zarr/level_1/members_1/c")  # all are kept
    with patch("hkm_dask.hierarchy.tree.arrays.ThreadPoolExecutor", None):  # and threads would only cost
        np.testing.assert_array_equal(arrays.take(1, "members", many), members[many])
    assert arrays._kept._n_bytes == members.nbytes


def test_ties_go_to_the_lowest_number_and_unused_clusters_are_not_near(make_tree: Callable[..., xr.DataTree]) -> None:
    tree = make_tree([[0, 1, 2, 4], [0, 0, 0, -1, 0]], 1)
    centroids = np.float32([[1, 1], [0, 0], [1, 1], [np.nan, np.nan], [2, 2]])
    tree["level_1"] = tree["level_1"].to_dataset().assign(centroids=(("cluster_1", "feature"), centroids))
    assert tree.hkm.nearest([1, 1], 1, 10)["cluster"].tolist() == [0, 2, 1, 4]
    assert tree.hkm.nearest(np.float16([1, 1]), 1, 1)["cluster"].tolist() == [0]


def test_cosine_looks_at_the_direction(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(100, 3)).astype("f4")
    tree = hkm.build_hierarchy(x, tmp_path / "t.zarr", hkm.Config(levels=[{"n_clusters": 9}], metric="cosine"))
    assert tree.hkm.nearest(x[3] * 50, 1, 1)["cluster"][0] == tree.hkm.path(3)[0]
    with pytest.raises(InputError, match=r"vector=0 should have a direction for metric='cosine'"):
        tree.hkm.nearest([0, 0, 0], 1)


def test_what_is_in_memory_answers_alike(tree: xr.DataTree) -> None:
    loaded = in_memory(tree)
    vector = np.arange(5) / 5
    for level in (1, 2, 3):
        assert tree.hkm.nearest(vector, level).equals(loaded.hkm.nearest(vector, level))
        assert tree.hkm.clusters(level).equals(loaded.hkm.clusters(level))
        np.testing.assert_array_equal(tree.hkm.labels(level), loaded.hkm.labels(level))
        for cluster in range(3):
            for ask in ("children", "members", "nearest_samples"):
                assert (
                    getattr(tree.hkm, ask)(level, cluster).tolist() == getattr(loaded.hkm, ask)(level, cluster).tolist()
                )
    assert tree.hkm.subtree(3, 1).equals(loaded.hkm.subtree(3, 1))
    assert tree.hkm.path(range(900)).equals(loaded.hkm.path(range(900)))


def test_labels_of_a_tree_on_disk_wait(tree: xr.DataTree) -> None:
    labels = tree.hkm.labels(3)
    assert labels.chunks is not None
    assert (labels.dims, labels.dtype, labels.attrs, labels.name) == (
        ("sample",),
        np.int32,
        {"missing": -1},
        "labels_3",
    )
    assert labels[[0, 450]].values.tolist() == [-1, tree.hkm.path(450)[2]]


def test_a_question_reads_the_chunks_of_its_answer_once(tree: xr.DataTree) -> None:
    read: list[tuple[str, int]] = []
    whole = StoredArray.read

    def counted(self: StoredArray, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        read.append((Path(self.path).name, stop - start))
        return whole(self, start, stop, out)

    opened = hkm.open_hierarchy(tree.encoding["source"])
    with patch.object(StoredArray, "read", counted):
        path = opened.hkm.path(450)
        assert read == [("labels", 50), ("labels", 50), ("labels", 12)]
        opened.hkm.children(1, path[0])
        assert {name for name, _ in read[3:]} == {"indptr_1", "members_1"}
        assert sum(n for _, n in read[3:]) <= 14 + 7 * (2 + 900 // 60)
        read.clear()
        opened.hkm.path(450), opened.hkm.children(1, path[0])
        assert read == []


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda hkm: hkm.path([1, 900, -3]), r"sample=900 and 1 more should be row numbers of the pool, below 900"),
        (lambda hkm: hkm.path([0.5]), r"sample=0.5 should be row numbers"),
        (lambda hkm: hkm.path(0.5), r"sample=0.5 should be a clustered row"),
        (lambda hkm: hkm.ancestors(2, 12), r"cluster=12 should be between 0 and 11 at level 2"),
        (lambda hkm: hkm.path("5"), r"sample='5' should be a clustered row of the pool, it is not among 900 row num"),
        (lambda hkm: hkm.children(1, [4, 2]), r"cluster=\[4, 2\] should be one number; ask for one cluster at a time"),
        (lambda hkm: hkm.members(2, []), r"cluster=\[\] should be one number"),
        (lambda hkm: hkm.subtree(2, [4, 2]), r"cluster=\[4, 2\] should be one number"),
        (lambda hkm: hkm.nearest_samples(1, [4, 2]), r"cluster=\[4, 2\] should be one number"),
        (lambda hkm: hkm.nearest_samples(1, 4, -3), r"n=-3 should be a whole number >= 0"),
        (lambda hkm: hkm.nearest_samples(1, 4, 1.5), r"n=1.5 should be a whole number >= 0"),
        (lambda hkm: hkm.ancestors("2", 1), r"level='2' should be between 1 and 3"),
        (lambda hkm: hkm.subtree(2, 1, lowest=0), r"level=0 should be between 1 and 3"),
        (lambda hkm: hkm.clusters(4), r"level=4 should be between 1 and 3"),
        (lambda hkm: hkm.nearest([1, 2], 1), r"vector=int64\(2,\) should be numbers of shape \(5,\) or \(n, 5\)"),
        (lambda hkm: hkm.nearest([np.nan] * 5, 1), r"vector=NaN or Inf should be finite"),
        (lambda hkm: hkm.nearest(np.ma.masked_equal([0, 1, 2, 3, 4], 2), 1), "vector: n_masked=1 should be 0"),
        (lambda hkm: hkm.nearest([1e39] * 5, 1), r"vector=1e\+39 should be at most 3.40282e\+38, the largest float32"),
        (lambda hkm: hkm.nearest([1] * 5, 1, k=0), r"k=0 should be a whole number >= 1"),
        (lambda hkm: hkm.nearest([1] * 5, 0), r"level=0 should be between 1 and 3"),
    ],
)
def test_what_cannot_be_asked_is_told(tree: xr.DataTree, ask: Callable[..., object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(tree.hkm)


def test_at_a_glance(tree: xr.DataTree, make_tree: Callable[..., xr.DataTree]) -> None:
    lines = repr(tree.hkm).splitlines()
    assert lines[0] == "Tree of 873 samples, 3 levels"
    assert "  left out  27 samples of the pool" in lines
    for level, k, line in zip((1, 2, 3), (60, 12, 3), lines[-3:], strict=True):
        leaves = tree[f"level_{level}/leaf_sizes"].values
        sizes = f"{leaves.min()} +{int(np.median(leaves))} +{leaves.max()}"
        assert re.fullmatch(rf" +{level} +{k} +{sizes} +[ ▁-█]+  coreset, resampled 1 × \(closest, auto\)", line)
    html = tree.hkm._repr_html_()
    assert ElementTree.fromstring(html).findall(".//svg/rect")
    assert tree.encoding["source"] in html
    estimator = hkm.HierarchicalKMeans.from_tree(tree)
    assert html in estimator._repr_mimebundle_()["text/html"]
    assert html in estimator._repr_html_()
    assert html not in hkm.HierarchicalKMeans()._repr_html_()
    # A tree made by hand has no settings; a cluster without members is none of the smallest.
    assert repr(make_tree([[0, 0, 2], [0, -1, 0]], 1).hkm).splitlines() == [
        "Tree of 3 samples, 2 levels",
        "  path  in memory",
        "",
        "  level  clusters  unused  samples: min  median  max  spread",
        "      1         3       1             1       1    2  █              █",
        "      2         1       0             3       3    3  █",
    ]
