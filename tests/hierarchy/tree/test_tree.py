import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from hkm_dask.config import Config, Level
from hkm_dask.data import layout, store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.pool import open_pool
from hkm_dask.errors import InputError, StoreError
from hkm_dask.hierarchy.assignment import assign
from hkm_dask.hierarchy.build import build_hierarchy
from hkm_dask.hierarchy.sampling.export import write_subset
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from hkm_dask.hierarchy.verify.verify import verify
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.ingestion.update import update

RandomTree = Callable[[int], xr.DataTree]
KS = (12, 5, 3)


def labels_at(tree: xr.DataTree, level: int) -> list[int]:
    """The cluster of every sample at a level, one sample at a time."""
    labels = []
    for label in tree["level_1/labels"].values.tolist():
        for t in range(2, level + 1):
            label = tree[f"level_{t}/labels"].values.tolist()[label] if label >= 0 else -1
        labels.append(label)
    return labels


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree of three levels")
    np.save(folder / "idx.npy", np.arange(10, 150))
    rows = np.random.default_rng(0).normal(size=(160, 3)).astype("f4")
    levels = [Level(n_clusters=k, n_resamples=1) for k in (20, 6, 2)]
    build_hierarchy(rows, folder / "tree.zarr", Config(levels=levels, subset=str(folder / "idx.npy"), seed=5))
    return folder / "tree.zarr"


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_labels_at_every_level(random_tree: RandomTree, seed: int) -> None:
    tree = random_tree(seed)
    assert (tree.hkm.n_levels, tree.hkm.n_clusters) == (3, KS)
    for level in (1, 2, 3):
        labels = tree.hkm.labels(level)
        assert (labels.dims, labels.dtype, labels.attrs) == (("sample",), np.int32, {"missing": -1})
        assert labels.values.tolist() == labels_at(tree, level)


def test_ancestors_of_no_cluster_are_none_and_arrays_are_read_once(random_tree: RandomTree) -> None:
    arrays = TreeArrays(random_tree(0))
    clusters = np.array([-1, *range(KS[0])], np.int32)
    above = arrays.ancestors(clusters)
    assert [len(labels) for labels in above] == [len(clusters)] * 3
    assert [labels[0] for labels in above] == [-1, -1, -1]
    assert above[1][1:].tolist() == arrays.read(2, "labels").tolist()
    assert len(arrays.ancestors(clusters, level=2)) == 2
    assert arrays.read(2, "labels") is arrays.read(2, "labels")


def test_the_path_of_a_sample(random_tree: RandomTree) -> None:
    tree = random_tree(2)
    columns = [labels_at(tree, level) for level in (1, 2, 3)]
    for sample, path in enumerate(zip(*columns, strict=True)):
        if path[0] >= 0:
            assert tree.hkm.path(sample) == path
            assert all(type(cluster) is int for cluster in tree.hkm.path(sample))
        else:
            with pytest.raises(InputError, match=rf"sample={sample} should be .* it was left out of the clustering"):
                tree.hkm.path(sample)
    for sample in (-1, 60):
        with pytest.raises(InputError, match=rf"sample={sample} should be .* is not among 60"):
            tree.hkm.path(sample)


def test_children_come_closest_first(random_tree: RandomTree) -> None:
    tree = random_tree(2)
    for level, k in enumerate(KS, 1):
        node = tree[f"level_{level}"]
        for cluster in range(k):
            own = np.flatnonzero(node["labels"].values == cluster)
            expected = sorted(own.tolist(), key=lambda i: (node["distances"].values[i], i))
            assert tree.hkm.children(level, cluster).tolist() == expected


