"""Chunks are read and written as a whole, and any damage is detected."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hkm_dask.data import chunks, layout, store
from hkm_dask.data.chunks import open_array
from hkm_dask.errors import InputError, StoreError
from tests.data.stores import make, table


@given(
    values=hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.int32, np.int64]),
        hnp.array_shapes(min_dims=1, max_dims=2, min_side=1, max_side=13),
        elements=st.integers(-100, 100),
    ),
    chunk_rows=st.integers(1, 14),
    data=st.data(),
)
def test_any_slice_is_what_zarr_reads(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, chunk_rows: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any")
    array = make(folder, values, chunk_rows)
    assert array.spec.plain
    np.testing.assert_array_equal(zarr.open_array(str(folder / "a"), mode="r")[:], values)
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    out = np.empty((stop - start, *values.shape[1:]), dtype=values.dtype)
    assert array.read(start, stop, out) is out
    np.testing.assert_array_equal(out, values[start:stop])
    np.testing.assert_array_equal(array.read(start, stop), values[start:stop])
    rows = np.sort(data.draw(hnp.arrays(np.int64, st.integers(0, 20), elements=st.integers(0, len(values) - 1))))
    np.testing.assert_array_equal(array.take(rows), values[rows])


def test_what_zarr_writes_we_read(tmp_path: Path) -> None:
    array = store.create_array(tmp_path, "a", shape=(7, 2), dtype="f4", chunks=(3, 2), dims=("x", "y"))
    array[:] = table(7, 2)
    np.testing.assert_array_equal(open_array(tmp_path / "a").read(2, 7), table(7, 2)[2:7])
    np.testing.assert_array_equal(open_array(tmp_path / "a").read_chunk(2), table(7, 2)[6:])


@pytest.mark.parametrize("compressed", [False, True])
def test_edge_chunks_and_compression(tmp_path: Path, compressed: bool) -> None:
    array = make(tmp_path, table(), 4, compressed=compressed)
    assert array.spec.plain is not compressed
    assert array.spec.checked
    np.testing.assert_array_equal(array.read(3, 10), table()[3:])
    np.testing.assert_array_equal(array.take(np.array([0, 4, 9])), table()[[0, 4, 9]])


def test_strings_of_any_length(tmp_path: Path) -> None:
    ids = np.array(["", "é", "x" * 5000, "a/b", "日本"], dtype=object)
    array = make(tmp_path, ids, 2)
    assert array.read(1, 5).tolist() == ids[1:].tolist()
    assert array.take(np.array([0, 2, 4])).tolist() == ids[[0, 2, 4]].tolist()
    assert zarr.open_array(str(tmp_path / "a"), mode="r")[:].tolist() == ids.tolist()


def test_arrays_are_cheap_to_pickle(tmp_path: Path) -> None:
    array = make(tmp_path, table(), 4)
    traveled = pickle.dumps(array)
    assert len(traveled) < 1000
    np.testing.assert_array_equal(pickle.loads(traveled).read(0, 10), table())


@pytest.mark.parametrize(("start", "n"), [(1, 4), (0, 3), (4, 5), (8, 4), (0, 0)])
def test_only_whole_chunks_are_written(tmp_path: Path, start: int, n: int) -> None:
    array = make(tmp_path, table(), 4)
    if n:
        with pytest.raises(InputError, match="should be whole chunks of 4 rows"):
            array.write(start, np.zeros((n, 3), np.float32))
    else:
        array.write(start, np.zeros((n, 3), np.float32))
    np.testing.assert_array_equal(array.read(0, 10), table())


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="whole chunks"):
        make(tmp_path, table(), 4).write(0, np.zeros((4, 2), np.float32))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 11)])
def test_rows_out_of_range_are_refused(tmp_path: Path, start: int, stop: int) -> None:
    with pytest.raises(InputError, match="should lie within 0:10"):
        make(tmp_path, table(), 4).read(start, stop)


@pytest.mark.parametrize("rows", [[2, 1], [-1, 1], [0, 10], [0.5], [[1]], [True]])
def test_row_numbers_that_are_none_are_refused(tmp_path: Path, rows: list) -> None:
    with pytest.raises(InputError, match="rows="):
        make(tmp_path, table(), 4).take(np.array(rows))


def test_what_is_read_begins_at_a_cache_line(tmp_path: Path) -> None:
    array = make(
        tmp_path, table(300_000), 150_000
    )  # of 16 bytes behind a page, as malloc has it, files are read slowly
    read = [array.read(0, 300_000), array.read(150_000, 299_999), array.read_chunk(1), array.read(5, 5)]
    assert [rows.ctypes.data % 64 for rows in read if rows.size] == [0, 0, 0]
    np.testing.assert_array_equal(read[0], table(300_000))
    assert (read[3].shape, read[3].dtype) == ((0, 3), np.float32)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["plain", "compressed"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> chunks.StoredArray:
    return make(tmp_path, table(), 4, compressed=request.param)


@pytest.mark.faults
def test_a_missing_chunk_is_no_zeros(damaged: chunks.StoredArray) -> None:
    damaged.chunk_path(1).unlink()
    np.testing.assert_array_equal(damaged.read(0, 4), table()[:4])
    for action in (lambda: damaged.read(0, 10), lambda: damaged.take(np.array([5])), damaged.check):
        with pytest.raises(StoreError, match=r"a: chunk 1 \(.*/c/1/0, rows 4:8\) is missing; make it again"):
            action()


@pytest.mark.faults
@pytest.mark.parametrize("length", [0, 3, 20, -1])
def test_a_cut_chunk_is_an_error(damaged: chunks.StoredArray, length: int) -> None:
    path = damaged.chunk_path(2)
    os.truncate(path, length % path.stat().st_size)
    np.testing.assert_array_equal(damaged.read(0, 8), table()[:8])
    with pytest.raises(StoreError, match="make it again"):
        damaged.read(9, 10)
    if damaged.spec.plain:
        with pytest.raises(StoreError, match=r"chunk 2 .* has \d+ bytes instead of 52"):
            damaged.check()


@pytest.mark.faults
def test_a_longer_chunk_is_an_error(tmp_path: Path) -> None:
    array = make(tmp_path, table(), 4)
    with array.chunk_path(0).open("ab") as file:
        file.write(b"\0" * 8)
    with pytest.raises(StoreError, match="has 60 bytes instead of 52"):
        array.read(0, 1)


@pytest.mark.faults
def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    array = make(tmp_path, table(), 4)
    # The last chunk: two rows, padding and the checksum; a flip in the padding counts too.
    path = array.chunk_path(2)
    sound = path.read_bytes()
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x10]) + sound[at + 1 :])
        with pytest.raises(StoreError, match=r"chunk 2 .*rows 8:10\) was altered on disk"):
            array.read(8, 10)
        with pytest.raises(StoreError, match="was altered on disk"):
            array.take(np.array([9]))
    path.write_bytes(sound)
    np.testing.assert_array_equal(array.read(8, 10), table()[8:])


@pytest.mark.faults
def test_a_flip_in_a_compressed_chunk_is_found(tmp_path: Path) -> None:
    array = make(tmp_path, np.array(["a", "b", "c"], dtype=object), 3)
    path = array.chunk_path(0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"cannot be read .*checksum.*make it again"):
        array.read(0, 3)


def test_the_remedy_fits_the_store(tmp_path: Path) -> None:
    store.create_group(tmp_path / "p", {"format": layout.POOL_FORMAT})
    store.create_group(tmp_path / "t", {"format": layout.TREE_FORMAT})
    for folder, remedy in (("p", "hkm ingest"), ("t/level_1", "hkm cluster --restart")):
        array = make(tmp_path / folder, table(), 4)
        array.chunk_path(0).unlink()
        with pytest.raises(StoreError, match=remedy):
            array.read(0, 1)


@pytest.mark.faults
def test_a_list_of_checksums_has_one_for_every_chunk(tmp_path: Path) -> None:
    store.create_group(tmp_path / "g")
    make(tmp_path / "g", table(), 4)
    store.mark_complete(tmp_path / "g")
    folder = tmp_path / "g" / "a"
    metadata = json.loads((folder / "zarr.json").read_text())
    for listed in (b"", (folder / "checksums").read_bytes()[:8]):
        (folder / "checksums").write_bytes(listed)
        spec = open_array(folder).spec
        metadata["attributes"]["fingerprint"] = layout.array_fingerprint(spec, np.frombuffer(listed, "<u4"))
        (folder / "zarr.json").write_text(json.dumps(metadata))
        with pytest.raises(StoreError, match="checksums is missing or of another array"):
            open_array(folder).read(0, 10)
