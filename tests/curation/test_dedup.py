"""Deduplication, against all cosines in float64 and SciPy's connected components."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

import hkm_dask as hkm
from hkm_dask.curation import directions, pair_kernels, pair_search
from hkm_dask.curation.dedup import Deduplication, check_targets
from hkm_dask.data.pool import Pool
from hkm_dask.errors import ComputeError, InputError, StoreError
from hkm_dask.events import subscribe
from tests.curation.pools import pool_with_columns


def groups_of(x: NDArray, threshold: float) -> NDArray[np.int64]:
    """The lowest row of each row's group."""
    x = x.astype(np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    near = (x @ x.T >= threshold * norms * norms.T * (1 - 1e-14)) & (norms > 0) & (norms.T > 0)
    labels = connected_components(near, directed=False)[1]
    return np.array([np.flatnonzero(labels == label)[0] for label in labels])


def check(x: NDArray, found: Deduplication, threshold: float) -> None:
    expected = groups_of(x, threshold)
    first = np.arange(len(x))
    first[found.groups.rows] = found.groups.first
    np.testing.assert_array_equal(first, expected)
    # Exactly one row of each group is kept.
    assert sorted(expected[found.rows]) == sorted(set(expected))
    np.testing.assert_array_equal(np.sort(np.append(found.rows, found.removed)), np.arange(len(x)))


def mixture(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    """Groups of rows that lie at all angles, near-duplicates of other lengths, copies and zeros."""
    rng = np.random.default_rng(seed)
    x = 1.5 * rng.normal(size=(12, d))[rng.integers(12, size=n)] + rng.normal(size=(n, d))
    half = n // 2
    noise = rng.uniform(0.05, 0.6, size=(half, 1))
    x[half : 2 * half] = (x[:half] + noise * rng.normal(size=(half, d))) * rng.uniform(0.1, 10, size=(half, 1))
    x[n // 3 : n // 3 + 20] = x[3]
    x[-5:] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize(("d", "threshold"), [(1, 1.0), (2, 0.9999), (24, 0.9), (70, 0.95), (70, 0.5), (70, 1.0)])
@pytest.mark.parametrize("least_rows", [8, 64])
def test_groups_are_those_of_all_pairs(
    d: int, threshold: float, least_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directions, "_LEAST_ROWS", least_rows)
    x = mixture(900, d)
    check(x, hkm.dedup(x, threshold), threshold)


def test_groups_of_clusters_one_after_the_other_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = mixture(1500, 40)
    whole = hkm.dedup(x, 0.95)
    assert len(whole.groups) > 100
    monkeypatch.setattr(pair_search, "_GROUP_SHARE", 1e-9)
    monkeypatch.setattr(directions, "_LEAST_ROWS", 20)
    found = hkm.dedup(x, 0.95, memory_limit="500MiB")
    check(x, found, 0.95)
    np.testing.assert_array_equal(found.groups.rows, whole.groups.rows)


def test_workers_of_a_cluster_find_the_same(tmp_path: Path) -> None:
    pool = hkm.ingest(mixture(900, 40), tmp_path / "pool.zarr")
    here = hkm.dedup(pool, 0.95)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        there = hkm.dedup(pool, 0.95, client=client)
    assert len(here.removed) > 100
    for name in ("rows", "removed"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))


@pytest.mark.parametrize("memory_limit", [None, "500MiB"])
def test_the_share_that_is_done_is_told_all_the_while(
    memory_limit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if memory_limit is not None:  # clusters one after the other
        monkeypatch.setattr(pair_search, "_GROUP_SHARE", 1e-9)
        monkeypatch.setattr(directions, "_LEAST_ROWS", 2000)
    x, told = mixture(40_000, 8), []
    with subscribe(lambda event: told.append(dict(event.fields)) if event.kind == "progress" else None):
        hkm.dedup(x, 0.9999, memory_limit=memory_limit)
    stages = [fields["stage"] for fields in told]
    assert stages == sorted(stages, reverse=True)  # grouping, then comparing
    for stage, then in (("grouping rows", {"then": "comparing them"}), ("comparing rows", {})):
        done = [fields["done"] for fields in told if fields["stage"] == stage]
        assert (done[0], done[-1], done) == (0, len(x), sorted(done))
        assert len(done) > 5
        assert max(np.diff(done)) < 0.45 * len(x)
        assert all({**fields, **then, "total": len(x)} == fields for fields in told if fields["stage"] == stage)


@given(
    st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.8, 0.99, 1 - 1e-9]),
    st.sampled_from([np.float16, np.float32]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_small_tables_of_few_values(n: int, d: int, seed: int, threshold: float, dtype: type) -> None:
    """Whole numbers, so that there are copies, multiples and zeros."""
    x = np.random.default_rng(seed).integers(-2, 3, size=(n, d)).astype(dtype)
    products = np.linalg.norm(x.astype(np.float64), axis=1) * np.linalg.norm(x.astype(np.float64), axis=1)[:, None]
    off = np.abs(x.astype(np.float64) @ x.astype(np.float64).T - threshold * products)
    assume((off[products > 0] > 1e-11).all())
    check(x, hkm.dedup(x, threshold), threshold)


def test_the_cosine_at_the_threshold_is_near() -> None:
    x = np.float32([[3, 4], [4, 3], [1, 0]])  # 24 / 25
    assert hkm.dedup(x, 24 / 25).groups.rows.tolist() == [0, 1]
    assert hkm.dedup(x, np.nextafter(24 / 25, 1)).groups.rows.tolist() == []


def test_thousands_of_copies_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(8000, 16)).astype(np.float32)
    x[1000:6000] = x[0]
    x[6000:7000] = x[0] * (1 + 1e-4 * np.arange(1000, dtype=np.float32)[:, None])  # multiples are no copies
    n_measured: list[int] = []
    unite = pair_search.unite_near

    def count(*arguments: object) -> int:
        n_measured.append(unite(*arguments))
        return n_measured[-1]

    monkeypatch.setattr(pair_search, "unite_near", count)
    found = hkm.dedup(x, 0.999)
    assert len(found.groups) == 1
    assert found.facts()["largest_group"] == 6001
    assert sum(n_measured) < 10_000


def test_thousands_of_rows_alike_are_passed_over_once_connected() -> None:
    """Rows within 0.98 of each other, none a copy: once they are connected, whole panels of them are passed over."""
    rng = np.random.default_rng(0)
    x = (np.float32(10 * np.eye(16)[0]) + 0.35 * rng.normal(size=(2500, 16))).astype(np.float32)
    x[2000:] = rng.normal(size=(500, 16))
    check(x, hkm.dedup(x, 0.98), 0.98)
    n_slots = 2 * pair_kernels.PANEL
    numbers, is_one = np.arange(n_slots), np.zeros(2, np.bool_)
    numbers[-3:] = -1  # slots without a member

    def is_connected(parent: NDArray[np.int64]) -> bool:
        lines = np.array([0, 1])
        found: bool = pair_kernels.is_connected.py_func(parent, is_one, numbers, 0, 2, lines, n_slots)
        return found

    parent = np.append(np.zeros(n_slots, np.int64), [0, 0])
    parent[n_slots - 3 : n_slots] = np.arange(n_slots - 3, n_slots)
    for apart in (1, pair_kernels.PANEL, n_slots - 4, n_slots, n_slots + 1):
        is_one[:] = False
        other = parent.copy()
        other[apart] = apart
        assert not is_connected(other)
    assert is_connected(parent)
    assert is_one.all()


def test_equal_hashes_make_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_search, "hash_rows", lambda rows, hashes: hashes.fill(7))
    x = mixture(300, 8)
    check(x, hkm.dedup(x, 0.97), 0.97)


def test_all_zeros_are_kept_with_a_warning() -> None:
    warnings: list[str] = []
    with subscribe(lambda event: warnings.append(event.fields.get("message", ""))):
        found = hkm.dedup(np.zeros((5, 3), np.float32), 0.9)
    assert found.rows.tolist() == [0, 1, 2, 3, 4]
    assert [message for message in warnings if message] == ["5 rows of zeros have no direction, and are kept"]
    assert str(found) == "all 5 rows kept: no two have a cosine of 0.9 or more"


@pytest.fixture(scope="module")
def x() -> NDArray[np.float32]:
    return mixture(600, 12)


@pytest.fixture(scope="module")
def pool(x: NDArray, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    folder = tmp_path_factory.mktemp("dedup")
    np.save(folder / "x.npy", x)
    return hkm.ingest(folder / "x.npy", folder / "pool.zarr")


def test_a_pool_gives_what_its_rows_give(x: NDArray, pool: Pool) -> None:
    found = hkm.dedup(pool.path, 0.97, memory_limit="600MiB")
    check(x, found, 0.97)
    assert found.rows.tolist() == hkm.dedup(x, 0.97).rows.tolist()


def test_a_tree_keeps_the_closest_of_the_rows_it_clusters(x: NDArray, pool: Pool, tmp_path: Path) -> None:
    subset = np.flatnonzero(np.arange(len(x)) % 5)
    np.save(tmp_path / "subset.npy", subset)
    config = hkm.Config.from_flags((60, 10), n_resamples=0, subset=str(tmp_path / "subset.npy"))
    tree = hkm.build_hierarchy(pool.path, tmp_path / "tree.zarr", config)
    found = hkm.dedup(tmp_path / "tree.zarr", 0.97)
    np.testing.assert_array_equal(np.union1d(found.rows, found.removed), subset)
    first = np.arange(len(x))
    first[found.groups.rows] = found.groups.first
    np.testing.assert_array_equal(first[subset], subset[groups_of(x[subset], 0.97)])
    distances = tree["level_1"]["distances"].values
    for group in np.unique(found.groups.first):
        rows = found.groups.rows[found.groups.first == group]
        assert rows[np.argmin(distances[rows])] in found.rows
    # What is kept is a subset for the next tree, and a draw from that is one of rows that are kept.
    found.save(tmp_path / "kept.npy")
    again = hkm.Config.from_flags((40,), n_resamples=0, subset=str(tmp_path / "kept.npy"))
    drawn = hkm.sample(hkm.build_hierarchy(pool.path, tmp_path / "kept.zarr", again), 50)
    assert set(drawn) <= set(found.rows)


def test_a_random_row_of_each_group_goes_by_the_seed(x: NDArray) -> None:
    one, same, other = (hkm.dedup(x, 0.97, keep="random", seed=seed).rows.tolist() for seed in (1, 1, 2))
    assert one == same != other
    check(x, hkm.dedup(x, 0.97, keep="random"), 0.97)


def test_the_best_row_by_a_column_is_kept(x: NDArray, tmp_path: Path) -> None:
    score = np.random.default_rng(1).integers(0, 50, size=len(x)).astype(float)
    score[::7] = np.nan
    kind = np.array(["a", "b"], object)[np.arange(len(x)) % 2]
    pool = pool_with_columns(tmp_path / "pool.zarr", x, score=score, count=np.arange(len(x)) // 3, kind=kind)
    for name, values in (("score", score), ("count", np.arange(len(x)) // 3)):
        found = hkm.dedup(pool, 0.97, keep="best", by=name)
        for group in np.unique(found.groups.first):
            rows = found.groups.rows[found.groups.first == group]
            assert rows[np.argmax(np.nan_to_num(values[rows], nan=-1.0))] in found.rows
    found = hkm.dedup(pool, 0.97, keep="best", by="-score")
    for group in np.unique(found.groups.first):
        rows = found.groups.rows[found.groups.first == group]
        assert rows[np.argmin(np.nan_to_num(score[rows], nan=99.0))] in found.rows
    assert repr(found) == f"Deduplication: {found}"
    assert found.table()["id"].str.startswith("id-").all()
    found.save(tmp_path / "kept.npy", removed=tmp_path / "removed.parquet")
    removed = pd.read_parquet(tmp_path / "removed.parquet")
    assert removed["id"].tolist() == [f"id-{row}" for row in removed["row"]]
    assert removed["row"].tolist() == found.removed.tolist()
    for suffix, read in ((".parquet", pd.read_parquet), (".csv", pd.read_csv)):
        found.save(tmp_path / f"kept{suffix}", removed=tmp_path / f"removed{suffix}.txt")
        kept = read(tmp_path / f"kept{suffix}")
        assert kept.columns.tolist() == ["row", "id", "score", "count", "kind"]
        assert kept["row"].tolist() == found.rows.tolist()
        np.testing.assert_array_equal(kept["score"], score[found.rows])
        assert (tmp_path / f"removed{suffix}.txt").read_text().split() == removed["id"].tolist()
    with pytest.raises(InputError, match=r"^by='kind' should be a column of numbers, but has texts"):
        hkm.dedup(pool, 0.97, keep="best", by="kind")
    with pytest.raises(InputError, match=r"^by='score' should be a column of a pool, but an array has none"):
        hkm.dedup(x, 0.97, keep="best", by="score")


def test_some_rows_are_looked_at_alone(x: NDArray, pool: Pool, tmp_path: Path) -> None:
    rows = np.arange(1, 600, 3)
    np.save(tmp_path / "rows.npy", rows)
    for found in (hkm.dedup(pool, 0.97, subset=rows), hkm.dedup(pool.path, 0.97, subset=tmp_path / "rows.npy")):
        np.testing.assert_array_equal(np.union1d(found.rows, found.removed), rows)
        first = np.arange(len(x))
        first[found.groups.rows] = found.groups.first
        np.testing.assert_array_equal(first[rows], rows[groups_of(x[rows], 0.97)])


def test_files_are_whole_and_new(x: NDArray, tmp_path: Path) -> None:
    found = hkm.dedup(x, 0.97)
    names = {"removed": tmp_path / "removed.npy", "groups": tmp_path / "groups.parquet"}
    found.save(tmp_path / "kept.npy", **names)
    np.testing.assert_array_equal(np.load(tmp_path / "kept.npy"), found.rows)
    np.testing.assert_array_equal(np.load(tmp_path / "removed.npy"), found.removed)
    table = pd.read_parquet(tmp_path / "groups.parquet")
    assert table.columns.tolist() == ["row", "group", "kept"]
    assert (table.groupby("group")["kept"].sum() == 1).all()
    assert (table.groupby("group")["row"].min() == table.groupby("group")["group"].first()).all()
    with pytest.raises(InputError) as error:
        check_targets(tmp_path / "kept.npy", tmp_path / "a.json", tmp_path / "kept.npy/g.parquet")
    assert [line.split(" should ")[1].split(";")[0] for line in error.value.problems] == [
        "be a new file", "end in one of .npy, .parquet, .csv, .txt",
        f"be in a folder, '{tmp_path / 'kept.npy'}' is none",
    ]  # fmt: skip


def test_settings_that_are_none_are_told_at_once(x: NDArray, pool: Pool) -> None:
    with pytest.raises(InputError) as error:
        hkm.dedup(x, 1.2, keep="first", seed=-1)
    assert [line.split("=")[0] for line in error.value.problems] == ["threshold", "keep", "seed"]
    with pytest.raises(InputError, match=r"^by=None should be a column of the pool for keep='best'"):
        hkm.dedup(x, 0.9, keep="best")
    with pytest.raises(
        InputError, match=r"^threshold=95 should .*\nby='score' should be a column of the pool, which has none"
    ):
        hkm.dedup(pool, 95, keep="best", by="score")
    with pytest.raises(StoreError, match=r"nowhere.zarr is missing"):
        hkm.dedup("nowhere.zarr", 0.9)
    with pytest.raises(ComputeError, match=r"^memory_limit=320MiB should be at least .*MiB, .* needs"):
        hkm.dedup(np.ones((90, 60_000), np.float32), 0.9, memory_limit="320MiB")
