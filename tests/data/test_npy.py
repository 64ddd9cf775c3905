"""Headers of `.npy` files are parsed without trusting them; files are written in pieces."""

import contextlib
import errno
import gc
import io
import os
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.data import npy, rows
from hkm_dask.errors import InputError, StoreError
from tests.data.stores import Flaky
from tests.data.tables import D, N, npy_bytes, values


@pytest.mark.faults
def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy_bytes(np.array([[{}]], dtype=object)))
    with pytest.raises(InputError, match="holds pickled objects, which are never loaded"):
        rows.NpyRows(tmp_path / "a.npy")


def header(text: str, version: bytes = b"\x01\x00", encoding: str = "utf-8") -> bytes:
    data = text.encode(encoding)
    return npy.NPY_MAGIC + version + struct.pack("<H" if version[0] == 1 else "<I", len(data)) + data


@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing")
def test_headers_of_python_2_are_read() -> None:
    data = header("{'descr': '<f4', 'fortran_order': False, 'shape': (7L, 4L)}")
    assert npy.read_npy_header(io.BytesIO(data), "a").shape == (7, 4)


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


@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing")
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


SOUND = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1)}"


@pytest.mark.faults
@pytest.mark.parametrize(
    "data",
    [
        header(SOUND, b"\x01\x05"),
        header(SOUND, b"\x03\x01"),
        header(SOUND + " " * 10_000),
        header(SOUND + " " * 10_000, b"\x02\x00"),
        header(SOUND + "# \xff", b"\x03\x00", "latin-1"),
        header(SOUND.replace("1)", "1L)"), b"\x03\x00"),
    ],
    ids=["minor version", "minor version of 3", "long", "long in version 2", "no UTF-8", "Python 2 in version 3"],
)
def test_what_numpy_refuses_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(data + bytes(4))
    with pytest.raises(ValueError):  # noqa: PT011 (NumPy has many words for it)
        np.load(path, allow_pickle=False)
    with pytest.raises(InputError):
        rows.NpyRows(path)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_is_read(tmp_path: Path, version: tuple[int, int]) -> None:
    (tmp_path / "a.npy").write_bytes(npy_bytes(values(), version))
    np.testing.assert_array_equal(rows.NpyRows(tmp_path / "a.npy").read(0, N), values())


@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing")
@settings(max_examples=200)
@given(
    flips=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), min_size=1, max_size=3), version=st.booleans()
)
def test_nothing_is_read_that_numpy_would_not_read(flips: list[tuple[int, int]], version: bool) -> None:
    data = bytearray(npy_bytes(values(), (3, 0) if version else (1, 0)))
    for at, byte in flips:
        data[at] = byte
    with contextlib.suppress(InputError):
        found = npy.read_npy_header(io.BytesIO(bytes(data)), "a", len(data))
        theirs = np.load(io.BytesIO(bytes(data)), allow_pickle=False)
        assert (theirs.shape, theirs.dtype) == (found.shape, found.dtype)


# --- files written in pieces ------------------------------------------------------------------------------------------


def test_pieces_written_in_any_order_are_one_array(tmp_path: Path) -> None:
    array, path = values("f8"), tmp_path / "new folder" / "a.npy"
    offset = npy.create_npy(path, array.shape, array.dtype)
    for start in (15, 0, 8):
        npy.write_npy_rows(path, offset, start, array[start : start + 8])
    np.testing.assert_array_equal(np.load(path), array)


def test_rows_in_columns_order_are_written_by_rows(tmp_path: Path) -> None:
    offset = npy.create_npy(tmp_path / "a.npy", (N, D), np.dtype("f4"))
    npy.write_npy_rows(tmp_path / "a.npy", offset, 0, np.asfortranarray(values()))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), values())


@pytest.mark.faults
def test_a_full_disk_is_named_while_a_piece_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offset = npy.create_npy(tmp_path / "a.npy", (N, D), np.dtype("f4"))
    monkeypatch.setattr(os, "pwrite", Flaky(os.pwrite, 1, errno.ENOSPC))
    with pytest.raises(StoreError, match=r"writing .*a.npy: the disk is full"):
        npy.write_npy_rows(tmp_path / "a.npy", offset, 0, values())


def test_threads_read_headers_at_the_same_time() -> None:
    """Python before 3.11.8 fails where the garbage collector lets another thread parse between (gh-106905)."""
    stream, errors, end = io.BytesIO(), list[BaseException](), time.monotonic() + 10
    np.save(stream, np.zeros((3, 2)))

    def read(depth: int) -> None:
        if depth:  # what is compared is how deep each thread was
            return read(depth - 1)
        for _ in range(700):
            try:
                assert npy.read_npy_header(io.BytesIO(stream.getvalue()), "x.npy").shape == (3, 2)
            except BaseException as error:
                errors.append(error)
            if errors or time.monotonic() > end:
                return

    def let_others(*_: object) -> None:
        time.sleep(0)

    threshold = gc.get_threshold()
    gc.callbacks.append(let_others)
    gc.set_threshold(3)
    try:
        threads = [threading.Thread(target=read, args=(7 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(let_others)
    assert errors == []
