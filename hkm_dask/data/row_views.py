"""Tables derived from other tables: a subset of rows, or rows scaled to unit length."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np

from hkm_dask.data import layout
from hkm_dask.data.chunks import check_range, check_rows
from hkm_dask.data.files import as_buffer
from hkm_dask.data.npy import read_npy_rows
from hkm_dask.data.objects import location
from hkm_dask.data.rows import Rows
from hkm_dask.errors import InputError

#: Numbers that are read at once when individual ones are requested.
_NUMBERS_AT_ONCE = 1 << 16


class StoredNumbers:
    """Sorted numbers in a `.npy` file, a path or a URL, of which only the requested ones are read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/numbers.npy", np.array([2, 3, 5, 7, 11]))
    ...     numbers = StoredNumbers(f"{folder}/numbers.npy", 5)
    ...     numbers[1:3], numbers[np.array([0, 4])], int(numbers[3]), numbers.searchsorted([3, 6])
    (array([3, 5]), array([ 2, 11]), 7, array([1, 3]))
    """

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size = location(path), size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, which: Any) -> Any:
        """Return the numbers in a slice, at one position, or at increasing positions."""
        if isinstance(which, slice):
            start, stop, _ = which.indices(self._size)
            return read_npy_rows(self._path, start, max(start, stop))
        places = np.atleast_1d(which)
        out = np.empty(len(places), np.int64)
        for some in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places // _NUMBERS_AT_ONCE)) + 1):
            if len(some):
                first = int(places[some[0]])
                out[some] = self[first : int(places[some[-1]]) + 1][places[some] - first]
        return out if np.ndim(which) else out[0]

    def searchsorted(self, values: Any, side: Literal["left", "right"] = "left") -> Any:
        """Return insertion positions, as `numpy.searchsorted` does; reads all numbers."""
        return self[:].searchsorted(values, side=side)


class SubsetRows(Rows):
    """A subset of the rows of another table, numbered from 0.

    Blocks end where storage chunks of the base end, so that one pass over all blocks reads each chunk once. InputError
    if the row numbers are empty, unsorted, repeated or out of range.

    >>> from hkm_dask.data.rows import ArrayRows
    >>> rows = SubsetRows(ArrayRows(np.arange(8.0).reshape(4, 2)), np.array([1, 3]))
    >>> rows.read(1, 2)
    array([[6., 7.]])
    """

    def __init__(self, base: Rows, index: np.ndarray) -> None:
        index = check_rows(index, base.n_rows)
        if len(index) == 0:
            raise InputError(f"subset of {base.label}: n_samples=0 should be at least 1; give row numbers")
        if (index[1:] == index[:-1]).any():
            raise InputError(f"subset of {base.label}: row numbers should not repeat; use numpy.unique")
        digest = hashlib.blake2b(as_buffer(np.ascontiguousarray(index)), digest_size=16).hexdigest()
        self.key = ("subset", *base.key, digest)
        self.label = f"{len(index)} rows of {base.label}"
        self.n_rows, self.n_features, self.dtype = len(index), base.n_features, base.dtype
        #: The underlying table; of a subset of a subset, the original table.
        self.base: Rows = base.base if isinstance(base, SubsetRows) else base
        #: Array of row numbers, or `StoredNumbers` in pickled copies if there is an `index_path`; see `travel_by`.
        self.index: Any = base.index[index] if isinstance(base, SubsetRows) else index
        self.index_path: str | None = None

    def travel_by(self, path: str) -> None:
        """Pickle the row numbers as a reference to an ``.npy`` of them, a path or URL that all workers can read."""
        self.index_path = path

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.index_path is not None:
            del state["index"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.index_path is not None:
            self.index = StoredNumbers(self.index_path, self.n_rows)

    def bounds(self, max_bytes: int, min_blocks: int = 1) -> np.ndarray:
        """See `Rows.bounds`; a block ends where a storage chunk of the base ends."""
        if self.base.chunk_rows == 1:
            return super().bounds(max_bytes, min_blocks)
        edges = np.arange(self.base.chunk_rows, self.base.n_rows, self.base.chunk_rows, dtype=np.int64)
        cuts = np.unique(np.append(self.index.searchsorted(edges), self.n_rows))
        cuts = cuts[cuts > 0]
        max_rows = max(1, min(max_bytes // self.row_bytes, -(-self.n_rows // max(1, min_blocks))))
        bounds = [0]
        while bounds[-1] < self.n_rows:
            nearest = int(np.searchsorted(cuts, bounds[-1], side="right"))
            furthest = int(np.searchsorted(cuts, bounds[-1] + max_rows, side="right")) - 1
            bounds.append(int(cuts[max(nearest, furthest)]))
        return np.array(bounds, dtype=np.int64)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        check_range(start, stop, self.n_rows, self.label)
        return self._deliver(self.base.take(self.index[start:stop]), out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        return self.base.take(self.index[check_rows(rows, self.n_rows)])


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale every row to unit length; norms are float64, results float32, and zero rows stay zero.

    Each row's result depends on that row only, so blocks of any size give the same bits.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    out = np.empty(rows.shape, dtype=np.float32)
    step = max(1, layout.MIB // max(1, 8 * rows.shape[1]))
    for start in range(0, len(rows), step):
        wide = rows[start : start + step].astype(np.float64)
        # Squares of very large or very small float64 values leave the range: scale such rows to about 1 first.
        largest = np.abs(wide).max(axis=1, keepdims=True)
        extreme = (largest > 1e150) | ((largest < 1e-150) & (largest > 0))
        if extreme.any():
            wide /= np.where(extreme, largest, 1.0)
        norms = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
        np.divide(wide, np.where(norms == 0, 1.0, norms), out=out[start : start + step], casting="same_kind")
    return out


class UnitRows(Rows):
    """The rows of another table scaled to unit length, for spherical k-means; see `unit_rows`.

    >>> from hkm_dask.data.rows import ArrayRows
    >>> UnitRows(ArrayRows(np.array([[0.0, 2.0]]))).read(0, 1)
    array([[0., 1.]], dtype=float32)
    """

    def __init__(self, base: Rows) -> None:
        self.base = base
        self.n_rows, self.n_features = base.shape
        self.dtype = np.dtype(np.float32)
        self.key = ("unit", *base.key)
        self.label = f"unit rows of {base.label}"
        self.chunk_rows = base.chunk_rows

    def bounds(self, max_bytes: int, min_blocks: int = 1) -> np.ndarray:
        """See `Rows.bounds`."""
        return self.base.bounds(max(1, max_bytes * self.base.row_bytes // self.row_bytes), min_blocks)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        return self._deliver(unit_rows(self.base.read(start, stop)), out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        return unit_rows(self.base.take(rows))
