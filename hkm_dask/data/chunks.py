"""Read and write whole chunks of Zarr arrays, on a local disk or in an object store, checked and crash-safe."""

from __future__ import annotations

import itertools
import operator
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import zarr
from crc32c import crc32c

from hkm_dask.data import layout
from hkm_dask.data.files import (
    METADATA_FILE,
    PARTIAL_SUFFIX,
    as_buffer,
    careful,
    empty_to_read,
    failpoint,
    read_into,
    read_json,
    read_small,
    stored_format,
    write_file,
)
from hkm_dask.data.foreign import open_foreign
from hkm_dask.data.layout import ArraySpec
from hkm_dask.data.objects import Location, ObjectPath, each, location, zarr_store
from hkm_dask.data.unpacked import check_chunks
from hkm_dask.errors import InputError, StoreError
from hkm_dask.untrusted import open_regular, reading

#: File beside the chunks of a complete array: the CRC-32C of each chunk, four bytes, little-endian.
CHECKSUMS_FILE = "checksums"


class ChunkWriter:
    """Writer of one chunk file, row by row; see `StoredArray.writer`."""

    def __init__(self, path: Location, spec: ArraySpec, put: Callable[[np.ndarray], int]) -> None:
        self.crc = 0  # CRC-32C of the chunk, including padding, once the writer's context is closed
        self._path, self._spec, self._write = path, spec, put
        self._missing = spec.chunk_rows * spec.row_bytes

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows of the chunk, with the array's dtype and row shape."""
        data = np.ascontiguousarray(rows, dtype=self._spec.dtype).reshape(-1).view(np.uint8)
        if data.size > self._missing:
            raise InputError(f"rows={len(rows)} should fit the chunk {self._path}; write whole chunks")
        self._append(data)

    def close(self) -> None:
        """Pad the chunk with zeros, as all chunks of a Zarr array have the same length, and write the checksum."""
        padding = np.zeros(min(self._missing, layout.MIB), dtype=np.uint8)
        while self._missing:
            self._append(padding[: self._missing])
        self._put(np.frombuffer(self.crc.to_bytes(layout.CRC_BYTES, "little"), dtype=np.uint8))

    def _append(self, data: np.ndarray) -> None:
        self._put(data)
        self._missing -= data.size
        self.crc = crc32c(as_buffer(data), self.crc)

    def _put(self, data: np.ndarray) -> None:
        offset = 0
        while offset < data.size:
            offset += careful(partial(self._write, data[offset:]), f"writing {self._path}")