def test_members_are_the_samples_below(random_tree: RandomTree) -> None:
    tree = random_tree(2)
    for level, k in enumerate(KS, 1):
        labels = np.array(labels_at(tree, level))
        for cluster in range(k):
            members = tree.hkm.members(level, cluster)
            assert sorted(members.tolist()) == np.flatnonzero(labels == cluster).tolist()
            assert len(members) == tree[f"level_{level}/leaf_sizes"].values[cluster]
            expected = tree.hkm.children(1, cluster).tolist() if level == 1 else sorted(members.tolist())
            assert members.tolist() == expected


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 10, 25, 100])
def test_nearest_samples_are_shared_out_over_the_children(random_tree: RandomTree, n: int) -> None:
    tree = random_tree(4)
    for level, k in enumerate(KS, 1):
        for cluster in range(k):
            samples = tree.hkm.nearest_samples(level, cluster, n)
            members = tree.hkm.members(level, cluster)
            assert len(samples) == len(set(samples.tolist())) == min(n, len(members))
            assert np.isin(samples, members).all()
            if level == 1:
                assert samples.tolist() == members[:n].tolist()
                continue
            below = np.array(labels_at(tree, level - 1))
            children = tree.hkm.children(level, cluster)
            shares = [int((below[samples] == child).sum()) for child in children]
            room = [
                size > share
                for size, share in zip(tree[f"level_{level - 1}/leaf_sizes"].values[children], shares, strict=True)
            ]
            # Nobody who could give more gives less than another by two, nor by one than one who is further away.
            for i, (share, able) in enumerate(zip(shares, room, strict=True)):
                assert not able or share >= max([*(s - 1 for s in shares[:i]), *shares[i:], 0])


def test_a_part_of_a_tree_is_not_asked_for_the_whole(built: Path) -> None:
    tree = open_hierarchy(built)
    part = tree.isel(sample=slice(20, 40))
    with pytest.raises(InputError, match=r"shape=\(20,\) of level_1/labels should be \(160,\), as it is stored"):
        part.hkm.path(0)  # row 0 of the pool was left out, the first of these was not
    assert part.hkm.labels(2).values.tolist() == tree.hkm.labels(2)[20:40].values.tolist()
    with pytest.raises(InputError, match="n_levels=0 should be at least 1; ask the whole tree, not a level of it"):
        tree["level_1"].hkm.labels(1)


def test_a_tree_that_grew_since_it_was_opened_is_told(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 3)).astype("f4")
    ingest(rows, tmp_path / "pool.zarr")
    build_hierarchy(tmp_path / "pool.zarr", tmp_path / "tree.zarr", Config.from_flags((6, 2), n_resamples=0))
    opened = open_hierarchy(tmp_path / "tree.zarr")
    update(tmp_path / "tree.zarr", tmp_path / "pool.zarr", rows[:5] + 1)
    with pytest.raises(StoreError, match="replaced"):
        opened.hkm.path(3)


def test_a_pool_is_found_though_the_folder_it_was_named_from_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    rows = np.random.default_rng(0).normal(size=(60, 3)).astype("f4")
    np.save("../rows.npy", rows)
    pool = ingest("../rows.npy", "../pool.zarr")
    build_hierarchy("../pool.zarr", "../tree.zarr", Config.from_flags((6, 2), n_resamples=0))
    assign("../tree.zarr", "../pool.zarr", "../assigned.zarr")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").rmdir()
    tree = open_hierarchy("tree.zarr")
    assert open_pool(tree.attrs["pool"]).n_samples == 60
    assert pool.sources == (str(tmp_path / "rows.npy"),)
    assert verify("assigned.zarr").sound


