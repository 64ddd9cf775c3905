"""Exported tables equal pool and tree row by row, for any block size; x and y are principal components."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.decomposition import PCA

import hkm_dask as hkm
from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError, StoreError
from hkm_dask.hierarchy import table
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from tests.hierarchy.sampling.test_export import LABELS_1, LABELS_2, SQUARED, make_tree

N = 20
X = np.random.default_rng(0).normal(size=(N, 6)).astype("f4") * np.array([5, 1, 3, 1, 1, 1], "f4") + 100
CAPTIONS = [None if row == 4 else f"text {row}" for row in range(N)]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    columns = {"v": X.tolist(), "id": [f"i{row}" for row in range(N)], "caption": CAPTIONS}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    return hkm.ingest(tmp_path / "a.parquet", tmp_path / "pool.zarr", ids="id", keep=["caption"])


@pytest.mark.parametrize("block_rows", [7, 2**18])
def test_a_tree_is_told_row_by_row(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    monkeypatch.setattr(table, "BLOCK_ROWS", block_rows)
    out = hkm.export(make_tree(tmp_path, pool), tmp_path / "rows.parquet", embeddings=True, xy=True)
    written = pq.read_table(out)
    names = ["row", "id", "caption", "level_1", "level_2", "level_3", "distance", "x", "y", "vector"]
    assert written.column_names == names
    assert written["row"].to_pylist() == list(range(N))
    assert written["id"].to_pylist() == [f"i{row}" for row in range(N)]
    assert written["caption"].to_pylist() == CAPTIONS
    assert written["level_1"].to_pylist() == LABELS_1.tolist()
    assert written["level_2"].to_pylist() == [-1 if one < 0 else int(LABELS_2[one]) for one in LABELS_1]
    np.testing.assert_array_equal(written["distance"].to_numpy(), np.sqrt(SQUARED))
    np.testing.assert_array_equal(np.array(written["vector"].to_pylist(), "f4"), X)
    expected = PCA(2, svd_solver="full").fit_transform(X.astype("f8"))
    for name, column in zip("xy", expected.T, strict=True):
        given = written[name].to_numpy()
        sign = np.sign(given @ column)
        np.testing.assert_allclose(given, sign * column, atol=1e-4)


def test_a_pool_is_told_without_clusters(pool: Pool, tmp_path: Path) -> None:
    written = pq.read_table(hkm.export(pool.path, tmp_path / "rows.parquet"))
    assert written.column_names == ["row", "id", "caption"]
    half = hkm.ingest(X.astype("f2")[:, :1], tmp_path / "half.zarr")
    written = pq.read_table(hkm.export(half.path, tmp_path / "c.parquet", embeddings=True, xy=True))
    assert str(written.schema.field("vector").type) == "fixed_size_list<element: float>[1]"
    assert written["y"].to_pylist() == [0.0] * N  # there is no second axis


def test_an_assignment_is_told_with_what_its_pool_knows(pool: Pool, tmp_path: Path) -> None:
    tree = hkm.build_hierarchy(X[::-1].copy(), tmp_path / "t.zarr", hkm.Config.from_flags((6, 2), n_resamples=0))
    new = hkm.assign(tree, pool, tmp_path / "new.zarr")
    written = pq.read_table(hkm.export(tmp_path / "new.zarr", tmp_path / "rows.parquet", embeddings=True))
    assert written.column_names == ["row", "id", "caption", "level_1", "level_2", "distance", "vector"]
    assert written["id"].to_pylist() == [f"i{row}" for row in range(N)]
    for name in ("level_1", "level_2", "distance"):
        assert written[name].to_pylist() == new[name].values.tolist()
    hkm.assign(tree, X[:3], tmp_path / "three.zarr")
    written = pq.read_table(hkm.export(tmp_path / "three.zarr", tmp_path / "three.parquet"))
    assert written.column_names == ["row", "level_1", "level_2", "distance"]
    with pytest.raises(InputError, match="the store is of an array"):
        hkm.export(tmp_path / "three.zarr", tmp_path / "a3.parquet", embeddings=True)


def test_what_cannot_be_exported_is_refused_before_the_work(pool: Pool, tmp_path: Path) -> None:
    tree = make_tree(tmp_path, None)
    written = pq.read_table(hkm.export(open_hierarchy(tree), tmp_path / "rows.parquet"))
    assert written.column_names == ["row", "level_1", "level_2", "level_3", "distance"]
    for option in ("xy", "embeddings"):
        with pytest.raises(InputError, match="the store is of an array, whose rows it does not have"):
            hkm.export(tree, tmp_path / "a2.parquet", **{option: True})
    with pytest.raises(InputError, match=r"rows.parquet' should be a new file"):
        hkm.export(tree, tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows.csv' should end in .parquet; rename it"):
        hkm.export(tree, tmp_path / "rows.csv")
    with pytest.raises(StoreError, match=r"nowhere.zarr is missing; make it with"):
        hkm.export(tmp_path / "nowhere.zarr", tmp_path / "b.parquet")
    pq.write_table(pa.table({"v": X.tolist(), "x": range(N)}), tmp_path / "x.parquet")
    taken = hkm.ingest(tmp_path / "x.parquet", tmp_path / "x.zarr", keep=["x"])
    with pytest.raises(InputError, match="the pool has columns x of its own; rename them, or export without vectors"):
        hkm.export(taken.path, tmp_path / "b.parquet", xy=True)
    assert pq.read_table(hkm.export(taken.path, tmp_path / "b.parquet"))["x"].to_pylist() == list(range(N))
    assert not list(tmp_path.glob(".*part*"))
