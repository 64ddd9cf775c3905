"""File operations that retry transient errors, explain permanent ones, and never leave a file half-written."""

from __future__ import annotations

import difflib
import errno
import glob
import itertools
import math
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from hkm_dask.data import layout
from hkm_dask.data.objects import Location, ObjectPath, each, location
from hkm_dask.errors import InputError, StoreError, disk_full
from hkm_dask.untrusted import MAX_JSON_BYTES, open_regular, parse_json, read_regular, reason

METADATA_FILE = "zarr.json"
PARTIAL_SUFFIX = ".partial"
_CONSOLIDATED = "consolidated_metadata"

# The steps of the stage commit at which HKM_FAILPOINT can kill the process, in order.
FAILPOINTS = ("chunk-partial", "chunk-written", "checked", "synced", "marked", "retired", "renamed")
KILLED = 137

_CACHE_LINE = 64
_TRANSIENT = {errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT}
_RETRY_SECONDS = (0.05, 0.2, 0.8)

_passes: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))

T = TypeVar("T")


def failpoint(name: str) -> None:
    """Kill this process, as ``kill -9`` would, if the environment asks for it; for crash tests.

    ``HKM_FAILPOINT=marked`` exits at the first pass of the point "marked", ``HKM_FAILPOINT=marked:3`` at the third.
    """
    point, _, count = os.environ.get("HKM_FAILPOINT", "").partition(":")
    if point == name and next(_passes[name]) == int(count or 1):
        os._exit(KILLED)


def careful(action: Callable[[], T], description: str) -> T:
    """Run one file operation, retrying transient errors and explaining permanent ones.

    `description` names the operation in messages, e.g. ``"writing pool.zarr/embeddings/c/0/0"``. StoreError if the disk
    is full, permission is lacking, or an I/O error persists after three retries. FileNotFoundError and
    NotADirectoryError are passed on: only the caller knows what a missing file means.
    """
    for wait in (*_RETRY_SECONDS, None):
        try:
            return action()
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            if disk_full(error):
                fact = f"the disk is full ({error.strerror or error})"
                raise StoreError(f"{description}: {fact}; free space and run the same command again") from error
            if error.errno not in _TRANSIENT:
                raise StoreError(
                    f"{description} failed: {error.strerror or error}; check the path and its permissions"
                ) from error
            if wait is None:
                raise StoreError(
                    f"{description} failed {len(_RETRY_SECONDS) + 1} times: {error.strerror}; check the disk or mount"
                ) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def open_input(path: Path) -> BinaryIO:
    """Open a file that other software made, see `open_regular`; raises as `careful` does."""
    return careful(lambda: open_regular(path), f"reading {path}")


def local_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return a path on this machine; InputError for a URL, as only stores and the draws from them may be remote.

    >>> local_path("s3://bucket/config.yaml", "config")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: config='s3://bucket/config.yaml' should be a path on this machine; copy it to a \
