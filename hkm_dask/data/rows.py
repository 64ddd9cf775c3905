"""Where rows come from: one interface over arrays in memory, `.npy` files and Zarr arrays."""

from __future__ import annotations

import itertools
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from hkm_dask.data import layout
from hkm_dask.data.chunks import check_rows, open_array
from hkm_dask.data.files import METADATA_FILE, as_buffer, careful, read_json
from hkm_dask.data.npy import check_npy_length, read_npy_header
from hkm_dask.errors import InputError, StoreError


class Rows(ABC):
    """A table of rows that can be read by blocks and gathered; picklable, and cheap to pickle unless in memory.

    Attributes
    ----------
    n_rows, n_features : int
        Shape of the table.
    dtype : np.dtype
        float16, float32 or float64: the type in which rows are read.
    key : tuple
        Identifies the content, for caches of one process.
    label : str
        What to call it in messages.
    chunk_rows : int
        Rows of a storage chunk, which is read whole; 1 where any rows can be read alone.
    """

    n_rows: int
    n_features: int
    dtype: np.dtype
    key: tuple[Hashable, ...]
    label: str
    chunk_rows: int = 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as it is read."""
        return self.n_features * self.dtype.itemsize

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_rows, n_features)``."""
        return self.n_rows, self.n_features

    def bounds(self, max_bytes: int, min_blocks: int = 1) -> np.ndarray:
        """Block boundaries at whole storage chunks; see `layout.block_bounds`.

        Parameters
        ----------
        max_bytes : int
            Bytes of the largest block as it is read; one storage chunk where that is more.
        min_blocks : int, default 1
            At least so many blocks, as far as there are chunks.

        Returns
        -------
        np.ndarray of int64, shape (n_blocks + 1,)
            0 first, `n_rows` last.
        """
        return layout.block_bounds(
            self.n_rows, self.row_bytes, max_bytes=max_bytes, min_blocks=min_blocks, unit_rows=self.chunk_rows
        )

    @abstractmethod
    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read consecutive rows.

        Parameters
        ----------
        start, stop : int
            Row numbers, ``0 <= start <= stop <= n_rows``.
        out : np.ndarray, optional
            C-contiguous, shape (stop - start, n_features), of `dtype`, to read into: saves the page faults of fresh
            memory in a loop over blocks.

        Returns
        -------
        np.ndarray, shape (stop - start, n_features)
            C-contiguous, of `dtype`; the caller may keep it but, for arrays in memory, must not write to it.
        """

    @abstractmethod
    def take(self, rows: np.ndarray) -> np.ndarray:
        """Gather rows, reading each storage chunk once.

        Parameters
        ----------
        rows : np.ndarray of int64
            Sorted row numbers.

        Returns
        -------
        np.ndarray, shape (len(rows), n_features)
            C-contiguous, of `dtype`.
        """

    def _deliver(self, rows: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        if out is None:
            return np.ascontiguousarray(rows, dtype=self.dtype)
        out[...] = rows
        return out

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_rows:
            raise InputError(f"rows={start}:{stop} should lie within 0:{self.n_rows} of {self.label}; give other rows")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label}, {self.n_rows} × {self.n_features} {self.dtype})"


def _checked_dtype(dtype: np.dtype, label: str) -> np.dtype:
    read_as = layout.float_dtype(dtype)
    if read_as is None:
        raise InputError(f"{label}: dtype={dtype} should be float16, float32, float64 or an integer; convert it first")
    return read_as


class ArrayRows(Rows):
    """Rows of a NumPy array in memory.

    Parameters
    ----------
    array : np.ndarray, shape (n_rows, n_features)
        Floats, or integers, which are read as floats.
    label : str, default "array"
        What to call it in messages.

    Examples
    --------
    >>> rows = ArrayRows(np.arange(6).reshape(3, 2))
    >>> rows.read(1, 3)
    array([[2., 3.],
           [4., 5.]])
    >>> rows.bounds(max_bytes=16)
    array([0, 1, 2, 3])
    """

    def __init__(self, array: np.ndarray, label: str = "array") -> None:
        array = np.asarray(array)
        self.array, self.label = array, label
        self.n_rows, self.n_features = layout.check_shape(array.shape, label)
        self.dtype = _checked_dtype(array.dtype, label)
        # The address of an array is used again after it is gone, a random number is not; it travels with the pickle.
        self.key = ("array", uuid.uuid4().hex)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        self._check_range(start, stop)
        return self._deliver(self.array[start:stop], out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        return self._deliver(self.array[check_rows(rows, self.n_rows)], None)


class NpyRows(Rows):
    """Rows of a `.npy` file, read by blocks; never mapped, since a mapping counts as resident and dies by SIGBUS.

    Parameters
    ----------
    path : path-like
        The file.
    offset : int, default 0
        Where the `.npy` begins in the file, for an uncompressed member of a `.npz`.
    n_bytes : int, optional
        Its length; by default to the end of the file.
    label : str, optional
        What to call it in messages; by default the path.

    Raises
    ------
    InputError
        When the header is damaged, or the file is not as long as its header says.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, offset: int = 0, n_bytes: int | None = None, label: str | None = None
    ) -> None:
        file_path = Path(path).absolute()
        self.path, self.label = str(file_path), label or str(file_path)
        if not file_path.is_file():
            raise InputError(f"{self.label} does not exist; check the path")
        state = careful(file_path.stat, f"reading {self.label}")
        with careful(lambda: file_path.open("rb"), f"reading {self.label}") as file:
            file.seek(offset)
            header = read_npy_header(file, self.label)
        check_npy_length(header, (state.st_size - offset) if n_bytes is None else n_bytes, self.label)
        self.n_rows, self.n_features = layout.check_shape(header.shape, self.label)
        self.dtype = _checked_dtype(header.dtype, self.label)
        self._stored, self._fortran, self._data = header.dtype, header.fortran_order, offset + header.offset
        self.key = ("npy", self.path, offset, state.st_size, state.st_mtime_ns, state.st_ino)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        self._check_range(start, stop)
        direct = out is not None and not self._fortran and out.dtype == self._stored and out.flags.c_contiguous
        shape = (self.n_features, stop - start) if self._fortran else (stop - start, self.n_features)
        stored = out if direct and out is not None else np.empty(shape, dtype=self._stored)
        if start < stop:
            careful(lambda: self._read_into(stored, start), f"reading {self.label}")
        if stored is out:
            return out
        return self._deliver(stored.T if self._fortran else stored, out)

    def _read_into(self, stored: np.ndarray, start: int) -> None:
        fd = os.open(self.path, os.O_RDONLY)
        try:
            if not self._fortran:
                self._pread(fd, stored, self._data + start * stored[0].nbytes)
                return
            for column, values in enumerate(stored):
                self._pread(fd, values, self._data + (column * self.n_rows + start) * self._stored.itemsize)
        finally:
            os.close(fd)

    def _pread(self, fd: int, into: np.ndarray, offset: int) -> None:
        view, done = as_buffer(into), 0
        while done < len(view):
            count = os.preadv(fd, [view[done:]], offset + done)
            if not count:
                raise StoreError(f"{self.label} became shorter while it was read; copy or save it again")
            done += count

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        rows = check_rows(rows, self.n_rows)
        out = np.empty((len(rows), self.n_features), dtype=self.dtype)
        if len(rows) == 0:
            return out
        # Rows that lie close are read together: a gap of a few pages costs less than another call.
        gap = max(1, 2**14 // max(1, self._stored.itemsize * self.n_features))
        span = max(1, 2**23 // max(1, self._stored.itemsize * self.n_features))
        breaks = (np.diff(rows) > gap) | (np.diff((rows - rows[0]) // span) > 0)
        cuts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(rows)]
        for first, last in itertools.pairwise(cuts):
            start = int(rows[first])
            out[first:last] = self.read(start, int(rows[last - 1]) + 1)[rows[first:last] - start]
        return out


class ZarrRows(Rows):
    """Rows of a Zarr array on a local disk: chunks of ours are read directly and checked, others through Zarr.

    Parameters
    ----------
    path : path-like
        Folder of the array, or of the group that holds it.
    name : str, default ""
        Name of the array in the group.
    version : hashable, optional
        Identifies the content for caches; by default when and where the array was made.

    Raises
    ------
    StoreError
        When there is no array.
    """

    def __init__(self, path: str | os.PathLike[str], name: str = "", *, version: Hashable = None) -> None:
        folder = Path(path).absolute() / name
        self.label = str(folder)
        self.array = open_array(folder)
        spec = self.array.spec
        self.n_rows, self.n_features = layout.check_shape(spec.shape, self.label)
        self.dtype = _checked_dtype(spec.dtype, self.label)
        self.chunk_rows = spec.chunk_rows
        if version is None:
            files = [folder / name for name in (METADATA_FILE, ".zarray") if (folder / name).is_file()]
            version = tuple((state.st_mtime_ns, state.st_ino) for state in (file.stat() for file in files))
        self.key = ("zarr", self.label, version)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        if self.array.spec.dtype == self.dtype:
            return self.array.read(start, stop, out)
        return self._deliver(self.array.read(start, stop), out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        return self._deliver(self.array.take(rows), None)


class RemoteZarrRows(Rows):
    """Rows of a Zarr array that lies in memory or in an object store, read through Zarr.

    Parameters
    ----------
    array : zarr.Array, shape (n_rows, n_features)
        Picklable where its store is.
    """

    def __init__(self, array: zarr.Array) -> None:
        self.array, self.label = array, str(array.store_path)
        self.n_rows, self.n_features = layout.check_shape(array.shape, self.label)
        self.dtype = _checked_dtype(np.dtype(array.dtype), self.label)
        self.chunk_rows = (array.shards or array.chunks)[0]
        self.key = ("zarr", self.label, uuid.uuid4().hex)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        self._check_range(start, stop)
        return self._deliver(np.asarray(self.array[start:stop]), out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        return self._deliver(np.asarray(self.array.oindex[check_rows(rows, self.n_rows)]), None)


def as_rows(x: Any) -> Rows:
    """Rows of whatever holds some.

    Parameters
    ----------
    x : Rows, np.ndarray, path-like, zarr.Array or Pool
        A path is a `.npy` file, a pool, or a Zarr array.

    Returns
    -------
    Rows
        Nothing is read yet but headers.

    Raises
    ------
    InputError
        When it is none of these.
    StoreError
        When a pool is not complete.

    Examples
    --------
    >>> as_rows(np.zeros((3, 2), dtype=np.float32))
    ArrayRows(array, 3 × 2 float32)
    """
    if isinstance(x, Rows):
        return x
    if isinstance(x, np.ndarray):
        return ArrayRows(x)
    if isinstance(x, zarr.Array):
        store = x.store_path.store
        return ZarrRows(Path(store.root) / x.store_path.path) if isinstance(store, LocalStore) else RemoteZarrRows(x)
    if isinstance(x, str | os.PathLike):
        return _rows_of_path(Path(x))
    rows = getattr(x, "rows", None)
    if callable(rows) and isinstance(table := rows(), Rows):
        return table
    raise InputError(
        f"embeddings={type(x).__name__} should be an array, a pool or a path; convert it with numpy.asarray"
    )


def _rows_of_path(path: Path) -> Rows:
    if path.is_file():
        return NpyRows(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a .npy file, a pool or a Zarr array")
    root = read_json(path / METADATA_FILE) or {}
    if root.get("node_type") != "group":
        return ZarrRows(path)
    attributes = root.get("attributes") or {}
    layout.check_marker(attributes, layout.POOL_FORMAT, path)
    return ZarrRows(path, layout.EMBEDDINGS, version=attributes.get("fingerprint"))
