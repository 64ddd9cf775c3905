"""Comparing two subsets: all numbers against a few lines of NumPy."""

from pathlib import Path

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.curation import column_summary
from hkm_dask.curation.compare import Comparison
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.errors import InputError, StoreError
from hkm_dask.hierarchy.sampling.export import write_subset
from tests.curation.pools import pool_with_columns


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(8, 6))[rng.integers(8, size=400)] * 3 + rng.normal(size=(400, 6))).astype(np.float32)
    x[300:320] = x[5]
    hkm.ingest(x, folder / "pool.zarr")
    config = hkm.Config.from_flags((30, 5), n_resamples=0)
    hkm.build_hierarchy(folder / "pool.zarr", folder / "tree.zarr", config)
    np.save(folder / "a.npy", np.arange(250, 350))
    np.save(folder / "b.npy", np.arange(300, 400, 2)[::-1])
    return folder


@pytest.fixture(scope="module")
def pool(folder: Path) -> Pool:
    return open_pool(folder / "pool.zarr")


@pytest.fixture(scope="module")
def found(folder: Path) -> Comparison:
    return hkm.compare(folder / "a.npy", folder / "b.npy", tree=folder / "tree.zarr", sample=400)


def test_sizes_and_overlap(found: Comparison) -> None:
    facts = found.facts
    assert [facts[key]["n_rows"] for key in ("pool", "a", "b")] == [400, 100, 50]
    assert facts["overlap"] == {"n_rows": 25, "jaccard": 25 / 125}


def test_clusters_covered_and_their_evenness(found: Comparison, folder: Path) -> None:
    tree = hkm.open_hierarchy(folder / "tree.zarr")
    for key, rows in (("pool", np.arange(400)), ("a", np.arange(250, 350)), ("b", np.arange(300, 400, 2))):
        for level, facts in enumerate(found.facts[key]["levels"], start=1):
            counts = np.bincount(tree.hkm.labels(level).values[rows], minlength=len(tree[f"level_{level}"]["sizes"]))
            share = counts[counts > 0] / len(rows)
            apart = np.abs(np.subtract.outer(counts, counts)).mean() / 2 / counts.mean()
            assert (facts["n_covered"], facts["n_clusters"]) == ((counts > 0).sum(), len(counts))
            assert facts["entropy"] == pytest.approx(-(share * np.log(share)).sum() / np.log(len(counts)))
            assert facts["gini"] == pytest.approx(apart)


def test_distances_from_the_pool(found: Comparison, pool: Pool) -> None:
    x = pool.rows().read(0, 400).astype(np.float64)
    for key, rows in (("a", np.arange(250, 350)), ("b", np.arange(300, 400, 2))):
        nearest = np.linalg.norm(x[:, None] - x[rows], axis=2).min(axis=1)
        assert found.facts[key]["distance"] == pytest.approx({"mean": nearest.mean(), "max": nearest.max()})


def test_near_duplicates_of_each(found: Comparison, pool: Pool) -> None:
    for key, rows in (("a", np.arange(250, 350)), ("b", np.arange(300, 400, 2))):
        assert found.facts[key]["near_duplicates"]["n_removed"] == len(hkm.dedup(pool, 0.95, subset=rows).removed) > 9


def test_columns_of_numbers_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.where(np.arange(400) % 7, np.arange(400.0) ** 2, np.nan)
    texts = np.array(["fish", "bird", "ant"], object)[np.arange(400) % 3]
    pool = pool_with_columns(tmp_path / "pool.zarr", np.ones((400, 2), np.float32), score=numbers, kind=texts)
    monkeypatch.setattr(column_summary, "_BLOCK_ROWS", 37)
    facts = column_summary.summarize_columns(pool, np.arange(250, 350))
    some = numbers[250:350][~np.isnan(numbers[250:350])]
    expected = {"n": len(some), "mean": some.mean(), "std": some.std(), "min": some.min(), "max": some.max()}
    assert facts["score"] == pytest.approx(expected)
    assert facts["kind"] == {"n_values": 3, "shares": {"bird": 0.34, "ant": 0.33, "fish": 0.33}}
    monkeypatch.setattr(column_summary, "MOST_VALUES", 2)
    assert column_summary.summarize_columns(pool, None)["kind"]["n_values"] is None


