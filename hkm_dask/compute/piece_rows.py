"""Rows written by tasks in pieces, for object stores, in which several tasks cannot write one file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.shared_arrays import SharedArrayStore
from hkm_dask.data import layout
from hkm_dask.data.chunks import check_range, check_rows
from hkm_dask.data.objects import each, location
from hkm_dask.data.rows import Rows


@dataclass(frozen=True)
class Pieces:
    """Shared arrays of any dtype that tasks write and read, concatenated."""

    store: SharedArrayStore
    name: str  # the array that begins with row `start` is ``f"{name}-{start}"``
    offsets: NDArray[np.int64]  # (n_pieces + 1,): first row of each piece, and the number of all rows

    def write(self, start: int, rows: NDArray[np.generic]) -> None:
        """Write the piece that begins with row `start`."""
        self.store.put(f"{self.name}-{start}", rows)

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Read rows ``start:stop``; an empty range gives a 1-D array."""
        spans = [(int(self.offsets[i]), low, high) for i, low, high in layout.spans(self.offsets, start, stop)]
        pieces = self.store.series(self.name, ()).read(spans)
        return np.concatenate(pieces) if pieces else np.empty(0)

    def delete(self) -> None:
        """Delete the pieces that were written."""
        series = self.store.series(self.name, ())
        each(lambda start: series[start].delete(), self.offsets[:-1].tolist(), location(self.store.folder or "."))


class PieceRows(Rows):
    """Rows of `Pieces` whose first rows are `starts`: sorted numbers, the first of them 0.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = SharedArrayStore(folder)
    ...     for start in (0, 2):
    ...         _ = store.put(f"a-{start}", np.arange(2.0 * start, 2.0 * start + 4).reshape(2, 2))
    ...     rows = PieceRows(store, "a", np.array([0, 2]), (4, 2), np.dtype("f8"))
    ...     rows.read(1, 3), rows.take(np.array([0, 3]))
    (array([[2., 3.],
           [4., 5.]]), array([[0., 1.],
           [6., 7.]]))
    """

    def __init__(
        self, store: SharedArrayStore, name: str, starts: NDArray[np.int64], shape: tuple[int, int], dtype: np.dtype,
        label: str = "",
    ) -> None:  # fmt: skip
        prefix = f"{store.folder}/{name}"
        self.pieces = Pieces(store, name, np.append(starts, shape[0]))
        self._describe(shape, dtype, label or prefix)
        self.key = ("pieces", prefix)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        check_range(start, stop, self.n_rows, self.label)
        return self._deliver(self.pieces.read(start, stop).reshape(stop - start, self.n_features), out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        rows = check_rows(rows, self.n_rows)
        out = np.empty((len(rows), self.n_features), self.dtype)
        for some in np.split(np.arange(len(rows)), np.searchsorted(rows, self.pieces.offsets[1:-1])):
            if len(some):
                first = int(rows[some[0]])
                out[some] = self.read(first, int(rows[some[-1]]) + 1)[rows[some] - first]
        return out

    def delete(self) -> None:
        """Delete the files of the rows."""
        self.pieces.delete()
