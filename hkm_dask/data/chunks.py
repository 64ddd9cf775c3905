"""Read and write whole chunks of Zarr arrays on a local disk: checked, fast, and safe to interrupt."""

from __future__ import annotations

import itertools
import os
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import google_crc32c
import numpy as np
import zarr

from hkm_dask.data import layout
from hkm_dask.data.files import METADATA_FILE, PARTIAL_SUFFIX, as_buffer, careful, failpoint, read_json
from hkm_dask.data.layout import ArraySpec
from hkm_dask.errors import InputError, StoreError


def format_above(path: Path) -> str | None:
    """Format of the nearest store of ours that holds `path`, None outside of one."""
    for folder in (path, *path.parents[:3]):
        try:
            kind = ((read_json(folder / METADATA_FILE) or {}).get("attributes") or {}).get("format")
        except StoreError:
            continue
        if isinstance(kind, str):
            return kind
    return None


class ChunkWriter:
    """Writes one chunk file row by row, and puts it in place whole when the context closes without an error.

    Parameters
    ----------
    path : Path
        The chunk file.
    spec : ArraySpec
        How the array lies on disk; must be plain.

    Attributes
    ----------
    crc : int
        CRC-32C of the chunk, padding included; valid once the context is closed.
    """

    def __init__(self, path: Path, spec: ArraySpec) -> None:
        self.path, self.spec = path, spec
        self.crc = 0
        self._missing = spec.chunk_rows * spec.row_bytes
        self._partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")

    def __enter__(self) -> Self:
        def create() -> int:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

        self._fd = careful(create, f"writing {self.path}")
        return self

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows of the chunk.

        Parameters
        ----------
        rows : np.ndarray
            In the array's type and row shape.
        """
        data = np.ascontiguousarray(rows, dtype=self.spec.dtype).reshape(-1).view(np.uint8)
        if data.size > self._missing:
            raise InputError(f"rows={len(rows)} should fit the chunk {self.path}; write whole chunks")
        self._missing -= data.size
        self._put(data)
        self.crc = google_crc32c.extend(self.crc, data)

    def _put(self, data: np.ndarray) -> None:
        offset = 0
        while offset < data.size:
            rest = data[offset:]
            offset += careful(partial(os.write, self._fd, as_buffer(rest)), f"writing {self.path}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._missing:
                    self.append_padding()
                self._put(np.frombuffer(self.crc.to_bytes(layout.CRC_BYTES, "little"), dtype=np.uint8))
        except BaseException:
            kind = StoreError
            raise
        finally:
            os.close(self._fd)
            if kind is not None:
                self._partial.unlink(missing_ok=True)
        if kind is None:
            failpoint("chunk-partial")
            careful(lambda: self._partial.replace(self.path), f"writing {self.path}")
            failpoint("chunk-written")

    def append_padding(self) -> None:
        """Fill what is missing of the chunk with zeros: Zarr's chunks have one length, the last one too."""
        padding = np.zeros(min(self._missing, layout.MIB), dtype=np.uint8)
        while self._missing:
            part = padding[: self._missing]
            self._put(part)
            self.crc = google_crc32c.extend(self.crc, part)
            self._missing -= part.size


