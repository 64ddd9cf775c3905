import contextlib
import itertools
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hkm_dask as hkm
from hkm_dask.data import store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.verify import MAX_LINES, Verification
from hkm_dask.errors import InputError, StoreError
from hkm_dask.hierarchy.verify import members as verify_members
from tests.hierarchy.altered import Change, edit_json, rewrite, seal, set_attributes

N, D = 240, 3
K = (20, 6)


def rows(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 6, (N, 1)) * 4 + rng.normal(size=(N, D))).astype("f4")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool of several chunks and a tree of two levels; the pool has ids."""
    folder = tmp_path_factory.mktemp("stores")
    hkm.ingest(rows(), folder / "pool.zarr", ids=np.arange(N) * 7, chunk_mb=50 * D * 4 / 2**20)
    config = hkm.Config.from_flags(K, n_resamples=(0, 2))
    hkm.build_hierarchy(folder / "pool.zarr", folder / "tree.zarr", config)
    return folder


@pytest.fixture
def tree(stores: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stores / "tree.zarr", tmp_path / "tree.zarr"))


@pytest.fixture
def pool(stores: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stores / "pool.zarr", tmp_path / "pool.zarr"))


def lines(found: Verification) -> list[str]:
    return [f"{problem.where or 'store'}: {problem.what}" for problem in found.problems]


def verify_rewritten(store: Path, name: str, change: Change, expected: str) -> Verification:
    """Change an array and all that is derived of its bytes: only what the values say is wrong."""
    rewrite(store, name, change)
    found = hkm.verify(store)
    assert any(expected in line for line in lines(found)), str(found)
    assert not [line for line in lines(found) if "checksum" in line or "zarr.json" in line]
    return found


# --- sound stores -----------------------------------------------------------------------------------------------------

LEVELS = [hkm.Level(n_clusters=k, n_resamples=1) for k in K]
SOUND = {
    "two levels": hkm.Config(levels=LEVELS),
    "one level": hkm.Config(levels=LEVELS[:1]),
    "one cluster": hkm.Config(levels=[hkm.Level(n_clusters=1)]),
    "as many clusters as rows": hkm.Config(levels=[hkm.Level(n_clusters=N, n_resamples=0)]),
    "cosine": hkm.Config(levels=LEVELS, metric="cosine"),
    "splits": hkm.Config(levels=[hkm.Level(n_clusters=8, n_splits=3, n_resamples=1), LEVELS[1]]),
    "random": hkm.Config(levels=[hkm.Level(n_clusters=20, init="random", resample_strategy="random")]),
}


@pytest.mark.parametrize("subset", [False, True], ids=["all", "subset"])
@pytest.mark.parametrize("config", SOUND.values(), ids=SOUND)
def test_what_is_built_is_sound(stores: Path, tmp_path: Path, config: hkm.Config, subset: bool) -> None:
    if subset:
        np.save(tmp_path / "idx.npy", np.arange(60, N, 1 + (config.levels[0].n_clusters < 100)))
        if config.levels[0].n_clusters == N:
            config = hkm.Config(levels=[hkm.Level(n_clusters=N - 60, n_resamples=0)])
        config = config.model_copy(update={"subset": str(tmp_path / "idx.npy")})
    hkm.build_hierarchy(stores / "pool.zarr", tmp_path / "tree.zarr", config)
    found = hkm.verify(tmp_path / "tree.zarr")
    assert found.sound, str(found)
    assert found.notes == []
    assert {"metadata", "chunks", "measured", *(f"level {t + 1}" for t in range(len(config.levels)))} == {*found.checks}


def test_a_tree_with_unused_clusters_is_sound(tmp_path: Path) -> None:
    few = np.repeat(rows()[:12], 20, axis=0)
    config = hkm.Config(levels=[hkm.Level(n_clusters=30), hkm.Level(n_clusters=10)])
    hkm.build_hierarchy(few, tmp_path / "tree.zarr", config)
    found = hkm.verify(tmp_path / "tree.zarr")
    assert found.sound, str(found)
    assert "12 of 30 clusters of level 1" in found.checks["level 2"]
    assert found.notes == ["it was made from an array, not a pool: no samples were recomputed"]


@pytest.mark.parametrize("scale", [1e-22, 1e-24])
def test_a_tree_of_distances_that_float32_does_not_hold_is_sound(tmp_path: Path, scale: float) -> None:
    hkm.ingest(rows() * scale, tmp_path / "pool.zarr")
    config = hkm.Config.from_flags(K, n_resamples=0)
    hkm.build_hierarchy(tmp_path / "pool.zarr", tmp_path / "tree.zarr", config)
    assert (hkm.open_hierarchy(tmp_path / "tree.zarr")["level_1/distances"] < 1e-41).all()
    found = hkm.verify(tmp_path / "tree.zarr")
    assert found.sound, str(found)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("ids", [None, np.arange(N), np.array([f"é {i}" for i in range(N)])], ids=["-", "int", "str"])
def test_what_is_ingested_is_sound(tmp_path: Path, dtype: str, ids: np.ndarray | None) -> None:
    x = rows()
    x[[3, 90]] = 0
    hkm.ingest(x, tmp_path / "pool.zarr", ids=ids, dtype=dtype, chunk_mb=0.001)
    found = hkm.verify(tmp_path / "pool.zarr")
    assert found.sound, str(found)
    assert ("ids" in found.checks) == (ids is not None)
    assert "2 zero rows" in found.checks["values"]


# --- trees broken in exactly one way ----------------------------------------------------------------------------------


def put(index: object, value: object) -> Change:
    def change(values: np.ndarray) -> None:
        values[index] = value

    return change


def add(index: object, value: float) -> Change:
    def change(values: np.ndarray) -> None:
        values[index] += values.dtype.type(value)

    return change


def swap(a: int, b: int) -> Change:
    def change(values: np.ndarray) -> None:
        values[[a, b]] = values[[b, a]]

    return change


BROKEN_TREES: dict[str, tuple[str, Change, str]] = {
    "a label too large": (
        "level_1/labels",
        put(60, 20),
        "labels: chunk 1 (rows 50:100): labels should be from -1 to 19; not so in row 60",
    ),
    "a label too small": ("level_1/labels", put([60, 61], -2), "labels should be from -1 to 19; not so in rows 60, 61"),
    "a row left out": (
        "level_1/labels",
        put(7, -1),
        "chunk 0 (rows 0:50): rows should have a label, as there is no subset; not so in row 7",
    ),
    "a label of another cluster": ("level_1/labels", lambda v: put(7, (v[7] + 1) % 20)(v), "labels: row 7: label"),
    "a label that is counted elsewhere": (
        "level_1/labels",
        lambda v: put(7, (v[7] + 1) % 20)(v),
        ", by the labels; 2 clusters differ",
    ),
    "a cluster left out above": (
        "level_2/labels",
        put(3, -1),
        "rows should have a label where the cluster below has members, else none; not so in row 3",
    ),
    "a negative distance": (
        "level_1/distances",
        put(7, -1),
        "distances: chunk 0 (rows 0:50): distances should be finite, and not negative; not so in row 7",
    ),
    "a distance of NaN": (
        "level_1/distances",
        put(7, np.nan),
        "distances should be finite, and not negative; not so in row 7",
    ),
    "an infinite distance": (
        "level_2/distances",
        put(7, np.inf),
        "level_2/distances: chunk 0 (rows 0:20): distances should be finite",
    ),
    "a wrong distance": ("level_1/distances", lambda v: put(7, v[7] * 1.001)(v), "level_1/distances: row 7: "),
    "a wrong distance above": ("level_2/distances", lambda v: put(7, v[7] * 1.001)(v), "level_2/distances: row 7: "),
    "a centroid moved": ("level_1/centroids", add((4, 0), 30), "the squared distance to centroid 4"),
    "a centroid of NaN": (
        "level_1/centroids",
        put(4, np.nan),
        "centroids should be finite, or NaN throughout for clusters without members; not so in cluster 4",
    ),
    "half a centroid": (
        "level_2/centroids",
        put((4, 1), np.inf),
        "level_2/centroids: chunk 0 (rows 0:6): centroids should be finite",
    ),
    "a size": ("level_1/sizes", add(3, 1), "level_1/sizes: "),
    "leaf sizes of level 1": ("level_1/leaf_sizes", add(3, 1), "by the sizes, which are the same at level 1"),
    "leaf sizes above": ("level_2/leaf_sizes", add(3, 1), "at cluster 3, by the labels and the level below"),
    "bounds that fall": (
        "level_1/indptr_1",
        put(5, 0),
        "bounds should rise from 0 to 240, the number of members; they go from 0 to 240 and fall at cluster 4",
    ),
    "bounds that end early": ("level_1/indptr_1", add(-1, -1), "they go from 0 to 239"),
    "bounds moved": ("level_1/indptr_1", add(5, 1), "by the bounds of the members; 2 clusters differ"),
    "members swapped": (
        "level_1/members_1",
        swap(0, 1),
        "members should come after the one before, by distance, then by row, and none twice; not so in position 1",
    ),
    "a member twice": ("level_1/members_1", lambda v: put(1, v[0])(v), "none twice; not so in position 1"),
    "a member of another cluster": (
        "level_1/members_1",
        swap(0, 239),
        "members should have the label of the cluster that lists them; not so in positions 0, 239",
    ),
    "a member that is no row": (
        "level_2/members_2",
        put(3, 20),
        "members should be row numbers below 20; not so in position 3",
    ),
    "an inertia that rises": (
        "level_2/inertia",
        lambda v: put((1, 1), v[1, 0] * 1.01)(v),
        "step 1 should not rise; it rises from ",
    ),
    "an inertia of NaN": (
        "level_2/inertia",
        put((1, 0), np.nan),
        "inertia: step 1 should have numbers >= 0, then only NaN",
    ),
    "a negative inertia": ("level_2/inertia", put((0, 0), -1), "inertia: step 0 should have numbers >= 0"),
    "an inertia below the distances": (
        "level_1/inertia",
        lambda v: v * 0.9,
        "inertia: the last should not be below the sum of the distances",
    ),
    "too many iterations": (
        "level_1/inertia",
        lambda v: np.append(v, np.full((1, 60), np.nan), axis=1),
        "iterations should be at most max_iter=50",
    ),
    "another type": (
        "level_1/sizes",
        lambda v: v.astype("i4"),
        "sizes: int32 of shape (20,) should be int64 of shape (20)",
    ),
    "too few labels": (
        "level_2/labels",
        lambda v: v[:-1].copy(),
        "labels: int32 of shape (19,) should be int32 of shape (20)",
    ),
    "too many clusters": (
        "level_1/centroids",
        lambda v: np.append(v, v[:1], axis=0),
        "centroids: float32 of shape (21, 3) should be float32 of shape (20, any)",
    ),
    "another width": (
        "level_2/centroids",
        lambda v: v[:, :2].copy(),
        "centroids: float32 of shape (6, 2) should be float32 of shape (6, 3)",
    ),
    "labels and distances": (
        "level_1/distances",
        lambda v: v[:-1].copy(),
        "distances: float32 of shape (239,) should be float32 of shape (240)",
    ),
}


@pytest.mark.parametrize(("name", "change", "expected"), BROKEN_TREES.values(), ids=BROKEN_TREES)
def test_a_tree_that_is_broken_is_found_out(tree: Path, name: str, change: Change, expected: str) -> None:
    found = verify_rewritten(tree, name, change, expected)
    assert all(problem.remedy for problem in found.problems)
    assert expected in str(found)


def test_an_altered_tree_made_right_again_is_sound(tree: Path) -> None:
    rewrite(tree, "level_1/members_1", lambda values: None, chunk_rows=17)
    rewrite(tree, "level_1/centroids", lambda values: None, chunk_rows=3)
    assert hkm.verify(tree).sound


def test_clusters_above_are_numbered_by_the_rows_of_the_subset(stores: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "idx.npy", np.arange(100))
    config = hkm.Config(levels=[hkm.Level(n_clusters=5, n_resamples=0)], subset=str(tmp_path / "idx.npy"))
    hkm.build_hierarchy(stores / "pool.zarr", tmp_path / "tree.zarr", config)

    def exchange(values: np.ndarray) -> None:
        values[[7, 200]] = values[[200, 7]]

    rewrite(tmp_path / "tree.zarr", "level_1/labels", exchange)
    rewrite(tmp_path / "tree.zarr", "level_1/distances", exchange)
    found = lines(hkm.verify(tmp_path / "tree.zarr"))
    assert "level_1/labels: the rows with a label should be those of the subset, but differ" in found
    rewrite(tmp_path / "tree.zarr", "level_1/distances", put(150, 1.0))
    found = lines(hkm.verify(tmp_path / "tree.zarr"))
    assert any("distances should be NaN for rows without a label; not so in row 150" in line for line in found)


def test_all_parts_are_looked_at_where_rows_were_given_the_nearest_of_all(tmp_path: Path) -> None:
    """Only those of a row's own cluster were: a label of another one's part was found to be sound."""
    config = hkm.Config(levels=[hkm.Level(n_clusters=6, n_splits=3, n_resamples=0)], fit_sample=100)
    pool = hkm.ingest(rows(), tmp_path / "pool.zarr")
    tree = hkm.build_hierarchy(pool, tmp_path / "tree.zarr", config)
    label = int(tree["level_1/labels"][0])

    def change(labels: np.ndarray) -> None:
        labels[0] = (label + 3) % 18

    expected = f"level_1/labels: row 0: label {(label + 3) % 18} should be {label}, of the nearest centroid"
    verify_rewritten(tmp_path / "tree.zarr", "level_1/labels", change, expected)


def test_the_nearest_centroid_wins_with_the_lowest_number(tmp_path: Path) -> None:
    x = np.float32([[0, 0], [2, 0], [4, 0], [9, 9]])
    hkm.ingest(x, tmp_path / "pool.zarr")
    config = hkm.Config(levels=[hkm.Level(n_clusters=3, n_resamples=0)])
    hkm.build_hierarchy(tmp_path / "pool.zarr", tmp_path / "tree.zarr", config)
    centroids = np.float32([[0, 0], [4, 0], [9, 9]])
    labels, distances = np.int32([0, 1, 1, 2]), np.float32([0, 4, 0, 0])
    for name, values in {
        "centroids": centroids, "labels": labels, "distances": distances, "sizes": np.array([1, 2, 1]),
        "leaf_sizes": np.array([1, 2, 1]), "members_1": np.array([0, 2, 1, 3]), "indptr_1": np.array([0, 1, 3, 4]),
        "inertia": np.array([[9.0]]),
    }.items():  # fmt: skip
        rewrite(tmp_path / "tree.zarr", f"level_1/{name}", lambda _, values=values: values)
    (line,) = lines(hkm.verify(tmp_path / "tree.zarr"))
    assert line == ("level_1/labels: row 1: label 1 should be 0, of the nearest centroid, which is 4 away, its own 4")


@pytest.mark.parametrize("chunk_rows", [7, 240])
def test_members_are_looked_up_by_ranges_of_clusters(
    tree: Path, monkeypatch: pytest.MonkeyPatch, chunk_rows: int
) -> None:
    monkeypatch.setattr(verify_members, "_ROWS_AT_ONCE", 40)
    rewrite(tree, "level_1/members_1", lambda values: None, chunk_rows=chunk_rows)
    assert hkm.verify(tree).sound
    rewrite(tree, "level_1/members_1", swap(0, 239))
    found = lines(hkm.verify(tree))
    assert any("position 0" in line for line in found)
    assert any("position 239" in line or "positions 0, 239" in line for line in found)


def test_neighbors_in_two_chunks_are_compared(tree: Path) -> None:
    bounds = open_array(tree / "level_1/indptr_1").read(0, K[0] + 1)
    at = next(int(first) + 1 for first, last in itertools.pairwise(bounds) if last - first > 1 and first > 20)
    rewrite(tree, "level_1/members_1", swap(at - 1, at), chunk_rows=at)
    (line,) = [line for line in lines(hkm.verify(tree)) if "members_1" in line]
    assert f"chunk 1 (rows {at}:{min(2 * at, N)}): members should come after the one before" in line


ATTRIBUTES: dict[str, tuple[dict[str, object], str]] = {
    "seed": ({"seed": 5}, "store: seed=5 should be 0, as in its config"),
    "metric": ({"metric": "cosine"}, "store: metric=cosine should be l2, as in its config"),
    "config": ({"config": "{}"}, "store: config cannot be read: levels"),
    "no config": ({"config": None}, "store: config cannot be read: config="),
    "pool": ({"pool_fingerprint": "0" * 64}, "pool.zarr should be the pool it was made from, its content differs"),
    "subset": ({"subset_fingerprint": "0" * 64}, "should be those of the subset, but differ"),
    "marker": ({"format_version": 99}, "store: format_version=99 should be "),
}


@pytest.mark.parametrize(("attributes", "expected"), ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_attributes_of_a_tree(tree: Path, attributes: dict[str, object], expected: str) -> None:
    set_attributes(tree, **attributes)
    assert any(expected in line for line in lines(hkm.verify(tree))), lines(hkm.verify(tree))


def test_a_store_of_a_newer_version_is_not_to_be_made_again(tree: Path) -> None:
    set_attributes(tree, format_version=99)
    (problem,) = hkm.verify(tree).problems
    assert problem.remedy == "read it with a newer hkm_dask"


def test_levels_that_do_not_follow(tree: Path) -> None:
    shutil.copytree(tree / "level_2", tree / "level_3")
    set_attributes(tree)
    found = lines(hkm.verify(tree))
    assert "level_3: should not be there: its config has 2 levels" in found
    shutil.rmtree(tree / "level_3")
    shutil.rmtree(tree / "level_2" / "sizes")
    seal(tree, ["level_2"])
    assert "level_2/sizes: cannot be read: it is missing, or its metadata are damaged" in lines(hkm.verify(tree))
    shutil.rmtree(tree / "level_1")
    seal(tree)
    assert "level_1: should be marked as complete, and as level 1" in lines(hkm.verify(tree))


# --- pools broken in exactly one way ----------------------------------------------------------------------------------

BROKEN_POOLS: dict[str, tuple[str, Change, str]] = {
    "NaN": (
        "embeddings",
        put((60, 1), np.nan),
        "embeddings: chunk 1 (rows 50:100): values should be finite, without NaN and Inf; not so in row 60",
    ),
    "Inf": ("embeddings", put((slice(0, 9), 0), -np.inf), "not so in 9 rows, 0, 1, 2, 3, 4, …"),
    "a value": ("embeddings", put((60, 1), 1e4), "store: max_abs="),
    "a row of zeros": ("embeddings", put(60, 0), "store: n_zero_rows=0 should be 1, by the embeddings"),
    "a sum": ("embeddings", add((60, 1), 0.01), "mean: is not the mean of the embeddings: "),
    "the mean": ("mean", add(1, 0.001), "at feature 1, 1 features differ"),
    "the length of the mean": (
        "mean",
        lambda v: v[:2].copy(),
        "mean: should be present, with 3 numbers, one per feature",
    ),
    "an id twice": ("ids", put(200, 14), "ids: id 14 should come once, it comes 2 times: rows 2, 200"),
    "too few ids": ("ids", lambda v: v[:-1].copy(), "ids: shape=(239,) should be (240,), one value per row"),
    "another type": ("embeddings", lambda v: v.astype("f8"), "embeddings: float64 of shape (240, 3) should be float16"),
    "one axis": ("embeddings", lambda v: v[:, 0].copy(), "embeddings: float32 of shape (240,) should be float16"),
}


@pytest.mark.parametrize(("name", "change", "expected"), BROKEN_POOLS.values(), ids=BROKEN_POOLS)
def test_a_pool_that_is_broken_is_found_out(pool: Path, name: str, change: Change, expected: str) -> None:
    verify_rewritten(pool, name, change, expected)


POOL_ATTRIBUTES: dict[str, tuple[dict[str, object], str]] = {
    "fingerprint": ({"fingerprint": "0" * 64}, f"store: fingerprint={'0' * 64} should be "),
    "max_abs": ({"max_abs": 1e-6}, "store: max_abs=1e-06 should be "),
    "n_zero_rows": ({"n_zero_rows": 1}, "store: n_zero_rows=1 should be 0"),
    "a column": ({"columns": ["place"]}, "place: is missing, though the pool's attributes name it"),
    "max_abs of text": ({"max_abs": "much"}, "store: max_abs=much should be "),
}


@pytest.mark.parametrize(("attributes", "expected"), POOL_ATTRIBUTES.values(), ids=POOL_ATTRIBUTES)
def test_attributes_of_a_pool(pool: Path, attributes: dict[str, object], expected: str) -> None:
    set_attributes(pool, **attributes)
    assert any(line.startswith(expected) for line in lines(hkm.verify(pool))), lines(hkm.verify(pool))


def test_what_a_store_says_reaches_no_terminal_as_it_is(tree: Path) -> None:
    set_attributes(tree, seed="\x1b[31m", pool="\x1b[2J")
    shutil.copytree(tree / "level_2", tree / "level_\x1b[2J")
    set_attributes(tree)
    assert "\x1b" not in str(hkm.verify(tree))


def test_a_chunk_of_another_pool_is_found_and_so_is_all_of_another(pool: Path, tmp_path: Path) -> None:
    hkm.ingest(rows(seed=1), tmp_path / "other.zarr", chunk_mb=50 * D * 4 / 2**20)
    shutil.copy(tmp_path / "other.zarr/embeddings/c/1/0", pool / "embeddings/c/1/0")
    assert lines(hkm.verify(pool)) == ["embeddings: chunk 1 (rows 50:100) is not the chunk that was written here"]
    shutil.rmtree(pool / "embeddings")
    shutil.copytree(tmp_path / "other.zarr/embeddings", pool / "embeddings")
    found = lines(hkm.verify(pool))
    assert "embeddings: its zarr.json and the copy in the store's zarr.json differ; one was altered" in found


def test_ids_of_text_that_come_twice_are_named_and_cut(tmp_path: Path) -> None:
    ids = np.array([f"id {i}" for i in range(N)], dtype=object)
    ids[100:130] = ids[:30]
    ids[200] = ids[201] = "\x1b[31m" + "x" * 500
    hkm.ingest(rows(), tmp_path / "pool.zarr", ids=[f"id {i}" for i in range(N)])
    rewrite(tmp_path / "pool.zarr", "ids", lambda values: ids)
    found = hkm.verify(tmp_path / "pool.zarr")
    assert lines(found)[0] == "ids: 31 ids should come once, they come more often"
    assert len(lines(found)) == 1 + MAX_LINES
    assert "\x1b" not in str(found)
    assert {problem.remedy for problem in found.problems} == {"give every row a unique id, and make the pool again"}


def test_ids_are_compared_in_turns(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hkm_dask.data.verify_pool._IDS_AT_ONCE", 50)
    assert hkm.verify(pool).checks["ids"] == "240, none twice"
    rewrite(pool, "ids", put([200, 100], [14, 21]))
    assert len(lines(hkm.verify(pool))) == 2


# --- files missing, cut and altered -----------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def resize(metadata: dict) -> None:
    metadata["shape"] = [21]


DIFFER = "level_1/sizes: its zarr.json and the copy in {} differ; one was altered"


def exchange(one: Path, other: Path) -> None:
    """Put two files into each other's places."""
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def drop_digest(metadata: dict) -> None:
    del metadata["attributes"]["digest"]


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda t: (t / "level_1/labels/c/2").unlink(), "level_1/labels: chunk 2 (rows 100:150) is missing"),
    "cut": (
        lambda t: (t / "level_1/labels/c/2").write_bytes(b"abc"),
        "chunk 2 (rows 100:150) has 3 bytes instead of 204",
    ),
    "altered": (
        lambda t: flip(t / "level_2/members_2/c/0", 9),
        "level_2/members_2: chunk 0 (rows 0:20) was altered on disk: its checksum does not match",
    ),
    "no zarr.json": (
        lambda t: (t / "level_1/sizes/zarr.json").unlink(),
        "level_1/sizes: its zarr.json is missing or damaged, though the store's zarr.json lists it",
    ),
    "no JSON": (
        lambda t: (t / "level_1/sizes/zarr.json").write_text("{"),
        "level_1/sizes: its zarr.json is damaged",
    ),
    "other metadata": (
        lambda t: edit_json(t / "level_1/sizes/zarr.json", resize),
        DIFFER.format("the store's zarr.json"),
    ),
    "another copy": (
        lambda t: edit_json(t / "level_1/zarr.json", lambda m: resize(m["consolidated_metadata"]["metadata"]["sizes"])),
        DIFFER.format("level_1/zarr.json"),
    ),
    "not listed": (
        lambda t: shutil.copytree(t / "level_1/sizes", t / "level_1/more"),
        "level_1/more: the store's zarr.json does not list it; it was altered, or this was added",
    ),
    "a pipe for a chunk": (lambda t: pipe(t / "level_1/labels/c/2"), "labels/c/2 failed: it is a pipe, not a file"),
    "a folder for a chunk": (lambda t: folder(t / "level_1/labels/c/2"), "labels/c/2 failed: Is a directory"),
    "a pipe for a list of checksums": (
        lambda t: pipe(t / "level_1/labels/checksums"),
        "level_1/labels: its list of checksums is missing or altered, its chunks may be of another",
    ),
    "a pipe for metadata": (lambda t: pipe(t / "level_1/labels/zarr.json"), "level_1/labels: its zarr.json is damaged"),
    "two chunks swapped": (
        lambda t: exchange(t / "level_1/labels/c/2", t / "level_1/labels/c/1"),
        "level_1/labels: chunk 2 (rows 100:150) is not the chunk that was written here",
    ),
    "a chunk of another array": (
        lambda t: shutil.copy(t / "level_2/sizes/c/0", t / "level_2/leaf_sizes/c/0"),
        "level_2/leaf_sizes: chunk 0 (rows 0:6) is not the chunk that was written here",
    ),
    "a list of checksums missing": (
        lambda t: (t / "level_1/labels/checksums").unlink(),
        "level_1/labels: its list of checksums is missing or altered, its chunks may be of another",
    ),
    "a list of checksums altered": (
        lambda t: flip(t / "level_1/labels/checksums", 5),
        "level_1/labels: its list of checksums is missing or altered, its chunks may be of another",
    ),
    "a list of checksums of another array": (
        lambda t: exchange(t / "level_1/labels/checksums", t / "level_1/distances/checksums"),
        "level_1/distances: its list of checksums is missing or altered, its chunks may be of another",
    ),
    "attributes altered": (
        lambda t: edit_json(t / "zarr.json", lambda m: m["attributes"].update(software="other")),
        "store: the store's zarr.json was altered since it was completed",
    ),
    "attributes of a level altered": (
        lambda t: edit_json(t / "level_2/zarr.json", lambda m: m["attributes"].update(seconds=0)),
        "level_2: level_2/zarr.json was altered since it was completed",
    ),
    "no digest": (
        lambda t: edit_json(t / "zarr.json", drop_digest),
        "store: the store's zarr.json was altered since it was completed",
    ),
    "not complete": (
        lambda t: edit_json(t / "zarr.json", lambda m: m["attributes"].pop("complete")),
        "store: is not complete",
    ),
}


