"""Rows to cluster: from a file, or random rows with a decaying spectrum like that of embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 17


@dataclass(frozen=True)
class Data:
    """Rows to cluster, float32 and C-contiguous; every participant gets the same array. `name` appears in tables."""

    name: str
    rows: NDArray[np.float32]


def load_rows(path: Path, n_rows: int | None = None) -> Data:
    """Read a ``.npy`` file of shape (n, n_features), or `n_rows` of its rows, drawn with seed 0, in file order."""
    return pick_rows(Data(path.stem, np.load(path, mmap_mode="r")), n_rows)


def pick_rows(data: Data, n_rows: int | None) -> Data:
    """Draw `n_rows` rows with seed 0 and keep their order; return all rows if there are no more.

    Examples
    --------
    >>> pick_rows(Data("ten", np.arange(10, dtype=np.float32)[:, None]), 3).rows.shape
    (3, 1)
    """
    rows = data.rows
    if n_rows is not None and n_rows < len(rows):
        rows = rows[np.sort(np.random.default_rng(0).choice(len(rows), n_rows, replace=False))]
    return Data(data.name, np.ascontiguousarray(rows, dtype=np.float32))


def make_rows(n_rows: int, n_features: int) -> Data:
    """Generate rows with `RowMaker`.

    Examples
    --------
    >>> make_rows(100, 8).rows.dtype
    dtype('float32')
    """
    rows = np.empty((n_rows, n_features), np.float32)
    RowMaker(np, n_features).fill(rows)
    return Data(f"synthetic, {n_features} features", rows)


class RowMaker:
    """Generator of rows around 256 centers; the variance along direction i, counted from 1, falls as 1/i.

    Parameters
    ----------
    xp : module
        NumPy, or CuPy to generate the rows on the device.
    n_features : int
    """

    def __init__(self, xp: Any, n_features: int, *, n_groups: int = 256) -> None:
        rng = np.random.default_rng(0)
        self._xp, self.n_features = xp, n_features
        self._spread = xp.asarray((1.0 / np.sqrt(np.arange(1, n_features + 1))).astype(np.float32))
        # The directions are not the axes: that would favor a search that starts with the first coordinates.
        turn = np.linalg.qr(rng.standard_normal((n_features, n_features)))[0].astype(np.float32)
        self._turn = xp.asarray(turn)
        self._groups = xp.asarray(rng.standard_normal((n_groups, n_features), dtype=np.float32))

    def pieces(self, n_rows: int, *, seed: int = 0, noise: float = 1.0) -> Iterator[tuple[slice, Any]]:
        """Yield slices, and the float32 rows of shape (n, n_features) for them."""
        rng = self._xp.random.default_rng(seed)
        for low in range(0, n_rows, _PIECE):
            n = min(_PIECE, n_rows - low)
            rows = rng.standard_normal((n, self.n_features), dtype=self._xp.float32)
            rows *= noise
            rows += self._groups[rng.integers(0, len(self._groups), n)]
            rows *= self._spread
            yield slice(low, low + n), rows @ self._turn

    def fill(self, out: Any) -> tuple[NDArray[np.float32], float]:
        """Fill a host or device array of shape (n_rows, n_features); return its mean row and largest absolute value."""
        total, largest = np.zeros(self.n_features), 0.0
        for place, made in self.pieces(len(out)):
            rows = made.astype(out.dtype, copy=False)
            total += to_numpy(rows.sum(axis=0, dtype=self._xp.float64))
            largest = max(largest, float(abs(rows).max()))
            if isinstance(out, np.ndarray) and not isinstance(rows, np.ndarray):
                rows.get(out=out[place])  # straight into pinned memory
            else:
                out[place] = rows
        return (total / len(out)).astype(np.float32), largest

    def centroids(self, n_clusters: int) -> NDArray[np.float32]:
        """Return centroids of shape (n_clusters, n_features), not exact in 16 bits and with less noise than rows."""
        pieces = [to_numpy(rows) for _, rows in self.pieces(n_clusters, seed=1, noise=0.5)]
        return np.ascontiguousarray(np.concatenate(pieces), np.float32)


def to_numpy(array: Any) -> NDArray[Any]:
    """Copy a NumPy or CuPy array to the host."""
    return array if isinstance(array, np.ndarray) else array.get()
