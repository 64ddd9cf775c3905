"""Stores survive kills, a full disk and a second writer; nothing is written partially."""

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import hkm_dask as hkm
from hkm_dask.data import files, layout, store
from hkm_dask.data.chunks import StoredArray, open_array
from hkm_dask.data.files import read_attributes
from hkm_dask.data.locks import lock
from hkm_dask.data.objects import Location, ObjectPath
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import subscribe
from tests.data.stores import Disk, make, table
from tests.forked import run_forked
from tests.object_store import ObjectStore


def test_chunks_of_zeros_are_on_disk(tmp_path: Path) -> None:
    for compressed in (False, True):
        name = f"a{compressed}"
        make(tmp_path, np.zeros((5, 2), np.float32), 2, name, compressed=compressed)
        assert len(list((tmp_path / name / "c").rglob("0"))) >= 3
        open_array(tmp_path / name).check()
    array = store.create_array(tmp_path, "z", shape=(4,), dtype="i4", chunks=(2,), dims=("x",))
    array[:] = array.fill_value
    assert len(list((tmp_path / "z" / "c").iterdir())) == 2


@pytest.mark.parametrize("name", ["../a", "a/b", "/a", "", ".", "..", ".a", "a\0b"])
def test_names_stay_inside_their_group(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="name="):
        store.create_array(tmp_path / "g", name, shape=(1,), dtype="f4", chunks=(1,), dims=("x",))


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
    attributes = read_attributes(target)
    assert len(attributes.pop("digest")) == 64
    assert attributes == {"format": layout.POOL_FORMAT, "n": 3, "complete": True}


def test_what_the_marker_stands_for_is_on_the_disk_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, target, lost = Disk(monkeypatch), tmp_path / "a.zarr", []
    replace, rename = os.replace, os.rename

    def marking(partial: Path, path: Path) -> None:
        if b'"complete": true' in Path(partial).read_bytes():
            lost.append([path.name for path in disk.lost(Path(path).parent)])
        replace(partial, path)

    def renaming(path: Path, name: Path) -> None:
        lost.append([one.name for one in disk.lost(Path(path))])
        rename(path, name)

    monkeypatch.setattr(os, "replace", marking)
    monkeypatch.setattr(os, "rename", renaming)
    with store.staged(target) as wip:
        store.create_group(wip, {"format": layout.TREE_FORMAT})
        make(wip / "level_1", table(), 4)
        store.mark_complete(wip / "level_1")
        store.mark_complete(wip)
    # All but the new name in the folder, before each marker; then that, too; at last the name of the store.
    assert lost == [["level_1"], ["a.zarr.wip"], []]
    assert disk.lost(tmp_path) == []


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
        assert read_attributes(tmp_path / "a.zarr")["old"]
    assert read_attributes(tmp_path / "a.zarr") == {"new": True}
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


