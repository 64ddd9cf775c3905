"""Rows are written to a pool: converted, measured, and refused if out of range of the stored dtype."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from hkm_dask.data import layout, pool_writer, store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.pool import open_pool
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import subscribe


def measured(rows: np.ndarray, dtype: str = "f4", first: int = 0) -> pool_writer.Stats:
    stored = pool_writer.convert(rows, np.dtype(dtype), False)
    return pool_writer.measure(rows, stored, np.arange(first, first + len(rows)))


def test_statistics_of_pieces_add_up_to_those_of_the_whole() -> None:
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    rows[[7, 60]] = 0
    rows[[20, 80], 1] = np.nan
    whole, added = measured(rows), pool_writer.Stats(np.zeros(3))
    for start in range(0, 100, 25):
        added.add(measured(rows[start : start + 25], first=start))
    assert np.concatenate(added.nonfinite).tolist() == np.concatenate(whole.nonfinite).tolist() == [20, 80]
    assert added.n_zero_rows == whole.n_zero_rows == 2
    sound = np.delete(rows, [20, 80], axis=0)
    np.testing.assert_allclose(measured(sound).total, sound.astype(np.float64).sum(axis=0))
    assert measured(sound).max_abs == np.abs(sound).max()


def test_overflow_is_counted_apart_from_nonfinite_values() -> None:
    rows = np.array([[1e5, 1e5], [1, 2], [np.inf, 1e5], [-1e5, 3]])
    found = measured(rows, "f2")
    assert (found.n_overflows, found.n_overflow_rows) == (3, 2)
    assert np.concatenate(found.nonfinite).tolist() == [2]
    with pytest.raises(InputError, match="n_overflows=3 should be 0: that many values, in 2 rows, exceed 65504"):
        pool_writer.check_overflow(found, np.dtype("f2"))


@pytest.mark.parametrize("dtype", ["float64", "int8", "nonsense", object])
def test_a_pool_stores_two_types(dtype: object) -> None:
    assert pool_writer.pool_dtype(np.float32) == np.float32
    with pytest.raises(InputError, match="should be float16 or float32"):
        pool_writer.pool_dtype(dtype)


def test_a_disk_too_small_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"needs 1000000000.00 GB, its disk is full but for"):
        pool_writer.check_space(tmp_path / "p.zarr", 10**18)


@pytest.mark.parametrize("cuts", [[0, 10], [0, 1, 2, 10], [0, 3, 3, 9, 10]])
@pytest.mark.parametrize("kind", ["i8", "f8", "O"])
def test_a_column_may_come_in_any_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: list[int], kind: str
) -> None:
    monkeypatch.setattr(layout, "MAX_ID_CHUNK_ROWS", 4)
    values = np.array([f"row {row}" for row in range(10)], dtype=object) if kind == "O" else np.arange(10).astype(kind)
    pieces = [values[start:stop] for start, stop in itertools.pairwise(cuts)]
    pool_writer.write_column(tmp_path, "column", pieces, 10)
    array = open_array(tmp_path / "column")
    assert array.spec.chunk_rows == 4
    assert array.read(0, 10).tolist() == values.tolist()


@pytest.mark.parametrize("missing", [[], [0, 5, 9]])
def test_what_is_missing_in_a_column_is_told_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: list[int]
) -> None:
    monkeypatch.setattr(layout, "MAX_ID_CHUNK_ROWS", 4)
    values = np.ma.MaskedArray(np.arange(10), np.isin(np.arange(10), missing))
    pool_writer.write_column(tmp_path, "n", [values[:3], values[3:]], 10)
    assert open_array(tmp_path / "n").read(0, 10).tolist() == list(range(10))
    mask = tmp_path / "n.missing"
    assert mask.exists() == bool(missing)
    if missing:
        assert np.flatnonzero(open_array(mask).read(0, 10)).tolist() == missing


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([np.arange(9)], "n_ids=9 should be 10"),
        ([np.arange(10), np.arange(1)], "n_ids=11 should be 10"),
        ([], "n_ids=0 should be 10"),
        ([np.arange(5), np.array(["a"] * 5, dtype=object)], "some sources have integers, others strings"),
    ],
)
def test_a_column_of_another_length_or_kind_is_refused(tmp_path: Path, pieces: list[np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pool_writer.write_column(tmp_path, "ids", pieces, 10)


def test_a_finished_pool_has_its_facts(tmp_path: Path) -> None:
    rows = np.array([[0, 0], [3, -4], [1, 2]], dtype=np.float32)
    found, told = measured(rows), []
    with store.staged(tmp_path / "p.zarr") as wip:
        store.create_group(wip, {"format": layout.POOL_FORMAT, "format_version": layout.FORMAT_VERSION})
        array = pool_writer.create_embeddings(wip, rows.shape, rows.dtype, 2)
        for index in range(array.spec.n_chunks):
            with array.writer(index) as chunk:
                chunk.append(rows[slice(*array.spec.chunk_range(index))])
            found.checksums.append(chunk.crc)
        with subscribe(lambda event: told.append(event.fields["message"])):
            pool_writer.finish(wip, found, has_ids=False, normalize=True, sources=["rows"], n_dropped=1)
    pool = open_pool(tmp_path / "p.zarr")
    assert (pool.n_samples, pool.max_abs, pool.n_zero_rows, pool.sources) == (3, 4.0, 1, ("rows",))
    np.testing.assert_allclose(pool.mean, rows.mean(axis=0))
    np.testing.assert_array_equal(pool.rows().read(0, 3), rows)
    assert told == [
        "1 rows with NaN or Inf were dropped", "1 rows are all zero: they have no direction and stay zero",
    ]  # fmt: skip