@dataclass(frozen=True)
class StoredArray:
    """One array on a local disk: rows in and out, by whole chunks, with every checksum checked.

    Plain arrays of ours (see `layout.ArraySpec`) are read with one ``preadv`` per chunk straight into the result;
    everything else goes through Zarr. Cheap to pickle.

    Attributes
    ----------
    path : str
        Absolute path of the array's folder.
    spec : ArraySpec
        How it lies on disk.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from hkm_dask.data.store import create_array
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = create_array(folder, "sizes", shape=(5,), dtype="i8", chunks=(2,), dims=("cluster_1",))
    ...     array = open_array(f"{folder}/sizes")
    ...     array.write(0, np.arange(5))
    ...     array.read(1, 4)
    array([1, 2, 3])
    """

    path: str
    spec: ArraySpec

    def chunk_path(self, index: int) -> Path:
        """File of chunk `index`, counted along the first axis."""
        return Path(self.path, "c", *map(str, (index,) + (0,) * (len(self.spec.shape) - 1)))

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows `start` to `stop`, from chunks read whole and checked.

        Parameters
        ----------
        start, stop : int
            Row numbers, ``0 <= start <= stop <= shape[0]``.
        out : np.ndarray, optional
            C-contiguous, of the right shape and type, to read into: saves the page faults of fresh memory.

        Returns
        -------
        np.ndarray, shape (stop - start, ...)
            The rows; `out` where given.

        Raises
        ------
        StoreError
            When a chunk is missing, cut or altered, or its disk fails.
        """
        spec = self.spec
        if not 0 <= start <= stop <= spec.shape[0]:
            raise InputError(f"rows={start}:{stop} should lie within 0:{spec.shape[0]} of {self.path}; give other rows")
        if not spec.plain:
            rows = self._read_zarr(start, stop)
            if out is None:
                return rows
            out[...] = rows
            return out
        if out is None:
            out = np.empty((stop - start, *spec.shape[1:]), dtype=spec.dtype)
        if start < stop:
            data = out.reshape(-1).view(np.uint8)
            for index in range(start // spec.chunk_rows, -(-stop // spec.chunk_rows)):
                chunk_start, chunk_stop = index * spec.chunk_rows, (index + 1) * spec.chunk_rows
                first, last = max(start, chunk_start), min(stop, chunk_stop)
                self._read_chunk(
                    index,
                    np.empty((first - chunk_start) * spec.row_bytes, dtype=np.uint8),
                    data[(first - start) * spec.row_bytes : (last - start) * spec.row_bytes],
                    np.empty((chunk_stop - last) * spec.row_bytes, dtype=np.uint8),
                )
        return out

    def read_chunk(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """All rows of one chunk; see `read`."""
        start, stop = self.spec.chunk_range(index)
        return self.read(start, stop, None if out is None else out[: stop - start])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Gather rows, reading each chunk once.

        Parameters
        ----------
        rows : np.ndarray of int64
            Sorted row numbers.

        Returns
        -------
        np.ndarray, shape (len(rows), ...)
            The rows.

        Raises
        ------
        InputError
            When the row numbers are unsorted or out of range.
        StoreError
            As `read`.
        """
        spec = self.spec
        rows = check_rows(rows, spec.shape[0])
        out = np.empty((len(rows), *spec.shape[1:]), dtype=spec.dtype)
        chunks = rows // spec.chunk_rows
        cuts = np.flatnonzero(np.diff(chunks, prepend=-1, append=-1)) if len(rows) else rows
        buffer: np.ndarray | None = None
        for first, last in itertools.pairwise(cuts.tolist()):
            start, stop = spec.chunk_range(int(chunks[first]))
            # Rows may repeat, so that there are as many as in the chunk does not mean that they are all of it.
            if last - first == stop - start and (np.diff(rows[first:last]) == 1).all():
                self.read(start, stop, out[first:last])
                continue
            if buffer is None:
                buffer = np.empty((min(spec.chunk_rows, spec.shape[0]), *spec.shape[1:]), dtype=spec.dtype)
            out[first:last] = self.read(start, stop, buffer[: stop - start])[rows[first:last] - start]
        return out

    def writer(self, index: int) -> ChunkWriter:
        """Write one chunk of a plain array row by row; a context manager, see `ChunkWriter`."""
        return ChunkWriter(self.chunk_path(index), self.spec)

    def write(self, start: int, values: np.ndarray) -> None:
        """Write whole chunks.

        Parameters
        ----------
        start : int
            First row; a multiple of the chunk's rows.
        values : np.ndarray, shape (n, ...)
            Up to the end of a chunk or of the array: two tasks must never share a chunk.

        Raises
        ------
        InputError
            When the rows are no whole chunks.
        StoreError
            When the disk is full or fails.
        """
        spec = self.spec
        stop = start + len(values)
        whole = start % spec.chunk_rows == 0 and (stop % spec.chunk_rows == 0 or stop == spec.shape[0])
        if not whole or values.shape[1:] != spec.shape[1:] or stop > spec.shape[0]:
            raise InputError(
                f"rows={start}:{stop} should be whole chunks of {spec.chunk_rows} rows of {self.path}; cut there"
            )
        if not spec.plain:
            array = zarr.open_array(self.path, mode="r+").with_config({"write_empty_chunks": True})
            careful(lambda: array.__setitem__(slice(start, stop), values), f"writing {self.path}")
            return
        for index in range(start // spec.chunk_rows, -(-stop // spec.chunk_rows)):
            first, last = spec.chunk_range(index)
            with self.writer(index) as chunk:
                chunk.append(values[first - start : last - start])

    def check(self) -> None:
        """Make sure that every chunk file is there, and as long as it should be; contents are checked on reading.

        Raises
        ------
        StoreError
            Naming the first chunk that is missing or cut.
        """
        if self.spec.checked:
            for index in range(self.spec.n_chunks):
                self._check_length(index, self._stat(index).st_size)

    def _stat(self, index: int) -> os.stat_result:
        path = self.chunk_path(index)
        try:
            return careful(path.stat, f"reading {path}")
        except FileNotFoundError:
            raise self._damage(index, "is missing") from None

    def _check_length(self, index: int, size: int) -> None:
        if self.spec.plain and size != self.spec.chunk_file_bytes:
            raise self._damage(index, f"has {size} bytes instead of {self.spec.chunk_file_bytes}")

    def _damage(self, index: int, reason: str) -> StoreError:
        first, stop = self.spec.chunk_range(index)
        fix = layout.remedy(format_above(Path(self.path)))
        return StoreError(f"{self.path}: chunk {index} ({self.chunk_path(index)}, rows {first}:{stop}) {reason}; {fix}")

    def _read_chunk(self, index: int, head: np.ndarray, body: np.ndarray, tail: np.ndarray) -> None:
        """Fill three byte buffers with one chunk: the rows before the wanted ones, the wanted ones, those after."""
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
                checksum = google_crc32c.extend(checksum, part)
        if checksum != int.from_bytes(crc.tobytes(), "little"):
            raise self._damage(index, "was altered on disk: its checksum does not match")

    def _read_zarr(self, start: int, stop: int) -> np.ndarray:
        spec = self.spec
        if spec.checked:
            for index in range(start // spec.chunk_rows, -(-stop // spec.chunk_rows)):
                self._stat(index)
        try:
            array = zarr.open_array(self.path, mode="r")
            rows = careful(lambda: array[start:stop], f"reading {self.path}")
        except (ValueError, RuntimeError) as error:
            chunks = f"chunks {start // spec.chunk_rows} to {max(start, stop - 1) // spec.chunk_rows}"
            fix = layout.remedy(format_above(Path(self.path)))
            raise StoreError(f"{self.path}: one of {chunks} cannot be read ({error}); {fix}") from error
        return np.ascontiguousarray(rows, dtype=spec.dtype)


def open_array(path: str | os.PathLike[str]) -> StoredArray:
    """Open an array on a local disk for reading and writing by whole chunks.

    Parameters
    ----------
    path : path-like
        Folder of the array.

    Returns
    -------
    StoredArray
        Plain and fast where it is of ours, through Zarr where it is not.

    Raises
    ------
    StoreError
        When there is no array.
    """
    folder = Path(path).absolute()
    metadata = read_json(folder / METADATA_FILE)
    spec = None if metadata is None else layout.parse_array_spec(metadata)
    if spec is None:
        spec = _foreign_spec(folder)
    return StoredArray(str(folder), spec)


def check_rows(rows: np.ndarray, n_rows: int) -> np.ndarray:
    """Refuse row numbers that are no integers, unsorted, or out of range.

    Returns
    -------
    np.ndarray of int64
        The row numbers.

    Raises
    ------
    InputError
        Naming what is wrong.

    Examples
    --------
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


def _fill(path: Path, buffers: list[np.ndarray]) -> int:
    """Read a file into buffers, one after the other, and return the length of the file."""
    views = [as_buffer(buffer) for buffer in buffers if buffer.size]
    fd = os.open(path, os.O_RDONLY)
    try:
        size, offset = os.fstat(fd).st_size, 0
        while views and (count := os.preadv(fd, views, offset)):
            offset += count
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if views:
                views[0] = views[0][count:]
    finally:
        os.close(fd)
    return offset if views else size


def _foreign_spec(folder: Path) -> ArraySpec:
    try:
        array = zarr.open_array(str(folder), mode="r")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder} is no Zarr array ({error}); give the path of one") from error
    chunks = array.shards or array.chunks
    dtype = np.dtype(array.dtype)
    rows = chunks[0] if chunks else 1
    return ArraySpec(array.shape, np.dtype(object) if dtype.kind in "TO" else dtype, rows, checked=False, plain=False)