@pytest.mark.parametrize(("damage", "expected"), FILES.values(), ids=FILES)
def test_files_that_are_damaged(tree: Path, damage: Callable[[Path], object], expected: str) -> None:
    damage(tree)
    assert any(expected in line for line in lines(hkm.verify(tree))), lines(hkm.verify(tree))


def test_what_is_compared_with_nothing_is_read(pool: Path, tree: Path) -> None:
    shutil.rmtree(tree / "level_1" / "sizes")
    flip(tree / "level_2/members_2/c/0", 9)
    assert "level_2/members_2: chunk 0 (rows 0:20) was altered on disk: its checksum does not match" in lines(
        hkm.verify(tree)
    )
    store.create_array(pool, "place", shape=(N,), dtype="f8", chunks=(N,), dims=("sample",))
    open_array(pool / "place").write(0, np.zeros(N))
    set_attributes(pool, columns=["place"])
    found = hkm.verify(pool)
    assert (found.sound, found.checks["columns"]) == (True, "place")
    flip(pool / "place/c/0", 9)
    (line,) = lines(hkm.verify(pool))
    assert line == "place: chunk 0 (rows 0:240) was altered on disk: its checksum does not match"


def test_it_goes_on_after_a_problem_and_stops_telling_at_some_twenty(tmp_path: Path) -> None:
    hkm.ingest(rows(), tmp_path / "pool.zarr", chunk_mb=5 * D * 4 / 2**20)
    for i in range(30):
        flip(tmp_path / f"pool.zarr/embeddings/c/{i}/0", 3)
    (tmp_path / "pool.zarr/mean/c/0").unlink()
    found = hkm.verify(tmp_path / "pool.zarr")
    assert found.n_problems == 31
    assert len(lines(found)) == MAX_LINES + 2
    assert "embeddings: 10 more like these" in lines(found)
    assert "mean: chunk 0 (rows 0:3) is missing" in lines(found)


