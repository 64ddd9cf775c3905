"""Stores survive kills, corruption, a full disk and a second writer; nothing is silently wrong."""

import contextlib
import errno
import inspect
import json
import os
import pickle
import resource
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hkm_dask.data import chunks, files, layout, store
from hkm_dask.data.files import read_attributes
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import subscribe

ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path, values: np.ndarray, chunk_rows: int, name: str = "a", **options: object) -> chunks.StoredArray:
    store.create_array(
        folder,
        name,
        shape=values.shape,
        dtype=str if values.dtype == object else values.dtype,
        chunks=(chunk_rows, *values.shape[1:]),
        dims=[f"axis_{axis}" for axis in range(values.ndim)],
        **options,
    )
    array = store.open_array(folder / name)
    array.write(0, values)
    return array


def table(n_rows: int = 10, n_features: int = 3) -> np.ndarray:
    return np.arange(n_rows * n_features, dtype=np.float32).reshape(n_rows, n_features)


def run_python(code: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
        check=False,
        timeout=120,
    )


# --- arrays -----------------------------------------------------------------------------------------------------------


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
    np.testing.assert_array_equal(store.read_rows(tmp_path / "a", 2, 7), table(7, 2)[2:7])
    np.testing.assert_array_equal(store.read_chunk(tmp_path / "a", 2), table(7, 2)[6:])


def test_chunks_of_zeros_are_on_disk(tmp_path: Path) -> None:
    for compressed in (False, True):
        name = f"a{compressed}"
        make(tmp_path, np.zeros((5, 2), np.float32), 2, name, compressed=compressed)
        assert len(list((tmp_path / name / "c").rglob("0"))) >= 3
        store.open_array(tmp_path / name).check()
    array = store.create_array(tmp_path, "z", shape=(4,), dtype="i4", chunks=(2,), dims=("x",), fill_value=-1)
    array[:] = -1
    assert len(list((tmp_path / "z" / "c").iterdir())) == 2


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


@pytest.mark.parametrize("name", ["../a", "a/b", "/a", "", ".", "..", ".a", "a\0b"])
def test_names_stay_inside_their_group(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="name="):
        store.create_array(tmp_path / "g", name, shape=(1,), dtype="f4", chunks=(1,), dims=("x",))


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


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_damaged_metadata_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "zarr.json").write_text(text)
    for action in (store.open_array, store.read_attributes, store.open_pool):
        with pytest.raises(StoreError, match="is damaged"):
            action(tmp_path)


def test_no_array_and_no_group_are_errors(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no Zarr array"):
        store.open_array(tmp_path / "nothing")
    with pytest.raises(StoreError, match="no Zarr group or array"):
        store.read_attributes(tmp_path)


# --- disks that fail --------------------------------------------------------------------------------------------------


class Flaky:
    """Fails a few times, as a network mount does."""

    def __init__(self, real: Callable, times: int, code: int) -> None:
        self.real, self.left, self.code, self.calls = real, times, code, 0

    def __call__(self, *args: object) -> object:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*args)


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
        store.write_rows(tmp_path / "a", 0, data)
    assert not list(tmp_path.rglob("*.partial"))
    store.write_rows(tmp_path / "a", 0, data)
    np.testing.assert_array_equal(store.read_rows(tmp_path / "a", 0, len(data)), data)


# --- the stage commit -------------------------------------------------------------------------------------------------


def test_a_stage_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "sub folder" / "a b.zarr"
    target.parent.mkdir()
    with store.staged(target) as wip:
        assert wip == target.with_name("a b.zarr.wip")
        store.create_group(wip, {"format": layout.POOL_FORMAT})
        make(wip, table(), 4)
        assert not target.exists()
        store.mark_complete(wip, {"n": 3})
    assert not wip.exists()
    assert store.read_attributes(target) == {"format": layout.POOL_FORMAT, "n": 3, "complete": True}


@pytest.mark.parametrize("keep", [True, False])
def test_an_error_keeps_the_wip_where_asked(tmp_path: Path, keep: bool) -> None:
    def fail() -> None:
        with store.staged(tmp_path / "a.zarr", keep=keep) as wip:
            store.create_group(wip)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "a.zarr.wip").exists() is keep
    with store.staged(tmp_path / "a.zarr", keep=keep) as wip:
        assert wip.exists() is keep
        store.create_group(wip)
    assert (tmp_path / "a.zarr").exists()