def test_texts_that_are_rare_on_all_sides_are_counted_only(tmp_path: Path) -> None:
    url = np.array([f"url {row}" for row in range(400)], object)
    source = np.where(np.arange(400) < 396, "web", "books").astype(object)
    hue = np.where(np.arange(400) % 2, "red", url).astype(object)
    pool = pool_with_columns(tmp_path / "pool.zarr", np.eye(400, dtype="f4"), url=url, source=source, hue=hue)
    for name, rows in (("a", np.arange(0, 400, 2)), ("b", np.arange(300, 400))):
        np.save(tmp_path / f"{name}.npy", rows)
    found = hkm.compare(tmp_path / "a.npy", tmp_path / "b.npy", pool=pool.path, sample=0)
    lines = [line.split() for line in str(found).splitlines()]
    assert ["url:", "values", "400", "200", "100"] in lines
    assert ["web", "99.0%", "99.0%", "96.0%"] in lines
    assert sum(line[0] in ("url", "red") for line in lines) == 1
    assert "url 398" in found.facts["b"]["columns"]["url"]["shares"]
    shares = [found.facts[key]["columns"]["hue"]["shares"] for key in ("pool", "a", "b")]
    assert [len(share) for share in shares] == [151, 150, 51]
    assert (repr(found), "<td" in found._repr_html_()) == (str(found), True)
    both = str(hkm.compare(tmp_path / "a.npy", pool.path, sample=0)).splitlines()
    assert [line.split() for line in both[:2]] == [["a.npy", "pool.zarr"], ["rows", "200", "400"]]
    (tmp_path / "note.md").touch()
    with pytest.raises(InputError, match=r"^subset=.*note.md should be a file of row numbers or ids"):
        hkm.compare(tmp_path / "a.npy", tmp_path / "note.md", pool=pool.path)


def test_a_pool_a_tree_and_a_table_of_a_draw_are_subsets(folder: Path) -> None:
    tree = hkm.open_hierarchy(folder / "tree.zarr")
    for suffix in ("parquet", "csv", "txt"):
        write_subset(folder / f"drawn.{suffix}", np.array([3, 4, 4, 9]), tree)
        facts = hkm.compare(folder / f"drawn.{suffix}", folder / "tree.zarr", sample=0).facts
        assert (facts["a"]["n_rows"], facts["b"]["n_rows"], facts["overlap"]["n_rows"]) == (3, 400, 3)
        assert "distance" not in facts["a"]
    facts = hkm.compare(folder / "pool.zarr", folder / "a.npy", sample=50).facts
    assert facts["a"]["distance"] == {"mean": 0.0, "max": 0.0}
    assert "levels" not in facts["a"]


def test_what_cannot_be_compared_is_refused(folder: Path, tmp_path: Path) -> None:
    a, b = folder / "a.npy", folder / "b.npy"
    with pytest.raises(InputError, match=r"^tree=None should be the tree of the rows; give it, or a pool"):
        hkm.compare(a, b)
    with pytest.raises(StoreError, match=r"c.npy is missing; give a file of row numbers"):
        hkm.compare(a, folder / "c.npy", pool=folder / "pool.zarr")
    with pytest.raises(InputError) as error:
        hkm.compare(a, b, threshold=0, sample=-1)
    assert len(error.value.problems) == 2
    other = hkm.ingest(np.ones((400, 6), np.float32), tmp_path / "other.zarr")
    with pytest.raises(InputError, match=r"should be of the same pool as"):
        hkm.compare(a, b, tree=folder / "tree.zarr", pool=other.path)
    np.save(tmp_path / "far.npy", np.array([400]))
    with pytest.raises(
        InputError, match=r"far.npy should be row numbers below 400, 1 are not; check that it belongs to this pool"
    ):
        hkm.compare(a, tmp_path / "far.npy", tree=folder / "tree.zarr")


def test_rows_and_stores_in_memory_compare_as_their_files_do(folder: Path, found: Comparison, pool: Pool) -> None:
    rows_a, rows_b = np.load(folder / "a.npy"), np.load(folder / "b.npy")
    tree = hkm.open_hierarchy(folder / "tree.zarr")
    in_memory = hkm.compare(rows_a, rows_b, tree=tree, sample=400)
    assert [in_memory.facts.pop(key)["n_rows"] for key in ("a", "b")] == [100, 50]
    assert in_memory.facts == {key: facts for key, facts in found.facts.items() if key not in ("a", "b")}
    assert hkm.compare(pool, rows_a.tolist(), tree=tree, sample=0).facts["b"] == {
        key: facts for key, facts in (found.facts["a"] | {"name": "b"}).items() if key != "distance"
    }
    with pytest.raises(InputError, match="n_rows=0 should be at least 1"):
        hkm.compare(rows_a, np.zeros(0, np.int64), pool=pool)


def test_rows_that_come_twice_are_looked_at_once(pool: Pool) -> None:
    found = hkm.compare(np.array([3, 3, 9]), np.array([9, 3]), pool=pool, sample=0)
    assert (found.facts["a"]["n_rows"], found.facts["overlap"]["n_rows"]) == (2, 2)