@pytest.mark.parametrize("name", ["a.parquet", "a.NPY", "a.csv", "a.txt", "a.json"])
def test_no_store_begins_under_the_name_of_a_file(tmp_path: Path, name: str) -> None:
    config = hkm.Config(levels=[{"n_clusters": 2}])
    tree = hkm.build_hierarchy(np.eye(3), tmp_path / "tree.zarr", config)
    makers: list[Callable[[Path], Any]] = [
        partial(hkm.ingest, np.eye(3)),
        lambda path: hkm.build_hierarchy(np.eye(3), path, config),
        partial(hkm.assign, tree, np.eye(3)),
    ]
    for make_store in makers:
        with pytest.raises(InputError, match=r"/a\.\w+ should not end in \.\w+, .*; name it a\.zarr, .*`hkm export`"):
            make_store(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["tree.zarr"]


def test_nor_in_an_object_store(bucket: ObjectPath) -> None:
    with pytest.raises(InputError, match=r"/a\.npy should not end in \.npy, "):
        hkm.ingest(np.eye(3), str(bucket / "a.npy"))
    assert not list(bucket.rglob("*"))


def test_a_store_that_has_the_name_of_a_file_stays_one(tmp_path: Path) -> None:
    pool = hkm.ingest(np.eye(3), tmp_path / "pool.zarr")
    Path(pool.path).rename(tmp_path / "pool.npy")  # as releases before made them
    assert hkm.ingest(np.eye(2), tmp_path / "pool.npy", overwrite=True).n_samples == 2


@pytest.mark.parametrize("bound", [False, True])
def test_the_marker_needs_every_chunk(tmp_path: Path, bound: bool) -> None:
    store.create_group(tmp_path / "g")
    array = make(tmp_path / "g" / "level_1", table(), 4)
    if bound:
        store.mark_complete(tmp_path / "g" / "level_1")
    array.chunk_path(1).unlink()
    with pytest.raises(StoreError, match=r"chunk 1 .* is missing"):
        store.mark_complete(tmp_path / "g")
    assert read_attributes(tmp_path / "g") == {}


def test_checksums_are_read_once_to_bind_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create_group(tmp_path / "g")
    make(tmp_path / "g" / "level_1", table(), 4)
    read: list[int] = []
    checksum = StoredArray.checksum

    def counted(array: StoredArray, index: int) -> int:
        read.append(index)
        return checksum(array, index)

    monkeypatch.setattr(StoredArray, "checksum", counted)
    store.mark_complete(tmp_path / "g")
    assert sorted(read) == [0, 1, 2]


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
    assert "complete" not in read_attributes(tmp_path / "t")
    store.mark_complete(tmp_path / "t", {"seed": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_datatree(tmp_path / "t", engine="zarr", chunks={}) as tree:
            for node in (tree, tree["level_1"]):
                assert len(node.attrs.pop("digest")) == 64
            assert tree.attrs == {"format": layout.TREE_FORMAT, "complete": True, "seed": 0}
            assert tree["level_1"].attrs == {"seconds": 1.5, "complete": True}
            assert tree["level_1/centroids"].attrs.keys() == {"units", "fingerprint"}
            np.testing.assert_array_equal(tree["level_1/centroids"].values, table())
            assert tree["level_2/names"].values.tolist() == ["a", "b"]
        with xr.open_zarr(tmp_path / "t" / "level_1") as level:
            assert level.attrs["complete"] is True
        root = zarr.open_consolidated(str(tmp_path / "t"))
        assert sorted(root.group_keys()) == ["level_1", "level_2"]
        np.testing.assert_array_equal(root["level_1/centroids"][:], table())


def build(target: Location, value: int) -> None:
    with lock(target), store.staged(target, overwrite=True, keep=False) as wip:
        store.create_group(wip, {"format": layout.POOL_FORMAT, "format_version": layout.FORMAT_VERSION})
        store.create_array(wip, "a", shape=(5, 2), dtype="i4", chunks=(2, 2), dims=("x", "y"))
        open_array(wip / "a").write(0, np.full((5, 2), value, np.int32))
        store.mark_complete(wip, {"value": value})


def build_and_die(target: Path, value: int, point: str) -> int:
    return run_forked(build, target, value, HKM_FAILPOINT=point)


def built(target: Location) -> int:
    """Value of a whole store, checked to its last row."""
    attributes = read_attributes(target)
    layout.check_marker(attributes, layout.POOL_FORMAT, target)
    value = attributes["value"]
    np.testing.assert_array_equal(open_array(target / "a").read(0, 5), np.full((5, 2), value))
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


@pytest.mark.faults
def test_objects_are_replaced_with_the_marker_last(bucket: ObjectPath, object_store: ObjectStore) -> None:
    """Nothing can be renamed there: the old marker goes first, and the new one comes last."""
    target = bucket / "a.zarr"
    build(target, 1)
    first = len(object_store.requests)
    build(target, 2)
    assert built(target) == 2
    sent = [url.partition("/a.zarr/")[2] for method, url in object_store.requests[first:] if method == "PUT"]
    sent = [name for name in sent if name not in ("", ".unfinished")]
    assert sent[-1] == "zarr.json"
    assert sent.count("zarr.json") == 1
    # Killed on the way: nobody takes it for a store, and whoever has the lock next finishes it.
    assert run_forked(build, target, 3, **object_store.environment(), HKM_FAILPOINT="retired") == files.KILLED
    assert not store.is_complete(target)
    with lock(target):
        store.settle(target)
    assert built(target) == 3
    assert [place.name for place in bucket.iterdir()] == ["a.zarr"]


def test_a_backup_made_by_hand_is_left_alone(tmp_path: Path) -> None:
    for name in ("a.zarr.old", "a.zarr"):
        store.create_group(tmp_path / name, {"format": layout.POOL_FORMAT})
    with store.staged(tmp_path / "a.zarr", overwrite=True) as wip:
        store.create_group(wip)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "a.zarr.old"]
