"""Crash-safe stores: the stage commit, resuming, and the creation of groups and arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from hkm_dask.data import layout
from hkm_dask.data.chunks import open_array
from hkm_dask.data.files import (
    METADATA_FILE,
    PARTIAL_SUFFIX,
    careful,
    check_own,
    failpoint,
    read_attributes,
    read_json,
    remove,
    stored_format,
    sync,
    write_file,
)
from hkm_dask.data.layout import wip_path
from hkm_dask.data.locks import check_lock, lock
from hkm_dask.data.objects import Location, ObjectPath, each, location, zarr_store
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import emit

PathLike = str | os.PathLike[str]
#: File in an incomplete store in an object store: the store is ours, and may be continued or removed.
_BEGUN_FILE = ".unfinished"
_ROOT_FILES = (_BEGUN_FILE, METADATA_FILE)
#: Suffixes of files, which a folder should not have.
_FILE_SUFFIXES = (
    ".arrow", ".csv", ".feather", ".html", ".json", ".jsonl", ".npy", ".npz", ".parquet", ".safetensors", ".tsv",
    ".txt", ".yaml", ".yml",
)  # fmt: skip

#: Number of files synced concurrently.
_SYNCS_AT_ONCE = 16


def _retired_path(target: Location) -> Location:
    # Hidden and named by us, so that a store which a user moves to NAME.old is kept.
    return target.with_name(f".{target.name}.retired")


def check_destination(path: PathLike, *, overwrite: bool = False) -> None:
    """Refuse, with an InputError, a path that exists or, with `overwrite`, one that is not a store of hkm_dask.

    If nothing exists there, a name with the suffix of a file is refused: whoever gives it wants another command.

    >>> check_destination("clusters.parquet")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: ...clusters.parquet should not end in .parquet, as a Zarr store is a folder; name it
    clusters.zarr, of which `hkm export` makes a table (.parquet), and `hkm sample` lists of rows (.npy, .csv, .txt)
    """
    target = location(path).absolute()
    if not (target.exists() if isinstance(target, ObjectPath) else os.path.lexists(target)):
        if target.suffix.lower() in _FILE_SUFFIXES:
            name = f"{target.name.removesuffix(target.suffix)}.zarr"
            raise InputError(
                f"{target} should not end in {target.suffix}, as a Zarr store is a folder; name it {name}, of which "
                "`hkm export` makes a table (.parquet), and `hkm sample` lists of rows (.npy, .csv, .txt)"
            )
        return
    if not overwrite:
        raise InputError(f"{target} should not exist yet; give another path, or overwrite=True")
    empty = target.is_dir() and not any(target.iterdir())
    begun = isinstance(target, ObjectPath) and (target / _BEGUN_FILE).is_file()
    if not (stored_format(target).startswith("hkm_dask.") or empty or begun) or target.is_symlink():
        raise InputError(f"{target} should be a store of hkm_dask to be overwritten, but is not one; give another path")


@contextmanager
def staged(path: PathLike, *, overwrite: bool = False, keep: bool = True) -> Iterator[Location]:
    """Build a store beside its path, and rename it into place when the context ends without an error.

    ::

        NAME.wip/ ──(chunks, check, fsync, marker: `mark_complete`)──> rename ──> NAME, fsync of the parent folder

    Yields ``NAME.wip``; in an object store, where nothing can be renamed, NAME itself, which no reader accepts before
    it is marked complete. With `overwrite`, a store of hkm_dask at `path` is replaced, once the new one is complete.
    With `keep`, what an earlier run left unfinished is continued, and kept on an error; otherwise it is removed at the
    beginning and on an error.
    """
    target = location(path).absolute()
    settle(target)
    wip = unfinished_path(target)
    check_own(wip)
    check_destination(target, overwrite=overwrite or wip == target)
    if not keep:
        remove(wip)
    if isinstance(wip, ObjectPath):
        write_file(wip / _BEGUN_FILE, b"")
    try:
        yield wip
        if wip != target:
            check_destination(target, overwrite=overwrite)
            _replace(target, wip)
        elif isinstance(target, ObjectPath):
            (target / _BEGUN_FILE).unlink()
    except BaseException:
        # What cannot be removed now is removed by the next run; this must not hide the original error.
        with suppress(StoreError, OSError):
            if not keep or not (wip / METADATA_FILE).is_file():  # or it was rejected before it was begun
                remove(wip)
        raise


def unfinished_path(target: Location) -> Location:
    """Return where the next store is built: beside its path, or at it in an object store without a complete one."""
    wip = wip_path(target)
    return target if isinstance(target, ObjectPath) and not wip.exists() and not is_complete(target) else wip


def is_complete(folder: Location) -> bool:
    """Tell whether a group is marked as complete."""
    return ((read_json(folder / METADATA_FILE) or {}).get("attributes") or {}).get(layout.COMPLETE) is True


def _replace(target: Location, wip: Location) -> None:
    """Move a complete store to its path, replacing the old one if there is one."""
    if isinstance(target, ObjectPath) and isinstance(wip, ObjectPath):
        return _copy_over(target, wip)
    assert isinstance(target, Path)
    assert isinstance(wip, Path)
    retired = _retired_path(target)
    if target.exists():
        careful(lambda: target.rename(retired), f"moving the old {target} away")
        failpoint("retired")
    careful(lambda: wip.rename(target), f"renaming {wip} to {target.name}")
    failpoint("renamed")
    sync(target.parent)
    remove(retired)


def _copy_over(target: ObjectPath, wip: ObjectPath) -> None:
    """Replace a store by a copy of another within an object store, the marker last; `settle` finishes a replacement.

    Between the removal of the old marker and the writing of the new one, only the new store beside it is complete.
    """
    write_file(target / _BEGUN_FILE, b"")
    (target / METADATA_FILE).unlink()
    failpoint("retired")
    target.remove_tree(but=_BEGUN_FILE)
    names = [place.relative_to(wip) for place in wip.rglob("*")]
    each(lambda name: (wip / name).copy_to(target / name), [n for n in names if str(n) not in _ROOT_FILES], target)
    (wip / METADATA_FILE).copy_to(target / METADATA_FILE)
    failpoint("renamed")
    (target / _BEGUN_FILE).unlink()
    remove(wip)


@contextmanager
def resumable(
    path: PathLike,
    obstacles: Callable[[Location], list[str]],
    *,
    restart: bool = False,
    work: Location | None = None,
    is_empty: Callable[[Location], bool] | None = None,
) -> Iterator[Location | None]:
    """Build a store under its lock, continuing an interrupted run; build nothing if it is complete.

    ::

        restart                    begin again; a complete store is kept until the new one is complete
        NAME.wip fits              continue it, even beside a complete NAME: it must be an interrupted restart
        NAME fits, no such wip     yield None
        neither exists             begin
        NAME.wip `is_empty`        begin again: nothing would be lost
        otherwise                  InputError with the obstacles

    Yields ``NAME.wip``, or NAME in an object store, to be filled and marked as in `staged`; None if the complete store
    is the requested one. `obstacles` is given an existing folder, ``NAME.wip`` or the complete store, and returns one
    line for each reason why it is not what is requested. `work` is the folder of the run's checkpoints and scratch
    files, see `layout.work_path`: leftovers of dead runs are cleared from it at the beginning, scratch files on an
    error, and it is removed at the end.

    InputError also if a restart would replace anything but a store of hkm_dask; StoreError if another process is
    building the store, or the disk is full or fails.

    >>> import tempfile
    >>> def build(path, seed):
    ...     def obstacles(folder):
    ...         stored = read_attributes(folder).get("seed")
    ...         return [] if stored == seed else [f"seed: {stored} in {folder.name}, {seed} asked for"]
    ...     with resumable(path, obstacles) as wip:
    ...         if wip is None:
    ...             return "already complete"
    ...         mark_complete(create_group(wip, {"format": "hkm_dask.example", "seed": seed}))
    ...     return "built"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(build(f"{folder}/a.zarr", 0), build(f"{folder}/a.zarr", 0), sep=", ")
    ...     build(f"{folder}/a.zarr", 1)
    Traceback (most recent call last):
    hkm_dask.errors.InputError: seed: 0 in a.zarr, 1 asked for
    """
    target = location(path).absolute()
    with lock(target):
        check_own(wip_path(target))
        if work is not None:
            check_own(work)
        settle(target)
        wip = unfinished_path(target)
        if wip == target:
            check_destination(target, overwrite=True)
        if restart:
            check_destination(target, overwrite=True)
            remove(wip)
        if wip.exists() and not (wip / METADATA_FILE).exists():
            remove(wip)  # its metadata are lost, so its content cannot be trusted
        if work is not None:
            # Without an unfinished store, checkpoints belong to a run that died after completion, or was discarded.
            clear = sweep_scratch if wip.exists() else remove
            clear(work)
        problems = obstacles(wip) if wip.exists() else []
        if problems and is_empty is not None and is_empty(wip):
            remove(wip)
            problems = []
        resumes = wip.exists() and not problems
        if wip != target and target.exists() and not (restart or resumes):
            if problems := obstacles(target):
                raise InputError(problems)
            yield None
            emit("resumed", what="already complete")
            return
        if problems:
            raise InputError(problems)
        try:
            with staged(target, overwrite=restart or resumes) as folder:
                yield folder
        except BaseException:
            if work is not None:
                # This must not hide the original error; the next run sweeps again.
                with suppress(StoreError, OSError):
                    sweep_scratch(work)
                    work.rmdir()  # unless it keeps a checkpoint
            raise
        if work is not None:
            remove(work)


def settle(path: PathLike) -> None:
    """Finish or undo a replacement that was interrupted between or after its two renames; the caller has the lock."""
    target = location(path).absolute()
    if isinstance(target, ObjectPath):
        wip = wip_path(target)
        if (target / _BEGUN_FILE).is_file() and not is_complete(target) and is_complete(wip):
            _replace(target, wip)
        return
    retired = _retired_path(target)
    check_own(retired)
    if isinstance(retired, Path) and retired.exists() and not target.exists():
        careful(lambda: retired.rename(target), f"moving the old {target} back")
    # If both exist, the new store is complete.
    remove(retired)


def create_group(path: PathLike, attributes: Mapping[str, Any] | None = None) -> Location:
    """Create a Zarr group, or update the attributes of an existing one with JSON values (without NaN)."""
    folder = location(path).absolute()
    careful(lambda: folder.mkdir(parents=True, exist_ok=True), f"making {folder}")
    old = (read_json(folder / METADATA_FILE) or {}).get("attributes") or {}
    _write_group(folder, {**old, **(attributes or {})})
    return folder


def _write_group(
    folder: Location, attributes: Mapping[str, Any], consolidated: Mapping[str, Any] | None = None
) -> None:
    metadata: dict[str, Any] = {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}
    if consolidated is not None:
        metadata["consolidated_metadata"] = _inline(consolidated)
    elif isinstance(folder, ObjectPath):
        # Nothing can be renamed there, so the store already has its name; other readers must refuse it until complete.
        metadata["unfinished"] = {"must_understand": True}
    write_file(folder / METADATA_FILE, json.dumps(metadata, indent=2, allow_nan=False).encode())


def _inline(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": dict(metadata)}


def create_array(
    group_path: PathLike,
    name: str,
    *,
    shape: Sequence[int],
    dtype: Any,
    chunks: Sequence[int],
    dims: Sequence[str],
    compressed: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> zarr.Array:
    """Create an array whose chunks are all written, with a CRC-32C each; an existing one is replaced.

    Chunks of full width (in all axes but the first) can be read without Zarr. The group is created if missing. The
    dtype ``str`` is for strings of variable length, which are always compressed with Zstandard; other arrays are if
    `compressed`, for small ones that compress well. Returns the array, configured to write every chunk; its fill value
    cannot be mistaken for data, see `layout.absent_value`.

    InputError if the name has characters other than letters, digits, ``_``, ``-`` and ``.``: it could leave the group.
    """
    if not layout.COLUMN_NAME.fullmatch(name):
        raise InputError(f"name={name!r} should be letters, digits, '_', '-' or '.'; give a plain name")
    group = location(group_path).absolute()
    if not (group / METADATA_FILE).is_file():
        create_group(group)
    text = dtype is str or np.dtype(dtype).kind in "UTO"
    fill = layout.absent_value(np.dtype(object if text else dtype))
    objects: dict[str, Any] = {}  # for object stores, the metadata are made in memory and sent at once
    made = careful(
        lambda: zarr.create_array(
            MemoryStore(objects) if isinstance(group, ObjectPath) else str(group),
            name=name,
            shape=tuple(shape),
            dtype=str if text else np.dtype(dtype),
            chunks=tuple(max(1, size) for size in chunks),
            filters=None,
            serializer="auto" if text else BytesCodec(),
            compressors=[ZstdCodec(level=3), Crc32cCodec()] if compressed or text else [Crc32cCodec()],
            fill_value=fill,
            dimension_names=tuple(dims),
            attributes=dict(attributes or {}),
            zarr_format=3,
            overwrite=True,
            config={"write_empty_chunks": True},
        ),
        f"making {group / name}",
    )
    if not isinstance(group, ObjectPath):
        return made
    (group / name).remove_tree()
    write_file(group / name / METADATA_FILE, objects[f"{name}/{METADATA_FILE}"].to_bytes())
    return zarr.open_array(zarr_store(group / name), mode="r+", zarr_format=3).with_config({"write_empty_chunks": True})


def sweep(path: PathLike) -> None:
    """Remove ``*.partial`` files, which writers that died left in a store."""
    folder = location(path)
    if isinstance(folder, Path):  # object stores have no partial files
        for file in list(folder.rglob(f"*{PARTIAL_SUFFIX}")):
            file.unlink(missing_ok=True)


def sweep_scratch(folder: Location) -> None:
    """Remove scratch files from a checkpoint folder: ``*.npy``, ``*.partial`` and folders of shared arrays."""
    for path in [*folder.glob("*.npy"), *folder.glob(f"*{PARTIAL_SUFFIX}")]:
        careful(partial(path.unlink, missing_ok=True), f"removing {path}")
    for path in folder.glob("shared-*"):
        remove(path)


def mark_complete(path: PathLike, attributes: Mapping[str, Any] | None = None) -> None:
    """Check, sync and mark a group as complete: the commit of a stage.

    Every chunk file of the group is checked and everything is synced. Finally the group's metadata are replaced
    atomically by metadata with the attributes, ``complete`` and the consolidated metadata, so that this marker, which
    plain xarray reads as well, exists only if everything else does. Nothing may be writing to the group meanwhile.
    StoreError if a chunk is missing or truncated.
    """
    group = location(path).absolute()
    sweep(group)
    folders = sorted((file.parent for file in group.rglob(METADATA_FILE) if file.parent != group), key=str)
    nodes = zip(folders, each(_seal, folders, group), strict=True)
    consolidated = {folder.relative_to(group).as_posix(): metadata for folder, metadata in nodes}  # type: ignore[arg-type]
    failpoint("checked")
    if isinstance(group, Path):
        with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:  # a disk syncs many files in about the time of one
            for _ in pool.map(sync, (*group.rglob("*"), group)):
                pass
    failpoint("synced")
    check_lock(group)
    marked = {**read_attributes(group), **(attributes or {}), layout.COMPLETE: True}
    _write_group(group, {**marked, layout.DIGEST: layout.metadata_digest(marked, consolidated)}, consolidated)
    sync(group)
    failpoint("marked")


def _seal(folder: Location) -> dict[str, Any]:
    """Return the metadata of a node, after binding an array to its chunks, or checking that it still has them."""
    metadata = read_json(folder / METADATA_FILE) or {}
    if metadata.get("node_type") != "array":
        # Zarr keeps one flat list at the root, and marks each group below as consolidated.
        return {**metadata, "consolidated_metadata": _inline({})}
    array = open_array(folder)
    if array.fingerprint or not array.spec.checked:
        array.check()
        return metadata
    attributes = {**(metadata.get("attributes") or {}), layout.FINGERPRINT: array.seal().fingerprint}
    metadata = {**metadata, "attributes": attributes}
    write_file(folder / METADATA_FILE, json.dumps(metadata, indent=2, allow_nan=False).encode())
    return metadata