# --- resuming ---------------------------------------------------------------------------------------------------------


def resume(path: Path, seed: int, *, error: BaseException | None = None, **options: Any) -> bool:
    """Build a store in two steps, between which an error may come; tell whether there was anything to do."""

    def obstacles(folder: Path) -> list[str]:
        found = read_attributes(folder).get("seed")
        return [] if found == seed else [f"seed: {found} in {folder.name}, {seed} asked for"]

    with store.resumable(path, obstacles, **options) as wip:
        if wip is None:
            return False
        store.create_group(wip, {"format": layout.POOL_FORMAT, "seed": seed})
        if error:
            raise error
        store.mark_complete(wip)
    return True


def test_an_interrupted_store_is_continued(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "a.zarr", 1, error=KeyboardInterrupt())
    (tmp_path / "a.zarr.wip" / "kept").touch()
    assert resume(tmp_path / "a.zarr", 1)
    assert sorted(path.name for path in (tmp_path / "a.zarr").iterdir()) == ["kept", "zarr.json"]


def test_a_complete_store_is_not_built_again(tmp_path: Path) -> None:
    assert resume(tmp_path / "a.zarr", 1)
    told = []
    with subscribe(lambda event: told.append((event.kind, dict(event.fields)))):
        assert not resume(tmp_path / "a.zarr", 1)
    assert told == [("resumed", {"what": "already complete"})]


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_store_made_otherwise_is_refused_and_kept(tmp_path: Path, interrupted: bool) -> None:
    with suppress(KeyboardInterrupt):
        resume(tmp_path / "a.zarr", 1, error=KeyboardInterrupt() if interrupted else None)
    name = "a.zarr.wip" if interrupted else "a.zarr"
    with pytest.raises(InputError, match=f"seed: 1 in {name}, 2 asked for"):
        resume(tmp_path / "a.zarr", 2)
    assert resume(tmp_path / "a.zarr", 1) is interrupted


