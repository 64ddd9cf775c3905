"""Rows are the same rows, wherever they come from and however they are cut."""

import io
import itertools
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hkm_dask.data import chunks, layout, npy, row_views, rows, store
from hkm_dask.errors import InputError, StoreError

N, D = 23, 3
CHUNK = 5


def values(dtype: str = "f4", n: int = N) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, D)).astype(dtype)


def zarr_rows(folder: Path, array: np.ndarray) -> rows.ZarrRows:
    store.create_array(folder, "a", shape=array.shape, dtype=array.dtype, chunks=(CHUNK, D), dims=("sample", "feature"))
    store.write_rows(folder / "a", 0, array)
    return rows.ZarrRows(folder, "a")


def foreign_rows(folder: Path, array: np.ndarray) -> rows.ZarrRows:
    made = zarr.create_array(str(folder / "f"), shape=array.shape, dtype=array.dtype, chunks=(4, 2), zarr_format=2)
    made[:] = array
    return rows.ZarrRows(folder / "f")


def memory_rows(folder: Path, array: np.ndarray) -> rows.Rows:
    made = zarr.create_array({}, shape=array.shape, dtype=array.dtype, chunks=(4, D))
    made[:] = array
    return rows.as_rows(made)


def npy_rows(folder: Path, array: np.ndarray) -> rows.NpyRows:
    np.save(folder / "a.npy", array)
    return rows.NpyRows(folder / "a.npy")


def fortran_rows(folder: Path, array: np.ndarray) -> rows.NpyRows:
    return npy_rows(folder, np.asfortranarray(array))


def subset_rows(folder: Path, array: np.ndarray) -> row_views.SubsetRows:
    padded = np.full((2 * len(array), D), np.nan, array.dtype)
    padded[1::2] = array
    return row_views.SubsetRows(zarr_rows(folder, padded), np.arange(1, len(padded), 2))


KINDS: dict[str, Callable[[Path, np.ndarray], rows.Rows]] = {
    "array": lambda folder, array: rows.ArrayRows(array),
    "npy": npy_rows,
    "fortran": fortran_rows,
    "zarr": zarr_rows,
    "foreign": foreign_rows,
    "memory": memory_rows,
    "subset": subset_rows,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


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


def npy_bytes(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=True)
    return file.getvalue()


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
def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy_bytes(np.array([[{}]], dtype=object)))
    with pytest.raises(InputError, match="holds pickled objects, which are never loaded"):
        rows.NpyRows(tmp_path / "a.npy")


def header(text: str) -> bytes:
    return npy.NPY_MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "should be a .npy file"),
        (b"\x93NUMPY\x01", "should be a .npy file"),
        (b"hello world, no numpy", "should be a .npy file"),
        (npy.NPY_MAGIC + b"\x09\x00" + b"x" * 90, "version=9 should be 1, 2 or 3"),
        (npy.NPY_MAGIC + b"\x02\x00" + b"\xff\xff\xff\xff" + b"x" * 90, "damaged or truncated"),
        (npy.NPY_MAGIC + b"\x02\x00" + b"\x01\x00", "damaged or truncated"),
        (npy_bytes(values())[:60], "damaged or truncated"),
        (npy_bytes(values())[:-1], r"n_bytes=403 should be 404 by its header \(23, 3\) float32; copy or save it again"),
        (npy_bytes(values()) + b"\0", "n_bytes=405 should be 404"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4)}"), "should be 16000000000079"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}"), "damaged"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (2.5, 4)}"), "damaged"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4)}"), "damaged"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': 4}"), "damaged"),
        (header("{'descr': '<f4', 'fortran_order': 0, 'shape': (1, 4)}"), "damaged"),
        (header("{'descr': 'nonsense', 'fortran_order': False, 'shape': (1, 4)}"), "damaged"),
        (header("{'descr': '<f4', 'shape': (1, 4)}"), "damaged"),
        (header("__import__('os').system('true')"), "damaged"),
        (header("[" * 3000), "damaged"),
        (header("\xff\xfe"), "damaged"),
    ],
)
def test_lying_and_truncated_headers_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(InputError, match=message):
        rows.NpyRows(tmp_path / "a.npy")


@given(cut=st.integers(0, 403), flips=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=3))
def test_no_header_breaks_the_parser(cut: int, flips: list[tuple[int, int]]) -> None:
    data = bytearray(npy_bytes(values()))
    for at, byte in flips:
        data[at] = byte
    try:
        found = npy.read_npy_header(io.BytesIO(bytes(data[:cut])), "a")
    except InputError:
        return
    assert found.offset <= cut


@pytest.mark.faults
def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    found = npy_rows(tmp_path, values())
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(StoreError, match="became shorter while it was read"):
        found.read(0, N)


def test_far_rows_of_a_large_npy(tmp_path: Path) -> None:
    array = np.arange(40_000 * 64, dtype=np.float32).reshape(40_000, 64)
    found = npy_rows(tmp_path, array)
    for seed in range(3):
        wanted = np.sort(np.random.default_rng(seed).choice(40_000, 10 ** (seed + 1), replace=False))
        np.testing.assert_array_equal(found.take(wanted), array[wanted])


# --- Zarr -------------------------------------------------------------------------------------------------------------


def test_foreign_fill_values_are_values(tmp_path: Path) -> None:
    made = zarr.create_array(str(tmp_path / "f"), shape=(6, 2), dtype="f4", chunks=(2, 2), fill_value=7)
    made[:2] = 1
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


# --- subsets ----------------------------------------------------------------------------------------------------------


