"""Rows that tasks wrote in pieces, where no file can be written by many: in an object store."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.shared_arrays import SharedArrayStore
from hkm_dask.data import layout
from hkm_dask.data.chunks import check_range, check_rows
from hkm_dask.data.objects import each, location
from hkm_dask.data.rows import Rows


class PieceRows(Rows):
    """Rows of shared arrays, one after the other, each named by the number of its first row.

    Parameters
    ----------
    store : SharedArrayStore
    name : str
        The array that begins with row `start` is ``f"{name}-{start}"``.
    starts : ndarray of int64, shape (n_pieces,)
        Sorted; the first is 0.
    shape : (int, int)
    dtype : np.dtype

    Examples
    --------
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
        self.prefix = f"{store.folder}/{name}"
        self._series = store.series(name, ())
        self._offsets = np.append(starts, shape[0])
        self._describe(shape, dtype, label or self.prefix)
        self.key = ("pieces", self.prefix)

    def _pieces(self, start: int, stop: int) -> list[np.ndarray]:
        spans = [(int(self._offsets[i]), low, high) for i, low, high in layout.spans(self._offsets, start, stop)]
        return self._series.read(spans)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        check_range(start, stop, self.n_rows, self.label)
        pieces = self._pieces(start, stop)
        return self._deliver(np.concatenate(pieces) if pieces else np.empty((0, self.n_features), self.dtype), out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        rows = check_rows(rows, self.n_rows)
        out = np.empty((len(rows), self.n_features), self.dtype)
        for some in np.split(np.arange(len(rows)), np.searchsorted(rows, self._offsets[1:-1])):
            if len(some):
                first = int(rows[some[0]])
                out[some] = self.read(first, int(rows[some[-1]]) + 1)[rows[some] - first]
        return out

    def delete(self) -> None:
        """Remove what holds them."""
        each(lambda start: self._series[start].delete(), self._offsets[:-1].tolist(), location(self.prefix))