def alike(path: Path, before: bytes) -> bool:
    """Whether a file says the same as before: JSON may be written in several ways."""
    with contextlib.suppress(ValueError):
        return json.loads(path.read_text()) == json.loads(before)
    return path.read_bytes() == before


DAMAGE: dict[str, Callable[[st.DrawFn, bytes], bytes]] = {
    "flip": lambda draw, data: _flipped(data, draw(st.integers(0, 8 * len(data) - 1))),
    "cut": lambda draw, data: data[: draw(st.integers(0, len(data) - 1))],
    "append": lambda draw, data: data + draw(st.binary(min_size=1, max_size=9)),
    "overwrite": lambda draw, data: draw(st.binary(max_size=9)) + data[9:],
}


def _flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1 :]


@pytest.mark.parametrize("damage", DAMAGE)
@given(st.data())
@settings(max_examples=25)
def test_damage_to_any_file_is_found(stores: Path, damage: str, data: st.DataObject) -> None:
    root = stores / data.draw(st.sampled_from(["pool.zarr", "tree.zarr"]))
    path = data.draw(st.sampled_from(sorted(path for path in root.rglob("*") if path.is_file())))
    before = path.read_bytes()
    try:
        path.write_bytes(DAMAGE[damage](data.draw, before))
        with contextlib.suppress(StoreError):
            assert alike(path, before) or not hkm.verify(root).sound
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("folder", ["pool.zarr", "tree.zarr", "tree.zarr/level_1"])
@pytest.mark.parametrize("change", [{"kind": "other"}, {"must_understand": True}, {"jind": "inline"}])
def test_copies_of_metadata_that_others_cannot_read_are_found(stores: Path, folder: str, change: dict) -> None:
    path = stores / folder / "zarr.json"
    before = path.read_bytes()
    metadata = json.loads(before)
    metadata["consolidated_metadata"] |= change
    try:
        path.write_text(json.dumps(metadata))
        assert not hkm.verify(stores / Path(folder).parts[0], sample=0).sound
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", ["pool.zarr", "tree.zarr"])
def test_any_file_that_is_missing_or_in_the_place_of_another_is_found(stores: Path, name: str) -> None:
    files = sorted(path for path in (stores / name).rglob("*") if path.is_file())
    contents = [path.read_bytes() for path in files]
    for path, other, content in zip(files, contents[1:] + contents[:1], contents, strict=True):
        for change in (lambda path=path: path.unlink(), lambda path=path, other=other: path.write_bytes(other)):
            change()
            with contextlib.suppress(StoreError):
                assert (path.exists() and alike(path, content)) or not hkm.verify(stores / name, sample=0).sound, path
            path.write_bytes(content)
    assert hkm.verify(stores / name).sound