@given(
    index=st.sets(st.integers(0, N - 1), min_size=1).map(lambda rows: np.array(sorted(rows))),
    max_bytes=st.integers(1, 400),
    min_blocks=st.integers(1, 30),
)
def test_subset_blocks_end_where_chunks_end(
    tmp_path_factory: pytest.TempPathFactory, index: np.ndarray, max_bytes: int, min_blocks: int
) -> None:
    base = zarr_rows(tmp_path_factory.mktemp("subset"), values())
    subset = row_views.SubsetRows(base, index)
    bounds = subset.bounds(max_bytes, min_blocks)
    assert (bounds[0], bounds[-1]) == (0, len(index))
    assert (np.diff(bounds) > 0).all()
    for start, stop in itertools.pairwise(bounds.tolist()):
        touched = index[start:stop] // CHUNK
        assert start == 0 or touched[0] != index[start - 1] // CHUNK
        assert stop - start <= max(1, max_bytes // subset.row_bytes) or touched[0] == touched[-1]


def test_a_subset_of_a_subset_is_one(tmp_path: Path) -> None:
    base = zarr_rows(tmp_path, values())
    inner = row_views.SubsetRows(base, np.arange(0, N, 2))
    outer = row_views.SubsetRows(inner, np.array([1, 5, 10]))
    assert outer.base is base
    assert outer.index.tolist() == [2, 10, 20]
    np.testing.assert_array_equal(outer.read(0, 3), values()[[2, 10, 20]])
    assert outer.key != inner.key


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "n_samples=0 should be at least 1"),
        ([1, 1], "row numbers repeat"),
        ([2, 1], "should be sorted"),
        ([0, N], "should lie within 0..22"),
        ([-1], "should lie within"),
    ],
)
def test_bad_subsets_are_refused(index: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        row_views.SubsetRows(rows.ArrayRows(values()), np.array(index, dtype=np.int64))


# --- unit rows --------------------------------------------------------------------------------------------------------


@given(
    array=hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        elements=st.floats(-100, 100, width=16),
    ),
    data=st.data(),
)
def test_unit_rows_depend_on_nothing_but_the_row(array: np.ndarray, data: st.DataObject) -> None:
    whole = row_views.unit_rows(array)
    wide = array.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    expected = np.divide(wide, norms[:, None], out=np.zeros_like(wide), where=norms[:, None] > 0)
    np.testing.assert_allclose(whole, expected, rtol=1e-7, atol=1e-45)
    start = data.draw(st.integers(0, len(array) - 1))
    stop = data.draw(st.integers(start + 1, len(array)))
    assert row_views.unit_rows(array[start:stop]).tobytes() == whole[start:stop].tobytes()
    assert row_views.unit_rows(array[start : start + 1]).tobytes() == whole[start : start + 1].tobytes()


def test_large_blocks_of_unit_rows_are_the_same_rows() -> None:
    array = np.random.default_rng(0).normal(size=(5000, 70)).astype(np.float32)
    one_by_one = np.concatenate([row_views.unit_rows(array[row : row + 1]) for row in range(len(array))])
    assert row_views.unit_rows(array).tobytes() == one_by_one.tobytes()


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-30, 1.0, 1e30, 1e200, 1e300])
def test_no_row_is_too_long_or_too_short_to_normalize(scale: float) -> None:
    np.testing.assert_allclose(row_views.unit_rows(np.array([[3.0, 4.0]]) * scale), [[0.6, 0.8]], rtol=1e-6)


@each_kind
def test_unit_rows_over_anything(tmp_path: Path, kind: str) -> None:
    base = KINDS[kind](tmp_path, values("f2"))
    found = row_views.UnitRows(base)
    expected = row_views.unit_rows(values("f2"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.read(3, 9), expected[3:9])
    np.testing.assert_array_equal(found.take(np.array([0, 20])), expected[[0, 20]])
    # Rows grow from 2 to 4 bytes a value; a block must not.
    bounds = found.bounds(60 * found.row_bytes // 4)
    assert np.diff(bounds).max() <= 15
    assert set(bounds.tolist()) <= {*range(0, N, base.chunk_rows), N, *bounds.tolist()}


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
    assert rows.as_rows(held[-1]).key == rows.as_rows(tmp_path / "a").key == on_disk.key


def test_a_pool_gives_its_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "p.zarr"
    facts = {"fingerprint": "ab", "max_abs": 1.0, "n_zero_rows": 0, "sources": [], "has_ids": False}
    store.create_group(path, {"format": layout.POOL_FORMAT, "format_version": 1})
    for name, array in ((layout.EMBEDDINGS, values()), (layout.MEAN, values()[0])):
        store.create_array(path, name, shape=array.shape, dtype="f4", chunks=array.shape, dims=["x", "y"][: array.ndim])
        store.write_rows(path / name, 0, array)
    with pytest.raises(StoreError, match="is not complete"):
        rows.as_rows(path)
    store.mark_complete(path, facts)
    found = rows.as_rows(path)
    np.testing.assert_array_equal(found.read(0, N), values())
    assert found.key == rows.as_rows(store.open_pool(path)).key
    assert "ab" in found.key


@pytest.mark.parametrize("what", [3, None, [[1.0]], {"a": 1}, "nowhere.npy"])
def test_what_holds_no_rows_is_refused(what: object) -> None:
    with pytest.raises(InputError, match="should be"):
        rows.as_rows(what)


def test_a_folder_without_zarr_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no Zarr array"):
        rows.as_rows(tmp_path)
