"""Crash-safe stores: the stage commit, resuming, groups and arrays."""

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
#: Marks an incomplete store in an object store as one of this package, which may be resumed or removed.
_BEGUN_FILE = ".unfinished"
_OF_ROOT = (_BEGUN_FILE, METADATA_FILE)
#: Suffixes of files, which a store, being a folder, should not have.
_OF_FILES = (
    ".arrow", ".csv", ".feather", ".html", ".json", ".jsonl", ".npy", ".npz", ".parquet", ".safetensors", ".tsv",
    ".txt", ".yaml", ".yml",
)  # fmt: skip

#: Files synced concurrently.
_SYNCS_AT_ONCE = 16


def _retired_path(target: Location) -> Location:
    # Hidden, so that it never collides with a store that a user has moved to NAME.old.
    return target.with_name(f".{target.name}.retired")


def check_destination(path: PathLike, *, overwrite: bool = False) -> None:
    """Raise InputError if a destination is taken or, with `overwrite`, is not a store of this package.

    A name with the suffix of a file is rejected as well: whoever gives it probably wants another command.

    >>> check_destination("clusters.parquet")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: ...clusters.parquet should not end in .parquet, as a Zarr store is a folder; name it
    clusters.zarr, of which `hkm export` makes a table (.parquet), and `hkm sample` lists of rows (.npy, .csv, .txt)
    """
    target = location(path).absolute()
    if not (target.exists() if isinstance(target, ObjectPath) else os.path.lexists(target)):
        if target.suffix.lower() in _OF_FILES:
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
        raise InputError(f"{target} should be a store of hkm_dask to be overwritten, it is none; give another path")


@contextmanager
def staged(path: PathLike, *, overwrite: bool = False, keep: bool = True) -> Iterator[Location]:
    """Build a store beside its path, and rename it into place when the context ends without an error.

    ::

        NAME.wip/ ──(chunks, check, fsync, marker: `mark_complete`)──> rename ──> NAME, fsync of the parent folder

    Yields ``NAME.wip``, or NAME itself in an object store, where nothing can be renamed: there only the marker makes it
    a store, and no reader accepts it before. With `overwrite`, a store of this package at `path` is replaced; it stays
    until the new one is complete. With `keep`, unfinished work of a former run is resumed, and kept on an error;
    otherwise it is removed at the start and on an error.
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
        # Whatever cannot be removed now is removed by the next run; the original error must not be hidden.
        with suppress(StoreError, OSError):
            if not keep or not (wip / METADATA_FILE).is_file():  # or it was rejected before it was begun
                remove(wip)
        raise


def unfinished_path(target: Location) -> Location:
    """Return where a store is built: beside its path, or in place in an object store that has none there."""
    wip = wip_path(target)
    return target if isinstance(target, ObjectPath) and not wip.exists() and not is_complete(target) else wip


def is_complete(folder: Location) -> bool:
    """Tell whether a group is marked as complete."""
    return ((read_json(folder / METADATA_FILE) or {}).get("attributes") or {}).get(layout.COMPLETE) is True


def _replace(target: Location, wip: Location) -> None:
    """Replace a store, if there is one, by a complete one."""
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
    """Replace a store by a copy within an object store, marker last; `settle` completes an interrupted copy.

    Between removing the old marker and writing the new one neither can be read; the new store is complete beside it.
    """
    write_file(target / _BEGUN_FILE, b"")
    (target / METADATA_FILE).unlink()
    failpoint("retired")
    target.remove_tree(but=_BEGUN_FILE)
    names = [place.relative_to(wip) for place in wip.rglob("*")]
    each(lambda name: (wip / name).copy_to(target / name), [n for n in names if str(n) not in _OF_ROOT], target)
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
    """Build a store under its lock, resuming an interrupted run; if it is complete, build nothing.

    ::

            restart                    start over; a complete store stays until the new one replaces it
            NAME.wip fits              resume it, even beside a complete NAME: it can only be an interrupted restart
            NAME fits, no such wip     yield None
            neither exists             start
            NAME.wip `is_empty`        start over: nothing would be lost
            otherwise                  InputError with the obstacles

        Yields ``NAME.wip``, or NAME in an object store, to be filled and marked as in `staged`; None if the complete
        store is the requested one. `obstacles` gets an existing folder, ``NAME.wip`` or the complete store, and returns
        the reasons why it is not the requested one, one line each. `work` is the folder for the run's checkpoints and
        scratch files, see `layout.work_path`: leftovers of dead runs are removed at the start, scratch files on an
        error, and all of it at the end.

        Raises InputError also if a restart would replace something that is not a store of this package, and StoreError
        if another process is building the store, or the disk is full or fails.

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
            remove(wip)  # its identity is lost, so its content could belong to any run
        if work is not None:
            # Without an unfinished store, checkpoints belong to a run that died after completing it, or was discarded.
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
                # The original error must not be hidden; the next run sweeps again.
                with suppress(StoreError, OSError):
                    sweep_scratch(work)
                    work.rmdir()  # if it has no checkpoints
            raise
        if work is not None:
            remove(work)