# --- what lies beside, and what is no store ---------------------------------------------------------------------------


def test_leftovers_are_told_and_do_no_harm(tree: Path) -> None:
    folder = tree.parent
    (folder / "tree.zarr.wip").mkdir()
    (folder / "tree.zarr.work").mkdir()
    (folder / ".tree.zarr.lock").write_text(f"pid 999999999 on host {os.uname().nodename}\n")
    (tree / "level_1" / "labels" / "c" / "0.1f.partial").write_bytes(b"")
    found = hkm.verify(tree)
    assert found.sound
    starts = [
        "tree.zarr.wip is beside it",
        "tree.zarr.work is beside it",
        ".tree.zarr.lock is beside it: of process",
    ]
    assert [note.startswith(start) for note, start in zip(found.notes, starts, strict=False)] == [True] * 3
    assert found.notes[3].startswith("tree.zarr/level_1/labels/c/0.1f.partial")
    (folder / ".tree.zarr.lock").write_text("pid 1 on host elsewhere\n")
    assert "pid 1 on host elsewhere may be building it again" in str(hkm.verify(tree))


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere\.zarr is missing; check the path"):
        hkm.verify(tmp_path / "nowhere.zarr")
    (tmp_path / "begun.zarr.wip").mkdir()
    hkm.ingest(np.ones((4, 3), np.float32), tmp_path / "pool.zarr")
    with pytest.raises(StoreError, match=r"pol\.zarr is missing; did you mean pool\.zarr\? If not, check the path"):
        hkm.verify(tmp_path / "pol.zarr")
    with pytest.raises(StoreError, match=r"begun\.zarr\.wip is unfinished, run its command again"):
        hkm.verify(tmp_path / "begun.zarr")
    with pytest.raises(StoreError, match=r"should be a pool, tree or assignment of hkm, but there is no zarr\.json"):
        hkm.verify(tmp_path)
    for content in ('{"node_type": "group"}', '{"attributes": []}', '{"attributes": {"format": 3}}', "[]", "{"):
        (tmp_path / "zarr.json").write_text(content)
        with pytest.raises(StoreError, match=r"should be a pool, tree or assignment of hkm|is damaged"):
            hkm.verify(tmp_path)