disk
    """
    place = location(path, name)
    if isinstance(place, ObjectPath):
        raise InputError(f"{name}={os.fspath(path)!r} should be a path on this machine; copy it to a disk")
    return place


def read_small(path: Location, max_bytes: int) -> bytes:
    """Read a small file or object as a whole; raises as `read_regular` does."""
    if not isinstance(path, ObjectPath):
        return read_regular(path, max_bytes)
    data, size = path.read(0, max_bytes + 1)
    if size > max_bytes:
        raise ValueError(f"it has {size:,} bytes, more than {max_bytes:,}")
    return data


def read_json(path: Location) -> dict[str, Any] | None:
    """Parse a JSON object from a file; None if there is no such file.

    StoreError if the content is anything else, if ``attributes`` is not an object, or beyond `MAX_JSON_BYTES`.
    """
    try:
        parsed = parse_json(careful(lambda: read_small(path, MAX_JSON_BYTES), f"reading {path}"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise StoreError(f"{path} is damaged: not valid JSON ({reason(error)}); {layout.remedy()}") from error
    if not isinstance(parsed, dict):
        raise StoreError(f"{path} is damaged: not a JSON object; {layout.remedy()}")
    if not isinstance(parsed.get("attributes") or {}, dict):
        raise StoreError(f"{path} is damaged: its attributes are not a JSON object; {layout.remedy()}")
    return parsed


def write_file(path: Location, data: bytes) -> None:
    """Write a small file atomically: after a crash it has either the old content or the new."""

    def write() -> None:
        if isinstance(path, ObjectPath):
            return path.write_bytes(data)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    careful(write, f"writing {path}")


def write_whole(target: Location, write: Callable[[Path], None], *, synced: bool = True, new: bool = False) -> None:
    """Have `write` create a temporary file beside `target`, and rename it once its content is on the disk.

    Without `synced`, a failure of the machine may leave a truncated file. Its folder is created if missing.
    Temporary files that killed processes of this machine left beside the target are removed. For an object store, the
    file is written to a temporary folder and uploaded. With `new`, InputError if the target exists by then.
    """

    def check_new() -> None:
        if new and (target.exists() if isinstance(target, ObjectPath) else os.path.lexists(target)):
            raise InputError(f"{target} should be a new file, but was created during the run; choose another name")

    make_folder(target.parent)
    if isinstance(target, ObjectPath):
        with tempfile.TemporaryDirectory(prefix="hkm-") as folder:
            file = Path(folder, target.name)
            careful(lambda: write(file), f"writing {file}")
            check_new()
            target.upload(file)
        return
    import psutil

    for old in target.parent.glob(f".{glob.escape(target.name)}.*{PARTIAL_SUFFIX}"):
        owner = old.name.removesuffix(PARTIAL_SUFFIX).rpartition(".")[2]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            old.unlink(missing_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        careful(lambda: write(partial), f"writing {target}")
        if synced:
            sync(partial)
        check_new()
        careful(lambda: partial.replace(target), f"writing {target}")
        if synced:
            sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def read_attributes(path: str | os.PathLike[str], *, missing_ok: bool = False) -> dict[str, Any]:
    """Read the attributes of a group or array, never from a consolidated copy.

    StoreError if it is damaged or missing; a missing one has no attributes if `missing_ok`.
    """
    metadata = read_json(location(path) / METADATA_FILE)
    if metadata is None and missing_ok:
        return {}
    if metadata is None or "node_type" not in metadata:
        raise StoreError(f"{path} is not a Zarr group or array (format 3): {METADATA_FILE} is missing; check the path")
    return dict(metadata.get("attributes") or {})


def read_complete(path: str | os.PathLike[str], fmt: str) -> dict[str, Any]:
    """Read the attributes of a complete group of format `fmt`, after verifying all of its metadata by the digest.

    StoreError if it is missing, of another format or version, incomplete, or altered since it was completed.
    """
    folder = location(path)
    attributes = read_attributes(folder)
    layout.check_marker(attributes, fmt, folder)
    check_digest(folder, f"; {layout.remedy(fmt)}")
    return attributes


def check_digest(folder: Location, remedy: str = "") -> None:
    """Verify the metadata of a complete group and of everything in it by its digest; StoreError if altered."""
    metadata = read_json(folder / METADATA_FILE) or {}
    attributes = metadata.get("attributes") or {}
    listed = (metadata.get("consolidated_metadata") or {}).get("metadata") or {}
    if attributes.get(layout.DIGEST) != layout.metadata_digest(attributes, listed):
        raise StoreError(f"{folder}: its attributes were altered since it was completed{remedy}")
    files = each(read_json, [folder / name / METADATA_FILE for name in listed], folder)
    for (name, kept), stored in zip(listed.items(), files, strict=True):
        if stored is None or any(stored.get(key) != kept.get(key) for key in {*stored, *kept} - {_CONSOLIDATED}):
            raise StoreError(
                f"{folder / name}: its {METADATA_FILE} is missing or was altered since it was completed{remedy}"
            )


def stored_format(folder: Location) -> str:
    """Return the attribute ``format`` of a group; empty if it has none or is damaged."""
    try:
        kind = ((read_json(folder / METADATA_FILE) or {}).get("attributes") or {}).get("format")
    except StoreError:
        return ""
    return kind if isinstance(kind, str) else ""


def similar_store(folder: Location, *formats: str) -> str:
    """Return the question whether a similarly named store of one of the formats is meant; empty if there is none."""
    if isinstance(folder, ObjectPath) or not folder.parent.is_dir():
        return ""
    with suppress(OSError):
        names = [path.name for path in itertools.islice(folder.parent.iterdir(), 1000)]
        for name in difflib.get_close_matches(folder.name, names, cutoff=0.85):
            if stored_format(folder.with_name(name)) in formats:
                return f"did you mean {name}? If not, "
    return ""


def check_own(path: Location) -> None:
    """Refuse, with a StoreError, to write to what another user may have planted at `path`, a name that we choose.

    That is a symbolic link, a file with several hard links or, in a world-writable folder, a file of another user.
    """
    if isinstance(path, ObjectPath):
        return  # belongs to whoever has the credentials
    try:
        state, parent = path.lstat(), path.parent.stat()
    except OSError:
        return  # nothing exists there, or the write itself will report the error
    linked = stat.S_ISLNK(state.st_mode) or (stat.S_ISREG(state.st_mode) and state.st_nlink > 1)
    foreign = parent.st_mode & stat.S_IWOTH and state.st_uid != os.geteuid()
    if linked or foreign:
        what = "is a link" if linked else f"belongs to another user, {state.st_uid}"
        raise StoreError(f"{path} {what} but should be made by hkm_dask; inspect and remove it")


def remove(folder: Location) -> None:
    """Remove a folder if it exists; a store's metadata go first, so that a remnant cannot pass for a store."""
    if isinstance(folder, ObjectPath):
        (folder / METADATA_FILE).unlink()
        folder.remove_tree()
        return
    check_own(folder)  # a link would have the metadata of another store removed
    if not folder.exists():
        return
    metadata = folder / METADATA_FILE
    if metadata.exists():
        careful(metadata.unlink, f"removing {metadata}")
        sync(folder)
    careful(lambda: shutil.rmtree(folder), f"removing {folder}")