def settle(path: PathLike) -> None:
    """Complete the interrupted replacement of a store, locked by the caller, between or after its two renames."""
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
    # If both exist, the new one is complete.
    remove(retired)


def create_group(path: PathLike, attributes: Mapping[str, Any] | None = None) -> Location:
    """Create a Zarr group, or set attributes of an existing one: JSON values without NaN."""
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
        # Nothing can be renamed there, so it has its final name: other readers must reject it until it is complete.
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
    """Create an array whose chunks are all on disk with a CRC-32C; an existing one is replaced.

    Full-width chunks (spanning all but the first axis) can be read without Zarr. A missing group is created. The dtype
    is ``str`` for variable-length strings, which are always compressed with Zstandard; other arrays are if they are
    small and compress well (`compressed`). Returns the array opened such that every chunk is written; its fill value
    cannot pass for data, see `layout.absent_value`.

    Raises InputError for a name with other characters than letters, digits, ``_``, ``-`` and ``.``, as it could lead
    out of the group.
    """
    if not layout.COLUMN_NAME.fullmatch(name):
        raise InputError(f"name={name!r} should be letters, digits, '_', '-' or '.'; give a plain name")
    group = location(group_path).absolute()
    if not (group / METADATA_FILE).is_file():
        create_group(group)
    text = dtype is str or np.dtype(dtype).kind in "UTO"
    fill = layout.absent_value(np.dtype(object if text else dtype))
    objects: dict[str, Any] = {}  # in an object store, metadata is collected here, and written in one request
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
    """Remove remains of killed writers from a store: files that end in ``.partial``."""
    folder = location(path)
    if isinstance(folder, Path):  # object stores have no partial objects
        for file in list(folder.rglob(f"*{PARTIAL_SUFFIX}")):
            file.unlink(missing_ok=True)


def sweep_scratch(folder: Location) -> None:
    """Remove scratch files from a folder of checkpoints: ``*.npy``, ``*.partial`` and folders of shared arrays."""
    for path in [*folder.glob("*.npy"), *folder.glob(f"*{PARTIAL_SUFFIX}")]:
        careful(partial(path.unlink, missing_ok=True), f"removing {path}")
    for path in folder.glob("shared-*"):
        remove(path)


def mark_complete(path: PathLike, attributes: Mapping[str, Any] | None = None) -> None:
    """Check, sync and mark a group as complete: the commit of a stage.

    Every chunk file is checked for, everything is synced, and finally the group's metadata is atomically replaced by
    metadata with the attributes, ``complete`` and the consolidated metadata. So this package and plain xarray read the
    same marker, which exists only when everything else does. Nothing may be writing to the group. Raises StoreError if
    a chunk is missing or truncated.
    """
    group = location(path).absolute()
    sweep(group)
    folders = sorted((file.parent for file in group.rglob(METADATA_FILE) if file.parent != group), key=str)
    nodes = zip(folders, each(_seal, folders, group), strict=True)
    consolidated = {folder.relative_to(group).as_posix(): metadata for folder, metadata in nodes}  # type: ignore[arg-type]
    failpoint("checked")
    if isinstance(group, Path):
        with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:  # disks handle concurrent syncs together
            for _ in pool.map(sync, (*group.rglob("*"), group)):
                pass
    failpoint("synced")
    check_lock(group)
    marked = {**read_attributes(group), **(attributes or {}), layout.COMPLETE: True}
    _write_group(group, {**marked, layout.DIGEST: layout.metadata_digest(marked, consolidated)}, consolidated)
    sync(group)
    failpoint("marked")


def _seal(folder: Location) -> dict[str, Any]:
    """Return the metadata of a node; an array is first bound to its chunks, or checked if it already is."""
    metadata = read_json(folder / METADATA_FILE) or {}
    if metadata.get("node_type") != "array":
        # Zarr has one flat list at the root, and an empty list in each group below it.
        return {**metadata, "consolidated_metadata": _inline({})}
    array = open_array(folder)
    if array.fingerprint or not array.spec.checked:
        array.check()
        return metadata
    attributes = {**(metadata.get("attributes") or {}), layout.FINGERPRINT: array.seal().fingerprint}
    metadata = {**metadata, "attributes": attributes}
    write_file(folder / METADATA_FILE, json.dumps(metadata, indent=2, allow_nan=False).encode())
    return metadata