@pytest.mark.parametrize("options", [{"sample": -1}, {"sample": 1.5}, {"seed": True}, {"seed": 2**63}])
def test_settings_that_are_none(tree: Path, options: dict) -> None:
    with pytest.raises(InputError, match="should be a whole number from 0 to"):
        hkm.verify(tree, **options)


# --- assignments ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def assigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool that has ids, a tree of other samples, and the assignment of the pool to it."""
    folder = tmp_path_factory.mktemp("assigned")
    hkm.ingest(rows(1), folder / "pool.zarr", ids=np.arange(N) * 7, chunk_mb=50 * D * 4 / 2**20)
    config = hkm.Config.from_flags(K, n_resamples=0, metric="cosine")
    hkm.build_hierarchy(rows(), folder / "tree.zarr", config)
    with patch("hkm_dask.hierarchy.assignment._chunk_rows_for", lambda source, n_tasks: 200):
        hkm.assign(folder / "tree.zarr", folder / "pool.zarr", folder / "out.zarr")
    return folder


def test_an_assignment_is_sound(assigned: Path, tmp_path: Path) -> None:
    found = hkm.verify(assigned / "out.zarr")
    assert found.sound, str(found)
    assert str(found).startswith(f"{assigned}/out.zarr: a sound assignment\n")
    assert found.checks["rows"] == "240 samples: distances are numbers, clusters of 2 levels those of the tree"
    assert found.checks["measured"].startswith("240 of level 1 recomputed in float64")
    assert found.checks["ids"] == "240, those of the pool"
    alone = Path(shutil.copytree(assigned / "out.zarr", tmp_path / "out.zarr"))
    set_attributes(alone, tree=str(tmp_path / "tree.zarr"), pool=str(tmp_path / "gone.zarr"))
    found = hkm.verify(alone)
    assert found.sound
    assert found.notes == [
        f"clusters were not compared with a tree: its tree {tmp_path}/tree.zarr is not there; give its path with --tree"
    ]
    assert "its tree was not checked" in found.checks["rows"]
    found = hkm.verify(alone, tree=assigned / "tree.zarr", pool=assigned / "pool.zarr")
    assert found.sound
    assert "measured" in found.checks


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("level_1", put(7, 20), "level_1: chunk 0 (rows 0:200): clusters should be 0 to 19; not so in row 7"),
        ("level_1", put(7, -1), "level_1: chunk 0 (rows 0:200): clusters should be 0 to 19; not so in row 7"),
        ("level_2", put(61, 6), "clusters should be those that the tree puts level_1 in; not so in row 61"),
        ("distance", put(3, np.nan), "distance: chunk 0 (rows 0:200): distances should be finite, and not negative"),
        ("distance", add(4, 0.1), "distance: row 4: "),
        ("id", put(5, 0), "id: chunk 0 (rows 0:240): ids should be those of the pool; not so in row 5"),
        ("level_2", lambda labels: labels[:-1], "level_2: int32 of shape (239,) should be int32 of shape (240,)"),
    ],
)
def test_an_assignment_that_is_broken_is_found_out(
    assigned: Path, tmp_path: Path, name: str, change: Change, expected: str
) -> None:
    out = Path(shutil.copytree(assigned / "out.zarr", tmp_path / "out.zarr"))
    verify_rewritten(out, name, change, expected)


