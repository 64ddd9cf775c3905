"""A pool has its rows and their ids, and other stores are not opened as pools."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hkm_dask.config import Config
from hkm_dask.data import layout, store
from hkm_dask.data.pool import open_pool
from hkm_dask.errors import InputError, StoreError
from hkm_dask.hierarchy.build import build_hierarchy
from hkm_dask.ingestion.ingest import ingest
from tests.data.stores import make, table


def make_pool(path: Path, **attributes: object) -> Path:
    facts = {"max_abs": 29.0, "n_zero_rows": 0, "sources": ["a.npy"], "has_ids": True}
    store.create_group(path, {"format": layout.POOL_FORMAT, "format_version": layout.FORMAT_VERSION})
    facts["fingerprint"] = make(path, table(), 4, layout.EMBEDDINGS).seal().fingerprint
    make(path, table().mean(axis=0), 3, layout.MEAN)
    make(path, np.array([f"id{row}" for row in range(10)], dtype=object), 4, layout.IDS)
    store.mark_complete(path, {**facts, **attributes})
    return path


def test_at_a_glance(tmp_path: Path) -> None:
    pool = open_pool(make_pool(tmp_path / "p.zarr", sources=["a.npy", "<b>.npy", "c.npy", "d.npy"]))
    assert repr(pool).splitlines() == [
        "Pool of 10 samples × 3 features",
        f"  path       {tmp_path}/p.zarr",
        "  stored     float32, 120 bytes in chunks of 4 rows",
        "  ids        yes",
        "  made from  a.npy, <b>.npy, c.npy, …",
    ]
    assert ">a.npy, &lt;b&gt;.npy, c.npy, …</td>" in pool._repr_html_()


def test_a_pool_knows_itself(tmp_path: Path) -> None:
    pool = open_pool(make_pool(tmp_path / "p.zarr"))
    assert (pool.n_samples, pool.n_features, pool.dtype, pool.chunk_rows) == (10, 3, np.dtype("f4"), 4)
    assert (len(pool.fingerprint), pool.max_abs, pool.n_zero_rows, pool.sources) == (64, 29.0, 0, ("a.npy",))
    np.testing.assert_array_equal(pool.mean, table().mean(axis=0))
    np.testing.assert_array_equal(pool.rows().read(0, 10), table())
    copy = pickle.loads(pickle.dumps(pool))
    assert copy == pool
    assert copy.rows().key == pool.rows().key


def test_ids_come_in_the_order_asked_for(tmp_path: Path) -> None:
    pool = open_pool(make_pool(tmp_path / "p.zarr"))
    ids = pool.ids()
    assert ids is not None
    assert ids.tolist() == [f"id{row}" for row in range(10)]
    some = pool.ids(np.array([9, 0, 9, 4]))
    assert some is not None
    assert some.tolist() == ["id9", "id0", "id9", "id4"]
    with pytest.raises(InputError, match="should lie within"):
        pool.ids(np.array([10]))
    assert open_pool(make_pool(tmp_path / "q.zarr", has_ids=False)).ids() is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda pool: store.create_group(pool, {"complete": False}), "is not complete"),
        (lambda pool: store.create_group(pool, {"format_version": 9}), "format_version=9 should be 2"),
        (lambda pool: store.create_group(pool, {"format": "x"}), "format='x'"),
        (lambda pool: store.create_group(pool, {"max_abs": None}), "attributes were altered"),
        (lambda pool: (pool / "mean" / "c" / "0").unlink(), "mean: chunk 0 .* is missing; .*hkm ingest"),
        (lambda pool: (pool / "mean" / "zarr.json").unlink(), "mean: its zarr.json is missing"),
        (lambda pool: (pool / "zarr.json").unlink(), "not a Zarr group"),
        (lambda pool: make(pool, table(4, 4)[0], 4, layout.MEAN), "mean: its zarr.json .* was altered"),
        (lambda pool: store.mark_complete(pool, {"max_abs": None}), "is damaged: float"),
        (lambda pool: store.mark_complete(pool, {"fingerprint": "ab"}), "is damaged: the fingerprint is not that of"),
        (
            lambda pool: (make(pool, table(4, 4)[0], 4, layout.MEAN), store.mark_complete(pool)),
            "damaged: embeddings are",
        ),
    ],
)
def test_no_pool_is_opened_that_is_none(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    path = make_pool(tmp_path / "p.zarr")
    spoil(path)
    with pytest.raises(StoreError, match=message):
        open_pool(path)


def test_lost_ids_are_no_absent_ids(tmp_path: Path) -> None:
    path = make_pool(tmp_path / "p.zarr")
    (path / "ids" / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"ids: its zarr.json is missing"):
        open_pool(path)


def test_an_unfinished_pool_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.zarr.wip").mkdir()
    with pytest.raises(StoreError, match=r"p.zarr is missing, an unfinished p.zarr.wip is beside it; make it with"):
        open_pool(tmp_path / "p.zarr")


def test_metadata_is_valid_json_for_others(tmp_path: Path) -> None:
    path = make_pool(tmp_path / "p.zarr")
    root = json.loads((path / "zarr.json").read_text())
    assert set(root["consolidated_metadata"]["metadata"]) == {"embeddings", "mean", "ids"}
    assert root["attributes"]["complete"] is True


def test_a_pool_as_xarray_has_its_columns_and_their_gaps(tmp_path: Path) -> None:
    columns = {"n": [1, None, 3], "caption": ["a", None, ""], "nsfw": [None, True, False], "score": [0.5, 1.5, 2.5]}
    pq.write_table(pa.table({"v": np.eye(3).tolist(), "id": list("xyz"), **columns}), tmp_path / "a.parquet")
    data = ingest(tmp_path / "a.parquet", tmp_path / "p.zarr", ids="id", keep=list(columns)).to_xarray()
    assert dict(data.sizes) == {"sample": 3, "feature": 3}
    assert list(data.variables) == ["embeddings", "ids", *columns]
    assert all(variable.chunks is not None for variable in data.variables.values())  # nothing was read
    np.testing.assert_array_equal(data["embeddings"], np.eye(3))
    assert data["ids"].values.tolist() == list("xyz")
    np.testing.assert_equal(data["n"].values.tolist(), [1.0, np.nan, 3.0])
    for name in ("caption", "nsfw", "score"):
        assert data[name].values.tolist() == columns[name]
    assert data["caption"][[2, 1]].values.tolist() == ["", None]


def test_ids_of_the_same_rows_in_another_pool_are_not_its_own(tmp_path: Path) -> None:
    pool = ingest(table(), tmp_path / "p.zarr", ids=[f"a{row}" for row in range(10)])
    assert pickle.loads(pickle.dumps(pool)).head(3).ids().tolist() == ["a0", "a1", "a2"]
    ingest(table(), tmp_path / "p.zarr", ids=[f"b{row}" for row in range(10)], overwrite=True)
    for ask in (pool.ids, lambda: pool.head(3).ids(np.array([2])), lambda: pool.column_piece("ids", 0, 2)):
        with pytest.raises(StoreError, match="was replaced by another pool meanwhile"):
            ask()
    assert pool.rows().read(0, 10).tolist() == table().tolist()
    pool.check_unchanged()  # a build goes by the rows
    assert open_pool(pool.path).ids(np.array([1])).tolist() == ["b1"]  # type: ignore[union-attr]


def test_a_pool_as_a_data_frame_joins_the_clusters_of_a_tree(tmp_path: Path) -> None:
    columns = {"n": [1, None, 3], "caption": ["a", None, ""], "nsfw": [None, True, False], "score": [0.5, None, 2.5]}
    pq.write_table(pa.table({"v": np.eye(3).tolist(), "id": list("xyz"), **columns}), tmp_path / "a.parquet")
    pool = ingest(tmp_path / "a.parquet", tmp_path / "p.zarr", ids="id", keep=list(columns))
    assert (len(pool), pool.shape) == (3, (3, 3))
    frame = pool.to_pandas()
    assert (frame.index.name, frame.columns.tolist()) == ("sample", ["id", *columns])
    for name, values in columns.items():
        assert [None if pd.isna(value) else value for value in frame[name]] == values
    assert frame.dtypes.astype(str).to_dict() | {"id": "", "caption": ""} == {
        "id": "", "n": "Int64", "caption": "", "nsfw": "boolean", "score": "float64",
    }  # fmt: skip
    tree = build_hierarchy(pool, tmp_path / "t.zarr", Config.from_flags((2, 1), n_resamples=0))
    drawn = pool.to_pandas([2, 0]).join(tree.hkm.path([0, 2]))
    assert drawn.index.tolist() == [2, 0]
    assert drawn["level_2"].tolist() == [0, 0]
    for rows in ([3], [-1], [0.5], [[0]]):
        with pytest.raises(InputError, match="give row numbers"):
            pool.to_pandas(rows)


def test_a_pool_of_embeddings_alone_is_a_data_frame_of_row_numbers(tmp_path: Path) -> None:
    pool = ingest(table(), tmp_path / "p.zarr")
    assert pool.to_pandas(np.array([4, 2])).index.tolist() == [4, 2]
    with pytest.raises(InputError, match=r"rows=4\.\.10 should lie within 0\.\.9"):
        pool.to_pandas([10, 4])