def test_an_interrupted_restart_is_continued_beside_the_complete_store(tmp_path: Path) -> None:
    resume(tmp_path / "a.zarr", 1)
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "a.zarr", 2, error=KeyboardInterrupt(), restart=True)
    assert read_attributes(tmp_path / "a.zarr")["seed"] == 1
    assert not resume(tmp_path / "a.zarr", 1)  # still the complete one
    assert resume(tmp_path / "a.zarr", 2)
    assert read_attributes(tmp_path / "a.zarr")["seed"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_restart_discards_what_was_unfinished_and_replaces_only_stores_of_ours(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "a.zarr", 1, error=KeyboardInterrupt())
    (tmp_path / "a.zarr.wip" / "old").touch()
    assert resume(tmp_path / "a.zarr", 1, restart=True)
    assert [path.name for path in (tmp_path / "a.zarr").iterdir()] == ["zarr.json"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="should be a store of hkm_dask to be overwritten"):
        resume(tmp_path / "home", 1, restart=True)


SCRATCH = ["regrouped-1.npy", "rows-1.npy", "input-1.npy", "subset-1.npy", "level_2-step_0.partial"]


def leave_scratch(work: Path) -> None:
    """What a run leaves that was killed: a checkpoint and scratch files."""
    (work / "shared-1").mkdir(parents=True)
    for name in (*SCRATCH, "shared-1/rows-a.npy", "level_1-step_0.npz"):
        (work / name).write_bytes(b"half")


def test_scratch_files_are_swept_and_checkpoints_kept(tmp_path: Path) -> None:
    store.sweep_scratch(tmp_path / "nothing")
    leave_scratch(tmp_path / "work")
    store.sweep_scratch(tmp_path / "work")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["level_1-step_0.npz"]


def test_scratch_of_a_dead_run_is_swept_before_the_next_one_works(tmp_path: Path) -> None:
    target, work = tmp_path / "a.zarr", layout.work_path(tmp_path / "a.zarr")
    leave_scratch(work)
    with pytest.raises(KeyboardInterrupt):
        resume(target, 1, error=KeyboardInterrupt(), work=work)
    assert not work.exists()  # nothing was unfinished, so these checkpoints belonged to no run
    leave_scratch(work)
    with store.resumable(target, lambda folder: [], work=work) as wip:
        assert [path.name for path in work.iterdir()] == ["level_1-step_0.npz"]
        store.mark_complete(wip)
    assert not work.exists()


def test_scratch_is_swept_after_a_full_disk(tmp_path: Path) -> None:
    work = layout.work_path(tmp_path / "a.zarr")

    def run() -> None:
        with store.resumable(tmp_path / "a.zarr", lambda folder: [], work=work):
            leave_scratch(work)
            raise StoreError("the disk is full")

    with pytest.raises(StoreError, match="the disk is full"):
        run()
    assert [path.name for path in work.iterdir()] == ["level_1-step_0.npz"]


def test_what_exists_is_not_replaced_unasked(tmp_path: Path) -> None:
    store.create_group(tmp_path / "a.zarr", {"format": layout.POOL_FORMAT, "old": True})
    with pytest.raises(InputError, match="should not exist yet; give another path, or overwrite=True"):
        store.staged(tmp_path / "a.zarr").__enter__()
    with store.staged(tmp_path / "a.zarr", overwrite=True) as wip:
        store.create_group(wip, {"new": True})
        assert store.read_attributes(tmp_path / "a.zarr")["old"]
    assert store.read_attributes(tmp_path / "a.zarr") == {"new": True}
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_what_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    zarr.create_group(str(tmp_path / "foreign"))
    store.create_group(tmp_path / "ours", {"format": layout.POOL_FORMAT})
    (tmp_path / "link").symlink_to(tmp_path / "ours")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("home", "file", "foreign", "link", "dangling"):
        with pytest.raises(InputError, match="should be a store of hkm_dask to be overwritten"):
            store.check_destination(tmp_path / name, overwrite=True)
    (tmp_path / "empty").mkdir()
    store.check_destination(tmp_path / "empty", overwrite=True)


def test_the_marker_needs_every_chunk(tmp_path: Path) -> None:
    store.create_group(tmp_path / "g")
    array = make(tmp_path / "g" / "level_1", table(), 4)
    array.chunk_path(1).unlink()
    with pytest.raises(StoreError, match=r"chunk 1 .* is missing"):
        store.mark_complete(tmp_path / "g")
    assert store.read_attributes(tmp_path / "g") == {}


def test_leftover_partials_are_swept(tmp_path: Path) -> None:
    array = make(tmp_path / "g", table(), 4)
    leftovers = [array.chunk_path(0).with_name("0.abc.partial"), tmp_path / "g" / "zarr.json.abc.partial"]
    for path in leftovers:
        path.write_bytes(b"half")
    np.testing.assert_array_equal(array.read(0, 10), table())
    store.mark_complete(tmp_path / "g")
    assert not any(path.exists() for path in leftovers)


def test_nan_in_attributes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        store.create_group(tmp_path / "g", {"inertia": float("nan")})


def test_plain_xarray_and_zarr_see_what_we_mark(tmp_path: Path) -> None:
    store.create_group(tmp_path / "t", {"format": layout.TREE_FORMAT})
    make(tmp_path / "t" / "level_1", table(), 4, "centroids", attributes={"units": "m"})
    make(tmp_path / "t" / "level_2", np.array(["a", "b"], dtype=object), 1, "names")
    store.create_group(tmp_path / "t" / "level_1", {"seconds": 1.5})
    store.mark_complete(tmp_path / "t" / "level_1")
    assert "complete" not in store.read_attributes(tmp_path / "t")
    store.mark_complete(tmp_path / "t", {"seed": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_datatree(tmp_path / "t", engine="zarr", chunks={}) as tree:
            assert tree.attrs == {"format": layout.TREE_FORMAT, "complete": True, "seed": 0}
            assert tree["level_1"].attrs == {"seconds": 1.5, "complete": True}
            assert tree["level_1/centroids"].attrs == {"units": "m"}
            np.testing.assert_array_equal(tree["level_1/centroids"].values, table())
            assert tree["level_2/names"].values.tolist() == ["a", "b"]
        with xr.open_zarr(tmp_path / "t" / "level_1") as level:
            assert level.attrs["complete"] is True
        root = zarr.open_consolidated(str(tmp_path / "t"))
        assert sorted(root.group_keys()) == ["level_1", "level_2"]
        np.testing.assert_array_equal(root["level_1/centroids"][:], table())


def build(target: Path, value: int) -> None:
    with store.lock(target), store.staged(target, overwrite=True, keep=False) as wip:
        store.create_group(wip, {"format": layout.POOL_FORMAT, "format_version": layout.FORMAT_VERSION})
        store.create_array(wip, "a", shape=(5, 2), dtype="i4", chunks=(2, 2), dims=("x", "y"))
        store.write_rows(wip / "a", 0, np.full((5, 2), value, np.int32))
        store.mark_complete(wip, {"value": value})


def build_and_die(target: Path, value: int, point: str) -> int:
    code = f"{inspect.getsource(build)}\nbuild(Path(sys.argv[1]), int(sys.argv[2]))"
    head = "import sys\nfrom pathlib import Path\nimport numpy as np\nfrom hkm_dask.data import layout, store\n"
    return run_python(head + code, target, value, HKM_FAILPOINT=point).returncode


def built(target: Path) -> int:
    """Value of a whole store, checked to its last row."""
    attributes = store.read_attributes(target)
    layout.check_marker(attributes, layout.POOL_FORMAT, target)
    value = attributes["value"]
    np.testing.assert_array_equal(store.read_rows(target / "a", 0, 5), np.full((5, 2), value))
    return value


@pytest.mark.faults
@pytest.mark.parametrize("old", [False, True], ids=["new", "over-old"])
@pytest.mark.parametrize("point", [*files.FAILPOINTS, "chunk-partial:3", "chunk-written:2"])
def test_killed_at_any_step_the_rerun_is_as_if_nothing_happened(tmp_path: Path, point: str, old: bool) -> None:
    target = tmp_path / "a.zarr"
    if old:
        build(target, 1)
    # Nothing is moved away where nothing was, so that point is passed only over an old store.
    assert build_and_die(target, 2, point) == (0 if point == "retired" and not old else 137)
    # What has the name is whole: the old one or the new one.
    if target.exists():
        assert built(target) == (2 if point in ("renamed", "retired") else 1)
    else:
        assert point == "retired" or not old
    build(target, 3)
    assert built(target) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.faults
def test_the_old_store_comes_back_when_its_replacement_fails(tmp_path: Path) -> None:
    target = tmp_path / "a.zarr"
    build(target, 1)
    assert build_and_die(target, 2, "retired") == 137
    assert not target.exists()
    with pytest.raises(InputError, match="should not exist yet"):
        store.staged(target).__enter__()
    assert built(target) == 1


def test_a_backup_made_by_hand_is_left_alone(tmp_path: Path) -> None:
    for name in ("a.zarr.old", "a.zarr"):
        store.create_group(tmp_path / name, {"format": layout.POOL_FORMAT})
    with store.staged(tmp_path / "a.zarr", overwrite=True) as wip:
        store.create_group(wip)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "a.zarr.old"]


# --- locks ------------------------------------------------------------------------------------------------------------


HOLD = """
import sys
from hkm_dask.data import store
with store.lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.faults
def test_a_second_writer_is_refused_naming_the_first(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "a.zarr"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"written by pid {holder.pid} on host {socket.gethostname()}; wait"):
            store.lock(target).__enter__()
        holder.kill()
    # The dead leave nothing to clean.
    with store.lock(target):
        assert [path.name for path in target.parent.iterdir()] == [".a.zarr.lock"]
    assert not list(target.parent.iterdir())


def test_locks_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with store.lock(tmp_path / "a"):
        with pytest.raises(StoreError, match=f"pid {os.getpid()}"):
            store.lock(tmp_path / "a").__enter__()
        with store.lock(tmp_path / "b"):
            pass
    with store.lock(tmp_path / "a"):
        pass


def test_where_nothing_can_be_written_the_lock_says_so_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written|failed: "):
        store.lock(tmp_path / "file" / "a.zarr").__enter__()
    monkeypatch.setattr(os, "open", Flaky(os.open, 1, errno.EROFS))
    with pytest.raises(StoreError, match="Read-only file system; check the path and its permissions"):
        store.lock(tmp_path / "a.zarr").__enter__()


def test_a_file_system_without_locks_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.fcntl, "flock", Flaky(lambda *args: None, 1, errno.ENOSYS))
    with pytest.warns(UserWarning, match="knows no locks"), store.lock(tmp_path / "a.zarr"):
        pass


# --- the pool ---------------------------------------------------------------------------------------------------------


def make_pool(path: Path, **attributes: object) -> Path:
    facts = {"fingerprint": "ab", "max_abs": 29.0, "n_zero_rows": 0, "sources": ["a.npy"], "has_ids": True}
    store.create_group(path, {"format": layout.POOL_FORMAT, "format_version": layout.FORMAT_VERSION})
    make(path, table(), 4, layout.EMBEDDINGS)
    make(path, table().mean(axis=0), 3, layout.MEAN)
    make(path, np.array([f"id{row}" for row in range(10)], dtype=object), 4, layout.IDS)
    store.mark_complete(path, {**facts, **attributes})
    return path


def test_a_pool_knows_itself(tmp_path: Path) -> None:
    pool = store.open_pool(make_pool(tmp_path / "p.zarr"))
    assert (pool.n_samples, pool.n_features, pool.dtype, pool.chunk_rows) == (10, 3, np.dtype("f4"), 4)
    assert (pool.fingerprint, pool.max_abs, pool.n_zero_rows, pool.sources) == ("ab", 29.0, 0, ("a.npy",))
    np.testing.assert_array_equal(pool.mean, table().mean(axis=0))
    np.testing.assert_array_equal(pool.rows().read(0, 10), table())
    copy = pickle.loads(pickle.dumps(pool))
    assert copy == pool
    assert copy.rows().key == pool.rows().key


def test_ids_come_in_the_order_asked_for(tmp_path: Path) -> None:
    pool = store.open_pool(make_pool(tmp_path / "p.zarr"))
    ids = pool.ids()
    assert ids is not None
    assert ids.tolist() == [f"id{row}" for row in range(10)]
    some = pool.ids(np.array([9, 0, 9, 4]))
    assert some is not None
    assert some.tolist() == ["id9", "id0", "id9", "id4"]
    with pytest.raises(InputError, match="should lie within"):
        pool.ids(np.array([10]))
    assert store.open_pool(make_pool(tmp_path / "q.zarr", has_ids=False)).ids() is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda pool: store.create_group(pool, {"complete": False}), "is not complete"),
        (lambda pool: store.create_group(pool, {"format_version": 9}), "format_version=9 should be 1"),
        (lambda pool: store.create_group(pool, {"format": "x"}), "format='x'"),
        (lambda pool: store.create_group(pool, {"max_abs": None}), "is damaged"),
        (lambda pool: (pool / "mean" / "c" / "0").unlink(), "mean: chunk 0 .* is missing; .*hkm ingest"),
        (lambda pool: (pool / "mean" / "zarr.json").unlink(), "is no Zarr array"),
        (lambda pool: (pool / "zarr.json").unlink(), "no Zarr group"),
        (lambda pool: make(pool, table(4, 4)[0], 4, layout.MEAN), "is damaged: embeddings are"),
    ],
)
def test_no_pool_is_opened_that_is_none(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    path = make_pool(tmp_path / "p.zarr")
    spoil(path)
    with pytest.raises(StoreError, match=message):
        store.open_pool(path)


def test_lost_ids_are_no_absent_ids(tmp_path: Path) -> None:
    path = make_pool(tmp_path / "p.zarr")
    (path / "ids" / "zarr.json").unlink()
    with pytest.raises(StoreError, match="is no Zarr array"):
        store.open_pool(path).ids()


def test_an_unfinished_pool_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.zarr.wip").mkdir()
    with pytest.raises(StoreError, match=r"p.zarr is missing, an unfinished p.zarr.wip lies beside it; make it with"):
        store.open_pool(tmp_path / "p.zarr")


def test_metadata_is_valid_json_for_others(tmp_path: Path) -> None:
    path = make_pool(tmp_path / "p.zarr")
    root = json.loads((path / "zarr.json").read_text())
    assert set(root["consolidated_metadata"]["metadata"]) == {"embeddings", "mean", "ids"}
    assert root["attributes"]["complete"] is True
