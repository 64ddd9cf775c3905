"""Rows are the same for any source and any chunking."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr

import hkm_dask as hkm
from hkm_dask.data import chunks, layout, row_views, rows, store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.pool import open_pool
from hkm_dask.errors import InputError, StoreError
from tests.data.tables import KINDS, D, N, each_kind, npy_bytes, npy_rows, values, zarr_rows


@each_kind
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_rows_are_the_rows(tmp_path: Path, kind: str, dtype: str) -> None:
    expected = values(dtype)
    found = KINDS[kind](tmp_path, expected)
    assert (found.n_rows, found.n_features, found.shape, found.dtype) == (N, D, (N, D), np.dtype(dtype))
    for start, stop in [(0, N), (0, 0), (N, N), (3, 17), (5, 10), (22, 23)]:
        read = found.read(start, stop)
        assert read.flags.c_contiguous
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, expected[start:stop])
        out = np.full((stop - start, D), np.nan, dtype)
        assert found.read(start, stop, out) is out
        np.testing.assert_array_equal(out, expected[start:stop])
    for wanted in (
        [],
        [0],
        [22],
        [0, 1, 2, 3, 4],
        [1, 1, 2],
        [0, 0, 2, 3, 4],
        [5, 6, 6, 6, 9],
        list(range(0, N, 3)),
        list(range(N)),
    ):
        taken = found.take(np.array(wanted, dtype=np.int64))
        assert taken.flags.c_contiguous
        assert taken.dtype == dtype
        np.testing.assert_array_equal(taken, expected[wanted] if wanted else expected[:0])


@each_kind
def test_blocks_cover_the_rows(tmp_path: Path, kind: str) -> None:
    expected = values()
    found = KINDS[kind](tmp_path, expected)
    for max_bytes, min_blocks in [(1, 1), (100, 1), (10**9, 1), (10**9, 4)]:
        bounds = found.bounds(max_bytes, min_blocks)
        assert bounds.dtype == np.int64
        assert (bounds[0], bounds[-1]) == (0, N)
        assert (np.diff(bounds) > 0).all()
        assert len(bounds) > min_blocks
        blocks = [found.read(a, b) for a, b in itertools.pairwise(bounds.tolist())]
        np.testing.assert_array_equal(np.concatenate(blocks), expected)


@each_kind
@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, N + 1)])
def test_out_of_range_is_refused(tmp_path: Path, kind: str, start: int, stop: int) -> None:
    found = KINDS[kind](tmp_path, values())
    with pytest.raises(InputError, match="should lie within"):
        found.read(start, stop)
    for wanted in ([-1], [N], [1, 0], [0.5]):
        with pytest.raises(InputError, match="rows="):
            found.take(np.array(wanted))


@each_kind
def test_keys_tell_contents_apart_and_travel(tmp_path: Path, kind: str) -> None:
    found = KINDS[kind](tmp_path, values())
    hash(found.key)
    if kind != "memory":
        copy = pickle.loads(pickle.dumps(found))
        assert copy.key == found.key
        np.testing.assert_array_equal(copy.read(0, N), values())
    (tmp_path / "other").mkdir()
    assert KINDS[kind](tmp_path / "other", values()).key != found.key
    assert row_views.UnitRows(found).key != found.key


def test_what_has_no_fingerprint_is_another_whenever_it_is_opened(tmp_path: Path) -> None:
    # What workers remember by the key outlives a run, and the file may be written to in between.
    np.save(tmp_path / "x.npy", values())
    zarr.create_array(tmp_path / "foreign", data=values(), chunks=(5, values().shape[1]))
    pool = hkm.ingest(values(), tmp_path / "pool.zarr")
    for path, is_known in ((tmp_path / "x.npy", False), (tmp_path / "foreign", False), (pool.path, True)):
        assert (rows.as_rows(path).key == rows.as_rows(path).key) is is_known


@pytest.mark.parametrize("kind", ["npy", "zarr", "foreign"])
def test_rows_on_disk_are_cheap_to_pickle(tmp_path: Path, kind: str) -> None:
    assert len(pickle.dumps(KINDS[kind](tmp_path, values(n=2000)))) < 1500


@pytest.mark.parametrize("kind", ["npy", "zarr"])
def test_replaced_files_have_another_key(tmp_path: Path, kind: str) -> None:
    before = KINDS[kind](tmp_path, values()).key
    for path in (tmp_path / "a.npy", tmp_path / "a" / "zarr.json"):
        path.unlink(missing_ok=True)
    # The same inode may be given out again within the clock's tick; the length differs.
    assert KINDS[kind](tmp_path, values(n=N + 1)).key != before


@each_kind
def test_what_is_no_table_is_refused(tmp_path: Path, kind: str) -> None:
    if kind in ("array", "npy"):
        for shape, message in [((4,), "n_samples, n_features"), ((0, 3), "n_samples=0"), ((3, 0), "n_features=0")]:
            with pytest.raises(InputError, match=message):
                KINDS[kind](tmp_path, np.zeros(shape))


# --- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "read_as"), [("u1", "f4"), ("i2", "f4"), ("?", "f4"), ("i4", "f8"), ("u8", "f8"), (">f4", "f4")]
)
@pytest.mark.parametrize("kind", ["array", "npy", "fortran", "foreign"])
def test_integers_and_other_byte_orders_are_read_as_floats(
    tmp_path: Path, kind: str, stored: str, read_as: str
) -> None:
    array = np.arange(N * D).reshape(N, D).astype(stored)
    found = KINDS[kind](tmp_path, array)
    assert found.dtype == np.dtype(read_as)
    assert found.read(2, 9).dtype == np.dtype(read_as)
    np.testing.assert_array_equal(found.read(2, 9), array[2:9].astype(read_as))
    np.testing.assert_array_equal(found.take(np.array([1, 20])), array[[1, 20]].astype(read_as))


@pytest.mark.parametrize("dtype", ["c8", "U2", "M8[s]", "V4", "f4,f4"])
def test_what_is_no_number_is_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(InputError, match="should be float16, float32, float64 or an integer"):
        rows.ArrayRows(np.zeros((2, 2), dtype=dtype))
    with pytest.raises(InputError, match="should be float16, float32, float64 or an integer"):
        npy_rows(tmp_path, np.zeros((2, 2), dtype=dtype))


# --- .npy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.filterwarnings("ignore:Stored array in format")
def test_all_versions_of_npy_are_read(tmp_path: Path, version: tuple[int, int]) -> None:
    (tmp_path / "a.npy").write_bytes(npy_bytes(values(), version))
    np.testing.assert_array_equal(rows.NpyRows(tmp_path / "a.npy").read(0, N), values())


def test_an_npy_inside_a_file(tmp_path: Path) -> None:
    data = npy_bytes(values())
    (tmp_path / "a.bin").write_bytes(b"before" + data + b"after")
    found = rows.NpyRows(tmp_path / "a.bin", offset=6, n_bytes=len(data))
    np.testing.assert_array_equal(found.read(3, 9), values()[3:9])


@pytest.mark.faults
def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    found, scratch = npy_rows(tmp_path, values()), rows.NpyRows(tmp_path / "a.npy", scratch=True)
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(StoreError, match="was replaced or written to meanwhile"):
        found.read(0, N)
    with pytest.raises(StoreError, match="became shorter while it was read"):
        scratch.read(0, N)


def test_far_rows_of_a_large_npy(tmp_path: Path) -> None:
    array = np.arange(40_000 * 64, dtype=np.float32).reshape(40_000, 64)
    found = npy_rows(tmp_path, array)
    for seed in range(3):
        wanted = np.sort(np.random.default_rng(seed).choice(40_000, 10 ** (seed + 1), replace=False))
        np.testing.assert_array_equal(found.take(wanted), array[wanted])


# --- Zarr -------------------------------------------------------------------------------------------------------------


def test_a_foreign_chunk_that_is_missing_is_no_value(tmp_path: Path) -> None:
    made = zarr.create_array(str(tmp_path / "f"), shape=(6, 2), dtype="f4", chunks=(2, 2), fill_value=7)
    made[:2] = 1
    with pytest.raises(StoreError, match=r"n_missing_chunks=2 of 3 should be 0, the first is c/1/0; copy it again, or"):
        rows.ZarrRows(tmp_path / "f")
    full = made.with_config({"write_empty_chunks": True})
    full[2:] = 7
    np.testing.assert_array_equal(rows.ZarrRows(tmp_path / "f").read(1, 6), [[1, 1], *[[7, 7]] * 4])


def test_each_chunk_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = chunks.StoredArray._read_chunk

    def spy(self: chunks.StoredArray, index: int, *parts: np.ndarray) -> None:
        read.append(index)
        real(self, index, *parts)

    found = zarr_rows(tmp_path, values())
    monkeypatch.setattr(chunks.StoredArray, "_read_chunk", spy)
    found.take(np.array([0, 1, 4, 11, 12, 13, 14, 22]))
    assert read == [0, 2, 4]
    subset = row_views.SubsetRows(found, np.array([0, 1, 4, 11, 12, 22]))
    for max_bytes in (1, 36, 10**6):
        read.clear()
        bounds = subset.bounds(max_bytes)
        for start, stop in itertools.pairwise(bounds.tolist()):
            subset.read(start, stop)
        assert read == [0, 2, 4]


# --- as_rows ----------------------------------------------------------------------------------------------------------


def test_rows_of_whatever_holds_some(tmp_path: Path) -> None:
    array = values()
    on_disk = zarr_rows(tmp_path, array)
    np.save(tmp_path / "x.npy", array)
    held = [
        array,
        on_disk,
        tmp_path / "x.npy",
        str(tmp_path / "x.npy"),
        tmp_path / "a",
        zarr.open_array(str(tmp_path / "a"), mode="r"),
        zarr.open_group(str(tmp_path), mode="r")["a"],
    ]
    for one in held:
        np.testing.assert_array_equal(rows.as_rows(one).read(0, N), array)
    assert rows.as_rows(on_disk) is on_disk
    assert rows.as_rows(held[-1]).label == rows.as_rows(tmp_path / "a").label == on_disk.label


def test_a_pool_gives_its_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "p.zarr"
    facts = {"max_abs": float(np.abs(values()).max()), "n_zero_rows": 0, "sources": [], "has_ids": False}
    store.create_group(path, {"format": layout.POOL_FORMAT, "format_version": 2})
    for name, array in ((layout.EMBEDDINGS, values()), (layout.MEAN, values()[0])):
        store.create_array(path, name, shape=array.shape, dtype="f4", chunks=array.shape, dims=["x", "y"][: array.ndim])
        open_array(path / name).write(0, array)
    with pytest.raises(StoreError, match="is not complete"):
        rows.as_rows(path)
    fingerprint = open_array(path / layout.EMBEDDINGS).seal().fingerprint
    store.mark_complete(path, {**facts, "fingerprint": fingerprint})
    found = rows.as_rows(path)
    np.testing.assert_array_equal(found.read(0, N), values())
    assert found.key == rows.as_rows(open_pool(path)).key
    assert fingerprint in found.key


@pytest.mark.parametrize("what", [3, None, [[1.0]], {"a": 1}])
def test_what_holds_no_rows_is_refused(what: object) -> None:
    with pytest.raises(InputError, match="should be"):
        rows.as_rows(what)


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.npy does not exist; give a .npy file, a pool or a Zarr array"):
        rows.as_rows(tmp_path / "nowhere.npy")
    with pytest.raises(InputError, match=r"nowhere.npy does not exist; check the path"):
        rows.NpyRows(tmp_path / "nowhere.npy")


def test_what_is_to_be_ingested_first_is_told(tmp_path: Path) -> None:
    (tmp_path / "part.parquet").write_bytes(b"PAR1")
    for path in (tmp_path, tmp_path / "part.parquet"):
        with pytest.raises(StoreError, match=r"is not a pool, \.npy file or Zarr array; .*`hkm ingest`"):
            rows.as_rows(path)