def test_an_assignment_of_clusters_further_away_or_another_tree_is_found_out(assigned: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(assigned / "out.zarr", tmp_path / "out.zarr"))
    tree = hkm.open_hierarchy(assigned / "tree.zarr")
    parents = tree["level_2/labels"].values
    level_1 = open_array(out / "level_1").read(0, N)
    other = int(np.flatnonzero(parents != parents[level_1[0]])[0])
    rewrite(out, "level_1", put(0, other))
    rewrite(out, "level_2", put(0, parents[other]))
    assert any(f"row 0: label {other} should be {level_1[0]}" in line for line in lines(hkm.verify(out)))
    other_tree = hkm.build_hierarchy(rows(5), tmp_path / "other.zarr", hkm.Config.from_flags(K, n_resamples=0))
    found = hkm.verify(assigned / "out.zarr", tree=other_tree.encoding["source"])
    assert "should be the tree it was made with, its content differs" in str(found)
    with pytest.raises(StoreError, match="is missing"):
        hkm.verify(out, tree=tmp_path / "nowhere.zarr")
    shutil.rmtree(out / "level_1")
    assert "level_1: its zarr.json is missing" in str(hkm.verify(out))


def test_where_the_pool_is(stores: Path, tree: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(stores / "pool.zarr", tmp_path / "moved.zarr"))
    set_attributes(tree, pool=str(tmp_path / "gone.zarr"))
    found = hkm.verify(tree)
    assert found.sound
    assert found.notes == [
        f"its pool {tmp_path}/gone.zarr is not there: no samples were recomputed; give its path with --pool"
    ]
    assert "240 of level 1" in hkm.verify(tree, pool=moved).checks["measured"]
    assert "50 of level 1" in hkm.verify(tree, pool=moved, sample=50).checks["measured"]
    assert "measured" not in hkm.verify(tree, pool=moved, sample=0).checks
    with pytest.raises(StoreError, match="is missing"):
        hkm.verify(tree, pool=tmp_path / "nowhere.zarr")
    flip(moved / "embeddings/c/0/0", 0)
    (line,) = lines(hkm.verify(tree, pool=moved))
    assert line.endswith("rows 0:50) was altered on disk: its checksum does not match")


def test_nothing_is_warned_of(tree: Path) -> None:
    rewrite(tree, "level_1/centroids", put(4, np.inf))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not hkm.verify(tree).sound


def test_what_is_missing_in_a_column_is_verified(tmp_path: Path) -> None:
    columns = {"v": rows().tolist(), "n": [None, *range(1, N)], "word": [f"w{i}" for i in range(N)]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    hkm.ingest(tmp_path / "a.parquet", tmp_path / "p.zarr", keep=["n", "word"])
    assert hkm.verify(tmp_path / "p.zarr").sound
    next(path for path in (tmp_path / "p.zarr" / "n.missing" / "c").iterdir()).unlink()
    found = hkm.verify(tmp_path / "p.zarr")
    assert any(line.startswith("n.missing: ") for line in lines(found)), str(found)
    shutil.rmtree(tmp_path / "p.zarr" / "n.missing")
    assert not hkm.verify(tmp_path / "p.zarr").sound