def test_no_such_level_or_cluster(random_tree: RandomTree) -> None:
    tree = random_tree(0)
    for level in (-1, 0, 4):
        for ask in (tree.hkm.labels, lambda t: tree.hkm.children(t, 0), lambda t: tree.hkm.members(t, 0)):
            with pytest.raises(InputError, match=rf"level={level} should be between 1 and 3"):
                ask(level)
    for ask in (tree.hkm.children, tree.hkm.members, tree.hkm.nearest_samples):
        for cluster in (-1, 5):
            with pytest.raises(InputError, match=rf"cluster={cluster} should be between 0 and 4 at level 2"):
                ask(2, cluster)


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_plain_xarray_opens_it_without_a_warning(built: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(built, engine="zarr", chunks={})
        assert list(tree.children) == ["level_1", "level_2", "level_3"]
        # One dimension name per level, so that labels index the level above.
        first = tree["level_1/labels"].values
        up = tree["level_2/labels"].isel(cluster_1=tree["level_1/labels"].where(tree["level_1/labels"] >= 0, 0))
        assert up.values[first >= 0].tolist() == open_hierarchy(built).hkm.labels(2).values[first >= 0].tolist()
    assert tree["level_1/labels"].chunks is not None
    assert tree["level_1/labels"].attrs["missing"] == -1
    assert {name: tuple(map(str, var.dims)) for name, var in tree["level_2"].data_vars.items()} == {
        "labels": ("cluster_1",),
        "distances": ("cluster_1",),
        "centroids": ("cluster_2", "feature"),
        "sizes": ("cluster_2",),
        "leaf_sizes": ("cluster_2",),
        "members_2": ("member_2",),
        "indptr_2": ("cluster_2_bound",),
        "inertia": ("step", "iteration"),
    }
    dtypes = {str(name): str(var.dtype) for name, var in tree["level_1"].data_vars.items()}
    assert dtypes == {
        **{"labels": "int32", "distances": "float32", "centroids": "float32", "inertia": "float64"},
        **dict.fromkeys(["sizes", "leaf_sizes", "members_1", "indptr_1"], "int64"),
    }


def test_a_tree_says_what_it_was_made_from(built: Path) -> None:
    tree = open_hierarchy(built)
    attributes = tree.attrs
    assert (attributes["format"], attributes["format_version"], attributes["complete"]) == ("hkm_dask.tree", 2, True)
    assert (attributes["seed"], attributes["metric"], attributes["pool"]) == (5, "l2", "")
    assert len(attributes["pool_fingerprint"]) == len(attributes["subset_fingerprint"]) == 64
    assert attributes["software"].startswith("hkm_dask ")
    seconds = [tree[f"level_{t}"].attrs["seconds"] for t in (1, 2, 3)]
    assert attributes["seconds"] == pytest.approx(sum(seconds), abs=1e-3)
    config = Config.from_json(tree.attrs["config"])
    assert (config.seed, [level.n_clusters for level in config.levels]) == (5, [20, 6, 2])


def test_nothing_is_left_beside_a_finished_tree(built: Path) -> None:
    assert sorted(path.name for path in built.parent.iterdir()) == ["idx.npy", "tree.zarr"]
    assert not list(built.rglob("*.partial"))


@pytest.mark.faults
@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"complete": False}, r"is not complete; make it again from its pool with `hkm cluster --restart`"),
        ({"format_version": 1}, r"format_version=1 should be 2 .*; make it again"),
        ({"format_version": 3}, r"format_version=3 should be 2 .*; read it with a newer hkm_dask"),
        ({"format": layout.POOL_FORMAT}, "is a pool, but should be a tree; `hkm cluster` makes trees"),
        ({"format": None}, "has no format attribute"),
    ],
)
def test_no_tree_is_opened_that_is_none(
    tmp_path: Path, built: Path, attributes: dict[str, object], message: str
) -> None:
    copy = Path(shutil.copytree(built, tmp_path / "copy.zarr"))
    store.create_group(copy, attributes)
    with pytest.raises(StoreError, match=message):
        open_hierarchy(copy)


def test_a_slip_of_the_pen_is_told_what_may_be_meant(tmp_path: Path, built: Path) -> None:
    shutil.copytree(built, tmp_path / "photos.zarr")
    for name in ("photos.zar", "fotos.zarr"):
        with pytest.raises(StoreError, match=f"{name} is missing; did you mean photos.zarr\\? If not, make it with"):
            open_hierarchy(tmp_path / name)
    with pytest.raises(StoreError, match=r"photos.zar is missing; make it with `hkm ingest`"):  # that one is a tree
        open_pool(tmp_path / "photos.zar")


def test_what_is_missing_is_told_apart_from_what_is_unfinished(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"t.zarr is missing; make it with `hkm cluster`"):
        open_hierarchy(tmp_path / "t.zarr")
    (tmp_path / "t.zarr.wip").mkdir()
    with pytest.raises(StoreError, match=r"t.zarr is missing; t.zarr.wip is unfinished, run the same `hkm cluster`"):
        open_hierarchy(tmp_path / "t.zarr")
    (tmp_path / "t.zarr").mkdir()
    with pytest.raises(StoreError, match="is not a Zarr group"):
        open_hierarchy(tmp_path / "t.zarr")


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_a_damaged_chunk_of_the_tree_is_no_answer(tmp_path: Path, built: Path, damage: str) -> None:
    copy = Path(shutil.copytree(built, tmp_path / "copy.zarr"))
    chunk = copy / "level_1" / "labels" / "c" / "0"
    content = bytearray(chunk.read_bytes())
    if damage == "missing":
        chunk.unlink()
    elif damage == "short":
        chunk.write_bytes(content[:-8])
    else:
        content[20] ^= 1
        chunk.write_bytes(content)
    with pytest.raises(StoreError, match=r"level_1/labels: chunk 0 .*hkm cluster --restart"):
        open_hierarchy(copy).hkm.path(20)


