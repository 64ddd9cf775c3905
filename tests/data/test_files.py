"""File operations retry transient errors, and report permanent ones clearly."""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hkm_dask.data import files, store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.files import read_attributes, write_file
from hkm_dask.data.pool import open_pool
from hkm_dask.errors import InputError, StoreError
from tests.data.stores import Flaky, make, table


def test_no_array_and_no_group_are_errors(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a Zarr array"):
        open_array(tmp_path / "nothing")
    with pytest.raises(StoreError, match="not a Zarr group or array"):
        read_attributes(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_damaged_metadata_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "zarr.json").write_text(text)
    for action in (open_array, read_attributes, open_pool):
        with pytest.raises(StoreError, match="is damaged"):
            action(tmp_path)


def test_what_another_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a.npy"

    def write(partial: Path) -> None:
        partial.write_bytes(b"mine")
        target.write_bytes(b"theirs")

    with pytest.raises(
        InputError, match=r"a\.npy should be a new file, but was created during the run; choose another name"
    ):
        files.write_whole(target, write, new=True)
    assert target.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [target]
    files.write_whole(target, write)
    assert target.read_bytes() == b"mine"


# --- disks that fail --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)


@pytest.mark.faults
@pytest.mark.parametrize("code", [errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT])
def test_transient_errors_are_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None, code: int
) -> None:
    array = make(tmp_path, table(), 4)
    flaky = Flaky(os.preadv, 3, code)
    monkeypatch.setattr(os, "preadv", flaky)
    np.testing.assert_array_equal(array.read(0, 4), table()[:4])
    assert flaky.calls == 4


@pytest.mark.faults
def test_lasting_errors_are_raised_after_bounded_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None
) -> None:
    array = make(tmp_path, table(), 4)
    flaky = Flaky(os.preadv, 99, errno.EIO)
    monkeypatch.setattr(os, "preadv", flaky)
    with pytest.raises(StoreError, match=r"reading .*c/0/0 failed 4 times: Input/output error"):
        array.read(0, 4)
    assert flaky.calls == 4


@pytest.mark.faults
def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = make(tmp_path, table(), 4)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:7]], at))
    np.testing.assert_array_equal(array.read(1, 10), table()[1:])


@pytest.mark.faults
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_the_old_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    array = make(tmp_path, table(), 4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", Flaky(os.write, 1, code))
        with pytest.raises(StoreError, match=r"the disk is full .* run the same command again"):
            array.write(0, -table()[:4])
    np.testing.assert_array_equal(array.read(0, 10), table())
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.faults
def test_a_small_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "a", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Flaky(os.replace, 1, errno.EPERM))
        with pytest.raises(StoreError, match=r"writing .*a failed: Operation not permitted"):
            write_file(tmp_path / "a", b"new and longer")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
    write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


@contextlib.contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.faults
@pytest.mark.parametrize("values", [np.ones((4096, 4), np.float32), np.random.default_rng(0).bytes(20_000)])
def test_a_file_size_limit_is_named(tmp_path: Path, values: np.ndarray | bytes) -> None:
    plain = isinstance(values, np.ndarray)
    data = values if isinstance(values, np.ndarray) else np.array([values.hex()], dtype=object)
    array = store.create_array(
        tmp_path,
        "a",
        shape=data.shape,
        dtype=data.dtype if plain else str,
        chunks=data.shape,
        dims=["x", "y"][: data.ndim],
    )
    assert array.shape == data.shape
    with largest_file(10_000), pytest.raises(StoreError, match="the disk is full"):
        open_array(tmp_path / "a").write(0, data)
    assert not list(tmp_path.rglob("*.partial"))
    open_array(tmp_path / "a").write(0, data)
    np.testing.assert_array_equal(open_array(tmp_path / "a").read(0, len(data)), data)