@dataclass(frozen=True)
class StoredArray:
    """An array on a disk or in an object store, read and written by whole chunks, with every checksum verified.

    Plain arrays of this package (see `layout.ArraySpec`) are read with one ``preadv``, or one request, per chunk
    directly into the result; all others are read through Zarr. Cheap to pickle.

    >>> import tempfile, numpy as np
    >>> from hkm_dask.data.store import create_array
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = create_array(folder, "sizes", shape=(5,), dtype="i8", chunks=(2,), dims=("cluster_1",))
    ...     array = open_array(f"{folder}/sizes")
    ...     array.write(0, np.arange(5))
    ...     array.read(1, 4)
    array([1, 2, 3])
    """

    path: str  # absolute path of the array's folder, or its URL
    spec: ArraySpec  # storage layout
    #: Identifies the chunks that it must hold, see `layout.array_fingerprint`; empty while it is written and for arrays
    #: of other software. The file ``checksums`` beside the chunks lists their checksums.
    fingerprint: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype:
        """Data type of the elements."""
        return self.spec.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.spec.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read by a basic index, like `read`; `dask.array.from_array` requires this."""
        first, *others = index if isinstance(index, tuple) else (index,)
        if not isinstance(first, slice):
            row = operator.index(first) % self.shape[0]
            return self.read(row, row + 1)[0, *others]
        rows = range(self.shape[0])[first]
        if not rows:
            return self.read(0, 0)[:, *others]
        low = min(rows[0], rows[-1])
        return self.read(low, max(rows[0], rows[-1]) + 1)[:: rows.step, *others]

    @cached_property
    def place(self) -> Location:
        """Path or URL of the array's folder."""
        return location(self.path)

    def chunk_path(self, index: int) -> Location:
        """Return the file or object of chunk `index`, counted along the first axis."""
        return self.place / "/".join(map(str, ("c", index) + (0,) * (len(self.spec.shape) - 1)))

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read rows `start` to `stop` from verified chunks; StoreError if one is missing, truncated or altered.

        If given, `out` (C-contiguous, of this shape and dtype) is filled and returned, which saves the page faults of
        newly allocated memory.
        """
        spec = self.spec
        check_range(start, stop, spec.shape[0], self.path)
        if not spec.plain:
            rows = self._read_zarr(start, stop)
            if out is None:
                return rows
            out[...] = rows
            return out
        if out is None:
            out = empty_to_read((stop - start, *spec.shape[1:]), spec.dtype)
        data = out.reshape(-1).view(np.uint8)

        def read(index: int) -> None:
            chunk_start, chunk_stop = index * spec.chunk_rows, (index + 1) * spec.chunk_rows
            first, last = max(start, chunk_start), min(stop, chunk_stop)
            self._read_chunk(
                index,
                np.empty((first - chunk_start) * spec.row_bytes, dtype=np.uint8),
                data[(first - start) * spec.row_bytes : (last - start) * spec.row_bytes],
                np.empty((chunk_stop - last) * spec.row_bytes, dtype=np.uint8),
            )

        if self.fingerprint:
            listed_checksums(self)  # once, not in every thread
        each(read, spec.chunks(start, stop), self.place, spec.chunk_file_bytes)
        return out

    def read_chunk(self, index: int) -> np.ndarray:
        """Read all rows of one chunk; see `read`."""
        return self.read(*self.spec.chunk_range(index))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Gather rows by sorted row numbers (int64), reading each chunk once; raises as `check_rows` and `read` do."""
        spec = self.spec
        rows = check_rows(rows, spec.shape[0])
        out = np.empty((len(rows), *spec.shape[1:]), dtype=spec.dtype)
        chunks = rows // spec.chunk_rows
        cuts = np.flatnonzero(np.diff(chunks, prepend=-1, append=-1)) if len(rows) else rows
        buffer: np.ndarray | None = None
        for first, last in itertools.pairwise(cuts.tolist()):
            start, stop = spec.chunk_range(int(chunks[first]))
            # Rows may repeat, so having as many rows as the chunk does not imply that they are the whole chunk.
            if last - first == stop - start and (np.diff(rows[first:last]) == 1).all():
                self.read(start, stop, out[first:last])
                continue
            if buffer is None:
                buffer = np.empty((min(spec.chunk_rows, spec.shape[0]), *spec.shape[1:]), dtype=spec.dtype)
            out[first:last] = self.read(start, stop, buffer[: stop - start])[rows[first:last] - start]
        return out

    @contextmanager
    def writer(self, index: int) -> Iterator[ChunkWriter]:
        """Write one chunk of a plain array row by row; it is moved into place when the context closes normally."""
        path = self.chunk_path(index)
        if isinstance(path, ObjectPath):
            with self._object_writer(path) as writer:
                yield writer
            return
        partial_path = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")

        def create() -> int:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(partial_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

        fd = careful(create, f"writing {path}")
        try:
            try:
                writer = ChunkWriter(path, self.spec, lambda data: os.write(fd, as_buffer(data)))
                yield writer
                writer.close()
            finally:
                os.close(fd)
            failpoint("chunk-partial")
            careful(lambda: partial_path.replace(path), f"writing {path}")
        except BaseException:
            partial_path.unlink(missing_ok=True)
            raise
        failpoint("chunk-written")

    @contextmanager
    def _object_writer(self, path: ObjectPath) -> Iterator[ChunkWriter]:
        """Collect a chunk in memory, then write the object."""
        chunk = bytearray()

        def put(data: np.ndarray) -> int:
            chunk.extend(as_buffer(data))
            return data.size

        writer = ChunkWriter(path, self.spec, put)
        yield writer
        writer.close()
        failpoint("chunk-partial")
        path.write_bytes(chunk)
        failpoint("chunk-written")

    def write(self, start: int, values: np.ndarray) -> None:
        """Write whole chunks, from the first row of a chunk to the end of one or of the array; InputError otherwise.

        Two tasks must never write to the same chunk.
        """
        spec = self.spec
        stop = start + len(values)
        whole = start % spec.chunk_rows == 0 and (stop % spec.chunk_rows == 0 or stop == spec.shape[0])
        if not whole or values.shape[1:] != spec.shape[1:] or stop > spec.shape[0]:
            raise InputError(
                f"rows={start}:{stop} should be whole chunks of {spec.chunk_rows} rows of {self.path}; cut there"
            )
        if not spec.plain:
            array = zarr.open_array(zarr_store(self.place), mode="r+").with_config({"write_empty_chunks": True})
            careful(lambda: array.__setitem__(slice(start, stop), values), f"writing {self.path}")
            return

        def put(index: int) -> None:
            first, last = spec.chunk_range(index)
            with self.writer(index) as chunk:
                chunk.append(values[first - start : last - start])

        each(put, spec.chunks(start, stop), self.place, spec.chunk_file_bytes)

    def check(self) -> None:
        """Check that every chunk file exists, has the right length and ends with the listed checksum.

        The content itself is verified against this checksum when it is read.
        """
        if self.spec.checked:
            listed_checksums.cache_clear()  # the list is read again, even if this process has cached it
            for index, checksum in enumerate(self._stored_checksums()):
                self._check_place(index, checksum)

    def _stored_checksums(self) -> list[int]:
        return each(self.checksum, range(self.spec.n_chunks), self.place)

    def checksum(self, index: int) -> int:
        """Read the CRC-32C at the end of a chunk file; StoreError if the file is missing or truncated."""
        path, crc = self.chunk_path(index), np.empty(layout.CRC_BYTES, dtype=np.uint8)

        def read() -> int:
            if isinstance(path, ObjectPath):
                end, size = path.read(-layout.CRC_BYTES)
                crc[: len(end)] = np.frombuffer(end, np.uint8)
                return size
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                read_into(file.fileno(), [crc], max(0, size - layout.CRC_BYTES))
                return size

        try:
            size = careful(read, f"reading {path}")
        except FileNotFoundError:
            raise self._damage(index, "is missing") from None
        self._check_length(index, size)
        return int.from_bytes(crc.tobytes(), "little")

    def seal(self) -> StoredArray:
        """Write the list of the checksums of all chunks, once these are written; return the array bound to it."""
        checksums = np.array(self._stored_checksums(), dtype="<u4")
        write_file(self.place / CHECKSUMS_FILE, checksums.tobytes())
        return replace(self, fingerprint=layout.array_fingerprint(self.spec, checksums))

    def _check_place(self, index: int, checksum: int) -> None:
        """Refuse a chunk that is intact but not the one that was written here."""
        if self.fingerprint and checksum != listed_checksums(self)[index]:
            raise self._damage(index, "is not the chunk that was written here")

    def _check_length(self, index: int, size: int) -> None:
        if self.spec.plain and size != self.spec.chunk_file_bytes:
            raise self._damage(index, f"has {size} bytes instead of {self.spec.chunk_file_bytes}")

    def _damage(self, index: int, reason: str) -> StoreError:
        first, stop = self.spec.chunk_range(index)
        place = f"chunk {index} ({self.chunk_path(index)}, rows {first}:{stop})"
        return StoreError(f"{self.path}: {place} {reason}; {self.remedy()}")

    def remedy(self) -> str:
        """Return how to restore the nearest store of this package that holds the array."""
        return layout.remedy(next(filter(None, map(stored_format, (self.place, *self.place.parents[:3]))), ""))

    def _read_chunk(self, index: int, head: np.ndarray, body: np.ndarray, tail: np.ndarray) -> None:
        """Fill three byte buffers from one chunk: the rows before the requested ones, those, and the rows after."""
        path = self.chunk_path(index)
        crc = np.empty(layout.CRC_BYTES, dtype=np.uint8)
        try:
            size = careful(lambda: _fill(path, [head, body, tail, crc]), f"reading {path}")
        except FileNotFoundError:
            raise self._damage(index, "is missing") from None
        self._check_length(index, size)
        checksum = 0
        for part in (head, body, tail):
            if part.size:
                checksum = crc32c(as_buffer(part), checksum)
        if checksum != int.from_bytes(crc.tobytes(), "little"):
            raise self._damage(index, "was altered on disk: its checksum does not match")
        self._check_place(index, checksum)

    def _read_zarr(self, start: int, stop: int) -> np.ndarray:
        spec = self.spec
        if spec.checked:
            for index in spec.chunks(start, stop):
                self._check_place(index, self.checksum(index))
        chunks = f"chunks {start // spec.chunk_rows} to {max(start, stop - 1) // spec.chunk_rows}"
        with reading(f"{self.path}: one of {chunks} cannot be read", self.remedy(), StoreError):
            array = zarr.open_array(zarr_store(self.place), mode="r")
            if not spec.checked:
                check_chunks(self.place, array, start, stop)
            rows = careful(lambda: array[start:stop], f"reading {self.path}")
        return np.ascontiguousarray(rows, dtype=spec.dtype)


def open_array(path: str | os.PathLike[str]) -> StoredArray:
    """Open an array on a disk or in an object store; arrays of this package are read directly, others through Zarr.

    StoreError if there is no array, or if it comes from other software and lacks chunks.
    """
    folder = location(path).absolute()
    metadata = read_json(folder / METADATA_FILE) or {}
    spec = layout.parse_array_spec(metadata)
    if spec is None or not spec.checked:
        array = open_foreign(folder)
        return StoredArray(str(folder), spec or _foreign_spec(array))
    fingerprint = (metadata.get("attributes") or {}).get(layout.FINGERPRINT, "")
    return StoredArray(str(folder), spec, str(fingerprint))


@lru_cache(maxsize=64)
def listed_checksums(array: StoredArray) -> np.ndarray:
    """Read the CRC-32C values of the chunks of a complete array; StoreError if the list belongs to another array."""
    path, n_bytes = array.place / CHECKSUMS_FILE, layout.CRC_BYTES * array.spec.n_chunks
    try:
        checksums = np.frombuffer(careful(lambda: read_small(path, n_bytes), f"reading {path}"), dtype="<u4")
    except (FileNotFoundError, ValueError):
        checksums = np.empty(0, dtype="<u4")
    if len(checksums) != array.spec.n_chunks or layout.array_fingerprint(array.spec, checksums) != array.fingerprint:
        raise StoreError(f"{path} is missing or of another array, which may have been replaced; {array.remedy()}")
    return checksums


def check_range(start: int, stop: int, n_rows: int, label: str) -> None:
    """Refuse a range of rows that exceeds the table."""
    if not 0 <= start <= stop <= n_rows:
        raise InputError(f"rows={start}:{stop} should lie within 0:{n_rows} of {label}; give other rows")


def check_rows(rows: np.ndarray, n_rows: int) -> np.ndarray:
    """Return row numbers as int64; InputError if they are not integers, not sorted, or out of range.

    >>> check_rows(np.array([0, 7]), 5)
    Traceback (most recent call last):
    hkm_dask.errors.InputError: rows=0..7 should lie within 0..4; give row numbers of this pool
    """
    rows = np.asarray(rows)
    if rows.size == 0:
        return np.zeros(0, dtype=np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise InputError(f"rows={rows.dtype}{rows.shape} should be integers in one dimension; give row numbers")
    rows = rows.astype(np.int64, copy=False)
    if (rows[1:] < rows[:-1]).any():
        raise InputError("rows=unsorted should be sorted; sort them first")
    if rows[0] < 0 or rows[-1] >= n_rows:
        raise InputError(f"rows={rows[0]}..{rows[-1]} should lie within 0..{n_rows - 1}; give row numbers of this pool")
    return rows


def _fill(path: Location, buffers: list[np.ndarray]) -> int:
    """Read a file or an object into consecutive buffers, and return its length."""
    if isinstance(path, ObjectPath):
        return path.read_into(buffers)
    with open_regular(path) as file:
        size, n_read = os.fstat(file.fileno()).st_size, read_into(file.fileno(), buffers)
    return n_read if n_read < sum(buffer.nbytes for buffer in buffers) else size


def _foreign_spec(array: zarr.Array) -> ArraySpec:
    dtype, chunks = np.dtype(array.dtype), array.shards or array.chunks
    rows = chunks[0] if chunks else 1
    return ArraySpec(array.shape, np.dtype(object) if dtype.kind in "TO" else dtype, rows, checked=False, plain=False)