@pytest.mark.faults
@pytest.mark.parametrize(
    "odd", [{"node_type": ["array"]}, {"shape": [[3]]}, {"codecs": None}, {"data_type": "\x1b[2J"}]
)
def test_metadata_that_no_reader_understands_is_damage(tmp_path: Path, odd: dict) -> None:
    root = tmp_path / "a.zarr"
    store.create_group(root, {"format": layout.TREE_FORMAT, "format_version": layout.FORMAT_VERSION})
    store.create_group(root / "level_1")
    store.create_array(root / "level_1", "sizes", shape=(3,), dtype="i8", chunks=(3,), dims=("cluster_1",))
    open_array(root / "level_1" / "sizes").write(0, np.arange(3))
    store.mark_complete(root)
    array, group = (json.loads((folder / "zarr.json").read_text()) for folder in (root / "level_1" / "sizes", root))
    copies = group["consolidated_metadata"]["metadata"]
    copies["level_1/sizes"] = {**array, **odd}
    (root / "level_1" / "sizes" / "zarr.json").write_text(json.dumps(copies["level_1/sizes"]))
    group["attributes"]["digest"] = layout.metadata_digest(group["attributes"], copies)
    (root / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(StoreError, match=r"a.zarr is damaged \(.*\); make it again from its pool"):
        open_hierarchy(root)


def test_the_pool_of_a_tree_is_found_where_both_were_moved(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    pool = ingest(np.eye(8), before / "pool.zarr", ids=list("abcdefgh"))
    build_hierarchy(pool, before / "tree.zarr", Config.from_flags((4, 2), n_resamples=0))
    before.rename(after)
    tree = open_hierarchy(after / "tree.zarr")
    assert tree.attrs["pool"] == str(after / "pool.zarr")
    write_subset(after / "draw.txt", np.array([1, 3]), tree)
    assert (after / "draw.txt").read_text() == "b\nd\n"
    # Where it was again, that is its place; another pool beside the tree is not taken for it.
    shutil.copytree(after, before)
    assert open_hierarchy(after / "tree.zarr").attrs["pool"] == str(before / "pool.zarr")
    shutil.rmtree(before)
    ingest(np.eye(8)[::-1], after / "pool.zarr", overwrite=True)
    assert open_hierarchy(after / "tree.zarr").attrs["pool"] == str(before / "pool.zarr")


def test_the_place_of_a_pool_under_another_name_is_told(tmp_path: Path) -> None:
    pool = ingest(np.eye(8), tmp_path / "pool.zarr", ids=list("abcdefgh"))
    build_hierarchy(pool, tmp_path / "tree.zarr", Config.from_flags((4, 2), n_resamples=0))
    (tmp_path / "pool.zarr").rename(tmp_path / "moved.zarr")
    with pytest.raises(StoreError, match=r"pool.zarr is missing; .*pool \(--pool\) says where it is now"):
        write_subset(tmp_path / "draw.txt", np.array([1, 3]), tmp_path / "tree.zarr")
    tree = open_hierarchy(tmp_path / "tree.zarr", pool=tmp_path / "moved.zarr")
    write_subset(tmp_path / "draw.txt", np.array([1, 3]), tree)
    assert (tmp_path / "draw.txt").read_text() == "b\nd\n"
    ingest(np.eye(8)[::-1], tmp_path / "other.zarr")
    other = open_hierarchy(tmp_path / "tree.zarr", pool=tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="should be the one the tree was built from, but its content differs"):
        write_subset(tmp_path / "more.txt", np.array([1, 3]), other)
