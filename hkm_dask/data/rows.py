"""Tables of rows: one interface to arrays in memory, `.npy` files and Zarr arrays."""

from __future__ import annotations

import copy
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
from hkm_dask.data.chunks import check_range, check_rows, open_array
from hkm_dask.data.files import METADATA_FILE, careful, empty_to_read, local_path, read_complete, read_into, read_json
from hkm_dask.data.foreign import METADATA_FILES, check_remote
from hkm_dask.data.npy import read_npy_header
from hkm_dask.data.objects import Location, location
from hkm_dask.errors import InputError, StoreError

#: Origin of rows gathered from another table: the `Rows.key` of that table, and the row numbers in it (int64).
Origin = tuple[tuple[Hashable, ...], np.ndarray]

#: Files that only `hkm ingest` can read.
_FOR_INGEST = (".parquet", ".npz", ".arrow", ".safetensors")


class Rows(ABC):
    """A table of rows that can be read by blocks and gathered; cheap to pickle unless it is in memory."""

    n_rows: int
    n_features: int
    dtype: np.dtype  # float16, float32 or float64: the dtype in which rows are read
    #: Identifies the content for caches in processes that outlive a run: by a fingerprint, or else by a random name
    #: given on opening, as nothing proves that a file without a fingerprint was not modified since.
    key: tuple[Hashable, ...]
    label: str  # name of the table in messages
    chunk_rows: int = 1  # rows per storage chunk, which is read as a whole; 1 if single rows can be read

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as read."""
        return self.n_features * self.dtype.itemsize

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_rows, n_features)``."""
        return self.n_rows, self.n_features

    def bounds(self, max_bytes: int, min_blocks: int = 1) -> np.ndarray:
        """Return the bounds of blocks, whole storage chunks, at most `max_bytes` as read; see `layout.block_bounds`."""
        return layout.block_bounds(
            self.n_rows, self.row_bytes, max_bytes=max_bytes, min_blocks=min_blocks, unit_rows=self.chunk_rows
        )

    @abstractmethod
    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read consecutive rows as a C-contiguous array of `dtype`; InputError if the range exceeds the table.

        The caller may keep the array, but must not modify it if the rows are in memory. If given, `out`, of its shape
        and dtype, is filled and returned, which saves page faults in loops over blocks.
        """

    @abstractmethod
    def take(self, rows: np.ndarray) -> np.ndarray:
        """Gather rows by sorted numbers (int64), reading each storage chunk once; C-contiguous, of `dtype`."""

    def _describe(self, shape: tuple[int, ...], dtype: np.dtype, label: str) -> None:
        """Set the attributes of rows by an array's shape and dtype; InputError if it is not a table of numbers."""
        self.label = label
        self.n_rows, self.n_features = layout.check_shape(shape, label)
        read_as = layout.float_dtype(dtype)
        if read_as is None:
            raise InputError(
                f"{label}: embeddings.dtype={dtype} should be float16, float32, float64 or an integer; convert it first"
            )
        self.dtype = read_as

    def _deliver(self, rows: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        if out is None:
            return np.ascontiguousarray(rows, dtype=self.dtype)
        out[...] = rows
        return out

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label}, {self.n_rows} × {self.n_features} {self.dtype})"