def make_folder(folder: Location) -> None:
    """Create a folder and its missing parents, and sync their names to the disk."""
    if isinstance(folder, ObjectPath):
        return
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # noqa: PTH110 False if forbidden
    careful(lambda: folder.mkdir(parents=True, exist_ok=True), f"making the folder {folder}")
    for path in missing:
        sync(path.parent)


def folder_problem(folder: Path) -> str | None:
    """Return what should hold for a file to be written into a folder, created if missing; None if it holds.

    >>> folder_problem(Path("/dev/null/draws"))
    "be in a folder, '/dev/null' is none; choose another name"
    """
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return f"be in a folder, {str(nearest)!r} is none; choose another name"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"be in a writable folder; change the permissions of {str(nearest)!r}"
    return None


def sync(path: Location) -> None:
    """Flush a file or a folder to the disk before anything that depends on it; objects are durable once written."""
    if isinstance(path, ObjectPath):
        return

    def flush() -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        except OSError as error:
            # Some file systems cannot sync a folder; they promise nothing, and nothing can be done about it.
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(fd)

    careful(flush, f"syncing {path}")


def as_buffer(array: np.ndarray) -> memoryview:
    """Return the bytes of a C-contiguous array, for reading into and writing from."""
    # NumPy's stubs do not say that an array is a buffer.
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def empty_to_read(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Allocate uninitialized, cache-line-aligned memory to read a file into.

    Large blocks of `malloc` begin 16 bytes after a page boundary. Some processors copy pages of a file there at a third
    of the speed, because the next load looks like it depends on the preceding store.

    >>> rows = empty_to_read((1000, 3), np.dtype("f4"))
    >>> rows.shape, rows.ctypes.data % 64
    ((1000, 3), 0)
    """
    memory: np.ndarray = np.empty(bytes_to_read(shape, dtype), np.uint8)
    return part_to_read(memory, shape, dtype)


def bytes_to_read(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return the bytes that hold such an array aligned to a cache line."""
    return math.prod(shape) * dtype.itemsize + _CACHE_LINE


def part_to_read(memory: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an aligned view of `memory`, as `empty_to_read` allocates it."""
    start = -memory.ctypes.data % _CACHE_LINE
    return memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def read_into(fd: int, buffers: list[np.ndarray], offset: int = 0) -> int:
    """Fill consecutive C-contiguous arrays from a file, from `offset` on; returns the number of bytes read."""
    views = [as_buffer(buffer) for buffer in buffers if buffer.size]
    n_read = 0
    while views and (count := os.preadv(fd, views, offset + n_read)):
        n_read += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views:
            views[0] = views[0][count:]
    return n_read