class ArrayRows(Rows):
    """Rows of a NumPy array in memory; integers are read as floats.

    >>> rows = ArrayRows(np.arange(6).reshape(3, 2))
    >>> rows.read(1, 3)
    array([[2., 3.],
           [4., 5.]])
    >>> rows.bounds(max_bytes=16)
    array([0, 1, 2, 3])
    """

    #: The table from which these rows were gathered, with increasing row numbers, if known.
    origin: Origin | None = None

    def __init__(self, array: np.ndarray, label: str = "array") -> None:
        check_unmasked(array, label)
        self.array = np.asarray(array)
        self._describe(self.array.shape, self.array.dtype, label)
        # An array's address is reused after it is freed, a random number is not; it is pickled with the rows.
        self.key = ("array", uuid.uuid4().hex)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        check_range(start, stop, self.n_rows, self.label)
        return self._deliver(self.array[start:stop], out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        return self._deliver(self.array[check_rows(rows, self.n_rows)], None)


def check_unmasked(array: Any, label: str) -> None:
    """Refuse a masked array with missing values, as the data under the mask are undefined.

    >>> check_unmasked(np.ma.masked_equal([[1, 2], [3, 4]], 2), "X")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: X: n_masked=1 should be 0, masked values are missing; fill them, or leave such rows out
    """
    if n_masked := int(np.ma.count_masked(array)) if isinstance(array, np.ma.MaskedArray) else 0:
        rule = "should be 0, masked values are missing; fill them, or leave such rows out"
        raise InputError(f"{label}: n_masked={n_masked} {rule}")


class NpyRows(Rows):
    """Rows of a `.npy` file, read by blocks; not memory-mapped, as mappings count as resident memory and end in SIGBUS.

    `offset` and `n_bytes` locate an uncompressed member of a `.npz`. InputError as in `npy.read_npy_header`; StoreError
    if a file that is not our own `scratch` is replaced or modified before all rows are read.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, offset: int = 0, n_bytes: int | None = None, label: str | None = None,
        scratch: bool = False,
    ) -> None:  # fmt: skip
        file_path = Path(path).absolute()
        self.path, label = str(file_path), label or str(file_path)
        if not file_path.is_file():
            raise InputError(f"{label} does not exist; check the path")
        state = careful(file_path.stat, f"reading {label}")
        with careful(lambda: file_path.open("rb"), f"reading {label}") as file:
            file.seek(offset)
            header = read_npy_header(file, label, state.st_size - offset if n_bytes is None else n_bytes)
        self._place(header.shape, header.dtype, offset + header.offset, state, label)
        self._fortran, self._watched = header.fortran_order, not scratch

    def _place(self, shape: tuple[int, ...], stored: np.dtype, offset: int, state: os.stat_result, label: str) -> None:
        """Set the location of the C-ordered rows in the file, and the state by which a modified file is recognized."""
        self._describe(shape, stored, label)
        self._stored, self._fortran, self._data = stored, False, offset
        self._state, self._watched = file_state(state), True
        self.key = ("npy", uuid.uuid4().hex)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        check_range(start, stop, self.n_rows, self.label)
        direct = out is not None and not self._fortran and out.dtype == self._stored and out.flags.c_contiguous
        shape = (self.n_features, stop - start) if self._fortran else (stop - start, self.n_features)
        stored = out if direct and out is not None else empty_to_read(shape, self._stored)
        careful(lambda: self._read_stored(stored, start), f"reading {self.label}")
        if stored is out:
            return out
        return self._deliver(stored.T if self._fortran else stored, out)

    def _read_stored(self, stored: np.ndarray, start: int) -> None:
        with Path(self.path).open("rb", buffering=0) as file:
            if self._watched and file_state(os.fstat(file.fileno())) != self._state:
                raise StoreError(f"{self.label} was replaced or written to meanwhile; run the command again")
            # Contiguous ranges of the file: all rows, or in Fortran order single columns.
            for column, values in enumerate(stored if self._fortran else [stored]):
                first = column * self.n_rows + start if self._fortran else start * self.n_features
                n_read = read_into(file.fileno(), [values], self._data + first * self._stored.itemsize)
                if n_read < values.nbytes:
                    raise StoreError(f"{self.label} became shorter while it was read; copy or save it again")

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        rows = check_rows(rows, self.n_rows)
        out = np.empty((len(rows), self.n_features), dtype=self.dtype)
        if len(rows) == 0:
            return out
        # Nearby rows are read together: reading a gap of a few pages costs less than another call.
        gap = max(1, 2**14 // max(1, self._stored.itemsize * self.n_features))
        span = max(1, 2**23 // max(1, self._stored.itemsize * self.n_features))
        breaks = (np.diff(rows) > gap) | (np.diff((rows - rows[0]) // span) > 0)
        cuts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(rows)]
        for first, last in itertools.pairwise(cuts):
            start = int(rows[first])
            out[first:last] = self.read(start, int(rows[last - 1]) + 1)[rows[first:last] - start]
        return out


def file_state(state: os.stat_result) -> tuple[int, int, int]:
    """Return what distinguishes a file from others at its path, and from itself before a modification."""
    return state.st_size, state.st_mtime_ns, state.st_ino


class ZarrRows(Rows):
    """Rows of a Zarr array, at a path or URL, or named `name` in the group there; see `chunks.open_array`.

    Chunks of this package are read directly and verified, others through Zarr. StoreError if the array lacks the
    expected `fingerprint`, is replaced, or has values above `max_abs`.
    """

    def __init__(
        self, path: str | os.PathLike[str], name: str = "", *, fingerprint: str = "", max_abs: float | None = None
    ) -> None:
        folder = location(path).absolute() / name
        self.array, self._max_abs = open_array(folder), max_abs
        spec = self.array.spec
        self._describe(spec.shape, spec.dtype, str(folder))
        self.chunk_rows = spec.chunk_rows
        if fingerprint and self.array.fingerprint != fingerprint:
            raise StoreError(f"{folder} was replaced by another array meanwhile; run the command again on the new one")
        self.key = ("zarr", self.label, self.array.fingerprint or uuid.uuid4().hex)

    def head(self, n_rows: int) -> ZarrRows:
        """Return a table of the first `n_rows` rows."""
        if n_rows == self.n_rows:
            return self
        rows = copy.copy(self)
        rows.n_rows, rows.key = n_rows, (*self.key, n_rows)
        return rows

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        if self.array.spec.dtype == self.dtype:
            return self._within_bound(self.array.read(start, stop, out))
        return self._deliver(self.array.read(start, stop), out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        return self._within_bound(self._deliver(self.array.take(rows), None))

    def _within_bound(self, rows: np.ndarray) -> np.ndarray:
        if self._max_abs is not None and rows.size:
            largest = max_abs(rows)
            if not largest <= self._max_abs:  # true for NaN, too
                fact = f"values reach {largest:.6g}, its attributes say max_abs={self._max_abs:.6g}"
                raise StoreError(f"{self.label}: {fact}; {self.array.remedy()}")
        return rows


def max_abs(rows: np.ndarray) -> float:
    """Return the largest absolute value of C-contiguous floats, NaN if any: positive floats sort as their bits do."""
    n_bytes, sign = rows.dtype.itemsize, 1 << (8 * rows.dtype.itemsize - 1)
    largest = int(rows.view(f"i{n_bytes}").max())
    most_negative = int(rows.view(f"u{n_bytes}").max())
    bits = max(largest, most_negative - sign if most_negative >= sign else 0)
    return float(np.array(bits, dtype=f"u{n_bytes}").view(rows.dtype))


class RemoteZarrRows(Rows):
    """Rows of a Zarr array in memory or in an object store, read through Zarr; picklable if its store is."""

    def __init__(self, array: zarr.Array) -> None:
        self.array = array
        self._describe(array.shape, np.dtype(array.dtype), str(array.store_path))
        check_remote(array)
        self.chunk_rows = (array.shards or array.chunks)[0]
        self.key = ("zarr", self.label, uuid.uuid4().hex)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        check_range(start, stop, self.n_rows, self.label)
        return self._deliver(np.asarray(self.array[start:stop]), out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        return self._deliver(np.asarray(self.array.oindex[check_rows(rows, self.n_rows)]), None)


def as_rows(x: Any) -> Rows:
    """Return the rows of an array, a `zarr.Array`, a pool, or a path to a `.npy` file, a pool or a Zarr array.

    Only headers are read. InputError if `x` is none of these, StoreError if a pool is incomplete.

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
        return _rows_of_path(location(x, "embeddings"))
    rows = getattr(x, "rows", None)
    if callable(rows) and isinstance(table := rows(), Rows):
        return table
    raise InputError(
        f"embeddings={type(x).__name__} should be an array, a pool or a path; convert it with numpy.asarray"
    )


def _rows_of_path(path: Location) -> Rows:
    if not path.exists():
        raise InputError(f"{path} does not exist; give a .npy file, a pool or a Zarr array")
    if path.suffix in _FOR_INGEST or (path.is_dir() and not any((path / name).exists() for name in METADATA_FILES)):
        raise StoreError(f"{path} is not a pool, .npy file or Zarr array; convert it into a pool with `hkm ingest`")
    if path.is_file():
        return NpyRows(local_path(path, "embeddings"))
    root = read_json(path / METADATA_FILE) or {}
    if root.get("node_type") != "group":
        return ZarrRows(path)
    attributes = read_complete(path, layout.POOL_FORMAT)
    return ZarrRows(path, layout.EMBEDDINGS, fingerprint=attributes["fingerprint"], max_abs=attributes["max_abs"])
